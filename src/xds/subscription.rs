//! A type on a stream, what the client wants of it and what it has: values without IO, one for each variant of the
//! protocol.
//!
//! Quotations are from the specification, <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>; links name the
//! section.

pub mod delta;
pub mod sotw;

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{
    proto::{
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest, ResourceLocator},
        },
        google::rpc,
    },
    snapshot::Set,
    xds::limits::{NACK_TEXT, cut},
};

/// Fields that the requests of both variants have.
pub trait Request: prost::Message + Default + 'static {
    /// Numbers of the fields that are names of resources.
    const NAMES: &'static [u32];
    /// Number of the field that has names and versions of resources.
    const VERSIONS: Option<u32>;

    /// The client; in the first request of a stream.
    fn node(&self) -> Option<&Node>;
    /// The type asked for.
    fn type_url(&self) -> &str;
    /// Nonce of the response that the request answers; empty: the request answers none.
    fn nonce(&self) -> &str;
    /// Why the client does not accept the response. "NACK signifies unsuccessful configuration and is indicated by the presence
    /// of the error_detail field."
    /// <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#ack-and-nack-semantics-summary>
    fn error(&self) -> Option<&rpc::Status>;
}

impl Request for DiscoveryRequest {
    const NAMES: &'static [u32] = &[3];
    const VERSIONS: Option<u32> = None;

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
    fn type_url(&self) -> &str {
        &self.type_url
    }
    fn nonce(&self) -> &str {
        &self.response_nonce
    }
    fn error(&self) -> Option<&rpc::Status> {
        self.error_detail.as_ref()
    }
}

impl Request for DeltaDiscoveryRequest {
    const NAMES: &'static [u32] = &[3, 4];
    const VERSIONS: Option<u32> = Some(5);

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
    fn type_url(&self) -> &str {
        &self.type_url
    }
    fn nonce(&self) -> &str {
        &self.response_nonce
    }
    fn error(&self) -> Option<&rpc::Status> {
        self.error_detail.as_ref()
    }
}

/// The resources of a response.
#[derive(Debug, Default)]
pub struct ResponseContent {
    /// Encoded `resources` fields.
    pub pages: Vec<Bytes>,
    /// Names of resources that are gone; in a delta response only.
    pub removed: Vec<String>,
}

/// A type on a stream.
pub trait Subscription: Default + Send + 'static {
    /// The variant's request.
    type Request: Request;
    /// The variant's method of the service.
    const METHOD: &'static str;
    /// Whether the variant's responses are DeltaDiscoveryResponses.
    const DELTA: bool;

    /// Takes a request in; whether it is the answer to the last response.
    fn request(&mut self, request: Self::Request) -> bool;

    /// Whether the client lacks something of this set, or asked for it once more.
    fn lacks(&mut self, set: &Set) -> bool;

    /// Whether a response should go out now that this is the newest set. At most one is unanswered at a time; what changes
    /// meanwhile goes into the next.
    fn wants(&mut self, set: &Set) -> bool {
        !self.exchange().in_flight() && self.lacks(set)
    }

    /// Whether the client asked for the next response, so that it is no push.
    fn asked(&self) -> bool;

    /// About how many bytes are kept of what the client asked for and said.
    fn kept(&self) -> usize;

    /// The set of which pages are kept, to tell what is different in another.
    fn holds(&self) -> Option<&Set>;

    /// How many names must be looked up at most to say whether the client lacks something of this set and, if it is `told`, to make
    /// the response.
    fn lookups(&self, set: &Set, told: bool) -> usize;

    /// Makes a response of the newest set and notes that it goes out.
    fn respond(&mut self, set: &Set, nonce: u64) -> ResponseContent;

    /// The responses so far, and the answers to them.
    fn exchange(&self) -> &Exchange;
}

/// The response that the nonce of a request refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nonce {
    /// No response, or one that is not the last.
    Stale,
    /// The last response, which this request answers.
    Answers,
    /// The last response, which an earlier request answered. A request without an error does not take a NACK back.
    Again,
}

/// Responses of one type on one stream, and what became of them.
#[derive(Debug, Default, Clone)]
pub struct Exchange {
    /// Nonce of the last response; `None` before the first.
    nonce: Option<u64>,
    /// Whether that response is still unanswered.
    in_flight: bool,
    /// Hash of the content of the last response.
    sent: Option<u128>,
    /// Hash of the content of the last response that was accepted.
    acked: Option<u128>,
    /// The client's words on the last response, if it did not accept it; [`NACK_TEXT`] characters at most.
    error: Option<String>,
}

impl Exchange {
    /// Takes the nonce of a request, and what the request says of the response that had it.
    fn answer(&mut self, nonce: &str, error: Option<&rpc::Status>) -> Nonce {
        if self.nonce.is_none_or(|last| nonce != last.to_string()) {
            return Nonce::Stale;
        }
        if !std::mem::take(&mut self.in_flight) {
            return Nonce::Again;
        }
        match error {
            // The same content is not sent again; the next change is.
            Some(error) => self.error = Some(cut(&error.message, NACK_TEXT).to_owned()),
            None => {
                self.acked = self.sent;
                self.error = None;
            }
        }
        Nonce::Answers
    }

    fn respond(&mut self, nonce: u64, content: u128) {
        self.nonce = Some(nonce);
        self.in_flight = true;
        self.sent = Some(content);
    }

    /// Nonce of the last response; `None` before the first.
    #[cfg(test)]
    pub fn nonce(&self) -> Option<u64> {
        self.nonce
    }

    /// Whether the last response is unanswered.
    pub fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// Hash of the content of the last response.
    pub fn sent(&self) -> Option<u128> {
        self.sent
    }

    /// Hash of the content of the last response that was accepted.
    pub fn acked(&self) -> Option<u128> {
        self.acked
    }

    /// About how many bytes are kept of what the client said.
    fn kept(&self) -> usize {
        self.error.as_ref().map_or(0, String::len)
    }

    /// The client's words on the last response, if it did not accept it.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

/// The names of a request, with those of its locators, whose dynamic parameters play no role.
fn names(names: Vec<String>, locators: Vec<ResourceLocator>) -> impl Iterator<Item = String> {
    names.into_iter().chain(locators.into_iter().map(|locator| locator.name))
}

/// Bytes that a name takes in a set or map, beyond its own.
const NAME: usize = 96;

/// Names, and how many bytes they take.
#[derive(Debug, Default)]
struct Names {
    names: BTreeSet<Arc<str>>,
    bytes: usize,
}

impl Names {
    fn insert(&mut self, name: Arc<str>) {
        let bytes = name.len();
        self.bytes += if self.names.insert(name) { NAME + bytes } else { 0 };
    }

    fn remove(&mut self, name: &str) -> bool {
        let removed = self.names.remove(name);
        self.bytes -= if removed { NAME + name.len() } else { 0 };
        removed
    }

    fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.names.retain(|name| stays(name));
        self.bytes = self.names.iter().map(|name| NAME + name.len()).sum();
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    fn len(&self) -> usize {
        self.names.len()
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The name that stands for every resource.
const EVERYTHING: &str = "*";

#[cfg(test)]
pub(crate) mod testing {
    use std::{collections::BTreeMap, sync::Arc};

    use crate::{
        proto::istio::networking::v1alpha3::ServiceEntry,
        snapshot::{Changes, Resource, Set, Snapshot, partition::Partition},
    };

    /// A set of resources with these names and hosts.
    pub(crate) fn set(of: &[(&str, &str)]) -> Set {
        let resource = |(name, host): &(&str, &str)| {
            let entry = ServiceEntry { hosts: vec![(*host).into()], ..ServiceEntry::default() };
            let made = Resource::service_entry((*name).into(), BTreeMap::new(), BTreeMap::new(), &entry);
            ((name.len() % 128, (*name).into()), Some(made))
        };
        let all: Changes = of.iter().map(resource).collect();
        Set::new(Arc::new(Snapshot::default().with(&all)), Partition::WHOLE)
    }
}
