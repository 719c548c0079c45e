package com.alipay.sofa.registry.mox;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.Collections;
import java.util.Random;
import org.junit.Test;

/** The bytes of the frames, against vectors that were made without this encoder (tests/golden/frames/README.md). */
public class FrameEncoderTest {
    private static final String DEMO = "com.example.DemoService:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
    private static final String GREET = "com.example.Grüße:1.0@tri#@#mandant-ä#@#SOFA";
    private static final String R1 = "8f14e45f-ceea-467f-9d2b-1c0b8f1a0001";
    private static final String R2 = "8f14e45f-ceea-467f-9d2b-1c0b8f1a0002";
    private static final String R3 = "8f14e45f-ceea-467f-9d2b-1c0b8f1a0003";
    private static final long TS = 1795393505864L;
    private static final String BOLT =
            "10.0.0.1:12200?rpcVer=51302&serialization=hessian2&weight=100&app_name=demo&p=1&v=4.0";
    private static final Publish FIRST =
            Publish.of(DEMO, R1).version(1, TS).cell("DEFAULT_ZONE").appName("demo").data(BOLT).build();

    private final FrameEncoder encoder = new FrameEncoder();

    @Test
    public void publishText() throws Exception {
        encoder.publish("registry", FIRST);
        assertGolden("publish-text");
    }

    @Test
    public void publishBoxesAndTextBeyondAscii() throws Exception {
        encoder.publish(
                "registry",
                Publish.of(GREET, R2)
                        .version(-7, TS + 1)
                        .cell("zürich-1")
                        .appName("größe-日本-😀\uD83D")
                        .attribute("region", "東京")
                        .attribute("empty", "")
                        .serialized(TestData.box("10.0.0.2:50051?app_name=größe"))
                        .serialized(TestData.box("[2001:db8::2]:50051?weight=50"))
                        .build());
        assertGolden("publish-boxes");
    }

    @Test
    public void publisherWrittenPartByPart() throws Exception {
        FrameEncoder parts = FrameEncoder.publishing("registry", GREET, R2, -7, TS + 1, "zürich-1", "größe-日本-😀\uD83D", null);
        parts.attribute("region", "東京");
        refused("attribute value 'aaa", () -> parts.attribute("left out", repeat('a', 65_536)), Code.TOO_LARGE);
        parts.attribute("empty", "");
        parts.data(TestData.box("10.0.0.2:50051?app_name=größe"));
        refused("data of 1048577 bytes", () -> parts.data(new byte[(1 << 20) + 1]), Code.TOO_LARGE);
        parts.data(TestData.box("[2001:db8::2]:50051?weight=50"));
        refused("no publisher is open for attributes", () -> parts.attribute("too", "late"), Code.INVALID_ARGUMENT);
        parts.published();
        assertGolden("publish-boxes", parts);
        refused("no publisher is open", parts::published, Code.INVALID_ARGUMENT);
        refused("no publisher is open", () -> parts.data(new byte[1]), Code.INVALID_ARGUMENT);
    }

    @Test
    public void publishersWithSourceAddresses() throws Exception {
        String source = "2001:db8:0:0:0:0:0:2";
        Publish first = Publish.of(DEMO, R1).cell("DEFAULT_ZONE").appName("demo").sourceAddress("10.0.0.1:41234").data(BOLT).build();
        Publish second = Publish.of(GREET, R3).version(1, TS + 6).sourceAddress(source).serialized(TestData.box("10.0.0.3:12200")).build();
        encoder.publish("registry", first.version(1, TS));
        encoder.publish("registry", second);
        assertGolden("publish-source");

        encoder.begin();
        encoder.publish("registry", second);
        FrameEncoder parts = FrameEncoder.publishing("registry", GREET, R3, 1, TS + 6, null, null, source);
        parts.data(TestData.box("10.0.0.3:12200"));
        parts.published();
        assertArrayEquals(Arrays.copyOf(encoder.frame(), encoder.length()), Arrays.copyOf(parts.frame(), parts.length()));
        refused(
                "sourceAddress 'aaa",
                () -> FrameEncoder.publishing("registry", DEMO, R1, 1, TS, null, null, repeat('a', 129)),
                Code.TOO_LARGE);
    }

    @Test
    public void publisherIsLostToAnotherOnTheSameThread() {
        FrameEncoder parts = FrameEncoder.publishing("registry", DEMO, R1, 1, TS, null, null, null);
        FrameEncoder.local().publish("registry", FIRST);
        refused("no publisher is open", parts::published, Code.INVALID_ARGUMENT);

        FrameEncoder.publishing("registry", DEMO, R1, 1, TS, null, null, null);
        refused("dataInfoId is null", () -> FrameEncoder.publishing("registry", null, R2, 1, TS, null, null, null), Code.INVALID_ARGUMENT);
        refused("no publisher is open", parts::published, Code.INVALID_ARGUMENT);
    }

    @Test
    public void unpublish() throws Exception {
        encoder.unpublish("registry", DEMO, R1, 2, TS + 2);
        assertGolden("unpublish");
    }

    private static final Publish SECOND =
            Publish.of(DEMO, R3)
                    .version(Long.MAX_VALUE, Long.MIN_VALUE)
                    .cell("rz-2")
                    .appName("demo")
                    .attributes(Collections.singletonMap("k", "v"))
                    .build();

    @Test
    public void replace() throws Exception {
        encoder.openReplace("consul", DEMO, 41);
        encoder.body(Publish.of(DEMO, R1).version(3, TS + 4).data(BOLT).build());
        encoder.body(SECOND);
        encoder.closeReplace(TS + 3);
        assertGolden("replace");
    }

    @Test
    public void replaceInPieces() throws Exception {
        encoder.openReplace("consul", DEMO, 41);
        encoder.openPublisher(R1, 3, TS + 4, null, null);
        encoder.data(TestData.box("10.0.0.1:12200"));
        encoder.closePublisher();
        encoder.closePiece(true, false, 77, TS + 3);
        assertGolden("replace-begin");

        encoder.begin();
        encoder.openReplace("consul", DEMO, 41);
        encoder.body(SECOND);
        int written = encoder.written();
        encoder.openPublisher(R2, 9, TS, "dropped", null);
        encoder.data(new byte[9]);
        encoder.dropTo(written);
        encoder.closePiece(false, false, 77, TS + 3);
        assertGolden("replace-append");

        encoder.begin();
        encoder.openReplace("consul", DEMO, 41);
        encoder.closePiece(false, true, 77, TS + 3);
        assertGolden("replace-commit");
    }

    @Test
    public void batchOfThree() throws Exception {
        encoder.publish("registry", FIRST);
        encoder.unpublish("registry", DEMO, R2, 5, TS + 5);
        encoder.publish("registry", Publish.of(GREET, R3).version(1, TS + 6).serialized(TestData.box("10.0.0.3:12200")).build());
        assertGolden("batch");
    }

    @Test
    public void textIsWhatStringGetBytesMakes() {
        Random random = new Random(20_261_123);
        for (int round = 0; round < 2_000; round++) {
            int bound = round % 4 == 0 ? 0x80 : round % 4 == 1 ? 0x800 : 0x10000;
            StringBuilder text = new StringBuilder();
            for (int i = random.nextInt(40); i >= 0; i--) {
                text.append((char) random.nextInt(bound)); // surrogates too: pairs now and then, lone ones mostly
            }
            encoder.begin();
            encoder.unpublish("s", "d", text.toString(), 0, 0);
            byte[] expected = text.toString().getBytes(StandardCharsets.UTF_8);
            byte[] actual = Arrays.copyOfRange(encoder.frame(), encoder.length() - expected.length, encoder.length());
            assertArrayEquals(text.toString(), expected, actual);
        }
    }

    @Test
    public void refusedEventLeavesTheFrameAsItWas() throws Exception {
        encoder.publish("registry", FIRST);
        Publish tooLong = Publish.of(DEMO, R2).appName(repeat('a', 65_536)).data(BOLT).build();
        assertEquals(Code.TOO_LARGE, assertThrows(MoxException.class, () -> encoder.publish("registry", tooLong)).code());
        encoder.unpublish("registry", DEMO, R2, 5, TS + 5);
        encoder.publish("registry", Publish.of(GREET, R3).version(1, TS + 6).serialized(TestData.box("10.0.0.3:12200")).build());
        assertGolden("batch");
    }

    @Test
    public void limitsAreOfBytesAndNameTheField() {
        refused("source is empty", () -> encoder.unpublish("", DEMO, R1, 0, 0), Code.INVALID_ARGUMENT);
        encoder.unpublish(repeat('s', 64), repeat('d', 4_096), repeat('r', 512), 0, 0);
        refused("source 'sss", () -> encoder.unpublish(repeat('s', 65), DEMO, R1, 0, 0), Code.TOO_LARGE);
        refused("dataInfoId 'ddd", () -> encoder.unpublish("s", repeat('d', 4_097), R1, 0, 0), Code.TOO_LARGE);
        refused("registerId 'äää", () -> encoder.unpublish("s", DEMO, repeat('ä', 257), 0, 0), Code.TOO_LARGE);
        encoder.publish("s", Publish.of(DEMO, R1).data(repeat('x', 1 << 20)).build());
        refused("data of 1048577 bytes", () -> encoder.publish("s", Publish.of(DEMO, R1).data(repeat('x', (1 << 20) + 1)).build()), Code.TOO_LARGE);
        Publish bigBox = Publish.of(DEMO, R1).serialized(new byte[(1 << 20) + 1]).build();
        refused("data of 1048577 bytes", () -> encoder.publish("s", bigBox), Code.TOO_LARGE);
        Publish.Builder many = Publish.of(DEMO, R1);
        for (int i = 0; i < 65_536; i++) {
            many.data("");
        }
        refused("data: more than the limit of 65535", () -> encoder.publish("s", many.build()), Code.TOO_LARGE);
    }

    @Test
    public void frameIsCappedAndALargeBufferGivenBack() {
        Publish.Builder large = Publish.of(DEMO, R1);
        byte[] box = new byte[1 << 20];
        for (int i = 0; i < 64; i++) {
            large.serialized(box);
        }
        refused("frame of ", () -> encoder.publish("s", large.build()), Code.TOO_LARGE);
        encoder.publish("s", Publish.of(DEMO, R1).serialized(box).serialized(box).build());
        assertTrue("grown to " + encoder.capacity(), encoder.capacity() > FrameEncoder.KEPT_BYTES && encoder.capacity() <= 64 << 20);
        encoder.begin();
        assertEquals(FrameEncoder.INITIAL_BYTES, encoder.capacity());
    }

    private static void refused(String start, Runnable call, Code code) {
        MoxException e = assertThrows(MoxException.class, call::run);
        assertEquals(code, e.code());
        assertTrue(e.getMessage(), e.getMessage().startsWith(start));
        assertTrue("message is not shortened: " + e.getMessage(), e.getMessage().length() < 250);
    }

    private static String repeat(char c, int count) {
        char[] chars = new char[count];
        Arrays.fill(chars, c);
        return new String(chars);
    }

    private void assertGolden(String name) throws Exception {
        assertGolden(name, encoder);
    }

    private static void assertGolden(String name, FrameEncoder encoder) throws Exception {
        Path file = Paths.get(System.getProperty("test.mox.golden"), name + ".hex");
        String expected = String.join("", Files.readAllLines(file));
        StringBuilder actual = new StringBuilder();
        byte[] frame = encoder.frame();
        for (int i = 0; i < encoder.length(); i++) {
            actual.append(String.format("%02x", frame[i]));
        }
        assertEquals(expected, actual.toString());
    }
}
