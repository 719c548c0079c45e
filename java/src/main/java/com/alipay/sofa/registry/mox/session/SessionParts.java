package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.server.session.bootstrap.SessionServerConfig;
import com.alipay.sofa.registry.server.session.node.service.DataNodeService;
import com.alipay.sofa.registry.server.session.providedata.FetchStopPushService;
import com.alipay.sofa.registry.server.session.slot.SlotTableCache;
import com.alipay.sofa.registry.server.session.store.Interests;
import com.alipay.sofa.registry.server.shared.env.ServerEnv;
import com.alipay.sofa.registry.server.shared.meta.MetaServerService;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import java.util.function.Consumer;
import java.util.function.Supplier;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.beans.factory.ListableBeanFactory;

/** The parts that run beside the session server once it is up, made of its beans. */
final class SessionParts implements AutoCloseable {
    private static final Logger LOG = LoggerFactory.getLogger("MOX");

    private final String dataCenter;
    private final Sessions sessions;
    /** Null with local scope. */
    private final ClusterFeed feed;
    /** Null where there is nothing to watch. */
    private final SessionWatch watch;

    /** Null where the registry has no metrics of this kind. */
    private final MoxCollector metrics;

    /** Null where session servers share no documents. */
    private final DocumentFollower documents;

    /** Null where there is nobody to watch. */
    private final ConsumerWatch consumers;

    private SessionParts(
            String dataCenter,
            Sessions sessions,
            ClusterFeed feed,
            SessionWatch watch,
            MoxCollector metrics,
            DocumentFollower documents,
            ConsumerWatch consumers) {
        this.consumers = consumers;
        this.documents = documents;
        this.metrics = metrics;
        this.dataCenter = dataCenter;
        this.sessions = sessions;
        this.feed = feed;
        this.watch = watch;
    }

    /**
     * With local scope a bean that is missing leaves out what is made of it; with cluster scope it is an error.
     *
     * @param refused how often an event was refused, by the reason
     * @param broken takes an error of linkage that comes later
     */
    static SessionParts start(
            ListableBeanFactory beans,
            RegistryMox mox,
            Map<String, Object> settings,
            Supplier<Map<String, Object>> refused,
            Consumer<Throwable> broken) {
        boolean cluster = "cluster".equals(settings.get("scope"));
        SessionServerConfig config = bean(beans, SessionServerConfig.class, cluster);
        MetaServerService meta = bean(beans, MetaServerService.class, cluster);
        FetchStopPushService stop = bean(beans, FetchStopPushService.class, cluster);
        Sessions sessions = new Sessions(() -> others(meta), config == null ? 9603 : config.getHttpServerPort());
        ClusterFeed feed = null;
        String dataCenter = "";
        if (cluster) {
            dataCenter = config.getSessionServerDataCenter();
            SlotTableCache slots = bean(beans, SlotTableCache.class, true);
            DataNodeService data = bean(beans, DataNodeService.class, true);
            int syncPort = ((Long) settings.get("syncPort")).intValue();
            feed = new ClusterFeed(mox, new RealDataTier(dataCenter, slots, data, syncPort), settings, broken);
        }
        SessionWatch watch = null;
        if (stop != null) {
            long maxSilent = (Long) settings.get("maxStalenessMillis");
            // A gray push, to some addresses while all others wait, thaws nothing: PushSwitchService would say that pushes go on.
            watch = new SessionWatch(mox, () -> !stop.isStopPushSwitch(), feed, sessions, maxSilent, refused, broken);
        }
        Future<?> baseline = sessions.baseline(mox);
        // Before anything is served: under which policy, and whether at all.
        DocumentFollower documents = documents(beans, mox, settings);
        SessionParts parts = new SessionParts(
                dataCenter, sessions, feed, watch, metrics(mox), documents, consumers(beans, mox, sessions, documents));
        if (feed != null) {
            feed.start(baseline);
        }
        if (watch != null) {
            watch.start();
        }
        if (parts.consumers != null) {
            parts.consumers.start();
        }
        return parts;
    }

    /** Null where documents are off, in which all that comes of it would stand, or where a registry has not what it takes. */
    private static ConsumerWatch consumers(
            ListableBeanFactory beans, RegistryMox mox, Sessions sessions, DocumentFollower documents) {
        try {
            SessionServerConfig config = bean(beans, SessionServerConfig.class, false);
            MetaServerService meta = bean(beans, MetaServerService.class, false);
            Interests interests = bean(beans, Interests.class, false);
            if (documents == null || config == null || meta == null || interests == null) {
                return null;
            }
            RealConsumerSource source = new RealConsumerSource(interests, meta, config.getConsolePort());
            return new ConsumerWatch(mox, source, sessions, documents, ServerEnv.IP);
        } catch (Throwable t) {
            // Several beans of a kind, or a class that is missing: all else goes without it.
            LOG.error("event=consumers_off who subscribes cannot be seen in this registry version: {}", t.toString());
            return null;
        }
    }

    /** Null, with one line in the log, where there is no store that a document would outlive a restart in. */
    private static DocumentFollower documents(ListableBeanFactory beans, RegistryMox mox, Map<String, Object> settings) {
        Map<?, ?> keys = (Map<?, ?>) settings.get("documents");
        if (keys == null || keys.isEmpty()) {
            return null; // nothing could be signed, which the status says
        }
        DocumentFollower documents = null;
        try {
            DocumentStore store = RealDocumentStore.of(beans);
            documents = new DocumentFollower(mox, store, keys, DocumentFollower.POLL_MILLIS, DocumentFollower.CALL_MILLIS);
            documents.start();
            return documents;
        } catch (Throwable t) {
            if (documents != null) {
                documents.close();
            }
            String why = t instanceof IllegalStateException ? t.getMessage() : t.toString();
            String line = "event=documents_off session servers share no policy and no freeze: {}";
            if (why.startsWith(RealDocumentStore.NOT_PERSISTENT)) {
                LOG.warn(line, why); // as a registry for a demo is
            } else {
                LOG.error(line, why);
            }
            // Pages are open to everybody: of what others say there, they have the kind.
            mox.host().command("noDocuments", "why", t instanceof IllegalStateException ? why : t.getClass().getName());
            return null;
        }
    }

    /** They are at {@code /mox/metrics} as well, so nothing is lost where they find no place here. */
    private static MoxCollector metrics(RegistryMox mox) {
        try {
            return MoxCollector.start(mox);
        } catch (LinkageError | IllegalArgumentException e) {
            return null;
        }
    }

    private static <T> T bean(ListableBeanFactory beans, Class<T> type, boolean required) {
        return required ? beans.getBean(type) : beans.getBeanProvider(type).getIfAvailable();
    }

    private static List<String> others(MetaServerService meta) {
        List<String> all = meta == null ? null : meta.getSessionServerList(null);
        List<String> others = new ArrayList<>(all == null ? Collections.emptyList() : all);
        others.removeIf(server -> server == null || server.equals(ServerEnv.IP));
        return others;
    }

    /** A notice, on one of the registry's threads. */
    void changed(String ofDataCenter, Iterable<String> ids) {
        if (feed != null && dataCenter.equals(ofDataCenter)) {
            feed.changed(ids);
        }
    }

    /** Has a service read anew. */
    void mark(String id) {
        if (feed != null && id != null) {
            feed.mark(id);
        }
    }

    /** Whether the registry may be ahead of what clients say here. */
    boolean isBehind() {
        return feed != null && feed.isBehind();
    }

    Sessions sessions() {
        return sessions;
    }

    /** Null where session servers share no documents. */
    DocumentFollower documents() {
        return documents;
    }

    @Override
    public void close() {
        if (metrics != null) {
            metrics.close();
        }
        if (consumers != null) {
            consumers.close();
        }
        if (documents != null) {
            documents.close();
        }
        if (watch != null) {
            watch.close();
        }
        if (feed != null) {
            feed.close();
        }
    }
}
