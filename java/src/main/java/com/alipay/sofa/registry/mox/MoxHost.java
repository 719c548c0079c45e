package com.alipay.sofa.registry.mox;

import java.io.IOException;
import java.io.OutputStream;
import java.util.Map;

/**
 * The interface for programs that embed the engine, as the registry's binding does, beyond {@link RegistryMox}: commands,
 * publishers and reads that the program holds in a form of its own, and admin pages of any size. Extensions have no use for it.
 * Thread-safe; whatever a method returns belongs to the calling thread.
 */
public interface MoxHost {
    /** The longest dataInfoId, in bytes of UTF-8; longer ones are refused with {@link MoxException.Code#TOO_LARGE}. */
    int MAX_DATA_INFO_ID_BYTES = Arguments.DATA_INFO_ID_BYTES;
    /** The longest registerId, in bytes of UTF-8; longer ones are refused with {@link MoxException.Code#TOO_LARGE}. */
    int MAX_REGISTER_ID_BYTES = Arguments.REGISTER_ID_BYTES;
    /** The longest cell, application name, attribute key or attribute value, in bytes of UTF-8. */
    int MAX_TEXT_BYTES = Arguments.TEXT_BYTES;
    /** The longest source address, in bytes; longer ones are refused with {@link MoxException.Code#TOO_LARGE}. */
    int MAX_ADDRESS_BYTES = Arguments.ADDRESS_BYTES;
    /** The longest data of one endpoint, in bytes. */
    int MAX_DATA_BYTES = FrameEncoder.MAX_DATA_BYTES;
    /** The most data of one publisher, each an endpoint. */
    int MAX_DATA = Arguments.COUNT;

    /**
     * Gives the engine an order or asks it something, and waits for the answer.
     *
     * @param operation the {@code op} of a command of the engine, for example {@code settings}
     * @param keysAndValues the command's fields: a name, a value, a name, a value; values as {@link #json} writes them
     * @return the fields of the answer as nested maps and lists; numbers are Long or Double
     */
    Map<String, Object> command(String operation, Object... keysAndValues);

    /**
     * Begins a publisher in the calling thread's frame: its attributes follow, then its data, then {@link #publish}. Nothing is
     * allocated on the Java heap. Until it is published the thread must give no engine anything else; a publisher that is begun
     * and not published leaves no trace.
     *
     * @param source whose entry it is, 1 to 64 bytes
     * @param dataInfoId the service, {@code dataId#@#instanceId#@#group}, 1 to {@link #MAX_DATA_INFO_ID_BYTES} bytes
     * @param registerId the publisher, unique within the service, 1 to {@link #MAX_REGISTER_ID_BYTES} bytes
     * @param version raised by the publisher with every change
     * @param registerTimestamp milliseconds since 1970, decides between equal versions
     * @param cell the zone, at most {@link #MAX_TEXT_BYTES} bytes; null is none
     * @param appName the application, at most {@link #MAX_TEXT_BYTES} bytes; null is none
     * @param sourceAddress the IP address that the publisher's client connects from, with or without a port, at most {@link
     *     #MAX_ADDRESS_BYTES} bytes; null is none
     * @return takes the publisher's attributes and data
     */
    Publication publication(
            String source,
            String dataInfoId,
            String registerId,
            long version,
            long registerTimestamp,
            String cell,
            String appName,
            String sourceAddress);

    /**
     * Adds or updates the publisher that {@link #publication} began on this thread.
     *
     * @param publication what {@link #publication} returned
     * @return as {@link RegistryMox#publish}
     */
    long publish(Publication publication);

    /**
     * Begins a full, successful read of one service, which means what {@link RegistryMox#replace} says.
     *
     * @param source whose entries they are, 1 to 64 bytes
     * @param dataInfoId the service, 1 to {@link #MAX_DATA_INFO_ID_BYTES} bytes
     * @param version the version of what was read; where it is not newer than the last and the read began earlier, the read is
     *     ignored
     * @param startedNanos when the read began, by {@link System#nanoTime}: what was published while it ran is kept
     * @return takes the publishers that were read
     */
    Read read(String source, String dataInfoId, long version, long startedNanos);

    /**
     * Opens an admin page. A page that grows with what is served is made as it is written, in chunks of about 64 KiB; the engine
     * makes one of those at a time and answers 429 for another.
     *
     * @param path the path, {@code /mox} included, for example {@code /mox/dump}
     * @param query what stands behind the question mark, undecoded; empty if nothing
     * @return the page, to be closed
     */
    Page page(String path, String query);

    /**
     * Writes a JSON text.
     *
     * @param value a map, iterable, text, number, boolean or null, nested at most 64 levels; anything else is written as its
     *     {@code toString}
     * @return the text, without line breaks
     */
    String json(Object value);

    /**
     * A publisher on its way into the calling thread's frame. An attribute or a datum that is refused leaves the publisher as it
     * was before that call.
     */
    interface Publication {
        /**
         * Adds an attribute; attributes come before data, at most 65,535.
         *
         * @param key its key, at most {@link #MAX_TEXT_BYTES} bytes
         * @param value its value, at most {@link #MAX_TEXT_BYTES} bytes
         */
        void attribute(String key, String value);

        /**
         * Adds one endpoint, of at most {@link #MAX_DATA}.
         *
         * @param bytes the bytes of its {@code ServerDataBox}, copied; at most {@link #MAX_DATA_BYTES}
         */
        void data(byte[] bytes);
    }

    /**
     * A read of one service on its way into the engine. A large read goes out in pieces, so that it takes no more room on the
     * heap than a thread keeps anyway. {@link #apply} applies the read as a whole; a read that is not applied changes nothing,
     * and the engine forgets it after a minute.
     */
    interface Read {
        /**
         * Begins a publisher; the one before it ends.
         *
         * @param registerId the publisher, unique within the service, 1 to {@link #MAX_REGISTER_ID_BYTES} bytes
         * @param version raised by the publisher with every change
         * @param registerTimestamp milliseconds since 1970, decides between equal versions
         * @param cell the zone, at most {@link #MAX_TEXT_BYTES} bytes; null is none
         * @param sourceAddress as in {@link MoxHost#publication}
         * @return takes the publisher's attributes and data
         */
        Publication publisher(String registerId, long version, long registerTimestamp, String cell, String sourceAddress);

        /** Takes back the publisher that was begun last. Nothing happens where none was, or where it was taken back already. */
        void leaveOut();

        /**
         * Applies the read, once.
         *
         * @return as {@link RegistryMox#publish}
         */
        long apply();
    }

    /** An admin page. A large page ends where 10 seconds pass without a next chunk being asked for. */
    interface Page extends AutoCloseable {
        /**
         * The HTTP status.
         *
         * @return for example 200; 429 where another large page is being read
         */
        int status();

        /**
         * The media type.
         *
         * @return the value of a {@code Content-Type}
         */
        String contentType();

        /**
         * When to ask again.
         *
         * @return the value of a {@code Retry-After}, in seconds; 0 where the answer needs none
         */
        long retryAfter();

        /**
         * What {@code If-Match} takes of whoever changes what the page shows.
         *
         * @return the value of an {@code ETag}, in quotes; null where the page has none
         */
        String etag();

        /**
         * Writes the page, once.
         *
         * @param out where to; it is not closed
         * @throws IOException what {@code out} throws
         */
        void writeTo(OutputStream out) throws IOException;

        /** Ends a page that was not written to its end, so that another can be opened. */
        @Override
        void close();
    }
}
