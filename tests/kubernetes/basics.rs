//! The objects that are written, and the number of requests that this takes.

use std::collections::BTreeSet;

use serde_json::json;

use crate::{
    Scenario,
    proxy::{Asked, Proxy},
    server::{Server, Writer, endpoints, object, path},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("a_service_comes_changes_and_goes", a_service_comes_changes_and_goes),
    ("a_restart_writes_nothing", a_restart_writes_nothing),
    ("workload_entries_come_first_and_go_last", workload_entries_come_first_and_go_last),
    ("a_large_service_moves_out_and_back", a_large_service_moves_out_and_back),
    ("a_freeze_holds", a_freeze_holds),
    ("an_older_api_is_written_too", an_older_api_is_written_too),
];

/// The writes since the last call: method and name.
fn writes(proxy: &Proxy) -> Vec<(String, String)> {
    proxy.writes().iter().map(|asked| (asked.method.clone(), asked.name().to_owned())).collect()
}

fn write(method: &str, name: &str) -> Vec<(String, String)> {
    vec![(method.to_owned(), object(name))]
}

fn a_service_comes_changes_and_goes(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::with(&proxy.kubeconfig, &namespace, json!({ "vipCidr": "248.0.0.0/6" }), json!({}));
    writer.publish("other", 1, &["10.0.0.9:80"]);
    writer.loaded();
    writer.sync();
    let mut table = Vec::new();
    let mut row = |event: &str, expected: Vec<(String, String)>| {
        let seen = writes(&proxy);
        assert_eq!(seen, expected, "{event}");
        table.push(format!("{event}: {}", seen.len()));
    };
    row("the first service", write("PATCH", "other"));

    writer.publish("demo", 1, &["10.0.0.2:80?app_name=orders&weight=50", "10.0.0.1:81?app_name=orders"]);
    writer.sync();
    row("a new service", write("PATCH", "demo"));
    let shown = server.service(&namespace, &object("demo")).unwrap();
    assert_eq!(shown["metadata"]["labels"], json!({ "sofa.registry/owner": "default" }));
    assert_eq!(
        shown["metadata"]["annotations"],
        json!({ "sofa.registry/owner": "default",
                "sofa.registry/data-info-id": "com.example.demo:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA" })
    );
    let vip = shown["spec"]["addresses"][0].as_str().unwrap().to_owned();
    assert_eq!(
        shown["spec"],
        json!({
            "hosts": ["com.example.demo.sofa.mesh"], "addresses": [vip], "location": "MESH_INTERNAL",
            "resolution": "STATIC", "exportTo": ["*"],
            "ports": [{ "name": "tcp-bolt", "number": 12200, "protocol": "TCP" }],
            "endpoints": [
                { "address": "10.0.0.1", "labels": { "app": "orders" }, "ports": { "tcp-bolt": 81 }, "weight": 100 },
                { "address": "10.0.0.2", "labels": { "app": "orders" }, "ports": { "tcp-bolt": 80 }, "weight": 50 },
            ],
        })
    );
    let managers = shown["metadata"]["managedFields"].as_array().unwrap();
    let managers: Vec<_> = managers.iter().map(|m| (m["manager"].as_str(), m["operation"].as_str())).collect();
    assert_eq!(managers, [(Some("registry-mox-default"), Some("Apply"))]);

    writer.publish("demo", 2, &["10.0.0.2:80?app_name=orders&weight=50", "10.0.0.1:81?app_name=orders"]);
    writer.sync();
    row("the same again", vec![]);
    writer.publish("demo", 3, &["10.0.0.1:81?app_name=orders"]);
    writer.sync();
    row("an endpoint goes", write("PATCH", "demo"));
    assert_eq!(endpoints(&server.service(&namespace, &object("demo")).unwrap()), ["10.0.0.1"]);
    for n in 4..54 {
        writer.publish("demo", n, &[&format!("10.0.0.{n}:81")]);
    }
    writer.sync();
    let coalesced = writes(&proxy).len();
    assert!((1..=50).contains(&coalesced), "{coalesced}");
    assert_eq!(endpoints(&server.service(&namespace, &object("demo")).unwrap()), ["10.0.0.53"]);
    writer.unpublish("demo", 54);
    writer.sync();
    row("the service goes", write("DELETE", "demo"));
    assert_eq!(server.names(&namespace, "serviceentries"), [object("other")]);
    println!("    API writes: {}; 50 changes in a burst: {coalesced}", table.join(", "));
    writer.close();
}

fn a_restart_writes_nothing(server: &mut Server) {
    let namespace = server.namespace();
    let publish = |writer: &Writer| {
        for n in 0..30 {
            writer.publish(&format!("s{n}"), 1, &["10.0.0.1:80?weight=5", "10.0.0.2:80", "[fd00::1]:80"]);
        }
        writer.loaded();
        writer.sync()
    };
    for (mode, objects) in [("inline", 30), ("workload-entry", 30 + 90)] {
        let start = || {
            let more = json!({ "endpointMode": mode });
            Writer::with(&server.kubeconfig("session"), &namespace, more, json!({}))
        };
        let writer = start();
        let report = publish(&writer);
        assert_eq!(report.objects, objects);
        // On a machine that is too busy the answer to a write may be late, and the watch tells.
        assert!(report.applies > 0 && report.applies <= objects as u64, "{report:?}");
        writer.close();
        let writer = start();
        let report = publish(&writer);
        assert_eq!((report.applies, report.deletes, report.objects), (0, 0, objects), "{mode}: {report:?}");
        assert!(report.first_sync.is_some());
        writer.close();
    }
}

/// The requests of a kind come before those of another.
fn assert_order(writes: &[Asked], first: impl Fn(&Asked) -> bool, then: impl Fn(&Asked) -> bool) {
    let last = writes.iter().rposition(first).expect("some of the first");
    let next = writes.iter().position(then).expect("some of the second");
    assert!(last < next, "{:?}", writes.iter().map(|w| format!("{} {}", w.method, w.path)).collect::<Vec<_>>());
}

fn of(kind: &'static str, method: &'static str) -> impl Fn(&Asked) -> bool {
    move |asked| asked.method == method && asked.path.contains(&format!("/{kind}/"))
}

fn workload_entries_come_first_and_go_last(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::with(&proxy.kubeconfig, &namespace, json!({ "endpointMode": "workload-entry" }), json!({}));
    writer.publish("demo", 1, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
    writer.loaded();
    writer.sync();
    let seen = proxy.writes();
    assert_eq!(seen.len(), 4);
    assert_order(&seen, of("workloadentries", "PATCH"), of("serviceentries", "PATCH"));
    let entries = server.objects(&namespace, "workloadentries");
    let label = &entries[0]["spec"]["labels"]["sofa.registry/service"];
    let shown = server.service(&namespace, &object("demo")).unwrap();
    assert_eq!(&shown["spec"]["workloadSelector"]["labels"]["sofa.registry/service"], label);

    writer.publish("demo", 2, &["10.0.0.1:80", "10.0.0.3:80", "10.0.0.4:80"]);
    writer.sync();
    // They are under way at the same time, so either may be there first.
    let seen: BTreeSet<String> =
        proxy.writes().into_iter().map(|asked| format!("{} {}", asked.method, asked.path)).collect();
    let one = |method: &str| {
        seen.iter().filter(|asked| asked.starts_with(method) && asked.contains("/workloadentries/")).count()
    };
    assert_eq!((seen.len(), one("DELETE"), one("PATCH")), (2, 1, 1), "the service itself is not written: {seen:?}");

    writer.unpublish("demo", 3);
    writer.sync();
    let seen = proxy.writes();
    assert_eq!(seen.len(), 4);
    assert_order(&seen, of("serviceentries", "DELETE"), of("workloadentries", "DELETE"));
    assert!(server.names(&namespace, "workloadentries").is_empty());
    writer.close();
}

fn a_large_service_moves_out_and_back(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    // A write of so many endpoints takes seconds, and its bound is a third of the lease.
    let fast = json!({ "rate": 1_000, "lease": "60s" });
    let config = json!({
        "protect": { "massDeleteShare": 100, "emptyGrace": "0s" },
        "limits": { "endpointsPerPublisher": 4_000 },
    });
    let writer = Writer::with(&proxy.kubeconfig, &namespace, config, fast);
    let publish = |version: i64, count: usize| {
        let data: Vec<String> = (0..count).map(|n| format!("10.1.{}.{}:80", n >> 8, n & 255)).collect();
        writer.publish("large", version, &data.iter().map(String::as_str).collect::<Vec<_>>());
        writer.sync();
    };
    writer.loaded();
    publish(1, 3_500);
    assert_eq!(endpoints(&server.service(&namespace, &object("large")).unwrap()).len(), 3_500);
    assert_eq!(proxy.writes().len(), 1);
    publish(2, 3_501);
    let seen = proxy.writes();
    assert_eq!(seen.len(), 3_502);
    assert_order(&seen, of("workloadentries", "PATCH"), of("serviceentries", "PATCH"));
    assert_eq!(server.names(&namespace, "workloadentries").len(), 3_501);
    let shown = server.service(&namespace, &object("large")).unwrap();
    assert!(endpoints(&shown).is_empty() && shown["spec"]["workloadSelector"].is_object(), "{shown}");
    publish(3, 3_500);
    assert_eq!(proxy.writes().len(), 1, "one endpoint, one write; it stays out until half");
    publish(4, 1_750);
    let seen = proxy.writes();
    assert_eq!(seen.len(), 1 + 3_500);
    assert_order(&seen, of("serviceentries", "PATCH"), of("workloadentries", "DELETE"));
    let shown = server.service(&namespace, &object("large")).unwrap();
    assert_eq!(endpoints(&shown).len(), 1_750);
    assert!(shown["spec"]["workloadSelector"].is_null());
    assert!(server.names(&namespace, "workloadentries").is_empty());
    writer.close();
}

fn a_freeze_holds(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    for name in ["a", "b", "c"] {
        writer.publish(name, 1, &["10.0.0.1:80"]);
    }
    writer.loaded();
    writer.sync();
    proxy.take();
    writer.mox.engine.freeze();
    writer.publish("a", 2, &["10.0.0.2:80"]);
    // Of two changes of what is there, the watch shows both.
    for name in ["b", "c"] {
        let (status, _) = server.ask(
            http::Method::DELETE,
            "application/json",
            &path(&namespace, "serviceentries", &object(name)),
            "",
        );
        assert_eq!(status, 200);
    }
    writer.wait("the watch shows what was deleted", |report| report.pending == 2);
    assert_eq!(writes(&proxy), []);
    writer.mox.engine.thaw();
    writer.sync();
    assert_eq!(server.names(&namespace, "serviceentries"), ["a", "b", "c"].map(object));
    assert_eq!(endpoints(&server.service(&namespace, &object("a")).unwrap()), ["10.0.0.2"]);
    writer.close();
}

fn an_older_api_is_written_too(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    proxy.rule(|asked| match &*asked.path {
        "/apis/networking.istio.io" => {
            crate::proxy::Fate::Answer(200, None, json!({ "versions": [{ "version": "v1alpha3" }] }).to_string())
        }
        _ => crate::proxy::Fate::Pass,
    });
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    writer.loaded();
    assert_eq!(writer.sync().api.as_deref(), Some("networking.istio.io/v1alpha3"));
    let seen = proxy.writes();
    assert!(seen.len() == 1 && seen[0].path.starts_with("/apis/networking.istio.io/v1alpha3/"), "{seen:?}");
    assert_eq!(endpoints(&server.service(&namespace, &object("demo")).unwrap()), ["10.0.0.1"]);
    writer.close();
}
