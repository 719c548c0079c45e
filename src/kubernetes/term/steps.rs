//! What is to be done about an object, and when.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;

use super::{Basis, Step, Term};
use crate::kubernetes::{
    objects::{Key, Kind, Seen},
    report::Problem,
};

impl Term {
    pub(super) fn step(&self, key: &Key) -> Step {
        if !self.listed.contains(&key.kind) || !(self.judged || self.orders.purging) {
            return Step::Wait(None);
        }
        let held = self.breaker.held().is_some() && !self.orders.purging;
        let want = self.want.get(key).filter(|_| !self.orders.purging);
        match (want, self.seen.get(key)) {
            (None, None | Some(Seen::Foreign)) => Step::Nothing,
            (Some(_), Some(Seen::Foreign)) => Step::Foreign,
            (None, Some(Seen::Ours { deleting: true, .. })) => Step::Nothing,
            (Some(_), Some(Seen::Ours { deleting: true, .. })) => Step::Wait(None),
            (None, Some(Seen::Ours { uid, version, form, .. })) => match form.group {
                _ if held => Step::Withheld,
                Some(group) if key.kind == Kind::WorkloadEntry && self.lets_go(group) => Step::Wait(Some(group)),
                _ => Step::Delete(Arc::clone(uid), Arc::clone(version)),
            },
            (Some(want), None) => match want.form.group {
                Some(group) if want.form.selects && self.lacks(group) => Step::Wait(Some(group)),
                _ => Step::Apply(None),
            },
            (Some(want), Some(Seen::Ours { uid, version, form, .. })) => {
                let same =
                    form.digest == want.form.digest || self.adjusted.get(key) == Some(&(want.form.digest, form.digest));
                match want.form.group {
                    _ if same => Step::Nothing,
                    _ if held && !want.form.selects && want.form.endpoints.len() < form.endpoints.len() => {
                        let is_new = |endpoint| form.endpoints.binary_search(endpoint).is_err();
                        match want.form.endpoints.iter().any(is_new) {
                            true => Step::Unite(Arc::clone(uid), Arc::clone(version)),
                            false => Step::Withheld,
                        }
                    }
                    Some(group) if want.form.selects && !form.selects && self.lacks(group) => Step::Wait(Some(group)),
                    _ => Step::Apply(Some((Arc::clone(uid), Arc::clone(version)))),
                }
            }
        }
    }

    /// Whether WorkloadEntries of a service are yet to be created.
    fn lacks(&self, group: u128) -> bool {
        self.groups.get(&group).is_some_and(|group| !group.missing.is_empty())
    }

    /// Whether a ServiceEntry in the API selects WorkloadEntries, and is not to do so.
    fn lets_go(&self, group: u128) -> bool {
        let first = Key { kind: Kind::ServiceEntry, name: "".into() };
        let mut entries = self.groups.get(&group).into_iter().flat_map(|group| group.members.range(&first..));
        entries.any(|key| {
            let selects = matches!(self.seen.get(key), Some(Seen::Ours { form, .. }) if form.selects);
            let stays = !self.orders.purging && self.want.get(key).is_some_and(|want| want.form.selects);
            selects && !stays
        })
    }

    pub(super) fn basis(&self, key: &Key) -> Basis {
        let seen = match self.seen.get(key) {
            Some(Seen::Ours { version, .. }) => Some(Arc::clone(version)),
            _ => None,
        };
        (self.want.get(key).map(|want| want.form.digest), seen)
    }

    /// Looks at objects, and at those that wait for them.
    pub(super) fn mark(&mut self, keys: impl IntoIterator<Item = Key>) {
        let mut stack: Vec<Key> = keys.into_iter().collect();
        stack.extend(std::mem::take(&mut self.woken));
        while let Some(key) = stack.pop() {
            match self.flying.get_mut(&key) {
                Some(again) => *again = true,
                None => self.look(&key),
            }
            if key.kind == Kind::WorkloadEntry {
                stack.extend(self.note_missing(&key));
            }
        }
    }

    /// Keeps who is missing of a service; returns who waited for the last.
    fn note_missing(&mut self, key: &Key) -> BTreeSet<Key> {
        let Some(want) = self.want.get(key) else { return BTreeSet::new() };
        let shelved = self.troubles.get(key).is_some_and(|trouble| trouble.shelved);
        let missing = !self.seen.contains_key(key) && !shelved;
        let Some(group) = want.form.group.and_then(|id| self.groups.get_mut(&id)) else { return BTreeSet::new() };
        if missing {
            group.missing.insert(key.clone());
            return BTreeSet::new();
        }
        let last = group.missing.remove(key) && group.missing.is_empty();
        if last { std::mem::take(&mut group.waiting) } else { BTreeSet::new() }
    }

    pub(super) fn look(&mut self, key: &Key) {
        let now = Instant::now();
        self.ready.values_mut().for_each(|keys| {
            keys.remove(key);
        });
        if let Some(at) = self.due.remove(key) {
            self.later.remove(&(at, key.clone()));
        }
        self.withheld.remove(key);
        self.waits.remove(key);
        let step = self.step(key);
        let until = match &step {
            Step::Apply(_) | Step::Unite(..) | Step::Delete(..) => self.rests_until(key),
            _ => None,
        };
        match step {
            Step::Nothing => {
                self.troubles.remove(key);
                self.solved(key);
            }
            Step::Wait(group) => {
                self.waits.insert(key.clone());
                if let Some(group) = group.and_then(|id| self.groups.get_mut(&id)) {
                    group.waiting.insert(key.clone());
                }
            }
            Step::Foreign => {
                let message = "an object with this name is another's, so it is left alone".into();
                self.problem(key, Problem { code: None, message, attempts: 0 });
            }
            Step::Withheld => {
                self.withheld.insert(key.clone());
            }
            Step::Apply(_) | Step::Unite(..) | Step::Delete(..) if until.is_some_and(|until| now < until) => {
                let until = until.unwrap_or(now);
                self.later.insert((until, key.clone()));
                self.due.insert(key.clone(), until);
                if let Some(fought) = self.written.get(key).filter(|written| written.backoff.attempts > 2) {
                    let message = "another writer changes it again and again".into();
                    self.problem(key, Problem { code: None, message, attempts: fought.backoff.attempts });
                }
            }
            Step::Apply(_) | Step::Unite(..) | Step::Delete(..) => {
                if let Some(bar) = self.bars.get(&key.kind) {
                    let (code, message) = (bar.failure.code(), Arc::clone(bar.failure.message()));
                    let problem = Problem { code, message, attempts: bar.backoff.attempts };
                    self.given.report.lock().problems.insert(key.to_string(), problem);
                }
                let priority = self.priority(key);
                self.ready.entry((priority, key.kind)).or_default().insert(key.clone());
            }
        }
    }

    /// Until when an object is left alone, after a refusal or since another writer undoes what is written.
    fn rests_until(&self, key: &Key) -> Option<Instant> {
        let basis = self.basis(key);
        let trouble = self.troubles.get(key).filter(|trouble| trouble.basis == basis).map(|trouble| trouble.until);
        let fought = self.written.get(key).filter(|written| Some(written.digest) == basis.0);
        trouble.into_iter().chain(fought.map(|written| written.rests_until)).max()
    }

    /// Removals of endpoints are first, then other changes, then what is new or of no use any more.
    fn priority(&self, key: &Key) -> usize {
        let Some(Seen::Ours { form: seen, .. }) = self.seen.get(key) else { return 2 };
        let want = self.want.get(key).filter(|_| !self.orders.purging).map(|want| &want.form);
        let kept = want.map_or(&[][..], |want| &want.endpoints);
        let moves_out = want.is_some_and(|want| want.selects);
        let removes = !moves_out && seen.endpoints.iter().any(|endpoint| kept.binary_search(endpoint).is_err());
        if removes { 0 } else { 1 + usize::from(want.is_none()) }
    }

    pub(super) fn problem(&self, key: &Key, problem: Problem) {
        let known = self.given.report.lock().problems.insert(key.to_string(), problem.clone());
        if known.is_none_or(|known| known.message != problem.message) {
            let Problem { code, message, .. } = &problem;
            tracing::warn!(object = %key, code, message = &**message, "an object is not as it should be");
        }
    }

    pub(super) fn solved(&self, key: &Key) {
        let mut report = self.given.report.lock();
        if !report.problems.is_empty() {
            report.problems.remove(&key.to_string());
        }
    }
}
