//! What is served: an immutable set of resources, encoded once, in pages that every stream shares.
//!
//! Resources are kept in 128 slices by the top 7 bits of their host's SHA-256. A change rewrites the page of its slice;
//! the other pages are shared with the snapshot before.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use prost::{Message, encoding};
use sha2::{Digest, Sha256};

use crate::{
    proto::{
        envoy::service::discovery::v3::DiscoveryResponse,
        google::protobuf::{Any, Timestamp},
        istio::{
            mcp::v1alpha1::{Metadata, Resource as McpResource},
            networking::v1alpha3::ServiceEntry,
        },
    },
    translate::names::hex,
};

/// Into how many slices resources are divided.
pub const SLICES: usize = 128;

/// 2100-01-01T00:00:00Z. Constant, since it may not depend on anything but the registry's data; late, since the oldest
/// of two entries for one host wins in Istio and a hand-written one should.
const CREATE_TIME: Timestamp = Timestamp { seconds: 4_102_444_800, nanos: 0 };
const RESOURCE_TYPE: &str = "type.googleapis.com/istio.mcp.v1alpha1.Resource";
const SERVICE_ENTRY_TYPE: &str = "type.googleapis.com/istio.networking.v1alpha3.ServiceEntry";
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
    /// Encodes a ServiceEntry. `metadata.version` is a hash of everything else in the resource, since it is all that
    /// istiod compares.
    pub fn service_entry(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        entry: &ServiceEntry,
    ) -> Self {
        let body = Any { type_url: SERVICE_ENTRY_TYPE.to_owned(), value: entry.encode_to_vec().into() };
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
        let endpoints = entry.endpoints.len() as u32;
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

/// Resources of one slice, sorted by name, and their page.
#[derive(Debug, Default)]
struct Slice {
    items: Vec<Item>,
    page: Bytes,
}

impl Slice {
    fn digest_of(&self, name: &str) -> Option<u128> {
        let found = self.items.binary_search_by(|item| (*item.name).cmp(name));
        found.ok().map(|index| self.items[index].digest)
    }

    fn with(&self, changes: &[(&Arc<str>, &Option<Resource>)]) -> Self {
        let mut parts: Vec<(Arc<str>, Resource)> = Vec::with_capacity(self.items.len() + changes.len());
        let (mut old, mut new) = (self.items.iter().peekable(), changes.iter().peekable());
        loop {
            let keep_old = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(item), Some((name, _))) => item.name < **name,
            };
            if keep_old {
                parts.extend(old.next().map(|item| {
                    let Item { name, framed, digest, endpoints } = item;
                    let resource = Resource { framed: framed.clone(), digest: *digest, endpoints: *endpoints };
                    (Arc::clone(name), resource)
                }));
            } else if let Some((name, resource)) = new.next() {
                old.next_if(|item| item.name == **name);
                let resource: &Option<Resource> = resource;
                parts.extend(resource.clone().map(|resource| (Arc::clone(name), resource)));
            }
        }
        let mut page = BytesMut::with_capacity(parts.iter().map(|(_, resource)| resource.framed.len()).sum());
        parts.iter().for_each(|(_, resource)| page.put_slice(&resource.framed));
        let page = page.freeze();
        let mut start = 0;
        let items = parts.into_iter().map(|(name, Resource { framed, digest, endpoints })| {
            let end = start + framed.len();
            let framed = page.slice(start..end);
            start = end;
            Item { name, framed, digest, endpoints }
        });
        Self { items: items.collect(), page: page.clone() }
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
            let new = &slices[index];
            // The sum does not depend on order, so it is kept up by what goes and comes.
            sum = old.items.iter().fold(sum, |sum, item| sum.wrapping_sub(item.digest));
            sum = new.items.iter().fold(sum, |sum, item| sum.wrapping_add(item.digest));
            let count = |slice: &Slice| slice.items.iter().map(|item| u64::from(item.endpoints)).sum::<u64>();
            endpoints = endpoints - count(&old) + count(new);
            resources = resources - old.items.len() + new.items.len();
            bytes = bytes - old.page.len() + new.page.len();
        }
        Self { slices, resources, endpoints, bytes, sum, version: version_of(sum) }
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
        self.slices.iter().map(|slice| &slice.page).filter(|page| !page.is_empty())
    }

    /// Every resource, decoded; for people.
    pub fn decode(&self) -> Vec<McpResource> {
        let response: Vec<u8> = self.pages().flatten().copied().collect();
        let response = DiscoveryResponse::decode(response.as_slice()).unwrap_or_default();
        let decoded = |any: Any| McpResource::decode(any.value).unwrap_or_default();
        response.resources.into_iter().map(decoded).collect()
    }

    /// The resources with these names, encoded likewise.
    pub fn named<'a>(&'a self, names: &'a std::collections::BTreeSet<String>) -> impl Iterator<Item = &'a Bytes> {
        let items = self.slices.iter().flat_map(|slice| &slice.items);
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
        let at = |snapshot: &Snapshot, index: usize| snapshot.slices[index].page.as_ptr();
        assert_eq!(at(&base, 6), at(&next, 6));
        assert_ne!(at(&base, 5), at(&next, 5));
    }

    #[test]
    fn resources_are_found_by_name() {
        let base = Snapshot::default().with(&changes(&[(5, "a", Some("a")), (6, "b", Some("b"))]));
        assert_eq!(base.named(&["a".to_owned(), "missing".to_owned()].into()).count(), 1);
    }
}
