//! A resource, encoded as istiod takes it: Istio's message in MCP's envelope in the field of a DiscoveryResponse.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};
use prost::{DecodeError, Message, encoding};

use crate::{
    digest::{hex, prefix_of},
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

/// One resource, encoded.
#[derive(Debug, Clone)]
pub struct Resource {
    /// The field of a DiscoveryResponse that carries it: tag, length, `Any`.
    pub(super) framed: Bytes,
    pub(super) digest: u128,
    pub(super) endpoints: u32,
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

/// A version as it is written.
pub fn version_of(sum: u128) -> Arc<str> {
    hex(&sum.to_be_bytes()).into()
}

/// Resources that lie behind one another as fields of a DiscoveryResponse, which is what pages are.
pub(crate) fn decode(fields: &[u8]) -> Result<Vec<McpResource>, DecodeError> {
    let response = DiscoveryResponse::decode(fields)?;
    response.resources.into_iter().map(|any| McpResource::decode(any.value)).collect()
}
