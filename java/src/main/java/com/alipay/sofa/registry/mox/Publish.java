package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

/**
 * A publisher of a service: who it is, how new it is and what it publishes. Immutable.
 *
 * <p>The newest {@code (version, registerTimestamp)} of a {@code (source, dataInfoId, registerId)} wins, so a later publish of
 * the same publisher needs a higher one.
 */
public final class Publish {
    private static final String[] NO_ATTRIBUTES = new String[0];
    private static final byte[][] NO_DATA = new byte[0][];

    final String dataInfoId;
    final String registerId;
    final long version;
    final long registerTimestamp;
    final String cell;
    final String appName;
    /** Empty if it is not known. */
    final String sourceAddress;
    /** Key, value, key, value: arrays are walked without an iterator, so encoding allocates nothing. */
    final String[] attributes;
    /** Whether the data are bytes of {@code ServerDataBox}es, not UTF-8 text. */
    final boolean boxes;

    final byte[][] data;
    /** Made when first published, shared with later versions. Volatile, so that any thread sees it whole. */
    private volatile byte[] encoded;

    private Publish(
            String dataInfoId,
            String registerId,
            long version,
            long registerTimestamp,
            String cell,
            String appName,
            String sourceAddress,
            String[] attributes,
            boolean boxes,
            byte[][] data,
            byte[] encoded) {
        this.dataInfoId = dataInfoId;
        this.registerId = registerId;
        this.version = version;
        this.registerTimestamp = registerTimestamp;
        this.cell = cell;
        this.appName = appName;
        this.sourceAddress = sourceAddress;
        this.attributes = attributes;
        this.boxes = boxes;
        this.data = data;
        this.encoded = encoded;
    }

    /** The dataInfoId and the publisher's body, as they lie in a frame. */
    byte[] encoded() {
        byte[] bytes = encoded;
        if (bytes == null) {
            bytes = FrameEncoder.encode(this);
            encoded = bytes;
        }
        return bytes;
    }

    /** Where the body begins in {@link #encoded()}: behind the dataInfoId and its 16-bit length. */
    int bodyAt() {
        byte[] bytes = encoded();
        return 2 + (bytes[0] & 0xFF | (bytes[1] & 0xFF) << 8);
    }

    /**
     * Starts a publisher.
     *
     * @param dataInfoId the service, {@code dataId#@#instanceId#@#group}, 1 to 4,096 bytes
     * @param registerId the publisher, unique within the service, 1 to 512 bytes
     * @return a builder without data, in version 0
     */
    public static Builder of(String dataInfoId, String registerId) {
        return new Builder(dataInfoId, registerId);
    }

    /**
     * The same in another version, to publish the same data again. Shares everything else with this one, so it costs one small
     * object however much data there is.
     *
     * @param version raised by the publisher with every change
     * @param registerTimestamp milliseconds since 1970, decides between equal versions
     * @return the publisher in that version
     */
    public Publish version(long version, long registerTimestamp) {
        return new Publish(
                dataInfoId, registerId, version, registerTimestamp, cell, appName, sourceAddress, attributes, boxes, data, encoded);
    }

    /**
     * The service.
     *
     * @return {@code dataId#@#instanceId#@#group}
     */
    public String dataInfoId() {
        return dataInfoId;
    }

    /**
     * The publisher.
     *
     * @return its id within the service
     */
    public String registerId() {
        return registerId;
    }

    @Override
    public String toString() {
        return "Publish(" + dataInfoId + ", " + registerId + ", version " + version + ")";
    }

    /** Collects the parts of a {@link Publish}. Not thread-safe. */
    public static final class Builder {
        private final String dataInfoId;
        private final String registerId;
        private long version;
        private long registerTimestamp;
        private String cell = "";
        private String appName = "";
        private String sourceAddress = "";
        private List<String> attributes;
        private boolean boxes;
        private List<byte[]> data;

        private Builder(String dataInfoId, String registerId) {
            this.dataInfoId = Arguments.required("dataInfoId", dataInfoId);
            this.registerId = Arguments.required("registerId", registerId);
        }

        /**
         * How new it is.
         *
         * @param version raised by the publisher with every change
         * @param registerTimestamp milliseconds since 1970, decides between equal versions
         * @return this builder
         */
        public Builder version(long version, long registerTimestamp) {
            this.version = version;
            this.registerTimestamp = registerTimestamp;
            return this;
        }

        /**
         * The zone of the publisher.
         *
         * @param cell the zone, at most 65,535 bytes; null is none
         * @return this builder
         */
        public Builder cell(String cell) {
            this.cell = cell == null ? "" : cell;
            return this;
        }

        /**
         * The application of the publisher, as the registry knows it. The name is kept but not served: the label {@code app} and
         * direct mode take the parameter {@code app_name} of the data.
         *
         * @param appName the name, at most 65,535 bytes; null is none
         * @return this builder
         */
        public Builder appName(String appName) {
            this.appName = appName == null ? "" : appName;
            return this;
        }

        /**
         * The address that the publisher has. With {@code policy.direct.balance: mesh} an endpoint counts as its application's only
         * at this address, or where {@code policy.direct.addresses} names it.
         *
         * @param address an IP address, with or without a port, at most 128 bytes; null is none
         * @return this builder
         */
        public Builder sourceAddress(String address) {
            this.sourceAddress = address == null ? "" : address;
            return this;
        }

        /**
         * Adds an attribute of the publisher, which is kept but not served.
         *
         * @param key its key, at most 65,535 bytes
         * @param value its value, at most 65,535 bytes
         * @return this builder
         */
        public Builder attribute(String key, String value) {
            Arguments.required("attribute key", key);
            Arguments.required("attribute value", value);
            if (attributes == null) {
                attributes = new ArrayList<>();
            }
            attributes.add(key);
            attributes.add(value);
            return this;
        }

        /**
         * Several attributes of the publisher.
         *
         * @param all keys and values, at most 65,535 of each publisher
         * @return this builder
         */
        public Builder attributes(Map<String, String> all) {
            Arguments.required("attributes", all);
            all.forEach(this::attribute);
            return this;
        }

        /**
         * Endpoint URLs as text, as a registry client publishes them.
         *
         * @param urls for example {@code 10.0.0.1:12200?app_name=demo&p=1}, each at most 1 MiB of UTF-8
         * @return this builder
         */
        public Builder data(String... urls) {
            Arguments.required("data", urls);
            List<byte[]> texts = data(false);
            for (String url : urls) {
                texts.add(Arguments.required("data", url).getBytes(StandardCharsets.UTF_8));
            }
            return this;
        }

        /**
         * Adds an endpoint URL in the bytes of a {@code ServerDataBox}, that is a Java-serialized String.
         *
         * @param box the bytes, at most 1 MiB; not copied, so they must not change until the publish call has returned
         * @return this builder
         */
        public Builder serialized(byte[] box) {
            data(true).add(Arguments.required("data", box));
            return this;
        }

        /**
         * Makes the value. Lengths are checked when it is first published.
         *
         * @return the publisher, which later calls of this builder do not change
         */
        public Publish build() {
            return new Publish(
                    dataInfoId,
                    registerId,
                    version,
                    registerTimestamp,
                    cell,
                    appName,
                    sourceAddress,
                    attributes == null ? NO_ATTRIBUTES : attributes.toArray(NO_ATTRIBUTES),
                    boxes,
                    data == null ? NO_DATA : data.toArray(NO_DATA),
                    null);
        }

        private List<byte[]> data(boolean inBoxes) {
            if (data == null) {
                data = new ArrayList<>();
                boxes = inBoxes;
            } else if (boxes != inBoxes) {
                throw new MoxException(
                        Code.INVALID_ARGUMENT,
                        "data of " + Arguments.shown(dataInfoId) + ": text and serialized data in one publisher; use one of them");
            }
            return data;
        }
    }
}
