package com.example;

import java.lang.reflect.Field;
import java.util.AbstractMap.SimpleImmutableEntry;
import java.util.List;
import java.util.Map;
import org.apache.dubbo.common.URL;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.Invoker;
import org.apache.dubbo.rpc.RpcInvocation;
import org.apache.dubbo.rpc.cluster.ClusterInvoker;
import org.apache.dubbo.rpc.cluster.Directory;
import org.apache.dubbo.rpc.cluster.loadbalance.RandomLoadBalance;

/**
 * A real Dubbo consumer of {@link DemoService} that subscribes, driven by {@link Load}: {@code DubboConsumer REGISTRY [VERSION]}.
 * With a VERSION it connects to a provider with its first call to it only.
 */
public final class DubboConsumer {
    private DubboConsumer() {}

    public static void main(String[] args) throws Exception {
        ApplicationConfig application = new ApplicationConfig("caller");
        application.setQosEnable(false);
        ReferenceConfig<DemoService> reference = new ReferenceConfig<>();
        reference.setInterface(DemoService.class);
        if (args.length > 1) {
            reference.setVersion(args[1]);
            reference.setLazy(true); // else it dials whatever is registered
        }
        reference.setCheck(false);
        reference.setTimeout(Load.TIMEOUT);
        reference.setRetries(0); // by default a failed call is tried again elsewhere, and nobody sees it
        DubboBootstrap.getInstance().application(application).registry(new RegistryConfig("sofa://" + args[0]))
            .reference(reference).start();
        DemoService service = reference.get();
        Field invoker = ReferenceConfig.class.getDeclaredField("invoker");
        invoker.setAccessible(true);
        Directory<?> directory = ((ClusterInvoker<?>) invoker.get(reference)).getDirectory();
        RpcInvocation hello = new RpcInvocation("hello", DemoService.class.getName(), "", new Class<?>[] {String.class}, new Object[] {"mesh"});
        Load.run(service, () -> choose(directory, hello));
    }

    private static <T> Map.Entry<String, Integer> choose(Directory<T> directory, RpcInvocation invocation) {
        List<Invoker<T>> providers = directory.list(invocation);
        if (providers.isEmpty()) {
            return null;
        }
        URL chosen = new RandomLoadBalance().select(providers, directory.getConsumerUrl(), invocation).getUrl();
        return new SimpleImmutableEntry<>(chosen.getAddress(), chosen.getMethodParameter("hello", "weight", 100));
    }
}
