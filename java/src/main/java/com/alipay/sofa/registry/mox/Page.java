package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/**
 * One admin page, made as it is written: one that grows with what is served comes in chunks of about 64 KiB, and no more than
 * one of them is on the heap. There is one such page at a time in an engine, so write it at once and close it: 10 s without a
 * next chunk end it as well.
 */
public final class Page implements AutoCloseable {
    private final long handle;
    private final String path;
    private final int status;
    private final String contentType;
    private final long retryAfter;
    /** 0 where the page is whole. */
    private final long cursor;
    /** Null once it is written. */
    private byte[] first;

    private final int start;

    private Page(long handle, String path, byte[] first) {
        this.handle = handle;
        this.path = path;
        this.first = first;
        int length = ByteBuffer.wrap(first).getInt();
        start = Integer.BYTES + length;
        Map<?, ?> head = (Map<?, ?>) Json.read(new String(first, Integer.BYTES, length, StandardCharsets.UTF_8));
        status = ((Long) head.get("status")).intValue();
        contentType = (String) head.get("contentType");
        retryAfter = head.containsKey("retryAfter") ? (Long) head.get("retryAfter") : 0;
        cursor = head.containsKey("cursor") ? (Long) head.get("cursor") : 0;
    }

    static Page open(long handle, String path, byte[] request) {
        return new Page(handle, path, NativeBridge.openPage(handle, request));
    }

    /**
     * The HTTP status.
     *
     * @return for example 200; 429 where another large page is being read
     */
    public int status() {
        return status;
    }

    /**
     * The media type.
     *
     * @return the value of a {@code Content-Type}
     */
    public String contentType() {
        return contentType;
    }

    /**
     * After how many seconds to ask again.
     *
     * @return the value of a {@code Retry-After}; 0: none
     */
    public long retryAfter() {
        return retryAfter;
    }

    /**
     * Writes the page, once.
     *
     * @param out where to; it is not closed
     * @throws IOException what {@code out} throws
     */
    public void writeTo(OutputStream out) throws IOException {
        byte[] chunk = first;
        if (chunk == null) {
            throw new MoxException(Code.INVALID_ARGUMENT, "page '" + path + "' was written already; open it again");
        }
        first = null;
        out.write(chunk, start, chunk.length - start);
        if (cursor == 0) {
            return;
        }
        for (chunk = NativeBridge.nextChunk(handle, cursor); chunk != null; chunk = NativeBridge.nextChunk(handle, cursor)) {
            out.write(chunk);
        }
    }

    /** The page as a text of at most so many bytes. */
    String text(int most) {
        ByteArrayOutputStream text = new ByteArrayOutputStream();
        try {
            writeTo(
                    new OutputStream() {
                        @Override
                        public void write(int b) {
                            throw new UnsupportedOperationException();
                        }

                        @Override
                        public void write(byte[] bytes, int from, int length) throws IOException {
                            if (length > most - text.size()) {
                                throw new IOException();
                            }
                            text.write(bytes, from, length);
                        }
                    });
            return text.toString("UTF-8");
        } catch (IOException e) {
            throw new MoxException(Code.TOO_LARGE, "page '" + path + "' has more than " + most + " bytes; write it with openPage");
        }
    }

    /** Ends a page that was not written to its end. */
    @Override
    public void close() {
        if (cursor != 0) {
            NativeBridge.closePage(handle, cursor);
        }
    }
}
