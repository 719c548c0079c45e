//! Proxies that hold nothing: they ask istiod as Envoy does, in delta for clusters, their endpoints and listeners, acknowledge, and
//! count bytes. istiod's work for them is the same; ten Envoys would not fit into one machine's memory.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use harness::{
    client::{Delta, sidecar_node},
    process::{START, eventually},
};
use prost::Message;
use registry_mox::proto::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use tokio::{runtime::Runtime, task::JoinHandle};
use tonic::transport::Channel;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `DiscoveryType.EDS` of a cluster.
const EDS: i32 = 3;

/// Of `envoy.config.cluster.v3.Cluster` what is needed here.
#[derive(Clone, PartialEq, Message)]
struct Cluster {
    #[prost(int32, tag = "2")]
    kind: i32,
}

#[derive(Default)]
struct Counts {
    bytes: AtomicU64,
    /// Proxies that have had their first listeners.
    served: AtomicUsize,
}

/// Connected while it lives.
pub(crate) struct Followers {
    _runtime: Runtime,
    /// A proxy's task ends only by a panic, as its stream did.
    proxies: Vec<JoinHandle<()>>,
    counts: Arc<Counts>,
}

impl Followers {
    /// A proxy in each of these namespaces; returns when all have been served.
    pub(crate) fn connect(istiod: &str, namespaces: &[String]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let counts = Arc::new(Counts::default());
        let start = |(n, namespace): (usize, &String)| {
            let (address, node) = (format!("http://{istiod}"), node(namespace, n));
            runtime.spawn(follow(address, node, Arc::clone(&counts)))
        };
        let proxies = namespaces.iter().enumerate().map(start).collect();
        let followers = Self { _runtime: runtime, proxies, counts };
        eventually(START, "istiod has served every proxy", || {
            followers.all_live();
            (followers.counts.served.load(Ordering::Relaxed) == namespaces.len()).then_some(())
        });
        followers
    }

    /// Bytes that all of them have received so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.all_live();
        self.counts.bytes.load(Ordering::Relaxed)
    }

    fn all_live(&self) {
        let ended = self.proxies.iter().filter(|proxy| proxy.is_finished()).count();
        assert!(
            ended == 0,
            "{ended} of {} proxies have ended, each with a panic that is told above",
            self.proxies.len()
        );
    }
}

/// A node such as `sidecar.sh` gives its Envoy.
fn node(namespace: &str, n: usize) -> Node {
    let ip = format!("10.70.0.{}", n + 1);
    let node = sidecar_node(&ip, "pod", namespace, &[("INSTANCE_IPS", &ip), ("DNS_CAPTURE", "true")]);
    Node { cluster: format!("pod.{namespace}"), ..node }
}

fn request(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() }
}

/// Ends only by a panic.
async fn follow(address: String, node: Node, counts: Arc<Counts>) {
    let channel = Channel::from_shared(address).unwrap().initial_stream_window_size(1 << 20).connect().await.unwrap();
    let first = DeltaDiscoveryRequest { node: Some(node), ..request(CLUSTER) };
    let mut stream = Delta::open(channel, Some(first)).await.unwrap();
    let mut asked = BTreeSet::new();
    let (mut listens, mut served) = (false, false);
    loop {
        let response: DeltaDiscoveryResponse = match stream.message().await {
            Ok(response) => response,
            Err(status) => panic!("istiod has ended a proxy's stream: {status}"),
        };
        counts.bytes.fetch_add(response.encoded_len() as u64, Ordering::Relaxed);
        stream.send(DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..request(&response.type_url) });
        match response.type_url.as_str() {
            CLUSTER => {
                let has_endpoints = |value: &[u8]| Cluster::decode(value).is_ok_and(|cluster| cluster.kind == EDS);
                let all = response.resources.into_iter();
                let with = all.filter(|it| it.resource.as_ref().is_some_and(|any| has_endpoints(&any.value)));
                let new: Vec<String> = with.map(|it| it.name).filter(|name| asked.insert(name.clone())).collect();
                let mut gone = response.removed_resources;
                gone.retain(|name| asked.remove(name));
                if !new.is_empty() || !gone.is_empty() {
                    stream.send(DeltaDiscoveryRequest {
                        resource_names_subscribe: new,
                        resource_names_unsubscribe: gone,
                        ..request(ENDPOINTS)
                    });
                }
                if !listens {
                    listens = true;
                    stream.send(request(LISTENER));
                }
            }
            LISTENER if !served => {
                served = true;
                counts.served.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}
