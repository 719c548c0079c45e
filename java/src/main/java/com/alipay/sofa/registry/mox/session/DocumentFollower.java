package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.mox.MoxException;
import com.alipay.sofa.registry.mox.RegistryMox;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Carries rows between the registry's store and the engine, which alone knows what they mean: all of them every 3 s, at once when
 * another session server says so, and those that the engine wants to be written.
 *
 * <p>A database that is cut off may keep a call for as long as TCP does. So what asks it is on a thread of its own, which is given
 * up where it takes too long: what it says later counts for nothing, and the next call has another thread.
 */
final class DocumentFollower implements AutoCloseable {
    static final long POLL_MILLIS = 3_000;
    /** How long the start of a session server may wait. */
    private static final long START_MILLIS = 2_000;
    /** How long a call may take, which is less than the time from one to the next. */
    static final long CALL_MILLIS = 2_500;
    /**
     * How many threads may have been given up and not have ended. Each waits on a connection of the registry's pool, which takes that
     * back after 30 s and hands it out again, dead as it is, until TCP gives it up after a quarter of an hour. With fewer threads than
     * polls in that time a database that is back would be asked by none before TCP sends again what was lost: up to two minutes.
     */
    private static final int GIVEN_UP = 320;
    /** A row has 64 KiB at most; a longer one is as good as its beginning, which is refused for its length. */
    private static final int MOST_CHARS = (64 << 10) + 1;
    /** How often what was read may say that there is more. */
    private static final int MOST_TIMES = 5;

    private final RegistryMox mox;
    private final DocumentStore store;
    /** By the documents' names, those that are always read. */
    private final Map<String, String> keys;
    /** Those that the engine wants to be read as well; it says so with every answer. */
    private volatile Map<String, String> more = Collections.emptyMap();

    private final long pollMillis;
    private final long callMillis;
    private final ScheduledThreadPoolExecutor polls = new ScheduledThreadPoolExecutor(1, work -> thread(work, "mox-documents"));
    private final AtomicInteger givenUp = new AtomicInteger();
    /** The store is made of something that this registry version does not have. */
    private final AtomicBoolean broken = new AtomicBoolean();
    /** Nothing could be read the last time. */
    private volatile boolean away;
    /** Replaced by who gives it up. No lock: a command that takes long, as one of a slow disk does, keeps nobody from that. */
    private volatile Lane lane = new Lane();

    /** A thread for calls of the store, one after the other. */
    private static final class Lane {
        final ExecutorService thread = Executors.newSingleThreadExecutor(work -> thread(work, "mox-store"));
        final AtomicBoolean givenUp = new AtomicBoolean();
        /** Calls that have not come to their end. */
        final AtomicInteger calls = new AtomicInteger();
    }

    /** Work that asks the store, and tells the engine unless its lane was given up. */
    private interface Call<T> {
        T on(Lane lane) throws TimeoutException;
    }

    /** @param keys the rows' keys by the documents' names, as the engine's settings have them */
    DocumentFollower(RegistryMox mox, DocumentStore store, Map<?, ?> keys, long pollMillis, long callMillis) {
        this.mox = mox;
        this.store = store;
        this.keys = new LinkedHashMap<>();
        keys.forEach((name, key) -> this.keys.put((String) name, (String) key));
        this.pollMillis = pollMillis;
        this.callMillis = callMillis;
    }

    private static Thread thread(Runnable work, String name) {
        Thread thread = new Thread(work, name);
        thread.setDaemon(true);
        return thread;
    }

    /** Reads everything once, for 2 s at most, and again and again from then on. */
    void start() {
        try {
            within(START_MILLIS, true, this::read);
        } catch (TimeoutException | LinkageError e) {
            // The engine has what it kept of before; what is read late counts from then on.
        }
        if (!broken.get()) {
            // At a rate: after a poll that nobody answers the next is due at once.
            polls.scheduleAtFixedRate(this::poll, pollMillis, pollMillis, TimeUnit.MILLISECONDS);
        }
    }

    private void poll() {
        try {
            refresh();
        } catch (TimeoutException | MoxException | LinkageError e) {
            // The engine was told, or is closed, which ends this as well.
        } catch (Throwable t) {
            // A full heap or the like; the next poll tells whether it is over.
        }
    }

    /**
     * Reads all rows now. Throws where the database takes too long. For a while after a fault the pool has connections that are dead
     * though the database is not; so where nothing comes at once, others are asked. A call that is under way is not given up for
     * that, and of a database that is away one is asked.
     */
    void refresh() throws TimeoutException {
        long left = callMillis;
        for (long patience = callMillis / 25; patience < left && !away && lane.calls.get() == 0; patience *= 2) {
            try {
                away = !within(patience, false, this::read);
                return;
            } catch (TimeoutException e) {
                left -= patience;
            }
        }
        boolean answers = false;
        try {
            answers = within(left, true, this::read);
        } finally {
            away = !answers;
        }
    }

    /**
     * Writes what the engine wants to be written for a request, until it has an answer for it.
     *
     * @param next the engine's answer to the request
     * @return the engine's last answer
     */
    Map<String, Object> write(Map<String, Object> next) throws TimeoutException {
        refresh(); // the pool hands out next what has just answered, and not what died with the database
        return within(
                callMillis,
                true,
                on -> {
                    Map<String, Object> answer = next;
                    while (answer.get("write") != null) {
                        answer = put(on, (Map<?, ?>) answer.get("write"));
                    }
                    return answer;
                });
    }

    /** Reads again at once where what was read says that there is more. False: the database says that it cannot. */
    private boolean read(Lane on) throws TimeoutException {
        for (int times = 0; times < MOST_TIMES; times++) {
            Map<String, String> asked = more;
            if (!readOnce(on)) {
                return false;
            }
            if (asked.keySet().containsAll(more.keySet())) {
                return true;
            }
        }
        return true;
    }

    private boolean readOnce(Lane on) throws TimeoutException {
        Map<String, Object> rows = new LinkedHashMap<>();
        Throwable failure = null;
        try {
            Map<String, String> all = new LinkedHashMap<>(keys);
            all.putAll(more);
            for (Map.Entry<String, String> document : all.entrySet()) {
                rows.put(document.getKey(), shown(store.get(document.getValue())));
            }
        } catch (LinkageError e) {
            throw e;
        } catch (Throwable t) {
            failure = t;
        }
        // Pages are open to everybody, and what a database says may name it: pages have the kind of failure, the log all of it.
        Map<String, Object> answer = failure == null
                ? tell(on, "rows", "rows", rows)
                : tell(on, "rows", "failure", failure.getClass().getName(), "detail", String.valueOf(failure.getMessage()));
        for (Object write : (List<?>) answer.get("writes")) {
            put(on, (Map<?, ?>) write);
        }
        Map<String, String> read = new LinkedHashMap<>();
        ((Map<?, ?>) answer.get("read")).forEach((name, key) -> read.put((String) name, (String) key));
        more = read;
        return failure == null;
    }

    /** Writes a row and tells the engine what is there then. */
    private Map<String, Object> put(Lane on, Map<?, ?> write) throws TimeoutException {
        if (on.givenUp.get()) {
            throw new TimeoutException(); // nobody waits for it any more
        }
        String key = (String) write.get("key");
        boolean stored = false;
        boolean read = false;
        DocumentStore.Row row = null;
        try {
            DocumentStore.Row wanted = new DocumentStore.Row((Long) write.get("version"), (String) write.get("value"));
            stored = store.put(key, wanted, (Long) write.get("expect"));
        } catch (LinkageError e) {
            throw e;
        } catch (Throwable t) {
            // Whether it was written all the same is what is there.
        }
        try {
            row = store.get(key);
            read = true;
        } catch (LinkageError e) {
            throw e;
        } catch (Throwable t) {
            // The engine is told that nobody knows.
        }
        return tell(on, "written", "ticket", write.get("ticket"), "stored", stored, "read", read, "row", shown(row));
    }

    /**
     * Rows that were read long ago would be taken for those that are there now. Those of a lane that is given up in this moment are as
     * old as a call may be: the engine refuses what is older than it knows, and the next read puts the rest right.
     */
    private Map<String, Object> tell(Lane on, String operation, Object... fields) throws TimeoutException {
        if (on.givenUp.get()) {
            throw new TimeoutException();
        }
        return mox.host().command(operation, fields);
    }

    private static Map<String, Object> shown(DocumentStore.Row row) {
        if (row == null) {
            return null;
        }
        String value = row.value == null ? "" : row.value;
        Map<String, Object> shown = new LinkedHashMap<>();
        shown.put("version", row.version);
        shown.put("value", value.length() > MOST_CHARS ? value.substring(0, MOST_CHARS) : value);
        return Collections.unmodifiableMap(shown);
    }

    /** @param last whether the engine is to know that nothing came */
    private <T> T within(long millis, boolean last, Call<T> call) throws TimeoutException {
        if (broken.get()) {
            throw new TimeoutException(); // the engine knows that nobody reads
        }
        Lane on = lane;
        on.calls.incrementAndGet();
        Future<T> done =
                on.thread.submit(
                        () -> {
                            try {
                                return call.on(on);
                            } finally {
                                on.calls.decrementAndGet();
                            }
                        });
        try {
            return done.get(millis, TimeUnit.MILLISECONDS);
        } catch (TimeoutException e) {
            done.cancel(false); // nobody waits for it, if it has not begun
            if (giveUp(on) && last) {
                mox.host().command("rows", "failure", "no answer within " + millis + " ms");
            }
            throw e;
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException("interrupted", e);
        } catch (ExecutionException e) {
            if (e.getCause() instanceof TimeoutException) {
                throw (TimeoutException) e.getCause();
            }
            if (e.getCause() instanceof LinkageError) {
                end((LinkageError) e.getCause());
            }
            if (e.getCause() instanceof Error) {
                throw (Error) e.getCause();
            }
            throw e.getCause() instanceof RuntimeException ? (RuntimeException) e.getCause() : new IllegalStateException(e.getCause());
        }
    }

    /** Ends reading for good; the last known documents count, and everything else of MoX goes on. The engine logs it. */
    private void end(LinkageError why) {
        if (broken.compareAndSet(false, true)) {
            polls.shutdown();
            mox.host().command("rows", "failure", why.getClass().getName(), "detail", String.valueOf(why.getMessage()));
        }
    }

    /** Whoever waits for another call of the lane gives up as well. False: somebody has given it up before, or nobody may. */
    private boolean giveUp(Lane late) {
        if (givenUp.get() >= GIVEN_UP || !late.givenUp.compareAndSet(false, true)) {
            return false;
        }
        givenUp.incrementAndGet();
        lane = new Lane();
        late.thread.submit(givenUp::decrementAndGet); // when the call has come to its end
        late.thread.shutdown();
        return true;
    }

    @Override
    public void close() {
        polls.shutdownNow();
        lane.thread.shutdown();
    }
}
