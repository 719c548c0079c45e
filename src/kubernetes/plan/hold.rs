//! The mass-delete breaker over what is in the API when a plan begins.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{ObjectEntry, Plan, notice::Notice};
use crate::{
    catalog::breaker::Totals,
    kubernetes::objects::{Fingerprint, ObjectKey, ObjectKind},
    model::Millis,
};

impl Plan {
    /// Whether removals are withheld. A purge is an order to remove.
    pub(super) fn holds(&self) -> bool {
        self.breaker.held().is_some() && !self.orders.purging
    }

    /// The endpoints of a ServiceEntry in a state: its own, or the WorkloadEntries in the API that it selects.
    pub(super) fn endpoints(&self, state: &Fingerprint) -> usize {
        match state.group.filter(|_| state.selects) {
            Some(group) => self.count(group, observed, |kind| kind == ObjectKind::WorkloadEntry),
            None => state.endpoints.len(),
        }
    }

    /// The endpoints of a group's objects of some kinds in a state.
    fn count(
        &self,
        group: u128,
        state: fn(&ObjectEntry) -> Option<&Fingerprint>,
        of: impl Fn(ObjectKind) -> bool,
    ) -> usize {
        let members = self.groups.members(group).filter(|key| of(key.kind)).filter_map(|key| self.objects.get(key));
        let states = members.filter_map(state).filter(|state| state.group == Some(group));
        states.map(|state| state.endpoints.len()).sum()
    }

    fn desired_endpoints(&self, group: u128) -> usize {
        self.count(group, |entry| entry.desired.as_ref().map(|desired| &desired.fingerprint), |_| true)
    }

    /// Judges what is desired against what is in the API, whoever wrote that.
    pub(super) fn begin_judging(&mut self, now: Instant) {
        let groups: Vec<u128> = self.groups.ids().collect();
        let counts = groups.iter().map(|group| (name_of(*group), self.count(*group, observed, |_| true)));
        let counts: Vec<(Arc<str>, usize)> = counts.collect();
        let millis = self.millis(now);
        self.breaker.begin_with(millis, counts.into_iter());
        for group in groups {
            self.breaker.note(&name_of(group), 0, self.desired_endpoints(group), |_| Totals::default());
        }
        // The window began with everything in the API, so there are no other services to name.
        if let Some(lost) = self.breaker.judge(millis, |_| None, |_| false, std::iter::empty()).held {
            self.notices.give(Notice::MassDeletion(lost));
        }
    }

    /// While removals are withheld: whether to go on.
    pub(super) fn judge(&mut self, now: Instant) {
        if self.breaker.held().is_none() {
            return;
        }
        for group in std::mem::take(&mut self.recount) {
            self.breaker.note(&name_of(group), 0, self.desired_endpoints(group), |_| Totals::default());
        }
        let millis = self.millis(now);
        if let Some(why) = self.breaker.judge(millis, |_| None, |_| false, std::iter::empty()).over {
            let withheld: BTreeSet<ObjectKey> = self.schedule.withheld().clone();
            self.notices.give(Notice::RemovalsGoOn { why, objects: withheld.len() });
            self.touched.extend(withheld);
        }
    }

    /// When the breaker lets go by itself.
    pub(super) fn breaker_deadline(&self) -> Option<Instant> {
        self.breaker.deadline().map(|at| self.began + Duration::from_millis(at.max(0) as u64))
    }

    /// The breaker's time: a plan's own, so that no clock that is set puts a hold off or ends it.
    fn millis(&self, now: Instant) -> Millis {
        now.duration_since(self.began).as_millis() as Millis
    }
}

fn observed(entry: &ObjectEntry) -> Option<&Fingerprint> {
    entry.own().map(|own| &own.fingerprint)
}

fn name_of(group: u128) -> Arc<str> {
    format!("{group:032x}").into()
}
