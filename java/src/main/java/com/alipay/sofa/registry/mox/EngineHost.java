package com.alipay.sofa.registry.mox;

import com.alipay.sofa.registry.mox.MoxException.Code;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;

/** {@link MoxHost} over the native handle of an engine. */
final class EngineHost implements MoxHost {
    private final RegistryMox mox;
    private final long handle;

    EngineHost(RegistryMox mox, long handle) {
        this.mox = mox;
        this.handle = handle;
    }

    @Override
    public Map<String, Object> command(String operation, Object... keysAndValues) {
        return mox.command(Arguments.required("operation", operation), keysAndValues);
    }

    @Override
    public Publication publication(
            String source,
            String dataInfoId,
            String registerId,
            long version,
            long registerTimestamp,
            String cell,
            String appName,
            String sourceAddress) {
        return FrameEncoder.publishing(source, dataInfoId, registerId, version, registerTimestamp, cell, appName, sourceAddress);
    }

    @Override
    public long publish(Publication publication) {
        if (!(Arguments.required("publication", publication) instanceof FrameEncoder)) {
            throw new MoxException(Code.INVALID_ARGUMENT, "publication is of another's making; begin it with MoxHost.publication");
        }
        FrameEncoder encoder = (FrameEncoder) publication;
        encoder.published();
        return mox.apply(encoder);
    }

    @Override
    public EngineRead read(String source, String dataInfoId, long version, long startedNanos) {
        return new EngineRead(mox, source, dataInfoId, version, startedNanos);
    }

    @Override
    public EnginePage page(String path, String query) {
        Map<String, Object> request = new LinkedHashMap<>();
        request.put("path", Arguments.required("path", path));
        request.put("query", Arguments.required("query", query));
        return EnginePage.open(handle, path, Json.write(request));
    }

    @Override
    public String json(Object value) {
        return new String(Json.write(value), StandardCharsets.UTF_8);
    }
}
