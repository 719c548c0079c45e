package com.alipay.sofa.registry.mox.session;

import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.function.BiConsumer;

/** Who subscribes, as session servers know it. */
interface ConsumerSource extends AutoCloseable {
    /** Takes a subscription. */
    interface Sink {
        /**
         * A client subscribes to the service.
         *
         * @param address its IP address
         * @param cell null where it names none
         * @param application null where it names none
         */
        void subscription(String address, String cell, String application);
    }

    /**
     * Tells of each service that clients of this session server subscribe to the objects that are the subscriptions: another object
     * where one is renewed.
     */
    void own(BiConsumer<String, Collection<?>> services);

    /** Tells the subscriptions of this session server's clients to a service, as they are now. */
    void own(String dataInfoId, Sink sink);

    /** The session servers that meta lists, with or without this one. */
    List<String> servers();

    /**
     * The addresses of a session server's clients that subscribe to services of a group, by dataInfoId; in one request, whatever is on that
     * server's class path.
     */
    Map<String, List<String>> ask(String server, String group) throws Exception;

    @Override
    void close();
}
