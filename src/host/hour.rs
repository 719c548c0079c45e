//! The last hour in numbers, for charts: a ring of a fixed size, which a task fills while the engine listens.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{catalog::shared::Shared, xds::streams::Streams};

/// Time between two samples.
pub const EVERY: Duration = Duration::from_secs(15);
/// Samples that are kept, which is an hour of them.
pub const KEPT: usize = 240;

/// What was so at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Served services.
    pub services: u64,
    /// Served endpoints.
    pub endpoints: u64,
    /// Responses sent since the sample before.
    pub pushes: u64,
    /// How long the slowest client took to answer the last response that it answered, in milliseconds.
    pub ack_millis: u64,
}

/// The samples of the last hour.
#[derive(Debug, Default)]
pub struct Hour {
    samples: VecDeque<Sample>,
    /// Responses sent up to the last sample.
    sent: u64,
}

impl Hour {
    /// Takes what is so now, with the responses sent in all.
    pub fn take(&mut self, now: Sample) {
        let before = if self.samples.is_empty() { now.pushes } else { self.sent };
        self.sent = now.pushes;
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { pushes: now.pushes.saturating_sub(before), ..now });
    }

    /// The samples, and how far they are apart.
    pub fn shown(&self) -> Shown {
        Shown { every_seconds: EVERY.as_secs(), samples: self.samples() }
    }

    /// The samples, the oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.iter().copied().collect()
    }
}

/// The last hour as the page has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Seconds between two samples.
    every_seconds: u64,
    /// The samples, the oldest first.
    samples: Vec<Sample>,
}

/// Takes a sample now and every [`EVERY`], until `draining` is true.
pub async fn fill(
    hour: Arc<Mutex<Hour>>,
    shared: Arc<Shared>,
    streams: Arc<Streams>,
    mut draining: watch::Receiver<bool>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = draining.wait_for(|draining| *draining) => return,
            _ = ticks.tick() => {}
        }
        let now = sample(&shared, &streams);
        hour.lock().take(now);
    }
}

fn sample(shared: &Shared, streams: &Streams) -> Sample {
    let view = shared.view.borrow().clone();
    Sample {
        services: view.service_entries.resources() as u64,
        endpoints: view.service_entries.endpoints() + view.workload_entries.endpoints(),
        pushes: streams.pushes.load(Ordering::Relaxed),
        ack_millis: streams.slowest_ack().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut hour = Hour::default();
        for n in 0..3 * KEPT as u64 {
            hour.take(Sample { services: n, pushes: 1_000 + 2 * n, ..Sample::default() });
        }
        let samples = hour.samples();
        assert_eq!((samples.len(), samples[0].services), (KEPT, 2 * KEPT as u64));
        assert!(samples.iter().all(|sample| sample.pushes == 2));
        assert!(hour.samples.capacity() < 2 * KEPT);
    }

    #[test]
    fn what_was_sent_before_the_first_sample_counts_in_none() {
        let mut hour = Hour::default();
        for pushes in [1_000, 1_000, 1_007, 0] {
            hour.take(Sample { pushes, ..Sample::default() });
        }
        assert_eq!(hour.samples().iter().map(|sample| sample.pushes).collect::<Vec<_>>(), [0, 0, 7, 0]);
    }
}
