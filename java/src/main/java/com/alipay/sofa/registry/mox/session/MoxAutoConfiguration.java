package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.server.session.bootstrap.SessionServerBootstrap;
import org.springframework.boot.autoconfigure.condition.ConditionalOnBean;
import org.springframework.boot.autoconfigure.condition.ConditionalOnClass;
import org.springframework.boot.autoconfigure.condition.ConditionalOnProperty;
import org.springframework.boot.autoconfigure.condition.SearchStrategy;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.core.env.Environment;

/**
 * Adds MoX to the session server when {@code mox.enabled=true}.
 *
 * <p>The all-in-one server has a context for each of meta, data and session: only the one that holds the session server's
 * own bootstrap bean is ours, so MoX starts once.
 */
@Configuration(proxyBeanMethods = false)
@ConditionalOnClass(SessionServerBootstrap.class)
@ConditionalOnBean(value = SessionServerBootstrap.class, search = SearchStrategy.CURRENT)
@ConditionalOnProperty(name = "mox.enabled", havingValue = "true")
public class MoxAutoConfiguration {
    /** Made by Spring. */
    public MoxAutoConfiguration() {}

    /**
     * Static, so that it exists before the beans that it decorates and needs none of them.
     *
     * @param environment holds the properties under {@code mox.}
     * @return the binding
     */
    @Bean
    public static MoxBinding moxBinding(Environment environment) {
        return MoxBinding.open(environment);
    }

    /**
     * The admin pages.
     *
     * @return the resource, which the session server's web server finds by its annotation
     */
    @Bean
    @ConditionalOnClass(name = "javax.ws.rs.core.Response")
    public MoxResource moxResource() {
        return new MoxResource();
    }
}
