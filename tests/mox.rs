//! The engine with a client that speaks as istiod does: what is said when, to whom, and what it costs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use harness::{
    DEMO, Mox, SOON,
    client::{MoxClient, SERVICE_ENTRY, istiod_node, node},
    nth,
};
use registry_mox::{
    proto::envoy::config::core::v3::Node,
    testing::{error::Error, host::command},
};
use serde_json::json;
use tonic::Code;

const DEMO_NAME: &str = "sofa-registry/com.example.demoservice";

async fn loaded(config: serde_json::Value) -> Mox {
    let mox = Mox::open(config);
    mox.engine.loaded();
    mox
}

fn plain_node() -> Node {
    node("probe")
}

#[tokio::test]
async fn nothing_is_said_of_services_before_the_view_is_complete() {
    let mox = Mox::open(json!({}));
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    assert_eq!(serde_json::to_value(mox.engine.flush().await).unwrap()["held"], "not-loaded");
    let mut client = mox.client(plain_node()).await;
    client.subscribe("core/v1alpha1/MeshConfig").unwrap();
    for type_url in
        [SERVICE_ENTRY, "networking.istio.io/v1/WorkloadEntry", "networking.istio.io/v1/Gateway", "a/b/Later"]
    {
        client.subscribe(type_url).unwrap();
    }
    let mut answered = vec![client.next().await.unwrap().type_url, client.next().await.unwrap().type_url];
    answered.sort();
    assert_eq!(answered, ["a/b/Later", "networking.istio.io/v1/Gateway"]);
    mox.engine.loaded();
    let mut answered = [client.next().await.unwrap(), client.next().await.unwrap()];
    answered.sort_by_key(|response| response.type_url.clone());
    assert_eq!(answered[0].type_url, SERVICE_ENTRY);
    assert_eq!(answered[0].resources.len(), 1);
    assert_eq!(
        (answered[1].type_url.as_str(), answered[1].resources.len()),
        ("networking.istio.io/v1/WorkloadEntry", 0)
    );
}

#[tokio::test]
async fn an_empty_but_complete_view_is_answered() {
    let mox = loaded(json!({})).await;
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    let first = client.next().await.unwrap();
    assert!(first.resources.is_empty() && !first.version_info.is_empty() && !first.nonce.is_empty());
}

#[tokio::test]
async fn the_hold_of_local_scope_ends_by_itself() {
    let mox = Mox::open(json!({ "scope": "local", "protect": { "startupHold": "1ms" } }));
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    assert!(client.next_of(SERVICE_ENTRY).await.resources.is_empty());
}

#[tokio::test]
async fn every_generation_of_type_urls_gets_the_same() {
    let mox = loaded(json!({})).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    mox.engine.flush().await;
    let mut client = mox.client(plain_node()).await;
    let mut seen = Vec::new();
    for version in ["v1alpha3", "v1beta1", "v1"] {
        let type_url = format!("networking.istio.io/{version}/ServiceEntry");
        client.subscribe(&type_url).unwrap();
        let response = client.next().await.unwrap();
        assert_eq!(response.type_url, type_url);
        seen.push((response.version_info, response.resources));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(seen[0].1[0].name, DEMO_NAME);
    assert_eq!(seen[0].1[0].annotations["sofa.registry/data-info-id"], DEMO);
}

#[tokio::test]
async fn an_endpoint_change_leaves_everything_else_as_it_was() {
    let mox = loaded(json!({})).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.contains_key(DEMO_NAME)).await.unwrap();
    let before = client.state()[DEMO_NAME].clone();
    mox.publish(DEMO, "b", 1, &["10.0.0.2:12200"]);
    client.wait_until(SOON, |state| state[DEMO_NAME].endpoints().len() == 2).await.unwrap();
    let mut after = client.state()[DEMO_NAME].clone();
    assert_ne!(before.version, after.version);
    after.entry.endpoints.truncate(1);
    after.version.clone_from(&before.version);
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_service_without_endpoints_is_kept_and_marked_for_a_while() {
    let mox = loaded(json!({ "protect": { "emptyGrace": "10m" } })).await;
    mox.unpublish("never.Seen:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA", "x", 1);
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.contains_key(DEMO_NAME)).await.unwrap();
    mox.unpublish(DEMO, "a", 2);
    client.wait_until(SOON, |state| state[DEMO_NAME].endpoints().is_empty()).await.unwrap();
    assert_eq!(client.state()[DEMO_NAME].labels, BTreeMap::from([("sofa.registry/empty".into(), "true".into())]));
    assert_eq!(client.state().len(), 1, "an id first seen without publishers is not served");
    mox.publish(DEMO, "b", 1, &["10.0.0.2:12200"]);
    client.wait_until(SOON, |state| !state[DEMO_NAME].endpoints().is_empty()).await.unwrap();
    assert_eq!(client.state()[DEMO_NAME].labels, BTreeMap::new());
}

#[tokio::test]
async fn after_its_grace_an_empty_service_goes() {
    let mox = loaded(json!({ "protect": { "emptyGrace": "50ms" } })).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.len() == 1).await.unwrap();
    mox.unpublish(DEMO, "a", 2);
    client.wait_until(SOON, |state| state.is_empty()).await.unwrap();
}

#[tokio::test]
async fn a_slow_client_gets_the_newest_state_not_a_queue() {
    let mox = loaded(json!({})).await;
    let mut client = mox.client(plain_node()).await;
    client.auto_ack = false;
    client.subscribe(SERVICE_ENTRY).unwrap();
    let first = client.next().await.unwrap();
    for n in 1..=5 {
        mox.publish(DEMO, "a", n, &[&format!("10.0.0.{n}:12200")]);
        mox.engine.flush().await;
    }
    client.ack(&first).unwrap();
    let second = client.next().await.unwrap();
    assert_eq!(second.resources[0].endpoints(), ["10.0.0.5:12200"]);
    client.nack(&second, "not today").unwrap();
    mox.publish(DEMO, "a", 6, &["10.0.0.6:12200"]);
    let third = client.next().await.unwrap();
    assert_eq!(third.resources[0].endpoints(), ["10.0.0.6:12200"]);
    let status = serde_json::to_value(mox.engine.status()).unwrap();
    assert_eq!((&status["pushes"], &status["nacks"]), (&json!(3), &json!(1)));
    assert_eq!(status["streams"][0]["types"][SERVICE_ENTRY]["error"], "not today");
}

#[tokio::test]
async fn equal_content_is_not_pushed() {
    let mox = loaded(json!({})).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.len() == 1).await.unwrap();
    let before = mox.engine.flush().await;
    mox.publish(DEMO, "a", 2, &["10.0.0.1:12200"]);
    assert_eq!(mox.engine.flush().await, before);
    mox.publish(DEMO, "a", 3, &["10.0.0.9:12200"]);
    let next = client.next().await.unwrap();
    assert_eq!(next.resources[0].endpoints(), ["10.0.0.9:12200"], "the republish in between was not sent");
}

#[tokio::test]
async fn istiod_is_primed_once_and_before_services() {
    let mox = loaded(json!({})).await;
    let mut client = mox.client(istiod_node()).await;
    client.subscribe("extensions.istio.io/v1alpha1/WasmPlugin").unwrap();
    client.subscribe(SERVICE_ENTRY).unwrap();
    let mut before = Vec::new();
    loop {
        let response = client.next().await.unwrap();
        if response.type_url == SERVICE_ENTRY {
            break;
        }
        assert!(response.resources.is_empty());
        before.push((response.type_url, response.nonce));
    }
    let nonces: std::collections::BTreeSet<_> = before.iter().map(|(_, nonce)| nonce).collect();
    assert_eq!(nonces.len(), before.len(), "a nonce is never used twice");
    assert!(before.iter().all(|(type_url, _)| type_url == "extensions.istio.io/v1alpha1/WasmPlugin"));
    let primers = before.iter().filter(|(_, nonce)| nonce.starts_with("prime-")).count();
    assert_eq!(primers, 100);
    assert_eq!(before.len(), 101, "its own request for that type is answered as well");
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    assert_eq!(client.next().await.unwrap().type_url, SERVICE_ENTRY, "the primers' ACKs start nothing");
    let status = serde_json::to_value(mox.engine.status()).unwrap();
    assert_eq!(status["nacks"], 0);
}

#[tokio::test]
async fn two_session_servers_serve_the_same_bytes() {
    let ids: Vec<String> = (0..40).map(nth).collect();
    let (one, two) = (loaded(json!({})).await, loaded(json!({ "threads": 1 })).await);
    for id in &ids {
        one.publish(id, "a", 1, &["10.0.0.1:1"]);
        one.publish(id, "b", 1, &["10.0.0.2:1"]);
    }
    for id in ids.iter().rev() {
        two.publish(id, "b", 1, &["10.0.0.9:1"]);
        two.engine.flush().await;
        two.publish(id, "b", 2, &["10.0.0.2:1"]);
        two.publish(id, "a", 1, &["10.0.0.1:1"]);
    }
    assert_eq!(one.engine.flush().await, two.engine.flush().await);
    let mut seen = Vec::new();
    for mox in [&one, &two] {
        let mut client = mox.client(plain_node()).await;
        client.subscribe(SERVICE_ENTRY).unwrap();
        let response = client.next_of(SERVICE_ENTRY).await;
        seen.push((response.version_info, response.resources));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn one_change_costs_one_translation() {
    let mox = loaded(json!({})).await;
    for n in 0..300 {
        mox.publish(&nth(n), "a", 1, &["10.0.0.1:1"]);
    }
    mox.engine.flush().await;
    let before = mox.engine.status().rounds;
    mox.publish(&nth(7), "a", 2, &["10.0.0.2:1"]);
    mox.engine.flush().await;
    let after = mox.engine.status().rounds;
    assert_eq!((after.translations - before.translations, after.encodes - before.encodes), (1, 1));
    assert_eq!(after.snapshots - before.snapshots, 1);
}

#[tokio::test]
async fn a_bad_payload_is_counted_and_harms_nothing_else() {
    let mox = loaded(json!({})).await;
    mox.publish(DEMO, "a", 1, &["what is this", "10.0.0.1:12200", "127.0.0.1:1"]);
    mox.publish("com.example.Other:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA", "b", 1, &["???"]);
    let flushed = mox.engine.flush().await;
    assert_eq!((flushed.services, flushed.endpoints), (1, 1));
    let report = serde_json::to_value(mox.engine.status().rounds).unwrap();
    assert_eq!(report["rejects"], json!({ "unknown-form": 2, "unusable-address": 1 }));
    mox.unpublish(DEMO, "a", 2);
    mox.engine.flush().await;
    let report = serde_json::to_value(mox.engine.status().rounds).unwrap();
    assert_eq!(report["rejects"], json!({ "unknown-form": 1 }));
}

#[tokio::test]
async fn ids_that_differ_in_case_only_are_told_apart() {
    let mox = loaded(json!({})).await;
    let (upper, lower) = (DEMO, DEMO.replace("Demo", "demo"));
    mox.publish(&lower, "a", 1, &["10.0.0.1:1"]);
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.contains_key(DEMO_NAME)).await.unwrap();
    mox.publish(upper, "b", 1, &["10.0.0.2:1"]);
    client.wait_until(SOON, |state| state.len() == 2).await.unwrap();
    let id = |name: &str| client.state()[name].annotations["sofa.registry/data-info-id"].clone();
    assert_eq!(id(DEMO_NAME), lower, "who is served under the plain host keeps it");
    let other = client.state().keys().find(|name| *name != DEMO_NAME).unwrap();
    assert_eq!(id(other), upper);
    let vips: std::collections::BTreeSet<_> = client.state().values().map(|r| r.entry.addresses.clone()).collect();
    assert_eq!(vips.len(), 2);
    let status = serde_json::to_value(mox.engine.status().rounds).unwrap();
    assert_eq!((&status["hostsMoved"], &status["moves"]["hosts"]), (&json!(1), &json!(0)));
    let contest = &status["contested"][format!("{DEMO_NAME}.sofa.mesh").strip_prefix("sofa-registry/").unwrap()];
    assert_eq!(*contest, json!({ "holder": lower, "waiting": [upper], "count": 1 }));
    let metrics = mox.page("/mox/metrics", "").1;
    assert!(
        metrics.contains("\nmox_hosts_contested 1\n") && metrics.contains("\nmox_hosts_moved_total 0\n"),
        "{metrics}"
    );
    mox.policy(json!({ "exclude": [lower] }));
    client.wait_until(SOON, |state| state.len() == 1 && state.contains_key(DEMO_NAME)).await.unwrap();
    assert_eq!(client.state()[DEMO_NAME].annotations["sofa.registry/data-info-id"], upper);
    assert_eq!(mox.engine.status().rounds.moves.hosts, 1);
}

#[tokio::test]
async fn a_freeze_keeps_what_is_served() {
    let mox = loaded(json!({})).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:1"]);
    let before = mox.engine.flush().await;
    mox.engine.freeze();
    mox.unpublish(DEMO, "a", 2);
    let frozen = serde_json::to_value(mox.engine.flush().await).unwrap();
    assert_eq!((&frozen["held"], &frozen["version"]), (&json!("frozen"), &json!(before.version)));
    mox.engine.thaw();
    let thawed = mox.engine.flush().await;
    assert_eq!((thawed.endpoints, thawed.held), (0, None));
}

#[tokio::test]
async fn nothing_happens_while_frozen() {
    let config = json!({ "protect": { "emptyGrace": "200ms" } });
    let (mox, other) = (loaded(config.clone()).await, loaded(config).await);
    for mox in [&mox, &other] {
        mox.publish(DEMO, "a", 1, &["10.0.0.1:1"]);
        mox.engine.flush().await;
    }
    mox.unpublish(DEMO, "a", 2);
    mox.engine.flush().await;
    mox.engine.freeze();
    let served = mox.engine.flush().await;
    let before = mox.engine.status().rounds.rounds;
    // The grace that began before the freeze is over when one is that began later.
    let mut view = other.engine.watch();
    other.unpublish(DEMO, "a", 2);
    let gone = view.wait_for(|view| view.service_entries.resources() == 0);
    tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
    assert!(mox.engine.status().rounds.rounds <= before + 1, "nothing is done in vain");
    assert_eq!(mox.engine.flush().await, served);
}

#[tokio::test]
async fn a_policy_takes_services_out_and_in() {
    let mox = loaded(json!({ "policy": { "exclude": "org.*" } })).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:1"]);
    mox.publish("org.example.Other:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA", "a", 1, &["10.0.0.1:1"]);
    assert_eq!(mox.engine.flush().await.services, 1);
    let hash = mox.engine.status().policy;
    let bad = json!({ "op": "policy", "policy": { "include": ["org.*"], "exportTo": ["*", "~"] } });
    let error = command::execute(&mox.engine, bad.to_string().as_bytes()).unwrap_err();
    assert!(matches!(error, Error::Config(_)) && mox.engine.status().policy == hash);
    mox.tell(json!({ "op": "policy", "policy": { "include": "org.*", "export-to": "~" } }));
    mox.engine.flush().await;
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    let response = client.next().await.unwrap();
    assert_eq!(response.resources.len(), 1);
    assert_eq!(response.resources[0].name, "sofa-registry/org.example.other");
    assert_eq!(response.resources[0].entry.export_to, ["~"]);
}

#[tokio::test]
async fn a_policy_translates_only_what_it_touches() {
    let mox = loaded(json!({})).await;
    for n in 0..300 {
        let zone = if n < 20 { "RZ1" } else { "RZ2" };
        mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.1:1?zone={zone}")]);
    }
    let first = mox.engine.flush().await;
    let mut translated = mox.engine.status().rounds.translations;
    for (policy, touched) in [
        (json!({ "overrides": { "com.example.S7:*": { "port": 80 } } }), 1),
        (json!({ "locality": { "RZ1": "cn/rz1" } }), 20),
        (json!({ "labels": ["nobody-has-this"], "endpoints": { "deny": ["192.0.2.0/24"] } }), 20),
        (json!({ "exclude": ["*S5:*"] }), 0),
        (json!({ "exportTo": ["."] }), 300),
        (json!({}), 300),
    ] {
        mox.policy(policy.clone());
        mox.engine.flush().await;
        let now = mox.engine.status().rounds.translations;
        assert_eq!(now - translated, touched, "{policy}");
        translated = now;
    }
    assert_eq!(mox.engine.flush().await, first);
}

#[tokio::test]
async fn an_override_gives_a_service_another_host_and_back() {
    let mox = loaded(json!({})).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:1"]);
    let before = mox.engine.flush().await;
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.len() == 1).await.unwrap();
    mox.tell(json!({ "op": "policy", "policy": { "overrides": { "[com.example.*]": {
        "host": "demo.example.com", "port": "80", "protocol": "http", "export-to": "." } } } }));
    client.wait_until(SOON, |state| !state.contains_key(DEMO_NAME)).await.unwrap();
    let entry = client.state().values().next().unwrap().entry.clone();
    assert_eq!((entry.hosts, entry.export_to), (vec!["demo.example.com".to_owned()], vec![".".to_owned()]));
    assert_eq!((entry.ports[0].number, entry.ports[0].protocol.as_str()), (80, "HTTP"));
    mox.tell(json!({ "op": "policy", "policy": {} }));
    assert_eq!(mox.engine.flush().await, before, "without it everything is as it was, to the last byte");
}

#[tokio::test]
async fn a_stream_that_does_not_keep_to_the_protocol_ends_alone() {
    let mox = loaded(json!({ "limits": { "types": 16, "request": 65_536 } })).await;
    let mut good = mox.client(plain_node()).await;
    good.subscribe(SERVICE_ENTRY).unwrap();
    good.next_of(SERVICE_ENTRY).await;
    let mut nameless = mox.client(Node::default()).await;
    nameless.subscribe(SERVICE_ENTRY).unwrap();
    assert_eq!(nameless.end(SOON).await.unwrap(), Code::InvalidArgument);
    let mut oversized = mox.client(plain_node()).await;
    oversized.subscribe(&"x".repeat(70_000)).unwrap();
    assert_eq!(oversized.end(SOON).await.unwrap(), Code::OutOfRange);
    let mut typeless = mox.client(plain_node()).await;
    typeless.subscribe("").unwrap();
    assert_eq!(typeless.end(SOON).await.unwrap(), Code::InvalidArgument);
    let mut greedy = mox.client(plain_node()).await;
    (0..17).for_each(|n| greedy.subscribe(&format!("a/b/{n}")).unwrap());
    assert_eq!(greedy.end(SOON).await.unwrap(), Code::ResourceExhausted);
    mox.publish(DEMO, "a", 1, &["10.0.0.1:1"]);
    assert_eq!(good.next_of(SERVICE_ENTRY).await.resources.len(), 1, "the others go on");
}

#[tokio::test]
async fn streams_are_bounded() {
    let mox = loaded(json!({ "limits": { "streams": 1 } })).await;
    let mut first = mox.client(plain_node()).await;
    first.subscribe(SERVICE_ENTRY).unwrap();
    first.next_of(SERVICE_ENTRY).await;
    let refused = MoxClient::connect(&mox.address(), plain_node()).await.err().unwrap();
    assert_eq!(refused.downcast::<tonic::Status>().unwrap().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_stop_ends_streams_without_a_last_state() {
    let mox = loaded(json!({})).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:1"]);
    let mut client = mox.client(plain_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.wait_until(SOON, |state| state.len() == 1).await.unwrap();
    let engine = std::sync::Arc::clone(&mox.engine);
    let closing = tokio::task::spawn_blocking(move || engine.close());
    assert_eq!(client.end(SOON).await.unwrap(), Code::Unavailable);
    assert_eq!(client.state().len(), 1);
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mox = Mox::closed(json!({ "listen": address }));
    let error = mox.engine.listen().unwrap_err();
    assert_eq!(error.code(), 5);
    assert!(error.to_string().contains(&format!("cannot listen on {address} (mox.listen)")), "{error}");
    assert!(mox.engine.apply(&[1, 0, 0, 0]).is_ok(), "events are taken all the same");
}
