package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.PublishSource;
import com.alipay.sofa.registry.common.model.PublisherDigestUtil;
import com.alipay.sofa.registry.common.model.RegisterVersion;
import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.dataserver.DatumDigest;
import com.alipay.sofa.registry.common.model.dataserver.DatumSummary;
import com.alipay.sofa.registry.common.model.slot.DataSlotDiffDigestResult;
import com.alipay.sofa.registry.common.model.slot.DataSlotDiffUtils;
import com.alipay.sofa.registry.common.model.slot.Slot;
import com.alipay.sofa.registry.common.model.slot.SlotTable;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import com.alipay.sofa.registry.common.model.store.SubPublisher;
import com.alipay.sofa.registry.mox.TestData;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;

/** Data servers as a map; compares as the real ones do. */
final class FakeDataTier implements DataTier {
    static final String DATA_CENTER = "DefaultDataCenter";
    static final int SLOTS = 4;

    private final Map<String, Map<String, SubPublisher>> publishers = new TreeMap<>();
    private final Map<String, Long> versions = new HashMap<>();
    private long version = 1_000;
    private long epoch = 1;
    /** Slots whose leader does not answer. */
    final Set<Integer> down = ConcurrentHashMap.newKeySet();
    /** Services that cannot be read. */
    final Set<String> broken = ConcurrentHashMap.newKeySet();

    synchronized void put(String id, String registerId, long registerVersion, long timestamp, String... urls) {
        List<ServerDataBox> boxes = new ArrayList<>();
        for (String url : urls) {
            boxes.add(new ServerDataBox(TestData.box(url)));
        }
        publishers
                .computeIfAbsent(id, k -> new TreeMap<>())
                .put(registerId, new SubPublisher(registerId, "DEFAULT_ZONE", boxes, "c", registerVersion, "a", timestamp, PublishSource.CLIENT));
        versions.put(id, version++);
    }

    synchronized void remove(String id, String registerId) {
        publishers.get(id).remove(registerId);
        versions.put(id, version++);
    }

    /** As compaction does. */
    synchronized void forget(String id) {
        publishers.remove(id);
        versions.remove(id);
    }

    /** Every slot has another leader, whose clock is behind. */
    synchronized void fail() {
        epoch++;
        version = 1;
        versions.replaceAll((id, old) -> version++);
    }

    @Override
    public synchronized SlotTable slotTable() {
        List<Slot> slots = new ArrayList<>();
        for (int slot = 0; slot < SLOTS; slot++) {
            slots.add(new Slot(slot, "10.0.0." + epoch, epoch, Collections.emptyList()));
        }
        return new SlotTable(epoch, slots);
    }

    @Override
    public int slotOf(String id) {
        return (id.hashCode() & Integer.MAX_VALUE) % SLOTS;
    }

    @Override
    public synchronized SubDatum fetch(String id) {
        if (down.contains(slotOf(id)) || broken.contains(id)) {
            throw new IllegalStateException("no answer");
        }
        Map<String, SubPublisher> all = publishers.get(id);
        return all == null
                ? null
                : SubDatum.normalOf(id, DATA_CENTER, versions.get(id), new ArrayList<>(all.values()), id, "i", "g", Collections.emptyList());
    }

    @Override
    public void contact(Slot slot) {
        if (down.contains(slot.getId())) {
            throw new IllegalStateException("no answer");
        }
    }

    @Override
    public synchronized DataSlotDiffDigestResult compare(SlotTable table, Slot slot, Map<String, DatumDigest> known) {
        contact(slot);
        Map<String, DatumDigest> own = new HashMap<>();
        publishers.forEach(
                (id, all) -> {
                    if (slotOf(id) == slot.getId()) {
                        Map<String, RegisterVersion> read = new HashMap<>();
                        all.values().forEach(p -> read.put(p.getRegisterId(), p.registerVersion()));
                        own.put(id, PublisherDigestUtil.digest(new DatumSummary(id, read)));
                    }
                });
        return DataSlotDiffUtils.diffDigest(known, own);
    }

    @Override
    public void close() {}
}
