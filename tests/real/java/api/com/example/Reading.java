package com.example;

import java.io.BufferedReader;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStreamWriter;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.util.Base64;

/**
 * What a client makes of a text in the registry. Texts come as lines on standard input, in Base64; each is answered by a line on
 * standard output: {@code called HOST PORT WEIGHT APPLICATION VALUE...}, {@code skipped}, or {@code error WHY} where its parser
 * throws. Texts in answers are {@code -} for null, else {@code +} and Base64; there is a VALUE for each parameter asked for.
 */
public final class Reading {
    /** A client that reads one text. */
    public interface Client {
        /** Null if the text is no provider that the client would call. */
        Reading read(String text) throws Exception;
    }

    private final StringBuilder line = new StringBuilder("called");

    /** A provider. */
    public Reading(String host, int port, int weight, String application) {
        text(host);
        line.append(' ').append(port).append(' ').append(weight);
        text(application);
    }

    /** With the value of the next parameter. */
    public Reading text(String value) {
        line.append(' ').append(value == null ? "-" : "+" + encoded(value));
        return this;
    }

    private static String encoded(String text) {
        return Base64.getEncoder().encodeToString(text.getBytes(StandardCharsets.UTF_8));
    }

    /** Ends at the end of its input. */
    public static void run(Client client) throws IOException {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        // What libraries print belongs elsewhere.
        PrintWriter out = new PrintWriter(new BufferedWriter(new OutputStreamWriter(System.out, StandardCharsets.UTF_8)));
        System.setOut(System.err);
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String text = new String(Base64.getDecoder().decode(line), StandardCharsets.UTF_8);
            String answer;
            try {
                Reading reading = client.read(text);
                answer = reading == null ? "skipped" : reading.line.toString();
            } catch (Exception | LinkageError e) {
                answer = "error +" + encoded(e.toString());
            }
            out.println(answer);
            if (!in.ready()) {
                out.flush();
            }
        }
        out.flush();
        Runtime.getRuntime().halt(0);
    }
}
