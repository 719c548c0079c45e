package com.alipay.sofa.registry.mox;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;

/** The natives themselves, called with what the facade never sends. */
public class NativeBridgeTest {
    private static final String CONFIG = "{\"listen\":\"127.0.0.1:0\"}";

    private long handle;

    @Before
    public void open() {
        NativeLoader.load();
        handle = NativeBridge.open(bytes(CONFIG));
        command("{\"op\":\"loaded\"}");
    }

    @After
    public void close() {
        NativeBridge.close(handle);
    }

    @Test
    public void theNativesAreTheContract() {
        Set<String> natives =
                Stream.of(NativeBridge.class.getDeclaredMethods())
                        .filter(method -> Modifier.isNative(method.getModifiers()))
                        .map(NativeBridgeTest::signature)
                        .collect(Collectors.toCollection(TreeSet::new));
        Set<String> contract =
                new TreeSet<>(
                        Arrays.asList(
                                "int abiVersion()",
                                "long open(byte[])",
                                "long apply(long,byte[],int)",
                                "byte[] lastError()",
                                "byte[] command(long,byte[])",
                                "byte[] openPage(long,byte[])",
                                "byte[] nextChunk(long,long)",
                                "void closePage(long,long)",
                                "byte[] nextLogs(long,long)",
                                "void close(long)"));
        assertEquals(contract, natives);
        assertEquals(NativeBridge.ABI, NativeBridge.abiVersion());
        assertTrue("handle " + handle, handle > 0);
    }

    @Test
    public void everyCutAndEveryExtraByteIsMalformedAndChangesNothing() {
        FrameEncoder encoder = frameOfTwo();
        byte[] frame = encoder.frame();
        for (int length = 0; length < encoder.length(); length++) {
            assertEquals("cut to " + length, -2, NativeBridge.apply(handle, frame, length));
        }
        assertEquals("one byte more", -2, NativeBridge.apply(handle, frame, encoder.length() + 1));
        assertEquals("0", command("{\"op\":\"flush\",\"timeoutMillis\":5000}").get("services").toString());
        assertTrue(NativeBridge.apply(handle, frame, encoder.length()) > 0);
        assertEquals("2", command("{\"op\":\"flush\",\"timeoutMillis\":5000}").get("services").toString());
    }

    @Test
    public void wrongLengthsAndNullAreCodesNotCrashes() {
        byte[] frame = frameOfTwo().frame();
        for (int length : new int[] {-1, Integer.MIN_VALUE, frame.length + 1, Integer.MAX_VALUE}) {
            long result = NativeBridge.apply(handle, frame, length);
            assertTrue("length " + length + " gave " + result, result < 0);
        }
        assertTrue(NativeBridge.apply(handle, null, 4) < 0);
        assertThrows(MoxException.class, () -> NativeBridge.command(handle, null));
        assertThrows(MoxException.class, () -> NativeBridge.open(null));
    }

    /** A refused frame's text is its thread's, once. */
    @Test
    public void whyAFrameIsRefusedIsKeptForItsThread() throws Exception {
        NativeBridge.lastError(); // of what this thread did before
        assertNull(NativeBridge.lastError());
        // A frame of one event, a publish, whose source has 65 bytes: a byte too many.
        byte[] frame = new byte[4 + 1 + 2 + 65];
        System.arraycopy(new byte[] {1, 0, 1, 0, 1, 65, 0}, 0, frame, 0, 7);
        Arrays.fill(frame, 7, frame.length, (byte) 'x');
        assertEquals(-Code.TOO_LARGE.number(), NativeBridge.apply(handle, frame, frame.length));
        Thread other = new Thread(() -> assertNull(NativeBridge.lastError()));
        Throwable[] failure = new Throwable[1];
        other.setUncaughtExceptionHandler((thread, why) -> failure[0] = why);
        other.start();
        other.join();
        assertNull(failure[0]);
        String why = new String(NativeBridge.lastError(), StandardCharsets.UTF_8);
        assertEquals("source has 65 bytes, allowed are at most 64; shorten it, or send it in parts", why);
        assertNull(NativeBridge.lastError());
        assertEquals(-Code.CLOSED.number(), NativeBridge.apply(0, frame, frame.length));
        assertEquals("the engine is closed", new String(NativeBridge.lastError(), StandardCharsets.UTF_8));
    }

    @Test
    public void whatIsWaitedForInVainIsATimeout() {
        MoxException[] late = new MoxException[1];
        // Nearly always the first.
        TestData.await("one that gives up", () -> {
            try {
                command("{\"op\":\"flush\",\"timeoutMillis\":0}");
            } catch (MoxException e) {
                late[0] = e;
            }
            return late[0] != null;
        });
        assertEquals(Code.TIMEOUT, late[0].code());
        assertTrue(late[0].getMessage(), late[0].getMessage().startsWith("flush took longer than 0 ms (timeoutMillis); "));
    }

    @Test
    public void forgedAndStaleHandles() {
        FrameEncoder encoder = frameOfTwo();
        NativeBridge.close(handle);
        long next = NativeBridge.open(bytes(CONFIG));
        try {
            for (long wrong : new long[] {handle, 0, -1, next + 1, next ^ 1L << 40, Long.MAX_VALUE, Long.MIN_VALUE}) {
                assertEquals("handle " + wrong, -1, NativeBridge.apply(wrong, encoder.frame(), encoder.length()));
                MoxException e = assertThrows(MoxException.class, () -> NativeBridge.command(wrong, bytes("{\"op\":\"status\"}")));
                assertEquals(Code.CLOSED, e.code());
                TestData.await("what is left of the log, then null", () -> NativeBridge.nextLogs(wrong, 0) == null);
                NativeBridge.close(wrong);
            }
            assertTrue("the live one is unharmed", NativeBridge.apply(next, encoder.frame(), encoder.length()) > 0);
        } finally {
            NativeBridge.close(next);
        }
    }

    @Test
    public void pagesThatAreNone() {
        for (String wrong : new String[] {"", "{}", "[]", "{\"path\":7}"}) {
            MoxException e = assertThrows(wrong, MoxException.class, () -> NativeBridge.openPage(handle, bytes(wrong)));
            assertEquals(wrong, Code.INVALID_ARGUMENT, e.code());
        }
        assertThrows(MoxException.class, () -> NativeBridge.openPage(handle, null));
        for (long cursor : new long[] {0, 1, -1, Long.MAX_VALUE, Long.MIN_VALUE}) {
            MoxException e = assertThrows(MoxException.class, () -> NativeBridge.nextChunk(handle, cursor));
            assertEquals(e.getMessage(), Code.INVALID_ARGUMENT, e.code());
            NativeBridge.closePage(handle, cursor);
        }
        for (long wrong : new long[] {0, -1, handle + 1, Long.MIN_VALUE}) {
            assertEquals(Code.CLOSED, assertThrows(MoxException.class, () -> NativeBridge.openPage(wrong, bytes("{\"path\":\"/mox\"}"))).code());
            assertEquals(Code.CLOSED, assertThrows(MoxException.class, () -> NativeBridge.nextChunk(wrong, 1)).code());
            NativeBridge.closePage(wrong, 1);
        }
    }

    @Test
    public void commandsThatAreNone() {
        for (String wrong : new String[] {"", "{", "[]", "{}", "{\"op\":\"dance\"}", "{\"op\":7}", "{\"op\":\"flush\",\"timeoutMillis\":\"x\"}"}) {
            MoxException e = assertThrows(wrong, MoxException.class, () -> NativeBridge.command(handle, bytes(wrong)));
            assertEquals(wrong, Code.INVALID_ARGUMENT, e.code());
        }
        assertThrows(MoxException.class, () -> NativeBridge.command(handle, new byte[] {(byte) 0xFF, '{', '}'}));
    }

    private static FrameEncoder frameOfTwo() {
        FrameEncoder encoder = new FrameEncoder();
        encoder.publish("test", Publish.of(TestData.service(1), "r1").version(1, 1).data("10.0.0.1:12200").build());
        encoder.publish("test", Publish.of(TestData.service(2), "r2").version(1, 1).serialized(TestData.box("10.0.0.2:12200")).build());
        return encoder;
    }

    private Map<?, ?> command(String json) {
        return (Map<?, ?>) Json.read(NativeBridge.command(handle, bytes(json)));
    }

    private static String signature(Method method) {
        return method.getReturnType().getSimpleName() + " " + method.getName() + "("
                + Stream.of(method.getParameterTypes()).map(Class::getSimpleName).collect(Collectors.joining(",")) + ")";
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
