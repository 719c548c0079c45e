package com.alipay.sofa.registry.mox.session;

import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import java.util.stream.Collectors;

/** The lines that the binding logs, through the slf4j binding of the test class path. */
final class CapturedLog extends Handler implements AutoCloseable {
    private final List<LogRecord> records = new CopyOnWriteArrayList<>();
    private final Logger logger = Logger.getLogger("MOX");

    CapturedLog() {
        logger.addHandler(this);
    }

    /** The lines of a level, but for that of each test's start: that there is nothing to compare the first view with. */
    List<String> at(Level level) {
        return records.stream()
                .filter(record -> record.getLevel() == level)
                .map(LogRecord::getMessage)
                .filter(line -> !line.contains("event=no_baseline"))
                .collect(Collectors.toList());
    }

    @Override
    public void publish(LogRecord record) {
        records.add(record);
    }

    @Override
    public void flush() {}

    @Override
    public void close() {
        logger.removeHandler(this);
    }
}
