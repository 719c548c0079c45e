//! What attacks cost: each runs beside a good publisher and a good client, in windows that alternate with calm ones.
//!
//! `cargo build --release --example serve && cargo bench --bench bounds -- [ATTACK]…` prints a row for each attack, and ends
//! with 1 if a bound does not hold. An attack has processes of its own, so that its memory is no other's. `cargo test` runs
//! every attack in small, where only bounds count that no busy machine breaks. docs/security.md quotes the figures.
#![allow(missing_docs)]

mod clients;
mod publishers;
mod scene;

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use harness::trials::{self, Failed, trial_unless};
use scene::{Outcome, row};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// The argument that `cargo bench` gives a bench, and `cargo test` does not.
const MEASURE: &str = "--bench";
/// Runs the one attack that follows in this process.
const ALONE: &str = "--alone";

/// How large everything is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// How often a calm window and one of attack follow each other.
    pub(crate) rounds: usize,
    /// A window; one of attack goes on until the attack has done what it is to do once.
    pub(crate) window: Duration,
    /// What an attack has many of is divided by this.
    pub(crate) divisor: usize,
}

impl Size {
    const FULL: Self = Self { rounds: 3, window: Duration::from_secs(6), divisor: 1 };
    const SMALL: Self = Self { rounds: 1, window: Duration::from_millis(200), divisor: 50 };

    /// So many, or a part of them.
    pub(crate) fn of(&self, many: usize) -> usize {
        many / self.divisor
    }
}

struct Attack {
    name: &'static str,
    /// What is tried, for the row.
    tries: &'static str,
    run: fn(Size) -> Result<Outcome>,
}

#[rustfmt::skip]
const ATTACKS: [Attack; 13] = [
    Attack { name: "dumps", tries: "eight dumps at once, 10,000 × 10", run: clients::dumps },
    Attack { name: "names", tries: "a delta stream of 1,000,000 names", run: clients::names },
    Attack { name: "slow", tries: "20 streams read 10,000 × 10 slowly while all of it changes", run: clients::slow },
    Attack { name: "silent", tries: "20 streams that never answer", run: clients::silent },
    Attack { name: "frames", tries: "floods of four kinds of frames", run: clients::frames },
    Attack { name: "half", tries: "600 half requests on `adminListen`", run: clients::half },
    Attack { name: "oversized", tries: "8 publishers of 65,535 endpoints each, again and again", run: publishers::oversized },
    Attack { name: "removals", tries: "removals of what never was, 10,000 at a time", run: publishers::removals },
    Attack { name: "additions", tries: "50,000 services at once", run: publishers::additions },
    Attack { name: "tenant", tries: "a tenant takes 450 of 450 services back", run: publishers::tenant },
    Attack { name: "large", tries: "a service of 100,000 publishers, read again and again", run: publishers::large },
    Attack { name: "policy", tries: "500 overrides change at 50,000 × 10", run: publishers::policy },
    Attack { name: "direct", tries: "one instance more of 1,000 interfaces × 200 in direct mode", run: publishers::direct },
];

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    match &given[..] {
        [alone, name] if alone == ALONE => run_alone(name),
        _ if given.iter().any(|argument| argument == MEASURE) => {
            let names: Vec<&str> = given.iter().map(String::as_str).filter(|name| *name != MEASURE).collect();
            match measure(&names) {
                Ok(0) => ExitCode::SUCCESS,
                Ok(failed) => {
                    eprintln!("bounds: {failed} of the attacks passed a bound");
                    ExitCode::FAILURE
                }
                Err(error) => {
                    eprintln!("bounds: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => smoke(),
    }
}

/// Every attack in small.
fn smoke() -> ExitCode {
    let trial = |attack: &'static Attack| {
        trial_unless(
            attack.name,
            || None,
            || {
                let outcome = (attack.run)(Size::SMALL).map_err(Failed::from)?;
                let broken = outcome.broken(false);
                if broken.is_empty() { Ok(()) } else { Err(format!("passed: {}", broken.join("; ")).into()) }
            },
        )
    };
    trials::run(ATTACKS.iter().map(trial).collect())
}

/// Runs attacks of these names, or all; how many of them passed a bound.
fn measure(names: &[&str]) -> Result<usize> {
    if let Some(unknown) = names.iter().find(|name| ATTACKS.iter().all(|attack| attack.name != **name)) {
        let known: Vec<&str> = ATTACKS.iter().map(|attack| attack.name).collect();
        return Err(format!("no attack {unknown}; there are {}", known.join(" ")).into());
    }
    println!("{}", scene::HEAD);
    let mut failed = 0;
    for attack in ATTACKS.iter().filter(|attack| names.is_empty() || names.contains(&attack.name)) {
        let ended = Command::new(std::env::current_exe()?).args([ALONE, attack.name]).status()?;
        failed += usize::from(!ended.success());
    }
    Ok(failed)
}

fn run_alone(name: &str) -> ExitCode {
    let Some(attack) = ATTACKS.iter().find(|attack| attack.name == name) else { return ExitCode::FAILURE };
    match (attack.run)(Size::FULL) {
        Ok(outcome) => {
            println!("{}", row(attack.tries, &outcome));
            if outcome.broken(true).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("| {} | FAILED: {error} |", attack.tries);
            ExitCode::FAILURE
        }
    }
}
