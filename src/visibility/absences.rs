//! Who is missing where the documents still have somebody, and for how long that was seen.
//!
//! Only rounds that every session server answered see who is missing, and time counts only while such rounds follow each other.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    model::Millis,
    visibility::{Names, ServiceId, UNKNOWN},
};

/// A round counts for the span since the one before, and for no more than this: what was between is not known.
const MOST_STEP: Millis = 45_000;
/// Nothing is removed by an older round: whoever came since is not known.
const FRESH: Millis = 20_000;
/// Who came and went in so long a time without a complete round is not known: whatever was missing before begins to be missing anew.
pub(super) const BLIND: Millis = 60_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Absences {
    /// When the last round ended, if it was complete.
    complete_at: Option<Millis>,
    /// When the last complete round ended.
    seen_at: Option<Millis>,
    /// How long complete rounds have followed each other.
    observed: Millis,
    /// The namespaces of services in which nobody is, since when, by [`Absences::observed`].
    since: HashMap<(ServiceId, Arc<str>), Millis>,
    /// Who is missing is who was missing after the last complete round: neither pages nor consumers are others.
    is_same: bool,
    /// Services whose consumers of unknown place are known by another policy, since the last complete round.
    found: HashSet<ServiceId>,
}

impl Absences {
    /// Somebody is there again. Whoever comes and goes between two rounds has been there.
    pub(super) fn end(&mut self, id: ServiceId, names: &Names) {
        for name in names {
            self.since.remove(&(id, Arc::clone(name)));
        }
    }

    /// The same of all of these.
    pub(super) fn end_all(&mut self, there: &HashMap<ServiceId, Arc<Names>>) {
        self.since.retain(|(id, name), _| !there.get(id).is_some_and(|names| names.contains(name)));
    }

    /// Pages or consumers are others, so the next complete round looks through all.
    pub(super) fn doubt(&mut self) {
        self.is_same = false;
    }

    /// A service's consumers of unknown place are somewhere by another policy, and were so by the one before.
    pub(super) fn found(&mut self, id: ServiceId) {
        self.found.insert(id);
    }

    /// Ends a round that does not say who is missing.
    pub(super) fn end_incomplete(&mut self) {
        self.complete_at = None;
    }

    /// Ends a round that saw all consumers; whether it looked through all that the pages say.
    pub(super) fn end_complete<'p>(
        &mut self,
        now: Millis,
        hold: Millis,
        paged: impl Iterator<Item = (ServiceId, &'p Arc<str>)>,
        is_there: impl Fn(ServiceId, &str) -> bool,
    ) -> bool {
        self.observed += self.complete_at.map_or(0, |before| (now - before).clamp(0, MOST_STEP));
        self.complete_at = Some(now);
        if self.seen_at.replace(now).is_some_and(|before| now - before > BLIND) {
            self.since.clear();
            self.is_same = false;
        }
        let all_found = std::mem::take(&mut self.found);
        if std::mem::replace(&mut self.is_same, true) {
            return false;
        }
        let mut missing = HashMap::new();
        for (id, name) in paged.filter(|(id, name)| !is_there(*id, name)) {
            // Who was nowhere under the policy before is somewhere now.
            let found = **name == *UNKNOWN && all_found.contains(&id);
            let key = (id, Arc::clone(name));
            let since = if found { self.observed - hold } else { self.observed };
            let since = self.since.get(&key).copied().unwrap_or(since).min(since);
            missing.insert(key, since);
        }
        self.since = missing;
        true
    }

    /// Whether the last round was complete, and a short while ago.
    pub(super) fn are_fresh(&self, now: Millis) -> bool {
        self.complete_at.is_some_and(|at| now - at < FRESH)
    }

    /// Whether nobody was in a namespace for so long.
    pub(super) fn is_over(&self, id: ServiceId, name: &Arc<str>, hold: Millis) -> bool {
        self.since.get(&(id, Arc::clone(name))).is_some_and(|since| self.observed - since >= hold)
    }

    /// In how many namespaces of services nobody is.
    pub(super) fn count(&self) -> usize {
        self.since.len()
    }
}
