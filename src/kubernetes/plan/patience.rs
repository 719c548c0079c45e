//! How fast writes go out, and which ones are put off when the API server refuses or does not answer.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::schedule::Schedule;
use crate::kubernetes::{
    failure::Failure,
    objects::{ObjectKey, ObjectKind},
    pace::{Backoff, Bucket, Jitter},
};

/// Of so many writes one is of the least urgent.
const TURNS: usize = 4;

/// Rate, pauses and barred kinds. A failure of one object is no reason to put off others: that takes the same failure of a
/// second object, with no success between the two.
#[derive(Debug)]
pub(super) struct Patience {
    bucket: Bucket,
    turn: usize,
    pause: Backoff,
    paused_until: Instant,
    /// The last write that had no answer, since one had.
    unanswered: Option<ObjectKey>,
    bars: HashMap<ObjectKind, Bar>,
    /// The last object that was refused as if all of its kind were, since one of these was taken.
    suspects: HashMap<ObjectKind, ObjectKey>,
    jitter: Jitter,
}

/// No object of a kind can be written, and one is tried now and then.
#[derive(Debug)]
pub(super) struct Bar {
    pub(super) failure: Failure,
    backoff: Backoff,
    until: Instant,
    /// The object that was tried last, or is being tried.
    last: ObjectKey,
    probing: bool,
}

impl Bar {
    pub(super) fn attempts(&self) -> u32 {
        self.backoff.attempts
    }
}

impl Patience {
    pub(super) fn new(rate: usize, now: Instant, jitter: Jitter) -> Self {
        Self {
            bucket: Bucket::new(rate, now),
            turn: 1,
            pause: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
            paused_until: now,
            unanswered: None,
            bars: HashMap::new(),
            suspects: HashMap::new(),
            jitter,
        }
    }

    pub(super) fn jitter(&mut self) -> &mut Jitter {
        &mut self.jitter
    }

    pub(super) fn bar(&self, kind: ObjectKind) -> Option<&Bar> {
        self.bars.get(&kind)
    }

    /// The most urgent of what is ready, and the least urgent at every [`TURNS`]th turn, so that there is always an end to
    /// its wait. Of a barred kind another object is tried each time.
    pub(super) fn pick<'a>(&'a self, schedule: &'a Schedule, now: Instant) -> Option<ObjectKey> {
        let allowed = |key: &'a ObjectKey| match self.bars.get(&key.kind) {
            None => Some(key),
            Some(bar) if bar.probing || now < bar.until => None,
            Some(bar) => schedule.ready_after(key.kind, &bar.last),
        };
        let mut ready = schedule.next_ready();
        let picked = match self.turn % TURNS {
            0 => ready.rev().find_map(allowed),
            _ => ready.find_map(allowed),
        };
        picked.cloned()
    }

    /// When [`Patience::pick`] may find what it does not find now.
    pub(super) fn next_probe(&self, schedule: &Schedule) -> Option<Instant> {
        let due = self.bars.iter().filter(|(kind, bar)| !bar.probing && schedule.ready_of(**kind).next().is_some());
        due.map(|(_, bar)| bar.until).min()
    }

    /// Lets a write of this object go out, or says when it may.
    pub(super) fn admit(&mut self, key: &ObjectKey, now: Instant) -> Result<(), Instant> {
        if now < self.paused_until {
            return Err(self.paused_until);
        }
        self.bucket.take(now)?;
        self.turn = self.turn.wrapping_add(1);
        if let Some(bar) = self.bars.get_mut(&key.kind) {
            bar.probing = true;
            bar.last = key.clone();
        }
        Ok(())
    }

    /// A write of this object has ended, in whatever way.
    pub(super) fn ended(&mut self, key: &ObjectKey) {
        if let Some(bar) = self.bars.get_mut(&key.kind).filter(|bar| bar.last == *key) {
            bar.probing = false;
        }
    }

    /// The API server took a write.
    pub(super) fn taken(&mut self, kind: ObjectKind) {
        self.pause.reset();
        self.answered(kind);
    }

    /// The API server judged one object, so it is there, and judges this kind.
    pub(super) fn answered(&mut self, kind: ObjectKind) {
        self.unanswered = None;
        self.suspects.remove(&kind);
        self.bars.remove(&kind);
    }

    /// This object had no answer; true: nor had another one, so that everybody pauses.
    pub(super) fn unanswered(&mut self, key: &ObjectKey) -> bool {
        self.unanswered.replace(key.clone()).is_some_and(|last| last != *key)
    }

    /// Puts all writes off; returns for how long, unless they are put off already: many that were under way fail together.
    pub(super) fn pause(&mut self, at_least: Option<Duration>, now: Instant) -> Option<Duration> {
        let begins = now >= self.paused_until;
        if begins {
            self.paused_until = now + self.pause.next(&mut self.jitter);
        }
        if let Some(at_least) = at_least {
            self.paused_until = self.paused_until.max(now + at_least);
        }
        begins.then(|| self.paused_until - now)
    }

    /// This object was refused as if all of its kind were; true: so was another one, and the kind is barred from now on.
    pub(super) fn kind_refused(&mut self, key: &ObjectKey, failure: &Failure, now: Instant) -> bool {
        if let Some(bar) = self.bars.get_mut(&key.kind) {
            // Writes that were under way together count once.
            if now >= bar.until {
                bar.until = now + bar.backoff.next(&mut self.jitter);
                bar.failure = failure.clone();
            }
            if !bar.probing {
                bar.last = key.clone();
            }
            return false;
        }
        let alone = self.suspects.insert(key.kind, key.clone()).is_none_or(|last| last == *key);
        if alone {
            return false;
        }
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
        let until = now + backoff.next(&mut self.jitter);
        let bar = Bar { failure: failure.clone(), backoff, until, last: key.clone(), probing: false };
        self.bars.insert(key.kind, bar);
        true
    }
}
