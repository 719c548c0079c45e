//! One document: what is held of it, what its row had last, and what may be written over it.

use std::collections::BTreeMap;

use crate::{
    documents::{
        Name, Outcome, Row, Rule, Shown, Write,
        content::Content,
        envelope::{self, Opened, Reason, Refusal, Stamp},
    },
    model::Millis,
    visibility::keeper,
};

/// A document that was accepted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held<C> {
    pub(super) revision: u64,
    pub(super) stamp: Stamp,
    pub(super) content: C,
    /// The row.
    text: String,
}

/// Everything that is known of one document.
#[derive(Debug)]
pub(super) struct Slot<C> {
    name: Name,
    held: Option<Held<C>>,
    /// The highest revision of any row that verified.
    highest: u64,
    /// The highest revision that any row said it had.
    claimed: u64,
    /// The version of the row when it was read last, 0 where there was none; `None`: the store was not reached yet, or not
    /// the last time.
    seen: Option<i64>,
    /// Why the row is refused that was read last.
    refused: Option<Refusal>,
    /// How many rows were refused.
    refusals: BTreeMap<Reason, u64>,
}

impl<C> Slot<C> {
    /// Nothing is known yet of the document of this name.
    pub(super) fn new(name: Name) -> Self {
        Self { name, held: None, highest: 0, claimed: 0, seen: None, refused: None, refusals: BTreeMap::new() }
    }
}

/// The outcome of a row that was read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Took {
    /// Another document is held than before.
    pub(super) changed: bool,
    /// The row is refused, and was not, or for another reason.
    pub(super) newly_refused: bool,
}

/// Why a document is not even tried to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotWritten {
    /// The store was not reached the last time, or not yet.
    Unreachable,
    /// The document is another than the writer saw.
    Conflict,
    /// The version of the row is out of range, so nothing can be written over it.
    Version,
    /// A newer release wrote the present document, and this one cannot read it.
    Newer,
    /// The document would have more bytes than a row may have.
    TooLarge,
    /// The document is none, for the reason that is said.
    Invalid(String),
}

/// The fate of a document's rows, whatever it says.
pub(super) trait Rows {
    /// The highest revision that was there; 0: there was none.
    fn highest(&self) -> u64;

    /// The row that is held, for the next start.
    fn text(&self) -> Option<&str>;

    /// Why the row is refused that was read last.
    fn refused(&self) -> Option<&Refusal>;

    /// For the status.
    fn shown(&self) -> Shown;

    /// Takes what was kept over a restart; the store was not read yet.
    fn restore(&mut self, rule: &Rule, highest: u64, text: Option<&str>) -> Took;

    /// Takes a row as it was read; `None`: there is none, which changes nothing but that it can be written again.
    fn take(&mut self, rule: &Rule, row: Option<&Row>) -> Took;

    /// The store could not be read.
    fn lose(&mut self);

    /// Puts the document that is held back where its row has vanished, or an older one was put in its place. A row that does not
    /// verify is left to the operator: it may be right for servers with another token. So is another one of the same revision,
    /// which other servers may hold: they would take turns, unless there is a rule which of the two counts.
    fn put_back(&self, now: Millis) -> Option<Write>;

    /// The outcome of a write: the store says whether it took it, which it denies for a conflict and for a failure alike, and what
    /// there is now; `None`: it cannot be read.
    fn written(&mut self, rule: &Rule, write: &Write, stored: bool, now: Option<Option<&Row>>) -> (Outcome, Took);
}

impl<C: Content> Rows for Slot<C> {
    fn highest(&self) -> u64 {
        self.highest
    }

    fn text(&self) -> Option<&str> {
        self.held.as_ref().map(|held| &*held.text)
    }

    fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref()
    }

    fn shown(&self) -> Shown {
        Shown {
            revision: self.held.as_ref().map_or(0, |held| held.revision),
            stamp: self.held.as_ref().map(|held| held.stamp.clone()),
            refused: self.refused.clone(),
            refusals: self.refusals.clone(),
        }
    }

    fn restore(&mut self, rule: &Rule, highest: u64, text: Option<&str>) -> Took {
        let took = text.map(|text| self.judge(rule, text)).unwrap_or_default();
        // A replay stays one, also where what is kept cannot be used any more. What is kept is not signed: a number of it must not
        // keep all that comes from counting.
        let highest = Some(highest).filter(|highest| *highest <= 2 * envelope::MOST_CLAIMED).unwrap_or_default();
        self.highest = self.highest.max(highest);
        took
    }

    fn take(&mut self, rule: &Rule, row: Option<&Row>) -> Took {
        let version = row.map_or(0, |row| row.version);
        let is_same = self.seen == Some(version);
        self.seen = Some(version);
        let before = self.refused.take();
        let took = match row {
            Some(row) if !(1..i64::MAX).contains(&row.version) => {
                let what = format!("its version is {version}, over which no row can be written; remove the row");
                self.refused = Some(Refusal::new(Reason::Version, what));
                Took::default()
            }
            Some(row) => self.judge(rule, &row.value),
            None => {
                self.refused = (!self.holds_newest()).then(|| {
                    let what = format!("the document of revision {} has vanished; write it anew", self.highest);
                    Refusal::new(Reason::Gone, what)
                });
                Took::default()
            }
        };
        if let Some(refused) = &self.refused
            && !(is_same && before.as_ref() == Some(refused))
        {
            *self.refusals.entry(refused.reason).or_default() += 1;
        }
        let newly_refused = self.refused.as_ref().map(|it| it.reason) != before.map(|it| it.reason);
        Took { newly_refused: newly_refused && self.refused.is_some(), ..took }
    }

    fn lose(&mut self) {
        self.seen = None;
    }

    fn put_back(&self, now: Millis) -> Option<Write> {
        let gone = match &self.refused {
            None => self.seen == Some(0),
            Some(refused) => refused.reason == Reason::Older && (C::SETTLES || refused.revision < self.highest),
        };
        let (held, seen) = (self.held.as_ref()?, self.seen?);
        (gone && self.holds_newest()).then(|| self.write(now, seen, held.text.clone()))
    }

    fn written(&mut self, rule: &Rule, write: &Write, stored: bool, now: Option<Option<&Row>>) -> (Outcome, Took) {
        let Some(row) = now else {
            if !stored {
                self.lose();
                return (Outcome::Unreachable, Took::default());
            }
            let row = Row { version: write.version, value: write.value.clone() };
            return (Outcome::Done, self.take(rule, Some(&row)));
        };
        let is_ours = row.is_some_and(|row| row.value == write.value);
        let took = self.take(rule, row);
        (if is_ours || stored { Outcome::Done } else { Outcome::Conflict }, took)
    }
}

impl<C: Content> Slot<C> {
    pub(super) fn held(&self) -> Option<&Held<C>> {
        self.held.as_ref()
    }

    /// Another number whenever another document is held.
    pub(super) fn held_as(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.revision) << 32 ^ self.seen.unwrap_or_default() as u64
    }

    /// Whether there is a row, and it is refused.
    pub(super) fn has_refused_row(&self) -> bool {
        self.refused.as_ref().is_some_and(|refused| refused.reason != Reason::Gone)
    }

    /// The row that is refused, if there is one.
    pub(super) fn refused_row(&self) -> Option<keeper::Refused> {
        let refused = self.refused.as_ref().filter(|_| self.has_refused_row())?;
        let damage = [Reason::Malformed, Reason::Unsigned, Reason::Signature, Reason::Name];
        Some(keeper::Refused { version: self.seen.unwrap_or_default(), is_damaged: damage.contains(&refused.reason) })
    }

    /// Whether no revision is known that is newer than what is held.
    fn holds_newest(&self) -> bool {
        self.held.as_ref().map_or(0, |held| held.revision) == self.highest
    }

    /// The write of a document that follows on the one that is held. `saw`: the revision that the writer knows.
    pub(super) fn propose(
        &self,
        rule: &Rule,
        mut content: C,
        stamp: &Stamp,
        saw: Option<u64>,
    ) -> Result<Write, NotWritten> {
        let seen = self.seen.ok_or(NotWritten::Unreachable)?;
        if self.refused.as_ref().is_some_and(|refused| refused.reason == Reason::Version) {
            return Err(NotWritten::Version);
        }
        // Who writes over what this release cannot read has to have seen that, and not what is in force here. Of what was there before
        // and cannot be read any more, as after a change of the token, nobody sees the revision.
        let newer = self.refused.as_ref().filter(|refused| refused.reason.is_newer_release());
        let is_present = |saw| match newer {
            Some(newer) => saw == newer.revision,
            None => saw == self.highest || saw == self.held.as_ref().map_or(0, |held| held.revision),
        };
        match saw {
            None if newer.is_some() => return Err(NotWritten::Newer),
            Some(saw) if !is_present(saw) => return Err(NotWritten::Conflict),
            _ => {}
        }
        content.check(&rule.namespace).map_err(NotWritten::Invalid)?;
        let revision = self.highest.max(self.claimed).saturating_add(1);
        loop {
            match envelope::seal(&rule.key, self.name, revision, stamp, &content) {
                Some(text) => return Ok(self.write(stamp.when, seen, text)),
                None if content.shrink() => {}
                None => return Err(NotWritten::TooLarge),
            }
        }
    }

    /// Versions are dates in the registry's own rows; a clock that is behind does not keep a row from being written.
    fn write(&self, now: Millis, seen: i64, value: String) -> Write {
        Write { name: self.name, expect: seen, version: now.max(seen.saturating_add(1)), value }
    }

    fn judge(&mut self, rule: &Rule, text: &str) -> Took {
        if self.text() == Some(text) && self.holds_newest() {
            return Took::default();
        }
        match self.read(rule, text) {
            Ok(held) => {
                let changed = self.held.as_ref() != Some(&held);
                self.held = Some(held);
                Took { changed, newly_refused: false }
            }
            Err(refusal) => {
                let revision = envelope::claimed(text);
                self.claimed = self.claimed.max(revision);
                self.refused = Some(Refusal { revision, ..refusal });
                Took::default()
            }
        }
    }

    fn read(&mut self, rule: &Rule, text: &str) -> Result<Held<C>, Refusal> {
        let Opened { revision, stamp, content } = envelope::open(&rule.key, self.name, text)?;
        if revision < self.highest {
            let what = format!("its revision is {revision}, and there was {}; write it anew", self.highest);
            return Err(Refusal::new(Reason::Older, what));
        }
        let yields = |held: &Held<C>| C::SETTLES && *text < *held.text;
        if self.held.as_ref().is_some_and(|held| held.revision == revision && held.text != text && !yields(held)) {
            let what = format!(
                "its revision is {revision}, as that of another document, which was there first; write it anew"
            );
            return Err(Refusal::new(Reason::Older, what));
        }
        self.highest = revision;
        let newer = |what: String| {
            Refusal::new(Reason::Content, format!("{what}; upgrade this session server, or write it anew"))
        };
        let content: C = serde_json::from_str(&content).map_err(|error| newer(error.to_string()))?;
        content.check(&rule.namespace).map_err(newer)?;
        Ok(Held { revision, stamp, content, text: text.to_owned() })
    }
}
