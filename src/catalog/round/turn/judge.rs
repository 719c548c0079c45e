//! The breakers' judgements on a round, and what is withheld by them.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    catalog::{
        additions,
        breaker::{Judgement, Totals},
        key::ServiceKey,
        notices::Notice,
        round::{
            Round, Stage,
            turn::{Outcome, Target, Turn, Withhold},
        },
    },
    config::Scope,
};

impl Round {
    /// How many endpoints are served of a service.
    fn endpoints(&self, id: &ServiceKey) -> usize {
        self.services.get(id).map_or(0, |service| service.endpoints)
    }

    /// Judges the outcomes. Of the services whose removals the breaker withholds what is missing is kept; where it no longer
    /// does, each is looked at again that something was withheld of.
    pub(super) fn judge(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        self.judge_additions(turn);
        match self.stage {
            Stage::Gathering => return,
            Stage::Completed if self.baseline.is_empty() => return,
            Stage::Completed => {
                let baseline = std::mem::take(&mut self.baseline).into_iter();
                self.breaker.begin_with(now, baseline.map(|(id, endpoints)| (Arc::clone(id.text()), endpoints)));
            }
            Stage::Live => self.breaker.begin(now, self.services.totals()),
        }
        for (id, work) in &turn.work {
            let served = self.endpoints(id);
            let next = match &work.outcome {
                _ if work.is_kept => 0,
                Outcome::Gone | Outcome::Waits => 0,
                Outcome::Built(build) => build.endpoints,
                Outcome::Same | Outcome::Stayed | Outcome::Refused(_) | Outcome::Open => served,
            };
            // A service that is not in the last good state was not served before.
            let served = if self.stage == Stage::Live { served } else { 0 };
            self.breaker.note(id.text(), served, next, |tenant| self.services.totals_of(tenant));
        }
        if self.stage == Stage::Completed {
            for (id, service) in self.services.iter().filter(|(id, _)| !turn.work.contains_key(*id)) {
                self.breaker.note(id.text(), 0, service.endpoints, |_| Totals::default());
            }
        }
        let services = &self.services;
        let of = |id: &Arc<str>| {
            let service = services.get(&ServiceKey::of_text(Arc::clone(id)));
            Some(service.map_or(0, |service| service.endpoints))
        };
        let served = services.iter().map(|(id, service)| (id.text(), service.endpoints));
        let backlog = &self.backlog;
        let is_left = |id: &Arc<str>| backlog.has(ServiceKey::of_text(Arc::clone(id)).id());
        let Judgement { held, over, too_many } = self.breaker.judge(now, of, is_left, served);
        self.ended_hold |= over.is_some();
        held.into_iter().for_each(|lost| self.notices.give(now, Notice::MassDeleteHeld(lost)));
        too_many.into_iter().for_each(|lost| self.notices.give(now, Notice::MassDeleteNotHeld(lost)));
        if let Some(why) = over {
            let freed = self.withheld.iter().filter(|id| !self.breaker.withholds(id.text()));
            let (services, freed) = (freed.clone().count(), freed.filter(|id| !turn.work.contains_key(*id)));
            let mut freed: BTreeSet<ServiceKey> = freed.cloned().collect();
            self.notices.give(now, Notice::MassDeleteOver { why, services });
            freed.extend(self.let_go(turn));
            self.settle(turn, freed);
        }
        if self.is_holding() {
            self.withhold(turn);
        }
    }

    /// Gives the services up that were kept before the judgement and are withheld no more; returns them.
    fn let_go(&self, turn: &mut Turn<'_>) -> Vec<ServiceKey> {
        let (now, withhold) = (turn.now, turn.withhold);
        let kept = turn.work.iter_mut().filter(|(id, work)| work.is_kept && !self.breaker.withholds(id.text()));
        let let_go = kept.map(|(id, work)| {
            work.is_kept = false;
            (work.target, work.outcome) = (self.target(now, withhold, id, &work.intent), Outcome::Open);
            id.clone()
        });
        let_go.collect()
    }

    /// Judges which services are new. Where too many are, they are not served yet; where that is over, those that waited are.
    fn judge_additions(&mut self, turn: &mut Turn<'_>) {
        // With local scope the clients of a session server that is gone come here, and are nobody new.
        if self.stage == Stage::Gathering || self.config.scope == Scope::Local {
            return;
        }
        if self.complete {
            self.additions.begin(turn.now, self.services.totals().services);
        }
        for (id, work) in &turn.work {
            let served = self.services.get(id);
            let is_served = served.is_some();
            if let Some(since) = served.and_then(|served| served.empty_since)
                && matches!(&work.target, Target::Serve { empty_since: None, .. })
            {
                self.additions.note_back(since);
            }
            let comes = matches!(work.outcome, Outcome::Waits | Outcome::Built(_));
            if comes {
                self.additions.note(id.text(), is_served, true);
            }
        }
        // Who comes while a round begins again is not held up, and counts in the minute that runs; a hold that is over ends.
        if self.stage != Stage::Live && !self.additions.is_due(turn.now) {
            return;
        }
        let additions::Judgement { held, over } = self.additions.judge(turn.now);
        if let Some(services) = held {
            let tenant = self.additions.held_tenant().map(Into::into);
            self.notices.give(turn.now, Notice::MassAddHeld { services, tenant });
        }
        let mut again = BTreeSet::new();
        if let Some(why) = over {
            self.notices.give(turn.now, Notice::MassAddOver { why, services: self.waiting.len() });
            again.extend(self.waiting.keys().filter(|id| !turn.work.contains_key(*id)).cloned());
        }
        for id in turn.work.keys().cloned().collect::<Vec<_>>() {
            let waits = self.services.get(&id).is_none() && self.additions.waits(id.text());
            let is_other = match &turn.work[&id].outcome {
                Outcome::Waits => !waits,
                Outcome::Built(_) => waits,
                _ => false,
            };
            if is_other {
                let target = self.target(turn.now, turn.withhold, &id, &turn.work[&id].intent);
                if let Some(work) = turn.work.get_mut(&id) {
                    (work.target, work.outcome) = (target, Outcome::Open);
                }
                again.insert(id);
            }
        }
        self.settle(turn, again);
    }

    /// Keeps the endpoints that are served, not wanted any more and withheld.
    fn withhold(&mut self, turn: &mut Turn<'_>) {
        turn.withhold = Withhold::Held;
        let mut again = BTreeSet::new();
        let held = turn.work.iter().filter(|(id, work)| !work.is_kept && self.breaker.withholds(id.text()));
        for id in held.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            let target = self.target(turn.now, turn.withhold, &id, &turn.work[&id].intent);
            let Some(work) = turn.work.get_mut(&id) else { continue };
            let loses = matches!(&work.outcome, Outcome::Built(build) if build.loses);
            if loses || matches!(target, Target::Serve { extended: Some(_), .. }) {
                (work.target, work.outcome) = (target, Outcome::Open);
                again.insert(id);
            }
        }
        self.settle(turn, again);
    }
}
