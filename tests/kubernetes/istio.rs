//! A real istiod that reads the objects, while no stream of ours is open.

use std::path::Path;

use harness::{
    SOON,
    client::{MoxClient, SERVICE_ENTRY, istiod_node},
    process::{Process, START, eventually, free_port, get, log_path, root, script},
};
use serde_json::{Value, json};

use crate::{
    Scenario,
    server::{PATIENCE, Server, Writer},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("istiod_reads_the_objects", |server| istiod_reads(server, "pilot-discovery")),
    ("one_engine_serves_both_ways", one_engine_serves_both_ways),
];

/// Endpoints of a host, by istiod's own account.
fn endpoints(http: u16, host: &str) -> Option<Vec<String>> {
    let shards: Value = serde_json::from_str(&get(http, "/debug/endpointShardz")?).ok()?;
    let mut addresses: Vec<String> = Vec::new();
    for shards in shards.get(host)?.as_object()?.values() {
        for endpoint in
            shards["Shards"].as_object()?.values().flat_map(|shard| shard.as_array().cloned().unwrap_or_default())
        {
            let address = |value: &Value| value.as_str().map(str::to_owned);
            addresses.push(address(&endpoint["Addresses"][0]).or_else(|| address(&endpoint["Address"]))?);
        }
    }
    addresses.sort();
    Some(addresses)
}

/// The second istiod.
pub(crate) const MASTER: &str = "pilot-discovery-1.32-dev";

/// Whether it is built (`tests/real/install.sh master`).
pub(crate) fn has_master() -> bool {
    root().join("target/real/bin").join(MASTER).is_file()
}

/// istiod reads every namespace, also those of other scenarios, so the service is one of its own.
const NAME: &str = "read";

pub(crate) fn istiod_reads(server: &mut Server, program: &str) {
    let istiod = root().join("target/real/bin").join(program);
    let namespace = server.namespace();
    server.make_namespace("istio-system");
    let writer = Writer::open(&server.kubeconfig("session"), &namespace);
    writer.publish(NAME, 1, &["10.0.0.1:80", "10.0.0.2:80"]);
    writer.loaded();
    writer.sync();
    let (http, grpc, monitoring) = (free_port(), free_port(), free_port());
    let log = log_path(&format!("kubernetes-{program}"));
    let mut command = script("istiod-kubernetes.sh", Path::new(&log));
    command.env("ISTIOD", istiod).env("HTTP_PORT", http.to_string()).env("GRPC_PORT", grpc.to_string());
    command.env("MONITORING_PORT", monitoring.to_string()).arg(server.kubeconfig("admin"));
    let mut process = Process::start(&mut command);
    eventually(START, "istiod is ready", || {
        assert!(process.alive(), "istiod ended: see {}", log.display());
        get(http, "/ready")
    });
    let host = &*format!("com.example.{NAME}.sofa.mesh");
    let shows = |wanted: &[&str]| {
        eventually(PATIENCE, &format!("istiod has {wanted:?}"), || {
            (endpoints(http, host).unwrap_or_default() == wanted).then_some(())
        });
    };
    shows(&["10.0.0.1", "10.0.0.2"]);
    let services = get(http, "/debug/registryz").unwrap();
    assert!(services.contains(&format!("\"hostname\":\"{host}\"")), "{services}");
    writer.publish(NAME, 2, &["10.0.0.2:80", "10.0.0.3:80"]);
    shows(&["10.0.0.2", "10.0.0.3"]);
    writer.unpublish(NAME, 3);
    eventually(PATIENCE, "the service goes", || {
        (!get(http, "/debug/registryz")?.contains(&format!("\"hostname\":\"{host}\""))).then_some(())
    });
    writer.close();
}

fn one_engine_serves_both_ways(server: &mut Server) {
    let namespace = server.namespace();
    let writer =
        Writer::with(&server.kubeconfig("session"), &namespace, json!({ "push": { "prime": false } }), json!({}));
    for name in ["a", "b", "c"] {
        writer.publish(name, 1, &["10.0.0.1:80", "10.0.0.2:80?weight=7"]);
    }
    writer.loaded();
    writer.sync();
    let served: Vec<(String, Vec<String>)> = server.runtime.block_on(async {
        let mut client = MoxClient::connect(&writer.mox.address(), istiod_node()).await.unwrap();
        client.subscribe(SERVICE_ENTRY).unwrap();
        client.wait_until(SOON, |state| state.len() == 3).await.unwrap();
        let address = |entry: &registry_mox::proto::istio::networking::v1alpha3::ServiceEntry| {
            entry.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect()
        };
        client.state().values().map(|resource| (resource.entry.hosts[0].clone(), address(&resource.entry))).collect()
    });
    let shown =
        |object: Value| (object["spec"]["hosts"][0].as_str().unwrap().to_owned(), crate::server::endpoints(&object));
    let written: Vec<(String, Vec<String>)> =
        server.objects(&namespace, "serviceentries").into_iter().map(shown).collect();
    assert_eq!(written, served);
    writer.close();
}
