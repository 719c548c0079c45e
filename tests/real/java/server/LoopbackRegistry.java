import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.net.NetUtil;
import com.alipay.sofa.registry.server.integration.RegistryApplication;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.reflect.Field;
import java.net.InetAddress;
import java.nio.charset.StandardCharsets;

/**
 * The real all-in-one SOFARegistry, made to call itself 127.0.0.1, or {@code -Down.address}, instead of the first outside
 * address it finds. Each line on its standard input is a policy for the MoX that it runs.
 */
public final class LoopbackRegistry {
    private LoopbackRegistry() {}

    public static void main(String[] args) throws Exception {
        Field address = NetUtil.class.getDeclaredField("LOCAL_ADDRESS");
        address.setAccessible(true);
        address.set(null, InetAddress.getByName(System.getProperty("own.address", "127.0.0.1")));
        RegistryApplication.main(args);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            System.out.println("policy " + RegistryMox.running().get().policy(line));
        }
    }
}
