package com.alipay.sofa.registry.mox;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

/** Finding, checking and unpacking the library; what needs a fresh JVM runs in one. */
public class NativeLoaderTest {
    private static final String NAME = "META-INF/native/linux-x86_64/libregistry_mox.so";
    private static final byte[] CONTENT = "a library".getBytes(StandardCharsets.UTF_8);

    @Rule public final TemporaryFolder temp = new TemporaryFolder();
    @Rule public final TemporaryFolder elsewhere = new TemporaryFolder();

    private final Map<String, byte[]> jar = new HashMap<>();

    @Test
    public void platformsHaveOneNameEach() {
        assertEquals("linux-x86_64", NativeLoader.platform("Linux", "amd64"));
        assertEquals("linux-x86_64", NativeLoader.platform("Linux", "x86_64"));
        assertEquals("linux-aarch64", NativeLoader.platform("Linux", "aarch64"));
        assertEquals("linux-aarch64", NativeLoader.platform("Linux", "arm64"));
        for (String[] other : new String[][] {{"Mac OS X", "aarch64"}, {"Windows 10", "amd64"}, {"Linux", "riscv64"}, {"Linux", "x86"}}) {
            String platform = NativeLoader.platform(other[0], other[1]);
            assertFalse(platform, NativeLoader.PLATFORMS.contains(platform));
        }
    }

    @Test
    public void theLibraryOfThePlatformIsTaken() throws Exception {
        for (String platform : NativeLoader.PLATFORMS) {
            byte[] content = platform.getBytes(StandardCharsets.UTF_8);
            jar.put("META-INF/native/" + platform + "/libregistry_mox.so", content);
            jar.put("META-INF/native/" + platform + "/libregistry_mox.so.sha256", sha256(content).getBytes(StandardCharsets.US_ASCII));
        }
        for (String platform : NativeLoader.PLATFORMS) {
            AtomicInteger loads = new AtomicInteger();
            NativeLoader.unpack(
                    this::resource,
                    platform,
                    temp.getRoot().toPath(),
                    file -> {
                        loads.incrementAndGet();
                        assertArrayEquals(platform.getBytes(StandardCharsets.UTF_8), bytes(file));
                    });
            assertEquals(1, loads.get());
        }
        assertNoLeftovers();
    }

    @Test
    public void aPlatformThatTheJarHasNotIsNamedWithThoseThatItHas() throws Exception {
        jar(sha256(CONTENT));
        jar.put("META-INF/native/linux-aarch64/libregistry_mox.so", CONTENT);
        assertUnavailable(
                "this jar has a native library for linux-x86_64, linux-aarch64 only, not for linux-riscv64; name one of your own build with ",
                () -> NativeLoader.unpack(this::resource, "linux-riscv64", temp.getRoot().toPath(), file -> {}));
        assertNoLeftovers();
    }

    @Test
    public void unpacksToAPrivateFolderAndLeavesNothing() throws Exception {
        jar(sha256(CONTENT) + "\n");
        AtomicInteger loads = new AtomicInteger();
        unpack(
                file -> {
                    loads.incrementAndGet();
                    assertArrayEquals(CONTENT, bytes(file));
                    assertEquals("rwx------", permissions(file.getParent()));
                });
        assertEquals(1, loads.get());
        assertNoLeftovers();
    }

    @Test
    public void damagedLibraryIsNeverLoaded() throws Exception {
        jar(sha256("another library".getBytes(StandardCharsets.UTF_8)));
        assertUnavailable("the jar is damaged", () -> unpack(file -> { throw new AssertionError("loaded"); }));
        assertNoLeftovers();
    }

    @Test
    public void failedLoadLeavesNothing() throws Exception {
        jar(sha256(CONTENT));
        MoxException failure = new MoxException(Code.NATIVE_UNAVAILABLE, "too old a glibc");
        assertEquals(failure, assertThrows(MoxException.class, () -> unpack(file -> { throw failure; })));
        assertNoLeftovers();
    }

    @Test
    public void jarWithoutLibrary() {
        assertUnavailable("no " + NAME + " on the class path", () -> unpack(file -> {}));
    }

    @Test
    public void unwritableFolderIsNamed() throws Exception {
        jar(sha256(CONTENT));
        Path file = temp.newFile().toPath();
        assertUnavailable(
                "name a writable folder with -Djava.io.tmpdir=FOLDER",
                () -> NativeLoader.unpack(this::resource, "linux-x86_64", file, f -> {}));
    }

    @Test
    public void overrideThatIsNoLibraryIsOneClearError() throws Exception {
        File file = temp.newFile("not-a-library.so");
        ChildJvm child = new ChildJvm().with("-D" + NativeLoader.OVERRIDE + "=" + file).run(OpenAndReport.class);
        assertEquals(child.toString(), 1, child.count("NATIVE_UNAVAILABLE: system property registry.mox.library=" + file));
    }

    @Test
    public void anotherArchitectureIsOneClearError() throws Exception {
        File classes = temp.newFolder("classes"); // the class path has no library when the tests run with -PmoxLibrary
        Path library = classes.toPath().resolve(NAME);
        Files.createDirectories(library.getParent());
        Files.write(library, CONTENT);
        ChildJvm child =
                new ChildJvm()
                        .without(NativeLoader.OVERRIDE)
                        .firstOnClassPath(classes.toString())
                        .with("-Dos.arch=riscv64")
                        .run(OpenAndReport.class);
        assertEquals(child.toString(), 1, child.count("NATIVE_UNAVAILABLE: this jar has a native library for linux-x86_64 only, not for linux-riscv64"));
    }

    @Test
    public void realLibraryLoadsFromResourcesAndLeavesNoFile() throws Exception {
        // The class path has the library already when the tests run on the jar's; with -PmoxLibrary this puts it there.
        String override = System.getProperty(NativeLoader.OVERRIDE);
        File classes = temp.newFolder("classes");
        if (override != null) {
            byte[] library = Files.readAllBytes(new File(override).toPath());
            Path target = classes.toPath().resolve(NAME);
            Files.createDirectories(target.getParent());
            Files.write(target, library);
            Files.write(classes.toPath().resolve(NAME + ".sha256"), sha256(library).getBytes(StandardCharsets.US_ASCII));
        }
        File empty = temp.newFolder("tmp");
        ChildJvm child =
                new ChildJvm()
                        .without(NativeLoader.OVERRIDE)
                        .firstOnClassPath(classes.toString())
                        // Less than a library with debug information has.
                        .with("-Xmx48m")
                        .with("-Djava.io.tmpdir=" + empty)
                        .run(OpenAndReport.class);
        assertEquals(child.toString(), 1, child.count("opened"));
        assertEquals(0, empty.list().length);
    }

    /** Opens an engine twice, as an application would that tries again, and prints what came of it. */
    public static final class OpenAndReport {
        public static void main(String[] args) {
            for (int i = 0; i < 2; i++) {
                try (RegistryMox mox = RegistryMox.create(MoxConfig.builder().set("listen", "127.0.0.1:0").build())) {
                    if (i == 0) {
                        System.out.println("opened " + mox.address());
                    }
                } catch (MoxException e) {
                    if (i == 0) {
                        System.out.println(e.code() + ": " + e.getMessage());
                    } else if (e.code() != Code.NATIVE_UNAVAILABLE) {
                        throw e;
                    }
                }
            }
        }
    }

    private String sha256(byte[] content) throws IOException {
        Path file = elsewhere.newFile().toPath();
        Files.write(file, content);
        return NativeLoader.sha256(file);
    }

    private void jar(String checksum) {
        jar.put(NAME, CONTENT);
        jar.put(NAME + ".sha256", checksum.getBytes(StandardCharsets.US_ASCII));
    }

    private InputStream resource(String name) {
        return jar.containsKey(name) ? new ByteArrayInputStream(jar.get(name)) : null;
    }

    private void unpack(java.util.function.Consumer<Path> load) {
        NativeLoader.unpack(this::resource, "linux-x86_64", temp.getRoot().toPath(), load);
    }

    private void assertNoLeftovers() {
        assertEquals(0, temp.getRoot().list().length);
    }

    private static void assertUnavailable(String part, Runnable call) {
        MoxException e = assertThrows(MoxException.class, call::run);
        assertEquals(Code.NATIVE_UNAVAILABLE, e.code());
        assertTrue(e.getMessage(), e.getMessage().contains(part));
    }

    private static byte[] bytes(Path file) {
        try {
            return Files.readAllBytes(file);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    private static String permissions(Path file) {
        try {
            return PosixFilePermissions.toString(Files.getPosixFilePermissions(file));
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
