//! What a sidecar and istiod take by what is exported to whom: the real istiod, the real Envoy, and `examples/serve` with thousands of
//! services, in a network of its own. `make scale`, or `cargo test --release --test scale -- [SERVICES]…` as root.
//!
//! Each way of exporting has a server, an istiod and a proxy of its own, one way after the other; what is compared is of one run. The
//! figures go to `tests/scale/results.json`, and as tables to `docs/benchmarks.md`, which says how they are taken. What is said of a
//! number of services replaces what was there of it.
#![allow(clippy::unwrap_used, missing_docs)]

mod cost;
mod followers;
mod report;
mod run;
mod world;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use harness::process::{is_root, mortal, root};
use serde_json::json;
use world::{ENDPOINTS, WAYS};

/// The first argument of this program inside of its network.
const INSIDE: &str = "--inside";
/// In place of numbers of services: measures nothing, and makes the tables anew of what is known.
const TABLES: &str = "tables";
/// What there is of services where nothing is said.
const SIZES: [usize; 3] = [1_000, 5_000, 10_000];
/// Loopback, with the address that `sidecar.sh` looks for istiod at.
const NETWORK: &str = "ip link set lo up && ip address add 10.60.0.1/32 dev lo && exec \"$0\" \"$@\"";

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let (inside, sizes) = match given.split_first() {
        Some((first, sizes)) if first == INSIDE => (true, sizes),
        _ => (false, &given[..]),
    };
    if given == [TABLES] {
        report::write();
        return ExitCode::SUCCESS;
    }
    let sizes: Result<Vec<usize>, _> = sizes.iter().map(|size| size.replace([',', '_'], "").parse()).collect();
    let sizes = match sizes {
        Ok(sizes) if sizes.iter().all(|size| (100..=50_000).contains(size)) => sizes,
        _ => {
            return refuse(
                "arguments are numbers of services from 100 to 50,000, separated by blanks, or the one word tables",
            );
        }
    };
    if !is_root() {
        return refuse("needs root, for a network of its own");
    }
    if !inside {
        let mut alone = mortal("unshare");
        alone.args(["--net", "sh", "-c", NETWORK]).arg(std::env::current_exe().unwrap()).arg(INSIDE).args(&given);
        return if alone.status().unwrap().success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    for services in sizes {
        measure(services);
    }
    ExitCode::SUCCESS
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("scale: {why}");
    ExitCode::FAILURE
}

/// Every way of exporting so many services.
fn measure(services: usize) {
    let begin = Instant::now();
    println!("\n==> {services} services × {ENDPOINTS}, one way after the other");
    let mut ways = json!({});
    for way in WAYS {
        println!("  {}", way.title);
        ways[way.name] = json!(run::run(services, way));
    }
    report::keep(services, ways);
    report::verdict(services);
    println!("  {services} services took {:.0?}; figures are in {}", begin.elapsed(), shown(&report::results()));
}

fn shown(path: &std::path::Path) -> String {
    path.strip_prefix(root()).map_or_else(|_| path.into(), PathBuf::from).display().to_string()
}
