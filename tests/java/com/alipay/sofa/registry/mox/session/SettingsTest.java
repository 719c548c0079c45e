package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;

import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.Test;
import org.springframework.core.env.MapPropertySource;
import org.springframework.core.env.StandardEnvironment;
import org.springframework.core.env.SystemEnvironmentPropertySource;

/** Spring's properties as they are passed to the engine, before it judges them. */
public class SettingsTest {
    @Test
    public void theTreeUnderMoxIsPassedOnAsItWasSpelled() {
        Map<String, Object> file = new LinkedHashMap<>();
        file.put("mox.enabled", "true");
        file.put("mox.listen", "0.0.0.0:9700");
        file.put("mox.protect.startup-hold", "2s");
        file.put("mox.protect.emptyGrace", "${grace}");
        file.put("mox.policy.include[0]", "com.*");
        file.put("mox.policy.include[1]", "org.*");
        file.put("mox.no-such-key", "7");
        file.put("grace", "10m");
        file.put("moxie", "not ours");
        assertEquals(
                "{listen=0.0.0.0:9700, protect={startup-hold=2s, emptyGrace=10m}, policy={include={0=com.*, 1=org.*}}, no-such-key=7}",
                settings(new HashMap<>(), file));
    }

    @Test
    public void environmentVariables() {
        Map<String, Object> variables = new LinkedHashMap<>();
        variables.put("MOX_ENABLED", "true");
        variables.put("MOX_PUSH_QUIET", "5ms");
        variables.put("MOX_STATEDIR", "/var/lib/mox");
        assertEquals("{push={quiet=5ms}, statedir=/var/lib/mox}", settings(variables, new HashMap<>()));
    }

    /** The engine knows which keys are one. */
    @Test
    public void oneKeyInTwoSpellingsHasTheStrongerSourcesValueInBoth() {
        Map<String, Object> variables = new LinkedHashMap<>();
        variables.put("MOX_PROTECT_STARTUPHOLD", "9s");
        Map<String, Object> file = new LinkedHashMap<>();
        file.put("mox.protect.startup-hold", "2s");
        assertEquals("{protect={startuphold=9s, startup-hold=9s}}", settings(variables, file));
    }

    @Test
    public void kubernetesServiceLinksAreNoSettings() {
        Map<String, Object> variables = serviceLinks();
        variables.put("MOX_PUSH_QUIET", "5ms");
        assertEquals("{push={quiet=5ms}}", settings(variables, new HashMap<>()));
    }

    /** Also under the links' own names: the engine refuses what an operator has written. */
    @Test
    public void keysOfAFileArePassedOnBesideServiceLinks() {
        Map<String, Object> file = new LinkedHashMap<>();
        file.put("mox.port", "9700");
        file.put("mox.service.name", "demo");
        assertEquals("{port=9700, service={name=demo}}", settings(serviceLinks(), file));
    }

    @Test
    public void variablesThatAreNoServiceLinksArePassedOn() {
        Map<String, Object> variables = new LinkedHashMap<>();
        variables.put("MOX_PORT", "9700");
        variables.put("MOX_SERVICE_NAME", "demo");
        assertEquals("{port=9700, service={name=demo}}", settings(variables, new HashMap<>()));
    }

    @Test
    public void settingsOfKubernetesAreNoServiceLinks() {
        Map<String, Object> variables = serviceLinks();
        variables.put("MOX_KUBERNETES_ENABLED", "true");
        variables.put("MOX_KUBERNETES_LEASENAMESPACE", "leases");
        variables.put("MOX_KUBERNETES_OWNER", "north");
        assertEquals(
                "{kubernetes={enabled=true, leasenamespace=leases, owner=north}}", settings(variables, new HashMap<>()));
    }

    private static Map<String, Object> serviceLinks() {
        Map<String, Object> variables = new LinkedHashMap<>();
        variables.put("MOX_SERVICE_HOST", "10.96.0.9");
        variables.put("MOX_SERVICE_PORT", "9700");
        variables.put("MOX_SERVICE_PORT_XDS", "9700");
        variables.put("MOX_PORT", "tcp://10.96.0.9:9700");
        variables.put("MOX_PORT_9700_TCP", "tcp://10.96.0.9:9700");
        variables.put("MOX_PORT_9700_TCP_ADDR", "10.96.0.9");
        variables.put("MOX_XDS_SERVICE_HOST", "10.96.0.10");
        variables.put("MOX_XDS_PORT_9700_TCP", "tcp://10.96.0.10:9700");
        return variables;
    }

    @Test
    public void globsAndZonesStandInBrackets() {
        Map<String, Object> file = new LinkedHashMap<>();
        file.put("mox.policy.overrides[com.example.Demo*:1.0@tri*].dns", "true");
        file.put("mox.policy.overrides[com.example.Demo*:1.0@tri*].export-to[0]", ".");
        file.put("mox.policy.locality[GZ00A]", "cn-gz/a");
        assertEquals(
                "{policy={overrides={com.example.Demo*:1.0@tri*={dns=true, export-to={0=.}}}, locality={GZ00A=cn-gz/a}}}",
                settings(new HashMap<>(), file));
    }

    @Test
    public void nothingIsAnEmptyTree() {
        assertEquals("{}", settings(new HashMap<>(), new HashMap<>()));
    }

    private static String settings(Map<String, Object> variables, Map<String, Object> file) {
        StandardEnvironment environment = new StandardEnvironment();
        environment.getPropertySources().remove(StandardEnvironment.SYSTEM_ENVIRONMENT_PROPERTY_SOURCE_NAME);
        environment
                .getPropertySources()
                .addLast(new SystemEnvironmentPropertySource(StandardEnvironment.SYSTEM_ENVIRONMENT_PROPERTY_SOURCE_NAME, variables));
        environment.getPropertySources().addLast(new MapPropertySource("file", file));
        return MoxBinding.settings(environment).toString();
    }
}
