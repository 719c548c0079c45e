//! Compares the validation in `src/istio/validate.rs` with Istio's own, of several versions: `tests/real/install.sh
//! validation` builds them.
//!
//! `cargo test --test istio [-- PART-OF-A-NAME]`; `MOX_ISTIO_INPUTS` is how many inputs each test has at least,
//! `MOX_ISTIO_SEED` the seed that they are made from, both decimal.
#![allow(clippy::unwrap_used, missing_docs)]

mod hostile;
mod mutated;
mod oracle;

use std::process::ExitCode;

use harness::trials::{run, trial};

fn main() -> ExitCode {
    let (inputs, seed) = (number("MOX_ISTIO_INPUTS", 100_000) as usize, number("MOX_ISTIO_SEED", 20_261_124));
    println!("MOX_ISTIO_INPUTS={inputs} MOX_ISTIO_SEED={seed}");
    run(vec![
        trial("istio_takes_everything_that_hostile_input_makes_the_engine_serve", move || hostile::run(inputs, seed)),
        trial("the_validation_here_agrees_with_istio_on_mutated_resources", move || mutated::run(inputs, seed)),
    ])
}

fn number(name: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{name}: \"{text}\" is no decimal number"))
}
