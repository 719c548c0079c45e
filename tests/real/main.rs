//! End-to-end tests on the real parts: SOFARegistry, its client, SOFARPC, Dubbo, istiod and Envoy. `tests/real/install.sh` installs them.
//!
//! `cargo test --test real [-- PART-OF-A-NAME]`. The registry's ports are fixed and it takes a while to start, so the tests
//! are in groups that share one registry, or one network. Only `--ignored` runs the rarer faults (`cell_…`),
//! `soak`, `load` and `mesh_story`.
#![allow(clippy::unwrap_used, missing_docs)]

mod cell;
mod cluster;
mod consumers;
mod corpus;
mod documents;
mod faults;
mod load;
mod mesh;
mod mox_off;
mod mox_on;
mod network;
mod payloads;
mod recorder;
mod sds;
mod soak;
mod visibility;

use std::process::ExitCode;

use harness::{
    parts::{Registry, demo, demo_goes_on_without_its_guest},
    trials::{Shared, Trial, run, sharing, trial},
};

/// A name, and what happens.
type Scenario = (&'static str, fn(&mut Registry));

/// Scenarios that share one registry, in this order.
struct Group {
    start: fn() -> Registry,
    scenarios: &'static [Scenario],
}

const GROUPS: [&Group; 5] =
    [&mox_on::GROUP, &cluster::GROUP, &mox_off::NOT_ENABLED, &mox_off::PORT_TAKEN, &mox_off::INVALID_VALUE];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, inside, role, more @ ..] = &arguments[..]
        && inside == network::INSIDE
    {
        return match role.as_str() {
            faults::CELL => faults::inside(),
            load::LOAD => load::inside(),
            _ => mesh::inside(more),
        };
    }
    let mut trials: Vec<Trial> = Vec::new();
    for group in GROUPS {
        let registry = Shared::new(group.start);
        trials.extend(group.scenarios.iter().map(|(name, scenario)| sharing(&registry, name, *scenario)));
    }
    trials.push(trial("demo", || demo("demo.sh")));
    trials.push(trial("demo_goes_on_without_its_guest", demo_goes_on_without_its_guest));
    trials.push(trial("demo_istio", || demo("demo-istio.sh")));
    trials.extend(corpus::trials());
    trials.extend(faults::trials());
    trials.extend(mesh::trials());
    trials.push(soak::trial());
    trials.push(load::trial());
    run(trials)
}
