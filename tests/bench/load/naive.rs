//! The server that one would write first: services in a map, and for each client and push everything built, encoded and
//! copied again, by tonic's own means. The program is fed as the Go peers are.

use std::{
    collections::HashMap,
    io::{BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request as HttpRequest, Response as HttpResponse};
use parking_lot::Mutex;
use prost::Message;
use registry_mox::proto::{
    envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    google::protobuf::Any,
    istio::{
        mcp::v1alpha1::{Metadata, Resource},
        networking::v1alpha3::ServiceEntry,
    },
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, NamedService, StreamingService},
    transport::{Server, server::TcpIncoming},
};

use crate::Result;

#[derive(Debug, Clone)]
struct Service {
    metadata: Metadata,
    entry: ServiceEntry,
}

/// Everything there is, and its version.
#[derive(Debug, Clone)]
struct Naive {
    services: Arc<Mutex<HashMap<usize, Service>>>,
    version: watch::Receiver<u64>,
}

/// A record of the file or of standard input; `None` at its end.
fn read(input: &mut impl Read) -> Result<Option<(usize, Service)>> {
    let mut head = [0; 8];
    if input.read_exact(&mut head).is_err() {
        return Ok(None);
    }
    let [index, length] = [&head[..4], &head[4..]].map(|part| part.iter().rev().fold(0, |n, b| n << 8 | *b as usize));
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    let resource = Resource::decode(Any::decode(&bytes[..])?.value)?;
    let metadata = resource.metadata.unwrap_or_default();
    let entry = ServiceEntry::decode(resource.body.unwrap_or_default().value)?;
    Ok(Some((index, Service { metadata, entry })))
}

/// Serves until standard input ends.
pub(crate) fn main(file: &Path) -> Result<()> {
    let mut base = BufReader::new(std::fs::File::open(file)?);
    let services: Arc<Mutex<HashMap<usize, Service>>> = Arc::default();
    while let Some((index, service)) = read(&mut base)? {
        services.lock().insert(index, service);
    }
    let (version, watch) = watch::channel(1);
    let naive = Naive { services: Arc::clone(&services), version: watch };
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    listener.set_nonblocking(true)?;
    println!("{{\"mox\":\"{}\"}}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.spawn(async move {
        let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true));
        Server::builder().add_service(naive).serve_with_incoming(incoming).await.map_err(std::io::Error::other)
    });
    let mut changes = BufReader::new(std::io::stdin().lock());
    while let Some((index, service)) = read(&mut changes)? {
        services.lock().insert(index, service);
        version.send_modify(|version| *version += 1);
    }
    Ok(())
}

impl Naive {
    fn response(&self, type_url: &str, version: u64) -> DiscoveryResponse {
        let services = self.services.lock().clone();
        let any = |name: &str, value: Vec<u8>| Any {
            type_url: format!("type.googleapis.com/istio.{name}"),
            value: value.into(),
        };
        let resource = |Service { metadata, entry }: Service| {
            let body = any("networking.v1alpha3.ServiceEntry", entry.encode_to_vec());
            let resource = Resource { metadata: Some(metadata), body: Some(body) };
            any("mcp.v1alpha1.Resource", resource.encode_to_vec())
        };
        DiscoveryResponse {
            version_info: version.to_string(),
            resources: services.into_values().map(resource).collect(),
            type_url: type_url.to_owned(),
            nonce: version.to_string(),
            control_plane: None,
        }
    }

    /// A stream: a response to the first request, then one for each version, when the one before is acknowledged.
    async fn stream(
        mut self,
        mut requests: Streaming<DiscoveryRequest>,
        out: mpsc::Sender<std::result::Result<DiscoveryResponse, Status>>,
    ) -> std::result::Result<(), Status> {
        while let Some(request) = requests.message().await? {
            let version = *self.version.borrow_and_update();
            let version = if request.response_nonce == version.to_string() {
                let changed = self.version.changed().await;
                changed.map_err(|_| Status::unavailable("the server is stopping"))?;
                *self.version.borrow_and_update()
            } else {
                version
            };
            if out.send(Ok(self.response(&request.type_url, version))).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl NamedService for Naive {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

type Answer<T, E> = Pin<Box<dyn Future<Output = std::result::Result<T, E>> + Send>>;

impl tower_service::Service<HttpRequest<Body>> for Naive {
    type Response = HttpResponse<Body>;
    type Error = std::convert::Infallible;
    type Future = Answer<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let naive = self.clone();
        Box::pin(async move { Ok(Grpc::new(Discovery).streaming(naive, request).await) })
    }
}

impl StreamingService<DiscoveryRequest> for Naive {
    type Response = DiscoveryResponse;
    type ResponseStream = ReceiverStream<std::result::Result<DiscoveryResponse, Status>>;
    type Future = Answer<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let (out, responses) = mpsc::channel(1);
        tokio::spawn(self.clone().stream(request.into_inner(), out));
        Box::pin(std::future::ready(Ok(Response::new(ReceiverStream::new(responses)))))
    }
}

/// tonic's codec for the one method there is.
struct Discovery;

impl Codec for Discovery {
    type Encode = DiscoveryResponse;
    type Decode = DiscoveryRequest;
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
    type Item = DiscoveryResponse;
    type Error = Status;
    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> std::result::Result<(), Status> {
        item.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Discovery {
    type Item = DiscoveryRequest;
    type Error = Status;
    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> std::result::Result<Option<Self::Item>, Status> {
        DiscoveryRequest::decode(bytes).map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}
