//! Entries for consumers that dial the addresses which the registry gives them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use harness::{
    Mox,
    client::{DESTINATION_RULE, SERVICE_ENTRY, State, node},
    id,
};
use registry_mox::{
    proto::istio::networking::v1alpha3::{ServiceEntry, service_entry::Resolution},
    testing::registry::frame::Publisher,
};
use serde_json::{Value, json};

/// The state that a client holds, and of it the entries of applications by host.
async fn served(mox: &Mox) -> (State, BTreeMap<String, ServiceEntry>) {
    mox.engine.flush().await;
    let mut client = mox.client(node("probe")).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.next().await.unwrap();
    let state = client.state().clone();
    let direct = state.values().filter(|resource| resource.annotations.contains_key("sofa.registry/application"));
    let direct = direct.map(|resource| (resource.entry.hosts[0].clone(), resource.entry.clone())).collect();
    (state, direct)
}

async fn open() -> Mox {
    let mox = Mox::open(json!({}));
    mox.engine.loaded();
    mox.publish(&id("Orders"), "a", 1, &["10.0.0.1:12200?app_name=orders", "10.0.0.2:12200?app_name=orders&weight=50"]);
    mox.publish(&id("Refunds"), "b", 1, &["10.0.0.1:12200?app_name=orders", "10.0.0.3:12201?app_name=orders"]);
    mox.publish(&id("Users"), "c", 1, &["10.0.1.1:12200?app_name=users", "10.0.1.2:12200"]);
    mox
}

#[tokio::test]
async fn an_application_has_an_entry_for_each_of_its_ports() {
    let mox = open().await;
    let (before, direct) = served(&mox).await;
    assert_eq!((before.len(), direct.len()), (3, 0), "none by default");
    mox.policy(json!({ "direct": { "applications": ["or*"] } }));
    let (_, direct) = served(&mox).await;
    let hosts: Vec<&str> = direct.keys().map(String::as_str).collect();
    assert_eq!(hosts, ["p12200.orders.app.sofa.mesh", "p12201.orders.app.sofa.mesh"]);
    let entry = &direct[hosts[0]];
    assert_eq!(entry.addresses, ["10.0.0.1", "10.0.0.2"], "two interfaces share the first");
    assert_eq!((entry.resolution(), entry.endpoints.len()), (Resolution::None, 0));
    assert_eq!((entry.ports[0].number, entry.ports[0].protocol.as_str()), (12200, "TCP"));
    assert_eq!(mox.engine.flush().await.endpoints, 6, "no endpoint is counted twice");
    let counts = serde_json::to_value(mox.engine.status().rounds).unwrap()["direct"].clone();
    assert_eq!(
        counts,
        json!({ "entries": 2, "contested": 0, "unnamed": 1, "mixedMtls": 0, "leftOut": 0, "lingering": 0, "notLingering": 0,
                "notOwn": 0, "notOwnSample": [] })
    );

    let vouched_for = json!(["10.0.0.0/24"]);
    mox.policy(json!({ "direct": { "applications": ["orders"], "balance": "mesh", "addresses": vouched_for } }));
    let (_, direct) = served(&mox).await;
    let entry = &direct[hosts[0]];
    assert_eq!((entry.resolution(), entry.addresses.len()), (Resolution::Static, 2));
    let weights: Vec<_> = entry.endpoints.iter().map(|e| (e.address.as_str(), e.ports["tcp"], e.weight)).collect();
    assert_eq!(weights, [("10.0.0.1", 12200, 100), ("10.0.0.2", 12200, 50)]);

    mox.policy(json!({}));
    assert_eq!(served(&mox).await.0, before, "everything is as it was before");
}

#[tokio::test]
async fn an_entry_follows_its_endpoints_and_costs_what_changes() {
    let mox = open().await;
    mox.policy(json!({ "direct": { "applications": ["*"], "linger": "0s" } }));
    mox.engine.flush().await;
    let encodes = || mox.engine.status().rounds.encodes;
    let before = encodes();
    mox.unpublish(&id("Orders"), "a", 2);
    let (_, direct) = served(&mox).await;
    assert_eq!(direct["p12200.orders.app.sofa.mesh"].addresses, ["10.0.0.1"], "another interface still has it");
    assert_eq!(encodes() - before, 2, "the service and the one entry");
    mox.unpublish(&id("Refunds"), "b", 2);
    let (_, direct) = served(&mox).await;
    assert_eq!(direct.keys().collect::<Vec<_>>(), ["p12200.users.app.sofa.mesh"]);
}

#[tokio::test]
async fn an_address_lingers_is_named_and_goes_without_another_change() {
    let mox = open().await;
    mox.policy(json!({ "direct": { "applications": ["orders"], "linger": "10m" } }));
    served(&mox).await;
    let encodes = || mox.engine.status().rounds.encodes;
    let before = encodes();
    mox.unpublish(&id("Orders"), "a", 2);
    let (_, direct) = served(&mox).await;
    assert_eq!(direct["p12200.orders.app.sofa.mesh"].addresses, ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(encodes() - before, 2, "the service and the entry");
    let status = serde_json::to_value(mox.engine.status().rounds).unwrap();
    let since = &status["lingering"]["10.0.0.2:12200"]["since"];
    assert_eq!(status["lingering"], json!({ "10.0.0.2:12200": { "application": "orders", "since": since } }));
    assert!(since.as_i64().unwrap() > 0 && status["direct"]["lingering"] == 1, "{status:#}");
    // By the clock alone, once the policy says a shorter time.
    let shorter = json!({ "direct": { "applications": ["orders"], "linger": "300ms" } });
    mox.publish(&id("Orders"), "a", 3, &["10.0.0.2:12200?app_name=orders"]);
    mox.policy(shorter);
    served(&mox).await;
    mox.unpublish(&id("Orders"), "a", 4);
    mox.engine.flush().await;
    harness::process::eventually(harness::SOON, "the address goes", || {
        mox.engine.status().rounds.lingering.is_empty().then_some(())
    });
    let (_, direct) = served(&mox).await;
    assert_eq!(direct["p12200.orders.app.sofa.mesh"].addresses, ["10.0.0.1"]);
}

#[tokio::test]
async fn what_two_applications_claim_is_the_newests() {
    let mox = open().await;
    mox.policy(json!({ "direct": { "applications": ["*"] } }));
    // The helper's timestamps are equal, so the version decides.
    mox.publish(&id("Thief"), "t", 7, &["10.0.0.2:12200?app_name=thief"]);
    let (_, direct) = served(&mox).await;
    assert_eq!(direct["p12200.orders.app.sofa.mesh"].addresses, ["10.0.0.1"]);
    assert_eq!(direct["p12200.thief.app.sofa.mesh"].addresses, ["10.0.0.2"]);
    assert_eq!(mox.engine.status().rounds.direct.unwrap().contested, 1);
    // Who connects from the address has it, however new the other is.
    let publisher = Publisher {
        register_id: "a".into(),
        source_address: "10.0.0.2:40000".into(),
        payloads: vec![b"10.0.0.2:12200?app_name=orders".as_slice().into()],
        ..Publisher::default()
    };
    mox.put(&id("Own"), &publisher);
    let (_, direct) = served(&mox).await;
    assert_eq!(direct["p12200.orders.app.sofa.mesh"].addresses, ["10.0.0.1", "10.0.0.2"]);
    assert!(!direct.contains_key("p12200.thief.app.sofa.mesh"));
    mox.unpublish(&id("Thief"), "t", 8);
    let (_, direct) = served(&mox).await;
    assert_eq!(direct["p12200.orders.app.sofa.mesh"].addresses, ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(mox.engine.status().rounds.direct.unwrap().contested, 0);
}

#[tokio::test]
async fn where_the_proxy_chooses_nobody_takes_anothers_address() {
    let mox = Mox::open(json!({ "policy": { "direct": { "applications": ["orders"], "balance": "mesh" } } }));
    mox.engine.loaded();
    let publish = |service: &str, source: &str, data: &[&str]| {
        let publisher = Publisher {
            register_id: service.into(),
            source_address: source.into(),
            payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
            ..Publisher::default()
        };
        mox.put(&id(service), &publisher);
    };
    publish("Orders", "10.0.0.1:41234", &["10.0.0.1:12200?app_name=orders"]);
    publish("Pay", "10.0.9.9:41234", &["10.0.9.9:12200?app_name=payments"]);
    let before = served(&mox).await.1;
    assert_eq!(before["p12200.orders.app.sofa.mesh"].addresses, ["10.0.0.1"]);
    // A client that says the application's name, and the addresses of a provider of another one and of a database.
    publish("X", "10.66.6.6:41234", &["10.0.9.9:12200?app_name=orders", "10.0.9.10:3306?app_name=orders"]);
    assert_eq!(served(&mox).await.1, before);
    let counts = serde_json::to_value(mox.engine.status().rounds).unwrap()["direct"].clone();
    let named = json!([format!("10.0.9.9 12200 orders {}", id("X")), format!("10.0.9.10 3306 orders {}", id("X"))]);
    assert_eq!((&counts["notOwn"], &counts["notOwnSample"]), (&json!(2), &named));
    // The operator vouches for the database.
    let vouched_for = json!(["10.0.9.10/32"]);
    mox.policy(json!({ "direct": { "applications": ["orders"], "balance": "mesh", "addresses": vouched_for } }));
    let after = served(&mox).await.1;
    assert_eq!(after["p3306.orders.app.sofa.mesh"].addresses, ["10.0.9.10"]);
    assert_eq!(after["p12200.orders.app.sofa.mesh"], before["p12200.orders.app.sofa.mesh"]);
}

#[tokio::test]
async fn mtls_to_dialed_addresses_is_a_destination_rule() {
    let mox = open().await;
    let direct = json!({ "applications": ["*"] });
    mox.policy(json!({ "direct": direct }));
    mox.engine.flush().await;
    let mut client = mox.client(node("probe")).await;
    let mut next = async |subscribe: Option<&str>| {
        subscribe.into_iter().for_each(|type_url| client.subscribe(type_url).unwrap());
        let response = client.next().await.unwrap();
        let kind = response.type_url.rsplit('/').next().unwrap().to_owned();
        (kind, response.resources.into_iter().map(|resource| resource.name).collect::<Vec<_>>())
    };
    assert_eq!(next(Some(DESTINATION_RULE)).await, ("DestinationRule".into(), vec![]));
    next(Some(SERVICE_ENTRY)).await;
    let rules = json!([{ "applications": ["orders"], "cidrs": ["10.0.0.1/32", "10.0.0.2/32"] }]);
    mox.policy(json!({ "direct": direct, "mtls": rules }));
    let rule = "sofa-registry/p12200.orders.app".to_owned();
    assert_eq!(next(None).await, ("DestinationRule".into(), vec![rule]), "before the services");
    assert_eq!(next(None).await.0, "ServiceEntry");
    assert_eq!(mox.engine.status().rounds.direct.unwrap().mixed_mtls, 0);
    let dump = mox.page("/mox/dump", "type=DestinationRule").1;
    let dump: Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["items"][0]["kind"], "DestinationRule", "{dump:#}");
    // A policy for one of the two addresses only: a DestinationRule is for a whole host, so there is none.
    let rules = json!([{ "applications": ["orders"], "cidrs": ["10.0.0.1/32"] }]);
    mox.policy(json!({ "direct": direct, "mtls": rules }));
    assert_eq!(next(None).await.0, "ServiceEntry");
    assert_eq!(next(None).await, ("DestinationRule".into(), vec![]));
    assert_eq!(mox.engine.status().rounds.direct.unwrap().mixed_mtls, 1);
}
