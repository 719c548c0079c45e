//! The registry's terms, free of protobuf, JNI and IO.

use std::time::{Duration, Instant};

/// Orders the states of one publisher: the client's counter, then the clock of the session server that took it.
/// `RegisterVersion` of SOFARegistry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegisterVersion {
    /// Counted up by the client on register, republish and unregister.
    pub version: i64,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
}

/// Milliseconds since the epoch, the registry's own unit. Read once per call and handed down.
pub type Millis = i64;

/// The wall clock, as of the kernel's last tick (at most 10 ms ago): the spans that it is used for are seconds, and this
/// is several times cheaper than the exact time.
pub fn now() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec * 1_000 + now.tv_nsec / 1_000_000
}

/// The date at a start, from then on by the monotonic clock: spans are right whatever is done to the machine's clock, and
/// moments can be compared with dates that were kept on disk.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    date: Millis,
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { date: now(), start: Instant::now() }
    }

    /// Milliseconds since the epoch; never less than before.
    pub fn now(&self) -> Millis {
        self.date + self.start.elapsed().as_millis() as Millis
    }

    /// A moment of this clock, for a thread that waits for it.
    pub fn instant(&self, at: Millis) -> Instant {
        self.start + Duration::from_millis((at - self.date).max(0) as u64)
    }
}

/// The three parts of a dataInfoId.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataInfoId<'a> {
    /// `interface[:version[:uniqueId]][@protocol]`.
    pub data_id: &'a str,
    /// The tenant.
    pub instance_id: &'a str,
    /// The group.
    pub group: &'a str,
}

impl<'a> DataInfoId<'a> {
    /// Splits `dataId#@#instanceId#@#group`; `None` unless there are exactly three parts.
    pub fn parse(id: &'a str) -> Option<Self> {
        let mut parts = id.split("#@#");
        let parsed = Self { data_id: parts.next()?, instance_id: parts.next()?, group: parts.next()? };
        parts.next().is_none().then_some(parsed)
    }

    /// The name after the last `@` of the dataId, if there is one.
    pub fn protocol(&self) -> Option<&'a str> {
        self.data_id.rsplit_once('@').map(|(_, protocol)| protocol)
    }
}
