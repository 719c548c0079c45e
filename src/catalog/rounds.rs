//! The thread that drives [`Round`]: takes from the store what is dirty, hands streams and sinks a new [`View`] if anything
//! that is served changed, keeps the last good state, answers flushes and writes the log.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    catalog::{
        assignment::claims::Contest,
        last_good::{LastGood, file::LastGoodFile},
        notices::Notice,
        orders::Orders,
        round::{Input, Output, Round},
        shared::Shared,
    },
    snapshot::view::View,
};

/// How often expired removals are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(10);
/// How long the end of a frame is waited for, at most: a frame of 65,535 events takes some 100 ms; nearly every frame has a single event.
const FRAME: Duration = Duration::from_millis(100);

/// Drives the rounds.
#[derive(Debug)]
pub struct Rounds {
    shared: Arc<Shared>,
    round: Round,
    /// The last round broke off, so its state is not to be used.
    broken: bool,
    file: Option<LastGoodFile>,
    /// The last round was frozen.
    was_frozen: bool,
    /// No change that the next round finds is older, but for what a freeze held up.
    since: Instant,
}

impl Rounds {
    /// Nothing is served yet but the last good state, if one is kept; it is not shown.
    pub fn new(shared: Arc<Shared>) -> Self {
        let file = shared.config.state_dir.as_deref().map(LastGoodFile::new);
        if file.is_none() {
            tracing::info!(
                event = "no_state_dir",
                "no mox.state-dir is set: what this start finds is judged by how much another session server serves, if one says so"
            );
        }
        let last_good = file.as_ref().and_then(LastGoodFile::load);
        if let Some(last_good) = &last_good {
            shared.view.send_replace(last_good.view.clone());
        }
        let round = Round::new(Arc::clone(&shared.config), shared.clock.now(), last_good);
        Self { shared, round, broken: false, file, was_frozen: false, since: Instant::now() }
    }

    /// Runs until the store's [`Wake`](crate::registry::wake::Wake) is stopped, which may take a round. Needs a runtime
    /// around it.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let wake = shared.store.wake();
        let mut next = self.deadline();
        let mut began = Instant::now();
        loop {
            // A change that has come by now came during the last round.
            let came_meanwhile = wake.is_woken();
            if !wake.wait(next) {
                break;
            }
            // What a round that broke off did not publish, or left to this one, is as old as it was.
            if self.was_frozen || (!self.broken && !self.round.has_backlog()) {
                self.since = if came_meanwhile { began } else { Instant::now() };
            }
            // The pause is never restarted: a steady stream of changes does not put the push off. Less would do for latency, but what a
            // registry loses comes in pieces, and breakers judge what a round has.
            if !wake.pause(shared.config.push.quiet) {
                break;
            }
            began = Instant::now();
            next = match self.round() {
                true => self.deadline(),
                false => Some(Instant::now() + SWEEP),
            };
            self.keep();
        }
    }

    /// When there is something to do although nothing changes.
    fn deadline(&self) -> Option<Instant> {
        let orders = *self.shared.orders.lock();
        let round = self.round.deadline(&orders).map(|at| self.shared.clock.instant(at));
        let sweep = (self.shared.store.counts().tombstones > 0).then(|| Instant::now() + SWEEP);
        let keep = self.file.as_ref().and_then(LastGoodFile::due_at).map(tokio::time::Instant::into_std);
        [round, sweep, keep].into_iter().flatten().min()
    }

    /// Keeps the served state for the next start, if it is another or was not touched for a while.
    fn keep(&mut self) {
        let view = self.shared.view.borrow().clone();
        if let Some(file) = &mut self.file
            && view.complete
            && !self.broken
        {
            let publishers = self.shared.store.counts().publishers;
            file.keep(view, publishers, self.round.is_holding(), || self.round.empty());
        }
    }

    /// A round; `false` if it broke off, which is a bug. The snapshots stay until a round over everything went well.
    fn round(&mut self) -> bool {
        let done = catch_unwind(AssertUnwindSafe(|| {
            if self.broken {
                self.start_over();
            }
            self.try_round();
            self.shared.answer(&self.round);
        }));
        if done.is_err() {
            self.broken = true;
            tracing::error!(
                event = "round_broken",
                "a round broke off, which is a bug; what is served stays, and everything is looked at anew"
            );
        }
        done.is_ok()
    }

    /// Begins again from what is served, and looks at every service.
    fn start_over(&mut self) {
        let publishers = self.shared.store.counts().publishers;
        let served = LastGood::of_view(&self.shared.view.borrow(), &self.round.empty(), publishers);
        let served = served.expect("what is served was encoded here");
        self.round = self.round.again(self.shared.clock.now(), served);
        self.shared.report.lock().forget_names();
        self.shared.store.mark_dirty(&self.shared.store.ids());
        self.broken = false;
    }

    fn try_round(&mut self) {
        let shared = Arc::clone(&self.shared);
        shared.store.expire(shared.clock.now());
        // A frame that has begun is judged as a whole.
        shared.store.wake().settle(FRAME);
        let orders: Orders = shared.orders.lock().take();
        // One time for all: what the breakers say of it is to be the same from the taking to the judgement.
        let now = shared.clock.now();
        let policy = shared.policy.load_full();
        // Services that another policy has looked at anew have not changed in the registry.
        let changed = shared.store.is_dirty() || self.round.has_backlog();
        self.was_frozen = self.round.is_frozen(&orders);
        let dirty = match self.was_frozen {
            true => Vec::new(),
            false => {
                self.round.see(now, &policy, shared.seen.load_full().as_ref(), &orders);
                self.round.take(now, &shared.store, &policy, &orders)
            }
        };
        let changed = changed && !dirty.is_empty();
        let publishers = shared.store.counts().publishers;
        let Output { changes, complete, shown, findings, notices } =
            self.round.round(Input { now, dirty, policy, orders, publishers, pins: shared.pins.load_full() });
        let current = shared.view.borrow().clone();
        let next = View { complete, shown, ..changes.apply(&current) };
        let is_new =
            next.versions() != current.versions() || (next.complete, next.shown) != (current.complete, current.shown);
        // First the report, so that whoever sees the view finds it explained.
        shared.report.lock().take(findings, is_new);
        if is_new {
            let at = shared.signals.tell(&current, &next, || _ = shared.view.send_replace(next.clone()));
            if changed && current.shown {
                shared.published.note(at.into_std().saturating_duration_since(self.since));
            }
        }
        notices.iter().for_each(log);
        if self.round.is_settled() || self.round.is_frozen(&orders) {
            shared.flushed.send_replace(orders.flushes);
        }
    }
}

/// The longest dataInfoId in a log line; the rest of a line has at most 300 characters.
const LOGGED: usize = 200;

/// The start of a dataInfoId, which may have thousands of bytes.
fn short(id: &str) -> String {
    id.chars().take(LOGGED).collect()
}

/// The start of an application's name, which a publisher chooses; a line has three at most.
fn short_name(application: &str) -> String {
    application.chars().take(LOGGED / 2).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn log(notice: &Notice) {
    let event = notice.event();
    match notice {
        Notice::PayloadNotServed { id, reason, sample } => {
            tracing::warn!(event, data_info_id = short(id), %reason, sample = &**sample, "a payload is not served");
        }
        Notice::Quarantined { id, why, kept } => {
            let (reason, detail) = (why.reason, &*why.detail);
            match kept {
                true => {
                    tracing::error!(
                        event,
                        data_info_id = short(id),
                        reason,
                        detail,
                        "a service's newest form cannot be made; its last good form is kept"
                    );
                }
                false => {
                    tracing::error!(
                        event,
                        data_info_id = short(id),
                        reason,
                        detail,
                        "a service's form cannot be made, and there is no older one; it is not served"
                    );
                }
            }
        }
        Notice::EndpointsLeftOut { id, count, invalid } => {
            tracing::error!(event, data_info_id = short(id), count, %invalid, "Istio would refuse endpoints; they are left out");
        }
        Notice::HostChanged { id, was, is } => {
            tracing::warn!(event, data_info_id = short(id), was = &**was, is = &**is, "a service has another host now");
        }
        Notice::VipChanged { id, was, is } => {
            tracing::warn!(event, data_info_id = short(id), %was, %is, "a service has another virtual address now");
        }
        Notice::PlaceContested { name, contest: Contest { holder, waiting, count } } => {
            let waiting = waiting.first().map(|id| id.chars().take(LOGGED / 2).collect::<String>());
            let holder = holder.chars().take(LOGGED / 2).collect::<String>();
            tracing::warn!(
                event,
                name = &**name,
                holder,
                waiting,
                count,
                "several services want one host or virtual address; the holder keeps it, the others take their next"
            );
        }
        Notice::AddressContested { address, port, newest, claimed_by } => {
            let newest = newest.as_deref().map(short_name);
            let claimed_by: Vec<String> = claimed_by.iter().take(2).map(|name| short_name(name)).collect();
            let claimed_by = claimed_by.join(", ");
            tracing::warn!(event, %address, port, newest, claimed_by, "two applications publish one address and port");
        }
        Notice::AddressNotOwn { id, address, port, application } => {
            let application = short_name(application);
            tracing::warn!(
                event,
                data_info_id = short(id),
                %address,
                port,
                application,
                "an address is not its publisher's own: in no entry unless policy.direct.addresses names it"
            );
        }
        Notice::MtlsMixed { application, port } => {
            tracing::warn!(
                event,
                application = short_name(application),
                port,
                "policy.mtls names some providers of this entry, so none is called with it"
            );
        }
        Notice::FirstViewHeld(lost) => {
            tracing::error!(
                event,
                services = lost.services,
                endpoints = lost.endpoints,
                "so much less is there than another session server serves: nothing is said to istiod until it is there, is \
                 released, or mox.protect.mass-delete-hold is over"
            );
        }
        Notice::NoBaseline => {
            tracing::warn!(
                event,
                "neither a last good state nor another session server says what there was before this start: its first view \
                 is not judged; mox.state-dir keeps a last good state"
            );
        }
        Notice::MassDeleteHeld(lost) => {
            tracing::error!(
                event,
                services = lost.services,
                endpoints = lost.endpoints,
                "mass deletion: what is missing stays served until it is back, is released, or \
                 mox.protect.mass-delete-hold is over"
            );
        }
        Notice::MassDeleteNotHeld(lost) => {
            tracing::error!(
                event,
                services = lost.services,
                endpoints = lost.endpoints,
                "mass deletion: it goes through, since as many services are withheld as mox.limits.services allows"
            );
        }
        Notice::MassDeleteOver { why, services } => {
            tracing::warn!(event, why, services, "removals are no longer withheld");
        }
        Notice::MassAddHeld { services, tenant } => {
            tracing::error!(
                event,
                services,
                tenant = tenant.as_deref().map(short),
                "mass addition: new services wait until they are released, most of them have left, or \
                 mox.protect.mass-add-hold is over"
            );
        }
        Notice::MassAddOver { why, services } => {
            tracing::warn!(event, why, services, "new services no longer wait");
        }
        Notice::NarrowingHeld(held) => {
            tracing::error!(
                event,
                services = held.services,
                of = held.of,
                "so many services would be hidden from namespaces that see them: they stay until that is released, or \
                 mox.protect.mass-delete-hold is over"
            );
        }
        Notice::NarrowingOver { why } => {
            tracing::warn!(event, why, "services are no longer kept from being hidden");
        }
        Notice::ServicesUnknown { kept, missing, names } => {
            tracing::error!(
                event,
                kept,
                missing,
                names = &**names,
                "services of the registry cannot be read: their last good form is served where there is one"
            );
        }
        Notice::ServicesKnown => tracing::info!(event, "every service of the registry could be read"),
        Notice::ViewComplete { services, endpoints } => {
            tracing::info!(event, services, endpoints, "the view is complete, serving starts");
        }
        Notice::LastGoodServed => {
            tracing::warn!(
                event,
                "no complete view within mox.protect.startup-hold, or what is served is frozen: the last good state is served until \
                 there is a complete view"
            );
        }
        Notice::NothingToFreeze => {
            tracing::error!(
                event,
                "what is served is frozen, but this session server has no last good state that could stay: it serves what the \
                 registry has now, and keeps that; mox.state-dir keeps a last good state"
            );
        }
        Notice::LastGoodTooOld { age, most } => {
            let (age_seconds, most_seconds) = (age / 1_000, most / 1_000);
            tracing::error!(
                event,
                age_seconds,
                most_seconds,
                "no complete view yet, and the last good state is older than mox.protect.last-good-max-age: nothing is served"
            );
        }
        Notice::LeftOut { event: of, reason, notices } => {
            let reason = &**reason;
            tracing::warn!(event, of, reason, notices, "more notices of this kind were left out; the status names all");
        }
    }
}

#[cfg(test)]
mod tests;
