//! A snapshot, and the partition of it that one stream is sent.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use once_cell::sync::Lazy;

use crate::snapshot::{
    index::Index,
    memory::Memory,
    page::{Difference, Item, Slice, Totals},
    partition::{Partition, SLICES},
    resource::{Changes, Resource, version_of},
};

/// An immutable set of resources of one type.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) slices: Vec<Arc<Slice>>,
    pub(super) totals: Totals,
    /// In which slice a name is.
    index: Index,
    memory: Memory,
    version: Arc<str>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::of(vec![Arc::<Slice>::default(); SLICES], Index::default(), Memory::default())
    }
}

impl Snapshot {
    /// The one empty set.
    pub fn none() -> Arc<Self> {
        static NONE: Lazy<Arc<Snapshot>> = Lazy::new(Arc::default);
        Arc::clone(&NONE)
    }

    fn of(slices: Vec<Arc<Slice>>, index: Index, memory: Memory) -> Self {
        let totals: Totals = slices.iter().map(|slice| slice.totals).sum();
        Self { slices, totals, index, memory, version: version_of(totals.sum) }
    }

    /// This snapshot with changes. Costs the pages that change.
    pub fn with(&self, changes: &Changes) -> Self {
        let mut slices = self.slices.clone();
        let mut by_slice: BTreeMap<usize, Vec<(&Arc<str>, &Option<Resource>)>> = BTreeMap::new();
        let mut names: Vec<(&str, usize, bool)> = Vec::new();
        for ((slice, name), resource) in changes {
            let known = self.slices[*slice].digest_of(name);
            // A resource that is there already, or gone already, rewrites no page.
            if known != resource.as_ref().map(|resource| resource.digest) {
                by_slice.entry(*slice).or_default().push((name, resource));
                if known.is_some() != resource.is_some() {
                    names.push((name, *slice, resource.is_some()));
                }
            }
        }
        for (index, changes) in by_slice {
            slices[index] = Arc::new(self.slices[index].with(&changes, &self.memory));
        }
        Self::of(slices, self.index.with(names.into_iter()), self.memory.clone())
    }

    /// `version_info` of this set: equal for equal content, whatever the history and whichever the session server.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// How many resources there are.
    pub fn resources(&self) -> usize {
        self.totals.resources
    }

    /// How many endpoints they have.
    pub fn endpoints(&self) -> u64 {
        self.totals.endpoints
    }

    /// Their encoded size.
    pub fn bytes(&self) -> usize {
        self.totals.bytes
    }

    /// Whether a slice is the very same in `other`.
    pub fn shares(&self, slice: usize, other: &Self) -> bool {
        Arc::ptr_eq(&self.slices[slice], &other.slices[slice])
    }

    /// Bytes of pages of older snapshots, and of what was encoded for single streams, that somebody still holds. Of the snapshots
    /// that were made of one another this is to be the newest.
    pub fn pinned(&self) -> usize {
        let (pages, copies) = self.memory.alive();
        let own: usize = match copies {
            0 => 0,
            _ => self.slices.iter().flat_map(|slice| &slice.pages).map(|page| page.copied()).sum(),
        };
        // They come and go meanwhile.
        pages.saturating_sub(self.totals.bytes) + copies.saturating_sub(own)
    }

    /// Every resource, encoded as fields of a DiscoveryResponse; shared, not copied.
    pub fn pages(&self) -> impl Iterator<Item = &Bytes> {
        self.slices.iter().flat_map(|slice| &slice.pages).map(|page| &page.bytes)
    }

    /// Every resource, decoded at once.
    #[cfg(test)]
    pub(crate) fn decode(&self) -> Vec<crate::proto::istio::mcp::v1alpha1::Resource> {
        use super::resource::{fields, read};
        let all = self.pages().flat_map(|page| fields(page.clone()));
        all.map(|field| read(&field.expect("a page was encoded here")).expect("and so was a resource")).collect()
    }
}

/// The resources of one partition of a snapshot: what one stream may be sent.
#[derive(Debug, Clone)]
pub struct Set {
    pub(super) snapshot: Arc<Snapshot>,
    partition: Partition,
    sum: u128,
}

impl Set {
    /// A partition of a snapshot.
    pub fn new(snapshot: Arc<Snapshot>, partition: Partition) -> Self {
        let sum = match partition {
            Partition::WHOLE => snapshot.totals.sum,
            partition => snapshot.slices[partition.slices()].iter().map(|slice| slice.totals).sum::<Totals>().sum,
        };
        Self { snapshot, partition, sum }
    }

    fn slices(&self) -> &[Arc<Slice>] {
        &self.snapshot.slices[self.partition.slices()]
    }

    /// Hash of the content: equal for equal content, whatever the history and whichever the session server.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// Encoded size of all resources.
    pub fn bytes(&self) -> usize {
        self.slices().iter().map(|slice| slice.totals.bytes).sum()
    }

    /// Every resource, encoded as fields of a DiscoveryResponse; shared, not copied.
    pub fn pages(&self) -> impl Iterator<Item = &Bytes> {
        self.slices().iter().flat_map(|slice| &slice.pages).map(|page| &page.bytes)
    }

    /// Every resource, encoded as fields of a DeltaDiscoveryResponse; encoded once and shared.
    pub fn delta_pages(&self) -> impl Iterator<Item = &Bytes> {
        self.slices().iter().flat_map(|slice| &slice.pages).map(|page| page.delta())
    }

    /// Encoded resources of this set, for one stream.
    pub fn copy(&self, bytes: BytesMut) -> Bytes {
        self.snapshot.memory.copy(bytes)
    }

    /// The same without the resources of other partitions, so that whoever keeps it keeps no pages of them.
    pub fn apart(&self) -> Self {
        if self.partition == Partition::WHOLE {
            return self.clone();
        }
        static NOTHING: Lazy<Arc<Slice>> = Lazy::new(Arc::default);
        let own = self.partition.slices();
        let slice =
            |(index, slice): (usize, &Arc<Slice>)| Arc::clone(if own.contains(&index) { slice } else { &NOTHING });
        let Snapshot { slices, index, memory, .. } = &*self.snapshot;
        let slices = slices.iter().enumerate().map(slice).collect();
        Self { snapshot: Arc::new(Snapshot::of(slices, index.clone(), memory.clone())), ..*self }
    }

    /// Every resource.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.slices().iter().flat_map(|slice| slice.items())
    }

    /// The resource with a name.
    pub fn find(&self, name: &str) -> Option<&Item> {
        #[cfg(test)]
        testing::LOOKED_UP.set(testing::LOOKED_UP.get() + 1);
        let mut slices = self.snapshot.index.slices(name).filter(|slice| self.partition.slices().contains(slice));
        slices.find_map(|slice| self.snapshot.slices[slice].find(name))
    }

    /// The resources that are different here from an older set of the same partition. Costs the pages that are.
    pub fn since<'a>(&'a self, older: &'a Self) -> Difference<'a> {
        let mut difference = Difference::default();
        for (new, old) in self.slices().iter().zip(older.slices()).filter(|(new, old)| !Arc::ptr_eq(new, old)) {
            new.compare(old, &mut difference);
        }
        difference
    }

    /// This set with what only `older` has added: everything new is in it and nothing old is gone yet.
    pub fn with_all_of(&self, older: &Self) -> Self {
        let mut kept = Changes::new();
        for (index, (new, old)) in self.partition.slices().zip(self.slices().iter().zip(older.slices())) {
            if !Arc::ptr_eq(new, old) {
                let gone = old.items_apart(new).filter(|item| new.find(&item.name).is_none());
                kept.extend(gone.map(|item| ((index, Arc::clone(&item.name)), Some(item.resource()))));
            }
        }
        if kept.is_empty() { self.clone() } else { Self::new(Arc::new(self.snapshot.with(&kept)), self.partition) }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;

    thread_local! {
        pub(super) static LOOKED_UP: Cell<usize> = const { Cell::new(0) };
    }

    /// How many names were looked up on this thread.
    pub(crate) fn looked_up() -> usize {
        LOOKED_UP.get()
    }
}
