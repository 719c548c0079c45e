//! Resources of one slice, in pages: each a run sorted by name, in one piece of memory.

use std::{cmp::Ordering, collections::HashSet, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use once_cell::sync::OnceCell;
use prost::encoding;

use crate::snapshot::{
    memory::Memory,
    resource::{RESOURCES_FIELD, Resource, version_of},
};

/// Pages are split above this; it is what a change of one resource copies.
pub(super) const MAX_PAGE: usize = 256 << 10;
/// Pages below this are put together, so that a response has few pieces.
const MIN_PAGE: usize = 64 << 10;

// Fields of envoy.service.discovery.v3.Resource; field 2 is the `Any`.
const DELTA_VERSION: u32 = 1;
const DELTA_NAME: u32 = 3;

/// A resource in a snapshot.
#[derive(Debug)]
pub struct Item {
    pub(super) name: Arc<str>,
    /// A view into the slice's page.
    framed: Bytes,
    digest: u128,
    endpoints: u32,
}

impl Item {
    pub(super) fn resource(&self) -> Resource {
        Resource { framed: self.framed.clone(), digest: self.digest, endpoints: self.endpoints }
    }

    /// Name of the resource, `namespace/name`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Hash of its content.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// How many endpoints it has.
    pub fn endpoints(&self) -> u32 {
        self.endpoints
    }

    /// The field `resources` of a DiscoveryResponse with it.
    pub fn framed(&self) -> &Bytes {
        &self.framed
    }

    /// The field `resources` of a DeltaDiscoveryResponse with it. The `Any` in that has the same number as the field of a
    /// DiscoveryResponse, so it stands there byte for byte.
    pub fn put_delta(&self, out: &mut BytesMut) {
        let version = version_of(self.digest);
        let strings = [(DELTA_NAME, &*self.name), (DELTA_VERSION, &*version)];
        let field = |(_, text): &(u32, &str)| {
            encoding::key_len(DELTA_NAME) + encoding::encoded_len_varint(text.len() as u64) + text.len()
        };
        let length = strings.iter().map(field).sum::<usize>() + self.framed.len();
        encoding::encode_key(RESOURCES_FIELD, encoding::WireType::LengthDelimited, out);
        encoding::encode_varint(length as u64, out);
        for (tag, text) in strings {
            encoding::encode_key(tag, encoding::WireType::LengthDelimited, out);
            encoding::encode_varint(text.len() as u64, out);
            out.put_slice(text.as_bytes());
        }
        out.put_slice(&self.framed);
    }
}

/// How much there is of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) resources: usize,
    pub(super) endpoints: u64,
    pub(super) bytes: usize,
    /// Wrapping sum of the resources' digests, so that their order does not matter.
    pub(super) sum: u128,
}

impl std::iter::Sum for Totals {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |a, b| Self {
            resources: a.resources + b.resources,
            endpoints: a.endpoints + b.endpoints,
            bytes: a.bytes + b.bytes,
            sum: a.sum.wrapping_add(b.sum),
        })
    }
}

/// A run of resources, sorted by name, in one piece of memory.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    pub(super) bytes: Bytes,
    /// The same as delta responses have it; made when the first delta client wants it.
    delta: OnceCell<Bytes>,
    memory: Memory,
    totals: Totals,
}

impl Page {
    fn new(parts: &[(Arc<str>, Resource)], memory: &Memory) -> Self {
        let mut bytes = BytesMut::with_capacity(parts.iter().map(|(_, resource)| resource.framed.len()).sum());
        parts.iter().for_each(|(_, resource)| bytes.put_slice(&resource.framed));
        let bytes = memory.page(bytes);
        let mut start = 0;
        let items = parts.iter().map(|(name, Resource { framed, digest, endpoints })| {
            let end = start + framed.len();
            let framed = bytes.slice(start..end);
            start = end;
            Item { name: Arc::clone(name), framed, digest: *digest, endpoints: *endpoints }
        });
        let items: Vec<Item> = items.collect();
        let item = |item: &Item| Totals {
            resources: 1,
            endpoints: u64::from(item.endpoints),
            bytes: item.framed.len(),
            sum: item.digest,
        };
        let totals = items.iter().map(item).sum();
        Self { items, bytes, delta: OnceCell::new(), memory: memory.clone(), totals }
    }

    pub(super) fn delta(&self) -> &Bytes {
        self.delta.get_or_init(|| {
            let mut bytes = BytesMut::with_capacity(self.bytes.len() + 128 * self.items.len());
            self.items.iter().for_each(|item| item.put_delta(&mut bytes));
            self.memory.copy(bytes)
        })
    }

    /// Bytes of what was encoded of this page and is kept with it.
    pub(super) fn copied(&self) -> usize {
        self.delta.get().map_or(0, Bytes::len)
    }

    fn parts(&self) -> impl Iterator<Item = (Arc<str>, Resource)> + '_ {
        self.items.iter().map(|item| (Arc::clone(&item.name), item.resource()))
    }

    /// Whether a name belongs here or further back, given that it belongs to no page before.
    fn ends_before(&self, name: &str) -> bool {
        self.items.last().is_none_or(|last| *last.name < *name)
    }
}

/// The difference of one set of resources from an older one; each list in the order of slices and names.
#[derive(Debug, Default)]
pub struct Difference<'a> {
    /// New, or with other content.
    pub changed: Vec<&'a Item>,
    /// Gone.
    pub removed: Vec<&'a Arc<str>>,
}

/// The resources of one slice, in pages sorted by name.
#[derive(Debug, Default)]
pub(super) struct Slice {
    pub(super) pages: Vec<Arc<Page>>,
    pub(super) totals: Totals,
}

impl Slice {
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.pages.iter().flat_map(|page| &page.items)
    }

    pub(super) fn find(&self, name: &str) -> Option<&Item> {
        let page = self.pages.get(self.pages.partition_point(|page| page.ends_before(name)))?;
        let found = page.items.binary_search_by(|item| (*item.name).cmp(name));
        found.ok().map(|index| &page.items[index])
    }

    pub(super) fn digest_of(&self, name: &str) -> Option<u128> {
        self.find(name).map(|item| item.digest)
    }

    /// The items on pages that `other` does not share.
    pub(super) fn items_apart<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Item> {
        let shared: HashSet<*const Page> = other.pages.iter().map(Arc::as_ptr).collect();
        self.pages.iter().filter(move |page| !shared.contains(&Arc::as_ptr(page))).flat_map(|page| &page.items)
    }

    /// Adds to `difference` what is different here from `older`. Costs the pages that are.
    pub(super) fn compare<'a>(&'a self, older: &'a Self, difference: &mut Difference<'a>) {
        let (mut new, mut old) = (self.items_apart(older).peekable(), older.items_apart(self).peekable());
        loop {
            let order = match (new.peek(), old.peek()) {
                (Some(new), Some(old)) => new.name.cmp(&old.name),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return,
            };
            let gone = if order.is_ge() { old.next() } else { None };
            let come = if order.is_le() { new.next() } else { None };
            match (come, gone) {
                (Some(come), gone) if gone.is_none_or(|gone| gone.digest != come.digest) => {
                    difference.changed.push(come)
                }
                (None, Some(gone)) => difference.removed.push(&gone.name),
                _ => {}
            }
        }
    }

    /// This slice with changes, which are sorted by name. Pages that they do not touch are shared.
    pub(super) fn with(&self, changes: &[(&Arc<str>, &Option<Resource>)], memory: &Memory) -> Self {
        let mut pages: Vec<Arc<Page>> = Vec::with_capacity(self.pages.len() + 1);
        let mut rest = changes;
        for (index, page) in self.pages.iter().enumerate() {
            // The last page takes whatever comes behind it.
            let here = match index + 1 == self.pages.len() {
                true => rest.len(),
                false => rest.partition_point(|(name, _)| !page.ends_before(name)),
            };
            let (own, later) = rest.split_at(here);
            rest = later;
            if own.is_empty() {
                pages.push(Arc::clone(page));
            } else {
                repage(&mut pages, merge(page.parts(), own), memory);
            }
        }
        if !rest.is_empty() {
            repage(&mut pages, merge(std::iter::empty(), rest), memory);
        }
        let totals = pages.iter().map(|page| page.totals).sum();
        Self { pages, totals }
    }
}

/// Resources with changes; both are sorted by name.
fn merge(
    old: impl Iterator<Item = (Arc<str>, Resource)>,
    changes: &[(&Arc<str>, &Option<Resource>)],
) -> Vec<(Arc<str>, Resource)> {
    let mut parts = Vec::new();
    let (mut old, mut new) = (old.peekable(), changes.iter());
    let mut next = new.next();
    while let Some((name, resource)) = next {
        match old.peek() {
            Some((known, _)) if known < *name => parts.extend(old.next()),
            known => {
                if known.is_some_and(|(known, _)| known == *name) {
                    old.next();
                }
                let resource: &Option<Resource> = resource;
                parts.extend(resource.clone().map(|resource| (Arc::clone(name), resource)));
                next = new.next();
            }
        }
    }
    parts.extend(old);
    parts
}

/// Adds the parts to the pages: in as many as keep within [`MAX_PAGE`], together with the page before if both are small.
fn repage(pages: &mut Vec<Arc<Page>>, mut parts: Vec<(Arc<str>, Resource)>, memory: &Memory) {
    let size = |parts: &[(Arc<str>, Resource)]| parts.iter().map(|(_, resource)| resource.framed.len()).sum::<usize>();
    let total = size(&parts);
    if total < MIN_PAGE
        && let Some(before) = pages.pop_if(|before| before.bytes.len() + total <= MAX_PAGE)
    {
        parts = before.parts().chain(parts).collect();
    }
    let total = size(&parts);
    let each = total.div_ceil(total.div_ceil(MAX_PAGE).max(1));
    while !parts.is_empty() {
        let mut length = 0;
        let fits = |(_, resource): &&(Arc<str>, Resource)| {
            length += resource.framed.len();
            length <= each
        };
        // A resource that is larger than a page has a page of its own.
        let count = parts.iter().take_while(fits).count().max(1);
        let later = parts.split_off(count);
        pages.push(Arc::new(Page::new(&parts, memory)));
        parts = later;
    }
}
