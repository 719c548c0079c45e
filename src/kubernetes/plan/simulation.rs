//! A world in which a plan writes to a [model](super::model) of an API server while everything goes wrong that may.
//!
//! The world knows what is there and what was promised, and checks after each step what [`super`] says of a plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::{model::*, *};
use crate::kubernetes::{failure::Failure, objects::Fingerprint};

#[derive(Debug, Clone, Copy)]
enum Follower {
    /// A list is on its way, as of this version or a later one.
    Listing { began: Instant, from: u64 },
    /// The watch has shown everything up to this version.
    Watching { at: u64 },
}

#[derive(Debug, Clone)]
struct Flight {
    write: PlannedWrite,
    content: Option<Fingerprint>,
    /// The WorkloadEntries that are to be there when the ServiceEntry begins to select.
    promise: BTreeSet<ObjectKey>,
    /// Whether removals were withheld when it began.
    holds: bool,
    /// The API server's answer, once the write has had its effect.
    answer: Option<Result<Outcome, Failure>>,
    /// When the write has its effect although it was given up.
    lands: Option<Instant>,
}

/// A way in which a write may fail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    None,
    /// No answer; the write was done.
    LostAnswer,
    /// No answer; the write was not done.
    Lost,
    /// No answer; the write is done later.
    Delayed,
    Conflict,
    Denied,
    NoRight,
    NoNamespace,
    Invalid,
    TooMany,
    ErrorAfter,
    Hangs,
    Unauthorized,
}

impl Fault {
    pub(super) const ALL: [Self; 13] = [
        Self::None,
        Self::LostAnswer,
        Self::Lost,
        Self::Delayed,
        Self::Conflict,
        Self::Denied,
        Self::NoRight,
        Self::NoNamespace,
        Self::Invalid,
        Self::TooMany,
        Self::ErrorAfter,
        Self::Hangs,
        Self::Unauthorized,
    ];
}

impl Fault {
    /// The failure that the plan is told.
    fn failure(self, kind: ObjectKind) -> Failure {
        let refused = |code, message: &str| Failure::refused(code, message, None);
        match self {
            Self::None | Self::LostAnswer | Self::Delayed => Failure::unreachable("no answer within 5 s"),
            Self::Lost => Failure::unreachable("connection refused"),
            Self::Conflict => refused(409, "the object has been modified"),
            Self::Denied => denied(),
            Self::NoRight => rbac(kind),
            Self::NoNamespace => refused(404, "namespaces \"n\" not found"),
            Self::Invalid => refused(422, "is invalid"),
            Self::TooMany => Failure::refused(429, "too many requests", Some(Duration::from_secs(1))),
            Self::ErrorAfter => refused(500, "etcdserver: leader changed"),
            Self::Hangs => refused(504, "Timeout: request did not complete within the allotted timeout"),
            Self::Unauthorized => refused(401, "Unauthorized"),
        }
    }
}

pub(super) struct Simulation {
    pub(super) now: Instant,
    pub(super) plan: Plan,
    pub(super) server: Server,
    pub(super) orders: SinkOrders,
    shapes: [ServiceShape; SERVICES as usize],
    /// Services by name, beside those with a shape.
    named: BTreeMap<ObjectKey, Converted>,
    desired: BTreeMap<ObjectKey, Fingerprint>,
    /// Whether the plan has taken a view in this term.
    told: bool,
    followers: BTreeMap<ObjectKind, Follower>,
    flights: Vec<Flight>,
    delayed: Vec<Flight>,
    lease_until: Instant,
    /// Objects that the API server refuses or has no answer for, until told otherwise.
    pub(super) refuses: BTreeMap<ObjectKey, Fault>,
    pub(super) refuses_kind: BTreeSet<ObjectKind>,
    /// WorkloadEntries that are to be there as long as a ServiceEntry selects them.
    owed: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// WorkloadEntries that somebody else took away.
    meddled: BTreeSet<ObjectKey>,
    /// Endpoints of each group when removals began to be withheld.
    baseline: Option<BTreeMap<u128, usize>>,
    terms: u64,
    pub(super) notices: Vec<Notice>,
    /// The writes that began, in order.
    pub(super) begun: Vec<(Instant, ObjectKey)>,
}

const CONCURRENCY: usize = 3;
/// Longer than any history.
const FAR: Duration = Duration::from_secs(1 << 30);

impl Simulation {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let orders = SinkOrders::default();
        let mut world = Self {
            now,
            plan: new_plan(orders, now, 0),
            server: Server::default(),
            orders,
            shapes: [ServiceShape::Absent; SERVICES as usize],
            named: BTreeMap::new(),
            desired: BTreeMap::new(),
            told: false,
            followers: BTreeMap::new(),
            flights: Vec::new(),
            delayed: Vec::new(),
            lease_until: now + FAR,
            refuses: BTreeMap::new(),
            refuses_kind: BTreeSet::new(),
            owed: BTreeMap::new(),
            meddled: BTreeSet::new(),
            baseline: None,
            terms: 0,
            notices: Vec::new(),
            begun: Vec::new(),
        };
        world.relist_all();
        world
    }

    /// Every object that there may be.
    pub(super) fn some_key(n: u8) -> ObjectKey {
        let (service_no, e) = (n % SERVICES, n / SERVICES % ENDPOINTS);
        match n / 32 {
            0..=2 => service(service_no),
            3 => key(ObjectKind::DestinationRule, format!("d{service_no}")),
            4 | 5 => key(ObjectKind::WorkloadEntry, format!("p{service_no}-{e}")),
            _ => key(ObjectKind::WorkloadEntry, format!("w{service_no}-{e}")),
        }
    }

    /// An object that is being written, one that is there, or any.
    pub(super) fn key_to_meddle(&self, n: u8) -> ObjectKey {
        let nth = usize::from(n / 3);
        let (flight, there) = (self.flights.get(nth % CONCURRENCY), self.server.objects.keys());
        let key = match n % 3 {
            0 => flight.map(|flight| &flight.write.key),
            1 => there.clone().nth(nth % there.len().max(1)),
            _ => None,
        };
        key.cloned().unwrap_or_else(|| Self::some_key(n))
    }

    fn relist_all(&mut self) {
        for kind in ObjectKind::ALL {
            self.lose_watch(kind);
        }
    }

    // Steps.

    /// Time passes; the plan is told. The watch is not so far behind that an unknown outcome is of the past before it shows.
    pub(super) fn pass(&mut self, span: Duration) {
        let now = self.now + span;
        let (due, later) = self.delayed.drain(..).partition(|flight| flight.lands.is_some_and(|at| at <= now));
        self.delayed = later;
        let due: Vec<Flight> = due;
        due.iter().for_each(|flight| drop(self.take_effect(flight)));
        let in_doubt = self.plan.doubts.iter().filter(|(until, _)| *until <= now).map(|(_, key)| key.kind);
        for kind in in_doubt.collect::<BTreeSet<ObjectKind>>() {
            while self.deliver(kind, 0) {}
        }
        self.now = now;
        self.plan.tick(now);
        self.after();
    }

    pub(super) fn pass_to_wake(&mut self) {
        if let Some(wake) = self.plan.wake() {
            self.pass(wake.saturating_duration_since(self.now));
        }
    }

    /// The view changes.
    pub(super) fn want(&mut self, changes: &[(u8, ServiceShape)]) {
        let before = self.desired_objects();
        for (n, shape) in changes {
            self.shapes[usize::from(*n)] = *shape;
        }
        self.tell_view(&before);
    }

    /// The view has services of these names, with these endpoints in their ServiceEntries.
    pub(super) fn want_named(&mut self, names: impl IntoIterator<Item = impl AsRef<str>>, endpoints: &[u64]) {
        let before = self.desired_objects();
        for name in names {
            let key = key(ObjectKind::ServiceEntry, name);
            let hash = |of: &dyn Fn(&mut DefaultHasher)| {
                let mut hasher = DefaultHasher::new();
                of(&mut hasher);
                u128::from(hasher.finish())
            };
            let group = hash(&|hasher| key.hash(hasher)) << 8;
            let digest = hash(&|hasher| (&key, endpoints).hash(hasher));
            let service = converted(key.clone(), digest, endpoints.to_vec(), Some(group), false);
            self.named.insert(key, service);
        }
        self.tell_view(&before);
    }

    pub(super) fn want_no_more(&mut self, name: &str) {
        let before = self.desired_objects();
        self.named.remove(&key(ObjectKind::ServiceEntry, name));
        self.tell_view(&before);
    }

    fn desired_objects(&self) -> BTreeMap<ObjectKey, Vec<Converted>> {
        let named = self.named.iter().map(|(key, service)| (key.clone(), vec![service.clone()]));
        (0..SERVICES).flat_map(|n| resources(n, self.shapes[usize::from(n)])).chain(named).collect()
    }

    /// Everything happens as it does when nothing interferes, for a while.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.pass(Duration::from_millis(1));
            let is_idle = self.flights.is_empty() && !ObjectKind::ALL.into_iter().any(|kind| self.deliver(kind, 0));
            self.answer(0, Fault::None);
            if is_idle {
                let wake = self.plan.wake().map_or(end, |wake| wake.min(end));
                self.pass(wake.saturating_duration_since(self.now));
            }
        }
    }

    /// The endpoints that the API has of a service with this name.
    pub(super) fn shown(&self, name: &str) -> Option<&[u64]> {
        self.server.objects.get(&key(ObjectKind::ServiceEntry, name)).map(|object| &*object.fingerprint.endpoints)
    }

    /// When writes of an object began.
    pub(super) fn tries(&self, of: &ObjectKey) -> Vec<Instant> {
        self.begun.iter().filter(|(_, key)| key == of).map(|(at, _)| *at).collect()
    }

    fn tell_view(&mut self, before: &BTreeMap<ObjectKey, Vec<Converted>>) {
        let after = self.desired_objects();
        self.desired =
            after.values().flatten().map(|object| (object.key.clone(), object.fingerprint.clone())).collect();
        self.forgive();
        if self.told || self.plan.takes_views() {
            // The first view of a term is told as a whole.
            let nothing = BTreeMap::new();
            let before = if self.told { before } else { &nothing };
            let digests = |objects: &Vec<Converted>| -> Vec<(ObjectKey, u128)> {
                objects.iter().map(|object| (object.key.clone(), object.fingerprint.digest)).collect()
            };
            let keys: BTreeSet<&ObjectKey> = before.keys().chain(after.keys()).collect();
            for key in keys {
                let objects = after.get(key).cloned().unwrap_or_default();
                if before.get(key).is_none_or(|before| digests(before) != digests(&objects)) {
                    self.plan.desire(key, &key.name, objects);
                }
            }
            self.told = true;
            self.plan.view_taken(self.now);
        }
        self.after();
    }

    pub(super) fn order(&mut self, alter: impl FnOnce(&mut SinkOrders)) {
        alter(&mut self.orders);
        self.forgive();
        self.plan.obey(self.now, self.orders);
        self.after();
    }

    pub(super) fn renew(&mut self, span: Duration) {
        self.lease_until = self.now + span;
        self.plan.renewed(self.lease_until);
        self.after();
    }

    /// The lease is lost: what is under way is done or not, and a new term begins.
    pub(super) fn new_term(&mut self, done: bool) {
        let flights: Vec<Flight> = self.flights.drain(..).chain(self.delayed.drain(..)).collect();
        if done {
            let flights = flights.iter().filter(|flight| flight.answer.is_none());
            flights.for_each(|flight| drop(self.take_effect(flight)));
        }
        self.terms += 1;
        self.plan = new_plan(self.orders, self.now, self.terms);
        (self.lease_until, self.told, self.baseline) = (self.now + FAR, false, None);
        self.relist_all();
        self.after();
    }

    /// The API server comes back with other data.
    pub(super) fn lose_data(&mut self) {
        self.delayed.clear();
        while !self.flights.is_empty() {
            self.answer(0, Fault::Lost);
        }
        self.now += Duration::from_millis(1);
        self.meddled.extend(self.server.objects.keys().cloned());
        self.server.lose_data();
        self.owed.clear();
        self.relist_all();
        self.after();
    }

    pub(super) fn lose_watch(&mut self, kind: ObjectKind) {
        self.followers.insert(kind, Follower::Listing { began: self.now, from: self.server.version() });
    }

    /// The next thing that the watch of a kind shows, or the list that it begins with: the more `late`, the older.
    /// Whether there was something.
    pub(super) fn deliver(&mut self, kind: ObjectKind, late: u8) -> bool {
        match self.followers[&kind] {
            Follower::Listing { began, .. } if self.now >= began + LIST => self.lose_watch(kind),
            Follower::Listing { began, from } => {
                let at = self.server.version() - (self.server.version() - from) * u64::from(late) / 255;
                let objects = self.server.list(kind, at);
                self.followers.insert(kind, Follower::Watching { at });
                self.plan.listed(self.now, kind, began, &at.to_string(), objects);
                if !self.told && self.plan.takes_views() {
                    self.tell_view(&BTreeMap::new());
                }
            }
            Follower::Watching { at } => {
                let Some((at, key, object, is_there)) = self.server.next_event(kind, at) else { return false };
                self.followers.insert(kind, Follower::Watching { at });
                match is_there {
                    true => self.plan.shown(self.now, &key, object),
                    false => self.plan.gone(self.now, &key, &object),
                }
            }
        }
        self.after();
        true
    }

    pub(super) fn meddle(&mut self, key: &ObjectKey, how: Meddling) {
        self.delayed.retain(|flight| flight.write.key != *key);
        if !self.server.meddle(key, how) {
            return;
        }
        let takes_away = !matches!(how, Meddling::Edit | Meddling::EditOthers | Meddling::AddFinalizer);
        if takes_away {
            self.meddled.insert(key.clone());
            self.owed.remove(key);
            let owed = self.owed.values_mut();
            let promised = self.flights.iter_mut().chain(&mut self.delayed).map(|flight| &mut flight.promise);
            owed.chain(promised).for_each(|set| {
                set.remove(key);
            });
        }
        self.after();
    }

    /// A write under way has its effect on the API server, if it has any. The answer is on its way.
    pub(super) fn serve(&mut self, index: usize) {
        let Some(flight) = self.flights.get(index % self.flights.len().max(1)).filter(|f| f.answer.is_none()) else {
            return;
        };
        let (flight, kind) = (flight.clone(), flight.write.key.kind);
        let refused = self.refuses.get(&flight.write.key).copied();
        let fault = if self.refuses_kind.contains(&kind) { Some(Fault::NoRight) } else { refused };
        let answer = match fault {
            Some(fault) => Err(fault.failure(kind)),
            None => self.take_effect(&flight),
        };
        let served = self.flights.iter_mut().find(|other| other.write.key == flight.write.key);
        served.expect("it is under way").answer = Some(answer);
        self.after();
    }

    /// A write under way is answered, or seems to have failed.
    pub(super) fn answer(&mut self, index: usize, fault: Fault) {
        if matches!(fault, Fault::None | Fault::LostAnswer | Fault::ErrorAfter) {
            self.serve(index);
        }
        if self.flights.is_empty() {
            return;
        }
        let flight = self.flights.remove(index % self.flights.len());
        let key = flight.write.key.clone();
        let answer = match (fault, flight.answer.clone()) {
            (Fault::None, Some(answer)) => answer,
            // A write that has had its effect cannot be refused any more.
            (Fault::ErrorAfter, _) => Err(fault.failure(key.kind)),
            (_, Some(_)) => Err(Fault::Lost.failure(key.kind)),
            (Fault::Delayed, None) => {
                self.delayed.push(Flight { lands: Some(self.now + Duration::from_secs(20)), ..flight });
                Err(fault.failure(key.kind))
            }
            (_, None) => Err(fault.failure(key.kind)),
        };
        self.plan.answered(self.now, &key, answer);
        self.after();
    }

    /// The writes under way.
    pub(super) fn in_flight(&self) -> Vec<(ObjectKey, WriteRequest)> {
        self.flights.iter().map(|flight| (flight.write.key.clone(), flight.write.request.clone())).collect()
    }

    /// A write has its effect on the API server.
    fn take_effect(&mut self, flight: &Flight) -> Result<Outcome, Failure> {
        let key = &flight.write.key;
        // An earlier attempt that was given up has arrived by then.
        let (before, others): (Vec<Flight>, _) = self.delayed.drain(..).partition(|other| other.write.key == *key);
        self.delayed = others;
        before.iter().for_each(|flight| drop(self.take_effect(flight)));
        let selected = |world: &Self| {
            let object = world.server.objects.get(key).filter(|object| !object.foreign);
            object.filter(|object| object.fingerprint.selects).and_then(|object| object.fingerprint.group)
        };
        let group = match self.server.objects.get(key) {
            Some(object) => object.fingerprint.group,
            None => flight.content.as_ref().and_then(|content| content.group),
        };
        let (was_selected, before) = (selected(self), group.map(|group| self.endpoints(group)));
        let outcome = self.server.write(key, &flight.write.request, flight.content.clone());
        if matches!(outcome, Ok(Outcome::Applied(_))) {
            self.meddled.remove(key);
        }
        let is_selected = selected(self);
        if is_selected.is_none() {
            self.owed.remove(key);
        } else if was_selected != is_selected {
            self.owed.insert(key.clone(), flight.promise.clone());
            self.forgive();
        }
        if flight.holds
            && let (Some(before), Some(group), Some(baseline)) = (before, group, &self.baseline)
            && self.meddled.is_empty()
        {
            let least = before.min(baseline.get(&group).copied().unwrap_or(0));
            let after = self.endpoints(group);
            assert!(after >= least, "{key}: {before} -> {after} endpoints while removals are withheld: {flight:?}");
        }
        outcome
    }

    /// The endpoints of a service in the API, as istiod sees them.
    fn endpoints(&self, group: u128) -> usize {
        let own = |kind| {
            let objects = self.server.objects.iter().filter(move |(key, _)| key.kind == kind);
            objects.map(|(_, object)| object).filter(move |o| !o.foreign && o.fingerprint.group == Some(group))
        };
        let services: Vec<&Stored> = own(ObjectKind::ServiceEntry).collect();
        let inline: usize = services.iter().map(|object| object.fingerprint.endpoints.len()).sum();
        let selects = services.iter().any(|object| object.fingerprint.selects);
        inline + if selects { own(ObjectKind::WorkloadEntry).count() } else { 0 }
    }

    // Promises.

    /// WorkloadEntries that are not desired any more need not be there, while their service is to go on selecting.
    fn forgive(&mut self) {
        let (desired, purging) = (&self.desired, self.orders.purging);
        let selects = |key: &ObjectKey| !purging && desired.get(key).is_some_and(|content| content.selects);
        let owed = self.owed.iter_mut();
        let promised = self.flights.iter_mut().chain(&mut self.delayed).map(|f| (&f.write.key, &mut f.promise));
        for (_, set) in owed.chain(promised).filter(|(key, _)| selects(key)) {
            set.retain(|key| desired.contains_key(key));
        }
    }

    /// The WorkloadEntries that are to be there when this write makes a ServiceEntry select.
    fn promise(&self, content: Option<&Fingerprint>) -> BTreeSet<ObjectKey> {
        let Some(group) = content.filter(|content| content.selects).and_then(|content| content.group) else {
            return BTreeSet::new();
        };
        let of_group = self.desired.iter().filter(|(key, content)| {
            key.kind == ObjectKind::WorkloadEntry && content.group == Some(group) && !self.meddled.contains(key)
        });
        let is_excused = |key: &ObjectKey| {
            let Some(entry) = self.plan.objects.get(key) else { return false };
            let excused = entry.refusal.as_ref().is_some_and(|refusal| refusal.excused);
            excused || matches!(entry.observed, Some(Observed::Foreign(_)))
        };
        of_group.map(|(key, _)| key.clone()).filter(|key| !is_excused(key)).collect()
    }

    /// After each step: begins what may begin, and checks.
    fn after(&mut self) {
        if self.plan.withheld().is_none() {
            self.baseline = None;
        } else if self.baseline.is_none() {
            self.baseline = Some((1..=u128::from(SERVICES)).map(|group| (group, self.endpoints(group))).collect());
        }
        while let Some(write) = self.plan.next(self.now) {
            assert!(!self.orders.frozen && self.now < self.lease_until, "{write:?}");
            assert!(self.flights.iter().all(|flight| flight.write.key != write.key), "twice: {write:?}");
            let content = self.desired.get(&write.key).filter(|_| write.source.is_some()).cloned();
            if let Some(ManifestSource::Kept(manifest)) = &write.source {
                let digest = content.as_ref().map(|content| content.digest.to_string());
                assert_eq!(digest.as_deref(), Some(manifest.spec()), "the content of {}", write.key);
            }
            let holds = self.plan.withheld().is_some() && !self.orders.purging;
            assert!(!holds || !matches!(write.request, WriteRequest::Delete(_)), "{write:?} is withheld");
            let promise = self.promise(content.as_ref());
            self.begun.push((self.now, write.key.clone()));
            self.flights.push(Flight { write, content, promise, holds, answer: None, lands: None });
        }
        assert!(self.flights.len() <= CONCURRENCY && self.plan.in_flight() == self.flights.len());
        for (service, owed) in &self.owed {
            let group = self.server.objects[service].fingerprint.group;
            for key in owed {
                let there = self.server.objects.get(key);
                let is_there = there.is_some_and(|object| !object.foreign && object.fingerprint.group == group);
                assert!(is_there, "{service} selects {key}, which is not there");
            }
        }
        self.notices.extend(self.plan.take_notices());
    }

    /// Nothing goes wrong from now on: everything that is desired comes to be, within so many steps.
    pub(super) fn calm_down(&mut self) {
        self.refuses.clear();
        self.refuses_kind.clear();
        let stuck: Vec<ObjectKey> = self.server.objects.keys().cloned().collect();
        stuck.iter().for_each(|key| self.meddle(key, Meddling::DropFinalizer));
        self.order(|orders| (orders.frozen, orders.purging) = (false, false));
        self.renew(FAR);
        for _ in 0..5_000 {
            self.now += Duration::from_millis(1);
            if !self.flights.is_empty() {
                self.answer(0, Fault::None);
            } else if !ObjectKind::ALL.into_iter().any(|kind| self.deliver(kind, 0)) {
                let plan = &self.plan;
                if plan.pending() == 0 && plan.schedule.withheld().is_empty() && plan.doubts.is_empty() {
                    return self.check_in_sync();
                }
                assert!(self.plan.wake().is_some(), "it waits for ever: {:#?}", self.plan);
                self.pass_to_wake();
            }
        }
        panic!("it does not come to rest: {:#?}", self.plan);
    }

    fn check_in_sync(&self) {
        let is_foreign = |key: &&ObjectKey| self.server.objects.get(*key).is_some_and(|object| object.foreign);
        let foreign: Vec<&ObjectKey> = self.desired.keys().filter(is_foreign).collect();
        assert_eq!(self.plan.problems().keys().collect::<Vec<_>>(), foreign, "problems");
        assert_eq!(self.plan.in_sync(), foreign.is_empty());
        assert_eq!((self.plan.objects(), self.plan.kept), (self.desired.len(), 0));
        let ours: BTreeMap<&ObjectKey, u128> = {
            let ours = self.server.objects.iter().filter(|(_, object)| !object.foreign);
            // Also in the form that the API server likes, or liked.
            ours.map(|(key, object)| (key, object.fingerprint.digest & !ADJUSTED)).collect()
        };
        let desired: BTreeMap<&ObjectKey, u128> = {
            let desired = self.desired.iter().filter(|(key, _)| !is_foreign(key));
            desired.map(|(key, content)| (key, content.digest)).collect()
        };
        assert_eq!(ours, desired, "what is in the API");
        self.check_plan();
        let known: BTreeSet<&ObjectKey> = self.plan.objects.keys().collect();
        let there: BTreeSet<&ObjectKey> = self.desired.keys().chain(self.server.objects.keys()).collect();
        assert_eq!(known, there, "nothing else is remembered");
    }

    /// The plan's sums and indexes are those of a count over everything.
    pub(super) fn check_plan(&self) {
        let plan = &self.plan;
        let desired = || plan.objects.values().filter_map(|entry| entry.desired.as_ref());
        assert_eq!(plan.desired, desired().count());
        assert_eq!(
            plan.kept,
            desired()
                .map(|desired| match &desired.text {
                    DesiredText::Resource(_, Some(manifest)) => manifest.len(),
                    _ => 0,
                })
                .sum::<usize>()
        );
        let mut pending = 0;
        for (key, entry) in &plan.objects {
            assert!(!entry.is_empty(), "{key}");
            assert_eq!(entry.missing_in, entry.is_missing_in(key.kind), "{key}");
            assert_eq!(entry.in_flight.is_some(), entry.standing == Standing::InFlight, "{key}");
            pending += usize::from(!matches!(entry.standing, Standing::Idle | Standing::Withheld));
            for group in entry.groups().into_iter().flatten() {
                assert!(plan.groups.members(group).any(|member| member == key), "{key} in {group}");
            }
            if let Standing::Waiting(Some(group)) = entry.standing {
                assert!(plan.groups.waits(group, key), "{key} waits in {group}");
            }
            if let Some(doubt) = &entry.doubt {
                assert!(plan.doubts.contains(&(doubt.until, key.clone())));
            }
        }
        assert_eq!(plan.pending(), pending);
        for group in plan.groups.ids() {
            let missing = plan.objects.values().filter(|entry| entry.missing_in == Some(group)).count();
            assert_eq!(plan.groups.lacks(group), missing > 0);
            for key in plan.groups.members(group) {
                assert!(plan.objects.get(key).is_some_and(|entry| entry.groups().contains(&Some(group))), "{key}");
            }
        }
        assert_eq!(plan.doubts.len(), plan.objects.values().filter(|entry| entry.doubt.is_some()).count());
        assert!(plan.touched.is_empty());
    }

    /// Objects of these keys are kept in another form than they are written in.
    pub(super) fn adjust(&mut self, key: &ObjectKey) {
        self.server.adjust(key);
    }
}

fn new_plan(orders: SinkOrders, now: Instant, seed: u64) -> Plan {
    let protect = Protect { mass_delete_services: 1, mass_delete_endpoints: 3, ..Protect::default() };
    let settings = PlanSettings { concurrency: CONCURRENCY, rate: 50, protect };
    Plan::new(settings, orders, now + FAR, Jitter::seeded(seed), now)
}
