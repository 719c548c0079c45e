use std::{collections::BTreeSet, sync::Arc, time::Duration};

use prost::Message;
use serde_json::{Value, json};

use crate::{
    catalog::{
        breaker::Lost,
        driver::Driver,
        last_good::file::over_a_restart,
        orders::Orders,
        report::{Moves, Quarantine},
    },
    model::Millis,
    proto::istio::networking::v1alpha3::ServiceEntry,
    registry::frame,
    snapshot::view::Held,
    translate::payload::Reject,
    visibility::seen::Seen,
};

const GRACE: Millis = 600_000;

/// A policy that Istio's validation refuses, for every service: "." is the namespace that it names as well.
fn refused() -> Value {
    json!({ "exportTo": ["sofa-registry", "."] })
}

fn id(n: usize) -> String {
    format!("com.example.S{n}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA")
}

fn name(n: usize) -> String {
    format!("sofa-registry/com.example.s{n}")
}

/// A loaded registry of so many services with two endpoints each.
fn full(config: Value, services: usize) -> Driver {
    let mut driver = Driver::new(config);
    (0..services).for_each(|n| publish(&driver, n, 1));
    driver.orders.loaded = true;
    driver.round();
    assert_eq!(driver.served().len(), services);
    driver
}

fn publish(driver: &Driver, n: usize, version: i64) {
    driver.publish(&id(n), "a", version, &[&format!("10.0.{n}.1:80"), &format!("10.0.{n}.2:80")]);
}

/// Name, host, address and endpoints with which a service is served.
fn form(driver: &Driver, id: &str) -> Option<(String, String, String, Vec<String>)> {
    let (name, entry) = driver.served().remove(id)?;
    let endpoints = entry.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect();
    Some((name, entry.hosts[0].clone(), entry.addresses.join(","), endpoints))
}

fn reasons(driver: &Driver) -> Vec<(&str, &'static str)> {
    driver.report.quarantined.iter().map(|(id, Quarantine { reason, .. })| (&**id, *reason)).collect()
}

#[test]
fn a_service_that_is_being_read_keeps_what_it_has_whatever_the_policy() {
    let mut driver = full(json!({}), 2);
    let before = form(&driver, &id(0));
    driver.store.begin_read(&id(0));
    for policy in [json!({ "exportTo": ["~"] }), json!({ "exclude": ["nothing"] }), json!({ "labels": ["x"] })] {
        driver.policy(&policy);
        driver.round();
        assert_eq!(form(&driver, &id(0)), before, "{policy}");
        assert!(!driver.round.is_settled(), "it has yet to be looked at");
    }
}

#[test]
fn a_view_is_not_complete_while_a_service_is_being_read() {
    let mut driver = Driver::new(json!({}));
    (0..2).for_each(|n| publish(&driver, n, 1));
    driver.store.begin_read(&id(0));
    driver.orders.loaded = true;
    driver.round();
    assert!(!driver.view.complete && driver.report.held == Some(Held::NotLoaded));
}

#[test]
fn a_bug_over_one_service_holds_back_no_other() {
    for bug in ["panic://10.0.0.1:80", "10.0.0.1:80?app=panic-when-made"] {
        let mut driver = full(json!({}), 2);
        let before = form(&driver, &id(0));
        driver.publish(&id(0), "a", 2, &[bug]);
        driver.publish("a.New", "a", 1, &[bug]);
        publish(&driver, 7, 1);
        driver.round();
        assert_eq!(form(&driver, &id(0)), before, "{bug}");
        assert_eq!(driver.served().keys().collect::<Vec<_>>(), [&id(0), &id(1), &id(7)]);
        assert_eq!(reasons(&driver), [("a.New", "panic"), (&*id(0), "panic")]);
        assert_eq!(driver.report.quarantined_by["panic"], 2);
        driver.publish(&id(0), "a", 3, &["10.0.0.9:80"]);
        driver.unpublish("a.New", "a", 2);
        driver.round();
        assert_eq!(form(&driver, &id(0)).unwrap().3, ["10.0.0.9"]);
        assert!(driver.report.quarantined.is_empty() && driver.report.quarantined_by.is_empty());
    }
}

#[test]
fn a_service_that_is_called_as_an_entry_is_told_apart_from_it() {
    let direct = json!({ "direct": { "applications": ["*"] } });
    let mut driver = full(json!({ "policy": direct }), 2);
    let id = "p80.x.app.sofa.mesh";
    driver.publish(id, "a", 1, &["10.0.0.1:80?app=x"]);
    driver.publish(&format!("application://{id}"), "a", 1, &["10.0.0.2:81"]);
    driver.round();
    assert!(driver.report.quarantined.is_empty());
    let mut policy = refused();
    policy["direct"] = direct["direct"].clone();
    driver.policy(&policy);
    driver.round();
    let mut named: Vec<&str> = reasons(&driver).into_iter().map(|(name, _)| name).collect();
    named.retain(|name| name.contains(id));
    assert_eq!(named, ["application://p80.x.app.sofa.mesh", "dubbo://application://p80.x.app.sofa.mesh", id]);
    assert_eq!(driver.report.quarantined_by["export-to"], 2 + 3);
    driver.policy(&direct);
    driver.round();
    assert!(driver.report.quarantined.is_empty() && driver.report.quarantined_by.is_empty());
}

#[test]
fn a_rename_that_istio_would_refuse_leaves_the_old_form() {
    for mode in ["inline", "workload-entry"] {
        let mut driver = full(json!({ "endpointMode": mode }), 3);
        let before = driver.view.versions().map(str::to_owned);
        let mut policy = refused();
        policy["overrides"] = json!({ "*.S0:*": { "host": "s0.example.com" }, "*.S1:*": { "host": "s2.sofa.mesh" } });
        driver.policy(&policy);
        driver.round();
        assert_eq!(driver.view.versions(), before, "{mode}: name, host, address and all");
        assert_eq!(reasons(&driver), [0, 1, 2].map(id).each_ref().map(|id| (&**id, "export-to")));
        assert!(driver.events().iter().all(|event| *event == "service_quarantined"), "{:?}", driver.events());
        // A change of a quarantined service is served when its form can be made.
        driver.publish(&id(1), "a", 2, &["10.0.1.9:80"]);
        driver.round();
        assert_eq!(driver.view.versions(), before, "{mode}");
        policy["exportTo"] = json!(["."]);
        driver.policy(&policy);
        driver.round();
        let names: Vec<String> = driver.served().into_values().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["sofa-registry/s0-9514db9100466d19798b50ec8b55cffb.example.com", "sofa-registry/s2", &name(2)]
        );
        let endpoints = driver.view.service_entries.endpoints() + driver.view.workload_entries.endpoints();
        assert_eq!((endpoints, driver.report.quarantined.len()), (5, 0), "{mode}");
        driver.policy(&json!({}));
        publish(&driver, 1, 3);
        driver.round();
        assert_eq!(driver.view.versions(), before, "{mode}: no trace is left");
    }
}

#[test]
fn nobody_is_moved_for_a_service_that_cannot_be_made() {
    let mut driver = Driver::new(json!({}));
    driver.orders.loaded = true;
    let (upper, lower) = (id(0).replace("com", "COM"), id(0));
    driver.publish(&lower, "a", 1, &["10.0.0.1:80"]);
    driver.round();
    let before = form(&driver, &lower);
    // Another one wants the plain host.
    driver.policy(&json!({ "overrides": { "COM*": { "exportTo": ["~", "."] } } }));
    driver.publish(&upper, "a", 1, &["10.0.0.2:80"]);
    driver.round();
    assert_eq!((form(&driver, &lower), form(&driver, &upper)), (before.clone(), None));
    assert_eq!((reasons(&driver), driver.report.hosts_moved), (vec![(&*upper, "export-to")], 0));
    driver.policy(&json!({}));
    driver.round();
    let plain = before.unwrap().1;
    assert_ne!(form(&driver, &upper).unwrap().1, plain);
    // And the other way round: who cannot be made under another host keeps its own though it is empty, and the other has to wait.
    driver.policy(&json!({ "overrides": { "com*": { "exportTo": ["~", "."] } } }));
    driver.unpublish(&lower, "a", 2);
    driver.round();
    assert_eq!(form(&driver, &lower).unwrap().1, plain);
    assert_ne!(form(&driver, &upper).unwrap().1, plain);
    assert_eq!(reasons(&driver), [(&*lower, "export-to")]);
    driver.policy(&json!({}));
    driver.round();
    assert_eq!(form(&driver, &upper).unwrap().1, plain);
    assert!(driver.report.quarantined.is_empty());
}

#[test]
fn who_is_served_under_a_host_keeps_it_against_whoever_comes() {
    for order in [["com", "COM"], ["COM", "com"]] {
        let [served, newcomer] = order.map(|start| id(0).replace("com", start));
        let mut driver = Driver::new(json!({}));
        driver.publish(&served, "a", 1, &["10.0.0.1:80"]);
        driver.orders.loaded = true;
        driver.round();
        let before = form(&driver, &served).unwrap();
        // The newcomer comes, leaves at once and comes back, and there is a restart.
        driver.publish(&newcomer, "e", 1, &["10.66.6.6:80"]);
        driver.round();
        assert_eq!(driver.events(), ["place_contested"]);
        let contest = &driver.report.contested[&*before.1];
        assert_eq!((&*contest.holder, &*contest.waiting[0], contest.count), (&*served, &*newcomer, 1));
        driver.unpublish(&newcomer, "e", 2);
        driver.round();
        assert_eq!(form(&driver, &served).unwrap(), before);
        driver.publish(&newcomer, "e", 3, &["10.66.6.6:80"]);
        driver.round();
        let mut driver = driver.restarted(Duration::from_secs(1));
        driver.publish(&newcomer, "e", 3, &["10.66.6.6:80"]);
        driver.round();
        driver.publish(&served, "a", 1, &["10.0.0.1:80"]);
        driver.orders.loaded = true;
        driver.round();
        assert_eq!(form(&driver, &served).unwrap(), before);
        assert_eq!((driver.report.hosts_moved, driver.report.moves), (1, Moves::default()));
        // Who has lost its last publisher is in the way of nobody, and takes nothing back.
        driver.unpublish(&served, "a", 2);
        driver.round();
        assert_eq!(form(&driver, &newcomer).unwrap().1, before.1);
        assert_eq!(driver.report.moves.hosts, 2);
        driver.publish(&served, "a", 3, &["10.0.0.1:80"]);
        driver.round();
        assert_eq!(form(&driver, &newcomer).unwrap().1, before.1);
    }
}

#[test]
fn a_host_keeps_its_address_against_one_that_was_found_by_trial() {
    // Their first addresses are the same, and the second has the smaller hash: found in 10 s on a core.
    let ids = ["com.example.DemoService", "evil.x1ad1441"];
    let [served, newcomer] = ids.map(|name| format!("{name}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA"));
    let mut driver = Driver::new(json!({}));
    driver.publish(&served, "a", 1, &["10.0.0.1:80"]);
    driver.orders.loaded = true;
    driver.round();
    let before = form(&driver, &served).unwrap();
    assert_eq!(before.2, "250.175.34.62");
    driver.publish(&newcomer, "e", 1, &["10.66.6.6:80"]);
    driver.round();
    assert_eq!(driver.events(), ["place_contested"]);
    assert_eq!(form(&driver, &served).unwrap(), before);
    assert_ne!(form(&driver, &newcomer).unwrap().2, before.2);
    assert_eq!((driver.report.vips_moved, driver.report.moves), (1, Moves::default()));
    assert_eq!(*driver.report.contested["250.175.34.62"].holder, *served);
    // Who is gone is in nobody's way: the other has its first address then, and that is told.
    driver.unpublish(&served, "a", 2);
    driver.round();
    assert!(driver.events().contains(&"vip_changed"), "{:?}", driver.events());
    assert_eq!((form(&driver, &newcomer).unwrap().2, driver.report.moves.vips), (before.2, 2));
}

#[test]
fn who_comes_while_the_view_is_gathered_has_no_host_by_that() {
    let (first, smaller) = (id(0), id(0).replace("com", "COM"));
    let mut driver = Driver::new(json!({}));
    driver.publish(&first, "a", 1, &["10.0.0.1:80"]);
    driver.round();
    driver.publish(&smaller, "a", 1, &["10.0.0.2:80"]);
    driver.round();
    driver.orders.loaded = true;
    driver.round();
    assert_eq!(form(&driver, &smaller).unwrap().1, "com.example.s0.sofa.mesh");
    assert_eq!(driver.report.moves, Moves::default(), "nobody was told of another");
}

#[test]
fn a_restart_under_a_policy_that_istio_would_refuse_serves_what_was_served() {
    for mode in ["inline", "workload-entry"] {
        let config = json!({ "endpointMode": mode, "policy": { "direct": { "applications": ["*"] } } });
        let before = full(config.clone(), 100);
        let mut after = before.restarted(Duration::from_secs(1));
        after.policy(&json!({ "exportTo": ["sofa-registry", "."], "direct": { "applications": ["*"] } }));
        (0..100).for_each(|n| publish(&after, n, 1));
        publish(&after, 100, 1);
        after.round();
        after.orders.loaded = true;
        after.round();
        assert_eq!(after.view.versions(), before.view.versions(), "{mode}");
        assert_eq!((after.report.held, after.report.quarantined_by["export-to"]), (None, 101));
        // A hundred that lose everything meanwhile lose nothing that is served: nothing is to be judged yet.
        (0..100).for_each(|n| after.unpublish(&id(n), "a", 2));
        after.round();
        assert_eq!((after.view.versions(), after.report.held), (before.view.versions(), None));
        after.policy(&json!({}));
        after.round();
        assert_eq!((after.served().len(), after.report.held), (101, Some(Held::MassDelete)), "{mode}");
        assert_eq!(after.report.withheld_services.len(), 100);
    }
}

#[test]
fn what_is_judged_is_what_would_be_served() {
    let mut driver = full(json!({}), 100);
    let before = driver.view.service_entries.version().to_string();
    // All of the services are refused: none goes, so nothing is withheld.
    driver.policy(&refused());
    driver.round();
    assert_eq!((&*before, driver.report.held), (&**driver.view.service_entries.version(), None));
    // The same with fewer: what the policy takes away goes, what it would spoil stays.
    driver.policy(&json!({ "exportTo": ["sofa-registry", "."], "exclude": ["*.S1?:*"] }));
    driver.round();
    assert_eq!((driver.served().len(), driver.report.held), (90, None));
    driver.policy(&json!({ "exportTo": ["sofa-registry", "."], "exclude": ["*.S??:*"] }));
    driver.round();
    assert_eq!((driver.served().len(), driver.report.held), (90, Some(Held::MassDelete)));
    driver.policy(&json!({}));
    driver.round();
    assert_eq!((&**driver.view.service_entries.version(), driver.report.held), (&*before, None));
}

#[test]
fn another_policy_is_followed_in_parts_between_which_others_changes_go_out() {
    let mut driver = full(json!({}), 100);
    driver.round.take_in_parts_of(10);
    let before = driver.report.translations;
    let mut overrides: serde_json::Map<String, Value> =
        (0..90).map(|n| (format!("com.example.S{n}:*"), json!({ "port": 81 }))).collect();
    overrides.insert("com.example.S99:*".to_owned(), json!({ "host": "x.example.com" }));
    driver
        .policy(&json!({ "overrides": overrides.clone(), "exclude": ["com.example.S9[0-8]:*", "com.example.S90:*"] }));
    driver.round();
    // Services that go or get another host are not put off.
    assert!(!driver.served().contains_key(&id(90)) && form(&driver, &id(99)).unwrap().1 == "x.example.com");
    let with_port = |driver: &Driver| driver.served().values().filter(|(_, entry)| entry.ports[0].number == 81).count();
    assert!(!driver.round.is_settled() && with_port(&driver) == 8);
    assert_eq!(driver.round.deadline(&driver.orders), Some(0), "the next part follows at once");
    // A change is in the next round, and its service not made twice.
    driver.publish(&id(89), "a", 2, &["10.0.89.9:80"]);
    driver.publish(&id(200), "a", 1, &["10.0.200.1:80"]);
    driver.round();
    assert_eq!(form(&driver, &id(89)).unwrap().3, ["10.0.89.9"]);
    assert!(driver.served().contains_key(&id(200)) && !driver.round.is_settled());
    // Another policy meanwhile: what is left of the one before is not forgotten, and what changed back is made once more.
    overrides.remove("com.example.S0:*");
    driver.policy(&json!({ "overrides": overrides }));
    let mut rounds = 0;
    while !driver.round.is_settled() || rounds == 0 {
        driver.round();
        rounds += 1;
    }
    assert_eq!((with_port(&driver), rounds), (89, 8));
    assert_eq!(driver.report.translations - before, 94, "90 once, 0 once more, then 90, 99 and the new one");
    let mut fresh = full(json!({ "policy": { "overrides": overrides } }), 100);
    fresh.publish(&id(89), "a", 2, &["10.0.89.9:80"]);
    fresh.publish(&id(200), "a", 1, &["10.0.200.1:80"]);
    fresh.round();
    assert_eq!(driver.view.service_entries.version(), fresh.view.service_entries.version());
}

#[test]
fn a_quarantined_service_goes_when_its_grace_is_over() {
    let mut driver = full(json!({}), 2);
    driver.policy(&refused());
    driver.unpublish(&id(0), "a", 2);
    driver.round();
    assert_eq!(form(&driver, &id(0)).unwrap().3.len(), 2, "its empty form would be refused as well");
    assert_eq!((driver.report.graces.len(), driver.report.quarantined.len()), (1, 2));
    driver.now += GRACE - 1;
    driver.round();
    assert_eq!(driver.served().len(), 2);
    assert_eq!(driver.round.deadline(&driver.orders), Some(driver.now + 1));
    driver.now += 1;
    driver.round();
    assert_eq!(driver.served().len(), 1);
    assert_eq!((driver.report.graces.len(), driver.report.quarantined.len()), (0, 1));
    assert_eq!(driver.round.deadline(&driver.orders), None);
}

#[test]
fn nobody_moves_into_the_place_of_a_service_that_has_to_keep_it() {
    let host = "x.example.com";
    let mut driver = Driver::new(json!({ "policy": { "overrides": { "com.example.S*": { "host": host } } } }));
    publish(&driver, 1, 1);
    driver.orders.loaded = true;
    driver.round();
    publish(&driver, 0, 1);
    driver.round();
    let hosts = |driver: &Driver| [0, 1].map(|n| form(driver, &id(n)).unwrap().1);
    let before = hosts(&driver);
    assert_eq!(before[1], host, "who came first has it");
    let refused = json!({ "com.example.S0:*": { "host": host }, "com.example.S1:*": refused() });
    driver.policy(&json!({ "overrides": refused }));
    driver.round();
    assert_eq!((reasons(&driver), hosts(&driver)), (vec![(&*id(1), "export-to")], before.clone()));
    let translations = driver.report.translations;
    publish(&driver, 1, 2);
    driver.round();
    assert_eq!(
        (driver.report.translations - translations, hosts(&driver)),
        (1, before),
        "the other is not made for it"
    );
}

#[test]
fn a_grace_goes_on_while_publishers_cannot_be_read() {
    let mut driver = full(json!({}), 2);
    driver.unpublish(&id(0), "a", 2);
    driver.round();
    driver.now += GRACE - 1;
    driver.publish(&id(0), "a", 3, &["panic://10.0.0.1:80"]);
    driver.round();
    assert_eq!(reasons(&driver), [(&*id(0), "panic")]);
    driver.now += 1;
    driver.round();
    assert!(form(&driver, &id(0)).is_some(), "nobody knows what it has");
    driver.unpublish(&id(0), "a", 4);
    driver.round();
    assert!(form(&driver, &id(0)).is_none(), "its grace is over");

    // A service that still has endpoints in the form that is served may have had them while it could not be read.
    let mut driver = full(json!({}), 2);
    driver.policy(&refused());
    driver.unpublish(&id(0), "a", 2);
    driver.round();
    driver.now += GRACE;
    driver.publish(&id(0), "a", 3, &["panic://10.0.0.1:80"]);
    driver.round();
    assert!(driver.report.graces.is_empty());
    driver.unpublish(&id(0), "a", 4);
    driver.round();
    assert_eq!(form(&driver, &id(0)).unwrap().3.len(), 2, "its grace begins anew");
    assert_eq!(driver.report.graces[&*id(0)], driver.now);
    driver.now += GRACE;
    driver.round();
    assert!(form(&driver, &id(0)).is_none());
}

#[test]
fn the_last_good_state_stays_as_it_was_until_the_view_is_complete() {
    for mode in ["inline", "workload-entry"] {
        let mut before =
            full(json!({ "endpointMode": mode, "protect": { "startupHold": "1m", "lastGoodMaxAge": "1h" } }), 10);
        before.unpublish(&id(9), "a", 2);
        before.round();
        let mut after = before.restarted(Duration::from_millis(GRACE as u64));
        after.orders.listening_since = Some(after.now);
        // Another policy, an empty service whose grace is over, a bug, one that has lost an endpoint and a new one.
        after.policy(&json!({ "exclude": ["*.S3:*"], "exportTo": ["~"] }));
        after.publish(&id(4), "a", 1, &["panic://10.0.0.1:80"]);
        after.publish(&id(5), "a", 1, &["10.0.5.1:80"]);
        publish(&after, 77, 1);
        after.round();
        assert!(!after.view.shown && !after.view.complete, "not yet");
        after.now += 60_000;
        assert_eq!(after.round.deadline(&after.orders), Some(after.now));
        after.round();
        assert_eq!(
            (after.view.shown, after.report.held, after.events()),
            (true, Some(Held::LastGood), vec!["last_good_served"])
        );
        let (was, is) = (before.served(), after.served());
        assert_eq!(is.len(), 11);
        for (id, (name, entry)) in &was {
            if *id == self::id(5) {
                assert_eq!((&is[id].0, is[id].1.export_to.len()), (name, 1), "looked at, and nothing is missing");
                assert_eq!(is[id].1.endpoints, entry.endpoints);
            } else {
                assert_eq!(&is[id], &(name.clone(), entry.clone()), "{mode}");
            }
        }
        let served =
            |driver: &Driver| driver.view.service_entries.endpoints() + driver.view.workload_entries.endpoints();
        assert_eq!(served(&after), served(&before) + 2);
        // Three is excluded, the grace of nine is over, and the others have theirs, but for those that were heard of.
        after.orders.loaded = true;
        after.round();
        let ids = [0, 1, 2, 4, 5, 6, 77, 7, 8].map(id);
        assert_eq!(after.served().into_keys().collect::<Vec<_>>(), ids, "{mode}");
        assert_eq!((after.report.held, served(&after), after.report.graces.len()), (None, 2 + 1 + 2, 6), "{mode}");
        assert_eq!((reasons(&after), after.report.withheld_services.len()), (vec![(&*id(4), "panic")], 0));
    }
}

/// Dates are compared where they are read from disk alone; the machine's clock may have been set back since.
#[test]
fn a_grace_that_is_said_to_begin_later_begins_with_the_start() {
    let mut before = full(json!({}), 3);
    before.unpublish(&id(0), "a", 2);
    before.round();
    let last_good = over_a_restart(before.view.clone(), 2, before.round.empty(), Duration::ZERO);
    let mut after = Driver::started(Arc::clone(&before.config), before.now - 3_600_000, Some(last_good));
    [1, 2].into_iter().for_each(|n| publish(&after, n, 1));
    after.orders.loaded = true;
    after.round();
    assert_eq!(after.served().len(), 3);
    after.now += GRACE;
    after.round();
    assert_eq!(after.served().len(), 2);
}

#[test]
fn the_grace_of_a_service_that_could_not_be_read_goes_on() {
    for (waits, goes) in [(GRACE / 2 - 1_000, GRACE / 2), (GRACE, 0)] {
        let mut before = full(json!({}), 3);
        before.unpublish(&id(0), "a", 2);
        before.round();
        let began = before.now;
        before.now += GRACE / 2 - 1_000;
        let mut after = before.restarted(Duration::from_secs(1));
        [1, 2].into_iter().for_each(|n| publish(&after, n, 1));
        after.store.set_unknown(&[id(0)]);
        after.orders.loaded = true;
        after.round();
        after.now += waits;
        after.round();
        assert_eq!((after.served().len(), after.report.graces.len()), (3, 0), "nothing is known to be gone");
        let deadline = after.round.deadline(&after.orders);
        assert!(deadline.is_none_or(|at| at > after.now), "{deadline:?}, it is {}", after.now);
        after.apply(frame::encode_replace("registry", &id(0), 1, 0, &[]).unwrap());
        after.round();
        if goes > 0 {
            assert_eq!((after.served().len(), after.report.graces.get(&*id(0))), (3, Some(&began)));
            after.now = began + GRACE;
            after.round();
        }
        assert_eq!(after.served().len(), 2);
    }
}

#[test]
fn an_entry_of_the_last_good_state_keeps_the_addresses_of_which_nothing_is_heard() {
    for (mode, balance) in [("inline", "client"), ("inline", "mesh"), ("workload-entry", "mesh")] {
        let direct = json!({ "direct": { "applications": ["Shop *"], "balance": balance } });
        let mut before = Driver::new(json!({ "endpointMode": mode, "policy": direct }));
        let own = |driver: &Driver, n: usize, version: i64| {
            let address = format!("10.0.{n}.1");
            driver.publish_from(&address, &id(n), "a", version, &[&format!("{address}:80?app_name=Shop 1")]);
        };
        (0..3).for_each(|n| own(&before, n, 1));
        before.publish_from("10.66.6.6", &id(3), "e", 1, &["10.0.9.9:80?app_name=Shop 1"]);
        before.orders.loaded = true;
        before.round();
        let entries = |driver: &Driver| {
            let all = driver.view.service_entries.decode().into_iter();
            let own =
                all.filter(|it| it.metadata.as_ref().unwrap().annotations.contains_key("sofa.registry/application"));
            own.map(|it| it.body.unwrap().value).collect::<Vec<_>>()
        };
        let served = entries(&before);
        assert_eq!(served.len(), 1);
        let mut after = before.restarted(Duration::from_secs(1));
        own(&after, 0, 2);
        after.round();
        assert_eq!(entries(&after), served, "{mode}, {balance}: the others are not heard of");
        (1..3).for_each(|n| own(&after, n, 2));
        after.publish_from("10.66.6.6", &id(3), "e", 2, &["10.0.9.9:80?app_name=Shop 1"]);
        after.orders.loaded = true;
        after.round();
        assert_eq!(entries(&after), served, "{mode}, {balance}");
    }
}

#[test]
fn a_last_good_state_that_is_too_old_is_not_shown() {
    let before = full(json!({ "protect": { "startupHold": "1m", "lastGoodMaxAge": "10m" } }), 1);
    let mut after = before.restarted(Duration::from_secs(570));
    after.orders.listening_since = Some(after.now);
    after.now += 60_000;
    after.round();
    assert!(!after.view.shown);
    let told: Vec<_> = after.notices.iter().map(|notice| format!("{notice:?}")).collect();
    assert_eq!(told, ["LastGoodTooOld { age: 630000, most: 600000 }"]);
    after.round();
    assert!(after.notices.is_empty(), "it has one turn");
}

#[test]
fn a_round_of_one_change_makes_one_service_whatever_there_is() {
    let mut driver = full(json!({ "policy": { "direct": { "applications": ["*"] } } }), 100);
    let before = (driver.report.translations, driver.report.encodes);
    assert_eq!(before, (100, 100));
    driver.publish(&id(7), "a", 2, &["10.0.7.1:80"]);
    driver.round();
    assert_eq!((driver.report.translations, driver.report.encodes), (101, 101));
    // The same again, a publisher of nothing, and a round of nothing.
    driver.publish(&id(7), "a", 3, &["10.0.7.1:80"]);
    driver.publish(&id(8), "b", 1, &["nonsense"]);
    driver.round();
    driver.round();
    assert_eq!((driver.report.translations, driver.report.encodes), (101, 101));
    // While removals are withheld a service that loses some is made twice: as it would be, and with what is kept.
    (0..90).for_each(|n| driver.unpublish(&id(n), "a", 9));
    driver.round();
    assert_eq!((driver.report.held, driver.report.encodes), (Some(Held::MassDelete), 101));
    driver.publish(&id(95), "a", 2, &["10.0.95.1:80", "10.0.95.3:80"]);
    driver.round();
    assert_eq!(form(&driver, &id(95)).unwrap().3.len(), 3);
    assert_eq!(driver.report.encodes, 102);
}

/// An instance of an application that publishes many interfaces, among others of it and of another one.
#[test]
fn an_instance_costs_the_services_that_it_is_of_and_one_entry_of_its_application() {
    let mut driver = Driver::new(json!({ "policy": { "direct": { "applications": ["*"] } } }));
    let say = |driver: &Driver, application: usize, interfaces: std::ops::Range<usize>, instance: usize| {
        for n in interfaces {
            let text = format!("10.{application}.0.{instance}:12200?app_name=a{application}");
            driver.publish(&id(100 * application + n), &format!("r{instance}"), 1, &[&text]);
        }
    };
    for application in 0..2 {
        (0..10).for_each(|instance| say(&driver, application, 0..20, instance));
    }
    driver.orders.loaded = true;
    driver.round();
    let costs = |driver: &mut Driver| {
        let before = (driver.report.translations, driver.report.encodes);
        driver.round();
        (driver.report.translations - before.0, driver.report.encodes - before.1)
    };
    say(&driver, 0, 0..20, 10);
    assert_eq!(costs(&mut driver), (20, 20 + 1), "it is of twenty services");
    say(&driver, 1, 0..3, 10);
    assert_eq!(costs(&mut driver), (3, 3 + 1));
    say(&driver, 1, 3..20, 10);
    assert_eq!(costs(&mut driver), (17, 17), "its address is in the entry");
    (0..20).for_each(|n| driver.unpublish(&id(n), "r10", 2));
    assert_eq!(costs(&mut driver), (20, 20 + 1), "in which it lingers");
    (0..20).for_each(|n| driver.unpublish(&id(100 + n), "r10", 1));
    assert_eq!(costs(&mut driver), (20, 20 + 1));
}

#[test]
fn what_was_withheld_lingers_with_what_the_policy_in_force_says_of_mtls() {
    let identity = "spiffe://mesh/ns/shop/sa/shop";
    let policy = |identities: &[&str]| json!({ "direct": { "applications": ["shop"] }, "mtls": [{ "applications": ["shop"], "identities": identities }] });
    let mut driver = Driver::new(json!({ "policy": policy(&["spiffe://mesh/ns/shop/sa/before"]) }));
    for n in 0..30 {
        let address = format!("10.0.{n}.1");
        driver.publish_from(&format!("{address}:50000"), &id(n), "a", 1, &[&format!("{address}:80?app=shop")]);
    }
    driver.orders.loaded = true;
    driver.round();
    (0..20).for_each(|n| driver.unpublish(&id(n), "a", 2));
    driver.round();
    driver.policy(&policy(&[identity]));
    driver.round();
    assert_eq!((driver.report.withheld_services.len(), driver.report.lingering.len()), (20, 0));
    driver.orders.release = true;
    driver.round();
    assert_eq!((driver.report.withheld_services.len(), driver.report.lingering.len()), (0, 20));
    let entries = driver.view.service_entries.decode();
    let entry = entries.into_iter().find(|entry| entry.metadata.as_ref().unwrap().name.ends_with("/p80.shop.app"));
    let entry = ServiceEntry::decode(entry.unwrap().body.unwrap().value).unwrap();
    assert_eq!((entry.addresses.len(), entry.subject_alt_names), (30, vec![identity.to_owned()]));
}

#[test]
fn a_service_that_is_moved_while_it_is_being_read_has_the_endpoints_of_the_policy_before() {
    let host = "x.example.com";
    let shared = json!({ "com.example.S*": { "host": host } });
    let mut driver = Driver::new(json!({ "policy": { "overrides": shared } }));
    (0..2).for_each(|n| publish(&driver, n, 1));
    driver.orders.loaded = true;
    driver.round();
    driver.store.begin_read(&id(1));
    driver.policy(&json!({ "overrides": shared, "exclude": [id(0)], "mtls": [{ "applications": ["shop"] }] }));
    driver.round();
    driver.now += GRACE;
    driver.round();
    assert_eq!(form(&driver, &id(1)).unwrap().1, host);
    assert_eq!(driver.round.outdated.iter().map(|key| &**key.text()).collect::<Vec<_>>(), [id(1)]);
}

#[test]
fn what_was_withheld_goes_when_the_hold_is_over_and_is_named_until_then() {
    let mut driver = full(json!({}), 30);
    (0..20).for_each(|n| driver.unpublish(&id(n), "a", 2));
    driver.round();
    assert_eq!(driver.events(), ["mass_delete_held"]);
    assert_eq!((driver.report.withheld_services.len(), driver.report.graces.len()), (20, 0));
    driver.orders.frozen = true;
    driver.round();
    assert_eq!((driver.report.held, driver.round.deadline(&driver.orders)), (Some(Held::Frozen), None));
    driver.orders.frozen = false;
    driver.now = driver.round.deadline(&driver.orders).unwrap();
    driver.round();
    assert_eq!(driver.events(), ["mass_delete_over"]);
    assert_eq!((driver.report.withheld_services.len(), driver.report.graces.len(), driver.served().len()), (0, 20, 30));
    driver.now += GRACE;
    driver.round();
    assert_eq!((driver.report.graces.len(), driver.served().len()), (0, 10));
}

/// Ten services are served, and kept for another start.
fn kept() -> Driver {
    let driver = full(json!({ "scope": "cluster" }), 10);
    assert!(driver.view.complete);
    driver
}

#[test]
fn a_start_under_a_freeze_shows_the_last_good_state_however_old_it_is() {
    let day = Duration::from_secs(86_400);
    for freeze in [|orders: &mut Orders| orders.ordered = true, |orders: &mut Orders| orders.stopped = true] {
        let mut driver = kept().restarted(10 * day);
        freeze(&mut driver.orders);
        driver.orders.listening_since = Some(driver.now);
        driver.publish("new.Service", "a", 1, &["10.0.0.1:80"]);
        driver.round();
        assert!(!driver.view.shown, "what the documents say was not read yet");
        let ends = driver.round.deadline(&driver.orders);
        assert_eq!(ends, Some(driver.now + 60_000), "it is not waited for longer than for a complete view");
        driver.orders.loaded = true;
        driver.round();
        assert_eq!((driver.view.shown, driver.view.complete, driver.report.held), (true, false, Some(Held::Frozen)));
        assert_eq!((driver.served().len(), driver.round.deadline(&driver.orders)), (10, None));
        (driver.orders.ordered, driver.orders.stopped) = (false, false);
        driver.round();
        assert!(driver.view.complete && driver.served().contains_key("new.Service"));
    }
}

#[test]
fn a_start_under_a_freeze_without_a_last_good_state_serves_and_then_freezes() {
    let mut driver = Driver::new(json!({ "scope": "cluster" }));
    driver.orders.ordered = true;
    driver.publish("a.Service", "a", 1, &["10.0.0.1:80"]);
    driver.orders.loaded = true;
    driver.round();
    assert!(driver.view.complete && driver.events().contains(&"nothing_to_freeze"), "{:?}", driver.events());
    assert_eq!((driver.served().len(), driver.report.held), (1, Some(Held::Frozen)));
    driver.publish("b.Service", "a", 1, &["10.0.0.1:80"]);
    driver.round();
    assert_eq!(driver.served().len(), 1);
    driver.orders.ordered = false;
    driver.round();
    assert_eq!(driver.served().len(), 2);
}
const DUBBO: &str = "com.example.Demo@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";

/// Name, port and endpoints of every service that is served.
fn ports(driver: &Driver) -> Vec<(String, String, usize)> {
    let served = driver.served().into_values();
    let port =
        |entry: &ServiceEntry| format!("{} {} {}", entry.ports[0].number, entry.ports[0].protocol, entry.ports[0].name);
    served.map(|(name, entry)| (name, port(&entry), entry.endpoints.len())).collect()
}

fn is(name: &str, port: &str, endpoints: usize) -> (String, String, usize) {
    (format!("sofa-registry/{name}"), port.to_owned(), endpoints)
}

#[test]
fn each_protocol_of_a_dubbo_id_comes_and_goes_as_a_service_of_its_own() {
    let mut driver = full(json!({}), 0);
    driver.publish(DUBBO, "a", 1, &["tri://10.0.0.2:50051/com.example.Demo?application=shop"]);
    driver.publish(DUBBO, "b", 1, &["tri://10.0.0.3:50051/com.example.Demo?application=shop", "redis://10.0.0.3:1"]);
    driver.round();
    let tri = |endpoints| is("tri.dubbo.com.example.demo", "50051 GRPC grpc-tri", endpoints);
    assert_eq!(ports(&driver), [tri(2)], "an id without endpoints of its own has no main service");
    assert_eq!(driver.report.rejects, [(Reject::UnknownProtocol, 1)].into());
    let resource = driver.view.service_entries.decode().remove(0).metadata.unwrap();
    assert_eq!(resource.annotations["sofa.registry/data-info-id"], DUBBO);
    assert_eq!(resource.annotations["sofa.registry/protocol"], "tri");
    // What comes by another protocol changes nothing of it, and has a translation to itself.
    let (before, encodes) = (form(&driver, &format!("tri://{DUBBO}")), driver.report.encodes);
    driver.publish(DUBBO, "c", 1, &["10.0.0.2:50051", "dubbo://10.0.0.4:20880/com.example.Demo", "rest://10.0.0.4:80"]);
    driver.round();
    let main = |endpoints| is("dubbo.com.example.demo", "20880 TCP tcp-dubbo", endpoints);
    let rest = |endpoints| is("rest.dubbo.com.example.demo", "8341 HTTP http-rest", endpoints);
    assert_eq!(ports(&driver), [main(2), rest(1), tri(2)]);
    assert_eq!((form(&driver, &format!("tri://{DUBBO}")), driver.report.encodes), (before, encodes + 2));
    // Each has a grace of its own, and none takes another with it.
    driver.unpublish(DUBBO, "c", 2);
    driver.publish(DUBBO, "a", 2, &["rest://10.0.0.2:80"]);
    driver.round();
    assert_eq!(ports(&driver), [main(0), rest(1), tri(1)]);
    assert_eq!(driver.report.graces.keys().map(|id| &**id).collect::<Vec<_>>(), [DUBBO]);
    driver.now += GRACE;
    driver.round();
    assert_eq!(ports(&driver), [rest(1), tri(1)]);
    // After a restart they are what they were, and what the registry no longer has goes in its time.
    let mut driver = {
        let mut restarted = driver.restarted(Duration::from_secs(1));
        restarted.publish(DUBBO, "b", 1, &["tri://10.0.0.3:50051/com.example.Demo?application=shop"]);
        restarted.orders.loaded = true;
        restarted.round();
        restarted
    };
    assert_eq!(ports(&driver), [rest(0), tri(1)]);
    driver.now += GRACE;
    driver.round();
    assert_eq!(ports(&driver), [tri(1)]);
    driver.unpublish(DUBBO, "b", 2);
    driver.policy(&json!({ "exclude": ["com.example.Demo*"] }));
    driver.round();
    assert_eq!(ports(&driver), [], "a policy goes by the dataInfoId");
}

/// An instance of an application, with these ports.
fn instance(host: &str, ports: &[(u16, &str)]) -> String {
    let ports: Vec<Value> =
        ports.iter().map(|(port, protocol)| json!({ "port": port, "protocol": protocol })).collect();
    let metadata = json!({ "dubbo.endpoints": Value::from(ports).to_string() });
    json!({ "host": host, "port": 20880, "name": "shop", "metadata": metadata }).to_string()
}

#[test]
fn each_protocol_of_an_application_comes_and_goes_as_a_service_of_its_own() {
    const APPLICATION: &str = "shop#@#DEFAULT_INSTANCE_ID#@#dubbo";
    let mut driver = full(json!({}), 0);
    let publish = |driver: &Driver, id: &str, version, ports: &[(u16, &str)]| {
        driver.publish(APPLICATION, id, version, &[&instance(&format!("10.0.0.{}", id.len()), ports)]);
    };
    publish(&driver, "a", 1, &[(1, "tri")]);
    driver.round();
    let of = |driver: &Driver| {
        let served = driver.served();
        let shown = |(key, (_, entry)): (&String, &(String, ServiceEntry))| {
            let port = &entry.ports[0];
            let endpoints: Vec<u32> = entry.endpoints.iter().flat_map(|it| it.ports.values().copied()).collect();
            (key.replace(APPLICATION, "-"), format!("{} {}", port.number, port.name), endpoints)
        };
        served.iter().map(shown).collect::<Vec<_>>()
    };
    let dubbo = |endpoints: &[u32]| ("-".to_owned(), "20880 tcp-dubbo".to_owned(), endpoints.to_vec());
    let tri = |endpoints: &[u32]| ("tri://-".to_owned(), "50051 grpc-tri".to_owned(), endpoints.to_vec());
    let rest = |endpoints: &[u32]| ("rest://-".to_owned(), "8341 http-rest".to_owned(), endpoints.to_vec());
    assert_eq!(of(&driver), [tri(&[1])], "what speaks Triple only is no provider of protocol dubbo");
    let resource = driver.view.service_entries.decode().remove(0).metadata.unwrap();
    assert_eq!(resource.annotations["sofa.registry/data-info-id"], APPLICATION);
    assert_eq!(resource.annotations["sofa.registry/protocol"], "tri");
    assert!(resource.name.starts_with("sofa-registry/tri-") && resource.name.ends_with(".shop.dubbo"));
    // Others of the application change nothing of it, whatever they speak.
    let (before, encodes) = (form(&driver, &format!("tri://{APPLICATION}")), driver.report.encodes);
    publish(&driver, "bb", 1, &[(2, "dubbo"), (3, "rest")]);
    driver.publish(APPLICATION, "old", 1, &[r#"{"host":"10.0.0.3","port":20880}"#]);
    publish(&driver, "none", 1, &[(4, "redis")]);
    driver.round();
    assert_eq!(of(&driver), [rest(&[3]), dubbo(&[2, 20880]), tri(&[1])]);
    assert_eq!((form(&driver, &format!("tri://{APPLICATION}")), driver.report.encodes), (before, encodes + 2));
    assert_eq!(driver.report.rejects, [(Reject::UnknownProtocol, 1)].into());
    // From the one protocol to the other, as such applications go: first both, then the new one alone.
    publish(&driver, "bb", 2, &[(2, "dubbo"), (5, "tri")]);
    driver.unpublish(APPLICATION, "old", 2);
    driver.round();
    assert_eq!(of(&driver), [rest(&[]), dubbo(&[2]), tri(&[1, 5])]);
    publish(&driver, "bb", 3, &[(5, "tri")]);
    driver.round();
    assert_eq!(of(&driver), [rest(&[]), dubbo(&[]), tri(&[1, 5])]);
    driver.now += GRACE;
    driver.round();
    assert_eq!(of(&driver), [tri(&[1, 5])]);
    // After a restart it is what it was.
    let mut driver = driver.restarted(Duration::from_secs(1));
    publish(&driver, "a", 1, &[(1, "tri")]);
    driver.orders.loaded = true;
    driver.round();
    assert_eq!(of(&driver), [tri(&[1])]);
    driver.policy(&json!({ "exclude": ["shop#*"] }));
    driver.round();
    assert_eq!(of(&driver), [], "a policy goes by the dataInfoId");
}

#[test]
fn a_policy_treats_the_services_of_an_id_alike_but_for_what_is_about_the_main_one() {
    let mut driver = full(json!({}), 0);
    driver.publish(DUBBO, "a", 1, &["dubbo://10.0.0.1:1", "tri://10.0.0.1:2", "Hessian://10.0.0.1:3"]);
    driver.round();
    let tri = |port: &str| is("tri.dubbo.com.example.demo", port, 1);
    assert_eq!(ports(&driver), [is("dubbo.com.example.demo", "20880 TCP tcp-dubbo", 1), tri("50051 GRPC grpc-tri")]);
    let exception = json!({ "host": "demo.example.com", "port": 99, "protocol": "HTTP", "exportTo": ["~"] });
    driver.policy(&json!({ "ports": { "hessian": 8081, "tri": 82 }, "overrides": { "com.example.Demo*": exception } }));
    driver.round();
    let all = ports(&driver);
    assert_eq!(all.len(), 3);
    assert_eq!((&*all[0].1, &all[2]), ("99 HTTP http-dubbo", &tri("82 GRPC grpc-tri")));
    assert!(all[1].0.starts_with("sofa-registry/hessian-") && all[1].1 == "8081 TCP tcp", "{:?}", all[1]);
    assert!(driver.served().values().all(|(_, entry)| entry.export_to == ["~"]));
    assert_eq!(driver.served()[DUBBO].1.hosts, ["demo.example.com"]);
    // What the policy no longer knows is no provider any more.
    driver.policy(&json!({}));
    driver.round();
    assert_eq!(ports(&driver).iter().map(|(.., endpoints)| *endpoints).collect::<Vec<_>>(), [1, 0, 1]);
    assert_eq!(driver.report.rejects, [(Reject::UnknownProtocol, 1)].into());
}

#[test]
fn who_is_served_under_a_host_keeps_it_from_another_protocol_too() {
    let mut driver = full(json!({}), 1);
    driver.policy(&json!({ "overrides": { "com.example.S0*": { "host": "tri.dubbo.com.example.demo.sofa.mesh" } } }));
    driver.round();
    driver.publish(DUBBO, "a", 1, &["tri://10.0.0.1:2"]);
    driver.round();
    let key = format!("tri://{DUBBO}");
    let host = |driver: &Driver, key: &str| driver.served()[key].1.hosts[0].clone();
    assert_eq!(host(&driver, &id(0)), "tri.dubbo.com.example.demo.sofa.mesh");
    assert!(host(&driver, &key).starts_with("tri-"), "{}", host(&driver, &key));
    let (_, contest) = driver.report.contested.iter().next().unwrap();
    assert_eq!((&*contest.holder, &*contest.waiting[0]), (&*id(0), &*key));
    driver.policy(&json!({}));
    driver.round();
    assert_eq!(host(&driver, &key), "tri.dubbo.com.example.demo.sofa.mesh");
}

#[test]
fn a_service_has_a_virtual_address_of_each_range() {
    let mut driver = full(json!({ "vipCidr": ["fd00:f8::/64", "248.0.0.0/6"] }), 3);
    let ranges = ["fd00:f8::/64", "248.0.0.0/6"].map(|range| range.parse::<ipnet::IpNet>().unwrap());
    for (_, entry) in driver.served().values() {
        let addresses: Vec<std::net::IpAddr> = entry.addresses.iter().map(|address| address.parse().unwrap()).collect();
        assert!(
            addresses.iter().zip(ranges).filter(|(address, range)| range.contains(*address)).count() == 2,
            "{addresses:?}"
        );
    }
    driver.publish(&id(0), "b", 1, &["[fd00:f8::1]:80", "248.1.2.3:80"]);
    driver.round();
    assert_eq!(driver.report.rejects, [(Reject::VipRange, 2)].into());
    // Whether a range is there or not, the addresses of the other are the same.
    let of = |config: Value| {
        let driver = full(config, 3);
        let all = driver.served().into_iter().map(|(id, (_, entry))| (id, entry.addresses));
        all.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (both, v4) = (of(json!({ "vipCidr": "248.0.0.0/6,fd00:f8::/64" })), of(json!({ "vipCidr": "248.0.0.0/6" })));
    assert!(both.iter().all(|(id, addresses)| addresses.len() == 2 && addresses[..1] == v4[id]), "{both:?} {v4:?}");
    // A restart with the ranges the other way round serves the same addresses in that order.
    let mut config = (*driver.config).clone();
    config.vip_cidr.reverse();
    let last_good = over_a_restart(driver.view.clone(), 4, driver.round.empty(), Duration::ZERO);
    let mut turned = Driver::started(Arc::new(config), driver.now, Some(last_good));
    (0..3).for_each(|n| publish(&turned, n, 1));
    turned.orders.loaded = true;
    turned.round();
    for (id, (_, entry)) in driver.served() {
        let (mut before, after) = (entry.addresses, turned.served()[&id].1.addresses.clone());
        before.reverse();
        assert_eq!(before, after);
    }
}

#[test]
fn who_comes_while_a_round_begins_again_counts_in_the_minute_that_runs() {
    let protect = json!({ "massAddServices": 1, "massAddShare": 0.25, "massAddSettle": "0s" });
    let mut driver = full(json!({ "protect": protect }), 4);
    driver.round();
    driver.start_over();
    driver.publish(&id(10), "a", 1, &["10.0.1.10:80"]);
    driver.round();
    assert_eq!((driver.served().len(), driver.report.waiting), (5, None), "nobody waits in that round");
    driver.publish(&id(11), "a", 1, &["10.0.1.11:80"]);
    driver.round();
    assert_eq!((driver.served().len(), driver.report.waiting), (5, Some(1)));
}

#[test]
fn to_hide_what_is_served_beside_no_main_service_is_held_as_well() {
    let mut driver = full(json!({ "policy": { "visibility": { "mode": "on" } } }), 0);
    let ids: Vec<String> = (0..40).map(|n| format!("shop{n}#@#DEFAULT_INSTANCE_ID#@#dubbo")).collect();
    for id in &ids {
        driver.publish(id, "a", 1, &[&instance("10.0.0.1", &[(1, "tri"), (2, "rest")])]);
    }
    let word = |names: &[&str]| {
        let all: Vec<(&str, &[&str])> = ids.iter().map(|id| (&**id, names)).collect();
        Some(Arc::new(Seen::with(&all)))
    };
    driver.seen = word(&["shop", "pay"]);
    driver.round();
    let exported = |driver: &Driver| -> BTreeSet<Vec<String>> {
        driver.served().into_values().map(|(_, entry)| entry.export_to).collect()
    };
    assert_eq!(exported(&driver), [["pay", "shop"].map(str::to_owned).to_vec()].into());
    driver.now += 3_600_000;
    driver.seen = word(&["batch"]);
    driver.round();
    assert_eq!(exported(&driver), [["batch", "pay", "shop"].map(str::to_owned).to_vec()].into(), "a hold adds");
    let held = driver.round.narrowing().held().expect("it is held");
    assert_eq!((held.services, held.of), (40, 40));
}

/// A registry of 40 services, whose rounds take four of many.
fn in_parts() -> Driver {
    let mut driver =
        full(json!({ "protect": { "massDeleteServices": 2, "massDeleteEndpoints": 4, "emptyGrace": "10m" } }), 40);
    driver.round.take_in_parts_of(4);
    driver
}

fn unpublish(driver: &Driver, services: std::ops::Range<usize>) {
    services.for_each(|n| driver.unpublish(&id(n), "a", 2));
}

fn empty(driver: &Driver) -> usize {
    driver.served().values().filter(|(_, entry)| entry.endpoints.is_empty()).count()
}

#[test]
fn a_mass_that_no_breaker_could_stop_goes_in_portions_and_a_change_goes_between() {
    let mut driver = in_parts();
    unpublish(&driver, 0..10);
    driver.round();
    assert_eq!((empty(&driver), driver.report.held, driver.round.is_settled()), (4, None, false));
    let is_empty =
        |driver: &Driver, n: &usize| driver.served().get(&id(*n)).is_some_and(|it| it.1.endpoints.is_empty());
    let back = (0..10).find(|n| !is_empty(&driver, n)).unwrap();
    publish(&driver, back, 3);
    driver.publish(&id(39), "a", 2, &["10.9.9.9:80"]);
    driver.round();
    assert_eq!(driver.served()[&id(39)].1.endpoints[0].address, "10.9.9.9", "a mass holds up nobody");
    assert!(empty(&driver) < 9 && !driver.round.is_settled());
    assert_eq!(driver.round.deadline(&driver.orders), Some(0));
    settle(&mut driver);
    assert_eq!((empty(&driver), driver.served().len()), (9, 40), "{back} never went");
    driver.now += GRACE;
    driver.round();
    assert_eq!((driver.served().len(), driver.round.is_settled()), (36, false), "graces end in parts as well");
    publish(&driver, (0..10).find(|n| is_empty(&driver, n)).unwrap(), 5);
    driver.round();
    while !driver.round.is_settled() || driver.round.deadline(&driver.orders) == Some(0) {
        driver.round();
    }
    assert_eq!((driver.served().len(), empty(&driver)), (32, 0), "who is back in the last moment stays");
}

/// Rounds until everything was looked at.
fn settle(driver: &mut Driver) {
    driver.round();
    while !driver.round.is_settled() {
        driver.round();
    }
}

/// Of how many services something is withheld.
fn withheld(driver: &Driver) -> usize {
    driver.report.withheld_services.len()
}

#[test]
fn a_mass_that_a_breaker_stops_is_held_before_it_goes_in_portions() {
    let mut driver = in_parts();
    let before = driver.report.translations;
    unpublish(&driver, 0..13);
    driver.publish(&id(39), "a", 2, &["10.0.39.1:80", "10.0.39.2:80", "10.9.9.9:80"]);
    driver.round();
    assert_eq!((empty(&driver), withheld(&driver), driver.report.held), (0, 13, Some(Held::MassDelete)));
    assert_eq!(driver.report.withheld, Some(Lost { services: 13, endpoints: 26 }));
    assert!(!driver.round.is_settled() && driver.events().contains(&"mass_delete_held"));
    driver.round();
    assert!(!driver.round.is_settled(), "it goes in portions");
    settle(&mut driver);
    assert_eq!((empty(&driver), withheld(&driver)), (0, 13));
    assert_eq!(driver.report.translations - before, 1, "of those that stay as they are nothing is made");
    assert!(driver.served()[&id(39)].1.endpoints.iter().any(|endpoint| endpoint.address == "10.9.9.9"));

    let mut driver = in_parts();
    unpublish(&driver, 0..8);
    driver.round();
    assert_eq!((empty(&driver), driver.report.held), (4, None));
    unpublish(&driver, 8..13);
    driver.round();
    assert_eq!((empty(&driver), driver.report.held), (4, Some(Held::MassDelete)), "what is left counts");
    settle(&mut driver);
    assert_eq!((empty(&driver), withheld(&driver)), (4, 9));

    // The end of a hold has those looked at that had not had their turn.
    let mut driver = in_parts();
    unpublish(&driver, 0..13);
    driver.round();
    (0..3).for_each(|n| publish(&driver, n, 3));
    settle(&mut driver);
    assert_eq!((driver.report.held, withheld(&driver)), (None, 0));
    assert_eq!((empty(&driver), driver.served().len()), (10, 40));

    // Who is back while others of the mass have not had their turn ends no hold that these would have begun.
    let mut driver = in_parts();
    unpublish(&driver, 0..13);
    (13..22).for_each(|n| driver.publish(&id(n), "a", 2, &[&format!("10.0.{n}.1:80")]));
    driver.round();
    (0..2).for_each(|n| publish(&driver, n, 3));
    settle(&mut driver);
    assert_eq!((driver.report.held, empty(&driver)), (Some(Held::MassDelete), 0));
    assert_eq!(driver.report.withheld, Some(Lost { services: 11, endpoints: 22 + 9 }));
}

#[test]
fn a_mass_that_a_breaker_might_stop_is_judged_as_a_whole() {
    // How many endpoints are left is not known before they are read.
    let mut driver = in_parts();
    (0..30).for_each(|n| driver.publish(&id(n), "a", 2, &[&format!("10.0.{n}.1:80")]));
    driver.round();
    let endpoints = |driver: &Driver| driver.served().values().map(|(_, entry)| entry.endpoints.len()).sum::<usize>();
    assert_eq!((endpoints(&driver), withheld(&driver), driver.round.is_settled()), (80, 30, true));

    let mut driver = in_parts();
    unpublish(&driver, 0..12);
    driver.policy(&json!({ "exclude": [id(20)] }));
    driver.round();
    assert_eq!((empty(&driver), driver.served().len()), (0, 40), "with another policy it is thirteen");
    driver.orders.release = true;
    driver.round();
    assert!(driver.round.is_settled());
}

#[test]
fn what_comes_with_a_mass_counts_though_it_is_not_known_yet() {
    // Who went before is back in the same mass, so it is ten of 40 that go.
    let mut driver = in_parts();
    unpublish(&driver, 0..10);
    settle(&mut driver);
    (0..10).for_each(|n| publish(&driver, n, 3));
    unpublish(&driver, 10..20);
    driver.round();
    assert_eq!((driver.report.held, empty(&driver), driver.round.is_settled()), (None, 10, true));

    // Also where nothing of it was left.
    let protect = json!({ "massDeleteServices": 2, "massDeleteEndpoints": 4, "emptyGrace": "0s" });
    let mut driver = full(json!({ "protect": protect }), 40);
    driver.round.take_in_parts_of(4);
    unpublish(&driver, 0..10);
    settle(&mut driver);
    assert_eq!(driver.served().len(), 30);
    (0..10).for_each(|n| publish(&driver, n, 3));
    unpublish(&driver, 10..20);
    driver.round();
    assert_eq!((driver.report.held, driver.served().len(), driver.round.is_settled()), (None, 30, true));

    // Of 40 that came within a minute, 10 are new in this mass: ten that go are a third of the others.
    let mut driver = in_parts();
    (40..70).for_each(|n| publish(&driver, n, 1));
    settle(&mut driver);
    (70..80).for_each(|n| publish(&driver, n, 1));
    unpublish(&driver, 40..50);
    driver.round();
    assert_eq!((driver.report.held, empty(&driver), driver.served().len()), (None, 10, 80));
    unpublish(&driver, 50..60);
    driver.round();
    assert_eq!((driver.report.held, empty(&driver), withheld(&driver)), (Some(Held::MassDelete), 10, 10));

    // Nothing would be left but what comes.
    let mut driver = in_parts();
    unpublish(&driver, 0..40);
    publish(&driver, 40, 1);
    driver.round();
    assert_eq!((driver.report.held, withheld(&driver)), (Some(Held::MassDelete), 40));
}

#[test]
fn a_service_that_stays_since_its_form_is_refused_is_none_that_goes() {
    let mut driver = in_parts();
    driver.policy(&refused());
    settle(&mut driver);
    assert_eq!(driver.report.quarantined_by["export-to"], 40);
    unpublish(&driver, 0..20);
    driver.round();
    assert_eq!((driver.report.held, empty(&driver), driver.round.is_settled()), (None, 0, true));
}

#[test]
fn what_a_hold_sets_free_is_not_judged_again_though_it_changed_meanwhile() {
    let mut driver = in_parts();
    unpublish(&driver, 0..20);
    driver.round();
    assert_eq!((empty(&driver), driver.report.withheld_services.len()), (0, 20));
    driver.orders.frozen = true;
    driver.orders.release = true;
    driver.round();
    driver.orders.frozen = false;
    // As where the registry forgets whom it remembered as removed.
    driver.store.mark_dirty(&(0..20).map(|n| id(n).into()).collect::<Vec<_>>());
    driver.round();
    assert_eq!((empty(&driver), driver.report.held, driver.round.is_settled()), (20, None, true));
    let mut driver = in_parts();
    unpublish(&driver, 0..20);
    driver.round();
    // Most are back, and all come again in one mass, so that a hold ends while some are left for later.
    (0..14).for_each(|n| publish(&driver, n, 3));
    driver.store.mark_dirty(&(14..20).map(|n| id(n).into()).collect::<Vec<_>>());
    while driver.report.held.is_some() || !driver.round.is_settled() {
        driver.round();
    }
    assert_eq!((empty(&driver), driver.report.withheld_services.len()), (6, 0));
}

#[test]
fn what_comes_in_small_portions_is_judged_with_what_is_left() {
    let mut driver = in_parts();
    unpublish(&driver, 0..8);
    driver.round();
    unpublish(&driver, 8..12);
    driver.round();
    unpublish(&driver, 12..13);
    driver.round();
    assert_eq!((empty(&driver), driver.report.held), (9, Some(Held::MassDelete)));
}

#[test]
fn a_flush_waits_for_all_that_was_said_before_and_not_for_what_comes_after() {
    let mut driver = in_parts();
    unpublish(&driver, 0..8);
    driver.round();
    driver.orders.flushes += 1;
    publish(&driver, 30, 2);
    driver.round();
    assert_eq!((empty(&driver), driver.round.is_settled()), (8, true));
}

#[test]
fn a_new_service_that_may_not_go_counts_as_come() {
    let protect = json!({ "massAddServices": 4, "massAddShare": 0.1, "massAddSettle": "0s", "massDeleteServices": 2, "emptyGrace": "0s" });
    let mut driver = full(json!({ "protect": protect }), 10);
    driver.round();
    let new = |n: usize| format!("com.example.N{n}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA");
    let come = |driver: &Driver, n: usize| driver.publish(&new(n), "a", 1, &[&format!("10.1.0.{n}:80")]);
    (0..4).for_each(|n| come(&driver, n));
    driver.round();
    (0..4).for_each(|n| driver.unpublish(&new(n), "a", 2));
    driver.round();
    assert_eq!((driver.served().len(), driver.report.held), (14, Some(Held::MassDelete)));
    come(&driver, 4);
    driver.round();
    assert_eq!((driver.served().len(), driver.report.waiting), (14, Some(1)), "it is the fifth");
    let mut driver = full(json!({ "protect": protect }), 10);
    driver.round();
    (0..5).for_each(|n| come(&driver, n));
    driver.round();
    assert_eq!((driver.served().len(), driver.report.waiting), (10, Some(5)));
    (0..2).for_each(|n| driver.unpublish(&new(n), "a", 2));
    driver.round();
    driver.round();
    assert_eq!((driver.served().len(), driver.report.waiting), (13, None), "most have left again");
}
