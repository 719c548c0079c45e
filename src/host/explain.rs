//! Why something is, or is not, in the mesh: a ladder from the registry to each istiod's ACK.
//!
//! [`find`] takes what an operator knows, a dataInfoId, host, application or address, to services; [`facts`] gathers what there
//! is to know of one, and [`ladder`] is a pure function of that. Whoever adds a reason that can keep something out
//! adds its remedy in [`remedies`], since that does not compile without.

pub mod beside;
pub mod facts;
pub mod find;
pub mod ladder;
mod remedies;

use serde::Serialize;

use crate::{
    catalog::key::ServiceKey,
    host::{
        engine::Engine,
        explain::{
            beside::{Answer, Beside},
            facts::Facts,
            ladder::Rung,
        },
    },
    registry::store::Dropped,
};

pub use find::Found;

/// Services that one answer explains; the others it names.
const EXPLAINED: usize = 5;

/// The answer to an operator.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The query.
    pub query: String,
    /// The kind that it was taken for.
    pub found: Found,
    /// The first services that it is about, each with its ladder.
    pub services: Vec<Explained>,
    /// More services that it is about, by the texts of their keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
    /// How many more those are.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: usize,
    /// What may be why nothing is found: events that were dropped, of services that are unknown for that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub perhaps: Vec<String>,
    /// The other session servers that were asked the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Beside>,
}

/// The ladder of one service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The text of its key: the dataInfoId, or with a protocol in front.
    pub service: String,
    /// The host under which it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// A sentence for who reads no further.
    pub answer: String,
    /// From the registry to the proxies, each step with what was found there.
    pub ladder: Vec<Rung>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Explains what an operator asks for, beside what other session servers answered to the same.
pub fn explain(engine: &Engine, query: &str, answers: Vec<Answer>) -> Explanation {
    let query = query.trim();
    let (found, mut keys) = find::find(engine, query);
    let others = keys.split_off(keys.len().min(EXPLAINED));
    let services = keys.iter().map(|key| explained(engine, key, &found)).collect();
    let left_out = others.len().saturating_sub(find::NAMED);
    let others = others.into_iter().take(find::NAMED).map(|key| key.text().to_string()).collect();
    let perhaps = if found == Found::Nothing { dropped(engine) } else { Vec::new() };
    let mut explanation =
        Explanation { query: query.to_owned(), found, services, others, left_out, perhaps, servers: Vec::new() };
    if !answers.is_empty() {
        let own = serde_json::to_value(&explanation).unwrap_or_default();
        explanation.servers = beside::beside(&own, answers);
    }
    explanation
}

/// What limits dropped, each with the last dataInfoId that it was of.
fn dropped(engine: &Engine) -> Vec<String> {
    let used = facts::used(engine);
    let all = engine.shared().store.dropped().into_iter().filter(|(_, it)| it.events > 0);
    let says = |limit: &str, it: &Dropped| {
        format!("{}, the last one of {}", ladder::at_limit(&used, limit, it.events), it.last)
    };
    all.map(|(limit, it)| says(limit, &it)).collect()
}

fn explained(engine: &Engine, key: &ServiceKey, found: &Found) -> Explained {
    of(&Facts::of(engine, key, found.address()))
}

/// Explains what is known of a service.
pub fn of(facts: &Facts) -> Explained {
    let ladder = ladder::ladder(facts);
    let answer = ladder::answer(&ladder);
    let host = facts.served.as_ref().map(|served| served.host.clone());
    Explained { service: facts.key.text().to_string(), host, answer, ladder }
}
