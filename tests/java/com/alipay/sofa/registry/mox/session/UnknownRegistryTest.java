package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.mox.ChildJvm;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataAcceptor;
import com.alipay.sofa.registry.store.api.meta.ProvideDataRepository;
import java.io.File;
import java.lang.reflect.Proxy;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import javax.tools.ToolProvider;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.support.GenericApplicationContext;

/** A session server whose classes are not those that the binding was compiled against: MoX goes off, the server runs on. */
public class UnknownRegistryTest {
    private static final String REPOSITORY = "com/alipay/sofa/registry/store/api/meta/ProvideDataRepository";
    private static final String ROW = "com/alipay/sofa/registry/common/model/console/PersistenceData";

    @Rule public final TemporaryFolder temp = new TemporaryFolder();

    @Test
    public void knownRegistryServes() throws Exception {
        ChildJvm child = new ChildJvm().run(Main.class, "true");
        assertEquals(child.toString(), 1, child.count("accepted 2, running true"));
        assertEquals(child.toString(), 0, child.count("SEVERE"));
    }

    @Test
    public void methodThatOnlyTheFirstAcceptMisses() throws Exception {
        assertOff(
                "java.lang.NoSuchMethodError",
                "com/alipay/sofa/registry/common/model/store/Publisher",
                "package com.alipay.sofa.registry.common.model.store;"
                        + "public class Publisher { public String getDataInfoId() { return \"d\"; } }");
    }

    @Test
    public void requestWithoutItsType() throws Exception {
        assertOff(
                "java.lang.NoSuchMethodError",
                "com/alipay/sofa/registry/server/session/acceptor/WriteDataRequest",
                "package com.alipay.sofa.registry.server.session.acceptor;"
                        + "public interface WriteDataRequest<T> { T getRequestBody(); enum WriteDataRequestType { PUBLISHER } }");
    }

    @Test
    public void acceptorWithOneMoreMethod() throws Exception {
        assertOff(
                "unknown registry version, its acceptor has",
                "com/alipay/sofa/registry/server/session/acceptor/WriteDataAcceptor",
                "package com.alipay.sofa.registry.server.session.acceptor;"
                        + "public interface WriteDataAcceptor { void accept(WriteDataRequest request); void drain(long millis); }");
    }

    @Test
    public void knownStoreIsRead() throws Exception {
        ChildJvm child = new ChildJvm().run(WithStore.class);
        assertEquals(child.toString(), 1, child.count("served 1/1, documents on"));
        assertEquals(child.toString(), 0, child.count("SEVERE"));
    }

    @Test
    public void storeThatComparesNothing() throws Exception {
        assertNoDocuments("there is no " + REPOSITORY.replace('/', '.') + ".put(", REPOSITORY, repository("boolean put(PersistenceData data)"));
    }

    @Test
    public void storeThatAnswersOtherwise() throws Exception {
        assertNoDocuments("gives no boolean", REPOSITORY, repository("long put(PersistenceData data, long expect)"));
    }

    @Test
    public void rowWithoutVersion() throws Exception {
        assertNoDocuments("PersistenceData.getVersion()", ROW, "package com.alipay.sofa.registry.common.model.console; public class PersistenceData { }");
    }

    private static String repository(String put) {
        return "package com.alipay.sofa.registry.store.api.meta; import com.alipay.sofa.registry.common.model.console.PersistenceData;"
                + "public interface ProvideDataRepository { PersistenceData get(String key); " + put + "; }";
    }

    /** Of the store alone a type is another: documents are off with one error, and everything else goes on. */
    private void assertNoDocuments(String reason, String type, String source) throws Exception {
        ChildJvm child = new ChildJvm().firstOnClassPath(compiled(type, source)).run(WithStore.class);
        assertEquals(child.toString(), 0, child.exit);
        assertEquals(child.toString(), 1, child.count("served 1/1, documents off"));
        assertEquals(child.toString(), 1, child.count("SEVERE"));
        assertEquals(child.toString(), 1, child.output.stream().filter(line -> line.contains("SEVERE MOX: event=documents_off") && line.contains(reason)).count());
    }

    private void assertOff(String reason, String type, String source) throws Exception {
        ChildJvm child = new ChildJvm().firstOnClassPath(compiled(type, source)).run(Main.class, "false");
        assertEquals(child.toString(), 0, child.exit);
        assertEquals(child.toString(), 1, child.count("accepted 2, running false"));
        assertEquals(child.toString(), 1, child.count("SEVERE"));
        assertEquals(child.toString(), 1, child.output.stream().filter(line -> line.contains("SEVERE MOX: MoX is off") && line.contains(reason)).count());
    }

    private String compiled(String type, String source) throws Exception {
        Path file = temp.getRoot().toPath().resolve("source/" + type + ".java");
        Files.createDirectories(file.getParent());
        Files.write(file, source.getBytes(StandardCharsets.UTF_8));
        File classes = temp.newFolder("classes");
        int result =
                ToolProvider.getSystemJavaCompiler()
                        .run(null, null, null, "-proc:none", "-cp", System.getProperty("test.mox.classpath"), "-d", classes.toString(), file.toString());
        assertTrue("the changed type compiles", result == 0);
        return classes.toString();
    }

    /** Starts a session server, has two publishers accepted, says how it went. */
    public static final class Main {
        public static void main(String[] args) {
            try (ConfigurableApplicationContext context = SessionServer.start("mox.enabled=true", "mox.scope=local", "mox.listen=127.0.0.1:0")) {
                WriteDataAcceptor acceptor = context.getBean(WriteDataAcceptor.class);
                for (int i = 0; i < 2; i++) {
                    acceptor.accept(SessionServer.publish(new Publisher()));
                }
                boolean expected = Boolean.parseBoolean(args[0]);
                TestData.await("running is " + expected, () -> RegistryMox.running().isPresent() == expected);
                System.out.println("accepted " + SessionServer.Session.ACCEPTOR.accepted.size() + ", running " + expected);
            }
        }
    }

    /** Starts a session server with a token and a store, publishes, says what is served and whether there are documents. */
    public static final class WithStore {
        public static void main(String[] args) {
            SpringApplicationBuilder builder =
                    SessionServer.session(new SpringApplicationBuilder(SessionServer.Session.class))
                            .initializers(context -> ((GenericApplicationContext) context).registerBean(ProvideDataRepository.class, WithStore::empty));
            String[] arguments =
                    SessionServer.arguments("mox.enabled=true", "mox.scope=local", "mox.listen=127.0.0.1:0", "mox.admin.token=open sesame 1234");
            try (ConfigurableApplicationContext context = builder.run(arguments)) {
                context.getBean(WriteDataAcceptor.class).accept(SessionServer.publish(SessionServer.publisher(1, "r", 1, "10.1.0.1:12200")));
                RegistryMox mox = RegistryMox.running().get();
                mox.loaded();
                String served = TestData.served(mox);
                System.out.println("served " + served + ", documents " + ((Map<?, ?>) mox.status().get("documents")).get("state"));
            }
        }

        /** A store without a row, whatever its methods are. */
        private static ProvideDataRepository empty() {
            Class<?>[] types = {ProvideDataRepository.class};
            return (ProvideDataRepository)
                    Proxy.newProxyInstance(
                            WithStore.class.getClassLoader(),
                            types,
                            (proxy, method, given) -> method.getReturnType() == int.class ? 1 : method.getReturnType() == boolean.class ? false : null);
        }
    }
}
