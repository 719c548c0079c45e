//! A resource, encoded as istiod takes it: Istio's message in MCP's envelope in the field of a DiscoveryResponse.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::{
    DecodeError, Message,
    encoding::{self, WireType},
};
use sha2::{Digest, Sha256};

use crate::{
    digest::{hex, prefix},
    proto::{
        envoy::service::discovery::v3::DiscoveryResponse,
        google::protobuf::{Any, Timestamp},
        istio::{
            mcp::v1alpha1::{Metadata, Resource as McpResource},
            networking::v1alpha3::{DestinationRule, ServiceEntry, WorkloadEntry},
        },
    },
};

/// 2100-01-01T00:00:00Z. Constant, since it may not depend on anything but the registry's data; late, since the oldest
/// of two entries for one host wins in Istio and a hand-written one should.
const CREATE_TIME: Timestamp = Timestamp { seconds: 4_102_444_800, nanos: 0 };
const RESOURCE_TYPE: &str = "type.googleapis.com/istio.mcp.v1alpha1.Resource";
const SERVICE_ENTRY_TYPE: &str = "type.googleapis.com/istio.networking.v1alpha3.ServiceEntry";
const DESTINATION_RULE_TYPE: &str = "type.googleapis.com/istio.networking.v1alpha3.DestinationRule";
const WORKLOAD_ENTRY_TYPE: &str = "type.googleapis.com/istio.networking.v1alpha3.WorkloadEntry";
/// Field 2 of a DiscoveryResponse, and of a DeltaDiscoveryResponse.
pub(super) const RESOURCES_FIELD: u32 = 2;
/// Field 2 of an `istio.mcp.v1alpha1.Resource`.
const BODY_FIELD: u32 = 2;
/// Field 2 of a `google.protobuf.Any`.
const ANY_VALUE_FIELD: u32 = 2;

/// A resource, encoded.
#[derive(Debug, Clone)]
pub struct Resource {
    /// The field of a DiscoveryResponse that carries it: tag, length, `Any`.
    pub(super) framed: Bytes,
    pub(super) digest: u128,
    pub(super) endpoints: u32,
}

/// A resource whose message is being encoded, in the place where it stays: `metadata.version` is a hash of all that follows, and
/// lengths stand before what they are of, so there is room for a head.
#[derive(Debug)]
pub struct Draft {
    resource: McpResource,
    /// The resource without version and message.
    unversioned: Vec<u8>,
    type_url: &'static str,
    bytes: BytesMut,
    room: usize,
}

impl Draft {
    /// A head has so many bytes at most beside the resource without version and message, and the names of two types.
    const HEAD: usize = 128;

    /// A ServiceEntry of about so many bytes.
    pub fn service_entry(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        bytes: usize,
    ) -> Self {
        Self::new(name, labels, annotations, SERVICE_ENTRY_TYPE, bytes)
    }

    fn new(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        type_url: &'static str,
        bytes: usize,
    ) -> Self {
        let metadata = Metadata { name, create_time: Some(CREATE_TIME), version: String::new(), labels, annotations };
        let resource = McpResource { metadata: Some(metadata), body: None };
        let unversioned = resource.encode_to_vec();
        let room = Self::HEAD + RESOURCE_TYPE.len() + type_url.len() + unversioned.len();
        let mut all = BytesMut::with_capacity(room + bytes);
        all.put_bytes(0, room);
        Self { resource, unversioned, type_url, bytes: all, room }
    }

    /// Takes the message, which goes behind what is there.
    pub fn body(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// The resource, of which so many endpoints count, and the message in it. The version is a hash of everything else in the
    /// resource, since it is all that istiod compares. The message may be large: it is hashed where it lies, and not copied.
    pub fn finish(self, endpoints: usize) -> (Resource, Bytes) {
        let Self { mut resource, unversioned, type_url, mut bytes, room } = self;
        let body = &bytes[room..];
        let body_head = field_head(BODY_FIELD, any_head(type_url, body.len()), body.len());
        let digest = Sha256::new().chain_update(unversioned).chain_update(&body_head).chain_update(body).finalize();
        let digest = prefix(&digest.into());
        if let Some(metadata) = &mut resource.metadata {
            metadata.version = hex(&digest);
        }
        let versioned = resource.encode_to_vec();
        let length = versioned.len() + body_head.len() + body.len();
        let head =
            [field_head(RESOURCES_FIELD, any_head(RESOURCE_TYPE, length), length), versioned, body_head].concat();
        let start = room.checked_sub(head.len()).expect("there is room for a head");
        bytes[start..room].copy_from_slice(&head);
        bytes.advance(start);
        let framed = bytes.freeze();
        let body = framed.slice(head.len()..);
        (Resource { framed, digest: u128::from_be_bytes(digest), endpoints: endpoints as u32 }, body)
    }
}

impl Resource {
    /// Encodes a ServiceEntry.
    pub fn service_entry(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        entry: &ServiceEntry,
    ) -> Self {
        Self::new(name, labels, annotations, SERVICE_ENTRY_TYPE, entry, entry.endpoints.len())
    }

    /// Encodes a ServiceEntry that repeats the endpoints of others, so they are not counted again.
    pub fn beside(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        entry: &ServiceEntry,
    ) -> Self {
        Self { endpoints: 0, ..Self::service_entry(name, labels, annotations, entry) }
    }

    /// Encodes a WorkloadEntry, which is one endpoint.
    pub fn workload_entry(name: String, annotations: BTreeMap<String, String>, entry: &WorkloadEntry) -> Self {
        Self::new(name, BTreeMap::new(), annotations, WORKLOAD_ENTRY_TYPE, entry, 1)
    }

    /// Encodes a DestinationRule.
    pub fn destination_rule(name: String, annotations: BTreeMap<String, String>, rule: &DestinationRule) -> Self {
        Self::new(name, BTreeMap::new(), annotations, DESTINATION_RULE_TYPE, rule, 0)
    }

    /// A resource that lies encoded in a field already, and what was [`read`] there; `None` if it has no version.
    pub(crate) fn kept(field: Bytes, resource: &McpResource, endpoints: u32) -> Option<Self> {
        let digest = u128::from_str_radix(&resource.metadata.as_ref()?.version, 16).ok()?;
        Some(Self { framed: field, digest, endpoints })
    }

    /// A resource that is served as it is, without Istio's envelope, as Envoy takes its own.
    #[cfg(any(test, feature = "testing"))]
    pub fn plain(any: &Any) -> Self {
        let mut framed = BytesMut::new();
        encoding::message::encode(RESOURCES_FIELD, any, &mut framed);
        let digest = u128::from_be_bytes(crate::digest::prefix_of(any.encode_to_vec()));
        Self { framed: framed.freeze(), digest, endpoints: 0 }
    }

    fn new(
        name: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        type_url: &'static str,
        message: &impl Message,
        endpoints: usize,
    ) -> Self {
        let mut draft = Draft::new(name, labels, annotations, type_url, message.encoded_len());
        message.encode(draft.body()).expect("the bytes grow as they must");
        draft.finish(endpoints).0
    }
}

/// Room for the resources of a round until they are in pages. Side by side they leave the allocator whole pieces when they go;
/// between what stays, as each is made, they would leave a gap each.
#[derive(Debug, Default)]
pub struct Room {
    piece: BytesMut,
    /// How many came.
    came: usize,
}

impl Room {
    /// Resources that stay where they are: few make no gaps that matter.
    const FEW: usize = if cfg!(test) { 1 } else { 16 };
    const PIECE: usize = 64 << 10;

    /// Moves a resource into the room, unless it is large, or somebody keeps a part of it where it is.
    pub fn keep(&mut self, resource: &mut Resource) {
        let length = resource.framed.len();
        self.came += 1;
        if self.came <= Self::FEW || length > Self::PIECE / 4 || !resource.framed.is_unique() {
            return;
        }
        if self.piece.capacity() < length {
            self.piece = BytesMut::with_capacity(Self::PIECE);
        }
        self.piece.put_slice(&resource.framed);
        resource.framed = self.piece.split().freeze();
    }
}

/// An encoded `Any` up to its value, of which `length` bytes follow.
fn any_head(type_url: &str, length: usize) -> Vec<u8> {
    let mut head = Any { type_url: type_url.to_owned(), value: Bytes::new() }.encode_to_vec();
    // A field that has the default value is not written.
    if length > 0 {
        encoding::encode_key(ANY_VALUE_FIELD, WireType::LengthDelimited, &mut head);
        encoding::encode_varint(length as u64, &mut head);
    }
    head
}

/// The key and length of a field whose value begins with `start`, and `start`; `length` bytes follow.
fn field_head(field: u32, start: Vec<u8>, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(start.len() + 16);
    encoding::encode_key(field, WireType::LengthDelimited, &mut head);
    encoding::encode_varint((start.len() + length) as u64, &mut head);
    head.extend(start);
    head
}

/// The changes of a round, by slice and name; `None` removes.
pub type Changes = BTreeMap<(usize, Arc<str>), Option<Resource>>;

/// A version as it is written.
pub fn version_of(sum: u128) -> Arc<str> {
    hex(&sum.to_be_bytes()).into()
}

/// The fields of a DiscoveryResponse that carry resources, as they lie behind one another in `pages`.
pub(crate) fn fields(mut pages: Bytes) -> impl Iterator<Item = Result<Bytes, DecodeError>> {
    std::iter::from_fn(move || {
        let mut rest = pages.clone();
        if rest.is_empty() {
            return None;
        }
        let length = encoding::decode_key(&mut rest).and_then(|_| encoding::decode_varint(&mut rest));
        let end = length.map(|length| (pages.len() - rest.len()).saturating_add(length as usize));
        Some(end.map(|end| pages.split_to(end.min(pages.len()))).inspect_err(|_| pages.clear()))
    })
}

/// The resource that such a field carries; its body is not copied.
pub(crate) fn read(field: &Bytes) -> Result<McpResource, DecodeError> {
    let response = DiscoveryResponse::decode(field.clone())?;
    McpResource::decode(response.resources.into_iter().next().unwrap_or_default().value)
}

/// The value that an encoded WorkloadEntry has of a label.
pub(crate) fn workload_label(entry: Bytes, label: &str) -> Option<String> {
    WorkloadEntry::decode(entry).ok()?.labels.remove(label)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    /// The definition: the version is the hash of the resource without it.
    fn by_definition(metadata: Metadata, type_url: &str, body: Vec<u8>) -> (Vec<u8>, u128) {
        let body = Any { type_url: type_url.to_owned(), value: body.into() };
        let mut resource = McpResource { metadata: Some(metadata), body: Some(body) };
        let digest: [u8; 16] = crate::digest::prefix_of(resource.encode_to_vec());
        resource.metadata.as_mut().unwrap().version = hex(&digest);
        let any = Any { type_url: RESOURCE_TYPE.to_owned(), value: resource.encode_to_vec().into() };
        let response = DiscoveryResponse { resources: vec![any], ..DiscoveryResponse::default() };
        (response.encode_to_vec(), u128::from_be_bytes(digest))
    }

    #[test]
    fn many_resources_share_pieces_and_are_what_they_were() {
        let entry = |endpoints: usize| ServiceEntry { hosts: vec!["h".repeat(endpoints)], ..ServiceEntry::default() };
        let made = |n: usize| {
            let large = if n.is_multiple_of(7) { Room::PIECE } else { 0 };
            Resource::service_entry(format!("n/{n}"), BTreeMap::new(), BTreeMap::new(), &entry(100 + n + large))
        };
        let mut room = Room::default();
        let all: Vec<_> = (0..500)
            .map(|n| {
                let mut resource = made(n);
                room.keep(&mut resource);
                resource
            })
            .collect();
        for (n, resource) in all.iter().enumerate() {
            assert_eq!((&resource.framed, resource.digest), (&made(n).framed, made(n).digest));
        }
        let small = all.iter().filter(|resource| resource.framed.len() <= Room::PIECE / 4);
        let places: Vec<_> = small.skip(Room::FEW).map(|resource| resource.framed.as_ptr_range()).collect();
        let apart = places.windows(2).filter(|pair| pair[0].end != pair[1].start).count();
        assert!(apart <= 500 * 1_024 / Room::PIECE, "{apart}");
    }

    proptest! {
        #[test]
        fn a_resource_put_together_of_parts_is_the_resource_encoded_as_a_whole(
            name in ".{0,300}", labels in btree_map(".{0,9}", ".{0,9}", 0..3), annotations in btree_map(".{0,9}", ".{0,200}", 0..3),
            body in prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), (120usize..20_000).prop_map(|n| vec![7; n])],
        ) {
            let mut draft = Draft::service_entry(name.clone(), labels.clone(), annotations.clone(), 0);
            draft.body().put_slice(&body);
            let (made, kept) = draft.finish(3);
            prop_assert_eq!(&kept[..], &body[..]);
            let metadata = Metadata { name, create_time: Some(CREATE_TIME), version: String::new(), labels, annotations };
            let (framed, digest) = by_definition(metadata, SERVICE_ENTRY_TYPE, body.clone());
            prop_assert_eq!((made.framed.to_vec(), made.digest, made.endpoints), (framed, digest, 3));
            // A resource that lies in a page is found there again.
            let page: Bytes = [&made.framed[..], &made.framed[..]].concat().into();
            for field in fields(page.clone()) {
                let field = field.unwrap();
                let resource = read(&field).unwrap();
                prop_assert_eq!(&resource.body.as_ref().unwrap().value, &body);
                let kept = Resource::kept(field, &resource, 3).unwrap();
                prop_assert_eq!((&kept.framed, kept.digest), (&made.framed, made.digest));
            }
            prop_assert_eq!(fields(page.slice(..page.len() - 1)).filter(Result::is_ok).count(), 2);
        }
    }
}
