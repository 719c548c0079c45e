//! The only way to change a service's entries.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use crate::{
    error::{Error, Result},
    model::{Millis, RegisterVersion},
    registry::{
        frame::{Body, Text},
        publication::{Publication, Size},
        store::{
            budget::Budget,
            service::{Grave, Learned, READ_MARGIN_MILLIS, Slot, Source, SourceId},
        },
    },
};

/// Changes a service's entries in one source; holding it proves that the shard is locked.
pub(super) struct Mutator<'a> {
    pub(super) budget: &'a Budget,
    pub(super) source_id: SourceId,
    pub(super) data_info_id: &'a Arc<str>,
    pub(super) source: &'a mut Source,
    pub(super) graves: &'a mut BTreeSet<Grave>,
    /// The service's publishers in all sources.
    pub(super) live: &'a mut usize,
    pub(super) reads: &'a mut u64,
    /// The service counts as one already.
    pub(super) counted: bool,
    /// Bytes of the dataInfoId where these are not counted before the change is made; 0 where they are.
    pub(super) owed: usize,
    /// Whether the live publishers are others than before.
    pub(super) changed: bool,
}

impl Mutator<'_> {
    fn grave(&self, set_at: Millis, register_id: Option<&[u8]>) -> Grave {
        let register_id = register_id.map(Into::into);
        Grave { set_at, data_info_id: Arc::clone(self.data_info_id), source: self.source_id, register_id }
    }

    fn bury(&mut self, set_at: Millis, register_id: Option<&[u8]>) {
        let grave = self.grave(set_at, register_id);
        let bytes = grave.bytes();
        if self.graves.insert(grave) {
            self.budget.remember(bytes);
        }
    }

    fn unbury(&mut self, set_at: Millis, register_id: Option<&[u8]>) {
        let grave = self.grave(set_at, register_id);
        if self.graves.remove(&grave) {
            self.budget.forget(grave.bytes());
        }
    }

    /// The last read of a source that has nothing else is buried like a tombstone.
    fn bury_read(&mut self) {
        if let Some((_, at)) = self.source.read.filter(|_| self.source.slots.is_empty()) {
            self.bury(at, None);
        }
    }

    /// Puts a slot at a publisher's place, and keeps counts and graves right. An error if there is no room for it.
    fn put(&mut self, register_id: &[u8], slot: Slot) -> Result<()> {
        let before = self.source.slots.get_mut(register_id);
        let (size, set_at) = (slot.live().map(|entry| entry.size()), slot.set_at());
        let had = before.as_ref().and_then(|slot| slot.live()).map(|entry| entry.size());
        let buried = before.as_ref().and_then(|slot| slot.set_at());
        if let Some(size) = size {
            self.budget.check(had, size, !self.counted && *self.live == 0, self.owed)?;
        }
        match before {
            Some(place) => *place = slot,
            None => {
                // The first entry of a source takes the place of its buried read.
                if let Some((_, at)) = self.source.read.filter(|_| self.source.slots.is_empty()) {
                    self.unbury(at, None);
                }
                self.source.slots.insert(register_id.into(), slot);
            }
        }
        self.count(had, size);
        if let Some(set_at) = buried {
            self.unbury(set_at, Some(register_id));
        }
        if let Some(set_at) = set_at {
            self.bury(set_at, Some(register_id));
        }
        Ok(())
    }

    fn count(&mut self, had: Option<Size>, has: Option<Size>) {
        self.budget.count(had, has);
        *self.live = *self.live + usize::from(has.is_some()) - usize::from(had.is_some());
        self.changed |= had.is_some() || has.is_some();
    }

    pub(super) fn publish(&mut self, body: &Body<'_>, now: Millis) -> Result<()> {
        let (register_id, event) = (body.register_id.as_bytes(), Learned::Event(now));
        match self.source.slots.get_mut(register_id) {
            Some(Slot::Live { entry, .. }) if body.version <= entry.version => return Ok(()),
            Some(Slot::Tombstone { version, .. }) if body.version <= *version => return Ok(()),
            Some(Slot::Live { entry, learned }) => {
                let (had, has) = (Some(entry.size()), Size::of(body));
                self.budget.check(had, has, false, self.owed)?;
                *learned = event;
                if !Publication::renew(entry, body) {
                    *entry = Publication::new(body);
                }
                self.count(had, Some(has));
            }
            _ => self.put(register_id, Slot::Live { entry: Publication::new(body), learned: event })?,
        }
        self.source.event = Some(now);
        Ok(())
    }

    pub(super) fn unpublish(&mut self, register_id: Text<'_>, version: RegisterVersion, now: Millis) -> Result<()> {
        let register_id = register_id.as_bytes();
        match self.source.slots.get(register_id) {
            Some(Slot::Live { entry, .. }) if version < entry.version => return Ok(()),
            Some(Slot::Tombstone { version: known, .. }) if version <= *known => return Ok(()),
            _ => self.put(register_id, Slot::Tombstone { version, set_at: now })?,
        }
        self.source.event = Some(now);
        Ok(())
    }

    /// A read that began before says nothing of the publisher, any later one says everything.
    pub(super) fn lost(&mut self, register_id: Text<'_>, version: RegisterVersion, now: Millis) -> Result<()> {
        if let Some(Slot::Live { entry, learned }) = self.source.slots.get_mut(register_id.as_bytes())
            && entry.version <= version
        {
            *learned = Learned::Lost(now);
            self.source.event = Some(now);
        }
        Ok(())
    }
}

/// How far the application of a read is.
#[derive(Clone, Copy)]
enum Stage {
    Begin,
    /// Entries that it does not name are removed, from the place below this one on; first, so that they make room.
    Sweep(usize),
    /// Entries are put, from this one on.
    Put(usize),
    /// Events that it does not bear out are looked for, from the place below this one on.
    Look(usize),
    End,
}

/// A read of one service on its way into the store, applied in steps between which others change the service: what a
/// read says of a publisher concerns no other publisher, so each of the others' changes may come before or after it.
pub(super) struct Read<'a> {
    version: i64,
    started: Millis,
    now: Millis,
    /// In the order of their registerIds, so that the same ones are refused everywhere.
    entries: Vec<&'a Arc<Publication>>,
    named: HashSet<&'a [u8]>,
    stage: Stage,
    /// The service counted as one before, so that it needs no other room where all of its publishers are others now.
    counted: bool,
    /// [`Source::event`] of before; what comes meanwhile is not looked for.
    event: Option<Millis>,
    refused: Option<Error>,
    /// Publications that the read removed, kept for a moment when nobody waits for it to be freed.
    gone: Vec<Slot>,
}

impl<'a> Read<'a> {
    pub(super) fn new((version, started): (i64, Millis), entries: &'a [Arc<Publication>], now: Millis) -> Self {
        let mut entries: Vec<_> = entries.iter().collect();
        // A read names each publisher once; where two registerIds look alike as UTF-8 the newest one counts everywhere.
        entries.sort_by(|a, b| {
            let newest = || (b.version, &b.body).cmp(&(a.version, &a.body));
            a.register_id().cmp(b.register_id()).then_with(newest)
        });
        entries.dedup_by_key(|entry| entry.register_id());
        let named = entries.iter().map(|entry| entry.register_id()).collect();
        let (stage, refused) = (Stage::Begin, None);
        Self { version, started, now, entries, named, stage, counted: false, event: None, refused, gone: Vec::new() }
    }

    /// Applies so many steps, at least; whether it is applied. An error if something was refused, at the end.
    pub(super) fn advance(&mut self, to: &mut Mutator<'_>, steps: usize) -> Result<bool> {
        let mut left = steps;
        let mut next = |at: usize, until: usize| {
            let some = at != until && left > 0;
            left -= usize::from(some);
            some
        };
        loop {
            match self.stage {
                // Versions come from the clock of the slot's leader, so those of the next leader may be lower; and the same
                // version may name a later state of a publisher, or no longer one that an event brought. So a read that is
                // not newer by its version still is if it began when the last one had been applied.
                Stage::Begin => {
                    let known = to.source.read;
                    if known.is_some_and(|(applied, at)| self.version <= applied && self.started < at) {
                        return Ok(true);
                    }
                    *to.reads += 1;
                    self.counted = to.counted;
                    self.event = to.source.event.take();
                    self.stage = Stage::Sweep(to.source.slots.len());
                }
                Stage::Sweep(mut at) => {
                    while next(at, 0) {
                        at -= 1;
                        self.sweep(to, at);
                    }
                    self.stage = if at == 0 { Stage::Put(0) } else { Stage::Sweep(at) };
                    if at > 0 {
                        return Ok(false);
                    }
                }
                Stage::Put(mut at) => {
                    to.counted = self.counted;
                    while next(at, self.entries.len()) {
                        self.put(to, at);
                        at += 1;
                    }
                    self.stage = Stage::Put(at);
                    if at < self.entries.len() {
                        return Ok(false);
                    }
                    if let Some(error) = self.refused.take() {
                        // Not counted as read: the same read may be applied again when there is room.
                        self.stage = Stage::End;
                        *to.reads += 1;
                        to.source.event = to.source.event.or(self.event);
                        to.bury_read();
                        return Err(error);
                    }
                    self.stage = Stage::Look(self.event.map_or(0, |_| to.source.slots.len()));
                }
                Stage::Look(mut at) => {
                    let mut open = false;
                    while !open && next(at, 0) {
                        at -= 1;
                        open = self.is_open(to, at);
                    }
                    self.stage = Stage::Look(at);
                    if at > 0 && !open {
                        return Ok(false);
                    }
                    if open {
                        to.source.event = to.source.event.or(self.event);
                    }
                    if let Some((_, at)) = to.source.read.replace((self.version, self.now)) {
                        to.unbury(at, None);
                    }
                    to.bury_read();
                    *to.reads += 1;
                    self.stage = Stage::End;
                }
                Stage::End => return Ok(true),
            }
        }
    }

    fn lag(&self, at: Millis) -> Millis {
        self.started.saturating_sub(at)
    }

    /// Removes an entry that is not named, if a read may say so.
    fn sweep(&mut self, to: &mut Mutator<'_>, at: usize) {
        // Others may have removed some meanwhile.
        let Some((register_id, slot)) = to.source.slots.get_index(at) else { return };
        let goes = match slot {
            Slot::Live { learned: Learned::Event(at), .. } if self.lag(*at) <= READ_MARGIN_MILLIS => false,
            Slot::Live { learned: Learned::Lost(at), .. } if self.started < *at => false,
            Slot::Live { .. } => !self.named.contains(&**register_id),
            Slot::Tombstone { .. } => false,
        };
        if goes && let Some((_, slot)) = to.source.slots.swap_remove_index(at) {
            to.count(slot.live().map(|entry| entry.size()), None);
            self.gone.push(slot);
        }
    }

    fn put(&mut self, to: &mut Mutator<'_>, at: usize) {
        let new = self.entries[at];
        let take = match to.source.slots.get_mut(new.register_id()) {
            None => true,
            Some(Slot::Live { entry, learned }) => {
                // Known already; from now on a read that does not name it removes it.
                if new.version == entry.version {
                    *learned = Learned::Read;
                }
                // A read that was taken in is newer than the last one, and than an event whose time is over.
                let heard = matches!(learned, Learned::Event(at) if self.lag(*at) <= READ_MARGIN_MILLIS);
                new.version > entry.version || (new.version < entry.version && !heard)
            }
            Some(Slot::Tombstone { version, set_at }) => {
                new.version > *version || self.lag(*set_at) >= READ_MARGIN_MILLIS
            }
        };
        if take
            && let Err(error) = to.put(new.register_id(), Slot::Live { entry: Arc::clone(new), learned: Learned::Read })
        {
            self.refused.get_or_insert(error);
        }
    }

    /// Whether an event brought this one that the read does not bear out.
    fn is_open(&self, to: &Mutator<'_>, at: usize) -> bool {
        to.source.slots.get_index(at).is_some_and(|(register_id, slot)| match slot {
            Slot::Live { learned, .. } => !matches!(learned, Learned::Read),
            Slot::Tombstone { .. } => self.named.contains(&**register_id),
        })
    }
}
