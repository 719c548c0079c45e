//! End-to-end tests on the real parts: SOFARegistry, its client, SOFARPC, Dubbo, istiod and Envoy. `tests/real/install.sh` installs them.
//!
//! The registry's ports are fixed and it takes a while to start, so the scenarios run one after the other, in groups that
//! share one registry; hence no libtest. What is printed looks like libtest's.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code)] // what it may suffer it suffers in tests/kubernetes
mod api_server;
mod cell;
mod cluster;
mod faults;
#[path = "../common/golden.rs"]
mod golden;
#[path = "../common/judge.rs"]
mod judge;
mod load;
mod mesh;
#[path = "../common/mox_client.rs"]
mod mox_client;
mod mox_off;
mod mox_on;
mod parts;
mod payloads;
#[path = "../common/random.rs"]
mod random;
mod recorder;
mod sds;
mod soak;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

use parts::Registry;

/// Answers how many scenarios passed, failed and were not wanted.
type Outside = fn(&str, &str) -> (usize, usize, usize);

/// A name, and what happens.
type Scenario = (&'static str, fn(&mut Registry));

/// Scenarios that share one registry, in this order.
struct Group {
    start: fn() -> Registry,
    scenarios: &'static [Scenario],
}

const GROUPS: [&Group; 5] =
    [&mox_on::GROUP, &cluster::GROUP, &mox_off::NOT_ENABLED, &mox_off::PORT_TAKEN, &mox_off::INVALID_VALUE];

/// `cargo test --test real [-- [MODE] PART-OF-A-NAME]`; with a mode only scenarios in a network of their own, e.g. `--mesh-story`.
fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let mode = std::env::args().nth(1).unwrap_or_default();
    // The programs that this one runs inside networks of their own.
    for (modes, inside, within, outside) in [
        (&mesh::MODES[..], mesh::INSIDE, mesh::inside as fn(&str, &str) -> ExitCode, mesh::outside as Outside),
        (&faults::MODES[..], faults::INSIDE, faults::inside, faults::outside),
        (&soak::MODES[..], soak::INSIDE, soak::inside, soak::outside),
        (&load::MODES[..], load::INSIDE, load::inside, load::outside),
    ] {
        if modes.contains(&&*mode) {
            if std::env::var_os(inside).is_some() {
                return within(&mode, &filter);
            }
            return if outside(&mode, &filter).1 == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    }
    let mut report = Report { passed: 0, failed: 0, skipped: 0, started: Instant::now() };
    for group in GROUPS {
        let (wanted, others): (Vec<_>, Vec<_>) = group.scenarios.iter().partition(|(name, _)| name.contains(&filter));
        report.skipped += others.len();
        if wanted.is_empty() {
            continue;
        }
        // Why it did not start is on stderr already.
        let mut registry = catch_unwind(group.start).ok();
        for (name, scenario) in wanted {
            report.run(name, || scenario(registry.as_mut().expect("a registry that started")));
        }
    }
    for (name, script) in [("demo", "demo.sh"), ("demo_istio", "demo-istio.sh")] {
        if name.contains(&filter) {
            report.run(name, || parts::demo(script));
        } else {
            report.skipped += 1;
        }
    }
    for (mode, outside) in [(faults::MODES[0], faults::outside as Outside), (mesh::MODES[0], mesh::outside)] {
        let (passed, failed, skipped) = outside(mode, &filter);
        (report.passed, report.failed, report.skipped) =
            (report.passed + passed, report.failed + failed, report.skipped + skipped);
    }
    report.end()
}

struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
    started: Instant,
}

impl Report {
    fn run(&mut self, name: &str, scenario: impl FnOnce()) {
        let begin = Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(scenario)).is_ok();
        println!("test {name} ... {} ({:.1?})", if ok { "ok" } else { "FAILED" }, begin.elapsed());
        *if ok { &mut self.passed } else { &mut self.failed } += 1;
    }

    fn end(self) -> ExitCode {
        let Self { passed, failed, skipped, started } = self;
        let (verdict, code) = if failed == 0 { ("ok", ExitCode::SUCCESS) } else { ("FAILED", ExitCode::FAILURE) };
        println!(
            "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {skipped} filtered out; \
             finished in {:.2?}",
            started.elapsed()
        );
        code
    }
}
