//! A client of either variant that does nothing by itself, and one that speaks HTTP/2 by hand.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use prost::Message;
use registry_mox::proto::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse},
    },
    google::rpc,
    istio::{mcp::v1alpha1::Resource, networking::v1alpha3::ServiceEntry},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const SERVICE: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/";
pub(crate) const SERVICE_ENTRY: &str = "networking.istio.io/v1/ServiceEntry";
/// Nothing is ever served of it.
pub(crate) const BARRIER: &str = "test/v1/Barrier";

pub(crate) fn node() -> Node {
    Node { id: "client".into(), ..Node::default() }
}

/// One stream.
pub(crate) struct Client<Q, R> {
    requests: mpsc::UnboundedSender<Q>,
    responses: Streaming<R>,
}

pub(crate) type Sotw = Client<DiscoveryRequest, DiscoveryResponse>;
pub(crate) type Delta = Client<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;

impl<Q: Message + Default + 'static, R: Message + Default + 'static> Client<Q, R> {
    async fn open(address: &str, method: &str) -> Self {
        Self::over(Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap(), method).await
    }

    async fn over(channel: Channel, method: &str) -> Self {
        let mut grpc = Grpc::new(channel).max_decoding_message_size(i32::MAX as usize);
        grpc.ready().await.unwrap();
        let (requests, outgoing) = mpsc::unbounded_channel();
        let path = PathAndQuery::try_from(format!("{SERVICE}{method}")).unwrap();
        let outgoing = Request::new(UnboundedReceiverStream::new(outgoing));
        let responses = grpc.streaming(outgoing, path, Messages(std::marker::PhantomData)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    pub(crate) fn send(&self, request: Q) {
        // One whose stream has ended is seen by the next read.
        let _ = self.requests.send(request);
    }

    pub(crate) async fn next(&mut self) -> R {
        self.try_next().await.unwrap()
    }

    pub(crate) async fn try_next(&mut self) -> Result<R, Status> {
        let message = tokio::time::timeout(SOON, self.responses.message()).await.expect("a response in time")?;
        message.ok_or_else(|| Status::ok("the end"))
    }

    /// Status code that the stream ends with.
    pub(crate) async fn end(&mut self) -> Code {
        loop {
            if let Err(status) = self.try_next().await {
                return status.code();
            }
        }
    }
}

impl Sotw {
    pub(crate) async fn connect(address: &str) -> Self {
        Self::open(address, "StreamAggregatedResources").await
    }

    pub(crate) async fn on(channel: Channel) -> Self {
        Self::over(channel, "StreamAggregatedResources").await
    }

    /// A request that answers nothing.
    pub(crate) fn ask(&self, type_url: &str, names: &[&str]) {
        self.request(type_url, "", names, None);
    }

    pub(crate) fn request(&self, type_url: &str, nonce: &str, names: &[&str], error: Option<&str>) {
        self.send(DiscoveryRequest {
            node: Some(node()),
            type_url: type_url.into(),
            resource_names: names.iter().map(|name| (*name).into()).collect(),
            response_nonce: nonce.into(),
            error_detail: error.map(|message| rpc::Status { message: message.into(), ..rpc::Status::default() }),
            ..DiscoveryRequest::default()
        });
    }

    pub(crate) fn ack(&self, response: &DiscoveryResponse, names: &[&str]) {
        self.request(&response.type_url, &response.nonce, names, None);
    }

    /// The next response of a type, ACKed with these names.
    pub(crate) async fn take(&mut self, names: &[&str]) -> DiscoveryResponse {
        let response = self.next().await;
        self.ack(&response, names);
        response
    }

    /// That nothing is due: what is asked for meanwhile is answered, again and again, and nothing else is said. Which of two
    /// things that are due goes first is left to chance, so it is asked often.
    pub(crate) async fn silent(&mut self) {
        for _ in 0..16 {
            self.ask(BARRIER, &[]);
            let response = self.next().await;
            assert_eq!(response.type_url, BARRIER, "{} resources", response.resources.len());
        }
    }
}

impl Delta {
    pub(crate) async fn connect(address: &str) -> Self {
        Self::open(address, "DeltaAggregatedResources").await
    }

    pub(crate) fn ask(&self, nonce: &str, subscribe: &[&str], unsubscribe: &[&str]) {
        self.send(Self::request(SERVICE_ENTRY, nonce, subscribe, unsubscribe));
    }

    pub(crate) fn request(
        type_url: &str,
        nonce: &str,
        subscribe: &[&str],
        unsubscribe: &[&str],
    ) -> DeltaDiscoveryRequest {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: type_url.into(),
            resource_names_subscribe: owned(subscribe),
            resource_names_unsubscribe: owned(unsubscribe),
            response_nonce: nonce.into(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// The next response, ACKed: what it brings and what it takes.
    pub(crate) async fn take(&mut self) -> (Vec<String>, Vec<String>) {
        let response = self.next().await;
        self.ask(&response.nonce, &[], &[]);
        (response.resources.into_iter().map(|resource| resource.name).collect(), response.removed_resources)
    }

    /// See [`Sotw::silent`].
    pub(crate) async fn silent(&mut self) {
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

/// Name, version and entry of every resource.
pub(crate) fn resources(response: &DiscoveryResponse) -> Vec<(String, String, ServiceEntry)> {
    let decoded = |any: &registry_mox::proto::google::protobuf::Any| decode(&any.value);
    response.resources.iter().map(decoded).collect()
}

pub(crate) fn decode(resource: &[u8]) -> (String, String, ServiceEntry) {
    let resource = Resource::decode(resource).unwrap();
    let metadata = resource.metadata.unwrap();
    (metadata.name, metadata.version, ServiceEntry::decode(resource.body.unwrap().value).unwrap())
}

pub(crate) fn names(response: &DiscoveryResponse) -> Vec<String> {
    resources(response).into_iter().map(|(name, ..)| name).collect()
}

struct Messages<Q, R>(std::marker::PhantomData<fn() -> (Q, R)>);

impl<Q: Message + Default + 'static, R: Message + Default + 'static> Codec for Messages<Q, R> {
    type Encode = Q;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self(std::marker::PhantomData)
    }
    fn decoder(&mut self) -> Self {
        Self(std::marker::PhantomData)
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

/// A stream whose frames are made by hand.
pub(crate) struct Raw {
    pub(crate) out: h2::SendStream<Bytes>,
    pub(crate) answer: h2::client::ResponseFuture,
    pub(crate) pings: h2::PingPong,
    /// The connection; aborting it is what a client that dies does.
    pub(crate) connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Raw {
    pub(crate) async fn open(address: &str, method: &str) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (client, mut connection) = h2::client::handshake(stream).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let request = http::Request::post(format!("http://{address}{SERVICE}{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let (answer, out) = client.send_request(request.body(()).unwrap(), false).unwrap();
        Self { out, answer, pings, connection }
    }

    pub(crate) fn message(body: &[u8]) -> Bytes {
        let mut message = BytesMut::new();
        message.put_u8(0);
        message.put_u32(body.len() as u32);
        message.put_slice(body);
        message.freeze()
    }

    /// Status of the answer, from its headers or its trailers.
    pub(crate) async fn status(self) -> Code {
        let answer = tokio::time::timeout(SOON, self.answer).await.expect("an answer in time").unwrap();
        let code = |headers: &http::HeaderMap| headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
        if let Some(code) = code(answer.headers()) {
            return code;
        }
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            let _ = body.flow_control().release_capacity(data.len());
        }
        code(&body.trailers().await.unwrap().unwrap()).unwrap()
    }
}
