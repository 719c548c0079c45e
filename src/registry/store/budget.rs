//! How much the store may keep, and how much it keeps.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    registry::publication::Size,
};

/// Bounds on what the store keeps. A newcomer that would pass one is dropped, and so is the update of a publisher that would
/// pass one by growing; nothing that is there goes for it. Callers look and take one after the other, so each may be passed by
/// what so many of them bring at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most services (dataInfoIds) that have publishers.
    pub services: usize,
    /// Most publishers.
    pub publishers: usize,
    /// Most sources; each is a name that an extension chose.
    pub sources: usize,
    /// Most bytes of all publishers, with what keeping each takes, and of the dataInfoIds of their services.
    pub bytes: usize,
    /// Most endpoints of all publishers, of each at most [`Limits::endpoints_per_publisher`].
    pub endpoints: usize,
    /// Most endpoints of a publisher that are served; what else it brings counts as bytes only.
    pub endpoints_per_publisher: usize,
    /// Most bytes that remembered removals take. The oldest are forgotten above it, and nobody is refused.
    pub removals: usize,
}

impl Limits {
    /// Bounds that nothing meets.
    #[cfg(any(test, feature = "testing"))]
    pub const NONE: Self = Self {
        services: usize::MAX,
        publishers: usize::MAX,
        sources: 64,
        bytes: usize::MAX,
        endpoints: usize::MAX,
        endpoints_per_publisher: usize::MAX,
        removals: usize::MAX,
    };
}

/// Events that were dropped at one limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dropped {
    /// How many.
    pub events: u64,
    /// The start of the dataInfoId that the last one was of.
    pub last: Box<str>,
}

/// Counts that status shows.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Services known, those with tombstones only included.
    pub services: usize,
    /// Live publishers.
    pub publishers: usize,
    /// Their endpoints, of each publisher at most as many as are served.
    pub endpoints: usize,
    /// Bytes of the publishers, with what keeping each takes, and of the dataInfoIds of their services.
    pub bytes: usize,
    /// Remembered removals.
    pub tombstones: usize,
    /// Bytes of those.
    pub tombstone_bytes: usize,
    /// Removals forgotten before their time, since there were too many.
    pub tombstones_evicted: u64,
    /// Events dropped at a limit.
    pub dropped: u64,
}

/// Bounds at which events are dropped: the keys under `mox.limits`, and what reads in pieces may hold.
const NAMES: [&str; 6] = ["services", "publishers", "sources", "bytes", "endpoints", UNFINISHED_READS];
/// The one of these bounds that is no setting.
pub const UNFINISHED_READS: &str = "unfinished reads";

/// How much of a dataInfoId is kept of a dropped event, in characters.
const NAMED: usize = 200;

/// Counts of everything that is kept, against the limits.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) limits: Limits,
    /// Records of services.
    pub(super) records: AtomicUsize,
    /// Services that have a publisher, or that are not known.
    pub(super) services: AtomicUsize,
    pub(super) publishers: AtomicUsize,
    pub(super) bytes: AtomicUsize,
    pub(super) endpoints: AtomicUsize,
    /// Removals, and reads of what is empty since.
    removals: AtomicUsize,
    removal_bytes: AtomicUsize,
    /// Removals that were forgotten before their time.
    pub(super) evicted: AtomicU64,
    dropped: AtomicU64,
    by_limit: Mutex<BTreeMap<&'static str, Dropped>>,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            records: AtomicUsize::new(0),
            services: AtomicUsize::new(0),
            publishers: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            endpoints: AtomicUsize::new(0),
            removals: AtomicUsize::new(0),
            removal_bytes: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            by_limit: Mutex::new(NAMES.map(|name| (name, Dropped::default())).into()),
        }
    }

    /// Whether there is room for a publisher's next state in the place of `before`, and for `owed` bytes of its service that are
    /// not counted yet; `first` of its service.
    pub(super) fn check(&self, before: Option<Size>, after: Size, first: bool, owed: usize) -> Result<()> {
        let Limits { services, publishers, bytes, endpoints, .. } = self.limits;
        let is_full = |all: &AtomicUsize, limit: usize| all.load(Relaxed) >= limit;
        if first && is_full(&self.services, services) {
            return Err(Error::Limit { field: "services", limit: services });
        }
        if before.is_none() && is_full(&self.publishers, publishers) {
            return Err(Error::Limit { field: "publishers", limit: publishers });
        }
        let (had, has) = (before.unwrap_or_default(), self.counted(after));
        // A change that makes a publisher no larger always passes.
        let passes = |all: &AtomicUsize, had: usize, has: usize, limit: usize| {
            has > had && all.load(Relaxed).saturating_add(has - had) > limit
        };
        if passes(&self.bytes, had.bytes, has.bytes + owed, bytes) {
            return Err(Error::Limit { field: "bytes", limit: bytes });
        }
        if passes(&self.endpoints, self.counted(had).endpoints, has.endpoints, endpoints) {
            return Err(Error::Limit { field: "endpoints", limit: endpoints });
        }
        Ok(())
    }

    /// Counts a service that has publishers now, or is not known, and its dataInfoId.
    pub(super) fn begin(&self, data_info_id: &str) {
        self.services.fetch_add(1, Relaxed);
        self.bytes.fetch_add(data_info_id.len(), Relaxed);
    }

    /// Counts a service no longer.
    pub(super) fn end(&self, data_info_id: &str) {
        self.services.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(data_info_id.len(), Relaxed);
    }

    /// Counts a publisher's next state in the place of the present one.
    pub(super) fn count(&self, before: Option<Size>, after: Option<Size>) {
        let change = |all: &AtomicUsize, had: usize, has: usize| {
            // A count that stays as it is costs no cache line that every caller writes.
            match has.cmp(&had) {
                std::cmp::Ordering::Less => drop(all.fetch_sub(had - has, Relaxed)),
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => drop(all.fetch_add(has - had, Relaxed)),
            }
        };
        change(&self.publishers, usize::from(before.is_some()), usize::from(after.is_some()));
        let size = |size: Option<Size>| self.counted(size.unwrap_or_default());
        let (before, after) = (size(before), size(after));
        change(&self.bytes, before.bytes, after.bytes);
        change(&self.endpoints, before.endpoints, after.endpoints);
    }

    /// With the endpoints that may be served.
    fn counted(&self, size: Size) -> Size {
        Size { endpoints: size.endpoints.min(self.limits.endpoints_per_publisher), ..size }
    }

    /// Counts a removal, or a read of what is empty since, that is remembered and takes so many bytes.
    pub(super) fn remember(&self, bytes: usize) {
        self.removals.fetch_add(1, Relaxed);
        self.removal_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts it no longer.
    pub(super) fn forget(&self, bytes: usize) {
        self.removals.fetch_sub(1, Relaxed);
        self.removal_bytes.fetch_sub(bytes, Relaxed);
    }

    pub(super) fn remembers_too_much(&self) -> bool {
        self.removal_bytes.load(Relaxed) > self.limits.removals
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            services: self.records.load(Relaxed),
            publishers: self.publishers.load(Relaxed),
            endpoints: self.endpoints.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            tombstones: self.removals.load(Relaxed),
            tombstone_bytes: self.removal_bytes.load(Relaxed),
            tombstones_evicted: self.evicted.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
        }
    }

    /// Counts an event that was dropped, by the limit that it met.
    #[cold]
    pub(super) fn drop_event(&self, error: &Error, data_info_id: &str) {
        let limit = match error {
            Error::Limit { field, .. } | Error::TooLarge { field, .. } => field,
            _ => UNFINISHED_READS,
        };
        self.dropped.fetch_add(1, Relaxed);
        let mut by_limit = self.by_limit.lock();
        let dropped = by_limit.entry(limit).or_default();
        dropped.events += 1;
        dropped.last = data_info_id.chars().take(NAMED).collect();
    }

    pub(super) fn dropped_by(&self) -> BTreeMap<&'static str, Dropped> {
        self.by_limit.lock().clone()
    }
}
