//! When the first view counts as complete.
//!
//! A response is the whole truth for istiod, so nothing is said before it is known. With cluster scope the host says when
//! every service was read once. With local scope the registry's clients need time to come back: that is
//! `mox.protect.startup-hold` after the engine began to listen (a session server lets its clients in just before that), or
//! until there are 95 % of the publishers of the last good state.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Scope;

/// The gate.
#[derive(Debug)]
pub struct Gate {
    scope: Scope,
    hold: Duration,
    last_good: Option<usize>,
}

impl Gate {
    /// A gate that, with local scope, waits so long at most, or for 95 % of so many publishers.
    pub fn new(scope: Scope, hold: Duration, last_good: Option<usize>) -> Self {
        Self { scope, hold, last_good }
    }

    /// When the hold ends for an engine that listens since `since`; `None`: never by itself.
    pub fn hold_ends(&self, since: Option<Instant>) -> Option<Instant> {
        since?.checked_add(self.hold)
    }

    /// Whether the hold is over.
    pub fn is_over(&self, since: Option<Instant>) -> bool {
        self.hold_ends(since).is_some_and(|at| Instant::now() >= at)
    }

    /// Whether the view is complete.
    pub fn is_open(&self, loaded: bool, since: Option<Instant>, publishers: usize) -> bool {
        let regained = self.last_good.is_some_and(|good| good > 0 && publishers * 100 >= good * 95);
        loaded || (self.scope == Scope::Local && (self.is_over(since) || regained))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_the_hold_or_when_told() {
        let (gate, since) = (Gate::new(Scope::Local, HOLD, None), Some(Instant::now()));
        assert!(!gate.is_open(false, since, 1_000_000));
        assert!(gate.is_open(true, since, 0));
        tokio::time::advance(HOLD).await;
        assert!(gate.is_open(false, since, 0));
        assert!(!gate.is_open(false, None, 0), "the hold begins when clients are let in");
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_when_nearly_all_publishers_are_back() {
        let (gate, since) = (Gate::new(Scope::Local, HOLD, Some(200)), Some(Instant::now()));
        assert!(!gate.is_open(false, since, 189));
        assert!(gate.is_open(false, since, 190));
        assert!(!Gate::new(Scope::Local, HOLD, Some(0)).is_open(false, since, 1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn with_cluster_scope_it_opens_when_told_only() {
        let (gate, since) = (Gate::new(Scope::Cluster, HOLD, Some(200)), Some(Instant::now()));
        tokio::time::advance(HOLD).await;
        assert!(gate.is_over(since) && !gate.is_open(false, since, 200));
        assert!(gate.is_open(true, since, 0));
    }
}
