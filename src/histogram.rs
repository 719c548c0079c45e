//! How long something takes, counted by length for Prometheus.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The longest time that each bucket counts, but for a last one without an end: three a decade, as people read them.
pub const BOUNDS: [Duration; 15] = [
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// Counts of durations. To note one takes two additions, without a lock or an allocation.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Nanoseconds of all, which pass 2^64 after five hundred years of them.
    sum: AtomicU64,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many took no longer than each of [`BOUNDS`], and than any time: each counts those before it as well.
    pub within: [u64; BOUNDS.len() + 1],
    /// Their times together. While some are being noted it may be ahead of the counts, or behind.
    pub sum: Duration,
}

impl Histogram {
    /// Notes one.
    pub fn note(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The counts so far.
    pub fn counted(&self) -> Counted {
        let mut so_far = 0;
        let within = self.buckets.each_ref().map(|bucket| {
            so_far += bucket.load(Ordering::Relaxed);
            so_far
        });
        Counted { within, sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)) }
    }
}

impl Counted {
    /// How many there are in all.
    pub fn count(&self) -> u64 {
        self.within[BOUNDS.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_each_bucket_counts_those_before() {
        let histogram = Histogram::default();
        assert_eq!(histogram.counted(), Counted::default());
        let after = |bound: Duration| bound + Duration::from_nanos(1);
        for bound in BOUNDS {
            histogram.note(bound);
            histogram.note(after(bound));
        }
        let counted = histogram.counted();
        // Up to a bound: the bound itself and, of each smaller one, both.
        let expected: Vec<u64> = (0..BOUNDS.len() as u64).map(|n| 2 * n + 1).collect();
        assert_eq!(counted.within[..BOUNDS.len()], expected);
        assert_eq!(counted.count(), 2 * BOUNDS.len() as u64);
        assert_eq!(counted.sum, BOUNDS.iter().map(|bound| *bound + after(*bound)).sum::<Duration>());
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}
