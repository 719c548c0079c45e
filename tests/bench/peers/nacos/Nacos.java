import com.alibaba.nacos.api.naming.pojo.Instance;
import com.alibaba.nacos.api.naming.pojo.ServiceInfo;
import com.alibaba.nacos.istio.api.ApiGeneratorFactory;
import com.alibaba.nacos.istio.common.Event;
import com.alibaba.nacos.istio.common.NacosResourceManager;
import com.alibaba.nacos.istio.misc.IstioConfig;
import com.alibaba.nacos.istio.model.IstioService;
import com.alibaba.nacos.istio.xds.NacosXdsService;
import com.alibaba.nacos.naming.core.v2.pojo.Service;
import com.google.protobuf.Any;
import io.grpc.Server;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import istio.mcp.v1alpha1.ResourceOuterClass.Resource;
import istio.networking.v1alpha3.ServiceEntryOuterClass.ServiceEntry;
import istio.networking.v1alpha3.WorkloadEntryOuterClass.WorkloadEntry;
import java.io.BufferedInputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.lang.reflect.Field;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.LinkedBlockingQueue;

/**
 * Serves resources with nacos-istio 2.x, for the benchmarks. Its watcher, which polls Nacos' naming every 3 s, and its
 * event queue, which waits up to 0.1 s, are left out: a change is handed to what they call.
 *
 * <p>usage: java Nacos FILE
 *
 * <p>FILE holds the resources of the start, standard input brings changes, both as records: index and length as
 * little-endian 32-bit integers, then so many bytes of google.protobuf.Any. Changes that wait together are applied
 * together. The first line of output says where it listens.
 */
final class Nacos {
    private static final String NAMESPACE = "public";
    private static final String GROUP = "DEFAULT_GROUP";

    private final Map<Integer, Service> services = new HashMap<>();
    private final Map<String, IstioService> shown = new ConcurrentHashMap<>();

    /** Gives Nacos its own form of a service, made from Istio's. */
    private void apply(Any change, int index) throws IOException {
        Resource resource = Resource.parseFrom(change.getValue());
        ServiceEntry entry = ServiceEntry.parseFrom(resource.getBody().getValue());
        Service service = services.computeIfAbsent(
            index, i -> Service.newService(NAMESPACE, GROUP, String.format("service%05d", i)));
        ServiceInfo info = new ServiceInfo(service.getGroupedServiceName());
        List<Instance> hosts = new ArrayList<>(entry.getEndpointsCount());
        for (WorkloadEntry endpoint : entry.getEndpointsList()) {
            Instance instance = new Instance();
            instance.setIp(endpoint.getAddress());
            instance.setPort(endpoint.getPortsMap().values().iterator().next());
            instance.setMetadata(new HashMap<>(endpoint.getLabelsMap()));
            hosts.add(instance);
        }
        info.setHosts(hosts);
        String key = service.getGroupedServiceName();
        IstioService old = shown.get(key);
        if (old == null) {
            shown.put(key, new IstioService(service, info));
        } else {
            service.incrementRevision();
            shown.put(key, new IstioService(service, info, old));
        }
    }

    private static final class Change {
        final int index;
        final Any any;

        Change(InputStream in) throws IOException {
            DataInputStream data = new DataInputStream(in);
            index = Integer.reverseBytes(data.readInt());
            byte[] bytes = new byte[Integer.reverseBytes(data.readInt())];
            data.readFully(bytes);
            any = Any.parseFrom(bytes);
        }
    }

    private static void set(Object object, Class<?> type, String name, Object value) throws ReflectiveOperationException {
        Field field = type.getDeclaredField(name);
        field.setAccessible(true);
        field.set(object, value);
    }

    private void run(String file) throws Exception {
        IstioConfig config = new IstioConfig();
        set(config, IstioConfig.class, "domainSuffix", "nacos");
        NacosResourceManager manager = new NacosResourceManager() {
            @Override
            public Map<String, IstioService> services() {
                return new HashMap<>(shown);
            }

            @Override
            public IstioConfig getIstioConfig() {
                return config;
            }
        };
        set(manager, NacosResourceManager.class, "istioConfig", config);
        try (InputStream in = new BufferedInputStream(Files.newInputStream(Paths.get(file)))) {
            while (true) {
                Change change = new Change(in);
                apply(change.any, change.index);
            }
        } catch (EOFException end) {
            // That was all.
        }
        // Before there is a client: the first snapshot of the constructor has no configuration.
        manager.createResourceSnapshot();
        NacosXdsService xds = new NacosXdsService();
        set(xds, NacosXdsService.class, "apiGeneratorFactory", new ApiGeneratorFactory());
        set(xds, NacosXdsService.class, "resourceManager", manager);
        InetSocketAddress loopback = new InetSocketAddress(InetAddress.getLoopbackAddress(), 0);
        Server server = NettyServerBuilder.forAddress(loopback).addService(xds).build().start();
        System.out.println("{\"mox\":\"127.0.0.1:" + server.getPort() + "\"}");
        System.out.flush();

        LinkedBlockingQueue<Change> changes = new LinkedBlockingQueue<>();
        Thread reader = new Thread(() -> {
            InputStream in = new BufferedInputStream(System.in);
            try {
                while (true) {
                    changes.add(new Change(in));
                }
            } catch (IOException end) {
                System.exit(0);
            }
        });
        reader.setDaemon(true);
        reader.start();
        while (true) {
            List<Change> batch = new ArrayList<>();
            batch.add(changes.take());
            changes.drainTo(batch);
            for (Change change : batch) {
                apply(change.any, change.index);
            }
            xds.handleEvent(manager.createResourceSnapshot(), Event.SERVICE_UPDATE_EVENT);
        }
    }

    public static void main(String[] arguments) throws Exception {
        new Nacos().run(arguments[0]);
    }

    private Nacos() {}
}
