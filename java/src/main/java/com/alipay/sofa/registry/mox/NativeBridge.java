package com.alipay.sofa.registry.mox;

/** The native methods. Nothing but {@link RegistryMox}, {@link EnginePage} and {@link LogPump} calls them, after {@link NativeLoader#load()}. */
final class NativeBridge {
    /** What {@link #abiVersion()} must answer, so that a jar is never used with the library of another. */
    static final int ABI = 5;

    private NativeBridge() {}

    static native int abiVersion();

    /** Validates, starts the engine's threads and takes events at once; does not listen. Returns a handle above 0. */
    static native long open(byte[] configJson);

    /** Above 0: a sequence number; below: minus a {@link MoxException.Code} number. Never throws, never blocks. */
    static native long apply(long handle, byte[] frame, int length);

    /** Why {@link #apply} on this thread was refused last, as UTF-8; null if it was not, or was asked before. */
    static native byte[] lastError();

    /** One JSON object in, one out. */
    static native byte[] command(long handle, byte[] requestJson);

    /**
     * An admin page: the length of its head in four bytes, the head as a JSON object, and the page. Of a large one the first
     * chunk, and the number of its cursor in the head.
     */
    static native byte[] openPage(long handle, byte[] requestJson);

    /** The next chunk of a large page, null at its end. Throws where its reader was too slow, or it is another's. */
    static native byte[] nextChunk(long handle, long cursor);

    /** Ends a large page; one that is over is a no-op. */
    static native void closePage(long handle, long cursor);

    /** A JSON array of log records, empty after the timeout; null once the handle is closed. */
    static native byte[] nextLogs(long handle, long timeoutMillis);

    /** Waits for calls in flight, drains and frees; an unknown handle is a no-op. */
    static native void close(long handle);
}
