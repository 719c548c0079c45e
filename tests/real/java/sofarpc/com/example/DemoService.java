package com.example;

/** What {@link Provider} serves and {@link Caller} calls. */
public interface DemoService {
    String hello(String name);
}
