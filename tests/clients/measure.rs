//! Figures for tests/bench/README.md: `cargo test --release --test clients -- --ignored [PART-OF-A-NAME]`.

use std::{
    fs,
    time::{Duration, Instant},
};

use harness::{
    client::{MoxClient, SERVICE_ENTRY, node},
    parts::Istiod,
    process::{START, eventually, free_port},
};
use prost::Message;
use registry_mox::proto::istio::{mcp::v1alpha1::Resource, networking::v1alpha3::ServiceEntry};
use serde_json::{Value, json};
use tokio::{runtime, sync::mpsc, task::JoinHandle};

use crate::{
    istiod::{heap, heap_growth},
    serve::{PORT, Server, address, ip, registered, sources},
};

pub(crate) const MEASURES: [(&str, fn()); 3] =
    [("measure_parts", parts), ("measure_priming", priming), ("measure_bad_clients", bad_clients)];

/// A number from the environment.
fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

/// Milliseconds of processor time that a process has taken.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|field| fields[*field].parse::<f64>().unwrap()).sum();
    ticks * 10.0 // of 1/100 s
}

fn rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() / 1024
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Pushes of ServiceEntries so far, how long the one before each was answered took, and whether all are answered.
fn pushes(serve: &Server) -> (Vec<(u64, u64)>, bool) {
    let page = serve.page("streams");
    let of = |stream: &Value| {
        let types = stream["types"].as_object()?;
        let services = types.iter().find(|(type_url, _)| type_url.ends_with("/ServiceEntry"))?.1;
        let answered = services["unackedMillis"].is_null();
        Some(((services["pushes"].as_u64()?, services["ackMillis"].as_u64().unwrap_or_default()), answered))
    };
    let all: Option<Vec<_>> = page["streams"].as_array().unwrap().iter().map(of).collect();
    let all = all.unwrap_or_default();
    (all.iter().map(|(push, _)| *push).collect(), !all.is_empty() && all.iter().all(|(_, answered)| *answered))
}

/// The cost of one endpoint's change to istiod, by the number of parts in which istiod takes the services.
fn parts() {
    let (services, endpoints) = (number("MOX_SERVICES", 10_000), number("MOX_ENDPOINTS", 20));
    let (rounds, changes) = (number("MOX_ROUNDS", 2), number("MOX_CHANGES", 20));
    let mut state = registered(services, endpoints);
    let settings = json!({ "partitions": [16, 64], "push": { "duty": 1 } });
    let mut serve = Server::loaded(settings, &state);
    println!("{services} services × {endpoints}, {} bytes", serve.page("status")["bytes"]);
    println!(
        "| sources | bytes a change | istiod CPU a change, ms | server CPU, ms | push → ACK p50, ms | max | RSS, MB | heap, MB |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for _ in 0..rounds {
        for count in [1, 16, 64] {
            let istiod = Istiod::with_sources(&sources(count), free_port(), &[]);
            let quiet = |serve: &Server| {
                eventually(START, "every push is answered", || {
                    let (pushes, answered) = pushes(serve);
                    (answered && pushes.len() == usize::from(count)).then_some(pushes)
                })
            };
            let mut before = quiet(&serve);
            let pid = istiod.process.pid();
            settle(pid);
            let bytes = serve.page("status")["pushedBytes"].as_u64().unwrap();
            let (istiods, ours) = (cpu(pid), cpu(serve.pid()));
            let mut times = Vec::new();
            for change in 0..changes {
                // Far from each other, so that every part has its turn.
                serve.change(&mut state, change * 977 % services, 0);
                serve.flush();
                let total = |pushes: &[(u64, u64)]| pushes.iter().map(|(count, _)| count).sum::<u64>();
                let after = eventually(START, "a push", || {
                    let (pushes, answered) = pushes(&serve);
                    (answered && total(&pushes) > total(&before)).then_some(pushes)
                });
                times.extend(before.iter().zip(&after).filter(|(old, new)| old.0 != new.0).map(|(_, new)| new.1));
                before = after;
            }
            settle(pid);
            let (istiods, ours) = (cpu(pid) - istiods, cpu(serve.pid()) - ours);
            let bytes = serve.page("status")["pushedBytes"].as_u64().unwrap() - bytes;
            let each = changes as f64;
            println!(
                "| {count} | {:.0} | {:.1} | {:.1} | {} | {} | {} | {} |",
                bytes as f64 / each,
                istiods / each,
                ours / each,
                median(&mut times),
                times.last().unwrap(),
                rss(pid),
                heap(&istiod) >> 20
            );
        }
    }
}

/// Waits until a process takes (nearly) no more time.
fn settle(pid: u32) {
    eventually(START, "istiod is idle", || {
        let before = cpu(pid);
        std::thread::sleep(Duration::from_millis(500)); // over which it is looked at
        (cpu(pid) - before <= 30.0).then_some(())
    });
}

/// istiod's heap after 110 pushes of everything, with and without priming.
fn priming() {
    let services = number("MOX_SERVICES", 2_000);
    println!("{services} services × 20, 110 pushes, one istiod each");
    for prime in [true, false] {
        let (before, after) = heap_growth(prime, services, 20, 110);
        println!("priming {prime}: heap {} -> {} MB", before >> 20, after >> 20);
    }
}

/// A client that says which version of the changing endpoint it was told, and when.
fn follow(mut client: MoxClient, who: usize, told: mpsc::UnboundedSender<(usize, i64, Instant)>) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok(response) = client.next_raw().await {
            let arrived = Instant::now();
            if client.ack_raw(&response).is_err() {
                return;
            }
            if let Some(version) = response.resources.iter().find_map(|any| version(&any.value))
                && told.send((who, version, arrived)).is_err()
            {
                return;
            }
        }
    })
}

/// The version of the first endpoint of the first service, if this is that service.
fn version(resource: &[u8]) -> Option<i64> {
    let name = b"com.example.s0";
    let at = resource.get(..200)?.windows(name.len()).position(|window| window == name)?;
    if resource[at + name.len()].is_ascii_digit() {
        return None;
    }
    let entry = ServiceEntry::decode(Resource::decode(resource).unwrap().body.unwrap().value).unwrap();
    let changed = entry.endpoints.iter().find_map(|endpoint| endpoint.address.strip_prefix("11."))?;
    let [a, b, c] = changed.split('.').map(|part| part.parse().unwrap()).collect::<Vec<i64>>()[..] else { return None };
    Some(a * 62_500 + b * 250 + c)
}

/// A client that reads nothing, one that never answers and one that accepts nothing, beside four good ones.
fn bad_clients() {
    const GOOD: usize = 4;
    let (rounds, changes) = (number("MOX_ROUNDS", 5), number("MOX_CHANGES", 300));
    let every = Duration::from_millis(50);
    let mut state = registered(1_000, 10);
    let mut serve = Server::loaded(json!({ "push": { "duty": 1 } }), &state);
    let runtime = || runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // The bad clients' own work here is not to keep the good ones waiting.
    let (runtime, theirs) = (runtime(), runtime());
    let open = async |name: &str| {
        let mut client = MoxClient::connect(&address(PORT), node(name)).await.unwrap();
        client.subscribe(SERVICE_ENTRY).unwrap();
        client
    };
    println!("1,000 services × 10, {GOOD} clients, {changes} changes of one endpoint, one each {every:?}");
    println!("| round | without: p50 | p99 | with: p50 | p99 |\n| ---: | ---: | ---: | ---: | ---: |");
    let mut p99s = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        let mut row = [(0, 0); 2];
        // Which is first changes, so that the machine's ups and downs meet both.
        for with in if round % 2 == 0 { [false, true] } else { [true, false] } {
            let (told, mut tells) = mpsc::unbounded_channel();
            let good: Vec<_> = runtime.block_on(async {
                let mut good = Vec::new();
                for n in 0..GOOD {
                    good.push(follow(open(&format!("good-{n}")).await, n, told.clone()));
                }
                good
            });
            let bad: Vec<_> = theirs.block_on(async {
                let mut bad = Vec::new();
                if with {
                    let silent = open("reads-nothing").await;
                    bad.push(tokio::spawn(async move {
                        let _kept = silent;
                        std::future::pending().await
                    }));
                    let mut mute = open("never-answers").await;
                    bad.push(tokio::spawn(async move { while mute.next_raw().await.is_ok() {} }));
                    let mut refuser = open("accepts-nothing").await;
                    bad.push(tokio::spawn(async move {
                        while let Ok(response) = refuser.next_raw().await {
                            if refuser.nack_raw(&response, "I take nothing").is_err() {
                                return;
                            }
                        }
                    }));
                }
                bad
            });
            let expected = GOOD + if with { 3 } else { 0 };
            eventually(START, "all have been served", || (pushes(&serve).0.len() == expected).then_some(()));
            let begin = Instant::now() + every;
            let mut due = std::collections::BTreeMap::new();
            let first = state.values().flatten().max().unwrap() + 1;
            for change in 0..changes as u32 {
                let at = begin + every * change;
                std::thread::sleep(at.saturating_duration_since(Instant::now())); // the intended time
                let told = serve.change(&mut state, 0, 0);
                let version = state[&0][0];
                assert_eq!(told, ip(0, 0, version));
                due.insert(version, at);
            }
            let last = first + changes as i64 - 1;
            let (mut delays, mut seen) = (Vec::new(), [first - 1; GOOD]);
            runtime.block_on(async {
                // A response has every change before the one that it shows.
                while seen != [last; GOOD] {
                    let (who, version, at) = tokio::time::timeout(START, tells.recv()).await.unwrap().unwrap();
                    if version <= seen[who] {
                        continue;
                    }
                    delays.extend(due.range(seen[who] + 1..=version).map(|(_, due)| (at - *due).as_micros() as u64));
                    seen[who] = version;
                }
            });
            assert_eq!(delays.len(), GOOD * changes);
            good.iter().chain(&bad).for_each(JoinHandle::abort);
            eventually(START, "all are gone", || pushes(&serve).0.is_empty().then_some(()));
            delays.sort_unstable();
            row[usize::from(with)] = (delays[delays.len() / 2], delays[delays.len() * 99 / 100]);
        }
        let [without, with] = row;
        println!("| {round} | {} | {} | {} | {} |", without.0, without.1, with.0, with.1);
        p99s[0].push(without.1);
        p99s[1].push(with.1);
    }
    let [without, with] = p99s.map(|mut p99| median(&mut p99));
    println!(
        "microseconds; median of p99: {without} without, {with} with: {:+.1} %",
        100.0 * (with as f64 / without as f64 - 1.0)
    );
}
