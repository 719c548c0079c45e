//! Requests: begun as room, rate and lease allow; what came of them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{task, time::Instant};

use super::{Bar, Basis, PEACE, Source, Step, Term, Trouble, Written, set};
use crate::{
    kubernetes::{
        api::{Failure, Remedy},
        flight::{self, Attempt, Landing, Outcome},
        objects::{Content, Key, Seen, wanted},
        pace::Backoff,
        report::Problem,
    },
    model,
};

impl Term {
    /// Begins as many writes as may be begun now.
    pub(super) fn launch(&mut self) {
        self.wake = None;
        let now = Instant::now();
        while self.flying.len() < self.given.settings.concurrency {
            if self.orders.frozen || now >= *self.given.lease.borrow() {
                return;
            }
            let Some(key) = self.next(now) else { break };
            if now < self.paused_until {
                self.wake = Some(self.paused_until);
                return;
            }
            if let Err(at) = self.bucket.take(now) {
                self.wake = Some(at);
                return;
            }
            self.ready.values_mut().for_each(|keys| {
                keys.remove(&key);
            });
            self.fly(key);
        }
        let deadline = self.breaker.deadline().map(|at| {
            let millis = at.saturating_sub(model::now()).max(0);
            now + Duration::from_millis(millis as u64)
        });
        let bars = self.bars.values().filter(|bar| !bar.probing).map(|bar| bar.until).min();
        let later = self.later.first().map(|(at, _)| *at);
        let progress = (self.pending() > 0).then_some(self.progress);
        self.wake = [deadline, bars.filter(|_| self.pending() > 0), later, progress].into_iter().flatten().min();
    }

    /// The most urgent of what is ready. Of a kind that does not go one is tried now and then.
    fn next(&self, now: Instant) -> Option<Key> {
        let goes = |kind| self.bars.get(kind).is_none_or(|bar| !bar.probing && now >= bar.until);
        self.ready.iter().filter(|((_, kind), _)| goes(kind)).find_map(|(_, keys)| keys.first().cloned())
    }

    fn fly(&mut self, key: Key) {
        let basis = self.basis(&key);
        let api = Arc::clone(&self.given.api);
        let owner = Arc::clone(&self.given.owner);
        let attempt = |step| Attempt { key: key.clone(), basis: basis.clone(), step };
        let flight = match self.step(&key) {
            Step::Delete(uid, version) => attempt(flight::Step::Delete(uid, version)),
            Step::Apply(over) => {
                let Some(content) = self.content(&key) else { return };
                let over = over.as_ref().map(|(uid, version)| (&**uid, &**version));
                let body = content.apply(&api.version, &api.namespace, &key, over);
                attempt(flight::Step::Apply { body, over_known: over.is_some() })
            }
            Step::Unite(uid, version) => {
                let Some(content) = self.content(&key) else { return };
                attempt(flight::Step::Unite { content, uid, version })
            }
            // What it was to be written before was found out since.
            _ => return self.look(&key),
        };
        if let Some(bar) = self.bars.get_mut(&key.kind) {
            bar.probing = true;
        }
        self.flying.insert(key.clone(), false);
        let task = self.flights.spawn(flight.fly(api, owner));
        self.ids.insert(task.id(), key);
    }

    fn content(&self, key: &Key) -> Option<Content> {
        let want = self.want.get(key)?;
        match &want.source {
            Source::Content(content) => Some((**content).clone()),
            Source::Resource(name) => {
                let view = set(&self.view, key.kind);
                let item = view.find(name)?;
                let objects = wanted(key.kind, item.framed(), &self.given.owner, want.form.selects)?;
                objects.into_iter().next().map(|object| object.content)
            }
        }
    }

    pub(super) fn land(&mut self, landed: Result<(task::Id, Landing), task::JoinError>) {
        let id = match &landed {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(key) = self.ids.remove(&id) else { return };
        self.flying.remove(&key);
        if let Some(bar) = self.bars.get_mut(&key.kind) {
            bar.probing = false;
        }
        let mut touched: BTreeSet<Key> = [key.clone()].into();
        match landed {
            Ok((_, Landing { attempt, outcome: Ok(outcome) })) => touched.extend(self.succeeded(attempt, outcome)),
            Ok((_, Landing { attempt, outcome: Err(failure) })) => self.failed(&attempt, failure),
            Err(_) => {
                let failure = Failure::Unreachable("a bug; the log says where".into());
                let basis = self.basis(&key);
                self.shelve(&key, basis, &failure, Duration::from_secs(60), true);
            }
        }
        self.mark(touched);
    }

    fn succeeded(&mut self, attempt: Attempt, outcome: Outcome) -> BTreeSet<Key> {
        let now = Instant::now();
        let key = attempt.key;
        self.pause.reset();
        self.troubles.remove(&key);
        let mut touched = BTreeSet::new();
        self.bars.remove(&key.kind);
        self.solved(&key);
        self.writes += 1;
        match outcome {
            Outcome::Deleted => {
                self.given.report.lock().deletes += 1;
                self.written.remove(&key);
                if let Some(Seen::Ours { deleting, .. }) = self.seen.get_mut(&key) {
                    // Until the watch says that it is gone.
                    *deleting = true;
                }
            }
            Outcome::Foreign => touched.extend(self.see(&key, Seen::Foreign, false)),
            // Not what is wanted, so it is looked at again when the breaker lets go.
            Outcome::Applied(seen) if matches!(attempt.step, flight::Step::Unite { .. }) => {
                self.given.report.lock().applies += 1;
                touched.extend(self.see(&key, seen, false));
            }
            Outcome::Applied(seen) => {
                self.given.report.lock().applies += 1;
                let digest = attempt.basis.0.unwrap_or_default();
                match &seen {
                    Seen::Ours { form, .. } if form.digest != digest => {
                        if self.adjusted.insert(key.clone(), (digest, form.digest)).is_none() {
                            tracing::info!(object = %key, "the API server keeps it in another form than it was written in");
                        }
                    }
                    _ => drop(self.adjusted.remove(&key)),
                }
                // Written again without being wanted otherwise: another writer has changed it.
                let again = self.written.remove(&key).filter(|written| written.digest == digest);
                let mut backoff = Backoff::new(Duration::from_secs(1), PEACE);
                let mut rests_until = now;
                if let Some(written) = again.filter(|written| written.at.elapsed() < PEACE) {
                    backoff = written.backoff;
                    rests_until += backoff.next();
                }
                self.written.insert(key.clone(), Written { digest, backoff, at: now, rests_until });
                touched.extend(self.see(&key, seen, false));
            }
        }
        touched
    }

    fn failed(&mut self, attempt: &Attempt, failure: Failure) {
        let now = Instant::now();
        let key = &attempt.key;
        let mut report = self.given.report.lock();
        if failure.code().is_some() {
            report.refused += 1;
        }
        let remedy = failure.remedy();
        match remedy {
            Remedy::Pause => report.pauses += 1,
            Remedy::Refresh => report.conflicts += 1,
            Remedy::Bar | Remedy::Shelve => {}
        }
        drop(report);
        tracing::debug!(object = %key, %failure, ?remedy, "a write failed");
        if matches!(remedy, Remedy::Refresh | Remedy::Shelve) {
            // It is this object, not the kind.
            self.bars.remove(&key.kind);
        }
        match remedy {
            Remedy::Pause => {
                // Many that were under way fail together.
                if now >= self.paused_until {
                    let wait = self.pause.next();
                    self.paused_until = now + wait;
                    tracing::warn!(%failure, millis = wait.as_millis() as u64, "writes are put off");
                }
                if let Some(wait) = failure.retry_after() {
                    self.paused_until = self.paused_until.max(now + wait);
                }
            }
            Remedy::Refresh => self.shelve(key, attempt.basis.clone(), &failure, Duration::from_millis(200), false),
            Remedy::Shelve => self.shelve(key, attempt.basis.clone(), &failure, Duration::from_secs(10), true),
            // Those that were under way together count once.
            Remedy::Bar if self.bars.get(&key.kind).is_some_and(|bar| now < bar.until) => {}
            Remedy::Bar => {
                let known = self.bars.remove(&key.kind);
                if known.is_none() {
                    tracing::error!(kind = key.kind.name(), %failure, "none of these objects can be written");
                }
                let new = || Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
                let mut backoff = known.map_or_else(new, |bar| bar.backoff);
                let until = now + backoff.next();
                self.bars.insert(key.kind, Bar { failure, backoff, until, probing: false });
                let ready = self.ready.iter().filter(|((_, kind), _)| *kind == key.kind);
                let ready: Vec<Key> = ready.flat_map(|(_, keys)| keys.iter().cloned()).collect();
                self.mark(ready);
            }
        }
    }

    fn shelve(&mut self, key: &Key, basis: Basis, failure: &Failure, first: Duration, shelved: bool) {
        let new = || Backoff::new(first, Duration::from_secs(600));
        let known = self.troubles.remove(key).filter(|known| known.basis == basis && known.shelved == shelved);
        let mut backoff = known.map_or_else(new, |known| known.backoff);
        let until = Instant::now() + backoff.next();
        let attempts = backoff.attempts;
        self.troubles.insert(key.clone(), Trouble { basis, backoff, until, shelved });
        // A conflict is usual, and mostly over with the next event.
        if shelved || attempts > 3 {
            let (code, message) = (failure.code(), Arc::clone(failure.message()));
            self.problem(key, Problem { code, message, attempts });
        }
    }
}
