//! The incremental variant.

use std::collections::BTreeMap;

use harness::{
    Mox,
    client::{Delta, SERVICE_ENTRY, Sotw, decode, node},
    id,
};
use prost::Message;
use registry_mox::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, ResourceLocator};
use serde_json::json;

use crate::{resource, serving, set, with};

type News = (Vec<String>, Vec<String>);

fn news(brought: &[&str], removed: &[&str]) -> News {
    let all = |names: &[&str]| names.iter().map(|name| resource(name)).collect();
    (all(brought), all(removed))
}

fn sorted((mut brought, mut removed): News) -> News {
    brought.sort();
    removed.sort();
    (brought, removed)
}

/// A server on which a service without endpoints goes at once.
async fn quick(names: &[&str]) -> Mox {
    with(json!({ "protect": { "emptyGrace": "0s", "massDeleteShare": 100 } }), names).await
}

fn remove(mox: &Mox, name: &str) {
    mox.unpublish(&id(name), "a", 1_000);
}

/// A first request that names nothing wants everything, as `*` does; once a name was given, naming nothing means nothing.
#[tokio::test]
async fn n45_naming_nothing_at_first_is_everything() {
    let mox = serving(&["A", "B"]).await;
    for everything in [&[][..], &["*"]] {
        let mut client = Delta::connect(&mox.address()).await;
        client.ask("", everything, &[]);
        assert_eq!(sorted(client.take().await), news(&["A", "B"], &[]));
    }
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[&resource("A")], &[]);
    assert_eq!(client.take().await, news(&["A"], &[]));
    client.ask("", &[], &[]);
    client.silent().await;
}

/// A first request for everything is answered though there is nothing.
#[tokio::test]
async fn n46_an_empty_set_is_answered() {
    let mox = serving(&[]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[], &[]);
    assert_eq!(client.take().await, news(&[], &[]));
    client.silent().await;
}

async fn versions(mox: &Mox) -> BTreeMap<String, String> {
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[], &[]);
    let response = client.next().await;
    response.resources.into_iter().map(|resource| (resource.name, resource.version)).collect()
}

fn resume(subscribe: &[&str], versions: &BTreeMap<String, String>) -> DeltaDiscoveryRequest {
    let request = Delta::request(SERVICE_ENTRY, "", subscribe, &[]);
    DeltaDiscoveryRequest { initial_resource_versions: versions.clone(), ..request }
}

/// A resource that a client had before is not sent again if it is the same, sent if it is another, removed if it is
/// gone.
#[tokio::test]
async fn n47_versions_from_before_are_compared() {
    let mox = quick(&["A", "B", "C"]).await;
    let had = versions(&mox).await;
    set(&mox, "B", 2);
    remove(&mox, "C");
    mox.engine.flush().await;
    let mut client = Delta::connect(&mox.address()).await;
    client.send(resume(&[], &had));
    assert_eq!(client.take().await, news(&["B"], &["C"]));
    let mut named = Delta::connect(&mox.address()).await;
    named.send(resume(&[&resource("A"), &resource("C")], &had));
    assert_eq!(named.take().await, news(&[], &["C"]));
    // However many there are: the list of 10,000 takes nearly a megabyte.
    let mut many = had.clone();
    many.extend((0..10_000).map(|n| (resource(&format!("gone.interface.Service{n}")), had[&resource("A")].clone())));
    let mut returning = Delta::connect(&mox.address()).await;
    returning.send(resume(&[], &many));
    let (brought, removed) = returning.take().await;
    assert_eq!((brought, removed.len()), (vec![resource("B")], 10_001));
}

/// Versions from before count in the first request of a type only.
#[tokio::test]
async fn n48_versions_from_before_count_once() {
    let mox = serving(&["A"]).await;
    let had = versions(&mox).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &["x"], &[]);
    client.take().await;
    client.send(resume(&[&resource("A")], &had));
    assert_eq!(client.take().await, news(&["A"], &[]));
}

/// A name that is subscribed to is sent, though the client has it.
#[tokio::test]
async fn n49_a_subscription_is_always_answered() {
    let mox = serving(&["A"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[&resource("A")], &[]);
    client.take().await;
    client.ask("", &[&resource("A")], &[]);
    assert_eq!(client.take().await, news(&["A"], &[]));
}

/// A name that nothing has is removed, and brought when there is something.
#[tokio::test]
async fn n50_a_missing_name_is_removed_and_brought_later() {
    let mox = serving(&["A"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[&resource("Later")], &[]);
    assert_eq!(client.take().await, news(&[], &["Later"]));
    set(&mox, "Later", 1);
    assert_eq!(client.take().await, news(&["Later"], &[]));
}

/// A name that was left is not sent any more; leaving what was never wanted is nothing.
#[tokio::test]
async fn n51_a_left_name_is_silent() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[&resource("A"), &resource("B")], &[]);
    client.take().await;
    client.ask("", &[], &[&resource("A"), "phantom"]);
    client.silent().await; // the server has read that
    set(&mox, "A", 2);
    mox.engine.flush().await;
    client.silent().await;
    set(&mox, "B", 2);
    assert_eq!(client.take().await, news(&["B"], &[]));
}

/// A name that is left while everything is wanted is answered with what there is of it.
#[tokio::test]
async fn n52_a_name_left_among_everything_is_answered() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &["*", &resource("A"), &resource("None")], &[]);
    assert_eq!(sorted(client.take().await), news(&["A", "B"], &["None"]));
    client.ask("", &[], &[&resource("A"), &resource("None")]);
    assert_eq!(client.take().await, news(&["A"], &["None"]));
    set(&mox, "A", 2);
    assert_eq!(client.take().await, news(&["A"], &[]), "it is still wanted");
}

/// Leaving `*` keeps names; when nothing is left nothing is sent.
#[tokio::test]
async fn n53_leaving_everything_keeps_names() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &["*", &resource("A")], &[]);
    client.take().await;
    client.ask("", &[], &["*"]);
    client.silent().await;
    set(&mox, "B", 2);
    mox.engine.flush().await;
    client.silent().await;
    set(&mox, "A", 2);
    assert_eq!(client.take().await, news(&["A"], &[]));
    client.ask("", &[], &[&resource("A")]);
    client.silent().await;
    set(&mox, "A", 3);
    mox.engine.flush().await;
    client.silent().await;
}

/// A response has what changed, each with its name and version, and the names of what is gone; no name is in both.
#[tokio::test]
async fn n54_a_response_has_what_changed() {
    let mox = quick(&["A", "B", "C"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[], &[]);
    client.take().await;
    mox.engine.freeze();
    set(&mox, "A", 2);
    set(&mox, "D", 1);
    remove(&mox, "C");
    mox.engine.thaw();
    let response = client.next().await;
    assert_eq!(response.removed_resources, [resource("C")]);
    let mut brought = Vec::new();
    for changed in response.resources {
        let resource = decode(&changed.resource.unwrap().value).unwrap();
        let shown = (&resource.name, &resource.version, resource.entry.endpoints.len());
        assert_eq!(shown, (&changed.name, &changed.version, 1));
        brought.push(resource.name);
    }
    brought.sort();
    assert_eq!(brought, [resource("A"), resource("D")]);
}

/// ACK and NACK are told by the nonce and `error_detail`; a request of its own accord has no nonce and answers nothing.
#[tokio::test]
async fn n55_a_spontaneous_request_answers_nothing() {
    let mox = serving(&["A"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[], &[]);
    let first = client.next().await;
    assert!(!first.nonce.is_empty());
    set(&mox, "A", 2);
    client.ask("", &["x"], &[]);
    mox.engine.flush().await;
    client.silent().await;
    let error_detail = Some(registry_mox::proto::google::rpc::Status { message: "no".into(), ..Default::default() });
    client.send(DeltaDiscoveryRequest { error_detail, ..Delta::request(SERVICE_ENTRY, &first.nonce, &[], &[]) });
    assert_eq!(client.take().await, (vec![resource("A")], vec!["x".into()]));
    client.silent().await;
    assert_eq!(mox.engine.status().nacks, 1);
}

/// With a stale nonce a subscription counts all the same.
#[tokio::test]
async fn n56_a_stale_nonce_still_subscribes() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[&resource("A")], &[]);
    client.take().await;
    client.ask("stale", &[&resource("B")], &[&resource("A")]);
    assert_eq!(client.take().await, news(&["B"], &[]));
    set(&mox, "A", 2);
    mox.engine.flush().await;
    client.silent().await;
}

/// Of many changes while a response is unanswered the last counts: one version, a removal, or nothing.
#[tokio::test]
async fn n57_changes_in_flight_become_one() {
    let mox = quick(&["A", "B", "C"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[], &[]);
    let first = client.next().await;
    for n in 2..6 {
        set(&mox, "A", n);
        set(&mox, "New", n);
        mox.engine.flush().await;
    }
    mox.unpublish(&id("New"), "a", 10);
    remove(&mox, "C");
    mox.unpublish(&id("B"), "a", 10);
    mox.engine.flush().await;
    set(&mox, "B", 11);
    mox.engine.flush().await;
    client.ask(&first.nonce, &[], &[]);
    assert_eq!(sorted(client.take().await), news(&["A", "B"], &["C"]), "New came and went");
    client.silent().await;
}

/// A large first response is one, in the order of the pages, and the same resources as those of the other variant.
#[tokio::test]
async fn n58_a_large_first_response_keeps_its_order() {
    let mox = serving(&[]).await;
    for n in 0..1_500 {
        let data = format!("10.0.0.1:1?app_name={}", "x".repeat(60));
        mox.publish(&id(format!("S{n}")), "a", 1, &[&data]);
    }
    mox.engine.flush().await;
    let mut sotw = Sotw::connect(&mox.address()).await;
    sotw.ask(SERVICE_ENTRY, &[]);
    let all: Vec<Vec<u8>> = sotw.take(&[]).await.resources.into_iter().map(|any| any.encode_to_vec()).collect();
    let mut client = Delta::connect(&mox.address()).await;
    client.ask("", &[], &[]);
    let response = client.next().await;
    let same: Vec<Vec<u8>> = response.resources.into_iter().map(|r| r.resource.unwrap().encode_to_vec()).collect();
    assert!(all == same && all.len() == 1_500);
}

/// A request with names in `resource_locators`, or with unknown fields, is not taken for everything.
#[tokio::test]
async fn n59_locators_are_names() {
    let mox = serving(&["A", "B"]).await;
    let mut client = Delta::connect(&mox.address()).await;
    client.send(DeltaDiscoveryRequest {
        node: Some(node("client")),
        type_url: SERVICE_ENTRY.into(),
        resource_locators_subscribe: vec![ResourceLocator { name: resource("A") }],
        ..DeltaDiscoveryRequest::default()
    });
    assert_eq!(client.take().await, news(&["A"], &[]));
    let mut sotw = Sotw::connect(&mox.address()).await;
    sotw.send(registry_mox::proto::envoy::service::discovery::v3::DiscoveryRequest {
        node: Some(node("client")),
        type_url: SERVICE_ENTRY.into(),
        resource_locators: vec![ResourceLocator { name: resource("B") }],
        ..Default::default()
    });
    assert_eq!(crate::names(&sotw.take(&[]).await), [resource("B")]);
}

/// No heartbeats and no time to live: a resource that does not change is not sent again, and has no wrapper in state of the world.
#[tokio::test]
async fn n60_no_heartbeats() {
    let mox = serving(&["A"]).await;
    let mut delta = Delta::connect(&mox.address()).await;
    delta.ask("", &[], &[]);
    let response = delta.next().await;
    delta.ask(&response.nonce, &[], &[]);
    // Fields of `Resource` that a client would read as a time to live (6) or as cached by its own rules (7) are absent.
    let [resource] = &response.resources[..] else { panic!("one resource") };
    let parts = resource.name.len() + resource.version.len() + resource.resource.as_ref().unwrap().encoded_len();
    assert!(resource.encoded_len() - parts < 12, "there is more in it");
    delta.silent().await;
    let mut sotw = Sotw::connect(&mox.address()).await;
    sotw.ask(SERVICE_ENTRY, &[]);
    let wrapped = sotw.take(&[]).await.resources.remove(0).type_url;
    assert_ne!(wrapped, "type.googleapis.com/envoy.service.discovery.v3.Resource");
}
