//! The sleep of the rounds' thread.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Wakes one thread. To wake one that is awake costs a lock that is free.
#[derive(Debug, Default)]
pub struct Wake {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    woken: bool,
    stopped: bool,
    /// Batches that are being applied.
    batches: usize,
}

/// A batch that is being applied, until it is dropped.
#[derive(Debug)]
pub struct Batch<'a>(&'a Wake);

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.batches -= 1;
        if state.batches == 0 {
            self.0.changed.notify_one();
        }
    }
}

impl Wake {
    /// Ends the wait that is under way, or the next one.
    pub fn wake(&self) {
        self.state.lock().woken = true;
        self.changed.notify_one();
    }

    /// Ends all waits from now on.
    pub fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Begins a batch, whose changes are to be found together.
    pub fn batch(&self) -> Batch<'_> {
        self.state.lock().batches += 1;
        Batch(self)
    }

    /// Whether the next wait ends at once.
    pub fn is_woken(&self) -> bool {
        self.state.lock().woken
    }

    /// Waits until woken, until then, or until stopped; whether it is to go on.
    pub fn wait(&self, until: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while !state.woken && !state.stopped {
            match until {
                None => self.changed.wait(&mut state),
                Some(until) => {
                    if self.changed.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
            }
        }
        state.woken = false;
        !state.stopped
    }

    /// Waits for so long whether woken or not; whether it is to go on.
    pub fn pause(&self, span: Duration) -> bool {
        let mut state = self.state.lock();
        let until = Instant::now() + span;
        while !state.stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
        !state.stopped
    }

    /// Waits until no batch is being applied or until stopped, for `most` at the longest.
    pub fn settle(&self, most: Duration) {
        let mut state = self.state.lock();
        let until = Instant::now() + most;
        while state.batches > 0 && !state.stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_woken_once_for_all_that_happened() {
        let wake = Wake::default();
        wake.wake();
        wake.wake();
        let begin = Instant::now();
        assert!(wake.wait(None));
        let short = begin + Duration::from_millis(5);
        assert!(wake.wait(Some(short)) && Instant::now() >= short);
    }

    #[test]
    fn a_pause_is_not_cut_short_and_forgets_no_wake() {
        let wake = Wake::default();
        let (begin, span) = (Instant::now(), Duration::from_millis(10));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while begin.elapsed() < 2 * span {
                    wake.wake();
                }
            });
            assert!(wake.pause(span) && begin.elapsed() >= span);
        });
        assert!(wake.wait(None));
    }

    #[test]
    fn a_batch_is_waited_for_as_long_as_it_takes_or_may_take() {
        let (wake, short, long) = (Wake::default(), Duration::from_millis(5), Duration::from_secs(3600));
        let waits_out = || {
            let begin = Instant::now();
            wake.settle(short);
            begin.elapsed() >= short
        };
        wake.settle(long); // there is none
        let (first, second) = (wake.batch(), wake.batch());
        assert!(waits_out(), "both take too long");
        drop(first);
        assert!(waits_out(), "there is another one");
        std::thread::scope(|scope| {
            let settles = scope.spawn(|| wake.settle(long));
            drop(second);
            settles.join().unwrap();
        });
    }

    #[test]
    fn a_stop_ends_waits_and_pauses() {
        let wake = Wake::default();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| wake.wait(None));
            wake.stop();
            assert!(!waits.join().unwrap());
        });
        let _batch = wake.batch();
        wake.settle(Duration::from_secs(3600));
        assert!(!wake.pause(Duration::from_secs(3600)) && !wake.wait(None));
    }
}
