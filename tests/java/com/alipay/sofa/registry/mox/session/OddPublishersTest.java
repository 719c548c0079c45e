package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import com.alipay.sofa.registry.common.model.store.SubPublisher;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.sun.management.ThreadMXBean;
import java.io.File;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.After;
import org.junit.Test;

/** Whatever one client publishes to a service: the service's other publishers are served as they are, on every session server. */
public class OddPublishersTest {
    private static final int SERVICES = 20;
    private static final String VICTIM = TestData.service(1);
    private static final String HOST = "com.example.service1.sofa.mesh";
    private static final String EVIL = "10.66.6.6";

    private final List<AutoCloseable> open = new ArrayList<>();

    @After
    public void close() throws Exception {
        Collections.reverse(open);
        for (AutoCloseable one : open) {
            one.close();
        }
    }

    /** A publisher as a client sends it, and what should come of it. */
    private static final class Odd {
        final String registerId;
        final String cell;
        final List<ServerDataBox> boxes;
        /** Null: it is taken whole. */
        final String reason;
        final boolean served;

        Odd(String registerId, String cell, List<ServerDataBox> boxes, String reason, boolean served) {
            this.registerId = registerId;
            this.cell = cell;
            this.boxes = boxes;
            this.reason = reason;
            this.served = served;
        }
    }

    private static List<ServerDataBox> boxes(String... urls) {
        return Arrays.stream(urls).map(url -> new ServerDataBox(TestData.box(url))).collect(Collectors.toCollection(ArrayList::new));
    }

    private static List<ServerDataBox> with(List<ServerDataBox> boxes, ServerDataBox... more) {
        boxes.addAll(Arrays.asList(more));
        return boxes;
    }

    private static String repeat(String text, int count) {
        return String.join("", Collections.nCopies(count, text));
    }

    /** Of so many data, the first {@code good}. */
    private static List<ServerDataBox> many(int count, int bytes) {
        List<ServerDataBox> all = boxes(EVIL + ":1");
        all.addAll(Collections.nCopies(count - 1, new ServerDataBox(TestData.box(EVIL + ":1?x=" + repeat("y", bytes)))));
        return with(all, boxes("10.66.6.7:1").get(0));
    }

    private static Map<String, Odd> odd() {
        String url = EVIL + ":1";
        Map<String, Odd> all = new LinkedHashMap<>();
        all.put("registerId of 600 characters", new Odd(repeat("x", 600), "zone", boxes(url), null, true));
        all.put("registerId of 513 bytes", new Odd(repeat("ä", 256) + "x", "zone", boxes(url), null, true));
        all.put("registerId of 512 bytes", new Odd(repeat("ä", 256), "zone", boxes(url), null, true));
        all.put("registerId of 2 MB", new Odd(repeat("x", 2 << 20), "zone", boxes(url), null, true));
        all.put("registerId with half a pair", new Odd("\uD83D" + repeat("x", 511), "zone", boxes(url), null, true));
        all.put("empty registerId", new Odd("", "zone", boxes(url), null, true));
        all.put("no cell", new Odd("evil", null, boxes(url), null, true));
        all.put("cell of 65,535 bytes", new Odd("evil", repeat("z", 65_535), boxes(url), null, true));
        all.put("cell of 65,536 bytes", new Odd("evil", repeat("z", 65_534) + "ä", boxes(url), "cell", true));
        all.put("cell of 2 MB", new Odd("evil", repeat("z", 2 << 20), boxes(url), "cell", true));
        all.put("no data", new Odd("evil", "zone", null, null, false));
        all.put("a datum above 1 MiB", new Odd("evil", "zone", with(boxes(url), new ServerDataBox(new byte[(1 << 20) + 1])), "data", true));
        all.put("an object that cannot be serialized", new Odd("evil", "zone", with(boxes(url), new ServerDataBox(new Object())), "data", true));
        all.put("an object in objects", new Odd("evil", "zone", with(boxes(url), new ServerDataBox(deep())), "data", true));
        all.put("65,536 data", new Odd("evil", "zone", many(65_535, 1), "too-much-data", true));
        all.put("33 MiB of data", new Odd("evil", "zone", many(34, (1 << 20) - 100), "too-much-data", true));
        all.put("100 MiB of data", new Odd("evil", "zone", many(101, (1 << 20) - 100), "too-much-data", true));
        return all;
    }

    private static Object deep() {
        List<Object> all = new ArrayList<>();
        for (int i = 0; i < 100_000; i++) {
            all = new ArrayList<>(Collections.singletonList(all));
        }
        return all;
    }

    private <T extends AutoCloseable> T opened(T one) {
        open.add(one);
        return one;
    }

    private RegistryMox engine(Object... settings) {
        MoxConfig.Builder config = MoxConfig.builder().set("listen", "127.0.0.1:0").set("scope", "cluster");
        for (int i = 0; i < settings.length; i += 2) {
            config.set((String) settings[i], settings[i + 1]);
        }
        return opened(RegistryMox.create(config.build()));
    }

    private static Map<String, Object> settings(long reconcileMillis) {
        Map<String, Object> settings = new HashMap<>();
        settings.put("debounceMillis", 1L);
        settings.put("reconcileMillis", reconcileMillis);
        settings.put("reads", 100_000L);
        settings.put("maxStalenessMillis", 1_000_000_000L);
        return settings;
    }

    private ClusterFeed feed(RegistryMox mox, DataTier tier, long reconcileMillis) {
        ClusterFeed feed = opened(new ClusterFeed(mox, tier, settings(reconcileMillis), broken -> {}));
        feed.start();
        return feed;
    }

    private static FakeDataTier tier() {
        FakeDataTier tier = new FakeDataTier();
        for (int n = 0; n < SERVICES; n++) {
            tier.put(TestData.service(n), "a", 1, 1, "10.0.0." + n + ":12200");
            tier.put(TestData.service(n), "b", 1, 1, "10.0.1." + n + ":12200");
        }
        return tier;
    }

    private static String dump(RegistryMox mox) {
        mox.flush(TestData.DEADLINE);
        return (String) mox.page("/mox/dump", "").get("body");
    }

    /** The addresses of the victim. */
    private static TreeSet<String> addresses(RegistryMox mox) {
        TreeSet<String> found = new TreeSet<>();
        for (String line : dump(mox).split("\n")) {
            if (line.contains('"' + HOST + '"')) {
                for (Matcher address = Pattern.compile("\"address\":\"([^\"]+)\"").matcher(line); address.find(); ) {
                    found.add(address.group(1));
                }
            }
        }
        return found;
    }

    private static void awaitLoaded(RegistryMox mox) {
        TestData.await("loaded", () -> mox.flush(TestData.DEADLINE).get("held") == null);
    }

    private static Map<?, ?> unknown(RegistryMox mox) {
        return (Map<?, ?>) ((Map<?, ?>) mox.status().get("publisher")).get("unknown");
    }

    @Test
    public void theOthersAreServedAndTheOddOneIsCountedAndNamed() {
        for (Map.Entry<String, Odd> entry : odd().entrySet()) {
            String what = entry.getKey();
            Odd odd = entry.getValue();
            FakeDataTier tier = tier();
            RegistryMox mox = engine();
            ClusterFeed feed = feed(mox, tier, 3_600_000);
            awaitLoaded(mox);

            tier.put(VICTIM, FakeDataTier.publisher(odd.registerId, odd.cell, 1, 1, odd.boxes));
            tier.remove(VICTIM, "a");
            tier.put(VICTIM, "c", 1, 1, "10.0.2.1:12200");
            feed.changed(Collections.singleton(VICTIM));
            TreeSet<String> wanted = new TreeSet<>(Arrays.asList("10.0.1.1", "10.0.2.1"));
            if (odd.served) {
                wanted.add(EVIL);
            }
            TestData.await(what + " " + wanted, () -> addresses(mox).equals(wanted));
            // Who is refused is told after what is left was applied.
            String refused = odd.reason == null ? "{}" : "{" + odd.reason + "=1}";
            TestData.await(what + " " + refused, () -> feed.report().get("refusedPublishers").toString().equals(refused));
            Map<String, Object> report = feed.report();
            List<?> named = (List<?>) report.get("refused");
            assertEquals(what, odd.reason == null ? 0 : 1, named.size());
            if (odd.reason != null) {
                assertEquals("{dataInfoId=" + VICTIM + ", reason=" + odd.reason + ", registerId=evil, count=1}", named.get(0).toString());
            }
            assertEquals(what, 0, report.get("unreadable"));

            RegistryMox restarted = engine();
            ClusterFeed other = feed(restarted, tier, 3_600_000);
            awaitLoaded(restarted);
            assertEquals(what + ", after a restart", wanted, addresses(restarted));
            assertEquals(what, dump(mox), dump(restarted));
            assertEquals(what, report.get("refusedPublishers"), other.report().get("refusedPublishers"));

            // The odd publisher goes like any other, and is no longer counted.
            tier.remove(VICTIM, odd.registerId);
            feed.changed(Collections.singleton(VICTIM));
            wanted.remove(EVIL);
            TestData.await(what + " gone", () -> addresses(mox).equals(wanted) && feed.report().get("refusedPublishers").toString().equals("{}"));
        }
    }

    /** A client's publisher has the same bytes and the same entry on a server that hears it and on one that reads it. */
    @Test
    public void whatIsHeardIsWhatIsRead() {
        for (Map.Entry<String, Odd> entry : odd().entrySet()) {
            String what = entry.getKey();
            Odd odd = entry.getValue();
            FakeDataTier tier = tier();
            tier.put(VICTIM, FakeDataTier.publisher(odd.registerId, odd.cell, 1, 1_001, odd.boxes));
            RegistryMox reads = engine();
            feed(reads, tier, 3_600_000);
            awaitLoaded(reads);

            RegistryMox hears = engine();
            ClusterFeed feed = feed(hears, tier(), 3_600_000);
            awaitLoaded(hears);
            Publisher publisher = SessionServer.publisher(1, odd.registerId, 1);
            publisher.setCell(odd.cell);
            publisher.setDataList(odd.boxes);
            assertEquals(what, odd.reason, refused(hears, SessionServer.publish(publisher), feed));
            assertEquals(what, dump(reads), dump(hears));
            assertEquals(what, odd.served, addresses(hears).contains(EVIL));

            publisher.setVersion(2);
            assertEquals(what, null, refused(hears, SessionServer.unpublish(publisher), feed));
            assertFalse(what, addresses(hears).contains(EVIL));
            publisher.setVersion(3);
            refused(hears, SessionServer.publish(publisher), feed);
            assertEquals(what, odd.served, addresses(hears).contains(EVIL));
            assertEquals(what, null, refused(hears, SessionServer.clientOff(Collections.singletonList(publisher)), feed));
            TestData.await(what + ": the registry does not have it", () -> !addresses(hears).contains(EVIL));
            assertEquals(new TreeSet<>(Arrays.asList("10.0.0.1", "10.0.1.1")), addresses(hears));
        }
    }

    private static String refused(RegistryMox mox, Object request, ClusterFeed feed) {
        try {
            SessionEvents.record(mox, request, feed::mark);
            return null;
        } catch (RefusedException e) {
            assertTrue(e.getMessage(), e.getMessage().length() < 400);
            return e.why.key;
        }
    }

    /** A data server has none of these; if it had, they would harm nobody. */
    @Test
    public void publishersThatNoDataServerHas() {
        FakeDataTier tier = tier();
        RegistryMox mox = engine();
        ClusterFeed feed = feed(mox, tier, 3_600_000);
        awaitLoaded(mox);
        tier.extra(VICTIM, FakeDataTier.publisher(null, "zone", 1, 1, boxes(EVIL + ":1")));
        tier.extra(VICTIM, null);
        tier.extra(VICTIM, FakeDataTier.publisher("evil", "zone", 1, 1, Collections.singletonList(new ThrowingBox())));
        SubPublisher noDatum = FakeDataTier.publisher("odd", "zone", 1, 1, boxes("10.0.2.1:1"));
        noDatum.getDataList().add(null);
        tier.extra(VICTIM, noDatum);
        tier.extra(TestData.service(2), null);
        tier.remove(VICTIM, "a");
        feed.changed(Arrays.asList(VICTIM, TestData.service(2)));
        TestData.await("taken", () -> feed.report().get("refusedPublishers").toString().equals("{no-publisher=2, no-register-id=1, error=1, data=1}"));
        assertEquals(new TreeSet<>(Arrays.asList("10.0.1.1", "10.0.2.1")), addresses(mox));
        assertEquals(5, ((List<?>) feed.report().get("refused")).size());
    }

    private static final class ThrowingBox extends ServerDataBox {
        private static final long serialVersionUID = 1L;

        @Override
        public byte[] getBytes() {
            throw new IllegalStateException("no bytes");
        }
    }

    /** No event can name such a service, so it is not read again: nothing would come of that. */
    @Test
    public void aServiceWhoseIdIsTooLong() {
        FakeDataTier tier = tier();
        String id = repeat("x", 4_097);
        tier.put(id, "a", 1, 1, "10.0.2.1:12200");
        tier.put(id, "b", 1, 1, "10.0.2.2:12200");
        RegistryMox mox = engine();
        ClusterFeed feed = feed(mox, tier, 100);
        awaitLoaded(mox);
        assertEquals("20/40", TestData.served(mox));
        TestData.await("compared again", () -> (Long) feed.report().get("compares") > 3 * FakeDataTier.SLOTS);
        assertEquals(1, (int) tier.fetches.get(id));
        assertEquals("{data-info-id=2}", feed.report().get("refusedPublishers").toString());
        assertEquals(0L, unknown(mox).get("missing"));
        tier.put(id, "c", 1, 1, "10.0.2.3:12200");
        TestData.await("read again", () -> feed.report().get("refusedPublishers").toString().equals("{data-info-id=3}"));
    }

    @Test
    public void aServiceThatIsTooLargeIsServedWithoutItsLargest() {
        FakeDataTier tier = tier();
        for (String large : new String[] {"y", "x"}) {
            tier.put(VICTIM, "large-" + large, 1, 1, EVIL + ":1?x=" + repeat(large, 40_000));
        }
        RegistryMox mox = engine();
        ClusterFeed feed = opened(new ClusterFeed(mox, tier, settings(3_600_000), 50_000, broken -> {}));
        feed.start();
        awaitLoaded(mox);
        assertEquals("by size, then by registerId", "20/41", TestData.served(mox));
        String refused = feed.report().get("refused").toString();
        assertEquals("[{dataInfoId=" + VICTIM + ", reason=service-too-large, registerId=large-y, count=1}]", refused);
        tier.remove(VICTIM, "large-x");
        feed.changed(Collections.singleton(VICTIM));
        TestData.await("it fits", () -> feed.report().get("refused").toString().equals("[]"));
        assertEquals("20/41", TestData.served(mox));
    }

    @Test
    public void theNewestTwentyAreNamedAndAllAreCounted() {
        FakeDataTier tier = tier();
        RegistryMox mox = engine();
        ClusterFeed feed = feed(mox, tier, 3_600_000);
        awaitLoaded(mox);
        for (int n = 0; n < 30; n++) {
            String id = TestData.service(n);
            tier.put(id, FakeDataTier.publisher("evil\n" + repeat("x", 99), repeat("z", 70_000), 1, 1, boxes(EVIL + ":1")));
            tier.put(id, FakeDataTier.publisher("other", repeat("z", 70_000), 1, 1, boxes(EVIL + ":2")));
            feed.changed(Collections.singleton(id));
            long wanted = 2 * (n + 1);
            TestData.await(wanted + " are counted", () -> feed.report().get("refusedPublishers").toString().equals("{cell=" + wanted + "}"));
        }
        List<?> named = (List<?>) feed.report().get("refused");
        assertEquals(20, named.size());
        assertEquals(
                "{dataInfoId=" + TestData.service(29) + ", reason=cell, registerId=evil?" + repeat("x", 59) + "..., count=2}",
                named.get(0).toString());
        // Read again it is counted once.
        feed.changed(Collections.singleton(TestData.service(3)));
        TestData.await("named first", () -> ((List<?>) feed.report().get("refused")).get(0).toString().contains(TestData.service(3)));
        assertEquals("{cell=60}", feed.report().get("refusedPublishers").toString());
    }

    @Test
    public void itIsInStatusAndMetrics() throws Exception {
        FakeDataTier tier = tier();
        tier.put(VICTIM, FakeDataTier.publisher("evil", repeat("z", 70_000), 1, 1, boxes(EVIL + ":1")));
        RegistryMox mox = engine();
        ClusterFeed feed = feed(mox, tier, 3_600_000);
        awaitLoaded(mox);
        Sessions alone = new Sessions(Collections::emptyList, 1);
        new SessionWatch(mox, () -> true, feed, alone, 1_000_000, () -> Collections.singletonMap("data", 3L), t -> {}).tick();
        Map<?, ?> status = (Map<?, ?>) mox.status().get("feed");
        assertEquals("{cell=1}", status.get("refusedPublishers").toString());
        assertEquals("{data=3}", status.get("refusedEvents").toString());
        assertTrue(status.toString(), status.get("refused").toString().contains("registerId=evil"));
        String metrics = (String) mox.page("/mox/metrics", "").get("body");
        for (String line : new String[] {"mox_feed_refused_publishers{reason=\"cell\"} 1", "mox_feed_refused_events_total{reason=\"data\"} 3"}) {
            assertTrue(line + " in " + metrics, metrics.contains(line + "\n"));
        }
    }

    // ---- reads that are not applied

    /** Whatever goes wrong with a read: it is not known, it is seen, and it is tried again until it goes well. */
    @Test
    public void aReadThatCannotBeAppliedIsNotKnownAndComesAgain() {
        FakeDataTier tier = tier();
        RegistryMox mox = engine();
        ClusterFeed feed = feed(mox, tier, 3_600_000);
        awaitLoaded(mox);
        tier.garbled.add(VICTIM);
        tier.remove(VICTIM, "a");
        feed.changed(Collections.singleton(VICTIM));
        TestData.await("it is tried again", () -> (Long) feed.report().get("readFailures") >= 3);
        Map<String, Object> report = feed.report();
        assertEquals(1, report.get("unreadable"));
        assertEquals((long) SERVICES - 1, report.get("ids"));
        assertTrue(report.toString(), report.get("lastFailure").toString().contains("not applied"));
        assertEquals("20/40", TestData.served(mox));
        tier.garbled.clear();
        TestData.await("applied", () -> TestData.served(mox).equals("20/39"));
        assertEquals(0, feed.report().get("unreadable"));
        assertEquals((long) SERVICES, feed.report().get("ids"));
    }

    @Test
    public void aReadForWhichThereIsNoRoomIsNotKnownEither() {
        FakeDataTier tier = tier();
        RegistryMox mox = engine("limits.publishers", 40);
        ClusterFeed feed = feed(mox, tier, 100);
        awaitLoaded(mox);
        tier.put(VICTIM, "c", 1, 1, "10.0.2.1:12200");
        TestData.await("unreadable", () -> feed.report().get("unreadable").equals(1));
        int fetches = tier.fetches.get(VICTIM);
        TestData.await("it is tried again", () -> tier.fetches.get(VICTIM) > fetches + 2);
        assertEquals("20/40", TestData.served(mox));
        tier.remove(TestData.service(2), "a");
        TestData.await("there is room", () -> feed.report().get("unreadable").equals(0));
        assertEquals("20/40", TestData.served(mox));
    }

    // ---- what is unknown at the start

    /** Both ways in which a service may stay unknown. */
    private interface Trouble {
        java.util.Set<String> of(FakeDataTier tier);
    }

    private static final List<Trouble> TROUBLES = Arrays.asList(tier -> tier.broken, tier -> tier.garbled);

    @Test
    public void aServiceThatIsUnknownAtTheStartIsNamed() {
        for (Trouble trouble : TROUBLES) {
            FakeDataTier tier = tier();
            trouble.of(tier).add(VICTIM);
            RegistryMox mox = engine();
            ClusterFeed feed = feed(mox, tier, 200);
            awaitLoaded(mox);
            assertEquals("19/38", TestData.served(mox));
            assertEquals("{lastGood=0, missing=1, sample=[" + VICTIM + "]}", unknown(mox).toString());
            assertEquals(1, feed.report().get("unreadable"));
            String metrics = (String) mox.page("/mox/metrics", "").get("body");
            assertTrue(metrics, metrics.contains("mox_services_unknown{served=\"nothing\"} 1\n"));
            trouble.of(tier).clear();
            TestData.await("read", () -> TestData.served(mox).equals("20/40"));
            assertEquals("{lastGood=0, missing=0, sample=[]}", unknown(mox).toString());
        }
    }

    @Test
    public void aServiceThatIsUnknownAtTheStartKeepsItsLastGoodForm() throws Exception {
        for (Trouble trouble : TROUBLES) {
            Path dir = Files.createTempDirectory("mox-unknown");
            try {
                FakeDataTier tier = tier();
                RegistryMox before = engine("stateDir", dir.toString());
                ClusterFeed first = feed(before, tier, 200);
                awaitLoaded(before);
                String good = dump(before);
                File kept = dir.resolve("last-good").toFile();
                TestData.await("kept", () -> kept.length() > 0);
                first.close();
                before.close();

                trouble.of(tier).add(VICTIM);
                RegistryMox mox = engine("stateDir", dir.toString());
                feed(mox, tier, 200);
                awaitLoaded(mox);
                assertEquals("the same bytes", good, dump(mox));
                assertEquals("{lastGood=1, missing=0, sample=[" + VICTIM + "]}", unknown(mox).toString());
                // A publisher that is heard is served beside the last good form; what the registry took away is not known.
                SessionEvents.record(mox, SessionServer.publish(SessionServer.publisher(1, "c", 1, "10.0.2.1:12200")), s -> {});
                assertEquals("20/41", TestData.served(mox));
                tier.put(VICTIM, "c", 1, 1_001, "10.0.2.1:12200");
                tier.remove(VICTIM, "a");
                trouble.of(tier).clear();
                TestData.await("read", () -> TestData.served(mox).equals("20/40"));
                assertEquals("{lastGood=0, missing=0, sample=[]}", unknown(mox).toString());
                assertEquals(new TreeSet<>(Arrays.asList("10.0.1.1", "10.0.2.1")), addresses(mox));
            } finally {
                close();
                open.clear();
                Files.deleteIfExists(dir.resolve("last-good"));
                Files.deleteIfExists(dir);
            }
        }
    }

    /** No list is too long to be told. */
    @Test
    public void thousandsMayBeUnknown() {
        FakeDataTier tier = new FakeDataTier();
        for (int n = 0; n < 2_500; n++) {
            tier.put(TestData.service(n), "a", 1, 1, "10.0." + n / 250 + "." + n % 250 + ":12200");
            if (n > 0) {
                tier.garbled.add(TestData.service(n));
            }
        }
        RegistryMox mox = engine();
        ClusterFeed feed = feed(mox, tier, 3_600_000);
        awaitLoaded(mox);
        assertEquals("1/1", TestData.served(mox));
        assertEquals(2_499L, unknown(mox).get("missing"));
        assertEquals(20, ((List<?>) unknown(mox).get("sample")).size());
        tier.garbled.clear();
        feed.reconcile();
        TestData.await("all are read", () -> TestData.served(mox).equals("2500/2500"));
        assertEquals(0L, unknown(mox).get("missing"));
    }

    // ---- garbage

    /** A hot service is read several times a second, in the heap of the session server. */
    @Test
    public void aReadMakesLittleGarbage() {
        FakeDataTier tier = new FakeDataTier();
        long data = 0;
        for (int n = 0; n < 8_000; n++) {
            String url = "10." + n / 62_500 + "." + n / 250 % 250 + "." + n % 250
                    + ":12200?rpcVer=51302&serialization=hessian2&weight=100&app_name=demo-application&p=1&v=4.0&timeout=3000&zone=GZ00A&n=" + n;
            tier.put(VICTIM, String.format("8f14e45f-ceea-467f-9d2b-1c0b8f%06d", n), 1, 1, url);
            data += TestData.box(url).length;
        }
        assertTrue("data of " + data + " bytes", data > 1_000_000);
        SubDatum datum = tier.datum(VICTIM);
        RegistryMox mox = engine("limits.publishers", 10_000);
        ServiceReader reader = new ServiceReader(new FeedState(mox), mox, tier, new Backoffs(), new Pace(1), 1, ServiceRead.SERVICE_BYTES);
        ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
        long thread = Thread.currentThread().getId();
        long least = Long.MAX_VALUE;
        for (int round = 0; round < 8; round++) {
            long before = threads.getThreadAllocatedBytes(thread);
            reader.apply(VICTIM, 0, datum, System.nanoTime());
            least = Math.min(least, threads.getThreadAllocatedBytes(thread) - before);
        }
        mox.loaded();
        assertEquals("1/8000", TestData.served(mox));
        assertTrue(least + " bytes of garbage for " + data + " bytes of data", least <= 4 * data);
    }
}
