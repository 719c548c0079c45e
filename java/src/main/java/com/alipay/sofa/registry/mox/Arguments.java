package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;

/** The bounds of callers' arguments, and the errors for arguments beyond them. */
final class Arguments {
    static final int SOURCE_BYTES = 64;
    static final int DATA_INFO_ID_BYTES = 4_096;
    static final int REGISTER_ID_BYTES = 512;
    /** Every other text of an event has a 16-bit length on the wire. */
    static final int TEXT_BYTES = 65_535;
    static final int COUNT = 65_535;
    /** An IPv6 address in full, with a zone and a port. */
    static final int ADDRESS_BYTES = 128;
    static final int FRAME_BYTES = 64 << 20;

    private static final int SHOWN_CHARS = 64;

    private Arguments() {}

    static <T> T required(String field, T value) {
        if (value == null) {
            throw new MoxException(Code.INVALID_ARGUMENT, field + " is null; a value is needed");
        }
        return value;
    }

    static MoxException tooLarge(String field, CharSequence value, int limit) {
        return new MoxException(
                Code.TOO_LARGE, field + " " + shown(value) + " is longer than its limit of " + limit + " bytes of UTF-8");
    }

    /** A value for a message: quoted, without control characters, shortened. */
    static String shown(CharSequence value) {
        int end = Math.min(value.length(), SHOWN_CHARS);
        StringBuilder out = new StringBuilder(end + 24).append('\'');
        for (int i = 0; i < end; i++) {
            char c = value.charAt(i);
            out.append(Character.isISOControl(c) ? '?' : c);
        }
        if (end < value.length()) {
            out.append("... (").append(value.length()).append(" characters)");
        }
        return out.append('\'').toString();
    }
}
