package com.example;

import com.alipay.sofa.rpc.client.ProviderInfo;
import com.alipay.sofa.rpc.client.lb.RandomLoadBalancer;
import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ConsumerConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.core.request.SofaRequest;
import java.util.AbstractMap.SimpleImmutableEntry;
import java.util.ArrayList;
import java.util.List;

/**
 * A real SOFARPC consumer of {@link DemoService}, driven by {@link Load}: {@code Consumer sofa://REGISTRY CONNECTIONS
 * [UNIQUE_ID]} subscribes, {@code Consumer PROTOCOL://HOST:PORT CONNECTIONS [UNIQUE_ID]} calls that address. CONNECTIONS
 * are to each address.
 */
public final class Consumer {
    private Consumer() {}

    public static void main(String[] args) throws Exception {
        String protocol = args[0].substring(0, args[0].indexOf(':'));
        String address = args[0].substring(protocol.length() + 3);
        ConsumerConfig<DemoService> consumer = new ConsumerConfig<DemoService>()
            .setApplication(new ApplicationConfig().setAppName("caller"))
            .setInterfaceId(DemoService.class.getName())
            .setTimeout(Load.TIMEOUT)
            .setConnectionNum(Integer.parseInt(args[1]));
        if (args.length > 2) {
            consumer.setUniqueId(args[2]);
        }
        if (protocol.equals("sofa")) {
            consumer.setRegistry(new RegistryConfig().setProtocol(protocol).setAddress(address));
        } else {
            consumer.setProtocol(protocol).setDirectUrl(args[0]);
        }
        DemoService service = consumer.refer();
        Load.run(service, () -> {
            List<ProviderInfo> providers = new ArrayList<>();
            consumer.getConsumerBootstrap().getCluster().getAddressHolder().getProviderGroups()
                .forEach(group -> providers.addAll(group.getProviderInfos()));
            if (providers.isEmpty()) {
                return null;
            }
            ProviderInfo chosen = new RandomLoadBalancer(consumer.getConsumerBootstrap()).select(new SofaRequest(), providers);
            return new SimpleImmutableEntry<>(chosen.getHost() + ":" + chosen.getPort(), chosen.getWeight());
        });
    }
}
