//! When the first view counts as complete.
//!
//! A response is the whole truth for istiod, so nothing is said before it is known. With cluster scope the host says when
//! every service was read once. With local scope the registry's clients need time to come back: that is
//! `mox.protect.startup-hold` after the engine began to listen (a session server lets its clients in just before that), or
//! until there are 95 % of the publishers of the last good state.

use std::time::Duration;

use crate::{config::Scope, model::Millis};

/// Decides when the view is complete.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    scope: Scope,
    hold: Millis,
    last_good: Option<usize>,
}

impl Gate {
    /// A gate that, with local scope, waits for `hold` at most, or for 95 % of the `last_good` publishers.
    pub fn new(scope: Scope, hold: Duration, last_good: Option<usize>) -> Self {
        Self { scope, hold: hold.as_millis() as Millis, last_good }
    }

    /// When the hold ends for an engine that listens since `since`; `None`: it does not listen yet.
    pub fn hold_ends(&self, since: Option<Millis>) -> Option<Millis> {
        since.map(|since| since.saturating_add(self.hold))
    }

    /// Whether the hold is over.
    pub fn is_over(&self, now: Millis, since: Option<Millis>) -> bool {
        self.hold_ends(since).is_some_and(|at| now >= at)
    }

    /// Whether the view is complete.
    pub fn is_open(&self, now: Millis, loaded: bool, since: Option<Millis>, publishers: usize) -> bool {
        let regained = self.last_good.is_some_and(|good| good > 0 && publishers * 100 >= good * 95);
        loaded || (self.scope == Scope::Local && (self.is_over(now, since) || regained))
    }

    /// Whether the end of the hold opens the gate.
    pub fn opens_by_itself(&self) -> bool {
        self.scope == Scope::Local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(60);
    const SINCE: Option<Millis> = Some(1_000);

    #[test]
    fn it_opens_after_the_hold_or_when_told() {
        let gate = Gate::new(Scope::Local, HOLD, None);
        assert!(!gate.is_open(60_999, false, SINCE, 1_000_000));
        assert!(gate.is_open(60_999, true, SINCE, 0));
        assert!(gate.is_open(61_000, false, SINCE, 0));
        assert!(!gate.is_open(61_000, false, None, 0), "the hold begins when clients are let in");
    }

    #[test]
    fn it_opens_when_nearly_all_publishers_are_back() {
        let gate = Gate::new(Scope::Local, HOLD, Some(200));
        assert!(!gate.is_open(1_000, false, SINCE, 189));
        assert!(gate.is_open(1_000, false, SINCE, 190));
        assert!(!Gate::new(Scope::Local, HOLD, Some(0)).is_open(1_000, false, SINCE, 1_000));
    }

    #[test]
    fn with_cluster_scope_it_opens_when_told_only() {
        let gate = Gate::new(Scope::Cluster, HOLD, Some(200));
        assert!(gate.is_over(61_000, SINCE) && !gate.is_open(61_000, false, SINCE, 200));
        assert!(gate.is_open(1_000, true, SINCE, 0));
    }
}
