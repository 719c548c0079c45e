package com.alipay.sofa.registry.mox;

import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.logging.Level;
import java.util.logging.Logger;

/** Pulls the engine's log records on a daemon thread and hands them to the sink, until the engine is closed. */
final class LogPump implements Runnable {
    /** How long one native call waits; closing ends it at once, so this only bounds a call. */
    private static final long WAIT_MILLIS = 30_000;

    private static final Logger JUL = Logger.getLogger("com.alipay.sofa.registry.mox");

    /** The sink of those who name none. */
    static final LogSink TO_JUL = (level, target, message) -> JUL.logp(level, target, "", message);

    private static final long WARN_EVERY_NANOS = TimeUnit.MINUTES.toNanos(1);

    private final long handle;
    private final LogSink sink;
    private final Thread thread;
    private long failures;
    private long lastWarning;

    private LogPump(long handle, LogSink sink) {
        this.handle = handle;
        this.sink = sink;
        thread = new Thread(this, "mox-logs");
        thread.setDaemon(true);
    }

    static LogPump start(long handle, LogSink sink) {
        LogPump pump = new LogPump(handle, sink);
        pump.thread.start();
        return pump;
    }

    /** Goes on whatever happens, also when there is no memory left for a while: the engine's alarms come this way. */
    @Override
    public void run() {
        boolean open = true;
        while (open) {
            try {
                open = pump();
            } catch (Throwable t) {
                failed("log records are lost", t);
                // Lines that cannot be pulled now can be later; the engine keeps the newest.
                LockSupport.parkNanos(TimeUnit.SECONDS.toNanos(1));
            }
        }
    }

    /** False once the engine is closed and all is handed over. */
    private boolean pump() {
        byte[] records = NativeBridge.nextLogs(handle, WAIT_MILLIS);
        if (records == null) {
            return false;
        }
        for (Object record : (List<?>) Json.read(records)) {
            hand((Map<?, ?>) record);
        }
        return true;
    }

    /** Waits until the last records are handed over, but not for a sink that hangs. */
    void awaitEnd() {
        if (Thread.currentThread() == thread) {
            return;
        }
        try {
            thread.join(1_000);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private void hand(Map<?, ?> record) {
        try {
            sink.log(level((String) record.get("level")), (String) record.get("target"), (String) record.get("message"));
        } catch (Throwable t) {
            // A sink that fails on one record still gets the next.
            failed("a log sink failed", t);
        }
    }

    /** Says so once a minute, if that can be said at all. */
    private void failed(String what, Throwable why) {
        try {
            failures++;
            if (failures == 1 || System.nanoTime() - lastWarning >= WARN_EVERY_NANOS) {
                lastWarning = System.nanoTime();
                JUL.logp(Level.WARNING, "LogPump", "run", what + ", " + failures + " failures so far", why);
            }
        } catch (Throwable t) {
            // Such as no memory for the message; the next failure is counted with this one.
        }
    }

    private static Level level(String name) {
        switch (name) {
            case "ERROR":
                return Level.SEVERE;
            case "WARN":
                return Level.WARNING;
            case "INFO":
                return Level.INFO;
            default:
                return Level.FINE;
        }
    }
}
