package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.console.PersistenceData;
import com.alipay.sofa.registry.store.api.meta.ProvideDataRepository;
import java.lang.reflect.Method;
import org.springframework.beans.factory.ListableBeanFactory;
import org.springframework.core.env.Environment;

/**
 * The registry's own store of settings. A session server reads and writes it itself, for its stop-push switch, so meta is not
 * needed for it; its console offers no compare-and-set.
 */
final class RealDocumentStore implements DocumentStore {
    /** How it is said that rows do not outlive the process. */
    static final String NOT_PERSISTENT = "not persistent";

    private static final int PARTS = 3;

    private final ProvideDataRepository rows;

    private RealDocumentStore(ProvideDataRepository rows) {
        this.rows = rows;
    }

    /**
     * The store of a session server's context.
     *
     * @throws IllegalStateException where documents would have no home; its text says why
     */
    static RealDocumentStore of(ListableBeanFactory beans) {
        check();
        ProvideDataRepository rows = beans.getBeanProvider(ProvideDataRepository.class).getIfAvailable();
        if (rows == null) {
            throw new IllegalStateException("this registry keeps its settings in no database (there is no ProvideDataRepository)");
        }
        Environment environment = beans.getBeanProvider(Environment.class).getIfAvailable();
        String url = environment == null ? null : environment.getProperty("jdbc.url");
        if (url != null && url.startsWith("jdbc:h2:") && !url.startsWith("jdbc:h2:tcp:") && !url.startsWith("jdbc:h2:ssl:")) {
            throw new IllegalStateException(
                    NOT_PERSISTENT + ": the database is an H2 of this process, whose tables are made anew at every start; the properties are the policy");
        }
        return new RealDocumentStore(rows);
    }

    /** Another registry version may have other methods; then it is known now, and not at the first write. */
    private static void check() {
        try {
            require(ProvideDataRepository.class.getMethod("get", String.class), PersistenceData.class);
            require(ProvideDataRepository.class.getMethod("put", PersistenceData.class, long.class), boolean.class);
            require(PersistenceData.class.getMethod("getVersion"), long.class);
            require(PersistenceData.class.getMethod("getData"), String.class);
            PersistenceData.class.getMethod("setVersion", long.class);
            for (String text : new String[] {"setData", "setDataId", "setInstanceId", "setGroup"}) {
                PersistenceData.class.getMethod(text, String.class);
            }
        } catch (NoSuchMethodException e) {
            throw new IllegalStateException("this registry version has another ProvideDataRepository: there is no " + e.getMessage(), e);
        }
    }

    private static void require(Method method, Class<?> returns) {
        if (method.getReturnType() != returns) {
            throw new IllegalStateException("this registry version has another ProvideDataRepository: " + method + " gives no " + returns);
        }
    }

    @Override
    public Row get(String key) {
        PersistenceData data = rows.get(key);
        return data == null ? null : new Row(data.getVersion(), data.getData());
    }

    @Override
    public boolean put(String key, Row row, long expect) {
        String[] parts = key.split("#@#", PARTS);
        PersistenceData data = new PersistenceData();
        data.setDataId(parts[0]);
        data.setInstanceId(parts[1]);
        data.setGroup(parts[2]);
        data.setVersion(row.version);
        data.setData(row.value);
        return rows.put(data, expect);
    }
}
