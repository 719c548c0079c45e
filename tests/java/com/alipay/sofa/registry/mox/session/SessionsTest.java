package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.After;
import org.junit.Test;

/** Other session servers, of which some are none. */
public class SessionsTest {
    private static final List<String> HERE = Collections.singletonList("127.0.0.1");
    private static final String TOKEN = "open sesame 1234";

    /** Says something to everybody who connects. */
    private interface Script {
        void to(Socket client, String request) throws Exception;
    }

    private final List<ServerSocket> peers = new CopyOnWriteArrayList<>();
    private final List<String> requests = new CopyOnWriteArrayList<>();
    /** Connections whose other end is gone. */
    private final AtomicInteger cut = new AtomicInteger();
    /** Who asks, without a token. */
    private final RegistryMox mox = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").build());

    @After
    public void close() throws IOException {
        for (ServerSocket peer : peers) {
            peer.close();
        }
        mox.close();
    }

    private Sessions peer(Script script) throws IOException {
        ServerSocket server = new ServerSocket(0, 50, InetAddress.getByName("127.0.0.1"));
        peers.add(server);
        start(() -> {
            while (true) {
                Socket client = server.accept();
                start(() -> {
                    try (Socket closing = client) {
                        String request = head(closing.getInputStream());
                        requests.add(request);
                        script.to(closing, request);
                    } catch (IOException e) {
                        cut.incrementAndGet();
                    }
                });
            }
        });
        return new Sessions(() -> HERE, server.getLocalPort());
    }

    private interface Work {
        void run() throws Exception;
    }

    private static void start(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Exception e) {
                // The test is over.
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    private static String head(InputStream in) throws IOException {
        StringBuilder head = new StringBuilder();
        while (head.indexOf("\r\n\r\n") < 0) {
            int b = in.read();
            if (b < 0) {
                throw new IOException("no request");
            }
            head.append((char) b);
        }
        return head.toString();
    }

    private static Script answers(String answer) {
        return (client, request) -> client.getOutputStream().write(answer.getBytes(StandardCharsets.UTF_8));
    }

    private static String ok(String body) {
        return "HTTP/1.1 200 OK\r\nContent-Length: " + body.length() + "\r\n\r\n" + body;
    }

    /** As the engine has it: both languages sign alike. */
    @Test
    public void aSignatureIsThis() throws Exception {
        assertEquals(
                "8049318598811d8791b7eb72413e0ca63aec2695cdf9bd602774ed7ff52a3409",
                Sessions.signature("open sesame", "POST", "/mox/policy", "1700000000000", "{\"exclude\":[\"a.*\"]}"));
    }

    @Test
    public void onlyWhatAFreshServerSaysCountsAsFresh() throws Exception {
        for (String fresh : new String[] {ok("fresh\n"), "HTTP/1.0 200 OK\r\n\r\nfresh\n", ok("fresh\n") + "and what follows"}) {
            assertEquals(fresh, 1, (int) peer(answers(fresh)).fresh(mox).get());
        }
        String[] none = {
            ok("fresh"), ok("<html>fresh\n"), ok(""), "HTTP/1.1 503 No\r\n\r\nfresh\n", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nfresh\n", "",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfresh\n\r\n0\r\n\r\n", "fresh\n", "HTTP/2 200\r\n\r\nfresh\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nfresh\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nfresh\n"
        };
        for (String other : none) {
            assertEquals(other, 0, (int) peer(answers(other)).fresh(mox).get());
        }
        assertEquals(0, (int) new Sessions(Collections::emptyList, 1).fresh(mox).get());
    }

    /**
     * An answer that is no number, not whole, or from a server that does not serve is not told to the engine, and is waited for
     * no longer than others.
     */
    @Test
    public void whoSaysNotHowMuchIsServedIsNotBelieved() throws Exception {
        String[] none = {
            "", ok(""), ok("[]"), ok("{\"services\": -1, \"endpoints\": 2}"), ok("{\"services\": 1e9, \"endpoints\": 2}"),
            ok("{\"services\": 99999999999, \"endpoints\": 2}"), ok("{\"services\": 1, \"endpoints\": 2, \"op\": \"loaded\"}"),
            "HTTP/1.1 503 No\r\n\r\n{\"services\": 1, \"endpoints\": 2}", ok("{\"services\": 1}")
        };
        for (String other : none) {
            peer(answers(other)).baseline(mox).get();
        }
        new Sessions(Collections::emptyList, 1).baseline(mox).get();
        assertNoBaseline(mox);
        try (RegistryMox second = with("")) {
            peer(answers(ok("{\n  \"services\": 100,\n  \"endpoints\": 200\n}\n"))).baseline(second).get();
            second.loaded();
            assertEquals("mass-delete", second.flush(TestData.DEADLINE).get("held"));
        }
    }

    private static RegistryMox with(String token) {
        MoxConfig.Builder config = MoxConfig.builder().set("listen", "127.0.0.1:0");
        return RegistryMox.create(token.isEmpty() ? config.build() : config.set("admin.token", token).build());
    }

    private static void assertNoBaseline(RegistryMox mox) throws Exception {
        mox.loaded();
        assertNull("nothing holds the view back", mox.flush(TestData.DEADLINE).get("held"));
        assertEquals(true, ((Map<?, ?>) mox.status().get("publisher")).get("noBaseline"));
    }

    /** Meta lists whoever says that it is a session server. */
    @Test
    public void whereThereIsATokenOnlyWhoHasItIsBelieved() throws Exception {
        String serving = "{\"services\": 100, \"endpoints\": 200}";
        List<String> said = new CopyOnWriteArrayList<>();
        try (RegistryMox honest = with(TOKEN);
                RegistryMox asks = with(TOKEN);
                RegistryMox lied = with(TOKEN);
                RegistryMox other = with("another token 12")) {
            for (int n = 0; n < 20; n++) {
                honest.publish("registry", Publish.of(TestData.service(n), "r").version(1, 1).serialized(TestData.box("10.0.0.1:12200")).build());
            }
            honest.loaded();
            honest.flush(TestData.DEADLINE);
            Sessions sessions = peer((client, request) -> {
                String[] target = request.split(" ")[1].split("\\?");
                said.add((String) honest.page(target[0], target[1]).get("body"));
                client.getOutputStream().write(ok(said.get(said.size() - 1)).getBytes(StandardCharsets.UTF_8));
            });
            sessions.baseline(other).get();
            assertNoBaseline(other);
            peer(answers(ok(serving))).baseline(lied).get();
            peer(answers(ok(said.get(0)))).baseline(lied).get(); // the answer to another question
            assertEquals(0, (int) peer(answers(ok("fresh\n"))).fresh(lied).get());
            assertNoBaseline(lied);
            sessions.baseline(asks).get();
            asks.loaded();
            assertEquals("20 services are missing", "mass-delete", asks.flush(TestData.DEADLINE).get("held"));
            assertTrue(said.get(1), said.get(1).contains("\nsigned ") && !said.get(1).equals(said.get(0)));
        }
    }

    /** What another server says of the same stands beside this one's word, and nobody passes the question on. */
    @Test
    public void whatServersExplainOtherwiseIsShown() throws Exception {
        String query = "q=" + TestData.service(1).replace("#", "%23");
        try (RegistryMox here = with("");
                RegistryMox there = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").set("policy", Collections.singletonMap("exclude", Collections.singletonList("*"))).build())) {
            for (RegistryMox each : new RegistryMox[] {here, there}) {
                each.publish("registry", Publish.of(TestData.service(1), "r").version(1, 1).data("10.0.0.1:12200").build());
                each.loaded();
                each.flush(TestData.DEADLINE);
            }
            Sessions sessions = peer((client, request) -> {
                String[] target = request.split(" ")[1].split("\\?");
                Map<String, Object> page = there.page(target[0], target[1]);
                client.getOutputStream().write(ok((String) page.get("body")).getBytes(StandardCharsets.UTF_8));
            });
            Object explained = here.host().command("explain", "query", query, "answers", sessions.explain(query)).get("body");
            assertTrue(explained.toString(), explained.toString().contains("\"there\": \"failed: excluded\""));
            assertTrue(requests.toString(), requests.get(0).startsWith("GET /mox/explain?local=1&as=json&q="));
            List<Map<String, Object>> none = peer(answers("HTTP/1.1 503 No\r\n\r\nMoX is off")).explain(query);
            explained = here.host().command("explain", "query", query + "&as=html", "answers", none).get("body");
            assertTrue(explained.toString(), explained.toString().contains("status 503: MoX is off"));
        }
    }

    /** The engine says what is asked, and a peer that is another engine answers it. */
    @Test
    public void whatAnotherServesOtherwiseIsToldByItsHashes() throws Exception {
        try (RegistryMox here = with("open sesame 1234");
                RegistryMox there = with("open sesame 1234");
                RegistryMox liar = with("another word 12345")) {
            RegistryMox[] all = {here, there, liar};
            for (int i = 0; i < all.length; i++) {
                all[i].publish("registry", Publish.of(TestData.service(1), "r").version(1, 1).data("10.0.0.1:12200").build());
                all[i].publish("registry", Publish.of(TestData.service(2), "r").version(1, 1).data("10.0.0." + i + ":12200").build());
                all[i].loaded();
                all[i].flush(TestData.DEADLINE);
            }
            String told = compare(here, there, "server=127.0.0.1");
            assertTrue(told, told.contains("\"same\": false") && told.contains("\"parts\": 1") && !told.contains("silent"));
            assertTrue(told, told.contains(TestData.service(2)) && !told.contains(TestData.service(1)));
            assertEquals(requests.toString(), 2, requests.size());
            assertTrue(requests.get(0), requests.get(0).startsWith("GET /mox/hashes?nonce="));
            assertTrue(requests.get(1), requests.get(1).startsWith("GET /mox/hashes/"));
            assertTrue(compare(here, here, "server=127.0.0.1").contains("\"same\": true"));
            assertTrue(compare(here, liar, "server=127.0.0.1").contains("not signed"));
            requests.clear();
            assertTrue(compare(here, there, "server=127.0.0.9").contains("no session server that meta lists"));
            assertTrue(compare(here, there, "").contains("127.0.0.1"));
            assertTrue(requests.toString(), requests.isEmpty());
        }
    }

    private String compare(RegistryMox here, RegistryMox there, String query) throws Exception {
        Sessions sessions = peer((client, request) -> {
            String[] target = request.split(" ")[1].split("\\?");
            Map<String, Object> page = there.page(target[0], target[1]);
            client.getOutputStream().write(ok((String) page.get("body")).getBytes(StandardCharsets.UTF_8));
        });
        Map<String, Object> page = sessions.compare(here.host(), query, () -> true);
        assertEquals(page.toString(), 200L, page.get("status"));
        return (String) page.get("body");
    }

    @Test
    public void aRedirectionIsNotFollowed() throws Exception {
        peer(answers(ok("fresh\n")));
        String elsewhere = "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:" + peers.get(0).getLocalPort() + "/mox/fresh\r\n\r\n";
        Sessions sessions = peer(answers(elsewhere));
        assertEquals(0, (int) sessions.fresh(mox).get());
        assertEquals(302, sessions.change("/mox/freeze", "sesame", "").get("127.0.0.1").status);
        assertEquals("none elsewhere", 2, requests.size());
    }

    /** The answer comes byte by byte, each well before a read would give up. */
    @Test
    public void whoDribblesIsCut() throws Exception {
        Sessions sessions = peer((client, request) -> {
            client.getOutputStream().write("HTTP/1.1 200 OK\r\n\r\n".getBytes(StandardCharsets.US_ASCII));
            while (true) {
                client.getOutputStream().write('x');
                Thread.sleep(20);
            }
        });
        assertEquals(0, (int) sessions.fresh(mox).get());
        Exchange.Answer late = sessions.change("/mox/freeze", "sesame", "").get("127.0.0.1");
        assertEquals(0, late.status);
        assertTrue(late.body, late.body.endsWith("no whole answer within 3000 ms"));
        TestData.await("both connections are ended", () -> cut.get() == 2);
    }

    @Test
    public void whoReadsNothingIsCut() throws Exception {
        CountDownLatch end = new CountDownLatch(1);
        ServerSocket deaf = new ServerSocket(0, 50, InetAddress.getByName("127.0.0.1"));
        deaf.setReceiveBufferSize(4 << 10);
        peers.add(deaf);
        start(() -> {
            try (Socket client = deaf.accept()) {
                end.await();
            }
        });
        char[] large = new char[16 << 20];
        Arrays.fill(large, 'x');
        Exchange.Answer late = new Sessions(() -> HERE, deaf.getLocalPort()).change("/mox/policy", "sesame", new String(large)).get("127.0.0.1");
        assertTrue(late.body, late.body.endsWith("no whole answer within 3000 ms"));
        end.countDown();
    }

    @Test
    public void endlessAnswersAreCut() throws Exception {
        byte[] much = new byte[8 << 10];
        Sessions headers = peer((client, request) -> {
            while (true) {
                client.getOutputStream().write(much);
            }
        });
        assertTrue(headers.change("/mox/freeze", "sesame", "").get("127.0.0.1").body.endsWith("more than 16384 bytes of headers"));
        Sessions body = peer((client, request) -> {
            client.getOutputStream().write("HTTP/1.1 200 OK\r\n\r\n".getBytes(StandardCharsets.US_ASCII));
            while (true) {
                client.getOutputStream().write(much);
            }
        });
        assertTrue(body.change("/mox/freeze", "sesame", "").get("127.0.0.1").body.endsWith("more than 65536 bytes"));
    }

    @Test
    public void theTokenStaysHere() throws Exception {
        Sessions sessions = peer(answers(ok("done")));
        Exchange.Answer done = sessions.change("/mox/policy", "open sesame", "{}").get("127.0.0.1");
        assertEquals("200 done", done.status + " " + done.body);
        String request = requests.get(0);
        assertTrue(request, request.startsWith("POST /mox/policy HTTP/1.0\r\n") && request.contains("\r\nContent-Length: 2\r\n"));
        assertFalse(request, request.contains("sesame") || request.contains(Sessions.TOKEN_HEADER));
        String time = value(request, Sessions.TIME_HEADER);
        assertEquals(Sessions.signature("open sesame", "POST", "/mox/policy", time, "{}"), value(request, Sessions.SIGNATURE_HEADER));
    }

    private static String value(String request, String header) {
        int at = request.indexOf("\r\n" + header + ": ") + header.length() + 4;
        return request.substring(at, request.indexOf("\r\n", at));
    }

    @Test
    public void theOthersAreAskedWhileOneIsSilent() throws Exception {
        CountDownLatch end = new CountDownLatch(1);
        peer((client, request) -> end.await());
        ServerSocket second = new ServerSocket(peers.get(0).getLocalPort(), 50, InetAddress.getByName("127.0.0.2"));
        peers.add(second);
        start(() -> {
            try (Socket client = second.accept()) {
                head(client.getInputStream());
                client.getOutputStream().write(ok("fresh\n").getBytes(StandardCharsets.US_ASCII));
            }
        });
        Future<Integer> fresh = new Sessions(() -> Arrays.asList("127.0.0.1", "127.0.0.2"), second.getLocalPort()).fresh(mox);
        assertEquals(1, (int) fresh.get());
        end.countDown();
    }
}
