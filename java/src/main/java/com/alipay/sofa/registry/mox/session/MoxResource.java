package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.net.URI;
import java.util.Map;
import java.util.Optional;
import javax.ws.rs.GET;
import javax.ws.rs.Path;
import javax.ws.rs.core.Context;
import javax.ws.rs.core.Response;
import javax.ws.rs.core.UriInfo;

/** The engine's admin pages on the session server's own HTTP port. Read only. */
@Path("mox")
public class MoxResource {
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

    private static Response page(URI uri) {
        Optional<RegistryMox> mox = RegistryMox.running();
        if (!mox.isPresent()) {
            return failed("MoX is off, see the session server's log");
        }
        try {
            String query = uri.getRawQuery();
            Map<String, Object> page = mox.get().page(uri.getRawPath(), query == null ? "" : query);
            return Response.status(((Long) page.get("status")).intValue())
                    .type((String) page.get("contentType"))
                    .entity(page.get("body"))
                    .build();
        } catch (MoxException e) {
            return failed(e.code() + ", " + e.getMessage());
        }
    }

    private static Response failed(String text) {
        return Response.status(503).type("text/plain;charset=utf-8").entity(text).build();
    }
}
