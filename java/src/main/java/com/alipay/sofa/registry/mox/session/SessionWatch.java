package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;
import java.util.function.Supplier;

/**
 * Looks every second at what the registry does not give notice of: whether it has stopped its pushes, and for how long the
 * data servers were silent. Tells the engine, and the status.
 */
final class SessionWatch implements Runnable, AutoCloseable {
    private static final long TICK_NANOS = TimeUnit.SECONDS.toNanos(1);
    private static final long ASK_NANOS = TimeUnit.SECONDS.toNanos(10);

    private final RegistryMox mox;
    private final BooleanSupplier canPush;
    /** Null with local scope. */
    private final ClusterFeed feed;

    private final Sessions sessions;
    private final long maxSilentMillis;
    /** How often an event was refused, by the reason. */
    private final Supplier<Map<String, Object>> refused;

    private final Consumer<Throwable> broken;
    private final Thread thread = new Thread(this, "mox-watch");

    private boolean stopped;
    private boolean reopening;
    private long reopenedAt;
    private boolean fenced;
    private int freshPeers = -1;
    private long askedAt = System.nanoTime() - ASK_NANOS;
    /** The question to the other servers how many of them are fresh, not yet answered; null if none was asked. */
    private Future<Integer> question;
    private volatile boolean closed;

    SessionWatch(
            RegistryMox mox,
            BooleanSupplier canPush,
            ClusterFeed feed,
            Sessions sessions,
            long maxSilentMillis,
            Supplier<Map<String, Object>> refused,
            Consumer<Throwable> broken) {
        this.mox = mox;
        this.canPush = canPush;
        this.feed = feed;
        this.sessions = sessions;
        this.maxSilentMillis = maxSilentMillis;
        this.refused = refused;
        this.broken = broken;
    }

    void start() {
        thread.setDaemon(true);
        thread.start();
    }

    @Override
    public void run() {
        while (!closed) {
            try {
                tick();
            } catch (LinkageError e) {
                broken.accept(e);
                return;
            } catch (MoxException e) {
                // Closed while we looked, which ends the loop as well.
            } catch (Throwable t) {
                if (feed != null) {
                    feed.failed("watch: " + t);
                }
            }
            LockSupport.parkNanos(TICK_NANOS);
        }
    }

    /** Looks once at the push switch and, with a feed, at how long the data servers have been silent. */
    void tick() throws InterruptedException {
        lookAtPush();
        if (feed != null) {
            report(lookAtSilence());
        }
    }

    /**
     * Changes that came while pushes were stopped are known before pushes go on. But data servers may be down for long, as they
     * are in an upgrade, for which pushes are stopped: after so long as data may be stale the others' changes go on, through the
     * breaker, and what could not be compared stays as it is.
     */
    private void lookAtPush() {
        boolean can = canPush.getAsBoolean();
        if (!can) {
            reopening = false;
            if (!stopped) {
                stopped = true;
                mox.host().command("stopped", "stopped", true);
            }
        } else if (stopped && feed != null && !reopening) {
            reopening = true;
            reopenedAt = System.nanoTime();
            feed.reconcile();
        } else if (stopped && (feed == null || feed.isReconciled() || isReopeningOver())) {
            stopped = false;
            reopening = false;
            mox.host().command("stopped", "stopped", false);
        }
    }

    private boolean isReopeningOver() {
        return System.nanoTime() - reopenedAt > TimeUnit.MILLISECONDS.toNanos(maxSilentMillis);
    }

    /** Whether data are stale; then, whether another server should serve in place of this one. Waits for none of them. */
    private boolean lookAtSilence() throws InterruptedException {
        boolean stale = feed.silentMillis() > maxSilentMillis;
        if (!stale) {
            freshPeers = -1;
            question = null;
            if (fenced && feed.isReconciled()) {
                fence(false);
            }
            return false;
        }
        if (question == null && System.nanoTime() - askedAt >= ASK_NANOS) {
            askedAt = System.nanoTime();
            question = sessions.fresh(mox);
        } else if (question != null && question.isDone()) {
            Future<Integer> answered = question;
            question = null;
            answered(answered);
        }
        return true;
    }

    private void answered(Future<Integer> peers) throws InterruptedException {
        try {
            freshPeers = peers.get();
        } catch (ExecutionException e) {
            feed.failed("the other session servers cannot be asked: " + e.getCause());
            return;
        }
        // Alone it is better to serve what is old than nothing.
        if (fenced != freshPeers > 0) {
            fence(freshPeers > 0);
        }
    }

    private void fence(boolean on) {
        if (on) {
            feed.reconcile(); // what has to be done before it ends
        }
        fenced = on;
        mox.host().command("fence", "fenced", on);
    }

    private void report(boolean stale) {
        Map<String, Object> report = new LinkedHashMap<>(feed.report());
        report.put("refusedEvents", refused.get());
        report.put("pushStopped", stopped);
        report.put("stale", stale);
        if (freshPeers >= 0) {
            report.put("freshPeers", freshPeers);
        }
        mox.host().command("feed", "feed", report);
    }

    @Override
    public void close() {
        closed = true;
        LockSupport.unpark(thread);
    }
}
