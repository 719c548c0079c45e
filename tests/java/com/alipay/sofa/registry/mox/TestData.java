package com.alipay.sofa.registry.mox;

import static org.junit.Assert.assertTrue;

import com.sun.management.ThreadMXBean;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.ObjectOutputStream;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.BooleanSupplier;

/** Services, payloads, engines and waits that several tests need. */
public final class TestData {
    public static final Duration DEADLINE = Duration.ofMinutes(2);

    private TestData() {}

    public static String service(int number) {
        return "com.example.Service" + number + ":1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
    }

    /** Bytes of a ServerDataBox, made as the registry makes them. */
    public static byte[] box(String text) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        try (ObjectOutputStream objects = new ObjectOutputStream(out)) {
            objects.writeObject(text);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        return out.toByteArray();
    }

    /** The bytes of the publisher that an encoder has begun, read as one character each. */
    public static String onTheWire(MoxHost.Publication publication) {
        FrameEncoder encoder = (FrameEncoder) publication;
        encoder.published();
        return new String(encoder.frame(), 0, encoder.length(), StandardCharsets.ISO_8859_1);
    }

    /** Fails if a call, once warm, puts anything on the Java heap. Warm is what the VM decides, so the best round counts. */
    public static void assertAllocatesNothing(Runnable call) {
        ThreadMXBean threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
        long thread = Thread.currentThread().getId();
        long least = Long.MAX_VALUE;
        for (int round = 0; round < 5; round++) {
            long before = threads.getThreadAllocatedBytes(thread);
            repeat(call, 20_000);
            least = Math.min(least, threads.getThreadAllocatedBytes(thread) - before);
        }
        // The measurement itself has some.
        assertTrue(least + " bytes for 20,000 calls", least < 1_024);
    }

    private static void repeat(Runnable call, int times) {
        for (int i = 0; i < times; i++) {
            call.run();
        }
    }

    /** An engine on a free port with everything in. */
    public static RegistryMox engine() {
        RegistryMox mox = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").build());
        mox.loaded();
        // The first complete view is an empty one, so what a test takes away again was not served a minute ago.
        mox.flush(DEADLINE);
        return mox;
    }

    /** "services/endpoints" of what is served after every earlier event. */
    public static String served(RegistryMox mox) {
        Map<String, Object> flushed = mox.flush(DEADLINE);
        return flushed.get("services") + "/" + flushed.get("endpoints");
    }

    public static List<Publish> none() {
        return Collections.emptyList();
    }

    /** Waits for what another thread does; no test sleeps for a fixed time. */
    public static void await(String what, BooleanSupplier condition) {
        long deadline = System.nanoTime() + DEADLINE.toNanos();
        while (!condition.getAsBoolean()) {
            if (System.nanoTime() - deadline > 0) {
                throw new AssertionError("not within " + DEADLINE + ": " + what);
            }
            LockSupport.parkNanos(TimeUnit.MILLISECONDS.toNanos(5));
        }
    }
}
