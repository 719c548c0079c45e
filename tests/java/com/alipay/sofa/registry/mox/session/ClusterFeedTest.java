package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.common.model.store.URL;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.After;
import org.junit.Test;

/** The feed on the real engine, with data servers that do what a test says. */
public class ClusterFeedTest {
    private final FakeDataTier tier = new FakeDataTier();
    private final RegistryMox mox = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").set("scope", "cluster").build());
    private ClusterFeed feed;

    private static Map<String, Object> settings(long reconcileMillis) {
        Map<String, Object> settings = new HashMap<>();
        settings.put("debounceMillis", 1L);
        settings.put("reconcileMillis", reconcileMillis);
        settings.put("reads", 100_000L);
        settings.put("maxStalenessMillis", 1_000_000_000L);
        return settings;
    }

    private ClusterFeed start(long reconcileMillis) {
        feed = new ClusterFeed(mox, tier, settings(reconcileMillis), broken -> {});
        feed.start();
        return feed;
    }

    @After
    public void close() {
        if (feed != null) {
            feed.close();
        }
        mox.close();
    }

    private void served(String wanted) {
        TestData.await(wanted, () -> TestData.served(mox).equals(wanted));
    }

    private static String id(int n) {
        return TestData.service(n);
    }

    private void fill(int services) {
        for (int n = 0; n < services; n++) {
            tier.put(id(n), "a", 1, 1, "10.0.0." + n + ":12200");
            tier.put(id(n), "b", 1, 1, "10.0.1." + n + ":12200");
        }
    }

    private boolean held(String reason) {
        return reason.equals(mox.flush(TestData.DEADLINE).get("held"));
    }

    @Test
    public void nothingIsServedBeforeEverythingWasRead() {
        fill(50);
        tier.down.add(2);
        start(200);
        TestData.await("three slots are read", () -> (Long) feed.report().get("ids") > 20 && (Long) feed.report().get("dirty") == 0);
        assertTrue("one slot is unknown", held("not-loaded"));
        tier.down.clear();
        served("50/100");
        TestData.await("loaded", () -> !held("not-loaded"));
        assertTrue(feed.report().toString(), (Long) feed.report().get("bootstrapMillis") >= 0);
    }

    @Test
    public void noticesAreReadAndLostOnesAreFound() {
        fill(20);
        start(200);
        served("20/40");
        tier.put(id(3), "c", 1, 1, "10.0.2.3:12200");
        feed.changed(Collections.singleton(id(3)));
        served("20/41");
        tier.remove(id(4), "a");
        served("20/40");
        tier.put(id(99), "a", 1, 1, "10.0.2.99:12200");
        served("21/41");
        // Emptied, and then compacted.
        tier.remove(id(99), "a");
        served("21/40");
        tier.forget(id(5));
        served("21/38");
    }

    @Test
    public void aFailedReadRemovesNothing() {
        fill(20);
        start(200);
        served("20/40");
        for (int slot = 0; slot < FakeDataTier.SLOTS; slot++) {
            tier.down.add(slot);
        }
        for (int n = 0; n < 20; n++) {
            tier.remove(id(n), "a");
        }
        long failures = (Long) feed.report().get("readFailures");
        feed.changed(Collections.singleton(id(1)));
        TestData.await("it was tried", () -> (Long) feed.report().get("readFailures") > failures + 1);
        assertEquals("20/40", TestData.served(mox));
        tier.down.clear();
        served("20/20");
    }

    @Test
    public void anotherLeadersClockMayBeBehind() {
        fill(20);
        start(3_600_000);
        served("20/40");
        tier.fail();
        tier.remove(id(1), "a");
        tier.put(id(2), "c", 1, 1, "10.0.2.2:12200");
        // No notice, no period: the new leader alone has it compared.
        served("20/40");
        TestData.await("read from the new leader", () -> (Long) feed.report().get("differences") == 22);
        TestData.await("settled", feed::isReconciled);
        served("20/40");
        assertTrue(mox.page("/mox/dump", "").get("body").toString().contains("10.0.2.2"));
    }

    @Test
    public void oneServiceThatCannotBeReadHoldsUpNoOther() {
        fill(20);
        tier.broken.add(id(7));
        start(200);
        served("19/38");
        TestData.await("loaded", () -> !held("not-loaded"));
        assertEquals(1, feed.report().get("unreadable"));
        // Each comparison finds it different again.
        long differences = (Long) feed.report().get("differences");
        TestData.await("it is compared", () -> (Long) feed.report().get("differences") > differences + 3);
        feed.reconcile();
        TestData.await("nobody waits for it", feed::isReconciled);
        assertTrue("it is tried again once", (Long) feed.report().get("dirty") <= 2);
        tier.broken.clear();
        served("20/40");
        assertEquals(0, feed.report().get("unreadable"));
    }

    /** Heard of here or read, an endpoint is its application's where the proxy chooses only if it is at its client's address. */
    @Test
    public void theAddressOfAClientComesWithWhatItPublishes() {
        String app = ":12200?app_name=demo";
        tier.put(id(1), FakeDataTier.publisher("a", "10.0.0.1:40000", "10.0.0.1" + app, "10.0.9.1" + app));
        tier.put(id(1), FakeDataTier.publisher("b", "2001:db8:0:0:0:0:0:1:40000", "[2001:db8::1]" + app));
        tier.put(id(1), FakeDataTier.publisher("c", String.join("", Collections.nCopies(999, "x")), "10.0.9.2" + app));
        tier.put(id(1), FakeDataTier.publisher("d", null, "10.0.9.3" + app));
        start(3_600_000);
        served("1/5");
        Publisher here = SessionServer.publisher(2, "e", 1, "10.0.0.2" + app, "10.0.9.4" + app);
        here.setSourceAddress(new URL("10.0.0.2", 40_000));
        SessionEvents.record(mox, SessionServer.publish(here), s -> {});
        served("2/7");
        mox.policy("{\"direct\":{\"applications\":[\"demo\"],\"balance\":\"mesh\"}}");
        mox.flush(TestData.DEADLINE);
        Map<?, ?> direct = (Map<?, ?>) ((Map<?, ?>) mox.status().get("publisher")).get("direct");
        assertEquals(direct.toString(), 1L, direct.get("entries"));
        StringBuilder others = new StringBuilder();
        for (Object other : (List<?>) direct.get("notOwnSample")) {
            others.append(other.toString().split(" ")[0]).append(' ');
        }
        assertEquals("10.0.9.1 10.0.9.2 10.0.9.3 10.0.9.4 ", others.toString());
    }

    /** A client has moved to another session server and published there what it had: there is no notice of that. */
    @Test
    public void aLostClientsPublishersAreLeftToTheRegistry() {
        tier.put(id(1), "a", 1, 2_000, "10.0.0.1:12200");
        tier.put(id(2), "a", 1, 1_001, "10.0.0.2:12200");
        start(3_600_000);
        served("2/2");
        tier.put(id(2), "short", 1, 1, "10.0.0.3:12200");
        SessionEvents.record(mox, SessionServer.publish(SessionServer.publisher(2, "short", 1, "10.0.0.3:12200")), s -> {});
        served("2/3");
        tier.remove(id(2), "short");
        tier.remove(id(2), "a");
        SessionEvents.record(
                mox,
                SessionServer.clientOff(java.util.Arrays.asList(SessionServer.publisher(1, "a", 1), SessionServer.publisher(2, "a", 1), SessionServer.publisher(2, "short", 1))),
                feed::mark);
        served("2/1");
        assertTrue(mox.page("/mox/dump", "").get("body").toString().contains("10.0.0.1"));
    }

    /** A withdrawal that a client made before it moved to another session server is heard late here. */
    @Test
    public void aWithdrawalHeardAfterStandingStillIsLeftToTheRegistry() {
        tier.put(id(1), "a", 1, 1_001, "10.0.0.1:12200");
        tier.put(id(2), "a", 1, 1_001, "10.0.0.2:12200");
        start(3_600_000);
        served("2/2");
        assertFalse(feed.isBehind());
        SessionEvents.Registry registry = new SessionEvents.Registry() {
            @Override
            public void reread(String dataInfoId) {
                feed.mark(dataInfoId);
            }

            @Override
            public boolean isAhead() {
                return feed.isBehind();
            }
        };
        synchronized (tier) { // which answers nobody
            TestData.await("it stands still", feed::isBehind);
            tier.remove(id(1), "a");
            tier.put(id(1), "again", 3, 3, "10.0.0.1:12200");
            tier.remove(id(2), "a");
            for (int n = 1; n <= 2; n++) {
                SessionEvents.record(mox, SessionServer.unpublish(SessionServer.publisher(n, "a", 2)), registry);
            }
            assertEquals("nothing goes before it is read", "2/2", TestData.served(mox));
        }
        served("2/1");
        assertTrue(mox.page("/mox/dump", "").get("body").toString().contains("10.0.0.1"));
        TestData.await("everything is compared", () -> !feed.isBehind());
    }

    /** The first engine hears events and reads, the second only reads. */
    @Test
    public void theSameIsServedHoweverItWasLearned() {
        fill(30);
        for (int n = 0; n < 30; n++) {
            SessionEvents.record(mox, SessionServer.publish(SessionServer.publisher(n, "local", 1, "10.0.3." + n + ":12200?app_name=demo")), s -> {});
            tier.put(id(n), "local", 1, 1_001, "10.0.3." + n + ":12200?app_name=demo");
        }
        start(200);
        SessionEvents.record(mox, SessionServer.unpublish(SessionServer.publisher(5, "local", 2)), s -> {});
        tier.remove(id(5), "local");
        served("30/89");
        try (RegistryMox other = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").set("scope", "cluster").build());
                ClusterFeed second = new ClusterFeed(other, tier, settings(200), broken -> {})) {
            second.start();
            TestData.await("the same", () -> mox.flush(TestData.DEADLINE).equals(other.flush(TestData.DEADLINE)));
            assertEquals(mox.page("/mox/dump", ""), other.page("/mox/dump", ""));
        }
    }

    /** Where no last good state is kept, what the others serve is asked before the first view may be complete. */
    @Test
    public void theFirstViewWaitsForTheOthersAnswerAndIsJudgedByIt() throws Exception {
        fill(4);
        CompletableFuture<Void> asked = new CompletableFuture<>();
        feed = new ClusterFeed(mox, tier, settings(200), broken -> {});
        feed.start(asked);
        TestData.await("everything is read", () -> TestData.served(mox).equals("4/8"));
        long compared = (Long) feed.report().get("compares");
        TestData.await("and compared again", () -> (Long) feed.report().get("compares") > compared + 2 * FakeDataTier.SLOTS);
        assertTrue("not before the answer", held("not-loaded"));
        String serving = "{\"services\": 40, \"endpoints\": 80}";
        try (ServerSocket server = new ServerSocket(0, 50, InetAddress.getByName("127.0.0.1"))) {
            Sessions sessions = new Sessions(() -> Collections.singletonList("127.0.0.1"), server.getLocalPort());
            Future<?> question = sessions.baseline(mox);
            try (Socket client = server.accept()) {
                client.getOutputStream().write(("HTTP/1.0 200 OK\r\n\r\n" + serving).getBytes(StandardCharsets.US_ASCII));
            }
            question.get();
        }
        asked.complete(null);
        TestData.await("much less than the other has", () -> held("mass-delete"));
        mox.release();
        TestData.await("released", () -> mox.flush(TestData.DEADLINE).get("held") == null);
        served("4/8");
    }

    @Test
    public void stoppedPushesFreezeUntilEverythingIsCompared() throws Exception {
        fill(20);
        start(3_600_000);
        served("20/40");
        AtomicBoolean can = new AtomicBoolean(true);
        SessionWatch watch = new SessionWatch(mox, can::get, feed, new Sessions(Collections::emptyList, 1), 1_000_000, Collections::emptyMap, t -> {});
        watch.tick();
        assertFalse(held("frozen"));
        can.set(false);
        watch.tick();
        assertTrue(held("frozen"));
        tier.remove(id(1), "a"); // of which there is no notice
        can.set(true);
        watch.tick();
        assertTrue("not before all was compared", held("frozen"));
        TestData.await("thawed", () -> {
            tick(watch);
            return !held("frozen");
        });
        assertEquals("20/39", TestData.served(mox));
    }

    /** Pushes are stopped for upgrades, in which a data server may stay down. */
    @Test
    public void aSlotThatCannotBeComparedFreezesTheOthersNoLongerThanDataMayBeStale() throws Exception {
        fill(20);
        start(200);
        served("20/40");
        AtomicBoolean can = new AtomicBoolean(false);
        SessionWatch watch = new SessionWatch(mox, can::get, feed, new Sessions(Collections::emptyList, 1), 2_000, Collections::emptyMap, t -> {});
        watch.tick();
        assertTrue(held("frozen"));
        int slot = tier.slotOf(id(1));
        int other = 2;
        while (tier.slotOf(id(other)) == slot) {
            other++;
        }
        tier.down.add(slot);
        tier.remove(id(1), "a");
        tier.put(id(other), "c", 1, 1, "10.0.2.1:12200");
        can.set(true);
        watch.tick();
        assertTrue("not at once", held("frozen"));
        TestData.await("thawed", () -> {
            tick(watch);
            return !held("frozen");
        });
        assertFalse("the slot is not compared", feed.isReconciled());
        served("20/41");
        assertEquals(false, mox.status().get("fenced"));
        tier.down.clear();
        served("20/40");
    }

    @Test
    public void cutOffItLeavesIstiodToAFreshServerAndServesOnAlone() throws Exception {
        fill(20);
        start(200);
        served("20/40");
        AtomicInteger status = new AtomicInteger(503);
        HttpServer peer = HttpServer.create(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), 0), 0);
        peer.createContext("/mox/fresh", exchange -> {
            byte[] body = "fresh\n".getBytes(StandardCharsets.US_ASCII);
            exchange.sendResponseHeaders(status.get(), body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        peer.start();
        try {
            List<String> others = Collections.singletonList("127.0.0.1");
            for (int slot = 0; slot < FakeDataTier.SLOTS; slot++) {
                tier.down.add(slot);
            }
            TestData.await("silence", () -> feed.silentMillis() > 2_000);
            int port = peer.getAddress().getPort();
            SessionWatch alone = new SessionWatch(mox, () -> true, feed, new Sessions(() -> others, port), 1_000, Collections::emptyMap, t -> {});
            alone.tick();
            assertEquals("with an alarm before anybody has answered", true, ((Map<?, ?>) mox.status().get("feed")).get("stale"));
            TestData.await("the other server has answered", () -> {
                tick(alone);
                return Long.valueOf(0).equals(((Map<?, ?>) mox.status().get("feed")).get("freshPeers"));
            });
            assertEquals(false, mox.status().get("fenced"));
            status.set(200);
            SessionWatch watch = new SessionWatch(mox, () -> true, feed, new Sessions(() -> others, port), 1_500, Collections::emptyMap, t -> {});
            TestData.await("another serves in its place", () -> {
                tick(watch);
                return mox.status().get("fenced").equals(true);
            });
            tier.down.clear();
            TestData.await("back", () -> {
                tick(watch);
                return mox.status().get("fenced").equals(false);
            });
            assertEquals(false, ((Map<?, ?>) mox.status().get("feed")).get("stale"));
        } finally {
            peer.stop(0);
        }
    }

    /** The watch goes on while the other servers say nothing. */
    @Test
    public void aSilentServerHoldsUpNoLook() throws Exception {
        fill(20);
        start(200);
        served("20/40");
        try (ServerSocket silent = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            for (int slot = 0; slot < FakeDataTier.SLOTS; slot++) {
                tier.down.add(slot);
            }
            TestData.await("silence", () -> feed.silentMillis() > 1_000);
            AtomicBoolean can = new AtomicBoolean(true);
            Sessions sessions = new Sessions(() -> {
                can.set(false); // the registry stops its pushes while they are asked
                return Collections.singletonList("127.0.0.1");
            }, silent.getLocalPort());
            SessionWatch watch = new SessionWatch(mox, can::get, feed, sessions, 1_000, Collections::emptyMap, t -> {});
            watch.tick();
            try (Socket asked = silent.accept()) {
                watch.tick();
                assertTrue("noticed while a question is open", held("frozen"));
            }
        }
    }

    private static void tick(SessionWatch watch) {
        try {
            watch.tick();
        } catch (Exception e) {
            throw new AssertionError(e);
        }
    }
}
