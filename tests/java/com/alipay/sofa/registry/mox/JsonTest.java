package com.alipay.sofa.registry.mox;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import org.junit.Test;

/** Configuration out, answers in. */
public class JsonTest {
    @Test
    public void configIsPassedOnAsGiven() {
        Map<String, Object> spring = new LinkedHashMap<>();
        spring.put("startup-hold", "2s");
        byte[] json =
                MoxConfig.builder()
                        .set("listen", "0.0.0.0:9700")
                        .set("threads", 2)
                        .set("policy.include", Arrays.asList("com.*", "org \"x\"\\\n"))
                        .tree(Collections.singletonMap("protect", spring))
                        .set("protect.emptyGrace", "10m")
                        .tree(Collections.singletonMap("policy", Collections.singletonMap("a.b", Collections.singletonMap("größe", true))))
                        .build()
                        .json();
        assertEquals(
                "{\"listen\":\"0.0.0.0:9700\",\"threads\":2,"
                        + "\"policy\":{\"include\":[\"com.*\",\"org \\\"x\\\"\\\\\\u000a\"],\"a.b\":{\"größe\":true}},"
                        + "\"protect\":{\"startup-hold\":\"2s\",\"emptyGrace\":\"10m\"}}",
                new String(json, StandardCharsets.UTF_8));
    }

    @Test
    public void keyBelowAValueIsRefused() {
        MoxConfig.Builder builder = MoxConfig.builder().set("push", "fast");
        MoxException e = assertThrows(MoxException.class, () -> builder.set("push.quiet", "1ms"));
        assertEquals(Code.INVALID_CONFIG, e.code());
        assertTrue(e.getMessage(), e.getMessage().startsWith("key 'push.quiet': 'push' already has the value 'fast'"));
    }

    @Test
    public void readsWhatItWrites() {
        String json = "{\"a\":[1,-2.5,true,false,null,\"\\u00e4\\n\\\"/\\/\",{},[]],\"b\":{\"c\":123456789012}}";
        assertEquals(Arrays.asList(-9e17, 1e2, 999_999_999_999_999_999L, 0L), Json.read("[-900000000000000000,1e2,999999999999999999,0]"));
        Object value = Json.read(json);
        assertEquals(value, Json.read(Json.write(value)));
        assertEquals(123456789012L, ((Map<?, ?>) ((Map<?, ?>) value).get("b")).get("c"));
        assertEquals(Arrays.asList(1L, -2.5, true, false, null, "ä\n\"//", Collections.emptyMap(), Collections.emptyList()), ((Map<?, ?>) value).get("a"));
    }

    @Test
    public void wrongJsonIsRefusedWithItsPlace() {
        StringBuilder deep = new StringBuilder();
        for (int i = 0; i < 100_000; i++) {
            deep.append('[');
        }
        for (String wrong : new String[] {"", "{", "{\"a\"}", "[1,]", "{} x", "\"\\u12", "\"\\uxyzw\"", "\"\\x\"", "\"\\\"", "-1-1", "--1", "tru", "-", "1e", deep.toString()}) {
            MoxException e = assertThrows(wrong, MoxException.class, () -> Json.read(wrong));
            assertEquals(Code.INVALID_ARGUMENT, e.code());
            assertTrue(e.getMessage(), e.getMessage().contains("expected") && e.getMessage().length() < 250);
        }
    }
}
