//! The breaker: how much a registry that lost much may take from the mesh, and what a restart finds again.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use harness::{
    Mox, SOON,
    client::{SERVICE_ENTRY, istiod_node},
    nth as id,
};
use registry_mox::testing::{
    host::status::Flushed,
    model::RegisterVersion,
    registry::frame::{self, Publisher},
};
use serde_json::{Value, json};

const SERVICES: usize = 20;

fn publish(mox: &Mox, services: impl IntoIterator<Item = usize>, version: i64) {
    for n in services {
        mox.publish(&id(n), "a", version, &[&format!("10.0.{n}.1:12200?weight=7"), &format!("10.0.{n}.2:12200")]);
    }
}

fn unpublish(mox: &Mox, services: impl IntoIterator<Item = usize>, version: i64) {
    services.into_iter().for_each(|n| mox.unpublish(&id(n), "a", version));
}

/// Services, endpoints and what is held.
async fn flush(mox: &Mox) -> (usize, u64, Value) {
    let Flushed { services, endpoints, held, .. } = mox.engine.flush().await;
    (services, endpoints, serde_json::to_value(held).unwrap())
}

async fn full(mut config: Value) -> Mox {
    // A round begins when all that is said in one go is there, however slowly that comes in.
    config["push"] = json!({ "quiet": "200ms" });
    let mox = Mox::closed(config);
    // In this order: the first state that is kept is to have everything, and nothing is to count as new in it.
    publish(&mox, 0..SERVICES, 1);
    flush(&mox).await;
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (20, 40, Value::Null));
    mox
}

#[tokio::test]
async fn a_mass_deletion_is_withheld_and_the_rest_goes_on() {
    for mode in ["inline", "workload-entry"] {
        let mox = full(json!({ "endpointMode": mode })).await;
        let before = mox.engine.flush().await;
        unpublish(&mox, 0..15, 2);
        let held = mox.engine.flush().await;
        assert_eq!((held.services, held.endpoints), (20, 40));
        assert_eq!((&held.version, &held.workload_version), (&before.version, &before.workload_version));
        let status = serde_json::to_value(mox.engine.status().rounds).unwrap();
        assert_eq!((&status["held"], &status["withheld"]["services"]), (&json!("mass-delete"), &json!(15)));
        // Additions and updates pass; what would go meanwhile stays, too.
        mox.publish(&id(99), "a", 1, &["10.9.0.1:1"]);
        mox.publish(&id(19), "a", 2, &["10.0.19.1:12200?weight=8", "10.0.19.3:12200"]);
        assert_eq!(flush(&mox).await, (21, 42, json!("mass-delete")));
        mox.engine.release().unwrap();
        assert_eq!(flush(&mox).await, (21, 11, Value::Null), "the empty services are in grace");
        assert!(mox.engine.release().unwrap_err().to_string().contains("no mass deletion or addition is held"));
    }
}

#[tokio::test]
async fn a_hold_ends_when_enough_is_back() {
    let mox = full(json!({})).await;
    let before = mox.engine.flush().await;
    unpublish(&mox, 0..20, 2);
    assert_eq!(flush(&mox).await, (20, 40, json!("mass-delete")));
    publish(&mox, 0..9, 3);
    assert_eq!(flush(&mox).await, (20, 40, json!("mass-delete")));
    publish(&mox, [9], 3);
    assert_eq!(flush(&mox).await, (20, 20, Value::Null), "ten that are missing are no mass");
    publish(&mox, 10..20, 3);
    let after = mox.engine.flush().await;
    assert_eq!(after, before, "nothing is left of it");
}

#[tokio::test]
async fn what_a_tenant_takes_back_holds_up_nobody_who_was_there() {
    let mox = full(json!({})).await;
    publish(&mox, 100..150, 1);
    assert_eq!(flush(&mox).await, (70, 140, Value::Null));
    unpublish(&mox, 100..150, 2);
    assert_eq!(flush(&mox).await, (70, 140, json!("mass-delete")));
    // Of another tenant, and of those that were there: each is a change as ever.
    unpublish(&mox, [7], 2);
    mox.publish(&id(8), "a", 2, &["10.0.8.1:12200"]);
    assert_eq!(flush(&mox).await, (70, 137, json!("mass-delete")));
    let status = serde_json::to_value(mox.engine.status().rounds).unwrap();
    let withheld: Vec<&str> = status["withheldServices"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
    assert!(withheld.len() == 50 && !withheld.contains(&&*id(7)), "{withheld:?}");
    // Services that come and go meanwhile are not added to those withheld.
    publish(&mox, 160..250, 1);
    assert_eq!(flush(&mox).await.0, 160);
    unpublish(&mox, 160..250, 2);
    let (_, endpoints, held) = flush(&mox).await;
    assert_eq!((endpoints, held), (137, json!("mass-delete")));
}

#[tokio::test]
async fn a_hold_ends_by_itself() {
    let mox = full(json!({ "protect": { "massDeleteHold": "300ms" } })).await;
    unpublish(&mox, 0..20, 2);
    assert_eq!(flush(&mox).await, (20, 40, json!("mass-delete")));
    let mut view = mox.engine.watch();
    let gone = view.wait_for(|view| view.service_entries.endpoints() == 0);
    tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
    assert_eq!(flush(&mox).await, (20, 0, Value::Null));
}

#[tokio::test]
async fn a_flood_of_new_services_waits_and_everybody_else_goes_on() {
    for mode in ["inline", "workload-entry"] {
        let protect = json!({ "massAddServices": 10, "massAddSettle": "0s" });
        let mox = full(json!({ "endpointMode": mode, "protect": protect })).await;
        let before = mox.engine.flush().await;
        let of = |tenant: &str, n: usize| id(n).replace("DEFAULT_INSTANCE_ID", tenant);
        let flood = |n: usize| mox.publish(&of("evil", n), "a", 1, &["10.66.6.6:1"]);
        (0..200).for_each(flood);
        let held = mox.engine.flush().await;
        assert_eq!((held.services, &held.version), (20, &before.version), "none of them is served");
        assert_eq!(serde_json::to_value(held.held).unwrap(), json!("mass-add"));
        let status = serde_json::to_value(mox.engine.status().rounds).unwrap();
        assert_eq!((&status["waiting"], status["waitingServices"].as_array().unwrap().len()), (&json!(200), 100));
        // Others' new services, changes and removals go on; the tenant's own services that are there would, too.
        publish(&mox, [100], 1);
        mox.publish(&id(19), "a", 2, &["10.0.19.1:12200?weight=8", "10.0.19.3:12200", "10.0.19.4:12200"]);
        unpublish(&mox, [3], 2);
        (200..210).for_each(flood);
        mox.unpublish(&of("evil", 7), "a", 2);
        assert_eq!(flush(&mox).await, (21, 41, json!("mass-add")));
        assert_eq!(mox.engine.status().rounds.waiting, Some(209));
        mox.engine.release().unwrap();
        assert_eq!(flush(&mox).await, (230, 250, Value::Null));
        assert!(mox.engine.release().unwrap_err().to_string().contains("no mass deletion or addition is held"));
    }
}

#[tokio::test]
async fn a_flood_that_leaves_again_was_never_there() {
    let mox = full(json!({ "protect": { "massAddServices": 10, "massAddSettle": "0s" } })).await;
    let before = mox.engine.flush().await;
    publish(&mox, 100..200, 1);
    assert_eq!(flush(&mox).await, (20, 40, json!("mass-add")));
    unpublish(&mox, 100..190, 2);
    assert_eq!(flush(&mox).await, (30, 60, Value::Null), "ten of them are none too many");
    assert_eq!(mox.engine.status().rounds.waiting, None);
    unpublish(&mox, 190..200, 2);
    flush(&mox).await;
    assert_eq!(mox.engine.status().rounds.in_grace, 10, "of those that never came none is remembered");
    assert_ne!(mox.engine.flush().await.version, before.version);
}

#[tokio::test]
async fn a_policy_that_takes_much_away_passes_the_breaker() {
    let mox = full(json!({})).await;
    mox.policy(json!({ "exclude": ["*"] }));
    assert_eq!(flush(&mox).await, (20, 40, json!("mass-delete")));
    mox.policy(json!({}));
    assert_eq!(flush(&mox).await, (20, 40, Value::Null));
    mox.policy(json!({ "exclude": ["*S1:*", "*S2:*"] }));
    assert_eq!(flush(&mox).await, (18, 36, Value::Null));
}

#[tokio::test]
async fn both_latches_have_to_be_open_and_a_thaw_passes_the_breaker() {
    let mox = full(json!({})).await;
    mox.engine.freeze();
    mox.engine.stopped(true);
    unpublish(&mox, 0..20, 2);
    assert_eq!(flush(&mox).await, (20, 40, json!("frozen")));
    mox.engine.thaw();
    assert_eq!(flush(&mox).await, (20, 40, json!("frozen")));
    mox.engine.stopped(false);
    assert_eq!(flush(&mox).await, (20, 40, json!("mass-delete")));
}

struct StateDir(PathBuf);

impl StateDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mox-breaker-{name}-{}", std::process::id()));
        assert!(!dir.exists());
        Self(dir)
    }

    fn config(&self) -> Value {
        json!({ "stateDir": self.0, "scope": "local", "protect": { "startupHold": "1h" } })
    }

    /// Closes an engine once its state is kept.
    async fn keep(&self, mox: Mox) {
        let deadline = Instant::now() + SOON;
        while !self.0.join("last-good").exists() {
            assert!(Instant::now() < deadline, "the state is kept");
            tokio::time::sleep(Duration::from_millis(5)).await; // the polling interval
        }
        close(mox).await;
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn close(mox: Mox) {
    tokio::task::spawn_blocking(move || mox.engine.close()).await.unwrap();
}

fn is_private(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).unwrap().permissions().mode() & 0o077 == 0
}

#[tokio::test]
async fn what_a_restart_does_not_find_again_stays_until_it_is_released() {
    let dir = StateDir::new("lost");
    let mox = full(dir.config()).await;
    let before = mox.engine.flush().await;
    dir.keep(mox).await;
    assert!(is_private(&dir.0.join("last-good")));

    let mox = Mox::closed(dir.config());
    publish(&mox, 0..5, 1);
    assert_eq!(flush(&mox).await.2, json!("not-loaded"));
    mox.engine.loaded();
    let held = mox.engine.flush().await;
    assert_eq!(serde_json::to_value(held.held).unwrap(), json!("mass-delete"));
    assert_eq!((held.services, held.endpoints), (20, 40));
    mox.engine.release().unwrap();
    assert_eq!(flush(&mox).await, (20, 10, Value::Null));
    publish(&mox, 0..20, 3);
    assert_eq!(mox.engine.flush().await, before, "the same as before the restart, to the last byte");
    close(mox).await;
}

#[tokio::test]
async fn a_restart_serves_as_soon_as_nearly_everything_is_back() {
    let dir = StateDir::new("regained");
    let mox = full(dir.config()).await;
    let before = mox.engine.flush().await;
    dir.keep(mox).await;

    let mox = Mox::closed(dir.config());
    publish(&mox, 0..18, 1);
    assert_eq!(flush(&mox).await.2, json!("not-loaded"));
    publish(&mox, [18], 1);
    let next = mox.engine.flush().await;
    assert_eq!(next.held, None, "19 of 20 publishers");
    assert_eq!((next.services, next.endpoints), (20, 38), "the one that is missing is in grace");
    publish(&mox, [19], 1);
    assert_eq!(mox.engine.flush().await, before);
    close(mox).await;
}

#[tokio::test]
async fn a_registry_that_has_grown_is_not_judged_by_what_it_was() {
    let dir = StateDir::new("grown");
    dir.keep(full(dir.config()).await).await;

    let mox = Mox::closed(json!({ "stateDir": dir.0, "scope": "cluster" }));
    publish(&mox, 0..20, 1);
    publish(&mox, 100..200, 1);
    assert_eq!(flush(&mox).await.2, json!("not-loaded"));
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (120, 240, Value::Null));
    unpublish(&mox, 100..120, 2);
    assert_eq!(flush(&mox).await, (120, 200, Value::Null), "20 of 120");
    close(mox).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_as_good_as_none() {
    let dir = StateDir::new("torn");
    std::fs::create_dir_all(&dir.0).unwrap();
    std::fs::write(dir.0.join("last-good"), "torn").unwrap();
    let mox = Mox::closed(dir.config());
    publish(&mox, 0..3, 1);
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (3, 6, Value::Null));
    close(mox).await;
}

#[tokio::test]
async fn with_cluster_scope_the_last_good_state_is_served_while_there_is_no_complete_view() {
    let dir = StateDir::new("shown");
    let mox = full(dir.config()).await;
    let before = mox.engine.flush().await;
    dir.keep(mox).await;

    let config = |hold: &str, age: &str| {
        json!({ "stateDir": dir.0, "listen": "127.0.0.1:0", "scope": "cluster",
                "protect": { "startupHold": hold, "lastGoodMaxAge": age } })
    };
    let mox = Mox::closed(config("1ms", "1h"));
    let mut view = mox.engine.watch();
    mox.engine.listen().unwrap();
    let shown = view.wait_for(|view| view.shown);
    tokio::time::timeout(SOON, shown).await.unwrap().unwrap();
    assert_eq!(flush(&mox).await, (20, 40, json!("last-good")));
    assert_eq!(mox.engine.flush().await.version, before.version, "to the last byte");
    // Until everything is in, publishers that come are added and nothing is taken away.
    mox.publish(&id(99), "a", 1, &["10.9.0.1:1"]);
    mox.publish(&id(0), "b", 1, &["10.0.0.3:12200"]);
    publish(&mox, 1..18, 1);
    assert_eq!(flush(&mox).await, (21, 42, json!("last-good")));
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (21, 36, Value::Null), "two are gone, which is no mass deletion");
    close(mox).await;

    let mox = Mox::closed(config("1ms", "0s"));
    mox.engine.listen().unwrap();
    // With the same hold, begun later, this one shows it: the hold of the other is over.
    let other = Mox::closed(config("1ms", "1h"));
    let mut view = other.engine.watch();
    other.engine.listen().unwrap();
    tokio::time::timeout(SOON, view.wait_for(|view| view.shown)).await.unwrap().unwrap();
    assert_eq!(flush(&mox).await.2, json!("not-loaded"), "it is too old");
    assert!(!mox.engine.watch().borrow().shown);
    close(mox).await;
    close(other).await;
}

fn baseline(mox: &Mox, services: usize, endpoints: usize) {
    mox.tell(json!({ "op": "baseline", "services": services, "endpoints": endpoints }));
}

fn no_baseline(mox: &Mox) -> Value {
    serde_json::to_value(mox.engine.status().rounds).unwrap()["noBaseline"].take()
}

#[tokio::test]
async fn a_first_view_waits_where_another_session_server_has_much_more() {
    let mox = Mox::open(json!({ "scope": "cluster" }));
    let mut client = mox.client(istiod_node()).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    publish(&mox, 0..5, 1);
    baseline(&mox, SERVICES, 40);
    mox.engine.loaded();
    // The round counts what is known, and no client is told of it.
    assert_eq!(flush(&mox).await, (5, 10, json!("mass-delete")));
    let status = serde_json::to_value(mox.engine.status().rounds).unwrap();
    assert_eq!(status["withheld"], json!({ "services": 15, "endpoints": 30 }));
    assert!(!mox.engine.watch().borrow().shown);
    publish(&mox, 5..9, 1);
    unpublish(&mox, [0], 2);
    mox.publish(&id(1), "a", 2, &["10.0.1.1:12200"]);
    assert_eq!(flush(&mox).await.2, json!("mass-delete"));
    publish(&mox, 9..16, 1);
    let (services, endpoints, held) = flush(&mox).await;
    assert_eq!((services, endpoints, held), (16, 29, Value::Null), "as everything is now");
    client.wait_until(SOON, |state| state.len() == 16).await.unwrap();
    assert_eq!(no_baseline(&mox), json!(false));
    close(mox).await;
}

#[tokio::test]
async fn a_liar_holds_a_first_view_back_until_it_is_released_or_for_a_while() {
    let mox = Mox::closed(json!({ "scope": "cluster" }));
    publish(&mox, 0..5, 1);
    baseline(&mox, 1_000_000_000, usize::MAX);
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (5, 10, json!("mass-delete")));
    mox.engine.release().unwrap();
    assert_eq!(flush(&mox).await, (5, 10, Value::Null));
    unpublish(&mox, 0..5, 2);
    assert_eq!(flush(&mox).await, (5, 10, json!("mass-delete")), "what comes then is judged as ever");
    close(mox).await;

    let mox = Mox::closed(json!({ "protect": { "massDeleteHold": "300ms" } }));
    publish(&mox, 0..5, 1);
    baseline(&mox, 1_000, 1_000);
    mox.engine.loaded();
    let mut view = mox.engine.watch();
    let complete = view.wait_for(|view| view.complete && view.service_entries.resources() == 5);
    tokio::time::timeout(SOON, complete).await.unwrap().unwrap();
    close(mox).await;
}

#[tokio::test]
async fn a_first_view_without_anything_to_judge_it_by_is_said_to_be_so() {
    let dir = StateDir::new("baseline");
    let mox = full(dir.config()).await;
    assert_eq!(no_baseline(&mox), json!(true));
    dir.keep(mox).await;
    // A last good state knows more than another's numbers.
    let mox = Mox::closed(dir.config());
    baseline(&mox, 1_000, 1_000);
    publish(&mox, 0..20, 1);
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (20, 40, Value::Null));
    assert_eq!(no_baseline(&mox), json!(false));
    close(mox).await;
    // Less than nothing is missing of nothing.
    let mox = Mox::closed(json!({}));
    baseline(&mox, 0, 0);
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (0, 0, Value::Null));
    assert_eq!(no_baseline(&mox), json!(false));
    close(mox).await;
}

/// A read of a service that found these data, each of a publisher of its own.
fn read(mox: &Mox, n: usize, version: i64, data: &[&str]) {
    let publisher = |data: &&str| Publisher {
        register_id: (*data).to_owned().into(),
        version: RegisterVersion { version, timestamp: 0 },
        payloads: vec![data.as_bytes().to_vec().into()],
        ..Publisher::default()
    };
    let bodies: Vec<_> = data.iter().map(publisher).collect();
    mox.engine.apply(&frame::encode_replace("registry", &id(n), version, i64::MIN, &bodies).unwrap()).unwrap();
}

fn unknown(mox: &Mox, services: impl IntoIterator<Item = usize>) {
    let ids: Vec<String> = services.into_iter().map(id).collect();
    mox.tell(json!({ "op": "unknown", "dataInfoIds": ids }));
}

fn reported(mox: &Mox) -> Value {
    let unknown = serde_json::to_value(mox.engine.status().rounds).unwrap()["unknown"].take();
    json!([unknown["lastGood"], unknown["missing"], unknown["sample"].as_array().map(Vec::len)])
}

#[tokio::test]
async fn what_could_not_be_read_keeps_its_last_good_form() {
    for mode in ["inline", "workload-entry"] {
        let dir = StateDir::new(&format!("unknown-{mode}"));
        let config = json!({ "stateDir": dir.0, "scope": "cluster", "endpointMode": mode });
        let mox = full(config.clone()).await;
        let before = mox.engine.flush().await;
        dir.keep(mox).await;

        // Three quarters of what was served: as many would not be let go.
        let mox = Mox::open(config);
        (15..SERVICES).for_each(|n| {
            mox.publish(&id(n), "a", 1, &[&format!("10.0.{n}.1:12200?weight=7"), &format!("10.0.{n}.2:12200")])
        });
        if mode == "inline" {
            mox.engine.flush().await; // or the first round of all has the complete view
        }
        unknown(&mox, 0..8);
        unknown(&mox, 8..15);
        mox.engine.loaded();
        assert_eq!(mox.engine.flush().await, before, "to the last byte");
        assert_eq!(reported(&mox), json!([15, 0, 15]));
        let mut client = mox.client(istiod_node()).await;
        client.subscribe(SERVICE_ENTRY).unwrap();
        client.wait_until(SOON, |state| state.len() == SERVICES).await.unwrap();

        // Events count, and take nothing away that no read has.
        mox.publish(&id(0), "b", 1, &["10.0.0.3:12200"]);
        unpublish(&mox, [0, 1], 2);
        assert_eq!(flush(&mox).await, (20, 41, Value::Null));
        // A read says everything; one that finds nothing says that there is nothing.
        read(&mox, 0, 5, &["10.0.0.1:12200", "10.0.0.3:12200"]);
        assert_eq!(flush(&mox).await, (20, 40, Value::Null));
        read(&mox, 1, 5, &[]);
        assert_eq!(flush(&mox).await, (20, 38, Value::Null), "in grace");
        assert_eq!(reported(&mox), json!([13, 0, 13]));
        // Services known to be gone are judged as ever; unknown ones stay out of the judgement.
        (2..13).for_each(|n| read(&mox, n, 5, &[]));
        assert_eq!(flush(&mox).await, (20, 38, json!("mass-delete")));
        assert_eq!(reported(&mox), json!([2, 0, 2]));
        mox.engine.release().unwrap();
        assert_eq!(flush(&mox).await, (20, 16, Value::Null));
        let policy = serde_json::from_value(json!({ "exclude": ["*S13:*"] })).unwrap();
        mox.engine.set_policy(policy).unwrap();
        assert_eq!(flush(&mox).await, (19, 14, Value::Null), "the operator may take it away");
        assert_eq!(reported(&mox), json!([1, 1, 2]));
        close(mox).await;
    }
}

#[tokio::test]
async fn what_is_unknown_and_was_never_good_is_named_until_it_is_read() {
    let mox = Mox::closed(json!({ "scope": "cluster" }));
    publish(&mox, 0..3, 1);
    read(&mox, 3, 1, &["10.0.3.1:12200"]);
    unknown(&mox, 3..60);
    mox.engine.loaded();
    assert_eq!(flush(&mox).await, (4, 7, Value::Null));
    assert_eq!(reported(&mox), json!([0, 56, 20]), "one of them was read meanwhile");
    read(&mox, 4, 1, &["10.0.4.1:12200"]);
    mox.publish(&id(5), "a", 1, &["10.0.5.1:12200"]);
    assert_eq!(flush(&mox).await, (6, 9, Value::Null));
    assert_eq!(reported(&mox), json!([1, 54, 20]));
    (5..60).for_each(|n| read(&mox, n, 1, &[]));
    assert_eq!(flush(&mox).await, (6, 8, Value::Null), "what the read does not name is gone");
    assert_eq!(reported(&mox), json!([0, 0, 0]));
    close(mox).await;
}
