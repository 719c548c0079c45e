import com.alipay.remoting.BizContext;
import com.alipay.remoting.rpc.RpcClient;
import com.alipay.remoting.rpc.protocol.SyncUserProcessor;
import com.alipay.sofa.registry.common.model.CommonResponse;
import com.alipay.sofa.registry.common.model.ProcessId;
import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.dataserver.GetMultiDataRequest;
import com.alipay.sofa.registry.common.model.sessionserver.DataChangeRequest;
import com.alipay.sofa.registry.common.model.slot.MultiSlotAccessGenericResponse;
import com.alipay.sofa.registry.common.model.slot.SlotAccess;
import com.alipay.sofa.registry.common.model.slot.func.SlotFunction;
import com.alipay.sofa.registry.common.model.slot.func.SlotFunctionRegistry;
import com.alipay.sofa.registry.common.model.store.MultiSubDatum;
import com.alipay.sofa.registry.common.model.store.SubDatum;
import com.alipay.sofa.registry.common.model.store.SubPublisher;
import java.util.Collections;
import java.util.Map;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;

/**
 * Reads services from one data server as session servers do, again and again, and tells on standard output what it said. A data
 * server refuses such a read while it has not all of the service's slot.
 *
 * <pre>
 * read BEGIN END dataInfoId=address,address;dataInfoId=...   every service could be read; times in ms since 1970
 * same BEGIN END                                            so it was again, and nothing else was read
 * fail BEGIN END why                                        at least one could not
 * </pre>
 *
 * Arguments: address of the data server, ms from one round to the next, dataInfoIds.
 */
public final class Reader {
    private static final String DATA_CENTER = "DefaultDataCenter";
    private static final int TIMEOUT_MILLIS = 1_000;

    private final RpcClient client = new RpcClient();
    private final ProcessId self = new ProcessId("10.78.0.1", System.currentTimeMillis(), 1, 1);
    private final SlotFunction slots = SlotFunctionRegistry.getFunc();
    private final Map<Integer, Long> leaderEpochs = new ConcurrentHashMap<>();
    private final String server;

    private Reader(String server) {
        this.server = server + ":9620";
        // Whoever reads is given notices as well.
        client.registerUserProcessor(new SyncUserProcessor<DataChangeRequest>() {
            @Override
            public Object handleRequest(BizContext context, DataChangeRequest request) {
                return CommonResponse.buildSuccessResponse();
            }

            @Override
            public String interest() {
                return DataChangeRequest.class.getName();
            }
        });
        client.startup();
    }

    public static void main(String[] args) throws Exception {
        Reader reader = new Reader(args[0]);
        long every = Long.parseLong(args[1]);
        String last = "";
        for (;;) {
            long begin = System.currentTimeMillis();
            String line;
            try {
                StringBuilder all = new StringBuilder();
                for (int i = 2; i < args.length; i++) {
                    all.append(i == 2 ? "" : ";").append(args[i]).append('=').append(String.join(",", reader.read(args[i])));
                }
                line = all.toString();
            } catch (Exception e) {
                System.out.println("fail " + begin + " " + System.currentTimeMillis() + " " + e.toString().replace('\n', ' '));
                last = "";
                Thread.sleep(every);
                continue;
            }
            long end = System.currentTimeMillis();
            System.out.println(line.equals(last) ? "same " + begin + " " + end : "read " + begin + " " + end + " " + line);
            last = line;
            Thread.sleep(Math.max(0, begin + every - end));
        }
    }

    private TreeSet<String> read(String id) throws Exception {
        int slot = slots.slotOf(id);
        // A read of an epoch that is not the leader's is refused with the right one.
        for (int attempt = 0; ; attempt++) {
            long epoch = leaderEpochs.getOrDefault(slot, -1L);
            GetMultiDataRequest request = new GetMultiDataRequest(self, slot, id, new String[0],
                Collections.singletonMap(DATA_CENTER, 0L), Collections.singletonMap(DATA_CENTER, epoch));
            MultiSlotAccessGenericResponse<?> answer =
                (MultiSlotAccessGenericResponse<?>) client.invokeSync(server, request, TIMEOUT_MILLIS);
            if (answer.isSuccess()) {
                return addresses(((MultiSubDatum) answer.getData()).getSubDatum(DATA_CENTER));
            }
            SlotAccess access = answer.getSlotAccessMap() == null ? null : answer.getSlotAccessMap().get(DATA_CENTER);
            if (access == null || !access.isMisMatch() || attempt == 3) {
                throw new IllegalStateException(answer.getMessage() + " " + access);
            }
            leaderEpochs.put(slot, access.getSlotLeaderEpoch());
        }
    }

    private static TreeSet<String> addresses(SubDatum datum) throws Exception {
        TreeSet<String> addresses = new TreeSet<>();
        if (datum != null) {
            for (SubPublisher publisher : datum.mustGetPublishers()) {
                for (ServerDataBox box : publisher.getDataList()) {
                    String data = String.valueOf(box.extract());
                    addresses.add(data.contains("?") ? data.substring(0, data.indexOf('?')) : data);
                }
            }
        }
        return addresses;
    }
}
