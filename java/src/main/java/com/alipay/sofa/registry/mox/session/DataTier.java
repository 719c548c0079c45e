package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.dataserver.DatumDigest;
import com.alipay.sofa.registry.common.model.slot.DataSlotDiffDigestResult;
import com.alipay.sofa.registry.common.model.slot.Slot;
import com.alipay.sofa.registry.common.model.slot.SlotTable;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import java.util.Map;

/**
 * The data servers of the local data center, as the feed needs them. Every call may throw, and then nothing is
 * known: a failure is never "empty".
 */
interface DataTier extends AutoCloseable {
    /** The slots and their leaders, as this session server knows them. */
    SlotTable slotTable();

    int slotOf(String dataInfoId);

    /** The address of a slot's leader, as this session server knows it; null if there is none. */
    default String leaderOf(int slot) {
        Slot found = slotTable().getSlot(slot);
        return found == null ? null : found.getLeader();
    }

    /** Reads one service from its slot's leader, which answers only if it holds the whole slot; null if there is no such. */
    SubDatum fetch(String dataInfoId) throws Exception;

    /** Returns only if the leader of the slot answers, is the leader, and holds the whole slot. */
    void contact(Slot slot) throws Exception;

    /** Asks the leader of the slot which of its services differ from these, are not in these, or are gone. */
    DataSlotDiffDigestResult compare(SlotTable table, Slot slot, Map<String, DatumDigest> known) throws Exception;

    /** Without an exception: there is nothing to be done about it. */
    @Override
    void close();
}
