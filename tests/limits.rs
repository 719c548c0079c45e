//! Publishers' data are bounded, the same part of them is served everywhere, and what is there stays.
#![allow(clippy::unwrap_used, missing_docs)]

use harness::{
    Mox,
    client::{Resource, SERVICE_ENTRY, node},
    id,
};
use registry_mox::testing::registry::frame::{self, Publisher};
use serde_json::{Value, json};

fn addresses(network: usize, many: usize, parameters: &str) -> Vec<String> {
    (0..many).map(|n| format!("10.{network}.{}.{}:80{parameters}", n >> 8, n & 255)).collect()
}

fn publish(mox: &Mox, service: &str, register_id: &str, version: i64, data: &[String]) {
    mox.publish(&id(service), register_id, version, &data.iter().map(String::as_str).collect::<Vec<_>>());
}

async fn served(mox: &Mox) -> Vec<Resource> {
    mox.engine.flush().await;
    let mut client = mox.client(node("probe")).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.next().await.unwrap().resources
}

fn status(mox: &Mox) -> Value {
    serde_json::to_value(mox.engine.status()).unwrap()
}

fn metric(mox: &Mox, line: &str) {
    let (_, metrics) = mox.page("/mox/metrics", "");
    assert!(metrics.lines().any(|known| known == line), "{line:?} is not in {metrics}");
}

async fn close(mox: Mox) {
    tokio::task::spawn_blocking(move || mox.engine.close()).await.unwrap();
}

/// As many boxes as a publish can have are kept as the bytes that they are, and 64 of them are served.
#[tokio::test]
async fn one_publisher_serves_its_smallest_addresses_and_no_more() {
    const BOXES: usize = 65_535;
    let mox = Mox::open(json!({}));
    mox.publish(&id("Victim"), "r", 1, &["10.0.0.1:80"]);
    mox.engine.loaded();
    let many: Vec<String> = addresses(9, BOXES, "?weight=7&app_name=evil").into_iter().rev().collect();
    publish(&mox, "Evil", "e", 1, &many);
    let served = served(&mox).await;
    let evil = served.iter().find(|resource| resource.name.contains("evil")).unwrap();
    let endpoints: Vec<&str> = evil.entry.endpoints.iter().map(|endpoint| &*endpoint.address).collect();
    let wanted: Vec<String> = (0..64).map(|n| format!("10.9.0.{n}")).collect();
    assert_eq!(endpoints, wanted);
    let status = status(&mox);
    let bytes: usize = many.iter().map(String::len).sum();
    assert_eq!(status["publisher"]["rejects"], json!({ "publisher-limit": BOXES - 64 }));
    assert_eq!(status["publisher"]["cut"], json!({ id("Evil"): BOXES - 64 }));
    assert_eq!(status["store"]["endpoints"], 65);
    let kept = status["store"]["bytes"].as_u64().unwrap() as usize;
    assert!((bytes..bytes + 5 * BOXES).contains(&kept), "{kept} bytes are kept of {bytes}");
    metric(&mox, &format!("mox_rejected_payloads{{reason=\"publisher-limit\"}} {}", BOXES - 64));
    metric(&mox, "mox_cut_services 1");
    metric(&mox, "mox_publisher_endpoints 65");
    publish(&mox, "Evil", "e", 2, &many[..3]);
    mox.engine.flush().await;
    assert_eq!(self::status(&mox)["publisher"]["cut"], json!({}));
    metric(&mox, "mox_cut_services 0");
    close(mox).await;
}

#[tokio::test]
async fn above_a_services_bound_every_session_server_serves_the_same() {
    let limits = json!({ "limits": { "endpointsPerService": 100, "endpointsPerPublisher": 40 } });
    let publishers: Vec<(String, Vec<String>)> =
        (0..6).map(|n| (format!("r{n}"), addresses(5 - n, 50, &format!("?zone=z{n}")))).collect();
    let mut versions = Vec::new();
    for reversed in [false, true] {
        let mox = Mox::open(limits.clone());
        mox.engine.loaded();
        let mut order: Vec<_> = publishers.iter().collect();
        if reversed {
            order.reverse();
        }
        for (register_id, data) in order {
            publish(&mox, "Large", register_id, 1, data);
            mox.engine.flush().await;
        }
        let flushed = mox.engine.flush().await;
        assert_eq!((flushed.services, flushed.endpoints), (1, 100));
        assert_eq!(status(&mox)["publisher"]["rejects"], json!({ "publisher-limit": 60, "service-limit": 140 }));
        versions.push(flushed.version);
        close(mox).await;
    }
    assert_eq!(versions[0], versions[1]);
}

#[tokio::test]
async fn what_is_above_the_bounds_of_all_is_dropped_and_named_and_nothing_goes_for_it() {
    let mox = Mox::open(json!({ "limits": { "bytes": 1 << 20, "endpoints": 100 } }));
    mox.publish(&id("Victim"), "r", 1, &["10.0.0.1:80"]);
    mox.engine.loaded();
    let publisher = |data: Vec<String>| Publisher {
        register_id: "e".into(),
        payloads: data.into_iter().map(|text| text.into_bytes().into()).collect(),
        ..Publisher::default()
    };
    let try_publish = |service: &str, data: Vec<String>| {
        let frame = frame::encode_publish("registry", &id(service), &publisher(data)).unwrap();
        mox.engine.apply(&frame).map_err(|error| error.to_string())
    };
    assert!(try_publish("One", addresses(1, 64, "")).is_ok());
    let refused = try_publish("Two", addresses(2, 64, "")).unwrap_err();
    assert!(refused.contains("endpoints reached its limit of 100; raise mox.limits.endpoints"), "{refused}");
    let refused = try_publish("Three", vec!["x".repeat(1 << 20)]).unwrap_err();
    assert!(refused.contains("bytes reached its limit of 1048576; raise mox.limits.bytes"), "{refused}");
    // Who is there goes on, and what goes makes room.
    mox.publish(&id("Victim"), "r", 2, &["10.0.0.2:80"]);
    assert_eq!(served(&mox).await.len(), 2);
    let status = status(&mox);
    assert_eq!(status["dropped"]["endpoints"], json!({ "events": 1, "last": id("Two") }));
    assert_eq!(status["dropped"]["bytes"], json!({ "events": 1, "last": id("Three") }));
    assert_eq!(status["store"]["dropped"], 2);
    metric(&mox, "mox_events_dropped_total{limit=\"endpoints\"} 1");
    metric(&mox, "mox_events_dropped_total{limit=\"services\"} 0");
    mox.unpublish(&id("One"), "e", 9);
    assert!(try_publish("Two", addresses(2, 64, "")).is_ok());
    close(mox).await;
}

/// So many endpoints of the largest weight that their sum has more than 32 bits, which Envoy refuses, must not keep a service
/// from being served as it is.
#[tokio::test]
async fn no_weights_keep_a_dead_endpoint_alive() {
    for mode in ["inline", "workload-entry"] {
        let mox = Mox::open(json!({ "endpointMode": mode, "limits": { "endpointsPerPublisher": 65_535 } }));
        mox.publish(&id("Victim"), "r1", 1, &["10.0.0.1:80"]);
        mox.publish(&id("Victim"), "r2", 1, &["10.0.0.2:80?weight=10"]);
        mox.engine.loaded();
        mox.engine.flush().await;
        publish(&mox, "Victim", "evil", 1, &addresses(9, 43_000, "?weight=100000"));
        mox.unpublish(&id("Victim"), "r1", 2);
        mox.publish(&id("Victim"), "r3", 1, &["10.0.0.3:80"]);
        assert_eq!(mox.engine.flush().await.endpoints, 43_002, "{mode}");
        assert_eq!(status(&mox)["publisher"]["quarantinedBy"], json!({}));
        let (_, dump) =
            mox.page("/mox/dump", &format!("type={}", if mode == "inline" { "ServiceEntry" } else { "WorkloadEntry" }));
        assert!(!dump.contains("\"10.0.0.1\"") && dump.contains("\"10.0.0.3\""));
        let weights = dump.matches("\"weight\":50000").count();
        assert_eq!(
            (weights, dump.matches("\"weight\":5}").count() + dump.matches("\"weight\":5,").count()),
            (43_000, 1)
        );
        close(mox).await;
    }
}
