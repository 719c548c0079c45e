package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

/**
 * The engine: takes publishers and serves their services to Istio. Thread-safe; taking an event never blocks.
 *
 * <p>Every entry belongs to a <em>source</em>, a name of the caller's choice of 1 to 64 bytes; the registry's own is {@code
 * registry}. A source never touches another's entries. An entry lives in this process only: who runs several session
 * servers publishes on each of them.
 *
 * <p>After {@link #close()} events and latches are no-ops that {@link #ignoredCalls()} counts, and whatever has to answer
 * something throws {@link MoxException} with {@link Code#CLOSED}.
 */
public final class RegistryMox implements AutoCloseable {
    /** Bytes of a page that is read as a text. */
    private static final int MOST_PAGE = 4 << 20;
    /** A read that is said to begin later than this begins then; nanoseconds can say it. */
    private static final long MOST_AHEAD_MILLIS = TimeUnit.DAYS.toMillis(36_500);

    private static final AtomicReference<RegistryMox> RUNNING = new AtomicReference<>();

    private final long handle;
    private final LogPump logs;
    private final EngineHost host;
    private final AtomicBoolean closed = new AtomicBoolean();
    private final AtomicLong ignoredCalls = new AtomicLong();
    private volatile InetSocketAddress address;

    private RegistryMox(MoxConfig config) {
        Arguments.required("config", config);
        NativeLoader.load();
        handle = NativeBridge.open(config.json());
        logs = LogPump.start(handle, config.logSink());
        host = new EngineHost(this, handle);
    }

    /**
     * Opens an engine of the caller's own and listens. The caller fills it, says {@link #loaded()} and closes it.
     *
     * @param config how it runs
     * @return the engine, which listens
     */
    public static RegistryMox create(MoxConfig config) {
        RegistryMox mox = new RegistryMox(config);
        try {
            mox.listen();
        } catch (RuntimeException | Error e) {
            mox.close();
            throw e;
        }
        return mox;
    }

    /**
     * Opens the engine of this process, the one that {@link #running()} answers. The engine takes events at once but serves
     * nobody until {@link #listen()}, so that a host can fill it while the host starts.
     *
     * @param config how it runs
     * @return the engine, which does not listen yet
     */
    public static synchronized RegistryMox embed(MoxConfig config) {
        if (RUNNING.get() != null) {
            throw new MoxException(Code.INVALID_ARGUMENT, "an engine is already embedded in this process; use RegistryMox.running()");
        }
        RegistryMox mox = new RegistryMox(config);
        RUNNING.set(mox);
        return mox;
    }

    /**
     * The engine that the registry in this process started.
     *
     * @return the engine; empty where MoX is off
     */
    public static Optional<RegistryMox> running() {
        return Optional.ofNullable(RUNNING.get());
    }

    /**
     * Adds or updates one publisher.
     *
     * @param source whose entry it is, 1 to 64 bytes
     * @param publish the publisher
     * @return the event's sequence number, above 0 and higher than that of each earlier event of the service; 0 if the event was
     *     not taken because the engine is closed, which {@link #ignoredCalls()} counts, or at a limit, which the status counts
     */
    public long publish(String source, Publish publish) {
        Arguments.required("publish", publish);
        FrameEncoder encoder = FrameEncoder.local();
        encoder.publish(source, publish);
        return apply(encoder);
    }

    /**
     * Removes one publisher. An older {@code (version, registerTimestamp)} than the publisher's own changes nothing.
     *
     * @param source whose entry it is, 1 to 64 bytes
     * @param dataInfoId the service, 1 to 4,096 bytes
     * @param registerId the publisher, 1 to 512 bytes
     * @param version the version of the removal
     * @param registerTimestamp milliseconds since 1970, decides between equal versions; at a tie the removal wins
     * @return as {@link #publish}
     */
    public long unpublish(String source, String dataInfoId, String registerId, long version, long registerTimestamp) {
        FrameEncoder encoder = FrameEncoder.local();
        encoder.unpublish(source, dataInfoId, registerId, version, registerTimestamp);
        return apply(encoder);
    }

    /**
     * Says what one service consists of after a full, successful read: publishers of the same source that it does not name
     * are removed. A failed read is never a reason to call this.
     *
     * @param source whose entries they are, 1 to 64 bytes
     * @param dataInfoId the service, 1 to 4,096 bytes
     * @param version the version of what was read; where it is not newer than the last and the read began earlier, the read is
     *     ignored
     * @param readStarted when the read began, milliseconds since 1970 by this machine's clock: what was published while it ran is
     *     kept
     * @param publishers all publishers of the service, each with this {@code dataInfoId}
     * @return as {@link #publish}
     */
    public long replace(String source, String dataInfoId, long version, long readStarted, List<Publish> publishers) {
        Arguments.required("dataInfoId", dataInfoId);
        // A list of the caller's is its code: it is read before this thread's encoder is taken.
        List<Publish> all = new ArrayList<>(Arguments.required("publishers", publishers));
        for (Publish publish : all) {
            Arguments.required("publisher", publish);
            if (!dataInfoId.equals(publish.dataInfoId)) {
                throw new MoxException(
                        Code.INVALID_ARGUMENT,
                        "publisher " + Arguments.shown(publish.registerId) + " is of " + Arguments.shown(publish.dataInfoId)
                                + ", but the replaced service is " + Arguments.shown(dataInfoId));
            }
        }
        // From here on it is an age: the machine's clock may be set.
        long age = Math.max(-MOST_AHEAD_MILLIS, System.currentTimeMillis() - Math.max(0, readStarted));
        long startedNanos = System.nanoTime() - TimeUnit.MILLISECONDS.toNanos(age);
        EngineRead read = host.read(source, dataInfoId, version, startedNanos);
        all.forEach(read::add);
        return read.apply();
    }

    /**
     * Starts a batch of events.
     *
     * @param source whose entries they are, 1 to 64 bytes
     * @return the batch, for one thread; close it to send the rest
     */
    public Batch batch(String source) {
        return new Batch(this, source);
    }

    long apply(FrameEncoder encoder) {
        long result = NativeBridge.apply(handle, encoder.frame(), encoder.length());
        return result > 0 ? result : notTaken(result);
    }

    private long notTaken(long result) {
        Code code = Code.of((int) -result);
        if (code == Code.CLOSED) {
            ignoredCalls.incrementAndGet();
            return 0;
        }
        if (code == Code.LIMIT) {
            // Nothing the caller did wrong; the engine counts it and says so in its status.
            return 0;
        }
        byte[] why = NativeBridge.lastError();
        String text = why == null ? "no reason is known" : new String(why, StandardCharsets.UTF_8);
        throw new MoxException(code, "the engine refused an event: " + text);
    }

    /** Says that the first complete view is in: serving starts. With local scope it starts by itself after a hold. */
    public void loaded() {
        latch("loaded");
    }

    /** Keeps serving the present state, whatever happens, until {@link #thaw()}; in this engine alone, and forgotten with it. */
    public void freeze() {
        latch("freeze");
    }

    /**
     * Ends {@link #freeze()}. A freeze of all session servers does not count in this engine from then on, until they are frozen or thawed
     * anew.
     */
    public void thaw() {
        latch("thaw");
    }

    /**
     * Lets a held mass deletion or addition through, once; refused with {@link Code#INVALID_ARGUMENT} where none is held.
     */
    public void release() {
        latch("release");
    }

    /**
     * The methods that a program that embeds this engine uses beyond the methods here, as the registry's binding does.
     *
     * @return the same for each call; after {@link #close()} its methods do what those here do
     */
    public MoxHost host() {
        return host;
    }

    /**
     * Replaces the policy of this engine while it runs. A policy that is refused changes nothing; so does any while session servers
     * share a policy, which wins over this one. Globs that match nothing are named in the log, as the answer to {@code POST
     * /mox/policy} names them.
     *
     * @param json the policy document, a JSON object
     * @return the hash of the document in its normal form, 16 hex digits, as the status shows it
     */
    public String policy(String json) {
        return (String) command("policy", "policy", Arguments.required("policy", json)).get("hash");
    }

    /**
     * Tells what a policy would change, and changes nothing. The call takes as long as to make anew everything that is served;
     * there is one at a time, others are refused with {@link Code#INVALID_ARGUMENT}.
     *
     * @param json the policy document, a JSON object
     * @return the answer of {@code POST /mox/policy?dryRun} as nested maps and lists
     */
    public Map<String, Object> dryRun(String json) {
        return command("policy", "policy", Arguments.required("policy", json), "dryRun", true);
    }

    /**
     * The engine's status, what it holds, serves and counts: the page {@code /mox/status}.
     *
     * @return nested maps and lists of texts, booleans and numbers, which are Long or Double
     */
    public Map<String, Object> status() {
        return command("status");
    }

    /**
     * The same as {@link #status()} for those who pass it on.
     *
     * @return a JSON object without line breaks
     */
    public String statusText() {
        return new String(NativeBridge.command(handle, Json.write(Collections.singletonMap("op", "status"))), StandardCharsets.UTF_8);
    }

    /**
     * An admin page as a text. Pages that grow with what is served are for {@link MoxHost#page}: above 4 MiB they are
     * refused here with {@link Code#TOO_LARGE}.
     *
     * @param path the path, {@code /mox} included, for example {@code /mox/status}
     * @param query what stands behind the question mark, undecoded; empty if nothing
     * @return {@code status}, the HTTP status as a Long, and the texts {@code contentType} and {@code body}
     */
    public Map<String, Object> page(String path, String query) {
        try (EnginePage page = host.page(path, query)) {
            Map<String, Object> read = new LinkedHashMap<>();
            read.put("status", (long) page.status());
            read.put("contentType", page.contentType());
            read.put("body", page.text(MOST_PAGE));
            return Collections.unmodifiableMap(read);
        }
    }

    /**
     * Waits until what is served contains every earlier event; not for any client to have it. Where that takes too long, {@link
     * Code#TIMEOUT}. For tests and tools.
     *
     * @param timeout how long at most, in whole milliseconds
     * @return {@code services} and {@code endpoints}, the counts of what is served as Longs; {@code version}, the {@code
     *     version_info} of the ServiceEntries; and, where something keeps events back, {@code held}, which is {@code not-loaded},
     *     {@code mass-delete}, {@code mass-add} or {@code frozen}
     */
    public Map<String, Object> flush(Duration timeout) {
        return command("flush", "timeoutMillis", Arguments.required("timeout", timeout).toMillis());
    }

    /**
     * Starts to listen; a second call changes nothing.
     *
     * @return the address, with the real port where port 0 was configured
     */
    public InetSocketAddress listen() {
        String bound = (String) command("listen").get("mox");
        int colon = bound.lastIndexOf(':');
        String host = bound.substring(0, colon).replace("[", "").replace("]", "");
        address = new InetSocketAddress(host, Integer.parseInt(bound.substring(colon + 1)));
        return address;
    }

    /**
     * Where it listens.
     *
     * @return the address, with the real port where port 0 was configured
     */
    public InetSocketAddress address() {
        InetSocketAddress bound = address;
        if (bound == null) {
            throw new MoxException(Code.INVALID_ARGUMENT, "the engine does not listen yet; call listen() first");
        }
        return bound;
    }

    /**
     * How many calls came after {@link #close()} and did nothing.
     *
     * @return the count since then; a {@link #replace} is one call, however large it is
     */
    public long ignoredCalls() {
        return ignoredCalls.get();
    }

    /** Waits for calls in flight, ends the streams in order and frees everything. A second call does nothing. */
    @Override
    public void close() {
        if (!closed.compareAndSet(false, true)) {
            return;
        }
        RUNNING.compareAndSet(this, null);
        NativeBridge.close(handle);
        logs.awaitEnd();
    }

    private void latch(String operation) {
        try {
            command(operation);
        } catch (MoxException e) {
            if (e.code() != Code.CLOSED) {
                throw e;
            }
            ignoredCalls.incrementAndGet();
        }
    }

    Map<String, Object> command(String operation, Object... keysAndValues) {
        Map<String, Object> request = new LinkedHashMap<>();
        request.put("op", operation);
        for (int i = 0; i < keysAndValues.length; i += 2) {
            request.put((String) keysAndValues[i], keysAndValues[i + 1]);
        }
        Object answer = Json.read(NativeBridge.command(handle, Json.write(request)));
        if (!(answer instanceof Map)) {
            throw new MoxException(Code.INTERNAL, "the engine answered " + operation + " with something else than an object");
        }
        @SuppressWarnings("unchecked") // Json makes no other Map
        Map<String, Object> object = (Map<String, Object>) answer;
        return Collections.unmodifiableMap(object);
    }
}
