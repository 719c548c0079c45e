package com.alipay.sofa.registry.mox;

import java.util.logging.Level;

/** Where the engine's log records go. Called by one daemon thread, one record after the other. */
@FunctionalInterface
public interface LogSink {
    /**
     * Takes one record.
     *
     * @param level {@code SEVERE}, {@code WARNING}, {@code INFO} or {@code FINE}
     * @param target the part of the engine that speaks
     * @param message one line without control characters
     */
    void log(Level level, String target, String message);
}
