package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.alipay.sofa.registry.server.session.providedata.FetchStopPushService;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import org.junit.Test;
import org.springframework.beans.factory.support.StaticListableBeanFactory;

/** The engine is frozen while the registry's own switch says that pushes are stopped, from its first word on. */
public class StopPushTest {
    /**
     * A session server that has read nothing yet says what its release begins with: stopped in 6.3.0, pushing in 6.6.3.
     */
    @Test
    public void frozenIsWhatTheSwitchSaysFromItsInitialValueOn() {
        FetchStopPushService unread = new FetchStopPushService();
        assertTrue("in 6.3.0, which this is built with", unread.isStopPushSwitch());
        assertFrozenAsTold(unread);

        FetchStopPushService pushing = new FetchStopPushService();
        pushing.setStopPushSwitch(-1, false); // what a fresh one of 6.6.3 says
        assertFrozenAsTold(pushing);
    }

    private static void assertFrozenAsTold(FetchStopPushService stop) {
        StaticListableBeanFactory beans = new StaticListableBeanFactory();
        beans.addBean("fetchStopPushService", stop);
        Map<String, Object> settings = new HashMap<>();
        settings.put("scope", "local");
        settings.put("maxStalenessMillis", 60_000L);
        RegistryMox mox = TestData.engine();
        try (SessionParts parts = SessionParts.start(beans, mox, settings, Collections::emptyMap, broken -> {})) {
            boolean first = stop.isStopPushSwitch();
            awaitFrozen(mox, first);
            for (boolean stopped : new boolean[] {!first, first, false}) {
                stop.setStopPushSwitch(1, stopped);
                awaitFrozen(mox, stopped);
            }
        } finally {
            mox.close();
        }
    }

    private static void awaitFrozen(RegistryMox mox, boolean frozen) {
        TestData.await("frozen: " + frozen, () -> frozen == "frozen".equals(mox.flush(TestData.DEADLINE).get("held")));
    }
}
