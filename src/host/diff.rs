//! What two session servers serve otherwise, by the hashes of what they serve: first of all parts, then of each service of the
//! parts that differ.
//!
//! The one that is asked by an operator asks the other, a few parts for a page, and believes answers like any other of
//! [`peers`]. The names and hashes of the other are shown beside our own, and used for nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    catalog::key::ServiceKey,
    error::{Result, quoted},
    host::{admin::query, engine::Engine, explain::facts, peers},
    istio::names::SERVICE_LABEL,
    snapshot::{
        Item, Set, kubectl,
        partition::{Partition, SLICES},
        resource, version_of,
        view::View,
    },
};

/// The page of all parts; behind a slash follows the number of one.
pub const PATH: &str = "/mox/hashes";
/// Parts of the other that are asked for a page.
const PARTS: usize = 8;
/// Differences after which a page asks for no more parts.
const ENOUGH: usize = 200;
/// Resources of a part that are told.
const TOLD: usize = 1_000;
/// How much of what another server says is repeated, in characters.
const REPEATED: usize = 300;

/// How what a server serves can be told from what another serves.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Hash of the policy.
    pub policy: String,
    /// Number of the translation.
    pub translation: u32,
    /// Hash of each part.
    pub parts: Vec<String>,
}

/// A part: hashes by the names of services, each of all that is served of it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// By `namespace/name`.
    pub services: BTreeMap<String, String>,
    /// How many more there are.
    pub left_out: usize,
}

/// An answer of the other server.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// The question, as the engine said it.
    pub target: String,
    /// HTTP status; 0: there is none.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// The next step of a comparison.
#[derive(Debug)]
pub enum Next {
    /// This is to be asked of the other server.
    Ask {
        /// Its address.
        server: String,
        /// Path and query.
        target: String,
    },
    /// The outcome.
    Told(Told),
}

/// What an operator is told.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// The other server; none where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Servers that can be named.
    pub servers: Vec<String>,
    /// Why nothing, or no more, is known of the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
    /// Whether both serve the same to the last byte; none where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same: Option<bool>,
    /// Hashes of the policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Two>,
    /// Numbers of the translations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translation: Option<Two>,
    /// Parts that differ, of 128.
    pub parts: usize,
    /// Services that differ, of the parts that were asked for.
    pub services: Vec<Row>,
    /// Services of these parts that were too many to be compared.
    pub left_out: usize,
    /// Where the page begins that follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<usize>,
}

/// Something here and there.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Two {
    /// Here.
    pub here: String,
    /// There.
    pub there: String,
}

/// A service that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `namespace/name`.
    pub name: String,
    /// The text of its key, where it is served here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Hash of what is served of it here; none: it is not.
    pub here: Option<String>,
    /// The same there.
    pub there: Option<String>,
}

/// The overview of this server.
pub fn overview(engine: &Engine) -> Overview {
    let status = engine.status();
    let view = engine.view();
    let parts = Partition::all_of(SLICES).map(|part| sum_of(&view, part)).collect();
    Overview { policy: status.policy, translation: status.translation, parts }
}

/// The hash of all that is served in a part.
fn sum_of(view: &View, part: Partition) -> String {
    let sums = view.snapshots().map(|snapshot| Set::new(Arc::clone(snapshot), part).sum());
    version_of(added(sums)).to_string()
}

/// Hashes of different kinds put together: each stands at its own place, so that two kinds cannot be exchanged.
fn added(sums: [u128; 3]) -> u128 {
    let turned = sums.into_iter().zip([0, 1, 2]).map(|(sum, by)| sum.rotate_left(by));
    turned.fold(0, u128::wrapping_add)
}

/// A part of this server; `None`: there is no such number.
pub fn part(engine: &Engine, number: &str) -> Option<Part> {
    let part = Partition::new(number.parse().ok()?, SLICES)?;
    Some(part_of(&engine.view(), part))
}

fn part_of(view: &View, part: Partition) -> Part {
    let [entries, workloads, rules] = view.snapshots().map(|snapshot| Set::new(Arc::clone(snapshot), part));
    let mut of_label: HashMap<String, u128> = HashMap::new();
    for item in workloads.items() {
        let body = resource::read(item.framed()).ok().and_then(|resource| resource.body);
        if let Some(label) = body.and_then(|body| resource::workload_label(body.value, SERVICE_LABEL)) {
            let sum = of_label.entry(label).or_default();
            *sum = sum.wrapping_add(item.digest());
        }
    }
    let mut of_name: BTreeMap<&str, [u128; 3]> = BTreeMap::new();
    for item in entries.items() {
        let endpoints = if of_label.is_empty() { None } else { selected(item) };
        let endpoints = endpoints.and_then(|label| of_label.get(&label)).copied().unwrap_or_default();
        of_name.insert(item.name(), [item.digest(), endpoints, 0]);
    }
    for item in rules.items() {
        of_name.entry(item.name()).or_default()[2] = item.digest();
    }
    let left_out = of_name.len().saturating_sub(TOLD);
    let all = of_name.into_iter().take(TOLD);
    Part {
        services: all.map(|(name, sums)| (name.to_owned(), version_of(added(sums)).to_string())).collect(),
        left_out,
    }
}

/// The label by which an entry selects its WorkloadEntries.
fn selected(item: &Item) -> Option<String> {
    let body = resource::read(item.framed()).ok()?.body?.value;
    let spec: Value = kubectl::spec_of("ServiceEntry", kubectl::without_endpoints(&body)).ok()?;
    facts::selected(&spec).map(str::to_owned)
}

/// Goes on with a comparison: `listed` are the servers that can be asked, `answers` what the one has answered so far.
pub fn next(engine: &Engine, asked: &str, listed: &[String], answers: &[Answer]) -> Result<Next> {
    let servers = listed.to_vec();
    let Some(server) = query::value(asked, "server").filter(|server| !server.is_empty()) else {
        return Ok(Next::Told(Told { servers, ..Told::default() }));
    };
    let mut told = Told { servers, ..Told::default() };
    if !listed.contains(&server) {
        told.silent = Some(format!("{} is no session server that meta lists", quoted(&server)));
        return Ok(Next::Told(told));
    }
    if !engine.view().complete {
        told.silent = Some("the view of this session server is not complete".to_owned());
        return Ok(Next::Told(told));
    }
    told.server = Some(server.clone());
    let from = query::value(asked, "from").and_then(|from| from.parse().ok()).unwrap_or(0);
    let heard = |path: &str| {
        let of_path = |answer: &&Answer| answer.target.split('?').next() == Some(path);
        answers.iter().find(of_path).map(|answer| said(engine.peers(), answer))
    };
    let ask = |path: &str| Ok(Next::Ask { server: server.clone(), target: engine.peers().target(path)? });
    let theirs: Overview = match heard(PATH) {
        None => return ask(PATH),
        Some(said) => match said.and_then(|text| parsed(&text)) {
            Ok(theirs) => theirs,
            Err(why) => {
                told.silent = Some(why);
                return Ok(Next::Told(told));
            }
        },
    };
    if theirs.parts.len() != SLICES {
        told.silent = Some(format!("it has {} parts, and here there are {SLICES}", theirs.parts.len()));
        return Ok(Next::Told(told));
    }
    let (ours, view) = (overview(engine), engine.view());
    let differing: Vec<usize> = (0..SLICES).filter(|n| ours.parts[*n] != theirs.parts[*n]).collect();
    let repeated = |text: &str| text.chars().take(64).collect::<String>();
    told.policy = Some(Two { here: ours.policy.clone(), there: repeated(&theirs.policy) });
    told.translation = Some(Two { here: ours.translation.to_string(), there: theirs.translation.to_string() });
    (told.same, told.parts) = (Some(differing.is_empty()), differing.len());
    let mut left = differing.into_iter().filter(|n| *n >= from);
    for number in left.by_ref().take(PARTS) {
        let path = format!("{PATH}/{number}");
        let theirs: Part = match heard(&path) {
            // While services change other parts begin to differ, and the answers so far would not be enough.
            None if answers.len() > PARTS => {
                told.next = Some(number);
                return Ok(Next::Told(told));
            }
            None => return ask(&path),
            Some(said) => match said.and_then(|text| parsed(&text)) {
                Ok(theirs) => theirs,
                Err(why) => {
                    told.silent = Some(why);
                    told.next = Some(number);
                    return Ok(Next::Told(told));
                }
            },
        };
        let Some(part) = Partition::new(number, SLICES) else { continue };
        let ours = part_of(&view, part);
        told.left_out = told.left_out.saturating_add(ours.left_out.max(theirs.left_out));
        told.services.extend(rows(&Set::new(Arc::clone(&view.service_entries), part), &ours, &theirs));
        if told.services.len() >= ENOUGH {
            break;
        }
    }
    told.next = left.next();
    Ok(Next::Told(told))
}

/// The services that differ in a part.
fn rows(entries: &Set, ours: &Part, theirs: &Part) -> Vec<Row> {
    let repeated = |text: &String| text.chars().take(REPEATED).collect::<String>();
    let names: BTreeSet<&String> = ours.services.keys().chain(theirs.services.keys().take(TOLD)).collect();
    // Of a part that is not told whole nothing is known behind its last name.
    let ends = [ours, theirs].into_iter().filter(|part| part.left_out > 0);
    let end = ends.map(|part| part.services.keys().next_back()).min().flatten();
    let known = names.into_iter().filter(|name| end.is_none_or(|end| *name <= end));
    let differs = known.filter(|name| ours.services.get(*name) != theirs.services.get(*name));
    let row = |name: &String| Row {
        name: repeated(name),
        service: entries.find(name).and_then(facts::entry).map(|(key, _): (ServiceKey, _)| key.text().to_string()),
        here: ours.services.get(name).cloned(),
        there: theirs.services.get(name).map(repeated),
    };
    differs.map(row).collect()
}

/// What the other server said, if that counts; an error says why it does not.
fn said(peers: &peers::Peers, answer: &Answer) -> Result<String, String> {
    if answer.status != 200 {
        let said: String = answer.body.chars().take(REPEATED).map(|c| if c.is_control() { ' ' } else { c }).collect();
        return Err(format!("status {}: {}", answer.status, said.trim()));
    }
    peers.said(&answer.target, &answer.body).map(str::to_owned).ok_or_else(|| {
        "its answer is not signed with mox.admin.token, which must be the same on all session servers".to_owned()
    })
}

fn parsed<T: for<'d> Deserialize<'d>>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|_| "its answer is none to this question; its release may be another".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, snapshot::Snapshot};

    fn part(services: &[(&str, &str)], left_out: usize) -> Part {
        Part { services: services.iter().map(|(name, hash)| ((*name).into(), (*hash).into())).collect(), left_out }
    }

    #[test]
    fn behind_the_end_of_what_is_told_nothing_differs() {
        let none = Set::new(Arc::<Snapshot>::default(), Partition::WHOLE);
        let names = |ours: &Part, theirs: &Part| -> Vec<String> {
            rows(&none, ours, theirs).into_iter().map(|row| row.name).collect()
        };
        let (ours, theirs) = (part(&[("a", "1"), ("b", "1"), ("c", "1")], 0), part(&[("a", "2"), ("c", "1")], 0));
        assert_eq!(names(&ours, &theirs), ["a", "b"]);
        let theirs = part(&[("a", "2")], 2);
        assert_eq!((names(&ours, &theirs), names(&theirs, &ours)), (vec!["a".to_owned()], vec!["a".to_owned()]));
        let ours = part(&[("0", "1"), ("a", "1")], 1);
        assert_eq!(names(&ours, &part(&[("a", "1"), ("b", "1")], 7)), ["0"]);
    }

    #[test]
    fn a_hash_says_of_which_kind_it_is() {
        assert_ne!(added([1, 2, 0]), added([2, 1, 0]));
        assert_ne!(added([0, 1, 0]), added([0, 0, 1]));
        let engine = Engine::open(Config::default()).unwrap();
        assert_eq!(overview(&engine).parts.len(), SLICES);
    }
}
