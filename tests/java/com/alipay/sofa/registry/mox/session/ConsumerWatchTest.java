package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.MoxHost;
import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.sun.net.httpserver.HttpServer;
import java.io.ByteArrayOutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.BiConsumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.After;
import org.junit.Test;

/** Subscribers of this session server and of another; what follows from them is the engine's, and tested there. */
public class ConsumerWatchTest {
    private static final String ME = "127.0.0.9";
    private static final String OTHER = "127.0.0.1";

    private final List<AutoCloseable> opened = new ArrayList<>();

    /** Session servers and who subscribes there. */
    private static class Servers implements ConsumerSource {
        final List<String> asked = Collections.synchronizedList(new ArrayList<>());
        volatile boolean isDown;
        volatile boolean closed;

        @Override
        public void own(BiConsumer<String, Collection<?>> services) {
            services.accept(TestData.service(1), Arrays.asList(ME, OTHER));
            services.accept(TestData.service(2), Collections.singletonList(ME));
        }

        @Override
        public void own(String dataInfoId, Sink sink) {
            if (dataInfoId.equals(TestData.service(1))) {
                sink.subscription("10.1.0.1", "RZ1", "shop|web\n");
            }
            sink.subscription("10.1.0.2", null, null);
        }

        @Override
        public List<String> servers() {
            return new ArrayList<>(Arrays.asList(ME, OTHER));
        }

        @Override
        public Map<String, List<String>> ask(String server, String group) {
            asked.add(server + " " + group);
            if (isDown) {
                throw new IllegalStateException("down");
            }
            return Collections.singletonMap(TestData.service(1), Arrays.asList("10.2.0.1", "10.2.0.1", "10.2.0.9"));
        }

        @Override
        public void close() {
            closed = true;
        }
    }

    @After
    public void close() throws Exception {
        Collections.reverse(opened);
        for (AutoCloseable one : opened) {
            one.close();
        }
    }

    static Map<?, ?> visibility(RegistryMox mox) {
        Map<?, ?> visibility = (Map<?, ?>) mox.status().get("visibility");
        return visibility == null ? Collections.emptyMap() : visibility;
    }

    private static long count(RegistryMox mox, String name) {
        Object counts = visibility(mox).get("counts");
        return counts == null ? 0 : (Long) ((Map<?, ?>) counts).get(name);
    }

    @Test
    public void everySessionServerIsAskedForItsSubscribers() throws Exception {
        MoxConfig.Builder config = MoxConfig.builder().set("listen", "127.0.0.1:0").set("admin.token", "open sesame 1234");
        config.set("policy.visibility.mode", "shadow").set("policy.visibility.cidrs", Collections.singletonMap("10.0.0.0/8", "all"));
        RegistryMox mox = registry(config);
        DocumentFollower documents = DocumentFollowerTest.started(mox, 100, opened);
        String[] clients = {"10.2.0.1|RZ2|pay\n"};
        HttpServer web = HttpServer.create(new InetSocketAddress(InetAddress.getByName(OTHER), 0), 0);
        web.createContext(
                "/mox/consumers",
                exchange -> {
                    byte[] body = clients[0] == null ? new byte[0] : clients[0].getBytes(StandardCharsets.UTF_8);
                    exchange.sendResponseHeaders(clients[0] == null ? 404 : 200, body.length == 0 ? -1 : body.length);
                    exchange.getResponseBody().write(body);
                    exchange.close();
                });
        web.start();
        opened.add(() -> web.stop(0));
        Servers servers = new Servers();
        Sessions sessions = new Sessions(() -> Collections.singletonList(OTHER), web.getAddress().getPort());
        ConsumerWatch watch = new ConsumerWatch(mox, servers, sessions, documents, ME);
        opened.add(watch);

        watch.own();
        watch.round();
        assertTrue("nobody is asked before it is this one's turn", servers.asked.isEmpty());
        awaitComputing(mox, watch);
        servers.isDown = true;
        watch.round();
        assertEquals(Arrays.asList(0L, 1L), Arrays.asList(count(mox, "complete"), count(mox, "incomplete")));
        servers.isDown = false;
        own(watch);
        watch.round();
        assertEquals(1, count(mox, "complete"));
        assertEquals(Arrays.asList(OTHER + " SOFA", OTHER + " SOFA"), servers.asked);
        TestData.await("it is known who consumes what", () -> {
            own(watch);
            return Boolean.TRUE.equals(visibility(mox).get("known"));
        });
        assertEquals(2L, visibility(mox).get("services"));
        // A client that its server does not know yet is asked for again; of a server without MoX addresses are all there is.
        assertConsumers(mox, "10.1.0.1 web", "10.1.0.2 null", "10.2.0.1 pay");
        clients[0] += "*||\n";
        watch.round();
        assertConsumers(mox, "10.1.0.1 web", "10.1.0.2 null", "10.2.0.1 null", "10.2.0.1 pay", "10.2.0.9 null");
        clients[0] = null;
        watch.round();
        assertConsumers(mox, "10.1.0.1 web", "10.1.0.2 null", "10.2.0.1 null", "10.2.0.9 null");
    }

    private RegistryMox registry(MoxConfig.Builder config) throws Exception {
        RegistryMox mox = RegistryMox.create(config.build());
        opened.add(mox);
        for (int n = 1; n <= 2; n++) {
            mox.publish("registry", Publish.of(TestData.service(n), "r").version(1, 1).data("10.0.0.1:12200").build());
        }
        mox.loaded();
        return mox;
    }

    private static MoxConfig.Builder shadow() {
        return MoxConfig.builder().set("listen", "127.0.0.1:0").set("policy.visibility.mode", "shadow");
    }

    /** Subscribers that are others while they are looked at. */
    @Test
    public void whatIsRememberedIsWhatWasTold() throws Exception {
        RegistryMox mox = registry(shadow());
        int[] looks = {0};
        Object[] objects = {new Object(), new Object(), new Object()};
        Servers servers = new Servers() {
            @Override
            public void own(BiConsumer<String, Collection<?>> services) {
                services.accept(TestData.service(1), Collections.singletonList(objects[Math.min(looks[0], 2)]));
            }

            @Override
            public void own(String dataInfoId, Sink sink) {
                sink.subscription("10.1.0." + ++looks[0], null, null);
            }
        };
        ConsumerWatch watch = new ConsumerWatch(mox, servers, new Sessions(Collections::emptyList, 1), null, ME);
        opened.add(watch);
        watch.own();
        for (int n : new int[] {1, 2, 3}) {
            assertEquals("what came meanwhile is told of", "10.1.0." + n + "||\n", lines(mox));
            look(watch);
        }
        assertEquals("what is as before is not read anew", 3, looks[0]);
    }

    /** A renewal whose object has the number of the one before. */
    @Test
    public void whatIsMissedBySumsIsFoundOnceTheyAreForgotten() {
        Object object = new Object();
        String[] address = {"10.1.0.1"};
        Servers servers = new Servers() {
            @Override
            public void own(BiConsumer<String, Collection<?>> services) {
                services.accept(TestData.service(1), Collections.singletonList(object));
            }

            @Override
            public void own(String dataInfoId, Sink sink) {
                sink.subscription(address[0], null, null);
            }
        };
        OwnSubscribers subscribers = new OwnSubscribers();
        assertTrue(subscribers.look(servers));
        subscribers.told();
        address[0] = "10.1.0.2";
        for (int n = 0; n < OwnSubscribers.LOOKS; n++) {
            assertTrue("the sum is as before", !subscribers.look(servers));
        }
        subscribers.forgetSums();
        assertTrue(subscribers.look(servers));
        assertTrue(subscribers.clients().contains("10.1.0.2||"));
        subscribers.told();
        assertTrue("what is as before is no change", !subscribers.look(servers));
        subscribers.forgetSums();
        assertTrue("what is as before is no change", !subscribers.look(servers));
    }

    /** Services with any clients, changed at random: what the engine has is what a look at all of them would find. */
    @Test
    public void whatChangedIsToldAlone() throws Exception {
        MoxConfig.Builder config = MoxConfig.builder().set("listen", "127.0.0.1:0").set("admin.token", "open sesame 1234");
        RegistryMox mox = registry(config.set("policy.visibility.mode", "shadow"));
        Map<String, List<String>> subscribed = new TreeMap<>();
        Map<String, List<Object>> objects = new HashMap<>();
        List<String> read = new ArrayList<>();
        Servers servers = new Servers() {
            @Override
            public void own(BiConsumer<String, Collection<?>> services) {
                subscribed.keySet().forEach(id -> services.accept(id, objects.get(id)));
            }

            @Override
            public void own(String dataInfoId, Sink sink) {
                read.add(dataInfoId);
                subscribed.get(dataInfoId).forEach(address -> sink.subscription(address, null, "app"));
            }
        };
        subscribed.put(TestData.service(1), Arrays.asList("10.1.0.1"));
        objects.put(TestData.service(1), Collections.singletonList(new Object()));
        ConsumerWatch watch = computes(mox, servers);
        long before = count(mox, "told");
        Random random = new Random(7);
        for (int step = 1; step < 200; step++) {
            String id = TestData.service(1 + random.nextInt(3));
            List<String> addresses = new ArrayList<>();
            for (int n = 0; n < 6; n++) {
                if (random.nextInt(3) == 0) {
                    addresses.add("10.1.0." + n);
                }
            }
            if (addresses.isEmpty()) {
                subscribed.remove(id);
            } else {
                subscribed.put(id, addresses);
            }
            objects.put(id, addresses.stream().map(any -> new Object()).collect(Collectors.toList()));
            read.clear();
            look(watch);
            assertEquals(addresses.isEmpty() ? Collections.emptyList() : Collections.singletonList(id), read);
            Set<String> lines = new TreeSet<>();
            subscribed.values().forEach(all -> all.forEach(address -> lines.add(address + "||app")));
            Set<String> told = new TreeSet<>(Arrays.asList(lines(mox).split("\n")));
            told.remove("");
            assertEquals(lines, told);
            List<String> wanted = new ArrayList<>();
            subscribed.getOrDefault(TestData.service(1), Collections.emptyList()).forEach(address -> wanted.add(address + " app"));
            assertConsumers(mox, wanted.toArray(new String[0]));
        }
        assertEquals("nothing is told as a whole", before, count(mox, "told"));
    }

    /** The answer of another session server is handed over where it is other than before. */
    @Test
    public void theSameAnswerIsNotReadAgain() throws Exception {
        MoxConfig.Builder config = MoxConfig.builder().set("listen", "127.0.0.1:0").set("admin.token", "open sesame 1234");
        RegistryMox mox = registry(config.set("policy.visibility.mode", "shadow"));
        String[] last = {"10.2.0.9"};
        Servers servers = new Servers() {
            @Override
            public Map<String, List<String>> ask(String server, String group) {
                super.ask(server, group);
                return Collections.singletonMap(TestData.service(1), Arrays.asList("10.2.0.1", last[0]));
            }
        };
        ConsumerWatch watch = computes(mox, servers);
        watch.round();
        long before = count(mox, "told");
        for (int n = 0; n < 3; n++) {
            own(watch);
            watch.round();
        }
        assertEquals("neither own nor others' are", before, count(mox, "told"));
        assertEquals(4, count(mox, "complete"));
        last[0] = "10.2.0.8";
        watch.round();
        assertEquals(before + 1, count(mox, "told"));
        assertConsumers(mox, "10.1.0.1 web", "10.1.0.2 null", "10.2.0.1 null", "10.2.0.8 null");
    }

    /** Other session servers, without MoX. */
    static final class Others {
        final List<String> names = new ArrayList<>();
        int port;
    }

    static Others withoutMox(int count, List<AutoCloseable> opened) throws Exception {
        Others others = new Others();
        for (int n = 1; n <= count; n++) {
            String name = "127.0.0." + n;
            HttpServer web = HttpServer.create(new InetSocketAddress(InetAddress.getByName(name), others.port), 0);
            web.createContext(
                    "/mox/consumers",
                    exchange -> {
                        exchange.sendResponseHeaders(404, -1);
                        exchange.close();
                    });
            web.start();
            opened.add(() -> web.stop(0));
            others.port = web.getAddress().getPort();
            others.names.add(name);
        }
        return others;
    }

    /** A watch of the session server that computes; the other one has no MoX. */
    private ConsumerWatch computes(RegistryMox mox, Servers servers) throws Exception {
        DocumentFollower documents = DocumentFollowerTest.started(mox, 100, opened);
        Others others = withoutMox(1, opened);
        Sessions sessions = new Sessions(() -> others.names, others.port);
        ConsumerWatch watch = new ConsumerWatch(mox, servers, sessions, documents, ME);
        opened.add(watch);
        awaitComputing(mox, watch);
        return watch;
    }

    private static void awaitComputing(RegistryMox mox, ConsumerWatch watch) {
        TestData.await("this one computes", () -> {
            own(watch);
            return Boolean.TRUE.equals(visibility(mox).get("computing"));
        });
        own(watch);
    }

    @Test
    public void aClassThatIsMissingEndsTheWatchAlone() throws Exception {
        RegistryMox mox = registry(shadow());
        int[] looks = {0};
        Servers servers = new Servers() {
            @Override
            public void own(BiConsumer<String, Collection<?>> services) {
                looks[0]++;
                throw new NoClassDefFoundError("Interests");
            }
        };
        ConsumerWatch watch = new ConsumerWatch(mox, servers, new Sessions(Collections::emptyList, 1), null, ME);
        opened.add(watch);
        watch.start();
        TestData.await("it is off", () -> watch.isOff() && servers.closed);
        assertEquals(1, looks[0]);
        assertEquals(Boolean.TRUE, visibility(mox).get("asks"));
    }

    private static String lines(RegistryMox mox) throws Exception {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        try (MoxHost.Page page = mox.host().page("/mox/consumers", "")) {
            page.writeTo(out);
        }
        return new String(out.toByteArray(), StandardCharsets.UTF_8);
    }

    /** So often that whoever came in the place of another is seen. */
    private static void look(ConsumerWatch watch) {
        for (int n = 0; n < OwnSubscribers.LOOKS; n++) {
            own(watch);
        }
    }

    private static void own(ConsumerWatch watch) {
        try {
            watch.own();
        } catch (Exception e) {
            throw new IllegalStateException(e);
        }
    }

    private static void assertConsumers(RegistryMox mox, String... wanted) throws Exception {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        try (MoxHost.Page page =
                mox.host().page("/mox/services/" + TestData.service(1).replace("#", "%23"), "")) {
            page.writeTo(out);
        }
        String text = new String(out.toByteArray(), StandardCharsets.UTF_8);
        List<String> found = new ArrayList<>();
        Matcher clients = Pattern.compile("\\{[^{}]*\"server\"[^{}]*\\}").matcher(text);
        while (clients.find()) {
            String application = field(clients.group(), "application");
            // It is the application's own, but for what ends a line.
            String shown = application == null ? null : application.replaceAll(".*\\|", "").trim();
            found.add(field(clients.group(), "address") + " " + shown);
        }
        Collections.sort(found);
        assertEquals(text, Arrays.asList(wanted), found);
    }

    private static String field(String json, String name) {
        Matcher value = Pattern.compile("\"" + name + "\": *\"([^\"]*)\"").matcher(json);
        return value.find() ? value.group(1) : null;
    }
}
