package com.alipay.sofa.registry.mox.session;

/** An event of the registry is not taken, or not whole. */
final class RefusedException extends RuntimeException {
    private static final long serialVersionUID = 1L;
    private static final int SHOWN_CHARS = 160;

    /** Why. */
    final Refusal why;

    /** Without a stack trace: whoever publishes such a thing does it often. */
    RefusedException(Refusal why, String dataInfoId, String registerId) {
        super(
                why.key + ": publisher " + shown(registerId) + " of " + shown(dataInfoId) + " is not taken, or not whole",
                null,
                false,
                false);
        this.why = why;
    }

    /** A client's text for the log and the status: shortened, without control characters. */
    static String shown(String text) {
        return text == null ? "null" : shown(text, SHOWN_CHARS);
    }

    static String shown(String text, int chars) {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < Math.min(text.length(), chars); i++) {
            char c = text.charAt(i);
            out.append(Character.isISOControl(c) ? '?' : c);
        }
        return (text.length() > chars ? out.append("...") : out).toString();
    }
}
