//! The mass-delete breaker: whether what a registry no longer names may be taken from the mesh.
//!
//! A registry that lost its clients, its data servers or its mind says that services are gone, and says it convincingly. So
//! what would be served after each round is judged against the state at the start of a window of 60 s: if more than a share
//! of the services lost all their endpoints, or more than a share of the endpoints went, removals are withheld. Endpoints
//! that a service gains make up for those that it loses. Where nothing at all would be left, two services are enough.
//!
//! Anybody may publish, so nobody's coming and going is to hold back the removals of others: what was there when the window
//! began and what came since are judged apart, and so is each tenant. Only the accounts that tripped are withheld, with the
//! services that they had when they tripped; all of what was there, or of what came since, where the whole trips and no
//! tenant explains it alone. A hold ends when what is missing has come back, when an operator releases it, or after a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;
use serde::Serialize;

use crate::{
    config::Protect,
    model::{DataInfoId, Millis},
};

const WINDOW: Millis = 60_000;

/// How much is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
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

/// The judgement on a round. Of the services that [`Breaker::withholds`] nothing is to be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Removals of more services are withheld from now on; this is missing of them.
    pub held: Option<Lost>,
    /// Removals that were withheld are to go on; the text says why.
    pub over: Option<&'static str>,
    /// More would have been withheld than may be.
    pub too_many: Option<Lost>,
}

/// Services and endpoints that are missing of what was served, if they are more than a registry in its right mind takes
/// away.
pub fn missing(protect: &Protect, before: Totals, now: Totals) -> Option<Lost> {
    let lost = Lost {
        services: before.services.saturating_sub(now.services),
        endpoints: before.endpoints.saturating_sub(now.endpoints),
    };
    let nothing = now.services == 0 && before.services >= 2 && protect.mass_delete_share < 100;
    (nothing || Account { totals: before, lost }.trips(protect)).then_some(lost)
}

/// The tenant of a service.
pub fn tenant(id: &str) -> &str {
    DataInfoId::parse(id).map_or("", |id| id.instance_id)
}

/// Endpoints of a service whose endpoints changed in a window.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// Endpoints at the start of the window; for a service that is new in the window, the most that it has had, or none if
    /// it came during a hold.
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

/// Which of the services in [`Accounts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Services that were there when the window began.
    Old,
    /// Services that came since.
    New,
}

/// Everything, or what is of one tenant.
#[derive(Debug, Clone, Copy, Default)]
struct Accounts {
    old: Account,
    new: Account,
}

#[derive(Debug, Clone)]
struct Window {
    since: Millis,
    changes: HashMap<Arc<str>, Change>,
    whole: Accounts,
    /// The tenants of [`Window::changes`].
    tenants: HashMap<Box<str>, Accounts>,
    /// Tenants of which an account lost too much.
    tripped: BTreeSet<Box<str>>,
    /// Services without endpoints when the window began that have none now and never counted; forgotten after the next judgement.
    passing: Vec<Arc<str>>,
}

/// Services of which nothing is removed for now.
#[derive(Debug, Clone)]
struct Hold {
    since: Millis,
    account: Account,
    /// The hold began since nothing at all would have been left.
    of_everything: bool,
    /// The tenants whose services it is of; `None`: it is of everybody's.
    tenants: Option<BTreeSet<Box<str>>>,
}

/// A hold as a dry run shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldState {
    /// Services of which nothing goes, and their endpoints.
    pub of: Totals,
    /// Services and endpoints that are missing of them.
    pub missing: Lost,
    /// The hold began since nothing at all would be left.
    pub of_everything: bool,
    /// The tenants whose services it is of, if it is not of everybody's.
    pub tenants: Option<BTreeSet<Box<str>>>,
}

/// A service of a mass that is to go in portions.
#[derive(Debug)]
pub struct Ahead {
    /// The text of its key.
    pub id: Arc<str>,
    /// How many endpoints are served of it.
    pub served: usize,
    /// The service loses everything, whatever becomes of the others; where it does not, nothing is known of it.
    pub goes: bool,
}

/// Whose removals are too many.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    scopes: [(Part, Scope); 2],
    /// Nothing at all would be left.
    of_everything: bool,
}

/// Whose removals are to be withheld.
#[derive(Debug, PartialEq, Eq)]
enum Scope {
    Everybody,
    Tenants(BTreeSet<Box<str>>),
}

/// A hold that is to begin.
struct Found {
    scopes: [(Part, Scope); 2],
    of_everything: bool,
    account: Account,
    /// Its services, with what became of them in the window.
    ids: Vec<(Arc<str>, Change)>,
}

/// The state of the breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    protect: Protect,
    /// How many services may be held.
    most: usize,
    window: Option<Window>,
    /// By their numbers; a later one has a higher number.
    holds: BTreeMap<u64, Hold>,
    next_number: u64,
    /// Every service in a hold, with its number.
    held: HashMap<Arc<str>, (u64, Change)>,
    released: bool,
}

impl Breaker {
    /// A breaker that has seen nothing, and holds no more than `most` services beside a first hold.
    pub fn new(protect: Protect, most: usize) -> Self {
        let (holds, held) = (BTreeMap::new(), HashMap::new());
        Self { protect, most, window: None, holds, next_number: 0, held, released: false }
    }

    /// Begins a window over the last good state, so that the first live view is judged against it.
    pub fn begin_with(&mut self, now: Millis, last_good: impl Iterator<Item = (Arc<str>, usize)>) {
        let mut window = Window::new(now, Totals::default());
        for (id, before) in last_good.filter(|(_, before)| *before > 0) {
            let tenant = window.tenants.entry(tenant(&id).into()).or_default();
            for totals in [&mut window.whole.old.totals, &mut tenant.old.totals] {
                totals.services += 1;
                totals.endpoints += before;
            }
            window.changes.insert(id, Change { before, now: before, new: false });
        }
        self.window = Some(window);
    }

    /// Begins a window over what is served, unless one runs.
    pub fn begin(&mut self, now: Millis, served: Totals) {
        if self.window.as_ref().is_none_or(|window| window.is_over(now)) {
            self.window = Some(Window::new(now, served));
        }
    }

    /// Takes note of how many endpoints a service is served with, and how many it would be served with next; `of_tenant` says
    /// how much is served of its tenant.
    pub fn note(&mut self, id: &Arc<str>, served: usize, next: usize, of_tenant: impl FnOnce(&str) -> Totals) {
        if let Some((number, change)) = self.held.get_mut(id) {
            if let Some(hold) = self.holds.get_mut(number) {
                hold.account.change(change, next);
            }
        } else if let Some(window) = self.window.as_mut().filter(|_| self.protect.mass_delete_share < 100) {
            window.note(&self.protect, !self.holds.is_empty(), id, served, next, of_tenant);
        }
    }

    /// Services that have fewer endpoints than when the window began, and are in no hold.
    pub fn lost(&self) -> impl Iterator<Item = &Arc<str>> {
        let changes = self.window.iter().flat_map(|window| &window.changes);
        changes.filter(|(_, change)| change.now < change.before).map(|(id, _)| id)
    }

    /// Whether removals might be withheld if some services lost all endpoints that they are served with, whatever else comes or
    /// goes. `served` is how much is served in all, `of_tenant` how much of a tenant.
    pub fn may_trip<'a>(
        &self,
        now: Millis,
        served: Totals,
        services: impl Iterator<Item = (&'a Arc<str>, usize)>,
        of_tenant: impl Fn(&str) -> Totals,
    ) -> bool {
        let window = self.window.as_ref().filter(|window| !window.is_over(now));
        let mut whole = window.map_or(Accounts::over(served), |window| window.whole);
        let mut tenants: HashMap<&str, Accounts> = HashMap::new();
        for (id, count) in services.filter(|(id, count)| *count > 0 && !self.held.contains_key(*id)) {
            let change = window.and_then(|window| window.changes.get(id)).copied();
            let change = change.unwrap_or(Change { before: count, now: count, new: false });
            let part = if change.new { Part::New } else { Part::Old };
            let tenant = tenant(id);
            let known = || window.and_then(|window| window.tenants.get(tenant)).copied();
            let accounts =
                tenants.entry(tenant).or_insert_with(|| known().unwrap_or(Accounts::over(of_tenant(tenant))));
            for account in [accounts.part(part), whole.part(part)] {
                account.change(&mut change.clone(), 0);
            }
        }
        let trips = |accounts: &Accounts| accounts.old.trips(&self.protect) || accounts.new.trips(&self.protect);
        whole.loses_everything(&self.protect) || trips(&whole) || tenants.values().any(trips)
    }

    /// Judges what was noted; `of` says how many endpoints are served of a service, where that is known, `is_left` whether it is
    /// yet to be looked at, and `served` is every service that is served, with its endpoints.
    pub fn judge<'a>(
        &mut self,
        now: Millis,
        of: impl Fn(&Arc<str>) -> Option<usize>,
        is_left: impl Fn(&Arc<str>) -> bool,
        served: impl Iterator<Item = (&'a Arc<str>, usize)>,
    ) -> Judgement {
        let over = self.end(now, of, is_left);
        let verdict = self.window.as_ref().map(|window| window.judge(&self.protect, Totals::default()));
        let found = verdict.and_then(|verdict| self.find(verdict, served));
        self.window.iter_mut().for_each(Window::pass);
        let Some(found) = found else { return Judgement { over, ..Judgement::default() } };
        if self.is_too_much(&found) {
            self.window = None;
            return Judgement { over, too_many: Some(found.account.lost), held: None };
        }
        Judgement { over, held: Some(self.withhold(now, found)), too_many: None }
    }

    /// Begins a hold before a mass goes in portions, where the mass as a whole would be withheld just so whatever becomes of the
    /// services of which that is not known yet. At most `to_come` is new in it. Returns what is missing, if so.
    pub fn hold_ahead<'a>(
        &mut self,
        now: Millis,
        mass: &[Ahead],
        to_come: Totals,
        of_tenant: impl Fn(&str) -> Totals,
        served: impl Iterator<Item = (&'a Arc<str>, usize)>,
    ) -> Option<Lost> {
        let window = self.window.as_ref().filter(|_| self.protect.mass_delete_share < 100)?;
        let (mut best, mut worst, is_holding) = (window.clone(), window.clone(), !self.holds.is_empty());
        // Who came during a hold and goes before it counts is of no account.
        let counts = |id: &Arc<str>| !matches!(window.changes.get(id), Some(Change { before: 0, new: true, .. }));
        let going: Vec<&Ahead> = mass.iter().filter(|service| service.goes && counts(&service.id)).collect();
        let unheld = mass.iter().filter(|service| !self.held.contains_key(&service.id) && counts(&service.id));
        for Ahead { id, served, goes } in unheld {
            worst.note(&self.protect, is_holding, id, *served, 0, &of_tenant);
            let next = match window.changes.get(id) {
                _ if *goes => 0,
                Some(change) if change.now < change.before => change.before,
                _ => continue,
            };
            best.note(&self.protect, is_holding, id, *served, next, &of_tenant);
        }
        let verdict = best.judge(&self.protect, to_come);
        if verdict != worst.judge(&self.protect, Totals::default()) {
            return None;
        }
        for Ahead { id, served, .. } in going {
            self.note(id, *served, 0, &of_tenant);
        }
        let found = self.find(verdict, served).filter(|found| !self.is_too_much(found))?;
        Some(self.withhold(now, found))
    }

    /// The hold that a verdict asks for; `None`: nobody's removals are too many.
    fn find<'a>(&self, verdict: Verdict, served: impl Iterator<Item = (&'a Arc<str>, usize)>) -> Option<Found> {
        let Verdict { scopes, of_everything } = verdict;
        if scopes.iter().all(|(_, scope)| matches!(scope, Scope::Tenants(tenants) if tenants.is_empty())) {
            return None;
        }
        let (account, ids) = self.services_of(&scopes, served);
        Some(Found { scopes, of_everything, account, ids })
    }

    /// Whether more would be withheld than may be.
    fn is_too_much(&self, found: &Found) -> bool {
        !self.holds.is_empty() && self.held.len() + found.ids.len() > self.most
    }

    /// Begins a hold; returns what is missing.
    fn withhold(&mut self, now: Millis, Found { scopes, of_everything, account, ids }: Found) -> Lost {
        let number = self.next_number;
        self.next_number += 1;
        let mut tenants = Some(BTreeSet::new());
        for (_, scope) in &scopes {
            match scope {
                Scope::Everybody => tenants = None,
                Scope::Tenants(of) => tenants.iter_mut().for_each(|all| all.extend(of.iter().cloned())),
            }
        }
        self.holds.insert(number, Hold { since: now, account, of_everything, tenants });
        if let Some(window) = &mut self.window {
            scopes.into_iter().for_each(|(part, scope)| window.leave_out(part, scope));
            for (id, _) in &ids {
                window.changes.remove(id);
            }
        }
        self.held.extend(ids.into_iter().map(|(id, change)| (id, (number, change))));
        account.lost
    }

    /// The services of scopes that are in no hold.
    fn services_of<'a>(
        &self,
        scopes: &[(Part, Scope); 2],
        served: impl Iterator<Item = (&'a Arc<str>, usize)>,
    ) -> (Account, Vec<(Arc<str>, Change)>) {
        let is_in = |part: Part, id: &str| {
            scopes.iter().any(|(of, scope)| *of == part && scope.has(id)) && !self.held.contains_key(id)
        };
        let changes = self.window.as_ref().map(|window| &window.changes);
        let changed = changes.into_iter().flatten().map(|(id, change)| (id, *change));
        let is_unchanged = |id: &str| changes.is_none_or(|changes| !changes.contains_key(id));
        let unchanged = served.filter(|(id, count)| *count > 0 && is_unchanged(id));
        let unchanged = unchanged.map(|(id, count)| (id, Change { before: count, now: count, new: false }));
        let (mut account, mut ids) = (Account::default(), Vec::new());
        for (id, change) in changed.chain(unchanged) {
            let part = if change.new { Part::New } else { Part::Old };
            if change.before > 0 && is_in(part, id) {
                account.totals.services += 1;
                account.totals.endpoints += change.before;
                account.lost = account.lost.with(change);
                ids.push((Arc::clone(id), change));
            }
        }
        (account, ids)
    }

    /// Ends the holds that are to end; says why. How much is missing of a hold is not known while some of its services are left.
    fn end(
        &mut self,
        now: Millis,
        of: impl Fn(&Arc<str>) -> Option<usize>,
        is_left: impl Fn(&Arc<str>) -> bool,
    ) -> Option<&'static str> {
        let (released, until) = (std::mem::take(&mut self.released), self.hold());
        let is_known = |number: u64| !self.held.iter().any(|(id, (of, _))| *of == number && is_left(id));
        let why = |number: u64, hold: &Hold| match hold {
            hold if !hold.trips(&self.protect) && is_known(number) => Some("what was missing is back"),
            _ if released => Some("released by the operator"),
            hold if now >= hold.since + until => Some("mox.protect.mass-delete-hold is over"),
            _ => None,
        };
        let ended = self.holds.iter().filter_map(|(number, hold)| Some((*number, (why(*number, hold)?, hold.since))));
        let ended: BTreeMap<u64, (&'static str, Millis)> = ended.collect();
        let first = ended.values().next().map(|(why, _)| *why)?;
        self.holds.retain(|number, _| !ended.contains_key(number));
        for (id, (number, mut change)) in self.held.extract_if(|_, (number, _)| ended.contains_key(number)) {
            // A service that goes out now is not to be judged again, nor to be counted as there.
            if let Some(window) = &mut self.window {
                // A window that began during the hold counts what was served then, which may have been less than before.
                if ended.get(&number).is_some_and(|(_, since)| window.since > *since) {
                    change.before = of(&id).unwrap_or(change.before);
                }
                let gone = Lost::default().with(change);
                let tenant = window.tenants.get_mut(tenant(&id)).map(|accounts| &mut accounts.old.totals);
                for totals in tenant.into_iter().chain([&mut window.whole.old.totals]) {
                    totals.services = totals.services.saturating_sub(gone.services);
                    totals.endpoints = totals.endpoints.saturating_sub(gone.endpoints);
                }
            }
        }
        Some(first)
    }

    fn hold(&self) -> Millis {
        self.protect.mass_delete_hold.as_millis() as Millis
    }

    /// When the first hold ends by itself.
    pub fn deadline(&self) -> Option<Millis> {
        self.holds.values().next().map(|hold| hold.since + self.hold())
    }

    /// Whether a hold ends at the next judgement whatever is missing then: it is released, or was long enough.
    pub fn is_due(&self, now: Millis) -> bool {
        self.released || self.deadline().is_some_and(|at| at <= now)
    }

    /// How much may go, in percent.
    pub fn share(&self) -> usize {
        self.protect.mass_delete_share
    }

    /// The number of the next hold.
    pub fn next_hold(&self) -> u64 {
        self.next_number
    }

    /// The holds from a number on.
    pub fn holds_from(&self, number: u64) -> Vec<HoldState> {
        let state = |Hold { account, of_everything, tenants, .. }: &Hold| HoldState {
            of: account.totals,
            missing: account.lost,
            of_everything: *of_everything,
            tenants: tenants.clone(),
        };
        self.holds.range(number..).map(|(_, hold)| state(hold)).collect()
    }

    /// Ends all holds at the next judgement; once.
    pub fn release(&mut self) {
        self.released = !self.holds.is_empty();
    }

    /// Whether a service's removal, and that of its endpoints, is withheld.
    pub fn withholds(&self, id: &str) -> bool {
        self.held.contains_key(id)
    }

    /// Services and endpoints that are missing, while removals are withheld.
    pub fn held(&self) -> Option<Lost> {
        let lost = self.holds.values().map(|hold| hold.account.lost);
        lost.reduce(|a, b| Lost { services: a.services + b.services, endpoints: a.endpoints + b.endpoints })
    }
}

impl Window {
    fn new(since: Millis, totals: Totals) -> Self {
        let whole = Accounts::over(totals);
        let (changes, tenants, tripped) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { since, changes, whole, tenants, tripped, passing: Vec::new() }
    }

    /// Takes note of a service that is in no hold: see [`Breaker::note`]. While there are holds nothing that comes makes good what
    /// is missing.
    fn note(
        &mut self,
        protect: &Protect,
        is_holding: bool,
        id: &Arc<str>,
        served: usize,
        next: usize,
        of_tenant: impl FnOnce(&str) -> Totals,
    ) {
        let known = self.changes.get(id).copied();
        let mut change = known.unwrap_or(Change { before: served, now: served, new: served == 0 });
        if change.new && change.before == 0 && (next == 0 || is_holding) {
            // A service that comes during a hold is not withheld when it goes.
            if next == 0 {
                self.passing.push(Arc::clone(id));
            }
            self.changes.insert(Arc::clone(id), Change { now: next, ..change });
            return;
        }
        let tenant = tenant(id);
        let accounts = match self.tenants.get_mut(tenant) {
            Some(accounts) => accounts,
            None => self.tenants.entry(tenant.into()).or_insert(Accounts::over(of_tenant(tenant))),
        };
        let part = if change.new { Part::New } else { Part::Old };
        let pair = [accounts.part(part), self.whole.part(part)];
        let grown = if is_holding { 0 } else { next.saturating_sub(change.before) };
        for account in pair {
            let mut change = change;
            if part == Part::New && grown > 0 {
                account.totals.services += usize::from(change.before == 0);
                account.totals.endpoints += grown;
                account.lost = account.lost.without(change);
                change.before = next;
                account.lost = account.lost.with(change);
            }
            account.change(&mut change, next);
        }
        if part == Part::New {
            change.before += grown;
        }
        change.now = next;
        let trips = [accounts.old, accounts.new].iter().any(|account| account.trips(protect));
        if !trips {
            self.tripped.remove(tenant);
        } else if !self.tripped.contains(tenant) {
            self.tripped.insert(tenant.into());
        }
        self.changes.insert(Arc::clone(id), change);
    }

    /// Forgets who came and went without being of any account.
    fn pass(&mut self) {
        for id in self.passing.drain(..) {
            self.changes.remove(&id);
        }
    }

    fn is_over(&self, now: Millis) -> bool {
        now - self.since >= WINDOW || now < self.since
    }

    /// Whose removals are too many. So much may come in addition, to whichever tenant.
    fn judge(&self, protect: &Protect, to_come: Totals) -> Verdict {
        let with_more = |accounts: &Accounts| accounts.with_new(to_come);
        let whole = with_more(&self.whole);
        if whole.loses_everything(protect) {
            return Verdict {
                scopes: [Part::Old, Part::New].map(|part| (part, Scope::Everybody)),
                of_everything: true,
            };
        }
        let scope = |part| {
            let whole = whole.of(part);
            let account = |tenant: &str| self.tenants.get(tenant).map(|accounts| with_more(accounts).of(part));
            let tripped = self.tripped.iter().filter(|tenant| account(tenant).is_some_and(|it| it.trips(protect)));
            let explains = |tenant: &str| account(tenant).is_some_and(|account| !whole.without(account).trips(protect));
            match whole.trips(protect) && !tripped.clone().any(|tenant| explains(tenant)) {
                true => Scope::Everybody,
                false => Scope::Tenants(tripped.cloned().collect()),
            }
        };
        Verdict { scopes: [Part::Old, Part::New].map(|part| (part, scope(part))), of_everything: false }
    }

    /// From now on the services in a scope count as there, whatever becomes of them.
    fn leave_out(&mut self, part: Part, scope: Scope) {
        let tenants: Vec<&mut Accounts> = match scope {
            Scope::Everybody => {
                self.whole.leave_out(part);
                self.tenants.values_mut().collect()
            }
            Scope::Tenants(tenants) => {
                let whole = &mut self.whole;
                let of = self.tenants.iter_mut().filter(|(tenant, _)| tenants.contains(*tenant));
                let of = of.map(|(_, accounts)| {
                    let account = accounts.of(part);
                    *whole.part(part) = whole.of(part).without(account);
                    whole.old.totals.services += account.totals.services;
                    whole.old.totals.endpoints += account.totals.endpoints;
                    accounts
                });
                of.collect()
            }
        };
        tenants.into_iter().for_each(|accounts| accounts.leave_out(part));
        self.tripped.clear();
    }
}

impl Scope {
    fn has(&self, id: &str) -> bool {
        match self {
            Self::Everybody => true,
            Self::Tenants(tenants) => !tenants.is_empty() && tenants.contains(tenant(id)),
        }
    }
}

impl Hold {
    fn trips(&self, protect: &Protect) -> bool {
        let Account { totals, lost } = self.account;
        self.account.trips(protect) || (self.of_everything && lost.services == totals.services)
    }
}

impl Accounts {
    fn over(totals: Totals) -> Self {
        Self { old: Account { totals, lost: Lost::default() }, new: Account::default() }
    }

    /// With so much that is new.
    fn with_new(mut self, Totals { services, endpoints }: Totals) -> Self {
        self.new.totals.services += services;
        self.new.totals.endpoints += endpoints;
        self
    }

    fn of(&self, part: Part) -> Account {
        match part {
            Part::Old => self.old,
            Part::New => self.new,
        }
    }

    fn part(&mut self, part: Part) -> &mut Account {
        match part {
            Part::Old => &mut self.old,
            Part::New => &mut self.new,
        }
    }

    /// Whether nothing at all would be left of two services or more.
    fn loses_everything(&self, protect: &Protect) -> bool {
        let totals = self.old.totals.services + self.new.totals.services;
        let lost = self.old.lost.services + self.new.lost.services;
        // Services that came back within a hold are in no total, so more may be lost than there was.
        lost >= 2 && lost >= totals && protect.mass_delete_share < 100
    }

    /// Counts everything in a part as there, and as there from the start.
    fn leave_out(&mut self, part: Part) {
        let totals = std::mem::take(self.part(part)).totals;
        self.old.totals.services += totals.services;
        self.old.totals.endpoints += totals.endpoints;
    }
}

impl Account {
    /// Whether more is lost than a registry in its right mind takes away.
    fn trips(&self, protect: &Protect) -> bool {
        let Self { totals, lost } = self;
        let exceeds = |lost: usize, of: usize, least: usize| {
            lost > least && lost as u128 * 100 > of as u128 * protect.mass_delete_share as u128
        };
        exceeds(lost.services, totals.services, protect.mass_delete_services)
            || exceeds(lost.endpoints, totals.endpoints, protect.mass_delete_endpoints)
    }

    /// A service of the account has other endpoints.
    fn change(&mut self, change: &mut Change, now: usize) {
        self.lost = self.lost.without(*change);
        change.now = now;
        self.lost = self.lost.with(*change);
    }

    /// The account without that of some of its services.
    fn without(self, Self { totals, lost }: Self) -> Self {
        let totals = Totals {
            services: self.totals.services.saturating_sub(totals.services),
            endpoints: self.totals.endpoints.saturating_sub(totals.endpoints),
        };
        let lost = Lost {
            services: self.lost.services.saturating_sub(lost.services),
            endpoints: self.lost.endpoints.saturating_sub(lost.endpoints),
        };
        Self { totals, lost }
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

    const PASS: Judgement = Judgement { held: None, over: None, too_many: None };

    fn held(services: usize, endpoints: usize) -> Judgement {
        Judgement { held: Some(Lost { services, endpoints }), ..PASS }
    }

    fn over(why: &'static str) -> Judgement {
        Judgement { over: Some(why), ..PASS }
    }

    fn totals(counts: &HashMap<Arc<str>, usize>, of: impl Fn(&str) -> bool) -> Totals {
        let live = counts.iter().filter(|(id, count)| **count > 0 && of(id)).map(|(_, count)| count);
        Totals { services: live.clone().count(), endpoints: live.sum() }
    }

    /// Served services, and a breaker over them.
    struct Mesh {
        breaker: Breaker,
        counts: HashMap<Arc<str>, usize>,
        /// The tenant of the services that are named by a number only.
        tenant: &'static str,
    }

    impl Mesh {
        fn new(services: usize, endpoints: usize) -> Self {
            let mut mesh =
                Self { breaker: Breaker::new(Protect::default(), 10_000), counts: HashMap::new(), tenant: "a" };
            mesh.counts = (0..services).map(|n| (mesh.id(n), endpoints)).collect();
            mesh
        }

        fn id(&self, n: usize) -> Arc<str> {
            format!("{n}#@#{}#@#SOFA", self.tenant).into()
        }

        /// With so many services of one endpoint of another tenant.
        fn with(mut self, tenant: &'static str, services: usize) -> Self {
            self.tenant = tenant;
            self.counts.extend((0..services).map(|n| (format!("{n}#@#{tenant}#@#SOFA").into(), 1)));
            self
        }

        /// Some services of a tenant would have so many endpoints.
        fn of(
            &mut self,
            tenant: &'static str,
            now: Millis,
            services: std::ops::Range<usize>,
            endpoints: usize,
        ) -> Judgement {
            self.tenant = tenant;
            self.change(now, services, endpoints)
        }

        fn totals(&self) -> Totals {
            totals(&self.counts, |_| true)
        }

        fn change(&mut self, now: Millis, services: std::ops::Range<usize>, endpoints: usize) -> Judgement {
            self.breaker.begin(now, self.totals());
            let names: Vec<Arc<str>> = services.map(|n| self.id(n)).collect();
            for name in &names {
                let served = self.counts.get(name).copied().unwrap_or(0);
                let of_tenant = |of: &str| totals(&self.counts, |id| tenant(id) == of);
                self.breaker.note(name, served, endpoints, of_tenant);
            }
            let judgement = {
                let of = |id: &Arc<str>| Some(self.counts.get(id).copied().unwrap_or_default());
                self.breaker.judge(now, of, |_| false, self.counts.iter().map(|(id, count)| (id, *count)))
            };
            for name in names {
                let kept = self.counts.get(&name).copied().filter(|_| self.breaker.withholds(&name));
                self.counts.insert(name, kept.unwrap_or(0).max(endpoints));
            }
            judgement
        }
    }

    #[test]
    fn it_trips_above_both_the_share_and_the_number() {
        assert_eq!(Mesh::new(100, 1).change(0, 0..30, 0), PASS, "30 % is not above 30 %");
        assert_eq!(Mesh::new(100, 1).change(0, 0..31, 0), held(31, 31));
        assert_eq!(Mesh::new(20, 1).change(0, 0..10, 0), PASS, "10 services are not above 10");
        assert_eq!(Mesh::new(20, 1).change(0, 0..11, 0), held(11, 11));
        assert_eq!(Mesh::new(100, 10).change(0, 0..100, 7), PASS, "30 % of the endpoints");
        assert_eq!(Mesh::new(100, 10).change(0, 0..100, 6), held(0, 400));
        assert_eq!(Mesh::new(5, 20).change(0, 0..5, 10), PASS, "50 endpoints are not above 50");
    }

    #[test]
    fn nothing_at_all_is_too_little_whatever_there_was() {
        let mut mesh = Mesh::new(2, 1);
        assert_eq!(mesh.change(0, 0..1, 0), PASS);
        assert_eq!(mesh.change(1, 1..2, 0), held(2, 2));
        assert_eq!(mesh.change(2, 0..1, 1), over("what was missing is back"));
        assert_eq!(Mesh::new(1, 1).change(0, 0..1, 0), PASS, "one service may go");
        assert_eq!(Mesh::new(2, 1).with("b", 1).of("a", 0, 0..2, 0), PASS, "there is another");
        let off = Protect { mass_delete_share: 100, ..Protect::default() };
        let mut mesh = Mesh { breaker: Breaker::new(off, 9), ..Mesh::new(20, 10) };
        assert_eq!(mesh.change(0, 0..20, 0), PASS, "a breaker at 100 % never trips");
        assert!(mesh.breaker.window.unwrap().changes.is_empty());
    }

    #[test]
    fn what_goes_in_small_steps_within_a_window_counts_together() {
        let mut mesh = Mesh::new(100, 1);
        assert_eq!(mesh.change(0, 0..20, 0), PASS);
        assert_eq!(mesh.change(59_999, 20..40, 0), held(40, 40));
        let mut mesh = Mesh::new(100, 1);
        assert_eq!(mesh.change(0, 0..20, 0), PASS);
        assert_eq!(mesh.change(60_000, 20..40, 0), PASS, "in the next window they are 20 of 80");
    }

    #[test]
    fn what_a_service_gains_makes_up_for_what_it_loses() {
        let mut mesh = Mesh::new(100, 2);
        assert_eq!(mesh.change(0, 0..100, 1), held(0, 100));
        assert_eq!(mesh.change(1, 0..100, 2), over("what was missing is back"));
        let mut mesh = Mesh::new(100, 2);
        assert_eq!(mesh.change(0, 100..200, 2), PASS);
        assert_eq!(mesh.change(1, 0..50, 0), held(50, 100), "other services are no replacement");
    }

    #[test]
    fn what_came_within_the_window_is_guarded_as_well() {
        let mut mesh = Mesh::new(0, 0);
        assert_eq!(mesh.change(0, 0..100, 2), PASS);
        assert_eq!(mesh.change(1, 0..30, 0), PASS, "30 % is not above 30 %");
        assert_eq!(mesh.change(2, 30..31, 0), held(31, 62));
        assert_eq!(mesh.breaker.held(), Some(Lost { services: 31, endpoints: 62 }));
        assert_eq!(mesh.change(3, 200..400, 9), PASS);
        assert_eq!(mesh.breaker.held(), Some(Lost { services: 31, endpoints: 62 }), "others are no replacement");
        assert_eq!(mesh.change(4, 0..10, 2), over("what was missing is back"));
        let mut mesh = Mesh::new(100, 2);
        assert_eq!(mesh.change(0, 0..100, 4), PASS);
        assert_eq!(mesh.change(1, 0..100, 2), PASS, "one that was there may have more for a while");
        assert_eq!(mesh.change(2, 100..500, 2), PASS);
        assert_eq!(mesh.change(3, 0..31, 0), held(31, 62), "31 of those 100, whatever came");
    }

    #[test]
    fn what_came_and_went_holds_back_nobody_who_was_there() {
        let mut mesh = Mesh::new(1_000, 1);
        assert_eq!(mesh.change(0, 1_000..1_450, 1), PASS);
        assert_eq!(mesh.change(1, 1_000..1_450, 0), held(450, 450));
        assert_eq!(mesh.change(2, 0..7, 0), PASS);
        assert!(!mesh.breaker.withholds(&mesh.id(0)) && mesh.breaker.withholds(&mesh.id(1_000)));
        // And those that were there are guarded as ever: 301 of the 1,450 that are served are none too many, 436 are.
        assert_eq!(mesh.change(3, 7..300, 0), PASS);
        assert_eq!(mesh.change(4, 300..436, 0), held(436, 436));
        assert_eq!(mesh.breaker.held(), Some(Lost { services: 886, endpoints: 886 }));
    }

    #[test]
    fn who_came_during_a_hold_and_goes_is_in_no_other() {
        let mut mesh = Mesh::new(12, 1);
        assert_eq!(mesh.change(0, 0..12, 0), held(12, 12));
        assert_eq!(mesh.change(1, 20..21, 1), PASS);
        assert_eq!(mesh.change(2, 0..12, 1), over("what was missing is back"));
        assert_eq!(mesh.change(3, 0..21, 0), held(12, 12));
        assert_eq!((mesh.breaker.held.len(), mesh.totals().services), (12, 12));
        assert!(!mesh.breaker.withholds(&mesh.id(20)) && mesh.breaker.window.as_ref().unwrap().changes.is_empty());
    }

    /// Services by their numbers in a mass of which some certainly go.
    fn mass(mesh: &Mesh, goes: std::ops::Range<usize>, unknown: std::ops::Range<usize>) -> Vec<Ahead> {
        let all = goes.map(|n| (n, true)).chain(unknown.map(|n| (n, false)));
        let ahead = |(n, goes)| Ahead { id: mesh.id(n), served: mesh.counts[&mesh.id(n)], goes };
        all.map(ahead).collect()
    }

    fn hold_ahead(mesh: &mut Mesh, mass: &[Ahead], to_come: usize) -> Option<Lost> {
        let to_come = Totals { services: to_come, endpoints: to_come };
        let of_tenant = |of: &str| totals(&mesh.counts, |id| tenant(id) == of);
        let served = mesh.counts.iter().map(|(id, count)| (id, *count));
        mesh.breaker.begin(1, totals(&mesh.counts, |_| true));
        mesh.breaker.hold_ahead(1, mass, to_come, of_tenant, served)
    }

    #[test]
    fn what_certainly_goes_begins_a_hold_before_the_rest_is_known() {
        let begun = |to_come: usize, back: usize| {
            let mut mesh = Mesh::new(100, 1);
            assert_eq!(mesh.change(0, 0..30, 0), PASS);
            let mass = mass(&mesh, back..40, 0..back);
            hold_ahead(&mut mesh, &mass, to_come)
        };
        assert_eq!(begun(0, 0), Some(Lost { services: 40, endpoints: 40 }));
        assert_eq!(begun(1_000, 0), Some(Lost { services: 40, endpoints: 40 }), "others are no replacement");
        assert_eq!(begun(0, 9), Some(Lost { services: 40, endpoints: 40 }), "nine may be back, and are not yet");
        assert_eq!(begun(0, 10), None, "ten may be back");
        // Of those that came within the minute it is a share of all that may have come by then.
        let of_new = |to_come: usize| {
            let mut mesh = Mesh::new(0, 0);
            assert_eq!(mesh.change(0, 0..100, 1), PASS);
            let mass = mass(&mesh, 0..40, 0..0);
            hold_ahead(&mut mesh, &mass, to_come).is_some()
        };
        assert_eq!([0, 33, 34].map(of_new), [true, true, false]);
    }

    #[test]
    fn a_hold_begins_ahead_only_where_nothing_can_make_it_a_wider_one() {
        let tenants = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];
        let with = |unknown: usize| {
            // 34 % of a tenant go, which is less than a share of all; of the others it is not known.
            let mut mesh = tenants.iter().fold(Mesh::new(300, 1), |mesh, tenant| mesh.with(tenant, 20));
            mesh.tenant = "a";
            let mut all = mass(&mesh, 0..102, 0..0);
            for tenant in tenants {
                mesh.tenant = tenant;
                all.extend(mass(&mesh, 0..0, 0..unknown));
            }
            hold_ahead(&mut mesh, &all, 0)
        };
        assert_eq!(with(5), Some(Lost { services: 102, endpoints: 102 }), "177 of 600 at most");
        assert_eq!(with(7), None, "207 of 600 may go, and none of the others trips alone");
    }

    #[test]
    fn who_came_during_a_hold_and_goes_in_a_mass_is_of_no_account() {
        let mut mesh = Mesh::new(100, 1);
        assert_eq!(mesh.change(0, 0..40, 0), held(40, 40));
        assert_eq!(mesh.change(1, 200..260, 1), PASS);
        let mass = mass(&mesh, 200..260, 0..0);
        assert_eq!(hold_ahead(&mut mesh, &mass, 0), None);
        assert_eq!(mesh.change(2, 0..0, 0), PASS);
        assert_eq!(mesh.change(3, 200..260, 0), PASS, "also after a judgement in between");
    }

    #[test]
    fn a_hold_does_not_end_before_all_of_its_services_were_looked_at() {
        let mut mesh = Mesh::new(100, 2);
        let mass = mass(&mesh, 0..35, 35..60);
        assert!(hold_ahead(&mut mesh, &mass, 0).is_some());
        for n in 0..6 {
            mesh.breaker.note(&mesh.id(n), 2, 2, |_| Totals::default());
        }
        let judged = |mesh: &mut Mesh, is_left: bool| {
            mesh.breaker.judge(2, |_| Some(2), |_| is_left, mesh.counts.iter().map(|(id, count)| (id, *count)))
        };
        assert_eq!(judged(&mut mesh, true), PASS);
        assert_eq!(judged(&mut mesh, false), over("what was missing is back"));
    }

    #[test]
    fn a_tenant_that_goes_holds_back_no_other() {
        let mut mesh = Mesh::new(450, 1).with("b", 1_000);
        assert_eq!(mesh.of("a", 0, 0..450, 0), held(450, 450));
        assert_eq!(mesh.of("b", 1, 0..200, 0), PASS);
        assert_eq!(mesh.breaker.held(), Some(Lost { services: 450, endpoints: 450 }));
        assert_eq!(mesh.of("b", 2, 200..301, 0), held(301, 301), "each is judged by itself");
        assert_eq!(mesh.of("a", 3, 0..450, 1), over("what was missing is back"));
        assert!(mesh.breaker.withholds("0#@#b#@#SOFA") && !mesh.breaker.withholds("0#@#a#@#SOFA"));
        assert_eq!(mesh.of("b", 700_000, 0..0, 0), over("mox.protect.mass-delete-hold is over"));
    }

    #[test]
    fn where_no_tenant_explains_it_alone_everybody_is_withheld() {
        let mut mesh = Mesh::new(100, 1).with("b", 100).with("c", 15);
        mesh.breaker.begin(0, mesh.totals());
        for (tenant, of, gone) in [("a", 100, 60), ("b", 100, 60), ("c", 15, 10)] {
            for n in 0..gone {
                let totals = Totals { services: of, endpoints: of };
                mesh.breaker.note(&format!("{n}#@#{tenant}#@#SOFA").into(), 1, 0, |_| totals);
            }
        }
        let served = mesh.counts.iter().map(|(id, count)| (id, *count));
        assert_eq!(
            mesh.breaker.judge(0, |_| None, |_| false, served),
            held(130, 130),
            "ten of c are none too many by themselves"
        );
        assert!(mesh.breaker.withholds("14#@#c#@#SOFA"));
        // Small tenants, of which none trips.
        let tenants = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut mesh = tenants[1..].iter().fold(Mesh::new(10, 1), |mesh, tenant| mesh.with(tenant, 10));
        let judged = tenants.map(|tenant| mesh.of(tenant, 1, 0..4, 0));
        assert_eq!(judged[5], PASS, "24 of 80");
        assert_eq!(judged[6], held(28, 28));
        assert_eq!((judged[7], mesh.breaker.held().unwrap().services), (PASS, 32));
    }

    #[test]
    fn a_hold_does_not_grow_and_keeps_nothing_of_what_comes_and_goes() {
        let mut mesh = Mesh { breaker: Breaker::new(Protect::default(), 1_000), ..Mesh::new(700, 1) };
        assert_eq!(mesh.change(0, 0..600, 0), held(600, 600));
        for n in 0..100 {
            let (begin, now) = (1_000 * (n + 1), 1 + 2_000 * n as Millis);
            assert_eq!(mesh.change(now, begin..begin + 550, 1), PASS);
            assert_eq!(mesh.change(now + 1, begin..begin + 550, 0), PASS);
        }
        assert_eq!(mesh.totals().services, 700);
        let window = mesh.breaker.window.as_ref().unwrap();
        assert_eq!((window.changes.len(), window.tenants.len(), mesh.breaker.held.len()), (0, 0, 700));
        // Some that stay for a window may be withheld as well, but no more than the bound.
        assert_eq!(mesh.change(300_000, 200_000..200_400, 1), PASS);
        let too_many = mesh.change(360_000, 200_000..200_400, 0);
        assert_eq!(too_many, Judgement { too_many: Some(Lost { services: 400, endpoints: 400 }), ..PASS });
        assert_eq!((mesh.totals().services, mesh.breaker.held.len()), (700, 700));
        assert_eq!(mesh.change(360_001, 300_000..300_200, 1), PASS);
        assert_eq!(mesh.change(420_001, 300_000..300_200, 0), PASS, "200 of 900");
    }

    #[test]
    fn a_hold_ends_by_recovery_release_or_time() {
        let mut mesh = Mesh::new(100, 1);
        assert_eq!(mesh.change(0, 0..60, 0), held(60, 60));
        assert_eq!(mesh.breaker.held(), Some(Lost { services: 60, endpoints: 60 }));
        assert_eq!(mesh.change(100_000, 0..20, 1), PASS);
        assert!(mesh.breaker.held().is_some(), "a hold keeps what it began with");
        assert_eq!(mesh.change(100_001, 20..35, 1), over("what was missing is back"));
        assert_eq!(mesh.breaker.held(), None);

        let mut mesh = Mesh::new(100, 1);
        mesh.breaker.release();
        assert_eq!(mesh.change(0, 0..60, 0), held(60, 60), "a release before the hold is for nothing");
        mesh.breaker.release();
        assert_eq!(mesh.change(1, 0..60, 0), over("released by the operator"));
        assert_eq!(mesh.change(2, 60..100, 0), held(40, 40), "a release is for one hold, and 40 were left");
        assert_eq!(mesh.breaker.deadline(), Some(600_002));
        assert_eq!(mesh.change(600_002, 0..0, 0), over("mox.protect.mass-delete-hold is over"));
        assert_eq!((mesh.breaker.deadline(), mesh.breaker.held.len()), (None, 0));
    }

    #[test]
    fn the_first_live_view_is_judged_against_the_last_good_state() {
        let mut breaker = Breaker::new(Protect::default(), 0);
        let ids: Vec<Arc<str>> = (0..100).map(|n| n.to_string().into()).collect();
        breaker.begin_with(0, ids.iter().map(|id| (Arc::clone(id), 5)));
        let none = |_: &str| Totals::default();
        ids.iter().for_each(|id| breaker.note(id, 0, if id.len() == 1 { 5 } else { 0 }, none));
        assert_eq!(breaker.judge(0, |_| None, |_| false, std::iter::empty()), held(90, 450));
        assert_eq!(breaker.held(), Some(Lost { services: 90, endpoints: 450 }));
    }

    #[test]
    fn what_is_missing_of_what_another_serves_is_judged_by_the_same_rule() {
        let of = |services, endpoints| Totals { services, endpoints };
        let judged = |before, now| missing(&Protect::default(), before, now);
        assert_eq!(judged(of(1_000, 1_000), of(700, 700)), None);
        assert_eq!(judged(of(1_000, 1_000), of(150, 150)), Some(Lost { services: 850, endpoints: 850 }));
        assert_eq!(judged(of(10, 1_000), of(10, 600)), Some(Lost { services: 0, endpoints: 400 }));
        assert_eq!(judged(of(5, 5), of(1, 1)), None, "few are no mass");
        assert_eq!(judged(of(5, 5), of(0, 0)), Some(Lost { services: 5, endpoints: 5 }));
        assert_eq!(judged(of(1, 1), of(0, 0)), None);
        assert_eq!(judged(of(0, 0), of(9, 9)), None, "more is none too few");
        assert!(judged(of(usize::MAX, usize::MAX), of(9, 9)).is_some(), "whatever a liar says");
    }

    proptest::proptest! {
        /// The sums are those of a count over everything, whatever the history.
        #[test]
        fn sums_are_kept_right(history in proptest::collection::vec((0u8..9, 0usize..5), 0..60)) {
            let mut breaker = Breaker::new(Protect::default(), 0);
            breaker.begin(0, Totals { services: 9, endpoints: 27 });
            let mut counts = [3usize; 9];
            for (service, wanted) in history {
                breaker.note(&service.to_string().into(), 3, wanted, |_| Totals { services: 9, endpoints: 27 });
                counts[usize::from(service)] = wanted;
            }
            let window = breaker.window.as_ref().unwrap();
            let lost = window.whole.old.lost;
            proptest::prop_assert!(window.tenants.values().all(|accounts| accounts.old.lost == lost));
            proptest::prop_assert_eq!(lost.services, counts.iter().filter(|count| **count == 0).count());
            proptest::prop_assert_eq!(lost.endpoints, counts.iter().map(|count| 3usize.saturating_sub(*count)).sum::<usize>());
        }
    }
}
