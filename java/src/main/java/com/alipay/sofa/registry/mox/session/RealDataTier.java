package com.alipay.sofa.registry.mox.session;

import com.alipay.remoting.rpc.RpcClient;
import com.alipay.sofa.registry.common.model.GenericResponse;
import com.alipay.sofa.registry.common.model.dataserver.DatumDigest;
import com.alipay.sofa.registry.common.model.dataserver.DatumVersion;
import com.alipay.sofa.registry.common.model.slot.DataSlotDiffDigestRequest;
import com.alipay.sofa.registry.common.model.slot.DataSlotDiffDigestResult;
import com.alipay.sofa.registry.common.model.slot.Slot;
import com.alipay.sofa.registry.common.model.slot.SlotTable;
import com.alipay.sofa.registry.common.model.slot.filter.SyncSlotAcceptAllManager;
import com.alipay.sofa.registry.common.model.store.MultiSubDatum;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import com.alipay.sofa.registry.remoting.Channel;
import com.alipay.sofa.registry.remoting.exchange.ExchangeCallback;
import com.alipay.sofa.registry.server.session.node.service.DataNodeService;
import com.alipay.sofa.registry.server.session.slot.SlotTableCache;
import com.alipay.sofa.registry.server.shared.util.DatumUtils;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/**
 * The data servers through the session server's own services. Only comparisons have none: they take the way by which data
 * servers follow each other, over connections of our own.
 */
final class RealDataTier implements DataTier {
    private static final int TIMEOUT_MILLIS = 3_000;

    private final String dataCenter;
    private final Set<String> dataCenters;
    private final SlotTableCache slots;
    private final DataNodeService data;
    private final int syncPort;
    private final RpcClient client = new RpcClient();

    RealDataTier(String dataCenter, SlotTableCache slots, DataNodeService data, int syncPort) {
        this.dataCenter = dataCenter;
        this.dataCenters = Collections.singleton(dataCenter);
        this.slots = slots;
        this.data = data;
        this.syncPort = syncPort;
        client.startup();
    }

    @Override
    public SlotTable slotTable() {
        return slots.getLocalSlotTable();
    }

    @Override
    public int slotOf(String dataInfoId) {
        return slots.slotOf(dataInfoId);
    }

    @Override
    public SubDatum fetch(String dataInfoId) {
        MultiSubDatum all = data.fetch(dataInfoId, dataCenters);
        if (all == null || all.getDatumMap() == null) {
            return null;
        }
        SubDatum datum = all.getDatumMap().get(dataCenter);
        return datum == null ? null : DatumUtils.decompressSubDatum(datum);
    }

    /** Asks for the versions of no service: one that is named and unknown there would be created. */
    @Override
    public void contact(Slot slot) throws Exception {
        CompletableFuture<Void> answer = new CompletableFuture<>();
        data.fetchDataVersion(
                dataCenter,
                slot.getId(),
                new HashMap<>(),
                new ExchangeCallback<Map<String, DatumVersion>>() {
                    @Override
                    public void onCallback(Channel channel, Map<String, DatumVersion> versions) {
                        answer.complete(null);
                    }

                    @Override
                    public void onException(Channel channel, Throwable failure) {
                        answer.completeExceptionally(failure);
                    }
                });
        answer.get(TIMEOUT_MILLIS, TimeUnit.MILLISECONDS);
    }

    @Override
    public DataSlotDiffDigestResult compare(SlotTable table, Slot slot, Map<String, DatumDigest> known) throws Exception {
        DataSlotDiffDigestRequest request =
                DataSlotDiffDigestRequest.buildRequest(
                        dataCenter, table.getEpoch(), slot.getId(), slot.getLeaderEpoch(), known, new SyncSlotAcceptAllManager());
        Object answer = client.invokeSync(slot.getLeader() + ":" + syncPort, request, TIMEOUT_MILLIS);
        GenericResponse<?> response = (GenericResponse<?>) answer;
        if (!response.isSuccess() || response.getData() == null) {
            throw new IllegalStateException("slot " + slot.getId() + " on " + slot.getLeader() + ": " + response.getMessage());
        }
        return (DataSlotDiffDigestResult) response.getData();
    }

    @Override
    public void close() {
        client.shutdown();
    }
}
