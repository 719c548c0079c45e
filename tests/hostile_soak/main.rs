//! Bad publishers, bad clients and a bad API server beside good ones, in random mixtures: what is good never goes, nobody good
//! waits, memory stays within its bounds.
//!
//! A run alternates between calm windows, hostile ones, and windows in which the same is done to another server of the machine, so that
//! what the good client waits in all of them can be compared: from a change until the response that has it is here. The client
//! waits longer while another server is harassed because all share the cores, which the server can do nothing about.
//!
//! The good client has a thread of its own, acknowledges at once and leaves the reading to another thread. That one and the bad
//! clients run at the lowest priority: they stand for machines elsewhere. A change waits until what was told before is
//! acknowledged, whoever's that was, so in calm another good change is said before each, as bad lines are among the bad. A
//! change is said when the lines before it are read, since `serve` reads one at a time, which a session server's threads do
//! side by side; what the lines make the server do after that is in the wait.
//!
//! A run takes `MOX_HOSTILE_SECONDS` (15) from the seed `MOX_SEED` (a new one, printed). Waits are printed and not
//! judged here: a test does not know what else its machine does.
#![allow(clippy::unwrap_used, missing_docs)]

mod api_server;
mod clients;
mod publishers;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use harness::{
    SOON,
    client::{MoxClient, Resource, Response, SERVICE_ENTRY, istiod_node},
    nth as id, nth_name as name,
    process::eventually,
    random::Random,
    serve::{Serve, program},
};
use registry_mox::proto::envoy::service::discovery::v3::DiscoveryResponse;
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};

/// Good services, each with [`ENDPOINTS`] that never go.
const SERVICES: usize = 200;
const ENDPOINTS: usize = 5;
/// Bad clients at work in a hostile window.
const CLIENTS: usize = 3;
/// Metrics that say which bounds were met.
const BOUNDS: [&str; 7] = [
    "mox_events_dropped_total",
    "mox_streams_over_budget_total",
    "mox_streams_relieved_total",
    "mox_slow_readers_total",
    "mox_connections_flooded_total",
    "mox_refused_total",
    "mox_pages_",
];
/// A window of calm, of hostility to another server, or of hostility.
const WINDOW: Duration = Duration::from_secs(5);
/// Between two changes of good services.
const PACE: Duration = Duration::from_millis(20);
/// Most that the process may have in memory: 32 MiB that publishers brought and what is made of them, 3 x 16 MiB that clients
/// may make it keep or pin, a page, its threads and what the allocator keeps of all that.
const MOST_MEMORY: u64 = 320 << 20;

/// Whom the bad are at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Nobody,
    Another,
    TheServer,
}

/// A server with all its good services, before a bad API server.
fn start(dir: &Path, seed: u64) -> Serve {
    fs::create_dir_all(dir).unwrap();
    let kubeconfig = api_server::kubeconfig(dir, api_server::start(seed));
    let file = dir.join("config.json");
    fs::write(&file, config(dir, &kubeconfig).to_string()).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut serve = Serve::start(Command::new(program()).arg("--config").arg(&file).stderr(Stdio::from(log)));
    for service in 0..SERVICES {
        (0..ENDPOINTS).for_each(|n| serve.say(&good(service, n, 1)));
    }
    serve.say(&json!({ "op": "loaded" }));
    serve.flush();
    serve
}

/// Where streams and admin pages of a server are.
fn addresses(serve: &Serve) -> (SocketAddr, SocketAddr) {
    (serve.address().parse().unwrap(), serve.first["admin"].as_str().unwrap().parse().unwrap())
}

fn config(dir: &Path, kubeconfig: &Path) -> Value {
    json!({
        "stateDir": dir.join("state"),
        "policy": { "labels": ["seq"], "direct": { "applications": ["orders"], "balance": "mesh" } },
        "protect": { "emptyGrace": "2s", "massDeleteHold": "10s", "massAddSettle": "1s", "massAddHold": "10s" },
        "limits": {
            "services": 20_000, "publishers": 100_000, "bytes": 32 << 20, "streams": 64,
            "streamBytes": 4 << 20, "streamsBytes": 16 << 20, "pinnedBytes": 16 << 20,
        },
        "kubernetes": { "enabled": true, "kubeconfig": kubeconfig, "leaseNamespace": "default" },
    })
}

fn endpoint(service: usize, n: usize) -> String {
    format!("10.{}.{}.{n}:12200", 1 + service / 250, service % 250)
}

fn good(service: usize, n: usize, seq: usize) -> Value {
    json!({
        "op": "publish", "dataInfoId": id(service), "registerId": format!("good-{service}-{n}"), "version": seq,
        "registerTimestamp": seq, "sourceAddress": endpoint(service, n).split(':').next(),
        "data": [format!("{}?app_name=app{}&seq={seq}", endpoint(service, n), service % 20)],
    })
}

/// The observations of the good client.
#[derive(Default)]
struct Seen {
    responses: usize,
    /// The newest change of a good service.
    seq: usize,
    /// When the first response came that has it.
    at: Option<Instant>,
    /// Good endpoints that a response did not have.
    wrong: Vec<String>,
}

/// A good client: takes everything at once, and hands it on with the time at which it came.
async fn follow(address: String, came: Sender<(Instant, DiscoveryResponse)>) {
    let mut client = MoxClient::asking(&address, istiod_node(), SERVICE_ENTRY).await.unwrap();
    loop {
        let message = client.next_raw().await.expect("the good client's stream goes on");
        let at = Instant::now();
        client.ack_raw(&message).expect("the good client's stream takes its ACK");
        came.send((at, message)).expect("the responses are looked at");
    }
}

/// Looks at each response of the good client for the endpoints that never go.
fn look(came: &Receiver<(Instant, DiscoveryResponse)>, seen: &Mutex<Seen>) {
    let all: Vec<(String, BTreeSet<String>)> =
        (0..SERVICES).map(|service| (name(service), (0..ENDPOINTS).map(|n| endpoint(service, n)).collect())).collect();
    for (at, message) in came {
        let response = Response::of(message).unwrap();
        if response.type_url != SERVICE_ENTRY {
            continue;
        }
        let state = response.state();
        let mut seen = seen.lock().unwrap();
        seen.responses += 1;
        for (name, endpoints) in &all {
            let has: BTreeSet<String> =
                state.get(name).map(|resource| resource.endpoints().into_iter().collect()).unwrap_or_default();
            let number = seen.responses;
            seen.wrong.extend(endpoints.difference(&has).map(|gone| format!("{gone} of {name} in response {number}")));
        }
        let seq = |resource: &Resource| {
            let labels = resource.entry.endpoints.iter().filter_map(|endpoint| endpoint.labels.get("seq"));
            labels.filter_map(|seq| seq.parse::<usize>().ok()).max()
        };
        let good = all.iter().filter_map(|(name, _)| state.get(name));
        let seq = good.filter_map(seq).max().unwrap_or_default();
        if seq > seen.seq {
            (seen.seq, seen.at) = (seq, Some(at));
        }
    }
}

fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// How long the good client waited for changes: half of them, and 99 of 100.
fn waits(mut all: Vec<Duration>) -> (Duration, Duration) {
    all.sort();
    let at = |percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)];
    (at(50), at(99))
}

/// Waits until a server has read what it was told.
fn settle(serve: &mut Serve) {
    serve.ask(&json!({ "op": "unknown", "dataInfoIds": [], "id": 0 }));
}

/// Says a change of a good service.
fn say(serve: &mut Serve, random: &mut Random, seq: &mut usize) {
    *seq += 1;
    serve.say(&good(random.below(SERVICES), random.below(ENDPOINTS), *seq));
}

/// Changes a good service; how long that takes to arrive.
fn change(serve: &mut Serve, random: &mut Random, seq: &mut usize, seen: &Mutex<Seen>) -> Duration {
    let said = Instant::now();
    say(serve, random, seq);
    let at = eventually(SOON, "a good change arrives", || {
        let seen = seen.lock().unwrap();
        seen.at.filter(|_| seen.seq >= *seq)
    });
    at.saturating_duration_since(said)
}

/// Threads for tasks, at a priority.
fn runtime(threads: usize, nice: i32) -> Runtime {
    let at_start = move || assert!(rustix::process::nice(nice).is_ok());
    Builder::new_multi_thread().worker_threads(threads).on_thread_start(at_start).enable_all().build().unwrap()
}

#[test]
fn the_good_lose_nothing_among_the_bad() {
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let seed = number("MOX_SEED", u64::from(std::process::id()));
    let lasts = Duration::from_secs(number("MOX_HOSTILE_SECONDS", 15));
    println!("seed {seed}, {lasts:?}");
    let dir = std::env::temp_dir().join(format!("mox-hostile-{}", std::process::id()));
    let (good_tasks, bad_tasks) = (runtime(1, 0), runtime(2, 19));
    let (mut serve, mut another) = (start(&dir.join("server"), seed), start(&dir.join("another"), seed));
    let seen = Arc::<Mutex<Seen>>::default();
    let (came, responses) = channel();
    let follows = good_tasks.spawn(follow(serve.address(), came));
    let looks = std::thread::spawn({
        let seen = Arc::clone(&seen);
        move || {
            assert!(rustix::process::nice(19).is_ok());
            look(&responses, &seen);
        }
    });
    let (target, _) = watch::channel(None);
    for n in 0..CLIENTS {
        bad_tasks.spawn(clients::run(target.subscribe(), seed + n as u64));
    }
    let (mut waited, mut behind, mut most) =
        (BTreeMap::<At, Vec<Duration>>::new(), BTreeMap::<&str, Vec<Duration>>::new(), 0);
    {
        let mut random = Random::new(seed);
        let (mut bad, mut bad_of_another) = (publishers::Bad::new(seed), publishers::Bad::new(seed));
        eventually(SOON, "the first response", || (seen.lock().unwrap().responses > 0).then_some(()));
        let (begin, mut seq) = (Instant::now(), 1);
        while begin.elapsed() < lasts {
            for at in [At::Nobody, At::Another, At::TheServer] {
                target.send_replace(match at {
                    At::Nobody => None,
                    At::Another => Some(addresses(&another)),
                    At::TheServer => Some(addresses(&serve)),
                });
                let window = Instant::now();
                while window.elapsed() < WINDOW {
                    if at == At::TheServer {
                        let (kind, lines) = bad.lines(SERVICES);
                        lines.iter().for_each(|line| serve.say(line));
                        settle(&mut serve);
                        let wait = change(&mut serve, &mut random, &mut seq, &seen);
                        behind.entry(kind).or_default().push(wait);
                        waited.entry(at).or_default().push(wait);
                    } else {
                        if at == At::Another {
                            let (_, lines) = bad_of_another.lines(SERVICES);
                            lines.iter().for_each(|line| another.say(line));
                            settle(&mut another);
                        }
                        say(&mut serve, &mut random, &mut seq);
                        settle(&mut serve);
                        waited.entry(at).or_default().push(change(&mut serve, &mut random, &mut seq, &seen));
                    }
                    std::thread::sleep(PACE);
                }
                most = most.max(memory(serve.driven.process.pid()));
                let seen = seen.lock().unwrap();
                assert_eq!(seen.wrong, [] as [String; 0], "seed {seed}");
                assert!(most < MOST_MEMORY, "{} MiB, seed {seed}", most >> 20);
            }
        }
    }
    assert!(!follows.is_finished(), "the good client was cut, seed {seed}");
    follows.abort();
    good_tasks.shutdown_timeout(SOON);
    looks.join().unwrap();
    assert_eq!(seen.lock().unwrap().wrong, [] as [String; 0], "seed {seed}");
    for (kind, waited) in &behind {
        println!("behind {} of {kind}: {:?}", waited.len(), waits(waited.clone()));
    }
    let calm = waits(waited[&At::Nobody].clone()).1;
    for (at, waited) in waited {
        let (half, most) = waits(waited);
        let ratio = most.as_secs_f64() / calm.as_secs_f64();
        println!(
            "with the bad at {at:?}: half of the changes arrived within {half:?}, 99 of 100 within {most:?} ({ratio:.2} x)"
        );
    }
    println!("{} responses, 0 wrong deletions, {} MiB at most", seen.lock().unwrap().responses, most >> 20);
    let status: Value = serde_json::from_str(&serve.page("/mox/status").body).unwrap();
    println!("store {}", status["store"]);
    println!(
        "{}",
        serve
            .page("/mox/metrics")
            .body
            .lines()
            .filter(|line| BOUNDS.iter().any(|name| line.starts_with(name)))
            .collect::<Vec<_>>()
            .join("\n")
    );
    fs::remove_dir_all(dir).unwrap();
}
