package com.alipay.sofa.registry.mox;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.io.OutputStream;
import java.lang.reflect.Modifier;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.Test;

/** The facade on the real engine. */
public class RegistryMoxTest {
    private static final String SOURCE = "test";
    private static final Publish FIRST =
            Publish.of(TestData.service(1), "r1").version(1, 1).data("10.0.0.1:12200?app_name=demo&p=1").build();

    @Test
    public void publishUnpublishReplace() {
        try (RegistryMox mox = TestData.engine()) {
            long sequence = mox.publish(SOURCE, FIRST);
            assertTrue("sequence " + sequence, sequence > 0);
            assertEquals("1/1", TestData.served(mox));
            mox.publish(SOURCE, Publish.of(TestData.service(1), "r2").version(1, 1).serialized(TestData.box("10.0.0.2:12200")).build());
            assertEquals("1/2", TestData.served(mox));
            mox.unpublish(SOURCE, TestData.service(1), "r1", 0, 9);
            assertEquals("an older removal does nothing", "1/2", TestData.served(mox));
            mox.unpublish(SOURCE, TestData.service(1), "r1", 1, 1);
            assertEquals("1/1", TestData.served(mox));
            long later = System.currentTimeMillis() + 60_000;
            mox.replace("another", TestData.service(1), 1, later, TestData.none());
            assertEquals("another source's replace does nothing", "1/1", TestData.served(mox));
            mox.replace(SOURCE, TestData.service(1), 1, later, Collections.singletonList(Publish.of(TestData.service(1), "r3").version(1, 1).data("10.0.0.3:12200").build()));
            assertEquals("1/1", TestData.served(mox));
        }
    }

    /** The date of a read is one of this machine's clock, as it is when the read is handed in; whatever it is, nothing overflows. */
    @Test
    public void aReadOfAnyDateIsTaken() {
        try (RegistryMox mox = TestData.engine()) {
            mox.publish(SOURCE, FIRST);
            for (long readStarted : new long[] {Long.MIN_VALUE, 0, System.currentTimeMillis() - 1_000}) {
                assertTrue(mox.replace(SOURCE, TestData.service(1), 1, readStarted, TestData.none()) > 0);
                assertEquals("it began before the publish", "1/1", TestData.served(mox));
            }
            assertTrue(mox.replace(SOURCE, TestData.service(1), 2, Long.MAX_VALUE, TestData.none()) > 0);
            assertEquals("1/0", TestData.served(mox));
        }
    }

    private static Publish large(int number, int bytes) {
        StringBuilder url = new StringBuilder("10.1." + number / 250 + "." + number % 250 + ":12200?x=");
        while (url.length() < bytes) {
            url.append('x');
        }
        return Publish.of(TestData.service(1), "r" + number).version(1, 1).data(url.toString()).build();
    }

    /** Larger than what a thread keeps, than a piece, and than a frame can be. */
    @Test
    public void aReplaceOfAnySizeIsAppliedAsAWhole() {
        try (RegistryMox mox = TestData.engine()) {
            long later = System.currentTimeMillis() + 60_000;
            int version = 0;
            for (int[] all : new int[][] {{1, 10}, {1, 1 << 20}, {5, 600_000}, {80, 1 << 20}, {3_000, 400}}) {
                List<Publish> publishers = new ArrayList<>();
                for (int i = 0; i < all[0]; i++) {
                    publishers.add(large(i, all[1]));
                }
                assertTrue(mox.replace(SOURCE, TestData.service(1), ++version, later + version, publishers) >= 64);
                assertEquals("1/" + all[0], TestData.served(mox));
            }
        }
    }

    @Test
    public void aReadThatIsNotOverChangesNothing() {
        try (RegistryMox mox = TestData.engine()) {
            mox.publish(SOURCE, FIRST);
            long later = System.currentTimeMillis() + 60_000;
            long laterNanos = System.nanoTime() + TimeUnit.MINUTES.toNanos(1);
            EngineRead given = (EngineRead) mox.host().read(SOURCE, TestData.service(1), 1, laterNanos);
            for (int i = 0; i < 3; i++) {
                given.add(large(i, 600_000));
            }
            assertEquals("1/1", TestData.served(mox));
            MoxHost.Read whole = mox.host().read(SOURCE, TestData.service(1), 2, laterNanos);
            whole.publisher("a", 1, 1, null, null).data(TestData.box("10.0.0.1:1"));
            whole.publisher("b", 1, 1, "zone", "10.0.0.2:50000").data(TestData.box("10.0.0.2:1"));
            whole.leaveOut();
            whole.leaveOut();
            whole.publisher("c", 1, 1, null, null).data(TestData.box("10.0.0.3:1"));
            MoxException taken = assertThrows(MoxException.class, given::apply);
            assertTrue(taken.getMessage(), taken.getMessage().contains("its thread has given the engine something else"));
            assertTrue(whole.apply() > 0);
            assertEquals("1/2", TestData.served(mox));
            assertThrows(MoxException.class, whole::apply);
            assertThrows(MoxException.class, () -> whole.publisher("d", 1, 1, null, null));

            // Two reads of a service at once: the second takes the place of the first, whose rest finds no beginning.
            EngineRead first = (EngineRead) mox.host().read(SOURCE, TestData.service(1), 3, laterNanos);
            for (int i = 0; i < 2; i++) {
                first.add(large(i, 600_000));
            }
            Thread other = new Thread(() -> mox.replace(SOURCE, TestData.service(1), 4, later, java.util.Arrays.asList(large(7, 600_000), large(8, 600_000))));
            other.start();
            join(other);
            MoxException lost = assertThrows(MoxException.class, first::apply);
            assertEquals(Code.INVALID_ARGUMENT, lost.code());
            assertTrue(lost.getMessage(), lost.getMessage().startsWith("the engine refused an event: ") && lost.getMessage().contains("read"));
            assertEquals("1/2", TestData.served(mox));
            assertThrows("it stays so", MoxException.class, first::apply);
        }
    }

    private static void join(Thread thread) {
        try {
            thread.join();
        } catch (InterruptedException e) {
            throw new AssertionError(e);
        }
    }

    @Test
    public void batchSendsInChunksAndOnClose() {
        try (RegistryMox mox = TestData.engine()) {
            try (Batch batch = mox.batch(SOURCE)) {
                for (int i = 0; i < 2_500; i++) {
                    batch.publish(Publish.of(TestData.service(i % 50), "r" + i).version(1, 1).data("10.1." + i / 250 + "." + i % 250 + ":12200").build());
                }
                assertThrows(MoxException.class, () -> batch.publish(null));
            }
            assertEquals("50/2500", TestData.served(mox));
            try (Batch batch = mox.batch(SOURCE)) {
                for (int i = 0; i < 2_500; i += 4) { // more would be withheld as a mass deletion
                    batch.unpublish(TestData.service(i % 50), "r" + i, 1, 1);
                }
                assertTrue(batch.send() > 0);
            }
            assertEquals("1875", mox.flush(TestData.DEADLINE).get("endpoints").toString());
        }
    }

    @Test
    public void listensOnTheAddressItTells() throws Exception {
        try (RegistryMox mox = TestData.engine()) {
            assertEquals(mox.address(), mox.listen());
            try (Socket socket = new Socket(mox.address().getAddress(), mox.address().getPort())) {
                assertTrue(socket.isConnected());
            }
        }
    }

    @Test
    public void takenPortIsBindFailedAndClosesTheEngine() {
        try (RegistryMox mox = TestData.engine()) {
            MoxConfig same = MoxConfig.builder().set("listen", "127.0.0.1:" + mox.address().getPort()).build();
            MoxException e = assertThrows(MoxException.class, () -> RegistryMox.create(same));
            assertEquals(Code.BIND_FAILED, e.code());
            assertTrue(e.getMessage(), e.getMessage().contains(String.valueOf(mox.address().getPort())));
        }
    }

    @Test
    public void badConfigurationNamesKeyAndValue() {
        refusedConfig("lisen", MoxConfig.builder().set("lisen", "127.0.0.1:0"));
        refusedConfig("threads", MoxConfig.builder().set("threads", "many"));
        refusedConfig("scope", MoxConfig.builder().set("scope", "galaxy"));
    }

    /** Whatever is wrong with Kubernetes, events are taken and streams are served. */
    @Test
    public void kubernetesThatCannotBeReachedIsInTheStatusAndHoldsUpNothing() throws Exception {
        MoxConfig.Builder config = MoxConfig.builder().set("listen", "127.0.0.1:0");
        config.set("kubernetes.enabled", "true").set("kubernetes.kubeconfig", "/no/such/file").set("kubernetes.lease", "5s");
        try (RegistryMox mox = RegistryMox.create(config.build())) {
            mox.publish(SOURCE, FIRST);
            mox.loaded();
            assertEquals("1/1", TestData.served(mox));
            Object failure;
            long until = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
            do {
                failure = ((Map<?, ?>) mox.status().get("kubernetes")).get("failure");
            } while (failure == null && System.nanoTime() < until);
            assertTrue(String.valueOf(failure), String.valueOf(failure).startsWith("mox.kubernetes.kubeconfig /no/such/file: "));
        }
        refusedConfig("mox.kubernetes.owner", config.set("kubernetes.owner", "a.b"));
    }

    private static void refusedConfig(String key, MoxConfig.Builder config) {
        MoxException e = assertThrows(MoxException.class, () -> RegistryMox.create(config.build()));
        assertEquals(Code.INVALID_CONFIG, e.code());
        assertTrue(e.getMessage(), e.getMessage().contains(key));
    }

    @Test
    public void embeddedEngineIsTheRunningOneUntilClosed() {
        assertFalse(RegistryMox.running().isPresent());
        MoxConfig config = MoxConfig.builder().set("listen", "127.0.0.1:0").build();
        try (RegistryMox mox = RegistryMox.embed(config)) {
            assertSame(mox, RegistryMox.running().get());
            assertTrue("takes events before it listens", mox.publish(SOURCE, FIRST) > 0);
            assertThrows(MoxException.class, mox::address);
            MoxException second = assertThrows(MoxException.class, () -> RegistryMox.embed(config));
            assertEquals(Code.INVALID_ARGUMENT, second.code());
            assertSame(mox, RegistryMox.running().get());
        }
        assertFalse(RegistryMox.running().isPresent());
    }

    @Test
    public void statusPolicyLatchesAndPages() {
        try (RegistryMox mox = TestData.engine()) {
            assertFalse(mox.status().isEmpty());
            String hash = mox.policy("{\"exclude\":[\"com.example.Secret*\"]}");
            assertFalse(hash.isEmpty());
            assertEquals(hash, mox.policy("{ \"exclude\" : [\"com.example.Secret*\"] }"));
            assertThrows(MoxException.class, () -> mox.policy("[]"));
            assertThrows(MoxException.class, () -> mox.policy("\"{}\""));
            MoxException noJson = assertThrows(MoxException.class, () -> mox.policy("{"));
            assertEquals(Code.INVALID_ARGUMENT, noJson.code());
            assertTrue(noJson.getMessage(), noJson.getMessage().startsWith("policy: this is no JSON: "));
            assertEquals(hash, mox.status().get("policy"));
            assertEquals("the same as a text", mox.status().keySet(), ((Map<?, ?>) Json.read(mox.statusText())).keySet());
            assertThrows(MoxException.class, () -> mox.policy("{\"exclud\":[]}"));
            mox.freeze();
            mox.publish(SOURCE, FIRST);
            assertEquals("frozen", mox.flush(TestData.DEADLINE).get("held"));
            mox.thaw();
            assertEquals("1/1", TestData.served(mox));
            Object before = mox.page("/mox/dump", "").get("body");
            String other = mox.policy("{\"exclude\":[\"*\"]}");
            assertEquals("0/0", TestData.served(mox));
            assertEquals(other, mox.status().get("policy"));
            MoxException refused = assertThrows(MoxException.class, () -> mox.policy("{\"exclude\":1,\"exportTo\":[\"*\",\"a\"],\"x\":0}"));
            assertEquals("every mistake: " + refused.getMessage(), 3, refused.getMessage().split("\n").length);
            assertEquals("0/0", TestData.served(mox));
            assertEquals(hash, mox.policy("{\"exclude\":[\"com.example.Secret*\"]}"));
            assertEquals("1/1", TestData.served(mox));
            assertEquals("no trace of it is left", before, mox.page("/mox/dump", "").get("body"));
            assertEquals("nothing is held", Code.INVALID_ARGUMENT, assertThrows(MoxException.class, mox::release).code());
            Map<String, Object> page = mox.page("/mox/status", "");
            assertEquals(200L, page.get("status"));
            assertTrue(page.toString(), ((String) page.get("contentType")).startsWith("application/json"));
            assertTrue(Json.read((String) page.get("body")) instanceof Map);
            assertEquals(404L, mox.page("/mox/no-such-page", "").get("status"));
        }
    }

    @Test
    public void largePagesComeInChunksOneAtATime() throws Exception {
        try (RegistryMox mox = TestData.engine()) {
            try (Batch batch = mox.batch(SOURCE)) {
                for (int i = 0; i < 20_000; i++) {
                    batch.publish(Publish.of(TestData.service(i), "r").version(1, 1).data("10.1." + i / 250 + "." + i % 250 + ":12200").build());
                }
            }
            assertEquals("20000/20000", TestData.served(mox));
            Chunks chunks = new Chunks();
            try (MoxHost.Page page = mox.host().page("/mox/dump", "")) {
                assertEquals(200, page.status());
                assertEquals("application/json", page.contentType());
                assertEquals("no place for another", 429L, mox.page("/mox/dump", "").get("status"));
                try (MoxHost.Page other = mox.host().page("/mox/dump", "format=yaml")) {
                    assertEquals(429, other.status());
                    assertEquals(1, other.retryAfter());
                }
                page.writeTo(chunks);
                MoxException twice = assertThrows(MoxException.class, () -> page.writeTo(chunks));
                assertTrue(twice.getMessage(), twice.getMessage().startsWith("page '/mox/dump' was written already"));
            }
            assertTrue(chunks.all + " bytes in " + chunks.count, chunks.all > 4 << 20 && chunks.count > 60);
            assertTrue("the largest has " + chunks.largest, chunks.largest < 70_000);
            assertEquals("{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[", chunks.start);
            MoxException large = assertThrows(MoxException.class, () -> mox.page("/mox/dump", ""));
            assertEquals(Code.TOO_LARGE, large.code());
            assertTrue(large.getMessage(), large.getMessage().contains("write it with RegistryMox.host().page"));
            MoxHost.Page abandoned = mox.host().page("/mox/dump", "");
            assertEquals("a page that was refused keeps no place", 200, abandoned.status());
            abandoned.close();
            assertThrows(MoxException.class, () -> abandoned.writeTo(new Chunks()));
            try (MoxHost.Page next = mox.host().page("/mox/dump", "type=DestinationRule")) {
                next.writeTo(new Chunks());
            }
            assertEquals(404L, mox.page("/mox/dump", "type=Gateway").get("status"));
            MoxHost.Page closed = mox.host().page("/mox/dump", "");
            mox.close();
            assertEquals(Code.CLOSED, assertThrows(MoxException.class, () -> closed.writeTo(new Chunks())).code());
            closed.close();
        }
    }

    /** A sink that keeps the first line, the number and the sizes of the chunks, not their bytes. */
    private static final class Chunks extends OutputStream {
        private String start;
        private long all;
        private int count;
        private int largest;

        @Override
        public void write(int b) {
            throw new AssertionError("byte by byte");
        }

        @Override
        public void write(byte[] bytes, int from, int length) {
            start = start == null ? new String(bytes, from, length, StandardCharsets.UTF_8).split("\n")[0] : start;
            all += length;
            count++;
            largest = Math.max(largest, length);
        }
    }

    @Test
    public void misuseIsRefusedWithTheFieldsName() {
        try (RegistryMox mox = TestData.engine()) {
            misuse("publish is null", () -> mox.publish(SOURCE, null));
            misuse("source is null", () -> mox.publish(null, FIRST));
            misuse("source is empty", () -> mox.publish("", FIRST));
            misuse("dataInfoId is null", () -> Publish.of(null, "r"));
            misuse("registerId is null", () -> mox.unpublish(SOURCE, "d", null, 0, 0));
            misuse("publishers is null", () -> mox.replace(SOURCE, "d", 0, 0, null));
            misuse("publisher is null", () -> mox.replace(SOURCE, "d", 0, 0, Collections.singletonList(null)));
            misuse("publisher 'r1' is of 'com.example.Service1", () -> mox.replace(SOURCE, "d", 0, 0, Collections.singletonList(FIRST)));
            misuse("data of 'd': text and serialized", () -> Publish.of("d", "r").data("x").serialized(new byte[1]));
            misuse("dataInfoId is null", () -> mox.host().read(SOURCE, null, 0, 0));
            misuse("registerId is empty", () -> mox.host().read(SOURCE, "d", 0, 0).publisher("", 1, 1, null, null));
            misuse("the publisher is one of a read", () -> mox.host().publish(mox.host().read(SOURCE, "d", 0, 0).publisher("r", 1, 1, null, null)));
            misuse("publication is null", () -> mox.host().publish(null));
            misuse("publication is of another's making", () -> mox.host().publish(foreign()));
            misuse("timeout is null", () -> mox.flush(null));
            misuse("config is null", () -> RegistryMox.create(null));
            assertEquals("0/0", TestData.served(mox));
        }
    }

    private static MoxHost.Publication foreign() {
        return new MoxHost.Publication() {
            @Override
            public void attribute(String key, String value) {}

            @Override
            public void data(byte[] bytes) {}
        };
    }

    private static void misuse(String start, Runnable call) {
        MoxException e = assertThrows(MoxException.class, call::run);
        assertEquals(Code.INVALID_ARGUMENT, e.code());
        assertTrue(e.getMessage(), e.getMessage().startsWith(start));
    }

    @Test
    public void afterCloseEventsAreCountedNoOps() {
        RegistryMox mox = TestData.engine();
        mox.close();
        mox.close();
        assertEquals(0, mox.publish(SOURCE, FIRST));
        assertEquals(0, mox.unpublish(SOURCE, "d", "r", 1, 1));
        assertEquals(0, mox.replace(SOURCE, "d", 1, 1, TestData.none()));
        assertEquals(0, mox.replace(SOURCE, TestData.service(1), 1, 1, java.util.Arrays.asList(large(1, 600_000), large(2, 600_000))));
        mox.loaded();
        mox.freeze();
        assertEquals("pieces are one call", 6, mox.ignoredCalls());
        assertEquals(Code.CLOSED, assertThrows(MoxException.class, mox::status).code());
        assertEquals(Code.CLOSED, assertThrows(MoxException.class, () -> mox.flush(TestData.DEADLINE)).code());
    }

    @Test
    public void closeDuringPublishFromManyThreads() throws Exception {
        for (int round = 0; round < 20; round++) {
            RegistryMox mox = TestData.engine();
            int threads = 4;
            CountDownLatch publishing = new CountDownLatch(threads);
            AtomicLong zeros = new AtomicLong();
            ExecutorService pool = Executors.newFixedThreadPool(threads + 2);
            List<Future<?>> ends = new ArrayList<>();
            for (int t = 0; t < threads; t++) {
                int thread = t;
                ends.add(
                        pool.submit(
                                () -> {
                                    long sequence = 1;
                                    for (int i = 0; sequence > 0; i++) {
                                        sequence = mox.publish(SOURCE, Publish.of(TestData.service(i % 10), "t" + thread).version(i, i).data("10.0.0.1:12200").build());
                                        if (i == 10) {
                                            publishing.countDown();
                                        }
                                    }
                                    zeros.incrementAndGet();
                                }));
            }
            assertTrue(publishing.await(TestData.DEADLINE.getSeconds(), TimeUnit.SECONDS));
            ends.add(pool.submit(mox::close));
            ends.add(pool.submit(mox::close));
            for (Future<?> end : ends) {
                end.get(TestData.DEADLINE.getSeconds(), TimeUnit.SECONDS);
            }
            pool.shutdown();
            assertEquals(threads, zeros.get());
            assertEquals(threads, mox.ignoredCalls());
        }
    }

    @Test
    public void logReachesTheSinkUntilTheEnd() {
        Queue<String> records = new ConcurrentLinkedQueue<>();
        MoxConfig config =
                MoxConfig.builder()
                        .set("listen", "127.0.0.1:0")
                        .logSink(
                                (level, target, message) -> {
                                    records.add(level + " " + target + " " + message);
                                    throw new IllegalStateException("a sink that fails still gets the next record");
                                })
                        .build();
        RegistryMox mox = RegistryMox.create(config);
        TestData.await("a first record", () -> !records.isEmpty());
        mox.close();
        TestData.await("the log thread ends", () -> Thread.getAllStackTraces().keySet().stream().noneMatch(t -> t.getName().equals("mox-logs")));
    }

    @Test
    public void linesOfTwoEnginesGoEachToItsOwnSink() {
        List<List<String>> sinks = Arrays.asList(new CopyOnWriteArrayList<>(), new CopyOnWriteArrayList<>());
        List<RegistryMox> engines = new ArrayList<>();
        for (List<String> sink : sinks) {
            MoxConfig config =
                    MoxConfig.builder().set("listen", "127.0.0.1:0").logSink((level, target, message) -> sink.add(message)).build();
            engines.add(RegistryMox.create(config));
        }
        for (int i = 0; i < 50; i++) {
            engines.get(0).host().command("fence", "fenced", i % 2 == 0);
        }
        engines.forEach(RegistryMox::close);
        assertEquals(50, sinks.get(0).stream().filter(line -> line.contains("fenced=")).count());
        assertEquals(0, sinks.get(1).stream().filter(line -> line.contains("fenced=")).count());
    }

    @Test
    public void logGoesOnWhateverItsSinkThrows() {
        Throwable[] thrown = {new OutOfMemoryError("none left"), new StackOverflowError(), new NoClassDefFoundError("x"), new AssertionError()};
        Queue<String> records = new ConcurrentLinkedQueue<>();
        MoxConfig config =
                MoxConfig.builder()
                        .set("listen", "127.0.0.1:0")
                        .logSink(
                                (level, target, message) -> {
                                    records.add(message);
                                    throw (Error) thrown[records.size() % thrown.length];
                                })
                        .build();
        try (RegistryMox mox = RegistryMox.create(config)) {
            TestData.await("a first record", () -> !records.isEmpty());
            for (int round = 0; round < 2 * thrown.length; round++) {
                int before = records.size();
                mox.host().command("fence", "fenced", round % 2 == 0);
                TestData.await("record after " + before, () -> records.size() > before);
            }
        }
        TestData.await("the log thread ends", () -> Thread.getAllStackTraces().keySet().stream().noneMatch(t -> t.getName().equals("mox-logs")));
    }

    @Test
    public void publishAllocatesNothing() {
        Publish value =
                Publish.of(TestData.service(1), "r1")
                        .version(1, 1)
                        .cell("zürich")
                        .appName("demo")
                        .attribute("region", "東京")
                        .data("10.0.0.1:12200?app_name=demo&p=1", "10.0.0.1:12201?app_name=größe")
                        .build();
        try (RegistryMox mox = TestData.engine()) {
            TestData.assertAllocatesNothing(() -> mox.publish(SOURCE, value));
        }
    }

    @Test
    public void aPublicationAllocatesNothing() {
        byte[] box = TestData.box("10.0.0.1:12200?app_name=demo&p=1");
        String service = TestData.service(1);
        try (RegistryMox mox = TestData.engine()) {
            MoxHost host = mox.host();
            TestData.assertAllocatesNothing(
                    () -> {
                        MoxHost.Publication to = host.publication(SOURCE, service, "r1", 1, 1, "zürich", "demo", null);
                        to.attribute("region", "東京");
                        to.data(box);
                        host.publish(to);
                    });
            assertEquals("1/1", TestData.served(mox));
        }
    }

    /** Extensions and embedding programs use these types and no others of this package. */
    @Test
    public void whatIsPublicIsMeantToBe() throws Exception {
        Set<String> open = new TreeSet<>();
        Path classes = Paths.get(RegistryMox.class.getProtectionDomain().getCodeSource().getLocation().toURI());
        try (DirectoryStream<Path> all = Files.newDirectoryStream(classes.resolve("com/alipay/sofa/registry/mox"), "*.class")) {
            for (Path file : all) {
                String name = file.getFileName().toString().replace(".class", "");
                if (!name.equals("package-info") && Modifier.isPublic(Class.forName("com.alipay.sofa.registry.mox." + name).getModifiers())) {
                    open.add(name);
                }
            }
        }
        String wanted = "[Batch, LogSink, MoxConfig, MoxConfig$Builder, MoxException, MoxException$Code, MoxHost, MoxHost$Page, MoxHost$Publication,"
                + " MoxHost$Read, Publish, Publish$Builder, RegistryMox]";
        assertEquals(wanted, open.toString());
    }

    @Test
    public void anotherVersionIsTheSameInAnotherVersion() {
        try (RegistryMox mox = TestData.engine()) {
            Publish other = Publish.of(TestData.service(1), "r2").version(1, 1).data("10.0.0.2:12200").build();
            mox.publish(SOURCE, FIRST);
            mox.publish(SOURCE, other);
            mox.unpublish(SOURCE, TestData.service(1), "r1", 2, 2);
            assertEquals("1/1", TestData.served(mox));
            mox.publish(SOURCE, FIRST);
            assertEquals("older than the removal", "1/1", TestData.served(mox));
            mox.publish(SOURCE, FIRST.version(3, 3));
            assertEquals("1/2", TestData.served(mox));
        }
    }

    @Test
    public void jvmExitsAlthoughCloseWasForgotten() throws Exception {
        ChildJvm child = new ChildJvm().run(ForgetsToClose.class);
        assertEquals(child.toString(), 0, child.exit);
        assertEquals(child.toString(), 1, child.count("served 1/1"));
    }

    /** Ends its main method with an engine open. */
    public static final class ForgetsToClose {
        public static void main(String[] args) {
            RegistryMox mox = TestData.engine();
            mox.publish(SOURCE, FIRST);
            System.out.println("served " + TestData.served(mox));
        }
    }
}
