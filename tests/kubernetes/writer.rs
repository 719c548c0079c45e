//! Who may write: foreign objects, other writers, the lease, purges.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use harness::process::{Process, eventually};
use http::Method;
use registry_mox::testing::host::admin::{self, Credentials};
use serde_json::json;

use crate::{
    Scenario,
    proxy::{Asked, Fate},
    server::{PATIENCE, Server, Writer, ask, endpoints, object, path, publish_many},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("a_foreign_object_is_left_alone", a_foreign_object_is_left_alone),
    ("one_that_comes_in_the_same_moment_is_given_back", one_that_comes_in_the_same_moment_is_given_back),
    ("what_others_change_is_changed_back", what_others_change_is_changed_back),
    ("a_stale_write_is_refused_and_made_again", a_stale_write_is_refused_and_made_again),
    ("the_lease_is_handed_over", the_lease_is_handed_over),
    ("who_is_cut_off_stops_before_another_begins", who_is_cut_off_stops_before_another_begins),
    ("a_killed_writer_is_succeeded", a_killed_writer_is_succeeded),
    ("two_owners_share_a_namespace", two_owners_share_a_namespace),
    ("a_mass_deletion_is_withheld", a_mass_deletion_is_withheld),
    ("a_purge_deletes_what_is_ours", a_purge_deletes_what_is_ours),
];

/// A ServiceEntry of somebody else.
fn foreign(name: &str, host: &str) -> String {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": { "name": name, "labels": { "sofa.registry/owner": "default" } },
        "spec": { "hosts": [host], "resolution": "STATIC", "endpoints": [{ "address": "192.0.2.1" }],
                  "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }] },
    })
    .to_string()
}

fn a_foreign_object_is_left_alone(server: &mut Server) {
    let namespace = server.namespace();
    let at = path(&namespace, "serviceentries", &object("demo"));
    server.apply(&at, &foreign(&object("demo"), "com.example.demo.sofa.mesh"));
    let before = server.get(&at).unwrap();
    let writer = Writer::open(&server.kubeconfig("session"), &namespace);
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    writer.publish("other", 1, &["10.0.0.1:80"]);
    // Where nothing at all would be left, removals are withheld.
    writer.publish("stays", 1, &["10.0.0.1:80"]);
    writer.loaded();
    let key = format!("ServiceEntry {}", object("demo"));
    let report = writer.wait("it is reported", |report| report.problems.contains_key(&key) && report.applies == 2);
    assert_eq!(&*report.problems[&key].message, "an object with this name is another's, so it is left alone");
    writer.publish("demo", 2, &["10.0.0.2:80"]);
    writer.unpublish("other", 2);
    writer.flush();
    writer.wait("the others go on", |report| report.deletes == 1);
    assert_eq!(server.get(&at).unwrap(), before, "not even its version is another");

    // Its owner deletes it: the name is free.
    assert_eq!(server.ask(Method::DELETE, "application/json", &at, "").0, 200);
    let report = writer.sync();
    assert!(report.problems.is_empty());
    assert_eq!(endpoints(&server.get(&at).unwrap()), ["10.0.0.2"]);
    writer.unpublish("demo", 3);
    writer.sync();
    assert!(server.get(&at).is_none());
    writer.close();
}

fn one_that_comes_in_the_same_moment_is_given_back(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    writer.loaded();
    writer.sync();
    let at = path(&namespace, "serviceentries", &object("demo"));
    let (admin, handle, of) = (server.admin(), server.runtime.handle().clone(), at.clone());
    let mut done = false;
    proxy.rule(move |asked: &Asked| {
        if asked.method == "PATCH" && !std::mem::replace(&mut done, true) {
            let path = format!("{of}?fieldManager=somebody");
            let body = foreign(&object("demo"), "com.example.demo.sofa.mesh");
            let (status, _) = handle.block_on(ask(&admin, Method::PATCH, "application/apply-patch+yaml", &path, &body));
            assert_eq!(status, 201);
        }
        Fate::Pass
    });
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    writer.flush();
    let key = format!("ServiceEntry {}", object("demo"));
    writer.wait("it is reported", |report| {
        report.problems.get(&key).is_some_and(|problem| problem.message.contains("another's"))
    });
    let shown = server.get(&at).unwrap();
    assert_eq!(endpoints(&shown), ["192.0.2.1"], "{shown}");
    assert!(shown["metadata"]["annotations"].is_null() && shown["spec"]["addresses"].is_null(), "{shown}");
    let managers = shown["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(managers.iter().map(|m| m["manager"].as_str().unwrap()).collect::<Vec<_>>(), ["somebody"]);
    writer.close();
}

fn what_others_change_is_changed_back(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    writer.loaded();
    writer.sync();
    let at = path(&namespace, "serviceentries", &object("demo"));
    let edit = |patch: serde_json::Value| {
        let (status, shown) = server.ask(Method::PATCH, "application/merge-patch+json", &at, &patch.to_string());
        assert_eq!(status, 200, "{shown}");
    };
    proxy.take();
    edit(json!({ "metadata": { "labels": { "team": "a" } } }));
    edit(json!({ "spec": { "endpoints": [{ "address": "192.0.2.1" }] } }));
    eventually(PATIENCE, "the edit is undone", || (endpoints(&server.get(&at).unwrap()) == ["10.0.0.1"]).then_some(()));
    assert_eq!(server.get(&at).unwrap()["metadata"]["labels"]["team"], "a", "what is not ours stays");
    assert_eq!(proxy.writes().len(), 1);
    assert_eq!(server.ask(Method::DELETE, "application/json", &at, "").0, 200);
    eventually(PATIENCE, "it is made again", || server.get(&at));
    // Somebody who never gives in does not make it spin.
    let until = Instant::now() + Duration::from_secs(8);
    let mut edits = 0;
    while Instant::now() < until {
        if server.get(&at).is_some_and(|shown| endpoints(&shown) == ["10.0.0.1"]) {
            edit(json!({ "spec": { "endpoints": [{ "address": "192.0.2.1" }] } }));
            edits += 1;
        }
        std::thread::sleep(Duration::from_millis(20)); // the polling interval
    }
    let rewrites = proxy.writes().len();
    assert!(edits >= 2 && rewrites <= 8, "{edits} edits, {rewrites} writes in 8 s");
    writer.close();
}

fn a_stale_write_is_refused_and_made_again(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    writer.loaded();
    writer.sync();
    let at = path(&namespace, "serviceentries", &object("demo"));
    let (admin, handle, of) = (server.admin(), server.runtime.handle().clone(), at.clone());
    let mut times = 0;
    proxy.rule(move |asked: &Asked| {
        if asked.is_write() && times < 3 {
            times += 1;
            let patch = json!({ "metadata": { "labels": { "times": times.to_string() } } }).to_string();
            handle.block_on(ask(&admin, Method::PATCH, "application/merge-patch+json", &of, &patch));
        }
        Fate::Pass
    });
    writer.publish("demo", 2, &["10.0.0.2:80"]);
    let report = writer.sync();
    assert_eq!(report.conflicts, 3, "{report:?}");
    let shown = server.get(&at).unwrap();
    assert_eq!((endpoints(&shown), &shown["metadata"]["labels"]["times"]), (vec!["10.0.0.2".to_owned()], &json!("3")));
    writer.close();
}

fn the_lease_is_handed_over(server: &mut Server) {
    let namespace = server.namespace();
    // A lease that is not handed over would be the first writer's for 30 s more.
    let open = || Writer::with(&server.kubeconfig("session"), &namespace, json!({}), json!({ "lease": "30s" }));
    let first = open();
    first.publish("demo", 1, &["10.0.0.1:80"]);
    first.loaded();
    first.sync();
    let second = open();
    second.publish("demo", 1, &["10.0.0.1:80"]);
    second.publish("more", 1, &["10.0.0.1:80"]);
    second.loaded();
    second.wait("it sees who writes", |report| report.holder.as_ref() == Some(&first.report().identity));
    assert!(!second.report().writer && second.report().applies == 0);
    let lease = server.get(&format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/registry-mox-default"));
    assert_eq!(lease.unwrap()["spec"]["holderIdentity"], first.report().identity);
    let began = Instant::now();
    first.close();
    let report = second.sync();
    assert_eq!((report.applies, report.deletes), (1, 0), "only what is another");
    println!("    handed over in {:.1?}", began.elapsed());
    assert_eq!(server.names(&namespace, "serviceentries"), ["demo", "more"].map(object));
    second.close();
}

fn who_is_cut_off_stops_before_another_begins(server: &mut Server) {
    let namespace = server.namespace();
    let (proxy, other) = (server.proxy(), server.proxy());
    let open = |kubeconfig| Writer::with(kubeconfig, &namespace, json!({}), json!({ "lease": "6s" }));
    let (first, second) = (open(&proxy.kubeconfig), open(&other.kubeconfig));
    for writer in [&first, &second] {
        publish_many(writer, 0..5, 1);
    }
    first.loaded();
    first.sync();
    second.loaded();
    // The lease only is cut off: everything else would still go.
    let cut = Arc::new(AtomicBool::new(false));
    let is_cut = Arc::clone(&cut);
    proxy.rule(move |asked| match is_cut.load(Ordering::Relaxed) && asked.path.contains("/leases/") {
        true => Fate::Cut { after: false },
        false => Fate::Pass,
    });
    proxy.take();
    other.take();
    cut.store(true, Ordering::Relaxed);
    let mut version = 2;
    let until = Instant::now() + PATIENCE;
    while !second.report().writer {
        assert!(Instant::now() < until, "nobody takes over");
        // The registry goes on meanwhile, and both know it.
        for writer in [&first, &second] {
            writer.publish("many00001", version, &[&format!("10.9.{}.{}:80", version >> 8, version & 255)]);
        }
        version += 1;
        std::thread::sleep(Duration::from_millis(20)); // so many changes a second
    }
    let report = second.sync();
    let (last, next) = (proxy.writes(), other.writes());
    let (last, next) = (last.last().expect("the first wrote"), next.first().expect("the second wrote"));
    assert!(last.at < next.at, "no two write at once");
    println!("    {:.1?} without a writer", next.at - last.at);
    assert!(!first.report().writer && report.conflicts == 0, "{report:?}");
    first.close();
    second.close();
}

/// The first argument of this program as a process that only writes, to be killed.
pub(crate) const PROCESS: &str = "--writer";
/// How many services it has.
const MANY: usize = 200;

/// Slowly, so that it is killed in the middle.
fn open_slowly(kubeconfig: &Path, namespace: &str, rate: usize) -> Writer {
    let writer = Writer::with(kubeconfig, namespace, json!({}), json!({ "lease": "5s", "rate": rate }));
    publish_many(&writer, 0..MANY, 2);
    writer.loaded();
    writer
}

pub(crate) fn process(kubeconfig: &Path, namespace: &str) -> ! {
    let _writer = open_slowly(kubeconfig, namespace, 20);
    loop {
        std::thread::park();
    }
}

/// The killed writer says nothing any more: no hand-over, a lease that runs out, half of its objects written.
fn a_killed_writer_is_succeeded(server: &mut Server) {
    let namespace = server.namespace();
    let kubeconfig = server.kubeconfig("session");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let first = Process::start(command.arg(PROCESS).arg(&kubeconfig).arg(&namespace));
    let written = || server.names(&namespace, "serviceentries").len();
    eventually(PATIENCE, "it writes", || (written() >= 40).then_some(()));
    drop(first);
    let left = written();
    assert!(left < MANY, "it was killed in the middle");
    let began = Instant::now();
    let second = open_slowly(&kubeconfig, &namespace, 1_000);
    let report = second.sync();
    println!("    {left} of {MANY} were written, the others within {:.1?}", began.elapsed());
    // Writes that were on their way when the first writer was killed may have arrived after the count.
    let missing = MANY - left - 16..=MANY - left;
    assert!(missing.contains(&(report.applies as usize)) && report.deletes == 0, "only what is missing: {report:?}");
    assert_eq!(written(), MANY);
    second.close();
}

fn two_owners_share_a_namespace(server: &mut Server) {
    let namespace = server.namespace();
    server.grant(&namespace, "north");
    let open = |owner: &str, suffix: &str| {
        let more = json!({ "hostSuffix": suffix });
        Writer::with(&server.kubeconfig("session"), &namespace, more, json!({ "owner": owner }))
    };
    let (south, north) = (open("default", "south.mesh"), open("north", "north.mesh"));
    south.publish("a", 1, &["10.0.0.1:80"]);
    north.publish("b", 1, &["10.0.0.2:80"]);
    for writer in [&south, &north] {
        writer.publish("both", 1, &["10.0.0.3:80"]);
    }
    south.loaded();
    south.sync();
    north.loaded();
    let report = north.wait("one is another's", |report| report.problem_count == 1 && report.applies == 1);
    assert!(report.problems.contains_key(&format!("ServiceEntry {}", object("both"))));
    south.unpublish("a", 2);
    south.sync();
    assert_eq!(server.names(&namespace, "serviceentries"), ["b", "both"].map(object));
    let shown = server.service(&namespace, &object("both")).unwrap();
    assert_eq!(shown["spec"]["hosts"][0], "com.example.both.south.mesh");
    south.close();
    north.close();
}

fn a_mass_deletion_is_withheld(server: &mut Server) {
    let namespace = server.namespace();
    let open = || Writer::open(&server.kubeconfig("session"), &namespace);
    let writer = open();
    publish_many(&writer, 0..40, 2);
    writer.loaded();
    writer.sync();
    writer.close();
    // The writer comes back with a quarter of the services, without a state of its own, and knows a new service.
    let writer = open();
    publish_many(&writer, 0..10, 2);
    publish_many(&writer, 900..901, 2);
    writer.publish("many00003", 2, &["10.7.7.7:80"]);
    writer.loaded();
    let report = writer.wait("removals are withheld", |report| report.withheld.is_some() && report.applies == 2);
    let lost = report.withheld.unwrap();
    assert_eq!((lost.services, lost.endpoints), (30, 61));
    assert_eq!(server.names(&namespace, "serviceentries").len(), 41, "what is new is written");
    let kept = server.service(&namespace, &object("many00003")).unwrap();
    assert_eq!(endpoints(&kept).len(), 3, "it has a new one, and loses none");
    writer.publish("many00003", 3, &["10.7.7.7:80", "10.7.7.8:80", "10.7.7.9:80"]);
    writer.flush();
    writer.wait("a replacement passes", |report| report.applies == 3);
    assert_eq!(endpoints(&server.service(&namespace, &object("many00003")).unwrap()).len(), 3);
    assert_eq!(writer.report().deletes, 0);
    writer.mox.engine.release().unwrap();
    // The sink hears of the release in a moment of its own, and is in sync before as well.
    writer.wait("the removals go", |report| report.deletes == 30 && report.withheld.is_none());
    assert_eq!(server.names(&namespace, "serviceentries").len(), 11);
    assert!(writer.mox.engine.release().is_err(), "nothing is held");
    writer.close();
}

fn a_purge_deletes_what_is_ours(server: &mut Server) {
    let namespace = server.namespace();
    let mine = path(&namespace, "serviceentries", "mine");
    server.apply(&mine, &foreign("mine", "mine.example.com"));
    let more = json!({ "admin": { "token": "secret" }, "endpointMode": "workload-entry" });
    let writer = Writer::with(&server.kubeconfig("session"), &namespace, more, json!({}));
    publish_many(&writer, 0..20, 3);
    writer.loaded();
    writer.sync();
    let post = |path: &str, token: &str, body: &str| {
        let shown = Credentials { token: token.to_owned(), ..Credentials::default() };
        admin::change(&writer.mox.engine, &shown, admin::Request { path, body: body.as_bytes(), ..Default::default() })
    };
    assert_eq!(post("/mox/kubernetes/purge", "wrong", "default").status, 403);
    let refused = post("/mox/kubernetes/purge", "secret", "");
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("to confirm it send default as the body"), "{}", refused.body);
    assert_eq!(server.names(&namespace, "serviceentries").len(), 21);
    assert_eq!(post("/mox/kubernetes/purge", "secret", "default\n").status, 200);
    let report = writer.wait("everything is gone", |report| report.deletes == 80 && report.in_sync);
    assert!(report.purging && report.objects == 0);
    assert_eq!(server.names(&namespace, "serviceentries"), ["mine"]);
    assert!(server.names(&namespace, "workloadentries").is_empty());
    publish_many(&writer, 20..21, 3);
    writer.flush();
    let applies = writer.report().applies;
    assert_eq!(post("/mox/kubernetes/resume", "secret", "").status, 200);
    let report = writer.sync();
    assert_eq!(report.applies - applies, 84, "those that came meanwhile as well");
    assert_eq!(server.names(&namespace, "serviceentries").len(), 22);
    writer.close();
}
