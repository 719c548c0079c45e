package com.example;

import com.alipay.sofa.rpc.client.ProviderInfo;
import com.alipay.sofa.rpc.registry.sofa.SofaRegistryHelper;
import java.util.Collections;

/** What SOFARPC's own parser reads in texts of the registry; see {@link Reading}. {@code SofaRpcReading PARAMETER...} */
public final class SofaRpcReading {
    private SofaRpcReading() {}

    public static void main(String[] parameters) throws Exception {
        Reading.run(text -> {
            ProviderInfo provider = SofaRegistryHelper.parseProviderInfos(Collections.singletonList(text)).get(0);
            // While it warms up getWeight() is another one; a weight that is none is no attribute.
            String weight = provider.getStaticAttr("weight");
            Reading reading = new Reading(provider.getHost(), provider.getPort(),
                weight == null ? new ProviderInfo().getWeight() : Integer.parseInt(weight), provider.getStaticAttr("appName"));
            for (String parameter : parameters) {
                reading.text(provider.getStaticAttr(parameter));
            }
            return reading;
        });
    }
}
