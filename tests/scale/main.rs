//! Costs of a sidecar and of istiod by what is exported to whom: the real istiod, the real Envoy, and `examples/serve` with thousands of
//! services, in a network of its own. As root.
//!
//! `make scale`, or `cargo test --release --test scale -- SERVICES…`, measures. Each way of exporting has a server, an istiod and a
//! proxy of its own, one way after the other; figures are compared within one run only, and shown as tables. With `UPDATE=1` they replace
//! those of so many services in `tests/scale/results.json` and in `docs/benchmarks.md`, which says how they are taken. A goal that is
//! missed fails the run. Without a number all of this runs on few services for a moment, so that it keeps working.
#![allow(clippy::unwrap_used, missing_docs)]

mod cost;
mod followers;
mod report;
mod run;
mod world;

use std::{process::ExitCode, time::Instant};

use harness::{
    process::{is_root, mortal},
    trials::{self, trial_unless},
};
use run::Plan;
use serde_json::json;
use world::{ENDPOINTS, WAYS};

/// The first argument of this program inside of its network.
const INSIDE: &str = "--inside";
/// In place of numbers of services: measures nothing, and makes the tables in the documentation anew of the record.
const TABLES: &str = "tables";
/// Services of the small run.
const FEW: usize = 100;
/// Loopback, with the address that `sidecar.sh` looks for istiod at.
const NETWORK: &str = "ip link set lo up && ip address add 10.60.0.1/32 dev lo && exec \"$0\" \"$@\"";

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match given.split_first() {
        Some((first, [])) if first == TABLES => {
            report::write();
            ExitCode::SUCCESS
        }
        Some((first, [])) if first == INSIDE => {
            in_small();
            ExitCode::SUCCESS
        }
        Some((first, sizes)) if first == INSIDE => {
            let met: Vec<bool> = sizes.iter().map(|size| measure(size.parse().unwrap())).collect();
            if met.contains(&false) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Some((first, _)) if first.starts_with(|first: char| first.is_ascii_digit()) => {
            let is_size = |size: &String| size.parse().is_ok_and(|size: usize| (FEW..=50_000).contains(&size));
            match (given.iter().all(is_size), needs_root()) {
                (true, None) if alone(&given) => ExitCode::SUCCESS,
                (true, None) => ExitCode::FAILURE,
                (true, Some(why)) => refuse(&why),
                (false, _) => refuse("arguments are numbers of services from 100 to 50000, or the one word tables"),
            }
        }
        _ => trials::run(vec![trial_unless("scale_in_small", needs_root, || match alone(&[]) {
            true => Ok(()),
            false => Err("it failed inside of its network".into()),
        })]),
    }
}

/// Whether this program, in a network of its own, does what it is told.
fn alone(sizes: &[String]) -> bool {
    let mut program = mortal("unshare");
    program.args(["--net", "sh", "-c", NETWORK]).arg(std::env::current_exe().unwrap()).arg(INSIDE).args(sizes);
    program.status().unwrap().success()
}

fn needs_root() -> Option<String> {
    (!is_root()).then(|| "it needs root, for a network of its own".to_owned())
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("scale: {why}");
    ExitCode::FAILURE
}

/// Every way of exporting so many services; whether the goals are met.
fn measure(services: usize) -> bool {
    let begin = Instant::now();
    println!("\n==> {services} services × {ENDPOINTS}, one way after the other");
    let mut ways = json!({});
    for way in WAYS {
        println!("  {}", way.title);
        ways[way.name] = json!(run::run(services, way, Plan::FULL));
    }
    let met = report::verdict(services, &ways);
    let kept = report::keep(services, ways);
    println!("  {services} services took {:.0?}; {kept}", begin.elapsed());
    met
}

/// Every way of exporting few services: what the sidecar holds differs by what it is to see.
fn in_small() {
    let [wide, narrow, wide_direct, narrow_direct] = WAYS.map(|way| run::run(FEW, way, Plan::SMALL).sidecar);
    let (seen, applications) = world::seen(FEW);
    let hidden = (FEW - seen) as u64;
    assert_eq!((wide.clusters - narrow.clusters, wide.listeners - narrow.listeners), (hidden, hidden));
    let addresses = [world::applications(FEW), applications].map(|all| (all * ENDPOINTS) as u64);
    assert_eq!(wide_direct.listeners - wide.listeners, addresses[0], "an address, a listener");
    assert_eq!(narrow_direct.listeners - narrow.listeners, addresses[1], "an address, a listener");
    assert!(wide.resident_bytes > narrow.resident_bytes);
}
