//! What the registry said, sharded by dataInfoId; written on the callers' threads.
//!
//! An entry belongs to a source and is keyed by (source, dataInfoId, registerId). The newest
//! [`RegisterVersion`] wins; at a tie a removal wins. Removals leave tombstones, so that a late publish cannot bring a
//! publisher back. A changed service is put on its shard's dirty list once; only the first dirty service of all wakes
//! the publisher.

use std::{
    collections::{HashSet, VecDeque},
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use hashbrown::{
    DefaultHashBuilder, HashMap, HashTable,
    hash_map::EntryRef,
    hash_table::{Entry as TableEntry, OccupiedEntry},
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::{
    error::{Error, Result},
    frame::{Body, Event},
    model::{Millis, RegisterVersion},
    translate::ParsedCell,
};

/// The source of the session server's own publishers.
pub const REGISTRY: &str = "registry";

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

    /// Takes a newer state in the place of this one, where nobody else looks at it.
    fn renew(this: &mut Arc<Self>, body: &Body<'_>) -> bool {
        let Some(entry) = Arc::get_mut(this) else { return false };
        entry.version = body.version;
        entry.parsed = ParsedCell::default();
        if entry.body.len() == body.raw().len() {
            entry.body.copy_from_slice(body.raw());
        } else {
            entry.body = body.raw().into();
        }
        true
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

/// What an event does to a publisher.
enum Step {
    /// Nothing; it is older than what is known.
    Leave,
    /// Another slot takes the place of the present one.
    Put(Slot),
    /// The live entry took the new state in.
    Renewed,
}

/// The entries of one service in one source.
#[derive(Debug, Default)]
struct Source {
    slots: HashMap<Box<str>, Slot>,
    /// The datum version of the last applied read, and when it was applied.
    read: Option<(i64, Millis)>,
}

/// Index of a source's name.
type SourceId = u16;

#[derive(Debug)]
struct Service {
    data_info_id: Arc<str>,
    /// Nearly always one; a linear scan beats a map.
    sources: Vec<(SourceId, Source)>,
    dirty: bool,
}

impl Service {
    /// Whether nothing has to be remembered of it.
    fn forgettable(&self) -> bool {
        self.sources.iter().all(|(_, source)| source.slots.is_empty() && source.read.is_none())
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        let live = |slot: &Slot| match slot {
            Slot::Live { entry, .. } => Some(Arc::clone(entry)),
            Slot::Tombstone { .. } => None,
        };
        self.sources.iter().flat_map(|(_, source)| source.slots.values()).filter_map(live).collect()
    }
}

#[derive(Debug)]
struct Grave {
    set_at: Millis,
    source: SourceId,
    data_info_id: Arc<str>,
    /// `None`: the last read of a source that it left empty, so that an older one does not fill it again.
    register_id: Option<Box<str>>,
}

#[derive(Debug, Default)]
struct Shard {
    services: HashTable<Service>,
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
    hasher: DefaultHashBuilder,
    limits: Limits,
    sources: RwLock<Vec<Box<str>>>,
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
            hasher: DefaultHashBuilder::default(),
            limits,
            sources: RwLock::new(vec![REGISTRY.into()]),
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
        let applied = match event {
            Event::Publish { source, data_info_id, body } => {
                self.change(source, data_info_id, |m| m.publish(body, now))
            }
            Event::Unpublish { source, data_info_id, register_id, version } => {
                self.change(source, data_info_id, |m| m.unpublish(register_id, *version, now))
            }
            Event::Replace { source, data_info_id, version, read_started, bodies } => {
                self.change(source, data_info_id, |m| m.replace(*version, *read_started, bodies, now))
            }
        };
        if applied.is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        applied.map(|()| self.sequence.fetch_add(1, Ordering::Relaxed) + 1)
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
        let hash = self.hasher.hash_one(id);
        let shard = self.shard(hash).lock();
        let service = shard.services.find(hash, |service| *service.data_info_id == *id);
        service.map(Service::live).unwrap_or_default()
    }

    /// Takes every dirty service. Changes that come meanwhile are taken next time.
    pub fn take_dirty(&self) -> Vec<Taken> {
        self.pending.store(false, Ordering::SeqCst);
        let mut taken = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for data_info_id in std::mem::take(&mut shard.dirty) {
                let Some(mut service) = self.find(&mut shard.services, &data_info_id) else { continue };
                service.get_mut().dirty = false;
                let entries = service.get().live();
                if service.get().forgettable() {
                    service.remove();
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
            for service in services.iter_mut() {
                if !std::mem::replace(&mut service.dirty, true) {
                    dirty.push(Arc::clone(&service.data_info_id));
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
            let Shard { services, dirty, graves } = &mut *shard;
            let expired = |grave: &Grave| now.saturating_sub(grave.set_at) >= TOMBSTONE_MILLIS;
            while graves.front().is_some_and(expired)
                && let Some(grave) = graves.pop_front()
            {
                if let Some(service) = self.find(services, &grave.data_info_id) {
                    graves.extend(self.exhume(service.into_mut(), grave, dirty));
                }
            }
        }
    }

    /// Forgets a tombstone or a read, unless there was another since it was set. Where a source's last tombstone goes, its
    /// read is left to be forgotten.
    fn exhume(&self, service: &mut Service, grave: Grave, dirty: &mut Vec<Arc<str>>) -> Option<Grave> {
        let (_, source) = service.sources.iter_mut().find(|(id, _)| *id == grave.source)?;
        let left = match &grave.register_id {
            Some(id) => match source.slots.get(id) {
                Some(Slot::Tombstone { set_at, .. }) if *set_at == grave.set_at => {
                    source.slots.remove(id);
                    let read = source.read.filter(|_| source.slots.is_empty());
                    read.map(|(_, at)| Grave { set_at: at, register_id: None, ..grave })
                }
                _ => return None,
            },
            None => {
                if source.slots.is_empty() && source.read.is_some_and(|(_, at)| at == grave.set_at) {
                    source.read = None;
                }
                None
            }
        };
        if left.is_none() {
            self.tombstones.fetch_sub(1, Ordering::Relaxed);
        }
        if !std::mem::replace(&mut service.dirty, true) {
            dirty.push(Arc::clone(&service.data_info_id));
        }
        left
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

    fn source(&self, name: &str) -> Result<SourceId> {
        let find = |sources: &[Box<str>]| sources.iter().position(|known| **known == *name);
        if name == REGISTRY {
            return Ok(0);
        }
        if let Some(known) = find(&self.sources.read()) {
            return Ok(known as SourceId);
        }
        let mut sources = self.sources.write();
        let index = match find(&sources) {
            Some(known) => known,
            None if sources.len() >= self.limits.sources => {
                return Err(Error::Limit { field: "sources", limit: self.limits.sources });
            }
            None => {
                sources.push(name.into());
                sources.len() - 1
            }
        };
        Ok(index as SourceId)
    }

    /// The table takes the hash's ends, the shard its middle.
    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    fn find<'a>(&self, services: &'a mut HashTable<Service>, id: &str) -> Option<OccupiedEntry<'a, Service>> {
        services.find_entry(self.hasher.hash_one(id), |service| *service.data_info_id == *id).ok()
    }

    /// Runs one change under the lock of its shard.
    fn change(&self, source: &str, id: &str, change: impl FnOnce(&mut Mutator<'_>) -> Result<()>) -> Result<()> {
        let source_id = self.source(source)?;
        let hash = self.hasher.hash_one(id);
        let mut shard = self.shard(hash).lock();
        let Shard { services, dirty, graves } = &mut *shard;
        let found = services.entry(
            hash,
            |service| *service.data_info_id == *id,
            |service| self.hasher.hash_one(&*service.data_info_id),
        );
        let service = match found {
            TableEntry::Occupied(found) => found.into_mut(),
            TableEntry::Vacant(_) if self.services.load(Ordering::Relaxed) >= self.limits.services => {
                return Err(Error::Limit { field: "services", limit: self.limits.services });
            }
            TableEntry::Vacant(place) => {
                self.services.fetch_add(1, Ordering::Relaxed);
                place.insert(Service { data_info_id: id.into(), sources: Vec::new(), dirty: false }).into_mut()
            }
        };
        let Service { data_info_id, sources, dirty: service_dirty } = service;
        let index = sources.iter().position(|(known, _)| *known == source_id).unwrap_or_else(|| {
            sources.push((source_id, Source::default()));
            sources.len() - 1
        });
        let source = &mut sources[index].1;
        let mut mutator = Mutator { store: self, source_id, data_info_id, source, graves, changed: false };
        let outcome = change(&mut mutator);
        // A refused first event leaves an empty service, which goes when it is taken.
        let newly_dirty = (mutator.changed || outcome.is_err()) && !std::mem::replace(service_dirty, true);
        if newly_dirty {
            dirty.push(Arc::clone(data_info_id));
        }
        drop(shard);
        if newly_dirty && !self.pending.swap(true, Ordering::SeqCst) {
            self.wake.notify_one();
        }
        outcome
    }
}

/// The only way to change a service's entries in one source; holding it proves that the shard is locked.
struct Mutator<'a> {
    store: &'a Store,
    source_id: SourceId,
    data_info_id: &'a Arc<str>,
    source: &'a mut Source,
    graves: &'a mut VecDeque<Grave>,
    /// Whether the live publishers are others than before.
    changed: bool,
}

impl Mutator<'_> {
    /// Does to a publisher's slot what `step` decides, and keeps the counts right; whether it did anything.
    fn put(&mut self, register_id: &str, step: impl FnOnce(Option<&mut Slot>) -> Step) -> Result<bool> {
        let Store { publishers, tombstones, limits, .. } = self.store;
        let count = |live: bool| if live { publishers } else { tombstones };
        let (was_live, is_live) = match self.source.slots.entry_ref(register_id) {
            EntryRef::Occupied(mut place) => match step(Some(place.get_mut())) {
                Step::Leave => return Ok(false),
                Step::Renewed => {
                    self.changed = true;
                    return Ok(true);
                }
                Step::Put(slot) => {
                    let is_live = slot.live();
                    let was_live = place.insert(slot).live();
                    count(was_live).fetch_sub(1, Ordering::Relaxed);
                    (was_live, is_live)
                }
            },
            EntryRef::Vacant(place) => {
                let Step::Put(slot) = step(None) else { return Ok(false) };
                if publishers.load(Ordering::Relaxed) + tombstones.load(Ordering::Relaxed) >= limits.publishers {
                    return Err(Error::Limit { field: "publishers", limit: limits.publishers });
                }
                (false, place.insert_with_key(register_id.into(), slot).live())
            }
        };
        count(is_live).fetch_add(1, Ordering::Relaxed);
        self.changed |= was_live || is_live;
        Ok(true)
    }

    fn publish(&mut self, body: &Body<'_>, now: Millis) -> Result<()> {
        let learned = Learned::Event(now);
        self.put(body.register_id, |slot| match slot {
            Some(Slot::Live { entry, .. }) if body.version <= entry.version => Step::Leave,
            Some(Slot::Tombstone { version, .. }) if body.version <= *version => Step::Leave,
            Some(Slot::Live { entry, learned: how }) => {
                *how = learned;
                if !Entry::renew(entry, body) {
                    *entry = Entry::new(body);
                }
                Step::Renewed
            }
            _ => Step::Put(Slot::Live { entry: Entry::new(body), learned }),
        })?;
        Ok(())
    }

    fn unpublish(&mut self, register_id: &str, version: RegisterVersion, now: Millis) -> Result<()> {
        let set = self.put(register_id, |slot| match slot {
            Some(Slot::Live { entry, .. }) if version < entry.version => Step::Leave,
            Some(Slot::Tombstone { version: known, .. }) if version <= *known => Step::Leave,
            _ => Step::Put(Slot::Tombstone { version, set_at: now }),
        })?;
        if set {
            let (source, data_info_id) = (self.source_id, Arc::clone(self.data_info_id));
            self.graves.push_back(Grave { set_at: now, source, data_info_id, register_id: Some(register_id.into()) });
        }
        Ok(())
    }

    fn replace(&mut self, version: i64, read_started: Millis, bodies: &[Body<'_>], now: Millis) -> Result<()> {
        if self.source.read.is_some_and(|(applied, _)| version <= applied) {
            return Ok(());
        }
        // Removals first, so that they make room for what comes.
        let named: HashSet<&str> = bodies.iter().map(|body| body.register_id).collect();
        let slots = &mut self.source.slots;
        let before = slots.len();
        let lag = |at: Millis| read_started.saturating_sub(at);
        slots.retain(|register_id, slot| match slot {
            Slot::Live { learned: Learned::Event(at), .. } if lag(*at) <= READ_MARGIN_MILLIS => true,
            Slot::Live { .. } => named.contains(&**register_id),
            Slot::Tombstone { .. } => true,
        });
        let removed = before - slots.len();
        self.store.publishers.fetch_sub(removed, Ordering::Relaxed);
        self.changed |= removed > 0;
        let mut refused = None;
        for body in bodies {
            let applied = self.put(body.register_id, |slot| {
                let take = match slot {
                    None => true,
                    Some(Slot::Live { entry, learned }) => {
                        // Known already; from now on a read that does not name it removes it.
                        if body.version == entry.version {
                            *learned = Learned::Read;
                        }
                        body.version > entry.version
                    }
                    Some(Slot::Tombstone { version, set_at }) => {
                        body.version > *version || lag(*set_at) >= READ_MARGIN_MILLIS
                    }
                };
                match take {
                    true => Step::Put(Slot::Live { entry: Entry::new(body), learned: Learned::Read }),
                    false => Step::Leave,
                }
            });
            refused = refused.or(applied.err());
        }
        if let Some(error) = refused {
            // Not counted as read: the same read may be applied again when there is room.
            return Err(error);
        }
        self.source.read = Some((version, now));
        if self.source.slots.is_empty() {
            let (source, data_info_id) = (self.source_id, Arc::clone(self.data_info_id));
            self.graves.push_back(Grave { set_at: now, source, data_info_id, register_id: None });
            self.store.tombstones.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
