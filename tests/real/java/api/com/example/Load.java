package com.example;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.TreeMap;

/**
 * Calls {@link DemoService} as lines on standard input say: {@code call N GAP} makes N calls, one after the other, GAP ms
 * apart, and prints {@code called FAILED ADDRESS=ANSWERS...} by provider. Failures and their causes go to standard error.
 */
public final class Load {
    /** Of a call, in ms: on a busy machine the usual 3 s may pass before a provider has answered its first one. */
    public static final int TIMEOUT = 15_000;

    private Load() {}

    /** Ends at the end of its input. */
    public static void run(DemoService service) throws IOException, InterruptedException {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        System.out.println("ready");
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.split(" ");
            System.out.println(call(service, Integer.parseInt(words[1]), Long.parseLong(words[2])));
        }
        Runtime.getRuntime().halt(0);
    }

    private static String call(DemoService service, int calls, long gap) throws InterruptedException {
        Map<String, Integer> answers = new TreeMap<>();
        int failed = 0;
        for (int i = 0; i < calls; i++) {
            try {
                String answer = service.hello("mesh");
                answers.merge(answer.substring(answer.lastIndexOf(' ') + 1, answer.lastIndexOf(':')), 1, Integer::sum);
            } catch (RuntimeException e) {
                failed++;
                System.err.println(java.time.Instant.now() + " failed: " + e);
            }
            Thread.sleep(gap);
        }
        StringBuilder all = new StringBuilder("called " + failed);
        answers.forEach((address, count) -> all.append(' ').append(address).append('=').append(count));
        return all.toString();
    }
}
