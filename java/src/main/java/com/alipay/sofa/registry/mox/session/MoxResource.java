package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.MoxHost;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicLong;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.ws.rs.GET;
import javax.ws.rs.HeaderParam;
import javax.ws.rs.POST;
import javax.ws.rs.Path;
import javax.ws.rs.core.Context;
import javax.ws.rs.core.Response;
import javax.ws.rs.core.StreamingOutput;
import javax.ws.rs.core.UriInfo;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The engine's admin pages on the session server's own HTTP port. A request that changes something needs {@code
 * mox.admin.token}, and reaches every session server that meta lists unless the query says {@code local=1}. The token stays here:
 * to the others goes a request that is signed with it.
 */
@Path("mox")
public class MoxResource {
    private static final int MOST_BODY = 1 << 20;
    /** As the engine begins the answer where it says which policy is in force. */
    private static final Pattern POLICY =
            Pattern.compile("\\s*\\{[^{}]*?\"hash\":\\s*\"([0-9a-f]{1,64})\"[^{}]*?\"revision\":\\s*([0-9]{1,18})\\b");
    private static final Logger LOG = LoggerFactory.getLogger("MOX");
    /** Pages that are made at a time, so that they take few of the threads that serve the registry's own requests. */
    static final int AT_ONCE = 4;

    static final Semaphore MAKING = new Semaphore(AT_ONCE);
    /** Questions of other session servers: cheap to answer, and who refuses them passes for stale, so they wait for no page. */
    private static final List<String> OF_SERVERS = Arrays.asList("/mox/fresh", "/mox/serving", "/mox/consumers");
    /** The others are asked to explain something for one reader at a time; more get what this server has to say. */
    private static final Semaphore EXPLAINING = new Semaphore(1);
    /** Nanoseconds from one such question to the others to the next. */
    private static final long BETWEEN_QUESTIONS = TimeUnit.SECONDS.toNanos(1);

    static final AtomicLong NEXT_QUESTION = new AtomicLong(System.nanoTime());
    private static final AtomicLong NEXT_WARNING = new AtomicLong(System.nanoTime());

    /** Made by Spring, and by the web server. */
    public MoxResource() {}

    /**
     * The first page.
     *
     * @param uri what was asked for
     * @param accept the media types that the client takes; the engine has a page for people for those that browsers take
     * @return the page
     */
    @GET
    public Response index(@Context UriInfo uri, @HeaderParam("Accept") String accept) {
        return made(uri, accept);
    }

    /**
     * Any other page.
     *
     * @param uri what was asked for
     * @param accept the media types that the client takes; the engine has a page for people for those that browsers take
     * @return the page
     */
    @GET
    @Path("{page:.*}")
    public Response page(@Context UriInfo uri, @HeaderParam("Accept") String accept) {
        return made(uri, accept);
    }

    /**
     * Freezes, thaws, releases, sets the policy, or tells what a policy would change. Where session servers share documents, policy and freeze are written for all
     * of them, and the others are told to read what was written; everything else is passed on to them.
     *
     * @param uri what is to be done
     * @param token {@code mox.admin.token}; null in a request that another session server passes on
     * @param time when that was signed, milliseconds since 1970; else null
     * @param signature its signature by {@code mox.admin.token}, 64 hexadecimal digits; else null
     * @param ifMatch the revision, or the policy's hash, that the writer knows; null: whatever is there
     * @param body the policy
     * @return what came of it: for each server, or for this one of what another passes on or what changes nothing
     */
    @POST
    @Path("{page:.*}")
    public Response change(
            @Context UriInfo uri,
            @HeaderParam(Sessions.TOKEN_HEADER) String token,
            @HeaderParam(Sessions.TIME_HEADER) String time,
            @HeaderParam(Sessions.SIGNATURE_HEADER) String signature,
            @HeaderParam("If-Match") String ifMatch,
            InputStream body) {
        Optional<RegistryMox> mox = RegistryMox.running();
        if (!mox.isPresent()) {
            return off();
        }
        try {
            String path = uri.getRequestUri().getRawPath();
            String text = body == null ? "" : read(body, MOST_BODY);
            Map<String, Object> shown = new LinkedHashMap<>();
            shown.put("token", token == null ? "" : token);
            shown.put("time", time == null ? "" : time);
            shown.put("signature", signature == null ? "" : signature);
            String query = uri.getRequestUri().getRawQuery();
            Object[] request = {
                "path", path, "query", query == null ? "" : query, "ifMatch", ifMatch == null ? "" : ifMatch, "shown", shown, "body", text
            };
            DocumentFollower documents = MoxBinding.documents();
            MoxHost host = mox.get().host();
            Map<String, Object> own = host.command("change", request);
            if ((own.get("refresh") != null || own.get("write") != null) && documents == null) {
                return failed(503, "the session server is starting or stopping; ask again in a moment");
            } else if (own.get("refresh") != null) {
                documents.refresh();
                own = host.command("refreshed");
            } else if (own.get("write") != null) {
                own = documents.write(own);
            }
            // The engine says so where others would refuse it as well, and of what another passes on.
            return own.get("forward") == null ? response(own) : everywhere(host, own, MoxBinding.sessions(), token);
        } catch (TimeoutException e) {
            return failed(
                    503,
                    "the registry's store of documents does not answer: nothing changed, unless it takes the write after all, which "
                            + "GET /mox/policy then tells; ?local=1 freezes and thaws this server alone");
        } catch (MoxException e) {
            return failed(503, e.code() + ", " + e.getMessage());
        } catch (IOException e) {
            return failed(413, e.getMessage());
        } catch (Throwable t) {
            return broken(t);
        }
    }

    /**
     * Asks the other session servers what the engine says that they are to be asked.
     *
     * @param own the engine's answer for this server
     * @param sessions null where there are no others
     */
    static Response everywhere(MoxHost host, Map<String, Object> own, Sessions sessions, String token) {
        Map<?, ?> forward = (Map<?, ?>) own.get("forward");
        String query = (String) forward.get("query");
        String target = query.isEmpty() ? (String) forward.get("path") : forward.get("path") + "?" + query;
        Map<String, Object> servers = new LinkedHashMap<>();
        servers.put("this", answer(200, (String) own.get("body")));
        boolean all = true;
        try {
            if (sessions != null) {
                for (Map.Entry<String, Exchange.Answer> other : sessions.change(target, token, (String) forward.get("body")).entrySet()) {
                    all &= other.getValue().status == 200;
                    servers.put(other.getKey(), answer(other.getValue().status, other.getValue().body));
                }
            }
        } catch (Exception e) {
            all = false;
            servers.put("others", answer(0, e.toString()));
        }
        String text = host.json(servers);
        return begun(all ? 200 : 502, "application/json").entity(text + "\n").build();
    }

    /** The text, or an exception if it is longer. */
    static String read(InputStream in, int most) throws IOException {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        byte[] buffer = new byte[8 << 10];
        for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
            if (out.size() + n > most) {
                throw new IOException("a body has at most " + most + " bytes");
            }
            out.write(buffer, 0, n);
        }
        return new String(out.toByteArray(), StandardCharsets.UTF_8);
    }

    private static Map<String, Object> answer(int status, String body) {
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("status", status);
        Matcher policy = POLICY.matcher(body);
        if (status == 200 && policy.lookingAt()) {
            answer.put("hash", policy.group(1));
            answer.put("revision", Long.valueOf(policy.group(2)));
        }
        answer.put("answer", body.trim());
        return answer;
    }

    private static Response made(UriInfo uri, String accept) {
        Optional<RegistryMox> mox = RegistryMox.running();
        if (!mox.isPresent()) {
            return off();
        }
        try {
            URI asked = uri.getRequestUri();
            String query = asked.getRawQuery() == null ? "" : asked.getRawQuery();
            String path = asked.getRawPath();
            if (OF_SERVERS.contains(path)) {
                return streamed(mox.get().host().page(path, query));
            }
            if (!MAKING.tryAcquire()) {
                return busy();
            }
            try {
                query = accepted(mox.get().host(), query, accept);
                Sessions others = MoxBinding.sessions();
                if (others != null && path.equals("/mox/diff")) {
                    return compared(mox.get().host(), others, query);
                }
                return others != null && isForAll(path, query) ? explained(mox.get().host(), others, query) : streamed(mox.get().host().page(path, query));
            } finally {
                MAKING.release();
            }
        } catch (MoxException e) {
            return failed(503, e.code() + ", " + e.getMessage());
        } catch (Throwable t) {
            return broken(t);
        }
    }

    /** The query as it is with what the client accepts: what makes a client a browser is the engine's to say. */
    private static String accepted(MoxHost host, String query, String accept) {
        return accept == null ? query : (String) host.command("accepted", "query", query, "accept", accept).get("query");
    }

    private static Response streamed(MoxHost.Page page) {
        Response.ResponseBuilder response = begun(page.status(), page.contentType());
        if (page.retryAfter() > 0) {
            response.header("Retry-After", page.retryAfter());
        }
        if (page.etag() != null) {
            response.header("ETag", page.etag());
        }
        return response.entity((StreamingOutput) out -> write(page, out)).build();
    }

    /** Whether the other session servers are to explain the same: where there is something to explain, and it is not for this server alone. */
    static boolean isForAll(String path, String query) {
        String what = null;
        String local = null;
        for (String pair : query.split("&")) { // of two values of a name the engine takes the first
            if (pair.startsWith("q=") && what == null) {
                what = pair.substring(2).replace("+", "").replace("%20", "");
            } else if (pair.startsWith("local=") && local == null) {
                local = pair.substring(6);
            }
        }
        return path.equals("/mox/explain") && what != null && !what.isEmpty() && !"1".equals(local);
    }

    /** What this server has to say, and where it is time to ask the others, what they say. */
    static Response explained(MoxHost host, Sessions others, String query) {
        List<Map<String, Object>> answers = Collections.emptyList();
        if (EXPLAINING.tryAcquire()) {
            try {
                if (isDue(NEXT_QUESTION, System.nanoTime(), BETWEEN_QUESTIONS)) {
                    answers = others.explain(query);
                }
            } catch (Exception e) { // as where meta, which lists them, is away
                Map<String, Object> none = new LinkedHashMap<>();
                none.put("server", "others");
                none.put("status", 0);
                none.put("body", e.toString());
                answers = Collections.singletonList(none);
            } finally {
                EXPLAINING.release();
            }
        }
        return response(host.command("explain", "query", query, "answers", answers));
    }

    /**
     * The page on what another server serves otherwise. That server is asked for one reader at a time; where nobody is to be asked,
     * no reader waits.
     */
    static Response compared(MoxHost host, Sessions others, String query) throws Exception {
        boolean[] asks = {false};
        try {
            Map<String, Object> page = others.compare(host, query, () -> {
                asks[0] = EXPLAINING.tryAcquire();
                return asks[0] && isDue(NEXT_QUESTION, System.nanoTime(), BETWEEN_QUESTIONS);
            });
            return page == null ? asking() : response(page);
        } finally {
            if (asks[0]) {
                EXPLAINING.release();
            }
        }
    }

    private static Response asking() {
        String text = "another session server is asked for somebody else, once a second at most; ask again in a second\n";
        return begun(429, "text/plain;charset=utf-8").header("Retry-After", 1).entity(text).build();
    }

    /** Whether a time has come, which then comes again after a while. */
    static boolean isDue(AtomicLong next, long now, long period) {
        long due = next.get();
        return now - due >= 0 && next.compareAndSet(due, now + period);
    }

    /** Writes a page. A failure on the way ends the connection, so that nobody takes a part for the whole page. */
    private static void write(MoxHost.Page page, OutputStream out) throws IOException {
        try (MoxHost.Page read = page) {
            read.writeTo(out);
        } catch (IOException e) {
            throw e; // the client is gone
        } catch (Throwable t) {
            warn(t);
            throw new IOException("the page ends here: " + t, t);
        }
    }

    /** No Error, such as that of a full heap, may end a thread of the registry's or pass unseen. */
    private static Response broken(Throwable why) {
        warn(why);
        return failed(503, "this cannot be answered now: " + why);
    }

    /** Once a minute. */
    private static void warn(Throwable why) {
        if (isDue(NEXT_WARNING, System.nanoTime(), TimeUnit.MINUTES.toNanos(1))) {
            LOG.warn("event=page_failed an admin page cannot be made: {}", why.toString());
        }
    }

    private static Response response(Map<String, Object> page) {
        Response.ResponseBuilder response = begun(((Long) page.get("status")).intValue(), (String) page.get("contentType"));
        if (page.get("retryAfter") != null) {
            response.header("Retry-After", page.get("retryAfter"));
        }
        return response.entity(page.get("body")).build();
    }

    private static Response off() {
        return failed(503, "MoX is off, see the session server's log");
    }

    private static Response failed(int status, String text) {
        return begun(status, "text/plain;charset=utf-8").entity(text).build();
    }

    private static Response busy() {
        String text = AT_ONCE + " pages are being made for others; ask again in a second\n";
        return begun(429, "text/plain;charset=utf-8").header("Retry-After", 1).entity(text).build();
    }

    /** An answer that no browser takes for another type than it says, or shows in another's page. */
    private static Response.ResponseBuilder begun(int status, String contentType) {
        return Response.status(status).type(contentType).header("X-Content-Type-Options", "nosniff").header("X-Frame-Options", "DENY");
    }
}
