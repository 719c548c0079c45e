package com.example;

import com.alipay.sofa.rpc.config.ConsumerConfig;

/** A real SOFARPC call to an address, past the registry: {@code Caller bolt://HOST:PORT NAME} prints the answer. */
public final class Caller {
    private Caller() {}

    public static void main(String[] args) {
        DemoService service = new ConsumerConfig<DemoService>()
            .setInterfaceId(DemoService.class.getName())
            .setProtocol(args[0].substring(0, args[0].indexOf(':')))
            .setDirectUrl(args[0])
            .refer();
        System.out.println(service.hello(args[1]));
        System.exit(0);
    }
}
