//! A part of the store: services, and what is remembered of those that went, under a lock of its own.

use std::{
    collections::BTreeSet,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use hashbrown::{HashTable, hash_table::OccupiedEntry};
use parking_lot::Mutex;

use crate::{
    model::Millis,
    registry::store::{
        budget::Budget,
        keyed::Keyed,
        service::{Grave, Service},
    },
};

/// See the module.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) state: Mutex<State>,
    /// When its oldest grave was dug, [`Millis::MAX`] without any; written under the lock.
    oldest: AtomicI64,
    /// Held for the whole of a read: one is applied after the other.
    pub(super) reading: Mutex<()>,
}

impl Default for Shard {
    fn default() -> Self {
        Self { state: Mutex::default(), oldest: AtomicI64::new(Millis::MAX), reading: Mutex::default() }
    }
}

/// What the lock of a shard guards.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) services: HashTable<Service>,
    /// Services that are other than when they were taken last, each once.
    pub(super) dirty: Vec<Arc<str>>,
    /// Oldest first, so that expiry costs what expires.
    pub(super) graves: BTreeSet<Grave>,
    /// How many events were applied.
    pub(super) applied: u64,
}

impl Shard {
    /// Notes when the oldest of these graves was dug.
    pub(super) fn note_oldest(&self, graves: &BTreeSet<Grave>) {
        self.oldest.store(graves.first().map_or(Millis::MAX, |grave| grave.set_at), Ordering::Relaxed);
    }

    /// When the oldest grave was dug, [`Millis::MAX`] without any; read without the lock.
    pub(super) fn oldest(&self) -> Millis {
        self.oldest.load(Ordering::Relaxed)
    }

    /// Forgets the oldest tombstones and reads as far as they are `wanted`, and at most so many; how many it were.
    pub(super) fn forget(
        &self,
        hasher: &Keyed,
        budget: &Budget,
        most: usize,
        wanted: impl Fn(&Grave) -> bool,
    ) -> usize {
        let mut state = self.state.lock();
        let hash = |id: &str| hasher.hash_one(id.as_bytes());
        let State { services, dirty, graves, .. } = &mut *state;
        let (mut forgotten, mut unlisted) = (0, false);
        while forgotten < most
            && graves.first().is_some_and(&wanted)
            && let Some(grave) = graves.pop_first()
        {
            forgotten += 1;
            budget.forget(grave.bytes());
            let Some(mut found) = find(services, hash(&grave.data_info_id), &grave.data_info_id) else { continue };
            if let Some(left) = exhume(found.get_mut(), grave) {
                budget.remember(left.bytes());
                graves.insert(left);
            }
            let service = found.get_mut();
            if service.is_over() {
                unlisted |= service.dirty;
                found.remove();
                budget.records.fetch_sub(1, Ordering::Relaxed);
            } else if !std::mem::replace(&mut service.dirty, true) {
                dirty.push(Arc::clone(&service.data_info_id));
            }
        }
        if unlisted {
            // A service of this name may come anew.
            dirty.retain(|id| find(services, hash(id), id).is_some());
        }
        self.note_oldest(graves);
        forgotten
    }
}

/// The place of a service whose hash this is.
pub(super) fn find<'a>(
    services: &'a mut HashTable<Service>,
    hash: u64,
    id: &str,
) -> Option<OccupiedEntry<'a, Service>> {
    services.find_entry(hash, |service| *service.data_info_id == *id).ok()
}

/// Forgets a tombstone or a read. Where a source's last tombstone goes, its read is left to be forgotten.
fn exhume(service: &mut Service, grave: Grave) -> Option<Grave> {
    let (_, source) = service.sources.iter_mut().find(|(id, _)| *id == grave.source)?;
    match &grave.register_id {
        Some(id) => {
            source.slots.swap_remove(id);
            let read = source.read.filter(|_| source.slots.is_empty());
            read.map(|(_, at)| Grave { set_at: at, register_id: None, ..grave })
        }
        None => {
            source.read = None;
            None
        }
    }
}
