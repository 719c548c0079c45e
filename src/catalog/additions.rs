//! The mass-add breaker: whether services that the registry names for the first time may come into the mesh.
//!
//! Every service costs every proxy that sees it, and anybody may publish. So where within a minute more new services come than
//! a number and than a share of what is served, the new ones wait: for an operator, for a while, or until most of them have
//! left again. Only those of the tenant that explains it wait, where one does. Who is served goes on, and nobody is harmed who
//! was there. Not before a registry had time to come back after a start; and as many as went since the most were served may
//! come back at any time.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::{catalog::breaker::tenant, config::Protect, model::Millis};

const WINDOW: Millis = 60_000;

/// The judgement on a round. Services that are not served and that [`Additions::waits`] names are not to be served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judgement {
    /// New services wait from now on; so many came.
    pub held: Option<usize>,
    /// The services that waited are to come; the text says why.
    pub over: Option<&'static str>,
}

#[derive(Debug, Clone)]
struct Window {
    since: Millis,
    /// Services with endpoints when it began, or the most that there were before.
    served: usize,
    /// How many of those were not there when it began, and may come back.
    returning: usize,
    /// Services that came since and have not left again, those that wait included.
    came: HashSet<Arc<str>>,
    /// How many of them are of which tenant.
    tenants: HashMap<Box<str>, usize>,
}

#[derive(Debug, Clone)]
struct Hold {
    since: Millis,
    /// `None`: the new services of every tenant wait.
    tenant: Option<Box<str>>,
}

impl Window {
    /// Whether so many services are too many to have come since the window began.
    fn trips(&self, came: usize, protect: &Protect) -> bool {
        let new = came.saturating_sub(self.returning);
        new > protect.mass_add_services && new as f64 > self.served as f64 * protect.mass_add_share
    }
}

/// The state of the breaker.
#[derive(Debug, Clone)]
pub struct Additions {
    protect: Protect,
    /// When the first complete view came.
    complete_since: Option<Millis>,
    /// The most services that were served since.
    most: usize,
    window: Option<Window>,
    hold: Option<Hold>,
    released: bool,
}

impl Additions {
    /// A breaker that has seen nothing.
    pub fn new(protect: Protect) -> Self {
        Self { protect, complete_since: None, most: 0, window: None, hold: None, released: false }
    }

    /// The first complete view is in.
    pub fn complete(&mut self, now: Millis) {
        self.complete_since = Some(now);
    }

    /// Begins a window over what is served, unless one runs or the registry may still be coming back.
    pub fn begin(&mut self, now: Millis, served: usize) {
        self.most = self.most.max(served);
        let settle = self.protect.mass_add_settle.as_millis() as Millis;
        let settled = self.complete_since.is_some_and(|since| now >= since.saturating_add(settle));
        let over = |window: &Window| self.hold.is_none() && now - window.since >= WINDOW;
        if settled && self.window.as_ref().is_none_or(over) && !self.protect.mass_add_hold.is_zero() {
            let (came, tenants) = (HashSet::new(), HashMap::new());
            self.window = Some(Window { since: now, served: self.most, returning: self.most - served, came, tenants });
        }
    }

    /// Takes note of a service: whether it is served, and whether it will be.
    pub fn note(&mut self, id: &Arc<str>, served: bool, next: bool) {
        let Some(window) = &mut self.window else { return };
        if !served && next && window.came.insert(Arc::clone(id)) {
            *window.tenants.entry(tenant(id).into()).or_default() += 1;
        } else if !next && window.came.remove(id) {
            let tenant = tenant(id);
            if let Some(count) = window.tenants.get_mut(tenant) {
                *count -= 1;
                if *count == 0 {
                    window.tenants.remove(tenant);
                }
            }
        }
    }

    /// Takes note of a service without endpoints that has some again: the registry took the last one away at `since`. Where that was
    /// before the window began, this is one of those that may come back.
    pub fn note_back(&mut self, since: Millis) {
        if let Some(window) = self.window.as_mut().filter(|window| since <= window.since) {
            window.returning = window.returning.saturating_sub(1);
        }
    }

    /// Whether so many new services might make more services wait than do now.
    pub fn may_trip(&self, new: usize) -> bool {
        let Some(window) = &self.window else { return new > self.protect.mass_add_services };
        let waiting = match &self.hold {
            None => 0,
            Some(Hold { tenant: None, .. }) => return false,
            Some(Hold { tenant: Some(tenant), .. }) => window.tenants.get(tenant).copied().unwrap_or_default(),
        };
        new > 0 && window.trips(window.came.len() - waiting + new, &self.protect)
    }

    /// Judges what was noted.
    pub fn judge(&mut self, now: Millis) -> Judgement {
        let released = std::mem::take(&mut self.released);
        let Some(window) = &self.window else { return Judgement::default() };
        let trips = |came: usize| window.trips(came, &self.protect);
        let came = window.came.len();
        let Some(hold) = &mut self.hold else {
            if !trips(came) {
                return Judgement::default();
            }
            let mut explain = window.tenants.iter().filter(|(_, count)| !trips(came - **count));
            let tenant = explain.next().filter(|_| explain.next().is_none()).map(|(tenant, _)| tenant.clone());
            self.hold = Some(Hold { since: now, tenant });
            return Judgement { held: Some(came), over: None };
        };
        let why = if !trips(came) {
            "most of the new services have left again"
        } else if released {
            "released by the operator"
        } else if now >= hold.since + self.protect.mass_add_hold.as_millis() as Millis {
            "mox.protect.mass-add-hold is over"
        } else {
            let of_tenant = hold.tenant.as_ref().and_then(|tenant| window.tenants.get(tenant));
            if trips(came - of_tenant.copied().unwrap_or_default()) {
                hold.tenant = None;
            }
            return Judgement::default();
        };
        // Who comes now is not to be judged again.
        (self.window, self.hold) = (None, None);
        Judgement { held: None, over: Some(why) }
    }

    /// Whether a service waits unless it is served.
    pub fn waits(&self, id: &str) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.tenant.as_deref().is_none_or(|of| of == tenant(id)))
    }

    /// Whether new services wait.
    pub fn is_holding(&self) -> bool {
        self.hold.is_some()
    }

    /// The tenant whose new services wait, if those of others do not.
    pub fn held_tenant(&self) -> Option<&str> {
        self.hold.as_ref()?.tenant.as_deref()
    }

    /// Whether the hold ends at the next judgement whoever comes: it is released, or was long enough.
    pub fn is_due(&self, now: Millis) -> bool {
        self.released || self.deadline().is_some_and(|at| at <= now)
    }

    /// Whether the hold ends at the next judgement since most of the new services have left again.
    pub fn is_over(&self) -> bool {
        let window = self.window.as_ref().filter(|_| self.hold.is_some());
        window.is_some_and(|window| !window.trips(window.came.len(), &self.protect))
    }

    /// When the hold ends by itself.
    pub fn deadline(&self) -> Option<Millis> {
        self.hold.as_ref().map(|hold| hold.since + self.protect.mass_add_hold.as_millis() as Millis)
    }

    /// Ends a hold at the next judgement; once.
    pub fn release(&mut self) {
        self.released = self.hold.is_some();
    }
}

#[cfg(test)]
mod tests {
    use std::{ops::Range, time::Duration};

    use super::*;

    const PASS: Judgement = Judgement { held: None, over: None };
    const SETTLED: Millis = 600_000;

    fn over(why: &'static str) -> Judgement {
        Judgement { held: None, over: Some(why) }
    }

    /// A breaker over `served` services.
    struct Mesh {
        additions: Additions,
        served: HashSet<Arc<str>>,
        waiting: HashSet<Arc<str>>,
    }

    impl Mesh {
        fn new(served: usize) -> Self {
            let mut additions = Additions::new(Protect::default());
            additions.complete(0);
            let served = (0..served).map(|n| format!("{n}#@#old#@#SOFA").into()).collect();
            Self { additions, served, waiting: HashSet::new() }
        }

        fn change(&mut self, now: Millis, tenant: &str, services: Range<usize>, come: bool) -> Judgement {
            self.additions.begin(now, self.served.len());
            let ids: Vec<Arc<str>> = services.map(|n| format!("{n}#@#{tenant}#@#SOFA").into()).collect();
            ids.iter().for_each(|id| self.additions.note(id, self.served.contains(id), come));
            let judgement = self.additions.judge(now);
            for id in ids {
                if !come {
                    self.served.remove(&id);
                    self.waiting.remove(&id);
                } else if !self.served.contains(&id) {
                    self.waiting.insert(id);
                }
            }
            let come = self.waiting.extract_if(|id| !self.additions.waits(id));
            self.served.extend(come);
            judgement
        }

        fn counts(&self) -> (usize, usize) {
            (self.served.len(), self.waiting.len())
        }
    }

    #[test]
    fn it_trips_above_both_the_number_and_the_share() {
        let mut mesh = Mesh::new(500);
        assert_eq!(mesh.change(SETTLED, "a", 0..1_000, true), PASS, "1,000 are not above 1,000");
        assert_eq!(mesh.change(SETTLED + 1, "a", 1_000..1_003, true), Judgement { held: Some(1_003), over: None });
        assert_eq!(mesh.counts(), (1_500, 3));
        assert_eq!(Mesh::new(4_000).change(SETTLED, "a", 0..2_000, true), PASS, "half of 4,000 is not above half");
        assert_eq!(Mesh::new(4_000).change(SETTLED, "a", 0..2_001, true).held, Some(2_001));
        let mut mesh = Mesh::new(4_000);
        assert_eq!(mesh.change(SETTLED, "a", 0..1_500, true), PASS);
        assert_eq!(mesh.change(SETTLED + 60_000, "a", 1_500..3_000, true), PASS, "of the next minute");
    }

    #[test]
    fn a_registry_that_comes_back_is_not_held_up() {
        let mut mesh = Mesh::new(0);
        assert_eq!(mesh.change(SETTLED - 1, "a", 0..50_000, true), PASS);
        assert_eq!(mesh.change(SETTLED, "a", 50_000..50_100, true), PASS);
        mesh.additions.complete_since = None;
        mesh.additions.window = None;
        assert_eq!(mesh.change(9 * SETTLED, "a", 60_000..160_000, true), PASS, "not complete yet");
    }

    #[test]
    fn as_many_as_went_may_come_back_and_no_more() {
        let mut mesh = Mesh::new(10_000);
        assert_eq!(mesh.change(SETTLED, "old", 0..10_000, false), PASS);
        assert_eq!(mesh.counts(), (0, 0));
        assert_eq!(mesh.change(2 * SETTLED, "old", 0..10_000, true), PASS, "however long they were away");
        assert_eq!(mesh.change(3 * SETTLED, "old", 0..4_000, false), PASS);
        assert_eq!(mesh.change(4 * SETTLED, "new", 0..9_000, true), PASS, "4,000 in their place, and half of 10,000");
        assert_eq!(mesh.change(4 * SETTLED + 1, "new", 9_000..9_001, true).held, Some(9_001));
    }

    #[test]
    fn who_is_back_leaves_no_room_for_others() {
        let mut mesh = Mesh::new(10_000);
        assert_eq!(mesh.change(SETTLED, "old", 0..4_000, false), PASS);
        assert_eq!(mesh.change(2 * SETTLED, "old", 0..0, true), PASS, "a minute in which 4,000 may come back");
        mesh.additions.note_back(2 * SETTLED + 1);
        assert_eq!(mesh.change(2 * SETTLED + 1, "new", 0..9_000, true), PASS, "who went since was not missing");
        (0..3).for_each(|_| mesh.additions.note_back(SETTLED));
        assert_eq!(mesh.change(2 * SETTLED + 2, "old", 0..0, true).held, Some(9_000));
    }

    #[test]
    fn a_hold_ends_when_they_leave_by_release_or_by_time() {
        let mut mesh = Mesh::new(10);
        assert_eq!(mesh.change(SETTLED, "a", 0..1_001, true).held, Some(1_001));
        assert_eq!(mesh.change(SETTLED + 100_000, "a", 0..0, true), PASS, "a hold keeps its window");
        assert_eq!(mesh.change(SETTLED + 100_001, "a", 0..1, false), over("most of the new services have left again"));
        assert_eq!((mesh.counts(), mesh.additions.is_holding()), ((1_010, 0), false));
        mesh.additions.release();
        assert_eq!(mesh.change(SETTLED + 100_002, "a", 2_000..4_000, true).held, Some(2_000), "a release before it");
        mesh.additions.release();
        assert_eq!(mesh.change(SETTLED + 100_003, "a", 0..0, true), over("released by the operator"));
        assert_eq!(mesh.counts(), (3_010, 0));
        assert_eq!(mesh.change(SETTLED + 100_004, "a", 4_000..6_000, true).held, Some(2_000), "one hold");
        assert_eq!(mesh.additions.deadline(), Some(2 * SETTLED + 100_004));
        assert_eq!(mesh.change(2 * SETTLED + 100_004, "a", 0..0, true), over("mox.protect.mass-add-hold is over"));
        let protect = Protect { mass_add_hold: Duration::ZERO, ..Protect::default() };
        let mut mesh = Mesh { additions: Additions::new(protect), ..Mesh::new(0) };
        mesh.additions.complete(0);
        assert_eq!(mesh.change(SETTLED, "a", 0..5_000, true), PASS, "none waits for no time");
    }

    #[test]
    fn only_the_tenant_that_explains_it_waits() {
        let mut mesh = Mesh::new(100);
        assert_eq!(mesh.change(SETTLED, "b", 0..100, true), PASS);
        assert_eq!(mesh.change(SETTLED + 1, "a", 0..50_000, true).held, Some(50_100));
        assert_eq!((mesh.counts(), mesh.additions.held_tenant()), ((200, 50_000), Some("a")));
        assert_eq!(mesh.change(SETTLED + 2, "b", 100..1_000, true), PASS);
        assert_eq!(mesh.counts(), (1_100, 50_000), "those of others come");
        assert_eq!(mesh.change(SETTLED + 3, "c", 0..1, true), PASS);
        assert_eq!(
            (mesh.counts(), mesh.additions.held_tenant()),
            ((1_100, 50_001), None),
            "now others are too many, too"
        );
        assert_eq!(mesh.change(SETTLED + 4, "a", 0..50_000, false).over, None);
        assert_eq!((mesh.counts(), mesh.additions.window.as_ref().unwrap().came.len()), ((1_100, 1), 1_001));
        let mut mesh = Mesh::new(100);
        mesh.change(SETTLED, "a", 0..800, true);
        assert_eq!(mesh.change(SETTLED, "b", 0..800, true).held, Some(1_600));
        assert_eq!((mesh.counts(), mesh.additions.held_tenant()), ((900, 800), None), "either would explain it");
    }
}
