package com.alipay.sofa.registry.mox.session;

import com.alipay.remoting.rpc.RpcClient;
import com.alipay.sofa.registry.common.model.GenericResponse;
import com.alipay.sofa.registry.common.model.sessionserver.FilterSubscriberIPsRequest;
import com.alipay.sofa.registry.common.model.store.Subscriber;
import com.alipay.sofa.registry.server.session.store.Interests;
import com.alipay.sofa.registry.server.shared.meta.MetaServerService;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.BiConsumer;

/** The session server's own subscribers, and others' by their console port. */
final class RealConsumerSource implements ConsumerSource {
    private static final int TIMEOUT_MILLIS = 3_000;

    private final Interests interests;
    private final MetaServerService meta;
    private final int consolePort;
    /** Null before the first question, and after the end. */
    private RpcClient client;

    private boolean closed;

    RealConsumerSource(Interests interests, MetaServerService meta, int consolePort) {
        this.interests = interests;
        this.meta = meta;
        this.consolePort = consolePort;
    }

    /** It has threads of its own, which only the session server needs that asks. */
    private synchronized RpcClient client() {
        if (closed) {
            throw new IllegalStateException("closed");
        }
        if (client == null) {
            RpcClient started = new RpcClient();
            started.startup();
            client = started;
        }
        return client;
    }

    @Override
    public void own(BiConsumer<String, Collection<?>> services) {
        interests.forEach((dataInfoId, subscribers) -> services.accept(dataInfoId, subscribers.values()));
    }

    @Override
    public void own(String dataInfoId, Sink sink) {
        for (Subscriber subscriber : interests.getDatas(dataInfoId)) {
            if (subscriber.getSourceAddress() != null) {
                String address = subscriber.getSourceAddress().getIpAddress();
                sink.subscription(address, subscriber.getCell(), subscriber.getAppName());
            }
        }
    }

    @Override
    public List<String> servers() {
        List<String> all = meta.getSessionServerList(null);
        return all == null ? Collections.emptyList() : new ArrayList<>(all);
    }

    @Override
    public Map<String, List<String>> ask(String server, String group) throws Exception {
        // The limit is for each service.
        FilterSubscriberIPsRequest request = new FilterSubscriberIPsRequest(group, Integer.MAX_VALUE);
        Object answer = client().invokeSync(server + ":" + consolePort, request, TIMEOUT_MILLIS);
        GenericResponse<?> response = (GenericResponse<?>) answer;
        if (!response.isSuccess() || !(response.getData() instanceof Map)) {
            throw new IllegalStateException("group " + group + " on " + server + ": " + response.getMessage());
        }
        Map<String, List<String>> all = new LinkedHashMap<>();
        for (Map.Entry<?, ?> service : ((Map<?, ?>) response.getData()).entrySet()) {
            List<String> addresses = new ArrayList<>();
            for (Object address : (List<?>) service.getValue()) {
                addresses.add((String) address);
            }
            all.put((String) service.getKey(), addresses);
        }
        return all;
    }

    @Override
    public synchronized void close() {
        closed = true;
        if (client != null) {
            client.shutdown();
            client = null;
        }
    }
}
