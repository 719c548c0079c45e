//! An API server that is busy, or says no.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use harness::process::eventually;
use http::Method;
use serde_json::json;

use crate::{
    Scenario,
    proxy::{Asked, Fate},
    server::{PATIENCE, Server, Writer, endpoints, object, path, publish_many},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("a_busy_server_is_left_alone", a_busy_server_is_left_alone),
    ("a_write_without_an_answer_is_made_sure_of", a_write_without_an_answer_is_made_sure_of),
    (
        "what_the_server_rejects_is_reported_and_holds_up_nothing",
        what_the_server_rejects_is_reported_and_holds_up_nothing,
    ),
    (
        "an_object_that_a_webhook_denies_or_holds_up_is_the_only_one",
        an_object_that_a_webhook_denies_or_holds_up_is_the_only_one,
    ),
    ("missing_rights_are_reported_and_do_not_spin", missing_rights_are_reported_and_do_not_spin),
    ("a_namespace_that_is_not_there_is_waited_for", a_namespace_that_is_not_there_is_waited_for),
];

fn a_busy_server_is_left_alone(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    writer.loaded();
    writer.sync();
    let refused: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let (note, mut answers) = (Arc::clone(&refused), 0);
    proxy.rule(move |asked: &Asked| {
        if asked.is_write() && answers < 2 {
            answers += 1;
            note.lock().unwrap().push(Instant::now());
            let status = json!({ "kind": "Status", "message": "too many requests, please try again later" });
            return Fate::Answer(429, Some(2), status.to_string());
        }
        Fate::Pass
    });
    proxy.take();
    writer.publish("demo", 1, &["10.0.0.1:80"]);
    let report = writer.sync();
    let times: Vec<Instant> = proxy.writes().iter().map(|asked| asked.at).collect();
    assert_eq!((times.len(), report.pauses, report.refused), (3, 2, 2), "{report:?}");
    let waits = times.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(waits.clone().all(|wait| wait >= Duration::from_secs(2)), "{:?}", waits.collect::<Vec<_>>());
    writer.close();
}

fn a_write_without_an_answer_is_made_sure_of(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    writer.loaded();
    writer.sync();
    for after in [true, false] {
        let mut cuts = 0;
        proxy.rule(move |asked: &Asked| {
            if asked.is_write() && cuts < 2 {
                cuts += 1;
                return Fate::Cut { after };
            }
            Fate::Pass
        });
        let name = if after { "after" } else { "before" };
        writer.publish(name, 1, &["10.0.0.1:80"]);
        writer.sync();
        writer.publish(name, 2, &["10.0.0.2:80"]);
        writer.sync();
        assert_eq!(endpoints(&server.service(&namespace, &object(name)).unwrap()), ["10.0.0.2"]);
    }
    // An object alone puts off no other; of the first, nothing was heard but by the watch.
    assert!(writer.report().pauses <= 1);
    writer.close();
}

fn what_the_server_rejects_is_reported_and_holds_up_nothing(server: &mut Server) {
    let namespace = server.namespace();
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/no-bad";
    let bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/no-bad";
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": { "name": "no-bad" },
        "spec": {
            "matchConstraints": {
                "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
                "resourceRules": [{ "apiGroups": ["networking.istio.io"], "apiVersions": ["*"],
                                    "operations": ["CREATE", "UPDATE"], "resources": ["serviceentries"] }],
            },
            "validations": [{ "expression": "!object.metadata.name.contains('bad') || !has(object.spec.endpoints) || size(object.spec.endpoints) < 2",
                              "message": "bad services have one endpoint at most" }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": { "name": "no-bad" },
        "spec": { "policyName": "no-bad", "validationActions": ["Deny"] },
    });
    server.apply(policies, &policy.to_string());
    server.apply(bindings, &binding.to_string());
    let probe = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": { "name": "bad-probe" },
        "spec": { "hosts": ["probe.mesh"], "resolution": "STATIC", "ports": [{ "number": 80, "name": "http" }],
                  "endpoints": [{ "address": "192.0.2.1" }, { "address": "192.0.2.2" }] },
    });
    eventually(PATIENCE, "the policy is in force", || {
        let at = format!("{}?dryRun=All", path(&namespace, "serviceentries", ""));
        let (status, _) = server.ask(Method::POST, "application/json", &at, &probe.to_string());
        (status == 422).then_some(())
    });
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    writer.publish("bad", 1, &["10.0.0.1:80", "10.0.0.2:80"]);
    for n in 0..5 {
        writer.publish(&format!("good{n}"), 1, &["10.0.0.1:80", "10.0.0.2:80"]);
    }
    writer.loaded();
    let report = writer.wait("the others go on", |report| report.applies == 5 && report.problem_count == 1);
    let problem = &report.problems[&format!("ServiceEntry {}", object("bad"))];
    assert_eq!(problem.code, Some(422));
    assert!(problem.message.contains("bad services have one endpoint at most"), "{problem:?}");
    writer.publish("good0", 2, &["10.0.0.3:80", "10.0.0.2:80"]);
    writer.flush();
    writer.wait("and on", |report| report.applies == 6);
    let tries = proxy.writes().iter().filter(|asked| asked.name() == object("bad")).count();
    assert!(tries <= 3, "{tries} tries in vain");
    writer.publish("bad", 2, &["10.0.0.1:80"]);
    let report = writer.sync();
    assert_eq!(report.problem_count, 0, "another content is tried at once");
    assert_eq!(endpoints(&server.service(&namespace, &object("bad")).unwrap()), ["10.0.0.1"]);
    writer.close();
    for at in [bindings, policies] {
        assert_eq!(server.ask(Method::DELETE, "application/json", at, "").0, 200);
    }
}

/// The words of a webhook may have what RBAC says in them, and its status is its own choice.
fn an_object_that_a_webhook_denies_or_holds_up_is_the_only_one(server: &mut Server) {
    let namespace = server.namespace();
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    let cases = [
        (
            403,
            "admission webhook \"v.example.com\" denied the request: User \"x\" cannot patch resource \"serviceentries\"",
        ),
        (404, "admission webhook \"v.example.com\" denied the request: namespaces \"x\" not found"),
        (504, "Timeout: request did not complete within the allotted timeout"),
    ];
    writer.loaded();
    for (version, (code, message)) in (1..).step_by(2).zip(cases) {
        writer.publish("aaa", version, &["10.0.0.1:80", "10.0.0.2:80"]);
        writer.publish("good", version, &["10.0.0.1:80", "10.0.0.2:80"]);
        let before = writer.sync();
        let answer = json!({ "kind": "Status", "message": message }).to_string();
        proxy.rule(move |asked: &Asked| match asked.is_write() && asked.name() == object("aaa") {
            true => Fate::Answer(code, None, answer.clone()),
            false => Fate::Pass,
        });
        // The refused write takes an endpoint away, so it comes first; by the name of its object it does as well.
        writer.publish("aaa", version + 1, &["10.0.0.1:80"]);
        writer.flush();
        writer.wait("it is refused", |report| report.refused > before.refused);
        writer.publish("good", version + 1, &["10.0.0.2:80"]);
        writer.publish(&format!("new{code}"), 1, &["10.0.0.3:80"]);
        writer.flush();
        let report = writer.wait("the others are written", |report| report.applies == before.applies + 2);
        assert_eq!(report.pauses, 0, "{report:?}");
        assert_eq!(endpoints(&server.service(&namespace, &object("good")).unwrap()), ["10.0.0.2"]);
        proxy.rule(|_| Fate::Pass);
    }
    writer.sync();
    writer.close();
}

fn missing_rights_are_reported_and_do_not_spin(server: &mut Server) {
    let namespace = server.namespace();
    let role = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/registry-mox-default");
    let rule = |verbs: serde_json::Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": { "name": "registry-mox-default" },
            "rules": [{ "apiGroups": ["networking.istio.io"], "verbs": verbs,
                        "resources": ["serviceentries", "workloadentries", "destinationrules"] }],
        })
        .to_string()
    };
    server.apply(&role, &rule(json!(["list", "watch"])));
    let proxy = server.proxy();
    let writer = Writer::open(&proxy.kubeconfig, &namespace);
    publish_many(&writer, 0..50, 1);
    writer.loaded();
    let report = writer.wait("each is reported", |report| report.problem_count == 50);
    let problem = report.problems.values().next().unwrap();
    assert_eq!(problem.code, Some(403));
    assert!(problem.message.contains("cannot patch resource \"serviceentries\""), "{problem:?}");
    assert_eq!(report.applies, 0);
    let tries = proxy.writes().len();
    assert!(tries <= 20, "{tries} tries for 50 services");
    server.grant(&namespace, "default");
    let report = writer.sync();
    assert_eq!((report.applies, report.problem_count), (50, 0));
    writer.close();
}

fn a_namespace_that_is_not_there_is_waited_for(server: &mut Server) {
    let lease = server.namespace();
    let namespace = format!("{lease}-late");
    // Rights in a namespace cannot be given before it is there.
    let writer = Writer::with(&server.kubeconfig("admin"), &namespace, json!({}), json!({ "leaseNamespace": lease }));
    publish_many(&writer, 0..30, 1);
    writer.loaded();
    let report = writer.wait("each is reported", |report| report.problem_count == 30);
    let problem = report.problems.values().next().unwrap();
    assert_eq!((problem.code, &*problem.message), (Some(404), &*format!("namespaces \"{namespace}\" not found")));
    server.make_namespace(&namespace);
    assert_eq!(writer.sync().applies, 30);
    let at = format!("/api/v1/namespaces/{namespace}");
    assert_eq!(server.ask(Method::DELETE, "application/json", &at, "").0, 200);
    publish_many(&writer, 30..35, 1);
    writer.flush();
    let report = writer.wait("what is new is reported", |report| report.problem_count == 5);
    let problem = report.problems.values().next().unwrap();
    assert!(problem.message.contains("being terminated"), "{problem:?}");
    writer.close();
}
