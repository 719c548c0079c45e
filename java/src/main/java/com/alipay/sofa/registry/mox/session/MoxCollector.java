package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.RegistryMox;
import io.prometheus.client.Collector;
import io.prometheus.client.CollectorRegistry;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** Adds the engine's metrics to those that the session server shows at {@code /metrics}. */
final class MoxCollector extends Collector implements AutoCloseable {
    private final RegistryMox mox;

    MoxCollector(RegistryMox mox) {
        this.mox = mox;
    }

    static MoxCollector start(RegistryMox mox) {
        MoxCollector collector = new MoxCollector(mox);
        CollectorRegistry.defaultRegistry.register(collector);
        return collector;
    }

    @Override
    public List<MetricFamilySamples> collect() {
        List<MetricFamilySamples> all = new ArrayList<>();
        try {
            for (Object metric : (List<?>) mox.host().command("metrics").get("metrics")) {
                all.add(family((Map<?, ?>) metric));
            }
        } catch (MoxException e) {
            // The engine is closed; other collectors' metrics are still to be shown.
        }
        return all;
    }

    private static MetricFamilySamples family(Map<?, ?> metric) {
        String name = (String) metric.get("name");
        List<MetricFamilySamples.Sample> samples = new ArrayList<>();
        for (Object one : (List<?>) metric.get("samples")) {
            Map<?, ?> sample = (Map<?, ?>) one;
            List<String> names = new ArrayList<>();
            List<String> values = new ArrayList<>();
            for (Object label : (List<?>) sample.get("labels")) {
                names.add((String) ((List<?>) label).get(0));
                values.add((String) ((List<?>) label).get(1));
            }
            // Of a histogram a sample has the metric's name with an end.
            String sampleName = name + sample.get("suffix");
            samples.add(new MetricFamilySamples.Sample(sampleName, names, values, ((Number) sample.get("value")).doubleValue()));
        }
        Type type = Type.valueOf(((String) metric.get("kind")).toUpperCase(Locale.ROOT));
        return new MetricFamilySamples(name, type, (String) metric.get("help"), samples);
    }

    @Override
    public void close() {
        CollectorRegistry.defaultRegistry.unregister(this);
    }
}
