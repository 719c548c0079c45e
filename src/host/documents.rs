//! The shell around [`Documents`]: the lock, the clock, the file in `mox.state-dir` and the log; and what documents do to an
//! engine.
//!
//! Nothing here calls out. Whoever hosts the engine reads the rows every few seconds and hands them in, and takes back the rows
//! that are to be written; what came of those it says by their tickets. Where no host does so, or there is no token to sign
//! with, everything is as the properties and the local commands say.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config::{self, Config},
    disk,
    documents::{
        Documents, Freeze, Kept, LEAST_TOKEN, Name, NotWritten, OrdersContent, Outcome, Row, Shown, Stamp, Taken, Write,
    },
    error::{Error, Result},
    host::{admin::Page, engine::Engine},
    model::{self, Millis},
    policy::PolicyConfig,
};

const FILE: &str = "documents";
/// The most bytes of the file: three rows, and more for another release.
const MOST_FILE: u64 = 1 << 20;
/// Writes whose outcome nobody has said yet; the oldest are forgotten.
const PENDING: usize = 16;
/// How often an order is tried against other writers.
const TRIES: usize = 3;
/// How long a pin outlives its service.
const PINNED: Duration = Duration::from_secs(86_400);
/// Who writes what no operator asks for.
const OURSELVES: &str = "registry-mox";

/// What the status says of the documents.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DocumentsStatus {
    /// Whether documents are read and written.
    pub state: State,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How long ago the store was read last, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_millis_ago: Option<u64>,
    /// The documents by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub documents: BTreeMap<Name, Shown>,
}

/// Whether documents are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// They are.
    On,
    /// The store cannot be read: the last known documents count, and none can be written.
    Unreachable,
    /// They are not: properties are the policy, and commands are for one server.
    Off,
}

/// A row that the host is to write.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// By which the outcome is told.
    ticket: u64,
    /// The row's key.
    key: String,
    /// What to write over what.
    #[serde(flatten)]
    write: Write,
}

/// What the host is to do next.
#[derive(Debug)]
pub enum Next {
    /// Nothing; this is the answer to who asked.
    Page(Page),
    /// Write a row, and tell what came of it.
    Write(Order),
    /// Read the rows, and ask for the revisions then.
    Refresh,
}

/// What the host read after a write.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Written {
    /// Of the order.
    pub ticket: u64,
    /// Whether the store says that it took the row.
    pub stored: bool,
    /// Whether the row could be read after that.
    pub read: bool,
    /// The row; none where there is none.
    #[serde(default)]
    pub row: Option<Row>,
}

/// For whom a row is written.
#[derive(Debug)]
enum For {
    /// For nobody: a row is put back, or a freeze is over.
    Nobody,
    /// For the operator who sets the policy.
    Policy,
    /// For the operator who freezes or thaws.
    Orders { content: OrdersContent, stamp: Stamp, tries: usize },
}

/// The documents and what surrounds them.
#[derive(Debug)]
pub struct Desk(Mutex<Following>);

#[derive(Debug)]
struct Following {
    /// `None`: the token is too short to sign with.
    documents: Option<Documents>,
    /// Why documents are not followed; `None`: they are.
    off: Option<String>,
    /// Why the store could not be read the last time.
    failure: Option<String>,
    read_at: Option<Instant>,
    file: Option<PathBuf>,
    saved: Kept,
    /// The policy where no document has one.
    own: PolicyConfig,
    /// When the freeze that is ordered ends.
    thaws_at: Option<Instant>,
    /// Services that have a pin and are not known, and since when.
    missed: BTreeMap<Arc<str>, Instant>,
    /// The log says that the store cannot be read.
    said_away: bool,
    /// The log says that there is no room for more pins.
    said_full: bool,
    next_ticket: u64,
    pending: BTreeMap<u64, (Write, For)>,
}

impl Desk {
    /// With what was kept over a restart; [`Engine::put_in_force`] is to follow.
    pub fn new(config: &Config) -> Self {
        let token = config.admin.token.as_ref().map_or(&[][..], |token| token.key());
        let mut documents = Documents::new(token, &config.namespace);
        let file = config.state_dir.as_deref().map(|dir| dir.join(FILE)).filter(|_| documents.is_some());
        let saved = file.as_deref().and_then(load).unwrap_or_default();
        if let Some(documents) = &mut documents {
            log(&documents.restore(&saved));
        }
        let off = match documents {
            Some(_) => "no host reads them",
            None => "mox.admin.token has fewer than 16 bytes, so nothing can be signed; set a longer one everywhere",
        };
        let thaws_at = documents.as_ref().and_then(|documents| thaws_at(documents, false));
        Self(Mutex::new(Following {
            documents,
            off: Some(off.to_owned()),
            failure: None,
            read_at: None,
            file,
            saved,
            own: config.policy.clone(),
            thaws_at,
            missed: BTreeMap::new(),
            said_away: false,
            said_full: false,
            next_ticket: 1,
            pending: BTreeMap::new(),
        }))
    }
}

/// When the freeze ends. The writer's clock counts where the freeze was heard of as it was ordered: it lasts as long as was
/// said. After a restart it is this server's clock, and no longer than that.
fn thaws_at(documents: &Documents, heard: bool) -> Option<Instant> {
    let (Freeze { until }, Stamp { when, .. }) = documents.freeze()?;
    let whole = until?.saturating_sub(*when).max(0);
    let left = if heard { whole } else { until?.saturating_sub(model::date()).clamp(0, whole) };
    Instant::now().checked_add(Duration::from_millis(left as u64))
}

fn load(file: &Path) -> Option<Kept> {
    disk::clean(file);
    let read = || -> std::io::Result<Kept> {
        let mut text = Vec::new();
        disk::open(std::fs::File::options().read(true), file)?.take(MOST_FILE).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    match read() {
        Ok(kept) => Some(kept),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            let file = file.display();
            tracing::warn!(event = "documents_unusable", %file, %error, "the documents of before this start cannot be read");
            None
        }
    }
}

fn log(taken: &Taken) {
    for (name, refusal) in &taken.refused {
        tracing::error!(
            event = "document_refused",
            name = name.as_str(),
            reason = ?refusal.reason,
            detail = refusal.detail.chars().take(400).collect::<String>(),
            "the row of a document does not count, the last one that did stays"
        );
    }
}

impl Following {
    fn is_on(&self) -> bool {
        self.off.is_none()
    }

    /// Gives a write a ticket.
    fn order(&mut self, write: Write, whom: For) -> Order {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        while self.pending.len() >= PENDING {
            self.pending.pop_first();
        }
        self.pending.insert(ticket, (write.clone(), whom));
        Order { ticket, key: write.name.key(), write }
    }

    fn save(&mut self) {
        let (Some(file), Some(kept)) = (&self.file, self.documents.as_ref().map(Documents::kept)) else { return };
        if kept == self.saved {
            return;
        }
        let written = disk::replace(file, |out| {
            serde_json::to_writer(&mut *out, &kept)?;
            out.write_all(b"\n")
        });
        match written {
            Ok(()) => self.saved = kept,
            Err(error) => {
                let file = file.display();
                tracing::warn!(event = "documents_not_kept", %file, %error, "documents do not outlive a restart without the store");
            }
        }
    }
}

impl Engine {
    /// Does what the documents say that changed.
    fn put_in_force(&self, following: &mut Following, taken: &Taken, heard: bool) {
        log(taken);
        for name in &taken.changed {
            match name {
                Name::Policy => self.put_policy_in_force(following),
                Name::Orders => {
                    let documents = following.documents.as_ref();
                    following.thaws_at = documents.and_then(|documents| thaws_at(documents, heard));
                    self.put_freeze_in_force(following);
                }
                Name::Pins => self.put_pins_in_force(following),
            }
        }
        following.save();
    }

    fn put_policy_in_force(&self, following: &Following) {
        let stored = following.documents.as_ref().and_then(Documents::policy);
        let policy = match stored {
            Some(policy) => config::policy_from_json(policy.clone(), &self.config().namespace),
            None => Ok(following.own.clone()),
        };
        match policy.and_then(|policy| self.put_policy(policy)) {
            Ok(hash) => {
                let stored = stored.is_some();
                tracing::info!(event = "policy_in_force", hash, stored, "another policy is in force");
            }
            // It was checked before it counted.
            Err(error) => tracing::error!(event = "policy_not_in_force", %error, "a policy cannot be put in force"),
        }
    }

    fn put_freeze_in_force(&self, following: &Following) {
        let freeze = following.documents.as_ref().and_then(Documents::freeze);
        let over = following.thaws_at.is_some_and(|at| at <= Instant::now());
        let ordered = freeze.is_some() && !over;
        self.order(|orders| {
            orders.ordered = ordered;
            orders.frozen &= ordered;
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
        let following = self.documents.0.lock();
        let Some(documents) = &following.documents else { return };
        if documents.policy().is_some() {
            self.put_policy_in_force(&following);
        }
        if documents.freeze().is_some() {
            self.put_freeze_in_force(&following);
        }
        self.put_pins_in_force(&following);
    }

    /// Says that the host is going to read documents: until it has, nothing that is for all session servers is done for one.
    pub fn await_documents(&self) {
        let mut following = self.documents.0.lock();
        if following.documents.is_some() {
            following.off = None;
            following.failure = Some("they were not read yet since the start".to_owned());
        }
    }

    /// Says that the host reads no documents, and why: what an earlier start kept of them does not count.
    pub fn documents_off(&self, why: &str) {
        let mut following = self.documents.0.lock();
        if following.documents.take().is_some() {
            following.off = Some(why.to_owned());
            following.thaws_at = None;
            self.put_policy_in_force(&following);
            self.put_pins_in_force(&following);
            self.order(|orders| orders.ordered = false);
        }
    }

    /// Takes the rows as the host read them, or why it could not; returns rows to write.
    pub fn documents_read(&self, read: std::result::Result<BTreeMap<Name, Option<Row>>, String>) -> Vec<Order> {
        let mut following = self.documents.0.lock();
        let following = &mut *following;
        let Some(documents) = &mut following.documents else { return Vec::new() };
        following.off = None;
        let is_reachable = read.is_ok();
        match read {
            Ok(rows) => {
                let heard = following.read_at.replace(Instant::now()).is_some();
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
                self.put_in_force(following, &taken, heard);
            }
            Err(why) => {
                documents.lose();
                let why: String = why.chars().take(400).collect();
                if !std::mem::replace(&mut following.said_away, true) {
                    tracing::error!(
                        event = "documents_unreachable",
                        why,
                        "the registry's store of documents cannot be read: the last known documents count"
                    );
                }
                following.failure = Some(why);
            }
        }
        let lapsed = self.lapse(following);
        let pinned = self.repin(following).filter(|_| is_reachable);
        let Some(documents) = &following.documents else { return Vec::new() };
        let mut writes = if is_reachable { documents.put_back(model::date()) } else { Vec::new() };
        let puts_back = |name| writes.iter().any(|write: &Write| write.name == name);
        let more: Vec<Write> = lapsed.into_iter().chain(pinned).filter(|write| !puts_back(write.name)).collect();
        writes.extend(more);
        writes.into_iter().map(|write| following.order(write, For::Nobody)).collect()
    }

    /// Ends a freeze whose time is over, here at once and everywhere by its document.
    fn lapse(&self, following: &mut Following) -> Option<Write> {
        let documents = following.documents.as_ref()?;
        following.thaws_at.filter(|at| *at <= Instant::now())?;
        documents.freeze()?;
        self.order(|orders| orders.ordered = false);
        let stamp = Stamp { by: OURSELVES.to_owned(), when: model::date(), why: "its time is over".to_owned() };
        documents.set_orders(OrdersContent::default(), &stamp, None).ok()
    }

    /// Pins places that several want here, and lets pins go whose service has been unknown for long.
    fn repin(&self, following: &mut Following) -> Option<Write> {
        if !self.view().complete {
            return None;
        }
        let contests = self.shared.report.lock().contested.clone();
        let documents = following.documents.as_ref()?;
        let pinned: BTreeSet<&Arc<str>> = documents.pins().into_iter().flat_map(|pins| pins.places.values()).collect();
        let unknown = |id: &&Arc<str>| pinned.contains(*id) && !self.shared.store.has(id);
        following.missed.retain(|id, _| unknown(&id));
        for id in pinned.iter().filter(|id| unknown(id)) {
            following.missed.entry(Arc::clone(id)).or_insert_with(Instant::now);
        }
        let is_over = |(_, since): &(&Arc<str>, &Instant)| since.elapsed() >= PINNED;
        let gone = following.missed.iter().filter(is_over).map(|(id, _)| Arc::clone(id)).collect();
        let stamp = Stamp { by: OURSELVES.to_owned(), when: model::date(), why: "several want one place".to_owned() };
        let contests = contests.iter().map(|(place, contest)| (place, &contest.holder));
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

    /// Takes what came of a write.
    pub fn documents_written(&self, written: Written) -> Next {
        let Written { ticket, stored, read, row } = written;
        let mut following = self.documents.0.lock();
        let following = &mut *following;
        let (Some(documents), Some((write, whom))) = (&mut following.documents, following.pending.remove(&ticket))
        else {
            return Next::Page(Page::text(503, "this write is not known any more\n".to_owned()));
        };
        let (outcome, taken) = documents.written(&write, stored, read.then_some(row.as_ref()));
        self.put_in_force(following, &taken, true);
        let Some(documents) = &following.documents else { return unreachable_store() };
        match (outcome, whom) {
            (Outcome::Unreachable, _) => unreachable_store(),
            (Outcome::Done, For::Orders { content, .. }) => Next::Page(frozen(documents, content)),
            (Outcome::Conflict, For::Orders { content, stamp, tries }) if tries < TRIES => {
                match documents.set_orders(content.clone(), &stamp, None) {
                    Ok(write) => Next::Write(following.order(write, For::Orders { content, stamp, tries: tries + 1 })),
                    Err(why) => Next::Page(not_written(documents, &why)),
                }
            }
            (Outcome::Conflict, _) => Next::Page(not_written(documents, &NotWritten::Conflict)),
            (Outcome::Done, For::Policy | For::Nobody) => Next::Page(self.revisions_of(documents)),
        }
    }

    /// Whether changes are written as documents.
    pub fn has_documents(&self) -> bool {
        self.documents.0.lock().is_on()
    }

    /// The keys of the documents' rows, for the host to read; none where nothing could be signed.
    pub(super) fn document_keys(&self) -> BTreeMap<Name, String> {
        let following = self.documents.0.lock();
        let all = following.documents.iter().flat_map(|_| Name::ALL);
        all.map(|name| (name, name.key())).collect()
    }

    /// Begins to replace the policy of all session servers, by that of the properties where `policy` is `None`.
    pub fn write_policy(&self, policy: Option<Value>, stamp: &Stamp, saw: Option<u64>) -> Next {
        let mut following = self.documents.0.lock();
        let Some(documents) = &following.documents else { return unreachable_store() };
        match documents.set_policy(policy, stamp, saw) {
            Ok(write) => Next::Write(following.order(write, For::Policy)),
            Err(why) => Next::Page(not_written(documents, &why)),
        }
    }

    /// The policy that the document of this revision had; `None`: no document that is known.
    pub fn past_policy(&self, revision: u64) -> Option<Option<Value>> {
        let following = self.documents.0.lock();
        let documents = following.documents.as_ref()?;
        let past = documents.history().iter().find(|past| past.revision == revision);
        past.map(|past| past.policy.clone())
    }

    /// Begins to freeze or thaw all session servers.
    pub fn write_orders(&self, content: OrdersContent, stamp: &Stamp, saw: Option<u64>) -> Next {
        let mut following = self.documents.0.lock();
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

    /// Replaces the policy that counts where session servers share none; returns its hash. A document with a mistake changes
    /// nothing, and so does any while a shared one is in force.
    pub fn set_policy(&self, policy: PolicyConfig) -> Result<String> {
        let mut following = self.documents.0.lock();
        if following.documents.as_ref().is_some_and(|documents| documents.policy().is_some()) {
            return Err(Error::InvalidArgument(
                "a stored policy is in force, which wins over this one; change it by POST /mox/policy".to_owned(),
            ));
        }
        let hash = self.put_policy(policy.clone())?;
        following.own = policy;
        Ok(hash)
    }

    /// Revisions of the documents and the hash of the policy, as every server answers after a change.
    pub fn revisions(&self) -> Page {
        match &self.documents.0.lock().documents {
            Some(documents) => self.revisions_of(documents),
            None => Page::json(&json!({ "hash": self.policy_hash() })),
        }
    }

    fn revisions_of(&self, documents: &Documents) -> Page {
        let revisions: BTreeMap<Name, u64> =
            documents.shown().into_iter().map(|(name, shown)| (name, shown.revision)).collect();
        Page::json(&json!({
            "revision": revisions[&Name::Policy],
            "hash": self.policy_hash(),
            "revisions": revisions,
        }))
    }

    /// The policy in force, who wrote it when and why, and those before it.
    pub fn policy_page(&self) -> Page {
        let following = self.documents.0.lock();
        let documents = following.documents.as_ref();
        let shown = documents.and_then(|documents| documents.shown().remove(&Name::Policy));
        let stored = documents.and_then(Documents::policy);
        let status = following.status();
        Page::json(&json!({
            "revision": shown.as_ref().map_or(0, |shown| shown.revision),
            "hash": self.policy_hash(),
            "from": if stored.is_some() { "document" } else { "properties" },
            "stamp": shown.as_ref().and_then(|shown| shown.stamp.as_ref()),
            "refused": shown.as_ref().and_then(|shown| shown.refused.as_ref()),
            "policy": stored.cloned().or_else(|| serde_json::to_value(&following.own).ok()),
            "history": documents.map(Documents::history).unwrap_or_default(),
            "documents": { "state": status.state, "why": status.why },
        }))
    }

    pub(super) fn documents_status(&self) -> DocumentsStatus {
        self.documents.0.lock().status()
    }
}

impl Following {
    fn status(&self) -> DocumentsStatus {
        let state = match (&self.off, &self.failure) {
            (Some(_), _) => State::Off,
            (None, Some(_)) => State::Unreachable,
            (None, None) => State::On,
        };
        DocumentsStatus {
            state,
            why: self.off.clone().or_else(|| self.failure.clone()),
            read_millis_ago: self.read_at.map(|at| at.elapsed().as_millis() as u64),
            documents: self.documents.as_ref().map(Documents::shown).unwrap_or_default(),
        }
    }
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
                "error": "the document is another than you saw; look at what is there now, and send yours again with its revision in If-Match",
                "present": present,
                "policy": documents.policy(),
            }))
        },
        NotWritten::Newer => Page {
            status: 409,
            ..Page::json(&json!({
                "error": "a newer release wrote the document, and this one cannot read it; send yours to a server of that release, \
                          or with the present revision in If-Match",
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

fn date(millis: Millis) -> String {
    let at = std::time::UNIX_EPOCH + Duration::from_millis(millis.max(0) as u64);
    humantime::format_rfc3339_seconds(at).to_string()
}

const _: () = assert!(LEAST_TOKEN == 16, "texts here name it");
