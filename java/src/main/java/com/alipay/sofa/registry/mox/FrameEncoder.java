package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.util.Arrays;

/**
 * Writes events into one packed, little-endian frame, format 1. The only place that knows how an event is laid out.
 *
 * <p>{@link #publishing} begins a publisher in the calling thread's frame; attributes and then data follow, and {@link
 * #published} ends it. No {@link Publish} is made.
 *
 * <p>The buffer is reused, and texts are encoded here and not by {@code String.getBytes}, so that an event costs no
 * allocation.
 */
final class FrameEncoder implements MoxHost.Publication {
    static final int MAX_DATA_BYTES = 1 << 20;
    static final int INITIAL_BYTES = 4 << 10;
    static final int KEPT_BYTES = 1 << 20;
    private static final int HEADER_BYTES = 4;
    private static final byte FORMAT = 1;
    private static final byte PUBLISH = 1;
    private static final byte UNPUBLISH = 2;
    private static final byte REPLACE = 3;
    private static final byte LOST = 4;
    private static final byte BEGIN = 5;
    private static final byte APPEND = 6;
    private static final byte COMMIT = 7;
    private static final byte BOXES = 1;
    private static final byte SOURCE_ADDRESS = 2;

    private static final ThreadLocal<FrameEncoder> LOCAL = ThreadLocal.withInitial(FrameEncoder::new);

    private byte[] buffer = new byte[INITIAL_BYTES];
    /** Where the next part of an event goes; moved by whole parts only. */
    private int position;
    /** Where the last whole event ends; an event starts by going back to it. */
    private int end;

    private int events;
    /** Where the open publisher counts its attributes, then its data; 0 where none is open. */
    private int countAt;

    private int count;
    private boolean inData;
    /** Where the open replace counts its bodies; 0 where none is open. */
    private int bodiesAt;

    private int bodies;
    /** How many frames were begun: who holds an encoder for longer sees that nobody else has begun one. */
    private int frames;

    FrameEncoder() {
        begin();
    }

    /** This thread's encoder, with an empty frame. */
    static FrameEncoder local() {
        FrameEncoder encoder = LOCAL.get();
        encoder.begin();
        return encoder;
    }

    /** Starts a new frame; a buffer that one large frame has grown is given back. */
    void begin() {
        if (buffer.length > KEPT_BYTES) {
            buffer = new byte[INITIAL_BYTES];
        }
        end = HEADER_BYTES;
        events = 0;
        frames++;
    }

    int frames() {
        return frames;
    }

    int events() {
        return events;
    }

    int length() {
        return end;
    }

    int capacity() {
        return buffer.length;
    }

    /** The frame: the first {@link #length()} bytes, valid until the next call. */
    byte[] frame() {
        byte[] out = buffer;
        out[0] = FORMAT;
        out[1] = 0;
        u16(out, 2, events);
        return out;
    }

    /** Begins a publisher in the calling thread's frame, whose data are the bytes of {@code ServerDataBox}es. */
    static FrameEncoder publishing(
            String source,
            String dataInfoId,
            String registerId,
            long version,
            long registerTimestamp,
            String cell,
            String appName,
            String sourceAddress) {
        FrameEncoder encoder = local();
        encoder.startPublish(source, dataInfoId);
        encoder.openBody(BOXES, registerId, version, registerTimestamp, cell, appName, sourceAddress);
        return encoder;
    }

    @Override
    public void attribute(String key, String value) {
        if (countAt == 0 || inData) {
            throw new MoxException(Code.INVALID_ARGUMENT, "no publisher is open for attributes; they come before its data");
        }
        int at = text("attribute key", key, 0, Arguments.TEXT_BYTES, position);
        counted("attributes", text("attribute value", value, 0, Arguments.TEXT_BYTES, at));
    }

    @Override
    public void data(byte[] bytes) {
        Arguments.required("data", bytes);
        int length = bytes.length;
        if (length > MAX_DATA_BYTES) {
            throw new MoxException(Code.TOO_LARGE, "data of " + length + " bytes is longer than its limit of " + MAX_DATA_BYTES);
        }
        openData();
        int at = position;
        byte[] out = room(at, 4 + length);
        u32(out, at, length);
        System.arraycopy(bytes, 0, out, at + 4, length);
        counted("data", at + 4 + length);
    }

    /** Ends the publisher that {@link #publishing} began. */
    void published() {
        if (bodiesAt != 0) {
            throw new MoxException(Code.INVALID_ARGUMENT, "the publisher is one of a read; apply that");
        }
        closeBody();
        commit();
    }

    void publish(String source, Publish publish) {
        int at = text("source", source, 1, Arguments.SOURCE_BYTES, start(PUBLISH, 0));
        encoded(publish, 0, at);
        commit();
    }

    void unpublish(String source, String dataInfoId, String registerId, long version, long registerTimestamp) {
        removal(UNPUBLISH, source, dataInfoId, registerId, version, registerTimestamp);
    }

    void lost(String source, String dataInfoId, String registerId, long version, long registerTimestamp) {
        removal(LOST, source, dataInfoId, registerId, version, registerTimestamp);
    }

    private void removal(byte op, String source, String dataInfoId, String registerId, long version, long registerTimestamp) {
        int at = start(op, 16);
        u64(buffer, at, version);
        u64(buffer, at + 8, registerTimestamp);
        at = entry(source, dataInfoId, at + 16);
        position = text("registerId", registerId, 1, Arguments.REGISTER_ID_BYTES, at);
        commit();
    }

    /** Begins a replace; bodies follow, and one of the two ends. */
    void openReplace(String source, String dataInfoId, long version) {
        int at = start(REPLACE, 16);
        u64(buffer, at, version);
        bodiesAt = entry(source, dataInfoId, at + 16);
        room(bodiesAt, 4);
        position = bodiesAt + 4;
        bodies = 0;
    }

    /** Begins a publisher of the open replace, whose data are the bytes of {@code ServerDataBox}es. */
    void openPublisher(String registerId, long version, long registerTimestamp, String cell, String sourceAddress) {
        openBody(BOXES, registerId, version, registerTimestamp, cell, null, sourceAddress);
    }

    /** Ends it. */
    void closePublisher() {
        closeBody();
        bodies++;
    }

    /** How many bytes the frame has, the open event included. */
    int written() {
        return position;
    }

    /** Drops what was written since, which {@link #written} said. */
    void dropTo(int written) {
        position = written;
        countAt = 0;
    }

    /** Adds a publisher to the open replace. */
    void body(Publish publish) {
        encoded(publish, publish.bodyAt(), position);
        bodies++;
    }

    /** Ends the open replace of a read that began so many milliseconds ago. */
    void closeReplace(long age) {
        u64(buffer, end + 9, age);
        u32(buffer, bodiesAt, bodies);
        commit();
    }

    /** Ends the open replace as a piece of a larger one, which is the sender's so many-th. */
    void closePiece(boolean first, boolean last, long read, long age) {
        buffer[end] = first ? BEGIN : last ? COMMIT : APPEND;
        u64(room(position, 8), position, read);
        position += 8;
        closeReplace(age);
    }

    /** Returns where the event goes on, with room for so many bytes. Drops what is not committed. */
    private int start(byte operation, int more) {
        countAt = 0;
        bodiesAt = 0;
        int at = end;
        room(at, 1 + more)[at] = operation;
        return at + 1;
    }

    private void commit() {
        end = position;
        events++;
    }

    private void startPublish(String source, String dataInfoId) {
        position = entry(source, dataInfoId, start(PUBLISH, 0));
    }

    private int entry(String source, String dataInfoId, int at) {
        int next = text("source", source, 1, Arguments.SOURCE_BYTES, at);
        return text("dataInfoId", dataInfoId, 1, Arguments.DATA_INFO_ID_BYTES, next);
    }

    /** A value is encoded once and copied from then on, from the given byte; only its version changes. */
    private void encoded(Publish publish, int from, int at) {
        byte[] encoded = publish.encoded();
        int length = encoded.length - from;
        byte[] out = room(at, length);
        System.arraycopy(encoded, from, out, at, length);
        int body = at - from + publish.bodyAt();
        u64(out, body + 1, publish.version);
        u64(out, body + 9, publish.registerTimestamp);
        position = at + length;
    }

    /** The dataInfoId and the body of a value, in no version yet. */
    static byte[] encode(Publish publish) {
        FrameEncoder encoder = new FrameEncoder();
        int from = encoder.end;
        encoder.position = encoder.text("dataInfoId", publish.dataInfoId, 1, Arguments.DATA_INFO_ID_BYTES, from);
        encoder.openBody(
                publish.boxes ? BOXES : 0, publish.registerId, 0, 0, publish.cell, publish.appName, publish.sourceAddress);
        String[] attributes = publish.attributes;
        for (int i = 0; i < attributes.length; i += 2) {
            encoder.attribute(attributes[i], attributes[i + 1]);
        }
        for (byte[] bytes : publish.data) {
            encoder.data(bytes);
        }
        encoder.closeBody();
        return Arrays.copyOfRange(encoder.buffer, from, encoder.position);
    }

    /** Of the last three null or empty is none. */
    private void openBody(
            int flags, String registerId, long version, long registerTimestamp, String cell, String appName, String sourceAddress) {
        boolean hasSource = sourceAddress != null && !sourceAddress.isEmpty();
        int at = position;
        byte[] out = room(at, 17);
        out[at] = (byte) (hasSource ? flags | SOURCE_ADDRESS : flags);
        u64(out, at + 1, version);
        u64(out, at + 9, registerTimestamp);
        at = text("registerId", registerId, 1, Arguments.REGISTER_ID_BYTES, at + 17);
        at = text("cell", cell == null ? "" : cell, 0, Arguments.TEXT_BYTES, at);
        at = text("appName", appName == null ? "" : appName, 0, Arguments.TEXT_BYTES, at);
        if (hasSource) {
            at = text("sourceAddress", sourceAddress, 1, Arguments.ADDRESS_BYTES, at);
        }
        openCount(at, false);
    }

    private void openData() {
        if (countAt == 0) {
            throw new MoxException(Code.INVALID_ARGUMENT, "no publisher is open");
        }
        if (!inData) {
            u16(buffer, countAt, count);
            openCount(position, true);
        }
    }

    private void closeBody() {
        openData();
        u16(buffer, countAt, count);
        countAt = 0;
    }

    private void openCount(int at, boolean ofData) {
        room(at, 2);
        countAt = at;
        count = 0;
        inData = ofData;
        position = at + 2;
    }

    /** End of the bytes written for the present attribute or datum. */
    private void counted(String field, int next) {
        if (count == Arguments.COUNT) {
            throw new MoxException(Code.TOO_LARGE, field + ": more than the limit of " + Arguments.COUNT);
        }
        count++;
        position = next;
    }

    /** Writes a text and returns where it ends. Nearly always it is ASCII, so it is written as such and seldom once more. */
    private int text(String field, String value, int atLeast, int limit, int at) {
        Arguments.required(field, value);
        int chars = value.length();
        if (chars < atLeast) {
            throw new MoxException(Code.INVALID_ARGUMENT, field + " is empty; 1 to " + limit + " bytes are allowed");
        }
        // A character is never less than a byte, so this also bounds how far the buffer grows.
        if (chars > limit) {
            throw Arguments.tooLarge(field, value, limit);
        }
        byte[] out = room(at, 2 + chars);
        int from = at + 2;
        int all = 0;
        for (int i = 0; i < chars; i++) {
            char c = value.charAt(i);
            all |= c;
            out[from + i] = (byte) c;
        }
        int next = from + chars;
        if (all >= 0x80) {
            next = beyondAscii(value, from);
            if (next - from > limit) {
                throw Arguments.tooLarge(field, value, limit);
            }
        }
        u16(buffer, at, next - from);
        return next;
    }

    private int beyondAscii(String value, int from) {
        int chars = value.length();
        byte[] out = room(from, chars * 3);
        int at = from;
        for (int i = 0; i < chars; i++) {
            char c = value.charAt(i);
            if (c < 0x80) {
                out[at++] = (byte) c;
            } else if (c < 0x800) {
                out[at++] = (byte) (0xC0 | c >> 6);
                out[at++] = (byte) (0x80 | c & 0x3F);
            } else if (!Character.isSurrogate(c)) {
                out[at++] = (byte) (0xE0 | c >> 12);
                out[at++] = (byte) (0x80 | c >> 6 & 0x3F);
                out[at++] = (byte) (0x80 | c & 0x3F);
            } else if (Character.isHighSurrogate(c) && i + 1 < chars && Character.isLowSurrogate(value.charAt(i + 1))) {
                int point = Character.toCodePoint(c, value.charAt(++i));
                out[at++] = (byte) (0xF0 | point >> 18);
                out[at++] = (byte) (0x80 | point >> 12 & 0x3F);
                out[at++] = (byte) (0x80 | point >> 6 & 0x3F);
                out[at++] = (byte) (0x80 | point & 0x3F);
            } else {
                out[at++] = '?';
            }
        }
        return at;
    }

    private static void u16(byte[] out, int at, int value) {
        out[at] = (byte) value;
        out[at + 1] = (byte) (value >>> 8);
    }

    private static void u32(byte[] out, int at, int value) {
        u16(out, at, value);
        u16(out, at + 2, value >>> 16);
    }

    private static void u64(byte[] out, int at, long value) {
        u32(out, at, (int) value);
        u32(out, at + 4, (int) (value >>> 32));
    }

    /** The buffer, with room for so many bytes from there. */
    private byte[] room(int at, int more) {
        return buffer.length - at < more ? grown(at, more) : buffer;
    }

    private byte[] grown(int at, int more) {
        long needed = (long) at + more;
        if (needed > Arguments.FRAME_BYTES) {
            throw new MoxException(
                    Code.TOO_LARGE,
                    "frame of " + needed + " bytes is longer than its limit of " + Arguments.FRAME_BYTES + "; send fewer publishers at once");
        }
        int doubled = Math.min(buffer.length * 2, Arguments.FRAME_BYTES);
        buffer = Arrays.copyOf(buffer, (int) Math.max(doubled, needed));
        return buffer;
    }
}
