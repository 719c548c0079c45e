package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.attribute.FileAttribute;
import java.nio.file.attribute.PosixFilePermission;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.Function;

/** Loads the native library once per class loader: the file named by a system property, else the jar's for this platform. */
final class NativeLoader {
    /** Names a library file to load instead of the one in the jar. */
    static final String OVERRIDE = "registry.mox.library";

    static final String LIBRARY = "libregistry_mox.so";

    /**
     * The platforms that a jar may have a library for; the library's folder in the jar has the same name. Each library runs with glibc and with
     * musl.
     */
    static final List<String> PLATFORMS = Collections.unmodifiableList(Arrays.asList("linux-x86_64", "linux-aarch64"));

    private static final FileAttribute<Set<PosixFilePermission>> PRIVATE =
            PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------"));

    private static boolean loaded;

    private NativeLoader() {}

    /** Loads the library unless it is loaded. A load that failed may be tried again, for example with the property set. */
    static synchronized void load() {
        if (loaded) {
            return;
        }
        String override = System.getProperty(OVERRIDE);
        if (override != null) {
            loadFile(Paths.get(override), "system property " + OVERRIDE + "=" + override);
        } else {
            String platform = platform(System.getProperty("os.name"), System.getProperty("os.arch"));
            Path temp = Paths.get(System.getProperty("java.io.tmpdir"));
            unpack(NativeLoader.class.getClassLoader()::getResourceAsStream, platform, temp, file -> loadFile(file, "library of the jar"));
        }
        int abi = NativeBridge.abiVersion();
        if (abi != NativeBridge.ABI) {
            throw new MoxException(
                    Code.NATIVE_UNAVAILABLE,
                    "native library has interface " + abi + ", this jar needs " + NativeBridge.ABI + "; use the library of the same version");
        }
        loaded = true;
    }

    /** The name of a platform, whether there is a library for it or not. */
    static String platform(String osName, String osArch) {
        String os = osName.toLowerCase(Locale.ROOT);
        String arch = osArch.equals("amd64") ? "x86_64" : osArch.equals("arm64") ? "aarch64" : osArch;
        return os + "-" + arch;
    }

    /** Writes the library to a private folder, checks it there, hands it on and leaves no file behind. */
    static void unpack(Function<String, InputStream> resources, String platform, Path temp, Consumer<Path> load) {
        String name = resource(platform);
        try (InputStream library = library(resources, platform)) {
            String expected = line(resources, name + ".sha256");
            Path folder = Files.createTempDirectory(temp, "registry-mox-", PRIVATE);
            Path file = folder.resolve(LIBRARY);
            try {
                Files.copy(library, file);
                String actual = sha256(file);
                if (!actual.equals(expected)) {
                    throw new MoxException(
                            Code.NATIVE_UNAVAILABLE,
                            "native library in the jar has SHA-256 " + actual + " instead of " + expected + "; the jar is damaged, install it again");
                }
                load.accept(file);
            } finally {
                // Linux keeps a mapped library usable without its file.
                Files.deleteIfExists(file);
                Files.delete(folder);
            }
        } catch (IOException e) {
            throw new MoxException(
                    Code.NATIVE_UNAVAILABLE,
                    "native library cannot be unpacked to " + temp + ": " + e + "; name a writable folder with -Djava.io.tmpdir=FOLDER",
                    e);
        }
    }

    private static void loadFile(Path file, String what) {
        try {
            System.load(file.toString());
        } catch (UnsatisfiedLinkError e) {
            throw new MoxException(
                    Code.NATIVE_UNAVAILABLE,
                    what + " cannot be loaded: " + e.getMessage() + "; it must be an absolute path of a library for this platform "
                            + "(glibc 2.17 or newer, or musl), on a file system that allows execution",
                    e);
        }
    }

    private static String resource(String platform) {
        return "META-INF/native/" + platform + "/" + LIBRARY;
    }

    private static InputStream library(Function<String, InputStream> resources, String platform) throws IOException {
        InputStream library = resources.apply(resource(platform));
        if (library != null) {
            return library;
        }
        List<String> there = new ArrayList<>();
        for (String other : PLATFORMS) {
            try (InputStream in = resources.apply(resource(other))) {
                if (in != null) {
                    there.add(other);
                }
            }
        }
        if (there.isEmpty()) {
            return open(resources, resource(platform));
        }
        throw new MoxException(
                Code.NATIVE_UNAVAILABLE,
                "this jar has a native library for " + String.join(", ", there) + " only, not for " + platform
                        + "; name one of your own build with -D" + OVERRIDE + "=FILE");
    }

    private static InputStream open(Function<String, InputStream> resources, String name) {
        InputStream in = resources.apply(name);
        if (in == null) {
            throw new MoxException(
                    Code.NATIVE_UNAVAILABLE, "no " + name + " on the class path; use the whole jar, or name a library with -D" + OVERRIDE + "=FILE");
        }
        return in;
    }

    private static String line(Function<String, InputStream> resources, String name) throws IOException {
        try (BufferedReader in = new BufferedReader(new InputStreamReader(open(resources, name), StandardCharsets.US_ASCII))) {
            String line = in.readLine();
            return line == null ? "" : line.trim();
        }
    }

    /** The SHA-256 of a file, read in chunks: a library may be larger than what is free of the heap. */
    static String sha256(Path file) throws IOException {
        MessageDigest digest;
        try {
            digest = MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("every Java platform has SHA-256", e);
        }
        try (InputStream in = Files.newInputStream(file)) {
            byte[] chunk = new byte[64 << 10];
            for (int read = in.read(chunk); read >= 0; read = in.read(chunk)) {
                digest.update(chunk, 0, read);
            }
        }
        StringBuilder out = new StringBuilder(64);
        for (byte b : digest.digest()) {
            out.append(Character.forDigit(b >> 4 & 15, 16)).append(Character.forDigit(b & 15, 16));
        }
        return out.toString();
    }
}
