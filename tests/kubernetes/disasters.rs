//! The API server goes down, or loses everything.

use std::{thread, time::Duration};

use serde_json::json;

use crate::{
    Scenario,
    server::{Server, Writer, endpoints, object, publish_many},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("the_api_server_is_down_for_a_minute", the_api_server_is_down_for_a_minute),
    ("etcd_loses_its_data", etcd_loses_its_data),
];

fn the_api_server_is_down_for_a_minute(server: &mut Server) {
    let namespace = server.namespace();
    let writer = Writer::open(&server.kubeconfig("session"), &namespace);
    publish_many(&writer, 0..20, 2);
    writer.loaded();
    let before = writer.sync();
    server.api.down();
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    writer.unpublish("many00000", 2);
    writer.flush();
    writer.wait("the failure is reported", |report| !report.writer && report.failure.is_some());
    // What this is about: a minute of retries.
    thread::sleep(Duration::from_secs(60));
    writer.publish("demo", 2, &["10.0.0.2:80"]);
    server.api.up();
    let report = writer.sync();
    assert_eq!((report.applies - before.applies, report.deletes), (1, 1), "only what changed");
    writer.wait("nothing is wrong any more", |report| report.failure.is_none());
    assert_eq!(endpoints(&server.service(&namespace, &object("demo")).unwrap()), ["10.0.0.2"]);
    assert_eq!(server.names(&namespace, "serviceentries").len(), 20);
    writer.close();
}

fn etcd_loses_its_data(server: &mut Server) {
    let namespace = server.namespace();
    let writer =
        Writer::with(&server.kubeconfig("session"), &namespace, json!({ "endpointMode": "workload-entry" }), json!({}));
    publish_many(&writer, 0..20, 2);
    writer.loaded();
    writer.sync();
    server.api.lose_data();
    server.api.up();
    let report = writer.wait("the lease is lost with the rest", |report| !report.writer && report.failure.is_some());
    println!("    {}", report.failure.unwrap());
    // The rights are back before Istio's kinds are.
    server.make_namespace(&namespace);
    let says = "404: the API server does not know networking.istio.io: install Istio's CRDs";
    writer.wait("the missing kinds are reported", |report| report.failure.as_deref() == Some(says));
    server.api.install();
    // Kinds come one after the other, and a kind that is missing ends a term as the writer.
    writer.sync();
    assert_eq!(server.names(&namespace, "serviceentries").len(), 20);
    assert_eq!(server.names(&namespace, "workloadentries").len(), 40);
    writer.close();
}
