package com.alipay.sofa.registry.mox.session;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * The publishers that are not taken, or not whole, of each service as its last read found them. Thread-safe. As large as the
 * number of services that have such, whatever these hold.
 */
final class Refusals {
    private static final Refusal[] ALL = Refusal.values();
    /** How many are named. */
    private static final int NAMED = 20;
    private static final int NAME_CHARS = 64;
    private static final int ID_CHARS = 256;

    /** The publishers of one read that were refused, by reason. */
    static final class Found {
        private final int[] counts = new int[ALL.length];
        /** The registerId of the first publisher refused for each reason, shortened; null where there is none. */
        private final String[] registerIds = new String[ALL.length];

        private boolean any;
        private String dataInfoId;
        private long number;

        /** Takes note of a publisher; null is none. */
        void add(Refusal why, String registerId) {
            if (why == null) {
                return;
            }
            any = true;
            if (counts[why.ordinal()]++ == 0) {
                registerIds[why.ordinal()] = registerId == null ? "" : RefusedException.shown(registerId, NAME_CHARS);
            }
        }
    }

    private final Map<String, Found> services = new HashMap<>();
    /** The values of {@link #services} by their numbers, which is the order in which they were found. */
    private final TreeMap<Long, Found> byNumber = new TreeMap<>();

    private final long[] counts = new long[ALL.length];
    private long number;

    synchronized void replace(String id, Found found) {
        Found before = services.remove(id);
        if (before != null) {
            byNumber.remove(before.number);
            count(before, -1);
        }
        if (found.any) {
            found.dataInfoId = id;
            found.number = ++number;
            services.put(id, found);
            byNumber.put(number, found);
            count(found, 1);
        }
    }

    private void count(Found found, int sign) {
        for (int i = 0; i < counts.length; i++) {
            counts[i] += sign * found.counts[i];
        }
    }

    /** How many there are, by reason. */
    synchronized Map<String, Long> counts() {
        Map<String, Long> byKey = new LinkedHashMap<>();
        for (Refusal why : ALL) {
            if (counts[why.ordinal()] > 0) {
                byKey.put(why.key, counts[why.ordinal()]);
            }
        }
        return byKey;
    }

    /** Some of them, the newest first. */
    synchronized List<Map<String, Object>> named() {
        List<Map<String, Object>> named = new ArrayList<>();
        for (Found found : byNumber.descendingMap().values()) {
            for (Refusal why : ALL) {
                if (named.size() == NAMED) {
                    return named;
                }
                if (found.counts[why.ordinal()] > 0) {
                    Map<String, Object> one = new LinkedHashMap<>();
                    one.put("dataInfoId", RefusedException.shown(found.dataInfoId, ID_CHARS));
                    one.put("reason", why.key);
                    one.put("registerId", found.registerIds[why.ordinal()]);
                    one.put("count", found.counts[why.ordinal()]);
                    named.add(one);
                }
            }
        }
        return named;
    }
}
