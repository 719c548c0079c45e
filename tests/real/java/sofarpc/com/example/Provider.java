package com.example;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.config.ServerConfig;
import com.alipay.sofa.rpc.registry.RegistryFactory;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;

/**
 * Real SOFARPC providers of {@link DemoService}, one per argument after the first two:
 * {@code Provider REGISTRY APP PROTOCOL:PORT[:UNIQUE_ID:WEIGHT[:KEY=VALUE]...]...}. Prints one line once all are exported; SIGTERM takes
 * them out of the registry first. {@code unpublish} and {@code publish} on standard input take them out of the registry and
 * put them back, while they go on serving. They are on 127.0.0.1, or on {@code -Dprovider.host}.
 */
public final class Provider {
    private static final String HOST = System.getProperty("provider.host", "127.0.0.1");
    private static final List<ProviderConfig<DemoService>> PROVIDERS = new ArrayList<>();

    private Provider() {}

    public static void main(String[] args) throws IOException {
        RegistryConfig registry = new RegistryConfig().setProtocol("sofa").setAddress(args[0]);
        StringBuilder exported = new StringBuilder();
        for (int i = 2; i < args.length; i++) {
            export(registry, args[1], args[i].split(":"));
            exported.append(' ').append(args[i]);
        }
        System.out.println("exported " + DemoService.class.getName() + " of " + args[1] + ":" + exported);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            for (ProviderConfig<DemoService> provider : PROVIDERS) {
                if (line.equals("publish")) {
                    RegistryFactory.getRegistry(registry).register(provider);
                } else {
                    RegistryFactory.getRegistry(registry).unRegister(provider);
                }
            }
        }
    }

    private static void export(RegistryConfig registry, String app, String[] words) {
        String protocol = words[0];
        int port = Integer.parseInt(words[1]);
        ServerConfig server = new ServerConfig().setProtocol(protocol).setPort(port).setDaemon(false)
            .setHost(HOST).setVirtualHost(HOST); // else it registers the first outside address
        DemoService service = name -> "hello " + name + ", from " + app + " on " + HOST + ":" + port;
        ProviderConfig<DemoService> provider = new ProviderConfig<DemoService>()
            .setApplication(new ApplicationConfig().setAppName(app))
            .setInterfaceId(DemoService.class.getName())
            .setRef(service)
            .setServer(server)
            .setRegistry(registry)
            .setRepeatedExportLimit(-1); // it counts by interface and uniqueId, whatever the protocol
        if (words.length > 2) {
            provider.setUniqueId(words[2]).setWeight(Integer.parseInt(words[3]));
            for (int i = 4; i < words.length; i++) {
                String[] pair = words[i].split("=", 2);
                provider.setParameter(pair[0], pair[1]);
            }
        }
        provider.export();
        PROVIDERS.add(provider);
    }
}
