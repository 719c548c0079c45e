//! How fast requests go, and how they are put off.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

use tokio::time::Instant;

/// Waits that double, each with a random part, so that many do not come back together.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    /// How often in a row.
    pub(super) attempts: u32,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, attempts: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next wait: between half and all of the doubled one.
    pub(super) fn next(&mut self) -> Duration {
        let whole = self.first.saturating_mul(1 << self.attempts.min(20)).min(self.most);
        self.attempts += 1;
        jittered(whole)
    }
}

/// Between half and all of it.
pub(super) fn jittered(whole: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    whole.mul_f64(0.5 + random / 2.0)
}

/// So many in a second, and as many at once after a quiet second.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: usize) -> Self {
        Self { rate: rate as f64, tokens: rate as f64, at: Instant::now() }
    }

    /// Takes one, or says when there is one.
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

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_so_many_a_second() {
        let mut bucket = Bucket::new(10);
        let mut taken = 0;
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() <= until {
            match bucket.take(Instant::now()) {
                Ok(()) => taken += 1,
                Err(at) => tokio::time::sleep_until(at).await,
            }
        }
        assert!((39..=41).contains(&taken), "{taken}: ten at once, then ten a second");
    }

    #[test]
    fn waits_double_up_to_their_most() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for whole in [1, 2, 4, 8, 10, 10] {
            let wait = backoff.next();
            assert!(wait <= Duration::from_secs(whole) && wait * 2 >= Duration::from_secs(whole), "{whole}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_secs(1));
    }
}
