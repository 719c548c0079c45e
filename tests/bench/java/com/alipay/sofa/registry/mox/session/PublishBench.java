package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.server.session.acceptor.PublisherWriteDataRequest;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest.WriteDataRequestType;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * The cost of a publish to the caller's thread: each call raises the version of the one publisher of the next service, so the
 * engine stores it. In this package to reach the binding's own path.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.SampleTime)
@OutputTimeUnit(TimeUnit.NANOSECONDS)
@Fork(1)
@Warmup(iterations = 3, time = 1)
@Measurement(iterations = 5, time = 1)
public class PublishBench {
    private static final String SOURCE = "bench";
    private static final long TIMESTAMP = 1795393505864L;

    @Param({"1", "10", "100"})
    public int endpoints;

    /**
     * {@code frozen}: the cost of the call by itself; its service is marked as changed already. {@code busy}: the engine
     * translates on the other core as fast as it can what the calls change, far more than any registry does.
     */
    @Param({"frozen", "busy"})
    public String engine;

    /** A power of two. Few stay in the processor's caches, many do not. */
    @Param({"16", "1024"})
    public int services;

    private Publish[] values;
    private WriteDataRequest<?>[] requests;
    private Publisher[] publishers;
    private RegistryMox mox;
    private long version;

    @Setup
    public void open() {
        mox = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").build());
        if (engine.equals("frozen")) {
            mox.freeze();
        }
        String[] urls = new String[endpoints];
        for (int i = 0; i < endpoints; i++) {
            urls[i] = "10.20." + i + ".17:12200?rpcVer=51302&serialization=hessian2&weight=100&appName=orders&p=1&v=4.0"
                    + "&_SERIALIZETYPE=hessian2&_WEIGHT=100&app_name=orders&startTime=" + TIMESTAMP;
        }
        values = new Publish[services];
        requests = new WriteDataRequest<?>[services];
        publishers = new Publisher[services];
        for (int i = 0; i < services; i++) {
            String service = "com.example.orders.api.OrderService" + i + ":1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
            String registerId = new UUID(7, i).toString();
            values[i] = Publish.of(service, registerId).cell("DEFAULT_ZONE").appName("orders").data(urls).build();
            mox.publish(SOURCE, values[i]);
            publishers[i] = publisher(service, registerId, urls);
            requests[i] = new PublisherWriteDataRequest(publishers[i], WriteDataRequestType.PUBLISHER);
        }
    }

    private static Publisher publisher(String service, String registerId, String[] urls) {
        Publisher publisher = new Publisher();
        publisher.setDataInfoId(service);
        publisher.setRegisterId(registerId);
        publisher.setRegisterTimestamp(TIMESTAMP);
        publisher.setCell("DEFAULT_ZONE");
        publisher.setAppName("orders");
        List<ServerDataBox> boxes = new ArrayList<>();
        for (String url : urls) {
            boxes.add(new ServerDataBox(ServerDataBox.getBytes(url)));
        }
        publisher.setDataList(boxes);
        return publisher;
    }

    @TearDown
    public void close() {
        mox.close();
    }

    /** The publish call as an extension makes it, of a value that it has. */
    @Benchmark
    public long publish() {
        int i = (int) (++version & services - 1);
        return mox.publish(SOURCE, values[i].version(version, TIMESTAMP));
    }

    /** The cost to the session server's thread: a write request with the boxes that it holds. */
    @Benchmark
    public void binding() {
        int i = (int) (++version & services - 1);
        publishers[i].setVersion(version);
        SessionEvents.record(mox, requests[i], null);
    }
}
