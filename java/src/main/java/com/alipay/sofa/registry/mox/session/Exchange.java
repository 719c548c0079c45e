package com.alipay.sofa.registry.mox.session;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * An HTTP request and its answer over a connection of their own, with one deadline for the whole. The JDK's own client has a
 * deadline for each read only, follows proxies, and cannot be cut off from outside while it reads.
 */
final class Exchange {
    private static final int MOST_HEAD = 16 << 10;
    static final int MOST_BODY = 64 << 10;

    /** The other server's answer, or why there is none. */
    static final class Answer {
        /** HTTP status; 0 where there is no answer. */
        final int status;
        /** The text, or why there is no answer. */
        final String body;

        Answer(int status, String body) {
            this.status = status;
            this.body = body;
        }
    }

    private Exchange() {}

    /**
     * Asks, and waits for the whole answer. A redirection is an answer like any other.
     *
     * @param cutter ends the connection when the time is over
     * @param host an address, not a name
     * @param body null for a GET
     * @param most bytes of the answer's body
     */
    static Answer with(
            ScheduledExecutorService cutter,
            long millis,
            String host,
            int port,
            String path,
            Map<String, String> headers,
            String body,
            int most)
            throws IOException {
        Socket socket = new Socket();
        AtomicBoolean late = new AtomicBoolean();
        Runnable cutting = () -> {
            late.set(true);
            close(socket);
        };
        ScheduledFuture<?> cut = cutter.schedule(cutting, millis, TimeUnit.MILLISECONDS);
        try {
            socket.connect(new InetSocketAddress(host, port), (int) millis);
            byte[] bytes = body == null ? new byte[0] : body.getBytes(StandardCharsets.UTF_8);
            // 1.0: the answer comes in one piece and ends the connection.
            StringBuilder head = new StringBuilder(body == null ? "GET " : "POST ").append(path).append(" HTTP/1.0\r\n");
            head.append("Host: ").append(host.indexOf(':') < 0 ? host : "[" + host + "]").append(':').append(port).append("\r\n");
            head.append("Connection: close\r\n");
            if (body != null) {
                head.append("Content-Type: application/json\r\nContent-Length: ").append(bytes.length).append("\r\n");
            }
            headers.forEach((name, value) -> head.append(name).append(": ").append(value).append("\r\n"));
            socket.getOutputStream().write(head.append("\r\n").toString().getBytes(StandardCharsets.ISO_8859_1));
            socket.getOutputStream().write(bytes);
            return answer(socket.getInputStream(), most);
        } catch (IOException e) {
            throw late.get() || e instanceof SocketTimeoutException ? new IOException("no whole answer within " + millis + " ms", e) : e;
        } finally {
            cut.cancel(false);
            close(socket);
        }
    }

    private static Answer answer(InputStream in, int most) throws IOException {
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        byte[] buffer = new byte[8 << 10];
        String head = null;
        int bodyAt = 0;
        long length = -1;
        for (int n = in.read(buffer); n >= 0; n = in.read(buffer)) {
            all.write(buffer, 0, n);
            if (head == null) {
                // ISO 8859-1 has one character for each byte, so places in the text are places in the bytes.
                String text = new String(all.toByteArray(), StandardCharsets.ISO_8859_1);
                int end = text.indexOf("\r\n\r\n");
                if (end < 0 && all.size() > MOST_HEAD) {
                    throw new IOException("more than " + MOST_HEAD + " bytes of headers");
                }
                if (end >= 0) {
                    head = text.substring(0, end);
                    bodyAt = end + 4;
                    length = length(head);
                }
            }
            if (head != null && (all.size() - bodyAt > most || length > most)) {
                throw new IOException("more than " + most + " bytes");
            }
            if (length >= 0 && all.size() - bodyAt >= length) {
                break;
            }
        }
        if (head == null || all.size() - bodyAt < length) {
            throw new IOException("the answer ends early, after " + all.size() + " bytes");
        }
        int count = length >= 0 ? (int) length : all.size() - bodyAt;
        return new Answer(status(head), new String(all.toByteArray(), bodyAt, count, StandardCharsets.UTF_8));
    }

    private static int status(String head) throws IOException {
        String[] line = head.split("\r\n", 2)[0].split(" ", 3);
        if (line.length < 2 || !line[0].startsWith("HTTP/1.") || !line[1].matches("[1-5][0-9][0-9]")) {
            throw new IOException("this is no answer of a web server");
        }
        return Integer.parseInt(line[1]);
    }

    /** Of the body; -1 where it ends with the connection. */
    private static long length(String head) throws IOException {
        for (String line : head.toLowerCase(Locale.ROOT).split("\r\n")) {
            if (line.startsWith("transfer-encoding:")) {
                throw new IOException("the answer is in chunks, which HTTP/1.0 has not");
            }
            if (line.startsWith("content-length:")) {
                String length = line.substring("content-length:".length()).trim();
                if (!length.matches("[0-9]{1,18}")) {
                    throw new IOException("the answer's Content-Length is no number");
                }
                return Long.parseLong(length);
            }
        }
        return -1;
    }

    private static void close(Socket socket) {
        try {
            socket.close();
        } catch (IOException e) {
            // The connection is of no use any more, closed or not.
        }
    }
}
