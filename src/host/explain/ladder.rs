//! The steps from the registry to the proxies, each with what was found there: a function of [`Facts`] and nothing else.
//!
//! Each file below it makes the rungs of a part of the way. Whoever adds a reason gives it a stable key, and shows it in its tests and
//! in `tests/explain.rs`.

mod answer;
mod clients;
mod kubernetes;
mod payloads;
mod policy;
mod registry;
mod rounds;
mod rung;

use crate::host::explain::facts::Facts;

pub use answer::answer;
pub use registry::at_limit;
pub use rung::{Rung, Step, Verdict};

/// What makes the rung of each step, in the order of the data's way.
const STEPS: [fn(&Facts) -> Option<Rung>; 11] = [
    registry::publishers,
    registry::read,
    policy::lets_in,
    payloads::payloads,
    rounds::names,
    rounds::istio,
    rounds::held,
    rounds::served,
    policy::export_to,
    kubernetes::written,
    clients::clients,
];

/// The ladder, whole: who looks for one fault may have two.
pub fn ladder(facts: &Facts) -> Vec<Rung> {
    let mut ladder: Vec<Rung> = STEPS.iter().filter_map(|step| step(facts)).collect();
    // A service that is served all the same, as while a removal is withheld, is in the mesh whatever the steps before say.
    let is_there = facts.served.is_some() && facts.shown && facts.address.is_none();
    let before = ladder.iter_mut().take_while(|rung| rung.step != Step::Served);
    before.filter(|rung| is_there && rung.verdict == Verdict::Failed).for_each(|rung| rung.verdict = Verdict::Partly);
    ladder
}

#[cfg(test)]
mod tests;
