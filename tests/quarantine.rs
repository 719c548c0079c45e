//! A service that Istio would refuse: what was served of it before is served on, under its old name and over a restart.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use harness::{
    Mox, SOON,
    client::{Resource, SERVICE_ENTRY, node},
    id,
};
use serde_json::{Value, json};

fn demo_id() -> String {
    id("DemoService")
}

fn other_id() -> String {
    id("Other")
}

/// So many endpoints of the largest weight that their sum has more than 32 bits, which Envoy refuses.
fn too_heavy(mox: &Mox, version: i64) {
    let data: Vec<String> = (0..43_000).map(|n| format!("10.1.{}.{}:80?weight=100000", n >> 8, n & 255)).collect();
    let data: Vec<&str> = data.iter().map(String::as_str).chain(["10.2.0.1:80"]).collect();
    mox.publish(&demo_id(), "a", version, &data);
}

async fn served(mox: &Mox) -> Vec<Resource> {
    mox.engine.flush().await;
    let mut client = mox.client(node("probe")).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    client.next().await.unwrap().resources
}

fn report(mox: &Mox) -> Value {
    serde_json::to_value(mox.engine.status()).unwrap()["publisher"].take()
}

fn quarantined() -> Value {
    json!({ "quarantinedBy": { "weight-sum": 1 } })["quarantinedBy"].take()
}

struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn close(mox: Mox) {
    tokio::task::spawn_blocking(move || mox.engine.close()).await.unwrap();
}

#[tokio::test]
async fn a_rename_of_a_service_that_istio_would_refuse_keeps_the_old_form() {
    let dir = Dir(std::env::temp_dir().join(format!("mox-quarantine-{}", std::process::id())));
    let config = || json!({ "stateDir": dir.0 });
    let mox = Mox::open(config());
    mox.publish(&demo_id(), "a", 1, &["10.0.0.1:12200"]);
    mox.publish(&other_id(), "a", 1, &["10.0.0.2:12200"]);
    mox.engine.loaded();
    let before = served(&mox).await;
    assert_eq!(before.len(), 2);

    // Both in one round.
    mox.engine.freeze();
    let policy = json!({ "overrides": { "*Demo*": { "host": "demo.example.com" } } });
    mox.policy(policy.clone());
    too_heavy(&mox, 2);
    mox.engine.thaw();
    assert_eq!(served(&mox).await, before, "name, host, address and endpoints");
    let found = report(&mox);
    assert_eq!((&found["quarantinedBy"], &found["held"]), (&quarantined(), &Value::Null));
    let why = &found["quarantined"][&demo_id()];
    assert!(why["detail"].as_str().unwrap().contains("breaks weight-sum"), "{why}");
    // The others go on.
    mox.publish(&other_id(), "b", 1, &["10.0.0.3:12200"]);
    let now = served(&mox).await;
    let [demo, other] = &now[..] else { panic!("two services, not {}", now.len()) };
    let [demo_before, other_before] = &before[..] else { panic!("two services") };
    let ((demo, demo_before), (other, other_before)) = match demo.name.contains("demo") {
        true => ((demo, demo_before), (other, other_before)),
        false => ((other, other_before), (demo, demo_before)),
    };
    assert!(demo == demo_before && other != other_before && other.endpoints().len() == 2);

    // A restart knows nothing of the service but its last good state.
    let deadline = Instant::now() + SOON;
    let kept =
        || std::fs::read(dir.0.join("last-good")).is_ok_and(|bytes| bytes.windows(8).any(|at| at == b"10.0.0.2"));
    while !kept() {
        assert!(Instant::now() < deadline, "the state is kept");
        tokio::time::sleep(Duration::from_millis(5)).await; // the polling interval
    }
    close(mox).await;
    let mox = Mox::open(config());
    mox.policy(policy);
    too_heavy(&mox, 2);
    mox.publish(&other_id(), "a", 1, &["10.0.0.2:12200"]);
    mox.engine.loaded();
    assert_eq!(served(&mox).await, before);
    assert_eq!(report(&mox)["quarantinedBy"], quarantined());

    // And what can be made is made, under the new name.
    mox.publish(&demo_id(), "a", 3, &["10.0.0.1:12200"]);
    let hosts: Vec<String> = served(&mox).await.iter().map(|resource| resource.entry.hosts[0].clone()).collect();
    assert!(hosts.len() == 2 && hosts.contains(&"demo.example.com".to_owned()), "{hosts:?}");
    assert_eq!(report(&mox)["quarantinedBy"], json!({}));
    close(mox).await;
}
