package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import io.prometheus.client.Collector.MetricFamilySamples;
import io.prometheus.client.Collector.Type;
import io.prometheus.client.CollectorRegistry;
import java.util.Collections;
import java.util.Enumeration;
import java.util.HashMap;
import java.util.Map;
import org.junit.Test;

/** The engine's metrics among the session server's own. */
public class MoxCollectorTest {
    /** As Prometheus' client for Java has histograms: a type, and samples by the names that its own would have. */
    @Test
    public void aHistogramIsOneInTheRegistrysMetricsToo() {
        RegistryMox mox = TestData.engine();
        MoxCollector collector = MoxCollector.start(mox);
        try {
            mox.publish("registry", Publish.of(TestData.service(1), "r").version(1, 1).data("10.0.0.1:12200").build());
            mox.flush(TestData.DEADLINE);
            Map<String, MetricFamilySamples> all = new HashMap<>();
            Enumeration<MetricFamilySamples> shown = CollectorRegistry.defaultRegistry.metricFamilySamples();
            for (MetricFamilySamples family : Collections.list(shown)) {
                all.put(family.name, family);
            }
            assertEquals(Type.GAUGE, all.get("mox_services").type);
            MetricFamilySamples family = all.get("mox_change_to_published_seconds");
            assertEquals(Type.HISTOGRAM, family.type);
            assertEquals("16 buckets, the sum and the count", 18, family.samples.size());
            double before = 0;
            for (MetricFamilySamples.Sample sample : family.samples.subList(0, 16)) {
                assertEquals(family.name + "_bucket", sample.name);
                assertEquals(Collections.singletonList("le"), sample.labelNames);
                assertTrue(family.toString(), sample.value >= before);
                before = sample.value;
            }
            assertEquals(Collections.singletonList("+Inf"), family.samples.get(15).labelValues);
            assertEquals(family.name + "_sum", family.samples.get(16).name);
            assertEquals(family.name + "_count", family.samples.get(17).name);
            assertEquals("one change", 1.0, family.samples.get(17).value, 0);
            assertEquals(1.0, before, 0);
        } finally {
            collector.close();
            mox.close();
        }
    }
}
