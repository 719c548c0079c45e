//! Endpoints as WorkloadEntries: what is sent in which order, and what a change costs.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use harness::{
    DEMO, Mox, SOON,
    client::{MoxClient, Resource, Response, SERVICE_ENTRY, WORKLOAD_ENTRY, node},
};
use serde_json::json;

const OTHER: &str = "com.example.Other:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
const SELECTOR: &str = "sofa.registry/service";

async fn open() -> Mox {
    let mox = Mox::open(json!({ "endpointMode": "workload-entry", "protect": { "emptyGrace": "10m" } }));
    mox.engine.loaded();
    mox
}

/// A client that has asked for both types and has what there is.
async fn subscribed(mox: &Mox) -> MoxClient {
    let mut client = mox.client(node("probe")).await;
    client.subscribe(WORKLOAD_ENTRY).unwrap();
    next(&mut client).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    next(&mut client).await;
    client
}

async fn next(client: &mut MoxClient) -> Response {
    tokio::time::timeout(SOON, client.next()).await.expect("a response is due").unwrap()
}

/// The last part of a response's type and the `address:port`s or names in it.
fn shown(response: &Response) -> (String, BTreeSet<String>) {
    let kind = response.type_url.rsplit('/').next().unwrap().to_owned();
    let item = |resource: &Resource| match kind.as_str() {
        "WorkloadEntry" => resource.endpoints().remove(0),
        _ => resource.entry.hosts[0].clone(),
    };
    let items = response.resources.iter().map(item).collect();
    (kind, items)
}

fn expected(kind: &str, items: &[&str]) -> (String, BTreeSet<String>) {
    (kind.to_owned(), items.iter().map(|item| (*item).to_owned()).collect())
}

const DEMO_HOST: &str = "com.example.demoservice.sofa.mesh";
const OTHER_HOST: &str = "com.example.other.sofa.mesh";

#[tokio::test]
async fn what_is_new_comes_with_its_endpoints_first() {
    let mox = open().await;
    let mut client = subscribed(&mox).await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200?app_name=session", "10.0.0.2:12200?zone=z"]);
    let workloads = next(&mut client).await;
    assert_eq!(shown(&workloads), expected("WorkloadEntry", &["10.0.0.1:12200", "10.0.0.2:12200"]));
    let services = next(&mut client).await;
    assert_eq!(shown(&services), expected("ServiceEntry", &[DEMO_HOST]));
    let selector = &services.resources[0].entry.workload_selector.as_ref().unwrap().labels;
    assert_eq!(selector.keys().collect::<Vec<_>>(), [SELECTOR]);
    assert!(services.resources[0].entry.endpoints.is_empty());
    for resource in &workloads.resources {
        let labels = &resource.entry.endpoints[0].labels;
        assert_eq!(labels[SELECTOR], selector[SELECTOR]);
        assert!(labels.len() == 2 && labels.keys().all(|key| key.starts_with("sofa.registry/")), "{labels:?}");
        assert_eq!(resource.annotations["sofa.registry/data-info-id"], DEMO);
        assert_eq!(resource.annotations["sofa.registry/register-id"], "a");
        assert!(resource.name.starts_with("sofa-registry/a-"), "{}", resource.name);
    }
}

#[tokio::test]
async fn an_endpoint_costs_one_encoding_and_leaves_the_service_alone() {
    let mox = open().await;
    for n in 1..=100 {
        mox.publish(DEMO, &format!("r{n}"), 1, &[&format!("10.0.0.{n}:12200")]);
    }
    mox.engine.flush().await;
    let mut client = subscribed(&mox).await;
    let before = mox.engine.status();
    mox.publish(DEMO, "r7", 2, &["10.0.0.7:12200?weight=10"]);
    let pushed = next(&mut client).await;
    let weights: BTreeMap<_, _> =
        pushed.resources.iter().map(|r| (r.endpoints().remove(0), r.entry.endpoints[0].weight)).collect();
    assert_eq!((weights.len(), weights["10.0.0.7:12200"], weights["10.0.0.8:12200"]), (100, 10, 100));
    mox.unpublish(DEMO, "r9", 2);
    assert_eq!(next(&mut client).await.resources.len(), 99);
    mox.engine.flush().await;
    let after = mox.engine.status();
    // Two changes: the service each time, since it is checked again, and the one endpoint that came.
    assert_eq!(after.rounds.encodes - before.rounds.encodes, 3);
    assert_eq!(after.pushes - before.pushes, 2, "the service is not sent again");
    assert_eq!(after.served.endpoints, 99);
    assert_ne!(after.served.workload_version, before.served.workload_version);
}

#[tokio::test]
async fn what_goes_goes_before_its_endpoints() {
    let mox = open().await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    mox.publish(OTHER, "b", 1, &["10.0.0.2:12200"]);
    mox.engine.flush().await;
    let mut client = subscribed(&mox).await;
    mox.policy(json!({ "exclude": ["*Demo*"] }));
    assert_eq!(shown(&next(&mut client).await), expected("ServiceEntry", &[OTHER_HOST]));
    assert_eq!(shown(&next(&mut client).await), expected("WorkloadEntry", &["10.0.0.2:12200"]));
    // A service goes and another comes in the same round.
    mox.policy(json!({ "exclude": ["*Other*"] }));
    let both = expected("WorkloadEntry", &["10.0.0.1:12200", "10.0.0.2:12200"]);
    assert_eq!(shown(&next(&mut client).await), both);
    assert_eq!(shown(&next(&mut client).await), expected("ServiceEntry", &[DEMO_HOST]));
    assert_eq!(shown(&next(&mut client).await), expected("WorkloadEntry", &["10.0.0.1:12200"]));
    assert_eq!(mox.engine.flush().await.endpoints, 1);
}

#[tokio::test]
async fn a_new_host_takes_its_endpoints_along() {
    let mox = open().await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    mox.engine.flush().await;
    let mut client = subscribed(&mox).await;
    mox.policy(json!({ "overrides": { "*Demo*": { "host": "demo.example.com" } } }));
    let both = next(&mut client).await;
    let selected: BTreeSet<_> = both.resources.iter().map(|r| r.entry.endpoints[0].labels[SELECTOR].clone()).collect();
    assert_eq!((both.resources.len(), selected.len()), (2, 2), "the old host keeps its endpoint until it is gone");
    assert_eq!(shown(&next(&mut client).await), expected("ServiceEntry", &["demo.example.com"]));
    assert_eq!(next(&mut client).await.resources.len(), 1);
}

#[tokio::test]
async fn two_session_servers_serve_the_same() {
    let (one, two) = (open().await, open().await);
    one.publish(DEMO, "a", 1, &["10.0.0.1:1", "10.0.0.2:1"]);
    one.publish(DEMO, "b", 2, &["10.0.0.2:1?weight=7"]);
    two.publish(DEMO, "b", 2, &["10.0.0.2:1?weight=7"]);
    two.engine.flush().await;
    two.publish(DEMO, "a", 0, &["10.0.0.7:1"]);
    two.engine.flush().await;
    two.publish(DEMO, "a", 1, &["10.0.0.1:1", "10.0.0.2:1"]);
    assert_eq!(one.engine.flush().await, two.engine.flush().await);
}

/// Endpoints are not taken away while an answer is out whether the service is gone.
#[tokio::test]
async fn endpoints_wait_for_the_answer_about_their_services() {
    let mox = open().await;
    mox.publish(DEMO, "a", 1, &["10.0.0.1:12200"]);
    mox.engine.flush().await;
    let mut client = subscribed(&mox).await;
    client.auto_ack = false;
    mox.publish(OTHER, "b", 1, &["10.0.0.2:12200"]);
    let both = expected("WorkloadEntry", &["10.0.0.1:12200", "10.0.0.2:12200"]);
    let workloads = next(&mut client).await;
    assert_eq!(shown(&workloads), both);
    client.ack(&workloads).unwrap();
    let services = next(&mut client).await;
    assert_eq!(shown(&services), expected("ServiceEntry", &[DEMO_HOST, OTHER_HOST]));
    // The ServiceEntries are not acknowledged yet.
    mox.policy(json!({ "exclude": ["*Demo*"] }));
    mox.engine.flush().await;
    mox.publish(OTHER, "b", 2, &["10.0.0.3:12200"]);
    let workloads = next(&mut client).await;
    let all = expected("WorkloadEntry", &["10.0.0.1:12200", "10.0.0.2:12200", "10.0.0.3:12200"]);
    assert_eq!(shown(&workloads), all, "what is new is told, what is gone is not");
    client.ack(&workloads).unwrap();
    client.auto_ack = true;
    client.ack(&services).unwrap();
    assert_eq!(shown(&next(&mut client).await), expected("ServiceEntry", &[OTHER_HOST]));
    assert_eq!(shown(&next(&mut client).await), expected("WorkloadEntry", &["10.0.0.3:12200"]));
}
