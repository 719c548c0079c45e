//! What the thread of the rounds shares with those who steer it and those who read from it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    catalog::{orders::Orders, report::Report},
    config::Config,
    error::Result,
    model::Clock,
    policy::Policy,
    registry::store::Store,
    snapshot::{signals::Signals, view::View},
};

/// State that more than one thread uses.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Arc<Config>,
    /// The clock of rounds and orders.
    pub clock: Clock,
    /// What the registry said.
    pub store: Store,
    /// What the operator decided.
    pub policy: ArcSwap<Policy>,
    /// What streams and sinks see.
    pub view: watch::Sender<View>,
    /// Wakes those who wait for another view of a partition.
    pub signals: Arc<Signals>,
    /// The last answered flush.
    pub flushed: watch::Sender<u64>,
    /// What the next round is to do.
    pub orders: Mutex<Orders>,
    /// What rounds found.
    pub report: Mutex<Report>,
}

impl Shared {
    /// Nothing is known and nothing is served. An error names the part of the policy that cannot be used.
    pub fn new(config: Config) -> Result<Self> {
        let policy = Policy::new(config.policy.clone(), config.vip_cidr, &config.namespace)?;
        Ok(Self {
            clock: Clock::start(),
            store: Store::new(config.limits.store()),
            policy: ArcSwap::from_pointee(policy),
            view: watch::Sender::new(View::default()),
            signals: Arc::default(),
            flushed: watch::Sender::new(0),
            orders: Mutex::new(Orders::default()),
            report: Mutex::new(Report::new()),
            config: Arc::new(config),
        })
    }
}
