//! Why something is not in the mesh: each reason is named with its remedy, at the step where it is.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{collections::BTreeSet, time::Duration};

use harness::{
    Mox,
    client::{MoxClient, SERVICE_ENTRY, node},
    id, nth,
    process::{eventually, fresh_home, root},
    refusing,
    store::{Server, Table},
};
use registry_mox::testing::{
    host::admin::{self, Credentials, Request},
    registry::frame::{self, Publisher},
};
use serde_json::{Value, json};

/// The whole answer.
fn asked(mox: &Mox, query: &str) -> Value {
    let query = query.replace('%', "%25").replace('#', "%23").replace(':', "%3A").replace('@', "%40");
    let (status, body) = mox.page("/mox/explain", &format!("q={query}"));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Step, verdict and reason of every step that did not pass, of the first service.
fn troubles(answer: &Value) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for rung in answer["services"][0]["ladder"].as_array().unwrap() {
        for reason in rung["reasons"].as_array().into_iter().flatten() {
            assert!(!reason["says"].as_str().unwrap().is_empty() && !reason["remedy"].as_str().unwrap().is_empty());
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            found.push((text(&rung["step"]), text(&rung["verdict"]), text(&reason["key"])));
        }
    }
    found
}

#[track_caller]
fn names(mox: &Mox, query: &str, step: &str, verdict: &str, key: &str) {
    let answer = asked(mox, query);
    let found = troubles(&answer);
    let wanted = (step.to_owned(), verdict.to_owned(), key.to_owned());
    assert!(found.contains(&wanted), "{wanted:?} is not in {found:?}: {answer:#}");
}

/// A publication that a limit refuses.
#[track_caller]
fn refused(mox: &Mox, id: &str) {
    let sent = Publisher { register_id: "a".into(), ..Default::default() };
    mox.engine.apply(&frame::encode_publish("registry", id, &sent).unwrap()).unwrap_err();
}

/// Until the answer names a reason at a step: what a client or another server does arrives by itself.
async fn names_at_last(mox: &Mox, query: &str, step: &str, wanted: &str) {
    let is_wanted = |(at, _, key): &(String, String, String)| at == step && key == wanted;
    let named = async {
        while !troubles(&asked(mox, query)).iter().any(is_wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await; // the polling interval
        }
    };
    let named = tokio::time::timeout(harness::SOON, named).await;
    assert!(named.is_ok(), "{step}: {wanted}: {:#} {}", asked(mox, query), mox.page("/mox/streams", "").1);
}

async fn open(config: Value) -> Mox {
    let mox = Mox::open(config);
    mox.engine.loaded();
    mox.engine.flush().await;
    mox
}

#[tokio::test]
async fn a_service_that_is_served_passes_every_step_but_the_last() {
    let mox = open(json!({})).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80?app_name=shop", "10.0.0.2:80"]);
    mox.engine.flush().await;
    let answer = asked(&mox, &nth(1));
    assert_eq!(troubles(&answer), [("clients".into(), "partly".into(), "no-istiod".into())], "{answer:#}");
    let says = answer["services"][0]["answer"].as_str().unwrap();
    assert!(says.starts_with("Served, ServiceEntry") && says.contains("no istiod is connected"), "{says}");
    let mut client = mox.client(node("istiod")).await;
    client.auto_ack = false;
    client.subscribe(SERVICE_ENTRY).unwrap();
    let response = client.next().await.unwrap();
    names(&mox, &nth(1), "clients", "failed", "unacknowledged");
    client.ack(&response).unwrap();
    let passed = async {
        while !troubles(&asked(&mox, &nth(1))).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(harness::SOON, passed).await.expect("the ACK arrives");
    let answer = asked(&mox, &nth(1));
    let steps: Vec<&str> =
        answer["services"][0]["ladder"].as_array().unwrap().iter().map(|it| it["step"].as_str().unwrap()).collect();
    assert_eq!(
        steps,
        ["registry", "read", "policy", "payloads", "names", "istio", "held", "served", "export-to", "clients"]
    );
    assert!(answer["services"][0]["answer"].as_str().unwrap().starts_with("In the mesh, ServiceEntry"), "{answer:#}");
    // Whatever an operator knows of it leads there.
    for (query, kind) in [
        ("com.example.S1:1.0@DEFAULT", "dataId"),
        ("com.example.s1.sofa.mesh", "host"),
        ("COM.example.s1.sofa.MESH", "host"),
        ("10.0.0.2", "address"),
        ("10.0.0.2:80", "address"),
        ("shop", "application"),
        ("example.s1", "part"),
    ] {
        let answer = asked(&mox, query);
        assert_eq!(answer["found"]["kind"], kind, "{query}");
        assert_eq!(answer["services"][0]["service"], *nth(1), "{query}");
        assert_eq!(troubles(&answer), [], "{query}");
    }
    mox.publish(&nth(1), "a", 2, &["10.0.0.3:80"]);
    mox.engine.flush().await;
    let response = client.next().await.unwrap();
    client.nack(&response, "no such thing").unwrap();
    names_at_last(&mox, &nth(1), "clients", "nack").await;
}

#[tokio::test]
async fn what_nobody_published_is_told_from_what_is_known() {
    let mox = open(json!({})).await;
    names(&mox, &nth(1), "registry", "failed", "no-publisher");
    assert_eq!(asked(&mox, "nothing")["found"]["kind"], "nothing");
    assert_eq!(asked(&mox, "nothing")["services"], json!([]));
    let local = open(json!({ "scope": "local" })).await;
    let says = asked(&local, &nth(1))["services"][0]["answer"].clone();
    assert!(says.as_str().unwrap().contains("mox.scope=local"), "{says}");
    assert_eq!(mox.page("/mox/explain", "").0, 400);
    mox.tell(json!({ "op": "unknown", "dataInfoIds": [nth(2)] }));
    mox.engine.flush().await;
    names(&mox, &nth(2), "read", "failed", "unknown");
}

/// The services that a query leads to, and what it was taken for.
fn led(mox: &Mox, query: &str) -> (String, Vec<String>) {
    let answer = asked(mox, query);
    let services = answer["services"].as_array().unwrap().iter();
    let services = services.map(|it| it["service"].as_str().unwrap().to_owned()).collect();
    (answer["found"]["kind"].as_str().unwrap().to_owned(), services)
}

/// The sentence for who reads no further, of the first service.
fn says(mox: &Mox, query: &str) -> String {
    asked(mox, query)["services"][0]["answer"].as_str().unwrap().to_owned()
}

/// The sentence has these parts, in this order.
#[track_caller]
fn says_in_order(mox: &Mox, query: &str, parts: &[&str]) {
    let says = says(mox, query);
    let found: Vec<Option<usize>> = parts.iter().map(|part| says.find(part)).collect();
    assert!(found.iter().all(Option::is_some) && found.is_sorted(), "{parts:?} {found:?}: {says}");
}

/// The reason that decides comes first, whichever step has it.
#[tokio::test]
async fn the_headline_is_what_decides() {
    let policy = json!({ "overrides": { "com.example.S1:*": { "exportTo": ["risk", "pay"] }, "*S1:*": {} } });
    let mox = open(json!({ "policy": policy, "admin": { "token": "sesame" } })).await;
    for n in 0..40 {
        mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{}:80", n + 1)]);
    }
    mox.engine.flush().await;
    names(&mox, &nth(1), "export-to", "partly", "exported-to-some");
    says_in_order(&mox, &nth(1), &["visible only to risk, pay, by overrides.com.example.S1:*.exportTo of the policy"]);
    let (mut takes, mut refuses) = (mox.client(node("takes")).await, mox.client(node("refuses")).await);
    for client in [&mut takes, &mut refuses] {
        client.subscribe(SERVICE_ENTRY).unwrap();
        client.next().await.unwrap();
    }
    refuses.auto_ack = false;
    mox.publish(&nth(1), "a", 2, &["10.0.9.9:80"]);
    mox.engine.flush().await;
    takes.next().await.unwrap();
    let response = refuses.next().await.unwrap();
    refuses.nack(&response, "no such thing").unwrap();
    names_at_last(&mox, &nth(1), "clients", "nack").await;
    says_in_order(
        &mox,
        &nth(1),
        &["refused the last response, and keeps all that it had before: no such thing", "visible only"],
    );
    let whole = asked(&mox, &nth(1)).to_string();
    assert!(whole.contains("its part is taken by 1 of 2 streams"), "{whole}");

    for n in 2..40 {
        mox.unpublish(&nth(n), "a", 2);
    }
    mox.engine.flush().await;
    says_in_order(&mox, &nth(39), &["In the mesh", "removals are withheld", "Also: ", "no publisher of it"]);
    let request = Request { path: "/mox/freeze", query: "", if_match: "", body: b"" };
    let shown = Credentials { token: "sesame".into(), ..Default::default() };
    assert_eq!(admin::change(&mox.engine, &shown, request).status, 200);
    mox.publish(&nth(1), "a", 3, &["10.0.9.10:80"]);
    mox.engine.flush().await;
    says_in_order(
        &mox,
        "10.0.9.10",
        &["Not in the mesh: what is served is frozen, by an order to this session server alone"],
    );
    says_in_order(&mox, "10.0.9.9", &["In the mesh", "but: what is served is frozen"]);
    mox.engine.stopped(true);
    mox.engine.thaw();
    mox.publish(&nth(1), "a", 4, &["10.0.9.11:80"]);
    mox.engine.flush().await;
    says_in_order(&mox, "10.0.9.11", &["is frozen, since the registry has stopped its pushes", "its pushes back"]);
}

/// The thing itself with its value, and not its kind.
#[tokio::test]
async fn what_keeps_a_service_out_is_named_with_its_value() {
    let endpoints = json!({ "allow": ["10.0.0.0/8"], "deny": ["10.9.0.0/16", "10.66.0.0/16"] });
    let mox = open(json!({ "policy": { "endpoints": endpoints }, "limits": { "services": 3 } })).await;
    mox.publish(&nth(1), "a", 1, &["10.66.4.31:80"]);
    mox.publish(&nth(2), "a", 1, &["11.0.0.1:80"]);
    mox.publish("com.example.D@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA", "a", 1, &["dubbo://10.9.0.1:20880/x"]);
    [4, 5].into_iter().for_each(|n| refused(&mox, &nth(n)));
    mox.engine.flush().await;
    says_in_order(&mox, &nth(1), &["endpoints.deny has 10.66.0.0/16, in which 10.66.4.31 is"]);
    says_in_order(&mox, "10.66.4.31:80", &["endpoints.deny has 10.66.0.0/16"]);
    says_in_order(&mox, &nth(2), &["no range of the policy's endpoints.allow has 11.0.0.1"]);
    says_in_order(&mox, "com.example.D@dubbo", &["endpoints.deny has 10.9.0.0/16"]);
    let used = "2 events dropped at mox.limits.services (3 of 3 used)";
    says_in_order(&mox, &nth(5), &[used, "the last one of this service"]);
    says_in_order(&mox, &nth(4), &[used, "perhaps of this service"]);
    assert!(!says(&mox, &nth(5)).contains("perhaps") && !says(&mox, &nth(4)).contains("bytes"));
    let nothing = asked(&mox, "com.example.S4:1.0@DEFAULT");
    assert!(nothing["perhaps"][0].as_str().unwrap().starts_with(used), "{nothing}");
}

#[track_caller]
fn leads(mox: &Mox, service: &str, queries: &[(&str, &str)]) {
    for (query, kind) in queries {
        assert_eq!(led(mox, query), ((*kind).to_owned(), vec![service.to_owned()]), "{query}");
    }
}

/// Whatever a ticket calls it by: a service without publishers that is served all the same, an excluded and a dropped one.
#[tokio::test]
async fn what_is_not_served_as_the_registry_has_it_is_found_by_each_of_its_names() {
    let names = |n: usize| {
        [format!("com.example.S{n}:1.0@DEFAULT"), format!("com.example.s{n}.sofa.mesh"), format!("com.example.s{n}")]
    };
    for mode in ["inline", "workload-entry"] {
        let mox = open(json!({ "endpointMode": mode })).await;
        for n in 0..40 {
            mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{}:80?app_name=shop{n}", n + 1)]);
        }
        mox.engine.flush().await;
        for n in 0..40 {
            mox.unpublish(&nth(n), "a", 2);
        }
        mox.engine.flush().await;
        let [data_id, host, bare] = names(39);
        let queries = [(&*data_id, "dataId"), (&host, "host"), (&bare, "host"), ("shop39", "application")];
        leads(&mox, &nth(39), &queries);
        leads(&mox, &nth(39), &[("ple.S39", "part")]);
    }
    let mox = open(json!({ "policy": { "exclude": ["*.S2:*"] }, "limits": { "services": 2 } })).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    mox.publish(&nth(2), "a", 1, &["10.0.0.2:80?app_name=shop"]);
    refused(&mox, &nth(3));
    mox.engine.flush().await;
    for n in [2, 3] {
        let [data_id, host, bare] = names(n);
        leads(&mox, &nth(n), &[(&data_id, "dataId"), (&host, "host"), (&bare, "host")]);
    }
    leads(&mox, &nth(2), &[("shop", "application")]);
    // A name that only a hash tells from another's, and a host that the policy gives.
    let policy = json!({ "exclude": ["*"], "overrides": { "com.example.S4*": { "host": "four.shop.internal" } } });
    let mox = open(json!({ "policy": policy })).await;
    let hashed = "com.example.a_b:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
    mox.publish(hashed, "a", 1, &["10.0.0.1:80"]);
    mox.publish(&nth(4), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    leads(&mox, &nth(4), &[("four.shop.internal", "host"), ("com.example.s4.sofa.mesh", "host")]);
    mox.policy(json!({}));
    mox.engine.flush().await;
    let served = asked(&mox, hashed)["services"][0]["host"].as_str().unwrap().to_owned();
    mox.policy(json!({ "exclude": ["*"] }));
    leads(&mox, hashed, &[(&served, "host")]);
}

#[tokio::test]
async fn the_policy_is_named_with_its_glob() {
    let policy = json!({ "include": ["com.example.*"], "exclude": ["*.S2:*"], "exportTo": ["~"] });
    let mox = open(json!({ "policy": policy })).await;
    for n in 1..3 {
        mox.publish(&nth(n), "a", 1, &["10.0.0.1:80"]);
    }
    let other = id("x").replace("com.example", "org.other");
    mox.publish(&other, "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    names(&mox, &nth(1), "export-to", "failed", "exported-to-nobody");
    names(&mox, &nth(2), "policy", "failed", "excluded");
    names(&mox, &other, "policy", "failed", "not-included");
    assert!(asked(&mox, &nth(2))["services"][0]["answer"].as_str().unwrap().contains("\"*.S2:*\""));
}

/// Each reason for which a payload makes no endpoint.
#[tokio::test]
async fn every_payload_that_is_left_out_is_named_with_its_reason() {
    let limits = json!({ "endpointsPerPublisher": 4, "endpointsPerService": 6 });
    let policy = json!({ "endpoints": { "deny": ["10.9.0.0/16"] } });
    let mox = open(json!({ "limits": limits, "policy": policy })).await;
    let dubbo = "com.example.D@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";
    let of = |payload: &str| payload.to_owned();
    let cases = [
        ("empty", nth(1), of("")),
        ("unknown-form", nth(1), of("not an address at all")),
        ("bad-port", nth(1), of("10.0.0.9:70000")),
        ("host-name", nth(1), of("provider.example.com:80")),
        ("unusable-address", nth(1), of("127.0.0.1:80")),
        ("vip-range", nth(1), of("248.1.2.3:80")),
        ("denied", nth(1), of("10.9.0.1:80")),
        ("zero-weight", nth(1), of("10.0.0.8:80?weight=0")),
        ("out-of-service", dubbo.into(), of("dubbo://10.0.0.2:20880/x?disabled=true")),
        ("not-a-provider", dubbo.into(), of("override://0.0.0.0/x?category=configurators")),
        ("unknown-protocol", dubbo.into(), of("hessian://10.0.0.2:8080/x")),
    ];
    let mut seen = BTreeSet::new();
    for (n, (reason, service, payload)) in cases.iter().enumerate() {
        // Alone it is why nothing is served, beside others why a part is not.
        let alone = service.replace("example", &format!("alone{n}"));
        mox.publish(&alone, "bad", 1, &[payload]);
        let beside = service.replace("example", &format!("beside{n}"));
        mox.publish(&beside, "good", 1, &["10.0.0.1:80"]);
        mox.publish(&beside, "bad", 1, &[payload]);
        mox.engine.flush().await;
        if *reason != "zero-weight" {
            names(&mox, &alone, "payloads", "failed", reason);
        }
        names(&mox, &beside, "payloads", "partly", reason);
        assert!(seen.insert(reason));
    }
    let many: Vec<String> = (1..8).map(|n| format!("10.1.0.{n}:80")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    mox.publish(&nth(20), "a", 1, &many);
    mox.publish(&nth(20), "b", 1, &["10.2.0.1:80", "10.2.0.2:80", "10.2.0.3:80"]);
    mox.engine.flush().await;
    names(&mox, &nth(20), "payloads", "partly", "publisher-limit");
    names(&mox, &nth(20), "payloads", "partly", "service-limit");
}

#[tokio::test]
async fn an_address_is_followed_to_what_became_of_it() {
    let mox = open(json!({})).await;
    mox.publish(&nth(1), "old", 1, &["10.0.0.1:80", "10.0.0.2:80"]);
    mox.publish(&nth(1), "new", 2, &["10.0.0.1:80"]);
    mox.publish(&nth(2), "x", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    let answer = asked(&mox, "10.0.0.1:80");
    assert_eq!(answer["services"].as_array().unwrap().len(), 2);
    assert!(
        troubles(&answer).iter().any(|(step, _, key)| (&**step, &**key) == ("payloads", "newer-publisher")),
        "{answer:#}"
    );
    assert_eq!(asked(&mox, "10.0.0.1:81")["services"], json!([]));
    // An address that is not served is the commonest to ask for.
    mox.publish(&nth(3), "x", 1, &["127.0.0.9:80"]);
    mox.policy(json!({ "exclude": ["*.S4:*"] }));
    mox.publish(&nth(4), "x", 1, &["10.0.4.4:80"]);
    mox.engine.flush().await;
    names(&mox, "127.0.0.9", "payloads", "failed", "unusable-address");
    assert_eq!(asked(&mox, "127.0.0.90")["services"], json!([]), "no part of another address");
    names(&mox, "10.0.4.4", "policy", "failed", "excluded");
}

/// A provider of two protocols is in two services, and neither is told of the other's endpoint.
#[tokio::test]
async fn services_beside_one_another_are_told_apart() {
    let mox = open(json!({})).await;
    let id = "com.example.D@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";
    mox.publish(id, "a", 1, &["dubbo://10.0.0.1:20880/x", "tri://10.0.0.1:50051/x"]);
    mox.publish("com.example.T@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA", "a", 1, &["tri://10.0.0.2:50051/x"]);
    mox.engine.flush().await;
    let answer = asked(&mox, "10.0.0.1");
    let services: Vec<&str> =
        answer["services"].as_array().unwrap().iter().map(|it| it["service"].as_str().unwrap()).collect();
    assert_eq!(services, [id, &format!("tri://{id}")]);
    for service in answer["services"].as_array().unwrap() {
        assert!(service["answer"].as_str().unwrap().starts_with("Served, ServiceEntry"), "{service:#}");
    }
    names(&mox, "com.example.T@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA", "payloads", "failed", "no-endpoint");
    // And so is an instance of two protocols, and a third that nothing is known of.
    let id = "shop#@#DEFAULT_INSTANCE_ID#@#dubbo";
    let ports = json!([{ "port": 50051, "protocol": "tri" }, { "port": 20881, "protocol": "dubbo" }, { "port": 3, "protocol": "redis" }]);
    let metadata = json!({ "dubbo.endpoints": ports.to_string() });
    let instance = json!({ "host": "10.0.0.3", "port": 20880, "name": "shop", "metadata": metadata }).to_string();
    mox.publish(id, "a", 1, &[&instance, "nonsense"]);
    mox.engine.flush().await;
    let tri = format!("tri://{id}");
    // The third might have any port.
    for (asked_for, wanted) in [("10.0.0.3:20881", &[id][..]), ("10.0.0.3:50051", &[id, &tri]), (id, &[id, &tri])] {
        let answer = asked(&mox, asked_for);
        let services = answer["services"].as_array().unwrap();
        assert_eq!(services.iter().map(|it| it["service"].as_str().unwrap()).collect::<Vec<_>>(), wanted);
    }
    let (_, page) = mox.page("/mox/services/shop%23@%23DEFAULT_INSTANCE_ID%23@%23dubbo", "");
    let page: Value = serde_json::from_str(&page).unwrap();
    let payloads = page["publishers"][0]["payloads"].as_array().unwrap();
    let of = |key: &str| payloads.iter().filter_map(|it| it[key].as_str().map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(of("endpoint"), ["10.0.0.3:20881", "tri://10.0.0.3:50051"]);
    assert_eq!(of("rejected"), ["unknown-protocol", "unknown-form"]);
    assert_eq!(page["publishers"][0]["payloadsLeftOut"], 0);
}

/// Served all the same, whatever keeps its newest form back.
#[tokio::test]
async fn a_service_that_is_served_all_the_same_is_in_the_mesh() {
    for mode in ["inline", "workload-entry"] {
        let mox = open(json!({ "admin": { "token": "sesame" }, "endpointMode": mode })).await;
        for n in 0..40 {
            mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{}:80", n + 1)]);
        }
        mox.engine.flush().await;
        mox.policy(json!({ "exclude": ["com.example.*"] }));
        mox.engine.flush().await;
        names(&mox, &nth(39), "policy", "partly", "excluded");
        names(&mox, &nth(39), "held", "partly", "mass-delete");
        let answer = asked(&mox, &nth(39))["services"][0]["answer"].clone();
        let answer = answer.as_str().unwrap();
        assert!(answer.starts_with("Served, ServiceEntry") && answer.contains("And for a part: "), "{answer}");
        mox.policy(json!({}));
        mox.engine.flush().await;
        let shown = Credentials { token: "sesame".into(), ..Default::default() };
        let request = Request { path: "/mox/freeze", query: "", if_match: "", body: b"" };
        assert_eq!(admin::change(&mox.engine, &shown, request).status, 200);
        let is_frozen = |(_, _, key): &(String, String, String)| key == "frozen";
        assert!(!troubles(&asked(&mox, &nth(39))).iter().any(is_frozen), "{mode}: it is as the registry has it");
        mox.publish(&nth(39), "a", 2, &["10.0.9.9:80"]);
        mox.engine.flush().await;
        names(&mox, &nth(39), "held", "partly", "frozen");
    }
}

#[tokio::test]
async fn what_holds_a_service_back_is_named() {
    let mox = Mox::open(json!({}));
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    names(&mox, &nth(1), "held", "failed", "not-loaded");

    let mox = open(json!({ "admin": { "token": "sesame" } })).await;
    for n in 0..60 {
        mox.publish(&nth(n), "a", 1, &[&format!("10.0.0.{}:80", n + 1)]);
    }
    mox.engine.flush().await;
    mox.unpublish(&nth(0), "a", 2);
    mox.engine.flush().await;
    names(&mox, &nth(0), "held", "partly", "in-grace");
    names(&mox, &nth(0), "registry", "partly", "no-publisher");
    for n in 1..60 {
        mox.unpublish(&nth(n), "a", 2);
    }
    mox.engine.flush().await;
    names(&mox, &nth(59), "held", "partly", "mass-delete");
    let shown = Credentials { token: "sesame".into(), ..Default::default() };
    let request = Request { path: "/mox/freeze", query: "", if_match: "", body: b"" };
    assert_eq!(admin::change(&mox.engine, &shown, request).status, 200);
    mox.publish(&nth(99), "a", 1, &["10.0.1.1:80"]);
    mox.engine.flush().await;
    names(&mox, &nth(99), "held", "failed", "frozen");

    let protect = json!({ "massAddServices": 10, "massAddSettle": "0s" });
    let mox = open(json!({ "protect": protect })).await;
    for n in 0..40 {
        mox.publish(&nth(n), "a", 1, &["10.0.0.1:80"]);
    }
    mox.engine.flush().await;
    names(&mox, &nth(39), "held", "failed", "mass-add");
}

#[tokio::test]
async fn two_services_of_one_name_are_named_to_each_other() {
    let mox = open(json!({})).await;
    mox.publish(&id("Same"), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    mox.publish(&id("SAME"), "a", 1, &["10.0.0.2:80"]);
    mox.engine.flush().await;
    names(&mox, &id("SAME"), "names", "partly", "contested");
    let (kind, services) = led(&mox, "com.example.same.sofa.mesh");
    assert_eq!((&*kind, services), ("host", vec![id("Same"), id("SAME")]), "who has it is first");
    names(&mox, &id("Same"), "names", "partly", "wanted-by-others");
    for name in ["Same", "SAME"] {
        assert!(says(&mox, &id(name)).contains("they differ by the case of letters only"), "{name}");
    }
}

#[tokio::test]
async fn a_limit_that_dropped_a_service_is_named() {
    let mox = open(json!({ "limits": { "services": 1 } })).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    refused(&mox, &nth(2));
    mox.engine.flush().await;
    names(&mox, &nth(2), "registry", "failed", "limit-services");
}

#[tokio::test]
async fn what_the_host_says_of_the_data_servers_is_told() {
    let mox = open(json!({})).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    let refused = json!([{ "dataInfoId": nth(1), "reason": "cell", "registerId": "b", "count": 1 }]);
    mox.tell(json!({ "op": "feed", "feed": { "stale": true, "refused": refused } }));
    names(&mox, &nth(1), "registry", "partly", "refused-cell");
    names(&mox, &nth(1), "read", "partly", "stale");
    names(&mox, &nth(2), "registry", "failed", "not-heard");
    assert!(
        !troubles(&asked(&mox, &nth(2))).iter().any(|(.., key)| key == "refused-cell"),
        "it is another's publisher"
    );
}

#[tokio::test]
async fn what_a_limit_dropped_may_be_of_a_service_that_is_not_there() {
    let mox = open(json!({ "limits": { "services": 1 } })).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    refused(&mox, &nth(2));
    names(&mox, &nth(3), "registry", "failed", "may-be-limit");
}

#[tokio::test]
async fn data_that_is_no_text_is_named() {
    let mox = open(json!({})).await;
    let payloads = vec![b"\xff\xfe\xfd".as_slice().into()];
    mox.put(&nth(1), &Publisher { register_id: "a".into(), payloads, ..Publisher::default() });
    mox.engine.flush().await;
    names(&mox, &nth(1), "payloads", "failed", "not-text");
    names(&mox, &nth(1), "served", "failed", "not-served");
}

#[tokio::test]
async fn an_address_that_is_beyond_a_bound_or_lingers_is_told() {
    let policy = json!({ "direct": { "applications": ["shop"] } });
    let mox = open(json!({ "limits": { "endpointsPerService": 2 }, "policy": policy })).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80", "10.0.0.2:80"]);
    mox.publish(&nth(1), "b", 1, &["10.0.0.3:80"]);
    mox.engine.flush().await;
    names(&mox, "10.0.0.3:80", "payloads", "failed", "cut");
    names(&mox, "10.0.0.3:80", "served", "failed", "endpoint-not-served");
    mox.publish(&nth(2), "a", 1, &["10.0.1.1:80?app_name=shop"]);
    mox.publish(&nth(2), "b", 1, &["10.0.1.1:81?app_name=shop"]);
    mox.engine.flush().await;
    mox.unpublish(&nth(2), "a", 2);
    mox.engine.flush().await;
    names(&mox, "10.0.1.1", "payloads", "partly", "lingering");
}

#[tokio::test]
async fn a_last_good_state_is_told_from_what_the_registry_says() {
    let dir = fresh_home("explain-last-good");
    let config = json!({ "stateDir": dir, "scope": "cluster", "protect": { "startupHold": "1ms" } });
    let mox = Mox::open(config.clone());
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    mox.engine.loaded();
    mox.engine.flush().await;
    tokio::task::spawn_blocking(move || {
        eventually(harness::SOON, "the state is kept", || dir.join("last-good").exists().then_some(()));
        mox.engine.close();
    })
    .await
    .unwrap();
    let mox = Mox::open(config);
    tokio::time::timeout(harness::SOON, mox.engine.watch().wait_for(|view| view.shown)).await.unwrap().unwrap();
    names(&mox, &nth(1), "held", "partly", "last-good");
    names(&mox, &nth(1), "registry", "partly", "not-read");
    let other = asked(&mox, &nth(2))["services"][0]["answer"].clone();
    assert!(other.as_str().unwrap().contains("may not have read its publishers yet"), "{other}");
}

#[tokio::test]
async fn what_keeps_every_client_away_is_told() {
    let closed = Mox::closed(json!({}));
    closed.engine.loaded();
    closed.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    closed.engine.flush().await;
    names(&closed, &nth(1), "clients", "partly", "not-listening");
    let mox = open(json!({})).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    mox.engine.fence(true);
    names(&mox, &nth(1), "clients", "partly", "fenced");
}

#[tokio::test]
async fn a_client_that_rests_lacks_parts_or_has_too_much_is_told() {
    // After an answer as slow as this one it rests for ten seconds.
    let mox = open(json!({ "partitions": [2], "push": { "duty": 0.001, "max": "10s" } })).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    let mut client = mox.client(node("slow")).await;
    client.auto_ack = false;
    client.subscribe(SERVICE_ENTRY).unwrap();
    let response = client.next().await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await; // the time that the client takes
    client.ack(&response).unwrap();
    mox.publish(&nth(1), "a", 2, &["10.0.0.2:80"]);
    mox.engine.flush().await;
    names_at_last(&mox, &nth(1), "clients", "behind").await;
    let part = mox.engine.listen().unwrap().partitions[&2][0].to_string();
    let mut other = MoxClient::asking(&part, node("halved"), SERVICE_ENTRY).await.unwrap();
    other.next().await.unwrap();
    names_at_last(&mox, &nth(1), "clients", "wrong-partitions").await;

    let mox = open(json!({ "limits": { "response": 1_024 } })).await;
    (0..20).for_each(|n| mox.publish(&nth(n), "a", 1, &["10.0.0.1:80"]));
    mox.engine.flush().await;
    let mut client = mox.client(node("istiod")).await;
    client.subscribe(SERVICE_ENTRY).unwrap();
    names_at_last(&mox, &nth(1), "clients", "too-large").await;
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told_in_its_words() {
    let file = refusing::start("explain-kubernetes", |name| format!("{name} is not wanted here"));
    let mox = open(json!({ "kubernetes": { "enabled": true, "kubeconfig": file } })).await;
    mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]);
    mox.engine.flush().await;
    names_at_last(&mox, &nth(1), "kubernetes", "kubernetes-problem").await;
    names(&mox, &nth(1), "kubernetes", "partly", "kubernetes-problem");
    says_in_order(&mox, &nth(1), &["In the mesh", "its object is not written: ", "is not wanted here"]);
    let page = mox.page("/mox/explain", "q=com.example.s1&as=html").1;
    assert!(page.contains("see <a href=\"/mox/kubernetes\">/mox/kubernetes</a>"), "{page}");
}

/// With documents it is known who ordered a freeze, why and when; the overview and the ladder say so.
#[tokio::test]
async fn who_froze_what_is_served_is_told() {
    let table = Table::default();
    let mut server = Server::start(Some(&table), json!({}), |mox| mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]));
    server.serves().await;
    assert_eq!(server.post("/mox/freeze", "by=ann&why=a+move", "", "").0, 200);
    server.poll();
    server.mox.publish(&nth(1), "a", 2, &["10.0.0.2:80"]);
    server.mox.engine.flush().await;
    let by = ["what is served is frozen, by an order of \"ann\" to all session servers, of 2", "Z: \"a move\""];
    says_in_order(&server.mox, "10.0.0.2", &by);
    let overview = server.mox.page("/mox", "as=html").1.replace("&quot;", "\"");
    assert!(by.iter().all(|part| overview.contains(part)), "{overview}");
}

/// A policy that would let it in, in a row that somebody else has written.
#[tokio::test]
async fn a_policy_that_does_not_count_is_named_where_it_is_missed() {
    let table = Table::default();
    let mut server = Server::start(Some(&table), json!({}), |mox| mox.publish(&nth(1), "a", 1, &["10.0.0.1:80"]));
    let policy = json!({ "exclude": ["com.example.*"] });
    assert_eq!(server.post("/mox/policy", "", "", &policy.to_string()).0, 200);
    table.set("policy", "{}".to_owned());
    server.poll();
    server.mox.engine.flush().await;
    names(&server.mox, &nth(1), "policy", "failed", "excluded");
    names(&server.mox, &nth(1), "policy", "failed", "policy-refused");
}

/// Reasons that no engine can be brought to by what it is told, and why; the ladder's own tests show them.
const OUT_OF_REACH: [(&str, &str); 3] = [
    ("being-read", "a read is applied within one call, so that nobody can ask while it is, but by chance"),
    ("quarantined", "a bug of ours leads there, and none is known"),
    ("invalid", "what Istio would refuse is made so that it does not, and no payload is known that gets by"),
];

/// Each reason of the ladder is reached above; who adds one adds the way to it.
#[test]
fn every_reason_is_reached_through_the_engine() {
    let source = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let (own, tests) = (source("tests/explain.rs"), source("src/host/explain/ladder/tests.rs"));
    let rungs = std::fs::read_dir(root().join("src/host/explain/ladder")).unwrap().map(|file| file.unwrap().path());
    let rungs = rungs.filter(|file| !file.ends_with("tests.rs"));
    let code: String = rungs.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let literal = |call: &str| {
        let argument = call.trim_start().strip_prefix("format!(").unwrap_or(call).trim_start().strip_prefix('"')?;
        let key: String = argument.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
        Some(key.trim_end_matches('-').to_owned())
    };
    let mut keys: BTreeSet<String> = code.split("reason(").skip(1).filter_map(literal).collect();
    assert!(keys.len() > 20, "{keys:?}");
    // Remedies name every variant of the two, or they would not compile.
    let remedies = source("src/host/explain/remedies.rs");
    let variants = ["Reject::", "Held::"].into_iter().flat_map(|of| remedies.split(of).skip(1));
    let kebab = |variant: &str| {
        let name = variant.chars().take_while(char::is_ascii_alphanumeric);
        let parts = name.flat_map(|c| [c.is_ascii_uppercase().then_some('-'), Some(c.to_ascii_lowercase())]).flatten();
        parts.collect::<String>().trim_start_matches('-').to_owned()
    };
    keys.extend(variants.map(kebab));
    assert!(keys.len() > 40, "{keys:?}");
    let unreached = |key: &&String| {
        let is_out_of_reach = OUT_OF_REACH.iter().any(|(known, _)| known == key);
        let place = if is_out_of_reach { &tests } else { &own };
        !place.contains(&format!("\"{key}\"")) && !place.contains(&format!("\"{key}-"))
    };
    let unreached: Vec<&String> = keys.iter().filter(unreached).collect();
    assert!(unreached.is_empty(), "no test reaches {unreached:?}");
}
