package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;
import static org.junit.Assume.assumeTrue;

import com.alipay.sofa.registry.common.model.store.BaseInfo.ClientVersion;
import com.alipay.sofa.registry.common.model.store.Subscriber;
import com.alipay.sofa.registry.common.model.store.URL;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.alipay.sofa.registry.server.session.store.SessionInterests;
import java.lang.management.ManagementFactory;
import java.lang.reflect.Method;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.BiConsumer;
import java.util.function.Consumer;
import org.junit.Test;

/**
 * What it costs to follow consumers: 10,000 services of 50 consumers each, at this session server, or at four others. Only with {@code
 * gradle cleanTest test -PmoxMeasure --tests '*ConsumerCostTest'} (and {@code -PmoxMeasure=here} for one of them beside "off"), which
 * {@code make bench} runs, since each figure is of a whole minute.
 */
public class ConsumerCostTest {
    private static final String ME = "127.0.0.9";
    private static final int SERVICES = 10_000;
    private static final int CLIENTS = 2_500;
    private static final int EACH = 200;
    private static final int OTHERS = 4;
    /** Of CPU a minute where nothing changes: one hundredth of a core. */
    private static final double MOST_SECONDS = 0.6;

    private static final String RESTARTS = "here, a client restarts every 10 s";

    /** Its type is of a part of the registry that is there when it runs. */
    private static final Consumer<Subscriber> SCOPE = scope();

    private static Consumer<Subscriber> scope() {
        Method method = Arrays.stream(Subscriber.class.getMethods())
                .filter(one -> one.getName().equals("setScope"))
                .findFirst()
                .get();
        Object scope = method.getParameterTypes()[0].getEnumConstants()[0];
        return subscriber -> {
            try {
                method.invoke(subscriber, scope);
            } catch (ReflectiveOperationException e) {
                throw new IllegalStateException(e);
            }
        };
    }

    private static String address(int client) {
        return "10.1." + (client >> 8) + "." + (client & 255);
    }

    private static Subscriber subscriber(int client, int service, long version) {
        Subscriber subscriber = new Subscriber();
        subscriber.setDataInfoId(TestData.service(service));
        subscriber.setRegisterId(client + "-" + service);
        SCOPE.accept(subscriber);
        subscriber.setClientVersion(ClientVersion.StoreData);
        subscriber.setAppName("app" + client % 50);
        subscriber.setCell("RZ1");
        subscriber.setVersion(version);
        subscriber.setSourceAddress(new URL(address(client), 40_000));
        subscriber.setTargetAddress(new URL(ME, 9600));
        return subscriber;
    }

    /** The real subscribers of a session server, and what others would answer. */
    private static final class Cluster implements ConsumerSource {
        final SessionInterests interests = new SessionInterests();
        final RealConsumerSource own = new RealConsumerSource(interests, null, 0);
        final List<Map<String, List<String>>> others = new ArrayList<>();

        @Override
        public void own(BiConsumer<String, Collection<?>> services) {
            own.own(services);
        }

        @Override
        public void own(String dataInfoId, Sink sink) {
            own.own(dataInfoId, sink);
        }

        @Override
        public List<String> servers() {
            List<String> all = new ArrayList<>();
            all.add(ME);
            for (int n = 0; n < others.size(); n++) {
                all.add("127.0.0." + (n + 1));
            }
            return all;
        }

        /** Texts that are new, as if they came from the network; to decode them costs more than that. */
        @Override
        public Map<String, List<String>> ask(String server, String group) {
            Map<String, List<String>> answer = new HashMap<>();
            others.get(server.charAt(server.length() - 1) - '1').forEach((id, addresses) -> {
                List<String> fresh = new ArrayList<>(addresses.size());
                addresses.forEach(address -> fresh.add(new String(address.toCharArray())));
                answer.put(new String(id.toCharArray()), fresh);
            });
            return answer;
        }

        @Override
        public void close() {}
    }

    private static double cpuSeconds() {
        return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime() / 1e9;
    }

    private static double minute() throws InterruptedException {
        double before = cpuSeconds();
        Thread.sleep(60_000);
        return cpuSeconds() - before;
    }

    @Test
    public void measureWhatItCostsToFollowConsumers() throws Exception {
        String wanted = System.getProperty("test.mox.measure");
        assumeTrue("a measurement", wanted != null);
        Map<String, Double> figures = new TreeMap<>();
        for (String name : new String[] {"off", "here", "elsewhere"}) {
            // What it costs is told by what is there without.
            if (wanted.isEmpty() || wanted.equals(name) || name.equals("off")) {
                measure(name, figures);
            }
        }
        double off = figures.remove("off");
        System.out.printf("off: %.2f s of CPU in a minute%n", off);
        figures.forEach((name, seconds) -> System.out.printf("%s: %.2f s more%n", name, seconds - off));
        figures.remove(RESTARTS); // that is told only: changes cost what they are
        figures.forEach((name, seconds) -> assertTrue(name + ": " + (seconds - off), seconds - off <= MOST_SECONDS));
    }

    private static void measure(String name, Map<String, Double> figures) throws Exception {
        boolean asks = !name.equals("off");
        boolean isElsewhere = name.equals("elsewhere");
        List<AutoCloseable> opened = new ArrayList<>();
        Map<String, Object> namespaces = new HashMap<>();
        for (int n = 0; n < 50; n++) {
            namespaces.put("app" + n, "ns" + n);
        }
        MoxConfig.Builder config = MoxConfig.builder().set("listen", "127.0.0.1:0").set("admin.token", "open sesame 1234");
        config.set("policy.visibility.mode", asks ? "on" : "off").set("policy.visibility.namespaces", namespaces);
        config.set("policy.visibility.cidrs", Collections.singletonMap("10.0.0.0/8", "all"));
        RegistryMox mox = RegistryMox.create(config.build());
        opened.add(mox);
        for (int n = 0; n < SERVICES; n++) {
            mox.publish("registry", Publish.of(TestData.service(n), "r").version(1, 1).data("10.0.0.1:12200").build());
        }
        mox.loaded();
        Cluster cluster = new Cluster();
        for (int n = 0; isElsewhere && n < OTHERS; n++) {
            cluster.others.add(new HashMap<>());
        }
        for (int client = 0; client < CLIENTS; client++) {
            for (int n = 0; n < EACH; n++) {
                int service = (client * 37 + n * (SERVICES / EACH)) % SERVICES;
                if (isElsewhere) {
                    Map<String, List<String>> at = cluster.others.get(client % OTHERS);
                    at.computeIfAbsent(TestData.service(service), any -> new ArrayList<>()).add(address(client));
                } else {
                    cluster.interests.add(subscriber(client, service, 1));
                }
            }
        }
        ConsumerWatchTest.Others others = ConsumerWatchTest.withoutMox(isElsewhere ? OTHERS : 0, opened);
        Sessions sessions = new Sessions(() -> others.names, others.port);
        DocumentFollower documents = DocumentFollowerTest.started(mox, DocumentFollower.POLL_MILLIS, opened);
        ConsumerWatch watch = new ConsumerWatch(mox, cluster, sessions, documents, ME);
        opened.add(watch);
        watch.start();
        if (asks) {
            Thread.sleep(120_000);
            assertEquals(Boolean.TRUE, ConsumerWatchTest.visibility(mox).get("known"));
            assertEquals((long) SERVICES, ConsumerWatchTest.visibility(mox).get("services"));
        } else {
            Thread.sleep(30_000);
        }
        Map<?, ?> before = (Map<?, ?>) ConsumerWatchTest.visibility(mox).get("counts");
        double seconds = minute();
        Map<?, ?> after = (Map<?, ?>) ConsumerWatchTest.visibility(mox).get("counts");
        figures.put(name, seconds);
        System.out.printf("%s: counts %s, then %s%n", name, before, after);
        if (asks && !isElsewhere) {
            // A client is restarted every 10 s.
            double start = cpuSeconds();
            for (int n = 0; n < 6; n++) {
                int client = n;
                for (int at = 0; at < EACH; at++) {
                    cluster.interests.add(subscriber(client, (client * 37 + at * (SERVICES / EACH)) % SERVICES, 2 + n));
                }
                Thread.sleep(10_000);
            }
            figures.put(RESTARTS, cpuSeconds() - start);
        }
        Collections.reverse(opened);
        for (AutoCloseable one : opened) {
            one.close();
        }
    }
}
