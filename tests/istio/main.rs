//! Compares the validation in `src/translate/validate.rs` with Istio's own, of several versions: `tests/real/install.sh
//! validation` builds them. What is printed looks like libtest's.
//!
//! `cargo test --test istio [-- PART-OF-A-NAME]`; `MOX_ISTIO_INPUTS` is how many inputs each scenario has at least,
//! `MOX_ISTIO_SEED` the seed that they are made from, both decimal.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod mutated;
mod oracle;
mod random;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::Instant,
};

const SCENARIOS: [(&str, fn(usize, u64)); 2] = [
    ("istio_takes_everything_that_hostile_input_makes_the_engine_serve", hostile::run),
    ("the_validation_here_agrees_with_istio_on_mutated_resources", mutated::run),
];

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let (inputs, seed) = (number("MOX_ISTIO_INPUTS", 100_000), number("MOX_ISTIO_SEED", 20_261_124));
    let (started, mut passed, mut failed, mut skipped) = (Instant::now(), 0, 0, 0);
    println!("MOX_ISTIO_INPUTS={inputs} MOX_ISTIO_SEED={seed}");
    for (name, scenario) in SCENARIOS {
        if !name.contains(&filter) {
            skipped += 1;
            continue;
        }
        let begin = Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(|| scenario(inputs as usize, seed))).is_ok();
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

fn number(name: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return otherwise };
    text.parse().unwrap_or_else(|_| panic!("{name}: \"{text}\" is no decimal number"))
}
