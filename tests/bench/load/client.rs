//! Clients as istiod is one: HTTP/2 with its windows, its node, an ACK at once. A client has one stream, or one per slice.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::BuildHasher,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, Request, header};
use prost::{
    Message as _,
    bytes::{BufMut, BytesMut},
};
use registry_mox::proto::{
    envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest},
    google::protobuf::{Any, Struct, Value, value::Kind},
    istio::{mcp::v1alpha1::Resource, networking::v1alpha3::ServiceEntry},
};
use tokio::{net::TcpSocket, sync::Notify};

use crate::{
    Result,
    walk::{Message, Sink, Walk},
    workload::{self, Endpoint, Workload},
};

/// The HTTP/2 windows of istiod's client, in bytes (`defaultGrpcDialOptions` of its `adsc.go`).
const WINDOW: u32 = 1 << 20;

/// How a server is to be asked, and how its resources are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dialect {
    pub(crate) type_url: &'static str,
    pub(crate) delta: bool,
}

pub(crate) const SERVICE_ENTRY: &str = "networking.istio.io/v1alpha3/ServiceEntry";
pub(crate) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// The state that all clients of a run share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) workload: Workload,
    pub(crate) dialect: Dialect,
    /// Changes that were handed to the server; written by the feeder before it hands one over.
    pub(crate) issued: Arc<AtomicUsize>,
    /// When each change was due, from the second on; the feeder sets the first before it begins.
    pub(crate) due: RefCell<Vec<Instant>>,
    /// Whether everything is decoded, not just what a change is waited for in.
    pub(crate) capture: Cell<bool>,
    /// Something came in.
    pub(crate) progress: Notify,
    pub(crate) failure: RefCell<Option<String>>,
    /// Resources that were decoded before, by their bytes: many clients get the same ones.
    decoded: RefCell<HashMap<u64, Decoded>>,
    hasher: hashbrown::DefaultHashBuilder,
}

impl Shared {
    pub(crate) fn new(workload: Workload, dialect: Dialect) -> Rc<Self> {
        Rc::new(Self {
            workload,
            dialect,
            issued: Arc::default(),
            due: RefCell::default(),
            capture: Cell::new(true),
            progress: Notify::new(),
            failure: RefCell::default(),
            decoded: RefCell::default(),
            hasher: hashbrown::DefaultHashBuilder::default(),
        })
    }

    fn fail(&self, why: String) {
        self.failure.borrow_mut().get_or_insert(why);
        self.progress.notify_waiters();
    }
}

#[derive(Debug, Clone, Copy)]
struct Decoded {
    service: usize,
    digest: u64,
    /// The newest change in it.
    change: usize,
}

/// A client's services, and what it has counted.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// By service: which stream it came on, and its endpoints. Of captured messages only, with delta of all.
    services: Vec<Option<(usize, u64)>>,
    /// By change, from 0: how late it was.
    pub(crate) seen: Vec<Option<Duration>>,
    /// Changes before this are all seen.
    pub(crate) all_seen: usize,
    /// Streams that have had their first response.
    pub(crate) ready: usize,
    pub(crate) ready_at: Option<Instant>,
    /// Responses after the first of each stream.
    pub(crate) pushes: usize,
    /// Bytes of all responses, and of those after the first of each stream.
    pub(crate) bytes: usize,
    pub(crate) push_bytes: usize,
}

/// A client; its streams end when it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) holding: Rc<RefCell<Holding>>,
    pub(crate) streams: usize,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Client {
    /// The nth client. Each has an address of its own, as istiods have, and a stream to each of the server's addresses.
    pub(crate) fn start(shared: &Rc<Shared>, number: usize, servers: &[SocketAddr]) -> Self {
        let services = vec![None; shared.workload.services];
        let holding = Rc::new(RefCell::new(Holding { services, ..Holding::default() }));
        let tasks = servers.iter().enumerate().map(|(stream, server)| {
            let reader = Reader::new(Rc::clone(shared), Rc::clone(&holding), stream, servers.len());
            let (server, shared) = (*server, Rc::clone(shared));
            tokio::task::spawn_local(async move {
                let Err(error) = run(server, number, reader).await else { return };
                shared.fail(format!("client {number}, stream {stream}: {error}"));
            })
        });
        Self { streams: servers.len(), tasks: tasks.collect(), holding: Rc::clone(&holding) }
    }

    /// Whether every stream has had its first response.
    pub(crate) fn is_ready(&self) -> bool {
        self.holding.borrow().ready == self.streams
    }

    /// Compares what it holds.
    pub(crate) fn verify(&self, expected: &[u64]) -> Result<()> {
        let holding = self.holding.borrow();
        for (service, (held, expected)) in holding.services.iter().zip(expected).enumerate() {
            match held {
                Some((_, digest)) if digest == expected => {}
                Some(_) => return Err(format!("service {service} has other endpoints than were published").into()),
                None => return Err(format!("service {service} is missing").into()),
            }
        }
        Ok(())
    }
}

fn node(number: usize) -> Node {
    let api = Value { kind: Some(Kind::StringValue("api".to_owned())) };
    Node {
        id: format!("sidecar~{}~istiod-{number}.istio-system~istio-system.svc.cluster.local", address(number)),
        cluster: "istiod".to_owned(),
        metadata: Some(Struct { fields: [("GENERATOR".to_owned(), api)].into() }),
    }
}

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, 1 + number as u8)
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeltaRequest {
    #[prost(message, optional, tag = "1")]
    node: Option<Node>,
    #[prost(string, tag = "2")]
    type_url: String,
    #[prost(string, tag = "6")]
    response_nonce: String,
}

async fn run(server: SocketAddr, number: usize, mut reader: Reader) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address(number), 0).into())?;
    let tcp = socket.connect(server).await?;
    tcp.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (requests, connection) = builder.handshake::<_, prost::bytes::Bytes>(tcp).await?;
    let driver = tokio::task::spawn_local(connection);
    let _ends = Aborting(driver.abort_handle());
    let delta = reader.shared.dialect.delta;
    let method = if delta { "DeltaAggregatedResources" } else { "StreamAggregatedResources" };
    let request =
        Request::post(format!("http://{server}/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(())?;
    let (answer, mut out) = requests.ready().await?.send_request(request, false)?;
    // istiod's first request carries a nonce that no server ever sent.
    let nonce = if delta { "" } else { "2026-01-01 00:00:00 +0000 UTC m=+0.1" };
    out.send_data(ask(delta, number, reader.shared.dialect.type_url, "", nonce), false)?;
    let answer = answer.await?;
    status(answer.headers())?;
    let mut body = answer.into_body();
    let mut walk = Walk::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        walk.feed(&piece, &mut reader)?;
        body.flow_control().release_capacity(piece.len())?;
        for message in reader.answer.drain(..) {
            out.send_data(ask(delta, number, &message.type_url, &message.version, &message.nonce), false)?;
        }
    }
    if let Some(trailers) = body.trailers().await? {
        status(&trailers)?;
    }
    Err("the server ended the stream".into())
}

struct Aborting(tokio::task::AbortHandle);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn status(headers: &HeaderMap) -> Result<()> {
    match headers.get("grpc-status") {
        Some(status) if status != "0" => Err(format!("status {status:?}: {:?}", headers.get("grpc-message")).into()),
        _ => Ok(()),
    }
}

/// A request or ACK as gRPC frames it. istiod has its node in each.
fn ask(delta: bool, number: usize, type_url: &str, version: &str, nonce: &str) -> prost::bytes::Bytes {
    let (node, type_url, response_nonce) = (Some(node(number)), type_url.to_owned(), nonce.to_owned());
    let message = if delta {
        DeltaRequest { node, type_url, response_nonce }.encode_to_vec()
    } else {
        let version_info = version.to_owned();
        DiscoveryRequest { version_info, node, type_url, response_nonce, ..DiscoveryRequest::default() }.encode_to_vec()
    };
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(&message);
    framed.freeze()
}

/// The receiving end of a stream.
struct Reader {
    shared: Rc<Shared>,
    holding: Rc<RefCell<Holding>>,
    stream: usize,
    streams: usize,
    /// Messages to ACK.
    answer: Vec<Message>,
    ready: bool,
    /// Whether the message that is coming in is decoded whole.
    capture: bool,
    /// Services that changed and were not seen since, when the message began.
    awaited: Vec<usize>,
    /// Resources decoded so far of the message that is coming in.
    found: Vec<Decoded>,
    /// Where in a resource its name was last.
    hint: Cell<usize>,
}

impl Reader {
    fn new(shared: Rc<Shared>, holding: Rc<RefCell<Holding>>, stream: usize, streams: usize) -> Self {
        let (answer, awaited, found) = (Vec::new(), Vec::new(), Vec::new());
        let hint = Cell::default();
        Self { shared, holding, stream, streams, answer, ready: false, capture: false, awaited, found, hint }
    }

    /// A resource of any of the servers, decoded.
    fn decode(&self, bytes: &[u8]) -> Result<Decoded> {
        let Dialect { type_url, delta } = self.shared.dialect;
        let any = if delta { Wrapped::decode(bytes)?.resource.unwrap_or_default() } else { Any::decode(bytes)? };
        // go-control-plane's LinearCache serves Clusters; ours is inside.
        let any = if type_url == CLUSTER {
            Cluster::decode(any.value)?.options.into_values().next().unwrap_or_default()
        } else {
            any
        };
        let resource = Resource::decode(any.value)?;
        let name = resource.metadata.unwrap_or_default().name;
        let entry = ServiceEntry::decode(resource.body.unwrap_or_default().value)?;
        let service =
            workload::index_of(name.as_bytes(), &Cell::default()).ok_or_else(|| format!("a service {name}"))?;
        let mut newest = 0;
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(entry.endpoints.len());
        for mut endpoint in entry.endpoints {
            let mut label = |name: &str| endpoint.labels.remove(name).unwrap_or_default();
            let (app, zone) = (label("app"), label("zone"));
            let (serialization, start_time) = (label("serialization"), label("startTime"));
            newest = newest.max(workload::change_of(&start_time).unwrap_or_default());
            let port = endpoint.ports.into_values().next().unwrap_or_default();
            endpoints.push(Endpoint { address: endpoint.address, port, app, zone, serialization, start_time });
        }
        Ok(Decoded { service, digest: workload::digest(&mut endpoints), change: newest })
    }
}

/// `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, prost::Message)]
struct Wrapped {
    #[prost(message, optional, tag = "2")]
    resource: Option<Any>,
}

/// `envoy.config.cluster.v3.Cluster`.
#[derive(Clone, PartialEq, prost::Message)]
struct Cluster {
    #[prost(map = "string, message", tag = "36")]
    options: HashMap<String, Any>,
}

impl Sink for Reader {
    fn begin(&mut self) {
        self.capture = self.shared.capture.get() || self.shared.dialect.delta;
        self.found.clear();
        self.awaited.clear();
        // A change made after a message began cannot be in that message.
        let issued = self.shared.issued.load(Ordering::Acquire);
        let holding = self.holding.borrow();
        let open = (holding.all_seen..issued).filter(|change| holding.seen.get(*change).copied().flatten().is_none());
        self.awaited.extend(open.map(|change| self.shared.workload.place(change + 1).0));
    }

    fn wanted(&mut self, head: &[u8]) -> bool {
        self.capture
            || (!self.awaited.is_empty()
                && workload::index_of(head, &self.hint).is_none_or(|service| self.awaited.contains(&service)))
    }

    fn resource(&mut self, bytes: &[u8]) -> std::result::Result<(), String> {
        let key = self.shared.hasher.hash_one(bytes);
        let known = self.shared.decoded.borrow().get(&key).copied();
        let decoded = match known {
            Some(decoded) => decoded,
            None => {
                let decoded = self.decode(bytes).map_err(|error| error.to_string())?;
                self.shared.decoded.borrow_mut().insert(key, decoded);
                decoded
            }
        };
        self.found.push(decoded);
        Ok(())
    }

    fn end(&mut self, message: Message) -> std::result::Result<(), String> {
        let now = Instant::now();
        // istiod's memory is primed with messages of another type.
        if message.type_url != self.shared.dialect.type_url {
            self.answer.push(message);
            return Ok(());
        }
        let Shared { workload, dialect, due, issued, .. } = &*self.shared;
        let mut holding = self.holding.borrow_mut();
        let holding = &mut *holding;
        if self.capture {
            if !dialect.delta {
                let own = holding.services.iter_mut().filter(|held| held.is_some_and(|(of, _)| of == self.stream));
                own.for_each(|held| *held = None);
            }
            for Decoded { service, digest, .. } in &self.found {
                let held = holding.services.get_mut(*service).ok_or("a service that was never published")?;
                match held {
                    Some((stream, _)) if *stream != self.stream || !dialect.delta => {
                        return Err(format!("service {service} came twice"));
                    }
                    held => *held = Some((self.stream, *digest)),
                }
            }
        }
        let removed = if dialect.delta { message.removed } else { 0 };
        if !dialect.delta && self.streams == 1 && message.resources != workload.services || removed > 0 {
            return Err(format!("a response of {} resources, {removed} removed", message.resources));
        }
        holding.bytes += message.bytes;
        if self.ready {
            holding.pushes += 1;
            holding.push_bytes += message.bytes;
        } else if !dialect.delta || holding.services.iter().all(Option::is_some) || self.streams > 1 {
            self.ready = true;
            holding.ready += 1;
            holding.ready_at = Some(now);
        }
        let due = due.borrow();
        holding.seen.resize(issued.load(Ordering::Acquire), None);
        for found in &self.found {
            for change in holding.all_seen..holding.seen.len().min(found.change) {
                if holding.seen[change].is_none() && workload.place(change + 1).0 == found.service {
                    holding.seen[change] = Some(now.saturating_duration_since(due[change]));
                }
            }
        }
        holding.all_seen += holding.seen[holding.all_seen..].iter().take_while(|seen| seen.is_some()).count();
        self.answer.push(message);
        self.shared.progress.notify_waiters();
        Ok(())
    }
}
