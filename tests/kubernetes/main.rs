//! The Kubernetes sink on a real kube-apiserver with etcd, which `tests/real/install.sh kubernetes` builds.
//!
//! `cargo test --test kubernetes [-- PART-OF-A-NAME]`: one API server for all tests, a namespace for each. `--include-ignored`
//! runs those that take minutes as well; `--bench` measures a first sync of 10,000 services instead.
#![allow(clippy::unwrap_used, missing_docs)]

mod basics;
mod disasters;
mod figures;
mod istio;
mod manifests;
mod pods;
mod proxy;
mod refusals;
mod server;
mod writer;

use std::{process::ExitCode, sync::Arc};

use harness::trials::{Measurement, Shared, Trial, run, sharing};
use server::Server;

/// A name, and what happens.
type Scenario = (&'static str, fn(&mut Server));

const SCENARIOS: &[&[Scenario]] = &[
    manifests::SCENARIOS,
    basics::SCENARIOS,
    writer::SCENARIOS,
    pods::SCENARIOS,
    refusals::SCENARIOS,
    istio::SCENARIOS,
    disasters::SCENARIOS,
];

/// Takes minutes.
const LONG: &str = "a_large_service_moves_out_and_back";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, kubeconfig, namespace] = &arguments[..]
        && mode == writer::PROCESS
    {
        writer::process(kubeconfig.as_ref(), namespace);
    }
    let server = Shared::new(Server::start);
    let trial = |(name, scenario): Scenario| sharing(&server, name, scenario).with_ignored_flag(name == LONG);
    let mut trials: Vec<Trial> = SCENARIOS.concat().into_iter().map(trial).collect();
    let of_master = |server: &mut Server| istio::istiod_reads(server, istio::MASTER);
    let missing = !istio::has_master();
    trials.push(sharing(&server, "istiod_of_master_reads_the_objects", of_master).with_ignored_flag(missing));
    let measured = Arc::clone(&server);
    trials.push(Trial::bench("a_first_sync", move |small| {
        let took = measured.with(|server| figures::first_sync(server, if small { 2_000 } else { 10_000 }));
        Ok(Some(Measurement { avg: took.as_nanos() as u64, variance: 0 }))
    }));
    drop(server);
    run(trials)
}
