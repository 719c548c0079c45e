//! Faults in a registry of several servers, inside the network that `hosts.sh` makes. Registry clients go on changing what they
//! publish meanwhile; what three recording clients of MoX were told is judged against what the data server said.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use harness::{
    SOON,
    judge::percentile,
    parts::Istiod,
    process::{self, eventually, free_port, log_path, root, script},
    trials::{Shared, Trial},
};
use serde_json::Value;

use crate::{
    cell::{Cell, META, Row, SERVICES, SESSIONS, SETTLED, address, get, post, status, wait_until_held},
    documents,
    network::{self, Network},
    recorder::{Recorder, converge, now},
    soak, visibility,
};

/// A name, whether it is among the few that are run unasked, and what happens.
type Scenario = (&'static str, bool, fn(&mut Cell));

const SCENARIOS: [Scenario; 18] = [
    ("cell_every_session_server_serves_the_same_bytes", true, same_bytes),
    ("cell_istiod_that_fails_over_updates_nothing", false, istiod_fails_over),
    ("cell_a_policy_is_for_all_session_servers", true, documents::a_policy_lives),
    ("cell_documents_survive_what_happens_to_the_store", true, documents::faults),
    ("cell_documents_of_a_newer_release_stay", true, documents::newer_release),
    ("cell_clocks_are_an_hour_apart", false, documents::clocks_apart),
    ("cell_all_start_without_the_database", true, documents::start_without_database),
    ("cell_services_are_exported_to_those_who_subscribe", false, visibility::follows_subscribers),
    ("cell_visibility_is_kept_whoever_computes", false, visibility::computing_moves),
    ("cell_pushes_are_stopped", true, stop_push),
    ("cell_a_session_server_is_killed", true, session_killed),
    ("cell_all_clients_are_killed", true, clients_killed),
    ("cell_a_session_server_is_cut_off_from_data", true, cut_off),
    ("cell_a_session_server_is_paused_for_15_s", false, paused_shortly),
    ("cell_a_session_server_is_paused_for_45_s", false, paused),
    ("cell_the_data_server_is_killed", false, data_killed),
    ("cell_rolling_restart_under_load", false, rolling_restart),
    ("cell_two_translations", false, two_translations),
];

/// The argument with which this program runs the scenarios and the soak inside of `hosts.sh`.
pub(crate) const CELL: &str = "cell";

pub(crate) fn cell() -> Arc<Shared<Network>> {
    Shared::new(|| Network::start("hosts.sh", &[CELL]))
}

pub(crate) fn trials() -> Vec<Trial> {
    let cell = cell();
    SCENARIOS.iter().map(|(name, often, _)| network::trial(&cell, name).with_ignored_flag(!often)).collect()
}

/// Each scenario `REGISTRY_FAULT_ROUNDS` times (1); a table at the end.
pub(crate) fn inside() -> ExitCode {
    let rounds = std::env::var("REGISTRY_FAULT_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number of rounds"));
    let scenario = |cell: &mut Cell, wanted: &str| match SCENARIOS.iter().find(|(name, ..)| *name == wanted) {
        Some((.., scenario)) => (0..rounds).for_each(|_| scenario(cell)),
        None => soak::soak(cell),
    };
    network::inside(Cell::start, scenario, |mut cell| cell.table())
}

/// A table with a line for each fault; also written to `target/real/faults.md`.
pub(crate) fn table(rows: &mut [Row]) -> String {
    let mut text =
        "| fault | rounds | wrong deletions | duplicates | convergence p50 / p99 | a change takes p50 / p99 |\n"
            .to_owned();
    text += "| --- | --- | --- | --- | --- | --- |\n";
    let seconds = |values: &mut Vec<u64>| {
        let [p50, p99] = [50, 99].map(|p| percentile(values, p));
        p50.zip(p99).map_or("-".to_owned(), |(a, b)| format!("{:.1} / {:.1} s", a as f64 / 1e3, b as f64 / 1e3))
    };
    for row in rows {
        let (converged, lags) = (seconds(&mut row.converged), seconds(&mut row.lags));
        let Row { fault, rounds, wrong, duplicates, .. } = row;
        writeln!(text, "| {fault} | {rounds} | {wrong} | {duplicates} | {converged} | {lags} |").unwrap();
    }
    fs::write(root().join("target/real/faults.md"), &text).unwrap();
    text
}

/// How long there is churn without a fault.
const CHURN: Duration = Duration::from_secs(5);

fn churn_for(cell: &Cell, rate: u32, time: Duration) {
    cell.churn(rate);
    thread::sleep(time); // the time of the churn
}

fn same_bytes(cell: &mut Cell) {
    let since = now();
    churn_for(cell, 20, CHURN);
    cell.churn(0);
    let ended = now();
    cell.settle("none", since, ended);
    cell.assert_same_bytes();
    for n in SESSIONS {
        let services = get(n, 9603, "/mox/metrics").and_then(|page| value(&page, "mox_services"));
        assert_eq!(services, Some(20.0), "on session server {n}");
        let own = get(n, 9603, "/metrics").unwrap();
        assert_eq!(value(&own, "mox_services"), Some(20.0), "in the registry's own metrics of session server {n}");
        assert!(value(&own, "mox_feed_reads_total").is_some_and(|reads| reads > 0.0));
    }
}

/// A value without a label, or the first with this one.
fn value(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// A single address in front of the session servers, which leads to the one that is the `target`.
struct Front {
    port: u16,
    target: Arc<Mutex<u8>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Front {
    fn start(target: u8) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let front = Self {
            port: listener.local_addr().unwrap().port(),
            target: Arc::new(Mutex::new(target)),
            open: Arc::default(),
        };
        let (target, open) = (Arc::clone(&front.target), Arc::clone(&front.open));
        thread::spawn(move || {
            for client in listener.incoming() {
                let to = SocketAddr::from((address(*target.lock().unwrap()), 9700));
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    thread::spawn(move || {
                        // However it ends, the other side is to know.
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                open.lock().unwrap().extend([client, server]);
            }
        });
        front
    }

    /// Ends every connection; the next ones go to another server.
    fn switch(&self, target: u8) {
        *self.target.lock().unwrap() = target;
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // one that has ended already
        }
    }
}

fn istiod_fails_over(cell: &mut Cell) {
    cell.assert_same_bytes();
    let front = Front::start(SESSIONS[0]);
    let istiod = Istiod::start_on(&format!("127.0.0.1:{}", front.port), free_port(), &[]);
    let entries = || -> Vec<Value> {
        let all = process::get(istiod.http, "/debug/configz").and_then(|body| serde_json::from_str(&body).ok());
        let mut all: Vec<Value> = all.unwrap_or_default();
        all.retain(|entry| entry["kind"] == "ServiceEntry");
        all.sort_by_key(|entry| entry["metadata"]["name"].to_string()); // it shows them in any order
        all
    };
    let updates = || {
        let page = process::get(istiod.monitoring, "/metrics").unwrap_or_default();
        value(&page, "pilot_inbound_updates{type=\"config\"}").unwrap_or_default()
    };
    eventually(SOON, "istiod has all services", || (entries().len() == 20).then_some(()));
    let streams = |n: u8| status(n)["streams"].as_array().map_or(0, Vec::len);
    let (before, seen, others) = (entries(), updates(), streams(SESSIONS[1]));
    front.switch(SESSIONS[1]);
    eventually(Duration::from_secs(60), "istiod has the other server's answer", || {
        let status = status(SESSIONS[1]);
        let streams = status["streams"].as_array()?;
        let acked = |stream: &Value| {
            let entries = &stream["types"]["networking.istio.io/v1/ServiceEntry"];
            entries["acked"].is_string() && entries["acked"] == entries["sent"]
        };
        (streams.len() == others + 1 && streams.iter().all(acked)).then_some(())
    });
    assert_eq!(entries(), before, "the entries as istiod shows them, resource versions included");
    assert_eq!(updates(), seen, "updates of its configuration that istiod counts");
    // And it is listening: a change makes it count.
    let since = now();
    cell.churn(5);
    eventually(SOON, "istiod counts a change", || (updates() > seen).then_some(()));
    cell.settle("istiod fails over", since, now());
}

pub(crate) fn stop_push(cell: &mut Cell) {
    let since = now();
    get(META, 9615, "/stopPushDataSwitch/open").unwrap();
    for n in SESSIONS {
        wait_until_held(n, Some("frozen"));
    }
    thread::sleep(Duration::from_millis(500)); // what was under way arrives
    let updates = |cell: &Cell| cell.recorders.iter().map(|recorder| recorder.told().updates).collect::<Vec<_>>();
    let before = updates(cell);
    churn_for(cell, 20, CHURN);
    cell.churn(0);
    assert_eq!(updates(cell), before, "nothing changes while pushes are stopped");
    get(META, 9615, "/stopPushDataSwitch/close").unwrap();
    for n in SESSIONS {
        wait_until_held(n, None);
    }
    cell.settle("stop-push, then on again", since, now());
}

/// The clients of the one move to the other.
fn session_killed(cell: &mut Cell) {
    let which = cell.sessions.iter().position(|session| session.n == SESSIONS[0]).expect("it is there");
    let since = now();
    churn_for(cell, 20, CHURN / 5);
    restart(cell, which);
    cell.settle("a session server is killed and restarted", since, now());
    cell.assert_same_bytes();
}

pub(crate) fn restart(cell: &mut Cell, which: usize) {
    cell.sessions[which].kill();
    cell.sessions[which].start();
    cell.sessions[which].wait_until_healthy();
    cell.sessions[which].wait_until_serving();
}

pub(crate) fn clients_killed(cell: &mut Cell) {
    cell.churn(0);
    // A loss is judged against the state at the start of a window of 60 s, which is not to be that of another round.
    let window = Duration::from_secs(60);
    thread::sleep(cell.last_release.map_or(Duration::ZERO, |at| window.saturating_sub(at.elapsed())));
    let since = now();
    let count = |recorder: &Recorder| recorder.endpoints().values().map(BTreeSet::len).sum::<usize>();
    let before = count(&cell.recorders[0]);
    cell.kill_fleet();
    for n in SESSIONS {
        wait_until_held(n, Some("mass-delete"));
    }
    eventually(SOON, "the registry is empty", || cell.reader.named(since).filter(|named| named.is_empty()));
    for recorder in &cell.recorders {
        // The endpoints that went before it was too much are gone; of each service also the endpoint that may have come
        // in the window, by the churn before, since it is not missing from what there was at the window's start.
        let left = count(recorder);
        assert!(left + 50 + SERVICES >= before, "the client {} has {left} of {before} endpoints left", recorder.name);
    }
    let released = now();
    let answer = post(SESSIONS[0], "/mox/release", "", "");
    assert!(answer.status == 200 && answer.body.matches("released\\\": true").count() == 2, "{answer:?}");
    let took = converge(&cell.reader, &cell.clients(), released, SETTLED);
    cell.judge("all clients are killed, then a release", since, took);
    let since = now();
    cell.start_fleet();
    cell.settle("all clients come back", since, now());
    cell.last_release = Some(Instant::now());
}

fn cut_off(cell: &mut Cell) {
    let since = now();
    churn_for(cell, 20, CHURN / 5);
    let streams = cell.recorders[0].told().streams;
    cell.cut(0, true);
    eventually(2 * SOON + SETTLED, "it steps aside", || (status(SESSIONS[0])["fenced"] == true).then_some(()));
    assert_eq!(status(SESSIONS[0])["feed"]["stale"], true);
    assert_eq!(status(SESSIONS[1])["fenced"], false);
    eventually(SOON, "the stream has ended", || (cell.recorders[0].told().streams > streams).then_some(()));
    cell.cut(0, false);
    let healed = now();
    eventually(SETTLED, "it serves again", || (status(SESSIONS[0])["fenced"] == false).then_some(()));
    cell.settle("a session server is cut off from data", since, healed);
    cell.assert_same_bytes();
}

/// Shorter than any lease: nobody is to notice.
fn paused_shortly(cell: &mut Cell) {
    let since = now();
    let updates = |cell: &Cell| cell.recorders.iter().map(|recorder| recorder.told().updates).collect::<Vec<_>>();
    let before = updates(cell);
    pause(cell, 0, Duration::from_secs(15));
    let ended = now();
    cell.settle("a session server is paused for 15 s", since, ended);
    assert_eq!(updates(cell), before, "nothing changes");
}

/// Longer than the registry waits for a session server.
fn paused(cell: &mut Cell) {
    let since = now();
    churn_for(cell, 20, CHURN / 5);
    pause(cell, 0, Duration::from_secs(45));
    cell.settle("a session server is paused for 45 s", since, now());
    cell.assert_same_bytes();
}

pub(crate) fn pause(cell: &Cell, which: usize, time: Duration) {
    cell.sessions[which].signal("STOP");
    thread::sleep(time); // the length of the pause
    cell.sessions[which].signal("CONT");
}

pub(crate) fn data_killed(cell: &mut Cell) {
    let since = now();
    churn_for(cell, 20, CHURN / 5);
    cell.data.kill();
    cell.data.start();
    cell.data.wait_until_healthy();
    cell.settle("the data server is killed and restarted", since, now());
    cell.assert_same_bytes();
}

fn rolling_restart(cell: &mut Cell) {
    let since = now();
    churn_for(cell, 100, CHURN / 5);
    let before = cell.fleet.as_ref().expect("a fleet").changes.load(std::sync::atomic::Ordering::Relaxed);
    let begin = Instant::now();
    for which in 0..SESSIONS.len() {
        restart(cell, which);
    }
    let changes = cell.fleet.as_ref().expect("a fleet").changes.load(std::sync::atomic::Ordering::Relaxed) - before;
    println!("rolling restart: {:.0} changes/s meanwhile", f64::from(changes) / begin.elapsed().as_secs_f64());
    cell.settle("rolling restart under 100 changes/s", since, now());
    cell.assert_same_bytes();
}

/// As while a new release is rolled out that serves other bytes for the same data.
fn two_translations(cell: &mut Cell) {
    let built = script("next.sh", &log_path("next")).status().unwrap();
    assert!(built.success(), "see {}", log_path("next").display());
    let since = now();
    cell.churn(20);
    let library = root().join("target/next/debug/libregistry_mox.so");
    cell.sessions[1].options.push(format!("-Dregistry.mox.library={}", library.display()));
    restart(cell, 1);
    let translations = SESSIONS.map(|n| status(n)["translation"].as_u64().unwrap());
    assert_eq!(translations[0] + 1, translations[1]);
    // The client of any session server has been with each of them now.
    restart(cell, 0);
    cell.settle("two translations side by side", since, now());
    let [one, other] = [0, 1].map(|i| cell.recorders[i].told().last.expect("a response"));
    assert_ne!(one, other, "the other translation serves the same bytes, so this shows nothing");
    cell.sessions[1].options.pop();
    let since = now();
    restart(cell, 1);
    cell.settle("two translations side by side", since, now());
    cell.assert_same_bytes();
}
