package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.ConnectId;
import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.mox.TestData;
import com.alipay.sofa.registry.server.session.acceptor.ClientOffWriteDataRequest;
import com.alipay.sofa.registry.server.session.acceptor.PublisherWriteDataRequest;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataAcceptor;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest.WriteDataRequestType;
import com.alipay.sofa.registry.server.session.bootstrap.SessionServerBootstrap;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.springframework.beans.factory.config.BeanDefinition;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.autoconfigure.EnableAutoConfiguration;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.context.ConfigurableApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.context.support.GenericApplicationContext;

/** As much of a session server as the binding sees: Spring Boot's auto-configuration, the bootstrap bean, an acceptor. */
final class SessionServer {
    private SessionServer() {}

    /** Stands for the real acceptor: takes every request, or fails as a full queue does. */
    static final class Acceptor implements WriteDataAcceptor {
        final List<WriteDataRequest<?>> accepted = new ArrayList<>();
        RuntimeException failure;

        @Override
        @SuppressWarnings("rawtypes") // as the registry declares it
        public void accept(WriteDataRequest request) {
            accepted.add(request);
            if (failure != null) {
                throw failure;
            }
        }
    }

    /** A session server's context. */
    @Configuration
    @EnableAutoConfiguration
    static class Session {
        static final Acceptor ACCEPTOR = new Acceptor();

        @Bean
        WriteDataAcceptor writeDataAcceptor() {
            return ACCEPTOR;
        }
    }

    /** A context of the all-in-one server that is no session server's. */
    @Configuration
    @EnableAutoConfiguration
    static class Meta {}

    static ConfigurableApplicationContext start(String... properties) {
        return session(new SpringApplicationBuilder(Session.class)).run(arguments(properties));
    }

    static SpringApplicationBuilder session(SpringApplicationBuilder builder) {
        return plain(builder).initializers(context -> bootstrap((GenericApplicationContext) context));
    }

    static SpringApplicationBuilder plain(SpringApplicationBuilder builder) {
        return builder.web(WebApplicationType.NONE).logStartupInfo(false);
    }

    static String[] arguments(String... properties) {
        List<String> arguments = new ArrayList<>(Collections.singletonList("--spring.main.banner-mode=off"));
        Arrays.stream(properties).forEach(property -> arguments.add("--" + property));
        return arguments.toArray(new String[0]);
    }

    /** The definition is what the auto-configuration looks for; the bean itself would start a server. */
    private static void bootstrap(GenericApplicationContext context) {
        context.registerBean("sessionServerBootstrap", SessionServerBootstrap.class, SessionServer::lazy);
    }

    private static void lazy(BeanDefinition definition) {
        definition.setLazyInit(true);
    }

    static Publisher publisher(int service, String registerId, long version, String... urls) {
        Publisher publisher = new Publisher();
        publisher.setDataInfoId(TestData.service(service));
        publisher.setRegisterId(registerId);
        publisher.setVersion(version);
        publisher.setRegisterTimestamp(1_000 + version);
        publisher.setCell("DEFAULT_ZONE");
        publisher.setAppName("demo");
        List<ServerDataBox> boxes = new ArrayList<>();
        for (String url : urls) {
            boxes.add(new ServerDataBox(TestData.box(url)));
        }
        publisher.setDataList(boxes);
        return publisher;
    }

    static WriteDataRequest<?> publish(Publisher publisher) {
        return new PublisherWriteDataRequest(publisher, WriteDataRequestType.PUBLISHER);
    }

    static WriteDataRequest<?> unpublish(Publisher publisher) {
        return new PublisherWriteDataRequest(publisher, WriteDataRequestType.UN_PUBLISHER);
    }

    static WriteDataRequest<?> clientOff(List<Publisher> publishers) {
        return new ClientOffWriteDataRequest(ConnectId.of("10.0.0.1:1", "10.0.0.2:9600"), publishers);
    }
}
