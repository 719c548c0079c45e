//! The services that a round looks at, and their way from what is wanted of them to what is served.

mod judge;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    catalog::{
        assignment::{Move, Movers, Place},
        changes::{RoundChanges, ServiceChanges},
        direct,
        key::{ServiceKey, of_entry},
        narrowing::exported,
        notices::Notice,
        report::Quarantine,
        round::{Round, Stage},
        services::{Build, Intent},
    },
    model::Millis,
    policy::{Policy, Rules},
    registry::{publication::Publication, store::Taken},
    snapshot::Room,
    translate::{
        payload::Reject,
        service_entry::{self, Member, Merged},
    },
};

/// The aim of a round for one service.
#[derive(Debug)]
enum Target {
    /// Not to be served.
    Gone,
    /// To stay as it is served, since the intent is not known.
    Stay,
    /// Not to be served yet, since too many are new.
    Wait,
    /// To be served with the endpoints of the intent.
    Serve {
        /// Endpoints in the place of those, since some that are served are not wanted and may not go.
        extended: Option<Vec<Member>>,
        /// When the registry took the last endpoint away, if there is none.
        empty_since: Option<Millis>,
    },
}

/// The result of a round for one service.
#[derive(Debug)]
enum Outcome {
    /// Not tried yet.
    Open,
    /// Not served.
    Gone,
    /// Not served yet.
    Waits,
    /// Served as before, which is as it should be.
    Same,
    /// Served in a new form.
    Built(Box<Build>),
    /// Served as before, since a new form would leave out endpoints while none may go, or since the intent is not known.
    Stayed,
    /// Served as before, or not served as before, since a new form cannot be made.
    Refused(Quarantine),
}

/// A service in a round.
#[derive(Debug)]
struct Work<'p> {
    rules: Rules<'p>,
    intent: Intent,
    target: Target,
    outcome: Outcome,
    /// The target is that of a service of which nothing may go, taken before the breaker judges: without the breaker nothing would
    /// be left of the service.
    is_kept: bool,
}

/// Of which services no endpoint that is served may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Withhold {
    /// Nothing goes: it is not known yet what would be served without a breaker.
    Nothing,
    /// Of those that the breaker withholds.
    Held,
    /// The view is not complete.
    Everything,
}

/// The services that are looked at in a round.
#[derive(Debug)]
pub(super) struct Turn<'p> {
    now: Millis,
    policy: &'p Policy,
    /// Of which services no endpoint that is served may go.
    withhold: Withhold,
    work: BTreeMap<ServiceKey, Work<'p>>,
    /// For what is built.
    room: Room,
}

impl Round {
    /// Looks at the dirty services, and at those that other services, the time or the breaker draw in.
    pub(super) fn turn(&mut self, now: Millis, dirty: Vec<Taken>, policy: &Arc<Policy>) -> RoundChanges {
        self.follow(policy);
        let withhold = if self.stage == Stage::Gathering { Withhold::Everything } else { Withhold::Nothing };
        let mut turn = Turn { now, policy, withhold, work: BTreeMap::new(), room: Room::default() };
        dirty.into_iter().for_each(|taken| _ = self.look(&mut turn, taken));
        let repinned = std::mem::take(&mut self.repinned);
        self.look_again(&mut turn, repinned);
        if self.stage != Stage::Gathering {
            let expired = self.services.expired(now - self.empty_grace());
            let mut expired: Vec<ServiceKey> = expired.take(self.part + 1).cloned().collect();
            self.has_expired = expired.len() > self.part;
            expired.truncate(self.part);
            self.look_again(&mut turn, expired);
        }
        if self.stage == Stage::Completed {
            self.miss_unheard(&mut turn);
            self.look_again(&mut turn, self.withheld.clone());
        }
        let all: BTreeSet<ServiceKey> = turn.work.keys().cloned().collect();
        self.settle(&mut turn, all);
        self.judge(&mut turn);
        let mut changes = self.serve(turn);
        if self.stage != Stage::Gathering || self.shows_last_good {
            self.settle_places(now);
        }
        self.serve_direct(now, policy, &mut changes);
        self.encodes += changes.encodes;
        changes
    }

    /// Looks at the services of a dataInfoId; returns them.
    fn look(&mut self, turn: &mut Turn<'_>, Taken { data_info_id: id, entries, unknown }: Taken) -> Vec<ServiceKey> {
        self.unknown.note(&id, unknown);
        let rules = turn.policy.rules(&id);
        let mut keys = Vec::new();
        for (key, intent) in self.read(turn.now, &id, &entries, &rules) {
            let rules = if key.other().is_some() { rules.beside() } else { rules };
            keys.push(key.clone());
            self.insert(turn, key, intent, rules);
        }
        keys
    }

    /// Keeps up with the policy.
    fn follow(&mut self, policy: &Arc<Policy>) {
        let before = self.policy.replace(Arc::clone(policy));
        if before.is_some_and(|before| !policy.admits_as(&before)) {
            self.outdated = self.services.iter().map(|(key, _)| key.clone()).collect();
        }
        self.seen = self.narrowing.seen().cloned();
        if self.direct.is_some() || policy.has_direct() {
            let direct = self.direct.get_or_insert_default();
            direct.follow(policy, self.services.iter().map(|(id, service)| (id, &service.members[..])));
            direct.see(self.seen.as_ref());
            if self.stage == Stage::Completed {
                direct.touch_all();
            }
        }
    }

    /// The intents of the registry and the policy for the services of a dataInfoId, read from its publishers.
    fn read(
        &mut self,
        now: Millis,
        id: &Arc<str>,
        entries: &[Arc<Publication>],
        rules: &Rules<'_>,
    ) -> Vec<(ServiceKey, Intent)> {
        let known = self.others.with_main(id);
        if !rules.policy.serves(id) {
            self.set_rejects(id, &BTreeMap::new());
            let intent = |key| (key, Intent::Endpoints { members: Vec::new(), allowed: false });
            return known.into_iter().map(intent).collect();
        }
        let merged =
            catch_unwind(AssertUnwindSafe(|| service_entry::merge(id, entries, rules, self.config.limits.bounds())));
        let Ok(Merged { members, others, rejects }) = merged else {
            return known.into_iter().map(|key| (key, Intent::Unreadable)).collect();
        };
        let before = self.set_rejects(id, &rejects);
        for (reason, (count, sample)) in rejects {
            let grew = before.get(&reason).is_none_or(|before| *before < count);
            if grew && !reason.is_decision() {
                self.notices.give(now, Notice::PayloadNotServed { id: Arc::clone(id), reason, sample });
            }
        }
        let main = std::iter::once((ServiceKey::main(id), members));
        let found = main.chain(others.into_iter().map(|(by, members)| (ServiceKey::beside(id, &by), members)));
        let mut found: BTreeMap<ServiceKey, Vec<Member>> = found.collect();
        for key in known {
            found.entry(key).or_default();
        }
        found.into_iter().map(|(key, members)| (key, Intent::Endpoints { members, allowed: true })).collect()
    }

    /// Counts what is not served of a service, and names the service where that is since there is too much; returns the counts
    /// of before.
    fn set_rejects(&mut self, id: &Arc<str>, rejects: &BTreeMap<Reject, (u32, Box<str>)>) -> BTreeMap<Reject, u32> {
        let counts: BTreeMap<Reject, u32> = rejects.iter().map(|(reason, (count, _))| (*reason, *count)).collect();
        let cut = |counts: &BTreeMap<Reject, u32>| {
            counts.iter().filter(|(reason, _)| reason.is_limit()).map(|(_, count)| count).sum::<u32>()
        };
        let now = cut(&counts);
        let before = self.rejects.set(id, counts);
        if cut(&before) != now {
            self.names.cut.push((Arc::clone(id), now));
        }
        before
    }

    fn insert<'p>(&self, turn: &mut Turn<'p>, id: ServiceKey, intent: Intent, rules: Rules<'p>) {
        let is_kept = turn.withhold == Withhold::Nothing && self.is_kept_anyway(turn.now, &id, &intent);
        let withhold = if is_kept { Withhold::Held } else { turn.withhold };
        let target = self.target(turn.now, withhold, &id, &intent);
        let outcome = match &intent {
            Intent::Unreadable => Outcome::Refused(Quarantine::by_panic()),
            _ => Outcome::Open,
        };
        turn.work.insert(id, Work { rules, intent, target, outcome, is_kept });
    }

    /// Whether it is known before the judgement that nothing goes of a service, and that without the breaker nothing would be left of
    /// it. Such a service need not be built without its endpoints before it is built with them: a mass of removals that is withheld
    /// costs as little as one that changes nothing.
    fn is_kept_anyway(&self, now: Millis, id: &ServiceKey, intent: &Intent) -> bool {
        matches!(intent, Intent::Endpoints { members, .. } if members.is_empty())
            && self.stage == Stage::Live
            && self.breaker.withholds(id.text())
            && !self.breaker.is_due(now)
            && !self.is_unknown(id, intent)
            && !self.quarantined.has(id.text())
            && self.services.get(id).is_some_and(|service| !service.members.is_empty())
    }

    /// Draws services in, and returns those that were; a service that is there already stays. The intent is as it was, or as the
    /// registry has it now where that was left to a later round: together with a service all others of its dataInfoId are drawn in.
    fn look_again(&mut self, turn: &mut Turn<'_>, ids: impl IntoIterator<Item = ServiceKey>) -> Vec<ServiceKey> {
        let mut drawn = Vec::new();
        for id in ids {
            if let Some(taken) = self.backlog.take_out(id.id()) {
                drawn.extend(self.look(turn, taken));
            }
            if !turn.work.contains_key(&id) {
                let waited = self.waiting.get_mut(&id).map(std::mem::take);
                let (intent, rules) = (waited.unwrap_or_else(|| self.services.take_intent(&id)), id.rules(turn.policy));
                self.insert(turn, id.clone(), intent, rules);
                drawn.push(id);
            }
        }
        drawn
    }

    /// The view is complete: the registry has no endpoints of a service that it has not named.
    fn miss_unheard(&self, turn: &mut Turn<'_>) {
        let unheard = self.services.iter().filter(|(id, service)| service.is_unheard() && !turn.work.contains_key(*id));
        let unheard: Vec<ServiceKey> = unheard.map(|(id, _)| id.clone()).collect();
        for id in unheard {
            let intent = Intent::Endpoints { members: Vec::new(), allowed: turn.policy.serves(id.id()) };
            let rules = id.rules(turn.policy);
            self.insert(turn, id, intent, rules);
        }
    }

    fn target(&self, now: Millis, withhold: Withhold, id: &ServiceKey, intent: &Intent) -> Target {
        let service = self.services.get(id);
        let (members, allowed) = match (intent, service) {
            (Intent::Endpoints { members, allowed }, _) => (&members[..], *allowed),
            (Intent::AsServed, Some(service)) => (&service.members[..], true),
            (Intent::AsServed, None) => return Target::Gone,
            (Intent::Unheard | Intent::Unreadable, _) => return Target::Stay,
        };
        let is_unknown = self.is_unknown(id, intent);
        if is_unknown && members.is_empty() && service.is_some_and(|service| service.members.is_empty()) {
            return Target::Stay;
        }
        let keeping = service.filter(|_| is_unknown || self.withholds(withhold, id));
        let extended = keeping.and_then(|service| service.with_missing(members, allowed));
        let is_empty = extended.as_deref().unwrap_or(members).is_empty();
        let empty_since = match service {
            _ if !is_empty => None,
            Some(service) => Some(service.empty_since.unwrap_or(now)),
            // A service that is first seen without endpoints is not served.
            None => return Target::Gone,
        };
        // Before the view is complete nothing goes.
        let over = |since| self.stage != Stage::Gathering && since <= now - self.empty_grace();
        if service.is_none() && allowed && self.additions.waits(id.text()) {
            Target::Wait
        } else if (allowed || extended.is_some()) && !empty_since.is_some_and(over) {
            Target::Serve { extended, empty_since }
        } else {
            Target::Gone
        }
    }

    fn withholds(&self, withhold: Withhold, id: &ServiceKey) -> bool {
        match withhold {
            Withhold::Nothing => false,
            Withhold::Held => self.breaker.withholds(id.text()),
            Withhold::Everything => true,
        }
    }

    /// Whether a service that the policy serves could not be read, so that nothing is known to be gone from it.
    fn is_unknown(&self, id: &ServiceKey, intent: &Intent) -> bool {
        self.unknown.contains(id.id()) && !matches!(intent, Intent::Endpoints { allowed: false, .. })
    }

    /// Finds the outcome of services, and of those whose host or virtual address that changes.
    fn settle(&mut self, turn: &mut Turn<'_>, mut todo: BTreeSet<ServiceKey>) {
        while !todo.is_empty() {
            // First places for all, so that few are built for a place that they do not keep. Services that are drawn in may
            // claim otherwise than before.
            let mut claiming = todo.clone();
            while !claiming.is_empty() {
                let drawn = self.look_again(turn, claiming.iter().cloned());
                claiming.extend(drawn.iter().cloned());
                todo.extend(drawn);
                claiming.iter().for_each(|id| self.try_in_place(turn, id));
                let movers: Movers = claiming.iter().flat_map(|id| self.claim_place(&turn.work[id], id)).collect();
                claiming = movers.iter().filter(|id| !turn.work.contains_key(*id)).cloned().collect();
                todo.extend(movers);
            }
            // Then builds. A service that cannot be built keeps its old place, which may move others.
            for id in std::mem::take(&mut todo) {
                let place = self.assignment.place(&id);
                if !self.build(turn, &id, place) {
                    todo.extend(self.keep_place(&id));
                }
            }
        }
    }

    /// Builds a service that has kept its place so far before it claims another, since it may have to keep that on: nobody is to move
    /// into a place that is free in between. Tried are the place that it has and the host that the policy sets.
    fn try_in_place(&mut self, turn: &mut Turn<'_>, id: &ServiceKey) {
        if !self.assignment.keeps(id) {
            return;
        }
        let Some(Work { rules, target: Target::Serve { .. }, outcome: Outcome::Open, .. }) = turn.work.get(id) else {
            return;
        };
        let Some(place) = self.assignment.place(id) else { return };
        let set = rules.host.filter(|host| **host != *place.host && self.assignment.may_set(host)).map(Into::into);
        if self.build(turn, id, Some(place.clone()))
            && let Some(host) = set
        {
            self.build(turn, id, Some(Place { host, ..place }));
        }
    }

    /// Claims a place for a service, or gives it up, as its aim is.
    fn claim_place(&mut self, Work { rules, target, outcome, .. }: &Work<'_>, id: &ServiceKey) -> Movers {
        match (target, outcome) {
            (Target::Gone | Target::Wait, _) => self.assignment.withdraw(id),
            (Target::Stay, _) | (_, Outcome::Stayed | Outcome::Refused(_)) => self.keep_place(id),
            (Target::Serve { empty_since, .. }, _) => self.assignment.claim(id, rules.host, empty_since.is_some()),
        }
    }

    /// Keeps the place of a service that stays as it is served; a service that is not served has none.
    pub(super) fn keep_place(&mut self, id: &ServiceKey) -> Movers {
        match self.services.get(id) {
            Some(service) => self.assignment.keep(id, &self.services.kept_host(service), service.vips),
            None => self.assignment.withdraw(id),
        }
    }

    /// Builds a service for a place; `false`: the service turns out to have to stay as it is.
    fn build(&mut self, turn: &mut Turn<'_>, id: &ServiceKey, place: Option<Place>) -> bool {
        let Some(work) = turn.work.get_mut(id) else { return true };
        let (members, is_empty) = match (&work.target, &work.outcome) {
            (Target::Gone, _) => {
                work.outcome = Outcome::Gone;
                return true;
            }
            (Target::Wait, _) => {
                work.outcome = Outcome::Waits;
                return true;
            }
            (_, Outcome::Stayed | Outcome::Refused(_)) => return true,
            (Target::Stay, _) => {
                work.outcome = Outcome::Stayed;
                return true;
            }
            (Target::Serve { extended, empty_since }, _) => {
                let served = self.services.get(id).map(|service| &service.members[..]);
                let members = match (extended, &work.intent) {
                    (Some(extended), _) => &extended[..],
                    (None, Intent::Endpoints { members, .. }) => &members[..],
                    (None, _) => served.unwrap_or_default(),
                };
                (members, empty_since.is_some())
            }
        };
        if let (Outcome::Built(build), Some(place)) = (&work.outcome, &place)
            && build.place == *place
        {
            return true;
        }
        let Some(place) = place else {
            let detail = "every host that it may have is another service's".to_owned();
            work.outcome = Outcome::Refused(Quarantine { reason: "no-host", detail });
            return false;
        };
        let may_lose = !work.is_kept && !self.withholds(turn.withhold, id) && !self.is_unknown(id, &work.intent);
        let export_to = exported(&work.rules, id.id(), self.seen.as_deref(), &self.config.namespace);
        let rules = Rules { export_to: &export_to, ..work.rules };
        let make = || self.services.make(id, &place, members, is_empty, &rules);
        let made = catch_unwind(AssertUnwindSafe(make));
        self.translations += u64::from(!matches!(made, Ok(Ok(None))));
        work.outcome = match made {
            Ok(Ok(None)) => Outcome::Same,
            Ok(Ok(Some(build))) if build.loses && !may_lose => Outcome::Stayed,
            Ok(Ok(Some(mut build))) => {
                build.changes.gather(&mut turn.room);
                Outcome::Built(build.into())
            }
            Ok(Err(invalid)) => {
                Outcome::Refused(Quarantine { reason: invalid.rule.name(), detail: invalid.to_string() })
            }
            Err(_) => Outcome::Refused(Quarantine::by_panic()),
        };
        !matches!(work.outcome, Outcome::Stayed | Outcome::Refused(_))
    }

    /// Serves the outcomes of a turn; returns what that changes.
    fn serve(&mut self, turn: Turn<'_>) -> RoundChanges {
        let Turn { now, withhold, work, .. } = turn;
        let mut changes = RoundChanges::default();
        for (id, Work { intent, target, outcome, .. }) in work {
            let is_as_before = matches!(target, Target::Stay);
            let (extended, empty_since) = match target {
                Target::Serve { extended, empty_since } => (extended, empty_since),
                Target::Gone | Target::Wait | Target::Stay => (None, None),
            };
            if !matches!(outcome, Outcome::Waits) && self.waiting.remove(&id).is_some() {
                self.names.waiting.push((Arc::clone(id.text()), false));
            }
            let has_more = extended.is_some() || matches!(outcome, Outcome::Stayed);
            self.others.note(&id, !matches!(outcome, Outcome::Gone));
            self.set_withheld(&id, has_more && self.withholds(withhold, &id) && !self.is_unknown(&id, &intent));
            // All endpoints that it has from now on are those of an intent, which was read under this policy.
            let is_renewed = match outcome {
                Outcome::Built(_) | Outcome::Same => extended.is_none() && matches!(intent, Intent::Endpoints { .. }),
                _ => matches!(outcome, Outcome::Gone),
            };
            match outcome {
                Outcome::Gone => {
                    // Not before it is known that the removal is not withheld.
                    self.additions.note(id.text(), true, false);
                    self.release(id.text());
                    self.left_out.set(id.text(), []);
                    if let Some((removed, members)) = self.services.remove(&id) {
                        changes.add(removed);
                        self.direct
                            .iter_mut()
                            .for_each(|direct| direct.update(now, &id, &members, &[], &self.outdated));
                    }
                }
                Outcome::Waits => {
                    self.release(id.text());
                    self.left_out.set(id.text(), []);
                    if self.waiting.insert(id.clone(), intent).is_none() {
                        self.names.waiting.push((Arc::clone(id.text()), true));
                    }
                }
                Outcome::Built(build) => {
                    self.release(id.text());
                    let (members, intent) = self.members(&id, extended, intent);
                    changes.add(self.put(now, &id, *build, members, empty_since, intent));
                }
                Outcome::Same => {
                    self.release(id.text());
                    let (members, intent) = self.members(&id, extended, intent);
                    let before = self.services.renew(&id, members);
                    self.services.stay(&id, empty_since, intent);
                    self.update_direct(now, &id, &before);
                }
                Outcome::Stayed | Outcome::Open => {
                    self.release(id.text());
                    if is_as_before {
                        self.services.keep(&id, intent);
                    } else {
                        self.services.stay(&id, empty_since, intent);
                    }
                }
                Outcome::Refused(why) => {
                    let kept = self.services.get(&id).is_some();
                    if is_as_before {
                        self.services.keep(&id, intent);
                    } else {
                        self.services.stay(&id, empty_since, intent);
                    }
                    self.quarantine(now, id.text(), why, kept);
                }
            }
            if is_renewed {
                self.outdated.remove(&id);
            }
        }
        changes
    }

    /// Serves a service in a new form; returns what that changes.
    fn put(
        &mut self,
        now: Millis,
        id: &ServiceKey,
        mut build: Build,
        members: Vec<Member>,
        empty_since: Option<Millis>,
        intent: Intent,
    ) -> ServiceChanges {
        let left_out = std::mem::take(&mut build.left_out);
        let before = self.left_out.set(id.text(), left_out.iter().map(|(rule, (count, _))| (*rule, *count)));
        for (rule, (count, invalid)) in left_out {
            if !before.contains_key(&rule) {
                self.notices.give(now, Notice::EndpointsLeftOut { id: Arc::clone(id.text()), count, invalid });
            }
        }
        let changes = std::mem::take(&mut build.changes);
        let before = self.services.put(id, build, members, empty_since, intent);
        self.update_direct(now, id, &before);
        changes
    }

    /// Ends a round for the places: who has a host or virtual address keeps it, and who has another than before is named.
    fn settle_places(&mut self, now: Millis) {
        for Move { id, was, is } in self.assignment.settle() {
            let id = Arc::clone(id.text());
            if was.host != is.host {
                self.moves.hosts += 1;
                self.notices.give(now, Notice::HostChanged { id, was: was.host, is: is.host });
            } else if was.vips != is.vips {
                self.moves.vips += 1;
                self.notices.give(now, Notice::VipChanged { id, was: was.vips, is: is.vips });
            }
        }
        for (name, contest) in self.assignment.contests_changed() {
            if let Some(contest) = contest.clone() {
                self.notices.give(now, Notice::PlaceContested { name: Arc::clone(&name), contest });
            }
            self.names.contested.push((name, contest));
        }
        self.names.standing_back.extend(self.assignment.waits_changed());
    }

    /// The endpoints that a service was built of, and the intent that remains beside them.
    fn members(&self, id: &ServiceKey, extended: Option<Vec<Member>>, intent: Intent) -> (Vec<Member>, Intent) {
        match (extended, intent) {
            (Some(extended), intent) => (extended, intent),
            (None, Intent::Endpoints { members, .. }) => (members, Intent::AsServed),
            (None, intent) => {
                (self.services.get(id).map(|service| service.members.clone()).unwrap_or_default(), intent)
            }
        }
    }

    /// Tells the entries of applications that a service had other endpoints before.
    fn update_direct(&mut self, now: Millis, id: &ServiceKey, before: &[Member]) {
        if let (Some(direct), Some(service)) = (&mut self.direct, self.services.get(id)) {
            direct.update(now, id, before, &service.members, &self.outdated);
        }
    }

    fn serve_direct(&mut self, now: Millis, policy: &Policy, changes: &mut RoundChanges) {
        let Some(direct) = &mut self.direct else { return };
        let keep = self.stage == Stage::Gathering;
        if !keep {
            direct.expire(now);
        }
        let outcomes = direct.changes(&self.config, policy, keep, changes);
        self.names.lingering.extend(direct.lingering_changed());
        direct.notices().into_iter().for_each(|notice| self.notices.give(now, notice));
        if !policy.has_direct() && direct.is_empty() {
            self.direct = None;
        }
        for direct::Outcome { host, refused, kept } in outcomes {
            let name = of_entry(&host);
            match refused {
                None => self.release(&name),
                Some(why) => self.quarantine(now, &name, why, kept),
            }
        }
    }

    pub(super) fn set_withheld(&mut self, id: &ServiceKey, is_withheld: bool) {
        let changed = if is_withheld { self.withheld.insert(id.clone()) } else { self.withheld.remove(id) };
        if changed {
            self.names.withheld.push((Arc::clone(id.text()), is_withheld));
        }
    }

    fn quarantine(&mut self, now: Millis, id: &Arc<str>, why: Quarantine, kept: bool) {
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
