package com.alipay.sofa.registry.mox.session;

/** Rows of the registry's store, with compare-and-set. Each method waits for the database. */
interface DocumentStore {
    /** A row. */
    final class Row {
        /** Above 0, higher with each write. */
        final long version;

        final String value;

        Row(long version, String value) {
            this.version = version;
            this.value = value;
        }
    }

    /** The row of a key; null where there is none. Throws where it cannot be read. */
    Row get(String key);

    /**
     * Writes a row over that of the version {@code expect}, 0: where there is none. False where there is another by now, and where
     * it cannot be written, which reading again tells apart.
     */
    boolean put(String key, Row row, long expect);
}
