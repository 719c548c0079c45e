//! As much of Envoy's own resources as the tests need, by their field numbers, and a catalog of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use prost::Message;
use registry_mox::{
    proto::google::protobuf::Any,
    testing::snapshot::{Changes, Resource, Snapshot, view::Catalog},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Cluster,
    Endpoints,
    Listener,
    Routes,
}

pub(crate) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const HTTP: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

impl Kind {
    const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes];

    fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => CLUSTER,
            Self::Endpoints => ENDPOINTS,
            Self::Listener => LISTENER,
            Self::Routes => ROUTES,
        }
    }
}

/// The snapshots that a control plane for Envoy serves, by kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Xds(BTreeMap<Kind, Arc<Snapshot>>);

impl Xds {
    pub(crate) fn set(&mut self, kind: Kind, name: &str, message: Option<&impl Message>) {
        let any = |message: &_| Any { type_url: kind.type_url().into(), value: Message::encode_to_vec(message).into() };
        let change: Changes = [((0, name.into()), message.map(|message| Resource::plain(&any(message))))].into();
        let old = self.0.entry(kind).or_default();
        *old = Arc::new(old.with(&change));
    }
}

impl Catalog for Xds {
    type Kind = Kind;
    const BENEATH: &'static [Kind] = &[Kind::Cluster, Kind::Endpoints];
    const ABOVE: &'static [Kind] = &[Kind::Listener, Kind::Routes];

    fn kind(type_url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }

    fn resources(&self, kind: Kind) -> Option<&Arc<Snapshot>> {
        static NONE: LazyLock<Arc<Snapshot>> = LazyLock::new(Snapshot::none);
        Some(self.0.get(&kind).unwrap_or(&NONE))
    }
}

/// `ads: {}`.
#[derive(Clone, PartialEq, Message)]
struct ConfigSource {
    #[prost(message, optional, tag = "3")]
    ads: Option<Empty>,
    /// V3 is 2.
    #[prost(int32, tag = "6")]
    resource_api_version: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource { ads: Some(Empty {}), resource_api_version: 2 })
}

#[derive(Clone, PartialEq, Message)]
struct Seconds {
    #[prost(int64, tag = "1")]
    seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct EdsClusterConfig {
    #[prost(message, optional, tag = "1")]
    eds_config: Option<ConfigSource>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Cluster {
    #[prost(string, tag = "1")]
    name: String,
    /// EDS is 3.
    #[prost(int32, tag = "2")]
    discovery_type: i32,
    #[prost(message, optional, tag = "3")]
    eds_cluster_config: Option<EdsClusterConfig>,
    #[prost(message, optional, tag = "4")]
    connect_timeout: Option<Seconds>,
}

/// A cluster; one that may take no time to connect is invalid.
pub(crate) fn cluster(name: &str, connect_timeout: i64) -> Cluster {
    Cluster {
        name: name.into(),
        discovery_type: 3,
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads() }),
        connect_timeout: Some(Seconds { seconds: connect_timeout }),
    }
}

#[derive(Clone, PartialEq, Message)]
struct SocketAddress {
    #[prost(string, tag = "2")]
    address: String,
    #[prost(uint32, tag = "3")]
    port_value: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    socket_address: Option<SocketAddress>,
}

/// Of a listener or an endpoint that has several.
#[derive(Clone, PartialEq, Message)]
struct AdditionalAddress {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
}

/// `address:port` of all.
fn told(first: &Option<Address>, more: &[AdditionalAddress]) -> Vec<String> {
    let more = more.iter().filter_map(|more| more.address.as_ref());
    let sockets = first.iter().chain(more).filter_map(|address| address.socket_address.as_ref());
    sockets.map(|SocketAddress { address, port_value }| format!("{address}:{port_value}")).collect()
}

fn loopback(port: u16) -> Option<Address> {
    Some(Address { socket_address: Some(SocketAddress { address: "127.0.0.1".into(), port_value: port.into() }) })
}

#[derive(Clone, PartialEq, Message)]
struct Endpoint {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
    #[prost(message, repeated, tag = "4")]
    additional_addresses: Vec<AdditionalAddress>,
}

#[derive(Clone, PartialEq, Message)]
struct LbEndpoint {
    #[prost(message, optional, tag = "1")]
    endpoint: Option<Endpoint>,
}

#[derive(Clone, PartialEq, Message)]
struct LocalityLbEndpoints {
    #[prost(message, repeated, tag = "2")]
    lb_endpoints: Vec<LbEndpoint>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ClusterLoadAssignment {
    #[prost(string, tag = "1")]
    cluster_name: String,
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<LocalityLbEndpoints>,
}

impl ClusterLoadAssignment {
    /// The addresses of each endpoint.
    pub(crate) fn addresses(&self) -> Vec<Vec<String>> {
        let all = self.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
        all.filter_map(|it| it.endpoint.as_ref()).map(|it| told(&it.address, &it.additional_addresses)).collect()
    }
}

pub(crate) fn endpoints(cluster: &str, ports: &[u16]) -> ClusterLoadAssignment {
    let endpoint = |port: &u16| LbEndpoint {
        endpoint: Some(Endpoint { address: loopback(*port), additional_addresses: Vec::new() }),
    };
    let endpoints = vec![LocalityLbEndpoints { lb_endpoints: ports.iter().map(endpoint).collect() }];
    ClusterLoadAssignment { cluster_name: cluster.into(), endpoints }
}

#[derive(Clone, PartialEq, Message)]
struct Rds {
    #[prost(message, optional, tag = "1")]
    config_source: Option<ConfigSource>,
    #[prost(string, tag = "2")]
    route_config_name: String,
}

/// A filter of a listener, or of HTTP.
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "4")]
    typed_config: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct HttpConnectionManager {
    #[prost(string, tag = "2")]
    stat_prefix: String,
    #[prost(message, optional, tag = "3")]
    rds: Option<Rds>,
    #[prost(message, repeated, tag = "5")]
    http_filters: Vec<Filter>,
}

#[derive(Clone, PartialEq, Message)]
struct FilterChain {
    #[prost(message, repeated, tag = "3")]
    filters: Vec<Filter>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Listener {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    address: Option<Address>,
    #[prost(message, repeated, tag = "3")]
    filter_chains: Vec<FilterChain>,
    #[prost(message, repeated, tag = "33")]
    additional_addresses: Vec<AdditionalAddress>,
}

impl Listener {
    /// Where it listens.
    pub(crate) fn addresses(&self) -> Vec<String> {
        told(&self.address, &self.additional_addresses)
    }
}

/// A listener for HTTP.
pub(crate) fn listener(name: &str, port: u16, routes: &str) -> Listener {
    let router = Any { type_url: ROUTER.into(), value: Default::default() };
    let manager = HttpConnectionManager {
        stat_prefix: name.into(),
        rds: Some(Rds { config_source: ads(), route_config_name: routes.into() }),
        http_filters: vec![Filter { name: "router".into(), typed_config: Some(router) }],
    };
    let manager = Any { type_url: HTTP.into(), value: manager.encode_to_vec().into() };
    let filters = vec![Filter { name: "http".into(), typed_config: Some(manager) }];
    let filter_chains = vec![FilterChain { filters }];
    Listener { name: name.into(), address: loopback(port), filter_chains, additional_addresses: Vec::new() }
}

#[derive(Clone, PartialEq, Message)]
struct RouteMatch {
    #[prost(string, tag = "1")]
    prefix: String,
}

#[derive(Clone, PartialEq, Message)]
struct RouteAction {
    #[prost(string, tag = "1")]
    cluster: String,
}

#[derive(Clone, PartialEq, Message)]
struct Route {
    #[prost(message, optional, tag = "1")]
    r#match: Option<RouteMatch>,
    #[prost(message, optional, tag = "2")]
    route: Option<RouteAction>,
}

#[derive(Clone, PartialEq, Message)]
struct VirtualHost {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    domains: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    routes: Vec<Route>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct RouteConfiguration {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    virtual_hosts: Vec<VirtualHost>,
}

impl RouteConfiguration {
    /// The names by which the virtual host with a domain is called.
    pub(crate) fn domains(&self, domain: &str) -> Option<&[String]> {
        let mut hosts = self.virtual_hosts.iter().map(|host| &host.domains[..]);
        hosts.find(|domains| domains.iter().any(|known| known == domain))
    }
}

/// Everything to one cluster.
pub(crate) fn routes(name: &str, cluster: &str) -> RouteConfiguration {
    let route = Route {
        r#match: Some(RouteMatch { prefix: "/".into() }),
        route: Some(RouteAction { cluster: cluster.into() }),
    };
    let all = VirtualHost { name: "all".into(), domains: vec!["*".into()], routes: vec![route] };
    RouteConfiguration { name: name.into(), virtual_hosts: vec![all] }
}
