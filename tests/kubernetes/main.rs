//! The Kubernetes sink on a real kube-apiserver with etcd, which `tests/real/install.sh kubernetes` builds.
//!
//! One API server for all scenarios, a namespace for each, hence no libtest; what is printed looks like libtest's.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../real/api_server.rs"]
mod api_server;
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)] // made for the tests on the other real parts
#[path = "../real/parts.rs"]
mod parts;

mod basics;
mod disasters;
mod figures;
mod istio;
mod proxy;
mod refusals;
mod server;
mod writer;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use common::mox_client;
use server::Server;

/// A name, and what happens.
type Scenario = (&'static str, fn(&mut Server));

const SCENARIOS: &[&[Scenario]] =
    &[basics::SCENARIOS, writer::SCENARIOS, refusals::SCENARIOS, istio::SCENARIOS, disasters::SCENARIOS];

/// Takes minutes, so it is run when it is named or with `--all`, as `make torture` does.
const LONG: [&str; 1] = ["a_large_service_moves_out_and_back"];

/// `cargo test --test kubernetes [-- PART-OF-A-NAME]`; `-- --bench` measures a first sync of 10,000 services instead.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, kubeconfig, namespace] = &arguments[..]
        && mode == writer::PROCESS
    {
        writer::process(kubeconfig.as_ref(), namespace);
    }
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let bench = std::env::args().any(|a| a == "--bench");
    let begin = Instant::now();
    let all: Vec<Scenario> = if bench {
        figures::BENCH.to_vec()
    } else {
        SCENARIOS.concat().into_iter().chain(figures::SCENARIOS.to_vec()).collect()
    };
    let everything = std::env::args().any(|a| a == "--all") || !filter.is_empty();
    let is_wanted = |name: &str| {
        name.contains(&filter)
            && (everything || !LONG.contains(&name))
            && (!name.contains("of_master") || istio::has_master())
    };
    let (wanted, others): (Vec<Scenario>, Vec<Scenario>) = all.into_iter().partition(|(name, _)| is_wanted(name));
    let (mut passed, mut failed) = (0, 0);
    // Why it did not start is on stderr already.
    let mut server = catch_unwind(Server::start).ok();
    for (name, scenario) in wanted {
        let begin = Instant::now();
        let run = || scenario(server.as_mut().expect("an API server that started"));
        let ok = catch_unwind(AssertUnwindSafe(run)).is_ok();
        println!("test {name} ... {} ({:.1?})", if ok { "ok" } else { "FAILED" }, begin.elapsed());
        *if ok { &mut passed } else { &mut failed } += 1;
    }
    let (verdict, code) = if failed == 0 { ("ok", ExitCode::SUCCESS) } else { ("FAILED", ExitCode::FAILURE) };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in \
         {:.2?}",
        others.len(),
        begin.elapsed()
    );
    code
}
