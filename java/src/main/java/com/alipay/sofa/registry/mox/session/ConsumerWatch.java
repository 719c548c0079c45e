package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Tells the engine who subscribes to what, where its policy asks for that: of this session server every 2 s if it is other than before,
 * and, where this is the one that computes, of all others every 15 s. What follows from it is the engine's.
 *
 * <p>Another server's console tells addresses only. Applications come from its {@code /mox/consumers}, if it has MoX, in the same round;
 * they are never remembered, since an address may be another application's tomorrow. A server that does not answer both is as one that
 * answers neither.
 */
final class ConsumerWatch implements AutoCloseable {
    static final long OWN_MILLIS = 2_000;
    static final long ROUND_MILLIS = 15_000;
    /** After so long the whole is read and told anew, whatever the sums say. */
    private static final long WHOLE_NANOS = TimeUnit.MINUTES.toNanos(5);

    /** In the place of an address: not all clients are named. */
    private static final String MORE = "*";

    private static final Logger LOG = LoggerFactory.getLogger("MOX");

    private final RegistryMox mox;
    private final ConsumerSource source;
    private final Sessions sessions;
    /** Null where there are none. */
    private final DocumentFollower documents;

    private final String address;
    private final String name;
    private final ScheduledThreadPoolExecutor own = executor("mox-consumers");
    private final ScheduledThreadPoolExecutor rounds = executor("mox-consumer-rounds");

    private final AtomicBoolean off = new AtomicBoolean();

    private final OwnSubscribers subscribers = new OwnSubscribers();
    /** When the sums of these were forgotten last, by the clock of {@link System#nanoTime}. */
    private long forgotSumsAt = System.nanoTime();
    /** What the engine was told of {@link #subscribers}, all of it; null: nothing that it may still have. */
    private Told toldOwn;

    /** What it was told of each other session server. */
    private final Map<String, Told> toldOthers = new HashMap<>();

    /** Groups to ask for; null where this server does not compute. */
    private volatile List<String> groups;

    /** @param address of this session server, as meta lists it */
    ConsumerWatch(
            RegistryMox mox,
            ConsumerSource source,
            Sessions sessions,
            DocumentFollower documents,
            String address) {
        this.mox = mox;
        this.source = source;
        this.sessions = sessions;
        this.documents = documents;
        this.address = address;
        this.name = address + "/" + System.currentTimeMillis();
    }

    private static ScheduledThreadPoolExecutor executor(String name) {
        return new ScheduledThreadPoolExecutor(
                1,
                work -> {
                    Thread thread = new Thread(work, name);
                    thread.setDaemon(true);
                    return thread;
                });
    }

    void start() {
        own.scheduleWithFixedDelay(() -> carefully(this::own), OWN_MILLIS, OWN_MILLIS, TimeUnit.MILLISECONDS);
        rounds.scheduleWithFixedDelay(() -> carefully(this::round), OWN_MILLIS, ROUND_MILLIS, TimeUnit.MILLISECONDS);
    }

    /** Subscriptions that the engine was told of, by their sum. */
    private static final class Told {
        final long sum;
        /** By the clock of {@link System#nanoTime}. */
        final long at = System.nanoTime();

        Told(long sum) {
            this.sum = sum;
        }

        static boolean is(Told told, long sum) {
            return told != null && told.sum == sum && System.nanoTime() - told.at < WHOLE_NANOS;
        }
    }

    private interface Work {
        void run() throws Exception;
    }

    private void carefully(Work work) {
        try {
            work.run();
        } catch (LinkageError e) {
            // Of all that there is only this takes what is missing, and another session server can do its work.
            if (off.compareAndSet(false, true)) {
                LOG.error("event=consumers_off who subscribes cannot be seen in this registry version: {}", e.toString());
                close();
            }
        } catch (MoxException e) {
            // The engine is closed, which ends this as well; or it takes no more, and the round is not complete.
        } catch (Throwable t) {
            // A full heap or the like; the next time tells whether it is over.
        }
    }

    /** Clients of another session server, and which of them subscribe to each service. */
    private static final class Subscriptions {
        final Map<String, Integer> clients = new LinkedHashMap<>();
        final Map<String, StringBuilder> services = new LinkedHashMap<>();

        void add(String dataInfoId, String address, String cell, String application) {
            String line = OwnSubscribers.line(address, cell, application);
            Integer place = clients.computeIfAbsent(line, any -> clients.size());
            StringBuilder places = services.computeIfAbsent(dataInfoId, any -> new StringBuilder());
            places.append(places.length() == 0 ? "" : " ").append(place.intValue());
        }
    }

    /** Looks at the own subscribers. */
    void own() throws TimeoutException {
        Map<String, Object> wanted = mox.host().command("visibility", "server", name);
        if (!Boolean.TRUE.equals(wanted.get("asks"))) {
            groups = null;
            toldOwn = null;
            return;
        }
        boolean computes = Boolean.TRUE.equals(wanted.get("collect"));
        if (System.nanoTime() - forgotSumsAt >= WHOLE_NANOS) {
            forgotSumsAt = System.nanoTime();
            subscribers.forgetSums();
        }
        boolean isOther = subscribers.look(source);
        // Whoever begins to compute is told the services as well.
        long kind = computes ? 1 : 0;
        if (!Told.is(toldOwn, kind) || (isOther ? !takesPart(computes) : !isKnown(address, true))) {
            toldOwn = null;
            tell(address, true, subscribers.clients(), computes ? subscribers.services() : Collections.emptyMap());
            toldOwn = new Told(kind);
        }
        subscribers.told();
        groups = computes ? strings(wanted.get("groups")) : null;
    }

    /** Tells the engine what is other of this session server, if it still has the rest. */
    private boolean takesPart(boolean computes) throws TimeoutException {
        if (!computes) {
            return false; // it has the clients alone
        }
        Map<String, ?> services = subscribers.changedServices();
        Map<String, Object> answer = mox.host()
                .command("consumersPart", "server", address, "clients", subscribers.changedClients(), "services", services);
        due(answer);
        return Boolean.TRUE.equals(answer.get("known"));
    }

    /** Whether the engine still has what it was told of a session server, of which nothing is other since. */
    private boolean isKnown(String server, boolean isOwn) throws TimeoutException {
        Map<String, Object> answer = mox.host().command("consumers", "server", server, "own", isOwn, "same", true);
        return Boolean.TRUE.equals(answer.get("known"));
    }

    /** A number all over the range for each number, so that a sum of some tells them. */
    static long mixed(long number) {
        long hash = (number ^ (number >>> 32)) * 0x9E3779B97F4A7C15L;
        return (hash ^ (hash >>> 29)) * 0xBF58476D1CE4E5B9L;
    }

    /** The same whatever the order. */
    private static long sum(Map<String, List<String>> answer) {
        long sum = 0;
        for (Map.Entry<String, List<String>> service : answer.entrySet()) {
            long id = (long) service.getKey().hashCode() << 32;
            for (String address : service.getValue()) {
                sum += mixed(id ^ (address.hashCode() & 0xFFFFFFFFL));
            }
        }
        return sum;
    }

    /** Asks every other session server, if this is the one that computes. */
    void round() throws Exception {
        List<String> groups = this.groups;
        if (groups == null) {
            return;
        }
        List<String> others = source.servers();
        others.removeIf(server -> server == null || server.equals(address));
        Map<String, Exchange.Answer> known = sessions.consumers();
        for (String server : others) {
            try {
                Exchange.Answer named = known.get(server);
                List<Map<String, List<String>>> answers = new ArrayList<>();
                long sum = named == null ? 0 : mixed(((long) named.status << 32) ^ (named.body.hashCode() & 0xFFFFFFFFL));
                for (String group : groups) {
                    Map<String, List<String>> answer = source.ask(server, group);
                    answers.add(answer);
                    sum += sum(answer);
                }
                // Only of answers that could be read a sum is kept.
                if (Told.is(toldOthers.get(server), sum) && isKnown(server, false)) {
                    continue;
                }
                Map<String, Set<String>> clients = clients(named);
                Subscriptions all = new Subscriptions();
                answers.forEach(answer -> answer.forEach((id, addresses) -> add(all, id, addresses, clients)));
                tell(server, false, all.clients.keySet(), all.services);
                toldOthers.put(server, new Told(sum));
            } catch (LinkageError | MoxException e) {
                throw e;
            } catch (Exception e) {
                // It has not answered, so the round is not complete.
            }
        }
        Set<String> listed = new LinkedHashSet<>(source.servers());
        listed.remove(null);
        if (listed.isEmpty()) {
            return; // meta has not answered yet
        }
        listed.add(address);
        toldOthers.keySet().retainAll(listed);
        due(mox.host().command("consumersRound", "listed", new ArrayList<>(listed)));
    }

    /**
     * Adds the clients of a service.
     *
     * @param clients null where the server has no MoX, so that addresses are all that is known
     */
    private static void add(Subscriptions all, String id, List<String> addresses, Map<String, Set<String>> clients) {
        for (String address : new LinkedHashSet<>(addresses)) {
            if (clients == null) {
                all.add(id, address, null, null);
                continue;
            }
            if (clients.containsKey(MORE)) {
                all.add(id, address, null, null);
            }
            // A client that came just now is in its server's next answer.
            for (String named : clients.getOrDefault(address, Collections.emptySet())) {
                int end = named.indexOf('|');
                String cell = named.substring(0, end);
                String application = named.substring(end + 1);
                all.add(id, address, cell.isEmpty() ? null : cell, application.isEmpty() ? null : application);
            }
        }
    }

    /** By address the cells and applications of a server's clients; null where it has no MoX. */
    private static Map<String, Set<String>> clients(Exchange.Answer answer) {
        if (answer != null && answer.status == 404) {
            return null;
        }
        if (answer == null || answer.status != 200) {
            throw new IllegalStateException(answer == null ? "not asked" : answer.body);
        }
        Map<String, Set<String>> clients = new HashMap<>();
        for (String line : answer.body.split("\n")) {
            String[] parts = line.split("\\|", 3);
            if (parts.length == 3) {
                clients.computeIfAbsent(parts[0], any -> new LinkedHashSet<>()).add(parts[1] + "|" + parts[2]);
            }
        }
        return clients;
    }

    private void tell(String server, boolean isOwn, Collection<String> clients, Map<String, ?> services) throws TimeoutException {
        due(mox.host().command("consumers", "server", server, "own", isOwn, "clients", clients, "services", services));
    }

    /** Has documents be written now and not with the next poll. */
    private void due(Map<String, Object> answer) throws TimeoutException {
        if (documents != null && Boolean.TRUE.equals(answer.get("due"))) {
            documents.refresh();
        }
    }

    private static List<String> strings(Object list) {
        List<String> strings = new ArrayList<>();
        for (Object item : (List<?>) list) {
            strings.add((String) item);
        }
        return strings;
    }

    /** Whether it has ended, since this registry version has not what it takes. */
    boolean isOff() {
        return off.get() && own.isShutdown() && rounds.isShutdown();
    }

    @Override
    public void close() {
        own.shutdownNow();
        rounds.shutdownNow();
        source.close();
    }
}
