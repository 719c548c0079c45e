package com.alipay.sofa.registry.mox.session;

import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

/** Who failed and is left alone for a while: slots, and data servers that let their callers wait. Thread-safe. */
final class Backoffs {
    private static final long FIRST_NANOS = TimeUnit.MILLISECONDS.toNanos(200);
    private static final long LAST_NANOS = TimeUnit.SECONDS.toNanos(5);
    /** Longer than a call may take: whoever tries first tries alone. */
    private static final long CLAIM_NANOS = TimeUnit.SECONDS.toNanos(6);

    private static final class Backoff {
        long delay = FIRST_NANOS;
        long until;
    }

    private final Map<Object, Backoff> backoffs = new ConcurrentHashMap<>();

    /** How long to leave it alone; 0: the caller is to try it now, and others not before it has. */
    long claim(Object who) {
        Backoff backoff = who == null || backoffs.isEmpty() ? null : backoffs.get(who);
        if (backoff == null) {
            return 0;
        }
        synchronized (backoff) {
            long wait = backoff.until - System.nanoTime();
            if (wait <= 0) {
                backoff.until = System.nanoTime() + CLAIM_NANOS;
            }
            return Math.max(wait, 0);
        }
    }

    void failed(Object who) {
        Backoff backoff = backoffs.computeIfAbsent(who, k -> new Backoff());
        synchronized (backoff) {
            backoff.until = System.nanoTime() + backoff.delay;
            backoff.delay = Math.min(2 * backoff.delay, LAST_NANOS);
        }
    }

    void succeeded(Object who) {
        if (who != null && !backoffs.isEmpty()) {
            backoffs.remove(who);
        }
    }

    /** After so many failures of one thing alone. */
    static long delay(int failures) {
        return Math.min(FIRST_NANOS << Math.min(failures, 20), 6 * LAST_NANOS);
    }
}
