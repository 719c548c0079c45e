package com.example;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.reflect.Field;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.dubbo.common.URL;
import org.apache.dubbo.common.utils.NetUtils;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ProtocolConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.ServiceConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.registry.Registry;
import org.apache.dubbo.registry.support.AbstractRegistryFactory;

/**
 * Real Dubbo providers of {@link DemoService} on one port: {@code DubboProvider REGISTRY APP PORT[,REST_PORT] [GROUP:VERSION[:KEY=VALUE]...]...},
 * one without group and version and one for each pair; a GROUP may be empty. Prints one line once all are exported; SIGTERM takes
 * them out of the registry first. {@code unpublish} and {@code publish} on standard input take them out of the registry and put
 * them back, while they go on serving; {@code register URL} has Dubbo's own registry client publish another URL, as admin tools
 * do. They are on 127.0.0.1, or on {@code -Dprovider.host}.
 */
public final class DubboProvider {
    private static final String HOST = System.getProperty("provider.host", "127.0.0.1");

    private DubboProvider() {}

    public static void main(String[] args) throws Exception {
        // Else it publishes the first outside address it finds; a loopback address from its settings it refuses.
        Field address = NetUtils.class.getDeclaredField("HOST_ADDRESS");
        address.setAccessible(true);
        address.set(null, HOST);
        String app = args[1];
        String[] ports = args[2].split(",");
        int port = Integer.parseInt(ports[0]);
        ApplicationConfig application = new ApplicationConfig(app);
        application.setQosEnable(false); // one more port, on all interfaces
        ProtocolConfig protocol = new ProtocolConfig("dubbo", port);
        if (!HOST.startsWith("127.")) {
            protocol.setHost(HOST); // else it listens on all interfaces
        }
        DubboBootstrap bootstrap = DubboBootstrap.getInstance()
            .application(application)
            .registry(new RegistryConfig("sofa://" + args[0]))
            .protocol(protocol);
        if (ports.length > 1) {
            ProtocolConfig rest = new ProtocolConfig("rest", Integer.parseInt(ports[1]));
            rest.setServer("netty");
            bootstrap.protocol(rest);
        }
        DemoService demo = name -> "hello " + name + ", from " + app + " on " + HOST + ":" + port;
        bootstrap.service(service(demo));
        for (int i = 3; i < args.length; i++) {
            String[] words = args[i].split(":");
            ServiceConfig<DemoService> service = service(demo);
            service.setId(args[i]); // else it takes the place of the one before
            service.setGroup(words[0].isEmpty() ? null : words[0]);
            service.setVersion(words[1]);
            Map<String, String> parameters = new HashMap<>();
            for (int j = 2; j < words.length; j++) {
                String[] pair = words[j].split("=", 2);
                parameters.put(pair[0], pair[1]);
            }
            service.setParameters(parameters);
            bootstrap.service(service);
        }
        bootstrap.start();
        System.out.println("exported " + DemoService.class.getName() + " of " + app + " on port " + port);
        List<URL> published = new ArrayList<>();
        for (Registry each : AbstractRegistryFactory.getRegistries()) {
            published.addAll(((org.apache.dubbo.registry.support.AbstractRegistry) each).getRegistered());
        }
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            for (Registry each : AbstractRegistryFactory.getRegistries()) {
                if (line.startsWith("register ")) {
                    each.register(URL.valueOf(line.substring("register ".length())));
                } else {
                    published.forEach(line.equals("publish") ? each::register : each::unregister);
                }
            }
        }
        bootstrap.await();
    }

    private static ServiceConfig<DemoService> service(DemoService demo) {
        ServiceConfig<DemoService> service = new ServiceConfig<>();
        service.setInterface(DemoService.class);
        service.setRef(demo);
        return service;
    }
}
