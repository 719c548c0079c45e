package com.example;

import javax.ws.rs.GET;
import javax.ws.rs.Path;
import javax.ws.rs.PathParam;

/** The service of every framework's providers; over SOFARPC's rest, which needs these annotations, {@code GET /hello/NAME}. */
@Path("hello")
public interface DemoService {
    @GET
    @Path("{name}")
    String hello(@PathParam("name") String name);
}
