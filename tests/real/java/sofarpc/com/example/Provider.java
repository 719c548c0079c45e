package com.example;

import com.alipay.sofa.rpc.config.ApplicationConfig;
import com.alipay.sofa.rpc.config.ProviderConfig;
import com.alipay.sofa.rpc.config.RegistryConfig;
import com.alipay.sofa.rpc.config.ServerConfig;

/**
 * A real SOFARPC provider of {@link DemoService}: {@code Provider bolt|tri PORT APP REGISTRY}. Prints one line once exported;
 * SIGTERM takes it out of the registry first.
 */
public final class Provider {
    private Provider() {}

    public static void main(String[] args) {
        String protocol = args[0];
        int port = Integer.parseInt(args[1]);
        String app = args[2];
        ServerConfig server = new ServerConfig().setProtocol(protocol).setPort(port).setDaemon(false)
            .setHost("127.0.0.1").setVirtualHost("127.0.0.1"); // else it registers the first outside address
        DemoService service = name -> "hello " + name + ", from " + app + " on port " + port;
        new ProviderConfig<DemoService>()
            .setApplication(new ApplicationConfig().setAppName(app))
            .setInterfaceId(DemoService.class.getName())
            .setRef(service)
            .setServer(server)
            .setRegistry(new RegistryConfig().setProtocol("sofa").setAddress(args[3]))
            .export();
        System.out.println("exported " + DemoService.class.getName() + " of " + app + " over " + protocol + " on port " + port);
    }
}
