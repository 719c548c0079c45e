//! The other way into the mesh: ServiceEntries, WorkloadEntries and DestinationRules as objects of a Kubernetes API server.
//!
//! ```text
//!   view ───> conversion ──┐               ┌──> write: server-side apply, delete ──> API server
//!   orders ──────────────> │ term ── plan ─┤
//!   API server ──> reflect ┘               └──> report, log
//!                  (list and watch)             lease: one writer
//! ```
//!
//! **Takes** the same view as the streams, so that gates, freeze and the mass-delete breaker act here as well, and the
//! operator's orders. Of the session servers with one `mox.kubernetes.owner` the holder of a lease writes; it does so while
//! its view is complete. **Gives** writes to the API server, and a report. `plan`, a value, decides what is to be written:
//! nothing is compared by request, what is desired is compared by hash with what a watch has shown.
//!
//! `pod_watch` stands beside it: it follows pods where the policy has Kubernetes say in which namespaces consumers are, whether or not
//! anything is written.
//!
//! **May be imported by** the host alone (engine, admin pages, metrics). Imports configuration, errors, the view and its
//! snapshots, protobuf types, their form as Kubernetes objects, the names of the translation, and the breaker: no policy,
//! no registry, no stream.

#[cfg(feature = "kubernetes")]
mod api;
#[cfg(feature = "kubernetes")]
mod connect;
#[cfg(feature = "kubernetes")]
mod conversion;
#[cfg(feature = "kubernetes")]
mod failure;
#[cfg(feature = "kubernetes")]
mod lease;
#[cfg(feature = "kubernetes")]
mod objects;
mod orders;
#[cfg(feature = "kubernetes")]
mod pace;
#[cfg(feature = "kubernetes")]
mod plan;
pub mod pod_watch;
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code))]
mod pods;
#[cfg(feature = "kubernetes")]
mod reflect;
pub mod report;
#[cfg(feature = "kubernetes")]
mod sink;
#[cfg(feature = "kubernetes")]
mod term;
#[cfg(feature = "kubernetes")]
mod write;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

use crate::{
    config::Config,
    error::{Error, Result},
};
pub use orders::Followed;
use orders::SinkOrders;
pub use pod_watch::PodWatch;
pub use pods::Changed;
use report::KubernetesReport;

/// The rights that the writer needs, for the defaults of `mox.namespace` and `mox.kubernetes.owner`.
const RBAC: &str = include_str!("kubernetes/rbac.yaml");
/// The rights of whoever follows pods, for the same defaults.
const RBAC_PODS: &str = include_str!("kubernetes/rbac-pods.yaml");

/// Writes the view to a Kubernetes API server, in a task of its own.
#[derive(Debug)]
pub struct Sink {
    owner: String,
    orders: watch::Sender<SinkOrders>,
    report: Arc<Mutex<KubernetesReport>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Sink {
    /// Starts the sink, if it is switched on.
    pub fn start(config: &Config, handle: &Handle, followed: Followed) -> Option<Self> {
        if !config.kubernetes.enabled {
            return None;
        }
        let owner = config.kubernetes.owner.clone();
        let orders = watch::Sender::new(SinkOrders::default());
        let namespace = config.kubernetes.namespace.clone().unwrap_or_else(|| config.namespace.clone());
        let report =
            Arc::new(Mutex::new(KubernetesReport { owner: owner.clone(), namespace, ..KubernetesReport::default() }));
        #[cfg(feature = "kubernetes")]
        let task = {
            let task = sink::SinkTask {
                settings: config.kubernetes.clone(),
                protect: config.protect.clone(),
                followed,
                orders: orders.subscribe(),
                report: Arc::clone(&report),
            };
            Some(handle.spawn(task.supervised()))
        };
        #[cfg(not(feature = "kubernetes"))]
        let task = {
            // A configuration that switches the sink on is refused.
            let Followed { view, fenced, draining } = followed;
            let _ = (handle, view, fenced, draining);
            None
        };
        Some(Self { owner, orders, report, task: Mutex::new(task) })
    }

    /// How writing goes.
    pub fn report(&self) -> KubernetesReport {
        self.report.lock().clone()
    }

    /// Stops or resumes all writes.
    pub fn freeze(&self, frozen: bool) {
        self.orders.send_if_modified(|orders| std::mem::replace(&mut orders.frozen, frozen) != frozen);
    }

    /// Lets a held mass deletion through; whether there was one.
    pub fn release(&self) -> bool {
        let held = self.report.lock().withheld.is_some();
        if held {
            self.orders.send_modify(|orders| orders.releases += 1);
        }
        held
    }

    /// Deletes every object of this owner and writes none until [`Sink::resume`]. `confirm` is the owner's name.
    pub fn purge(&self, confirm: &str) -> Result<()> {
        if confirm != self.owner {
            return Err(Error::InvalidArgument(format!(
                "this deletes every object with the label sofa.registry/owner={0} from Kubernetes, and no more are \
                 written until /mox/kubernetes/resume; to confirm it send {0} as the body",
                self.owner
            )));
        }
        let event = "kubernetes_purge";
        tracing::warn!(event, owner = self.owner, "everything of ours is deleted from Kubernetes, by order");
        self.set_purging(true);
        Ok(())
    }

    /// Ends a purge: everything that is wanted is written again.
    pub fn resume(&self) {
        self.set_purging(false);
    }

    fn set_purging(&self, purging: bool) {
        {
            let mut report = self.report.lock();
            report.in_sync &= report.purging == purging;
            report.purging = purging;
        }
        self.orders.send_modify(|orders| orders.purging = purging);
    }

    /// The sink's task, to be waited for when the engine ends.
    pub(crate) fn take_task(&self) -> Option<JoinHandle<()>> {
        self.task.lock().take()
    }
}

/// The manifest with the rights that are needed with these settings: those of the writer, but where only pods are followed, and those of
/// whoever follows `pods`.
pub fn rbac(config: &Config, pods: bool) -> String {
    let settings = &config.kubernetes;
    let namespace = settings.namespace.as_deref().unwrap_or(&config.namespace);
    let lease_namespace = settings.lease_namespace.as_deref().unwrap_or(namespace);
    let writes = settings.enabled || !pods;
    let parts: Vec<&str> =
        [(writes, RBAC), (pods, RBAC_PODS)].iter().filter(|(is, _)| *is).map(|(_, part)| *part).collect();
    parts
        .join("---\n")
        .replace("sofa-registry # lease", lease_namespace)
        .replace("namespace: sofa-registry # objects", &format!("namespace: {namespace}"))
        // Of a cluster, so there is one for each registry in it.
        .replace("-default-sofa-registry-pods", &format!("-default-{namespace}-pods"))
        .replace("registry-mox-default", &format!("registry-mox-{}", settings.owner))
}
