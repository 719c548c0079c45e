package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.common.model.console.PersistenceData;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.alipay.sofa.registry.store.api.meta.ProvideDataRepository;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.FutureTask;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.logging.Level;
import org.junit.After;
import org.junit.Test;
import org.springframework.context.support.GenericApplicationContext;
import org.springframework.core.env.MapPropertySource;

/** Rows between a store and the engine; what they mean is the engine's, and tested there. */
public class DocumentFollowerTest {
    private static final String TOKEN = "open sesame 1234";
    private static final String POLICY = "registry-mox.policy#@#9600#@#CONFIG";
    private static final long NEVER = 1_000_000;

    private final List<AutoCloseable> opened = new ArrayList<>();

    /** The registry's table, as its repository has it: no for a conflict and for whatever goes wrong alike. */
    static final class Table implements ProvideDataRepository {
        final Map<String, PersistenceData> rows = new HashMap<>();
        RuntimeException away;
        /** It has become that of another version. */
        LinkageError linkage;
        /** Calls wait for it, where there is one. */
        CountDownLatch deaf;

        private void call() {
            CountDownLatch waits;
            synchronized (this) {
                waits = deaf;
            }
            try {
                if (waits != null) {
                    waits.await();
                }
            } catch (InterruptedException e) {
                throw new IllegalStateException(e);
            }
        }

        @Override
        public boolean put(PersistenceData data) {
            throw new AssertionError("nothing is written without a comparison");
        }

        @Override
        public boolean put(PersistenceData data, long expect) {
            call();
            synchronized (this) {
                String key = data.getDataId() + "#@#" + data.getInstanceId() + "#@#" + data.getGroup();
                long there = rows.containsKey(key) ? rows.get(key).getVersion() : 0;
                if (away != null || there != expect || data.getVersion() <= expect) {
                    return false;
                }
                rows.put(key, data);
                return true;
            }
        }

        @Override
        public PersistenceData get(String key) {
            call();
            synchronized (this) {
                if (linkage != null) {
                    throw linkage;
                }
                if (away != null) {
                    throw away;
                }
                return rows.get(key);
            }
        }

        @Override
        public boolean remove(String key, long version) {
            throw new AssertionError("nothing is removed");
        }

        @Override
        public Map<String, PersistenceData> getAll() {
            throw new AssertionError("not asked for");
        }

        synchronized void set(RuntimeException away, CountDownLatch deaf) {
            this.away = away;
            this.deaf = deaf;
        }

        synchronized void unlink() {
            linkage = new NoSuchMethodError("PersistenceData.getVersion");
        }

        synchronized String value(String key) {
            return rows.get(key).getData();
        }
    }

    @After
    public void close() throws Exception {
        Collections.reverse(opened);
        for (AutoCloseable one : opened) {
            one.close();
        }
    }

    private RegistryMox mox() {
        RegistryMox mox = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").set("admin.token", TOKEN).build());
        opened.add(mox);
        return mox;
    }

    private RealDocumentStore store(Table table, String url) {
        return store(table, url, opened);
    }

    /** A table as a session server's context has it, which is to be closed. */
    static RealDocumentStore store(Table table, String url, List<AutoCloseable> opened) {
        GenericApplicationContext context = new GenericApplicationContext();
        context.getEnvironment().getPropertySources().addFirst(new MapPropertySource("test", Collections.singletonMap("jdbc.url", url)));
        if (table != null) {
            context.registerBean(ProvideDataRepository.class, () -> table);
        }
        context.refresh();
        opened.add(context);
        return RealDocumentStore.of(context);
    }

    private DocumentFollower follower(RegistryMox mox, Table table, long poll) {
        return follower(mox, store(table, "jdbc:mysql://db/registry"), poll, DocumentFollower.CALL_MILLIS);
    }

    private DocumentFollower follower(RegistryMox mox, DocumentStore store, long poll, long call) {
        return follower(mox, store, poll, call, opened);
    }

    /** A follower, which is to be closed. */
    private static DocumentFollower follower(RegistryMox mox, DocumentStore store, long poll, long call, List<AutoCloseable> opened) {
        Map<?, ?> keys = (Map<?, ?>) mox.host().command("settings").get("documents");
        DocumentFollower follower = new DocumentFollower(mox, store, keys, poll, call);
        opened.add(follower);
        return follower;
    }

    /** A follower of a table of its own, which the engine waits for. */
    static DocumentFollower started(RegistryMox mox, long poll, List<AutoCloseable> opened) {
        DocumentStore store = store(new Table(), "jdbc:mysql://db/registry", opened);
        DocumentFollower follower = follower(mox, store, poll, DocumentFollower.CALL_MILLIS, opened);
        mox.host().command("awaitDocuments");
        follower.start();
        return follower;
    }

    private static Map<String, Object> change(RegistryMox mox, String path, String body) {
        Map<String, Object> shown = Collections.singletonMap("token", TOKEN);
        return mox.host().command("change", "path", path, "shown", shown, "body", body);
    }

    private static Map<?, ?> documents(RegistryMox mox) {
        return (Map<?, ?>) mox.status().get("documents");
    }

    private static Object revision(RegistryMox mox) {
        return ((Map<?, ?>) ((Map<?, ?>) documents(mox).get("documents")).get("policy")).get("revision");
    }

    @Test
    public void whatOneWritesTheOthersRead() throws Exception {
        Table table = new Table();
        RegistryMox[] servers = {mox(), mox()};
        DocumentFollower writer = follower(servers[0], table, NEVER);
        writer.start();
        follower(servers[1], table, 20).start();
        assertEquals("on", documents(servers[0]).get("state"));
        Map<String, Object> answer = writer.write(change(servers[0], "/mox/policy", "{\"exclude\":[\"a*\"]}"));
        assertEquals(answer.toString(), 200L, answer.get("status"));
        assertTrue(table.value(POLICY), table.value(POLICY).startsWith("{\"schema\":1,\"name\":\"policy\",\"revision\":1,"));
        TestData.await("it is read", () -> revision(servers[1]).equals(1L));
        assertEquals(servers[0].status().get("policy"), servers[1].status().get("policy"));
    }

    @Test
    public void aRowOfAnySizeIsReadAndRefused() throws Exception {
        Table table = new Table();
        RegistryMox mox = mox();
        PersistenceData row = new PersistenceData();
        row.setVersion(5);
        row.setData(new String(new char[20 << 20]));
        table.rows.put(POLICY, row);
        DocumentFollower follower = follower(mox, table, NEVER);
        follower.start();
        assertTrue(documents(mox).toString(), documents(mox).toString().contains("too-large"));
        row.setData(null);
        follower.refresh();
        assertTrue(documents(mox).toString(), documents(mox).toString().contains("malformed"));
        assertEquals(200L, follower.write(change(mox, "/mox/policy", "{}")).get("status"));
    }

    @Test
    public void aDatabaseThatIsAwayIsSaidToBe() throws Exception {
        Table table = new Table();
        table.set(new IllegalStateException("no connection"), null);
        RegistryMox mox = mox();
        DocumentFollower follower = follower(mox, table, 20);
        follower.start();
        assertEquals("unreachable", documents(mox).get("state"));
        assertEquals("what it says may name it", "java.lang.IllegalStateException", documents(mox).get("why"));
        assertEquals(503L, change(mox, "/mox/policy", "{}").get("status"));
        table.set(null, null);
        TestData.await("it is back", () -> "on".equals(documents(mox).get("state")));
        Map<String, Object> write = change(mox, "/mox/policy", "{}");
        table.set(new IllegalStateException("no connection"), null);
        assertEquals("what became of it is not known", 503L, follower.write(write).get("status"));
        table.set(null, null);
        TestData.await("it is back", () -> "on".equals(documents(mox).get("state")));
        assertEquals(0L, revision(mox));
    }

    /** As where a firewall drops what is sent: no call ends before it is gone. */
    @Test
    public void aDatabaseThatDoesNotAnswerHoldsNobodyUp() throws Exception {
        Table table = new Table();
        CountDownLatch deaf = new CountDownLatch(1);
        RegistryMox mox = mox();
        DocumentFollower follower = follower(mox, table, 20);
        follower.start();
        Map<String, Object> write = change(mox, "/mox/policy", "{}");
        table.set(null, deaf);
        assertThrows(TimeoutException.class, () -> follower.write(write));
        assertEquals("unreachable", documents(mox).get("state"));
        table.set(null, null);
        TestData.await("other calls are answered", () -> "on".equals(documents(mox).get("state")));
        assertEquals(200L, follower.write(change(mox, "/mox/policy", "{\"exclude\":[\"a*\"]}")).get("status"));
        Object policy = mox.status().get("policy");
        deaf.countDown(); // the first write comes late, and over what is there now
        TestData.await("all that was late has ended", () -> storeThreads() <= 1);
        follower.refresh();
        assertEquals(policy, mox.status().get("policy"));
        assertEquals(1L, revision(mox));
    }

    /** As where the pool has connections that wait for their use, and each of them is as dead as the database was. */
    @Test
    public void aDatabaseThatIsBackIsReadWhateverStillWaitsForItsAnswer() {
        int connections = 20;
        Table table = new Table();
        CountDownLatch deaf = new CountDownLatch(1);
        RegistryMox mox = mox();
        follower(mox, store(table, "jdbc:mysql://db/registry"), 20, 100).start();
        table.set(null, deaf);
        TestData.await("a call waits on each", () -> storeThreads() > connections);
        table.set(null, null);
        TestData.await("it is read", () -> "on".equals(documents(mox).get("state")));
        assertTrue("they wait", storeThreads() > connections);
        deaf.countDown();
    }

    /** As for a while after that, where the pool still hands out some of those now and then. */
    @Test
    public void connectionsThatAreDeadLeaveNothingUnread() throws Exception {
        Table table = new Table();
        CountDownLatch deaf = new CountDownLatch(1);
        RegistryMox mox = mox();
        DocumentStore real = store(table, "jdbc:mysql://db/registry");
        AtomicInteger dead = new AtomicInteger();
        DocumentStore store =
                new DocumentStore() {
                    @Override
                    public Row get(String key) {
                        table.set(null, dead.getAndDecrement() > 0 ? deaf : null);
                        return real.get(key);
                    }

                    @Override
                    public boolean put(String key, Row row, long expect) {
                        return real.put(key, row, expect);
                    }
                };
        DocumentFollower follower = follower(mox, store, NEVER, DocumentFollower.CALL_MILLIS);
        follower.start();
        table.rows.put(POLICY, new PersistenceData());
        table.rows.get(POLICY).setVersion(1);
        dead.set(4);
        follower.refresh();
        assertTrue("the row is read", documents(mox).toString().contains("malformed"));
        assertEquals("and nobody heard of it", "on", documents(mox).get("state"));
        deaf.countDown();
    }

    private static long storeThreads() {
        return Thread.getAllStackTraces().keySet().stream().filter(thread -> thread.getName().equals("mox-store")).count();
    }

    /** As where a class of the store is another, or is missing, deeper than the start looks. */
    @Test
    public void aStoreThatCannotBeLinkedEndsDocumentsAndNothingElse() {
        List<String> errors = new CopyOnWriteArrayList<>();
        MoxConfig config =
                MoxConfig.builder()
                        .set("listen", "127.0.0.1:0")
                        .set("admin.token", TOKEN)
                        .logSink((level, target, line) -> Optional.of(line).filter(it -> level == Level.SEVERE).ifPresent(errors::add))
                        .build();
        RegistryMox mox = RegistryMox.create(config);
        opened.add(mox);
        mox.loaded();
        Table table = new Table();
        DocumentFollower follower = follower(mox, table, 20);
        follower.start();
        assertEquals("on", documents(mox).get("state"));
        table.unlink();
        TestData.await("it says so", () -> "unreachable".equals(documents(mox).get("state")));
        assertEquals("java.lang.NoSuchMethodError", documents(mox).get("why"));
        assertThrows("nobody asks it again", TimeoutException.class, follower::refresh);
        assertEquals(503L, change(mox, "/mox/policy", "{}").get("status"));
        mox.publish("registry", Publish.of(TestData.service(1), "r").version(1, 1).data("10.1.0.1:12200").build());
        assertEquals("everything else goes on", "1/1", TestData.served(mox));
        TestData.await("an error is logged", () -> !errors.isEmpty());
        assertEquals(errors.toString(), 1, errors.size());
        assertTrue(errors.get(0), errors.get(0).contains("event=documents_unreachable") && errors.get(0).contains("PersistenceData.getVersion"));
    }

    /** As where a command waits for a slow disk. */
    @Test
    public void whoGivesUpWaitsForNoOtherCall() throws Exception {
        Table table = new Table();
        CountDownLatch deaf = new CountDownLatch(1);
        RegistryMox mox = mox();
        DocumentFollower follower = follower(mox, table, NEVER);
        follower.start();
        table.set(null, deaf);
        FutureTask<TimeoutException> given = new FutureTask<>(() -> assertThrows(TimeoutException.class, follower::refresh));
        synchronized (follower) {
            new Thread(given).start();
            assertNotNull(given.get(TestData.DEADLINE.toMillis(), TimeUnit.MILLISECONDS));
            assertEquals("unreachable", documents(mox).get("state"));
        }
        deaf.countDown();
    }

    @Test
    public void aStartWaitsForNoDatabase() {
        Table table = new Table();
        CountDownLatch deaf = new CountDownLatch(1);
        table.set(null, deaf);
        RegistryMox mox = mox();
        follower(mox, table, 20).start();
        assertEquals("unreachable", documents(mox).get("state"));
        deaf.countDown();
        TestData.await("it is read", () -> "on".equals(documents(mox).get("state")));
    }

    @Test
    public void thereIsNoStoreWhereRowsWouldNotOutliveTheProcess() {
        for (String url : new String[] {"jdbc:h2:mem:metadatadb;MODE=MySQL", "jdbc:h2:file:/tmp/x"}) {
            IllegalStateException off = assertThrows(IllegalStateException.class, () -> store(new Table(), url));
            assertTrue(off.getMessage(), off.getMessage().startsWith("not persistent: "));
        }
        assertNotNull(store(new Table(), "jdbc:h2:tcp://db:9092/mem:metadatadb"));
        IllegalStateException none = assertThrows(IllegalStateException.class, () -> store(null, "jdbc:mysql://db/x"));
        assertTrue(none.getMessage(), none.getMessage().contains("ProvideDataRepository"));
    }

    @Test
    public void aStoreComparesAndSets() {
        RealDocumentStore store = store(new Table(), "jdbc:mysql://db/registry");
        assertNull(store.get(POLICY));
        assertTrue(store.put(POLICY, new DocumentStore.Row(7, "a"), 0));
        assertFalse(store.put(POLICY, new DocumentStore.Row(8, "b"), 0));
        assertTrue(store.put(POLICY, new DocumentStore.Row(8, "b"), 7));
        assertEquals("b", store.get(POLICY).value);
        assertEquals(8, store.get(POLICY).version);
    }
}
