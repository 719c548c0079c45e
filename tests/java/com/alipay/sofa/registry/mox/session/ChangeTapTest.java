package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertThrows;

import com.alipay.sofa.registry.common.model.Node.NodeType;
import com.alipay.sofa.registry.common.model.dataserver.DatumVersion;
import com.alipay.sofa.registry.common.model.sessionserver.DataChangeRequest;
import com.alipay.sofa.registry.remoting.Channel;
import com.alipay.sofa.registry.server.shared.remoting.AbstractClientHandler;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.junit.Test;

/** Standing before the handler of notices: the delegate first, its outcome unchanged. */
public class ChangeTapTest {
    private final List<String> seen = new ArrayList<>();
    private RuntimeException failure;

    private final AbstractClientHandler<DataChangeRequest> delegate =
            new AbstractClientHandler<DataChangeRequest>() {
                @Override
                public Object reply(Channel channel, DataChangeRequest request) {
                    seen.add("delegate");
                    if (failure != null) {
                        throw failure;
                    }
                    return "answer";
                }

                @Override
                public Object doHandle(Channel channel, DataChangeRequest request) {
                    return null;
                }

                @Override
                protected NodeType getConnectNodeType() {
                    return NodeType.DATA;
                }

                @Override
                @SuppressWarnings("rawtypes") // as the registry declares it
                public Class interest() {
                    return DataChangeRequest.class;
                }
            };

    @SuppressWarnings("unchecked")
    private AbstractClientHandler<DataChangeRequest> tap() {
        return (AbstractClientHandler<DataChangeRequest>)
                ChangeTap.wrap(delegate, (dataCenter, ids) -> ids.forEach(id -> seen.add(dataCenter + " " + id)));
    }

    @Test
    public void theDelegateIsFirst() {
        DataChangeRequest request = new DataChangeRequest("dc", Collections.singletonMap("id", new DatumVersion(1)), null);
        assertEquals("answer", tap().reply(null, request));
        failure = new IllegalStateException("bad");
        assertSame(failure, assertThrows(IllegalStateException.class, () -> tap().reply(null, request)));
        assertEquals("[delegate, dc id, delegate, dc id]", seen.toString());
    }

    @Test
    public void aNoticeWithoutFieldsHarmsNobody() {
        assertEquals("answer", tap().reply(null, new DataChangeRequest("dc", null, null)));
        assertEquals("[delegate]", seen.toString());
    }

    @Test
    public void otherBeansStayAsTheyAre() {
        assertSame(seen, ChangeTap.wrap(seen, (dataCenter, ids) -> {}));
    }
}
