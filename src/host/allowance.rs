//! How much of the time what costs much may take, where nobody has to say who asks for it.

use std::time::{Duration, Instant};

/// In this time what is allowed may take a tenth of it, at once or in parts.
const WITHIN: Duration = Duration::from_secs(60);

/// What was taken, and is not made up for yet.
#[derive(Debug)]
pub struct Allowance {
    taken: Duration,
    /// When that was so.
    at: Instant,
}

impl Allowance {
    /// Nothing was taken.
    pub fn new(now: Instant) -> Self {
        Self { taken: Duration::ZERO, at: now }
    }

    /// Whether there is some left; an error says in how many seconds there is.
    pub fn ask(&mut self, now: Instant) -> Result<(), u32> {
        self.taken = self.taken.saturating_sub(now.duration_since(self.at) / 10);
        self.at = now;
        match (self.taken + Duration::from_nanos(1)).checked_sub(WITHIN / 10) {
            None => Ok(()),
            Some(beyond) => Err((beyond * 10).as_secs_f64().ceil() as u32),
        }
    }

    /// Something was taken.
    pub fn take(&mut self, time: Duration) {
        self.taken += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_time_is_allowed_at_once_or_in_parts() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut all = Allowance::new(start);
        for _ in 0..6 {
            assert_eq!(all.ask(start), Ok(()));
            all.take(Duration::from_secs(1));
        }
        assert_eq!(all.ask(start), Err(1), "six seconds are a tenth of a minute");
        all.take(Duration::from_secs(3));
        assert_eq!((all.ask(at(10)), all.ask(at(29))), (Err(21), Err(2)));
        assert_eq!(all.ask(at(31)), Ok(()));
        all.take(Duration::from_secs(1));
        assert_eq!((all.ask(at(31)), all.ask(at(600))), (Err(10), Ok(())));
        all.take(Duration::from_secs(6));
        assert!(all.ask(at(600)).is_err(), "what was not taken is not saved up");
    }
}
