package com.alipay.sofa.registry.mox.session;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import com.alipay.sofa.registry.common.model.PublishType;
import com.alipay.sofa.registry.common.model.ServerDataBox;
import com.alipay.sofa.registry.common.model.store.Publisher;
import com.alipay.sofa.registry.common.model.store.URL;
import com.alipay.sofa.registry.mox.MoxHost;
import com.alipay.sofa.registry.mox.RegistryMox;
import com.alipay.sofa.registry.mox.TestData;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataAcceptor;
import com.alipay.sofa.registry.server.session.acceptor.WriteDataRequest;
import example.ExtensionExample;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedList;
import java.util.List;
import java.util.Map;
import java.util.logging.Level;
import org.junit.After;
import org.junit.Before;
import org.junit.Test;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.context.ConfigurableApplicationContext;

/** The binding in a Spring context on the real engine: events, life, and everything that can go wrong at start. */
public class MoxBindingTest {
    private static final String[] ON = {"mox.enabled=true", "mox.listen=127.0.0.1:0", "mox.scope=local"};

    private final CapturedLog log = new CapturedLog();

    @Before
    public void reset() {
        SessionServer.Session.ACCEPTOR.accepted.clear();
        SessionServer.Session.ACCEPTOR.failure = null;
    }

    @After
    public void everyContextHasClosedItsEngine() {
        log.close();
        assertFalse(RegistryMox.running().isPresent());
    }

    @Test
    public void writesBecomeEndpoints() {
        try (ConfigurableApplicationContext context = SessionServer.start(ON)) {
            RegistryMox mox = RegistryMox.running().get();
            mox.loaded();
            WriteDataAcceptor acceptor = context.getBean(WriteDataAcceptor.class);
            acceptor.accept(SessionServer.publish(SessionServer.publisher(1, "a", 1, "10.0.0.1:12200", "10.0.0.1:12201")));
            acceptor.accept(SessionServer.publish(SessionServer.publisher(1, "b", 1, "10.0.0.2:12200")));
            assertEquals("1/3", TestData.served(mox));
            acceptor.accept(SessionServer.publish(SessionServer.publisher(1, "a", 2, "10.0.0.1:12200")));
            assertEquals("republished with one endpoint", "1/2", TestData.served(mox));
            acceptor.accept(SessionServer.unpublish(SessionServer.publisher(1, "a", 3)));
            assertEquals("1/1", TestData.served(mox));
            assertEquals(4, SessionServer.Session.ACCEPTOR.accepted.size());
            assertEquals(Collections.emptyList(), log.at(Level.WARNING));
        }
    }

    @Test
    public void clientOffRemovesWhatTheClientHadAndNothingNewer() {
        try (ConfigurableApplicationContext context = SessionServer.start(ON)) {
            RegistryMox mox = RegistryMox.running().get();
            mox.loaded();
            WriteDataAcceptor acceptor = context.getBean(WriteDataAcceptor.class);
            List<Publisher> client = new ArrayList<>();
            for (int i = 0; i < 2_000; i++) {
                client.add(SessionServer.publisher(i % 30, "mine" + i, 1, "10.1." + i / 250 + "." + i % 250 + ":12200"));
            }
            client.forEach(publisher -> acceptor.accept(SessionServer.publish(publisher)));
            // So many others that this is no mass deletion.
            for (int i = 0; i < 6_000; i++) {
                acceptor.accept(SessionServer.publish(SessionServer.publisher(i % 30, "other" + i, 1, "10.2." + i / 250 + "." + i % 250 + ":12200")));
            }
            acceptor.accept(SessionServer.publish(SessionServer.publisher(7, "mine7", 2, "10.3.0.1:12200")));
            assertEquals("30/8000", TestData.served(mox));
            Publisher broken = SessionServer.publisher(1, "x", 1);
            broken.setDataInfoId(null);
            client.add(1_500, broken);
            acceptor.accept(SessionServer.clientOff(client));
            assertEquals("the others' and the newer one stay", "30/6001", TestData.served(mox));
            assertEquals(1, context.getBean(MoxBinding.class).failures());
        }
    }

    @Test
    public void whatIsNotToBePassedOn() {
        try (ConfigurableApplicationContext context = SessionServer.start(ON)) {
            RegistryMox mox = RegistryMox.running().get();
            mox.loaded();
            WriteDataAcceptor acceptor = context.getBean(WriteDataAcceptor.class);
            Publisher temporary = SessionServer.publisher(1, "temporary", 1, "10.0.0.1:12200");
            temporary.setPublishType(PublishType.TEMPORARY);
            acceptor.accept(SessionServer.publish(temporary));
            assertEquals("0/0", TestData.served(mox));

            Publisher odd = SessionServer.publisher(2, "odd", 1, "10.0.0.2:12200");
            ServerDataBox live = odd.getDataList().get(0);
            odd.getDataList().add(new ServerDataBox(new byte[(1 << 20) + 1]));
            odd.getDataList().add(null);
            odd.getDataList().add(new ServerDataBox((Object) "10.0.0.3:12200"));
            odd.setCell(null);
            odd.setAppName(null);
            acceptor.accept(SessionServer.publish(odd));
            assertEquals("the good boxes are served", "1/2", TestData.served(mox));
            assertEquals(1, context.getBean(MoxBinding.class).failures());
            assertEquals(log.at(Level.WARNING).toString(), 1, log.at(Level.WARNING).size());
            assertTrue("extract() was called on a live box", live.isInBytes() && live.getObject() == null);
        }
    }

    @Test
    public void writesAllocateNothing() {
        Publisher publisher = SessionServer.publisher(1, "a", 1, "10.0.0.1:12200?app_name=demo&p=1", "10.0.0.1:12201?app_name=größe");
        publisher.setCell("zürich");
        publisher.setSourceAddress(new URL("10.0.0.1", 41_234));
        WriteDataRequest<?> publish = SessionServer.publish(publisher);
        WriteDataRequest<?> unpublish = SessionServer.unpublish(publisher);
        try (RegistryMox mox = TestData.engine()) {
            TestData.assertAllocatesNothing(
                    () -> {
                        publisher.setVersion(publisher.getVersion() + 1);
                        SessionEvents.record(mox, publish, null);
                    });
            assertEquals("1/2", TestData.served(mox));
            TestData.assertAllocatesNothing(() -> SessionEvents.record(mox, unpublish, null));
        }
    }

    @Test
    public void boxesOfAnyList() {
        Publisher publisher = SessionServer.publisher(1, "a", 1, "10.0.0.1:12200", "10.0.0.2:12200");
        publisher.setDataList(new LinkedList<>(publisher.getDataList()));
        try (RegistryMox mox = TestData.engine()) {
            SessionEvents.record(mox, SessionServer.publish(publisher), null);
            assertEquals("1/2", TestData.served(mox));
            publisher.setVersion(2);
            publisher.setDataList(null);
            SessionEvents.record(mox, SessionServer.publish(publisher), null);
            assertEquals("no data is no endpoint", "0", mox.flush(TestData.DEADLINE).get("endpoints").toString());
        }
    }

    @Test
    public void attributesPassWithoutCredentials() {
        Publisher publisher = SessionServer.publisher(1, "a", 1, "10.0.0.1:12200");
        Map<String, String> attributes = new HashMap<>();
        attributes.put("!AccessKey", "secret-key");
        attributes.put("region", "eu-1");
        attributes.put("long", new String(new char[10_000]));
        publisher.setAttributes(attributes);
        String wire;
        try (RegistryMox mox = TestData.engine()) {
            MoxHost.Publication to = SessionEvents.begin(mox.host(), publisher);
            assertEquals("the long one is left out", Refusal.ATTRIBUTES, SessionEvents.fill(to, publisher));
            wire = TestData.onTheWire(to);
        }
        assertTrue(wire, wire.contains("region") && wire.contains("eu-1") && wire.contains("demo") && wire.contains("DEFAULT_ZONE"));
        assertFalse(wire, wire.contains("AccessKey") || wire.contains("secret-key"));
    }

    /** Whatever a client publishes: its endpoints are served where there is a key for them, and what is left out has a reason. */
    @Test
    public void oddPublishersAreTakenAsFarAsTheyFit() {
        try (ConfigurableApplicationContext context = SessionServer.start(ON)) {
            RegistryMox mox = RegistryMox.running().get();
            mox.loaded();
            WriteDataAcceptor acceptor = context.getBean(WriteDataAcceptor.class);
            String large = String.join("", Collections.nCopies(70_000, "x"));
            Publisher odd = SessionServer.publisher(1, large, 1, "10.0.0.1:12200");
            acceptor.accept(SessionServer.publish(odd));
            assertEquals("by its hash", "1/1", TestData.served(mox));
            odd.setVersion(2);
            odd.setCell(large);
            odd.setAppName(large);
            Map<String, String> attributes = new HashMap<>();
            for (int i = 0; i < 70_000; i++) {
                attributes.put("key" + i, "value");
            }
            odd.setAttributes(attributes);
            odd.getDataList().add(odd.getDataList().get(0));
            odd.setDataList(new ArrayList<>(Collections.nCopies(70_000, odd.getDataList().get(0))));
            acceptor.accept(SessionServer.publish(odd));
            assertEquals("1/1", TestData.served(mox));
            assertEquals("{too-much-data=1}", context.getBean(MoxBinding.class).refused().toString());
            odd.setVersion(3);
            acceptor.accept(SessionServer.unpublish(odd));
            assertEquals("0", mox.flush(TestData.DEADLINE).get("endpoints").toString());

            Publisher keyless = SessionServer.publisher(1, null, 1, "10.0.0.2:12200");
            acceptor.accept(SessionServer.publish(keyless));
            acceptor.accept(SessionServer.unpublish(keyless));
            Publisher good = SessionServer.publisher(1, "good", 1, "10.0.0.3:12200");
            acceptor.accept(SessionServer.publish(good));
            acceptor.accept(SessionServer.clientOff(java.util.Arrays.asList(keyless, good)));
            assertEquals("the other one went", "0", mox.flush(TestData.DEADLINE).get("endpoints").toString());
            Publisher nameless = SessionServer.publisher(1, "a", 1, "10.0.0.4:12200");
            nameless.setDataInfoId(large);
            acceptor.accept(SessionServer.publish(nameless));
            assertEquals("{data-info-id=1, no-register-id=3, too-much-data=1}", context.getBean(MoxBinding.class).refused().toString());
            assertEquals(5, context.getBean(MoxBinding.class).failures());
            assertEquals(log.at(Level.WARNING).toString(), 3, log.at(Level.WARNING).size());
            log.at(Level.WARNING).forEach(line -> assertTrue(line, line.length() <= 500 && line.endsWith("event=event_refused")));
        }
    }

    @Test
    public void ourFailureNeverEscapesAndTheDelegatesDoes() {
        try (ConfigurableApplicationContext context = SessionServer.start(ON)) {
            WriteDataAcceptor acceptor = context.getBean(WriteDataAcceptor.class);
            for (int i = 0; i < 100; i++) {
                acceptor.accept(SessionServer.publish(new Publisher()));
                acceptor.accept(null);
            }
            assertEquals(200, context.getBean(MoxBinding.class).failures());
            assertEquals("one warning a minute for each reason", 2, log.at(Level.WARNING).size());
            assertEquals("{data-info-id=100}", context.getBean(MoxBinding.class).refused().toString());

            RegistryMox mox = RegistryMox.running().get();
            mox.loaded();
            SessionServer.Session.ACCEPTOR.failure = new IllegalStateException("queue full");
            IllegalStateException thrown =
                    assertThrows(
                            IllegalStateException.class,
                            () -> acceptor.accept(SessionServer.publish(SessionServer.publisher(1, "a", 1, "10.0.0.1:12200"))));
            assertSame(SessionServer.Session.ACCEPTOR.failure, thrown);
            assertEquals("recorded all the same", "1/1", TestData.served(mox));
        }
    }

    @Test
    public void eventsAreTakenBeforeListeningAndIgnoredAfterClose() throws Exception {
        RegistryMox mox;
        WriteDataAcceptor acceptor;
        try (ConfigurableApplicationContext context = SessionServer.start(ON)) {
            mox = RegistryMox.running().get();
            new Socket(mox.address().getAddress(), mox.address().getPort()).close();
            acceptor = context.getBean(WriteDataAcceptor.class);
        }
        acceptor.accept(SessionServer.publish(SessionServer.publisher(1, "late", 1, "10.0.0.1:12200")));
        assertEquals(1, mox.ignoredCalls());
        assertEquals(1, SessionServer.Session.ACCEPTOR.accepted.size());
    }

    @Test
    public void extensionExamplePublishesWhileTheBeansAreMade() {
        SpringApplicationBuilder builder = new SpringApplicationBuilder(SessionServer.Session.class, ExtensionExample.class);
        try (ConfigurableApplicationContext context = SessionServer.session(builder).run(SessionServer.arguments(ON))) {
            RegistryMox mox = RegistryMox.running().get();
            mox.loaded();
            assertEquals("1/1", TestData.served(mox));
        }
    }

    @Test
    public void allInOneStartsOnceInTheSessionsContext() {
        SpringApplicationBuilder parent = SessionServer.plain(new SpringApplicationBuilder(SessionServer.Meta.class));
        String[] arguments = SessionServer.arguments(ON);
        try (ConfigurableApplicationContext root = parent.run(arguments);
                ConfigurableApplicationContext meta = SessionServer.plain(parent.child(SessionServer.Meta.class)).run(arguments);
                ConfigurableApplicationContext session = SessionServer.session(parent.child(SessionServer.Session.class)).run(arguments);
                ConfigurableApplicationContext data = SessionServer.plain(parent.child(SessionServer.Meta.class)).run(arguments)) {
            assertTrue(session.containsLocalBean("moxBinding"));
            for (ConfigurableApplicationContext other : new ConfigurableApplicationContext[] {root, meta, data}) {
                assertFalse(other.containsLocalBean("moxBinding"));
            }
        }
        // Closed, and so with the engine's log at its end.
        assertEquals(log.at(Level.INFO).toString(), 1, log.at(Level.INFO).stream().filter(line -> line.contains("listening")).count());
    }

    @Test
    public void offUnlessEnabled() {
        for (String value : new String[] {"mox.listen=127.0.0.1:0", "mox.enabled=false"}) {
            try (ConfigurableApplicationContext context = SessionServer.start(value)) {
                assertFalse(context.containsBean("moxBinding"));
                assertSame(SessionServer.Session.ACCEPTOR, context.getBean(WriteDataAcceptor.class));
            }
        }
    }

    @Test
    public void badValueLeavesTheServerRunningWithOneError() {
        assertOff("threads", "mox.enabled=true", "mox.listen=127.0.0.1:0", "mox.threads=many");
        assertOff("lisen", "mox.enabled=true", "mox.lisen=127.0.0.1:0");
        assertOff("${nowhere}", "mox.enabled=true", "mox.listen=${nowhere}");
        assertOff("Circular placeholder", "mox.enabled=true", "mox.listen=${mox.listen}");
    }

    /** Spring answers an environment variable beside a file's property with both spellings and the one value that won. */
    @Test
    public void oneKeyInTwoSpellings() {
        try (ConfigurableApplicationContext context =
                SessionServer.start("mox.enabled=true", "mox.scope=local", "mox.listen=127.0.0.1:0", "mox.protect.startup-hold=2s", "mox.protect.startupHold=2s")) {
            assertTrue(log.at(Level.SEVERE).toString(), RegistryMox.running().isPresent());
        }
    }

    @Test
    public void takenPortLeavesTheServerRunningWithOneError() throws Exception {
        try (ServerSocket taken = new ServerSocket(0)) {
            assertOff(String.valueOf(taken.getLocalPort()), "mox.enabled=true", "mox.scope=local", "mox.listen=127.0.0.1:" + taken.getLocalPort());
        }
    }

    private void assertOff(String part, String... properties) {
        int before = log.at(Level.SEVERE).size();
        SessionServer.Session.ACCEPTOR.accepted.clear();
        try (ConfigurableApplicationContext context = SessionServer.start(properties)) {
            assertFalse(RegistryMox.running().isPresent());
            context.getBean(WriteDataAcceptor.class).accept(SessionServer.publish(SessionServer.publisher(1, "a", 1)));
            assertEquals("the server works on", 1, SessionServer.Session.ACCEPTOR.accepted.size());
        }
        List<String> errors = log.at(Level.SEVERE);
        assertEquals(errors.toString(), before + 1, errors.size());
        assertTrue(errors.toString(), errors.get(before).startsWith("MoX is off, the session server runs without it: ") && errors.get(before).contains(part));
    }
}
