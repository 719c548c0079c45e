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
 * {@code list} calls nobody and prints {@code list ADDRESS=WEIGHT...}: whom the consumer's load balancer chooses in
 * {@link #CHOICES} choices, and the weights that it goes by.
 */
public final class Load {
    /** Of a call, in ms: on a busy machine the usual 3 s may pass before a provider has answered its first one. */
    public static final int TIMEOUT = 15_000;

    /** Enough for one provider in two hundred to be among them. */
    private static final int CHOICES = 5_000;

    private Load() {}

    /** A choice of the consumer's load balancer among the providers that it has now. */
    public interface Choice {
        /** Its address and weight; null if there is none. */
        Map.Entry<String, Integer> next();
    }

    /** Ends at the end of its input. */
    public static void run(DemoService service, Choice choice) throws IOException, InterruptedException {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        System.out.println("ready");
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.split(" ");
            System.out.println(words[0].equals("list")
                ? list(choice) : call(service, Integer.parseInt(words[1]), Long.parseLong(words[2])));
        }
        Runtime.getRuntime().halt(0);
    }

    private static String list(Choice choice) {
        Map<String, Integer> chosen = new TreeMap<>();
        for (int i = 0; i < CHOICES; i++) {
            Map.Entry<String, Integer> next = choice.next();
            if (next != null) {
                chosen.put(next.getKey(), next.getValue());
            }
        }
        StringBuilder all = new StringBuilder("list");
        chosen.forEach((address, weight) -> all.append(' ').append(address).append('=').append(weight));
        return all.toString();
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
