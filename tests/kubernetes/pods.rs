//! In which namespaces consumers are, as the API server shows their pods.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use harness::{id, process::eventually, store};
use http::Method;
use serde_json::{Value, json};

use crate::{
    Scenario,
    manifests::{grant_pods, revoke_pods},
    proxy::{Asked, Fate},
    server::{PATIENCE, Server, log},
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("pods_say_where_consumers_are", pods_say_where_consumers_are),
    (
        "pods_that_may_not_be_seen_remove_nothing_and_it_is_said",
        pods_that_may_not_be_seen_remove_nothing_and_it_is_said,
    ),
    ("pods_are_kept_where_their_watch_breaks", pods_are_kept_where_their_watch_breaks),
];

const ME: &str = "10.0.0.1";

/// A session server that computes who sees what, and its clients: address and service.
struct Session {
    server: store::Server,
    clients: Vec<(&'static str, &'static str)>,
}

impl Session {
    fn start(kubeconfig: &Path) -> Self {
        let config = json!({
            "listen": "127.0.0.1:0",
            "kubernetes": { "kubeconfig": kubeconfig },
            "protect": { "massDeleteShare": 100 },
            "policy": { "visibility": { "mode": "on", "kubernetes": true, "hold": "1s" } },
        });
        let server = store::Server::start(Some(&store::Table::default()), config, |mox| {
            ["a", "b"].iter().for_each(|name| mox.publish(&id(name), "r", 1, &["10.9.0.1:80"]));
        });
        Self { server, clients: Vec::new() }
    }

    /// Tells the engine of the consumers, as the host does every two seconds and more.
    fn turn(&mut self) {
        let wanted = self.server.tell(json!({ "op": "visibility", "server": format!("{ME}/1") }));
        let clients: Vec<String> = self.clients.iter().map(|(address, _)| format!("{address}||")).collect();
        let mut services = json!({});
        for (at, (_, service)) in self.clients.iter().enumerate() {
            let before = services[id(service)].as_str().map(|all| format!("{all} ")).unwrap_or_default();
            services[id(service)] = format!("{before}{at}").into();
        }
        let command = json!({ "op": "consumers", "server": ME, "own": true, "clients": clients, "services": services });
        self.server.tell(command);
        if wanted["collect"] == true {
            self.server.tell(json!({ "op": "consumersRound", "listed": [ME] }));
        }
        self.server.poll();
    }

    fn page(&self, path: &str) -> Value {
        serde_json::from_str(&self.server.mox.page(path, "").1).unwrap()
    }

    fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        eventually(PATIENCE, what, || {
            self.turn();
            thread::sleep(Duration::from_millis(200)); // the pace of the host
            is(self).then_some(())
        });
    }

    fn exported(&self, name: &str) -> Value {
        let shown = &self.page(&format!("/mox/services/{}", id(name).replace('#', "%23")))["visibility"];
        if shown["known"] == true { shown["exportTo"].clone() } else { Value::Null }
    }

    fn until_exported(&mut self, name: &str, to: &[&str]) {
        self.until(&format!("{name} is exported to {to:?}"), |session| session.exported(name) == json!(to));
    }

    fn pods(&self) -> Value {
        self.page("/mox/visibility")["kubernetes"].clone()
    }

    fn rounds(&self, kind: &str) -> u64 {
        self.page("/mox/visibility")["counts"][kind].as_u64().unwrap_or_default()
    }
}

fn namespace(server: &Server, name: &str) {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    server.apply(&format!("/api/v1/namespaces/{name}"), &object.to_string());
}

fn pod(server: &Server, namespace: &str, name: &str, spec: Value, status: &Value) {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "c" }] },
    });
    object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let (made, answer) = server.ask(Method::POST, "application/json", &path, &object.to_string());
    assert_eq!(made, 201, "{answer}");
    set_status(server, namespace, name, status);
}

fn set_status(server: &Server, namespace: &str, name: &str, status: &Value) {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    let body = json!({ "status": status }).to_string();
    let (code, answer) = server.ask(Method::PATCH, "application/merge-patch+json", &path, &body);
    assert_eq!(code, 200, "{answer}");
}

fn delete(server: &Server, namespace: &str, name: &str) {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0");
    assert_eq!(server.ask(Method::DELETE, "application/json", &path, "").0, 200);
}

fn running(addresses: &[&str]) -> Value {
    let all: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({ "phase": "Running", "podIP": addresses[0], "podIPs": all })
}

/// Waits until the API server answers so to a session server that lists pods.
fn until_pods_answer(server: &Server, code: u16) {
    let path = "/api/v1/pods?limit=1";
    eventually(PATIENCE, &format!("RBAC takes effect, with {code}"), || {
        (server.ask_as_session(Method::GET, path, "").0 == code).then_some(())
    });
}

/// Lines of the log that say that it is not known where pods are.
fn lines_of_unknown_pods() -> usize {
    log().iter().filter(|line| line.contains("pods_unknown")).count()
}

fn pods_say_where_consumers_are(server: &mut Server) {
    grant_pods(server);
    until_pods_answer(server, 200);
    ["pods-shop", "pods-pay"].iter().for_each(|name| namespace(server, name));
    pod(server, "pods-shop", "web", json!({}), &running(&["10.1.0.1", "fd00::1"]));
    pod(server, "pods-pay", "on-host", json!({ "hostNetwork": true }), &running(&["10.1.0.2"]));
    let mut session = Session::start(&server.kubeconfig("session"));
    session.clients = vec![("10.1.0.1", "a"), ("fd00::1", "b")];
    session.until_exported("a", &["pods-shop"]);
    session.until_exported("b", &["pods-shop"]);
    let incomplete = session.rounds("incomplete");
    let page = session.page(&format!("/mox/services/{}", id("b").replace('#', "%23")));
    let consumer = &page["consumers"][0];
    assert_eq!((&consumer["namespaces"], &consumer["namespacesBy"]), (&json!(["pods-shop"]), &json!("kubernetes")));
    let pods = session.pods();
    assert_eq!((&pods["current"], &pods["lists"], &pods["failure"]), (&json!(true), &json!(1), &Value::Null), "{pods}");
    // Whose address is the host's is no pod here, and who is to be found for a minute is waited for.
    session.clients.push(("10.1.0.2", "b"));
    session.turn();
    let page = session.page("/mox/visibility");
    assert_eq!(page["consumersOfUnknownNamespace"]["count"], 1, "{page:#}");
    session.clients.pop();

    // A pod that comes while it is watched, with an address that another one had; the client moves with it.
    pod(server, "pods-pay", "batch", json!({}), &running(&["10.1.0.3"]));
    session.clients.push(("10.1.0.3", "b"));
    session.until_exported("b", &["pods-pay", "pods-shop"]);
    set_status(server, "pods-shop", "web", &json!({ "phase": "Succeeded" }));
    pod(server, "pods-pay", "web", json!({}), &running(&["10.1.0.1"]));
    session.until_exported("a", &["pods-pay"]);
    assert_eq!(session.pods()["lists"], 1, "all of it by one watch");
    // A pod of one of the service's clients goes, and the service stays where that was: as long as nobody else has the pod's
    // address, it says what it did.
    delete(server, "pods-pay", "batch");
    let before = session.rounds("complete");
    session.until("rounds go on", |session| session.rounds("complete") > before + 10);
    assert_eq!(session.exported("b"), json!(["pods-pay", "pods-shop"]));
    assert_eq!(session.rounds("incomplete"), incomplete);
    session.server.mox.engine.close();
}

fn pods_that_may_not_be_seen_remove_nothing_and_it_is_said(server: &mut Server) {
    revoke_pods(server);
    namespace(server, "pods-shop");
    until_pods_answer(server, 403);
    let (told, begin) = (lines_of_unknown_pods(), Instant::now());
    let mut session = Session::start(&server.kubeconfig("session"));
    session.clients = vec![("10.2.0.1", "a")];
    let says = |session: &Session| {
        let pods = session.pods();
        pods["failure"]
            .as_str()
            .is_some_and(|why| why.contains("cannot list resource") && why.contains("/mox/kubernetes/rbac"))
    };
    session.until("it is said", says);
    session.until("rounds go on", |session| session.rounds("incomplete") > 3);
    assert_eq!((session.rounds("complete"), session.rounds("removed")), (0, 0));
    assert_eq!(
        session.exported("a"),
        Value::Null,
        "who may be found soon is not yet of unknown place, so nothing counts"
    );
    let (told, most) = (lines_of_unknown_pods() - told, 1 + begin.elapsed().as_secs() as usize / 60);
    assert!((1..=most).contains(&told), "a line a minute, and not {told}, of at most {most}: {:#?}", log());
    assert!(session.server.mox.page("/mox/metrics", "").1.contains("mox_visibility_pods_known 0\n"));
    let rights = session.server.mox.page("/mox/kubernetes/rbac", "").1;
    assert!(rights.contains("resources: [pods]") && !rights.contains("serviceentries"), "{rights}");

    pod(server, "pods-shop", "late", json!({}), &running(&["10.2.0.1"]));
    grant_pods(server);
    session.until_exported("a", &["pods-shop"]);
    assert!(session.server.mox.page("/mox/metrics", "").1.contains("mox_visibility_pods_known 1\n"));
    session.server.mox.engine.close();
}

fn pods_are_kept_where_their_watch_breaks(server: &mut Server) {
    grant_pods(server);
    until_pods_answer(server, 200);
    namespace(server, "pods-shop");
    pod(server, "pods-shop", "stays", json!({}), &running(&["10.3.0.1"]));
    let proxy = server.proxy();
    // Watches end at once with the words of an API server that has forgotten so old a version.
    let is_pods = |asked: &Asked| asked.path.starts_with("/api/v1/pods");
    proxy.rule(move |asked| match asked.path.contains("watch=true") && is_pods(asked) {
        true => Fate::Answer(410, None, json!({ "message": "too old resource version" }).to_string()),
        false => Fate::Pass,
    });
    let mut session = Session::start(&proxy.kubeconfig);
    session.clients = vec![("10.3.0.1", "a")];
    session.until("they are listed anew", |session| session.pods()["lists"].as_u64() >= Some(3));
    // A list is the remedy of such an answer, but not of each.
    let is_old = |session: &Session| session.pods()["failure"].as_str().is_some_and(|why| why.contains("too old"));
    session.until("it is said", is_old);

    // Nothing of pods is answered any more; who was known still is, and nothing is removed.
    proxy.rule(move |_| Fate::Answer(503, None, json!({ "message": "away" }).to_string()));
    session.until_exported("a", &["pods-shop"]);
    session.until("it is said", |session| session.pods()["failure"].as_str().is_some_and(|why| why.contains("away")));
    let before = session.rounds("incomplete");
    session.clients.clear();
    session.until("rounds go on", |session| session.rounds("incomplete") > before + 10);
    assert_eq!((session.exported("a"), session.rounds("removed")), (json!(["pods-shop"]), 0));

    // The API server is back, and what happened meanwhile is seen.
    namespace(server, "pods-pay");
    pod(server, "pods-pay", "meanwhile", json!({}), &running(&["10.3.0.2"]));
    session.clients.push(("10.3.0.2", "a"));
    proxy.rule(move |_| Fate::Pass);
    session.until_exported("a", &["pods-pay"]);
    assert_eq!(session.rounds("removed"), 1);
    session.server.mox.engine.close();
}
