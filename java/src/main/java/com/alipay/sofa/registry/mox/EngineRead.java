package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/** A read of a service, written publisher by publisher into the frame of the thread that makes it. */
final class EngineRead implements MoxHost.Read {
    /** A piece is sent at this size. Below what an encoder keeps, so that only a larger publisher makes its buffer grow. */
    static final int PIECE_BYTES = FrameEncoder.KEPT_BYTES / 2;

    private static final long NANOS_A_MILLI = TimeUnit.MILLISECONDS.toNanos(1);
    private static final AtomicLong NUMBERS = new AtomicLong();

    private final RegistryMox mox;
    private final FrameEncoder encoder = FrameEncoder.local();
    private final String source;
    private final String dataInfoId;
    private final long version;
    private final long startedNanos;
    private final long number = NUMBERS.incrementAndGet();
    private int frame;
    private boolean begun;
    private boolean applied;
    /** The engine is closed. */
    private boolean ignored;

    private MoxException failure;
    private boolean open;
    /** Where the open publisher begins in the frame. */
    private int openedAt;

    EngineRead(RegistryMox mox, String source, String dataInfoId, long version, long startedNanos) {
        this.mox = mox;
        this.source = source;
        this.dataInfoId = dataInfoId;
        this.version = version;
        this.startedNanos = startedNanos;
        start();
    }

    private void start() {
        encoder.openReplace(source, dataInfoId, version);
        frame = encoder.frames();
    }

    @Override
    public MoxHost.Publication publisher(String registerId, long version, long registerTimestamp, String cell, String sourceAddress) {
        close();
        openedAt = encoder.written();
        encoder.openPublisher(registerId, version, registerTimestamp, cell, sourceAddress);
        open = true;
        return encoder;
    }

    @Override
    public void leaveOut() {
        if (open) {
            check();
            open = false;
            encoder.dropTo(openedAt);
        }
    }

    void add(Publish publish) {
        close();
        encoder.body(publish);
    }

    @Override
    public long apply() {
        close();
        return send(true);
    }

    /** Ends the open publisher, and sends what has become large. */
    private void close() {
        check();
        if (open) {
            open = false;
            encoder.closePublisher();
        }
        if (encoder.written() >= PIECE_BYTES) {
            send(false);
            start();
        }
    }

    private long send(boolean last) {
        if (begun || !last) {
            encoder.closePiece(!begun, last, number, age());
        } else {
            encoder.closeReplace(age());
        }
        begun = true;
        applied = last;
        try {
            long sequence = ignored ? 0 : mox.apply(encoder);
            ignored = sequence == 0;
            encoder.begin();
            return sequence;
        } catch (MoxException e) {
            failure = e;
            throw e;
        }
    }

    /** How long ago the read began, in milliseconds, rather too little: it began after whatever was applied before it. */
    private long age() {
        long millis = Math.floorDiv(System.nanoTime() - startedNanos, NANOS_A_MILLI);
        return millis > 0 ? millis - 1 : millis;
    }

    private void check() {
        if (failure != null) {
            throw failure;
        }
        if (applied || encoder.frames() != frame) {
            throw new MoxException(
                    Code.INVALID_ARGUMENT,
                    "the read of " + Arguments.shown(dataInfoId) + " is over, or its thread has given the engine something else; read it again");
        }
    }
}
