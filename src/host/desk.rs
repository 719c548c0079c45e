//! The documents as an engine holds them: the lock around [`Documents`], the file in `mox.state-dir`, and the writes that somebody
//! is to make. The file is written while that lock is free: pages and the status wait for no disk.

use std::{
    collections::BTreeMap,
    io::{Read, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    config::Config,
    disk,
    documents::{
        Documents, Freeze, Heard, Kept, LEAST_TOKEN, Name, OrdersContent, Reason, Row, Shown, Stamp, Taken, Write,
    },
    host::{policies::Policies, watching::Watching},
    model::{self, Millis},
    policy::Policy,
};

const FILE: &str = "documents";
/// The most bytes of the file: twenty rows, and more for another release.
const MOST_FILE: u64 = 4 << 20;
/// How often it is logged why a row does not count.
const LOGGED_EVERY: Duration = Duration::from_secs(60);
/// Writes whose outcome nobody has said yet; the oldest are forgotten.
const PENDING: usize = 16;
/// The documents in the status.
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
    /// The row, and the version that it is written over.
    #[serde(flatten)]
    write: Write,
}

/// The host's word on a write.
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
pub(super) enum For {
    /// For nobody: a row is put back, or a freeze is over.
    Nobody,
    /// For the operator who sets the policy.
    Policy,
    /// For the operator who freezes or thaws.
    Orders { content: OrdersContent, stamp: Stamp, tries: usize },
}

/// The documents and what surrounds them.
#[derive(Debug)]
pub struct Desk {
    following: Mutex<Following>,
    file: Option<PathBuf>,
    /// What the file has, held while it is written; the other lock is taken under this one only.
    saved: Mutex<Kept>,
}

#[derive(Debug)]
pub(super) struct Following {
    /// `None`: the token is too short to sign with.
    pub(super) documents: Option<Documents>,
    /// Why documents are not followed; `None`: they are.
    pub(super) off: Option<String>,
    /// Why the store could not be read the last time.
    pub(super) failure: Option<String>,
    pub(super) read_at: Option<Instant>,
    /// The policies where no document has one.
    pub(super) own: Policies,
    /// Hashes of the shared policies before the one in force, by their revisions and stamps; `None`: this release cannot read it.
    pub(super) hashes: Vec<(u64, Stamp, Option<String>)>,
    /// When this server heard of the freeze that is ordered.
    pub(super) heard: Option<Heard>,
    /// When that ends.
    pub(super) thaws_at: Option<Instant>,
    /// Services that have a pin and are not known, and since when.
    pub(super) missed: BTreeMap<Arc<str>, Instant>,
    /// When it was logged last why a row does not count.
    pub(super) logged: BTreeMap<(Name, Reason), Instant>,
    /// The log says that the store cannot be read.
    pub(super) said_away: bool,
    /// The log says that there is no room for more pins.
    pub(super) said_full: bool,
    pub(super) next_ticket: u64,
    pub(super) pending: BTreeMap<u64, (Write, For)>,
    /// Who subscribes to what, where this server computes that.
    pub(super) watching: Watching,
}

impl Desk {
    /// With what was kept over a restart; it is to be put in force.
    pub fn new(config: &Config, properties: Arc<Policy>) -> Self {
        let token = config.admin.token.as_ref().map_or(&[][..], |token| token.key());
        let mut logged = BTreeMap::new();
        let mut documents = Documents::new(token, &config.namespace);
        let file = config.state_dir.as_deref().map(|dir| dir.join(FILE)).filter(|_| documents.is_some());
        let saved = file.as_deref().and_then(load).unwrap_or_default();
        if let Some(documents) = &mut documents {
            log(&mut logged, &documents.restore(&saved));
        }
        let off = match documents {
            Some(_) => "no host reads them",
            None => "mox.admin.token has fewer than 16 bytes, so nothing can be signed; set a longer one everywhere",
        };
        let heard = documents.as_ref().and_then(|documents| heard(documents, saved.heard, model::date()));
        let thaws_at = documents.as_ref().and_then(|documents| thaws_at(documents, heard, model::date()));
        let following = Following {
            documents,
            off: Some(off.to_owned()),
            failure: None,
            read_at: None,
            own: Policies::new(properties),
            hashes: Vec::new(),
            heard,
            thaws_at,
            missed: BTreeMap::new(),
            logged,
            said_away: false,
            said_full: false,
            next_ticket: 1,
            pending: BTreeMap::new(),
            watching: Watching::default(),
        };
        Self { following: Mutex::new(following), file, saved: Mutex::new(saved) }
    }
}

impl Desk {
    pub(super) fn lock(&self) -> MutexGuard<'_, Following> {
        self.following.lock()
    }

    #[cfg(test)]
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Following>> {
        self.following.try_lock()
    }

    /// Holds what is held while the file is written.
    #[cfg(test)]
    pub(super) fn hold_file(&self) -> MutexGuard<'_, Kept> {
        self.saved.lock()
    }

    /// Writes the file, if it has another content than what is known now. Takes as long as the disk does.
    pub(super) fn save(&self) {
        let Some(file) = &self.file else { return };
        let mut saved = self.saved.lock();
        let kept = {
            let following = self.lock();
            let Some(kept) = following.documents.as_ref().map(Documents::kept) else { return };
            Kept { heard: following.heard, ..kept }
        };
        if kept == *saved {
            return;
        }
        let written = disk::replace(file, |out| {
            serde_json::to_writer(&mut *out, &kept)?;
            out.write_all(b"\n")
        });
        match written {
            Ok(()) => *saved = kept,
            Err(error) => {
                let file = file.display();
                tracing::warn!(event = "documents_not_kept", %file, %error, "documents do not outlive a restart without the store");
            }
        }
    }
}

/// When this server heard of the freeze that is ordered: as it was kept, else now.
pub(super) fn heard(documents: &Documents, kept: Option<Heard>, now: Millis) -> Option<Heard> {
    documents.freeze()?;
    let revision = documents.shown()[&Name::Orders].revision;
    kept.filter(|kept| kept.revision == revision).or(Some(Heard { revision, at: now }))
}

/// When the freeze ends: as long after it was heard of here as the writer said. No other clock than this server's counts, since
/// the first server whose time is over ends the freeze of all.
pub(super) fn thaws_at(documents: &Documents, heard: Option<Heard>, now: Millis) -> Option<Instant> {
    let (Freeze { until }, Stamp { when, .. }) = documents.freeze()?;
    let whole = until?.saturating_sub(*when).max(0);
    let passed = heard.map_or(0, |heard| now.saturating_sub(heard.at)).clamp(0, whole);
    Instant::now().checked_add(Duration::from_millis((whole - passed) as u64))
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

/// Logs which rows do not count, each document and reason once a minute.
pub(super) fn log(logged: &mut BTreeMap<(Name, Reason), Instant>, taken: &Taken) {
    for (name, refusal) in &taken.refused {
        let subject = (*name, refusal.reason);
        if logged.get(&subject).is_some_and(|at| at.elapsed() < LOGGED_EVERY) {
            continue;
        }
        logged.insert(subject, Instant::now());
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
    pub(super) fn is_on(&self) -> bool {
        self.off.is_none()
    }

    /// The shared policy, if there is one.
    pub(super) fn stored(&self) -> Option<&Value> {
        self.documents.as_ref().and_then(Documents::policy)
    }

    /// Whether the time of the freeze that is ordered is over.
    pub(super) fn is_over(&self) -> bool {
        self.thaws_at.is_some_and(|at| at <= Instant::now())
    }

    /// The hash of the shared policy of this revision and stamp, if it was made.
    pub(super) fn hash_of(&self, revision: u64, stamp: &Stamp) -> Option<&Option<String>> {
        self.hashes.iter().find(|(at, by, _)| *at == revision && by == stamp).map(|(.., hash)| hash)
    }

    /// Gives a write a ticket.
    pub(super) fn order(&mut self, write: Write, whom: For) -> Order {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        while self.pending.len() >= PENDING {
            self.pending.pop_first();
        }
        self.pending.insert(ticket, (write.clone(), whom));
        Order { ticket, key: write.name.key(), write }
    }

    pub(super) fn status(&self) -> DocumentsStatus {
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

const _: () = assert!(LEAST_TOKEN == 16, "a text here names it");

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Millis = 3_600_000;

    #[test]
    fn a_freeze_lasts_as_long_as_was_said_whatever_other_clocks_say() {
        let now = model::date();
        for (ahead, kept, left) in [
            // The writer's clock, hours ago or in an hour, does not matter to who hears of it now.
            (-9 * HOUR, None, 2 * HOUR),
            (HOUR, None, 2 * HOUR),
            // After a restart the own clock goes on, for this freeze only.
            (-9 * HOUR, Some(Heard { revision: 1, at: now - HOUR }), HOUR),
            (0, Some(Heard { revision: 1, at: now - 3 * HOUR }), 0),
            (0, Some(Heard { revision: 1, at: now + HOUR }), 2 * HOUR),
            (0, Some(Heard { revision: 2, at: now - 3 * HOUR }), 2 * HOUR),
        ] {
            let mut documents = Documents::new(b"open sesame 1234", "ns").unwrap();
            documents.take(Name::Orders, None);
            let when = now + ahead;
            let orders = OrdersContent { freeze: Some(Freeze { until: Some(when + 2 * HOUR) }) };
            let write = documents.set_orders(orders, &Stamp { when, ..Stamp::default() }, None).unwrap();
            documents.take(Name::Orders, Some(&Row { version: write.version, value: write.value }));
            let before = Instant::now();
            let ends = thaws_at(&documents, heard(&documents, kept, now), now).unwrap();
            let span = |left: Millis| Duration::from_millis(left as u64);
            assert!(ends >= before + span(left) && ends <= Instant::now() + span(left), "{ahead}, {kept:?}");
        }
    }
}
