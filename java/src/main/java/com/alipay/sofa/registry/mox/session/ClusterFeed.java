package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.PublisherDigestUtil;
import com.alipay.sofa.registry.common.model.RegisterVersion;
import com.alipay.sofa.registry.common.model.dataserver.DatumDigest;
import com.alipay.sofa.registry.common.model.dataserver.DatumSummary;
import com.alipay.sofa.registry.common.model.slot.DataSlotDiffDigestResult;
import com.alipay.sofa.registry.common.model.slot.Slot;
import com.alipay.sofa.registry.common.model.slot.SlotTable;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import com.alipay.sofa.registry.common.model.store.SubPublisher;
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
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.LongAdder;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;

/**
 * Follows every service of the local data center. What is true of a service is what a read from its slot's leader says; what
 * says that it should be read are the data servers' notices, and, since notices get lost, a comparison of every slot now and
 * then, at the start, and when a slot has another leader.
 *
 * <p>A comparison sends a digest of what was read of each service, so it finds what differs whatever the versions say, and
 * with no digests it is the complete list. It never says itself that something is gone: its leader may not have the whole
 * slot yet. Reads are refused by such a leader.
 */
final class ClusterFeed implements AutoCloseable {
    private static final int READERS = 4;
    private static final long TICK_NANOS = TimeUnit.SECONDS.toNanos(1);
    private static final int UNCONFIRMED = 10_000;
    private static final int NAMED_AT_ONCE = 1_000;
    /** Who stands still for so long may have lost clients to another session server, and hears late what they said before. */
    private static final long STILL_NANOS = TimeUnit.SECONDS.toNanos(5);

    /** What is known of one slot. Fields are written by the comparing thread. */
    private static final class SlotState {
        final Map<String, DatumDigest> known = new ConcurrentHashMap<>();
        volatile long heard = System.nanoTime();
        volatile Slot comparedAs;
        volatile long comparedAt;
    }

    private final RegistryMox mox;
    private final DataTier tier;
    private final Consumer<Throwable> broken;
    private final long reconcileNanos;
    private final long serviceBytes;
    private final Backoffs backoffs = new Backoffs();
    private final Pace pace;
    private final ServiceReader[] readers = new ServiceReader[READERS];
    private final List<Thread> threads = new ArrayList<>();
    private final Map<Integer, SlotState> states = new ConcurrentHashMap<>();
    /** Found different and not read since. */
    private final Set<String> owed = ConcurrentHashMap.newKeySet();
    private final Set<String> unreadable = ConcurrentHashMap.newKeySet();
    private final Refusals refusals = new Refusals();
    /** The engine knows that the first view is complete. */
    private volatile boolean loaded;
    private final long begun = System.nanoTime();
    private volatile boolean closed;
    private volatile boolean listed;
    private volatile long bootstrapMillis = -1;
    private volatile long reconcileFrom = System.nanoTime();
    private volatile long oldestCompare;
    private volatile long seenRunning = System.nanoTime();
    /** It stood still until {@link #awake}, and not everything was compared since. */
    private volatile boolean behind;
    private volatile long awake;
    private volatile String lastFailure;
    private Thread comparer;

    private final LongAdder notices = new LongAdder();
    private final LongAdder reads = new LongAdder();
    private final LongAdder readBytes = new LongAdder();
    private final LongAdder readFailures = new LongAdder();
    private final AtomicLong compares = new AtomicLong();
    private final AtomicLong compareFailures = new AtomicLong();
    private final AtomicLong differences = new AtomicLong();
    private final AtomicLong reconciled = new AtomicLong();

    /**
     * Does nothing but take marks until {@link #start}.
     *
     * @param settings as the engine answers them
     * @param broken takes an error of linkage: the registry is another than this was made for
     */
    ClusterFeed(RegistryMox mox, DataTier tier, Map<String, Object> settings, Consumer<Throwable> broken) {
        this(mox, tier, settings, ServiceRead.SERVICE_BYTES, broken);
    }

    /** @param serviceBytes the most data of one service */
    ClusterFeed(RegistryMox mox, DataTier tier, Map<String, Object> settings, long serviceBytes, Consumer<Throwable> broken) {
        this.mox = mox;
        this.serviceBytes = serviceBytes;
        this.tier = tier;
        this.broken = broken;
        // Each comparison is also a sign of life, of which some are needed before data count as stale.
        long reconcileMillis = Math.min((Long) settings.get("reconcileMillis"), (Long) settings.get("maxStalenessMillis") / 4);
        this.reconcileNanos = TimeUnit.MILLISECONDS.toNanos(reconcileMillis);
        this.pace = new Pace((Long) settings.get("reads"));
        for (int i = 0; i < READERS; i++) {
            readers[i] = new ServiceReader(this, (Long) settings.get("debounceMillis"));
        }
    }

    void start() {
        for (int i = 0; i < READERS; i++) {
            start("mox-read-" + i, readers[i]);
        }
        comparer = start("mox-compare", this::compareAll);
    }

    private Thread start(String name, Runnable work) {
        Thread thread = new Thread(() -> guarded(work), name);
        thread.setDaemon(true);
        threads.add(thread);
        thread.start();
        return thread;
    }

    /** A bug may end nothing but one round. */
    private void guarded(Runnable work) {
        while (!closed) {
            try {
                work.run();
            } catch (LinkageError e) {
                broken(e);
            } catch (Throwable t) {
                lastFailure = t.toString();
                LockSupport.parkNanos(TICK_NANOS);
            }
        }
    }

    /** A notice, on one of the registry's threads: only marks. */
    void changed(Iterable<String> ids) {
        for (String id : ids) {
            if (id != null) {
                notices.increment();
                mark(id);
            }
        }
    }

    void mark(String id) {
        readers[(id.hashCode() & Integer.MAX_VALUE) % READERS].mark(id);
    }

    // ---- reads, on the readers' threads

    /**
     * A successful read; {@code null} if there is no such service. Nothing counts as known that was not applied, so that the next
     * comparison finds it again.
     */
    void took(String id, int slot, SubDatum datum, long started) {
        SlotState state = state(slot);
        state.heard = System.nanoTime();
        reads.increment();
        ServiceRead read = new ServiceRead(id, datum, serviceBytes);
        boolean taken = read.apply(mox, datum == null ? 0 : datum.getVersion(), started);
        refusals.replace(id, read.found());
        readBytes.add(read.bytes());
        if (taken && datum != null) {
            state.known.put(id, digest(id, read.publishers()));
        } else {
            state.known.remove(id);
        }
        if (taken) {
            unreadable.remove(id);
        } else {
            unreadable.add(id); // there was no room for all of it
        }
        settled(id);
    }

    /** As the data servers make it. */
    private static DatumDigest digest(String id, Collection<SubPublisher> read) {
        Map<String, RegisterVersion> versions = new HashMap<>();
        for (SubPublisher publisher : read) {
            // A data server keeps publishers by their registerIds, so it has none without.
            if (publisher != null && publisher.getRegisterId() != null) {
                versions.put(publisher.getRegisterId(), RegisterVersion.of(publisher.getVersion(), publisher.getRegisterTimestamp()));
            }
        }
        return PublisherDigestUtil.digest(new DatumSummary(id, versions));
    }

    /** @param given whether the service is not to be waited for any longer */
    void readFailed(String id, Throwable why, boolean given) {
        reads.increment();
        readFailures.increment();
        failed("read of " + id + ": " + why);
        if (given) {
            unreadable.add(id);
            settled(id); // each comparison owes it anew
        }
    }

    /** A read that could not be applied, for whatever reason. */
    void notApplied(String id, int slot, Throwable why) {
        state(slot).known.remove(id);
        readFailures.increment();
        failed("read of " + id + " not applied: " + why);
        unreadable.add(id);
        settled(id);
    }

    private void settled(String id) {
        if (!owed.isEmpty()) {
            owed.remove(id);
        }
        if (listed && !loaded && owed.isEmpty()) {
            sayLoaded();
        }
    }

    /** Everything was read once, but for what is named as unknown. If it cannot be said now, it is in the comparer's next pass. */
    private synchronized void sayLoaded() {
        if (loaded) {
            return;
        }
        try {
            List<String> unknown = new ArrayList<>(unreadable);
            for (int from = 0; from < unknown.size(); from += NAMED_AT_ONCE) {
                List<String> some = unknown.subList(from, Math.min(from + NAMED_AT_ONCE, unknown.size()));
                mox.host("unknown", "dataInfoIds", some);
            }
            bootstrapMillis = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - begun);
            mox.loaded();
            loaded = true;
        } catch (RuntimeException e) {
            failed("first complete view: " + e);
        }
    }

    // ---- comparisons, on their own thread

    private void compareAll() {
        long unconfirmedAt = System.nanoTime();
        while (!closed) {
            beat();
            SlotTable table = tier.slotTable();
            long pass = System.nanoTime();
            for (Slot slot : table.getSlots()) {
                if (closed) {
                    return;
                }
                SlotState state = state(slot.getId());
                if (isDue(slot, state, pass)) {
                    compare(table, slot, state);
                }
            }
            note(table);
            if (pass - unconfirmedAt >= reconcileNanos) {
                unconfirmedAt = pass;
                List<?> ids = (List<?>) mox.host("unconfirmed", "limit", UNCONFIRMED).get("dataInfoIds");
                ids.forEach(id -> mark((String) id));
            }
            LockSupport.parkNanos(TICK_NANOS);
        }
    }

    /** Notices that this process, or the data server that was asked, has stood still. */
    private void beat() {
        long now = System.nanoTime();
        if (now - seenRunning > STILL_NANOS) {
            awake = now;
            behind = true;
            reconcile();
        } else if (behind && now - awake > STILL_NANOS && isReconciled()) {
            behind = false;
        }
        seenRunning = now;
    }

    /** Whether what clients say here may be older than what the registry has. */
    boolean isBehind() {
        return behind || System.nanoTime() - seenRunning > STILL_NANOS;
    }

    private boolean isDue(Slot slot, SlotState state, long now) {
        Slot as = state.comparedAs;
        return as == null
                || as.getLeaderEpoch() != slot.getLeaderEpoch()
                || !as.getLeader().equals(slot.getLeader())
                || now - state.comparedAt >= reconcileNanos
                || state.comparedAt - reconcileFrom < 0;
    }

    private void compare(SlotTable table, Slot slot, SlotState state) {
        String leader = slot.getLeader();
        if (leader == null || leader.isEmpty() || backoffs.claim("compare " + slot.getId()) > 0 || backoffs.claim(leader) > 0) {
            return;
        }
        pace.await();
        beat();
        long begin = System.nanoTime();
        compares.incrementAndGet();
        try {
            // In this order: a leader that has the whole slot keeps it as long as it is the leader.
            tier.contact(slot);
            beat(); // two answers that are slow are no standstill
            DataSlotDiffDigestResult result = tier.compare(table, slot, new HashMap<>(state.known));
            backoffs.succeeded("compare " + slot.getId());
            backoffs.succeeded(leader);
            Slot now = tier.slotTable().getSlot(slot.getId());
            if (now == null || now.getLeaderEpoch() != slot.getLeaderEpoch()) {
                return; // it has another leader by now, who is asked next
            }
            state.heard = System.nanoTime();
            owe(result.getAddedDataInfoIds());
            owe(result.getUpdatedDataInfoIds());
            owe(result.getRemovedDataInfoIds());
            state.comparedAs = slot;
            state.comparedAt = begin;
        } catch (LinkageError e) {
            throw e;
        } catch (Throwable t) {
            compareFailures.incrementAndGet();
            failed("comparison of slot " + slot.getId() + " with " + leader + ": " + t);
            boolean slow = System.nanoTime() - begin > TICK_NANOS;
            backoffs.failed(slow ? leader : "compare " + slot.getId());
        }
    }

    private void owe(List<String> ids) {
        if (ids != null) {
            owed.addAll(ids);
            differences.addAndGet(ids.size());
            ids.forEach(this::mark);
        }
    }

    /** Takes note of how far the comparisons are. */
    private void note(SlotTable table) {
        if (table.getSlots().isEmpty()) {
            return;
        }
        long now = System.nanoTime();
        long oldest = now;
        for (Slot slot : table.getSlots()) {
            SlotState state = state(slot.getId());
            if (state.comparedAs == null) {
                return;
            }
            oldest = state.comparedAt - oldest < 0 ? state.comparedAt : oldest;
        }
        if (oldest - oldestCompare > 0 || reconciled.get() == 0) {
            reconciled.incrementAndGet();
            oldestCompare = oldest;
        }
        listed = true;
        if (!loaded) {
            settled("");
        }
    }

    // ---- what others ask

    /** Asks for a comparison of everything from now on; {@link #isReconciled} says when it is through and read. */
    void reconcile() {
        reconcileFrom = System.nanoTime();
        LockSupport.unpark(comparer);
    }

    boolean isReconciled() {
        return listed && owed.isEmpty() && oldestCompare - reconcileFrom >= 0;
    }

    /** For how long at least one slot's leader was not heard of. */
    long silentMillis() {
        long now = System.nanoTime();
        long longest = 0;
        for (Slot slot : tier.slotTable().getSlots()) {
            longest = Math.max(longest, now - state(slot.getId()).heard);
        }
        return TimeUnit.NANOSECONDS.toMillis(states.isEmpty() ? now - begun : longest);
    }

    Map<String, Object> report() {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("slots", tier.slotTable().getSlots().size());
        report.put("ids", states.values().stream().mapToLong(state -> state.known.size()).sum());
        report.put("owed", owed.size());
        report.put("unreadable", unreadable.size());
        long dirty = 0;
        for (ServiceReader reader : readers) {
            dirty += reader.dirty();
        }
        report.put("dirty", dirty);
        report.put("notices", notices.sum());
        report.put("reads", reads.sum());
        report.put("readBytes", readBytes.sum());
        report.put("readFailures", readFailures.sum());
        report.put("refusedPublishers", refusals.counts());
        report.put("refused", refusals.named());
        report.put("compares", compares.get());
        report.put("compareFailures", compareFailures.get());
        report.put("differences", differences.get());
        report.put("reconciled", reconciled.get());
        if (reconciled.get() > 0) {
            report.put("reconciledMillisAgo", TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - oldestCompare));
        }
        if (bootstrapMillis >= 0) {
            report.put("bootstrapMillis", bootstrapMillis);
        }
        report.put("oldestContactMillis", silentMillis());
        if (lastFailure != null) {
            report.put("lastFailure", lastFailure);
        }
        return report;
    }

    void failed(String what) {
        lastFailure = what.length() > 500 ? what.substring(0, 500) : what;
    }

    void broken(LinkageError why) {
        closed = true;
        broken.accept(why);
    }

    boolean isClosed() {
        return closed;
    }

    DataTier tier() {
        return tier;
    }

    Backoffs backoffs() {
        return backoffs;
    }

    Pace pace() {
        return pace;
    }

    String leader(int slot) {
        Slot found = tier.slotTable().getSlot(slot);
        return found == null ? null : found.getLeader();
    }

    boolean heardSince(int slot, long nanos) {
        return state(slot).heard - nanos > 0;
    }

    private SlotState state(int slot) {
        return states.computeIfAbsent(slot, k -> new SlotState());
    }

    @Override
    public void close() {
        closed = true;
        threads.forEach(LockSupport::unpark);
        tier.close();
    }
}
