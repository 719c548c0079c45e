//! How fast requests go, how they are put off, and when work that broke off begins anew.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Runs until a run ends by itself. A panic, which is a bug, ends a run and not the work.
pub(super) async fn supervised<R: Future<Output = ()> + Send + 'static>(run: impl Fn() -> R, fail: impl Fn(&str)) {
    while let Err(error) = tokio::spawn(run()).await {
        if !error.is_panic() {
            return;
        }
        fail("a bug; the log says where");
        sleep(Duration::from_secs(10)).await;
    }
}

/// A source of random waits, so that many who wait do not come back together. The same seed gives the same waits.
#[derive(Debug, Clone)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// With a seed that no other has.
    pub(super) fn random() -> Self {
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    /// Between half of `whole` and all of it.
    pub(super) fn of(&mut self, whole: Duration) -> Duration {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let random = (bits ^ (bits >> 31)) as f64 / u64::MAX as f64;
        whole.mul_f64(0.5 + random / 2.0)
    }
}

/// Waits that double from `first` to `most`, each with a random part.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    /// Waits since the last reset.
    pub(super) attempts: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, attempts: 0 }
    }

    /// Whether both begin and end with the same waits.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.first, self.most) == (other.first, other.most)
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next wait: between half and all of the doubled last one.
    pub(super) fn next(&mut self, jitter: &mut Jitter) -> Duration {
        let whole = self.first.saturating_mul(1 << self.attempts.min(20)).min(self.most);
        self.attempts += 1;
        jitter.of(whole)
    }
}

/// A rate: `rate` a second, and as many at once after a quiet second.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: usize, now: Instant) -> Self {
        Self { rate: rate as f64, tokens: rate as f64, at: now }
    }

    /// Takes a token, or says when there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.rate);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.tokens) / self.rate).max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate() {
        let begin = Instant::now();
        let (mut bucket, mut now) = (Bucket::new(10, begin), begin);
        let mut taken = 0;
        while now <= begin + Duration::from_secs(3) {
            match bucket.take(now) {
                Ok(()) => taken += 1,
                Err(at) => now = at,
            }
        }
        assert!((39..=41).contains(&taken), "{taken}: ten at once, then ten a second");
    }

    #[test]
    fn waits_double_up_to_their_most() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let mut jitter = Jitter::seeded(7);
        for whole in [1, 2, 4, 8, 10, 10] {
            let wait = backoff.next(&mut jitter);
            assert!(wait <= Duration::from_secs(whole) && wait * 2 >= Duration::from_secs(whole), "{whole}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next(&mut jitter) <= Duration::from_secs(1));
        let (mut one, mut same) = (Jitter::seeded(1), Jitter::seeded(1));
        assert_eq!(one.of(Duration::from_secs(9)), same.of(Duration::from_secs(9)));
        assert_ne!(Jitter::random().of(Duration::MAX / 4), Jitter::random().of(Duration::MAX / 4));
    }
}
