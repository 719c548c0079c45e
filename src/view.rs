//! What streams see: a snapshot, and whether it may be shown.

use std::sync::Arc;

use serde::Serialize;

use crate::snapshot::Snapshot;

/// Why the served state is not the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Held {
    /// The first complete view is not in; streams are held silent.
    NotLoaded,
    /// The first complete view is not in; the last good state is served, with what is known to have come since.
    LastGood,
    /// More went than a registry in its right mind takes away.
    MassDelete,
    /// The operator froze what is served, or the registry stopped its pushes.
    Frozen,
}

/// Handed to streams as a whole, so that they never see half a change.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Whether a complete view was in once.
    pub complete: bool,
    /// Whether streams may be told; until then nothing is said about services. A complete view is.
    pub shown: bool,
    /// ServiceEntries.
    pub service_entries: Arc<Snapshot>,
    /// WorkloadEntries; empty where endpoints stand in their ServiceEntry.
    pub workload_entries: Arc<Snapshot>,
    /// DestinationRules, for what a ServiceEntry cannot say.
    pub destination_rules: Arc<Snapshot>,
}

impl View {
    /// Differ between any two views of different content.
    pub fn versions(&self) -> [&str; 3] {
        [self.service_entries.version(), self.workload_entries.version(), self.destination_rules.version()]
    }
}
