//! What is served: an immutable set of resources, encoded once, in pages that every stream shares.
//!
//! Resources are kept in 128 slices by the top 7 bits of their host's SHA-256, and there in pages sorted by name, each in
//! one piece of memory. A change rewrites one page; the others are shared with the snapshot before. Where pages begin and
//! end depends on history, the bytes of all of them together do not.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use bytes::{BufMut, Bytes, BytesMut};
use once_cell::sync::Lazy;
use prost::{Message, encoding};
use sha2::{Digest, Sha256};

use crate::{
    proto::{
        envoy::service::discovery::v3::DiscoveryResponse,
        google::protobuf::{Any, Timestamp},
        istio::{
            mcp::v1alpha1::{Metadata, Resource as McpResource},
            networking::v1alpha3::{DestinationRule, ServiceEntry, WorkloadEntry},
        },
    },
    translate::names::hex,
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
/// Field 2 of a DiscoveryResponse.
const RESOURCES_FIELD: u32 = 2;

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
        let digest = Sha256::digest(resource.encode_to_vec());
        let version = hex(&digest[..16]);
        if let Some(metadata) = &mut resource.metadata {
            metadata.version = version;
        }
        let any = Any { type_url: RESOURCE_TYPE.to_owned(), value: resource.encode_to_vec().into() };
        let mut framed = BytesMut::with_capacity(any.encoded_len() + 8);
        encoding::message::encode(RESOURCES_FIELD, &any, &mut framed);
        let (high, _) = digest.split_first_chunk::<16>().expect("a SHA-256 has 32 bytes");
        Self { framed: framed.freeze(), digest: u128::from_be_bytes(*high), endpoints }
    }
}

/// The slice of a host: the top 7 bits of its SHA-256.
pub fn slice_of(host_digest: &[u8; 32]) -> usize {
    usize::from(host_digest[0] >> 1)
}

/// What a publish round changes, by slice and name; `None` removes.
pub type Changes = BTreeMap<(usize, Arc<str>), Option<Resource>>;

#[derive(Debug)]
struct Item {
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
}

/// A run of resources, sorted by name, in one piece of memory.
#[derive(Debug)]
struct Page {
    items: Vec<Item>,
    bytes: Bytes,
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
        Self { items: items.collect(), bytes: bytes.clone() }
    }

    fn parts(&self) -> impl Iterator<Item = (Arc<str>, Resource)> + '_ {
        self.items.iter().map(|item| (Arc::clone(&item.name), item.resource()))
    }

    /// Whether a name belongs here or further back, given that it belongs to no page before.
    fn ends_before(&self, name: &str) -> bool {
        self.items.last().is_none_or(|last| *last.name < *name)
    }
}

/// The resources of one slice, in pages sorted by name.
#[derive(Debug, Default)]
struct Slice {
    pages: Vec<Arc<Page>>,
}

impl Slice {
    fn items(&self) -> impl Iterator<Item = &Item> {
        self.pages.iter().flat_map(|page| &page.items)
    }

    fn digest_of(&self, name: &str) -> Option<u128> {
        let page = self.pages.get(self.pages.partition_point(|page| page.ends_before(name)))?;
        let found = page.items.binary_search_by(|item| (*item.name).cmp(name));
        found.ok().map(|index| page.items[index].digest)
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
        Self { pages }
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
    resources: usize,
    endpoints: u64,
    bytes: usize,
    sum: u128,
    version: Arc<str>,
}

impl Default for Snapshot {
    fn default() -> Self {
        let slices = vec![Arc::<Slice>::default(); SLICES];
        Self { slices, resources: 0, endpoints: 0, bytes: 0, sum: 0, version: version_of(0) }
    }
}

fn version_of(sum: u128) -> Arc<str> {
    hex(&sum.to_be_bytes()).into()
}

impl Snapshot {
    /// The one empty set.
    pub fn none() -> Arc<Self> {
        static NONE: Lazy<Arc<Snapshot>> = Lazy::new(Arc::default);
        Arc::clone(&NONE)
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
        let (mut resources, mut endpoints) = (self.resources, self.endpoints);
        let (mut bytes, mut sum) = (self.bytes, self.sum);
        for (index, changes) in by_slice {
            let new = self.slices[index].with(&changes);
            let old = std::mem::replace(&mut slices[index], Arc::new(new));
            let known: HashSet<*const Page> = old.pages.iter().map(Arc::as_ptr).collect();
            let kept: HashSet<*const Page> =
                slices[index].pages.iter().map(Arc::as_ptr).filter(|page| known.contains(page)).collect();
            // The sum does not depend on order, so it is kept up by what goes and comes.
            for page in old.pages.iter().filter(|page| !kept.contains(&Arc::as_ptr(page))) {
                sum = page.items.iter().fold(sum, |sum, item| sum.wrapping_sub(item.digest));
                endpoints -= page.items.iter().map(|item| u64::from(item.endpoints)).sum::<u64>();
                resources -= page.items.len();
                bytes -= page.bytes.len();
            }
            for page in slices[index].pages.iter().filter(|page| !kept.contains(&Arc::as_ptr(page))) {
                sum = page.items.iter().fold(sum, |sum, item| sum.wrapping_add(item.digest));
                endpoints += page.items.iter().map(|item| u64::from(item.endpoints)).sum::<u64>();
                resources += page.items.len();
                bytes += page.bytes.len();
            }
        }
        Self { slices, resources, endpoints, bytes, sum, version: version_of(sum) }
    }

    /// This snapshot with what only `older` has added: everything new is in it and nothing old is gone yet.
    pub fn with_all_of(&self, older: &Self) -> Self {
        let mut kept = Changes::new();
        for (index, (new, old)) in self.slices.iter().zip(&older.slices).enumerate() {
            if !Arc::ptr_eq(new, old) {
                let gone = old.items().filter(|item| new.digest_of(&item.name).is_none());
                kept.extend(gone.map(|item| ((index, Arc::clone(&item.name)), Some(item.resource()))));
            }
        }
        self.with(&kept)
    }

    /// `version_info` of this set: equal for equal content, whatever the history and whichever the session server.
    pub fn version(&self) -> &Arc<str> {
        &self.version
    }

    /// How many resources there are.
    pub fn resources(&self) -> usize {
        self.resources
    }

    /// How many endpoints they have.
    pub fn endpoints(&self) -> u64 {
        self.endpoints
    }

    /// Their encoded size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Every resource, encoded as fields of a DiscoveryResponse; shared, not copied.
    pub fn pages(&self) -> impl Iterator<Item = &Bytes> {
        self.slices.iter().flat_map(|slice| &slice.pages).map(|page| &page.bytes)
    }

    /// What a client that asks for these names (or for all) is sent.
    pub fn wanted(&self, names: Option<&BTreeSet<String>>) -> Vec<Bytes> {
        match names {
            None => self.pages().cloned().collect(),
            Some(names) => self.named(names).cloned().collect(),
        }
    }

    /// Every resource, decoded; for people.
    pub fn decode(&self) -> Vec<McpResource> {
        let response: Vec<u8> = self.pages().flatten().copied().collect();
        let response = DiscoveryResponse::decode(response.as_slice()).unwrap_or_default();
        let decoded = |any: Any| McpResource::decode(any.value).unwrap_or_default();
        response.resources.into_iter().map(decoded).collect()
    }

    /// The resources with these names, encoded likewise.
    fn named<'a>(&'a self, names: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Bytes> {
        let items = self.slices.iter().flat_map(|slice| slice.items());
        items.filter(|item| names.contains(&*item.name)).map(|item| &item.framed)
    }
}

#[cfg(test)]
mod tests {
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
                proptest::prop_assert_eq!(snapshot.sum, sum);
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

    #[test]
    fn what_is_gone_stays_until_the_new_is_in() {
        let old = Snapshot::default().with(&changes(&[(5, "a", Some("a")), (5, "b", Some("b")), (6, "c", Some("c"))]));
        let new = old.with(&changes(&[(5, "a", None), (5, "b", Some("b2")), (7, "d", Some("d"))]));
        let both = new.with_all_of(&old);
        let versions: BTreeMap<String, String> = decoded(&new).into_iter().collect();
        assert_eq!(
            decoded(&both).iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(),
            ["ns/a", "ns/b", "ns/c", "ns/d"]
        );
        assert!(decoded(&both).iter().all(|(name, version)| name == "ns/a" || versions[name] == *version));
        assert_eq!(new.with_all_of(&new).version(), new.version());
    }

    #[test]
    fn resources_are_found_by_name() {
        let base = Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]));
        assert_eq!(base.named(&["a".to_owned(), "missing".to_owned()].into()).count(), 1);
    }
}
