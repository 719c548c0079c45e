package com.alipay.sofa.registry.mox.session;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.Supplier;

/** The other session servers, over their HTTP port. */
final class Sessions {
    static final String TOKEN_HEADER = "X-Mox-Token";
    private static final int ASK_MILLIS = 1_000;
    private static final int CHANGE_MILLIS = 3_000;
    private static final int MOST_ANSWER = 64 << 10;
    private static final int AT_ONCE = 8;

    private final Supplier<List<String>> others;
    private final int port;

    /** @param others addresses of the other session servers, as meta lists them; may throw */
    Sessions(Supplier<List<String>> others, int port) {
        this.others = others;
        this.port = port;
    }

    /** An answer of another server. */
    static final class Answer {
        final int status;
        final String body;

        Answer(int status, String body) {
            this.status = status;
            this.body = body;
        }
    }

    /** How many of the others serve MoX from fresh data. */
    int fresh() throws Exception {
        int fresh = 0;
        for (Answer answer : all(server -> send(server, "GET", "/mox/fresh", null, null, ASK_MILLIS)).values()) {
            fresh += answer.status == 200 ? 1 : 0;
        }
        return fresh;
    }

    /** Sends a changing request to every other server, which does not pass it on. */
    Map<String, Answer> change(String path, String token, String body) throws Exception {
        return all(server -> send(server, "POST", path + "?local=1", token, body, CHANGE_MILLIS));
    }

    private interface Call {
        Answer to(String server) throws IOException;
    }

    private Map<String, Answer> all(Call call) throws Exception {
        List<String> servers = new ArrayList<>(others.get());
        Map<String, Answer> answers = new LinkedHashMap<>();
        if (servers.isEmpty()) {
            return answers;
        }
        ExecutorService pool = Executors.newFixedThreadPool(Math.min(AT_ONCE, servers.size()), Sessions::thread);
        try {
            Map<String, Future<Answer>> calls = new LinkedHashMap<>();
            servers.forEach(server -> calls.put(server, pool.submit(() -> call.to(server))));
            for (Map.Entry<String, Future<Answer>> one : calls.entrySet()) {
                try {
                    answers.put(one.getKey(), one.getValue().get());
                } catch (ExecutionException e) {
                    answers.put(one.getKey(), new Answer(0, String.valueOf(e.getCause())));
                }
            }
        } finally {
            pool.shutdownNow();
        }
        return answers;
    }

    private static Thread thread(Runnable work) {
        Thread thread = new Thread(work, "mox-sessions");
        thread.setDaemon(true);
        return thread;
    }

    private Answer send(String server, String method, String path, String token, String body, int timeoutMillis) throws IOException {
        String host = server.indexOf(':') >= 0 && !server.startsWith("[") ? "[" + server + "]" : server;
        HttpURLConnection connection = (HttpURLConnection) new URL("http://" + host + ":" + port + path).openConnection();
        try {
            connection.setConnectTimeout(timeoutMillis);
            connection.setReadTimeout(timeoutMillis);
            connection.setRequestMethod(method);
            connection.setInstanceFollowRedirects(false);
            if (body != null) {
                connection.setRequestProperty(TOKEN_HEADER, token);
                connection.setRequestProperty("Content-Type", "application/json");
                connection.setDoOutput(true);
                connection.getOutputStream().write(body.getBytes(StandardCharsets.UTF_8));
            }
            int status = connection.getResponseCode();
            InputStream in = status >= 400 ? connection.getErrorStream() : connection.getInputStream();
            return new Answer(status, in == null ? "" : read(in, MOST_ANSWER));
        } finally {
            connection.disconnect();
        }
    }

    /** The text, or an exception if it is longer. */
    static String read(InputStream in, int most) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] buffer = new byte[8 << 10];
        for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
            if (out.size() + n > most) {
                throw new IOException("more than " + most + " bytes");
            }
            out.write(buffer, 0, n);
        }
        return new String(out.toByteArray(), StandardCharsets.UTF_8);
    }
}
