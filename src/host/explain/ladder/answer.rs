//! The ladder in a sentence, for who reads no further.

use crate::host::explain::ladder::{
    clients::UNTOLD,
    rung::{Reason, Rung, Step, Verdict},
};

/// Reasons for which a part of the mesh has something else than the registry, the weightiest first: each decides, whatever steps
/// before it say.
const DECIDING: [&str; 8] =
    ["mass-delete", "frozen", "last-good", "nack", "too-large", "kubernetes-problem", "mass-add", "not-loaded"];
/// The reason that is as somebody wants it, as a rule, and so is told after those that nobody wants.
const WANTED: &str = "exported-to-some";
/// Reasons beside the first that a sentence tells.
const BESIDE: usize = 3;

/// The reasons of a ladder that kept its service, or a part of it, out: first the one that decides, then a few more.
fn weighed(ladder: &[Rung]) -> Vec<&Reason> {
    let others = |reason: &Reason| DECIDING.len() + usize::from(reason.key == WANTED);
    let weight = |reason: &Reason| DECIDING.iter().position(|key| *key == reason.key).unwrap_or_else(|| others(reason));
    let is_told = |rung: &&Rung| rung.verdict != Verdict::Passed && rung.step != Step::Served;
    let told = ladder.iter().filter(is_told);
    let mut all: Vec<&Reason> = told
        .flat_map(|rung| {
            let first = rung.reasons.first();
            let deciding = rung.reasons.iter().skip(1).filter(|it| weight(it) < DECIDING.len());
            first.into_iter().chain(deciding)
        })
        .collect();
    all.sort_by_key(|reason| weight(reason));
    all
}

/// A reason with its remedy, and the states of a few others.
fn told(reasons: &[&Reason]) -> String {
    let Some((first, others)) = reasons.split_first() else { return String::new() };
    let mut told = format!("{}. To do: {}.", first.says, first.remedy);
    let mut said: Vec<&str> = vec![&first.says];
    for other in others.iter().filter(|other| other.key != first.key) {
        if !said.contains(&&*other.says) && said.len() <= BESIDE {
            told += &format!(" Also: {}.", other.says);
            said.push(&other.says);
        }
    }
    told
}

/// The ladder in a sentence: the reason that decides comes first, whichever step has it.
pub fn answer(ladder: &[Rung]) -> String {
    if let Some(at) = ladder.iter().position(|rung| rung.verdict == Verdict::Failed) {
        let rung = &ladder[at];
        // That it is not served follows from a step before, if any says so.
        let causes = if rung.step == Step::Served { weighed(&ladder[..at]) } else { Vec::new() };
        let causes = if causes.is_empty() { rung.reasons.iter().take(1).collect() } else { causes };
        return format!("Not in the mesh: {}", if causes.is_empty() { rung.found.clone() } else { told(&causes) });
    }
    let last = ladder.iter().rev().find(|rung| rung.step == Step::Served).map_or("", |rung| &rung.found);
    // Proxies have it from this server's clients, or by Kubernetes; without either it is not known here whether any has it.
    let untold = |rung: &&Rung| rung.step == Step::Clients && rung.reasons.iter().any(|it| UNTOLD.contains(&&*it.key));
    let elsewhere = ladder.iter().any(|rung| rung.step == Step::Kubernetes);
    let mut parts = weighed(ladder);
    if let Some(nobody) = ladder.iter().find(untold).filter(|_| !elsewhere) {
        let first: Vec<&Reason> = nobody.reasons.iter().take(1).collect();
        parts.retain(|part| !nobody.reasons.contains(part));
        let more = if parts.is_empty() { String::new() } else { format!(" And for a part: {}", told(&parts)) };
        return format!("Served, {last}, but nobody is told of it here: {}{more}", told(&first));
    }
    match parts.first() {
        Some(_) => format!("In the mesh, {last}, but: {}", told(&parts)),
        None => format!("In the mesh, {last}."),
    }
}
