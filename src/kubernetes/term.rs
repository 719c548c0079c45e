//! What the holder of the lease does: keeps the objects in the API as the view wants them.
//!
//! Two maps, what is wanted and what was seen in the API, and for each object the one [`Step`] that they call for. A
//! change of either looks at that object again; nothing is compared as a whole but at the start.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinSet},
    time::Instant,
};

use super::{
    Orders,
    api::{Api, Failure, Remedy},
    flight::{self, Attempt, Landing, Outcome},
    objects::{Content, Form, Key, Kind, Seen, object_name, wanted},
    pace::{Backoff, Bucket},
    reflect::{self, Event, is_older},
    report::{FirstSync, Problem, Report},
};
use crate::{
    breaker::{Breaker, Verdict},
    config::{self, Protect},
    model,
    part::Part,
    snapshot::{Set, Snapshot},
    view::View,
};

/// How often the log says how far it is, while there is something to do.
const PROGRESS: Duration = Duration::from_secs(10);
/// A fight with another writer is forgotten after this.
const PEACE: Duration = Duration::from_secs(600);

/// An object that is wanted.
struct Want {
    form: Form,
    source: Source,
}

/// Where its content is found when it is to be written.
enum Source {
    /// In the view, by this name.
    Resource(Arc<str>),
    /// Here: an endpoint of a service with too many.
    Content(Box<Content>),
}

/// A service: its ServiceEntry and WorkloadEntries.
#[derive(Default)]
struct Group {
    /// Wanted or seen.
    members: BTreeSet<Key>,
    /// Those that wait for another.
    waiting: BTreeSet<Key>,
    /// WorkloadEntries that are yet to be created.
    missing: HashSet<Key>,
}

/// What is to be done about an object.
enum Step {
    Nothing,
    /// Another object comes first, or the list of its kind.
    Wait(Option<u128>),
    /// It is another's.
    Foreign,
    /// Nothing while the breaker holds.
    Withheld,
    /// Write it: over a state (uid, version), or where there is none.
    Apply(Option<(Arc<str>, Arc<str>)>),
    Delete(Arc<str>, Arc<str>),
}

/// What a refused attempt was made from: digest of what was wanted, version of what was seen.
type Basis = (Option<u128>, Option<Arc<str>>);

struct Trouble {
    basis: Basis,
    backoff: Backoff,
    until: Instant,
    /// It is the object that does not go, so that others need not wait for it.
    shelved: bool,
}

/// What was written last, and how long it rests when another writer undoes it.
struct Written {
    digest: u128,
    backoff: Backoff,
    at: Instant,
    rests_until: Instant,
}

struct Bar {
    failure: Failure,
    backoff: Backoff,
    until: Instant,
    probing: bool,
}

/// Why a term ended.
pub(super) enum Ended {
    /// The lease is not ours any more.
    Lost,
    /// It is not for us to write: no complete view, or the engine ends.
    Dismissed,
    /// The API is not what it was.
    Failed(Failure),
}

/// What a term is given.
pub(super) struct Given {
    pub(super) api: Arc<Api>,
    pub(super) owner: Arc<str>,
    pub(super) settings: config::Kubernetes,
    pub(super) protect: Protect,
    pub(super) view: watch::Receiver<View>,
    pub(super) orders: watch::Receiver<Orders>,
    /// Until when a write may begin; closed when the lease is lost.
    pub(super) lease: watch::Receiver<Instant>,
    pub(super) report: Arc<Mutex<Report>>,
}

pub(super) struct Term {
    given: Given,
    orders: Orders,
    /// What `want` was made from.
    view: View,
    want: HashMap<Key, Want>,
    /// WorkloadEntries made of the endpoints of a ServiceEntry.
    parts: HashMap<Key, Vec<Key>>,
    seen: HashMap<Key, Seen>,
    listed: HashSet<Kind>,
    groups: HashMap<u128, Group>,
    ready: BTreeMap<(usize, Kind), BTreeSet<Key>>,
    later: BTreeSet<(Instant, Key)>,
    /// When each of them is due.
    due: HashMap<Key, Instant>,
    /// Those that wait for another object.
    waits: HashSet<Key>,
    /// To be looked at since what they waited for is another now.
    woken: BTreeSet<Key>,
    troubles: HashMap<Key, Trouble>,
    written: HashMap<Key, Written>,
    /// What the server made of what was written: wanted and seen digest.
    adjusted: HashMap<Key, (u128, u128)>,
    bars: HashMap<Kind, Bar>,
    flights: JoinSet<Landing>,
    /// Objects with a request under way, and whether to look at them again.
    flying: HashMap<Key, bool>,
    ids: HashMap<task::Id, Key>,
    bucket: Bucket,
    pause: Backoff,
    paused_until: Instant,
    breaker: Breaker,
    judged: bool,
    withheld: BTreeSet<Key>,
    /// Services whose wanted endpoints are to be counted again while removals are withheld.
    recount: BTreeSet<u128>,
    began: Instant,
    writes: u64,
    progress: Instant,
    /// When to look again although nothing happens.
    wake: Option<Instant>,
}

impl Term {
    pub(super) fn new(given: Given) -> Self {
        let now = Instant::now();
        let orders = *given.orders.borrow();
        Self {
            orders,
            view: View::default(),
            want: HashMap::new(),
            parts: HashMap::new(),
            seen: HashMap::new(),
            listed: HashSet::new(),
            groups: HashMap::new(),
            ready: BTreeMap::new(),
            later: BTreeSet::new(),
            due: HashMap::new(),
            waits: HashSet::new(),
            woken: BTreeSet::new(),
            troubles: HashMap::new(),
            written: HashMap::new(),
            adjusted: HashMap::new(),
            bars: HashMap::new(),
            flights: JoinSet::new(),
            flying: HashMap::new(),
            ids: HashMap::new(),
            bucket: Bucket::new(given.settings.rate),
            pause: Backoff::new(Duration::from_millis(500), Duration::from_secs(30)),
            paused_until: now,
            breaker: Breaker::new(given.protect.clone()),
            judged: false,
            withheld: BTreeSet::new(),
            recount: BTreeSet::new(),
            began: now,
            writes: 0,
            progress: now + PROGRESS,
            wake: None,
            given,
        }
    }

    /// Runs until `dismissed`, or until the lease is lost.
    pub(super) async fn run(mut self, dismissed: impl Future<Output = ()>) -> Ended {
        let (sender, mut events) = mpsc::channel(1_024);
        let mut reflectors = JoinSet::new();
        for kind in Kind::ALL {
            let (api, owner) = (Arc::clone(&self.given.api), Arc::clone(&self.given.owner));
            reflectors.spawn(reflect::follow(api, kind, owner, sender.clone()));
        }
        drop(sender);
        let (mut view, mut orders, mut lease) =
            (self.given.view.clone(), self.given.orders.clone(), self.given.lease.clone());
        let mut dismissed = std::pin::pin!(dismissed);
        loop {
            self.launch();
            self.tell();
            let deadline = *lease.borrow();
            let wake = self.wake.unwrap_or(deadline).min(deadline);
            tokio::select! {
                () = &mut dismissed => {
                    // What is under way has a bound of its own.
                    while self.flights.join_next().await.is_some() {}
                    return Ended::Dismissed;
                }
                renewed = lease.changed() => if renewed.is_err() {
                    return Ended::Lost;
                },
                _ = view.changed() => self.follow(&view.borrow_and_update().clone()),
                event = events.recv() => {
                    // Following goes on until nobody listens.
                    let Some((kind, event)) = event else {
                        return Ended::Failed(Failure::Unreachable("objects are not followed any more".into()));
                    };
                    if let Some(failure) = self.hear(kind, event) {
                        return Ended::Failed(failure);
                    }
                    let current = view.borrow().clone();
                    self.follow(&current);
                }
                Some(landed) = self.flights.join_next_with_id(), if !self.flights.is_empty() => self.land(landed),
                _ = orders.changed() => {
                    let next = *orders.borrow_and_update();
                    self.obey(next);
                }
                () = tokio::time::sleep_until(wake) => self.awake(),
            }
            if Instant::now() >= *lease.borrow() {
                return Ended::Lost;
            }
        }
    }

    // What is wanted.

    /// Brings what is wanted in line with a view, once the objects are known.
    fn follow(&mut self, view: &View) {
        let listed = self.listed.contains(&Kind::ServiceEntry) && self.listed.contains(&Kind::WorkloadEntry);
        if !(view.complete && listed) {
            return;
        }
        let same = Kind::ALL.into_iter().all(|kind| Arc::ptr_eq(snapshot(view, kind), snapshot(&self.view, kind)));
        if self.judged && same {
            return;
        }
        let mut touched = BTreeSet::new();
        task::block_in_place(|| {
            let before = std::mem::replace(&mut self.view, view.clone());
            for kind in Kind::ALL {
                let (new, old) = (set(view, kind), set(&before, kind));
                let difference = new.since(&old);
                for name in difference.removed {
                    self.want_resource(kind, name, None, &mut touched);
                }
                for item in difference.changed {
                    self.want_resource(kind, item.name(), Some(item.framed()), &mut touched);
                }
            }
        });
        if !self.judged {
            self.judged = true;
            self.begin_judging();
            touched.extend(self.want.keys().chain(self.seen.keys()).cloned());
        } else {
            self.judge();
        }
        self.mark(touched);
    }

    fn want_resource(
        &mut self,
        kind: Kind,
        name: &Arc<str>,
        framed: Option<&bytes::Bytes>,
        touched: &mut BTreeSet<Key>,
    ) {
        let key = Key { kind, name: object_name(name) };
        let selects = match (self.want.get(&key), self.seen.get(&key)) {
            (Some(want), _) => want.form.selects,
            (None, Some(Seen::Ours { form, .. })) => form.selects,
            _ => false,
        };
        let owner = &self.given.owner;
        let objects = framed.and_then(|framed| wanted(kind, framed, owner, selects)).unwrap_or_default();
        let mut gone: BTreeSet<Key> = self.parts.remove(&key).unwrap_or_default().into_iter().collect();
        gone.insert(key.clone());
        let mut parts = Vec::new();
        for object in objects {
            gone.remove(&object.key);
            let source = if object.key == key {
                Source::Resource(Arc::clone(name))
            } else {
                parts.push(object.key.clone());
                Source::Content(Box::new(object.content))
            };
            touched.insert(object.key.clone());
            self.set_want(object.key, Some(Want { form: object.form, source }));
        }
        if !parts.is_empty() {
            self.parts.insert(key, parts);
        }
        for key in gone {
            self.set_want(key.clone(), None);
            touched.insert(key);
        }
    }

    fn set_want(&mut self, key: Key, want: Option<Want>) {
        let group = want.as_ref().and_then(|want| want.form.group);
        let before = match want {
            Some(want) => self.want.insert(key.clone(), want),
            None => self.want.remove(&key),
        };
        let before = before.and_then(|want| want.form.group);
        if !self.want.contains_key(&key) {
            self.adjusted.remove(&key);
        }
        if self.breaker.held().is_some() {
            self.recount.extend(group.into_iter().chain(before));
        }
        self.regroup(&key, group.into_iter().chain(before));
    }

    // What is seen.

    fn set_seen(&mut self, key: Key, seen: Option<Seen>) {
        let group = |seen: &Option<Seen>| match seen {
            Some(Seen::Ours { form, .. }) => form.group,
            _ => None,
        };
        let new = group(&seen);
        let before = match seen {
            Some(seen) => self.seen.insert(key.clone(), seen),
            None => self.seen.remove(&key),
        };
        self.regroup(&key, new.into_iter().chain(group(&before)));
    }

    /// Keeps who belongs to these services, of which one object is another now, and wakes who waits in them.
    fn regroup(&mut self, key: &Key, groups: impl Iterator<Item = u128>) {
        let wanted = self.want.get(key).and_then(|want| want.form.group);
        let seen = match self.seen.get(key) {
            Some(Seen::Ours { form, .. }) => form.group,
            _ => None,
        };
        for id in groups {
            if let Some(group) = self.groups.get_mut(&id) {
                self.woken.append(&mut group.waiting);
            }
            if wanted == Some(id) || seen == Some(id) {
                self.groups.entry(id).or_default().members.insert(key.clone());
            } else if let Some(group) = self.groups.get_mut(&id) {
                group.members.remove(key);
                group.missing.remove(key);
                if group.members.is_empty() {
                    self.groups.remove(&id);
                }
            }
        }
    }

    /// Takes a state of an object that is not older than the one known; returns who is to be looked at.
    fn see(&mut self, key: &Key, seen: Seen, gone: bool) -> BTreeSet<Key> {
        if let (Some(Seen::Ours { version: known, .. }), Seen::Ours { version, .. }) = (self.seen.get(key), &seen)
            && (is_older(version, known) || (version == known && !gone))
        {
            return BTreeSet::new();
        }
        self.set_seen(key.clone(), (!gone).then_some(seen));
        [key.clone()].into()
    }

    /// Takes what a reflector says; a failure that it returns ends the term.
    fn hear(&mut self, kind: Kind, event: Event) -> Option<Failure> {
        let key = |name| Key { kind, name };
        let touched = match event {
            Event::Listed(items) => {
                let mut touched: BTreeSet<Key> = self.seen.keys().filter(|key| key.kind == kind).cloned().collect();
                let listed: HashMap<Key, Seen> = items.into_iter().map(|(name, seen)| (key(name), seen)).collect();
                let gone: Vec<Key> = touched.iter().filter(|key| !listed.contains_key(*key)).cloned().collect();
                gone.into_iter().for_each(|key| self.set_seen(key, None));
                touched.extend(self.want.keys().filter(|key| key.kind == kind).cloned());
                for (key, seen) in listed {
                    touched.insert(key.clone());
                    self.set_seen(key, Some(seen));
                }
                self.listed.insert(kind);
                self.given.report.lock().failure = None;
                touched
            }
            Event::Put(name, seen) => self.see(&key(name), seen, false),
            Event::Gone(name, seen) => self.see(&key(name), seen, true),
            Event::Failed(failure) => {
                tracing::warn!(kind = kind.name(), %failure, "objects cannot be followed; they are listed again");
                let text = format!("{}: {failure}", kind.plural());
                self.given.report.lock().failure = Some(text.into());
                // The kind may be gone, or served in another version.
                return (failure.code() == Some(404)).then_some(failure);
            }
        };
        self.mark(touched);
        None
    }

    // What is to be done.

    fn step(&self, key: &Key) -> Step {
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
                        Step::Withheld
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

    fn basis(&self, key: &Key) -> Basis {
        let seen = match self.seen.get(key) {
            Some(Seen::Ours { version, .. }) => Some(Arc::clone(version)),
            _ => None,
        };
        (self.want.get(key).map(|want| want.form.digest), seen)
    }

    /// Looks at objects, and at those that wait for them.
    fn mark(&mut self, keys: impl IntoIterator<Item = Key>) {
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

    fn look(&mut self, key: &Key) {
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
            Step::Apply(_) | Step::Delete(..) => self.rests_until(key),
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
            Step::Apply(_) | Step::Delete(..) if until.is_some_and(|until| now < until) => {
                let until = until.unwrap_or(now);
                self.later.insert((until, key.clone()));
                self.due.insert(key.clone(), until);
                if let Some(fought) = self.written.get(key).filter(|written| written.backoff.attempts > 2) {
                    let message = "another writer changes it again and again".into();
                    self.problem(key, Problem { code: None, message, attempts: fought.backoff.attempts });
                }
            }
            Step::Apply(_) | Step::Delete(..) => {
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

    fn problem(&self, key: &Key, problem: Problem) {
        let known = self.given.report.lock().problems.insert(key.to_string(), problem.clone());
        if known.is_none_or(|known| known.message != problem.message) {
            let Problem { code, message, .. } = &problem;
            tracing::warn!(object = %key, code, message = &**message, "an object is not as it should be");
        }
    }

    fn solved(&self, key: &Key) {
        let mut report = self.given.report.lock();
        if !report.problems.is_empty() {
            report.problems.remove(&key.to_string());
        }
    }

    // Doing it.

    /// Begins as many writes as may be begun now.
    fn launch(&mut self) {
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

    fn land(&mut self, landed: Result<(task::Id, Landing), task::JoinError>) {
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

    fn awake(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        while let Some((at, key)) = self.later.first().cloned()
            && at <= now
        {
            self.later.pop_first();
            self.due.remove(&key);
            due.push(key);
        }
        self.mark(due);
        if self.judged {
            self.judge();
        }
        if now >= self.progress {
            self.progress = now + PROGRESS;
            if !self.ready.values().all(BTreeSet::is_empty) {
                let (written, to_go, problems) = (self.writes, self.pending(), self.given.report.lock().problems.len());
                tracing::info!(written, to_go, problems, "objects are being written");
            }
        }
    }

    fn obey(&mut self, orders: Orders) {
        let before = std::mem::replace(&mut self.orders, orders);
        if orders.releases != before.releases {
            self.breaker.release();
            self.judge();
        }
        if orders.purging != before.purging {
            let all: BTreeSet<Key> = self.want.keys().chain(self.seen.keys()).cloned().collect();
            self.mark(all);
        }
    }

    // The breaker.

    fn wanted_endpoints(&self, group: u128) -> usize {
        let members = self.groups.get(&group).into_iter().flat_map(|group| &group.members);
        members.filter_map(|key| self.want.get(key)).map(|want| want.form.endpoints.len()).sum()
    }

    /// Judges what is wanted against what is in the API, whoever wrote that.
    fn begin_judging(&mut self) {
        let now = model::now();
        let seen = |key: &Key| match self.seen.get(key) {
            Some(Seen::Ours { form, .. }) => form.endpoints.len(),
            _ => 0,
        };
        let counts =
            self.groups.iter().map(|(id, group)| (name_of(*id), group.members.iter().map(seen).sum::<usize>()));
        let counts: Vec<(Arc<str>, usize)> = counts.collect();
        self.breaker.begin_with(now, counts.into_iter());
        let groups: Vec<u128> = self.groups.keys().copied().collect();
        for group in groups {
            self.breaker.note(&name_of(group), 0, self.wanted_endpoints(group));
        }
        if self.breaker.judge(now) == Verdict::Hold {
            let lost = self.breaker.held().unwrap_or_default();
            tracing::error!(
                services = lost.services,
                endpoints = lost.endpoints,
                "mass deletion: what the API has and the registry has not stays until it is back, is released, or \
                 mox.protect.mass-delete-hold is over"
            );
        }
    }

    /// While removals are withheld: whether to go on.
    fn judge(&mut self) {
        if self.breaker.held().is_none() {
            return;
        }
        for group in std::mem::take(&mut self.recount) {
            self.breaker.note(&name_of(group), 0, self.wanted_endpoints(group));
        }
        if let Verdict::Over(why) = self.breaker.judge(model::now()) {
            tracing::warn!(why, objects = self.withheld.len(), "removals from the API are no longer withheld");
            let withheld = std::mem::take(&mut self.withheld);
            self.mark(withheld);
        }
    }

    // Telling.

    fn pending(&self) -> usize {
        self.ready.values().map(BTreeSet::len).sum::<usize>() + self.flying.len() + self.later.len() + self.waits.len()
    }

    fn tell(&mut self) {
        let pending = self.pending();
        let mut report = self.given.report.lock();
        report.objects = if self.orders.purging { 0 } else { self.want.len() };
        report.versions = self.judged.then(|| self.view.versions().map(str::to_owned));
        report.pending = pending;
        report.in_flight = self.flying.len();
        report.withheld = self.breaker.held();
        report.problem_count = report.problems.len();
        // An order that is given is not yet obeyed.
        let obeyed = report.purging == self.orders.purging;
        report.in_sync = self.judged && obeyed && pending == 0 && report.problems.is_empty();
        if self.judged && pending == 0 && report.first_sync.is_none() {
            let millis = self.began.elapsed().as_millis() as u64;
            let first = FirstSync { objects: self.want.len(), writes: self.writes, millis };
            report.first_sync = Some(first);
            drop(report);
            tracing::info!(
                objects = first.objects,
                writes = first.writes,
                millis,
                "what the API has was compared and brought up to date"
            );
        }
    }
}

fn name_of(group: u128) -> Arc<str> {
    format!("{group:032x}").into()
}

fn set(view: &View, kind: Kind) -> Set {
    Set::new(Arc::clone(snapshot(view, kind)), Part::WHOLE)
}

fn snapshot(view: &View, kind: Kind) -> &Arc<Snapshot> {
    match kind {
        Kind::WorkloadEntry => &view.workload_entries,
        Kind::ServiceEntry => &view.service_entries,
        Kind::DestinationRule => &view.destination_rules,
    }
}
