import com.alipay.sofa.registry.client.api.Publisher;
import com.alipay.sofa.registry.client.api.registration.PublisherRegistration;
import com.alipay.sofa.registry.client.api.registration.SubscriberRegistration;
import com.alipay.sofa.registry.client.provider.DefaultRegistryClient;
import com.alipay.sofa.registry.client.provider.DefaultRegistryClientConfigBuilder;
import com.alipay.sofa.registry.core.model.ScopeEnum;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;

/**
 * A real registry client, driven by lines on standard input; each gets one line of answer, {@code ok} or {@code error ...}:
 *
 * <pre>
 * publish NAME DATA_ID DATA...     registers a publisher, later called NAME
 * republish NAME DATA...
 * unpublish NAME
 * subscribe DATA_ID                and from then on, for every notice:  data DATA_ID [DATA, ...]
 * </pre>
 *
 * The client library sends from a thread of its own, so {@code ok} means "handed to it". Ends without a goodbye to the
 * registry at the end of its input.
 *
 * <p>Arguments: host and port of a session server, the application's name, and as how many registry clients it acts (1), each
 * with a connection of its own; publishers are spread over them by their names.
 */
public final class Client {
    private final List<DefaultRegistryClient> registries;
    private final Map<String, Publisher> publishers = new HashMap<>();

    private Client(List<DefaultRegistryClient> registries) {
        this.registries = registries;
    }

    public static void main(String[] args) throws Exception {
        List<DefaultRegistryClient> registries = new ArrayList<>();
        for (int i = args.length > 3 ? Integer.parseInt(args[3]) : 1; i > 0; i--) {
            DefaultRegistryClient registry = new DefaultRegistryClient(DefaultRegistryClientConfigBuilder.start()
                .setRegistryEndpoint(args[0]).setRegistryEndpointPort(Integer.parseInt(args[1])).setAppName(args[2])
                .setDataCenter("DefaultDataCenter").setZone("DEFAULT_ZONE").build());
            registry.init();
            registries.add(registry);
        }
        Client client = new Client(registries);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            try {
                client.run(line.trim().split(" +"));
                say("ok");
            } catch (RuntimeException e) {
                say("error " + e);
            }
        }
        Runtime.getRuntime().halt(0);
    }

    private void run(String[] words) {
        String name = words[1];
        switch (words[0]) {
            case "publish":
                PublisherRegistration registration = new PublisherRegistration(words[2]);
                registration.setGroup("SOFA");
                publishers.put(name, registry(name).register(registration, rest(words, 3)));
                break;
            case "republish":
                publisher(name).republish(rest(words, 2));
                break;
            case "unpublish":
                publisher(name).unregister();
                publishers.remove(name);
                break;
            case "subscribe":
                subscribe(name);
                break;
            default:
                throw new IllegalArgumentException(words[0]);
        }
    }

    private void subscribe(String dataId) {
        SubscriberRegistration registration = new SubscriberRegistration(dataId, (id, data) -> {
            TreeSet<String> sorted = new TreeSet<>();
            for (List<String> zone : data.getZoneData().values()) {
                sorted.addAll(zone);
            }
            say("data " + id + " " + sorted);
        });
        registration.setGroup("SOFA");
        registration.setScopeEnum(ScopeEnum.dataCenter);
        registry(dataId).register(registration);
    }

    private DefaultRegistryClient registry(String name) {
        return registries.get(Math.floorMod(name.hashCode(), registries.size()));
    }

    private Publisher publisher(String name) {
        Publisher publisher = publishers.get(name);
        if (publisher == null) {
            throw new IllegalArgumentException("no publisher " + name);
        }
        return publisher;
    }

    private static String[] rest(String[] words, int from) {
        return Arrays.copyOfRange(words, from, words.length);
    }

    private static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
