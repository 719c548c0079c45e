package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import com.alipay.sofa.registry.common.model.store.SubPublisher;
import com.alipay.sofa.registry.mox.MoxHost;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;

/**
 * A read of one service on its way into the engine. A publisher that cannot be taken is left out alone: any client may publish to
 * any service whatever it likes, and the service's others must not suffer.
 */
final class ServiceRead {
    /** The most of one service; the engine keeps a gibibyte of unfinished reads, and there are four at a time. */
    static final long SERVICE_BYTES = 256L << 20;
    /** Bytes that are counted for a publisher beside its cell and data. */
    private static final int PUBLISHER_BYTES = 256;

    private final String id;
    private final long serviceBytes;
    private final List<SubPublisher> publishers;
    private final Refusals.Found found = new Refusals.Found();
    /** Of publishers' data in it. */
    private long bytes;

    /** @param datum null if there is no such service */
    ServiceRead(String id, SubDatum datum, long serviceBytes) {
        this.id = id;
        this.serviceBytes = serviceBytes;
        this.publishers = datum == null ? Collections.emptyList() : datum.mustGetPublishers();
    }

    /** Hands it in as a whole; whether there was room for it. Of an id that no event can have nothing is to be handed in. */
    boolean apply(RegistryMox mox, long version, long startedNanos) {
        if (!Publishers.isDataInfoId(id)) {
            publishers.forEach(publisher -> found.add(Refusal.DATA_INFO_ID, publisher == null ? null : publisher.getRegisterId()));
            return true;
        }
        MoxHost.Read to = mox.host().read(SessionEvents.SOURCE, id, version, startedNanos);
        for (SubPublisher from : withinBytes()) {
            found.add(write(to, from), from == null ? null : from.getRegisterId());
        }
        return to.apply() > 0;
    }

    private static Refusal write(MoxHost.Read to, SubPublisher from) {
        if (from == null) {
            return Refusal.NO_PUBLISHER;
        }
        String registerId = Publishers.registerId(from.getRegisterId());
        if (registerId == null) {
            return Refusal.NO_REGISTER_ID;
        }
        String cell = from.getCell();
        boolean hasCell = Publishers.isText(cell);
        MoxHost.Publication data = to.publisher(
                registerId,
                from.getVersion(),
                from.getRegisterTimestamp(),
                hasCell ? cell : null,
                Publishers.sourceAddress(from.getSrcAddressString()));
        try {
            return Refusal.first(hasCell ? null : Refusal.CELL, Publishers.data(data, from.getDataList()));
        } catch (RuntimeException e) {
            to.leaveOut();
            return Refusal.ERROR;
        }
    }

    /** The publishers, without the largest of a service that is larger than one may be: the same everywhere. */
    private List<SubPublisher> withinBytes() {
        long all = 0;
        for (SubPublisher publisher : publishers) {
            bytes += dataBytes(publisher);
            all += size(publisher);
        }
        if (all <= serviceBytes) {
            return publishers;
        }
        List<SubPublisher> smallest = new ArrayList<>(publishers);
        Comparator<SubPublisher> bySize = Comparator.comparingLong(ServiceRead::size);
        Comparator<String> byId = Comparator.nullsFirst(Comparator.naturalOrder());
        smallest.sort(bySize.thenComparing(publisher -> publisher == null ? null : publisher.getRegisterId(), byId));
        long left = serviceBytes;
        int count = 0;
        while (count < smallest.size() && left - size(smallest.get(count)) >= 0) {
            left -= size(smallest.get(count++));
        }
        for (SubPublisher large : smallest.subList(count, smallest.size())) {
            found.add(Refusal.SERVICE_TOO_LARGE, large.getRegisterId());
        }
        return smallest.subList(0, count);
    }

    /** Bytes that a publisher takes of {@link #serviceBytes}, at least. */
    private static long size(SubPublisher of) {
        String cell = of == null ? null : of.getCell();
        return PUBLISHER_BYTES + (cell == null || !Publishers.isText(cell) ? 0 : cell.length()) + dataBytes(of);
    }

    /** Of what cannot be taken anyway, none. */
    private static long dataBytes(SubPublisher of) {
        long bytes = 0;
        try {
            List<ServerDataBox> boxes = of == null ? Collections.emptyList() : Publishers.indexed(of.getDataList());
            for (int i = 0; i < boxes.size(); i++) {
                ServerDataBox box = boxes.get(i);
                bytes += box == null || box.getBytes() == null ? 0 : box.getBytes().length;
            }
        } catch (RuntimeException e) {
            return 0;
        }
        return bytes;
    }

    List<SubPublisher> publishers() {
        return publishers;
    }

    Refusals.Found found() {
        return found;
    }

    long bytes() {
        return bytes;
    }
}
