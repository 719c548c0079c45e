package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.server.session.acceptor.WriteDataAcceptor;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.function.Consumer;

/** Stands before the session server's acceptor and sees every write that it is given: the delegate first, then us. */
@SuppressWarnings("rawtypes") // as the registry declares it
final class AcceptorTap implements WriteDataAcceptor {
    private final WriteDataAcceptor delegate;
    private final Consumer<Object> recorder;

    private AcceptorTap(WriteDataAcceptor delegate, Consumer<Object> recorder) {
        this.delegate = delegate;
        this.recorder = recorder;
    }

    /** Returns any other bean as it is. The recorder must not throw. */
    static Object wrap(Object bean, Consumer<Object> recorder) {
        if (!(bean instanceof WriteDataAcceptor)) {
            return bean;
        }
        for (Method method : WriteDataAcceptor.class.getMethods()) {
            requireOverridden(method);
        }
        return new AcceptorTap((WriteDataAcceptor) bean, recorder);
    }

    /** A method that a later registry adds would not reach the delegate: better not to stand in its way. */
    private static void requireOverridden(Method method) {
        if (Modifier.isStatic(method.getModifiers())) {
            return;
        }
        try {
            AcceptorTap.class.getDeclaredMethod(method.getName(), method.getParameterTypes());
        } catch (NoSuchMethodException e) {
            throw new IncompatibleClassChangeError("unknown registry version, its acceptor has " + method);
        }
    }

    @Override
    public void accept(WriteDataRequest request) {
        try {
            delegate.accept(request);
        } finally {
            // Also when the delegate failed: the session server holds the publisher by now and will send it again itself.
            recorder.accept(request);
        }
    }
}
