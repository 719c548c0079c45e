//! Scenarios on a registry that is followed through its data servers: nothing of what they serve was heard locally only.

use std::time::{Duration, Instant};

use harness::{
    SOON,
    parts::{Client, Follower, Registry, post},
    process::{connect, eventually, free_port, get},
};
use serde_json::{Value, json};

use crate::Group;

pub(crate) const GROUP: Group = Group {
    start: || {
        let options = [
            "-Dmox.enabled=true",
            "-Dmox.scope=cluster",
            "-Dmox.cluster.reconcile=2s",
            // The scenarios come and go faster than a registry in its right mind.
            "-Dmox.protect.mass-delete-share=100",
            "-Dmox.admin.token=open-sesame",
            "-Ddata.server.enableTestApi=true",
            "-Dmox.policy.endpoints.allow-loopback=true",
        ];
        let registry = Registry::start("cluster", Some(free_port()), &options);
        eventually(SOON, "MoX listens", || connect(registry.mox).ok());
        eventually(SOON, "the view is complete", || (status()["served"]["held"].is_null()).then_some(()));
        registry
    },
    scenarios: &[
        ("cluster_scope_is_complete_without_a_hold", complete_at_once),
        ("cluster_scope_sees_what_only_the_data_servers_know", fed_by_notices),
        ("cluster_scope_follows_a_registry_client", client_is_followed),
        ("cluster_scope_freezes_while_pushes_are_stopped", stop_push),
        ("cluster_scope_stays_frozen_in_a_gray_push", gray_push),
        ("cluster_scope_takes_changes_with_the_token_only", token),
        ("cluster_scope_publish_takes_how_long", latency),
    ],
};

fn status() -> Value {
    get(9603, "/mox/status").and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default()
}

fn complete_at_once(registry: &mut Registry) {
    let status = eventually(SOON, "a whole report", || {
        Some(status()).filter(|status| status["feed"]["reconciled"].as_u64() > Some(0))
    });
    assert_eq!((&status["scope"], &status["fenced"]), (&"cluster".into(), &false.into()));
    let feed = &status["feed"];
    assert_eq!((feed["slots"].as_u64(), feed["readFailures"].as_u64()), (Some(16), Some(0)), "{feed:#}");
    println!("bootstrap of an empty registry: {} ms, {} comparisons", feed["bootstrapMillis"], feed["compares"]);
    assert_eq!(registry.our_errors(), [] as [String; 0]);
}

/// Whether an endpoint is served within 2 s.
fn appears(endpoint: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        if get(9603, "/mox/dump").is_some_and(|dump| dump.contains(endpoint)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2)); // the polling interval
    }
    false
}

/// The data server's own test interface adds publishers that no session server has heard of. They go again when the data
/// server compares itself with the session server, at most 6 s later.
fn fed_by_notices(registry: &mut Registry) {
    let id = "com.example.Remote:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
    let name = "sofa-registry/com.example.remote";
    let mut mox = Follower::connect(registry);
    let mut client = Client::start("client-remote");
    client.tell("publish a com.example.Remote:1.0@DEFAULT 10.9.0.1:12201");
    mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == ["10.9.0.1:12201"]));
    eventually(SOON, "the data server has it", || {
        get(9622, "/digest/datum/getDataInfoIdList").filter(|list| list.contains("com.example.Remote"))
    });
    let mut all: Vec<Duration> = Vec::new();
    for port in 1..=50 {
        let address = format!("10.9.9.{port}");
        let body = json!({ "dataInfoId": id, "publisherDataBox": format!("{address}:12200"), "publisherCell": "DEFAULT_ZONE" });
        let begin = Instant::now();
        let answer = post(9622, "/datum/api/pub/add", "", &body.to_string());
        assert!(answer.body.contains("\"success\":true"), "{answer:?}");
        // A publisher that comes just before the comparison goes before the data server gives notice of it.
        if appears(&format!("\"{address}\"")) {
            all.push(begin.elapsed());
        }
        if all.len() == 9 {
            break;
        }
    }
    assert_eq!(all.len(), 9, "seen: {all:?}");
    all.sort();
    println!("publish elsewhere -> served: {:.0?} (median of 9), {:.0?} at most", all[4], all[8]);
    mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == ["10.9.0.1:12201"]));
}

fn client_is_followed(registry: &mut Registry) {
    let mut mox = Follower::connect(registry);
    let name = "sofa-registry/com.example.clusterstory";
    let mut seen = |wanted: &[&str]| {
        mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == wanted));
    };
    let mut client = Client::start("client-cluster");
    client.tell("publish a com.example.ClusterStory:1.0@DEFAULT 10.9.0.1:12201?weight=100");
    seen(&["10.9.0.1:12201"]);
    client.tell("publish b com.example.ClusterStory:1.0@DEFAULT 10.9.0.2:12202");
    seen(&["10.9.0.1:12201", "10.9.0.2:12202"]);
    client.tell("republish a 10.9.0.3:12203?weight=100");
    seen(&["10.9.0.2:12202", "10.9.0.3:12203"]);
    client.tell("unpublish a");
    seen(&["10.9.0.2:12202"]);
    let killed = Instant::now();
    client.kill();
    seen(&[]);
    println!("a lost client's endpoint is gone after {:?}", killed.elapsed());
    // Reads and events agree, so nothing is owed and nothing differs any more.
    let quiet = (0..5).any(|_| {
        let before = status();
        let after = eventually(SOON, "two more comparisons of everything", || {
            Some(status())
                .filter(|now| now["feed"]["reconciled"].as_u64() > before["feed"]["reconciled"].as_u64().map(|n| n + 1))
        });
        after["feed"]["differences"] == before["feed"]["differences"] && after["feed"]["owed"] == 0
    });
    assert!(quiet, "comparisons go on to find differences: {:#}", status()["feed"]);
}

fn stop_push(registry: &mut Registry) {
    let mut client = Client::start("client-stop-push");
    client.tell("publish a com.example.Stopped:1.0@DEFAULT 10.9.0.1:12201");
    let mut mox = Follower::connect(registry);
    let name = "sofa-registry/com.example.stopped";
    mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == ["10.9.0.1:12201"]));
    get(9615, "/stopPushDataSwitch/open").unwrap();
    eventually(SOON, "frozen", || (status()["served"]["held"] == "frozen").then_some(()));
    client.tell("publish b com.example.Stopped:1.0@DEFAULT 10.9.0.2:12202");
    client.tell("unpublish a");
    eventually(SOON, "the feed goes on", || (status()["store"]["tombstones"].as_u64() > Some(0)).then_some(()));
    assert_eq!(status()["served"]["held"], "frozen");
    get(9615, "/stopPushDataSwitch/close").unwrap();
    mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == ["10.9.0.2:12202"]));
    assert!(status()["served"]["held"].is_null());
}

/// Pushes are stopped but to some addresses, of which the mesh is none: it would serve what is half registered.
fn gray_push(registry: &mut Registry) {
    let id = "com.example.Gray:1.0@DEFAULT";
    let mut client = Client::start("client-gray");
    client.tell(&format!("publish a {id} 10.9.0.1:12201"));
    let mut mox = Follower::connect(registry);
    let serves = |mox: &mut Follower, endpoint: &str| {
        mox.wait_until(|state| {
            state.get("sofa-registry/com.example.gray").is_some_and(|r| r.endpoints() == [endpoint])
        });
    };
    serves(&mut mox, "10.9.0.1:12201");
    let mut consumer = Client::start("client-gray-consumer");
    consumer.tell(&format!("subscribe {id}"));
    consumer.wait_for_data(id, &["10.9.0.1:12201"]);
    get(9615, "/stopPushDataSwitch/open").unwrap();
    eventually(SOON, "frozen", || (status()["served"]["held"] == "frozen").then_some(()));
    let answer = post(9615, "/stopPushDataSwitch/grayOpen", "", r#"{"ips":["127.0.0.1"]}"#);
    assert!(answer.status == 200 && answer.body.contains("\"success\":true"), "{answer:?}");
    client.tell("republish a 10.9.0.2:12202");
    consumer.wait_for_data(id, &["10.9.0.2:12202"]); // so the registry does push, to this address
    let before = status()["feed"]["reconciled"].as_u64();
    // A switch that is seen open is followed by a comparison, and then by a thaw.
    eventually(SOON, "two more comparisons of everything", || {
        (status()["feed"]["reconciled"].as_u64() > before.map(|n| n + 1)).then_some(())
    });
    assert_eq!(status()["served"]["held"], "frozen");
    serves(&mut mox, "10.9.0.1:12201");
    get(9615, "/stopPushDataSwitch/close").unwrap();
    serves(&mut mox, "10.9.0.2:12202");
    assert!(status()["served"]["held"].is_null());
}

fn token(_: &mut Registry) {
    assert_eq!(post(9603, "/mox/freeze", "wrong", "").status, 403);
    assert!(status()["served"]["held"].is_null());
    let answer = post(9603, "/mox/freeze", "open-sesame", "");
    assert!(answer.status == 200 && answer.body.contains("\"this\""), "{answer:?}");
    eventually(SOON, "frozen", || (status()["served"]["held"] == "frozen").then_some(()));
    assert_eq!(post(9603, "/mox/thaw?local=1", "open-sesame", "").status, 200);
    eventually(SOON, "thawed", || status()["served"]["held"].is_null().then_some(()));
    assert!(post(9603, "/mox/release", "open-sesame", "").body.contains("released"));
    assert!(!status().to_string().contains("sesame"));
}

/// A local publish, which does not wait for the data servers.
fn latency(registry: &mut Registry) {
    let mut client = Client::start("client-cluster-latency");
    let mut mox = Follower::connect(registry);
    client.tell("publish it com.example.ClusterLatency:1.0@DEFAULT 10.9.0.1:12200");
    let mut all: Vec<Duration> = (1..=20)
        .map(|port| {
            let endpoint = format!("10.9.0.2:{port}");
            let begin = Instant::now();
            client.tell(&format!("republish it {endpoint}"));
            let name = "sofa-registry/com.example.clusterlatency";
            mox.wait_until(|state| state.get(name).is_some_and(|r| r.endpoints() == [&*endpoint]));
            begin.elapsed()
        })
        .collect();
    all.sort();
    println!("local publish -> MoX client, cluster scope: {:.1?} (median of 20)", all[all.len() / 2]);
    println!("{:#}", status()["feed"]);
    assert!(all[all.len() / 2] < Duration::from_secs(1));
    assert_eq!(registry.our_errors(), [] as [String; 0]);
    assert_eq!(registry.jni_warnings(), [] as [String; 0]);
}
