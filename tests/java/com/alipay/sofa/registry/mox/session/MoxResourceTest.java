package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.Batch;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.MoxHost;
import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.alipay.sofa.registry.remoting.jersey.JerseyJettyServer;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.lang.reflect.Proxy;
import java.net.HttpURLConnection;
import java.net.Socket;
import java.net.URI;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.logging.Level;
import javax.ws.rs.core.Response;
import javax.ws.rs.core.StreamingOutput;
import javax.ws.rs.core.UriInfo;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.glassfish.jersey.server.ResourceConfig;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;

/** The pages on the registry's own web server. */
public class MoxResourceTest {
    private static final int SERVICES = 5_000;

    private Server server;
    private RegistryMox mox;

    @Before
    public void start() throws Exception {
        ResourceConfig resources = new ResourceConfig();
        resources.register(MoxResource.class);
        server = JerseyJettyServer.createServer(URI.create("http://127.0.0.1:0/"), resources, true);
        MoxConfig config = MoxConfig.builder().set("listen", "127.0.0.1:0").set("admin.token", "sesame").build();
        mox = RegistryMox.embed(config);
        try (Batch batch = mox.batch("test")) {
            for (int i = 0; i < SERVICES; i++) {
                batch.publish(Publish.of(TestData.service(i), "r").version(1, 1).data("10.1." + i / 250 + "." + i % 250 + ":12200").build());
            }
        }
        mox.loaded();
        assertEquals(SERVICES + "/" + SERVICES, TestData.served(mox));
    }

    @After
    public void stop() throws Exception {
        mox.close();
        server.stop();
    }

    @Test
    public void aDumpIsStreamedOneAtATime() throws Exception {
        String dump = get("/mox/dump", 200, "application/json");
        assertTrue(dump.startsWith("{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n") && dump.endsWith("\n]}\n"));
        assertEquals("a line for each", SERVICES + 2, dump.split("\n").length);
        for (int i = 0; i < SERVICES; i += 499) {
            assertTrue(TestData.service(i), dump.contains("\"" + TestData.service(i) + "\"") && dump.contains("\"10.1." + i / 250 + "." + i % 250 + "\""));
        }
        assertEquals(SERVICES, get("/mox/dump?format=yaml", 200, "application/yaml").split("\n---\n").length);
        try (MoxHost.Page other = mox.host().page("/mox/dump", "")) {
            assertEquals(200, other.status());
            HttpURLConnection refused = connection("/mox/dump");
            assertEquals(429, refused.getResponseCode());
            assertEquals("1", refused.getHeaderField("Retry-After"));
            get("/mox/status", 200, "application/json");
        }
        get("/mox/dump?type=WorkloadEntry", 200, "application/json");
        get("/mox/dump?type=Gateway", 404, "text/plain");
        get("/mox", 200, "application/json");
    }

    @Test
    public void aClientThatIsGoneFreesThePlace() throws Exception {
        try (Socket client = new Socket("127.0.0.1", port())) {
            client.setReceiveBufferSize(4 << 10);
            client.getOutputStream().write("GET /mox/dump HTTP/1.1\r\nHost: x\r\n\r\n".getBytes(StandardCharsets.US_ASCII));
            assertEquals('H', client.getInputStream().read());
        }
        TestData.await("the place is free", () -> {
            try (MoxHost.Page page = mox.host().page("/mox/dump", "")) {
                return page.status() == 200;
            }
        });
    }

    @Test
    public void anErrorIsAnAnswerAndIsLogged() {
        try (CapturedLog log = new CapturedLog()) {
            MoxResource resource = new MoxResource();
            UriInfo broken = uri(() -> {
                throw new OutOfMemoryError("none left");
            });
            for (Response response : new Response[] {resource.page(broken, null), resource.index(broken, null), resource.change(broken, "sesame", null, null, null, null)}) {
                assertEquals(503, response.getStatus());
                assertEquals("this cannot be answered now: java.lang.OutOfMemoryError: none left", response.getEntity());
            }
            assertEquals(log.at(Level.WARNING).toString(), 1, log.at(Level.WARNING).size());
            Response page = resource.page(uri(() -> URI.create("http://x/mox/dump")), null);
            mox.close();
            IOException cut = assertThrows(IOException.class, () -> ((StreamingOutput) page.getEntity()).write(new ByteArrayOutputStream()));
            assertTrue(cut.getMessage(), cut.getMessage().startsWith("the page ends here: "));
            assertEquals(503, resource.page(broken, null).getStatus());
        }
    }

    /** A request as another session server passes it on. */
    @Test
    public void aSignedChangeIsMadeOnceAndHere() throws Exception {
        long now = System.currentTimeMillis();
        assertEquals(403, post("/mox/freeze", "sesam", now, "/mox/freeze").status);
        assertEquals(403, post("/mox/freeze", "sesame", now, "/mox/thaw").status);
        Exchange.Answer old = post("/mox/freeze", "sesame", now - 360_500, "/mox/freeze");
        assertEquals(403, old.status);
        assertTrue(old.body, old.body.startsWith("the request was signed 36") && old.body.contains(" s before this server's time"));
        assertNull(mox.flush(TestData.DEADLINE).get("held"));
        Exchange.Answer good = post("/mox/freeze", "sesame", now, "/mox/freeze");
        assertEquals(good.body, 200, good.status);
        assertTrue("for no other server", good.body.contains("\"frozen\": true") && !good.body.contains("this"));
        assertEquals("frozen", mox.flush(TestData.DEADLINE).get("held"));
        Exchange.Answer again = post("/mox/freeze", "sesame", now, "/mox/freeze");
        assertEquals("403 the request was taken before; send a new one\n", again.status + " " + again.body);
        Map<String, Exchange.Answer> all = new Sessions(() -> Collections.singletonList("127.0.0.1"), port()).change("/mox/thaw", "sesame", "");
        assertEquals(200, all.get("127.0.0.1").status);
        assertNull(mox.flush(TestData.DEADLINE).get("held"));
    }

    /** Each server is named with the policy that it has then; here the other one is this one, too. */
    @Test
    public void theAnswerNamesThePolicyOfEachServer() throws Exception {
        Map<String, Object> shown = Collections.singletonMap("token", "sesame");
        String document = "{\"exclude\": [\"*.S1:*\"]}";
        Map<String, Object> own =
                mox.host().command("change", "path", "/mox/policy", "query", "by=ann+%26+bob&why=S1+ist+%C3%BCbrig", "shown", shown, "body", document);
        Sessions sessions = new Sessions(() -> Collections.singletonList("127.0.0.1"), port());
        Response all = MoxResource.everywhere(mox.host(), own, sessions, "sesame");
        String hash = (String) mox.status().get("policy");
        String named = "{\"status\":200,\"hash\":\"" + hash + "\",\"revision\":1,\"answer\":";
        String text = (String) all.getEntity();
        assertTrue(text, text.startsWith("{\"this\":" + named) && text.contains("\"127.0.0.1\":" + named));
        assertEquals(200, all.getStatus());
        String present = get("/mox/policy", 200, "application/json");
        assertTrue(present, present.contains("\"by\": \"ann & bob\"") && present.contains("\"why\": \"S1 ist übrig\""));

        mox.close();
        Response cut = MoxResource.everywhere(mox.host(), own, sessions, "sesame");
        assertEquals(502, cut.getStatus());
        assertTrue(cut.getEntity().toString(), cut.getEntity().toString().contains("\"127.0.0.1\":{\"status\":503,\"answer\":"));
    }

    @Test
    public void aPolicyIsTriedAndReplacedByWhoKnowsIt() throws Exception {
        String document = "{\"exclude\": [\"" + TestData.service(1) + "\"]}";
        Exchange.Answer told = ask("/mox/policy?dryRun", Collections.emptyMap(), document);
        assertEquals(told.body, 200, told.status);
        assertTrue(told.body, told.body.contains("\"count\": 1") && told.body.contains(TestData.service(1)));
        assertTrue(get("/mox/policy", 200, "application/json").contains("\"revision\": 0"));
        Map<String, String> headers = new HashMap<>();
        headers.put("If-Match", "\"0\"");
        assertEquals(200, ask("/mox/policy?by=ann", headers, document).status);
        Exchange.Answer second = ask("/mox/policy", headers, "{}");
        assertEquals(second.body, 409, second.status);
        assertTrue(second.body, second.body.contains("\"revision\": 1") && second.body.contains("\"by\": \"ann\""));
        Exchange.Answer back = ask("/mox/policy?rollback=0", Collections.emptyMap(), "");
        assertTrue(back.body, back.status == 200 && back.body.contains("\"revision\":2"));
        assertEquals(SERVICES + "/" + SERVICES, TestData.served(mox));
    }

    /** The revision that is shown is what a writer says that it saw. */
    @Test
    public void whatIsShownIsTagged() throws Exception {
        String tag = header("/mox/policy", null, "ETag");
        assertEquals("\"0\"", tag);
        assertNull("a page that nobody writes has none", header("/mox/status", null, "ETag"));
        Map<String, String> seen = Collections.singletonMap("If-Match", tag);
        assertEquals(200, ask("/mox/policy", seen, "{\"exclude\": [\"*.S1:*\"]}").status);
        assertEquals(409, ask("/mox/policy", seen, "{}").status);
        assertEquals("\"1\"", header("/mox/policy", null, "ETag"));
    }

    @Test
    public void whoComesTooEarlyIsToldWhenToAskAgain() throws Exception {
        mox.close();
        mox = RegistryMox.embed(MoxConfig.builder().set("listen", "127.0.0.1:0").set("admin.token", "sesame").build());
        assertEquals("5", header("/mox/policy?dryRun", "{}", "Retry-After"));
        assertNull(header("/mox/policy", "{}", "Retry-After"));
    }

    @Test
    public void pagesTakeFewThreadsOfTheRegistry() throws Exception {
        MoxResource.MAKING.acquire(MoxResource.AT_ONCE);
        try {
            assertEquals("1", header("/mox/status", null, "Retry-After"));
            assertTrue(get("/mox/explain?q=a", 429, "text/plain").contains("ask again in a second"));
            get("/mox/serving", 200, "application/json");
        } finally {
            MoxResource.MAKING.release(MoxResource.AT_ONCE);
        }
        try (MoxHost.Page other = mox.host().page("/mox/dump", "")) {
            for (int i = 0; i <= MoxResource.AT_ONCE; i++) {
                get("/mox/status", 200, "application/json");
                get("/mox/dump", 429, "text/plain");
            }
        }
        assertEquals(MoxResource.AT_ONCE, MoxResource.MAKING.availablePermits());
    }

    @Test
    public void browsersTakeAPageForWhatItIs() throws Exception {
        for (String path : new String[] {"/mox", "/mox/explain?q=a&as=html", "/mox/dump", "/mox/none"}) {
            assertEquals(path, "nosniff", header(path, null, "X-Content-Type-Options"));
            assertEquals(path, "DENY", header(path, null, "X-Frame-Options"));
        }
    }

    @Test
    public void theOthersExplainWhatIsToBeExplained() {
        for (String query : new String[] {"q=a", "as=html&q=a&local=0", "q=a&q=", "local=0&q=a&local=1"}) {
            assertTrue(query, MoxResource.isForAll("/mox/explain", query));
        }
        for (String query : new String[] {"", "q=", "q=+%20", "as=html", "q=a&local=1", "q=&q=a", "iq=a"}) {
            assertFalse(query, MoxResource.isForAll("/mox/explain", query));
        }
        assertFalse(MoxResource.isForAll("/mox/services/mox/explain", "q=a"));
        assertFalse(MoxResource.isForAll("/mox/status", "q=a"));
    }

    /** Where nobody knows the others, and where they were asked a moment ago, this server explains by itself. */
    @Test
    public void aServerExplainsWithoutTheOthers() {
        AtomicInteger asked = new AtomicInteger();
        Sessions others = new Sessions(
                () -> {
                    asked.incrementAndGet();
                    throw new IllegalStateException("meta is away");
                },
                port());
        MoxResource.NEXT_QUESTION.set(System.nanoTime());
        Response alone = MoxResource.explained(mox.host(), others, "q=" + TestData.service(1).replace("#", "%23"));
        String text = alone.getEntity().toString();
        assertEquals(text, 200, alone.getStatus());
        assertTrue(text, text.contains(TestData.service(1)) && text.contains("\"others\"") && text.contains("meta is away"));
        MoxResource.NEXT_QUESTION.set(System.nanoTime() + TimeUnit.HOURS.toNanos(1));
        try {
            text = MoxResource.explained(mox.host(), others, "q=10.1.0.1").getEntity().toString();
        } finally {
            MoxResource.NEXT_QUESTION.set(System.nanoTime());
        }
        assertTrue(text, text.contains("ladder") && !text.contains("meta is away"));
        assertEquals(1, asked.get());
        AtomicLong next = new AtomicLong(100);
        assertFalse(MoxResource.isDue(next, 99, 10));
        assertTrue(MoxResource.isDue(next, 105, 10));
        assertFalse(MoxResource.isDue(next, 114, 10));
        assertTrue(MoxResource.isDue(next, 115, 10));
    }

    /** Another server is asked for one reader at a time, and once a second; where there is nobody to ask nobody waits. */
    @Test
    public void anotherServerIsAskedOnceASecond() throws Exception {
        AtomicInteger looked = new AtomicInteger();
        Sessions others = new Sessions(
                () -> {
                    looked.incrementAndGet();
                    return Collections.singletonList("127.0.0.1");
                },
                1);
        MoxResource.NEXT_QUESTION.set(System.nanoTime());
        // Who asks for a server that there is not takes nobody's turn.
        Response unknown = MoxResource.compared(mox.host(), others, "server=127.0.0.9");
        assertTrue(unknown.getEntity().toString(), unknown.getEntity().toString().contains("no session server that meta lists"));
        Response asked = MoxResource.compared(mox.host(), others, "server=127.0.0.1");
        assertTrue(asked.getEntity().toString(), asked.getEntity().toString().contains("status 0"));
        MoxResource.NEXT_QUESTION.set(System.nanoTime() + TimeUnit.HOURS.toNanos(1));
        try {
            assertEquals(429, MoxResource.compared(mox.host(), others, "as=html&server=127.0.0.1").getStatus());
            assertEquals(200, MoxResource.compared(mox.host(), others, "server=127.0.0.9").getStatus());
            assertEquals(200, MoxResource.compared(mox.host(), others, "as=html").getStatus());
            int before = looked.get();
            assertEquals(200, MoxResource.compared(mox.host(), others, "document=policy").getStatus());
            assertEquals("a document is compared without them", before, looked.get());
        } finally {
            MoxResource.NEXT_QUESTION.set(System.nanoTime());
        }
        assertTrue(get("/mox/diff", 200, "application/json").contains("servers"));
    }

    /** A header of the answer to a GET, or to a POST of a body. */
    private String header(String path, String body, String name) throws IOException {
        HttpURLConnection connection = connection(path);
        if (body != null) {
            connection.setRequestProperty(Sessions.TOKEN_HEADER, "sesame");
            connection.setDoOutput(true);
            connection.getOutputStream().write(body.getBytes(StandardCharsets.UTF_8));
        }
        connection.getResponseCode();
        return connection.getHeaderField(name);
    }

    private Exchange.Answer ask(String path, Map<String, String> more, String body) throws Exception {
        Map<String, String> headers = new HashMap<>(more);
        headers.put(Sessions.TOKEN_HEADER, "sesame");
        return exchange(path, headers, body);
    }

    private Exchange.Answer post(String path, String token, long time, String signed) throws Exception {
        Map<String, String> headers = new HashMap<>();
        headers.put(Sessions.TIME_HEADER, String.valueOf(time));
        headers.put(Sessions.SIGNATURE_HEADER, Sessions.signature(token, "POST", signed, String.valueOf(time), ""));
        return exchange(path, headers, "");
    }

    private Exchange.Answer exchange(String path, Map<String, String> headers, String body) throws Exception {
        ScheduledExecutorService cutter = Executors.newSingleThreadScheduledExecutor();
        try {
            return Exchange.with(cutter, TestData.DEADLINE.toMillis(), "127.0.0.1", port(), path, headers, body, Exchange.MOST_BODY);
        } finally {
            cutter.shutdownNow();
        }
    }

    private interface Asked {
        URI uri();
    }

    private static UriInfo uri(Asked asked) {
        return (UriInfo) Proxy.newProxyInstance(UriInfo.class.getClassLoader(), new Class<?>[] {UriInfo.class}, (proxy, method, arguments) -> asked.uri());
    }

    private int port() {
        return ((ServerConnector) server.getConnectors()[0]).getLocalPort();
    }

    private HttpURLConnection connection(String path) throws IOException {
        return (HttpURLConnection) new URL("http://127.0.0.1:" + port() + path).openConnection();
    }

    private String get(String path, int status, String contentType) throws IOException {
        HttpURLConnection connection = connection(path);
        assertEquals(path, status, connection.getResponseCode());
        assertTrue(connection.getContentType(), connection.getContentType().startsWith(contentType));
        if (status != 429) {
            assertNull(connection.getHeaderField("Retry-After"));
        }
        try (InputStream in = status >= 400 ? connection.getErrorStream() : connection.getInputStream()) {
            return MoxResource.read(in, 64 << 20);
        }
    }
}
