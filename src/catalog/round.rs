//! A round: from what the registry, the policy and the orders say now to what is served next.
//!
//! [`Round`] is a value, without lock, channel, clock, log or IO: whoever drives it hands in what is new and says what time it
//! is. A round goes in this order, so that nothing is removed before what takes its place is made, and nothing is judged but
//! what would be served:
//!
//! 1. the intent of registry and policy for the services that are looked at, read from their publishers;
//! 2. the host and virtual address of each ([`Assignment`]), and the resources that follow from them. A service whose
//!    resources cannot be made stays as it is served, host and address included, and the others go around it;
//! 3. the breakers' judgements. If new services are to wait, step 2 comes again without them; if removals are withheld, with
//!    the missing endpoints kept;
//! 4. the changes of what is served.

mod take;
mod turn;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};

use crate::{
    catalog::{
        additions::Additions,
        assignment::{Assignment, Movers, Pins},
        backlog::Backlog,
        breaker::Breaker,
        changes::RoundChanges,
        direct::{Direct, lingering::Lingering},
        gate::{FirstView, Gate},
        key::ServiceKey,
        last_good::LastGood,
        narrowing::{self, Narrowing},
        notices::{Notice, Notices},
        orders::Orders,
        others::Others,
        report::{Findings, Moves, Names, Tally},
        services::{Intent, Services},
        unknown::Unknown,
    },
    config::{Config, Scope},
    istio::rule::Rule,
    model::Millis,
    policy::Policy,
    registry::store::Taken,
    snapshot::view::Held,
    translate::{payload::Reject, service_entry::Member},
    visibility::seen::Seen,
};

/// So many services a round takes of many: of those that another policy gives another form, that changed at once, or whose grace
/// is over. Every round may have changes of others, too, which are not to wait for all.
const PART: usize = 200;

/// Everything that is new for a round.
#[derive(Debug)]
pub struct Input {
    /// Milliseconds since the epoch; never less than in the round before.
    pub now: Millis,
    /// The services to look at, as [`Round::take`] takes them from the store; none while [`Round::is_frozen`].
    pub dirty: Vec<Taken>,
    /// The policy that [`Round::take`] was asked with.
    pub policy: Arc<Policy>,
    /// Latches and requests from outside.
    pub orders: Orders,
    /// How many publishers the registry has.
    pub publishers: usize,
    /// Who is to have a place that several want.
    pub pins: Arc<Pins>,
}

/// The result of a round.
#[derive(Debug)]
pub struct Output {
    /// Changes that make the served snapshots the next ones.
    pub changes: RoundChanges,
    /// Whether a complete view was in once.
    pub complete: bool,
    /// Whether streams may be told what is served.
    pub shown: bool,
    /// For the report.
    pub findings: Findings,
    /// For the log.
    pub notices: Vec<Notice>,
}

/// See [`Round::outline`].
#[derive(Debug)]
pub struct Outline {
    config: Arc<Config>,
    /// The policy in force.
    pub policy: Arc<Policy>,
    /// The pins in force.
    pub pins: Arc<Pins>,
    gate: Gate,
    first_view: FirstView,
    breaker: Breaker,
    additions: Additions,
    narrowing: Narrowing,
    /// Services without endpoints, and since when.
    pub graces: BTreeMap<Arc<str>, Millis>,
    /// The endpoints of services that are not served as the registry has them now, so that it does not tell whose they are.
    kept: Vec<(Vec<Member>, ServiceKey)>,
    /// DataInfoIds that have yet to be looked at under the policy in force.
    pending: BTreeSet<Arc<str>>,
    /// The addresses that linger in entries of applications.
    lingering: Lingering,
    /// See [`Round::outdated`].
    outdated: HashSet<ServiceKey>,
    part: usize,
}

impl Outline {
    /// The documents' word of who consumes what.
    pub fn word(&self) -> Option<Arc<Seen>> {
        self.narrowing.word().cloned()
    }
}

/// How far the registry's view is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The view is not complete: nothing is known to be gone.
    Gathering,
    /// The view is complete, and to be judged as a whole against the last good state.
    Completed,
    /// The view is complete; its changes are judged against what is served.
    Live,
}

/// The state between two rounds: everything that is served, and all that the next round needs to know.
#[derive(Debug)]
pub struct Round {
    config: Arc<Config>,
    gate: Gate,
    first_view: FirstView,
    /// The first complete view was judged against nothing.
    no_baseline: bool,
    stage: Stage,
    /// A complete view was in once.
    complete: bool,
    /// The last good state is shown, or was.
    shows_last_good: bool,
    /// A last good state was there at the start, or it was gone on from what is served.
    restored: bool,
    /// Until when the last good state is good enough to be shown; `None`: there is none, or it was asked for already.
    last_good_until: Option<Millis>,
    /// Endpoints of the last good state's services, until the first complete view was judged against it.
    baseline: Vec<(ServiceKey, usize)>,
    services: Services,
    /// The services that are beside the main ones of their dataInfoIds.
    others: Others,
    assignment: Assignment,
    /// Services whose places other pins may change.
    repinned: Movers,
    breaker: Breaker,
    additions: Additions,
    narrowing: Narrowing,
    /// New services that wait, with what is wanted of them.
    waiting: HashMap<ServiceKey, Intent>,
    /// Services that something is withheld of.
    withheld: BTreeSet<ServiceKey>,
    /// DataInfoIds that could not be read yet: nothing goes from them until they are.
    unknown: Unknown,
    /// Entries by application, made of the services' endpoints; `None` where the policy wants none.
    direct: Option<Direct>,
    /// DataInfoIds that have yet to be looked at under the policy of the round before.
    pending: BTreeSet<Arc<str>>,
    /// Services that changed and have yet to be looked at.
    backlog: Backlog,
    /// A hold ended since the last [`Round::take`].
    ended_hold: bool,
    /// There are services left whose grace is over.
    has_expired: bool,
    /// Of the last [`Round::take`].
    flushes: u64,
    /// How many of each a round takes.
    part: usize,
    /// The store left services out of the last [`Round::take`], since they were being read.
    waits_for_reads: bool,
    /// The policy of the round before; `None` before the first.
    policy: Option<Arc<Policy>>,
    /// Services with endpoints that were read under a policy that may have said otherwise of them, of mTLS for one: what was withheld
    /// since, or could not be read.
    outdated: HashSet<ServiceKey>,
    /// What counted in the round before of who is seen to consume what.
    seen: Option<Arc<Seen>>,
    /// Services and entries whose newest form cannot be made, with the reason.
    quarantined: Tally<&'static str>,
    /// Payloads that are not served, by dataInfoId.
    rejects: Tally<Reject>,
    /// Endpoints that Istio would refuse.
    left_out: Tally<Rule>,
    notices: Notices,
    names: Names,
    moves: Moves,
    rounds: u64,
    translations: u64,
    encodes: u64,
}

impl Round {
    /// Serves the last good state, if there is one, and knows nothing else.
    pub fn new(config: Arc<Config>, now: Millis, last_good: Option<LastGood>) -> Self {
        let protect = &config.protect;
        let publishers = last_good.as_ref().map(|last| last.publishers);
        let last_good_until = last_good.as_ref().map(|last| {
            let age = Millis::try_from(last.age.as_millis()).unwrap_or(Millis::MAX);
            now.saturating_add(protect.last_good_max_age.as_millis() as Millis).saturating_sub(age)
        });
        let restored = last_good.is_some();
        let (mut services, entries) = last_good.map(|last| (last.services, last.entries)).unwrap_or_default();
        for service in services.values_mut() {
            // The machine's clock may have been set back since.
            service.empty_since = service.empty_since.map(|since| since.min(now));
        }
        let services = Services::restored(Arc::clone(&config), services);
        let direct = (!entries.is_empty()).then(|| Direct::restored(entries));
        let mut round = Self {
            gate: Gate::new(config.scope, protect.startup_hold, publishers),
            first_view: FirstView::new(protect.clone()),
            no_baseline: false,
            stage: Stage::Gathering,
            complete: false,
            shows_last_good: false,
            restored,
            last_good_until,
            baseline: services.iter().map(|(key, served)| (key.clone(), served.endpoints)).collect(),
            assignment: Assignment::new(&config.host_suffix, &config.vip_cidr),
            repinned: Movers::new(),
            breaker: Breaker::new(protect.clone(), config.limits.services),
            additions: Additions::new(protect.clone()),
            narrowing: Narrowing::new(protect.clone(), &config.namespace),
            others: Others::default(),
            waiting: HashMap::new(),
            withheld: BTreeSet::new(),
            unknown: Unknown::default(),
            direct,
            pending: BTreeSet::new(),
            backlog: Backlog::default(),
            ended_hold: false,
            has_expired: false,
            flushes: 0,
            part: PART,
            waits_for_reads: false,
            policy: None,
            outdated: HashSet::new(),
            seen: None,
            quarantined: Tally::default(),
            rejects: Tally::default(),
            left_out: Tally::default(),
            notices: Notices::default(),
            names: Names::default(),
            moves: Moves::default(),
            rounds: 0,
            translations: 0,
            encodes: 0,
            services,
            config,
        };
        let keys: Vec<ServiceKey> = round.services.iter().map(|(key, _)| key.clone()).collect();
        for key in &keys {
            round.others.note(key, true);
            round.keep_place(key);
        }
        round.assignment.settle();
        round
    }

    /// Everything that a copy of the round is made of, beside the served view and the registry. An outline costs what changed
    /// within a minute, what is held and what a policy has yet to reach, not what is served. `None` before the first complete view.
    pub fn outline(&self) -> Option<Outline> {
        let policy = self.policy.as_ref().filter(|_| self.stage == Stage::Live)?;
        let quarantined = self.quarantined.ids().map(|text| ServiceKey::of_text(Arc::clone(text)));
        let unknown = self.unknown.ids().flat_map(|id| self.others.with_main(id));
        let kept = quarantined.chain(self.withheld.iter().cloned()).chain(unknown);
        let kept = kept.filter_map(|key| Some((self.services.get(&key)?.members.clone(), key)));
        Some(Outline {
            config: Arc::clone(&self.config),
            policy: Arc::clone(policy),
            pins: self.assignment.pins(),
            gate: self.gate,
            first_view: self.first_view.clone(),
            breaker: self.breaker.clone(),
            additions: self.additions.clone(),
            narrowing: self.narrowing.clone(),
            graces: self.services.graces(),
            kept: kept.collect(),
            pending: self.pending.iter().chain(self.backlog.ids()).cloned().collect(),
            lingering: self.direct.as_ref().map(|direct| direct.lingering().clone()).unwrap_or_default(),
            outdated: self.outdated.clone(),
            part: self.part,
        })
    }

    /// A copy of a round, of its outline and of what is served. Its first round has to look at every service.
    pub fn copy(outline: Outline, now: Millis, served: LastGood) -> Self {
        let Outline {
            config,
            gate,
            first_view,
            breaker,
            additions,
            narrowing,
            kept,
            pending,
            lingering,
            outdated,
            part,
            ..
        } = outline;
        let mut begun = Self::new(config, now, Some(served));
        let kept_keys: HashSet<ServiceKey> = kept.iter().map(|(_, key)| key.clone()).collect();
        begun.services.begin_current(|key| !kept_keys.contains(key) && !pending.contains(key.id()));
        for (members, key) in kept {
            begun.services.renew(&key, members);
        }
        if let Some(direct) = &mut begun.direct {
            direct.restore_lingering(lingering);
        }
        Self {
            gate,
            first_view,
            stage: Stage::Live,
            complete: true,
            last_good_until: None,
            baseline: Vec::new(),
            breaker,
            additions,
            narrowing,
            outdated,
            part,
            ..begun
        }
    }

    /// Ends the time for which a copy takes what is served for made by the policy in force.
    pub fn end_copying(&mut self) {
        self.services.end_current();
    }

    /// Both breakers, as they are.
    pub fn breakers(&self) -> (Breaker, Additions) {
        (self.breaker.clone(), self.additions.clone())
    }

    /// Has the breakers forget what they took note of since.
    pub fn rewind(&mut self, (breaker, additions): (Breaker, Additions)) {
        (self.breaker, self.additions) = (breaker, additions);
    }

    /// A round that knows nothing but what is served, to go on after a bug in this one. The next round has to look at every
    /// service.
    pub fn again(&self, now: Millis, served: LastGood) -> Self {
        let begun = Self::new(Arc::clone(&self.config), now, Some(served));
        Self {
            // Before there is a complete view, what was gathered is no measure for it.
            baseline: if self.complete { begun.baseline.clone() } else { self.baseline.clone() },
            gate: self.gate,
            no_baseline: self.no_baseline,
            first_view: self.first_view.clone(),
            stage: if self.complete { Stage::Completed } else { Stage::Gathering },
            complete: self.complete,
            shows_last_good: self.shows_last_good,
            restored: self.restored,
            last_good_until: self.last_good_until,
            moves: self.moves,
            outdated: self.outdated.clone(),
            part: self.part,
            additions: self.additions.clone(),
            narrowing: self.narrowing.clone(),
            rounds: self.rounds,
            translations: self.translations,
            encodes: self.encodes,
            ..begun
        }
    }

    /// Takes the documents' word of who consumes what, before [`Round::take`]; not while [`Round::is_frozen`]. `None`: nothing is known.
    pub fn see(&mut self, now: Millis, policy: &Arc<Policy>, word: Option<&Arc<Seen>>, orders: &Orders) {
        if !self.complete {
            return self.narrowing.begin(now, policy, word);
        }
        // Each dataInfoId once, also where only services beside the main one are served.
        let others = &self.others;
        let stands_for_its_id = |key: &ServiceKey| {
            key.other().is_none()
                || (self.services.get(&ServiceKey::main(&key.id().into())).is_none()
                    && others.of(key.id()).next() == Some(key))
        };
        let served = self.services.iter().map(|(key, _)| key).filter(|key| stands_for_its_id(key)).map(ServiceKey::id);
        let change = self.narrowing.judge(now, policy, word, orders.release, served);
        match change {
            Some(narrowing::Change::Began(held)) => self.notices.give(now, Notice::NarrowingHeld(held)),
            Some(narrowing::Change::Over(why)) => self.notices.give(now, Notice::NarrowingOver { why }),
            None => {}
        }
    }

    /// Whether what is served is to stay as it is. A start under a freeze of all session servers that finds no last good state
    /// has nothing that could stay, so it goes on to its first view, which then does.
    pub fn is_frozen(&self, orders: &Orders) -> bool {
        orders.frozen || orders.stopped || self.is_kept_frozen(orders)
    }

    fn is_kept_frozen(&self, orders: &Orders) -> bool {
        orders.ordered && (self.complete || self.restored)
    }

    /// When there is something to do although nothing changes.
    pub fn deadline(&self, orders: &Orders) -> Option<Millis> {
        if self.is_frozen(orders) {
            // The thaw is a change; a last good state is to be shown before.
            let waits = !self.complete && self.last_good_until.is_some();
            return self.gate.hold_ends(orders.listening_since).filter(|_| waits);
        }
        if !self.is_settled() {
            return Some(0);
        }
        let grace = self.services.first_grace().filter(|_| self.stage == Stage::Live);
        let grace = grace.map(|since| since + self.empty_grace());
        // While the first view is held back, the end of that is what is waited for.
        let waits = !self.complete
            && self.first_view.held().is_none()
            && (self.gate.opens_by_itself() || self.last_good_until.is_some());
        let gate = self.gate.hold_ends(orders.listening_since).filter(|_| waits);
        let linger = self.direct.as_ref().and_then(Direct::deadline).filter(|_| self.stage == Stage::Live);
        let holds = [self.breaker.deadline(), self.additions.deadline(), self.narrowing.deadline()];
        [grace, linger, gate, self.first_view.deadline()].into_iter().chain(holds).flatten().min()
    }

    /// Whether every service was looked at that there is a reason for: a change, the policy, or the end of its grace or of a hold.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.backlog.is_empty() && !self.has_expired && !self.additions.is_over()
    }

    /// Whether services that changed have yet to be looked at.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Has rounds take so many services of many.
    #[cfg(test)]
    pub fn take_in_parts_of(&mut self, part: usize) {
        self.part = part;
    }

    /// Every service that is served.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The breaker of removals.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The breaker of visibility.
    pub fn narrowing(&self) -> &Narrowing {
        &self.narrowing
    }

    /// The breaker of new services.
    pub fn additions(&self) -> &Additions {
        &self.additions
    }

    /// Whether removals are withheld.
    pub fn is_holding(&self) -> bool {
        self.breaker.held().is_some()
    }

    /// Services that are served though the registry has no endpoints of them, by the texts of their keys, and since when.
    pub fn empty(&self) -> BTreeMap<Arc<str>, Millis> {
        self.services.empty()
    }

    fn empty_grace(&self) -> Millis {
        self.config.protect.empty_grace.as_millis() as Millis
    }

    /// Makes a round.
    pub fn round(&mut self, input: Input) -> Output {
        let Input { now, dirty, policy, orders, publishers, pins } = input;
        let Orders { loaded, listening_since, .. } = orders;
        self.rounds += 1;
        if orders.release {
            self.breaker.release();
            self.additions.release();
            self.first_view.release();
        }
        let mut changes = RoundChanges::default();
        let frozen = self.is_frozen(&orders);
        let is_over = loaded || self.gate.is_over(now, listening_since);
        if frozen && self.stage == Stage::Gathering && is_over {
            // The last good state was to stay as it was, however long ago that is.
            self.last_good_until = self.last_good_until.map(|_| Millis::MAX);
            self.show_last_good(now);
        }
        if !frozen {
            if orders.ordered && !self.complete && is_over {
                self.notices.give(now, Notice::NothingToFreeze);
            }
            self.repinned.extend(self.assignment.pin(&pins));
            let (mut dirty, had_baseline) = (dirty, !self.baseline.is_empty());
            // A view without a service that is being read would not be complete.
            let is_open = !self.waits_for_reads && self.gate.is_open(now, loaded, listening_since, publishers);
            if self.stage == Stage::Gathering && is_open {
                // Another session server has other clients, and with local scope other services.
                let is_comparable = self.config.scope == Scope::Cluster && !self.complete && self.baseline.is_empty();
                if let Some(baseline) = orders.baseline.filter(|_| is_comparable) {
                    // Judged is all that is known now.
                    changes = self.turn(now, std::mem::take(&mut dirty), &policy);
                    let judged = self.first_view.judge(now, baseline, self.services.totals());
                    judged.began.into_iter().for_each(|lost| self.notices.give(now, Notice::FirstViewHeld(lost)));
                    if judged.passes {
                        self.stage = Stage::Completed;
                    }
                } else {
                    self.stage = Stage::Completed;
                }
                if self.stage == Stage::Completed && self.baseline.is_empty() {
                    // Nothing went while the view was gathered, so what goes now is judged by what was.
                    let gathered = self.services.iter().filter(|(_, service)| service.endpoints > 0);
                    self.baseline = gathered.map(|(key, service)| (key.clone(), service.endpoints)).collect();
                }
            }
            if self.stage == Stage::Gathering && self.gate.is_over(now, listening_since) {
                self.show_last_good(now);
            }
            changes.then(self.turn(now, dirty, &policy));
            if self.stage == Stage::Completed {
                self.stage = Stage::Live;
                if !std::mem::replace(&mut self.complete, true) {
                    self.additions.complete(now);
                    self.no_baseline = !had_baseline && orders.baseline.is_none();
                    if self.no_baseline {
                        self.notices.give(now, Notice::NoBaseline);
                    }
                    let (services, endpoints) = (self.services.iter().count(), self.services.totals().endpoints);
                    self.notices.give(now, Notice::ViewComplete { services, endpoints });
                }
            }
        }
        let shown = self.complete || self.shows_last_good;
        let held = match (self.is_frozen(&orders), self.complete) {
            (true, _) => Some(Held::Frozen),
            (false, false) if self.first_view.held().is_some() => Some(Held::MassDelete),
            (false, false) => Some(if shown { Held::LastGood } else { Held::NotLoaded }),
            (false, true) if self.is_holding() => Some(Held::MassDelete),
            (false, true) => self.additions.is_holding().then_some(Held::MassAdd),
        };
        let (complete, findings) = (self.complete, self.findings(now, held));
        Output { changes, complete, shown, findings, notices: self.notices.take() }
    }

    /// Shows the last good state if it is not too old, until there is a complete view. Only the first call counts.
    fn show_last_good(&mut self, now: Millis) {
        let Some(until) = self.last_good_until.take() else { return };
        self.shows_last_good = now <= until;
        let most = self.config.protect.last_good_max_age.as_millis() as Millis;
        let too_old = Notice::LastGoodTooOld { age: now.saturating_sub(until).saturating_add(most), most };
        self.notices.give(now, if self.shows_last_good { Notice::LastGoodServed } else { too_old });
    }

    fn findings(&mut self, now: Millis, held: Option<Held>) -> Findings {
        let is_served = |id: &Arc<str>| {
            let served = |key: &ServiceKey| self.services.get(key).is_some_and(|served| !served.members.is_empty());
            served(&ServiceKey::main(id)) || self.others.of(id).any(served)
        };
        let unknown = if self.stage == Stage::Gathering { None } else { self.unknown.report(is_served) };
        let notice = unknown.as_ref().and_then(|report| self.unknown.notice(report));
        notice.into_iter().for_each(|notice| self.notices.give(now, notice));
        let graces = self.services.graces_changed();
        Findings {
            held,
            rounds: self.rounds,
            translations: self.translations,
            encodes: self.encodes,
            rejects: self.rejects.sums().clone(),
            invalid_endpoints: self.left_out.sums().clone(),
            quarantined_by: self.quarantined.sums().clone(),
            unknown,
            withheld: self.breaker.held().or(self.first_view.held()),
            waiting: self.additions.is_holding().then_some(self.waiting.len()),
            narrowing: self.narrowing.held(),
            serving: self.services.totals(),
            no_baseline: self.no_baseline,
            direct: self.direct.as_ref().map(Direct::counts),
            hosts_moved: self.assignment.hosts_moved(),
            vips_moved: self.assignment.vips_moved(),
            moves: self.moves,
            names: Names { graces, ..std::mem::take(&mut self.names) },
        }
    }
}

#[cfg(test)]
mod tests;
