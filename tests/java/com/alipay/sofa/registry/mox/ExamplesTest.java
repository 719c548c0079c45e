package com.alipay.sofa.registry.mox;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import example.PlainExample;
import org.junit.Test;

/** The example without Spring does what it prints; the other one runs in session.MoxBindingTest. */
public class ExamplesTest {
    @Test
    public void plain() throws Exception {
        ChildJvm child = new ChildJvm().run(PlainExample.class);
        assertEquals(child.toString(), 0, child.exit);
        String all = child.toString();
        for (String line :
                new String[] {
                    "Istio would connect to xds://127.0.0.1:",
                    "three published: services 1, endpoints 3",
                    "one unpublished: services 1, endpoints 2",
                    "replaced: services 1, endpoints 2",
                    "endpoints 0",
                    "status: {"
                }) {
            assertTrue(line + " is missing in " + all, all.contains(line));
        }
    }
}
