package example;

import com.alipay.sofa.registry.mox.Batch;
import com.alipay.sofa.registry.mox.MoxConfig;
import com.alipay.sofa.registry.mox.Publish;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.time.Duration;
import java.util.Arrays;
import java.util.Collections;
import java.util.Map;

/** An engine of one's own, without a registry and without Spring. */
public final class PlainExample {
    private static final String SOURCE = "example";
    private static final String SERVICE = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";

    private PlainExample() {}

    /**
     * Runs the example.
     *
     * @param args none
     */
    public static void main(String[] args) {
        // Port 0 takes a free one; in production this is host:9700, which Istio's configSources name.
        MoxConfig config = MoxConfig.builder().set("listen", "127.0.0.1:0").set("scope", "local").build();
        try (RegistryMox mox = RegistryMox.create(config)) {
            System.out.println("Istio would connect to xds://" + mox.address().getHostString() + ":" + mox.address().getPort());

            mox.publish(SOURCE, provider("provider-1", "10.0.0.1:12200?app_name=demo&p=1"));
            try (Batch batch = mox.batch(SOURCE)) {
                batch.publish(provider("provider-2", "10.0.0.2:12200?app_name=demo&p=1"));
                batch.publish(provider("provider-3", "10.0.0.3:12200?app_name=demo&p=1"));
            }
            // Everything is in: serve it now, not after the hold that follows a start.
            mox.loaded();
            show("three published", mox);

            mox.unpublish(SOURCE, SERVICE, "provider-3", 2, System.currentTimeMillis());
            show("one unpublished", mox);

            // A full read of the service found these two. Another source's entries would not be touched. A publisher that
            // came up to 15 s before a read began is kept, because the read may not have seen it: so this one begins in a minute.
            mox.replace(
                    SOURCE,
                    SERVICE,
                    1,
                    System.currentTimeMillis() + 60_000,
                    Arrays.asList(
                            provider("provider-1", "10.0.0.1:12200?app_name=demo&p=1"),
                            provider("provider-4", "10.0.0.4:12200?app_name=demo&p=1")));
            show("replaced", mox);

            mox.replace(SOURCE, SERVICE, 2, System.currentTimeMillis() + 120_000, Collections.emptyList());
            show("replaced by nothing", mox);

            System.out.println("status: " + mox.status());
        }
    }

    private static Publish provider(String registerId, String url) {
        return Publish.of(SERVICE, registerId).version(1, System.currentTimeMillis()).appName("demo").data(url).build();
    }

    private static void show(String step, RegistryMox mox) {
        Map<String, Object> served = mox.flush(Duration.ofSeconds(5));
        System.out.println(step + ": services " + served.get("services") + ", endpoints " + served.get("endpoints"));
    }
}
