package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * How an engine runs: the tree of keys that stands under {@code mox.} in a registry's properties, and where its log goes.
 *
 * <p>Keys and values are checked by the engine when it is opened; an unknown key is refused with the nearest known one.
 */
public final class MoxConfig {
    private final byte[] json;
    private final LogSink logSink;

    private MoxConfig(Builder from) {
        json = Json.write(from.tree);
        logSink = from.logSink;
    }

    /**
     * Starts a configuration in which every key has its default.
     *
     * @return a builder without a key set
     */
    public static Builder builder() {
        return new Builder();
    }

    byte[] json() {
        return json;
    }

    LogSink logSink() {
        return logSink;
    }

    /** Collects the keys of a {@link MoxConfig}. Not thread-safe. */
    public static final class Builder {
        private final Map<String, Object> tree = new LinkedHashMap<>();
        private LogSink logSink = LogPump.TO_JUL;

        private Builder() {}

        /**
         * Sets one key.
         *
         * @param key its path, for example {@code listen} or {@code protect.startup-hold}
         * @param value a text, number, boolean or list
         * @return this builder
         */
        public Builder set(String key, Object value) {
            Arguments.required("key", key);
            Arguments.required(key, value);
            String[] path = key.split("\\.", -1);
            Map<String, Object> node = tree;
            for (int i = 0; i < path.length - 1; i++) {
                node = child(node, path[i], key);
            }
            node.put(path[path.length - 1], copy(value));
            return this;
        }

        /**
         * Sets every key of a tree, beside those already set.
         *
         * @param keys nested maps; unlike in {@link #set}, a dot in a key belongs to the key
         * @return this builder
         */
        public Builder tree(Map<String, ?> keys) {
            Arguments.required("keys", keys);
            merge(tree, keys, "");
            return this;
        }

        /**
         * Says where the engine's log goes; without it, to {@code java.util.logging}.
         *
         * @param sink takes the records
         * @return this builder
         */
        public Builder logSink(LogSink sink) {
            logSink = Arguments.required("logSink", sink);
            return this;
        }

        /**
         * Makes the configuration; its keys are checked by {@link RegistryMox#create}.
         *
         * @return the configuration, which later calls of this builder do not change
         */
        public MoxConfig build() {
            return new MoxConfig(this);
        }

        private static void merge(Map<String, Object> into, Map<?, ?> from, String path) {
            from.forEach(
                    (k, value) -> {
                        String key = String.valueOf(k);
                        if (value instanceof Map) {
                            merge(child(into, key, path + key), (Map<?, ?>) value, path + key + ".");
                        } else {
                            into.put(key, copy(value));
                        }
                    });
        }

        @SuppressWarnings("unchecked") // every Map in the tree was made here
        private static Map<String, Object> child(Map<String, Object> node, String name, String path) {
            Object child = node.computeIfAbsent(name, n -> new LinkedHashMap<String, Object>());
            if (!(child instanceof Map)) {
                throw new MoxException(
                        Code.INVALID_CONFIG,
                        "key " + Arguments.shown(path) + ": '" + name + "' already has the value " + Arguments.shown(child.toString())
                                + " and cannot have keys below it");
            }
            return (Map<String, Object>) child;
        }

        private static Object copy(Object value) {
            if (value instanceof Map) {
                Map<String, Object> out = new LinkedHashMap<>();
                merge(out, (Map<?, ?>) value, "");
                return out;
            }
            if (value instanceof Iterable) {
                List<Object> out = new ArrayList<>();
                ((Iterable<?>) value).forEach(element -> out.add(copy(element)));
                return out;
            }
            return value;
        }
    }
}
