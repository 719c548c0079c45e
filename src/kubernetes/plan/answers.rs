//! Takes the answers to writes.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    LIST, Notice, Outcome, Plan, Standing, WriteRequest,
    entry::{Blame, Doubt, InFlight, LastWrite, Refusal},
};
use crate::kubernetes::{
    failure::{Failure, Remedy},
    objects::{ObjectKey, ObjectKind, Observed, is_older},
    pace::Backoff,
    report::Problem,
};

/// A fight with another writer is forgotten after this.
const PEACE: Duration = Duration::from_secs(600);
/// A conflict or a lost answer is usual, and mostly over with the next attempt; from this many on it is told.
const USUAL: u32 = 3;

impl Plan {
    /// A write that [`Plan::next`] gave out has ended.
    pub(in crate::kubernetes) fn answered(&mut self, now: Instant, key: &ObjectKey, answer: Result<Outcome, Failure>) {
        let Some(in_flight) = self.change(key, |entry| entry.in_flight.take()) else { return };
        self.move_to(key, Standing::Idle);
        self.patience.ended(key);
        match answer {
            Ok(outcome) => self.succeeded(now, key, &in_flight, outcome),
            Err(failure) => self.failed(now, key, &in_flight, &failure),
        }
        self.settle(now);
    }

    fn succeeded(&mut self, now: Instant, key: &ObjectKey, in_flight: &InFlight, outcome: Outcome) {
        self.patience.taken(key.kind);
        self.problems.remove(key);
        let doubt = self.change(key, |entry| {
            entry.refusal = None;
            entry.doubt.take()
        });
        if let Some(doubt) = doubt {
            self.doubts.remove(&(doubt.until, key.clone()));
        }
        match outcome {
            Outcome::Deleted => {
                self.counts.deletes += 1;
                while self.deleted.front().is_some_and(|(at, ..)| now >= *at + LIST) {
                    self.deleted.pop_front();
                }
                if let Some(version) = &in_flight.basis.1 {
                    self.deleted.push_back((now, key.clone(), Arc::clone(version)));
                }
                self.change(key, |entry| {
                    entry.written = None;
                    if let Some(Observed::Own(own)) = &mut entry.observed
                        && Some(&own.state.version) == in_flight.basis.1.as_ref()
                    {
                        // Until the watch says that it is gone.
                        own.deleting = true;
                    }
                });
            }
            Outcome::Foreign(observed) => self.take_state(key, in_flight, observed),
            Outcome::Applied(observed) => {
                self.counts.applies += 1;
                // A union is not what is desired, and is looked at again when the breaker lets go.
                if !matches!(in_flight.request, WriteRequest::Unite(_)) {
                    self.note_written(now, key, in_flight.basis.0.unwrap_or_default(), &observed);
                }
                self.take_state(key, in_flight, observed);
            }
        }
    }

    /// Takes the state that an answer shows, unless the watch has shown a newer one.
    fn take_state(&mut self, key: &ObjectKey, in_flight: &InFlight, observed: Observed) {
        let is_gone = in_flight.gone.as_ref().is_some_and(|gone| is_older(observed.version(), gone));
        if !is_gone && !self.knows_newer(key, &observed, true) {
            self.set_observed(key, Some(observed));
        }
    }

    /// Remembers what was written, and what the API server made of it.
    fn note_written(&mut self, now: Instant, key: &ObjectKey, digest: u128, observed: &Observed) {
        let made = observed.own().map(|own| own.fingerprint.digest).filter(|made| *made != digest);
        let jitter = self.patience.jitter();
        let Some(entry) = self.objects.get_mut(key) else { return };
        let adjusted = made.map(|made| Box::new((digest, made)));
        let is_new = std::mem::replace(&mut entry.adjusted, adjusted).is_none() && made.is_some();
        // Written again without being desired otherwise: another writer has changed it.
        let again = entry.written.take().filter(|written| written.digest == digest && now < written.at + PEACE);
        let mut backoff = Backoff::new(Duration::from_secs(1), PEACE);
        let mut rests_until = now;
        if let Some(written) = again {
            backoff = written.backoff;
            rests_until += backoff.next(jitter);
        }
        entry.written = Some(Box::new(LastWrite { digest, at: now, backoff, rests_until }));
        if is_new {
            self.notices.adjusted(now, key);
        }
    }

    fn failed(&mut self, now: Instant, key: &ObjectKey, in_flight: &InFlight, failure: &Failure) {
        let remedy = failure.remedy(key.kind);
        self.counts.refused += u64::from(failure.code().is_some());
        self.notices.failed(now, key, failure, remedy);
        if failure.leaves_doubt() {
            self.doubt(now, key, in_flight);
        }
        let secs = |first, most| Backoff::new(Duration::from_millis(first), Duration::from_secs(most));
        match remedy {
            Remedy::Pause => self.pause(now, failure),
            Remedy::Suspect => {
                self.put_off(now, key, in_flight, failure, Blame::Nobody, secs(500, 60));
                if self.patience.unanswered(key) {
                    self.pause(now, failure);
                }
            }
            Remedy::Refresh => {
                self.counts.conflicts += 1;
                self.patience.answered(key.kind);
                self.put_off(now, key, in_flight, failure, Blame::Nobody, secs(200, 600));
            }
            Remedy::Shelve => {
                self.patience.answered(key.kind);
                self.put_off(now, key, in_flight, failure, Blame::Object, secs(10_000, 600));
            }
            Remedy::Bar => {
                if self.patience.kind_refused(key, failure, now) {
                    self.bar(key.kind, failure);
                }
                let is_barred = self.patience.bar(key.kind).is_some();
                let blame = if is_barred { Blame::Kind } else { Blame::Nobody };
                self.put_off(now, key, in_flight, failure, blame, secs(2_000, 300));
            }
        }
    }

    /// The outcome of a write is unknown.
    fn doubt(&mut self, now: Instant, key: &ObjectKey, in_flight: &InFlight) {
        let (before, until) = self.change(key, |entry| {
            let doubt = Doubt::after(entry.doubt.as_deref(), in_flight, now);
            let until = doubt.until;
            (entry.doubt.replace(Box::new(doubt)).map(|doubt| doubt.until), until)
        });
        if let Some(before) = before {
            self.doubts.remove(&(before, key.clone()));
        }
        self.doubts.insert((until, key.clone()));
    }

    fn pause(&mut self, now: Instant, failure: &Failure) {
        if let Some(wait) = self.patience.pause(failure.retry_after(), now) {
            self.counts.pauses += 1;
            self.notices.paused(now, failure, wait);
        }
    }

    fn bar(&mut self, kind: ObjectKind, failure: &Failure) {
        self.notices.give(Notice::Barred { kind, failure: failure.clone() });
        let ready: Vec<ObjectKey> = self.schedule.ready_of(kind).cloned().collect();
        ready.iter().for_each(|key| self.note_barred(key));
    }

    /// Lets an object rest whose write failed; another content or state of it is tried at once.
    fn put_off(
        &mut self,
        now: Instant,
        key: &ObjectKey,
        in_flight: &InFlight,
        failure: &Failure,
        blame: Blame,
        backoff: Backoff,
    ) {
        let known = self.objects.get_mut(key).and_then(|entry| entry.refusal.take());
        let mut refusal = Refusal::after(known, in_flight.basis.clone(), blame, backoff, now);
        let rest = refusal.backoff.next(self.patience.jitter());
        refusal.until = now + rest.max(failure.retry_after().unwrap_or_default());
        let (excused, attempts) = (refusal.excused, refusal.backoff.attempts);
        self.change(key, |entry| entry.refusal = Some(Box::new(refusal)));
        if excused {
            self.drop_manifest(key);
        }
        let is_usual = blame == Blame::Nobody && !matches!(failure.remedy(key.kind), Remedy::Bar);
        if !is_usual || attempts > USUAL {
            let (code, message) = (failure.code(), Arc::clone(failure.message()));
            self.problem(key, Problem { code, message, attempts }, now);
        }
    }
}
