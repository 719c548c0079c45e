package com.alipay.sofa.registry.mox;

import java.util.List;
import java.util.Map;
import java.util.logging.Level;
import java.util.logging.Logger;

/** Pulls the engine's log records on a daemon thread and hands them to the sink, until the engine is closed. */
final class LogPump implements Runnable {
    /** How long one native call waits; closing ends it at once, so this only bounds a call. */
    private static final long WAIT_MILLIS = 30_000;

    private static final Logger JUL = Logger.getLogger("com.alipay.sofa.registry.mox");

    /** The sink of those who name none. */
    static final LogSink TO_JUL = (level, target, message) -> JUL.logp(level, target, "", message);

    private final long handle;
    private final LogSink sink;
    private final Thread thread;

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

    @Override
    public void run() {
        byte[] records = NativeBridge.nextLogs(handle, WAIT_MILLIS);
        while (records != null) {
            for (Object record : (List<?>) Json.read(records)) {
                hand((Map<?, ?>) record);
            }
            records = NativeBridge.nextLogs(handle, WAIT_MILLIS);
        }
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
        } catch (RuntimeException e) {
            // A sink that fails on one record still gets the next.
            JUL.logp(Level.WARNING, "LogPump", "hand", "log sink failed", e);
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
