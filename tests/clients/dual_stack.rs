//! A service with a virtual address and an endpoint of each family, as the real istiod tells proxies of one family and of both.

use std::net::IpAddr;

use harness::{
    SOON,
    client::{Result, Sotw, sidecar_node},
    parts::{Envoy, Istiod},
    process::{eventually_is, free_port},
};
use prost::Message;
use registry_mox::proto::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};
use serde_json::json;
use tokio::{
    runtime::{self, Runtime},
    time::timeout,
};
use tonic::transport::Channel;

use crate::{
    envoy_types::{CLUSTER, ClusterLoadAssignment, ENDPOINTS, LISTENER, Listener, ROUTES, RouteConfiguration},
    serve::{Server, address, registered, sources},
};

const TCP: &str = "com.example.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA";
const HTTP: &str = "com.example.A:1.0@tri#@#DEFAULT_INSTANCE_ID#@#SOFA";
const TCP_HOST: &str = "com.example.a.sofa.mesh";
const HTTP_HOST: &str = "tri.com.example.a.sofa.mesh";
const V4: &str = "248.0.0.0/6";
const V6: &str = "fd00:f8::/64";

/// What a proxy is told of the two services.
#[derive(Debug, PartialEq)]
struct Told {
    /// The addresses of each listener for the first.
    tcp: Vec<Vec<String>>,
    /// Where calls to the port of the second are heard.
    http: Vec<Vec<String>>,
    /// Where the proxy takes what the machine's programs send.
    outbound: Vec<Vec<String>>,
    /// The names by which the second is called.
    domains: Vec<String>,
    /// The addresses of each endpoint of the first.
    endpoints: Vec<Vec<String>>,
}

/// A sidecar with these addresses, in their order.
fn sidecar(ips: &[&str]) -> Node {
    let node = sidecar_node(ips[0], "probe-1", "sofa", &[("INSTANCE_IPS", &ips.join(","))]);
    Node { cluster: "probe.sofa".to_owned(), ..node }
}

/// What istiod tells a sidecar with these addresses.
fn told(runtime: &Runtime, istiod: u16, ips: &[&str]) -> Result<Told> {
    let cluster = format!("outbound|12200||{TCP_HOST}");
    let request = |type_url: &str, names: &[&str]| DiscoveryRequest {
        node: Some(sidecar(ips)),
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DiscoveryRequest::default()
    };
    runtime.block_on(async {
        let channel = Channel::from_shared(format!("http://{}", address(istiod)))?.connect().await?;
        let mut stream = Sotw::open(channel, Some(request(CLUSTER, &[]))).await?;
        let clusters = answer(&mut stream, CLUSTER).await?;
        // istiod pushes what it has a moment after it has it.
        let count = clusters.iter().filter(|bytes| names(bytes, &cluster)).count();
        if count != 1 {
            return Err(format!("{count} clusters instead of one for both families").into());
        }
        let mut ask = async |type_url: &str, names: &[&str]| {
            stream.send(request(type_url, names));
            answer(&mut stream, type_url).await
        };
        let endpoints = ask(ENDPOINTS, &[&cluster]).await?;
        let listeners = ask(LISTENER, &[]).await?;
        let routes = ask(ROUTES, &["50051"]).await?;
        let read: Vec<Listener> = listeners.iter().map(|it| Listener::decode(it.clone())).collect::<Result<_, _>>()?;
        let addresses = |is_it: &dyn Fn(&bytes::Bytes, &[String]) -> bool| {
            let all = listeners.iter().zip(read.iter().map(Listener::addresses));
            let mut ours: Vec<_> = all.filter(|(bytes, at)| is_it(bytes, at)).map(|(_, at)| at).collect();
            ours.sort();
            ours
        };
        let domains = RouteConfiguration::decode(routes.first().ok_or("no routes")?.clone())?;
        Ok(Told {
            tcp: addresses(&|bytes, _| names(bytes, &cluster)),
            http: addresses(&|_, at| at.iter().any(|address| address.ends_with(":50051"))),
            outbound: addresses(&|_, at| at.iter().any(|address| address.ends_with(":15001"))),
            domains: domains.domains(HTTP_HOST).map(<[String]>::to_vec).unwrap_or_default(),
            endpoints: ClusterLoadAssignment::decode(endpoints.first().ok_or("no endpoints")?.clone())?.addresses(),
        })
    })
}

fn names(bytes: &[u8], name: &str) -> bool {
    bytes.windows(name.len()).any(|part| part == name.as_bytes())
}

/// The resources of the first response of a type.
async fn answer(stream: &mut Sotw, type_url: &str) -> Result<Vec<bytes::Bytes>> {
    loop {
        let response = timeout(SOON, stream.message()).await??;
        if response.type_url == type_url {
            return Ok(response.resources.into_iter().map(|any| any.value).collect());
        }
    }
}

/// An istiod that holds both services.
fn istiod(dual_stack: bool) -> (Istiod, u16) {
    let port = free_port();
    let istiod = Istiod::with_sources(&sources(1), port, &[("ISTIO_DUAL_STACK", &dual_stack.to_string())]);
    let endpoints = |name: &str| istiod.endpoints(name).map(|endpoints| endpoints.len());
    eventually_is(&[Some(2), Some(2)], "endpoints in configz", || {
        [TCP_HOST, HTTP_HOST].map(|host| endpoints(host.trim_end_matches(".sofa.mesh")))
    });
    (istiod, port)
}

/// istiod makes a service of each address of an entry. So every proxy has a listener for each, whatever its own family, and is told
/// each endpoint as often; and of the addresses the last one is a name of the virtual host. `ISTIO_DUAL_STACK` says whether what a
/// program sends reaches those listeners in both families.
pub(crate) fn both_families() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let [v4, v6] = ["10.9.0.1", "2001:db8::9"];
    let at = |address: &str, port: u16| format!("{address}:{port}");
    for (ranges, dual_stack) in [(&[V4, V6][..], true), (&[V4, V6], false), (&[V6, V4], true), (&[V4], true)] {
        let mut serve = Server::loaded(json!({ "vipCidr": ranges }), &registered(0, 0));
        serve.publish(TCP, &["10.0.0.1:12200", "[2001:db8::1]:12200"]);
        serve.publish(HTTP, &["tri://10.0.0.1:50051", "tri://[2001:db8::1]:50051"]);
        let served = serve.served();
        let vips = |host: &str| {
            let entry = &served.values().find(|it| it.entry.hosts == [host]).unwrap().entry;
            assert_eq!(entry.addresses.len(), ranges.len(), "{host}");
            entry.addresses.clone()
        };
        let (mut tcp, http) = (vips(TCP_HOST), vips(HTTP_HOST));
        tcp.sort();
        let last: IpAddr = http.last().unwrap().parse().unwrap();
        let name = if last.is_ipv6() { format!("[{last}]") } else { last.to_string() };
        let endpoints = [[at("10.0.0.1", 12200)].to_vec(), [at("2001:db8::1", 12200)].to_vec()];
        let (_istiod, port) = istiod(dual_stack);
        for ips in [&[v4, v6][..], &[v6, v4], &[v4], &[v6]] {
            let wildcards: Vec<&str> = [("0.0.0.0", v4), ("::", v6)]
                .into_iter()
                .filter_map(|(wildcard, of)| ips.contains(&of).then_some(wildcard))
                .collect();
            let all = |port: u16| -> Vec<String> { wildcards.iter().map(|wildcard| at(wildcard, port)).collect() };
            let wanted = Told {
                tcp: tcp.iter().map(|vip| vec![at(vip, 12200)]).collect(),
                http: vec![all(50051)],
                outbound: vec![if dual_stack { all(15001) } else { all(15001)[..1].to_vec() }],
                domains: vec![HTTP_HOST.to_owned(), format!("{HTTP_HOST}."), name.clone()],
                endpoints: ranges.iter().flat_map(|_| endpoints.clone()).collect(),
            };
            eventually_is(&Some(wanted), &format!("what is told to {ips:?} with {ranges:?}"), || {
                told(&runtime, port, ips).ok()
            });
        }
        let envoy = Envoy::of(port, &format!("outbound|12200||{TCP_HOST}"));
        let once = endpoints.concat();
        eventually_is(&Some(once), "Envoy has each endpoint once", || {
            let mut endpoints = envoy.endpoints()?;
            endpoints.sort();
            Some(endpoints)
        });
    }
}
