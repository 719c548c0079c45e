//! Turns what is dirty in the store into the next snapshot.
//!
//! One thread. A round takes the dirty services, translates just those, and hands streams a new [`View`] if anything
//! that is served changed.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{sync::watch, time::Instant};

use crate::{
    breaker::Lost,
    config::{Config, Scope},
    direct::DirectCounts,
    error::Result,
    gate::Gate,
    istio::rule::Rule,
    model::{self, Millis},
    policy::Policy,
    registry::store::Store,
    services::{Phase, Services},
    snapshot::{
        Changes, Snapshot,
        signals::Signals,
        view::{Held, View},
    },
    state::{self, Keeper},
    translate::payload::Reject,
    unknown,
};

/// How often expired removals are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(10);
/// Of quarantined services this many are shown.
const SHOWN: usize = 100;

/// What the publisher shares with those who steer it and those who read from it.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// What the registry said.
    pub store: Store,
    /// What the operator decided.
    pub policy: ArcSwap<Policy>,
    /// What streams see.
    pub view: watch::Sender<View>,
    /// Wakes the streams of the parts that changed.
    pub parts: Arc<Signals>,
    /// The last answered flush.
    pub flushed: watch::Sender<u64>,
    /// Orders that a round looks at.
    pub orders: Mutex<Orders>,
    /// What the last round found.
    pub report: Mutex<Report>,
}

impl Shared {
    /// Nothing is known and nothing is served. An error names the part of the policy that cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let policy = Policy::new(config.policy.clone(), config.vip_cidr, &config.namespace)?;
        Ok(Self {
            store: Store::new(config.limits.store()),
            policy: ArcSwap::from_pointee(policy),
            view: watch::Sender::new(View::default()),
            parts: Arc::default(),
            flushed: watch::Sender::new(0),
            orders: Mutex::new(Orders::default()),
            report: Mutex::new(Report { held: Some(Held::NotLoaded), ..Report::default() }),
            config,
        })
    }
}

/// Latches and requests, set from outside.
#[derive(Debug, Default, Clone, Copy)]
pub struct Orders {
    /// The first complete view is in.
    pub loaded: bool,
    /// Since when the engine listens.
    pub listening_since: Option<Instant>,
    /// The operator's latch.
    pub frozen: bool,
    /// The registry's stop-push switch.
    pub stopped: bool,
    /// Let a held mass deletion through.
    pub release: bool,
    /// Flushes asked for so far.
    pub flushes: u64,
}

/// What the last round found; for status, metrics and tests.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Why the served state is not the newest.
    pub held: Option<Held>,
    /// Rounds that looked at services.
    pub rounds: u64,
    /// Services translated, each time counted.
    pub translations: u64,
    /// Resources encoded.
    pub encodes: u64,
    /// Views handed to streams.
    pub publishes: u64,
    /// Payloads that are not served at present, by reason.
    pub rejects: BTreeMap<Reject, u64>,
    /// Endpoints left out at present since Istio would refuse their service with them, by the rule that they break.
    pub invalid_endpoints: BTreeMap<Rule, u64>,
    /// Services that are not served as the registry has them, by the reason.
    pub quarantined_by: BTreeMap<&'static str, u64>,
    /// Those services; their last good form is kept. The status has the first hundred.
    pub quarantined: BTreeMap<Arc<str>, Quarantined>,
    /// How many more there are than are shown.
    pub quarantined_left_out: usize,
    /// Services that could not be read yet.
    pub unknown: unknown::Report,
    /// What is missing since the window of the breaker began, while it withholds removals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Lost>,
    /// Entries for consumers that dial addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<DirectCounts>,
    /// Services whose last endpoint went and whose entry is kept for a while.
    pub in_grace: usize,
    /// Services that do not have their first host, since another has it.
    pub hosts_moved: usize,
    /// Hosts that do not have their first VIP, since another has it.
    pub vips_moved: usize,
}

impl Report {
    /// A copy of bounded size, whatever the number of services.
    pub fn shown(&mut self) -> Self {
        let all = std::mem::take(&mut self.quarantined);
        let mut shown = self.clone();
        shown.quarantined = all.iter().take(SHOWN).map(|(id, why)| (Arc::clone(id), why.clone())).collect();
        shown.quarantined_left_out = all.len() - shown.quarantined.len();
        self.quarantined = all;
        shown
    }
}

/// Why a service is not served as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// The rule of Istio's that it would break, or `panic`.
    pub reason: &'static str,
    /// What breaks it.
    pub detail: String,
}

/// The publisher's own state.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    gate: Gate,
    services: Services,
    keeper: Option<Keeper>,
    /// The next snapshot is not made from the present one.
    from_scratch: bool,
    /// Until when the last good state is good enough to be served before the first complete view; `None`: there is none,
    /// or it had its turn.
    last_good_until: Option<Instant>,
    /// The last good state is served; the first round has made it.
    shows_last_good: bool,
}

impl Publisher {
    /// A publisher that has served nothing yet. Reads the last good state, if one is kept.
    pub fn new(shared: Arc<Shared>) -> Self {
        let keeper = shared.config.state_dir.as_deref().map(Keeper::new);
        if keeper.is_none() {
            tracing::info!(
                "no mox.state-dir is set: nothing is known of before a restart, and what it finds is not judged"
            );
        }
        let last_good = keeper.as_ref().and_then(|keeper| state::load(&keeper.file));
        let publishers = last_good.as_ref().map(|last| last.publishers);
        let gate = Gate::new(shared.config.scope, shared.config.protect.startup_hold, publishers);
        let left = last_good.as_ref().and_then(|last| shared.config.protect.last_good_max_age.checked_sub(last.age));
        let last_good_until = left.map(|left| Instant::now() + left);
        let services = Services::new(Arc::clone(&shared), last_good.map(|last| last.services).unwrap_or_default());
        Self { shared, gate, services, keeper, from_scratch: false, last_good_until, shows_last_good: false }
    }

    /// Runs until the store's [`Wake`](crate::registry::wake::Wake) is stopped, which may take a round. Needs a runtime around it.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let wake = shared.store.wake();
        let mut next = self.deadline(model::now());
        // The pause is never restarted: a steady stream of changes does not put the push off.
        while wake.wait(next.map(Instant::into_std)) && wake.pause(shared.config.push.quiet) {
            let now = model::now();
            if catch_unwind(AssertUnwindSafe(|| self.round(now))).is_err() {
                // A bug; the panic is in the log. What was served stays until a round over everything went well.
                self.start_over();
                next = Some(Instant::now() + SWEEP);
                continue;
            }
            self.keep();
            next = self.deadline(now);
        }
    }

    /// Forgets what was made so far; the next round makes everything again.
    fn start_over(&mut self) {
        self.services = Services::new(Arc::clone(&self.shared), self.services.as_last_good());
        self.from_scratch = true;
        self.shared.store.mark_dirty(|_| true);
    }

    /// When there is something to do although nothing changes.
    fn deadline(&self, now: Millis) -> Option<Instant> {
        let in_millis = |millis: Millis| Instant::now() + Duration::from_millis(millis.max(0) as u64);
        let Orders { frozen, stopped, listening_since, .. } = *self.shared.orders.lock();
        let services = self.services.deadline().map(|at| in_millis(at - now));
        let sweep = (self.shared.store.counts().tombstones > 0).then(|| Instant::now() + SWEEP);
        let waits = !self.shared.view.borrow().complete
            && match self.shared.config.scope {
                Scope::Local => true,
                Scope::Cluster => self.last_good_until.is_some(),
            };
        let gate = self.gate.hold_ends(listening_since).filter(|_| waits);
        let keep = self.keeper.as_ref().and_then(Keeper::due_at);
        // Frozen, nothing else is due before the thaw, which wakes us.
        let due = if frozen || stopped { [None, sweep, None, keep] } else { [services, sweep, gate, keep] };
        due.into_iter().flatten().min()
    }

    /// Keeps the served state for the next start, if it is another or was not touched for a while.
    fn keep(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let view = self.shared.view.borrow().clone();
        if !view.complete {
            return;
        }
        let publishers = self.shared.store.counts().publishers;
        let holding = self.services.breaker().held().is_some();
        keeper.keep(view, publishers, holding, || self.services.empty());
    }

    /// Looks at what is dirty and publishes what came of it.
    pub fn round(&mut self, now: Millis) {
        let shared = Arc::clone(&self.shared);
        let orders = {
            let mut orders = shared.orders.lock();
            let now = *orders;
            orders.release = false;
            now
        };
        let Orders { loaded, listening_since, flushes, .. } = orders;
        let frozen = orders.frozen || orders.stopped;
        shared.store.expire(now);
        if orders.release {
            self.services.breaker().release();
        }
        if !frozen {
            let counts = shared.store.counts();
            let was_complete = shared.view.borrow().complete;
            let complete = was_complete || self.gate.is_open(loaded, listening_since, counts.publishers);
            let phase = match (was_complete, complete) {
                (_, false) => Phase::Gathering,
                (false, true) => Phase::Completed,
                // What is made anew is judged against what was served.
                (true, true) if self.from_scratch => Phase::Completed,
                (true, true) => Phase::Live,
            };
            if !complete && self.gate.is_over(listening_since) {
                self.show_last_good();
            }
            let changes = self.services.changes(now, phase);
            let current = shared.view.borrow().clone();
            let scratch = std::mem::take(&mut self.from_scratch);
            let next = View {
                complete,
                shown: complete || self.shows_last_good,
                service_entries: with(&current.service_entries, &changes.service_entries, scratch),
                workload_entries: with(&current.workload_entries, &changes.workload_entries, scratch),
                destination_rules: with(&current.destination_rules, &changes.destination_rules, scratch),
            };
            if next.versions() != current.versions() || complete != was_complete || next.shown != current.shown {
                if complete && !was_complete {
                    let services = next.service_entries.resources();
                    tracing::info!(services, "the view is complete, serving starts");
                }
                shared.view.send_replace(next.clone());
                shared.parts.tell(&current, &next);
                shared.report.lock().publishes += 1;
            }
        }
        let mut report = shared.report.lock();
        report.rounds += 1;
        let (complete, shown) = {
            let view = shared.view.borrow();
            (view.complete, view.shown)
        };
        report.held = match (frozen, complete) {
            (true, _) => Some(Held::Frozen),
            (false, false) => Some(if shown { Held::LastGood } else { Held::NotLoaded }),
            (false, true) => self.services.breaker().held().map(|_| Held::MassDelete),
        };
        drop(report);
        shared.flushed.send_replace(flushes);
    }
}

impl Publisher {
    /// Serves the last good state if it is not too old, until there is a complete view. Has one turn.
    fn show_last_good(&mut self) {
        let Some(until) = self.last_good_until.take() else { return };
        if Instant::now() > until {
            tracing::error!("no complete view yet, and the last good state is too old to be served");
            return;
        }
        tracing::warn!(
            "no complete view within mox.protect.startup-hold: the last good state is served until there is one"
        );
        self.shows_last_good = true;
    }
}

/// The next snapshot of one type: the present one with changes, or the changes alone.
fn with(current: &Arc<Snapshot>, changes: &Changes, from_scratch: bool) -> Arc<Snapshot> {
    match (from_scratch, changes.is_empty()) {
        (true, _) => Arc::new(Snapshot::default().with(changes)),
        (false, true) => Arc::clone(current),
        (false, false) => Arc::new(current.with(changes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::RegisterVersion,
        registry::frame::{self, Publisher as Body},
    };

    fn change(shared: &Shared, service: usize, version: i64, data: Option<&str>) {
        let (id, register_id) = (format!("com.example.S{service}"), "r");
        let version = RegisterVersion { version, timestamp: 0 };
        let frame = match data {
            Some(data) => {
                let payloads = vec![data.as_bytes().into()];
                let body = Body { register_id: register_id.into(), version, payloads, ..Body::default() };
                frame::encode_publish("registry", &id, &body)
            }
            None => frame::encode_unpublish("registry", &id, register_id, version),
        };
        for event in frame::decode(&frame.unwrap()).unwrap() {
            shared.store.apply(&event, 0).unwrap();
        }
    }

    #[test]
    fn of_many_quarantined_services_the_first_are_shown_and_the_others_counted() {
        let why = |n: usize| (format!("s{n:04}").into(), Quarantined { reason: "host", detail: "long".to_owned() });
        let mut report = Report { quarantined: (0..250).map(why).collect(), rounds: 7, ..Report::default() };
        let shown = report.shown();
        assert_eq!((shown.quarantined.len(), shown.quarantined_left_out, shown.rounds), (100, 150, 7));
        assert_eq!((report.quarantined.len(), report.quarantined_left_out), (250, 0));
    }

    #[test]
    fn what_is_held_is_held_when_everything_is_made_anew() {
        let shared = Arc::new(Shared::new(Config::default()).unwrap());
        let mut publisher = Publisher::new(Arc::clone(&shared));
        (0..30).for_each(|service| change(&shared, service, 1, Some("10.0.0.1:80")));
        shared.orders.lock().loaded = true;
        publisher.round(0);
        (0..20).for_each(|service| change(&shared, service, 2, None));
        let served = || (shared.view.borrow().service_entries.endpoints(), shared.report.lock().held);
        publisher.round(1);
        assert_eq!(served(), (30, Some(Held::MassDelete)));
        // Twice: also when the first try gets nowhere.
        publisher.start_over();
        publisher.start_over();
        publisher.round(2);
        assert_eq!(served(), (30, Some(Held::MassDelete)));
        publisher.services.breaker().release();
        publisher.round(3);
        assert_eq!(served(), (10, None));
    }

    #[test]
    fn what_is_unknown_is_unknown_when_everything_is_made_anew() {
        let shared = Arc::new(Shared::new(Config::default()).unwrap());
        let mut publisher = Publisher::new(Arc::clone(&shared));
        change(&shared, 0, 1, Some("10.0.0.1:80"));
        shared.orders.lock().loaded = true;
        publisher.round(0);
        shared.store.set_unknown(&["com.example.S0"]);
        change(&shared, 0, 2, None);
        let served = || (shared.view.borrow().service_entries.endpoints(), shared.report.lock().unknown.last_good);
        publisher.round(1);
        assert_eq!(served(), (1, 1));
        publisher.start_over();
        publisher.round(2);
        assert_eq!(served(), (1, 1));
        for event in
            frame::decode(&frame::encode_replace("registry", "com.example.S0", 1, i64::MAX, &[]).unwrap()).unwrap()
        {
            shared.store.apply(&event, 3).unwrap();
        }
        publisher.round(3);
        assert_eq!(served(), (0, 0));
    }
}
