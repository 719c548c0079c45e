//! When the first view counts as complete.
//!
//! A response is the whole truth for istiod, so nothing is said before it is known. With cluster scope the host says when
//! every service was read once. With local scope the registry's clients need time to come back: that is
//! `mox.protect.startup-hold` after the engine began to listen (a session server lets its clients in just before that), or
//! until there are 95 % of the publishers of the last good state.
//!
//! A registry whose clients are not back says convincingly that its view is complete. Where a last good state is kept the
//! first view is judged against it, service by service ([`Breaker`](super::breaker::Breaker)). Where none is, [`FirstView`]
//! compares how much there is with how much another session server serves.

use std::time::Duration;

use crate::{
    catalog::breaker::{Lost, Totals, missing},
    config::{Protect, Scope},
    model::Millis,
};

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

/// Holds back a first complete view that has much less than another session server serves. That one may be wrong or lie, so
/// it can do no more than that: not for ever, and nothing is let through for its word.
#[derive(Debug, Clone)]
pub struct FirstView {
    protect: Protect,
    held: Option<(Millis, Lost)>,
    released: bool,
}

impl FirstView {
    /// Nothing is held back yet.
    pub fn new(protect: Protect) -> Self {
        Self { protect, held: None, released: false }
    }

    /// Whether a view with so much may count as complete; `began`: it is held back from now on.
    pub fn judge(&mut self, now: Millis, baseline: Totals, gathered: Totals) -> FirstJudgement {
        let since = self.held.map_or(now, |(since, _)| since);
        let is_over = self.released || now >= since.saturating_add(self.protect.mass_delete_hold.as_millis() as Millis);
        match missing(&self.protect, baseline, gathered).filter(|_| !is_over) {
            Some(lost) => {
                let began = self.held.replace((since, lost)).is_none();
                FirstJudgement { passes: false, began: Some(lost).filter(|_| began) }
            }
            None => {
                self.held = None;
                FirstJudgement { passes: true, began: None }
            }
        }
    }

    /// Lets a view through that is held back; once.
    pub fn release(&mut self) {
        self.released = self.held.is_some();
    }

    /// How much less there is than elsewhere, while the view is held back for that.
    pub fn held(&self) -> Option<Lost> {
        self.held.map(|(_, lost)| lost)
    }

    /// When it is let through by itself.
    pub fn deadline(&self) -> Option<Millis> {
        self.held.map(|(since, _)| since.saturating_add(self.protect.mass_delete_hold.as_millis() as Millis))
    }
}

/// The judgement on a first complete view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstJudgement {
    /// The view counts as complete.
    pub passes: bool,
    /// From now on it is held back, since so much is missing.
    pub began: Option<Lost>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_view_waits_for_what_others_serve_but_not_for_ever() {
        let of = |n| Totals { services: n, endpoints: n };
        let lost = |n| Some(Lost { services: n, endpoints: n });
        let passes = FirstJudgement { passes: true, began: None };
        let waits = |began| FirstJudgement { passes: false, began };
        let mut view = FirstView::new(Protect::default());
        view.release();
        assert_eq!(view.judge(0, of(1_000), of(150)), waits(lost(850)), "a release before is for nothing");
        assert_eq!((view.judge(1, of(1_000), of(400)), view.held()), (waits(None), lost(600)));
        assert_eq!(view.judge(2, of(1_000), of(700)), passes);
        assert_eq!((view.held(), view.deadline()), (None, None));

        let mut view = FirstView::new(Protect::default());
        view.judge(5, of(1_000), of(1));
        view.release();
        assert_eq!(view.judge(6, of(1_000), of(1)), passes);

        let mut view = FirstView::new(Protect::default());
        view.judge(5, of(usize::MAX), of(1));
        assert_eq!(view.deadline(), Some(600_005));
        assert!(
            !view.judge(600_004, of(usize::MAX), of(1)).passes && view.judge(600_005, of(usize::MAX), of(1)).passes
        );
    }

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
