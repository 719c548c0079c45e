//! How long clients wait and how long they take, counted for all of a variant together.

use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use crate::histogram::{Counted, Histogram};

/// Times of the responses of all streams, by variant.
#[derive(Debug, Default)]
pub struct Times {
    sotw: Of,
    delta: Of,
}

#[derive(Debug, Default)]
struct Of {
    sent: Histogram,
    acked: Histogram,
}

/// The counts of one variant.
#[derive(Debug, Clone, Copy, Default)]
pub struct VariantTimes {
    /// From the moment when a change was published, in the partition of a stream, to the moment when the first response that tells
    /// it was handed to the stream's transport. A response that a client asked for is not counted.
    pub sent: Counted,
    /// From there, for responses of any kind that is served, to their ACK. A NACK is not counted.
    pub acked: Counted,
}

impl Times {
    fn of(&self, delta: bool) -> &Of {
        if delta { &self.delta } else { &self.sotw }
    }

    /// Notes that a response was accepted which was handed to the transport then.
    pub fn acked(&self, delta: bool, handed: Instant, now: Instant) {
        self.of(delta).acked.note(now.saturating_duration_since(handed));
    }

    /// The counts so far: state of the world, and incremental.
    pub fn counted(&self) -> [VariantTimes; 2] {
        [&self.sotw, &self.delta].map(|of| VariantTimes { sent: of.sent.counted(), acked: of.acked.counted() })
    }
}

/// The moment when a response is handed to the transport.
#[derive(Debug, Default)]
pub struct Handed {
    at: OnceLock<Instant>,
    tells: Option<Change>,
}

/// The oldest change that a response tells.
#[derive(Debug)]
pub struct Change {
    /// When it was published.
    pub published: Instant,
    /// Whether the stream is of the incremental variant.
    pub delta: bool,
    /// Where it is counted.
    pub times: Arc<Times>,
}

impl Handed {
    /// Not handed over yet; `None`: the response is what a client asked for.
    pub fn new(tells: Option<Change>) -> Self {
        Self { at: OnceLock::new(), tells }
    }

    /// When it was.
    pub fn at(&self) -> Option<Instant> {
        self.at.get().copied()
    }

    /// Notes that it is, the first time.
    pub fn note(&self, now: Instant) {
        if self.at.set(now).is_ok()
            && let Some(Change { published, delta, times }) = &self.tells
        {
            times.of(*delta).sent.note(now.saturating_duration_since(*published));
        }
    }
}
