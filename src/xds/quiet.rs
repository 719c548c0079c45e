//! Log lines that clients can cause: one a minute for each reason and subject, so that nobody can fill the registry's log.

use std::{collections::HashMap, hash::Hash, time::Duration};

use tokio::time::Instant;

/// For how long a reason and subject is not logged again.
const PAUSE: Duration = Duration::from_secs(60);
/// How many subjects are remembered. While as many were logged within a minute, no line comes of another.
const SUBJECTS: usize = 256;

/// When what was logged last. A value without IO: the caller says what time it is, and logs.
#[derive(Debug)]
pub struct Quiet<K>(HashMap<K, Instant>);

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Quiet<K> {
    /// Whether a line of this subject may be logged now; if so it counts as logged.
    pub fn may_log(&mut self, subject: K, now: Instant) -> bool {
        if self.0.len() >= SUBJECTS {
            self.0.retain(|_, logged| now < *logged + PAUSE);
        }
        match self.0.get(&subject) {
            Some(logged) if now < *logged + PAUSE => return false,
            None if self.0.len() >= SUBJECTS => return false,
            _ => {}
        }
        self.0.insert(subject, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_logged_once_a_minute_and_not_too_many_of_them() {
        let (mut quiet, now) = (Quiet::default(), Instant::now());
        assert!(quiet.may_log(0, now) && !quiet.may_log(0, now + PAUSE / 2) && quiet.may_log(1, now + PAUSE / 2));
        assert!(quiet.may_log(0, now + PAUSE) && !quiet.may_log(1, now + PAUSE));
        let later = now + 2 * PAUSE;
        assert_eq!((0..10_000).filter(|subject| quiet.may_log(*subject, later)).count(), SUBJECTS);
        assert_eq!(quiet.0.len(), SUBJECTS);
        assert!(quiet.may_log(10_000, later + PAUSE), "the others are forgotten");
    }
}
