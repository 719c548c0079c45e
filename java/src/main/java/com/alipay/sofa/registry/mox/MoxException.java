package com.alipay.sofa.registry.mox;

/** A refusal of the engine, with a stable code. The message names the field or key, its value and what is allowed. */
public final class MoxException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** Why a call was refused. The numbers never change; the native side uses the same ones. */
    public enum Code {
        /** The engine is closed. */
        CLOSED(1),
        /** A frame that does not follow the format: a fault of this library, nothing was applied. */
        MALFORMED_FRAME(2),
        /** A value is longer than its limit. */
        TOO_LARGE(3),
        /** A configuration key is unknown or its value is not allowed. */
        INVALID_CONFIG(4),
        /** The address to listen on is taken or not ours. */
        BIND_FAILED(5),
        /** An argument is missing or not allowed. */
        INVALID_ARGUMENT(6),
        /** A bounded number of services or publishers is reached. */
        LIMIT(7),
        /** A fault inside the engine; the process is not harmed. */
        INTERNAL(8),
        /** A wait ended before the event that was waited for; the work goes on, and the process is not harmed. */
        TIMEOUT(9),
        /** The native library is not for this platform, or could not be unpacked or loaded. */
        NATIVE_UNAVAILABLE(20);

        private static final Code[] ALL = values();

        private final int number;

        Code(int number) {
            this.number = number;
        }

        /**
         * The stable number of this code.
         *
         * @return 1 to 9, or 20; never another for this code in a later release
         */
        public int number() {
            return number;
        }

        static Code of(int number) {
            for (Code code : ALL) {
                if (code.number == number) {
                    return code;
                }
            }
            return INTERNAL;
        }
    }

    /** Why. */
    private final Code code;

    /** Called by the native side, which looks this constructor up by its signature. */
    MoxException(int number, String message) {
        this(Code.of(number), message, null);
    }

    MoxException(Code code, String message) {
        this(code, message, null);
    }

    MoxException(Code code, String message, Throwable cause) {
        super(message, cause);
        this.code = code;
    }

    /**
     * Why the call was refused.
     *
     * @return the code, never null; the same for the same mistake in later releases
     */
    public Code code() {
        return code;
    }
}
