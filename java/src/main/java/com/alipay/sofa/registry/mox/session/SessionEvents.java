package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.ClientOffPublishers;
import com.alipay.sofa.registry.common.model.PublishType;
import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.mox.Batch;
import com.alipay.sofa.registry.mox.FrameEncoder;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.RandomAccess;

/** Turns the session server's write requests into events of the source {@code registry}. */
final class SessionEvents {
    static final String SOURCE = "registry";
    /** An attribute is not served; three bytes a character stay within a frame's 65,535. */
    private static final int ATTRIBUTE_CHARS = 8 << 10;

    private SessionEvents() {}

    /** The registry behind this session server. */
    interface Registry {
        /** Has a service read from it. */
        void reread(String dataInfoId);

        /** Whether it may be ahead of what is said here: this process has stood still, and its clients have moved meanwhile. */
        default boolean isAhead() {
            return false;
        }
    }

    /**
     * Passes on one write request.
     *
     * @param registry null with local scope, where nothing is read. With it, what a lost client had is left to the registry: a
     *     client that has moved to another session server has published there with the same version, of which there is no
     *     notice, and the registry keeps it. So is what a client takes back while the registry may be ahead.
     */
    static void record(RegistryMox mox, Object written, Registry registry) {
        WriteDataRequest<?> request = (WriteDataRequest<?>) written;
        switch (request.getRequestType()) {
            case PUBLISHER:
                Publisher publisher = (Publisher) request.getRequestBody();
                // A temporary one is pushed once and stored nowhere.
                if (publisher.getPublishType() != PublishType.TEMPORARY) {
                    publish(mox, publisher);
                }
                break;
            case UN_PUBLISHER:
                Publisher gone = (Publisher) request.getRequestBody();
                if (registry != null && registry.isAhead()) {
                    lost(mox, Collections.singletonList(gone), registry);
                } else {
                    mox.unpublish(
                            SOURCE, gone.getDataInfoId(), gone.getRegisterId(), gone.getVersion(), gone.getRegisterTimestamp());
                }
                break;
            case CLIENT_OFF:
                lost(mox, ((ClientOffPublishers) request.getRequestBody()).getPublishers(), registry);
                break;
            default:
                throw new IllegalArgumentException("unknown write request " + request.getRequestType());
        }
    }

    /** Removes each publisher in the version that it had, so one that has come back since is newer and stays. */
    private static void lost(RegistryMox mox, List<Publisher> all, Registry registry) {
        RuntimeException first = null;
        try (Batch batch = mox.batch(SOURCE)) {
            for (Publisher gone : all) {
                try {
                    String id = gone.getDataInfoId();
                    if (registry == null) {
                        batch.unpublish(id, gone.getRegisterId(), gone.getVersion(), gone.getRegisterTimestamp());
                    } else {
                        batch.lost(id, gone.getRegisterId(), gone.getVersion(), gone.getRegisterTimestamp());
                    }
                } catch (RuntimeException e) {
                    first = first == null ? e : first;
                }
            }
        }
        if (registry != null) {
            all.forEach(gone -> registry.reread(gone.getDataInfoId()));
        }
        if (first != null) {
            throw first;
        }
    }

    /** What cannot be passed on is left out, and said when the rest is in. */
    private static void publish(RegistryMox mox, Publisher from) {
        FrameEncoder to = encoder(from);
        int leftOut = fill(to, from);
        mox.publish(to);
        if (leftOut > 0) {
            throw new IllegalArgumentException(
                    leftOut + " attributes or data of " + from.getDataInfoId() + " left out: null, or longer than "
                            + ATTRIBUTE_CHARS + " characters or " + FrameEncoder.MAX_DATA_BYTES + " bytes");
        }
    }

    static FrameEncoder encoder(Publisher from) {
        return FrameEncoder.publishing(
                SOURCE,
                from.getDataInfoId(),
                from.getRegisterId(),
                from.getVersion(),
                from.getRegisterTimestamp(),
                from.getCell(),
                from.getAppName());
    }

    /** How many attributes and data were left out. */
    static int fill(FrameEncoder to, Publisher from) {
        return attributes(to, from) + data(to, from);
    }

    private static int attributes(FrameEncoder to, Publisher from) {
        int leftOut = 0;
        if (from.attributesSize() > 0) { // the registry copies the map, so ask it only where there is one
            for (Map.Entry<String, String> attribute : from.getAttributes().entrySet()) {
                String key = attribute.getKey();
                String value = attribute.getValue();
                if (key == null || value == null || key.length() > ATTRIBUTE_CHARS || value.length() > ATTRIBUTE_CHARS) {
                    leftOut++;
                } else if (!key.startsWith("!")) { // '!' marks the client's credentials
                    to.attribute(key, value);
                }
            }
        }
        return leftOut;
    }

    private static int data(FrameEncoder to, Publisher from) {
        int leftOut = 0;
        List<ServerDataBox> boxes = indexed(from.getDataList());
        for (int i = 0; i < boxes.size(); i++) {
            ServerDataBox box = boxes.get(i);
            byte[] bytes = box == null ? null : bytes(box);
            if (bytes == null || bytes.length > FrameEncoder.MAX_DATA_BYTES) {
                leftOut++;
            } else {
                to.data(bytes);
            }
        }
        return leftOut;
    }

    /** Walked by index, because an iterator is an allocation. */
    private static List<ServerDataBox> indexed(List<ServerDataBox> boxes) {
        if (boxes == null) {
            return Collections.emptyList();
        }
        return boxes instanceof RandomAccess ? boxes : new ArrayList<>(boxes);
    }

    /** Never extract(): it stores the object in the box, which the registry shares and compares. */
    static byte[] bytes(ServerDataBox box) {
        byte[] bytes = box.getBytes();
        return bytes != null ? bytes : ServerDataBox.getBytes(box.getObject());
    }
}
