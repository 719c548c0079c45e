//! The scenarios: the ways in which consumers call through the mesh.

use std::collections::BTreeSet;

use harness::process::eventually_is;
use serde_json::{Value, json};

use super::{
    CALLS, CONSUMERS, DUBBO_HOST, Follows, Framework, HOST, Mesh, POD, REGISTRY, STRICT_HOST, STRICT_IDENTITY,
    Scenario, TRI_HOST,
    proxy::{admin_json, connections, connections_since, hosts, made, name_table, stat, wait_for_listeners},
    three, visibility,
};

pub(super) const SCENARIOS: [Scenario; 12] = [
    (
        "mesh_services_are_let_in_step_by_step",
        "services are let in: for nobody, then some for one namespace, then all for all",
        services_are_let_in,
    ),
    (
        "mesh_subscribers_dial_past_the_mesh",
        "unchanged consumers subscribe and dial addresses: past the mesh",
        subscribers_without_direct,
    ),
    ("mesh_bolt_by_host_is_balanced_by_connection", "SOFARPC over bolt with a direct URL to the host", bolt_by_host),
    ("mesh_triple_by_host_is_balanced_by_request", "SOFARPC over triple with a direct URL to the host", triple_by_host),
    (
        "mesh_direct_mode_takes_subscribers_through_the_mesh",
        "direct mode, the consumer chooses: the policy changes, nothing is restarted",
        direct_client,
    ),
    (
        "mesh_direct_mode_with_balance_mesh_lets_envoy_choose",
        "direct mode, the proxy chooses (balance: mesh)",
        direct_mesh,
    ),
    (
        "mesh_an_address_lingers_after_its_provider",
        "a consumer that has not heard yet that a provider is gone (balance: mesh)",
        lingering,
    ),
    ("mesh_strict_provider_by_host_needs_the_rule", "a provider behind STRICT mTLS, called by host", strict_by_host),
    ("mesh_strict_provider_in_direct_mode_needs_the_rule", "the same in direct mode", strict_direct),
    (
        "mesh_strict_provider_with_balance_mesh_needs_the_rule",
        "the same in direct mode with balance: mesh",
        strict_direct_mesh,
    ),
    (
        "mesh_visibility_is_switched_under_calls",
        "who sees what: two consumers in two namespaces call on while visibility is in shadow, on and off",
        visibility::is_switched_under_calls,
    ),
    ("mesh_policies_leave_no_trace", "the first policy again: everything is as it was", no_trace),
];

fn services_are_let_in(mesh: &mut Mesh) {
    let hosts = |names: &[&str]| names.iter().map(|name| format!("{name}.sofa.mesh")).collect::<BTreeSet<_>>();
    let all = [HOST, TRI_HOST, DUBBO_HOST, STRICT_HOST];
    let wait = |mesh: &Mesh, consumers: &[&str], pod: &[&str]| {
        for (proxy, wanted) in [(CONSUMERS, consumers), (POD, pod)] {
            eventually_is(&hosts(wanted), "hosts with clusters in Envoy", || made(proxy).0);
        }
        let names = || name_table().into_keys().collect();
        eventually_is(&hosts(consumers), "istiod's name table for namespace sofa", names);
        for name in all {
            assert!(mesh.istiod.entry(name).is_some(), "{name} is in istiod");
        }
        for (proxy, address) in [("sofa", CONSUMERS), ("strict", POD)] {
            let (clusters, listeners) = made(address);
            mesh.say(&format!("proxy in namespace {proxy}: clusters {clusters:?}, listeners {listeners:?}"));
        }
    };
    mesh.policy(&json!({ "exportTo": ["~"] }));
    wait(mesh, &[], &[]);
    let some = json!({ "com.example.DemoService:1.0@DEFAULT#*": { "exportTo": ["sofa"] } });
    mesh.policy(&json!({ "exportTo": ["~"], "overrides": some }));
    wait(mesh, &[HOST], &[]);
    mesh.policy(&json!({}));
    wait(mesh, &all, &all);
}

fn subscribers_without_direct(mesh: &mut Mesh) {
    mesh.policy(&json!({}));
    wait_for_listeners(12200, false);
    wait_for_listeners(20880, false);
    for (way, framework, consumer) in SUBSCRIBERS {
        let row = mesh.calls(way, framework, consumer, &Follows::Answers);
        row.check(1);
        assert_eq!(row.through(), 0, "connections through the mesh");
        assert!(row.past() >= 4 && row.distribution().iter().all(|count| *count > 20));
    }
}

const SUBSCRIBERS: [(&str, Framework, &[&str]); 2] = [
    ("SOFARPC subscribes", Framework::Sofarpc, &["sofa://10.60.0.1:9603", "1"]),
    ("Dubbo subscribes", Framework::Dubbo, &[REGISTRY]),
];

fn bolt_by_host(mesh: &mut Mesh) {
    mesh.policy(&json!({}));
    let cluster = format!("outbound|12200||{HOST}.sofa.mesh");
    let url = format!("bolt://{HOST}.sofa.mesh:12200");
    let row = mesh.calls(
        "SOFARPC, bolt, by host, 9 connections",
        Framework::Sofarpc,
        &[&url, "9"],
        &Follows::Cluster(cluster),
    );
    row.check(9);
    assert_eq!(row.past(), 0);
}

fn triple_by_host(mesh: &mut Mesh) {
    mesh.policy(&json!({}));
    let url = format!("tri://{TRI_HOST}.sofa.mesh:50051");
    let row = mesh.calls("SOFARPC, triple, by host", Framework::Sofarpc, &[&url, "1"], &Follows::Answers);
    row.check(1);
    assert_eq!(row.past(), 0);
}

/// All providers but the strict one connect to the registry from one address.
fn direct(balance: &str) -> Value {
    json!({ "applications": ["orders", "dubbo-orders"], "balance": balance, "addresses": ["10.50.0.0/24"] })
}

fn direct_client(mesh: &mut Mesh) {
    mesh.policy(&json!({ "direct": direct("client") }));
    wait_for_listeners(12200, true);
    wait_for_listeners(20880, true);
    for (way, framework, consumer) in SUBSCRIBERS {
        let row = mesh.calls(&format!("{way}, direct mode"), framework, consumer, &Follows::Answers);
        row.check(1);
        // At most the connection to the provider that comes, where the consumer hears of it before Envoy does.
        assert!(row.past() <= 1, "{} connections past the mesh", row.past());
        assert!(row.through() >= 3 && row.distribution().iter().all(|count| *count > 20));
    }
}

fn direct_mesh(mesh: &mut Mesh) {
    mesh.policy(&json!({ "direct": direct("mesh") }));
    let hosts = ["p12200.orders", "p20880.dubbo-orders"];
    for host in hosts {
        mesh.wait_for_endpoints(&format!("{host}.app"), three());
    }
    for ((way, framework, consumer), (host, port)) in SUBSCRIBERS.into_iter().zip(hosts.into_iter().zip([12200, 20880]))
    {
        wait_for_listeners(port, true);
        let cluster = format!("outbound|{port}||{host}.app.sofa.mesh");
        eventually_is(&three().into_iter().collect(), "endpoints in Envoy", || self::hosts(&cluster));
        let row = mesh.calls(&format!("{way}, balance: mesh"), framework, consumer, &Follows::Cluster(cluster));
        // Envoy may have chosen the first provider for each of the four connections. They are made again to others, whatever the
        // consumer has heard: an address lingers.
        row.check(4);
        // One to the provider that comes, where the consumer hears of it before Envoy does.
        assert!(row.past() <= 1, "{} connections past the mesh", row.past());
        assert!(row.through() >= 3);
    }
}

/// However late a consumer hears that a provider is gone: this one never does.
fn lingering(mesh: &mut Mesh) {
    let url = "bolt://10.50.0.1:12200";
    let cluster = "outbound|12200||p12200.orders.app.sofa.mesh";
    let rest: BTreeSet<String> = three().into_iter().skip(1).collect();
    let call = |mesh: &mut Mesh, way: &str| {
        let before = connections(CONSUMERS);
        let mut caller = mesh.caller(Framework::Sofarpc, &[url, "1"]);
        caller.call(CALLS, 0);
        let row = mesh.row(way, caller, connections_since(CONSUMERS, &before));
        row.check(0);
        (row.through(), row.past(), row.by.keys().cloned().collect::<BTreeSet<_>>())
    };
    mesh.policy(&json!({ "direct": direct("mesh") }));
    mesh.wait_for_endpoints("p12200.orders.app", three());
    wait_for_listeners(12200, true);
    mesh.fleet(Framework::Sofarpc).publish(1, false);
    eventually_is(&rest, "endpoints in Envoy", || hosts(cluster));
    wait_for_listeners(12200, true);
    let (through, past, by) = call(mesh, "SOFARPC dials a provider that went");
    assert!((through, past) == (1, 0) && by.is_subset(&rest), "{through} through, {past} past, answers of {by:?}");
    let mut off = direct("mesh");
    off["linger"] = json!("0s");
    mesh.policy(&json!({ "direct": off }));
    eventually_is(&false, "a listener on the address", || made(CONSUMERS).1.contains("10.50.0.1_12200"));
    let (through, past, by) = call(mesh, "the same without lingering");
    assert_eq!((through, past, by), (0, 1, three().into_iter().take(1).collect()), "it is called on as before");
}

fn strict_by_host(mesh: &mut Mesh) {
    let url = format!("bolt://{STRICT_HOST}.sofa.mesh:12200");
    strict(mesh, "by host", &[&url, "1", "strict"], json!(null));
}

fn strict_direct(mesh: &mut Mesh) {
    let direct = json!({ "applications": ["strict-orders"] });
    strict(mesh, "direct mode", &["sofa://10.60.0.1:9603", "1", "strict"], direct);
}

fn strict_direct_mesh(mesh: &mut Mesh) {
    let direct = json!({ "applications": ["strict-orders"], "balance": "mesh" });
    strict(mesh, "balance: mesh", &["sofa://10.60.0.1:9603", "1", "strict"], direct);
}

/// Calls of the provider behind STRICT, without and with a rule.
fn strict(mesh: &mut Mesh, way: &str, consumer: &[&str], direct: Value) {
    let rule = json!([{ "applications": ["strict-*"], "identities": [STRICT_IDENTITY] }]);
    let listens = format!("{POD}_12200");
    for (with, rules, calls) in [("without", json!([]), 20), ("with", rule, CALLS)] {
        let mut policy = json!({ "mtls": rules });
        if !direct.is_null() {
            policy["direct"] = direct.clone();
        }
        mesh.policy(&policy);
        eventually_is(&!direct.is_null(), "a listener on the address", || made(CONSUMERS).1.contains(&listens));
        eventually_is(&(with == "with"), "mTLS in Envoy", || mtls_in_envoy(&direct));
        if with == "with" {
            // The worker that connects may not have yet what the pages of Envoy's main thread say.
            mesh.caller(Framework::Sofarpc, consumer).until("an answer", |by| !by.is_empty());
        }
        let (before, handshakes) = (connections(CONSUMERS), stat(CONSUMERS, "outbound|12200", "ssl.handshake"));
        let mut caller = mesh.caller(Framework::Sofarpc, consumer);
        caller.call(calls, 0);
        let way = format!("STRICT provider, {way}, {with} the rule");
        let row = mesh.row(&way, caller, connections_since(CONSUMERS, &before));
        let (through, past, failed) = (row.through(), row.past(), row.failed);
        let handshakes = stat(CONSUMERS, "outbound|12200", "ssl.handshake") - handshakes;
        assert_eq!(failed, if with == "with" { 0 } else { calls });
        assert_eq!((past, through > 0, handshakes > 0), (0, true, with == "with"));
    }
}

/// Whether the strict provider is called with mTLS, by the configuration of the consumers' Envoy: where the consumer chooses,
/// by that of the cluster, else by a label of the endpoint.
fn mtls_in_envoy(direct: &Value) -> bool {
    if !direct.is_null() && direct["balance"] != "mesh" {
        let path = "/config_dump?resource=dynamic_active_clusters&name_regex=.*strict-orders.*";
        return admin_json(CONSUMERS, path).to_string().contains("ROOTCA");
    }
    let host = if direct.is_null() { STRICT_HOST } else { "p12200.strict-orders.app" };
    let all = admin_json(CONSUMERS, "/config_dump?include_eds&resource=dynamic_endpoint_configs");
    let endpoints = all["configs"].as_array().into_iter().flatten().map(|config| &config["endpoint_config"]);
    let cluster = format!("outbound|12200||{host}.sofa.mesh");
    endpoints.filter(|it| it["cluster_name"] == *cluster).any(|it| it.to_string().contains("tlsMode"))
}

fn no_trace(mesh: &mut Mesh) {
    mesh.policy(&json!({}));
    let first = mesh.first.clone();
    eventually_is(&first, "what is served", || mesh.served());
    wait_for_listeners(12200, false);
}
