package example;

import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.server.session.bootstrap.SessionServerBootstrap;
import org.springframework.beans.factory.SmartInitializingSingleton;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.autoconfigure.condition.ConditionalOnBean;
import org.springframework.boot.autoconfigure.condition.SearchStrategy;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;

/**
 * An extension inside the session server: publishes a database, which no registry client announces, beside the registry's
 * services.
 *
 * <p>Its jar names this class in {@code META-INF/spring.factories}, behind {@code
 * org.springframework.boot.autoconfigure.EnableAutoConfiguration}. The jar must be on every session server: an entry lives only
 * where it is published.
 */
@Configuration(proxyBeanMethods = false)
@ConditionalOnBean(value = SessionServerBootstrap.class, search = SearchStrategy.CURRENT)
public class ExtensionExample {
    /** A source of its own: neither the registry's entries nor those of other extensions can be touched by mistake. */
    public static final String SOURCE = "static-databases";

    /** The database's dataInfoId: dataId, instance id and group. */
    public static final String SERVICE = "com.example.OrderDatabase@http#@#DEFAULT_INSTANCE_ID#@#SOFA";

    /** Made by Spring. */
    public ExtensionExample() {}

    /**
     * Publishes when the beans of the session server are made. MoX takes events from then on; where it is off, {@link
     * RegistryMox#running()} is empty and nothing happens.
     *
     * @param address where the database is
     * @return called by Spring
     */
    @Bean
    public SmartInitializingSingleton publishDatabase(@Value("${example.database:192.0.2.10:8080}") String address) {
        Publish database = Publish.of(SERVICE, "order-database").version(1, System.currentTimeMillis()).data(address).build();
        return () -> RegistryMox.running().ifPresent(mox -> mox.publish(SOURCE, database));
    }
}
