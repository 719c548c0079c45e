package com.alipay.sofa.registry.mox;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** A JVM of its own for what a test cannot do to itself: exit, another platform, another class path. Watched by -Xcheck:jni too. */
public final class ChildJvm {
    private final List<String> jvmArgs = new ArrayList<>();
    private String classPath = System.getProperty("test.mox.classpath");

    public final List<String> output = new ArrayList<>();
    public int exit;

    public ChildJvm() {
        jvmArgs.addAll(Arrays.asList(System.getProperty("test.mox.jvmArgs").split(" ")));
        for (String inherited : new String[] {NativeLoader.OVERRIDE, "java.util.logging.config.file", "org.springframework.boot.logging.LoggingSystem"}) {
            if (System.getProperty(inherited) != null) {
                jvmArgs.add("-D" + inherited + "=" + System.getProperty(inherited));
            }
        }
    }

    /** A later -D of the same property wins. */
    public ChildJvm with(String... args) {
        jvmArgs.addAll(Arrays.asList(args));
        return this;
    }

    public ChildJvm without(String property) {
        jvmArgs.removeIf(arg -> arg.startsWith("-D" + property + "="));
        return this;
    }

    public ChildJvm firstOnClassPath(String folder) {
        classPath = folder + File.pathSeparator + classPath;
        return this;
    }

    /** Runs to the end; a JVM that does not end within the deadline is killed and fails the test. */
    public ChildJvm run(Class<?> main, String... args) throws IOException, InterruptedException {
        List<String> command = new ArrayList<>();
        command.add(Paths.get(System.getProperty("java.home"), "bin", "java").toString());
        command.addAll(jvmArgs);
        command.addAll(Arrays.asList("-cp", classPath, main.getName()));
        command.addAll(Arrays.asList(args));
        Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
        process.getOutputStream().close();
        Thread reader = new Thread(() -> read(process));
        reader.start();
        if (!process.waitFor(TestData.DEADLINE.toMillis(), TimeUnit.MILLISECONDS)) {
            process.destroyForcibly().waitFor();
            reader.join();
            throw new AssertionError("still running after " + TestData.DEADLINE + ": " + output);
        }
        reader.join();
        exit = process.exitValue();
        return this;
    }

    public long count(String text) {
        return output.stream().filter(line -> line.contains(text)).count();
    }

    @Override
    public String toString() {
        return "exit " + exit + "\n" + String.join("\n", output);
    }

    private void read(Process process) {
        try (BufferedReader lines = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                output.add(line);
            }
        } catch (IOException e) {
            output.add("output ended early: " + e);
        }
    }
}
