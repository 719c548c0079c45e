//! What is served: an immutable set of resources, encoded once, in pages that every stream shares.
//!
//! Resources are kept in 128 slices by the top 7 bits of their host's SHA-256, and there in pages sorted by name, each in
//! one piece of memory. A change rewrites one page; the others are shared with the snapshot before. Where pages begin and
//! end depends on history, the bytes of all of them together do not.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use once_cell::sync::{Lazy, OnceCell};
use prost::{Message, encoding};

use crate::{
    digest::{hex, prefix_of},
    part::Part,
    proto::{
        envoy::service::discovery::v3::DiscoveryResponse,
        google::protobuf::{Any, Timestamp},
        istio::{
            mcp::v1alpha1::{Metadata, Resource as McpResource},
            networking::v1alpha3::{DestinationRule, ServiceEntry, WorkloadEntry},
        },
    },
};

/// Into how many slices resources are divided.
pub const SLICES: usize = 128;

/// Pages are split above this; it is what a change of one resource copies.
const MAX_PAGE: usize = 256 << 10;
/// Pages below this are put together, so that a response has few pieces.
const MIN_PAGE: usize = 64 << 10;

/// 2100-01-01T00:00:00Z. Constant, since it may not depend on anything but the registry's data; late, since the oldest
/// of two entries for one host wins in Istio and a hand-written one should.
const CREATE_TIME: Timestamp = Timestamp { seconds: 4_102_444_800, nanos: 0 };
const RESOURCE_TYPE: &str = "type.googleapis.com/istio.mcp.v1alpha1.Resource";
const SERVICE_ENTRY_TYPE: &str = "type.googleapis.com/istio.networking.v1alpha3.ServiceEntry";
const DESTINATION_RULE_TYPE: &str = "type.googleapis.com/istio.networking.v1alpha3.DestinationRule";
const WORKLOAD_ENTRY_TYPE: &str = "type.googleapis.com/istio.networking.v1alpha3.WorkloadEntry";
/// Field 2 of a DiscoveryResponse, and of a DeltaDiscoveryResponse.
const RESOURCES_FIELD: u32 = 2;
// Fields of envoy.service.discovery.v3.Resource; field 2 is the `Any`.
const DELTA_VERSION: u32 = 1;
const DELTA_NAME: u32 = 3;

/// One resource, encoded.
#[derive(Debug, Clone)]
pub struct Resource {
    /// The field of a DiscoveryResponse that carries it: tag, length, `Any`.
    framed: Bytes,
    digest: u128,
    endpoints: u32,
}

impl Resource {
    /// Encodes a ServiceEntry.
    pub fn service_entry(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        entry: &ServiceEntry,
    ) -> Self {
        let body = Any { type_url: SERVICE_ENTRY_TYPE.to_owned(), value: entry.encode_to_vec().into() };
        Self::new(name, labels, annotations, body, entry.endpoints.len() as u32)
    }

    /// Encodes a ServiceEntry that repeats the endpoints of others, so they are not counted again.
    pub fn beside(name: String, annotations: BTreeMap<String, String>, entry: &ServiceEntry) -> Self {
        Self { endpoints: 0, ..Self::service_entry(name, BTreeMap::new(), annotations, entry) }
    }

    /// Encodes a WorkloadEntry, which is one endpoint.
    pub fn workload_entry(name: String, annotations: BTreeMap<String, String>, entry: &WorkloadEntry) -> Self {
        let body = Any { type_url: WORKLOAD_ENTRY_TYPE.to_owned(), value: entry.encode_to_vec().into() };
        Self::new(name, BTreeMap::new(), annotations, body, 1)
    }

    /// Encodes a DestinationRule.
    pub fn destination_rule(name: String, annotations: BTreeMap<String, String>, rule: &DestinationRule) -> Self {
        let body = Any { type_url: DESTINATION_RULE_TYPE.to_owned(), value: rule.encode_to_vec().into() };
        Self::new(name, BTreeMap::new(), annotations, body, 0)
    }

    /// A resource that is served as it is, without Istio's envelope, as Envoy takes its own.
    pub fn plain(any: &Any) -> Self {
        Self::framed(any, prefix_of(any.encode_to_vec()), 0)
    }

    /// `metadata.version` is a hash of everything else in the resource, since it is all that istiod compares.
    fn new(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        body: Any,
        endpoints: u32,
    ) -> Self {
        let metadata = Metadata { name, create_time: Some(CREATE_TIME), version: String::new(), labels, annotations };
        let mut resource = McpResource { metadata: Some(metadata), body: Some(body) };
        let digest = prefix_of(resource.encode_to_vec());
        let version = hex(&digest);
        if let Some(metadata) = &mut resource.metadata {
            metadata.version = version;
        }
        let any = Any { type_url: RESOURCE_TYPE.to_owned(), value: resource.encode_to_vec().into() };
        Self::framed(&any, digest, endpoints)
    }

    fn framed(any: &Any, digest: [u8; 16], endpoints: u32) -> Self {
        let mut framed = BytesMut::with_capacity(any.encoded_len() + 8);
        encoding::message::encode(RESOURCES_FIELD, any, &mut framed);
        Self { framed: framed.freeze(), digest: u128::from_be_bytes(digest), endpoints }
    }
}

/// The slice of a host: the top 7 bits of its SHA-256.
pub fn slice_of(host_digest: &[u8; 32]) -> usize {
    usize::from(host_digest[0] >> 1)
}

/// What a publish round changes, by slice and name; `None` removes.
pub type Changes = BTreeMap<(usize, Arc<str>), Option<Resource>>;

/// A resource in a snapshot.
#[derive(Debug)]
pub struct Item {
    name: Arc<str>,
    /// A view into the slice's page.
    framed: Bytes,
    digest: u128,
    endpoints: u32,
}

impl Item {
    fn resource(&self) -> Resource {
        Resource { framed: self.framed.clone(), digest: self.digest, endpoints: self.endpoints }
    }

    /// Its name, `namespace/name`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Hash of its content.
    pub fn digest(&self) -> u128 {
        self.digest
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
struct Totals {
    resources: usize,
    endpoints: u64,
    bytes: usize,
    /// Of all digests. It does not depend on order.
    sum: u128,
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
struct Page {
    items: Vec<Item>,
    bytes: Bytes,
    /// The same as delta responses have it; made when the first delta client wants it.
    delta: OnceCell<Bytes>,
    totals: Totals,
}

impl Page {
    fn new(parts: &[(Arc<str>, Resource)]) -> Self {
        let mut bytes = BytesMut::with_capacity(parts.iter().map(|(_, resource)| resource.framed.len()).sum());
        parts.iter().for_each(|(_, resource)| bytes.put_slice(&resource.framed));
        let bytes = bytes.freeze();
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
        Self { items, bytes, delta: OnceCell::new(), totals }
    }

    fn delta(&self) -> &Bytes {
        self.delta.get_or_init(|| {
            let mut bytes = BytesMut::with_capacity(self.bytes.len() + 128 * self.items.len());
            self.items.iter().for_each(|item| item.put_delta(&mut bytes));
            bytes.freeze()
        })
    }

    fn parts(&self) -> impl Iterator<Item = (Arc<str>, Resource)> + '_ {
        self.items.iter().map(|item| (Arc::clone(&item.name), item.resource()))
    }

    /// Whether a name belongs here or further back, given that it belongs to no page before.
    fn ends_before(&self, name: &str) -> bool {
        self.items.last().is_none_or(|last| *last.name < *name)
    }
}

/// What is different in one set of resources from an older one; each list in the order of slices and names.
#[derive(Debug, Default)]
pub struct Difference<'a> {
    /// New, or with other content.
    pub changed: Vec<&'a Item>,
    /// Gone.
    pub removed: Vec<&'a Arc<str>>,
}

/// The resources of one slice, in pages sorted by name.
#[derive(Debug, Default)]
struct Slice {
    pages: Vec<Arc<Page>>,
    totals: Totals,
}

impl Slice {
    fn items(&self) -> impl Iterator<Item = &Item> {
        self.pages.iter().flat_map(|page| &page.items)
    }

    fn find(&self, name: &str) -> Option<&Item> {
        let page = self.pages.get(self.pages.partition_point(|page| page.ends_before(name)))?;
        let found = page.items.binary_search_by(|item| (*item.name).cmp(name));
        found.ok().map(|index| &page.items[index])
    }

    fn digest_of(&self, name: &str) -> Option<u128> {
        self.find(name).map(|item| item.digest)
    }

    /// The items on pages that `other` does not share.
    fn items_apart<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Item> {
        let shared: HashSet<*const Page> = other.pages.iter().map(Arc::as_ptr).collect();
        self.pages.iter().filter(move |page| !shared.contains(&Arc::as_ptr(page))).flat_map(|page| &page.items)
    }

    /// Adds to `difference` what is different here from `older`. Costs the pages that are.
    fn compare<'a>(&'a self, older: &'a Self, difference: &mut Difference<'a>) {
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
    fn with(&self, changes: &[(&Arc<str>, &Option<Resource>)]) -> Self {
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
                repage(&mut pages, merge(page.parts(), own));
            }
        }
        if !rest.is_empty() {
            repage(&mut pages, merge(std::iter::empty(), rest));
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
fn repage(pages: &mut Vec<Arc<Page>>, mut parts: Vec<(Arc<str>, Resource)>) {
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
        // One that is larger than a page has a page of its own.
        let count = parts.iter().take_while(fits).count().max(1);
        let later = parts.split_off(count);
        pages.push(Arc::new(Page::new(&parts)));
        parts = later;
    }
}

/// An immutable set of resources of one type.
#[derive(Debug)]
pub struct Snapshot {
    slices: Vec<Arc<Slice>>,
    totals: Totals,
    version: Arc<str>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::of(vec![Arc::<Slice>::default(); SLICES])
    }
}

/// A version as it is written.
pub fn version_of(sum: u128) -> Arc<str> {
    hex(&sum.to_be_bytes()).into()
}

impl Snapshot {
    /// The one empty set.
    pub fn none() -> Arc<Self> {
        static NONE: Lazy<Arc<Snapshot>> = Lazy::new(Arc::default);
        Arc::clone(&NONE)
    }

    fn of(slices: Vec<Arc<Slice>>) -> Self {
        let totals: Totals = slices.iter().map(|slice| slice.totals).sum();
        Self { slices, totals, version: version_of(totals.sum) }
    }

    /// This snapshot with changes. Costs the pages that change.
    pub fn with(&self, changes: &Changes) -> Self {
        let mut slices = self.slices.clone();
        let mut by_slice: BTreeMap<usize, Vec<(&Arc<str>, &Option<Resource>)>> = BTreeMap::new();
        for ((slice, name), resource) in changes {
            // What is there already, or gone already, rewrites no page.
            if self.slices[*slice].digest_of(name) != resource.as_ref().map(|resource| resource.digest) {
                by_slice.entry(*slice).or_default().push((name, resource));
            }
        }
        for (index, changes) in by_slice {
            slices[index] = Arc::new(self.slices[index].with(&changes));
        }
        Self::of(slices)
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

    /// Every resource, encoded as fields of a DiscoveryResponse; shared, not copied.
    pub fn pages(&self) -> impl Iterator<Item = &Bytes> {
        self.slices.iter().flat_map(|slice| &slice.pages).map(|page| &page.bytes)
    }

    /// Every resource, decoded; for people.
    pub fn decode(&self) -> Vec<McpResource> {
        let response: Vec<u8> = self.pages().flatten().copied().collect();
        let response = DiscoveryResponse::decode(response.as_slice()).unwrap_or_default();
        let decoded = |any: Any| McpResource::decode(any.value).unwrap_or_default();
        response.resources.into_iter().map(decoded).collect()
    }
}

/// The resources of one part of a snapshot: what one stream may be sent.
#[derive(Debug, Clone)]
pub struct Set {
    snapshot: Arc<Snapshot>,
    part: Part,
    sum: u128,
}

impl Set {
    /// A part of a snapshot.
    pub fn new(snapshot: Arc<Snapshot>, part: Part) -> Self {
        let sum = match part {
            Part::WHOLE => snapshot.totals.sum,
            part => snapshot.slices[part.slices()].iter().map(|slice| slice.totals).sum::<Totals>().sum,
        };
        Self { snapshot, part, sum }
    }

    fn slices(&self) -> &[Arc<Slice>] {
        &self.snapshot.slices[self.part.slices()]
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

    /// Every resource.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.slices().iter().flat_map(|slice| slice.items())
    }

    /// The resource with a name. A name does not say its slice, so each is asked.
    pub fn find(&self, name: &str) -> Option<&Item> {
        self.slices().iter().find_map(|slice| slice.find(name))
    }

    /// What is different here from an older set of the same part. Costs the pages that are.
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
        for (index, (new, old)) in self.part.slices().zip(self.slices().iter().zip(older.slices())) {
            if !Arc::ptr_eq(new, old) {
                let gone = old.items_apart(new).filter(|item| new.find(&item.name).is_none());
                kept.extend(gone.map(|item| ((index, Arc::clone(&item.name)), Some(item.resource()))));
            }
        }
        if kept.is_empty() { self.clone() } else { Self::new(Arc::new(self.snapshot.with(&kept)), self.part) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn resource(name: &str, host: &str) -> Resource {
        let entry = ServiceEntry { hosts: vec![host.into()], ..ServiceEntry::default() };
        Resource::service_entry(format!("ns/{name}"), BTreeMap::new(), BTreeMap::new(), &entry)
    }

    fn changes(of: &[(usize, &str, Option<&str>)]) -> Changes {
        of.iter().map(|(s, name, host)| ((*s, (*name).into()), host.map(|host| resource(name, host)))).collect()
    }

    fn decoded(snapshot: &Snapshot) -> Vec<(String, String)> {
        let metadata = |resource: McpResource| resource.metadata.unwrap();
        snapshot.decode().into_iter().map(metadata).map(|m| (m.name, m.version)).collect()
    }

    #[test]
    fn a_snapshot_is_its_content_whatever_the_history() {
        let all = changes(&[(5, "b", Some("b")), (5, "a", Some("a")), (1, "c", Some("c"))]);
        let once = Snapshot::default().with(&all);
        let steps = Snapshot::default()
            .with(&changes(&[(5, "a", Some("other")), (9, "gone", Some("x"))]))
            .with(&changes(&[(5, "b", Some("b")), (9, "gone", None), (9, "never", None)]))
            .with(&changes(&[(1, "c", Some("c")), (5, "a", Some("a"))]));
        assert_eq!(decoded(&once), decoded(&steps));
        assert_eq!(once.version(), steps.version());
        assert_eq!((steps.resources(), steps.bytes()), (3, once.bytes()));
        assert_eq!(decoded(&once).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["ns/c", "ns/a", "ns/b"]);
    }

    #[test]
    fn versions_tell_contents_apart() {
        let base = Snapshot::default().with(&changes(&[(5, "a", Some("a"))]));
        let other = base.with(&changes(&[(5, "a", Some("a2"))]));
        assert_ne!(base.version(), other.version());
        assert_ne!(decoded(&base)[0].1, decoded(&other)[0].1);
        assert_eq!(other.with(&changes(&[(5, "a", None)])).version(), Snapshot::default().version());
    }

    #[test]
    fn a_change_rewrites_only_the_page_of_its_slice() {
        let base = Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]));
        let next = base.with(&changes(&[(5, "a", Some("z")), (6, "b", Some("b")), (6, "gone", None)]));
        let at = |snapshot: &Snapshot, index: usize| snapshot.slices[index].pages[0].bytes.as_ptr();
        assert_eq!(at(&base, 6), at(&next, 6));
        assert_ne!(at(&base, 5), at(&next, 5));
    }

    /// The definition: every resource, in the order of slices and names.
    fn bytes_of(model: &BTreeMap<(usize, Arc<str>), Resource>) -> Vec<u8> {
        model.values().flat_map(|resource| resource.framed.to_vec()).collect()
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]

        #[test]
        fn pages_hold_what_any_history_left(
            history in proptest::collection::vec(
                proptest::collection::vec((0usize..2, 0u8..40, proptest::option::of(0usize..60_000)), 1..12), 1..12)
        ) {
            let (mut snapshot, mut model) = (Snapshot::default(), BTreeMap::new());
            for round in history {
                let mut changes = Changes::new();
                for (slice, name, size) in round {
                    let name: Arc<str> = format!("n{name:02}").into();
                    let made = size.map(|size| resource(&name, &"x".repeat(size)));
                    match &made {
                        Some(made) => model.insert((slice, Arc::clone(&name)), made.clone()),
                        None => model.remove(&(slice, Arc::clone(&name))),
                    };
                    changes.insert((slice, name), made);
                }
                snapshot = snapshot.with(&changes);
                let served: Vec<u8> = snapshot.pages().flatten().copied().collect();
                proptest::prop_assert_eq!(&served, &bytes_of(&model));
                proptest::prop_assert_eq!((snapshot.resources(), snapshot.bytes()), (model.len(), served.len()));
                let sum = model.values().fold(0u128, |sum, resource| sum.wrapping_add(resource.digest));
                proptest::prop_assert_eq!(snapshot.totals.sum, sum);
                for page in snapshot.slices.iter().flat_map(|slice| &slice.pages) {
                    proptest::prop_assert!(!page.items.is_empty());
                    proptest::prop_assert!(page.bytes.len() <= MAX_PAGE || page.items.len() == 1);
                }
                for ((slice, name), resource) in &model {
                    proptest::prop_assert_eq!(snapshot.slices[*slice].digest_of(name), Some(resource.digest));
                }
            }
        }
    }

    #[test]
    fn a_change_copies_one_page_of_a_large_slice() {
        let all: Changes =
            (0..1_000).map(|n| ((5, format!("n{n:04}").into()), Some(resource("x", &"y".repeat(2_000))))).collect();
        let base = Snapshot::default().with(&all);
        let pages = |snapshot: &Snapshot| snapshot.pages().map(|page| page.as_ptr()).collect::<BTreeSet<_>>();
        assert!((8..=32).contains(&pages(&base).len()), "{} pages", pages(&base).len());
        let next = base.with(&changes(&[(5, "n0500", Some("other"))]));
        assert_eq!(pages(&next).difference(&pages(&base)).count(), 1);
    }

    fn whole(snapshot: &Arc<Snapshot>) -> Set {
        Set::new(Arc::clone(snapshot), Part::WHOLE)
    }

    #[test]
    fn what_is_gone_stays_until_the_new_is_in() {
        let base = changes(&[(5, "a", Some("a")), (5, "b", Some("b")), (6, "c", Some("c"))]);
        let old = Arc::new(Snapshot::default().with(&base));
        let new = Arc::new(old.with(&changes(&[(5, "a", None), (5, "b", Some("b2")), (7, "d", Some("d"))])));
        let both = whole(&new).with_all_of(&whole(&old));
        let versions: BTreeMap<String, String> = decoded(&new).into_iter().collect();
        let shown = decoded(&both.snapshot);
        assert_eq!(shown.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["ns/a", "ns/b", "ns/c", "ns/d"]);
        assert!(shown.iter().all(|(name, version)| name == "ns/a" || versions[name] == *version));
        assert_eq!(whole(&new).with_all_of(&whole(&new)).sum(), whole(&new).sum());
    }

    #[test]
    fn resources_are_found_by_name() {
        let base = Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]));
        let set = whole(&Arc::new(base));
        assert_eq!((set.find("b").map(|item| &**item.name()), set.find("missing").is_none()), (Some("b"), true));
    }

    #[test]
    fn a_resource_of_a_delta_response_has_its_name_version_and_body() {
        use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
        let set = whole(&Arc::new(Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]))));
        let bytes: Vec<u8> = set.delta_pages().flatten().copied().collect();
        let decoded = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!(decoded.resources.iter().map(|resource| &*resource.name).collect::<Vec<_>>(), ["a", "b"]);
        for (resource, item) in decoded.resources.into_iter().zip(set.items()) {
            assert_eq!(*resource.version, *version_of(item.digest()));
            let mcp = McpResource::decode(resource.resource.unwrap().value).unwrap();
            assert_eq!(mcp.metadata.unwrap().version, resource.version);
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        #[test]
        fn a_difference_is_what_makes_the_old_the_new(
            sets in proptest::collection::vec(
                proptest::collection::btree_map((0usize..3, 0u8..30), 0usize..60_000, 0..30), 2)
        ) {
            let all = |set: &BTreeMap<(usize, u8), usize>| -> Changes {
                let named = |((slice, name), size): (&(usize, u8), &usize)| {
                    ((*slice, format!("{slice}-{name:02}").into()), Some(resource("x", &"y".repeat(*size))))
                };
                set.iter().map(named).collect()
            };
            let old = Arc::new(Snapshot::default().with(&all(&sets[0])));
            let mut next = all(&sets[1]);
            for key in all(&sets[0]).keys() {
                next.entry(key.clone()).or_insert(None);
            }
            let new = Arc::new(old.with(&next));
            for part in [Part::WHOLE, Part::new(0, 128).unwrap(), Part::new(1, 128).unwrap()] {
                let (old, new) = (Set::new(Arc::clone(&old), part), Set::new(Arc::clone(&new), part));
                let content = |set: &Set| -> BTreeMap<Arc<str>, u128> {
                    set.items().map(|item| (Arc::clone(&item.name), item.digest)).collect()
                };
                let mut applied = content(&old);
                let difference = new.since(&old);
                for name in &difference.removed {
                    proptest::prop_assert!(applied.remove(&***name).is_some());
                }
                for item in &difference.changed {
                    proptest::prop_assert_ne!(applied.insert(Arc::clone(&item.name), item.digest), Some(item.digest));
                }
                proptest::prop_assert_eq!(&applied, &content(&new));
                let sum = applied.values().fold(0u128, |sum, digest| sum.wrapping_add(*digest));
                proptest::prop_assert_eq!(new.sum(), sum);
            }
        }
    }
}
