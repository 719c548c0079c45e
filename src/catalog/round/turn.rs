//! What becomes of the services that a round looks at.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    catalog::{
        assignment::Moved,
        breaker::Verdict,
        changes::RoundChanges,
        direct::{self, Direct},
        notices::Notice,
        report::Quarantined,
        round::{Round, Stage},
        services::{Made, Wanted},
    },
    model::Millis,
    policy::{Policy, Rules},
    registry::{publication::Publication, store::Taken},
    translate::{
        payload::Reject,
        service_entry::{self, Member, Merged},
    },
};

/// What a service is to become in a round.
#[derive(Debug)]
enum Target {
    /// Not served.
    Gone,
    /// As it is served, since it is not known what is wanted.
    Keep,
    /// Served with the endpoints that are wanted.
    Serve {
        /// With these in their place, since some that are served are not wanted and withheld.
        extended: Option<Vec<Member>>,
        /// Since when the registry has no endpoints of it.
        empty_since: Option<Millis>,
    },
}

/// What comes of that.
#[derive(Debug)]
enum Outcome {
    /// It was not tried yet.
    Open,
    /// It is not served.
    Gone,
    /// It is served just so.
    Same,
    /// It is served in a new form.
    Made(Box<Made>),
    /// It stays as it is served, since nothing of it may be removed.
    Kept,
    /// It stays as it is served, or is not served, since a new form cannot be made.
    Refused(Quarantined),
}

/// A service that is looked at in a round.
#[derive(Debug)]
struct Work<'p> {
    rules: Rules<'p>,
    wanted: Wanted,
    target: Target,
    outcome: Outcome,
}

/// The services that are looked at in a round.
#[derive(Debug)]
struct Turn<'p> {
    now: Millis,
    policy: &'p Policy,
    /// Nothing is removed that is served.
    withhold: bool,
    work: BTreeMap<Arc<str>, Work<'p>>,
}

impl Round {
    /// Looks at the services that changed, and at those that others or the time make to be looked at.
    pub(super) fn turn(&mut self, now: Millis, dirty: Vec<Taken>, policy: &Arc<Policy>) -> RoundChanges {
        self.follow(policy);
        let withhold = self.stage == Stage::Gathering;
        let mut turn = Turn { now, policy, withhold, work: BTreeMap::new() };
        for Taken { data_info_id: id, entries, unknown } in dirty {
            self.unknown.note(&id, unknown);
            let rules = policy.rules(&id);
            let wanted = self.read(now, &id, &entries, &rules);
            self.insert(&mut turn, id, wanted, rules);
        }
        if self.stage != Stage::Gathering {
            self.look_again(&mut turn, self.services.expired(now - self.empty_grace()));
        }
        if self.stage == Stage::Completed {
            let unheard = self.services.iter().filter(|(_, served)| served.is_unheard());
            let unheard: Vec<Arc<str>> = unheard.map(|(id, _)| Arc::clone(id)).collect();
            for id in unheard.into_iter().filter(|id| !turn.work.contains_key(id)).collect::<Vec<_>>() {
                let wanted = Wanted::Endpoints { members: Vec::new(), allowed: policy.serves(&id) };
                let rules = policy.rules(&id);
                self.insert(&mut turn, id, wanted, rules);
            }
            self.look_again(&mut turn, self.withheld.iter().cloned().collect());
        }
        let all: BTreeSet<Arc<str>> = turn.work.keys().cloned().collect();
        self.settle(&mut turn, all);
        self.judge(&mut turn);
        let mut changes = self.serve(turn);
        self.serve_direct(now, policy, &mut changes);
        self.encodes += changes.encodes;
        changes
    }

    /// Keeps up with the policy that entries for consumers who dial addresses are made under.
    fn follow(&mut self, policy: &Arc<Policy>) {
        let before = match &self.policy {
            Some(before) if Arc::ptr_eq(before, policy) => Some(Arc::clone(before)),
            _ => self.policy.replace(Arc::clone(policy)),
        };
        let completed = self.stage == Stage::Completed;
        match (&mut self.direct, &before) {
            (Some(direct), _) if completed => direct.touch_all(),
            (Some(direct), Some(before)) if !policy.makes_direct_as(before) => direct.touch_all(),
            (None, _) if policy.has_direct() => {
                let mut direct = Direct::default();
                self.services.iter().for_each(|(id, served)| direct.update(id, &[], &served.members));
                self.direct = Some(direct);
            }
            _ => {}
        }
    }

    /// What the registry and the policy want of a service.
    fn read(&mut self, now: Millis, id: &Arc<str>, entries: &[Arc<Publication>], rules: &Rules<'_>) -> Wanted {
        if !rules.policy.serves(id) {
            self.rejects.set(id, []);
            return Wanted::Endpoints { members: Vec::new(), allowed: false };
        }
        let merged = catch_unwind(AssertUnwindSafe(|| service_entry::merge(entries, rules)));
        let Ok(Merged { members, rejects }) = merged else { return Wanted::Unreadable };
        let before = self.rejects.set(id, rejects.iter().map(|(reason, (count, _))| (*reason, *count)));
        for (reason, (count, sample)) in rejects {
            let grew = before.get(&reason).is_none_or(|before| *before < count);
            if grew && reason != Reject::ZeroWeight {
                self.notices.give(now, Notice::PayloadNotServed { id: Arc::clone(id), reason, sample });
            }
        }
        Wanted::Endpoints { members, allowed: true }
    }

    fn insert<'p>(&self, turn: &mut Turn<'p>, id: Arc<str>, wanted: Wanted, rules: Rules<'p>) {
        let target = self.target(turn, &id, &wanted);
        let outcome = match &wanted {
            Wanted::Unreadable => Outcome::Refused(Quarantined::by_panic()),
            _ => Outcome::Open,
        };
        turn.work.insert(id, Work { rules, wanted, target, outcome });
    }

    /// Looks at services again of which the registry says nothing new.
    fn look_again(&mut self, turn: &mut Turn<'_>, ids: Vec<Arc<str>>) {
        for id in ids {
            if !turn.work.contains_key(&id) {
                let wanted = self.services.take_wanted(&id);
                let rules = turn.policy.rules(&id);
                self.insert(turn, id, wanted, rules);
            }
        }
    }

    /// What a service is to become, given what is wanted of it.
    fn target(&self, turn: &Turn<'_>, id: &str, wanted: &Wanted) -> Target {
        let served = self.services.get(id);
        let (members, allowed) = match (wanted, served) {
            (Wanted::Endpoints { members, allowed }, _) => (&members[..], *allowed),
            (Wanted::AsServed, Some(served)) => (&served.members[..], true),
            (Wanted::AsServed, None) => return Target::Gone,
            (Wanted::Unheard | Wanted::Unreadable, _) => return Target::Keep,
        };
        // Nothing is known to be gone from a service that could not be read.
        let is_unknown = allowed && self.unknown.contains(id);
        if is_unknown && members.is_empty() && served.is_some_and(|served| served.members.is_empty()) {
            return Target::Keep;
        }
        let keeping = served.filter(|_| turn.withhold || is_unknown);
        let extended = keeping.and_then(|served| served.with_missing(members, allowed));
        let is_empty = extended.as_deref().unwrap_or(members).is_empty();
        let empty_since = match served {
            _ if !is_empty => None,
            Some(served) => Some(served.empty_since.unwrap_or(turn.now)),
            // First seen without endpoints.
            None => return Target::Gone,
        };
        // Before the view is complete nothing goes.
        let over = |since| self.stage != Stage::Gathering && since <= turn.now - self.empty_grace();
        if (allowed || extended.is_some()) && !empty_since.is_some_and(over) {
            Target::Serve { extended, empty_since }
        } else {
            Target::Gone
        }
    }

    /// Finds out what becomes of services, and of those whose host or address they change.
    fn settle(&mut self, turn: &mut Turn<'_>, mut todo: BTreeSet<Arc<str>>) {
        while !todo.is_empty() {
            self.look_again(turn, todo.iter().cloned().collect());
            // Who is served where.
            let mut moved = Moved::new();
            for id in &todo {
                let Work { rules, target, outcome, .. } = &turn.work[id];
                moved.extend(match (target, outcome) {
                    (Target::Gone, _) => self.assignment.withdraw(id),
                    (Target::Keep, _) | (_, Outcome::Kept | Outcome::Refused(_)) => self.keep_place(id),
                    (Target::Serve { .. }, _) => self.assignment.claim(id, rules.host),
                });
            }
            self.look_again(turn, moved.iter().cloned().collect());
            todo.extend(moved);
            // Who can be. Those that cannot stay where they are, which moves others again.
            for id in std::mem::take(&mut todo) {
                if !self.make(turn, &id) {
                    todo.extend(self.keep_place(&id));
                }
            }
        }
    }

    /// Keeps the place of a service that stays as it is served; one that is not served has none.
    pub(super) fn keep_place(&mut self, id: &Arc<str>) -> Moved {
        match self.services.get(id) {
            Some(served) => self.assignment.keep(id, &self.services.kept_host(served), served.vip),
            None => self.assignment.withdraw(id),
        }
    }

    /// Makes a service's resources where it is served now; `false`: it has to stay as it is, which was not known before.
    fn make(&mut self, turn: &mut Turn<'_>, id: &Arc<str>) -> bool {
        let Some(work) = turn.work.get_mut(id) else { return true };
        let (members, is_empty) = match (&work.target, &work.outcome) {
            (Target::Gone, _) => {
                work.outcome = Outcome::Gone;
                return true;
            }
            (_, Outcome::Kept | Outcome::Refused(_)) => return true,
            (Target::Keep, _) => {
                work.outcome = Outcome::Kept;
                return true;
            }
            (Target::Serve { extended, empty_since }, _) => {
                let served = self.services.get(id).map(|served| &served.members[..]);
                let members = match (extended, &work.wanted) {
                    (Some(extended), _) => &extended[..],
                    (None, Wanted::Endpoints { members, .. }) => &members[..],
                    (None, _) => served.unwrap_or_default(),
                };
                (members, empty_since.is_some())
            }
        };
        let place = self.assignment.place(id);
        if let (Outcome::Made(made), Some(place)) = (&work.outcome, &place)
            && made.place == *place
        {
            return true;
        }
        let Some(place) = place else {
            let detail = "every host that it may have is another service's".to_owned();
            work.outcome = Outcome::Refused(Quarantined { reason: "no-host", detail });
            return false;
        };
        let make = || self.services.make(id, &place, members, is_empty, &work.rules);
        let made = catch_unwind(AssertUnwindSafe(make));
        self.translations += u64::from(!matches!(made, Ok(Ok(None))));
        work.outcome = match made {
            Ok(Ok(None)) => Outcome::Same,
            // A rule of Istio's took endpoints out of it.
            Ok(Ok(Some(made))) if turn.withhold && made.endpoints < self.endpoints(id) => Outcome::Kept,
            Ok(Ok(Some(made))) => Outcome::Made(made.into()),
            Ok(Err(invalid)) => {
                Outcome::Refused(Quarantined { reason: invalid.rule.name(), detail: invalid.to_string() })
            }
            Err(_) => Outcome::Refused(Quarantined::by_panic()),
        };
        !matches!(work.outcome, Outcome::Kept | Outcome::Refused(_))
    }

    /// How many endpoints are served of a service.
    fn endpoints(&self, id: &str) -> usize {
        self.services.get(id).map_or(0, |served| served.endpoints)
    }

    /// Judges what would be served. Where removals are withheld, keeps what is missing; where they no longer are, looks at
    /// every service again that they were withheld of.
    fn judge(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        match self.stage {
            Stage::Gathering => return,
            Stage::Completed if self.baseline.is_empty() => return,
            Stage::Completed => self.breaker.begin_with(now, std::mem::take(&mut self.baseline).into_iter()),
            Stage::Live => self.breaker.begin(now, self.services.totals()),
        }
        for (id, work) in &turn.work {
            let served = self.endpoints(id);
            let next = match &work.outcome {
                Outcome::Gone => 0,
                Outcome::Made(made) => made.endpoints,
                Outcome::Same | Outcome::Kept | Outcome::Refused(_) | Outcome::Open => served,
            };
            // What is not in the last good state was not served before.
            self.breaker.note(id, if self.stage == Stage::Live { served } else { 0 }, next);
        }
        if self.stage == Stage::Completed {
            let gathered = self.services.iter().filter(|(id, _)| !turn.work.contains_key(*id));
            gathered.for_each(|(id, served)| self.breaker.note(id, 0, served.endpoints));
        }
        let was_held = self.is_holding();
        match self.breaker.judge(now) {
            Verdict::Pass => {}
            Verdict::Hold => {
                if !was_held {
                    self.notices.give(now, Notice::MassDeleteHeld(self.breaker.held().unwrap_or_default()));
                }
                self.withhold(turn);
            }
            Verdict::Over(why) => {
                self.notices.give(now, Notice::MassDeleteOver { why, services: self.withheld.len() });
                let known: BTreeSet<Arc<str>> = turn.work.keys().cloned().collect();
                let withheld: BTreeSet<Arc<str>> = self.withheld.difference(&known).cloned().collect();
                self.look_again(turn, withheld.iter().cloned().collect());
                self.settle(turn, withheld);
            }
        }
    }

    /// Keeps what is served and not wanted any more.
    fn withhold(&mut self, turn: &mut Turn<'_>) {
        turn.withhold = true;
        let mut again = BTreeSet::new();
        for id in turn.work.keys().cloned().collect::<Vec<_>>() {
            let target = self.target(turn, &id, &turn.work[&id].wanted);
            let Some(work) = turn.work.get_mut(&id) else { continue };
            let loses = matches!(&work.outcome, Outcome::Made(made) if made.endpoints < self.endpoints(&id));
            if loses || matches!(target, Target::Serve { extended: Some(_), .. }) {
                (work.target, work.outcome) = (target, Outcome::Open);
                again.insert(id);
            }
        }
        self.settle(turn, again);
    }

    /// Serves what came of a turn.
    fn serve(&mut self, turn: Turn<'_>) -> RoundChanges {
        let Turn { now, withhold, work, .. } = turn;
        let mut changes = RoundChanges::default();
        for (id, Work { wanted, target, outcome, .. }) in work {
            let (extended, empty_since) = match target {
                Target::Serve { extended, empty_since } => (extended, empty_since),
                Target::Gone | Target::Keep => (None, None),
            };
            let is_unknown = self.unknown.contains(&id) && !matches!(wanted, Wanted::Endpoints { allowed: false, .. });
            let is_kept = extended.is_some() || matches!(outcome, Outcome::Kept);
            self.set_withheld(&id, withhold && is_kept && !is_unknown);
            match outcome {
                Outcome::Gone => {
                    self.release(&id);
                    self.left_out.set(&id, []);
                    if let Some((removed, members)) = self.services.remove(&id) {
                        changes.add(removed);
                        self.direct.iter_mut().for_each(|direct| direct.update(&id, &members, &[]));
                    }
                }
                Outcome::Made(made) => {
                    self.release(&id);
                    let (members, wanted) = self.members(&id, extended, wanted);
                    changes.add(self.put(now, &id, *made, members, empty_since, wanted));
                }
                Outcome::Same => {
                    self.release(&id);
                    let (members, wanted) = self.members(&id, extended, wanted);
                    let had = self.services.renew(&id, members);
                    self.services.stay(&id, empty_since, wanted);
                    self.update_direct(&id, &had);
                }
                Outcome::Kept | Outcome::Open => {
                    self.release(&id);
                    self.services.stay(&id, empty_since, wanted);
                }
                Outcome::Refused(why) => {
                    let kept = self.services.get(&id).is_some();
                    self.services.stay(&id, empty_since, wanted);
                    self.quarantine(now, &id, why, kept);
                }
            }
        }
        changes
    }

    /// Serves a service in a new form; returns what that changes.
    fn put(
        &mut self,
        now: Millis,
        id: &Arc<str>,
        mut made: Made,
        members: Vec<Member>,
        empty_since: Option<Millis>,
        wanted: Wanted,
    ) -> RoundChanges {
        let left_out = std::mem::take(&mut made.left_out);
        let before = self.left_out.set(id, left_out.iter().map(|(rule, (count, _))| (*rule, *count)));
        for (rule, (count, invalid)) in left_out {
            if !before.contains_key(&rule) {
                self.notices.give(now, Notice::EndpointsLeftOut { id: Arc::clone(id), count, invalid });
            }
        }
        if let Some(was) = self.services.get(id).map(|served| &served.host)
            && *was != made.place.host
        {
            let (was, is) = (was.clone(), made.place.host.clone());
            self.notices.give(now, Notice::HostChanged { id: Arc::clone(id), was, is });
        }
        let changes = std::mem::take(&mut made.changes);
        let had = self.services.put(id, made, members, empty_since, wanted);
        self.update_direct(id, &had);
        changes
    }

    /// The endpoints that a service was made of, and what is still wanted of it beside those.
    fn members(&self, id: &str, extended: Option<Vec<Member>>, wanted: Wanted) -> (Vec<Member>, Wanted) {
        match (extended, wanted) {
            (Some(extended), wanted) => (extended, wanted),
            (None, Wanted::Endpoints { members, .. }) => (members, Wanted::AsServed),
            (None, wanted) => (self.services.get(id).map(|served| served.members.clone()).unwrap_or_default(), wanted),
        }
    }

    /// Tells the entries of applications that a service has other endpoints than it had.
    fn update_direct(&mut self, id: &Arc<str>, had: &[Member]) {
        if let (Some(direct), Some(served)) = (&mut self.direct, self.services.get(id)) {
            direct.update(id, had, &served.members);
        }
    }

    fn serve_direct(&mut self, now: Millis, policy: &Policy, changes: &mut RoundChanges) {
        let Some(direct) = &mut self.direct else { return };
        let keep = self.stage == Stage::Gathering;
        let outcomes = direct.changes(&self.config, policy, keep, changes);
        direct.notices().into_iter().for_each(|notice| self.notices.give(now, notice));
        if !policy.has_direct() && direct.is_empty() {
            self.direct = None;
        }
        for direct::Outcome { host, refused, kept } in outcomes {
            match refused {
                None => self.release(&host),
                Some(why) => self.quarantine(now, &host, why, kept),
            }
        }
    }

    fn set_withheld(&mut self, id: &Arc<str>, is_withheld: bool) {
        let changed = if is_withheld { self.withheld.insert(Arc::clone(id)) } else { self.withheld.remove(id) };
        if changed {
            self.names.withheld.push((Arc::clone(id), is_withheld));
        }
    }

    fn quarantine(&mut self, now: Millis, id: &Arc<str>, why: Quarantined, kept: bool) {
        self.quarantined.set(id, [(why.reason, 1)]);
        self.names.quarantined.push((Arc::clone(id), Some(why.clone())));
        self.notices.give(now, Notice::Quarantined { id: Arc::clone(id), why, kept });
    }

    fn release(&mut self, id: &Arc<str>) {
        if !self.quarantined.set(id, []).is_empty() {
            self.names.quarantined.push((Arc::clone(id), None));
        }
    }
}
