//! The load of a session server with MoX on a data server, beside that of a server without: 3,000 services of 20
//! endpoints, without changes and with 100 of them a second. Neither of the two has registry clients; these are with a
//! third.

use std::{
    collections::BTreeMap,
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use harness::{
    parts::Client,
    process::{START, eventually, log_path},
    random::Random,
    trials::{Shared, Trial},
};

use crate::{
    cell::{Cell, DATA, SESSIONS, Server, address, on, status},
    network::{self, Network},
};

/// The argument with which this program measures inside of `hosts.sh`.
pub(crate) const LOAD: &str = "load";

const SERVICES: usize = 3_000;
const ENDPOINTS: usize = 20;
const TIME: Duration = Duration::from_secs(60);
/// With the clients; with MoX; without.
const FRONT: u8 = SESSIONS[0];
const WITH: u8 = SESSIONS[1];
const WITHOUT: u8 = 13;

pub(crate) fn trial() -> Trial {
    network::trial(&Shared::new(|| Network::start("hosts.sh", &[LOAD])), LOAD).with_ignored_flag(true)
}

pub(crate) fn inside() -> ExitCode {
    network::inside(|| (), |(), _| measure(), |()| ())
}

/// As SOFARPC 5.13 publishes it.
fn url(service: usize, endpoint: usize, weight: usize) -> String {
    let n = service * ENDPOINTS + endpoint;
    format!(
        "10.{}.{}.{}:12200?version=1.0&accepts=100000&weight={weight}&language=java&pid={}&interface=com.example.load.Service{service}\
         &timeout=3000&serialization=hessian2&protocol=bolt&delay=-1&dynamic=true&startTime=1700000000000&id=service{service}\
         &uniqueId=&rpcVer=51302&app_name=load-{}&zone=GZ00A",
        n >> 16,
        (n >> 8) & 255,
        n & 255,
        1_000 + n % 30_000,
        service % 300,
    )
}

fn measure() {
    let slots = "-Dregistry.data.slot.num=256"; // a production registry's
    let mox = ["-Dmox.enabled=true", "-Xmx700m", slots];
    let (_database, _meta, mut data, mut sessions) = Cell::servers(&["-Xmx700m", slots], &mox);
    sessions.push(Server::new("session", WITHOUT, 9603, &["-Xmx700m".to_owned(), slots.to_owned()]));
    for n in [WITH, WITHOUT] {
        let reset =
            ["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9600", "-j", "REJECT", "--reject-with", "tcp-reset"];
        on(n, &reset);
    }
    for n in [FRONT, WITH, WITHOUT] {
        let peer = address(n).to_string();
        on(DATA, &["iptables", "-A", "INPUT", "-s", &peer]); // they only count
        on(DATA, &["iptables", "-A", "OUTPUT", "-d", &peer]);
    }
    sessions.iter_mut().for_each(Server::start);
    data.wait_until_healthy();
    sessions.iter_mut().for_each(Server::wait_until_healthy);
    sessions[1].wait_until_serving();

    let server = address(FRONT).to_string();
    let mut client = Client::start_with("cell-load", &[&server, "9603", "load", "12", "-Xmx700m"]);
    for service in 0..SERVICES {
        for endpoint in 0..ENDPOINTS {
            let id = format!("com.example.load.Service{service}:1.0@DEFAULT");
            client.tell(&format!("publish {service}.{endpoint} {id} {}", url(service, endpoint, 100)));
        }
    }
    eventually(2 * START, "all are served", || {
        (status(WITH)["served"]["endpoints"] == SERVICES * ENDPOINTS).then_some(())
    });
    thread::sleep(Duration::from_secs(30)); // what follows the publishes is to be over
    let mut random = Random::new(1);
    for rate in [0, 100] {
        let before = Counts::now(&data);
        let (begin, mut changes) = (Instant::now(), 0);
        while begin.elapsed() < TIME {
            if rate == 0 {
                thread::sleep(TIME); // what is measured
                continue;
            }
            let (service, endpoint) = (random.below(SERVICES), random.below(ENDPOINTS));
            client.tell(&format!("republish {service}.{endpoint} {}", url(service, endpoint, 1 + random.below(200))));
            changes += 1;
            thread::sleep((Duration::from_secs(1) * changes / rate).saturating_sub(begin.elapsed())); // the pace
        }
        before.report(&Counts::now(&data), changes);
    }
}

/// The counts from the start up to a moment.
struct Counts {
    at: Instant,
    /// Bytes to and from the data server, by session server.
    bytes: BTreeMap<u8, (u64, u64)>,
    reads: u64,
    compares: u64,
    /// Processor time of the data server, in ticks of 10 ms.
    ticks: u64,
}

impl Counts {
    fn now(data: &Server) -> Self {
        let counters = on(DATA, &["iptables", "-nvxL"]);
        let bytes_of = |n: u8, column: usize| {
            let peer = address(n).to_string();
            let line = counters.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let mut lines = line.filter(|words| {
                words.contains(&&*peer) && words.iter().rposition(|word| **word == peer) == Some(column)
            });
            lines.next().and_then(|words| words[1].parse().ok()).expect("a counter")
        };
        // Columns of a rule without target: packets, bytes, protocol, options, in, out, source, destination.
        let bytes = [FRONT, WITH, WITHOUT].map(|n| (n, (bytes_of(n, 6), bytes_of(n, 7)))).into();
        let feed = &status(WITH)["feed"];
        let stat = fs::read_to_string(format!("/proc/{}/stat", data.pid())).unwrap();
        let fields: Vec<u64> =
            stat.rsplit_once(')').unwrap().1.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        Self {
            at: Instant::now(),
            bytes,
            reads: feed["reads"].as_u64().unwrap(),
            compares: feed["compares"].as_u64().unwrap(),
            ticks: fields[10] + fields[11],
        }
    }

    fn report(&self, after: &Self, changes: u32) {
        let seconds = (after.at - self.at).as_secs_f64();
        let rate = |from: u64, to: u64| (to - from) as f64 / seconds;
        println!("{:.0} changes/s:", f64::from(changes) / seconds);
        println!(
            "  a session server with MoX: {:.1} reads/s, {:.1} comparisons of a slot/s",
            rate(self.reads, after.reads),
            rate(self.compares, after.compares)
        );
        for (n, what) in [(FRONT, "with the clients"), (WITH, "with MoX"), (WITHOUT, "without")] {
            let ((to, from), (to_now, from_now)) = (self.bytes[&n], after.bytes[&n]);
            println!(
                "  {what}: {:.1} kB/s to the data server, {:.1} kB/s from it",
                rate(to, to_now) / 1e3,
                rate(from, from_now) / 1e3
            );
        }
        println!("  the data server's processor: {:.1} %", rate(self.ticks, after.ticks));
        println!("  log of the clients: {}", log_path("cell-load").display());
    }
}
