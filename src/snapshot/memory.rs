//! How much memory pages take, whoever still holds them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};

/// Counts the bytes of a line of snapshots, each of which was made of the one before: of their pages, and of what was encoded of
/// them.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Alive>);

#[derive(Debug, Default)]
struct Alive {
    pages: AtomicUsize,
    copies: AtomicUsize,
}

/// A use of bytes.
#[derive(Debug, Clone, Copy)]
enum Use {
    Page,
    Copy,
}

/// Bytes that are counted until the last who holds them, or a piece of them, lets go.
#[derive(Debug)]
struct Counted {
    bytes: BytesMut,
    alive: Arc<Alive>,
    used: Use,
}

impl Alive {
    fn of(&self, used: Use) -> &AtomicUsize {
        match used {
            Use::Page => &self.pages,
            Use::Copy => &self.copies,
        }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.of(self.used).fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Memory {
    fn keep(&self, bytes: BytesMut, used: Use) -> Bytes {
        self.0.of(used).fetch_add(bytes.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted { bytes, alive: Arc::clone(&self.0), used })
    }

    /// The bytes of a page.
    pub(super) fn page(&self, bytes: BytesMut) -> Bytes {
        self.keep(bytes, Use::Page)
    }

    /// Bytes that were encoded of pages.
    pub(super) fn copy(&self, bytes: BytesMut) -> Bytes {
        self.keep(bytes, Use::Copy)
    }

    /// Bytes of pages, and of copies, that somebody holds.
    pub(super) fn alive(&self) -> (usize, usize) {
        (self.0.pages.load(Ordering::Relaxed), self.0.copies.load(Ordering::Relaxed))
    }
}
