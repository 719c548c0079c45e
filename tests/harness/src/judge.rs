//! Comparison over time of what a data server named and what a MoX client had.
//!
//! A *wrong deletion*: the client had an endpoint and lost it, and lacked it at a time for which a data server's successful
//! reads named it from two seconds before, or more, to two seconds after. A read that failed says nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Milliseconds since 1970.
pub type Millis = u64;
/// `address:port` of every endpoint, by dataInfoId.
pub type Endpoints = BTreeMap<String, BTreeSet<String>>;

const MARGIN: Millis = 2_000;

/// A read of all services from a data server.
#[derive(Clone, Debug)]
pub struct Read {
    pub begin: Millis,
    pub end: Millis,
    /// Nothing if it failed.
    pub named: Option<Arc<Endpoints>>,
}

/// The endpoints that a client had from `at` on.
#[derive(Clone, Debug)]
pub struct Held {
    pub at: Millis,
    pub endpoints: Arc<Endpoints>,
}

/// An endpoint that should not have gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrong {
    pub id: String,
    pub endpoint: String,
    /// When the client lost it.
    pub lost: Millis,
    /// Since when reads named it, and until when.
    pub named: (Millis, Millis),
}

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub wrong: Vec<Wrong>,
    /// How long after the registry the client had what came, or no longer had what went. From the end of the last read
    /// that said otherwise, so too long by up to the time between two reads. Nothing where a read failed meanwhile.
    pub lags: Vec<Millis>,
}

type Key = (String, String);

/// Judges one client.
pub fn judge(reads: &[Read], held: &[Held]) -> Verdict {
    let named = changes(reads.iter().filter_map(|read| Some((read.begin, read.end, read.named.as_ref()?))));
    let had = changes(held.iter().map(|held| (held.at, held.at, &held.endpoints)));
    let last = reads.iter().rev().find(|read| read.named.is_some()).map_or(0, |read| read.begin);
    let failed: Vec<Millis> = reads.iter().filter(|read| read.named.is_none()).map(|read| read.begin).collect();
    let mut verdict = Verdict::default();
    for (key, changes) in &named {
        let none = Vec::new();
        let had = had.get(key).unwrap_or(&none);
        for (i, change) in changes.iter().enumerate() {
            let next = changes.get(i + 1);
            if change.there {
                let until = next.map_or(last, |next| next.last_other.0);
                verdict.wrong.extend(wrong(key, had, (change.end, until)));
            }
            let Some(since) = change.since() else { continue };
            let until = next.map_or(Millis::MAX, |next| next.begin);
            let seen = seen(had, change.there, since).filter(|at| *at < until);
            if let Some(at) = seen
                && !failed.iter().any(|failed| (since..=change.end).contains(failed))
            {
                verdict.lags.push(at.saturating_sub(since));
            }
        }
    }
    verdict
}

/// From when on an endpoint is there, or is not.
#[derive(Debug)]
struct Change {
    there: bool,
    /// Of the first that says so.
    begin: Millis,
    end: Millis,
    /// Begin and end of the last that said otherwise; both zero at first.
    last_other: (Millis, Millis),
}

impl Change {
    /// Nothing where it has been so from the first.
    fn since(&self) -> Option<Millis> {
        (self.last_other.1 > 0).then_some(self.last_other.1)
    }
}

fn changes<'a>(states: impl Iterator<Item = (Millis, Millis, &'a Arc<Endpoints>)>) -> BTreeMap<Key, Vec<Change>> {
    let mut all: BTreeMap<Key, Vec<Change>> = BTreeMap::new();
    let mut last: Option<((Millis, Millis), &Arc<Endpoints>)> = None;
    let empty = Arc::new(Endpoints::new());
    let nothing = BTreeSet::new();
    for (begin, end, now) in states {
        let (last_other, before) = last.unwrap_or(((0, 0), &empty));
        if !Arc::ptr_eq(before, now) {
            for id in before.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
                let (before, now) = (before.get(id).unwrap_or(&nothing), now.get(id).unwrap_or(&nothing));
                for endpoint in before.symmetric_difference(now) {
                    let there = now.contains(endpoint);
                    let change = Change { there, begin, end, last_other };
                    all.entry((id.clone(), endpoint.clone())).or_default().push(change);
                }
            }
        }
        last = Some(((begin, end), now));
    }
    all
}

/// Losses from `named.0` on after which it was missing at a time inside, by the margin, of `named`.
fn wrong(key: &Key, had: &[Change], named: (Millis, Millis)) -> Vec<Wrong> {
    let inside = (named.0 + MARGIN, named.1.saturating_sub(MARGIN));
    let mut all = Vec::new();
    for (i, loss) in had.iter().enumerate().filter(|(_, change)| !change.there && change.begin >= named.0) {
        let back = had.get(i + 1).map_or(Millis::MAX, |back| back.begin);
        if loss.begin.max(inside.0) < back.min(inside.1 + 1) {
            all.push(Wrong { id: key.0.clone(), endpoint: key.1.clone(), lost: loss.begin, named });
        }
    }
    all
}

/// When a client was first in a state, at `since` or later.
fn seen(had: &[Change], there: bool, since: Millis) -> Option<Millis> {
    let before = had.iter().rev().find(|change| change.begin <= since);
    if before.map_or(!there, |change| change.there == there) {
        return Some(since);
    }
    had.iter().find(|change| change.begin > since && change.there == there).map(|change| change.begin)
}

/// The value below which so many of a hundred are; nothing of none.
pub fn percentile(values: &mut [Millis], of_a_hundred: usize) -> Option<Millis> {
    values.sort_unstable();
    let last = values.len().checked_sub(1)?;
    Some(values[(values.len() * of_a_hundred / 100).min(last)])
}
