package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxHost;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.FutureTask;
import java.util.concurrent.ScheduledExecutorService;
import java.util.function.BooleanSupplier;
import java.util.function.Supplier;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/**
 * The other session servers, over their HTTP port, in the clear. Their addresses are what meta lists, and meta takes anybody's
 * word for being a session server: so they are told nothing that they could use elsewhere, they are waited for no longer than
 * a bound, and they are believed three things: that they are fresh, how much they serve, and which applications their clients
 * name. The engine judges the first two: where {@code mox.admin.token} has 16 bytes or more, by a signature with it for the very
 * question. Without one a liar that meta lists can make a server that is cut off from its data fence itself (one that is not cut
 * off asks nobody), and make one that starts without a last good state be silent for {@code mox.protect.mass-delete-hold}. In any
 * case it can have services be seen by more namespaces, none by fewer: what others' clients need it does not change. What it explains,
 * and the hashes of what it serves, are shown to an operator and used for nothing.
 */
final class Sessions {
    /** The token of an operator's request; the token goes no further than the server that the operator asked. */
    static final String TOKEN_HEADER = "X-Mox-Token";
    /** When a request to another server was signed, milliseconds since 1970. */
    static final String TIME_HEADER = "X-Mox-Time";
    /** HMAC-SHA256 by the token, in hex; in place of the token. */
    static final String SIGNATURE_HEADER = "X-Mox-Signature";

    private static final int ASK_MILLIS = 1_000;
    private static final int CHANGE_MILLIS = 3_000;
    private static final int CONSUMERS_MILLIS = 3_000;
    /** Of the clients of a session server. */
    private static final int MOST_CONSUMERS = 16 << 20;
    /** Of the hashes of a part of what a session server serves. */
    private static final int MOST_HASHES = 512 << 10;
    /** Questions for one comparison, of which the engine asks fewer. */
    private static final int MOST_QUESTIONS = 16;
    private static final int AT_ONCE = 32;
    /** The longest answer that the engine is shown; what it makes itself is shorter. */
    private static final int MOST_ANSWER = 512;
    /** The first line of what is signed, as in the engine: the token signs other things, too. */
    private static final String PURPOSE = "registry-mox request 1";

    private final Supplier<List<String>> others;
    private final int port;

    /** @param others addresses of the other session servers, as meta lists them; may throw */
    Sessions(Supplier<List<String>> others, int port) {
        this.others = others;
        this.port = port;
    }

    /**
     * Asks how much the others serve, and tells the engine of the one with the most: a first view that has much less is held
     * back for a while. A liar can do no more than that. On a thread of its own; nothing is told where none answers.
     */
    Future<?> baseline(RegistryMox mox) {
        return onItsOwn(() -> {
            Map<?, ?> most = (Map<?, ?>) ask(mox, "serving").get("serving");
            if (most != null) {
                mox.host().command("baseline", "services", most.get("services"), "endpoints", most.get("endpoints"));
            }
            return null;
        });
    }

    /** Asks how many of the others serve MoX from fresh data; on a thread of its own, so that the caller can do something else. */
    Future<Integer> fresh(RegistryMox mox) {
        return onItsOwn(() -> ((Long) ask(mox, "fresh").get("fresh")).intValue());
    }

    private static <T> Future<T> onItsOwn(Callable<T> work) {
        FutureTask<T> question = new FutureTask<>(work);
        thread(question).start();
        return question;
    }

    /** Asks the others for the clients that subscribe there, each a line; 404 from who has no MoX. */
    Map<String, Exchange.Answer> consumers() throws Exception {
        return all(CONSUMERS_MILLIS, "/mox/consumers", Collections.emptyMap(), null, MOST_CONSUMERS);
    }

    /**
     * Asks every other server, and has the engine say which answers count.
     *
     * @param about a question that the engine knows
     */
    private Map<String, Object> ask(RegistryMox mox, String about) throws Exception {
        String target = (String) mox.host().command("question", "about", about).get("target");
        List<Map<String, Object>> answers = new ArrayList<>();
        for (Exchange.Answer answer : all(ASK_MILLIS, target, Collections.emptyMap(), null).values()) {
            if (answer.body.length() <= MOST_ANSWER) {
                Map<String, Object> shown = new LinkedHashMap<>();
                shown.put("status", answer.status);
                shown.put("body", answer.body);
                answers.add(shown);
            }
        }
        return mox.host().command("answers", "about", about, "target", target, "answers", answers);
    }

    /**
     * Sends a changing request to every other server, signed, so that those do not pass it on.
     *
     * @param path with the question mark and the query where there is one: both are signed
     */
    Map<String, Exchange.Answer> change(String path, String token, String body) throws Exception {
        String time = String.valueOf(System.currentTimeMillis());
        Map<String, String> headers = new LinkedHashMap<>();
        headers.put(TIME_HEADER, time);
        headers.put(SIGNATURE_HEADER, signature(token, "POST", path, time, body));
        return all(CHANGE_MILLIS, path, headers, body);
    }

    /**
     * Asks every other server to explain the same. What they say is shown beside this one's word, and believed in nothing.
     *
     * @param query what stands behind the question mark
     */
    List<Map<String, Object>> explain(String query) throws Exception {
        // Of two values of a name the engine takes the first.
        String target = "/mox/explain?local=1&as=json&" + query;
        List<Map<String, Object>> answers = new ArrayList<>();
        for (Map.Entry<String, Exchange.Answer> one : all(CHANGE_MILLIS, target, Collections.emptyMap(), null).entrySet()) {
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("server", one.getKey());
            answer.put("status", one.getValue().status);
            answer.put("body", one.getValue().body);
            answers.add(answer);
        }
        return answers;
    }

    /**
     * Asks one other server what the engine wants to know of it, until that has a page on what the two serve otherwise. The
     * engine names none that meta does not list, and says when it wants to know whom meta lists.
     *
     * @param query what stands behind the question mark
     * @param mayAsk asked once, before anybody is
     * @return the page; null where nobody may be asked
     */
    Map<String, Object> compare(MoxHost host, String query, BooleanSupplier mayAsk) throws Exception {
        Map<String, Object> first = host.command("diff", "query", query);
        if (first.get("list") == null) {
            return first;
        }
        List<String> listed = new ArrayList<>(others.get());
        List<Map<String, Object>> answers = new ArrayList<>();
        while (answers.size() <= MOST_QUESTIONS) {
            Map<String, Object> next = host.command("diff", "query", query, "listed", listed, "answers", answers);
            String target = (String) next.get("target");
            if (target == null) {
                return next;
            } else if (answers.isEmpty() && !mayAsk.getAsBoolean()) {
                return null;
            }
            List<String> one = Collections.singletonList((String) next.get("server"));
            Exchange.Answer said = all(ASK_MILLIS, one, target, Collections.emptyMap(), null, MOST_HASHES).values().iterator().next();
            Map<String, Object> answer = new LinkedHashMap<>();
            answer.put("target", target);
            answer.put("status", said.status);
            answer.put("body", said.body);
            answers.add(answer);
        }
        throw new IllegalStateException("the engine asks for more than " + MOST_QUESTIONS + " answers");
    }

    /** As the engine verifies it. */
    static String signature(String token, String method, String path, String time, String body) throws GeneralSecurityException {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(token.getBytes(StandardCharsets.UTF_8), "HmacSHA256"));
        mac.update((PURPOSE + "\n" + method + "\n" + path + "\n" + time + "\n").getBytes(StandardCharsets.UTF_8));
        mac.update(MessageDigest.getInstance("SHA-256").digest(body.getBytes(StandardCharsets.UTF_8)));
        return Publishers.hex(mac.doFinal());
    }

    /** Each server's answer, within the time for each that is asked; 32 are asked at once. */
    private Map<String, Exchange.Answer> all(long millis, String path, Map<String, String> headers, String body) throws Exception {
        return all(millis, path, headers, body, Exchange.MOST_BODY);
    }

    private Map<String, Exchange.Answer> all(long millis, String path, Map<String, String> headers, String body, int most)
            throws Exception {
        return all(millis, new ArrayList<>(others.get()), path, headers, body, most);
    }

    private Map<String, Exchange.Answer> all(
            long millis, List<String> servers, String path, Map<String, String> headers, String body, int most) throws Exception {
        Map<String, Exchange.Answer> answers = new LinkedHashMap<>();
        if (servers.isEmpty()) {
            return answers;
        }
        ExecutorService pool = Executors.newFixedThreadPool(Math.min(AT_ONCE, servers.size()), Sessions::thread);
        ScheduledExecutorService cutter = Executors.newSingleThreadScheduledExecutor(Sessions::thread);
        try {
            Map<String, Future<Exchange.Answer>> calls = new LinkedHashMap<>();
            for (String server : servers) {
                Callable<Exchange.Answer> call = () -> Exchange.with(cutter, millis, server, port, path, headers, body, most);
                calls.put(server, pool.submit(call));
            }
            for (Map.Entry<String, Future<Exchange.Answer>> one : calls.entrySet()) {
                try {
                    answers.put(one.getKey(), one.getValue().get());
                } catch (ExecutionException e) {
                    answers.put(one.getKey(), new Exchange.Answer(0, String.valueOf(e.getCause())));
                }
            }
        } finally {
            pool.shutdownNow();
            cutter.shutdownNow();
        }
        return answers;
    }

    private static Thread thread(Runnable work) {
        Thread thread = new Thread(work, "mox-sessions");
        thread.setDaemon(true);
        return thread;
    }
}
