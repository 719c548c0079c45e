//! What the registry said, sharded by dataInfoId; written on the callers' threads.
//!
//! An entry belongs to a source and is keyed by (source, dataInfoId, registerId). The newest
//! [`RegisterVersion`] wins; at a tie a removal wins. Removals leave tombstones, so that a late publish cannot bring a
//! publisher back. A changed service is put on its shard's dirty list once; only the first dirty service of all wakes
//! the publisher.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::{
    error::{Error, Result},
    frame::{Body, Event},
    model::{Millis, RegisterVersion},
    translate::ParsedCell,
};

const SHARDS: usize = 64;

/// How long a removal is remembered; the registry's data servers use the same span (`datumCompactDelaySecs`).
pub const TOMBSTONE_MILLIS: Millis = 180_000;

/// How far a read may lag behind an event: a read that started at least this much after a tombstone was set overrides
/// it, and one removes only what an event brought more than this before it started.
pub const READ_MARGIN_MILLIS: Millis = 15_000;

/// One live publisher.
#[derive(Debug)]
pub struct Entry {
    /// Which of its states this is.
    pub version: RegisterVersion,
    body: Box<[u8]>,
    /// Its payloads, read once and off the caller's thread.
    pub parsed: ParsedCell,
}

impl Entry {
    fn new(body: &Body<'_>) -> Arc<Self> {
        Arc::new(Self { version: body.version, body: body.raw().into(), parsed: ParsedCell::default() })
    }

    /// The publisher as it was handed in.
    pub fn body(&self) -> Body<'_> {
        Body::parse(&self.body).expect("a stored body was decoded before")
    }
}

/// How an entry became known, which decides what a later read may say about it.
#[derive(Debug, Clone, Copy)]
enum Learned {
    Event(Millis),
    Read,
}

#[derive(Debug)]
enum Slot {
    Live { entry: Arc<Entry>, learned: Learned },
    Tombstone { version: RegisterVersion, set_at: Millis },
}

impl Slot {
    fn live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }
}

/// The entries of one service in one source.
#[derive(Debug, Default)]
struct Source {
    slots: HashMap<Box<str>, Slot>,
    /// The datum version of the last applied read.
    read: Option<i64>,
}

#[derive(Debug, Default)]
struct Service {
    /// Nearly always one; a linear scan beats a map.
    sources: Vec<(Arc<str>, Source)>,
    dirty: bool,
}

impl Service {
    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.sources.iter().flat_map(|(_, source)| source.slots.values())
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        let live = |slot: &Slot| match slot {
            Slot::Live { entry, .. } => Some(Arc::clone(entry)),
            Slot::Tombstone { .. } => None,
        };
        self.slots().filter_map(live).collect()
    }
}

#[derive(Debug)]
struct Grave {
    set_at: Millis,
    source: Arc<str>,
    data_info_id: Arc<str>,
    register_id: Box<str>,
}

#[derive(Debug, Default)]
struct Shard {
    services: HashMap<Arc<str>, Service>,
    dirty: Vec<Arc<str>>,
    /// Tombstones in the order they were set, so that expiry costs what expires.
    graves: VecDeque<Grave>,
}

/// Bounds on what the store keeps.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most services (dataInfoIds).
    pub services: usize,
    /// Most publishers, tombstones included.
    pub publishers: usize,
    /// Most sources; each is a name that an extension chose.
    pub sources: usize,
}

/// A dirty service, taken for translation.
#[derive(Debug)]
pub struct Taken {
    /// The service.
    pub data_info_id: Arc<str>,
    /// Its live publishers, in no order.
    pub entries: Vec<Arc<Entry>>,
}

/// Counts that status shows.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Counts {
    /// Services known, those with tombstones only included.
    pub services: usize,
    /// Live publishers.
    pub publishers: usize,
    /// Remembered removals.
    pub tombstones: usize,
    /// Events dropped at a limit.
    pub dropped: u64,
}

/// The sharded store.
#[derive(Debug)]
pub struct Store {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    limits: Limits,
    sources: RwLock<Vec<Arc<str>>>,
    services: AtomicUsize,
    publishers: AtomicUsize,
    tombstones: AtomicUsize,
    dropped: AtomicU64,
    sequence: AtomicU64,
    pending: AtomicBool,
    wake: Notify,
}

impl Store {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            limits,
            sources: RwLock::default(),
            services: AtomicUsize::new(0),
            publishers: AtomicUsize::new(0),
            tombstones: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            pending: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// Applies one event and returns its sequence number. An event that is older than what is known changes nothing
    /// and is no error.
    pub fn apply(&self, event: &Event<'_>, now: Millis) -> Result<u64> {
        let applied = self.apply_under_lock(event, now);
        if applied.is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        applied.map(|()| self.sequence.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn apply_under_lock(&self, event: &Event<'_>, now: Millis) -> Result<()> {
        match event {
            Event::Publish { source, data_info_id, body } => {
                let source = self.source(source)?;
                self.change(data_info_id, true, |m| m.publish(&source, body, Learned::Event(now)))
            }
            Event::Unpublish { source, data_info_id, register_id, version } => {
                let source = self.source(source)?;
                self.change(data_info_id, true, |m| m.unpublish(&source, register_id, *version, now))
            }
            Event::Replace { source, data_info_id, version, read_started, bodies } => {
                let source = self.source(source)?;
                self.change(data_info_id, !bodies.is_empty(), |m| m.replace(&source, *version, *read_started, bodies))
            }
        }
    }

    /// Waits until a service is dirty or [`Store::wake`] was called.
    pub async fn dirty(&self) {
        self.wake.notified().await;
    }

    /// Wakes the one that waits in [`Store::dirty`].
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// The live publishers of one service, in no order.
    pub fn read(&self, id: &str) -> Vec<Arc<Entry>> {
        let shard = self.shards[self.shard_of(id)].lock();
        shard.services.get(id).map(Service::live).unwrap_or_default()
    }

    /// Takes every dirty service. Changes that come meanwhile are taken next time.
    pub fn take_dirty(&self) -> Vec<Taken> {
        self.pending.store(false, Ordering::SeqCst);
        let mut taken = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for data_info_id in std::mem::take(&mut shard.dirty) {
                let Some(service) = shard.services.get_mut(&data_info_id) else { continue };
                service.dirty = false;
                let entries = service.live();
                if service.slots().next().is_none() {
                    shard.services.remove(&data_info_id);
                    self.services.fetch_sub(1, Ordering::Relaxed);
                }
                taken.push(Taken { data_info_id, entries });
            }
        }
        taken
    }

    /// Marks every service dirty, as a changed policy needs.
    pub fn mark_all_dirty(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let Shard { services, dirty, .. } = &mut *shard;
            for (data_info_id, service) in services {
                if !std::mem::replace(&mut service.dirty, true) {
                    dirty.push(Arc::clone(data_info_id));
                }
            }
        }
    }

    /// Forgets tombstones older than [`TOMBSTONE_MILLIS`] and marks their services dirty.
    pub fn expire(&self, now: Millis) {
        if self.tombstones.load(Ordering::Relaxed) == 0 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            let expired = shard.graves.partition_point(|grave| now - grave.set_at >= TOMBSTONE_MILLIS);
            for grave in shard.graves.drain(..expired).collect::<Vec<_>>() {
                let Grave { source, data_info_id, register_id, set_at: buried } = grave;
                let mutator = Mutator { shard: &mut shard, store: self, data_info_id: &data_info_id, changed: false };
                mutator.exhume(&source, &register_id, buried);
            }
        }
    }

    /// How many there are of what.
    pub fn counts(&self) -> Counts {
        Counts {
            services: self.services.load(Ordering::Relaxed),
            publishers: self.publishers.load(Ordering::Relaxed),
            tombstones: self.tombstones.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    fn source(&self, name: &str) -> Result<Arc<str>> {
        if let Some(known) = self.sources.read().iter().find(|known| ***known == *name) {
            return Ok(Arc::clone(known));
        }
        let mut sources = self.sources.write();
        match sources.iter().find(|known| ***known == *name) {
            Some(known) => Ok(Arc::clone(known)),
            None if sources.len() >= self.limits.sources => {
                Err(Error::Limit { field: "sources", limit: self.limits.sources })
            }
            None => {
                let name: Arc<str> = name.into();
                sources.push(Arc::clone(&name));
                Ok(name)
            }
        }
    }

    fn shard_of(&self, id: &str) -> usize {
        self.hasher.hash_one(id) as usize % SHARDS
    }

    /// Runs one change under the lock of its shard.
    fn change(&self, id: &str, create: bool, change: impl FnOnce(&mut Mutator<'_>) -> Result<()>) -> Result<()> {
        let mut shard = self.shards[self.shard_of(id)].lock();
        let data_info_id = match shard.services.get_key_value(id) {
            Some((known, _)) => Arc::clone(known),
            None if !create => return Ok(()),
            None => {
                if self.services.load(Ordering::Relaxed) >= self.limits.services {
                    return Err(Error::Limit { field: "services", limit: self.limits.services });
                }
                let known: Arc<str> = id.into();
                shard.services.insert(Arc::clone(&known), Service::default());
                self.services.fetch_add(1, Ordering::Relaxed);
                known
            }
        };
        let mut mutator = Mutator { shard: &mut shard, store: self, data_info_id: &data_info_id, changed: false };
        let outcome = change(&mut mutator);
        let changed = mutator.changed;
        drop(shard);
        if changed && !self.pending.swap(true, Ordering::SeqCst) {
            self.wake.notify_one();
        }
        outcome
    }
}

/// The only way to change a service; holding it proves that the shard is locked.
struct Mutator<'a> {
    shard: &'a mut Shard,
    store: &'a Store,
    data_info_id: &'a Arc<str>,
    changed: bool,
}

impl Mutator<'_> {
    fn service(&mut self) -> &mut Service {
        self.shard.services.get_mut(self.data_info_id).expect("the service was found or made before")
    }

    fn source(&mut self, name: &Arc<str>) -> &mut Source {
        let service = self.service();
        let index = match service.sources.iter().position(|(known, _)| Arc::ptr_eq(known, name)) {
            Some(index) => index,
            None => {
                service.sources.push((Arc::clone(name), Source::default()));
                service.sources.len() - 1
            }
        };
        &mut service.sources[index].1
    }

    fn mark_dirty(&mut self) {
        let service = self.service();
        if !std::mem::replace(&mut service.dirty, true) {
            self.shard.dirty.push(Arc::clone(self.data_info_id));
            self.changed = true;
        }
    }

    /// Puts a slot where there was another or none, keeps the counts and the dirty mark right.
    fn put(&mut self, source: &Arc<str>, register_id: &str, slot: Slot) -> Result<()> {
        let store = self.store;
        let becomes_live = slot.live();
        let slots = &mut self.source(source).slots;
        let was = match slots.get_mut(register_id) {
            Some(known) => Some(std::mem::replace(known, slot)),
            None => {
                let kept = store.publishers.load(Ordering::Relaxed) + store.tombstones.load(Ordering::Relaxed);
                if kept >= store.limits.publishers {
                    return Err(Error::Limit { field: "publishers", limit: store.limits.publishers });
                }
                slots.insert(register_id.into(), slot);
                None
            }
        };
        match &was {
            Some(was) if was.live() => store.publishers.fetch_sub(1, Ordering::Relaxed),
            Some(_) => store.tombstones.fetch_sub(1, Ordering::Relaxed),
            None => 0,
        };
        if becomes_live {
            store.publishers.fetch_add(1, Ordering::Relaxed);
        } else {
            store.tombstones.fetch_add(1, Ordering::Relaxed);
        }
        if becomes_live || was.is_some_and(|was| was.live()) {
            self.mark_dirty();
        }
        Ok(())
    }

    fn publish(&mut self, source: &Arc<str>, body: &Body<'_>, learned: Learned) -> Result<()> {
        let newer = match self.source(source).slots.get(body.register_id) {
            None => true,
            Some(Slot::Live { entry, .. }) => body.version > entry.version,
            Some(Slot::Tombstone { version, .. }) => body.version > *version,
        };
        if newer {
            self.put(source, body.register_id, Slot::Live { entry: Entry::new(body), learned })?;
        }
        Ok(())
    }

    fn unpublish(&mut self, source: &Arc<str>, id: &str, version: RegisterVersion, now: Millis) -> Result<()> {
        let newest = match self.source(source).slots.get(id) {
            None => true,
            Some(Slot::Live { entry, .. }) => version >= entry.version,
            Some(Slot::Tombstone { version: known, .. }) => version > *known,
        };
        if newest {
            self.put(source, id, Slot::Tombstone { version, set_at: now })?;
            let (source, data_info_id) = (Arc::clone(source), Arc::clone(self.data_info_id));
            self.shard.graves.push_back(Grave { set_at: now, source, data_info_id, register_id: id.into() });
        }
        Ok(())
    }

    fn replace(&mut self, source: &Arc<str>, version: i64, read_started: Millis, bodies: &[Body<'_>]) -> Result<()> {
        let read = &mut self.source(source).read;
        if read.is_some_and(|applied| version <= applied) {
            return Ok(());
        }
        *read = Some(version);
        for body in bodies {
            match self.source(source).slots.get_mut(body.register_id) {
                Some(Slot::Live { entry, learned }) if body.version <= entry.version => {
                    // Known already; from now on a read that does not name it removes it.
                    if body.version == entry.version {
                        *learned = Learned::Read;
                    }
                }
                Some(Slot::Tombstone { set_at, .. }) if read_started - *set_at >= READ_MARGIN_MILLIS => {
                    self.put(source, body.register_id, Slot::Live { entry: Entry::new(body), learned: Learned::Read })?;
                }
                _ => self.publish(source, body, Learned::Read)?,
            }
        }
        let named: std::collections::HashSet<&str> = bodies.iter().map(|body| body.register_id).collect();
        let slots = &mut self.source(source).slots;
        let before = slots.len();
        slots.retain(|register_id, slot| match slot {
            Slot::Live { learned: Learned::Event(at), .. } if read_started - *at <= READ_MARGIN_MILLIS => true,
            Slot::Live { .. } => named.contains(&**register_id),
            Slot::Tombstone { .. } => true,
        });
        let removed = before - slots.len();
        if removed > 0 {
            self.store.publishers.fetch_sub(removed, Ordering::Relaxed);
            self.mark_dirty();
        }
        Ok(())
    }

    /// Forgets a tombstone, unless the slot was used again since it was set.
    fn exhume(mut self, source: &Arc<str>, register_id: &str, buried: Millis) {
        if !self.shard.services.contains_key(self.data_info_id) {
            return;
        }
        if let hash_map::Entry::Occupied(slot) = self.source(source).slots.entry(register_id.into())
            && matches!(slot.get(), Slot::Tombstone { set_at, .. } if *set_at == buried)
        {
            slot.remove();
            self.store.tombstones.fetch_sub(1, Ordering::Relaxed);
            self.mark_dirty();
        }
    }
}

#[cfg(test)]
mod tests;
