use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::catalog::driver::Driver;

fn id(n: usize) -> String {
    format!("com.example.S{n}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA")
}

/// Services with so many endpoints each.
fn serving(config: Value, services: usize, endpoints: usize) -> Driver {
    let mut driver = Driver::new(config);
    for n in 0..services {
        for e in 0..endpoints {
            let url =
                format!("10.{}.{}.{e}:12200?app_name=app{n}&rpcVer=5&weight=100&zone=RZ{}", n >> 8, n & 255, n % 3);
            driver.publish(&id(n), &format!("r{e}"), 1, &[&url]);
        }
    }
    driver.orders.loaded = true;
    driver.round();
    driver
}

fn try_out(driver: &Driver, document: &Value) -> DryRun {
    let policy = Policy::new(serde_json::from_value(document.clone()).unwrap(), &driver.config.vip_cidr, "ns").unwrap();
    let outline = driver.round.outline().expect("a complete view");
    run(outline, &driver.view, &driver.store, policy, driver.now).unwrap().told().unwrap()
}

/// Services that the policy alone is asked about are read, and not made.
#[test]
fn a_copy_makes_nothing_anew_of_what_is_served_as_the_policy_in_force_has_it() {
    let mut driver = serving(json!({}), 20, 2);
    driver.publish(&id(20), "r", 1, &["10.9.9.9:80"]);
    driver.publish(&id(21), "r", 1, &["10.9.9.9:81?weight=7", "10.9.9.9:82?weight=3"]);
    driver.round();
    driver.unpublish(&id(20), "r", 2);
    driver.round();
    let made = |driver: &Driver| {
        let mut copy = Copy::of(driver.round.outline().unwrap(), &driver.view, driver.now).unwrap();
        let all = driver.store.ids().iter().filter_map(|id| driver.store.peek(id)).collect();
        let orders = Orders { loaded: true, ..Orders::default() };
        let (now, policy, pins) = (driver.now, Arc::clone(&driver.policy), Arc::default());
        copy.round.round(Input { now, dirty: all, policy, orders, publishers: 0, pins }).findings.translations
    };
    assert_eq!(made(&driver), 0);
    driver.publish(&id(3), "r0", 2, &["10.0.3.9:12200"]);
    driver.publish(&id(4), "r9", 1, &["10.0.4.9:12200"]);
    assert_eq!(made(&driver), 2);
}

#[test]
fn what_came_in_meanwhile_is_not_the_policys() {
    let driver = serving(json!({}), 20, 2);
    driver.publish(&id(50), "r", 1, &["10.9.9.9:80"]);
    driver.unpublish(&id(3), "r0", 2);
    let told = try_out(&driver, &json!({ "exclude": ["*.S1:*", "*.S50:*"] }));
    let going: Vec<String> = told.changes.services.go.first.iter().map(|it| it.data_info_id.to_string()).collect();
    assert_eq!(going, [id(1), id(50)], "S50 is not served yet, and would be");
    assert_eq!(
        (told.changes.endpoints, told.changes.services.change.count),
        (difference::Counts { come: 0, go: 3, change: 0 }, 0)
    );
    assert_eq!(told.findings.serving.map(|totals| (totals.services, totals.endpoints)), [(21, 40), (19, 37)]);
}

#[test]
fn a_service_that_is_being_read_stays_and_is_counted() {
    let driver = serving(json!({}), 20, 2);
    driver.store.begin_read(&id(1));
    let told = try_out(&driver, &json!({ "exclude": ["*.S1:*", "*.S2:*"] }));
    assert_eq!((told.findings.being_read, told.changes.services.go.count), (1, 1));
    assert_eq!(&*told.changes.services.go.first[0].data_info_id, id(2));
}

#[test]
fn under_a_freeze_it_tells_what_comes_of_the_thaw() {
    let mut driver = serving(json!({}), 20, 2);
    driver.orders.frozen = true;
    driver.publish(&id(2), "r9", 1, &["10.9.9.9:80"]);
    driver.round();
    let told = try_out(&driver, &json!({ "exclude": ["*.S2:*"] }));
    assert_eq!(told.changes.endpoints.go, 3);
}

#[test]
fn new_services_that_would_wait_are_named() {
    let config =
        json!({ "policy": { "include": ["*.S1:*"] }, "protect": { "massAddServices": 5, "massAddSettle": "0s" } });
    let driver = serving(config, 200, 1);
    let told = try_out(&driver, &json!({}));
    let breakers = &told.findings.breakers;
    assert_eq!((breakers.waiting.count, breakers.waiting.first.len()), (199, difference::LISTED));
    assert_eq!(breakers.waiting_tenant.as_deref(), Some("DEFAULT_INSTANCE_ID"));
    assert_eq!((told.changes.services.come.count, told.released.unwrap().services.come.count), (0, 199));
}

#[test]
fn who_has_the_pin_would_have_the_place() {
    let mut driver = Driver::new(json!({ "policy": { "exclude": ["com.a.S:*"] } }));
    let id = |name: &str| format!("com.a.{name}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA");
    ["S", "s"].iter().for_each(|name| driver.publish(&id(name), "r", 1, &["10.0.0.1:80"]));
    driver.orders.loaded = true;
    driver.pins = Arc::new(Pins::from([("com.a.s.sofa.mesh".into(), id("S").into())]));
    driver.round();
    let told = try_out(&driver, &json!({}));
    let renamed: Vec<(&str, &str)> =
        told.changes.services.renamed.first.iter().map(|it| (&*it.data_info_id, &*it.from)).collect();
    assert_eq!(renamed, [(&*id("s"), "com.a.s.sofa.mesh")]);
    assert_eq!(told.changes.services.come.first[0].host, "com.a.s.sofa.mesh");
}

#[test]
fn an_outline_costs_what_is_open_and_not_what_is_served() {
    let mut driver = serving(json!({}), 300, 2);
    driver.now += 120_000;
    driver.unpublish(&id(7), "r0", 2);
    driver.round();
    let outline = driver.round.outline().unwrap();
    assert!(format!("{outline:?}").len() < 20_000, "it has next to nothing of 300 services");
    assert!(!format!("{outline:?}").contains("com.example.S8:"));
}

/// Prints how long a dry run takes; `MOX_DRY_RUN=10000x10 cargo test --release -- --ignored --nocapture a_dry_run_of_many`.
#[test]
#[ignore = "a measurement"]
fn a_dry_run_of_many() {
    let size = std::env::var("MOX_DRY_RUN").unwrap_or_else(|_| "10000x10".to_owned());
    let (services, endpoints) = size.split_once('x').expect("as 10000x10");
    let driver = serving(json!({}), services.parse().unwrap(), endpoints.parse().unwrap());
    for (name, document) in [
        ("nothing", json!({})),
        ("the form of all", json!({ "ports": { "bolt": 81 } })),
        ("the endpoints of all", json!({ "labels": ["rpcVer"], "locality": { "RZ1": "cn/rz1" } })),
        ("no service stays", json!({ "exclude": ["*"] })),
        ("direct mode", json!({ "direct": { "applications": ["*"] } })),
    ] {
        let began = Instant::now();
        let outline = driver.round.outline().unwrap();
        let outlined = began.elapsed();
        drop(outline);
        let began = Instant::now();
        let told = try_out(&driver, &document);
        let changes = &told.changes.services;
        println!(
            "{size}, {name}: {} ms, of which the rounds' thread {} us; {} go, {} change",
            began.elapsed().as_millis(),
            outlined.as_micros(),
            changes.go.count.max(told.released.as_ref().map_or(0, |all| all.services.go.count)),
            changes.change.count
        );
    }
}
