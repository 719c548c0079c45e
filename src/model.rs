//! The registry's terms, free of protobuf, JNI and IO.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

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

/// The machine's date, read as the JVM reads it. The date may be set at any time, so no span is measured by it; it is for what is
/// compared with dates of others, or kept on disk.
pub fn date() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

fn read(clock: ClockId) -> Millis {
    let now = clock_gettime(clock);
    now.tv_sec * 1_000 + now.tv_nsec / 1_000_000
}

/// The date at a start, from then on by the monotonic clock: spans are right whatever is done to the machine's clock, and
/// moments can be compared with dates that were kept on disk.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    date: Millis,
    start: Instant,
    /// The same moment by the clock that [`Clock::tick`] reads.
    start_millis: Millis,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { date: date(), start: Instant::now(), start_millis: read(ClockId::Monotonic) }
    }

    /// Milliseconds since the epoch; never less than before.
    pub fn now(&self) -> Millis {
        self.date + self.start.elapsed().as_millis() as Millis
    }

    /// [`Clock::now`] as of the kernel's last tick, at most 10 ms before: for spans of seconds, and several times cheaper.
    pub fn tick(&self) -> Millis {
        self.date + (read(ClockId::MonotonicCoarse) - self.start_millis).max(0)
    }

    /// A moment of this clock, for a thread that waits for it.
    pub fn instant(&self, at: Millis) -> Instant {
        self.start + Duration::from_millis((at - self.date).max(0) as u64)
    }
}

/// Protocols that a provider may speak and a service has a usual port for, in lower case.
pub const PROTOCOLS: [&str; 9] = ["bolt", "dubbo", "grpc", "h2c", "http", "rest", "tr", "tri", "triple"];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_goes_on_from_the_date_of_its_start() {
        let clock = Clock::start();
        assert!((date() - clock.now()).abs() < 60_000);
        let (mut now, mut tick) = (clock.now(), clock.tick());
        for _ in 0..1_000 {
            assert!(clock.tick() >= tick && clock.tick() <= clock.now() && clock.now() >= now);
            (now, tick) = (clock.now(), clock.tick());
        }
        assert!(now - tick < 1_000, "they have one beginning");
        assert_eq!(clock.instant(clock.date), clock.start);
    }
}
