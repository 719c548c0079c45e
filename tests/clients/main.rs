//! Real clients: Istio's `adsc` of three versions, istiod and Envoy. `tests/real/install.sh istio clients` installs them, and
//! `cargo build --examples` builds the server that most of them talk to. What is printed looks like libtest's.
//!
//! `cargo test --test clients [-- PART-OF-A-NAME]`; with `--measure` figures instead of tests.
#![allow(clippy::unwrap_used, missing_docs)]

mod adsc;
mod envoy;
mod envoy_types;
mod istiod;
mod measure;
#[path = "../common/mox_client.rs"]
mod mox_client;
#[allow(dead_code)] // it has more parts than are needed here
#[path = "../real/parts.rs"]
mod parts;
mod serve;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

const SCENARIOS: [(&str, fn()); 9] = [
    ("adsc_of_istio_1_22_holds_what_is_served", adsc::of_1_22),
    ("adsc_of_istio_1_29_holds_what_is_served", adsc::of_1_29),
    ("adsc_of_istio_1_32_holds_what_is_served", adsc::of_1_32),
    ("envoy_follows_in_state_of_the_world", envoy::state_of_the_world),
    ("envoy_follows_in_delta", envoy::incremental),
    ("istiod_needs_less_memory_with_priming", istiod::priming_saves_memory),
    ("istiod_deletes_nothing_in_an_outage", istiod::outages_delete_nothing),
    ("istiod_deletes_nothing_from_one_source_to_64_and_back", || istiod::one_source_to_64_and_back(100)),
    ("istiod_deletes_nothing_while_the_server_goes_from_16_parts_to_64", || istiod::parts_16_to_64(100)),
];

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    if std::env::args().any(|arg| arg == "--measure") {
        for (name, measure) in measure::MEASURES.iter().filter(|(name, _)| name.contains(&filter)) {
            println!("\n== {name}");
            measure();
        }
        return ExitCode::SUCCESS;
    }
    let (started, mut passed, mut failed, mut skipped) = (Instant::now(), 0, 0, 0);
    for (name, scenario) in SCENARIOS {
        if !name.contains(&filter) {
            skipped += 1;
            continue;
        }
        let begin = Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(scenario)).is_ok();
        println!("test {name} ... {} ({:.1?})", if ok { "ok" } else { "FAILED" }, begin.elapsed());
        *if ok { &mut passed } else { &mut failed } += 1;
    }
    let (verdict, code) = if failed == 0 { ("ok", ExitCode::SUCCESS) } else { ("FAILED", ExitCode::FAILURE) };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {skipped} filtered out; \
         finished in {:.2?}",
        started.elapsed()
    );
    code
}
