package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.slot.DataSlotDiffDigestResult;
import com.alipay.sofa.registry.common.model.slot.Slot;
import com.alipay.sofa.registry.common.model.slot.SlotTable;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.session.FeedState.Counter;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;

/**
 * Follows every service of the local data center. A read from the slot's leader says what is true of a service; the reasons to
 * read are the data servers' notices and, since notices get lost, a comparison of every slot now and then, at the start, and
 * when a slot has another leader.
 *
 * <p>A comparison sends a digest of what was read of each service, so it finds what differs whatever the versions say, and
 * with no digests it is the complete list. A comparison alone never says that a service is gone: the slot's leader may not have
 * the whole slot yet. Such a leader refuses reads.
 */
final class ClusterFeed implements AutoCloseable {
    private static final int READERS = 4;
    private static final long TICK_NANOS = TimeUnit.SECONDS.toNanos(1);
    private static final int UNCONFIRMED = 10_000;
    /** Who stands still for so long may have lost clients to another session server, and hears late what they said before. */
    private static final long STILL_NANOS = TimeUnit.SECONDS.toNanos(5);

    /** The last comparison of one slot. */
    private static final class Compared {
        /** The slot and its leader as they were. */
        volatile Slot as;
        volatile long at;
    }

    private final RegistryMox mox;
    private final DataTier tier;
    private final Consumer<Throwable> broken;
    private final long reconcileNanos;
    private final Backoffs backoffs = new Backoffs();
    private final Pace pace;
    private final ServiceReader[] readers = new ServiceReader[READERS];
    private final List<Thread> threads = new ArrayList<>();
    private final FeedState state;
    private final Map<Integer, Compared> compared = new ConcurrentHashMap<>();
    private volatile long reconcileFrom = System.nanoTime();
    private volatile long oldestCompare;
    private volatile long seenRunning = System.nanoTime();
    /** This process or a data server stood still until {@link #awake}, and not everything was compared since. */
    private volatile boolean behind;
    private volatile long awake;
    private volatile Future<?> before;
    private Thread comparer;

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
        this.state = new FeedState(mox);
        this.tier = tier;
        this.broken = broken;
        // Each comparison is also a sign of life, of which some are needed before data count as stale.
        long reconcileMillis = Math.min((Long) settings.get("reconcileMillis"), (Long) settings.get("maxStalenessMillis") / 4);
        this.reconcileNanos = TimeUnit.MILLISECONDS.toNanos(reconcileMillis);
        this.pace = new Pace((Long) settings.get("reads"));
        for (int i = 0; i < READERS; i++) {
            readers[i] = new ServiceReader(state, mox, tier, backoffs, pace, (Long) settings.get("debounceMillis"), serviceBytes);
        }
    }

    void start() {
        start(CompletableFuture.completedFuture(null));
    }

    /** @param before what is to be done before the first view may be complete; waited for however it ends */
    void start(Future<?> before) {
        this.before = before;
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
        while (!state.isClosed()) {
            try {
                work.run();
            } catch (LinkageError e) {
                state.close();
                broken.accept(e);
            } catch (Throwable t) {
                state.failed(t.toString());
                LockSupport.parkNanos(TICK_NANOS);
            }
        }
    }

    /** A notice, on one of the registry's threads: only marks. */
    void changed(Iterable<String> ids) {
        for (String id : ids) {
            if (id != null) {
                state.count(Counter.NOTICES);
                mark(id);
            }
        }
    }

    void mark(String id) {
        readers[(id.hashCode() & Integer.MAX_VALUE) % READERS].mark(id);
    }

    // ---- comparisons, on their own thread

    private void compareAll() {
        long unconfirmedAt = System.nanoTime();
        while (!state.isClosed()) {
            beat();
            SlotTable table = tier.slotTable();
            long pass = System.nanoTime();
            for (Slot slot : table.getSlots()) {
                if (state.isClosed()) {
                    return;
                }
                Compared last = compared(slot);
                if (isDue(slot, last, pass)) {
                    compare(table, slot, last);
                }
            }
            note(table);
            if (pass - unconfirmedAt >= reconcileNanos) {
                unconfirmedAt = pass;
                List<?> ids = (List<?>) mox.host().command("unconfirmed", "limit", UNCONFIRMED).get("dataInfoIds");
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

    private boolean isDue(Slot slot, Compared last, long now) {
        Slot as = last.as;
        return as == null
                || as.getLeaderEpoch() != slot.getLeaderEpoch()
                || !as.getLeader().equals(slot.getLeader())
                || now - last.at >= reconcileNanos
                || last.at - reconcileFrom < 0;
    }

    private void compare(SlotTable table, Slot slot, Compared last) {
        String leader = slot.getLeader();
        if (leader == null || leader.isEmpty() || backoffs.claim("compare " + slot.getId()) > 0 || backoffs.claim(leader) > 0) {
            return;
        }
        pace.await();
        beat();
        long begin = System.nanoTime();
        state.count(Counter.COMPARES);
        try {
            // In this order: a leader that has the whole slot keeps it as long as it is the leader.
            tier.contact(slot);
            beat(); // two answers that are slow are no standstill
            DataSlotDiffDigestResult result = tier.compare(table, slot, state.known(slot.getId()));
            backoffs.succeeded("compare " + slot.getId());
            backoffs.succeeded(leader);
            Slot now = tier.slotTable().getSlot(slot.getId());
            if (now == null || now.getLeaderEpoch() != slot.getLeaderEpoch()) {
                return; // it has another leader by now, who is asked next
            }
            state.heard(slot.getId());
            owe(result.getAddedDataInfoIds());
            owe(result.getUpdatedDataInfoIds());
            owe(result.getRemovedDataInfoIds());
            last.as = slot;
            last.at = begin;
        } catch (LinkageError e) {
            throw e;
        } catch (Throwable t) {
            state.count(Counter.COMPARE_FAILURES);
            state.failed("comparison of slot " + slot.getId() + " with " + leader + ": " + t);
            boolean slow = System.nanoTime() - begin > TICK_NANOS;
            backoffs.failed(slow ? leader : "compare " + slot.getId());
        }
    }

    private void owe(List<String> ids) {
        if (ids != null) {
            state.owe(ids);
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
            Compared last = compared(slot);
            if (last.as == null) {
                return;
            }
            oldest = last.at - oldest < 0 ? last.at : oldest;
        }
        if (oldest - oldestCompare > 0 || !state.isListed()) {
            state.count(Counter.RECONCILED);
            oldestCompare = oldest;
        }
        if (before.isDone()) {
            state.listed();
        }
    }

    private Compared compared(Slot slot) {
        return compared.computeIfAbsent(slot.getId(), k -> new Compared());
    }

    // ---- what others ask

    /** Asks for a comparison of everything from now on; {@link #isReconciled} says when it is through and read. */
    void reconcile() {
        reconcileFrom = System.nanoTime();
        LockSupport.unpark(comparer);
    }

    boolean isReconciled() {
        return state.isListed() && state.owesNothing() && oldestCompare - reconcileFrom >= 0;
    }

    /** For how long at least one slot's leader was not heard of. */
    long silentMillis() {
        return state.silentMillis(tier.slotTable());
    }

    Map<String, Object> report() {
        Map<String, Object> report = state.report(tier.slotTable());
        long dirty = 0;
        for (ServiceReader reader : readers) {
            dirty += reader.dirty();
        }
        report.put("dirty", dirty);
        if (state.isListed()) {
            report.put("reconciledMillisAgo", TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - oldestCompare));
        }
        return report;
    }

    /** Takes note of what failed last, for the report. */
    void failed(String what) {
        state.failed(what);
    }

    @Override
    public void close() {
        state.close();
        threads.forEach(LockSupport::unpark);
        tier.close();
    }
}
