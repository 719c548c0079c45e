package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.dataserver.DatumDigest;
import com.alipay.sofa.registry.common.model.slot.Slot;
import com.alipay.sofa.registry.common.model.slot.SlotTable;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.LongAdder;

/**
 * The feed's knowledge of the data servers, and its counters. Readers write here and know nothing of the feed that marks
 * services for them; the feed's comparisons write here as well. Tells the engine once when everything is known. Thread-safe.
 */
final class FeedState {
    private static final int NAMED_AT_ONCE = 1_000;
    private static final int FAILURE_CHARS = 500;

    /** The feed's counters, by their names in the report. */
    enum Counter {
        /** Notices of changed services. */
        NOTICES("notices"),
        /** Reads of a service. */
        READS("reads"),
        /** Bytes of publishers' data in them. */
        READ_BYTES("readBytes"),
        /** Reads that failed, or could not be applied. */
        READ_FAILURES("readFailures"),
        /** Comparisons of a slot. */
        COMPARES("compares"),
        /** Comparisons that failed. */
        COMPARE_FAILURES("compareFailures"),
        /** Services of which a comparison found that another state was known. */
        DIFFERENCES("differences"),
        /** Comparisons of everything without a failure. */
        RECONCILED("reconciled");

        private final String key;

        Counter(String key) {
            this.key = key;
        }
    }

    private static final class SlotState {
        final Map<String, DatumDigest> known = new ConcurrentHashMap<>();
        volatile long heard = System.nanoTime();
    }

    private final RegistryMox mox;
    private final long begun = System.nanoTime();
    private final LongAdder[] counts = new LongAdder[Counter.values().length];
    private final Map<Integer, SlotState> slots = new ConcurrentHashMap<>();
    /** Found different and not read since. */
    private final Set<String> owed = ConcurrentHashMap.newKeySet();
    private final Set<String> unreadable = ConcurrentHashMap.newKeySet();
    private final Refusals refusals = new Refusals();
    /** Every slot was compared once, so whatever is not known is owed. */
    private volatile boolean listed;
    /** The engine knows that the first view is complete. */
    private volatile boolean loaded;
    private volatile boolean closed;
    private volatile long bootstrapMillis = -1;
    private volatile String lastFailure;

    FeedState(RegistryMox mox) {
        this.mox = mox;
        for (int i = 0; i < counts.length; i++) {
            counts[i] = new LongAdder();
        }
    }

    void count(Counter what) {
        count(what, 1);
    }

    void count(Counter what, long more) {
        counts[what.ordinal()].add(more);
    }

    void failed(String what) {
        lastFailure = what.length() > FAILURE_CHARS ? what.substring(0, FAILURE_CHARS) : what;
    }

    /** Ends the readers and the comparer. */
    void close() {
        closed = true;
    }

    boolean isClosed() {
        return closed;
    }

    // ---- of a slot

    private SlotState slot(int slot) {
        return slots.computeIfAbsent(slot, k -> new SlotState());
    }

    /** The slot's leader has answered. */
    void heard(int slot) {
        slot(slot).heard = System.nanoTime();
    }

    boolean heardSince(int slot, long nanos) {
        return slot(slot).heard - nanos > 0;
    }

    /** For how long at least one slot's leader was not heard of. */
    long silentMillis(SlotTable table) {
        long now = System.nanoTime();
        long longest = 0;
        for (Slot slot : table.getSlots()) {
            longest = Math.max(longest, now - slot(slot.getId()).heard);
        }
        return TimeUnit.NANOSECONDS.toMillis(slots.isEmpty() ? now - begun : longest);
    }

    /** Digests of the slot's services as they were read last. */
    Map<String, DatumDigest> known(int slot) {
        return new HashMap<>(slot(slot).known);
    }

    // ---- of a service

    /**
     * A read is applied. Nothing counts as known that was not applied whole, so that the next comparison finds it again.
     *
     * @param digest null if there is no such service
     * @param taken whether there was room for all of it
     */
    void applied(String id, int slot, DatumDigest digest, boolean taken, Refusals.Found found) {
        refusals.replace(id, found);
        if (taken && digest != null) {
            slot(slot).known.put(id, digest);
        } else {
            slot(slot).known.remove(id);
        }
        if (taken) {
            unreadable.remove(id);
        } else {
            unreadable.add(id);
        }
        settled(id);
    }

    /** A read that could not be applied, for whatever reason. */
    void notApplied(String id, int slot, Throwable why) {
        slot(slot).known.remove(id);
        count(Counter.READ_FAILURES);
        failed("read of " + id + " not applied: " + why);
        unreadable.add(id);
        settled(id);
    }

    /** @param given whether the service is not to be waited for any longer; each comparison owes it anew */
    void readFailed(String id, Throwable why, boolean given) {
        count(Counter.READS);
        count(Counter.READ_FAILURES);
        failed("read of " + id + ": " + why);
        if (given) {
            unreadable.add(id);
            settled(id);
        }
    }

    /** A comparison found these different: they are to be read. */
    void owe(Collection<String> ids) {
        owed.addAll(ids);
        count(Counter.DIFFERENCES, ids.size());
    }

    boolean owesNothing() {
        return owed.isEmpty();
    }

    // ---- the first complete view

    /** Every slot was compared. */
    void listed() {
        listed = true;
        sayLoaded();
    }

    boolean isListed() {
        return listed;
    }

    private void settled(String id) {
        if (!owed.isEmpty()) {
            owed.remove(id);
        }
        sayLoaded();
    }

    private void sayLoaded() {
        if (listed && !loaded && owed.isEmpty()) {
            sayLoadedOnce();
        }
    }

    /** Everything was read once, but for what is named as unknown. Where it cannot be said now, {@link #listed} tries again. */
    private synchronized void sayLoadedOnce() {
        if (loaded) {
            return;
        }
        try {
            List<String> unknown = new ArrayList<>(unreadable);
            for (int from = 0; from < unknown.size(); from += NAMED_AT_ONCE) {
                List<String> some = unknown.subList(from, Math.min(from + NAMED_AT_ONCE, unknown.size()));
                mox.host().command("unknown", "dataInfoIds", some);
            }
            bootstrapMillis = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - begun);
            mox.loaded();
            loaded = true;
        } catch (RuntimeException e) {
            failed("first complete view: " + e);
        }
    }

    // ---- the report

    /** As the engine's status has it. */
    Map<String, Object> report(SlotTable table) {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("slots", table.getSlots().size());
        report.put("ids", slots.values().stream().mapToLong(slot -> slot.known.size()).sum());
        report.put("owed", owed.size());
        report.put("unreadable", unreadable.size());
        for (Counter counter : Counter.values()) {
            report.put(counter.key, counts[counter.ordinal()].sum());
        }
        report.put("refusedPublishers", refusals.counts());
        report.put("refused", refusals.named());
        if (bootstrapMillis >= 0) {
            report.put("bootstrapMillis", bootstrapMillis);
        }
        report.put("oldestContactMillis", silentMillis(table));
        if (lastFailure != null) {
            report.put("lastFailure", lastFailure);
        }
        return report;
    }
}
