//! Clients of MoX: a [`Stream`] of either variant, which answers nothing by itself, and on it [`MoxClient`], which keeps what it
//! is told as istiod does.

use std::{collections::BTreeMap, error::Error, marker::PhantomData, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use prost::Message;
use registry_mox::proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
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
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Code, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::SOON;

pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The path of a method is this and its name.
pub const SERVICE: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/";

/// ServiceEntries, by the type that istiod asks for since 1.24.
pub const SERVICE_ENTRY: &str = "networking.istio.io/v1/ServiceEntry";

/// WorkloadEntries, likewise.
pub const WORKLOAD_ENTRY: &str = "networking.istio.io/v1/WorkloadEntry";

/// DestinationRules, likewise.
pub const DESTINATION_RULE: &str = "networking.istio.io/v1/DestinationRule";

/// A type of which nothing is ever served.
pub const BARRIER: &str = "test/v1/Barrier";

/// The ServiceEntries a client holds, by `namespace/name`.
pub type State = BTreeMap<String, Resource>;

#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// `namespace/name`
    pub name: String,
    pub version: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Of a WorkloadEntry: an entry without host that has it for its only endpoint.
    pub entry: ServiceEntry,
}

impl Resource {
    /// `address:port` of every endpoint; each maps at most one port.
    pub fn endpoints(&self) -> Vec<String> {
        let number = self.entry.ports.first().map_or(0, |port| port.number);
        let own = |ports: &BTreeMap<String, u32>| *ports.values().next().unwrap_or(&number);
        (self.entry.endpoints.iter()).map(|e| format!("{}:{}", e.address, own(&e.ports))).collect()
    }
}

/// A state-of-the-world response, with its resources decoded.
#[derive(Clone, Debug)]
pub struct Response {
    pub type_url: String,
    pub version_info: String,
    pub nonce: String,
    pub resources: Vec<Resource>,
    /// The same as they were sent.
    pub bytes: Vec<bytes::Bytes>,
}

impl Response {
    /// A response with its resources as istiod reads them.
    pub fn of(message: DiscoveryResponse) -> Result<Self> {
        Ok(Self {
            bytes: (message.resources.iter()).map(|any| any.value.clone()).collect(),
            resources: (message.resources.iter()).map(|any| decode(&any.value)).collect::<Result<_>>()?,
            type_url: message.type_url,
            version_info: message.version_info,
            nonce: message.nonce,
        })
    }

    /// What a client has then: state of the world, so what is absent is gone.
    pub fn state(&self) -> State {
        self.resources.iter().map(|resource| (resource.name.clone(), resource.clone())).collect()
    }
}

/// A node of this name that says nothing else of itself.
pub fn node(id: &str) -> Node {
    Node { id: id.to_owned(), ..Node::default() }
}

/// The node that istiod's configuration client sends.
pub fn istiod_node() -> Node {
    let fields = [("GENERATOR", "api"), ("ISTIO_VERSION", "65536.65536.65536")];
    node_of("127.0.0.1", "istiod-0", "istio-system", &fields)
}

/// The node that the sidecar of a pod sends, with `more` metadata than every sidecar has; its cluster has no name.
pub fn sidecar_node(ip: &str, pod: &str, namespace: &str, more: &[(&str, &str)]) -> Node {
    let fields = [("NAMESPACE", namespace), ("CLUSTER_ID", "Kubernetes"), ("ISTIO_VERSION", "1.29.1")];
    node_of(ip, pod, namespace, &[&fields, more].concat())
}

fn node_of(ip: &str, pod: &str, namespace: &str, metadata: &[(&str, &str)]) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = metadata.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
    Node {
        id: format!("sidecar~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: String::new(),
        metadata: Some(Struct { fields }),
    }
}

/// A request of one of the two variants of the protocol.
pub trait Request: Message + Default + 'static {
    type Response: Message + Default + 'static;
    const METHOD: &'static str;
}

impl Request for DiscoveryRequest {
    type Response = DiscoveryResponse;
    const METHOD: &'static str = "StreamAggregatedResources";
}

impl Request for DeltaDiscoveryRequest {
    type Response = DeltaDiscoveryResponse;
    const METHOD: &'static str = "DeltaAggregatedResources";
}

/// A stream, on which nothing is said but what the test says.
pub struct Stream<Q: Request> {
    requests: mpsc::UnboundedSender<Q>,
    responses: Streaming<Q::Response>,
}

/// State of the world.
pub type Sotw = Stream<DiscoveryRequest>;
/// Incremental.
pub type Delta = Stream<DeltaDiscoveryRequest>;

impl<Q: Request> Stream<Q> {
    /// A stream to `host:port` that must be accepted.
    pub async fn connect(address: &str) -> Self {
        Self::open(channel(address).await.unwrap(), None).await.unwrap()
    }

    /// A stream on a connection. With a first request that is sent along: istiod answers nothing before it, no headers even.
    pub async fn open(channel: Channel, first: Option<Q>) -> Result<Self> {
        // istiod's limit is 2 GiB.
        let mut grpc = Grpc::new(channel).max_decoding_message_size(i32::MAX as usize);
        grpc.ready().await?;
        let (requests, outgoing) = mpsc::unbounded_channel();
        if let Some(first) = first {
            requests.send(first)?;
        }
        let path = PathAndQuery::try_from(format!("{SERVICE}{}", Q::METHOD))?;
        let outgoing = tonic::Request::new(UnboundedReceiverStream::new(outgoing));
        let responses = grpc.streaming(outgoing, path, Messages(PhantomData)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    /// Sends a request; where the stream has ended, the next read tells.
    pub fn send(&self, request: Q) {
        let _ = self.requests.send(request);
    }

    /// The next response, however long it takes.
    pub async fn message(&mut self) -> Result<Q::Response, Status> {
        self.responses.message().await?.ok_or_else(|| Status::ok("the end"))
    }

    /// The next response, or how the stream ended.
    pub async fn try_next(&mut self) -> Result<Q::Response, Status> {
        timeout(SOON, self.message()).await.expect("a response in time")
    }

    pub async fn next(&mut self) -> Q::Response {
        self.try_next().await.unwrap()
    }

    /// Status code that the stream ends with.
    pub async fn end(&mut self) -> Code {
        loop {
            if let Err(status) = self.try_next().await {
                return status.code();
            }
        }
    }
}

async fn channel(address: &str) -> Result<Channel> {
    Ok(Channel::from_shared(format!("http://{address}"))?.connect().await?)
}

impl Sotw {
    /// A request that answers nothing.
    pub fn ask(&self, type_url: &str, names: &[&str]) {
        self.request(type_url, "", names, None);
    }

    pub fn request(&self, type_url: &str, nonce: &str, names: &[&str], error: Option<&str>) {
        self.send(DiscoveryRequest {
            node: Some(node("client")),
            type_url: type_url.into(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            response_nonce: nonce.into(),
            error_detail: error.map(|message| rpc::Status { message: message.into(), ..rpc::Status::default() }),
            ..DiscoveryRequest::default()
        });
    }

    pub fn ack(&self, response: &DiscoveryResponse, names: &[&str]) {
        self.request(&response.type_url, &response.nonce, names, None);
    }

    /// The next response of a type, ACKed with these names.
    pub async fn take(&mut self, names: &[&str]) -> DiscoveryResponse {
        let response = self.next().await;
        self.ack(&response, names);
        response
    }

    /// That nothing is due: what is asked for meanwhile is answered, again and again, and nothing else is said. Which of two
    /// things that are due goes first is left to chance, so it is asked often.
    pub async fn silent(&mut self) {
        for _ in 0..16 {
            self.ask(BARRIER, &[]);
            let response = self.next().await;
            assert_eq!(response.type_url, BARRIER, "{} resources", response.resources.len());
        }
    }
}

impl Delta {
    pub fn ask(&self, nonce: &str, subscribe: &[&str], unsubscribe: &[&str]) {
        self.send(Self::request(SERVICE_ENTRY, nonce, subscribe, unsubscribe));
    }

    pub fn request(type_url: &str, nonce: &str, subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        DeltaDiscoveryRequest {
            node: Some(node("client")),
            type_url: type_url.into(),
            resource_names_subscribe: owned(subscribe),
            resource_names_unsubscribe: owned(unsubscribe),
            response_nonce: nonce.into(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// The next response, ACKed: what it brings and what it takes.
    pub async fn take(&mut self) -> (Vec<String>, Vec<String>) {
        let response = self.next().await;
        self.ask(&response.nonce, &[], &[]);
        (response.resources.into_iter().map(|resource| resource.name).collect(), response.removed_resources)
    }

    /// See [`Sotw::silent`].
    pub async fn silent(&mut self) {
        let mut nonce = String::new();
        for _ in 0..16 {
            self.send(Self::request(BARRIER, &nonce, &["x"], &[]));
            let response = self.next().await;
            assert_eq!(response.type_url, BARRIER, "{} resources", response.resources.len());
            nonce = response.nonce;
        }
        self.send(Self::request(BARRIER, &nonce, &[], &[]));
    }
}

/// A client that keeps what it is told, as istiod does.
pub struct MoxClient {
    stream: Sotw,
    node: Option<Node>,
    state: State,
    /// ACK each response as soon as it is decoded (the default); off, a test scripts [`MoxClient::ack`] and [`MoxClient::nack`].
    pub auto_ack: bool,
}

impl MoxClient {
    /// Opens one stream to `host:port`. The node goes out with the first request.
    pub async fn connect(address: &str, node: Node) -> Result<Self> {
        Self::over(channel(address).await?, node, None).await
    }

    /// The same under another name than the address.
    pub async fn named(authority: &str, address: &str, node: Node) -> Result<Self> {
        let origin = format!("http://{authority}").parse()?;
        let channel = Channel::from_shared(format!("http://{address}"))?.origin(origin).connect().await?;
        Self::over(channel, node, None).await
    }

    /// The same with a first request for a type, sent along.
    pub async fn asking(address: &str, node: Node, type_url: &str) -> Result<Self> {
        Self::over(channel(address).await?, node, Some(type_url)).await
    }

    async fn over(channel: Channel, node: Node, first: Option<&str>) -> Result<Self> {
        let mut node = Some(node);
        let first = first.map(|type_url| DiscoveryRequest { node: node.take(), ..Self::request(type_url) });
        Ok(Self { stream: Stream::open(channel, first).await?, node, state: State::new(), auto_ack: true })
    }

    /// Asks for a type; like istiod with a nonce that no server ever sent.
    pub fn subscribe(&mut self, type_url: &str) -> Result<()> {
        self.send(Self::request(type_url))
    }

    fn request(type_url: &str) -> DiscoveryRequest {
        let response_nonce = "not-from-any-server".to_owned();
        DiscoveryRequest { type_url: type_url.to_owned(), response_nonce, ..DiscoveryRequest::default() }
    }

    /// The next response as it came, not ACKed.
    pub async fn next_raw(&mut self) -> Result<DiscoveryResponse> {
        Ok(self.stream.message().await?)
    }

    /// The next response of any type, ACKed when `auto_ack` is on.
    pub async fn next(&mut self) -> Result<Response> {
        let response = Response::of(self.next_raw().await?)?;
        if response.type_url.ends_with("/ServiceEntry") {
            self.state = response.state();
        }
        if self.auto_ack {
            self.ack(&response)?;
        }
        Ok(response)
    }

    /// The next response of a type, whatever comes between.
    pub async fn next_of(&mut self, type_url: &str) -> Response {
        loop {
            let response = timeout(SOON, self.next()).await.expect("a response in time").unwrap();
            if response.type_url == type_url {
                return response;
            }
        }
    }

    pub fn ack(&mut self, response: &Response) -> Result<()> {
        self.answer(&response.type_url, &response.version_info, &response.nonce, None)
    }

    /// The same for a response that was not decoded.
    pub fn ack_raw(&mut self, response: &DiscoveryResponse) -> Result<()> {
        self.answer(&response.type_url, &response.version_info, &response.nonce, None)
    }

    pub fn nack(&mut self, response: &Response, message: &str) -> Result<()> {
        self.answer(&response.type_url, &response.version_info, &response.nonce, Some(message))
    }

    pub fn nack_raw(&mut self, response: &DiscoveryResponse, message: &str) -> Result<()> {
        self.answer(&response.type_url, "", &response.nonce, Some(message))
    }

    /// The ServiceEntries of the last response.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Reads responses until `wanted` holds for what the client has; checks what it has already first.
    pub async fn wait_until(&mut self, within: Duration, wanted: impl Fn(&State) -> bool) -> Result<()> {
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
    pub async fn end(&mut self, within: Duration) -> Result<Code> {
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

    fn answer(&mut self, type_url: &str, version: &str, nonce: &str, error: Option<&str>) -> Result<()> {
        self.send(DiscoveryRequest {
            version_info: version.to_owned(),
            type_url: type_url.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: error.map(|message| rpc::Status { message: message.to_owned(), ..Default::default() }),
            ..Default::default()
        })
    }

    fn send(&mut self, mut request: DiscoveryRequest) -> Result<()> {
        request.node = self.node.take();
        self.stream.requests.send(request).map_err(|_| "stream closed")?;
        Ok(())
    }
}

/// A resource as istiod reads it.
pub fn decode(bytes: &[u8]) -> Result<Resource> {
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

/// A message as gRPC frames it, not compressed.
pub fn framed(body: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(body.len() as u32);
    message.put_slice(body);
    message.freeze()
}

/// tonic's codec for messages of either variant.
struct Messages<Q, R>(PhantomData<fn() -> (Q, R)>);

impl<Q: Message + Default + 'static, R: Message + Default + 'static> Codec for Messages<Q, R> {
    type Encode = Q;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }
    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message, R> Encoder for Messages<Q, R> {
    type Item = Q;
    type Error = Status;
    fn encode(&mut self, item: Q, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out).map_err(|e| Status::internal(e.to_string()))
    }
}

impl<Q, R: Message + Default> Decoder for Messages<Q, R> {
    type Item = R;
    type Error = Status;
    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
