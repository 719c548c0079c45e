package com.example;

import java.lang.reflect.Proxy;
import java.util.Collections;
import org.apache.dubbo.common.URL;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.registry.Registry;
import org.apache.dubbo.registry.integration.RegistryDirectory;
import org.apache.dubbo.rpc.Invoker;
import org.apache.dubbo.rpc.Protocol;
import org.apache.dubbo.rpc.model.ApplicationModel;

/**
 * What a Dubbo consumer of {@link DemoService} reads in texts of the registry; see {@link Reading}: {@code URL.valueOf} as in
 * {@code SofaRegistry.handleRegistryData}, then its own {@link RegistryDirectory}. Nothing is connected.
 * {@code DubboReading PARAMETER...}
 */
public final class DubboReading {
    private DubboReading() {}

    public static void main(String[] parameters) throws Exception {
        ApplicationModel.getConfigManager().setApplication(new ApplicationConfig("caller"));
        Directory directory = new Directory();
        Reading.run(text -> url(directory, URL.valueOf(text), parameters));
    }

    private static Reading url(Directory directory, URL url, String[] parameters) {
        if (!directory.calls(url)) {
            return null;
        }
        int weight = Math.max(url.getMethodParameter("hello", "weight", 100), 0); // AbstractLoadBalance.getWeight
        Reading reading = new Reading(url.getHost(), url.getPort(), weight, url.getParameter("application"));
        for (String parameter : parameters) {
            reading.text(url.getParameter(parameter));
        }
        return reading;
    }

    /** A consumer's list of providers, which forgets what it was told before. */
    private static final class Directory extends RegistryDirectory<DemoService> {
        Directory() {
            super(DemoService.class, URL.valueOf("registry://127.0.0.1:9603/org.apache.dubbo.registry.RegistryService")
                .addParameterAndEncoded("refer", "application=caller&side=consumer&interface=" + DemoService.class.getName()));
            setProtocol(fake(Protocol.class));
            setRegistry(fake(Registry.class));
            buildRouterChain(getConsumerUrl());
        }

        boolean calls(URL url) {
            destroyAllInvokers();
            configurators = Collections.emptyList();
            notify(Collections.singletonList(url));
            return getUrlInvokerMap() != null && !getUrlInvokerMap().isEmpty();
        }

        /** Whatever it is asked for, it answers with something like it. */
        private static <T> T fake(Class<T> type) {
            return type.cast(Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, (self, method, arguments) -> {
                switch (method.getName()) {
                    case "refer":
                        return fake(Invoker.class);
                    case "getUrl":
                        return URL.valueOf("dubbo://127.0.0.1:1");
                    case "isAvailable":
                        return true;
                    default:
                        return null;
                }
            }));
        }
    }
}
