//! Who sees what: real consumers in two namespaces call through their proxies while visibility is switched to shadow, on and off.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use harness::{
    SOON,
    process::{eventually, eventually_is, get, log_path},
};
use serde_json::{Value, json};

use super::{
    CONSUMERS, DUBBO_HOST, Framework, HOST, Mesh, POD, REGISTRY, STRICT_HOST, TRI_HOST,
    caller::Caller,
    proxy::{connections, connections_since, made},
};

/// Calls that are told at once, and the milliseconds between two: 50 a second.
const BATCH: (usize, u64) = (50, 19);

/// A consumer that calls on and on in a thread of its own.
struct Calling {
    calls: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Caller>>,
}

impl Drop for Calling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Calling {
    fn start(mut caller: Caller) -> Self {
        let (calls, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (made, stopped) = (Arc::clone(&calls), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                caller.call(BATCH.0, BATCH.1);
                made.store(caller.calls, Ordering::Relaxed);
            }
            caller
        });
        Self { calls, stop, thread: Some(thread) }
    }

    /// Waits for a batch that begins from now on.
    fn go_on(&self) {
        let wanted = self.calls.load(Ordering::Relaxed) + 2 * BATCH.0;
        eventually(SOON, "calls go on", || (self.calls.load(Ordering::Relaxed) >= wanted).then_some(()));
    }

    fn end(mut self) -> Caller {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it ends once").join().expect("the consumer goes on")
    }
}

/// Hosts without what all end with.
fn bare(hosts: BTreeSet<String>) -> BTreeSet<String> {
    hosts.into_iter().map(|host| host.trim_end_matches(".sofa.mesh").to_owned()).collect()
}

/// The hosts that a proxy has clusters for.
fn held(proxy: Ipv4Addr) -> BTreeSet<String> {
    bare(made(proxy).0)
}

/// Says what each proxy holds, for who reads along.
fn told(mesh: &Mesh, when: &str) {
    if !mesh.story {
        return;
    }
    for (namespace, proxy) in [("sofa", CONSUMERS), ("strict", POD)] {
        let (hosts, listeners) = made(proxy);
        mesh.say(&format!(
            "{when}: the proxy in namespace {namespace} holds {} clusters and {} listeners of ours: {:?}",
            hosts.len(),
            listeners.len(),
            bare(hosts)
        ));
    }
}

fn wait_for(sofa: &BTreeSet<String>, strict: &BTreeSet<String>) {
    eventually_is(sofa, "what the proxy in namespace sofa holds", || held(CONSUMERS));
    eventually_is(strict, "what the proxy in namespace strict holds", || held(POD));
}

fn page() -> Value {
    serde_json::from_str(&get(9603, "/mox/visibility").unwrap()).unwrap()
}

/// Everything is served in direct mode, so that all calls pass a proxy.
fn policy(mode: &str) -> Value {
    json!({
        "direct": { "applications": ["orders", "dubbo-orders"] },
        "visibility": {
            "mode": mode, "unused": "hide",
            "cidrs": { format!("{CONSUMERS}/32"): ["sofa"], format!("{POD}/32"): ["strict"] },
        },
    })
}

pub(super) fn is_switched_under_calls(mesh: &mut Mesh) {
    mesh.policy(&policy("off"));
    let set = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<BTreeSet<String>>();
    let (orders, dubbo) = (set(&[HOST, "p12200.orders.app"]), set(&[DUBBO_HOST, "p20880.dubbo-orders.app"]));
    let both: BTreeSet<String> = orders.union(&dubbo).cloned().collect();
    let all = eventually(SOON, "both proxies hold everything", || {
        let (sofa, strict) = (held(CONSUMERS), held(POD));
        let is_all = both.is_subset(&sofa) && set(&[TRI_HOST, STRICT_HOST]).is_subset(&sofa);
        (is_all && sofa == strict).then_some(sofa)
    });

    mesh.say("a SOFARPC consumer in namespace sofa and a Dubbo consumer in namespace strict, 50 calls a second each");
    let before = [CONSUMERS, POD].map(connections);
    let sofarpc = mesh.caller(Framework::Sofarpc, &["sofa://10.60.0.1:9603", "1"]);
    let calling = [sofarpc, Caller::in_pod(Framework::Dubbo, &[REGISTRY])].map(Calling::start);

    mesh.policy(&policy("shadow"));
    eventually(2 * SOON, "it is known who subscribes", || (page()["known"] == true).then_some(()));
    told(mesh, "shadow");
    mesh.say(&format!("fewer would see, says /mox/visibility: {}", page()["narrowed"]));
    wait_for(&all, &all);

    let begin = Instant::now();
    mesh.policy(&policy("on"));
    wait_for(&orders, &dubbo);
    mesh.say(&format!("switched on: both proxies hold what their consumers call after {:.1?}", begin.elapsed()));
    told(mesh, "on");
    let mut second = mesh.caller(Framework::Sofarpc, &["sofa://10.60.0.1:9603", "1"]);
    second.call(BATCH.0, 0);
    assert_eq!(second.failed, 0, "of another consumer in namespace sofa, which starts now");
    drop(second);

    let theirs = connections_since(POD, &before[1]);
    let before_late = connections(POD);
    let begin = Instant::now();
    let late = Caller::in_pod(Framework::Sofarpc, &["sofa://10.60.0.1:9603", "1"]);
    let ready = begin.elapsed();
    wait_for(&orders, &both);
    let had = begin.elapsed();
    assert!(had < 2 * SOON, "{had:.1?} after a consumer started in namespace strict its proxy has the service");
    mesh.say(&format!(
        "a SOFARPC consumer in namespace strict: ready {ready:.1?} after its start, and {:.1?} later its proxy has the service",
        had - ready
    ));
    let late = Calling::start(late);

    for _ in 0..3 {
        mesh.policy(&policy("shadow"));
        wait_for(&all, &all);
        calling.iter().chain([&late]).for_each(Calling::go_on);
        mesh.policy(&policy("on"));
        wait_for(&orders, &both);
        calling.iter().chain([&late]).for_each(Calling::go_on);
    }
    mesh.policy(&policy("off"));
    wait_for(&all, &all);
    calling.iter().chain([&late]).for_each(Calling::go_on);
    told(mesh, "off");

    let [sofarpc, dubbo] = calling.map(Calling::end);
    let connections = [connections_since(CONSUMERS, &before[0]), theirs, connections_since(POD, &before_late)];
    let ways = ["SOFARPC", "Dubbo", "SOFARPC, new namespace"];
    for ((way, caller), connections) in ways.into_iter().zip([sofarpc, dubbo, late.end()]).zip(connections) {
        let row = mesh.row(&format!("{way}, visibility switched"), caller, connections);
        assert!(
            row.failed == 0,
            "{}: {} of {} calls failed, see {}",
            row.way,
            row.failed,
            row.calls,
            row.log.display()
        );
        // Who comes from a new namespace dials before its proxy has the addresses.
        let is_first = way.contains("new");
        assert!(is_first || (row.through() >= 3 && row.past() == 0), "{}: {:?}", row.way, row.connections);
    }
    mesh.policy(&json!({}));
}

impl Caller {
    /// Starts a consumer on the other machine.
    fn in_pod(framework: Framework, arguments: &[&str]) -> Self {
        let log = log_path("mesh-pod");
        let mut command = super::in_pod(&Self::command(framework, arguments, &log_path("mesh-consumer-pod")));
        Self::run(&mut command, log)
    }
}
