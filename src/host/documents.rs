//! What documents do to an engine, and how they are read and written: the shell around [`Documents`] and its [`Desk`](super::desk::Desk).
//!
//! Nothing here calls out. Whoever hosts the engine reads the rows every few seconds and hands them in, and takes back the rows
//! that are to be written; what came of those it says by their tickets. Where no host does so, or there is no token to sign
//! with, everything is as the properties and the local commands say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    catalog::key::ServiceKey,
    documents::{Documents, Name, NotWritten, OrdersContent, Outcome, Row, Stamp, Taken, Write},
    host::{
        desk::{DocumentsStatus, Following, For, Order, State, Written, heard, log, thaws_at},
        engine::Engine,
        page::Page,
        policy::OTHER,
    },
    model::{self, Millis},
};

/// How often an order is tried against other writers.
const TRIES: usize = 3;
/// How long a pin outlives its service.
const PINNED: Duration = Duration::from_secs(86_400);
/// Who writes what no operator asks for.
pub(super) const OURSELVES: &str = "registry-mox";

/// The rows as the host read them, or why it could not.
pub type Read = std::result::Result<BTreeMap<Name, Option<Row>>, Away>;

/// Why the store could not be read.
#[derive(Debug, Default)]
pub struct Away {
    /// For pages, which everybody sees: nothing of what the database said.
    pub why: String,
    /// For the log.
    pub detail: String,
}

/// The host's next step.
#[derive(Debug)]
pub enum Next {
    /// Nothing; this is the answer to who asked.
    Page(Page),
    /// Write a row, and tell what came of it.
    Write(Order),
    /// Read the rows, and ask for the revisions then.
    Refresh,
}

impl Engine {
    /// Does what the documents say that changed.
    fn put_in_force(&self, following: &mut Following, taken: &Taken) {
        log(&mut following.logged, taken);
        if taken.changed.iter().any(|name| matches!(name, Name::Visibility | Name::VisibilityPage(_))) {
            self.put_seen_in_force(following);
        }
        for name in &taken.changed {
            match name {
                Name::Visibility | Name::VisibilityPage(_) => {}
                Name::Policy => self.put_policy_in_force(following),
                Name::Orders => {
                    let documents = following.documents.as_ref();
                    let now = model::date();
                    following.heard = documents.and_then(|documents| heard(documents, None, now));
                    following.thaws_at = documents.and_then(|documents| thaws_at(documents, following.heard, now));
                    self.put_freeze_in_force(following);
                }
                Name::Pins => self.put_pins_in_force(following),
            }
        }
    }

    fn put_policy_in_force(&self, following: &mut Following) {
        following.hashes = self.hashes(following);
        let stored = following.documents.as_ref().and_then(Documents::policy);
        let policy = match stored {
            Some(policy) => self.compiled_json(policy),
            None => Ok(Arc::clone(&following.own.present().policy)),
        };
        match policy {
            Ok(policy) => {
                let (stored, hash) = (stored.is_some(), policy.hash().to_owned());
                for mistake in policy.document().protocol_mistakes("policy") {
                    tracing::warn!(
                        event = "policy_protocol_unknown",
                        %mistake,
                        "a name in the stored policy means nothing, and is refused when a policy is written next"
                    );
                }
                self.put_policy(policy);
                tracing::info!(event = "policy_in_force", hash, stored, "another policy is in force");
            }
            // The policy was checked before it counted.
            Err(error) => tracing::error!(event = "policy_not_in_force", %error, "a policy cannot be put in force"),
        }
    }

    fn put_freeze_in_force(&self, following: &Following) {
        let freeze = following.documents.as_ref().and_then(Documents::freeze);
        let ordered = freeze.is_some() && !following.is_over();
        // A freeze of this server alone outlasts one of all that ends by itself.
        let is_thawed =
            following.documents.as_ref().is_some_and(|documents| documents.is_thawed_by_other_than(OURSELVES));
        self.order(|orders| {
            orders.ordered = ordered;
            orders.frozen &= !is_thawed;
        });
        if let Some((_, Stamp { by, why, .. })) = freeze.filter(|_| ordered) {
            tracing::warn!(event = "frozen", by, why, "what is served stays as it is on every session server");
        } else {
            tracing::warn!(event = "thawed", "what is served follows the registry on every session server");
        }
    }

    fn put_pins_in_force(&self, following: &Following) {
        let pins = following.documents.as_ref().and_then(Documents::pins);
        self.shared.pins.store(Arc::new(pins.map(|pins| pins.places.clone()).unwrap_or_default()));
        self.shared.store.wake().wake();
    }

    /// Does what the documents of before a restart say.
    pub(super) fn put_kept_in_force(&self) {
        let mut following = self.documents.lock();
        let Some(documents) = &following.documents else { return };
        let (has_policy, has_freeze) = (documents.policy().is_some(), documents.freeze().is_some());
        following.hashes = self.hashes(&following);
        if has_policy {
            self.put_policy_in_force(&mut following);
        }
        if has_freeze {
            self.put_freeze_in_force(&following);
        }
        self.put_pins_in_force(&following);
        self.put_seen_in_force(&mut following);
    }

    /// Says that the host is going to read documents: until it has, nothing that is for all session servers is done for one.
    pub fn await_documents(&self) {
        let mut following = self.documents.lock();
        if following.documents.is_some() {
            following.off = None;
            following.failure = Some("they were not read yet since the start".to_owned());
        }
    }

    /// Says that the host reads no documents, and why: what an earlier start kept of them does not count.
    pub fn documents_off(&self, why: &str) {
        let mut following = self.documents.lock();
        if following.documents.take().is_some() {
            following.off = Some(why.to_owned());
            following.thaws_at = None;
            self.put_policy_in_force(&mut following);
            self.put_pins_in_force(&following);
            self.put_seen_in_force(&mut following);
            self.order(|orders| orders.ordered = false);
        }
    }

    /// Takes the rows as the host read them, or why it could not; returns rows to write. Takes as long as the disk does.
    pub fn documents_read(&self, read: Read) -> Vec<Order> {
        let orders = self.take_rows(read);
        self.documents.save();
        orders
    }

    fn take_rows(&self, read: Read) -> Vec<Order> {
        let mut following = self.documents.lock();
        let following = &mut *following;
        let Some(documents) = &mut following.documents else { return Vec::new() };
        following.off = None;
        let is_reachable = read.is_ok();
        match read {
            Ok(rows) => {
                following.read_at = Some(Instant::now());
                following.failure = None;
                if std::mem::replace(&mut following.said_away, false) {
                    tracing::warn!(
                        event = "documents_reachable",
                        "the registry's store of documents can be read again"
                    );
                }
                let mut taken = Taken::default();
                for (name, row) in &rows {
                    taken.add(documents.take(*name, row.as_ref()));
                }
                self.put_in_force(following, &taken);
            }
            Err(Away { why, detail }) => {
                documents.lose();
                let line = |text: &str, most: usize| -> String {
                    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect()
                };
                let (why, detail) = (line(&why, 100), line(&detail, 300));
                if !std::mem::replace(&mut following.said_away, true) {
                    tracing::error!(
                        event = "documents_unreachable",
                        why,
                        detail,
                        "the registry's store of documents cannot be read: the last known documents count"
                    );
                }
                following.failure = Some(why);
            }
        }
        let lapsed = self.lapse(following);
        let pinned = self.repin(following).filter(|_| is_reachable);
        let seen = if is_reachable { self.write_seen(following) } else { None };
        let Some(documents) = &following.documents else { return Vec::new() };
        let mut writes = if is_reachable { documents.put_back(model::date()) } else { Vec::new() };
        let puts_back = |name| writes.iter().any(|write: &Write| write.name == name);
        let more: Vec<Write> =
            lapsed.into_iter().chain(pinned).chain(seen).filter(|write| !puts_back(write.name)).collect();
        writes.extend(more);
        writes.into_iter().map(|write| following.order(write, For::Nobody)).collect()
    }

    /// Ends a freeze whose time is over, here at once and everywhere by its document, unless its row is refused.
    fn lapse(&self, following: &mut Following) -> Option<Write> {
        let documents = following.documents.as_ref()?;
        following.thaws_at.filter(|at| *at <= Instant::now())?;
        documents.freeze()?;
        self.order(|orders| orders.ordered = false);
        let stamp = Stamp { by: OURSELVES.to_owned(), when: model::date(), why: "its time is over".to_owned() };
        documents.lapse(&stamp)
    }

    /// Pins places that several want here, and lets pins go whose service has been unknown for long.
    fn repin(&self, following: &mut Following) -> Option<Write> {
        if !self.view().complete {
            return None;
        }
        // Without who waits: anybody can make many contests, and the rounds wait for this lock.
        let contests: Vec<(Arc<str>, Arc<str>)> = {
            let report = self.shared.report.lock();
            report.contested.iter().map(|(place, contest)| (Arc::clone(place), Arc::clone(&contest.holder))).collect()
        };
        let documents = following.documents.as_ref()?;
        let pinned: BTreeSet<&Arc<str>> = documents.pins().into_iter().flat_map(|pins| pins.places.values()).collect();
        let unknown =
            |id: &&Arc<str>| pinned.contains(*id) && !ServiceKey::of_text(Arc::clone(id)).is_known(&self.shared.store);
        following.missed.retain(|id, _| unknown(&id));
        for id in pinned.iter().filter(|id| unknown(id)) {
            following.missed.entry(Arc::clone(id)).or_insert_with(Instant::now);
        }
        let is_over = |(_, since): &(&Arc<str>, &Instant)| since.elapsed() >= PINNED;
        let gone = following.missed.iter().filter(is_over).map(|(id, _)| Arc::clone(id)).collect();
        let stamp = Stamp { by: OURSELVES.to_owned(), when: model::date(), why: "several want one place".to_owned() };
        let contests = contests.iter().map(|(place, holder)| (place, holder));
        match documents.repin(contests, &gone, &stamp)? {
            Ok(write) => Some(write),
            Err(NotWritten::TooLarge) if !std::mem::replace(&mut following.said_full, true) => {
                tracing::error!(
                    event = "pins_full",
                    "so many places are contested that a row has no room for them: session servers may differ in the rest"
                );
                None
            }
            Err(_) => None,
        }
    }

    /// Takes what came of a write. Takes as long as the disk does.
    pub fn documents_written(&self, written: Written) -> Next {
        let came = self.came_of(written);
        self.documents.save();
        match came {
            // Another thread looks for the globs that match nothing, so not under the documents' lock.
            Came::Policy(mut revisions) => {
                revisions["unmatched"] = json!(self.unmatched());
                Self::told(Page::json(&revisions))
            }
            Came::Other(next) => next,
        }
    }

    fn came_of(&self, written: Written) -> Came {
        let Written { ticket, stored, read, row } = written;
        let mut following = self.documents.lock();
        let following = &mut *following;
        let (Some(documents), Some((write, whom))) = (&mut following.documents, following.pending.remove(&ticket))
        else {
            return Came::Other(Next::Page(Page::text(503, "this write is not known any more\n".to_owned())));
        };
        let (outcome, taken) = documents.written(&write, stored, read.then_some(row.as_ref()));
        self.put_in_force(following, &taken);
        let Some(documents) = &following.documents else { return Came::Other(unreachable_store()) };
        Came::Other(match (outcome, whom) {
            (Outcome::Unreachable, _) => unreachable_store(),
            (Outcome::Done, For::Orders { content, .. }) => Self::told(frozen(documents, content)),
            (Outcome::Conflict, For::Orders { content, stamp, tries }) if tries < TRIES => {
                match documents.set_orders(content.clone(), &stamp, None) {
                    Ok(write) => Next::Write(following.order(write, For::Orders { content, stamp, tries: tries + 1 })),
                    Err(why) => Next::Page(not_written(documents, &why)),
                }
            }
            (Outcome::Conflict, _) => Next::Page(not_written(documents, &NotWritten::Conflict)),
            (Outcome::Done, For::Policy) => return Came::Policy(self.revisions_of(documents)),
            (Outcome::Done, For::Nobody) => Self::told(Page::json(&self.revisions_of(documents))),
        })
    }

    /// Whether changes are written as documents.
    pub fn has_documents(&self) -> bool {
        self.documents.lock().is_on()
    }

    /// The keys of the documents' rows that the host reads always; none where nothing could be signed.
    pub(super) fn document_keys(&self) -> BTreeMap<Name, String> {
        let following = self.documents.lock();
        let all = following.documents.iter().flat_map(|_| Name::ALWAYS);
        all.map(|name| (name, name.key())).collect()
    }

    /// Begins to replace the policy of all session servers, by that of the properties where `policy` is `None`.
    pub fn write_policy(&self, policy: Option<Value>, stamp: &Stamp, saw: Option<u64>) -> Next {
        let mut following = self.documents.lock();
        let Some(documents) = &following.documents else { return unreachable_store() };
        match documents.set_policy(policy, stamp, saw) {
            Ok(write) => Next::Write(following.order(write, For::Policy)),
            Err(why) => Next::Page(not_written(documents, &why)),
        }
    }

    /// [`Documents::policy_of`], for a way back.
    pub fn stored_policy(&self, revision: u64) -> Option<Option<Value>> {
        let following = self.documents.lock();
        let policy = following.documents.as_ref()?.policy_of(revision)?;
        Some(policy.cloned())
    }

    /// Begins to freeze or thaw all session servers.
    pub fn write_orders(&self, content: OrdersContent, stamp: &Stamp, saw: Option<u64>) -> Next {
        let mut following = self.documents.lock();
        let Some(documents) = &following.documents else { return unreachable_store() };
        match documents.set_orders(content.clone(), stamp, saw) {
            Ok(write) => {
                // Who says what he saw wants to know of others.
                let tries = if saw.is_some() { TRIES } else { 1 };
                Next::Write(following.order(write, For::Orders { content, stamp: stamp.clone(), tries }))
            }
            Err(why) => Next::Page(not_written(documents, &why)),
        }
    }

    /// Revisions of the documents and the hash of the policy, as every server answers after a change; a 503 from a server that did
    /// not read the documents.
    pub fn refreshed(&self) -> Page {
        let following = self.documents.lock();
        let status = following.status();
        match &following.documents {
            Some(documents) if status.state == State::On => Page::json(&self.revisions_of(documents)),
            _ => {
                let DocumentsStatus { state, why, .. } = status;
                let shown = json!({ "error": "the documents are not read here", "state": state, "why": why });
                Page { status: 503, ..Page::json(&shown) }
            }
        }
    }

    /// Whether there is a document with a freeze of all session servers whose time is not over.
    pub(super) fn is_freeze_shared(&self) -> bool {
        let following = self.documents.lock();
        following.is_on()
            && following.documents.as_ref().is_some_and(|it| it.freeze().is_some())
            && !following.is_over()
    }

    /// The answer to who wrote a document: this server's, with what the others are asked then.
    fn told(page: Page) -> Next {
        Next::Page(page.with("/mox/refresh", String::new(), String::new()))
    }

    fn revisions_of(&self, documents: &Documents) -> Value {
        // Those that operators write and wait for.
        let is_always = |(name, _): &(Name, _)| Name::ALWAYS.contains(name);
        let shown = documents.shown().into_iter().filter(is_always);
        let revisions: BTreeMap<Name, u64> = shown.map(|(name, shown)| (name, shown.revision)).collect();
        json!({
            "revision": revisions[&Name::Policy],
            "hash": self.policy_hash(),
            "revisions": revisions,
        })
    }

    pub(super) fn documents_status(&self) -> DocumentsStatus {
        self.documents.lock().status()
    }
}

/// What came of a write.
enum Came {
    /// A policy is in force, with these revisions.
    Policy(Value),
    /// Anything else.
    Other(Next),
}

fn unreachable_store() -> Next {
    Next::Page(Page::text(
        503,
        "the registry's store of documents is not reached: nothing changed, unless the store took it after all, which GET \
         /mox/policy then tells; ?local=1 freezes and thaws this server alone\n"
            .to_owned(),
    ))
}

fn frozen(documents: &Documents, OrdersContent { freeze }: OrdersContent) -> Page {
    Page::json(&json!({
        "frozen": freeze.is_some(),
        "until": freeze.and_then(|freeze| freeze.until).map(date),
        "revision": documents.shown()[&Name::Orders].revision,
    }))
}

fn not_written(documents: &Documents, why: &NotWritten) -> Page {
    let present = documents.shown();
    match why {
        NotWritten::Unreachable => match unreachable_store() {
            Next::Page(page) => page,
            _ => Page::text(503, String::new()),
        },
        NotWritten::Conflict => Page {
            status: 409,
            ..Page::json(&json!({
                "error": OTHER,
                "present": present,
                "policy": documents.policy(),
            }))
        },
        NotWritten::Version => Page {
            status: 409,
            ..Page::json(&json!({
                "error": "nothing can be written over the row's version; remove the row, then send yours again",
                "present": present,
            }))
        },
        NotWritten::Newer => Page {
            status: 409,
            ..Page::json(&json!({
                "error": "a newer release wrote the document, and this one cannot read it; send yours to a server of that release, \
                          or with the revision of the row that is refused in If-Match",
                "present": present,
            }))
        },
        NotWritten::TooLarge => Page::text(
            413,
            "the document has more than 64 KiB when it is packed; use globs in place of lists\n".to_owned(),
        ),
        NotWritten::Invalid(why) => Page::text(400, format!("{why}\n")),
    }
}

/// The last millisecond that has a date of four digits for its year.
const LAST: Millis = 253_402_300_799_999;

/// A moment for people; what has no date is the first or the last that has one.
pub(super) fn date(millis: Millis) -> String {
    let at = std::time::UNIX_EPOCH + Duration::from_millis(millis.clamp(0, LAST) as u64);
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests;
