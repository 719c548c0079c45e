//! Bytes that clients make the server keep: what a stream is subscribed to, the request that is coming in, the words of a client on
//! a response.
//!
//! Each stream has a bound, and so have all streams together. The first [`OWN`] bytes of a stream count for itself only, so that
//! whoever uses up what all share keeps out nobody who wants little.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tonic::Status;

use crate::xds::limits::MaxBytes;

/// Bytes of a stream that all streams together are not charged for: several times what istiod needs.
const OWN: usize = 64 << 10;

/// The bytes that all streams hold together.
#[derive(Debug)]
pub struct Budget {
    most: MaxBytes,
    /// Bytes that streams hold.
    held: AtomicUsize,
    /// Of them, those beyond [`OWN`] of each stream.
    shared: AtomicUsize,
    /// How often a stream wanted more than there is.
    refused: AtomicU64,
}

/// The bytes that one stream holds; given back when this is dropped.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    held: Mutex<usize>,
}

/// Bytes for one purpose of a stream; given back when it is dropped.
#[derive(Debug)]
pub struct Held {
    account: Arc<Account>,
    bytes: usize,
}

impl Budget {
    /// A budget of which nothing is used.
    pub fn new(most: MaxBytes) -> Self {
        Self { most, held: AtomicUsize::new(0), shared: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }

    /// The account of a new stream.
    pub fn open(self: &Arc<Self>) -> Arc<Account> {
        Arc::new(Account { budget: Arc::clone(self), held: Mutex::new(0) })
    }

    /// Bytes that streams hold.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// How often a stream wanted more than there is.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Account {
    /// Nothing yet, for one purpose.
    pub fn hold(self: &Arc<Self>) -> Held {
        Held { account: Arc::clone(self), bytes: 0 }
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let Budget { most, held: all, shared, refused } = &*self.budget;
        let mut held = self.held.lock();
        let after = held.saturating_add(bytes);
        let more = after.saturating_sub(OWN) - held.saturating_sub(OWN);
        let refusal = if after > most.stream {
            Some(format!("the stream holds more than {} bytes (mox.limits.stream-bytes)", most.stream))
        } else {
            let fits = |shared: usize| shared.checked_add(more).filter(|shared| *shared <= most.streams || more == 0);
            let taken = shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
            taken.err().map(|_| format!("all streams hold {} bytes (mox.limits.streams-bytes)", most.streams))
        };
        if let Some(refusal) = refusal {
            refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::resource_exhausted(refusal));
        }
        *held = after;
        all.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give(&self, bytes: usize) {
        let mut held = self.held.lock();
        let after = *held - bytes;
        self.budget.shared.fetch_sub(held.saturating_sub(OWN) - after.saturating_sub(OWN), Ordering::Relaxed);
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
        *held = after;
    }
}

impl Held {
    /// So many bytes from now on, unless that is more than there is; then as many as before.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Status> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.account.take(more)?,
            None => self.account.give(self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }

    /// How many bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_and_all_of_them_are_bounded_and_little_is_left_to_everybody() {
        let budget = Arc::new(Budget::new(MaxBytes { stream: 4 * OWN, streams: 5 * OWN, ..MaxBytes::ANY }));
        let mut held = [(); 3].map(|()| budget.open().hold());
        let [first, second, third] = &mut held;
        first.resize(4 * OWN).unwrap();
        assert!(first.resize(4 * OWN + 1).unwrap_err().message().contains("stream-bytes"));
        assert_eq!((first.bytes(), budget.held()), (4 * OWN, 4 * OWN), "what was refused is not held");
        second.resize(3 * OWN).unwrap();
        assert!(second.resize(3 * OWN + 1).unwrap_err().message().contains("streams-bytes"));
        third.resize(OWN).unwrap();
        assert!(third.resize(OWN + 1).is_err());
        first.resize(2 * OWN).unwrap();
        third.resize(3 * OWN).unwrap();
        assert_eq!((budget.held(), budget.shared.load(Ordering::Relaxed), budget.refused()), (8 * OWN, 5 * OWN, 3));
        drop(held);
        assert_eq!((budget.held(), budget.shared.load(Ordering::Relaxed)), (0, 0), "all of it is given back");
    }

    #[test]
    fn purposes_of_one_stream_share_its_bound() {
        let budget = Arc::new(Budget::new(MaxBytes { stream: 100, ..MaxBytes::ANY }));
        let account = budget.open();
        let (mut a, mut b) = (account.hold(), account.hold());
        a.resize(60).unwrap();
        assert!(b.resize(41).is_err());
        b.resize(40).unwrap();
        drop(a);
        b.resize(100).unwrap();
    }
}
