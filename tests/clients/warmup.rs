//! Warm-up by policy, as the real istiod hands it to an Envoy, beside DestinationRules of an operator's own.

use std::fs;

use harness::{
    parts::{Envoy, Istiod},
    process::{eventually_is, free_port, get, root},
};
use serde_json::{Value, json};

use crate::{
    istiod::wait_until_held,
    serve::{Server, name, registered, sources},
};

/// The window of slow start and the way of balancing that an Envoy in namespace `sofa` has for a service.
fn balancing(envoy: &Envoy, n: usize) -> Option<(String, Option<String>)> {
    let host = format!("{}.sofa.mesh", name(n));
    let page = get(envoy.admin, "/config_dump?resource=dynamic_active_clusters")?;
    let all: Value = serde_json::from_str(&page).unwrap();
    let clusters = all["configs"].as_array()?.iter().map(|config| &config["cluster"]);
    let cluster = clusters.into_iter().find(|cluster| cluster["name"] == format!("outbound|12200||{host}"))?;
    // Of several ways the first one is not written.
    let policy = cluster["lb_policy"].as_str().unwrap_or("ROUND_ROBIN").to_owned();
    let configs = ["least_request_lb_config", "round_robin_lb_config"].map(|key| &cluster[key]["slow_start_config"]);
    let window = configs.iter().find_map(|config| config["slow_start_window"].as_str());
    Some((policy, window.map(str::to_owned)))
}

/// istiod takes the rule of the client's namespace, then the one of the service's namespace, of two with one `exportTo` the older,
/// then that of the root namespace.
pub(crate) fn is_followed_and_gives_way() {
    let rule = |namespace: &str, host: String, policy: Value| {
        let metadata = json!({ "name": format!("own-{namespace}"), "namespace": namespace });
        let spec = json!({ "host": host, "trafficPolicy": { "loadBalancer": policy } });
        json!({ "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": metadata, "spec": spec })
    };
    let host = |n: usize| format!("{}.sofa.mesh", name(n));
    let mut exported = rule("sofa-registry", host(5), json!({ "simple": "RANDOM" }));
    exported["metadata"]["name"] = "own-exported".into();
    exported["spec"]["exportTo"] = json!(["*"]);
    let own = [
        exported,
        rule("sofa", host(1), json!({ "simple": "RANDOM" })),
        rule("sofa-registry", host(2), json!({ "simple": "ROUND_ROBIN", "warmup": { "duration": "7s" } })),
        rule("istio-system", host(3), json!({ "simple": "RANDOM" })),
    ];
    let also = root().join("target/real/run/warmup");
    let _ = fs::remove_dir_all(&also);
    fs::create_dir_all(&also).unwrap();
    let documents: Vec<String> = own.iter().map(Value::to_string).collect();
    fs::write(also.join("own.yaml"), documents.join("\n---\n")).unwrap();

    let state = registered(6, 2);
    let mut serve = Server::loaded(json!({}), &state);
    let port = free_port();
    let istiod = Istiod::with_sources(&sources(1), port, &[("ALSO", also.to_str().unwrap()), ("MTLS", "false")]);
    wait_until_held(&istiod, &state);
    let envoy = Envoy::of(port, &format!("outbound|12200||{}", host(0)));
    let all = || (0..6).map(|n| balancing(&envoy, n)).collect::<Option<Vec<_>>>();
    let is = |policy: &str, window: Option<&str>| (policy.to_owned(), window.map(str::to_owned));
    let usual = is("LEAST_REQUEST", None);
    let (own_client, own_service) = (is("RANDOM", None), is("ROUND_ROBIN", Some("7s")));
    let before =
        vec![usual.clone(), own_client.clone(), own_service.clone(), own_client.clone(), usual, own_client.clone()];
    eventually_is(&Some(before.clone()), "how Envoy balances", all);

    let warmup = |time: &str| json!({ "warmup": time });
    serve.policy(
        &json!({ "overrides": { "com.example.S*": warmup("90s"), "com.example.S4:*": { "exportTo": ["other"] } } }),
    );
    let ours = is("LEAST_REQUEST", Some("90s"));
    // That of the root namespace loses, since ours is in the service's own, and so does one with another `exportTo`.
    let after = vec![ours.clone(), own_client.clone(), own_service.clone(), ours.clone(), ours];
    eventually_is(&Some(after), "how Envoy balances", || {
        [0, 1, 2, 3, 5].map(|n| balancing(&envoy, n)).into_iter().collect()
    });
    eventually_is(&None, "a service for another namespace", || balancing(&envoy, 4));

    serve.policy(&json!({ "overrides": { "com.example.S0:*": warmup("1500ms") } }));
    let mut other = before.clone();
    other[0] = is("LEAST_REQUEST", Some("1.500s"));
    eventually_is(&Some(other), "how Envoy balances", all);
    serve.policy(&json!({}));
    eventually_is(&Some(before), "how Envoy balances", all);
}
