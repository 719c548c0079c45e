//! The state that the thread of the rounds shares with those who steer it and those who read from it.

use std::sync::{
    Arc,
    mpsc::{Receiver, SyncSender, sync_channel},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    catalog::{
        assignment::Pins,
        orders::Orders,
        report::Report,
        round::{Outline, Round},
    },
    config::Config,
    error::Result,
    histogram::Histogram,
    model::Clock,
    policy::Policy,
    registry::store::Store,
    snapshot::{signals::Signals, view::View},
    visibility::seen::Seen,
};

/// State that more than one thread uses.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Arc<Config>,
    /// The clock of rounds and orders.
    pub clock: Clock,
    /// The publishers of the registry.
    pub store: Store,
    /// The policy in force.
    pub policy: ArcSwap<Policy>,
    /// Who is to have a place that several want.
    pub pins: ArcSwap<Pins>,
    /// Who is seen to consume what; `None`: nothing is known.
    pub seen: ArcSwapOption<Seen>,
    /// The snapshots that streams and sinks follow.
    pub view: watch::Sender<View>,
    /// Wakes those who wait for another view of a partition.
    pub signals: Arc<Signals>,
    /// The last answered flush.
    pub flushed: watch::Sender<u64>,
    /// Orders for the next round.
    pub orders: Mutex<Orders>,
    /// The findings of all rounds so far.
    pub report: Mutex<Report>,
    /// How long changes took until they were published: one for each view that changes of services brought, the age of the
    /// oldest of them. The time counts from the moment when the thread of the rounds was woken, and where changes came while a round was
    /// under way, from the beginning of that, which none of them is older than. A caller's thread reads no clock for it. A change
    /// that was withheld, waited or was frozen is not counted when it comes through, and the first view neither.
    pub published: Histogram,
    /// Who waits for an outline of the round; the last who asked.
    outlined: Mutex<Option<SyncSender<Outlined>>>,
}

/// An outline of the round and what it serves; `None` before the first complete view.
pub type Outlined = Option<(Outline, View)>;

impl Shared {
    /// Nothing is known and nothing is served. An error names the part of the policy that cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let policy = Policy::new(config.policy.clone(), &config.vip_cidr, &config.namespace)?;
        Ok(Self {
            clock: Clock::start(),
            store: Store::new(config.limits.store()),
            policy: ArcSwap::from_pointee(policy),
            pins: ArcSwap::default(),
            seen: ArcSwapOption::empty(),
            view: watch::Sender::new(View::default()),
            signals: Arc::default(),
            flushed: watch::Sender::new(0),
            orders: Mutex::new(Orders::default()),
            report: Mutex::new(Report::new()),
            published: Histogram::default(),
            outlined: Mutex::default(),
            config: Arc::new(config),
        })
    }

    /// Asks the thread of the rounds for an outline, which comes after its next round, and not if that breaks off.
    pub fn outline(&self) -> Receiver<Outlined> {
        let (asked, answer) = sync_channel(1);
        *self.outlined.lock() = Some(asked);
        answer
    }

    /// Answers who asked for an outline.
    pub fn answer(&self, round: &Round) {
        if let Some(asked) = self.outlined.lock().take() {
            // Who does not wait any more has no use for it.
            let _ = asked.send(round.outline().map(|outline| (outline, self.view.borrow().clone())));
        }
    }
}
