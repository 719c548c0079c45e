package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** An admin page of the engine; of a large one no more than one chunk is on the heap. */
final class EnginePage implements MoxHost.Page {
    private final long handle;
    private final String path;
    private final int status;
    private final String contentType;
    private final long retryAfter;
    /** Null where it has none. */
    private final String etag;
    /** 0 where the page is whole. */
    private final long cursor;
    /** Null once it is written. */
    private byte[] first;

    private final int start;

    private EnginePage(long handle, String path, byte[] first) {
        this.handle = handle;
        this.path = path;
        this.first = first;
        int length = ByteBuffer.wrap(first).getInt();
        start = Integer.BYTES + length;
        Map<?, ?> head = (Map<?, ?>) Json.read(new String(first, Integer.BYTES, length, StandardCharsets.UTF_8));
        status = ((Long) head.get("status")).intValue();
        contentType = (String) head.get("contentType");
        retryAfter = head.containsKey("retryAfter") ? (Long) head.get("retryAfter") : 0;
        etag = head.containsKey("etag") ? "\"" + head.get("etag") + "\"" : null;
        cursor = head.containsKey("cursor") ? (Long) head.get("cursor") : 0;
    }

    static EnginePage open(long handle, String path, byte[] request) {
        return new EnginePage(handle, path, NativeBridge.openPage(handle, request));
    }

    @Override
    public int status() {
        return status;
    }

    @Override
    public String contentType() {
        return contentType;
    }

    @Override
    public long retryAfter() {
        return retryAfter;
    }

    @Override
    public String etag() {
        return etag;
    }

    @Override
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
            throw new MoxException(Code.TOO_LARGE, "page '" + path + "' has more than " + most + " bytes; write it with RegistryMox.host().page");
        }
    }

    @Override
    public void close() {
        if (cursor != 0) {
            NativeBridge.closePage(handle, cursor);
        }
    }
}
