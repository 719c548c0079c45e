//! The registry's view, sharded by dataInfoId; written on the callers' threads.
//!
//! An entry belongs to a source and is keyed by (source, dataInfoId, registerId). The newest
//! [`RegisterVersion`](crate::model::RegisterVersion) wins; at a tie a removal wins. Removals leave tombstones, so that a late
//! publish cannot bring a publisher back. A changed service is put on its shard's dirty list once; only the first dirty service
//! of all wakes the publisher.
//!
//! A shard is locked for one event's change or for [`STEPS`] steps of a longer work, so that a caller waits for no more than
//! these. Times are those of one clock that is never set.

mod budget;
mod keyed;
mod mutator;
mod service;
mod shard;

use std::{
    collections::BTreeMap,
    hash::BuildHasher,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use hashbrown::hash_table::Entry as TableEntry;

use crate::{
    error::{Error, Result},
    model::Millis,
    registry::{
        frame::{Event, Text},
        pieces::Pieces,
        publication::Publication,
        store::{
            budget::Budget,
            keyed::Keyed,
            mutator::{Mutator, Read},
            service::{Grave, REGISTRY_ID, Service, SourceId},
            shard::{Shard, State, find},
        },
        wake::Wake,
    },
};

pub use budget::{Counts, Dropped, Limits, UNFINISHED_READS};
pub use service::READ_MARGIN_MILLIS;

/// The source of the session server's own publishers.
pub const REGISTRY: &str = "registry";

const SHARDS: usize = 64;

/// Publishers looked at under one lock: some 100 µs. In tests as few as make most works take several.
const STEPS: usize = if cfg!(test) { 2 } else { 512 };

/// Answer to a piece that is not the last of its read, in place of a sequence number. Sequence numbers begin with
/// [`SHARDS`].
const UNFINISHED: u64 = 1;

/// How long a removal is remembered; the registry's data servers use the same span (`datumCompactDelaySecs`).
pub const TOMBSTONE_MILLIS: Millis = 180_000;

/// The table takes the hash's ends, the shard its middle.
fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

/// A dirty service, taken for translation.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The service.
    pub data_info_id: Arc<str>,
    /// Its live publishers, in no order.
    pub entries: Vec<Arc<Publication>>,
    /// Whether it has others that could not be read yet.
    pub unknown: bool,
}

/// The sharded store.
#[derive(Debug)]
pub struct Store {
    shards: Box<[Shard]>,
    hasher: Keyed,
    budget: Budget,
    /// Names in the order they came; filled from the front, never emptied, so that they are read without a lock.
    sources: Box<[OnceLock<Box<[u8]>>]>,
    pieces: Pieces,
    pending: AtomicBool,
    put_off: AtomicBool,
    wake: Wake,
}

impl Store {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: Keyed::default(),
            sources: std::iter::once(OnceLock::from(Box::<[u8]>::from(REGISTRY.as_bytes())))
                .chain((1..limits.sources).map(|_| OnceLock::new()))
                .collect(),
            budget: Budget::new(limits),
            pieces: Pieces::default(),
            pending: AtomicBool::new(false),
            put_off: AtomicBool::new(false),
            wake: Wake::default(),
        }
    }

    /// Applies one event and returns its sequence number: unique, and rising within a service; 1 for a piece that is not the
    /// last of its read. An event that is older than what is known changes nothing and is no error.
    pub fn apply(&self, event: &Event<'_>, now: Millis) -> Result<u64> {
        let (id, applied) = match event {
            Event::Publish { source, data_info_id: id, body } => {
                (id, self.change(*source, *id, |m| m.publish(body, now).map(|()| true)))
            }
            Event::Unpublish { source, data_info_id: id, register_id, version } => {
                (id, self.change(*source, *id, |m| m.unpublish(*register_id, *version, now).map(|()| true)))
            }
            Event::Lost { source, data_info_id: id, register_id, version } => {
                (id, self.change(*source, *id, |m| m.lost(*register_id, *version, now).map(|()| true)))
            }
            Event::Replace { source, data_info_id: id, version, read_age, bodies } => {
                let entries: Vec<_> = bodies.iter().map(Publication::new).collect();
                let read = (*version, now.saturating_sub(*read_age));
                (id, self.replace((*source, *id), read, &entries, now).map(Some))
            }
            Event::Piece { part, read, source, data_info_id: id, version, read_age, bodies } => {
                let read_at = (*version, now.saturating_sub(*read_age));
                let key = (source.as_bytes().into(), id.as_bytes().into());
                let entries = bodies.iter().map(Publication::new).collect();
                let whole = self.pieces.add(key, *part, *read, entries, now);
                let applied = whole.and_then(|whole| match whole {
                    Some(entries) => self.replace((*source, *id), read_at, &entries, now),
                    None => Ok(UNFINISHED),
                });
                (id, applied.map(Some))
            }
        };
        match applied {
            Ok(sequence) => Ok(sequence.unwrap_or_default()),
            Err(error) => {
                self.budget.drop_event(&error, id.as_str());
                Err(error)
            }
        }
    }

    /// Applies a whole read in steps; its entries were made before.
    fn replace(
        &self,
        (source, id): (Text<'_>, Text<'_>),
        read: (i64, Millis),
        entries: &[Arc<Publication>],
        now: Millis,
    ) -> Result<u64> {
        let mut read = Read::new(read, entries, now);
        let _one = self.shards[shard_of(self.hash(id.as_bytes()))].reading.lock();
        loop {
            if let Some(sequence) = self.change(source, id, |m| read.advance(m, STEPS))? {
                return Ok(sequence);
            }
        }
    }

    /// The sleep of the rounds' thread, which ends when a service is dirty.
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// The live publishers of one service, in no order, while nobody applies a read to it.
    pub fn read(&self, id: &str) -> Vec<Arc<Publication>> {
        self.entries(id).unwrap_or_default()
    }

    /// A service as [`Store::take_dirty`] would give it, without taking it; one that is not there has no publishers. `None`: a
    /// read is being applied to it.
    pub fn peek(&self, id: &Arc<str>) -> Option<Taken> {
        let hash = self.hash(id.as_bytes());
        let is_unknown = |state: &State| {
            state.services.find(hash, |service| *service.data_info_id == **id).is_some_and(|it| it.unknown)
        };
        // Before the publishers: a read that makes the service known in between is among them, and never the other way round.
        let unknown = is_unknown(&self.shards[shard_of(hash)].state.lock());
        let entries = self.entries(id)?;
        Some(Taken { data_info_id: Arc::clone(id), entries, unknown })
    }

    /// Begins a read of what is known of a service, and leaves it there.
    #[cfg(test)]
    pub(crate) fn begin_read(&self, id: &str) {
        let entries = self.read(id);
        let mut read = Read::new((i64::MAX, Millis::MAX), &entries, Millis::MAX);
        self.change(REGISTRY.into(), id.into(), |to| read.advance(to, 1)).unwrap();
        assert!(self.entries(id).is_none());
    }

    /// Whether anything is known of a service.
    pub fn has(&self, id: &str) -> bool {
        let hash = self.hash(id.as_bytes());
        let state = self.shards[shard_of(hash)].state.lock();
        state.services.find(hash, |service| *service.data_info_id == *id).is_some()
    }

    /// Whether the last [`Store::take_dirty`] left out services that a read was being applied to.
    pub fn has_put_off(&self) -> bool {
        self.put_off.load(Ordering::Relaxed)
    }

    /// The live publishers of a service, looked at in steps: each is one that was there at some moment of them. `None`: a read
    /// of it came in between.
    fn entries(&self, id: &str) -> Option<Vec<Arc<Publication>>> {
        let hash = self.hash(id.as_bytes());
        let mut entries = Vec::new();
        // The source that is looked at, and the place in it below which all is to be looked at.
        let (mut source, mut below) = (0, None);
        let mut reads = None;
        loop {
            let shard = self.shards[shard_of(hash)].state.lock();
            let Some(service) = shard.services.find(hash, |service| *service.data_info_id == *id) else {
                return Some(entries);
            };
            if service.is_read() || *reads.get_or_insert(service.reads) != service.reads {
                return None;
            }
            entries.reserve(service.live.saturating_sub(entries.len()));
            let mut left = STEPS;
            while let Some((_, of)) = service.sources.get(source)
                && left > 0
            {
                let end = below.unwrap_or(of.slots.len()).min(of.slots.len());
                let begin = end.saturating_sub(left);
                left -= end - begin;
                entries.extend((begin..end).rev().filter_map(|at| of.slots.get_index(at)?.1.live()).cloned());
                below = Some(begin);
                if begin == 0 {
                    (source, below) = (source + 1, None);
                }
            }
            if source == service.sources.len() {
                return Some(entries);
            }
        }
    }

    /// The registry's services with an event that no read has borne out in [`READ_MARGIN_MILLIS`], at most so many: the
    /// registry may have refused what a session server took, and gives no notice of what it refuses.
    pub fn unconfirmed(&self, now: Millis, limit: usize) -> Vec<Arc<str>> {
        let mut ids = Vec::new();
        for shard in &self.shards {
            let shard = shard.state.lock();
            let event = |service: &Service| service.registry().and_then(|registry| registry.event);
            let late = |service: &&Service| event(service).is_some_and(|at| now - at > READ_MARGIN_MILLIS);
            ids.extend(shard.services.iter().filter(late).map(|service| Arc::clone(&service.data_info_id)));
            if ids.len() >= limit {
                ids.truncate(limit);
                break;
            }
        }
        ids
    }

    /// The registry has these services, but they could not be read: until a read of one is applied nothing is known to be gone
    /// from it. `mox.limits.services` and `bytes` do not hold here, since the registry named them and none is to be lost.
    pub fn set_unknown(&self, ids: &[impl AsRef<str>]) {
        for id in ids.iter().map(AsRef::as_ref) {
            let hash = self.hash(id.as_bytes());
            let mut state = self.shards[shard_of(hash)].state.lock();
            let State { services, dirty, .. } = &mut *state;
            let same = |service: &Service| *service.data_info_id == *id;
            let service = services.entry(hash, same, |service| self.hash(service.data_info_id.as_bytes()));
            let service = service.or_insert_with(|| {
                self.budget.records.fetch_add(1, Ordering::Relaxed);
                Service::new(id)
            });
            let service = service.into_mut();
            let counted = service.counts();
            // A read of it may have been applied while this call was on its way.
            service.unknown = service.registry().is_none_or(|registry| registry.read.is_none());
            if service.counts() && !counted {
                self.budget.begin(id);
            }
            if !std::mem::replace(&mut service.dirty, true) {
                dirty.push(Arc::clone(&service.data_info_id));
            }
        }
        self.wake_publisher();
    }

    fn wake_publisher(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            self.wake.wake();
        }
    }

    /// Whether any service is other than when it was taken last.
    pub fn is_dirty(&self) -> bool {
        self.shards.iter().any(|shard| !shard.state.lock().dirty.is_empty())
    }

    /// Takes every dirty service. Changes that come meanwhile are taken next time, and so are services that a read is being
    /// applied to; its end wakes again.
    pub fn take_dirty(&self) -> Vec<Taken> {
        self.pending.store(false, Ordering::SeqCst);
        let (mut taken, mut put_off) = (Vec::new(), false);
        for shard in &self.shards {
            let dirty = std::mem::take(&mut shard.state.lock().dirty);
            let mut later = Vec::new();
            for data_info_id in dirty {
                match self.take(shard, &data_info_id) {
                    Some(service) => taken.extend(service),
                    None => later.push(data_info_id),
                }
            }
            if !later.is_empty() {
                put_off = true;
                shard.state.lock().dirty.append(&mut later);
            }
        }
        self.put_off.store(put_off, Ordering::Relaxed);
        taken
    }

    /// Takes a service that is on the dirty list no more; `Some(None)`: there is nothing to tell of it. `None`: it is to stay on
    /// the list.
    fn take(&self, shard: &Shard, id: &Arc<str>) -> Option<Option<Taken>> {
        let hash = self.hash(id.as_bytes());
        let mut state = shard.state.lock();
        // From the moment when it was marked clean, what changes lists it anew.
        let mut cleaned = false;
        let entries = loop {
            let Some(found) = find(&mut state.services, hash, id) else { return Some(None) };
            let service = found.into_mut();
            if service.is_read() {
                let listed = std::mem::replace(&mut service.dirty, true) && cleaned;
                return if listed { Some(None) } else { None };
            }
            if !std::mem::replace(&mut cleaned, true) {
                service.dirty = false;
            }
            if service.sources.iter().map(|(_, source)| source.slots.len()).sum::<usize>() <= STEPS {
                break service.live().cloned().collect::<Vec<_>>();
            }
            drop(state);
            let entries = self.entries(id);
            state = shard.state.lock();
            if let Some(entries) = entries {
                break entries;
            }
        };
        let Some(mut found) = find(&mut state.services, hash, id) else { return Some(None) };
        let service = found.get_mut();
        let unknown = service.unknown;
        service.seen = !entries.is_empty() || unknown;
        if service.is_over() && !service.dirty {
            found.remove();
            self.budget.records.fetch_sub(1, Ordering::Relaxed);
        }
        Some(Some(Taken { data_info_id: Arc::clone(id), entries, unknown }))
    }

    /// Every service, in no order.
    pub fn ids(&self) -> Vec<Arc<str>> {
        self.ids_where(|_| true)
    }

    /// Every service that could not be read yet, in no order.
    pub fn unknown_ids(&self) -> Vec<Arc<str>> {
        self.ids_where(|service| service.unknown)
    }

    fn ids_where(&self, wanted: impl Fn(&Service) -> bool) -> Vec<Arc<str>> {
        let ids = |shard: &Shard| -> Vec<Arc<str>> {
            let state = shard.state.lock();
            let services = state.services.iter().filter(|service| wanted(service));
            services.map(|service| Arc::clone(&service.data_info_id)).collect()
        };
        self.shards.iter().flat_map(ids).collect()
    }

    /// Marks services dirty that are to be looked at though nothing changed in them, as a changed policy needs it; those that
    /// are not there are left out.
    pub fn mark_dirty<'i>(&self, ids: impl IntoIterator<Item = &'i Arc<str>>) {
        for id in ids {
            let hash = self.hash(id.as_bytes());
            let mut state = self.shards[shard_of(hash)].state.lock();
            let State { services, dirty, .. } = &mut *state;
            if let Some(service) = services.find_mut(hash, |service| service.data_info_id == *id)
                && !std::mem::replace(&mut service.dirty, true)
            {
                dirty.push(Arc::clone(&service.data_info_id));
            }
        }
    }

    /// Forgets tombstones older than [`TOMBSTONE_MILLIS`] and marks their services dirty, or forgets those as well if nobody is
    /// to hear of them any more; forgets reads that were given up.
    pub fn expire(&self, now: Millis) {
        self.pieces.expire(now);
        for shard in &self.shards {
            let expired = |grave: &Grave| now.saturating_sub(grave.set_at) >= TOMBSTONE_MILLIS;
            while shard.oldest() <= now.saturating_sub(TOMBSTONE_MILLIS)
                && shard.forget(&self.hasher, &self.budget, STEPS, expired) == STEPS
            {}
        }
    }

    /// Forgets the oldest tombstones until what they take is within its bound.
    fn evict(&self) {
        while self.budget.remembers_too_much() {
            let oldest = self.shards.iter().min_by_key(|shard| shard.oldest());
            if oldest.is_none_or(|shard| shard.forget(&self.hasher, &self.budget, 1, |_| true) == 0) {
                return;
            }
            self.budget.evicted.fetch_add(1, Ordering::Relaxed);
            // The service of the tombstone may be on the list now, and its next event would wake nobody.
            self.wake_publisher();
        }
    }

    /// How many there are of what.
    pub fn counts(&self) -> Counts {
        self.budget.counts()
    }

    /// The dropped events, by the limit that they met.
    pub fn dropped(&self) -> BTreeMap<&'static str, Dropped> {
        self.budget.dropped_by()
    }

    fn source(&self, name: Text<'_>) -> Result<SourceId> {
        for (index, place) in self.sources.iter().enumerate() {
            if **place.get_or_init(|| name.as_bytes().into()) == *name.as_bytes() {
                return Ok(index as SourceId);
            }
        }
        Err(Error::Limit { field: "sources", limit: self.budget.limits.sources })
    }

    fn hash(&self, data_info_id: &[u8]) -> u64 {
        self.hasher.hash_one(data_info_id)
    }

    /// Runs a change, or steps of one, under the lock of its shard; the change's sequence number once it says that it is done.
    fn change(
        &self,
        source: Text<'_>,
        id: Text<'_>,
        change: impl FnOnce(&mut Mutator<'_>) -> Result<bool>,
    ) -> Result<Option<u64>> {
        let source_id = self.source(source)?;
        let hash = self.hash(id.as_bytes());
        let index = shard_of(hash);
        let shard = &self.shards[index];
        let mut state = shard.state.lock();
        let State { services, dirty, graves, applied } = &mut *state;
        let found = services.entry(
            hash,
            |service| service.data_info_id.as_bytes() == id.as_bytes(),
            |service| self.hash(service.data_info_id.as_bytes()),
        );
        let mut found = match found {
            TableEntry::Occupied(found) => found,
            TableEntry::Vacant(place) => {
                self.budget.records.fetch_add(1, Ordering::Relaxed);
                place.insert(Service::new(id.as_str()))
            }
        };
        let service = found.get_mut();
        let (counted, was_read, had_graves) = (service.counts(), service.is_read(), !graves.is_empty());
        let at = service.place(source_id);
        let Service { data_info_id, sources, live, unknown, reads, .. } = service;
        let (budget, source, unknown) = (&self.budget, &mut sources[at].1, *unknown);
        let (owed, changed) = (if counted { 0 } else { data_info_id.len() }, false);
        let mut mutator =
            Mutator { budget, source_id, data_info_id, source, graves, live, reads, counted, owed, changed };
        let outcome = change(&mut mutator);
        let Mutator { changed, source, .. } = mutator;
        let known = unknown && source_id == REGISTRY_ID && source.read.is_some();
        service.unknown &= !known;
        match (counted, service.counts()) {
            (false, true) => self.budget.begin(&service.data_info_id),
            (true, false) => self.budget.end(&service.data_info_id),
            _ => {}
        }
        let newly_dirty = (changed || known) && !std::mem::replace(&mut service.dirty, true);
        if newly_dirty {
            dirty.push(Arc::clone(&service.data_info_id));
        }
        // Who took services meanwhile has left this one.
        let wakes = newly_dirty || (was_read && !service.is_read() && service.dirty);
        // An event that is refused, or says nothing as a loss does, leaves nothing.
        if service.is_over() {
            let listed = service.dirty;
            found.remove();
            self.budget.records.fetch_sub(1, Ordering::Relaxed);
            if listed {
                dirty.retain(|id| find(services, self.hash(id.as_bytes()), id).is_some());
            }
        }
        // Counted by shard: one count of all would be a cache line that every caller writes.
        *applied += 1;
        let sequence = *applied * SHARDS as u64 + index as u64;
        if had_graves || !graves.is_empty() {
            shard.note_oldest(graves);
        }
        drop(state);
        if wakes {
            self.wake_publisher();
        }
        if self.budget.remembers_too_much() {
            self.evict();
        }
        outcome.map(|done| done.then_some(sequence))
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
