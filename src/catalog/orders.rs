//! Orders of the host, the operator and the registry.

use crate::{catalog::breaker::Totals, model::Millis};

/// Latches and requests, set from outside; every round looks at them.
#[derive(Debug, Default, Clone, Copy)]
pub struct Orders {
    /// The first complete view is in.
    pub loaded: bool,
    /// How much another session server serves; what the first complete view is judged against where no last good state is.
    pub baseline: Option<Totals>,
    /// When the engine began to listen, by its own clock.
    pub listening_since: Option<Millis>,
    /// The operator's latch of this process.
    pub frozen: bool,
    /// The operator's freeze of all session servers, which outlives restarts.
    pub ordered: bool,
    /// The registry's stop-push switch.
    pub stopped: bool,
    /// Let a held mass deletion or addition through; counts for one round.
    pub release: bool,
    /// Flushes asked for so far.
    pub flushes: u64,
}

impl Orders {
    /// The orders for the next round; a release is not given twice.
    pub fn take(&mut self) -> Self {
        let orders = *self;
        self.release = false;
        orders
    }

    /// Whether what is served is to stay as it is.
    pub fn is_frozen(&self) -> bool {
        self.frozen || self.ordered || self.stopped
    }
}
