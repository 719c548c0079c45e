package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.util.Arrays;
import java.util.List;

/**
 * Writes events into one packed, little-endian frame, format 1.
 *
 * <p>The buffer is reused, and texts are encoded here and not by {@code String.getBytes}, so that an event costs no
 * allocation. An event that is refused half-way leaves the frame as it was before it.
 */
final class FrameEncoder {
    static final int INITIAL_BYTES = 4 << 10;
    static final int KEPT_BYTES = 1 << 20;
    private static final int HEADER_BYTES = 4;
    private static final byte FORMAT = 1;
    private static final byte PUBLISH = 1;
    private static final byte UNPUBLISH = 2;
    private static final byte REPLACE = 3;
    private static final byte BOXES = 1;

    private static final ThreadLocal<FrameEncoder> LOCAL = ThreadLocal.withInitial(FrameEncoder::new);

    private byte[] buffer = new byte[INITIAL_BYTES];
    /** Where the next byte goes. */
    private int position;
    /** Where the last whole event ends; an event starts by going back to it. */
    private int end;

    private int events;

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
        buffer[0] = FORMAT;
        buffer[1] = 0;
        buffer[2] = (byte) events;
        buffer[3] = (byte) (events >>> 8);
        return buffer;
    }

    void publish(String source, Publish publish) {
        start(PUBLISH);
        text("source", source, 1, Arguments.SOURCE_BYTES);
        text("dataInfoId", publish.dataInfoId, 1, Arguments.DATA_INFO_ID_BYTES);
        body(publish);
        commit();
    }

    void unpublish(String source, String dataInfoId, String registerId, long version, long registerTimestamp) {
        start(UNPUBLISH);
        u64(version);
        u64(registerTimestamp);
        text("source", source, 1, Arguments.SOURCE_BYTES);
        text("dataInfoId", dataInfoId, 1, Arguments.DATA_INFO_ID_BYTES);
        text("registerId", registerId, 1, Arguments.REGISTER_ID_BYTES);
        commit();
    }

    void replace(String source, String dataInfoId, long version, long readStarted, List<Publish> publishers) {
        start(REPLACE);
        u64(version);
        u64(readStarted);
        text("source", source, 1, Arguments.SOURCE_BYTES);
        text("dataInfoId", dataInfoId, 1, Arguments.DATA_INFO_ID_BYTES);
        u32(publishers.size());
        for (Publish publish : publishers) {
            Arguments.required("publisher", publish);
            if (!dataInfoId.equals(publish.dataInfoId)) {
                throw new MoxException(
                        Code.INVALID_ARGUMENT,
                        "publisher " + Arguments.shown(publish.registerId) + " is of " + Arguments.shown(publish.dataInfoId)
                                + ", but the replaced service is " + Arguments.shown(dataInfoId));
            }
            body(publish);
        }
        commit();
    }

    private void start(byte operation) {
        position = end;
        u8(operation);
    }

    private void commit() {
        end = position;
        events++;
    }

    private void body(Publish publish) {
        String[] texts = publish.texts;
        byte[][] boxes = publish.boxes;
        u8(boxes != null ? BOXES : 0);
        u64(publish.version);
        u64(publish.registerTimestamp);
        text("registerId", publish.registerId, 1, Arguments.REGISTER_ID_BYTES);
        text("cell", publish.cell, 0, Arguments.TEXT_BYTES);
        text("appName", publish.appName, 0, Arguments.TEXT_BYTES);

        String[] attributes = publish.attributes;
        count("attributes", attributes.length / 2);
        for (int i = 0; i < attributes.length; i += 2) {
            text("attribute key", attributes[i], 0, Arguments.TEXT_BYTES);
            text("attribute value", attributes[i + 1], 0, Arguments.TEXT_BYTES);
        }

        if (boxes != null) {
            count("data", boxes.length);
            for (byte[] box : boxes) {
                box(box);
            }
        } else if (texts != null) {
            count("data", texts.length);
            for (String text : texts) {
                payload(text);
            }
        } else {
            count("data", 0);
        }
    }

    private void box(byte[] box) {
        if (box.length > Arguments.PAYLOAD_BYTES) {
            throw new MoxException(
                    Code.TOO_LARGE, "data of " + box.length + " bytes is longer than its limit of " + Arguments.PAYLOAD_BYTES);
        }
        u32(box.length);
        ensure(box.length);
        System.arraycopy(box, 0, buffer, position, box.length);
        position += box.length;
    }

    private void payload(String text) {
        int at = position;
        u32(0);
        utf8("data", text, Arguments.PAYLOAD_BYTES);
        int length = position - at - 4;
        buffer[at] = (byte) length;
        buffer[at + 1] = (byte) (length >>> 8);
        buffer[at + 2] = (byte) (length >>> 16);
        buffer[at + 3] = (byte) (length >>> 24);
    }

    private void text(String field, String value, int atLeast, int limit) {
        Arguments.required(field, value);
        if (value.length() < atLeast) {
            throw new MoxException(Code.INVALID_ARGUMENT, field + " is empty; 1 to " + limit + " bytes are allowed");
        }
        int at = position;
        u16(0);
        utf8(field, value, limit);
        int length = position - at - 2;
        buffer[at] = (byte) length;
        buffer[at + 1] = (byte) (length >>> 8);
    }

    /** Texts here are nearly always ASCII: one byte per character, until a character says otherwise. */
    private void utf8(String field, String value, int limit) {
        int chars = value.length();
        // A character is never less than a byte, so this also bounds how far the buffer grows.
        if (chars > limit) {
            throw Arguments.tooLarge(field, value, limit);
        }
        ensure(chars);
        byte[] out = buffer;
        int at = position;
        int i = 0;
        for (; i < chars; i++) {
            char c = value.charAt(i);
            if (c >= 0x80) {
                break;
            }
            out[at + i] = (byte) c;
        }
        position = at + i;
        if (i < chars) {
            beyondAscii(value, i);
            if (position - at > limit) {
                throw Arguments.tooLarge(field, value, limit);
            }
        }
    }

    private void beyondAscii(String value, int from) {
        int chars = value.length();
        ensure((chars - from) * 3);
        byte[] out = buffer;
        int at = position;
        for (int i = from; i < chars; i++) {
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
        position = at;
    }

    private void count(String field, int count) {
        if (count > Arguments.COUNT) {
            throw Arguments.tooMany(field, count, Arguments.COUNT);
        }
        u16(count);
    }

    private void u8(int value) {
        ensure(1);
        buffer[position++] = (byte) value;
    }

    private void u16(int value) {
        ensure(2);
        buffer[position++] = (byte) value;
        buffer[position++] = (byte) (value >>> 8);
    }

    private void u32(int value) {
        ensure(4);
        byte[] out = buffer;
        int at = position;
        out[at] = (byte) value;
        out[at + 1] = (byte) (value >>> 8);
        out[at + 2] = (byte) (value >>> 16);
        out[at + 3] = (byte) (value >>> 24);
        position = at + 4;
    }

    private void u64(long value) {
        u32((int) value);
        u32((int) (value >>> 32));
    }

    private void ensure(int more) {
        if (buffer.length - position < more) {
            grow(more);
        }
    }

    private void grow(int more) {
        long needed = (long) position + more;
        if (needed > Arguments.FRAME_BYTES) {
            throw new MoxException(
                    Code.TOO_LARGE,
                    "frame of " + needed + " bytes is longer than its limit of " + Arguments.FRAME_BYTES + "; send fewer publishers at once");
        }
        int doubled = Math.min(buffer.length * 2, Arguments.FRAME_BYTES);
        buffer = Arrays.copyOf(buffer, (int) Math.max(doubled, needed));
    }
}
