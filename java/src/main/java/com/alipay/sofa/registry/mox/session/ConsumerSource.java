package com.alipay.sofa.registry.mox.session;

import java.util.List;
import java.util.Map;

/** Who subscribes, as session servers know it. */
interface ConsumerSource extends AutoCloseable {
    /** Takes a subscription. */
    interface Sink {
        /**
         * A client subscribes to a service.
         *
         * @param address its IP address
         * @param cell null where it names none
         * @param application null where it names none
         */
        void subscription(String dataInfoId, String address, String cell, String application);
    }

    /** A number that is another one whenever a subscription of this session server's clients comes, goes or is another one. */
    long sum();

    /** Tells all subscriptions of this session server's clients, as they are now. */
    void own(Sink sink);

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
