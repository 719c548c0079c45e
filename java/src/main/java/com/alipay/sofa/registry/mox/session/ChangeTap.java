package com.alipay.sofa.registry.mox.session;

import com.alipay.sofa.registry.common.model.Node.NodeType;
import com.alipay.sofa.registry.common.model.sessionserver.DataChangeRequest;
import com.alipay.sofa.registry.remoting.Channel;
import com.alipay.sofa.registry.remoting.ChannelHandler;
import com.alipay.sofa.registry.server.shared.remoting.AbstractClientHandler;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.util.concurrent.Executor;
import java.util.function.BiConsumer;

/**
 * Stands before the handler of the data servers' notices and sees every notice: the delegate first, then us. Also while the
 * registry has stopped its pushes, when the delegate drops them.
 */
final class ChangeTap extends AbstractClientHandler<DataChangeRequest> {
    private final AbstractClientHandler<DataChangeRequest> delegate;
    /** Takes the data center and the dataInfoIds; does not throw. */
    private final BiConsumer<String, Iterable<String>> changed;

    private ChangeTap(AbstractClientHandler<DataChangeRequest> delegate, BiConsumer<String, Iterable<String>> changed) {
        this.delegate = delegate;
        this.changed = changed;
    }

    /** Returns any other bean as it is. */
    static Object wrap(Object bean, BiConsumer<String, Iterable<String>> changed) {
        if (!(bean instanceof AbstractClientHandler) || ((AbstractClientHandler<?>) bean).interest() != DataChangeRequest.class) {
            return bean;
        }
        for (Method method : ChannelHandler.class.getMethods()) {
            requireOverridden(method);
        }
        @SuppressWarnings("unchecked") // what it is interested in says so
        AbstractClientHandler<DataChangeRequest> handler = (AbstractClientHandler<DataChangeRequest>) bean;
        return new ChangeTap(handler, changed);
    }

    /** A method that a later registry adds would not reach the delegate. */
    private static void requireOverridden(Method method) {
        if (Modifier.isStatic(method.getModifiers())) {
            return;
        }
        for (Method own : ChangeTap.class.getDeclaredMethods()) {
            if (own.getName().equals(method.getName()) && own.getParameterCount() == method.getParameterCount()) {
                return;
            }
        }
        throw new IncompatibleClassChangeError("unknown registry version, its handlers have " + method);
    }

    @Override
    public Object reply(Channel channel, DataChangeRequest request) {
        try {
            return delegate.reply(channel, request);
        } finally {
            try {
                changed.accept(request.getDataCenter(), request.getDataInfoIds().keySet());
            } catch (RuntimeException e) {
                // A notice without its fields, which the delegate has refused. The next comparison finds what it was about.
            }
        }
    }

    @Override
    public Object doHandle(Channel channel, DataChangeRequest request) {
        return delegate.doHandle(channel, request);
    }

    @Override
    public void connected(Channel channel) {
        delegate.connected(channel);
    }

    @Override
    public void disconnected(Channel channel) {
        delegate.disconnected(channel);
    }

    @Override
    public void received(Channel channel, DataChangeRequest request) {
        delegate.received(channel, request);
    }

    @Override
    public void caught(Channel channel, DataChangeRequest request, Throwable failure) {
        delegate.caught(channel, request, failure);
    }

    @Override
    public HandlerType getType() {
        return delegate.getType();
    }

    @Override
    public InvokeType getInvokeType() {
        return delegate.getInvokeType();
    }

    @Override
    @SuppressWarnings("rawtypes") // as the registry declares it
    public Class interest() {
        return delegate.interest();
    }

    @Override
    public Executor getExecutor() {
        return delegate.getExecutor();
    }

    @Override
    protected NodeType getConnectNodeType() {
        return NodeType.DATA;
    }
}
