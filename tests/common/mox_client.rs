//! A MoX client: speaks to the engine as istiod does. Used by the tests and by `examples/watch.rs`, each through `#[path]`.
#![allow(dead_code)] // every user needs only a part of it

use std::{collections::BTreeMap, error::Error, time::Duration};

use http::uri::PathAndQuery;
use prost::Message;
use registry_mox::proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    },
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc,
    },
    istio::{
        mcp::v1alpha1,
        networking::v1alpha3::{ServiceEntry, WorkloadEntry},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

/// What istiod asks for since 1.24.
pub(crate) const SERVICE_ENTRY: &str = "networking.istio.io/v1/ServiceEntry";

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// WorkloadEntries, likewise.
pub(crate) const WORKLOAD_ENTRY: &str = "networking.istio.io/v1/WorkloadEntry";

/// DestinationRules, likewise.
pub(crate) const DESTINATION_RULE: &str = "networking.istio.io/v1/DestinationRule";

/// The ServiceEntries a client holds, by `namespace/name`.
pub(crate) type State = BTreeMap<String, Resource>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resource {
    /// `namespace/name`
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Of a WorkloadEntry: an entry without host that has it for its only endpoint.
    pub(crate) entry: ServiceEntry,
}

impl Resource {
    /// `address:port` of every endpoint; each maps at most one port.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let number = self.entry.ports.first().map_or(0, |port| port.number);
        let own = |ports: &BTreeMap<String, u32>| *ports.values().next().unwrap_or(&number);
        (self.entry.endpoints.iter()).map(|e| format!("{}:{}", e.address, own(&e.ports))).collect()
    }
}

/// One response.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) type_url: String,
    pub(crate) version_info: String,
    pub(crate) nonce: String,
    pub(crate) resources: Vec<Resource>,
    /// The same as they were sent.
    pub(crate) bytes: Vec<bytes::Bytes>,
}

/// The node that istiod's configuration client sends.
pub(crate) fn istiod_node() -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    let fields = [("GENERATOR", "api"), ("ISTIO_VERSION", "65536.65536.65536")];
    Node {
        id: "sidecar~127.0.0.1~istiod-0.istio-system~istio-system.svc.cluster.local".to_owned(),
        cluster: String::new(),
        metadata: Some(Struct { fields: fields.map(|(k, v)| (k.to_owned(), text(v))).into() }),
    }
}

pub(crate) struct MoxClient {
    requests: mpsc::UnboundedSender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    node: Option<Node>,
    state: State,
    /// ACK each response as soon as it is decoded (the default); off, a test scripts [`MoxClient::ack`] and [`MoxClient::nack`].
    pub(crate) auto_ack: bool,
}

impl MoxClient {
    /// Opens one stream to `host:port`. The node goes out with the first request.
    pub(crate) async fn connect(addr: &str, node: Node) -> Result<Self> {
        Self::open(addr, node, None).await
    }

    /// The same under another name than the address.
    pub(crate) async fn named(authority: &str, addr: &str, node: Node) -> Result<Self> {
        let origin = format!("http://{authority}").parse()?;
        Self::over(Channel::from_shared(format!("http://{addr}"))?.origin(origin).connect().await?, node, None).await
    }

    /// The same with the first request sent along: istiod answers nothing before it, no headers even.
    pub(crate) async fn open(addr: &str, node: Node, first: Option<&str>) -> Result<Self> {
        Self::over(Channel::from_shared(format!("http://{addr}"))?.connect().await?, node, first).await
    }

    async fn over(channel: Channel, node: Node, first: Option<&str>) -> Result<Self> {
        // istiod's limit is 2 GiB.
        let mut grpc = Grpc::new(channel).max_decoding_message_size(i32::MAX as usize);
        grpc.ready().await?;
        let (requests, outgoing) = mpsc::unbounded_channel();
        let mut node = Some(node);
        if let Some(type_url) = first {
            requests.send(DiscoveryRequest { node: node.take(), ..Self::request(type_url) })?;
        }
        let responses = grpc
            .streaming(
                Request::new(UnboundedReceiverStream::new(outgoing)),
                PathAndQuery::from_static(
                    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
                ),
                Discovery,
            )
            .await?
            .into_inner();
        Ok(Self { requests, responses, node, state: State::new(), auto_ack: true })
    }

    /// Asks for a type; like istiod with a nonce that no server ever sent.
    pub(crate) fn subscribe(&mut self, type_url: &str) -> Result<()> {
        self.send(Self::request(type_url))
    }

    fn request(type_url: &str) -> DiscoveryRequest {
        let response_nonce = "not-from-any-server".to_owned();
        DiscoveryRequest { type_url: type_url.to_owned(), response_nonce, ..DiscoveryRequest::default() }
    }

    /// The next response as it came, not ACKed.
    pub(crate) async fn next_raw(&mut self) -> Result<DiscoveryResponse> {
        Ok(self.responses.message().await?.ok_or("end of stream")?)
    }

    /// The next response of any type, ACKed when `auto_ack` is on.
    pub(crate) async fn next(&mut self) -> Result<Response> {
        let message = self.next_raw().await?;
        let response = Response {
            bytes: (message.resources.iter()).map(|any| any.value.clone()).collect(),
            resources: (message.resources.iter()).map(|any| decode(&any.value)).collect::<Result<_>>()?,
            type_url: message.type_url,
            version_info: message.version_info,
            nonce: message.nonce,
        };
        if response.type_url.ends_with("/ServiceEntry") {
            // State of the world: what is absent is gone.
            self.state = (response.resources.iter().cloned()).map(|r| (r.name.clone(), r)).collect();
        }
        if self.auto_ack {
            self.ack(&response)?;
        }
        Ok(response)
    }

    pub(crate) fn ack(&mut self, response: &Response) -> Result<()> {
        self.answer(response, None)
    }

    /// The same for a response that was not decoded.
    pub(crate) fn ack_raw(&mut self, response: &DiscoveryResponse) -> Result<()> {
        self.send(DiscoveryRequest {
            version_info: response.version_info.clone(),
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        })
    }

    pub(crate) fn nack_raw(&mut self, response: &DiscoveryResponse, message: &str) -> Result<()> {
        self.send(DiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(rpc::Status { message: message.to_owned(), ..Default::default() }),
            ..Default::default()
        })
    }

    pub(crate) fn nack(&mut self, response: &Response, message: &str) -> Result<()> {
        self.answer(response, Some(rpc::Status { message: message.to_owned(), ..Default::default() }))
    }

    /// The ServiceEntries of the last response.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Reads responses until `wanted` holds for what the client has; checks what it has already first.
    pub(crate) async fn wait_until(&mut self, within: Duration, wanted: impl Fn(&State) -> bool) -> Result<()> {
        let deadline = Instant::now() + within;
        while !wanted(&self.state) {
            match timeout_at(deadline, self.next()).await {
                Ok(response) => response?,
                Err(_) => return Err(format!("not seen in {within:?}: {}", self.summary()).into()),
            };
        }
        Ok(())
    }

    /// The code that the stream ends with; what comes before that is not ACKed.
    pub(crate) async fn end(&mut self, within: Duration) -> Result<Code> {
        self.auto_ack = false;
        let end = async {
            loop {
                if let Err(error) = self.next().await {
                    return error;
                }
            }
        };
        let error = timeout_at(Instant::now() + within, end).await.map_err(|_| format!("no end within {within:?}"))?;
        Ok(error.downcast::<Status>()?.code())
    }

    fn summary(&self) -> String {
        let line = |r: &Resource| format!("{} {:?}", r.name, r.endpoints());
        let lines: Vec<_> = self.state.values().map(line).collect();
        format!("the client holds [{}]", lines.join(", "))
    }

    fn answer(&mut self, response: &Response, error_detail: Option<rpc::Status>) -> Result<()> {
        self.send(DiscoveryRequest {
            version_info: response.version_info.clone(),
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        })
    }

    fn send(&mut self, mut request: DiscoveryRequest) -> Result<()> {
        request.node = self.node.take();
        self.requests.send(request).map_err(|_| "stream closed")?;
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<Resource> {
    let resource = v1alpha1::Resource::decode(bytes)?;
    let metadata = resource.metadata.ok_or("a resource without metadata")?;
    let body = resource.body.ok_or("a resource without body")?;
    let entry = match body.type_url.strip_prefix("type.googleapis.com/istio.networking.v1alpha3.") {
        Some("ServiceEntry") => ServiceEntry::decode(body.value)?,
        Some("WorkloadEntry") => {
            ServiceEntry { endpoints: vec![WorkloadEntry::decode(body.value)?], ..ServiceEntry::default() }
        }
        // Only that it is there.
        Some("DestinationRule") => ServiceEntry::default(),
        _ => return Err(format!("{} is a {}", metadata.name, body.type_url).into()),
    };
    Ok(Resource {
        name: metadata.name,
        version: metadata.version,
        labels: metadata.labels,
        annotations: metadata.annotations,
        entry,
    })
}

/// tonic's codec for the one method there is.
struct Discovery;

impl Codec for Discovery {
    type Encode = DiscoveryRequest;
    type Decode = DiscoveryResponse;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Discovery {
    type Item = DiscoveryRequest;
    type Error = Status;
    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        item.encode(out).map_err(|e| Status::internal(e.to_string()))
    }
}

impl Decoder for Discovery {
    type Item = DiscoveryResponse;
    type Error = Status;
    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> std::result::Result<Option<Self::Item>, Status> {
        DiscoveryResponse::decode(bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
