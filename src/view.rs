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
    /// The operator froze what is served.
    Frozen,
}

/// Handed to streams as a whole, so that they never see half a change.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Whether a complete view was in once; until then nothing is said about services.
    pub complete: bool,
    /// ServiceEntries.
    pub service_entries: Arc<Snapshot>,
}
