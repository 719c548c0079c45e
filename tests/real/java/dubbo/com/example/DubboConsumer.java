package com.example;

import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;

/** A real Dubbo consumer of {@link DemoService} that subscribes, driven by {@link Load}: {@code DubboConsumer REGISTRY}. */
public final class DubboConsumer {
    private DubboConsumer() {}

    public static void main(String[] args) throws Exception {
        ApplicationConfig application = new ApplicationConfig("caller");
        application.setQosEnable(false);
        ReferenceConfig<DemoService> reference = new ReferenceConfig<>();
        reference.setInterface(DemoService.class);
        reference.setCheck(false);
        reference.setTimeout(Load.TIMEOUT);
        reference.setRetries(0); // by default a failed call is tried again elsewhere, and nobody sees it
        DubboBootstrap.getInstance().application(application).registry(new RegistryConfig("sofa://" + args[0]))
            .reference(reference).start();
        Load.run(reference.get());
    }
}
