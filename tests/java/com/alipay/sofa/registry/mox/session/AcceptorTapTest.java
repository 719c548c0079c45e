package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertThrows;

import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.server.session.acceptor.PublisherWriteDataRequest;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataAcceptor;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest.WriteDataRequestType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.Test;

/** The decorator alone. */
public class AcceptorTapTest {
    private static final WriteDataRequest<?> REQUEST =
            new PublisherWriteDataRequest(new Publisher(), WriteDataRequestType.PUBLISHER);

    private final List<String> calls = new ArrayList<>();

    @Test
    public void delegateFirst() {
        tap(request -> calls.add("delegate")).accept(REQUEST);
        assertEquals(Arrays.asList("delegate", "recorder"), calls);
    }

    @Test
    public void delegatesFailureIsTheCallersAndStillRecorded() {
        for (Throwable failure : new Throwable[] {new IllegalStateException("queue full"), new StackOverflowError()}) {
            calls.clear();
            WriteDataAcceptor tap =
                    tap(
                            request -> {
                                calls.add("delegate");
                                AcceptorTapTest.<RuntimeException>raise(failure);
                            });
            assertSame(failure, assertThrows(Throwable.class, () -> tap.accept(REQUEST)));
            assertEquals(0, failure.getSuppressed().length);
            assertEquals(Arrays.asList("delegate", "recorder"), calls);
        }
    }

    @Test
    public void otherBeansStayAsTheyAre() {
        Object bean = new Object();
        assertSame(bean, AcceptorTap.wrap(bean, request -> calls.add("recorder")));
    }

    private WriteDataAcceptor tap(WriteDataAcceptor delegate) {
        return (WriteDataAcceptor)
                AcceptorTap.wrap(
                        delegate,
                        request -> {
                            assertSame(REQUEST, request);
                            calls.add("recorder");
                        });
    }

    @SuppressWarnings("unchecked") // throws anything unchecked
    private static <T extends Throwable> void raise(Throwable failure) throws T {
        throw (T) failure;
    }
}
