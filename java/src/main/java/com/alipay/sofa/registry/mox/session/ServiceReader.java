package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.PublisherDigestUtil;
import com.alipay.sofa.registry.common.model.RegisterVersion;
import com.alipay.sofa.registry.common.model.dataserver.DatumDigest;
import com.alipay.sofa.registry.common.model.dataserver.DatumSummary;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import com.alipay.sofa.registry.common.model.store.SubPublisher;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.session.FeedState.Counter;
import java.util.Collection;
import java.util.HashMap;
import java.util.Iterator;
import java.util.Map;
import java.util.PriorityQueue;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.locks.LockSupport;

/**
 * Reads its share of the services, one after the other, so that two reads of one service never pass each other. Whoever
 * marks a service as changed only adds it to a set.
 */
final class ServiceReader implements Runnable {
    private static final long IDLE_NANOS = TimeUnit.SECONDS.toNanos(1);
    private static final long SLOW_NANOS = TimeUnit.SECONDS.toNanos(1);
    /** An answer to a question that is older says how it was: this process has stood still. */
    private static final long LATE_NANOS = TimeUnit.SECONDS.toNanos(10);
    /** A service that failed so often while its slot's leader answers is not waited for any longer. */
    private static final int MANY = 5;

    /** Something to read again at a time. */
    private static final class Retry implements Comparable<Retry> {
        final String id;
        final long at;

        Retry(String id, long at) {
            this.id = id;
            this.at = at;
        }

        @Override
        public int compareTo(Retry other) {
            return Long.compare(at - other.at, 0);
        }
    }

    /** The failures of a service since its last good read: how many, and since when. */
    private static final class Failures {
        int count;
        final long since = System.nanoTime();
    }

    private final FeedState state;
    private final RegistryMox mox;
    private final DataTier tier;
    private final Backoffs backoffs;
    private final Pace pace;
    private final long debounceNanos;
    private final long serviceBytes;
    private final Set<String> marks = ConcurrentHashMap.newKeySet();
    private final AtomicBoolean woken = new AtomicBoolean();
    private final PriorityQueue<Retry> retries = new PriorityQueue<>();
    /** The one that counts for each service; others in the queue do not. */
    private final Map<String, Retry> retryOf = new HashMap<>();
    private final Map<String, Failures> failures = new HashMap<>();

    private volatile Thread thread;
    private volatile int waiting;

    /** @param serviceBytes the most data of one service */
    ServiceReader(
            FeedState state, RegistryMox mox, DataTier tier, Backoffs backoffs, Pace pace, long debounceMillis, long serviceBytes) {
        this.state = state;
        this.mox = mox;
        this.tier = tier;
        this.backoffs = backoffs;
        this.pace = pace;
        this.debounceNanos = TimeUnit.MILLISECONDS.toNanos(debounceMillis);
        this.serviceBytes = serviceBytes;
    }

    /** Called on the registry's threads. */
    void mark(String id) {
        marks.add(id);
        if (!woken.get() && woken.compareAndSet(false, true)) {
            LockSupport.unpark(thread);
        }
    }

    /** Services that are to be read. */
    int dirty() {
        return marks.size() + waiting;
    }

    @Override
    public void run() {
        thread = Thread.currentThread();
        while (!state.isClosed()) {
            if (!woken.get()) {
                Retry next = retries.peek();
                long idle = next == null ? IDLE_NANOS : Math.min(next.at - System.nanoTime(), IDLE_NANOS);
                if (idle > 0) {
                    LockSupport.parkNanos(idle);
                }
            }
            if (woken.get()) {
                pause(debounceNanos);
                woken.set(false);
                readMarked();
            }
            readDue();
        }
    }

    private void readMarked() {
        for (Iterator<String> all = marks.iterator(); all.hasNext() && !state.isClosed(); ) {
            String id = all.next();
            all.remove();
            read(id);
        }
    }

    private void readDue() {
        long now = System.nanoTime();
        while (!retries.isEmpty() && retries.peek().at - now <= 0 && !state.isClosed()) {
            Retry retry = retries.poll();
            if (retryOf.remove(retry.id, retry)) {
                waiting = retryOf.size();
                read(retry.id);
            }
        }
    }

    private void read(String id) {
        int slot;
        String leader;
        try {
            slot = tier.slotOf(id);
            leader = tier.leaderOf(slot);
        } catch (RuntimeException e) {
            state.readFailed(id, e, false);
            again(id, IDLE_NANOS);
            return;
        }
        long wait = Math.max(backoffs.claim(slot), backoffs.claim(leader));
        if (wait > 0) {
            again(id, Math.min(wait, IDLE_NANOS));
            return;
        }
        pace.await();
        long begun = System.nanoTime();
        try {
            SubDatum datum = tier.fetch(id);
            backoffs.succeeded(slot);
            backoffs.succeeded(leader);
            if (System.nanoTime() - begun > LATE_NANOS) {
                again(id, IDLE_NANOS / 5);
                return;
            }
            take(id, slot, datum, begun);
        } catch (LinkageError e) {
            throw e;
        } catch (Throwable t) {
            failed(id, slot, leader, System.nanoTime() - begun, t);
        }
    }

    private void take(String id, int slot, SubDatum datum, long startedNanos) {
        try {
            apply(id, slot, datum, startedNanos);
            failures.remove(id);
            retryOf.remove(id);
            waiting = retryOf.size();
        } catch (LinkageError e) {
            throw e;
        } catch (Throwable t) {
            // No fault of the data server's.
            int count = ++failures.computeIfAbsent(id, k -> new Failures()).count;
            state.notApplied(id, slot, t);
            again(id, Backoffs.delay(count));
        }
    }

    /** Hands a successful read in; {@code null} if there is no such service. */
    void apply(String id, int slot, SubDatum datum, long startedNanos) {
        state.heard(slot);
        state.count(Counter.READS);
        ServiceRead read = new ServiceRead(id, datum, serviceBytes);
        boolean taken = read.apply(mox, datum == null ? 0 : datum.getVersion(), startedNanos);
        state.count(Counter.READ_BYTES, read.bytes());
        state.applied(id, slot, datum == null || !taken ? null : digest(id, read.publishers()), taken, read.found());
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

    private void failed(String id, int slot, String leader, long tookNanos, Throwable why) {
        Failures all = failures.computeIfAbsent(id, k -> new Failures());
        all.count++;
        boolean alone = state.heardSince(slot, all.since);
        if (leader != null && tookNanos > SLOW_NANOS) {
            backoffs.failed(leader);
        } else if (!alone) {
            backoffs.failed(slot);
        }
        state.readFailed(id, why, alone && all.count >= MANY);
        again(id, alone ? Backoffs.delay(all.count) : IDLE_NANOS / 5);
    }

    /** Once for each service, however often it is marked meanwhile. */
    private void again(String id, long inNanos) {
        Retry retry = new Retry(id, System.nanoTime() + inNanos);
        Retry known = retryOf.get(id);
        if (known == null || retry.compareTo(known) < 0) {
            retryOf.put(id, retry);
            retries.add(retry);
        }
        waiting = retryOf.size();
    }

    private void pause(long nanos) {
        long end = System.nanoTime() + nanos;
        for (long left = nanos; left > 0 && !state.isClosed(); left = end - System.nanoTime()) {
            LockSupport.parkNanos(left);
        }
    }
}
