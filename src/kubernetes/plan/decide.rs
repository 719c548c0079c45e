//! Decides what is to be done about an object, and when.

use std::sync::Arc;

use tokio::time::Instant;

use super::{ObjectEntry, Plan, Standing, WriteRequest, entry::Desired};
use crate::kubernetes::{
    objects::{ObjectKey, ObjectKind, Observed, OwnObject},
    report::Problem,
};

/// The next step for an object.
#[derive(Debug)]
pub(super) enum Action {
    /// The object is as it should be.
    Nothing,
    /// The object waits: for another object of the group, for the list of its kind, or for the watch.
    Wait(Option<u128>),
    /// The name is another's.
    Foreign,
    /// Nothing while the breaker holds.
    Withhold,
    Write(WriteRequest),
}

impl Plan {
    pub(super) fn action(&self, key: &ObjectKey) -> Action {
        let Some(entry) = self.objects.get(key) else { return Action::Nothing };
        let is_listed = |kind| self.listed.contains(&kind);
        // A WorkloadEntry is judged by the ServiceEntries that select it.
        let is_known =
            is_listed(key.kind) && (key.kind != ObjectKind::WorkloadEntry || is_listed(ObjectKind::ServiceEntry));
        if !is_known || !(self.judged || self.orders.purging) {
            return Action::Wait(None);
        }
        match (entry.desired.as_ref().filter(|_| !self.orders.purging), &entry.observed) {
            (None, None | Some(Observed::Foreign(_))) => Action::Nothing,
            (None, Some(Observed::Own(own))) if own.deleting => Action::Nothing,
            (None, Some(Observed::Own(own))) => self.removal(key.kind, own),
            (Some(_), Some(Observed::Foreign(_))) => Action::Foreign,
            (Some(desired), None) => match desired.fingerprint.group {
                Some(group) if desired.fingerprint.selects && self.groups.lacks(group) => Action::Wait(Some(group)),
                _ => Action::Write(WriteRequest::Create),
            },
            (Some(_), Some(Observed::Own(own))) if own.deleting => Action::Wait(None),
            (Some(desired), Some(Observed::Own(own))) => self.update(entry, desired, own),
        }
    }

    fn removal(&self, kind: ObjectKind, own: &OwnObject) -> Action {
        match own.fingerprint.group {
            _ if self.holds() => Action::Withhold,
            Some(group) if kind == ObjectKind::WorkloadEntry && self.is_let_go(group) => Action::Wait(Some(group)),
            _ => Action::Write(WriteRequest::Delete(own.state.clone())),
        }
    }

    fn update(&self, entry: &ObjectEntry, desired: &Desired, own: &OwnObject) -> Action {
        let (after, before) = (&desired.fingerprint, &own.fingerprint);
        let is_adjusted = || entry.adjusted.as_deref() == Some(&(after.digest, before.digest));
        if after.digest == before.digest || is_adjusted() {
            return Action::Nothing;
        }
        let goes_on_selecting = before.selects && after.selects && before.group == after.group;
        if let Some(group) =
            after.group.filter(|group| after.selects && !goes_on_selecting && self.groups.lacks(*group))
        {
            return Action::Wait(Some(group));
        }
        if self.holds() && !goes_on_selecting && self.endpoints(after) < self.endpoints(before) {
            let is_inline = !before.selects && !after.selects;
            let is_new = |endpoint| before.endpoints.binary_search(endpoint).is_err();
            return match is_inline && after.endpoints.iter().any(is_new) {
                true => Action::Write(WriteRequest::Unite(own.state.clone())),
                false => Action::Withhold,
            };
        }
        Action::Write(WriteRequest::Update(own.state.clone()))
    }

    /// Whether a ServiceEntry in the API selects the group, or may come to, and is not to do so: it goes first.
    fn is_let_go(&self, group: u128) -> bool {
        self.groups.services(group).any(|key| {
            let Some(entry) = self.objects.get(key) else { return false };
            let desired = entry.desired.as_ref().filter(|_| !self.orders.purging);
            let stays = desired.is_some_and(|d| d.fingerprint.selects && d.fingerprint.group == Some(group));
            !stays && entry.selected().contains(&Some(group))
        })
    }

    /// Looks at an object and puts it where it belongs.
    pub(super) fn decide(&mut self, key: &ObjectKey, now: Instant) {
        #[cfg(test)]
        {
            self.decisions += 1;
        }
        let Some(entry) = self.objects.get(key) else { return };
        if entry.in_flight.is_some() {
            // The answer will have it looked at again.
            return;
        }
        let rests_until = entry.rests_until().filter(|until| now < *until);
        let was_refused = entry.refusal.is_some();
        let fights = entry.written.as_ref().map_or(0, |written| written.backoff.attempts);
        let place = match self.action(key) {
            Action::Nothing => {
                self.drop_manifest(key);
                self.problems.remove(key);
                if was_refused {
                    self.change(key, |entry| entry.refusal = None);
                }
                Standing::Idle
            }
            Action::Wait(group) => Standing::Waiting(group),
            Action::Foreign => {
                self.drop_manifest(key);
                let message = "an object with this name is another's, so it is left alone";
                self.problem(key, Problem { code: None, message: message.into(), attempts: 0 }, now);
                Standing::Idle
            }
            Action::Withhold => Standing::Withheld,
            Action::Write(_) => match rests_until {
                Some(until) => {
                    if fights > 2 {
                        let message = "another writer changes it again and again".into();
                        self.problem(key, Problem { code: None, message, attempts: fights }, now);
                    }
                    Standing::Later(until)
                }
                None => {
                    self.note_barred(key);
                    Standing::Ready(self.priority(key))
                }
            },
        };
        self.move_to(key, place);
        if self.objects.get(key).is_some_and(ObjectEntry::is_empty) {
            self.move_to(key, Standing::Idle);
            self.objects.remove(key);
        }
    }

    /// Names the failure of a barred kind as the problem of an object that is to be written.
    pub(super) fn note_barred(&mut self, key: &ObjectKey) {
        if let Some(bar) = self.patience.bar(key.kind) {
            let (code, message) = (bar.failure.code(), Arc::clone(bar.failure.message()));
            self.problems.insert(key.clone(), Problem { code, message, attempts: bar.attempts() });
        }
    }

    /// Removals of endpoints are first, then other changes, then what is new or of no use any more.
    fn priority(&self, key: &ObjectKey) -> usize {
        let Some((entry, own)) = self.objects.get(key).and_then(|entry| Some((entry, entry.own()?))) else { return 2 };
        let desired = entry.desired.as_ref().filter(|_| !self.orders.purging).map(|desired| &desired.fingerprint);
        let kept = desired.map_or(&[][..], |desired| &desired.endpoints);
        let moves_out = desired.is_some_and(|desired| desired.selects);
        let removes =
            !moves_out && own.fingerprint.endpoints.iter().any(|endpoint| kept.binary_search(endpoint).is_err());
        if removes { 0 } else { 1 + usize::from(desired.is_none()) }
    }

    pub(super) fn problem(&mut self, key: &ObjectKey, problem: Problem, now: Instant) {
        let known = self.problems.insert(key.clone(), problem.clone());
        if known.is_none_or(|known| known.message != problem.message) {
            self.notices.problem(now, key, &problem);
        }
    }
}
