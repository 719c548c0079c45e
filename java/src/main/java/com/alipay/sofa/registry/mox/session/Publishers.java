package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.mox.MoxHost;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.RandomAccess;

/**
 * The part of a publisher that fits into an event. Whatever clients publish, the registry hands their consumers, so as much as
 * can be is taken and the rest left out; the same on every session server, whether it hears a publisher or reads it. Nothing
 * here allocates for a publisher that fits.
 */
final class Publishers {
    /** All data of one publisher: half a frame, so that it fits with everything else. */
    static final int DATA_BYTES = 32 << 20;
    /** A datum costs that much beside its bytes. */
    private static final int DATUM_BYTES = 4;

    /** An attribute is not served; three bytes a character stay within a frame's 65,535. */
    private static final int ATTRIBUTE_CHARS = 8 << 10;
    /** All attributes of one publisher. */
    private static final int ATTRIBUTES_CHARS = 1 << 20;
    /** An attribute costs that much beside its characters. */
    private static final int ATTRIBUTE_COST = 32;

    private static final char[] HEX = "0123456789abcdef".toCharArray();

    private Publishers() {}

    /** Whether there can be events of the service. */
    static boolean isDataInfoId(String id) {
        return id != null && !id.isEmpty() && fits(id, MoxHost.MAX_DATA_INFO_ID_BYTES);
    }

    /**
     * The key of a publisher within its service; null if it has none. The registry takes any registerId, so one that does not
     * fit has its hash for a key: whose endpoints consumers call, those the mesh calls.
     */
    static String registerId(String id) {
        return id == null || !id.isEmpty() && fits(id, MoxHost.MAX_REGISTER_ID_BYTES) ? id : hashed(id);
    }

    private static String hashed(String text) {
        byte[] hash;
        try {
            hash = MessageDigest.getInstance("SHA-256").digest(text.getBytes(StandardCharsets.UTF_8));
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("every Java has SHA-256", e);
        }
        return "sha256:" + hex(hash);
    }

    /** Two digits a byte, in lower case. */
    static String hex(byte[] bytes) {
        StringBuilder out = new StringBuilder();
        for (byte b : bytes) {
            out.append(HEX[b >> 4 & 0xF]).append(HEX[b & 0xF]);
        }
        return out.toString();
    }

    /** Whether a cell or a name is short enough to be taken. */
    static boolean isText(String text) {
        return text == null || fits(text, MoxHost.MAX_TEXT_BYTES);
    }

    /** The address of a client's connection; null if the registry does not name one. */
    static String sourceAddress(String address) {
        return address == null || !fits(address, MoxHost.MAX_ADDRESS_BYTES) ? null : address;
    }

    /** Counts only where a character may be more than a byte. */
    private static boolean fits(String text, int bytes) {
        int chars = text.length();
        if (chars * 3L <= bytes) {
            return true;
        }
        if (chars > bytes) {
            return false;
        }
        int all = 0;
        for (int i = 0; i < chars && all <= bytes; i++) {
            char c = text.charAt(i);
            // Half of a pair's four bytes, or the one of what replaces half a pair.
            all += c < 0x80 ? 1 : c < 0x800 || Character.isSurrogate(c) ? 2 : 3;
        }
        return all <= bytes;
    }

    /** Adds what fits of the data, in their order, which is the same everywhere. */
    static Refusal data(MoxHost.Publication to, List<ServerDataBox> from) {
        Refusal refusal = null;
        int left = DATA_BYTES;
        int count = 0;
        List<ServerDataBox> boxes = indexed(from);
        for (int i = 0; i < boxes.size(); i++) {
            byte[] bytes = bytes(boxes.get(i));
            if (bytes == null || bytes.length > MoxHost.MAX_DATA_BYTES) {
                refusal = Refusal.first(refusal, Refusal.DATA);
                continue;
            }
            left -= DATUM_BYTES + bytes.length;
            count++;
            if (left < 0 || count > MoxHost.MAX_DATA) {
                // A publisher with so much is none of a known client's. To take its first data is better than to take none: with
                // one more datum all its endpoints would be gone.
                return Refusal.first(refusal, Refusal.TOO_MUCH_DATA);
            }
            to.data(bytes);
        }
        return refusal;
    }

    /** Adds what fits of the attributes. */
    static Refusal attributes(MoxHost.Publication to, Map<String, String> from) {
        Refusal refusal = null;
        int left = ATTRIBUTES_CHARS;
        for (Map.Entry<String, String> attribute : from.entrySet()) {
            String key = attribute.getKey();
            String value = attribute.getValue();
            if (key == null || value == null || key.length() > ATTRIBUTE_CHARS || value.length() > ATTRIBUTE_CHARS) {
                refusal = Refusal.ATTRIBUTES;
            } else if (!key.startsWith("!")) { // '!' marks the client's credentials
                left -= ATTRIBUTE_COST + key.length() + value.length();
                if (left < 0) {
                    return Refusal.ATTRIBUTES;
                }
                to.attribute(key, value);
            }
        }
        return refusal;
    }

    /** Walked by index, because an iterator is an allocation. */
    static List<ServerDataBox> indexed(List<ServerDataBox> boxes) {
        if (boxes == null) {
            return Collections.emptyList();
        }
        return boxes instanceof RandomAccess ? boxes : new ArrayList<>(boxes);
    }

    /** Never extract(): it stores the object in the box, which the registry shares and compares. Null if there are none. */
    private static byte[] bytes(ServerDataBox box) {
        if (box == null) {
            return null;
        }
        byte[] bytes = box.getBytes();
        if (bytes != null) {
            return bytes;
        }
        try {
            return ServerDataBox.getBytes(box.getObject());
        } catch (RuntimeException | StackOverflowError e) {
            return null; // an object that cannot be serialized, or only by a deeper stack
        }
    }
}
