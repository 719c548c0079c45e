//! The time as holder of the lease: drives a [`Plan`] with the view, the watch, the operator's orders and the answers of the
//! API server, and carries out its writes.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinError, JoinSet},
    time::Instant,
};

use super::{
    api::Api,
    conversion::Conversion,
    failure::Failure,
    objects::{ApiObject, ObjectKey, ObjectKind, Observed},
    orders::SinkOrders,
    pace::Jitter,
    plan::{Notice, Outcome, Plan, PlanSettings, PlannedWrite, WriteCounts},
    reflect::{self, Followed, WatchEvent},
    report::{KubernetesReport, Problem},
    write,
};
use crate::{
    config::{self, Protect},
    snapshot::view::View,
};

/// How many problems are shown.
const SHOWN: usize = 100;

/// Why a term ended.
pub(super) enum TermEnd {
    /// The lease is not ours any more.
    Lost,
    /// This session server is not to write: no complete view, or the engine ends.
    Dismissed,
    /// The API cannot be followed as before.
    Failed(Failure),
}

/// The input of a term.
pub(super) struct TermInput {
    pub(super) api: Arc<Api>,
    pub(super) owner: Arc<str>,
    pub(super) settings: config::Kubernetes,
    pub(super) protect: Protect,
    pub(super) view: watch::Receiver<View>,
    pub(super) orders: watch::Receiver<SinkOrders>,
    /// Until when a write may begin; closed when the lease is lost.
    pub(super) lease: watch::Receiver<Instant>,
    pub(super) report: Arc<Mutex<KubernetesReport>>,
}

/// The objects of a kind, as a term follows them.
struct Objects {
    kind: ObjectKind,
    owner: Arc<str>,
}

impl Followed for Objects {
    type Kind = ObjectKind;
    type Object = ApiObject;
    type Seen = (Arc<str>, Observed);

    fn kind(&self) -> ObjectKind {
        self.kind
    }

    fn version(object: &ApiObject) -> &str {
        &object.metadata.resource_version
    }

    fn seen(&self, object: ApiObject) -> Self::Seen {
        (object.metadata.name.as_str().into(), object.observed(self.kind, &self.owner))
    }
}

pub(super) struct Term {
    input: TermInput,
    plan: Plan,
    conversion: Conversion,
    writes: JoinSet<Result<Outcome, Failure>>,
    /// The object that a task writes.
    written: HashMap<task::Id, ObjectKey>,
    /// The counts that the report has already.
    counted: WriteCounts,
}

impl Term {
    pub(super) fn new(input: TermInput) -> Self {
        let settings = PlanSettings {
            concurrency: input.settings.concurrency,
            rate: input.settings.rate,
            protect: input.protect.clone(),
        };
        let (orders, lease_until) = (*input.orders.borrow(), *input.lease.borrow());
        Self {
            plan: Plan::new(settings, orders, lease_until, Jitter::random(), Instant::now()),
            conversion: Conversion::new(Arc::clone(&input.owner)),
            writes: JoinSet::new(),
            written: HashMap::new(),
            counted: WriteCounts::default(),
            input,
        }
    }

    /// Runs until `dismissed`, or until the lease is lost.
    pub(super) async fn run(mut self, dismissed: impl Future<Output = ()>) -> TermEnd {
        let (sender, mut events) = mpsc::channel(1_024);
        let mut reflectors = JoinSet::new();
        for kind in ObjectKind::ALL {
            let objects = Objects { kind, owner: Arc::clone(&self.input.owner) };
            reflectors.spawn(reflect::follow(self.input.api.place(kind), objects, sender.clone()));
        }
        drop(sender);
        let (mut view, mut orders, mut lease) =
            (self.input.view.clone(), self.input.orders.clone(), self.input.lease.clone());
        let mut dismissed = std::pin::pin!(dismissed);
        loop {
            self.begin_writes();
            self.report();
            let deadline = *lease.borrow();
            let wake = self.plan.wake().unwrap_or(deadline).min(deadline);
            tokio::select! {
                () = &mut dismissed => {
                    // Writes under way have a bound of their own.
                    while let Some(written) = self.writes.join_next_with_id().await {
                        self.take_answer(written);
                    }
                    self.report();
                    return TermEnd::Dismissed;
                }
                renewed = lease.changed() => match renewed {
                    Ok(()) => self.plan.renewed(*lease.borrow_and_update()),
                    Err(_) => return TermEnd::Lost,
                },
                _ = view.changed() => self.follow(&view.borrow_and_update().clone()),
                event = events.recv() => {
                    // Following goes on until nobody listens.
                    let Some((kind, event)) = event else {
                        return TermEnd::Failed(Failure::unreachable("objects are not followed any more"));
                    };
                    if let Some(failure) = self.hear(kind, event) {
                        return TermEnd::Failed(failure);
                    }
                    let current = view.borrow().clone();
                    self.follow(&current);
                }
                Some(written) = self.writes.join_next_with_id(), if !self.writes.is_empty() => self.take_answer(written),
                _ = orders.changed() => {
                    let next = *orders.borrow_and_update();
                    self.plan.obey(Instant::now(), next);
                }
                () = tokio::time::sleep_until(wake) => self.plan.tick(Instant::now()),
            }
            if Instant::now() >= *lease.borrow() {
                return TermEnd::Lost;
            }
        }
    }

    /// Brings what is desired in line with a view, once the objects are known.
    fn follow(&mut self, view: &View) {
        if !(view.complete && self.plan.takes_views()) || (self.plan.is_judged() && self.conversion.knows(view)) {
            return;
        }
        task::block_in_place(|| self.conversion.follow(view, &mut self.plan));
        self.plan.view_taken(Instant::now());
    }

    /// Takes what a reflector says; a failure that it returns ends the term.
    fn hear(&mut self, kind: ObjectKind, event: WatchEvent<(Arc<str>, Observed)>) -> Option<Failure> {
        let (now, key) = (Instant::now(), |name| ObjectKey { kind, name });
        match event {
            WatchEvent::Listed { began, version, objects } => {
                self.plan.listed(now, kind, began, &version, objects);
                self.input.report.lock().failure = None;
            }
            WatchEvent::Shown((name, observed)) => self.plan.shown(now, &key(name), observed),
            WatchEvent::Gone((name, last)) => self.plan.gone(now, &key(name), &last),
            WatchEvent::Behind => {}
            WatchEvent::Failed(failure) => {
                let kind = kind.plural();
                tracing::warn!(
                    event = "kubernetes_watch_failed",
                    kind,
                    %failure,
                    "objects cannot be followed; they are listed again"
                );
                self.input.report.lock().failure = Some(format!("{kind}: {failure}").into());
                // The kind may be gone, or served in another version.
                return (failure.code() == Some(404)).then_some(failure);
            }
        }
        None
    }

    /// Begins as many writes as may be begun now.
    fn begin_writes(&mut self) {
        while let Some(PlannedWrite { key, request, source }) = self.plan.next(Instant::now()) {
            let manifest = source.and_then(|source| self.conversion.manifest(&key, source));
            let (api, owner) = (Arc::clone(&self.input.api), Arc::clone(&self.input.owner));
            let task = self.writes.spawn(write::write(api, owner, key.clone(), request, manifest));
            self.written.insert(task.id(), key);
        }
    }

    fn take_answer(&mut self, written: Result<(task::Id, Result<Outcome, Failure>), JoinError>) {
        let (id, answer) = match written {
            Ok(written) => written,
            Err(error) => (error.id(), Err(Failure::unreachable("a bug; the log says where"))),
        };
        if let Some(key) = self.written.remove(&id) {
            self.plan.answered(Instant::now(), &key, answer);
        }
    }

    /// Tells operators how it goes, by report and log.
    fn report(&mut self) {
        self.plan.take_notices().into_iter().for_each(log);
        let plan = &self.plan;
        let counts = plan.counts();
        let mut report = self.input.report.lock();
        let before = std::mem::replace(&mut self.counted, counts);
        report.applies += counts.applies - before.applies;
        report.deletes += counts.deletes - before.deletes;
        report.refused += counts.refused - before.refused;
        report.conflicts += counts.conflicts - before.conflicts;
        report.pauses += counts.pauses - before.pauses;
        report.objects = plan.objects();
        report.versions = plan.is_judged().then(|| self.conversion.versions());
        (report.pending, report.in_flight) = (plan.pending(), plan.in_flight());
        report.withheld = plan.withheld();
        report.first_sync = plan.first_sync();
        report.problem_count = plan.problems().len();
        report.problems =
            plan.problems().iter().take(SHOWN).map(|(k, problem)| (k.to_string(), problem.clone())).collect();
        // An order that is given is not yet obeyed.
        report.in_sync = plan.in_sync() && report.purging == plan.is_purging();
    }
}

fn log(notice: Notice) {
    match notice {
        Notice::Failed { key, failure, remedy, unsaid } => {
            tracing::debug!(event = "kubernetes_write_failed", object = %key, %failure, ?remedy, unsaid, "a write failed");
        }
        Notice::Problem { key, problem: Problem { code, message, .. }, unsaid } => {
            let why = &*message;
            tracing::warn!(
                event = "kubernetes_object_problem",
                object = %key,
                code,
                why,
                unsaid,
                "an object is not as it should be"
            );
        }
        Notice::Adjusted { key, unsaid } => tracing::info!(
            event = "kubernetes_object_adjusted",
            object = %key,
            unsaid,
            "the API server keeps an object in another form than it was written in"
        ),
        Notice::Barred { kind, failure } => {
            let kind = kind.plural();
            tracing::error!(event = "kubernetes_kind_refused", kind, %failure, "no object of this kind can be written");
        }
        Notice::Paused { failure, wait, unsaid } => {
            let millis = wait.as_millis() as u64;
            tracing::warn!(event = "kubernetes_writes_paused", %failure, millis, unsaid, "all writes are put off");
        }
        Notice::MassDeletion(lost) => tracing::error!(
            event = "kubernetes_mass_deletion",
            services = lost.services,
            endpoints = lost.endpoints,
            "mass deletion: what the API has and the registry has not stays until it is back, is released, or \
             mox.protect.mass-delete-hold is over"
        ),
        Notice::RemovalsGoOn { why, objects } => tracing::warn!(
            event = "kubernetes_removals_go_on",
            why,
            objects,
            "removals from the API are no longer withheld"
        ),
        Notice::Progress { written, to_go, problems } => {
            tracing::info!(event = "kubernetes_progress", written, to_go, problems, "objects are being written");
        }
        Notice::Compared(first) => tracing::info!(
            event = "kubernetes_compared",
            objects = first.objects,
            writes = first.writes,
            millis = first.millis,
            "what the API has was compared and brought up to date"
        ),
    }
}
