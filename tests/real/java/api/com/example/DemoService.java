package com.example;

import javax.ws.rs.GET;
import javax.ws.rs.Path;
import javax.ws.rs.PathParam;

/** What the providers of every framework serve; over SOFARPC's rest, which needs these annotations, {@code GET /hello/NAME}. */
@Path("hello")
public interface DemoService {
    @GET
    @Path("{name}")
    String hello(@PathParam("name") String name);
}
