//! What the registry said, sharded by dataInfoId; written on the callers' threads.
//!
//! An entry belongs to a source and is keyed by (source, dataInfoId, registerId). The newest
//! [`RegisterVersion`] wins; at a tie a removal wins. Removals leave tombstones, so that a late publish cannot bring a
//! publisher back. A changed service is put on its shard's dirty list once; only the first dirty service of all wakes
//! the publisher.

use std::{
    collections::BTreeSet,
    hash::BuildHasher,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use hashbrown::{
    DefaultHashBuilder, HashMap, HashTable,
    hash_map::EntryRef,
    hash_table::{Entry as TableEntry, OccupiedEntry},
};
use parking_lot::Mutex;

use crate::{
    error::{Error, Result},
    model::{Millis, RegisterVersion},
    registry::{
        frame::{Body, Event, Text},
        pieces::Pieces,
        publication::Publication,
        wake::Wake,
    },
};

/// The source of the session server's own publishers.
pub const REGISTRY: &str = "registry";

const SHARDS: usize = 64;

/// How many dirty services are taken from a shard at once, so that its callers wait for no more.
const STEP: usize = 64;

/// What is answered for a piece that is not the last of its read, in place of a sequence number. Those begin with
/// [`SHARDS`].
const UNFINISHED: u64 = 1;

/// How long a removal is remembered; the registry's data servers use the same span (`datumCompactDelaySecs`).
pub const TOMBSTONE_MILLIS: Millis = 180_000;

/// How far a read may lag behind an event: a read that started at least this much after a tombstone was set overrides
/// it, and one removes only what an event brought more than this before it started.
pub const READ_MARGIN_MILLIS: Millis = 15_000;

/// How an entry became known, which decides what a later read may say about it.
#[derive(Debug, Clone, Copy)]
enum Learned {
    Event(Millis),
    /// Its client has left this session server at that time.
    Lost(Millis),
    Read,
}

#[derive(Debug)]
enum Slot {
    Live { entry: Arc<Publication>, learned: Learned },
    Tombstone { version: RegisterVersion, set_at: Millis },
}

impl Slot {
    /// When it was removed; `None` if it lives.
    fn set_at(&self) -> Option<Millis> {
        match self {
            Self::Live { .. } => None,
            Self::Tombstone { set_at, .. } => Some(*set_at),
        }
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
    slots: HashMap<Box<[u8]>, Slot>,
    /// The datum version of the last applied read, and when it was applied.
    read: Option<(i64, Millis)>,
    /// When the last event came, if no read has borne out every event yet.
    event: Option<Millis>,
}

/// Index of a source's name.
type SourceId = u16;

/// That of [`REGISTRY`], which is the first.
const REGISTRY_ID: SourceId = 0;

/// The table takes the hash's ends, the shard its middle.
fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

#[derive(Debug)]
struct Service {
    data_info_id: Arc<str>,
    /// Nearly always one; a linear scan beats a map.
    sources: Vec<(SourceId, Source)>,
    dirty: bool,
    /// The registry has it and it could not be read yet.
    unknown: bool,
}

impl Service {
    fn new(data_info_id: &str) -> Self {
        Self { data_info_id: data_info_id.into(), sources: Vec::new(), dirty: false, unknown: false }
    }

    /// Whether nothing has to be remembered of it.
    fn forgettable(&self) -> bool {
        let empty = |source: &Source| source.slots.is_empty() && source.read.is_none();
        !self.unknown && self.sources.iter().all(|(_, source)| empty(source))
    }

    /// What was read of the registry's own.
    fn registry(&self) -> Option<&Source> {
        self.sources.iter().find(|(id, _)| *id == REGISTRY_ID).map(|(_, source)| source)
    }

    fn live(&self) -> Vec<Arc<Publication>> {
        let live = |slot: &Slot| match slot {
            Slot::Live { entry, .. } => Some(Arc::clone(entry)),
            Slot::Tombstone { .. } => None,
        };
        self.sources.iter().flat_map(|(_, source)| source.slots.values()).filter_map(live).collect()
    }
}

/// What is to be forgotten, and since when it is remembered. There is exactly one for each tombstone and for the last
/// read of each source that has nothing else, so that there are never more than keys, however often those come and go.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Grave {
    set_at: Millis,
    data_info_id: Arc<str>,
    source: SourceId,
    /// `None`: the last read of a source that it left empty, so that an older one does not fill it again.
    register_id: Option<Box<[u8]>>,
}

#[derive(Debug, Default)]
struct Shard {
    services: HashTable<Service>,
    dirty: Vec<Arc<str>>,
    /// Oldest first, so that expiry costs what expires.
    graves: BTreeSet<Grave>,
    /// How many events were applied.
    applied: u64,
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
    pub entries: Vec<Arc<Publication>>,
    /// Whether it has others that could not be read yet.
    pub unknown: bool,
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
    /// Names in the order they came; filled from the front, never emptied, so that they are read without a lock.
    sources: Box<[OnceLock<Box<[u8]>>]>,
    services: AtomicUsize,
    publishers: AtomicUsize,
    tombstones: AtomicUsize,
    dropped: AtomicU64,
    pieces: Pieces,
    pending: AtomicBool,
    wake: Wake,
}

impl Store {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: DefaultHashBuilder::default(),
            limits,
            sources: std::iter::once(OnceLock::from(Box::<[u8]>::from(REGISTRY.as_bytes())))
                .chain((1..limits.sources).map(|_| OnceLock::new()))
                .collect(),
            services: AtomicUsize::new(0),
            publishers: AtomicUsize::new(0),
            tombstones: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            pieces: Pieces::default(),
            pending: AtomicBool::new(false),
            wake: Wake::default(),
        }
    }

    /// Applies one event and returns its sequence number: unique, and rising within a service; 1 for a piece that is not the
    /// last of its read. An event that is older than what is known changes nothing and is no error.
    pub fn apply(&self, event: &Event<'_>, now: Millis) -> Result<u64> {
        let applied = match event {
            Event::Publish { source, data_info_id, body } => {
                self.change(*source, *data_info_id, |m| m.publish(body, now))
            }
            Event::Unpublish { source, data_info_id, register_id, version } => {
                self.change(*source, *data_info_id, |m| m.unpublish(*register_id, *version, now))
            }
            Event::Lost { source, data_info_id, register_id, version } => {
                self.change(*source, *data_info_id, |m| m.lost(*register_id, *version, now))
            }
            Event::Replace { source, data_info_id, version, read_started, bodies } => {
                let entries: Vec<_> = bodies.iter().map(Publication::new).collect();
                self.replace((*source, *data_info_id), (*version, *read_started), &entries, now)
            }
            Event::Piece { part, read, source, data_info_id, version, read_started, bodies } => {
                let key = (source.as_bytes().into(), data_info_id.as_bytes().into());
                let entries = bodies.iter().map(Publication::new).collect();
                self.pieces.add(key, *part, *read, entries, now).and_then(|whole| match whole {
                    Some(entries) => self.replace((*source, *data_info_id), (*version, *read_started), &entries, now),
                    None => Ok(UNFINISHED),
                })
            }
        };
        if applied.is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        applied
    }

    /// Applies a whole read, whose entries were made before, so that its shard is held for as short as can be.
    fn replace(
        &self,
        (source, id): (Text<'_>, Text<'_>),
        (version, read_started): (i64, Millis),
        entries: &[Arc<Publication>],
        now: Millis,
    ) -> Result<u64> {
        let mut named: HashMap<&[u8], &Arc<Publication>> = HashMap::with_capacity(entries.len());
        for entry in entries {
            // A read names each publisher once; where two registerIds look alike as UTF-8 the newest one counts everywhere.
            let named = named.entry(entry.register_id()).or_insert(entry);
            if (named.version, &named.body) < (entry.version, &entry.body) {
                *named = entry;
            }
        }
        let counts = |entry: &&Arc<Publication>| Arc::ptr_eq(named[entry.register_id()], entry);
        let entries = entries.iter().filter(counts).collect();
        let mut read = Read { version, started: read_started, entries, named, gone: Vec::new() };
        let applied = self.change(source, id, |m| m.replace(&mut read, now));
        // What went is freed here, where nobody waits for it.
        drop(read);
        applied
    }

    /// What is woken when a service is dirty.
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// The live publishers of one service, in no order.
    pub fn read(&self, id: &str) -> Vec<Arc<Publication>> {
        let hash = self.hash(id.as_bytes());
        let shard = self.shards[shard_of(hash)].lock();
        let service = shard.services.find(hash, |service| *service.data_info_id == *id);
        service.map(Service::live).unwrap_or_default()
    }

    /// The registry's services with an event that no read has borne out in [`READ_MARGIN_MILLIS`], at most so many: the
    /// registry may have refused what a session server took, and gives no notice of what it refuses.
    pub fn unconfirmed(&self, now: Millis, limit: usize) -> Vec<Arc<str>> {
        let mut ids = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
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
    /// from it. `mox.limits.services` does not hold here, since the registry named them and none is to be lost.
    pub fn set_unknown(&self, ids: &[impl AsRef<str>]) {
        for id in ids.iter().map(AsRef::as_ref) {
            let hash = self.hash(id.as_bytes());
            let mut shard = self.shards[shard_of(hash)].lock();
            let Shard { services, dirty, .. } = &mut *shard;
            let same = |service: &Service| *service.data_info_id == *id;
            let service = services.entry(hash, same, |service| self.hash(service.data_info_id.as_bytes()));
            let service = service.or_insert_with(|| {
                self.services.fetch_add(1, Ordering::Relaxed);
                Service::new(id)
            });
            let service = service.into_mut();
            // A read of it may have been applied while this call was on its way.
            service.unknown = service.registry().is_none_or(|registry| registry.read.is_none());
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

    /// Takes every dirty service. Changes that come meanwhile are taken next time.
    pub fn take_dirty(&self) -> Vec<Taken> {
        self.pending.store(false, Ordering::SeqCst);
        let mut taken = Vec::new();
        for shard in &self.shards {
            let mut left = shard.lock().dirty.len();
            while left > 0 {
                let mut shard = shard.lock();
                let step = left.min(STEP);
                left -= step;
                // Those that came first; others come behind them meanwhile.
                for data_info_id in shard.dirty.drain(..step).collect::<Vec<_>>() {
                    let Some(mut service) = self.find(&mut shard.services, &data_info_id) else { continue };
                    service.get_mut().dirty = false;
                    let (entries, unknown) = (service.get().live(), service.get().unknown);
                    if service.get().forgettable() {
                        service.remove();
                        self.services.fetch_sub(1, Ordering::Relaxed);
                    }
                    taken.push(Taken { data_info_id, entries, unknown });
                }
            }
        }
        taken
    }

    /// Every service, in no order.
    pub fn ids(&self) -> Vec<Arc<str>> {
        let ids = |shard: &Mutex<Shard>| -> Vec<Arc<str>> {
            shard.lock().services.iter().map(|service| Arc::clone(&service.data_info_id)).collect()
        };
        self.shards.iter().flat_map(ids).collect()
    }

    /// Marks services dirty that are to be looked at though nothing changed in them, as a changed policy needs it; those that
    /// are not there are left out.
    pub fn mark_dirty<'i>(&self, ids: impl IntoIterator<Item = &'i Arc<str>>) {
        for id in ids {
            let hash = self.hash(id.as_bytes());
            let mut shard = self.shards[shard_of(hash)].lock();
            let Shard { services, dirty, .. } = &mut *shard;
            if let Some(service) = services.find_mut(hash, |service| service.data_info_id == *id)
                && !std::mem::replace(&mut service.dirty, true)
            {
                dirty.push(Arc::clone(&service.data_info_id));
            }
        }
    }

    /// Forgets tombstones older than [`TOMBSTONE_MILLIS`] and marks their services dirty; forgets reads that were given up.
    pub fn expire(&self, now: Millis) {
        self.pieces.expire(now);
        if self.tombstones.load(Ordering::Relaxed) == 0 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            let Shard { services, dirty, graves, .. } = &mut *shard;
            let expired = |grave: &Grave| now.saturating_sub(grave.set_at) >= TOMBSTONE_MILLIS;
            while graves.first().is_some_and(expired)
                && let Some(grave) = graves.pop_first()
            {
                self.tombstones.fetch_sub(1, Ordering::Relaxed);
                if let Some(service) = self.find(services, &grave.data_info_id) {
                    let left = exhume(service.into_mut(), grave, dirty);
                    self.tombstones.fetch_add(left.iter().len(), Ordering::Relaxed);
                    graves.extend(left);
                }
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

    fn source(&self, name: Text<'_>) -> Result<SourceId> {
        for (index, place) in self.sources.iter().enumerate() {
            if **place.get_or_init(|| name.as_bytes().into()) == *name.as_bytes() {
                return Ok(index as SourceId);
            }
        }
        Err(Error::Limit { field: "sources", limit: self.limits.sources })
    }

    fn hash(&self, data_info_id: &[u8]) -> u64 {
        self.hasher.hash_one(data_info_id)
    }

    fn find<'a>(&self, services: &'a mut HashTable<Service>, id: &str) -> Option<OccupiedEntry<'a, Service>> {
        services.find_entry(self.hash(id.as_bytes()), |service| *service.data_info_id == *id).ok()
    }

    /// Runs one change under the lock of its shard.
    fn change(
        &self,
        source: Text<'_>,
        id: Text<'_>,
        change: impl FnOnce(&mut Mutator<'_>) -> Result<()>,
    ) -> Result<u64> {
        let source_id = self.source(source)?;
        let hash = self.hash(id.as_bytes());
        let index = shard_of(hash);
        let mut shard = self.shards[index].lock();
        let Shard { services, dirty, graves, applied } = &mut *shard;
        let found = services.entry(
            hash,
            |service| service.data_info_id.as_bytes() == id.as_bytes(),
            |service| self.hash(service.data_info_id.as_bytes()),
        );
        let service = match found {
            TableEntry::Occupied(found) => found.into_mut(),
            TableEntry::Vacant(_) if self.services.load(Ordering::Relaxed) >= self.limits.services => {
                return Err(Error::Limit { field: "services", limit: self.limits.services });
            }
            TableEntry::Vacant(place) => {
                self.services.fetch_add(1, Ordering::Relaxed);
                place.insert(Service::new(id.as_str())).into_mut()
            }
        };
        let Service { data_info_id, sources, dirty: service_dirty, unknown } = service;
        let at = sources.iter().position(|(known, _)| *known == source_id).unwrap_or_else(|| {
            sources.push((source_id, Source::default()));
            sources.len() - 1
        });
        let source = &mut sources[at].1;
        let mut mutator = Mutator { store: self, source_id, data_info_id, source, graves, changed: false };
        let outcome = change(&mut mutator);
        // A first event that is refused, or says nothing as a loss does, leaves an empty service, which goes when it is taken.
        let empty = mutator.source.slots.is_empty() && mutator.source.read.is_none();
        let known = *unknown && source_id == REGISTRY_ID && mutator.source.read.is_some();
        *unknown &= !known;
        let looked_at = mutator.changed || empty || known || outcome.is_err();
        let newly_dirty = looked_at && !std::mem::replace(service_dirty, true);
        if newly_dirty {
            dirty.push(Arc::clone(data_info_id));
        }
        // Counted by shard: one count of all would be a cache line that every caller writes.
        *applied += 1;
        let sequence = *applied * SHARDS as u64 + index as u64;
        drop(shard);
        if newly_dirty {
            self.wake_publisher();
        }
        outcome.map(|()| sequence)
    }
}

/// A read of one service.
struct Read<'a> {
    version: i64,
    started: Millis,
    /// Its entries in their order, and by registerId.
    entries: Vec<&'a Arc<Publication>>,
    named: HashMap<&'a [u8], &'a Arc<Publication>>,
    /// What it removed.
    gone: Vec<(Box<[u8]>, Slot)>,
}

/// The only way to change a service's entries in one source; holding it proves that the shard is locked.
struct Mutator<'a> {
    store: &'a Store,
    source_id: SourceId,
    data_info_id: &'a Arc<str>,
    source: &'a mut Source,
    graves: &'a mut BTreeSet<Grave>,
    /// Whether the live publishers are others than before.
    changed: bool,
}

/// Forgets a tombstone or a read. Where a source's last tombstone goes, its read is left to be forgotten.
fn exhume(service: &mut Service, grave: Grave, dirty: &mut Vec<Arc<str>>) -> Option<Grave> {
    let (_, source) = service.sources.iter_mut().find(|(id, _)| *id == grave.source)?;
    let left = match &grave.register_id {
        Some(id) => {
            source.slots.remove(id);
            let read = source.read.filter(|_| source.slots.is_empty());
            read.map(|(_, at)| Grave { set_at: at, register_id: None, ..grave })
        }
        None => {
            source.read = None;
            None
        }
    };
    if !std::mem::replace(&mut service.dirty, true) {
        dirty.push(Arc::clone(&service.data_info_id));
    }
    left
}

impl Mutator<'_> {
    fn grave(&self, set_at: Millis, register_id: Option<&[u8]>) -> Grave {
        let register_id = register_id.map(Into::into);
        Grave { set_at, data_info_id: Arc::clone(self.data_info_id), source: self.source_id, register_id }
    }

    fn bury(&mut self, set_at: Millis, register_id: Option<&[u8]>) {
        if self.graves.insert(self.grave(set_at, register_id)) {
            self.store.tombstones.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn unbury(&mut self, set_at: Millis, register_id: Option<&[u8]>) {
        if self.graves.remove(&self.grave(set_at, register_id)) {
            self.store.tombstones.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The last read of a source that has nothing else is buried like a tombstone.
    fn bury_read(&mut self) {
        if let Some((_, at)) = self.source.read.filter(|_| self.source.slots.is_empty()) {
            self.bury(at, None);
        }
    }

    /// Does to a publisher's slot what `step` decides, and keeps counts and graves right; whether it did anything.
    fn put(&mut self, register_id: &[u8], step: impl FnOnce(Option<&mut Slot>) -> Step) -> Result<bool> {
        let Store { publishers, tombstones, limits, .. } = self.store;
        // The first entry of a source takes the place of its buried read.
        let buried_read = self.source.read.filter(|_| self.source.slots.is_empty());
        let (before, after) = match self.source.slots.entry_ref(register_id) {
            EntryRef::Occupied(mut place) => match step(Some(place.get_mut())) {
                Step::Leave => return Ok(false),
                Step::Renewed => {
                    self.changed = true;
                    return Ok(true);
                }
                Step::Put(slot) => {
                    let after = slot.set_at();
                    (Some(place.insert(slot).set_at()), after)
                }
            },
            EntryRef::Vacant(place) => {
                let Step::Put(slot) = step(None) else { return Ok(false) };
                let others = publishers.load(Ordering::Relaxed) + tombstones.load(Ordering::Relaxed);
                if others >= limits.publishers + usize::from(buried_read.is_some()) {
                    return Err(Error::Limit { field: "publishers", limit: limits.publishers });
                }
                (None, place.insert_with_key(register_id.into(), slot).set_at())
            }
        };
        let (was_live, is_live) = (before == Some(None), after.is_none());
        match (was_live, is_live) {
            (false, true) => publishers.fetch_add(1, Ordering::Relaxed),
            (true, false) => publishers.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        self.changed |= was_live || is_live;
        if let Some(set_at) = before.flatten() {
            self.unbury(set_at, Some(register_id));
        }
        if let Some(set_at) = after {
            self.bury(set_at, Some(register_id));
        }
        if let Some((_, at)) = buried_read {
            self.unbury(at, None);
        }
        Ok(true)
    }

    fn publish(&mut self, body: &Body<'_>, now: Millis) -> Result<()> {
        let learned = Learned::Event(now);
        let set = self.put(body.register_id.as_bytes(), |slot| match slot {
            Some(Slot::Live { entry, .. }) if body.version <= entry.version => Step::Leave,
            Some(Slot::Tombstone { version, .. }) if body.version <= *version => Step::Leave,
            Some(Slot::Live { entry, learned: how }) => {
                *how = learned;
                if !Publication::renew(entry, body) {
                    *entry = Publication::new(body);
                }
                Step::Renewed
            }
            _ => Step::Put(Slot::Live { entry: Publication::new(body), learned }),
        })?;
        if set {
            self.source.event = Some(now);
        }
        Ok(())
    }

    fn unpublish(&mut self, register_id: Text<'_>, version: RegisterVersion, now: Millis) -> Result<()> {
        let set = self.put(register_id.as_bytes(), |slot| match slot {
            Some(Slot::Live { entry, .. }) if version < entry.version => Step::Leave,
            Some(Slot::Tombstone { version: known, .. }) if version <= *known => Step::Leave,
            _ => Step::Put(Slot::Tombstone { version, set_at: now }),
        })?;
        if set {
            self.source.event = Some(now);
        }
        Ok(())
    }

    /// A read that began before says nothing of the publisher, any later one says everything.
    fn lost(&mut self, register_id: Text<'_>, version: RegisterVersion, now: Millis) -> Result<()> {
        if let Some(Slot::Live { entry, learned }) = self.source.slots.get_mut(register_id.as_bytes())
            && entry.version <= version
        {
            *learned = Learned::Lost(now);
            self.source.event = Some(now);
        }
        Ok(())
    }

    fn replace(&mut self, read: &mut Read<'_>, now: Millis) -> Result<()> {
        let Read { version, started, entries, named, gone } = read;
        // Versions come from the clock of the slot's leader, so those of the next leader may be lower; and the same version
        // may name a later state of a publisher, or no longer one that an event brought. So a read that is not newer by
        // its version still is if it began when the last one had been applied.
        if self.source.read.is_some_and(|(applied, at)| *version <= applied && *started < at) {
            return Ok(());
        }
        // Removals first, so that they make room for what comes.
        let lag = |at: Millis| started.saturating_sub(at);
        gone.extend(self.source.slots.extract_if(|register_id, slot| match slot {
            Slot::Live { learned: Learned::Event(at), .. } if lag(*at) <= READ_MARGIN_MILLIS => false,
            Slot::Live { learned: Learned::Lost(at), .. } if *started < *at => false,
            Slot::Live { .. } => !named.contains_key(&**register_id),
            Slot::Tombstone { .. } => false,
        }));
        self.store.publishers.fetch_sub(gone.len(), Ordering::Relaxed);
        self.changed |= !gone.is_empty();
        self.bury_read();
        let mut refused = None;
        for new in entries {
            let applied = self.put(new.register_id(), |slot| {
                let take = match slot {
                    None => true,
                    Some(Slot::Live { entry, learned }) => {
                        // Known already; from now on a read that does not name it removes it.
                        if new.version == entry.version {
                            *learned = Learned::Read;
                        }
                        // A read that was taken in is newer than the last one, and than an event whose time is over.
                        let heard = matches!(learned, Learned::Event(at) if lag(*at) <= READ_MARGIN_MILLIS);
                        new.version > entry.version || (new.version < entry.version && !heard)
                    }
                    Some(Slot::Tombstone { version, set_at }) => {
                        new.version > *version || lag(*set_at) >= READ_MARGIN_MILLIS
                    }
                };
                match take {
                    true => Step::Put(Slot::Live { entry: Arc::clone(new), learned: Learned::Read }),
                    false => Step::Leave,
                }
            });
            refused = refused.or(applied.err());
        }
        if let Some(error) = refused {
            // Not counted as read: the same read may be applied again when there is room.
            return Err(error);
        }
        let open = self.source.slots.iter().any(|(id, slot)| match slot {
            Slot::Live { learned, .. } => !matches!(learned, Learned::Read),
            Slot::Tombstone { .. } => named.contains_key(&**id),
        });
        if !open {
            self.source.event = None;
        }
        if let Some((_, at)) = self.source.read.replace((*version, now)) {
            self.unbury(at, None);
        }
        self.bury_read();
        Ok(())
    }
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
