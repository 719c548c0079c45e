package com.alipay.sofa.registry.mox.session;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;

/**
 * The subscriptions of this session server's clients as they were when it was looked last, and what has changed since the engine was told
 * of them: so that a look costs little for each service, and what follows costs what changed. For one thread.
 *
 * <p>Each look counts the subscriptions of every service, and tells by the objects themselves, in one service of four, whether any is
 * another one: half a million objects come from memory and not from the processor's caches. So who comes or goes is seen at once, and
 * who comes in the place of another at the fourth look.
 */
final class OwnSubscribers {
    /** Looks that it takes to see every object. */
    static final int LOOKS = 4;

    private static final class Service {
        /** How many subscriptions there were before they were read, and the sum of what tells their objects. */
        int count;

        long sum;
        /** The look that saw it last. */
        long seen;
        /** Numbers of its clients. */
        int[] clients = {};
    }

    private static final class Client {
        final int number;
        /** How many services it subscribes to. */
        int uses;

        Client(int number) {
            this.number = number;
        }
    }

    private final Map<String, Service> services = new HashMap<>();
    private final Map<String, Client> clients = new HashMap<>();
    /** By their numbers; empty where there is none. */
    private final List<String> lines = new ArrayList<>();

    private final ArrayDeque<Integer> free = new ArrayDeque<>();
    private final Set<Integer> changedClients = new TreeSet<>();
    private final Set<String> changedServices = new LinkedHashSet<>();
    private long looks;

    /** Looks what is other than before; answers whether anything is that was not {@link #told}. */
    boolean look(ConsumerSource source) {
        looks++;
        int[] seen = {0};
        Map<String, long[]> others = new LinkedHashMap<>();
        source.own(
                (id, subscriptions) -> {
                    int count = subscriptions.size();
                    if (count == 0) {
                        return;
                    }
                    Service service = services.get(id);
                    if (service != null && service.seen != looks) {
                        service.seen = looks;
                        seen[0]++;
                    }
                    boolean isOther = service == null || service.count != count;
                    if (isOther || (id.hashCode() - looks) % LOOKS == 0) {
                        long sum = sum(subscriptions);
                        if (isOther || service.sum != sum) {
                            others.put(id, new long[] {count, sum});
                        }
                    }
                });
        if (seen[0] != services.size()) {
            List<String> gone = new ArrayList<>();
            services.forEach(
                    (id, service) -> {
                        if (service.seen != looks) {
                            gone.add(id);
                        }
                    });
            for (String id : gone) {
                replace(id, services.remove(id), new LinkedHashSet<>());
            }
        }
        for (Map.Entry<String, long[]> other : others.entrySet()) {
            Set<String> subscribers = new LinkedHashSet<>();
            source.own(other.getKey(), (address, cell, application) -> subscribers.add(line(address, cell, application)));
            Service service = services.computeIfAbsent(other.getKey(), any -> new Service());
            service.seen = looks;
            service.count = (int) other.getValue()[0];
            service.sum = other.getValue()[1];
            replace(other.getKey(), service, subscribers);
        }
        return !changedServices.isEmpty() || !changedClients.isEmpty();
    }

    /** Has the next look read all services: of two objects both may have the same number. */
    void forgetSums() {
        services.values().forEach(service -> service.count = -1);
    }

    private static long sum(Collection<?> subscriptions) {
        long sum = 0;
        for (Object subscription : subscriptions) {
            sum += ConsumerWatch.mixed(System.identityHashCode(subscription));
        }
        return sum;
    }

    private void replace(String id, Service service, Set<String> subscribers) {
        int[] numbers = new int[subscribers.size()];
        int at = 0;
        for (String line : subscribers) {
            Client client = clients.computeIfAbsent(line, this::add);
            client.uses++;
            numbers[at++] = client.number;
        }
        int[] before = service.clients;
        service.clients = numbers;
        for (int number : before) {
            Client client = clients.get(lines.get(number));
            if (--client.uses == 0) {
                clients.remove(lines.get(number));
                lines.set(number, "");
                free.add(number);
                changedClients.add(number);
            }
        }
        if (!Arrays.equals(before, numbers)) {
            changedServices.add(id);
        }
    }

    private Client add(String line) {
        Integer number = free.poll();
        if (number == null) {
            number = lines.size();
            lines.add(line);
        } else {
            lines.set(number, line);
        }
        changedClients.add(number);
        return new Client(number);
    }

    static String line(String address, String cell, String application) {
        String line = address + "|" + (cell == null ? "" : cell.replace('|', ' ')) + "|" + (application == null ? "" : application);
        return line.indexOf('\n') < 0 && line.indexOf('\r') < 0 ? line : line.replace('\n', ' ').replace('\r', ' ');
    }

    /** All clients, each at the place that is its number. */
    List<String> clients() {
        return lines;
    }

    /** The numbers of the clients of every service. */
    Map<String, String> services() {
        Map<String, String> all = new LinkedHashMap<>();
        services.forEach((id, service) -> all.put(id, numbers(service)));
        return all;
    }

    /** What has become of the clients that are others: their numbers, and after a space who they are, if anybody. */
    List<String> changedClients() {
        List<String> all = new ArrayList<>();
        changedClients.forEach(number -> all.add(number + " " + lines.get(number)));
        return all;
    }

    /** The numbers of the clients of the services that have others; none where nobody subscribes any more. */
    Map<String, String> changedServices() {
        Map<String, String> all = new LinkedHashMap<>();
        changedServices.forEach(id -> all.put(id, services.containsKey(id) ? numbers(services.get(id)) : ""));
        return all;
    }

    private static String numbers(Service service) {
        StringBuilder all = new StringBuilder();
        for (int number : service.clients) {
            all.append(all.length() == 0 ? "" : " ").append(number);
        }
        return all.toString();
    }

    /** The engine knows all by now. */
    void told() {
        changedClients.clear();
        changedServices.clear();
    }
}
