package com.example;

import com.google.gson.Gson;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.apache.dubbo.common.URL;
import org.apache.dubbo.registry.client.DefaultServiceInstance;
import org.apache.dubbo.registry.client.ServiceInstance;
import org.apache.dubbo.registry.client.event.listener.ServiceInstancesChangedListener;
import org.apache.dubbo.registry.client.metadata.ServiceInstanceMetadataUtils;
import org.apache.dubbo.rpc.model.ApplicationModel;

/**
 * What a Dubbo 3 consumer reads in texts of the registry; see {@link Reading}: instances as its extension for SOFARegistry makes
 * them (which no registry of jars has for Dubbo 3), then Dubbo's own listener. It speaks every protocol that the instance has, or
 * dubbo where that tells none; the last VALUE is {@code PROTOCOL:PORT,...} of each. {@code Dubbo3Reading PARAMETER...}
 */
public final class Dubbo3Reading {
    private Dubbo3Reading() {}

    /** The fields of {@code SofaRegistryInstance}. */
    private static final class Told {
        String host;
        int port;
        String name;
        Map<String, String> metadata;
    }

    public static void main(String[] parameters) throws Exception {
        Gson gson = new Gson();
        Listener listener = new Listener();
        Reading.run(text -> {
            Told told = gson.fromJson(text.trim(), Told.class);
            DefaultServiceInstance instance =
                new DefaultServiceInstance(told.name, told.host, told.port, ApplicationModel.defaultModel());
            instance.setMetadata(told.metadata);
            List<URL> urls = listener.urls(instance);
            URL url = urls.get(0);
            // As its ServiceDiscoveryRegistryDirectory asks.
            if (url.hasParameter("disabled") ? url.getParameter("disabled", false) : !url.getParameter("enabled", true)) {
                return null;
            }
            int weight = Math.max(url.getParameter("weight", 100), 0); // AbstractLoadBalance.getWeight
            Reading reading = new Reading(url.getHost(), url.getPort(), weight, url.getRemoteApplication());
            for (String parameter : parameters) {
                reading.text(url.getParameter(parameter));
            }
            List<String> ports = new ArrayList<>();
            urls.forEach(each -> ports.add(each.getProtocol() + ":" + each.getPort()));
            return reading.text(String.join(",", ports));
        });
    }

    /** What tells consumers of an application's addresses. */
    private static final class Listener extends ServiceInstancesChangedListener {
        Listener() {
            super(Collections.singleton("application"), null);
        }

        List<URL> urls(DefaultServiceInstance instance) {
            Set<String> protocols = new LinkedHashSet<>();
            if (ServiceInstanceMetadataUtils.hasEndpoints(instance)) {
                instance.getEndpoints().forEach(endpoint -> protocols.add(endpoint.getProtocol()));
            }
            if (protocols.isEmpty()) {
                protocols.add("dubbo");
            }
            Map<String, List<ServiceInstance>> instances = Collections.singletonMap("1", Collections.singletonList(instance));
            List<URL> urls = new ArrayList<>();
            for (String protocol : protocols) {
                List<?> all = (List<?>) getServiceUrlsCache(instances, Collections.singleton("1"), protocol, 0);
                urls.add((URL) all.get(0));
            }
            return urls;
        }
    }
}
