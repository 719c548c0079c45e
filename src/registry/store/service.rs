//! A service as the store keeps it.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::{
    model::{Millis, RegisterVersion},
    registry::{publication::Publication, store::keyed::Keyed},
};

/// How far a read may lag behind an event: a read that started at least this much after a tombstone was set overrides
/// it, and one removes only what an event brought more than this before it started.
pub const READ_MARGIN_MILLIS: Millis = 15_000;

/// How an entry became known, which decides what a later read may say about it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Learned {
    Event(Millis),
    /// Its client has left this session server at that time.
    Lost(Millis),
    Read,
}

#[derive(Debug)]
pub(super) enum Slot {
    Live { entry: Arc<Publication>, learned: Learned },
    Tombstone { version: RegisterVersion, set_at: Millis },
}

impl Slot {
    /// When it was removed; `None` if it lives.
    pub(super) fn set_at(&self) -> Option<Millis> {
        match self {
            Self::Live { .. } => None,
            Self::Tombstone { set_at, .. } => Some(*set_at),
        }
    }

    pub(super) fn live(&self) -> Option<&Arc<Publication>> {
        match self {
            Self::Live { entry, .. } => Some(entry),
            Self::Tombstone { .. } => None,
        }
    }
}

/// By registerId, in places by which they are walked through in steps: from the last one on down, since a removal puts the
/// last one, which was looked at, in the place that is free, and what comes meanwhile goes to the end.
pub(super) type Slots = IndexMap<Box<[u8]>, Slot, Keyed>;

/// The entries of one service in one source.
#[derive(Debug, Default)]
pub(super) struct Source {
    pub(super) slots: Slots,
    /// The datum version of the last applied read, and when it was applied.
    pub(super) read: Option<(i64, Millis)>,
    /// When the last event came, if no read has borne out every event yet.
    pub(super) event: Option<Millis>,
}

/// Index of a source's name.
pub(super) type SourceId = u16;

/// Number of the registry's own source, which is the first.
pub(super) const REGISTRY_ID: SourceId = 0;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) data_info_id: Arc<str>,
    /// Nearly always one; a linear scan beats a map.
    pub(super) sources: Vec<(SourceId, Source)>,
    /// Publishers in all sources.
    pub(super) live: usize,
    pub(super) dirty: bool,
    /// The registry has it and it could not be read yet.
    pub(super) unknown: bool,
    /// The service had publishers, or was unknown, when it was taken last: who took it is to hear that they are gone.
    pub(super) seen: bool,
    /// Counted up where a read begins to be applied and where it has been: odd in between, when the service is not to be taken.
    pub(super) reads: u64,
}

impl Service {
    pub(super) fn new(data_info_id: &str) -> Self {
        Self {
            data_info_id: data_info_id.into(),
            sources: Vec::new(),
            live: 0,
            dirty: false,
            unknown: false,
            seen: false,
            reads: 0,
        }
    }

    /// Whether it counts as a service.
    pub(super) fn counts(&self) -> bool {
        self.live > 0 || self.unknown
    }

    /// Whether a read is being applied.
    pub(super) fn is_read(&self) -> bool {
        self.reads % 2 == 1
    }

    /// Whether nothing has to be remembered of it.
    pub(super) fn is_over(&self) -> bool {
        let empty = |source: &Source| source.slots.is_empty() && source.read.is_none();
        !self.unknown && !self.seen && !self.is_read() && self.sources.iter().all(|(_, source)| empty(source))
    }

    /// The registry's own source.
    pub(super) fn registry(&self) -> Option<&Source> {
        self.sources.iter().find(|(id, _)| *id == REGISTRY_ID).map(|(_, source)| source)
    }

    /// The place of a source in [`Service::sources`], which has it from now on.
    pub(super) fn place(&mut self, id: SourceId) -> usize {
        self.sources.iter().position(|(known, _)| *known == id).unwrap_or_else(|| {
            // A list that grows begins with room for four.
            self.sources.reserve_exact(1);
            self.sources.push((id, Source::default()));
            self.sources.len() - 1
        })
    }

    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<Publication>> {
        self.sources.iter().flat_map(|(_, source)| source.slots.values()).filter_map(Slot::live)
    }
}

/// Bytes that a removal takes beside its names: its slot, and its place among the graves.
const GRAVE_BYTES: usize = 256;

/// A memory that is to be forgotten, and since when it is remembered. There is exactly one for each tombstone and for the last
/// read of each source that has nothing else, so that there are never more than keys, however often those come and go.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grave {
    pub(super) set_at: Millis,
    pub(super) data_info_id: Arc<str>,
    pub(super) source: SourceId,
    /// `None`: the last read of a source that it left empty, so that an older one does not fill it again.
    pub(super) register_id: Option<Box<[u8]>>,
}

impl Grave {
    /// Bytes that the memory takes, its service's record included, which may be there for it alone.
    pub(super) fn bytes(&self) -> usize {
        let register_id = self.register_id.as_ref().map_or(0, |id| id.len());
        GRAVE_BYTES + self.data_info_id.len() + 2 * register_id
    }
}
