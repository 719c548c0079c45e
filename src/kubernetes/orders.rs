//! The engine's state and the operator's orders, as the sink follows them.

use tokio::sync::watch;

use crate::snapshot::view::View;

/// An operator's decisions about writing to Kubernetes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SinkOrders {
    /// Whether no write begins.
    pub(super) frozen: bool,
    /// How often a held mass deletion was let through.
    pub(super) releases: u64,
    /// Whether everything of ours is to go, and nothing to come.
    pub(super) purging: bool,
}

/// The state of the engine that the sink follows.
#[derive(Debug, Clone)]
pub struct Followed {
    /// The view that streams are sent.
    pub view: watch::Receiver<View>,
    /// Whether this session server leaves its clients to others.
    pub fenced: watch::Receiver<bool>,
    /// Whether the engine ends.
    pub draining: watch::Receiver<bool>,
}
