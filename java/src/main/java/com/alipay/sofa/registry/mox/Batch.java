package com.alipay.sofa.registry.mox;

/**
 * Many events of one source in few calls. Not thread-safe.
 *
 * <p>Events are sent in order when enough are there, on {@link #send()} and on {@link #close()}. Each is applied as if it had
 * been sent alone: an event that is refused leaves the others unharmed.
 */
public final class Batch implements AutoCloseable {
    private static final int MAX_EVENTS = 1_024;
    private static final int MAX_BYTES = 256 << 10;

    private final RegistryMox mox;
    private final String source;
    private final FrameEncoder encoder = new FrameEncoder();
    private long sequence;

    Batch(RegistryMox mox, String source) {
        this.mox = mox;
        this.source = Arguments.required("source", source);
    }

    /**
     * Adds one publisher, as {@link RegistryMox#publish}.
     *
     * @param publish the publisher
     * @return this batch
     */
    public Batch publish(Publish publish) {
        encoder.publish(source, Arguments.required("publish", publish));
        return sendIfFull();
    }

    /**
     * Removes one publisher, as {@link RegistryMox#unpublish}.
     *
     * @param dataInfoId the service, 1 to 4,096 bytes
     * @param registerId the publisher, 1 to 512 bytes
     * @param version the version of the removal
     * @param registerTimestamp milliseconds since 1970, decides between equal versions
     * @return this batch
     */
    public Batch unpublish(String dataInfoId, String registerId, long version, long registerTimestamp) {
        encoder.unpublish(source, dataInfoId, registerId, version, registerTimestamp);
        return sendIfFull();
    }

    /**
     * Says that the client of one publisher has left. The publisher stays until a {@link RegistryMox#replace} whose read began
     * later does not name it; that the publisher is new does not spare it then.
     *
     * @param dataInfoId the service, 1 to 4,096 bytes
     * @param registerId the publisher, 1 to 512 bytes
     * @param version the version that the client had published; a newer one is not meant
     * @param registerTimestamp milliseconds since 1970, decides between equal versions
     * @return this batch
     */
    public Batch lost(String dataInfoId, String registerId, long version, long registerTimestamp) {
        encoder.lost(source, dataInfoId, registerId, version, registerTimestamp);
        return sendIfFull();
    }

    /**
     * Sends what is not sent yet.
     *
     * @return the sequence number of the last event that was sent; 0 if none was, or the engine is closed
     */
    public long send() {
        if (encoder.events() > 0) {
            try {
                sequence = mox.apply(encoder);
            } finally {
                encoder.begin();
            }
        }
        return sequence;
    }

    /** Sends what is not sent yet. */
    @Override
    public void close() {
        send();
    }

    private Batch sendIfFull() {
        if (encoder.events() >= MAX_EVENTS || encoder.length() >= MAX_BYTES) {
            send();
        }
        return this;
    }
}
