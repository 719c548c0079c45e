//! Real clients: Istio's `adsc` of three versions, istiod and Envoy. `tests/real/install.sh istio clients` installs them, and
//! `cargo build --examples` builds the server that most of them talk to.
//!
//! `cargo test --test clients [-- PART-OF-A-NAME]`; with `--ignored` figures instead of tests.
#![allow(clippy::unwrap_used, missing_docs)]

mod adsc;
mod dual_stack;
mod envoy;
mod envoy_types;
mod istiod;
mod measure;
mod serve;
mod warmup;

use std::process::ExitCode;

use harness::trials::{run, trial};

const SCENARIOS: [(&str, fn()); 11] = [
    ("adsc_of_istio_1_22_holds_what_is_served", adsc::of_1_22),
    ("adsc_of_istio_1_29_holds_what_is_served", adsc::of_1_29),
    ("adsc_of_istio_1_32_holds_what_is_served", adsc::of_1_32),
    ("envoy_follows_in_state_of_the_world", envoy::state_of_the_world),
    ("envoy_follows_in_delta", envoy::incremental),
    ("istiod_needs_less_memory_with_priming", istiod::priming_saves_memory),
    ("istiod_serves_both_families_of_addresses", dual_stack::both_families),
    ("istiod_warms_up_by_policy_and_an_operators_own_rule_wins", warmup::is_followed_and_gives_way),
    ("istiod_deletes_nothing_in_an_outage", istiod::outages_delete_nothing),
    ("istiod_deletes_nothing_from_one_source_to_64_and_back", || istiod::one_source_to_64_and_back(100)),
    ("istiod_deletes_nothing_while_the_server_goes_from_16_parts_to_64", || istiod::parts_16_to_64(100)),
];

fn main() -> ExitCode {
    let tests = SCENARIOS.map(|(name, scenario)| trial(name, scenario));
    let measures = measure::MEASURES.map(|(name, measure)| trial(name, measure).with_ignored_flag(true));
    run(tests.into_iter().chain(measures).collect())
}
