//! Scenarios on a registry that serves MoX.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use harness::{
    SOON,
    parts::{Client, Envoy, Follower, Istiod, Provider, Registry, echo_server},
    process::{connect, eventually, free_port},
};

use crate::{Group, consumers, payloads};

pub(crate) const GROUP: Group = Group {
    start: || {
        let options = [
            "-Dmox.enabled=true",
            "-Dmox.scope=local",
            // The scenarios come and go faster than a registry in its right mind.
            "-Dmox.protect.mass-delete-share=100",
            "-Dmox.protect.startup-hold=1s",
            "-Dmox.policy.endpoints.allow-loopback=true",
        ];
        let registry = Registry::start("mox-on", Some(free_port()), &options);
        // The registry calls itself healthy a moment earlier.
        eventually(SOON, "MoX listens", || connect(registry.mox).ok());
        registry
    },
    scenarios: &[
        ("a_registry_client_is_followed_by_a_mox_client", mox_client_follows),
        ("a_registry_client_is_followed_by_istiod", istiod_follows),
        ("sofarpc_providers_come_and_go", sofarpc_providers),
        ("what_real_clients_publish_is_as_recorded_and_reaches_envoy", payloads::real_clients),
        ("sofarpc_consumers_call_whom_the_mesh_serves", consumers::of_sofarpc),
        ("dubbo_consumers_call_whom_the_mesh_serves", consumers::of_dubbo),
        ("envoy_passes_bytes_until_the_unpublish", envoy_passes_bytes),
        ("publish_to_configz_takes_how_long", publish_to_configz),
        ("the_registry_ends_on_sigterm_with_a_stream_open", registry_ends), // the last one: there is no registry after it
    ],
};

fn mox_client_follows(registry: &mut Registry) {
    let mut mox = Follower::connect(registry);
    publisher_story("MoxStory", "sofa-registry/com.example.moxstory", |name, wanted| {
        let state = mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == wanted));
        assert_eq!(state[name].entry.hosts, ["com.example.moxstory.sofa.mesh"]);
        let empty = state[name].labels.get("sofa.registry/empty").map(String::as_str);
        assert_eq!(empty, wanted.is_empty().then_some("true"));
    });
}

fn istiod_follows(registry: &mut Registry) {
    let istiod = Istiod::start(registry);
    publisher_story("IstioStory", "com.example.istiostory", |name, wanted| {
        eventually(SOON, &format!("{name} with {wanted:?} in configz"), || {
            (istiod.endpoints(name)? == wanted).then_some(())
        });
        let entry = istiod.entry(name).unwrap();
        assert_eq!(entry["spec"]["hosts"][0], "com.example.istiostory.sofa.mesh");
        assert_ne!(entry["metadata"]["resourceVersion"], "");
    });
}

/// The life of a registry client; `seen(name, endpoints)` waits for an observer to see each step.
fn publisher_story(interface: &str, name: &str, mut seen: impl FnMut(&str, &[&str])) {
    let mut client = Client::start(&format!("client-{interface}"));
    client.tell(&format!("publish a com.example.{interface}:1.0@DEFAULT 10.9.0.1:12201?weight=100"));
    seen(name, &["10.9.0.1:12201"]);
    client.tell(&format!("publish b com.example.{interface}:1.0@DEFAULT 10.9.0.2:12202"));
    seen(name, &["10.9.0.1:12201", "10.9.0.2:12202"]);
    client.tell("republish a 10.9.0.3:12203?weight=100");
    seen(name, &["10.9.0.2:12202", "10.9.0.3:12203"]);
    client.tell("unpublish a");
    seen(name, &["10.9.0.2:12202"]);
    client.kill();
    seen(name, &[]);
}

fn sofarpc_providers(registry: &mut Registry) {
    let mut mox = Follower::connect(registry);
    for (protocol, host, number, port_protocol) in [
        ("bolt", "com.example.demoservice.sofa.mesh", 12200, "TCP"),
        ("tri", "tri.com.example.demoservice.sofa.mesh", 50051, "GRPC"),
    ] {
        let port = free_port();
        let mut provider = Provider::spawn("provider.sh", &["orders", &format!("{protocol}:{port}")]);
        provider.wait_until_exported();
        let name = format!("sofa-registry/{}", host.trim_end_matches(".sofa.mesh"));
        let endpoint = format!("127.0.0.1:{port}");
        let state = mox.wait_until(|state| state.get(&name).is_some_and(|r| r.endpoints() == [&*endpoint]));
        let entry = &state[&name].entry;
        assert_eq!(entry.hosts, [host]);
        assert_eq!((entry.ports[0].number, &*entry.ports[0].protocol), (number, port_protocol));
        assert_eq!(entry.endpoints[0].labels.get("app").map(String::as_str), Some("orders"));
        provider.stop();
        mox.wait_until(|state| state.get(&name).is_some_and(|r| r.endpoints().is_empty()));
    }
}

fn envoy_passes_bytes(registry: &mut Registry) {
    let istiod = Istiod::start(registry);
    let envoy = Envoy::start(&istiod, "outbound|12200||com.example.echo.sofa.mesh");
    let endpoint = format!("127.0.0.1:{}", echo_server());
    let mut client = Client::start("client-echo");

    client.tell(&format!("publish echo com.example.Echo:1.0@DEFAULT {endpoint}"));
    eventually(SOON, "Envoy has the endpoint", || (envoy.endpoints()? == [&*endpoint]).then_some(()));
    assert_eq!(send_and_read(envoy.port, b"over the mesh").unwrap(), b"over the mesh");

    client.tell("unpublish echo");
    eventually(SOON, "Envoy has no endpoint", || envoy.endpoints()?.is_empty().then_some(()));
    // Envoy accepts and then closes or resets.
    assert_eq!(send_and_read(envoy.port, b"to nobody").unwrap_or_default(), b"");
}

fn send_and_read(port: u16, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(port)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Printed, and held to a bound that only a broken path exceeds.
fn publish_to_configz(registry: &mut Registry) {
    let mut client = Client::start("client-latency");
    client.tell("publish it com.example.Latency:1.0@DEFAULT 10.9.0.1:12200");
    let mut mox = Follower::connect(registry);
    let name = "sofa-registry/com.example.latency";
    let to_mox = median(&mut client, |endpoint| {
        mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == [endpoint]));
    });
    drop(mox);
    let istiod = Istiod::start(registry);
    let to_configz = median(&mut client, |endpoint| {
        eventually(SOON, "the change in configz", || {
            (istiod.endpoints("com.example.latency")? == [endpoint]).then_some(())
        });
    });
    println!("publish -> MoX client: {:.1} ms", to_mox.as_secs_f64() * 1e3);
    println!("publish -> configz: {:.1} ms", to_configz.as_secs_f64() * 1e3);
    println!(
        "  (medians of 20, local scope; from the line that tells the registry client to republish: its JVM, its hop"
    );
    println!("  to the session server and, for configz, up to 2 ms of our polling are in it)");
    assert!(to_configz < Duration::from_secs(1));
}

fn median(client: &mut Client, mut seen: impl FnMut(&str)) -> Duration {
    let mut all: Vec<_> = (1..=20)
        .map(|port| {
            let endpoint = format!("10.9.0.2:{port}");
            let begin = Instant::now();
            client.tell(&format!("republish it {endpoint}"));
            seen(&endpoint);
            begin.elapsed()
        })
        .collect();
    all.sort();
    all[all.len() / 2]
}

fn registry_ends(registry: &mut Registry) {
    let _still_connected = Follower::connect(registry);
    let status = registry.terminate(Duration::from_secs(20));
    // 143: the JVM's own answer to SIGTERM, after its shutdown hooks.
    assert_eq!((status.code(), status.signal()), (Some(143), None));
    assert_eq!(registry.jni_warnings(), [] as [String; 0]);
    assert_eq!(registry.our_errors(), [] as [String; 0]);
}
