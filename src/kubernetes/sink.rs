//! From the start of the engine to its end: credentials, the lease, and terms as its holder.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    api::Api,
    connect::connect,
    lease::{Hold, Lease},
    orders::{Followed, SinkOrders},
    pace::{self, Backoff, Jitter},
    report::KubernetesReport,
    term::{Term, TermEnd, TermInput},
};
use crate::config::{self, Protect};

/// The task of a sink, and what it is given.
#[derive(Clone)]
pub(super) struct SinkTask {
    pub(super) settings: config::Kubernetes,
    pub(super) protect: Protect,
    pub(super) followed: Followed,
    pub(super) orders: watch::Receiver<SinkOrders>,
    pub(super) report: Arc<Mutex<KubernetesReport>>,
}

impl SinkTask {
    /// Runs until the engine ends; a panic, which is a bug, ends a run and not the sink.
    pub(super) async fn supervised(self) {
        let fail = |why: &str| {
            tracing::error!(event = "kubernetes_bug", "writing to Kubernetes ended by a bug; it begins anew");
            self.fail(why);
        };
        pace::supervised(|| self.clone().run(), fail).await;
    }

    async fn run(self) {
        let name = format!("registry-mox-{}", self.settings.owner);
        let identity = identity();
        let namespace = {
            let mut report = self.report.lock();
            report.identity.clone_from(&identity);
            report.namespace.clone()
        };
        let mut jitter = Jitter::random();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let client = loop {
            match connect(&self.settings).await {
                Ok(client) => break client,
                Err(error) => {
                    tracing::error!(event = "kubernetes_no_credentials", error, "no credentials for Kubernetes");
                    self.fail(&error);
                    if self.rest(backoff.next(&mut jitter)).await {
                        return;
                    }
                }
            }
        };
        let of_lease = self.settings.lease_namespace.clone().unwrap_or_else(|| namespace.clone());
        let mut lease = Lease::new(client.clone(), of_lease, name.clone(), identity, self.settings.lease);
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(15));
        while self.eligible().await {
            let pause = match lease.acquire().await {
                Ok(Hold::Ours(deadline)) => {
                    self.begin(lease.identity());
                    let api = Api {
                        client: client.clone(),
                        namespace: namespace.clone(),
                        manager: name.clone(),
                        within: lease.period(),
                        version: String::new(),
                    };
                    let began = Instant::now();
                    let ended = self.term(api, &mut lease, deadline).await;
                    if began.elapsed() > Duration::from_secs(60) {
                        backoff.reset();
                    }
                    self.end();
                    match ended {
                        TermEnd::Dismissed => {
                            lease.release().await;
                            continue;
                        }
                        TermEnd::Lost => {
                            tracing::warn!(
                                event = "kubernetes_lease_lost",
                                lease = %lease,
                                "the lease is lost; another session server may write to Kubernetes now"
                            );
                            jitter.of(lease.period())
                        }
                        TermEnd::Failed(failure) => {
                            tracing::error!(
                                event = "kubernetes_term_failed",
                                %failure,
                                "objects of Kubernetes cannot be written"
                            );
                            self.fail(&failure.to_string());
                            backoff.next(&mut jitter)
                        }
                    }
                }
                Ok(Hold::Others(holder)) => {
                    let mut report = self.report.lock();
                    report.failure = None;
                    report.holder = Some(holder);
                    drop(report);
                    jitter.of(lease.period())
                }
                Err(failure) => {
                    // Rights, namespace and reachability are what an operator can mend, and the failure says which.
                    self.fail(&format!("the lease {lease} cannot be had: {failure}"));
                    tracing::warn!(event = "kubernetes_lease_failed", lease = %lease, %failure, "the lease cannot be had");
                    jitter.of(lease.period()).max(failure.retry_after().unwrap_or_default())
                }
            };
            self.rest(pause).await;
        }
    }

    /// A term as the holder of the lease, until that is lost, given up or of no use.
    async fn term(&self, api: Api, lease: &mut Lease, deadline: Instant) -> TermEnd {
        let version = match Api::discover(&api.client).await {
            Ok(version) => version,
            Err(failure) => return TermEnd::Failed(failure),
        };
        self.report.lock().api = Some(version.clone());
        let until = watch::Sender::new(deadline);
        let term = Term::new(TermInput {
            api: Arc::new(Api { version, ..api }),
            owner: self.settings.owner.as_str().into(),
            settings: self.settings.clone(),
            protect: self.protect.clone(),
            view: self.followed.view.clone(),
            orders: self.orders.clone(),
            lease: until.subscribe(),
            report: Arc::clone(&self.report),
        });
        let renew = async {
            loop {
                sleep(lease.period()).await;
                loop {
                    match lease.acquire().await {
                        Ok(Hold::Ours(deadline)) => {
                            until.send_replace(deadline);
                            break;
                        }
                        Ok(Hold::Others(_)) => return,
                        Err(_) if Instant::now() >= *until.borrow() => return,
                        Err(failure) => {
                            tracing::warn!(
                                event = "kubernetes_lease_not_renewed",
                                lease = %lease,
                                %failure,
                                "the lease is not renewed yet"
                            );
                            sleep(lease.period() / 5).await;
                        }
                    }
                }
            }
        };
        tokio::select! {
            ended = term.run(self.dismissed()) => ended,
            () = renew => TermEnd::Lost,
        }
    }

    /// Whether this session server may write now.
    fn may(&self) -> bool {
        let known = self.followed.view.borrow().complete || self.orders.borrow().purging;
        known && !*self.followed.fenced.borrow() && !*self.followed.draining.borrow()
    }

    /// Waits until this session server may write; false: the engine ends.
    async fn eligible(&self) -> bool {
        let Followed { mut view, mut fenced, mut draining } = self.followed.clone();
        let mut orders = self.orders.clone();
        while !self.may() {
            if *draining.borrow_and_update() {
                return false;
            }
            // A channel that is closed belongs to an engine that is gone.
            let open = tokio::select! {
                changed = view.changed() => changed,
                changed = fenced.changed() => changed,
                changed = draining.changed() => changed,
                changed = orders.changed() => changed,
            };
            if open.is_err() {
                return false;
            }
        }
        true
    }

    /// Waits until this session server may not write.
    async fn dismissed(&self) {
        let Followed { mut fenced, mut draining, .. } = self.followed.clone();
        let mut orders = self.orders.clone();
        while self.may() {
            let open = tokio::select! {
                changed = fenced.changed() => changed,
                changed = draining.changed() => changed,
                changed = orders.changed() => changed,
            };
            if open.is_err() {
                return;
            }
        }
    }

    /// Waits for `pause`; true: the engine ends meanwhile.
    async fn rest(&self, pause: Duration) -> bool {
        let mut draining = self.followed.draining.clone();
        tokio::select! {
            () = sleep(pause) => false,
            _ = draining.wait_for(|draining| *draining) => true,
        }
    }

    fn fail(&self, why: &str) {
        self.report.lock().failure = Some(why.into());
    }

    fn begin(&self, identity: &str) {
        let mut report = self.report.lock();
        report.writer = true;
        report.holder = Some(identity.to_owned());
        report.failure = None;
        report.first_sync = None;
        report.problems.clear();
        drop(report);
        tracing::info!(
            event = "kubernetes_lease_taken",
            identity,
            "the lease is ours; objects of Kubernetes are written here"
        );
    }

    fn end(&self) {
        let mut report = self.report.lock();
        report.writer = false;
        report.holder = None;
        report.in_sync = false;
        report.withheld = None;
        (report.pending, report.in_flight, report.problem_count) = (0, 0, 0);
        report.problems.clear();
    }
}

/// A name for this engine that no other has, readable for people.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| c.is_ascii_graphic()).take(100).collect();
    format!("{host}_{:016x}", RandomState::new().build_hasher().finish())
}
