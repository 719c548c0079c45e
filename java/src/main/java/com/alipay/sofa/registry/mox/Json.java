package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** JSON out for configuration and commands, and in for the engine's own answers: objects are Maps, arrays Lists, numbers Long or Double. */
final class Json {
    /** The engine's answers are shallow; this only keeps a wrong one from ending in a StackOverflowError. */
    private static final int DEPTH = 64;

    /** Of so many characters every whole number is a Long. */
    private static final int LONG_CHARS = 18;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    static byte[] write(Object value) {
        StringBuilder out = new StringBuilder();
        write(value, out, 0);
        return out.toString().getBytes(StandardCharsets.UTF_8);
    }

    private static void write(Object value, StringBuilder out, int depth) {
        if (depth > DEPTH) {
            throw new MoxException(Code.INVALID_ARGUMENT, "value is nested deeper than " + DEPTH + " levels");
        }
        if (value instanceof Map) {
            char separator = '{';
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                out.append(separator);
                separator = ',';
                quote(String.valueOf(entry.getKey()), out);
                out.append(':');
                write(entry.getValue(), out, depth + 1);
            }
            out.append(separator == '{' ? "{}" : "}");
        } else if (value instanceof Iterable) {
            char separator = '[';
            for (Object element : (Iterable<?>) value) {
                out.append(separator);
                separator = ',';
                write(element, out, depth + 1);
            }
            out.append(separator == '[' ? "[]" : "]");
        } else if (value == null || value instanceof Boolean || value instanceof Number) {
            out.append(value);
        } else {
            quote(value.toString(), out);
        }
    }

    private static void quote(String value, StringBuilder out) {
        out.append('"');
        for (int i = 0; i < value.length(); i++) {
            char c = value.charAt(i);
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < 0x20) {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }

    static Object read(byte[] json) {
        return read(new String(json, StandardCharsets.UTF_8));
    }

    static Object read(String text) {
        Json json = new Json(text);
        Object value = json.value(0);
        json.space();
        if (json.at < json.text.length()) {
            throw json.wrong("the end");
        }
        return value;
    }

    private Object value(int depth) {
        if (depth > DEPTH) {
            throw wrong("fewer than " + DEPTH + " levels");
        }
        switch (next()) {
            case '{':
                return object(depth);
            case '[':
                return array(depth);
            case '"':
                return string();
            case 't':
                return word("true", Boolean.TRUE);
            case 'f':
                return word("false", Boolean.FALSE);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> object(int depth) {
        Map<String, Object> out = new LinkedHashMap<>();
        expect('{');
        if (next() != '}') {
            do {
                next();
                String key = string();
                next();
                expect(':');
                out.put(key, value(depth + 1));
            } while (another('}'));
        }
        expect('}');
        return out;
    }

    private List<Object> array(int depth) {
        List<Object> out = new ArrayList<>();
        expect('[');
        if (next() != ']') {
            do {
                out.add(value(depth + 1));
            } while (another(']'));
        }
        expect(']');
        return out;
    }

    private boolean another(char close) {
        if (next() == close) {
            return false;
        }
        expect(',');
        return true;
    }

    private String string() {
        expect('"');
        StringBuilder out = new StringBuilder();
        while (true) {
            char c = take();
            if (c == '"') {
                return out.toString();
            }
            out.append(c == '\\' ? escaped() : c);
        }
    }

    private char escaped() {
        char c = take();
        if (c == 'u') {
            int unit = 0;
            for (int i = 0; i < 4; i++) {
                int digit = Character.digit(take(), 16);
                if (digit < 0) {
                    throw wrong("four hex digits");
                }
                unit = unit << 4 | digit;
            }
            return (char) unit;
        }
        int known = "\"\\/bfnrt".indexOf(c);
        if (known < 0) {
            throw wrong("an escape");
        }
        return "\"\\/\b\f\n\r\t".charAt(known);
    }

    /** Long where it is whole and fits, else Double. */
    private Object number() {
        int start = at;
        boolean whole = true;
        for (; at < text.length() && "+-.0123456789eE".indexOf(text.charAt(at)) >= 0; at++) {
            whole &= text.charAt(at) >= '0' && text.charAt(at) <= '9' || text.charAt(at) == '-' && at == start;
        }
        String digits = text.substring(start, at);
        try {
            return whole && digits.length() <= LONG_CHARS ? (Object) Long.valueOf(digits) : (Object) Double.valueOf(digits);
        } catch (NumberFormatException e) {
            throw wrong("a value");
        }
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) {
            throw wrong("a value");
        }
        at += word.length();
        return value;
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    /** The next character that is not space; it stays unread. */
    private char next() {
        space();
        if (at >= text.length()) {
            throw wrong("more");
        }
        return text.charAt(at);
    }

    private char take() {
        if (at >= text.length()) {
            throw wrong("more");
        }
        return text.charAt(at++);
    }

    private void expect(char c) {
        if (take() != c) {
            throw wrong("'" + c + "'");
        }
    }

    private MoxException wrong(String expected) {
        return new MoxException(
                Code.INVALID_ARGUMENT, "JSON " + Arguments.shown(text) + ": expected " + expected + " before character " + at);
    }
}
