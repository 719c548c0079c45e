//! What an engine follows of those who subscribe, and what it shows of that.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Instant};

use serde::Serialize;

use crate::{
    catalog::narrowing,
    kubernetes::report::PodsReport,
    policy::{Mode, Policy, Source},
    visibility::keeper::{Counts, Keeper},
};

/// What is followed of subscribers.
#[derive(Debug, Default)]
pub(super) struct Watching {
    pub(super) keeper: Keeper,
    /// The policy by which clients' namespaces were made.
    pub(super) policy: Option<Arc<Policy>>,
    /// How many changes of the pods these regard.
    pub(super) pods: u64,
    /// What the documents said that is in force; `None`: nothing is yet.
    pub(super) said: Option<Option<Said>>,
    /// The groups of services there are, and when they were looked for.
    pub(super) groups: Option<(Arc<BTreeSet<String>>, Instant)>,
    /// The own clients that subscribe.
    pub(super) clients: Option<OwnClients>,
}

/// The own clients that subscribe, for the session server that computes.
#[derive(Debug)]
pub(super) struct OwnClients {
    /// This session server, as the host names it.
    pub(super) server: Arc<str>,
    /// A line each; `None`: the keeper has others by now, which nobody has asked for yet.
    pub(super) lines: Option<Arc<str>>,
    /// When the host said so last.
    pub(super) at: Instant,
}

/// What the documents say of all services, but for who holds the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) settled: bool,
    pub(super) pages: usize,
    /// Of [`Documents`](crate::documents::Documents).
    pub(super) content: u64,
}

/// The visibility of services, for the status.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VisibilityStatus {
    /// The policy's.
    pub mode: Mode,
    /// Whether the policy asks for consumers at all, and this session server can follow.
    pub asks: bool,
    /// Why nobody asks though the policy does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off: Option<&'static str>,
    /// Whether the documents say of all services where their consumers are, so that it counts.
    pub known: bool,
    /// The services of which somebody is known to consume them.
    pub services: usize,
    /// The session server that computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Arc<str>>,
    /// Whether it is this one.
    pub computing: bool,
    /// Its counts, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// How pods are followed, if it is this one and the policy asks Kubernetes where consumers are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<PodsReport>,
    /// Services that would be hidden from namespaces that see them, and are not for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<narrowing::Held>,
}

impl VisibilityStatus {
    /// Whether the policy does not ask for it.
    pub fn is_off(&self) -> bool {
        !self.asks && self.off.is_none()
    }
}

/// A client that subscribes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientShown {
    /// Its application; `None`: it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<Arc<str>>,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its cell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell: Option<Arc<str>>,
    /// The session server that it is connected to.
    pub server: Arc<str>,
    /// The namespaces that it is in; none: not known.
    pub namespaces: Vec<Arc<str>>,
    /// What says so: a glob on its application, a range of addresses, or the pod with its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces_by: Option<Source>,
}
