package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import javax.ws.rs.GET;
import javax.ws.rs.HeaderParam;
import javax.ws.rs.POST;
import javax.ws.rs.Path;
import javax.ws.rs.core.Context;
import javax.ws.rs.core.Response;
import javax.ws.rs.core.UriInfo;

/**
 * The engine's admin pages on the session server's own HTTP port. What changes something needs {@code mox.admin.token}, and
 * reaches every session server that meta lists unless the query says {@code local=1}.
 */
@Path("mox")
public class MoxResource {
    private static final int MOST_BODY = 1 << 20;

    /** Made by Spring, and by the web server. */
    public MoxResource() {}

    /**
     * The first page.
     *
     * @param uri what was asked for
     * @return the page
     */
    @GET
    public Response index(@Context UriInfo uri) {
        return page(uri.getRequestUri());
    }

    /**
     * Any other page.
     *
     * @param uri what was asked for
     * @return the page
     */
    @GET
    @Path("{page:.*}")
    public Response page(@Context UriInfo uri) {
        return page(uri.getRequestUri());
    }

    /**
     * Freezes, thaws, releases, or sets the policy.
     *
     * @param uri what is to be done
     * @param token {@code mox.admin.token}
     * @param body the policy
     * @return what came of it, for each server
     */
    @POST
    @Path("{page:.*}")
    public Response change(@Context UriInfo uri, @HeaderParam(Sessions.TOKEN_HEADER) String token, InputStream body) {
        Optional<RegistryMox> mox = RegistryMox.running();
        if (!mox.isPresent()) {
            return off();
        }
        try {
            String path = uri.getRequestUri().getRawPath();
            String text = body == null ? "" : Sessions.read(body, MOST_BODY);
            Map<String, Object> own = mox.get().host("change", "path", path, "token", token == null ? "" : token, "body", text);
            boolean here = uri.getQueryParameters().containsKey("local");
            if (here || (Long) own.get("status") != 200) {
                return response(own); // also what others would refuse
            }
            return everywhere(own, path, token, text);
        } catch (MoxException e) {
            return failed(503, e.code() + ", " + e.getMessage());
        } catch (IOException e) {
            return failed(413, e.getMessage());
        }
    }

    private static Response everywhere(Map<String, Object> own, String path, String token, String body) {
        Map<String, Object> servers = new LinkedHashMap<>();
        servers.put("this", answer(200, (String) own.get("body")));
        boolean all = true;
        try {
            Sessions sessions = MoxBinding.sessions();
            if (sessions != null) {
                for (Map.Entry<String, Sessions.Answer> other : sessions.change(path, token, body).entrySet()) {
                    all &= other.getValue().status == 200;
                    servers.put(other.getKey(), answer(other.getValue().status, other.getValue().body));
                }
            }
        } catch (Exception e) {
            all = false;
            servers.put("others", answer(0, e.toString()));
        }
        String text = RegistryMox.json(servers);
        return Response.status(all ? 200 : 502).type("application/json").entity(text + "\n").build();
    }

    private static Map<String, Object> answer(int status, String body) {
        Map<String, Object> answer = new LinkedHashMap<>();
        answer.put("status", status);
        answer.put("answer", body.trim());
        return answer;
    }

    private static Response page(URI uri) {
        Optional<RegistryMox> mox = RegistryMox.running();
        if (!mox.isPresent()) {
            return off();
        }
        try {
            String query = uri.getRawQuery();
            return response(mox.get().page(uri.getRawPath(), query == null ? "" : query));
        } catch (MoxException e) {
            return failed(503, e.code() + ", " + e.getMessage());
        }
    }

    private static Response response(Map<String, Object> page) {
        return Response.status(((Long) page.get("status")).intValue())
                .type((String) page.get("contentType"))
                .entity(page.get("body"))
                .build();
    }

    private static Response off() {
        return failed(503, "MoX is off, see the session server's log");
    }

    private static Response failed(int status, String text) {
        return Response.status(status).type("text/plain;charset=utf-8").entity(text).build();
    }
}
