package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.ClientOffPublishers;
import com.alipay.sofa.registry.common.model.PublishType;
import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.common.model.store.URL;
import com.alipay.sofa.registry.mox.Batch;
import com.alipay.sofa.registry.mox.MoxHost;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest;
import java.util.Collections;
import java.util.List;

/** Turns the session server's write requests into events of the source {@code registry}. */
final class SessionEvents {
    static final String SOURCE = "registry";

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
     * Passes on one write request. A {@link RefusedException} says of which publisher not all could be; the others are passed on.
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
                    mox.unpublish(SOURCE, gone.getDataInfoId(), key(gone), gone.getVersion(), gone.getRegisterTimestamp());
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
                    String registerId = key(gone);
                    if (registry == null) {
                        batch.unpublish(id, registerId, gone.getVersion(), gone.getRegisterTimestamp());
                    } else {
                        batch.lost(id, registerId, gone.getVersion(), gone.getRegisterTimestamp());
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

    /** Publishes the part that fits; the part left out is thrown as a refusal when the rest is in. */
    private static void publish(RegistryMox mox, Publisher from) {
        MoxHost host = mox.host();
        MoxHost.Publication to = begin(host, from);
        Refusal refusal = fill(to, from);
        host.publish(to);
        if (refusal != null) {
            throw new RefusedException(refusal, from.getDataInfoId(), from.getRegisterId());
        }
    }

    static MoxHost.Publication begin(MoxHost host, Publisher from) {
        String cell = from.getCell();
        String appName = from.getAppName();
        URL source = from.getSourceAddress();
        return host.publication(
                SOURCE,
                from.getDataInfoId(),
                key(from),
                from.getVersion(),
                from.getRegisterTimestamp(),
                Publishers.isText(cell) ? cell : null,
                Publishers.isText(appName) ? appName : null,
                source == null ? null : Publishers.sourceAddress(source.getIpAddress()));
    }

    /** Why not all of it is there; null if it is. */
    static Refusal fill(MoxHost.Publication to, Publisher from) {
        Refusal refusal = Publishers.isText(from.getCell()) ? null : Refusal.CELL;
        refusal = Publishers.isText(from.getAppName()) ? refusal : Refusal.first(refusal, Refusal.APP_NAME);
        if (from.attributesSize() > 0) { // the registry copies the map, so ask it only where there is one
            refusal = Refusal.first(refusal, Publishers.attributes(to, from.getAttributes()));
        }
        return Refusal.first(refusal, Publishers.data(to, from.getDataList()));
    }

    /** The publisher's registerId in events of its service. */
    private static String key(Publisher of) {
        if (!Publishers.isDataInfoId(of.getDataInfoId())) {
            throw new RefusedException(Refusal.DATA_INFO_ID, of.getDataInfoId(), of.getRegisterId());
        }
        String key = Publishers.registerId(of.getRegisterId());
        if (key == null) {
            throw new RefusedException(Refusal.NO_REGISTER_ID, of.getDataInfoId(), null);
        }
        return key;
    }
}
