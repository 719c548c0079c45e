//! The mass-delete breaker: whether what a registry no longer names may be taken from the mesh.
//!
//! A registry that lost its clients, its data servers or its mind says that services are gone, and says it convincingly. So
//! what would be served after each round is judged against the state at the start of a window of 60 s: if more than a share
//! of the services lost all their endpoints, or more than a share of the endpoints went, removals are withheld. Endpoints
//! that a service gains make up for those that it loses. The hold ends when what is missing has come back, when an operator
//! releases it, or after a while.

use std::{collections::HashMap, sync::Arc};

use serde::Serialize;

use crate::{config::Protect, model::Millis};

const WINDOW: Millis = 60_000;

/// How much is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Services with an endpoint or more.
    pub services: usize,
    /// The endpoints of all services.
    pub endpoints: usize,
}

/// Services and endpoints that are missing since the window began; for status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lost {
    /// Services that lost all their endpoints.
    pub services: usize,
    /// Endpoints, without those that came in their place.
    pub endpoints: usize,
}

/// The judgement on a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Remove what went.
    Pass,
    /// Remove nothing.
    Hold,
    /// Remove what went, and what was withheld before; the text says why.
    Over(&'static str),
}

/// Endpoints of a service whose endpoints changed in a window.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// Endpoints at the start of the window; for a service that is new in the window, the most that it has had.
    before: usize,
    now: usize,
    /// The service had no endpoints at the start of the window.
    new: bool,
}

/// The sums over some services.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    totals: Totals,
    lost: Lost,
}

#[derive(Debug)]
struct Window {
    since: Millis,
    changes: HashMap<Arc<str>, Change>,
    /// The services that were there when the window began.
    old: Account,
    /// These and the services that came since.
    all: Account,
}

impl Window {
    fn new(since: Millis, totals: Totals) -> Self {
        let account = Account { totals, lost: Lost::default() };
        Self { since, changes: HashMap::new(), old: account, all: account }
    }
}

/// The state of the breaker.
#[derive(Debug)]
pub struct Breaker {
    protect: Protect,
    window: Option<Window>,
    holding_since: Option<Millis>,
    released: bool,
}

impl Breaker {
    /// A breaker that has seen nothing.
    pub fn new(protect: Protect) -> Self {
        Self { protect, window: None, holding_since: None, released: false }
    }

    /// Begins a window over the last good state, so that the first live view is judged against it.
    pub fn begin_with(&mut self, now: Millis, last_good: impl Iterator<Item = (Arc<str>, usize)>) {
        let (mut totals, mut changes) = (Totals::default(), HashMap::new());
        for (id, before) in last_good.filter(|(_, before)| *before > 0) {
            totals.services += 1;
            totals.endpoints += before;
            changes.insert(id, Change { before, now: before, new: false });
        }
        self.window = Some(Window { changes, ..Window::new(now, totals) });
    }

    /// Begins a window over what is served, unless one runs.
    pub fn begin(&mut self, now: Millis, served: Totals) {
        let over = |window: &Window| now - window.since >= WINDOW || now < window.since;
        if self.holding_since.is_none() && self.window.as_ref().is_none_or(over) {
            self.window = Some(Window::new(now, served));
        }
    }

    /// Takes note of how many endpoints a service is served with, and how many it would be served with next.
    pub fn note(&mut self, id: &Arc<str>, served: usize, next: usize) {
        let Some(window) = &mut self.window else { return };
        let change = match window.changes.get_mut(&**id) {
            Some(change) => change,
            None => {
                let first = Change { before: served, now: served, new: served == 0 };
                window.changes.entry(Arc::clone(id)).or_insert(first)
            }
        };
        let before = *change;
        // Services that come during a hold do not make good what is missing.
        if change.new && next > change.before && self.holding_since.is_none() {
            window.all.totals.services += usize::from(change.before == 0);
            window.all.totals.endpoints += next - change.before;
            change.before = next;
        }
        change.now = next;
        let old = Some(&mut window.old).filter(|_| !change.new);
        for account in old.into_iter().chain([&mut window.all]) {
            account.lost = account.lost.without(before).with(*change);
        }
    }

    /// Judges what was noted.
    pub fn judge(&mut self, now: Millis) -> Verdict {
        let released = std::mem::take(&mut self.released);
        let Some(window) = &self.window else { return Verdict::Pass };
        let exceeds =
            |lost: usize, of: usize, least: usize| lost > least && lost * 100 > of * self.protect.mass_delete_share;
        let tripped = [window.old, window.all].iter().any(|Account { totals, lost }| {
            exceeds(lost.services, totals.services, self.protect.mass_delete_services)
                || exceeds(lost.endpoints, totals.endpoints, self.protect.mass_delete_endpoints)
        });
        match (self.holding_since, tripped) {
            (None, false) => Verdict::Pass,
            (None, true) => {
                self.holding_since = Some(now);
                Verdict::Hold
            }
            (Some(_), false) => self.end("what was missing is back"),
            (Some(_), true) if released => self.end("released by the operator"),
            (Some(since), true) if now >= since + self.hold() => self.end("mox.protect.mass-delete-hold is over"),
            (Some(_), true) => Verdict::Hold,
        }
    }

    fn end(&mut self, why: &'static str) -> Verdict {
        self.holding_since = None;
        // What goes out now is not to be judged again.
        self.window = None;
        Verdict::Over(why)
    }

    fn hold(&self) -> Millis {
        self.protect.mass_delete_hold.as_millis() as Millis
    }

    /// When a hold ends by itself.
    pub fn deadline(&self) -> Option<Millis> {
        self.holding_since.map(|since| since + self.hold())
    }

    /// Ends a hold at the next judgement; once.
    pub fn release(&mut self) {
        self.released = self.holding_since.is_some();
    }

    /// Services and endpoints that are missing, while removals are withheld.
    pub fn held(&self) -> Option<Lost> {
        self.holding_since.and(self.window.as_ref()).map(|window| window.all.lost)
    }
}

impl Lost {
    /// With what a service has lost.
    fn with(self, Change { before, now, .. }: Change) -> Self {
        Self {
            services: self.services + usize::from(before > 0 && now == 0),
            endpoints: self.endpoints + before.saturating_sub(now),
        }
    }

    /// Without what a service had lost.
    fn without(self, Change { before, now, .. }: Change) -> Self {
        Self {
            services: self.services - usize::from(before > 0 && now == 0),
            endpoints: self.endpoints - before.saturating_sub(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A breaker over `services` of `endpoints` each, and what it says after some have other counts at the given time.
    struct Mesh {
        breaker: Breaker,
        counts: HashMap<Arc<str>, usize>,
    }

    impl Mesh {
        fn new(services: usize, endpoints: usize) -> Self {
            let counts = (0..services).map(|n| (n.to_string().into(), endpoints)).collect();
            Self { breaker: Breaker::new(Protect::default()), counts }
        }

        fn change(&mut self, now: Millis, services: std::ops::Range<usize>, endpoints: usize) -> Verdict {
            let live = self.counts.values().filter(|count| **count > 0);
            let served = Totals { services: live.clone().count(), endpoints: live.sum() };
            self.breaker.begin(now, served);
            let names: Vec<Arc<str>> = services.map(|n| n.to_string().into()).collect();
            for name in &names {
                self.breaker.note(name, self.counts.get(name).copied().unwrap_or(0), endpoints);
            }
            let verdict = self.breaker.judge(now);
            if verdict != Verdict::Hold {
                self.counts.extend(names.into_iter().map(|name| (name, endpoints)));
            }
            verdict
        }
    }

    #[test]
    fn it_trips_above_both_the_share_and_the_number() {
        assert_eq!(Mesh::new(100, 1).change(0, 0..30, 0), Verdict::Pass, "30 % is not above 30 %");
        assert_eq!(Mesh::new(100, 1).change(0, 0..31, 0), Verdict::Hold);
        assert_eq!(Mesh::new(20, 1).change(0, 0..10, 0), Verdict::Pass, "10 services are not above 10");
        assert_eq!(Mesh::new(20, 1).change(0, 0..11, 0), Verdict::Hold);
        assert_eq!(Mesh::new(100, 10).change(0, 0..100, 7), Verdict::Pass, "30 % of the endpoints");
        assert_eq!(Mesh::new(100, 10).change(0, 0..100, 6), Verdict::Hold);
        assert_eq!(Mesh::new(5, 20).change(0, 0..5, 10), Verdict::Pass, "50 endpoints are not above 50");
    }

    #[test]
    fn what_goes_in_small_steps_within_a_window_counts_together() {
        let mut mesh = Mesh::new(100, 1);
        assert_eq!(mesh.change(0, 0..20, 0), Verdict::Pass);
        assert_eq!(mesh.change(59_999, 20..40, 0), Verdict::Hold);
        let mut mesh = Mesh::new(100, 1);
        assert_eq!(mesh.change(0, 0..20, 0), Verdict::Pass);
        assert_eq!(mesh.change(60_000, 20..40, 0), Verdict::Pass, "in the next window they are 20 of 80");
    }

    #[test]
    fn what_a_service_gains_makes_up_for_what_it_loses() {
        let mut mesh = Mesh::new(100, 2);
        assert_eq!(mesh.change(0, 0..100, 1), Verdict::Hold);
        assert_eq!(mesh.change(1, 0..100, 2), Verdict::Over("what was missing is back"));
        let mut mesh = Mesh::new(100, 2);
        assert_eq!(mesh.change(0, 100..200, 2), Verdict::Pass);
        assert_eq!(mesh.change(1, 0..50, 0), Verdict::Hold, "other services are no replacement");
    }

    #[test]
    fn what_came_within_the_window_is_guarded_as_well() {
        let mut mesh = Mesh::new(0, 0);
        assert_eq!(mesh.change(0, 0..100, 2), Verdict::Pass);
        assert_eq!(mesh.change(1, 0..30, 0), Verdict::Pass, "30 % is not above 30 %");
        assert_eq!(mesh.change(2, 30..31, 0), Verdict::Hold);
        assert_eq!(mesh.breaker.held(), Some(Lost { services: 31, endpoints: 62 }));
        assert_eq!(mesh.change(3, 200..400, 9), Verdict::Hold, "other services are no replacement");
        assert_eq!(mesh.change(4, 0..10, 2), Verdict::Over("what was missing is back"));
        let mut mesh = Mesh::new(100, 2);
        assert_eq!(mesh.change(0, 0..100, 4), Verdict::Pass);
        assert_eq!(mesh.change(1, 0..100, 2), Verdict::Pass, "one that was there may have more for a while");
        assert_eq!(mesh.change(2, 100..500, 2), Verdict::Pass);
        assert_eq!(mesh.change(3, 0..31, 0), Verdict::Hold, "31 of those 100, whatever came");
    }

    #[test]
    fn a_hold_ends_by_recovery_release_or_time() {
        let mut mesh = Mesh::new(100, 1);
        assert_eq!(mesh.change(0, 0..60, 0), Verdict::Hold);
        assert_eq!(mesh.breaker.held(), Some(Lost { services: 60, endpoints: 60 }));
        assert_eq!(mesh.change(100_000, 0..20, 1), Verdict::Hold, "a hold keeps its window");
        assert_eq!(mesh.change(100_001, 20..35, 1), Verdict::Over("what was missing is back"));
        assert_eq!(mesh.breaker.held(), None);

        let mut mesh = Mesh::new(100, 1);
        mesh.breaker.release();
        assert_eq!(mesh.change(0, 0..60, 0), Verdict::Hold, "a release before the hold is for nothing");
        mesh.breaker.release();
        assert_eq!(mesh.change(1, 0..60, 0), Verdict::Over("released by the operator"));
        assert_eq!(mesh.change(2, 60..100, 0), Verdict::Hold, "a release is for one hold");
        assert_eq!(mesh.breaker.deadline(), Some(600_002));
        assert_eq!(mesh.change(600_002, 0..0, 0), Verdict::Over("mox.protect.mass-delete-hold is over"));
    }

    #[test]
    fn the_first_live_view_is_judged_against_the_last_good_state() {
        let mut breaker = Breaker::new(Protect::default());
        let ids: Vec<Arc<str>> = (0..100).map(|n| n.to_string().into()).collect();
        breaker.begin_with(0, ids.iter().map(|id| (Arc::clone(id), 5)));
        ids.iter().for_each(|id| breaker.note(id, 0, if id.len() == 1 { 5 } else { 0 }));
        assert_eq!(breaker.judge(0), Verdict::Hold);
        assert_eq!(breaker.held(), Some(Lost { services: 90, endpoints: 450 }));
    }

    proptest::proptest! {
        /// The sums are those of a count over everything, whatever the history.
        #[test]
        fn sums_are_kept_right(history in proptest::collection::vec((0u8..9, 0usize..5), 0..60)) {
            let mut breaker = Breaker::new(Protect::default());
            breaker.begin(0, Totals { services: 9, endpoints: 27 });
            let mut counts = [3usize; 9];
            for (service, wanted) in history {
                breaker.note(&service.to_string().into(), 3, wanted);
                counts[usize::from(service)] = wanted;
            }
            let lost = breaker.window.as_ref().unwrap().old.lost;
            proptest::prop_assert_eq!(lost.services, counts.iter().filter(|count| **count == 0).count());
            proptest::prop_assert_eq!(lost.endpoints, counts.iter().map(|count| 3usize.saturating_sub(*count)).sum::<usize>());
        }
    }
}
