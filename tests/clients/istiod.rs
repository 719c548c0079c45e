//! The real istiod as a client, alone and with an Envoy of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use harness::{
    parts::{Envoy, Istiod},
    process::{START, connect, eventually, free_port, get},
};
use serde_json::{Value, json};

use crate::serve::{Registered, Server, ip, name, registered, sources};

/// The addresses of each service's endpoints as istiod holds them; `None` where it gives no such page.
pub(crate) fn held(istiod: &Istiod) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let all: Vec<Value> = serde_json::from_str(&get(istiod.http, "/debug/configz")?).unwrap();
    let entry = |entry: &Value| {
        let endpoints = entry["spec"]["endpoints"].as_array().into_iter().flatten();
        let addresses = endpoints.map(|endpoint| endpoint["address"].as_str().unwrap().to_owned()).collect();
        (entry["metadata"]["name"].as_str().unwrap().to_owned(), addresses)
    };
    Some(all.iter().filter(|entry| entry["kind"] == "ServiceEntry").map(entry).collect())
}

/// The same addresses as istiod is to hold them.
pub(crate) fn wanted(registered: &Registered) -> BTreeMap<String, BTreeSet<String>> {
    let addresses = |(n, versions): (&usize, &Vec<i64>)| {
        (name(*n), versions.iter().enumerate().map(|(endpoint, version)| ip(*n, endpoint, *version)).collect())
    };
    registered.iter().map(addresses).collect()
}

pub(crate) fn wait_until_held(istiod: &Istiod, registered: &Registered) {
    let wanted = wanted(registered);
    let mut last = None;
    let seen = || {
        last = held(istiod);
        (last.as_ref() == Some(&wanted)).then_some(())
    };
    eventually(START, "istiod holds what is registered", seen);
}

fn istiod(parts: u16) -> Istiod {
    Istiod::with_sources(&sources(parts), free_port(), &[])
}

/// Bytes of istiod's heap that are in use after a collection.
pub(crate) fn heap(istiod: &Istiod) -> u64 {
    let profile = get(istiod.http, "/debug/pprof/heap?gc=1&debug=1").expect("the profile of its heap");
    let line = profile.lines().find_map(|line| line.strip_prefix("# HeapAlloc = "));
    line.expect("the size in it").parse().unwrap()
}

/// istiod's heap before and after so many pushes of everything.
pub(crate) fn heap_growth(prime: bool, services: usize, endpoints: usize, pushes: usize) -> (u64, u64) {
    let mut state = registered(services, endpoints);
    let mut serve = Server::loaded(json!({ "push": { "prime": prime, "duty": 1 } }), &state);
    let istiod = istiod(1);
    wait_until_held(&istiod, &state);
    let before = heap(&istiod);
    for push in 0..pushes {
        let answered = acked(&serve);
        serve.change(&mut state, push % services, 0);
        eventually(START, "istiod answers the push", || (acked(&serve) != answered).then_some(()));
    }
    wait_until_held(&istiod, &state);
    (before, heap(&istiod))
}

/// The version of the ServiceEntries that istiod has ACKed last.
fn acked(serve: &Server) -> Option<String> {
    let page = serve.page("streams");
    let types = page["streams"].as_array()?.iter().find_map(|stream| stream["types"].as_object())?;
    let services = types.iter().find(|(type_url, _)| type_url.ends_with("/ServiceEntry"))?.1;
    Some(services["acked"].as_str()?.to_owned())
}

/// istiod keeps its first 100 responses for life: with priming these are tiny.
pub(crate) fn priming_saves_memory() {
    let size = 250 * 20 * 110; // of a response, at least
    let grown = |prime| {
        let (before, after) = heap_growth(prime, 250, 20, 60);
        after.saturating_sub(before)
    };
    let (with, without) = (grown(true), grown(false));
    println!("    istiod's heap grew by {} kB with priming, by {} kB without", with / 1024, without / 1024);
    assert!(without > with + 30 * size, "{without} without priming, {with} with it");
}

/// Nothing is deleted while the server is away, nor when it is back and has nothing to say yet.
pub(crate) fn outages_delete_nothing() {
    let mut state = registered(50, 2);
    let mut serve = Server::loaded(json!({}), &state);
    let istiod = istiod(1);
    wait_until_held(&istiod, &state);
    for changes in [0, 3] {
        drop(serve);
        let kept = wanted(&state);
        serve = Server::start(json!({}), &state);
        eventually(START, "istiod is back", || {
            assert_eq!(held(&istiod).as_ref(), Some(&kept));
            let streams = serve.page("streams")["streams"].as_array().map_or(0, Vec::len);
            (streams > 0).then_some(())
        });
        assert_eq!(held(&istiod).as_ref(), Some(&kept), "it is connected and was told nothing");
        for n in 0..changes {
            serve.change(&mut state, n, 0);
        }
        serve.load();
        wait_until_held(&istiod, &state);
    }
}

/// Changes endpoints until it is told to stop, and says what is registered then.
fn load(mut serve: Server, mut state: Registered, stop: &Arc<AtomicBool>) -> thread::JoinHandle<(Server, Registered)> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        for n in (0..state.len()).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            serve.change(&mut state, n, 0);
            thread::sleep(Duration::from_millis(20)); // 50 changes a second
        }
        (serve, state)
    })
}

/// istiod with an Envoy, whose count of removed clusters shows every deletion that reached a proxy.
struct Mesh {
    grpc: u16,
    istiod: Option<Istiod>,
    envoy: Envoy,
    services: usize,
}

impl Mesh {
    fn start(parts: u16, services: usize) -> Self {
        let grpc = free_port();
        let istiod = Istiod::with_sources(&sources(parts), grpc, &[]);
        let envoy = Envoy::of(grpc, "outbound|12200||com.example.s0.sofa.mesh");
        let mut mesh = Self { grpc, istiod: Some(istiod), envoy, services };
        mesh.check("at first");
        mesh
    }

    /// Another istiod with other sources takes the place of the one before, on the same port.
    fn restart(&mut self, parts: u16) {
        self.istiod = None;
        eventually(START, "its port is free", || connect(self.grpc).is_err().then_some(()));
        let updates = self.updates();
        self.istiod = Some(Istiod::with_sources(&sources(parts), self.grpc, &[]));
        // Only after this it has had a chance to take something away.
        eventually(START, "Envoy was told by the new istiod", || (self.updates() > updates).then_some(()));
        self.check(&format!("with an istiod of {parts} sources"));
    }

    fn stat(&self, name: &str) -> Option<u64> {
        let all: Value = serde_json::from_str(&get(self.envoy.admin, "/stats?format=json")?).ok()?;
        all["stats"].as_array()?.iter().find(|stat| stat["name"] == name)?["value"].as_u64()
    }

    fn updates(&self) -> u64 {
        self.stat("cluster_manager.cds.update_success").unwrap_or_default()
    }

    /// Every service has its cluster, and no cluster was ever taken away.
    fn check(&mut self, when: &str) {
        let clusters = || {
            let all: Value = serde_json::from_str(&get(self.envoy.admin, "/clusters?format=json")?).ok()?;
            let all = all["cluster_statuses"].as_array()?;
            let ours = all.iter().filter(|cluster| cluster["name"].as_str().is_some_and(|n| n.contains(".sofa.mesh")));
            (ours.count() == self.services).then_some(())
        };
        eventually(START, "Envoy has a cluster for every service", clusters);
        assert_eq!(self.stat("cluster_manager.cluster_removed"), Some(0), "{when}");
    }

    fn wait_until_held(&self, state: &Registered) {
        wait_until_held(self.istiod.as_ref().unwrap(), state);
    }
}

/// Under changes: istiod goes from one source to 64 and back.
pub(crate) fn one_source_to_64_and_back(services: usize) {
    let state = registered(services, 2);
    let serve = Server::loaded(json!({ "partitions": [64] }), &state);
    let mut mesh = Mesh::start(1, services);
    let stop = Arc::<AtomicBool>::default();
    let changes = load(serve, state, &stop);
    for parts in [64, 1] {
        mesh.restart(parts);
    }
    stop.store(true, Ordering::Relaxed);
    let (mut serve, state) = changes.join().unwrap();
    serve.flush();
    mesh.wait_until_held(&state);
    mesh.check("at last");
}

/// Under changes: the server goes from 16 parts over both to 64, and istiod from 16 sources to 64 while there are both.
pub(crate) fn parts_16_to_64(services: usize) {
    let mut state = registered(services, 2);
    let mut serve = Server::loaded(json!({ "partitions": [16] }), &state);
    let mut mesh = Mesh::start(16, services);
    for (partitions, parts) in [(vec![16, 64], 64), (vec![64], 64)] {
        let stop = Arc::<AtomicBool>::default();
        let changes = load(serve, state, &stop);
        mesh.check("under changes");
        stop.store(true, Ordering::Relaxed);
        (serve, state) = changes.join().unwrap();
        serve.flush();
        drop(serve);
        serve = Server::loaded(json!({ "partitions": partitions }), &state);
        let stop = Arc::<AtomicBool>::default();
        let changes = load(serve, state, &stop);
        if partitions.len() == 2 {
            mesh.restart(parts);
        }
        stop.store(true, Ordering::Relaxed);
        (serve, state) = changes.join().unwrap();
        serve.flush();
        mesh.wait_until_held(&state);
        mesh.check("after the server's restart");
    }
    eventually(START, "every part is followed again", || {
        let page = serve.page("streams");
        let clients = page["clients"].as_array()?;
        let whole = |client: &Value| client["streams"] == 64 && client["wrong"].is_null();
        (clients.len() == 1 && clients.iter().all(whole)).then_some(())
    });
}
