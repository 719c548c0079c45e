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
    /** Services whose data come in a form that cannot be taken in. */
    final Set<String> garbled = ConcurrentHashMap.newKeySet();
    /** How often each was read, or should have been. */
    final Map<String, Integer> fetches = new ConcurrentHashMap<>();
    /** Publishers that a read of a service has beside the usual ones, though no data server should have them. */
    private final Map<String, List<SubPublisher>> extra = new HashMap<>();

    static SubPublisher publisher(String registerId, String cell, long version, long timestamp, List<ServerDataBox> boxes) {
        return new SubPublisher(registerId, cell, boxes, "c", version, "a", timestamp, PublishSource.CLIENT);
    }

    static SubPublisher publisher(String registerId, String sourceAddress, String... urls) {
        List<ServerDataBox> boxes = new ArrayList<>();
        for (String url : urls) {
            boxes.add(new ServerDataBox(TestData.box(url)));
        }
        return new SubPublisher(registerId, "DEFAULT_ZONE", boxes, "c", 1, sourceAddress, 1_001, PublishSource.CLIENT);
    }

    void put(String id, String registerId, long registerVersion, long timestamp, String... urls) {
        List<ServerDataBox> boxes = new ArrayList<>();
        for (String url : urls) {
            boxes.add(new ServerDataBox(TestData.box(url)));
        }
        put(id, publisher(registerId, "DEFAULT_ZONE", registerVersion, timestamp, boxes));
    }

    synchronized void put(String id, SubPublisher publisher) {
        publishers.computeIfAbsent(id, k -> new TreeMap<>()).put(publisher.getRegisterId(), publisher);
        versions.put(id, version++);
    }

    synchronized void extra(String id, SubPublisher publisher) {
        extra.computeIfAbsent(id, k -> new ArrayList<>()).add(publisher);
        versions.put(id, version++);
    }

    /** A read of a service. */
    synchronized SubDatum datum(String id) {
        List<SubPublisher> all = new ArrayList<>(publishers.get(id).values());
        SubDatum datum = SubDatum.normalOf(id, DATA_CENTER, versions.get(id), all, id, "i", "g", Collections.emptyList());
        datum.mustGetPublishers().addAll(extra.getOrDefault(id, Collections.emptyList()));
        return datum;
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
        fetches.merge(id, 1, Integer::sum);
        if (down.contains(slotOf(id)) || broken.contains(id)) {
            throw new IllegalStateException("no answer");
        }
        if (garbled.contains(id)) {
            return SubDatum.zipOf(id, DATA_CENTER, version, id, "i", "g", Collections.emptyList(), null);
        }
        return publishers.containsKey(id) ? datum(id) : null;
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
