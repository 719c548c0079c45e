//! What the holder of the lease does: keeps the objects in the API as the view wants them.
//!
//! Two maps, what is wanted and what was seen in the API, and for each object the one [`Step`] that they call for. A
//! change of either looks at that object again; nothing is compared as a whole but at the start.

mod steps;
mod wanted;
mod writes;

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
    api::{Api, Failure},
    flight::Landing,
    objects::{Content, Form, Key, Kind, Seen},
    pace::{Backoff, Bucket},
    reflect,
    report::{FirstSync, Report},
};
use crate::{
    breaker::{Breaker, Verdict},
    config::{self, Protect},
    model,
    snapshot::{Set, Snapshot, partition::Part, view::View},
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
    /// Write it over a state (uid, version) with that one's endpoints kept: the breaker holds.
    Unite(Arc<str>, Arc<str>),
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
