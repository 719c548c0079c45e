//! The API server goes down, or loses everything.

use std::{sync::Arc, thread, time::Duration};

use http::Method;
use serde_json::json;

use crate::{
    Scenario,
    proxy::{Asked, Fate, Kept},
    server::{Server, Writer, endpoints, object, path, publish_many},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("the_api_server_is_down_for_a_minute", the_api_server_is_down_for_a_minute),
    ("etcd_loses_its_data", etcd_loses_its_data),
    ("a_list_that_is_older_than_a_write_undoes_nothing", a_list_that_is_older_than_a_write_undoes_nothing),
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
    // The minute of retries that the scenario is about.
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

/// A watch that ends is followed by a list, which takes its time while writes go on.
fn a_list_that_is_older_than_a_write_undoes_nothing(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let kept: Arc<Kept> = Arc::default();
    let (keep, mut lists, mut watches) = (Arc::clone(&kept), 0, 0);
    proxy.rule(move |asked: &Asked| {
        let (is_list, is_watch) = (asked.path.contains("?limit="), asked.path.contains("?watch="));
        if !asked.path.contains("/serviceentries?") || asked.method != "GET" {
            return Fate::Pass;
        }
        lists += usize::from(is_list);
        watches += usize::from(is_watch);
        match (is_list, lists, watches) {
            (false, _, 1) => Fate::Answer(500, None, "{}".to_owned()),
            (true, 2, _) => Fate::Keep(Arc::clone(&keep)),
            _ => Fate::Pass,
        }
    });
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    publish_many(&writer, 0..3, 2);
    writer.loaded();
    kept.is_here(&server.runtime);
    writer.sync();
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    writer.publish("many00000", 2, &["10.0.0.2:80"]);
    let report = writer.sync();
    assert_eq!(report.applies, 5, "{report:?}");
    let deleted = path(&namespace, "serviceentries", &object("many00001"));
    assert_eq!(server.ask(Method::DELETE, "application/json", &deleted, "").0, 200);
    kept.let_go();
    writer.wait("it is listed", |report| report.failure.is_none());
    let report = writer.wait("what another deletes is written again", |report| report.applies >= 6 && report.in_sync);
    assert_eq!((report.applies, report.conflicts, report.refused), (6, 0, 0), "{report:?}");
    assert_eq!(server.names(&namespace, "serviceentries").len(), 4);
    assert_eq!(endpoints(&server.service(&namespace, &object("many00000")).unwrap()), ["10.0.0.2"]);
    writer.close();
}
