package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.LogSink;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.concurrent.atomic.AtomicReference;
import java.util.logging.Level;
import java.util.regex.Pattern;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;
import org.springframework.beans.factory.BeanFactory;
import org.springframework.beans.factory.BeanFactoryAware;
import org.springframework.beans.factory.DisposableBean;
import org.springframework.beans.factory.ListableBeanFactory;
import org.springframework.beans.factory.config.BeanPostProcessor;
import org.springframework.boot.context.properties.bind.Bindable;
import org.springframework.boot.context.properties.bind.Binder;
import org.springframework.boot.context.properties.bind.PropertySourcesPlaceholdersResolver;
import org.springframework.boot.context.properties.source.ConfigurationPropertyName;
import org.springframework.boot.context.properties.source.ConfigurationPropertySource;
import org.springframework.boot.context.properties.source.ConfigurationPropertySources;
import org.springframework.context.SmartLifecycle;
import org.springframework.core.env.Environment;
import org.springframework.core.env.SystemEnvironmentPropertySource;

/**
 * Ties the engine to the session server's life: open before its beans, decorate its acceptor, listen once it runs, close
 * before it stops.
 *
 * <p>The session server must not notice: whatever fails here, also a class or method that another registry version does not
 * have, is caught and leaves it running with MoX off and one error. So this class names no type of the registry.
 */
public final class MoxBinding implements BeanPostProcessor, BeanFactoryAware, SmartLifecycle, DisposableBean {
    /** The session server's own start is phase 0. */
    private static final int PHASE = 100;

    private static final Pattern SERVICE_LINK = Pattern.compile("MOX(_[A-Z0-9]+)*_SERVICE_HOST");
    private static final long WARN_EVERY_NANOS = TimeUnit.MINUTES.toNanos(1);
    private static final int LOGGED_CHARS = 400;
    private static final Logger LOG = LoggerFactory.getLogger("MOX");
    private static final LogSink TO_SLF4J = MoxBinding::log;

    /** Empty where MoX is off. */
    private final AtomicReference<RegistryMox> mox = new AtomicReference<>();

    /** The parts beside the session server; empty until the server has started. Static as the engine is, for the web server. */
    private static final AtomicReference<SessionParts> PARTS = new AtomicReference<>();

    private final AtomicBoolean saidOff = new AtomicBoolean();
    private final AtomicLong failures = new AtomicLong();
    /** Events that were refused, or not taken whole, by the ordinal of the reason. */
    private final AtomicLongArray refused = new AtomicLongArray(Refusal.values().length);
    /** When each reason may be logged again; the last is for what has none. */
    private final AtomicLongArray nextWarning = new AtomicLongArray(refused.length() + 1);
    private volatile boolean decorated;
    private volatile boolean noticed;
    /** As the engine answers them. */
    private volatile Map<String, Object> settings = Collections.emptyMap();
    /** Null with local scope. */
    private volatile SessionEvents.Registry registry;
    private volatile BeanFactory beans;
    private volatile boolean running;

    private MoxBinding() {
        for (int i = 0; i < nextWarning.length(); i++) {
            nextWarning.set(i, System.nanoTime());
        }
    }

    static MoxBinding open(Environment environment) {
        MoxBinding binding = new MoxBinding();
        try {
            MoxConfig config = MoxConfig.builder().tree(settings(environment)).logSink(TO_SLF4J).build();
            RegistryMox mox = RegistryMox.embed(config);
            binding.mox.set(mox);
            binding.settings = mox.host().command("settings");
            mox.host().command("awaitDocuments");
            binding.registry = binding.isCluster() ? new Behind() : null;
        } catch (Throwable t) {
            binding.off(t, Runnable::run);
        }
        return binding;
    }

    /**
     * The tree under {@code mox.}, spelled as it was given: the engine knows the keys. Not a {@code @ConfigurationProperties}
     * bean, because properties that cannot be bound would then end the session server's start.
     */
    static Map<String, Object> settings(Environment environment) {
        Bindable<Map<String, Object>> tree = Bindable.mapOf(String.class, Object.class);
        List<ConfigurationPropertySource> sources = new ArrayList<>();
        ConfigurationPropertySources.get(environment).forEach(source -> sources.add(withoutServiceLinks(source)));
        Binder binder = new Binder(sources, new PropertySourcesPlaceholdersResolver(environment));
        Map<String, Object> settings = new LinkedHashMap<>(binder.bind("mox", tree).orElse(Collections.emptyMap()));
        settings.keySet().removeIf("enabled"::equalsIgnoreCase);
        return settings;
    }

    /**
     * Kubernetes tells every container about a Service called {@code mox} by MOX_SERVICE_HOST, MOX_PORT, MOX_PORT_9700_TCP and
     * the like, and about {@code mox-xds} by MOX_XDS_SERVICE_HOST and so on. Nobody meant those as keys; the same keys from
     * anywhere else are for the engine to refuse.
     */
    private static ConfigurationPropertySource withoutServiceLinks(ConfigurationPropertySource source) {
        if (!(source.getUnderlyingSource() instanceof SystemEnvironmentPropertySource)) {
            return source;
        }
        List<ConfigurationPropertyName> links = new ArrayList<>();
        for (String variable : ((SystemEnvironmentPropertySource) source.getUnderlyingSource()).getPropertyNames()) {
            if (SERVICE_LINK.matcher(variable).matches()) {
                String service = variable.substring(0, variable.length() - "_SERVICE_HOST".length());
                String tree = service.toLowerCase(Locale.ROOT).replace('_', '.');
                links.add(ConfigurationPropertyName.of(tree + ".service"));
                links.add(ConfigurationPropertyName.of(tree + ".port"));
            }
        }
        return source.filter(key -> links.stream().noneMatch(link -> link.equals(key) || link.isAncestorOf(key)));
    }

    private boolean isCluster() {
        return "cluster".equals(settings.get("scope"));
    }

    @Override
    public void setBeanFactory(BeanFactory beans) {
        this.beans = beans;
    }

    @Override
    public Object postProcessAfterInitialization(Object bean, String name) {
        if (mox.get() == null) {
            return bean;
        }
        try {
            Object wrapped = AcceptorTap.wrap(bean, this::record);
            decorated |= wrapped != bean;
            if (wrapped == bean && isCluster()) {
                wrapped = ChangeTap.wrap(bean, this::changed);
                noticed |= wrapped != bean;
            }
            return wrapped;
        } catch (Throwable t) {
            off(t, Runnable::run);
            return bean;
        }
    }

    /** Called on the registry's threads: takes one write request, never throws. */
    void record(Object request) {
        RegistryMox current = mox.get();
        if (current == null) {
            return;
        }
        try {
            SessionEvents.record(current, request, registry);
        } catch (LinkageError e) {
            off(e, MoxBinding::onThread);
        } catch (RefusedException e) {
            refused.incrementAndGet(e.why.ordinal());
            failed(e, e.why.ordinal());
        } catch (Throwable t) {
            failed(t, refused.length());
        }
    }

    /** Called on the registry's threads: takes a notice of changed services, never throws. */
    void changed(String dataCenter, Iterable<String> ids) {
        SessionParts parts = PARTS.get();
        if (parts == null) {
            return; // all are compared at the start
        }
        try {
            parts.changed(dataCenter, ids);
        } catch (LinkageError e) {
            off(e, MoxBinding::onThread);
        } catch (Throwable t) {
            failed(t, refused.length());
        }
    }

    /** The registry behind the session server, by way of {@code PARTS}; out of reach until the server has started. */
    private static final class Behind implements SessionEvents.Registry {
        @Override
        public void reread(String id) {
            SessionParts parts = PARTS.get();
            if (parts != null) {
                parts.mark(id);
            }
        }

        @Override
        public boolean isAhead() {
            SessionParts parts = PARTS.get();
            return parts != null && parts.isBehind();
        }
    }

    /** The other session servers; null where MoX is off. */
    static Sessions sessions() {
        SessionParts parts = PARTS.get();
        return parts == null ? null : parts.sessions();
    }

    /** The documents that session servers share; null where there are none. */
    static DocumentFollower documents() {
        SessionParts parts = PARTS.get();
        return parts == null ? null : parts.documents();
    }

    @Override
    public void start() {
        running = true;
        RegistryMox current = mox.get();
        if (current == null) {
            return;
        }
        try {
            if (!decorated) {
                throw new IllegalStateException("this registry version has no WriteDataAcceptor bean to follow");
            }
            if (isCluster() && !noticed) {
                throw new IllegalStateException("this registry version has no handler of DataChangeRequests to follow");
            }
            current.listen();
            PARTS.set(
                    SessionParts.start(
                            (ListableBeanFactory) beans,
                            current,
                            settings,
                            this::refused,
                            broken -> off(broken, MoxBinding::onThread)));
        } catch (Throwable t) {
            off(t, Runnable::run);
        }
    }

    @Override
    public void stop() {
        running = false;
        destroy();
    }

    /** Also closes what never started, where the session server's own start failed. */
    @Override
    public void destroy() {
        closeParts();
        RegistryMox current = mox.get();
        if (current != null) {
            current.close();
        }
    }

    @Override
    public boolean isRunning() {
        return running;
    }

    @Override
    public int getPhase() {
        return PHASE;
    }

    /** How many events could not be taken, or not whole. */
    long failures() {
        return failures.get();
    }

    /** Only where they are this engine's. */
    private void closeParts() {
        SessionParts parts = mox.get() == null ? null : PARTS.getAndSet(null);
        if (parts != null) {
            parts.close();
        }
    }

    private void off(Throwable why, Executor closer) {
        closeParts();
        RegistryMox current = mox.getAndSet(null);
        if (!saidOff.compareAndSet(false, true)) {
            return; // another thread was first
        }
        LOG.error("MoX is off, the session server runs without it: {}", reason(why));
        LOG.debug("MoX is off because of", why);
        if (current != null) {
            closer.execute(current::close);
        }
    }

    /** Closing waits for streams to end, which no thread of the registry should. */
    private static void onThread(Runnable close) {
        Thread thread = new Thread(close, "mox-close");
        thread.setDaemon(true);
        thread.start();
    }

    /** The cause on a single line; Spring says what is wrong with a property in the last cause only. */
    private static String reason(Throwable why) {
        if (why instanceof MoxException) {
            return ((MoxException) why).code() + ", " + why.getMessage();
        }
        Throwable root = why;
        while (root.getCause() != null) {
            root = root.getCause();
        }
        return root == why ? why.toString() : why + ", because of " + root;
    }

    private void failed(Throwable why, int reason) {
        long count = failures.incrementAndGet();
        long now = System.nanoTime();
        long due = nextWarning.get(reason);
        if (now - due >= 0 && nextWarning.compareAndSet(reason, due, now + WARN_EVERY_NANOS)) {
            String what = RefusedException.shown(why.toString(), LOGGED_CHARS);
            LOG.warn("MoX could not take an event or a part of it, {} so far: {} event=event_refused", count, what);
        }
    }

    /** How often an event was refused, by the reason. */
    Map<String, Object> refused() {
        Map<String, Object> byKey = new LinkedHashMap<>();
        for (Refusal why : Refusal.values()) {
            if (refused.get(why.ordinal()) > 0) {
                byKey.put(why.key, refused.get(why.ordinal()));
            }
        }
        return byKey;
    }

    private static void log(Level level, String target, String message) {
        if (level == Level.SEVERE) {
            LOG.error("{}: {}", target, message);
        } else if (level == Level.WARNING) {
            LOG.warn("{}: {}", target, message);
        } else if (level == Level.INFO) {
            LOG.info("{}: {}", target, message);
        } else {
            LOG.debug("{}: {}", target, message);
        }
    }
}
