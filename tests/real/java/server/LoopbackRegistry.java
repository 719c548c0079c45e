import com.alipay.sofa.registry.net.NetUtil;
import com.alipay.sofa.registry.server.integration.RegistryApplication;
import java.lang.reflect.Field;
import java.net.InetAddress;

/**
 * The real all-in-one SOFARegistry, made to call itself 127.0.0.1, or {@code -Down.address}, instead of the first outside
 * address it finds.
 */
public final class LoopbackRegistry {
    private LoopbackRegistry() {}

    public static void main(String[] args) throws Exception {
        Field address = NetUtil.class.getDeclaredField("LOCAL_ADDRESS");
        address.setAccessible(true);
        address.set(null, InetAddress.getByName(System.getProperty("own.address", "127.0.0.1")));
        RegistryApplication.main(args);
    }
}
