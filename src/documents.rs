//! What the session servers agree on, and what survives their restarts: documents in the registry's own store.
//!
//! Takes the rows that somebody read there, and what operators want to be written; gives the documents in force and the rows
//! to write. The room is a value: no lock, clock, log or IO, and nothing of Java. Whoever reaches the store can write any row, so a
//! document counts only if it verifies by `mox.admin.token`, has no lower revision than one before, and is understood whole.
//! Whatever else happens to a row or to the store, the last document that counted stays.

mod content;
mod envelope;
mod slot;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ring::hmac;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::quoted,
    model::Millis,
    visibility::{Lease, PAGES, keeper::RefusedRows, page::Page, seen::Seen},
};

pub use content::{Freeze, OrdersContent, PastPolicy, PinsContent, PolicyContent};
pub use envelope::{Reason, Refusal, Stamp};
pub use slot::NotWritten;

use slot::{Rows, Slot, Took};

/// A token of fewer bytes signs nothing: who reads rows could try them all.
pub const LEAST_TOKEN: usize = 16;

/// So many places are pinned; of 40,000 services about twelve have to be.
const MOST_PINS: usize = 1_000;

/// The documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Name {
    /// The policy, see [`PolicyContent`].
    Policy,
    /// The operator's orders, see [`OrdersContent`].
    Orders,
    /// Who has a contested place, see [`PinsContent`].
    Pins,
    /// Who computes the visibility of services, see [`Lease`].
    Visibility,
    /// One of the [`PAGES`] of that, from 0 on.
    VisibilityPage(u8),
}

/// The names of the pages' rows.
const PAGE_NAMES: [&str; PAGES] = [
    "visibility-1",
    "visibility-2",
    "visibility-3",
    "visibility-4",
    "visibility-5",
    "visibility-6",
    "visibility-7",
    "visibility-8",
    "visibility-9",
    "visibility-10",
    "visibility-11",
    "visibility-12",
    "visibility-13",
    "visibility-14",
    "visibility-15",
    "visibility-16",
];

impl Name {
    /// Those that are read whatever the policy says.
    pub const ALWAYS: [Self; 3] = [Self::Policy, Self::Orders, Self::Pins];

    /// All.
    pub fn all() -> impl Iterator<Item = Self> {
        let pages = (0..PAGES).map(|n| Self::VisibilityPage(n as u8));
        Self::ALWAYS.into_iter().chain([Self::Visibility]).chain(pages)
    }

    /// As it is signed and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Orders => "orders",
            Self::Pins => "pins",
            Self::Visibility => "visibility",
            Self::VisibilityPage(n) => PAGE_NAMES[usize::from(n) % PAGES],
        }
    }

    /// The key of the document's row, in the form of the registry's own keys.
    pub fn key(self) -> String {
        format!("registry-mox.{}#@#9600#@#CONFIG", self.as_str())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.as_str().to_owned()
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::all().find(|name| name.as_str() == text).ok_or_else(|| format!("there is no document {}", quoted(&text)))
    }
}

/// A row of the store.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Row {
    /// Its version, above 0, by which it is compared and set.
    pub version: i64,
    /// Its text. Whoever reads one of more than 64 KiB may cut it anywhere behind that.
    pub value: String,
}

/// A row to be written, if the store still has the version that is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Write {
    /// The document.
    #[serde(skip)]
    pub name: Name,
    /// The version that the row has to have, 0: it must not be there.
    pub expect: i64,
    /// The version that it then has.
    pub version: i64,
    /// The text.
    pub value: String,
}

/// The outcome of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The store has it.
    Done,
    /// Somebody else wrote meanwhile; that is what is there now.
    Conflict,
    /// The store was not reached. Where it took the write all the same, the next read tells.
    Unreachable,
}

/// The measure of rows.
#[derive(Debug, Clone)]
struct Rule {
    key: hmac::Key,
    namespace: String,
}

/// The outcome of a read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Documents that are others than before.
    pub changed: Vec<Name>,
    /// Documents whose row is refused from now on.
    pub refused: Vec<(Name, Refusal)>,
}

/// The part of the documents that is kept over a restart. The file needs no protection of its own: its rows are judged as those of the store.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kept {
    /// The highest revision that was there of each document, so that no older one is taken any more.
    pub highest: BTreeMap<Name, u64>,
    /// The rows that counted.
    pub rows: BTreeMap<Name, String>,
    /// When this server heard of the freeze, by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Heard>,
}

/// When a server heard of a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Heard {
    /// The revision of the orders that have the freeze.
    pub revision: u64,
    /// Milliseconds since 1970 by the server's clock.
    pub at: Millis,
}

/// A document for the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The revision that is in force; 0: none is.
    pub revision: u64,
    /// Who wrote it, when and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// Why the row that is there does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    /// How many rows did not count since the start, by the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refusals: BTreeMap<Reason, u64>,
}

/// All documents as this session server knows them.
#[derive(Debug)]
pub struct Documents {
    rule: Rule,
    policy: Slot<PolicyContent>,
    orders: Slot<OrdersContent>,
    pins: Slot<PinsContent>,
    lease: Slot<Lease>,
    pages: [Slot<Page>; PAGES],
}

impl Documents {
    /// None is known yet. Documents are signed with `token`, policies are for resources in `namespace`; `None`: the token is
    /// too short to sign with.
    pub fn new(token: &[u8], namespace: &str) -> Option<Self> {
        (token.len() >= LEAST_TOKEN).then(|| Self {
            rule: Rule { key: hmac::Key::new(hmac::HMAC_SHA256, token), namespace: namespace.to_owned() },
            policy: Slot::new(Name::Policy),
            orders: Slot::new(Name::Orders),
            pins: Slot::new(Name::Pins),
            lease: Slot::new(Name::Visibility),
            pages: std::array::from_fn(|n| Slot::new(Name::VisibilityPage(n as u8))),
        })
    }

    fn all(&self) -> impl Iterator<Item = (Name, &dyn Rows)> {
        Name::all().map(|name| {
            let rows: &dyn Rows = match name {
                Name::Policy => &self.policy,
                Name::Orders => &self.orders,
                Name::Pins => &self.pins,
                Name::Visibility => &self.lease,
                Name::VisibilityPage(n) => &self.pages[usize::from(n) % PAGES],
            };
            (name, rows)
        })
    }

    fn rows(&mut self, name: Name) -> (&mut dyn Rows, &Rule) {
        let rows: &mut dyn Rows = match name {
            Name::Policy => &mut self.policy,
            Name::Orders => &mut self.orders,
            Name::Pins => &mut self.pins,
            Name::Visibility => &mut self.lease,
            Name::VisibilityPage(n) => &mut self.pages[usize::from(n) % PAGES],
        };
        (rows, &self.rule)
    }

    /// Takes what was kept over a restart, before anything is read.
    pub fn restore(&mut self, kept: &Kept) -> Taken {
        let mut taken = Taken::default();
        for name in Name::all() {
            let highest = kept.highest.get(&name).copied().unwrap_or_default();
            let (rows, rule) = self.rows(name);
            let took = rows.restore(rule, highest, kept.rows.get(&name).map(String::as_str));
            taken.note(name, rows, took);
        }
        taken
    }

    /// For the next start; whoever has a clock adds when it heard of the freeze.
    pub fn kept(&self) -> Kept {
        let all = || self.all();
        Kept {
            highest: all().map(|(name, rows)| (name, rows.highest())).filter(|(_, highest)| *highest > 0).collect(),
            rows: all().filter_map(|(name, rows)| Some((name, rows.text()?.to_owned()))).collect(),
            heard: None,
        }
    }

    /// Takes a row as it was read; `None`: there is none.
    pub fn take(&mut self, name: Name, row: Option<&Row>) -> Taken {
        let (rows, rule) = self.rows(name);
        let took = rows.take(rule, row);
        let mut taken = Taken::default();
        taken.note(name, rows, took);
        taken
    }

    /// The store could not be read: nothing can be written over what is not known.
    pub fn lose(&mut self) {
        Name::all().for_each(|name| self.rows(name).0.lose());
    }

    /// Rows to put back where they have vanished, or where older ones were put in their place.
    pub fn put_back(&self, now: Millis) -> Vec<Write> {
        self.all().filter_map(|(_, rows)| rows.put_back(now)).collect()
    }

    /// The stored policy; `None`: that of the properties is in force.
    pub fn policy(&self) -> Option<&Value> {
        self.policy.held().and_then(|held| held.content.policy.as_ref())
    }

    /// Policies that were in force, the newest first.
    pub fn history(&self) -> &[PastPolicy] {
        self.policy.held().map_or(&[], |held| &held.content.history)
    }

    /// The policy that the document of a revision has or had, `Some(None)` being that of the properties; `None`: no such revision is
    /// known. Where there is no document that is revision 0.
    pub fn policy_of(&self, revision: u64) -> Option<Option<&Value>> {
        if self.policy.held().map_or(0, |held| held.revision) == revision {
            return Some(self.policy());
        }
        let past = self.history().iter().find(|past| past.revision == revision);
        past.map(|past| past.policy.as_ref())
    }

    /// The freeze that is ordered, with who ordered it, when and why.
    pub fn freeze(&self) -> Option<(Freeze, &Stamp)> {
        let held = self.orders.held()?;
        held.content.freeze.map(|freeze| (freeze, &held.stamp))
    }

    /// Whether somebody else than `by` ordered that there be no freeze.
    pub fn is_thawed_by_other_than(&self, by: &str) -> bool {
        self.orders.held().is_some_and(|held| held.content.freeze.is_none() && held.stamp.by != by)
    }

    /// Who has which contested place.
    pub fn pins(&self) -> Option<&PinsContent> {
        self.pins.held().map(|held| &held.content)
    }

    /// The write that replaces the policy, by `None` with that of the properties. `saw`: the revision that the writer knows, 0
    /// for none; `None`: whatever is there.
    pub fn set_policy(&self, policy: Option<Value>, stamp: &Stamp, saw: Option<u64>) -> Result<Write, NotWritten> {
        let content = match self.policy.held() {
            Some(held) => held.content.next(held.revision, &held.stamp, policy),
            None => PolicyContent { policy, history: Vec::new() },
        };
        self.policy.propose(&self.rule, content, stamp, saw)
    }

    /// The write that replaces the orders.
    pub fn set_orders(&self, orders: OrdersContent, stamp: &Stamp, saw: Option<u64>) -> Result<Write, NotWritten> {
        self.orders.propose(&self.rule, orders, stamp, saw)
    }

    /// The write that ends the freeze whose time is over; `None`: there is none to end, or it cannot be written. A row that is
    /// refused may be right for servers with another token: only an operator writes over it.
    pub fn lapse(&self, stamp: &Stamp) -> Option<Write> {
        self.freeze().filter(|_| !self.orders.has_refused_row())?;
        self.set_orders(OrdersContent::default(), stamp, None).ok()
    }

    /// The write that pins contested places to those who have them here, if no pin says otherwise, and takes back pins of
    /// services that are `gone` for good; `None`: there is nothing to write, or a row that is refused, which is the operator's.
    pub fn repin<'a>(
        &self,
        contests: impl IntoIterator<Item = (&'a Arc<str>, &'a Arc<str>)>,
        gone: &BTreeSet<Arc<str>>,
        stamp: &Stamp,
    ) -> Option<Result<Write, NotWritten>> {
        let before = self.pins().cloned().unwrap_or_default();
        let mut pins = before.clone();
        pins.places.retain(|_, id| !gone.contains(id));
        for (place, holder) in contests {
            if pins.places.len() < MOST_PINS || pins.places.contains_key(place) {
                pins.places.entry(Arc::clone(place)).or_insert_with(|| Arc::clone(holder));
            }
        }
        (pins != before && !self.pins.has_refused_row()).then(|| self.pins.propose(&self.rule, pins, stamp, None))
    }

    /// Takes what came of a write. `stored`: the store says that it took it; `now`: what it has after that, `None` where it
    /// cannot be read.
    pub fn written(&mut self, write: &Write, stored: bool, now: Option<Option<&Row>>) -> (Outcome, Taken) {
        let (rows, rule) = self.rows(write.name);
        let (outcome, took) = rows.written(rule, write, stored, now);
        let mut taken = Taken::default();
        taken.note(write.name, rows, took);
        (outcome, taken)
    }

    /// For the status; of those that are not always there, the ones that are.
    pub fn shown(&self) -> BTreeMap<Name, Shown> {
        let is_there = |(name, shown): &(Name, Shown)| {
            Name::ALWAYS.contains(name) || shown.revision > 0 || shown.refused.is_some()
        };
        self.all().map(|(name, rows)| (name, rows.shown())).filter(is_there).collect()
    }

    /// Who computes the visibility of services.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.held().map(|held| &held.content)
    }

    /// The pages of that, each if it is there.
    pub fn pages(&self) -> [Option<&Page>; PAGES] {
        std::array::from_fn(|n| self.pages[n].held().map(|held| &held.content))
    }

    /// In which namespaces consumers are; `None`: not known, or not of all services.
    pub fn seen(&self) -> Option<Seen> {
        let lease = self.lease().filter(|lease| lease.settled)?;
        let pages = self.pages();
        let is_whole = lease.pages <= PAGES && pages[..lease.pages.min(PAGES)].iter().all(Option::is_some);
        is_whole.then(|| Seen::of(pages.into_iter().flatten()))
    }

    /// Another number whenever the lease or a page is another one.
    pub fn beat(&self) -> u64 {
        let visibility = self.all().filter(|(name, _)| matches!(name, Name::Visibility | Name::VisibilityPage(_)));
        visibility.map(|(_, rows)| rows.highest()).fold(0, |beat, revision| beat.wrapping_mul(1_000_003) ^ revision)
    }

    /// Another number whenever a page says otherwise, which a renewal of the lease does not.
    pub fn content(&self) -> u64 {
        self.pages.iter().map(Slot::held_as).fold(0, |content, page| content.wrapping_mul(1_000_003) ^ page)
    }

    /// The rows of the visibility of services that are to be read: `asks`: the policy asks for it. Where it does not, whether an
    /// older one is to be ended is. Of the pages, those that there are and one more, which another server may have begun.
    pub fn visibility_names(&self, asks: bool) -> Vec<Name> {
        if !asks {
            return self.lease().filter(|lease| lease.settled).map(|_| Name::Visibility).into_iter().collect();
        }
        let known = self.pages.iter().rposition(|page| page.highest() > 0).map_or(0, |n| n + 1);
        let last = known.max(self.lease().map_or(0, |lease| lease.pages));
        let pages = (0..(last + 1).min(PAGES)).map(|n| Name::VisibilityPage(n as u8));
        [Name::Visibility].into_iter().chain(pages).collect()
    }

    /// The rows of the lease and the pages that are refused; whether they are written over is the keeper's to say.
    pub fn refused_visibility(&self) -> RefusedRows {
        let pages = std::array::from_fn(|n| self.pages[n].refused_row());
        RefusedRows { lease: self.lease.refused_row(), pages }
    }

    /// The write of the lease.
    pub fn set_lease(&self, lease: Lease, stamp: &Stamp) -> Option<Write> {
        self.lease.propose(&self.rule, lease, stamp, None).ok()
    }

    /// The write of a page.
    pub fn set_page(&self, n: usize, page: Page, stamp: &Stamp) -> Result<Write, NotWritten> {
        self.pages[n % PAGES].propose(&self.rule, page, stamp, None)
    }
}

impl Taken {
    fn note(&mut self, name: Name, rows: &dyn Rows, took: Took) {
        if took.changed {
            self.changed.push(name);
        }
        if took.newly_refused {
            self.refused.extend(rows.refused().cloned().map(|refusal| (name, refusal)));
        }
    }

    /// Adds what came of another row.
    pub fn add(&mut self, other: Self) {
        self.changed.extend(other.changed);
        self.refused.extend(other.refused);
    }
}

#[cfg(test)]
mod tests;
