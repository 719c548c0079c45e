package com.alipay.sofa.registry.mox.session;

import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/** So many calls in a second and no more, evenly. Thread-safe. */
final class Pace {
    private final long gap;
    private final AtomicLong next = new AtomicLong(System.nanoTime());

    Pace(long perSecond) {
        gap = TimeUnit.SECONDS.toNanos(1) / perSecond;
    }

    /** Waits for the caller's turn; a little early rather than for less than a timer can. */
    void await() {
        long turn;
        long now;
        do {
            now = System.nanoTime();
            long due = next.get();
            turn = due - now < 0 ? now : due;
            if (next.compareAndSet(due, turn + gap)) {
                break;
            }
        } while (true);
        while (turn - now > TimeUnit.MILLISECONDS.toNanos(1) && !Thread.currentThread().isInterrupted()) {
            LockSupport.parkNanos(turn - now);
            now = System.nanoTime();
        }
    }
}
