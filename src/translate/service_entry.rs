//! A ServiceEntry from one service, and its WorkloadEntries where endpoints have resources of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    digest::{hex, prefix_of},
    istio::names::{SERVICE_LABEL, TLS_LABEL, WORKLOAD_PREFIX},
    model::RegisterVersion,
    policy::Rules,
    proto::{
        google::protobuf,
        istio::networking::v1alpha3::{
            DestinationRule, LoadBalancerSettings, ServiceEntry, TrafficPolicy, WorkloadEntry, WorkloadSelector,
            load_balancer_settings::SimpleLb,
            service_entry::{Location, Resolution},
        },
    },
    registry::publication::Publication,
    translate::{
        Bounds, Parsed, names,
        payload::{self, Address, Client, DEFAULT_WEIGHT, Endpoint, Extras, Reject, Rejects},
        port::port,
    },
};

/// Where endpoints stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointMode {
    /// In the ServiceEntry.
    Inline,
    /// In a WorkloadEntry each, which the ServiceEntry selects by a label.
    WorkloadEntry,
}

/// A service in the shape that Istio serves it.
#[derive(Debug)]
pub struct Shape<'a> {
    /// The host, suffix included.
    pub host: &'a str,
    /// Its virtual addresses, in the order in which they are served.
    pub vips: &'a [IpAddr],
    /// The dataInfoId.
    pub id: &'a str,
    /// The protocol of its providers, if that is another than the dataInfoId's.
    pub other: Option<&'a str>,
    /// Sorted by address and port, each pair once.
    pub members: &'a [Member],
    /// Where its endpoints stand.
    pub mode: EndpointMode,
}

/// An endpoint and who published it; shared with what was read, so that keeping one costs no copy of it.
#[derive(Clone)]
pub struct Member {
    parsed: Arc<Parsed>,
    index: usize,
}

impl Member {
    /// The endpoints of a publisher.
    pub fn all(parsed: &Arc<Parsed>) -> impl Iterator<Item = Self> + '_ {
        (0..parsed.endpoints.len()).map(|index| Self { parsed: Arc::clone(parsed), index })
    }

    /// The endpoint as it was published.
    pub fn endpoint(&self) -> &Endpoint {
        &self.parsed.endpoints[self.index]
    }

    /// The same, without what else was read with it.
    pub fn alone(&self) -> Self {
        let Parsed { endpoints, others, rejects, .. } = &*self.parsed;
        match endpoints.len() == 1 && others.is_none() && rejects.is_none() {
            true => self.clone(),
            false => self.alone_as(self.endpoint().clone()),
        }
    }

    /// The same without what else was read with it, called with mTLS as one of these identities, or without.
    pub fn with_mtls(&self, mtls: Option<Arc<[String]>>) -> Self {
        self.alone_as(self.endpoint().clone().with_mtls(mtls))
    }

    /// An endpoint of the same publisher, without what else was read with it.
    fn alone_as(&self, endpoint: Endpoint) -> Self {
        let Parsed { register_id, version, source_address, .. } = &*self.parsed;
        let parsed = Parsed {
            register_id: register_id.clone(),
            version: *version,
            source_address: *source_address,
            endpoints: [endpoint].into(),
            ..Parsed::default()
        };
        Self { parsed: Arc::new(parsed), index: 0 }
    }

    /// By whom.
    pub fn register_id(&self) -> &str {
        &self.parsed.register_id
    }

    /// In which version of the publisher.
    pub fn version(&self) -> RegisterVersion {
        self.parsed.version
    }

    /// Whether it is at the address that its publisher's client connects from.
    pub fn is_own(&self) -> bool {
        matches!(&self.endpoint().address, Address::Ip(address) if self.parsed.source_address == Some(*address))
    }

    /// Whether the other is the very same, of one reading of one publication.
    pub fn is_shared(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.parsed, &other.parsed) && self.index == other.index
    }

    /// A service has one endpoint at most with this, and they are served in this order.
    pub fn key(&self) -> (&Address, u16) {
        (&self.endpoint().address, self.endpoint().port)
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.is_shared(other) || (self.endpoint() == other.endpoint() && self.register_id() == other.register_id())
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Member").field(self.endpoint()).field(&self.register_id()).finish()
    }
}

/// The endpoints of a service, with what was left out, by reason and with a sample.
#[derive(Debug, Default)]
pub struct Merged {
    /// Sorted by address and port, each pair once.
    pub members: Vec<Member>,
    /// The endpoints of the services that are beside the main one, by their protocols.
    pub others: BTreeMap<Arc<str>, Vec<Member>>,
    /// Counted rejects.
    pub rejects: Rejects,
}

/// Puts the publishers of a dataInfoId together. Of two on one address and port the one that registered later decides, then the
/// smallest registerId, then (for two sources with the same) the version and the endpoint itself. The version alone compares
/// nothing: it counts the states of one client object (`AbstractInternalRegister.java:54`).
pub fn merge(id: &str, publications: &[Arc<Publication>], rules: &Rules<'_>, bounds: Bounds) -> Merged {
    let client = Client::of(id);
    let (mut main, mut others) = (Vec::with_capacity(publications.len()), BTreeMap::<Arc<str>, Vec<Member>>::new());
    let mut rejects = Rejects::new();
    for publication in publications {
        let parsed = payload::parsed(publication, client, rules, bounds.per_publisher);
        add(&parsed, &mut main, &mut rejects);
        for (protocol, parsed) in parsed.others.iter().flat_map(|others| others.iter()) {
            add(parsed, others.entry(Arc::clone(protocol)).or_default(), &mut rejects);
        }
    }
    let members = decide(main, bounds, &mut rejects);
    let others = others.into_iter().map(|(protocol, all)| (protocol, decide(all, bounds, &mut rejects))).collect();
    Merged { members, others, rejects }
}

/// Adds what was read of a publisher.
fn add(parsed: &Arc<Parsed>, all: &mut Vec<Member>, rejects: &mut Rejects) {
    all.extend(Member::all(parsed));
    for (why, (count, sample)) in parsed.rejects() {
        reject(rejects, why, *count, || sample.clone());
    }
}

fn reject(rejects: &mut Rejects, why: Reject, count: u32, sample: impl FnOnce() -> Box<str>) {
    rejects.entry(why).or_insert_with(|| (0, sample())).0 += count;
}

/// The endpoints of one service, of all that are published.
fn decide(all: Vec<Member>, bounds: Bounds, rejects: &mut Rejects) -> Vec<Member> {
    let mut members = sorted(all);
    members.dedup_by(|later, first| later.key() == first.key());
    // Clients go round a service whose weights are all zero as if they were equal.
    if members.iter().any(|member| member.endpoint().weight > 0) {
        members.retain(|member| {
            let Endpoint { address, port, weight, .. } = member.endpoint();
            if *weight == 0 {
                reject(rejects, Reject::ZeroWeight, 1, || format!("{address}:{port}").into());
            }
            *weight > 0
        });
    }
    if let Some(first) = members.get(bounds.per_service) {
        let Endpoint { address, port, .. } = first.endpoint();
        let count = members.len() - bounds.per_service;
        reject(rejects, Reject::ServiceLimit, count as u32, || format!("{address}:{port}").into());
        members.truncate(bounds.per_service);
    }
    members
}

/// By address and port; of those on one the one first that decides. Addresses lie all over the memory, so they are compared
/// side by side as numbers.
fn sorted(members: Vec<Member>) -> Vec<Member> {
    let number = |(index, member): (usize, &Member)| match member.endpoint() {
        Endpoint { address: Address::Ip(IpAddr::V4(address)), port, .. } => {
            (0, u128::from(address.to_bits()), *port, index)
        }
        Endpoint { address: Address::Ip(IpAddr::V6(address)), port, .. } => (1, address.to_bits(), *port, index),
        Endpoint { address: Address::Name(_), .. } => (2, 0, 0, index),
    };
    let decides = |a: &Member, b: &Member| {
        let later = b.version().timestamp.cmp(&a.version().timestamp);
        let later = later.then_with(|| a.register_id().cmp(b.register_id()));
        later.then_with(|| b.version().cmp(&a.version())).then_with(|| b.endpoint().cmp(a.endpoint()))
    };
    let mut numbers: Vec<(u8, u128, u16, usize)> = members.iter().enumerate().map(number).collect();
    numbers.sort_unstable_by(|a, b| {
        let (one, other) = (&members[a.3], &members[b.3]);
        (a.0, a.1, a.2)
            .cmp(&(b.0, b.1, b.2))
            .then_with(|| one.key().cmp(&other.key()))
            .then_with(|| decides(one, other))
    });
    let mut members: Vec<Option<Member>> = members.into_iter().map(Some).collect();
    numbers.into_iter().filter_map(|(.., index)| members[index].take()).collect()
}

/// By how much all weights of a service are divided, so that their sum stays within the 32 bits that Envoy has for it: the
/// smallest whole number that helps.
pub fn weight_divisor(members: &[Member]) -> u32 {
    let fits = |divisor: u32| {
        let sum: u64 = members.iter().map(|member| u64::from(scaled(member.endpoint().weight, divisor))).sum();
        sum <= u64::from(u32::MAX)
    };
    if fits(1) {
        return 1;
    }
    let (mut too_small, mut enough) = (1, u32::MAX);
    while enough - too_small > 1 {
        let middle = too_small + (enough - too_small) / 2;
        if fits(middle) { enough = middle } else { too_small = middle }
    }
    enough
}

fn scaled(weight: u32, divisor: u32) -> u32 {
    (weight / divisor).max(1)
}

/// How the weights of a service's endpoints are written in its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// All are equal, and left out.
    uniform: bool,
    divisor: u32,
}

/// What an entry says of all its endpoints together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    /// How their weights are written.
    pub weights: Weights,
    /// Whom their certificates must name.
    identities: Vec<String>,
    /// The weight of each, where all have the same and none is called with mTLS.
    plain: Option<u32>,
}

impl Common {
    /// Of a service with these endpoints.
    pub fn of(members: &[Member]) -> Self {
        let uniform = members.windows(2).all(|pair| pair[0].endpoint().weight == pair[1].endpoint().weight);
        let divisor = if uniform { 1 } else { weight_divisor(members) };
        let first = members.first().filter(|_| uniform).map(|member| member.endpoint().weight);
        let is_plain = members.iter().all(|member| member.endpoint().mtls().is_none());
        let plain = first.filter(|_| is_plain);
        Self { weights: Weights { uniform, divisor }, identities: identities(members), plain }
    }

    /// Of a service that had the endpoints `before`, of which this is, and now has others, both sorted by address and port. Costs
    /// the endpoints that came, where all are alike, as nearly always.
    pub fn after(&self, before: &[Member], members: &[Member]) -> Self {
        let is_alike = |member: &Member| {
            let endpoint = member.endpoint();
            self.plain == Some(endpoint.weight) && endpoint.mtls().is_none()
        };
        let mut known = Known::new(before);
        let stays = |member: &Member| known.find(member).is_some() || is_alike(member);
        if self.plain.is_some() && !members.is_empty() && members.iter().all(stays) {
            self.clone()
        } else {
            Self::of(members)
        }
    }
}

/// Endpoints of before, among which others are looked for in their order.
#[derive(Debug)]
pub struct Known<'a> {
    members: &'a [Member],
    at: usize,
}

impl<'a> Known<'a> {
    /// They are sorted by address and port.
    pub fn new(members: &'a [Member]) -> Self {
        Self { members, at: 0 }
    }

    /// Which one it is, if it is there as it is.
    pub fn find(&mut self, member: &Member) -> Option<usize> {
        // Most are the very same, which is seen without a look at them.
        while let Some(known) = self.members.get(self.at)
            && !known.is_shared(member)
            && known.key() < member.key()
        {
            self.at += 1;
        }
        if self.members.get(self.at) != Some(member) {
            return None;
        }
        self.at += 1;
        Some(self.at - 1)
    }
}

/// An endpoint as it stands in its service's entry.
pub fn inline_endpoint(member: &Member, port_name: &str, weights: Weights) -> WorkloadEntry {
    let weight = if weights.uniform { 0 } else { scaled(member.endpoint().weight, weights.divisor) };
    WorkloadEntry { weight, ..workload(member.endpoint(), port_name) }
}

/// The ServiceEntry of a service.
pub fn build(shape: &Shape<'_>, rules: &Rules<'_>) -> ServiceEntry {
    let common = Common::of(shape.members);
    let mut entry = build_without_endpoints(shape, rules, &common);
    if shape.mode == EndpointMode::Inline {
        let (port_name, weights) = (&entry.ports[0].name, common.weights);
        entry.endpoints = shape.members.iter().map(|member| inline_endpoint(member, port_name, weights)).collect();
    }
    entry
}

/// The ServiceEntry of a service, before the endpoints that stand in it are added.
pub fn build_without_endpoints(shape: &Shape<'_>, rules: &Rules<'_>, common: &Common) -> ServiceEntry {
    let port = port(shape.id, shape.other, rules);
    let workload_selector = match shape.mode {
        EndpointMode::Inline => None,
        EndpointMode::WorkloadEntry => Some(WorkloadSelector { labels: selector(shape.host) }),
    };
    ServiceEntry {
        hosts: vec![shape.host.to_owned()],
        addresses: shape.vips.iter().map(IpAddr::to_string).collect(),
        ports: vec![port],
        location: Location::MeshInternal.into(),
        resolution: if rules.dns { Resolution::Dns } else { Resolution::Static }.into(),
        endpoints: Vec::new(),
        export_to: rules.export_to.to_vec(),
        subject_alt_names: common.identities.clone(),
        workload_selector,
    }
}

/// The DestinationRule that has proxies warm up the endpoints of a host. The field is the one that every istiod since 1.14
/// reads; the newer `warmup` is unknown to those before 1.24, and Kubernetes takes only one of the two. Without a way of
/// balancing istiod would drop it (istio/istio#39430); this one is its usual.
///
/// There is no `exportTo`, whatever the ServiceEntry has: of two rules for a host in one namespace istiod 1.29 lets the older one win
/// if their `exportTo` are the same, else the younger one, and an operator's own has none as a rule.
pub fn warmup(host: &str, warmup: Duration) -> DestinationRule {
    let load_balancer = LoadBalancerSettings {
        simple: SimpleLb::LeastRequest.into(),
        warmup_duration_secs: Some(protobuf::Duration {
            seconds: i64::try_from(warmup.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(warmup.subsec_nanos()).unwrap_or_default(),
        }),
    };
    DestinationRule {
        host: host.to_owned(),
        traffic_policy: Some(TrafficPolicy { load_balancer: Some(load_balancer), tls: None }),
        export_to: Vec::new(),
    }
}

/// Whom the certificates of these endpoints must name; nobody in particular where that is so for one of them.
pub fn identities(members: &[Member]) -> Vec<String> {
    let with_mtls: Vec<&Arc<[String]>> = members.iter().filter_map(|member| member.endpoint().mtls()).collect();
    if with_mtls.iter().any(|identities| identities.is_empty()) {
        return Vec::new();
    }
    let all: BTreeSet<&String> = with_mtls.into_iter().flat_map(|identities| identities.iter()).collect();
    all.into_iter().cloned().collect()
}

/// The labels of an endpoint's resource.
pub fn labels(endpoint: &Endpoint) -> BTreeMap<String, String> {
    let tls = endpoint.mtls().map(|_| (TLS_LABEL.0.to_owned(), TLS_LABEL.1.to_owned()));
    endpoint.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).chain(tls).collect()
}

/// The WorkloadEntry of one endpoint of the service with this host. The entry always has a weight, so that it does not
/// depend on the other endpoints but for their [`weight_divisor`].
pub fn workload_entry(host: &str, member: &Member, port_name: &str, divisor: u32) -> WorkloadEntry {
    let mut entry = workload(member.endpoint(), port_name);
    // Zero is what all of the service have, if it is served.
    entry.weight = if entry.weight == 0 { DEFAULT_WEIGHT } else { scaled(entry.weight, divisor) };
    let prefixed = |(key, value): (String, String)| (workload_label(&key), value);
    entry.labels = entry.labels.into_iter().map(prefixed).chain(selector(host)).collect();
    entry
}

/// The key of an endpoint's label in a WorkloadEntry; a prefix of its own becomes a part of its name.
pub fn workload_label(key: &str) -> String {
    if key == TLS_LABEL.0 { key.to_owned() } else { format!("{WORKLOAD_PREFIX}{}", key.replace('/', "_")) }
}

/// Name of a WorkloadEntry: what its registerId resembles, and a hash of host, registerId, address and port.
pub fn workload_name(host: &str, member: &Member) -> String {
    let Endpoint { address, port, .. } = member.endpoint();
    let digest = prefix_of::<8>(format!("{host}\n{}\n{address}\n{port}", member.register_id()));
    let digest = hex(&digest);
    match names::label(member.register_id()) {
        Some(readable) => {
            let readable = &readable[..readable.len().min(46)];
            format!("{}-{digest}", readable.trim_end_matches('-'))
        }
        None => format!("endpoint-{digest}"),
    }
}

fn selector(host: &str) -> BTreeMap<String, String> {
    [(SERVICE_LABEL.to_owned(), hex(&prefix_of::<16>(host)))].into()
}

fn workload(endpoint: &Endpoint, port_name: &str) -> WorkloadEntry {
    WorkloadEntry {
        address: endpoint.address.to_string(),
        ports: [(port_name.to_owned(), u32::from(endpoint.port))].into(),
        labels: labels(endpoint),
        locality: endpoint.locality().unwrap_or_default().to_owned(),
        weight: endpoint.weight,
        ..WorkloadEntry::default()
    }
}

/// The endpoint that an entry was made of; `identities` are whom its service's certificates must name. `None` if the entry
/// has no port.
pub fn read_back(entry: WorkloadEntry, identities: &Arc<[String]>) -> Option<Endpoint> {
    let port = entry.ports.values().next().and_then(|port| u16::try_from(*port).ok())?;
    let mtls = entry.labels.get(TLS_LABEL.0).map(|_| Arc::clone(identities));
    let own = |(key, _): &(String, String)| ![SERVICE_LABEL, TLS_LABEL.0].contains(&key.as_str());
    let bare = |(key, value): (String, String)| match key.strip_prefix(WORKLOAD_PREFIX) {
        Some(bare) => (bare.to_owned(), value),
        None => (key, value),
    };
    let address = entry.address.parse().map_or_else(|_| Address::Name(entry.address.into()), Address::Ip);
    // A weight that all endpoints of a service share is left out; as long as they do, any number will do.
    let weight = if entry.weight == 0 { DEFAULT_WEIGHT } else { entry.weight };
    let labels = entry.labels.into_iter().filter(own).map(bare).collect();
    let locality = (!entry.locality.is_empty()).then(|| entry.locality.into());
    // The entry has the label of an application and not its name.
    Some(Endpoint::new(address, port, weight, labels, Extras { raw_application: None, locality, mtls }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        istio::validate,
        policy::{Policy, PolicyConfig},
        proto::istio::networking::v1alpha3::ServicePort,
        registry::{
            frame::{self, Event, Publisher},
            store::{Limits, Store},
        },
        translate::payload,
    };

    const ID: &str = "com.example.DemoService:1.0@tri#@#DEFAULT_INSTANCE_ID#@#SOFA";

    fn policy() -> Policy {
        Policy::new(PolicyConfig::default(), &[], "ns").unwrap()
    }

    fn merged(publishers: &[(&str, i64, &[&str])]) -> Merged {
        within(Bounds::NONE, publishers)
    }

    fn within(bounds: Bounds, publishers: &[(&str, i64, &[&str])]) -> Merged {
        of_id(ID, bounds, publishers)
    }

    fn of_id(id: &str, bounds: Bounds, publishers: &[(&str, i64, &[&str])]) -> Merged {
        let store = Store::new(Limits::NONE);
        for (register_id, version, data) in publishers {
            let publisher = Publisher {
                register_id: (*register_id).into(),
                version: RegisterVersion { version: 1, timestamp: *version },
                payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
                ..Publisher::default()
            };
            let frame = frame::encode_publish("registry", id, &publisher).unwrap();
            for event in frame::decode(&frame).unwrap() {
                assert!(matches!(event, Event::Publish { .. }));
                store.apply(&event, 0).unwrap();
            }
        }
        merge(id, &store.take_dirty().pop().unwrap().entries, &policy().rules(id), bounds)
    }

    const HOST: &str = "tri.com.example.demoservice.sofa.mesh";

    fn entry(members: &[Member]) -> ServiceEntry {
        shaped(members, EndpointMode::Inline, &policy())
    }

    fn shaped(members: &[Member], mode: EndpointMode, policy: &Policy) -> ServiceEntry {
        build(
            &Shape { host: HOST, vips: &[IpAddr::from([248, 1, 2, 3])], id: ID, other: None, members, mode },
            &policy.rules(ID),
        )
    }

    fn addresses(merged: &Merged) -> Vec<String> {
        merged.members.iter().map(|m| format!("{}:{}", m.endpoint().address, m.endpoint().port)).collect()
    }

    #[test]
    fn weights_that_are_all_zero_are_equal() {
        let all = merged(&[("a", 1, &["10.0.0.1:80?weight=0"]), ("b", 1, &["10.0.0.2:80?weight=-1"])]);
        assert_eq!((addresses(&all).len(), all.rejects.len()), (2, 0));
        assert!(entry(&all.members).endpoints.iter().all(|endpoint| endpoint.weight == 0));
        assert!(all.members.iter().all(|member| workload_entry(HOST, member, "p", 1).weight == DEFAULT_WEIGHT));
        assert_eq!(addresses(&merged(&[("a", 1, &["10.0.0.1:80?weight=0", "10.0.0.2:80?weight=3"])])), ["10.0.0.2:80"]);
    }

    #[test]
    fn weights_are_divided_until_their_sum_fits() {
        let of = |weights: &[u32]| {
            let endpoint = |(n, weight): (usize, &u32)| {
                let text = format!("10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255);
                {
                    let mut endpoint =
                        payload::parse(&text, "", payload::Client::Sofarpc, &policy().rules(ID)).unwrap();
                    endpoint.weight = *weight;
                    endpoint
                }
            };
            let endpoints = weights.iter().enumerate().map(endpoint).collect();
            Member::all(&Arc::new(Parsed { endpoints, ..Parsed::default() })).collect::<Vec<Member>>()
        };
        let fits = of(&[u32::MAX - 1, 1]);
        assert_eq!(weight_divisor(&fits), 1);
        let halves = of(&[u32::MAX, 7, 1]);
        assert_eq!(weight_divisor(&halves), 2);
        let weights = |members: &[Member]| entry(members).endpoints.iter().map(|e| e.weight).collect::<Vec<_>>();
        assert_eq!(weights(&halves), [u32::MAX / 2, 3, 1]);
        assert_eq!(workload_entry(HOST, &halves[1], "p", 2).weight, 3);
        // The sum of so many at the highest weight is above 32 bits; it is served, and the small ones stay.
        let mut many = vec![100_000; 43_000];
        many.extend([100, 1]);
        let many = of(&many);
        let (divisor, weights) = (weight_divisor(&many), weights(&many));
        assert_eq!((divisor, &weights[42_999..]), (2, &[50_000, 50, 1][..]));
        assert!(validate::service_entry(&entry(&many), "ns").is_ok());
    }

    #[test]
    fn above_a_bound_the_smallest_addresses_are_served_whoever_came_first() {
        let bounds = Bounds { per_publisher: 2, per_service: 3 };
        let (a, b, c) =
            (&["10.0.0.9:80", "10.0.0.1:80"][..], &["10.0.0.2:80"][..], &["10.0.0.3:80", "10.0.0.0:80"][..]);
        let many = &["10.1.0.5:80", "10.1.0.2:80", "10.1.0.2:80?zone=z", "10.1.0.4:80", "10.1.0.3:80", "nonsense"][..];
        for publishers in [
            [("a", 1, a), ("b", 1, b), ("c", 1, c), ("m", 1, many)],
            [("m", 1, many), ("c", 1, c), ("b", 1, b), ("a", 1, a)],
        ] {
            let merged = within(bounds, &publishers);
            assert_eq!(addresses(&merged), ["10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80"]);
            assert_eq!(merged.rejects[&Reject::ServiceLimit], (4, "10.0.0.3:80".into()));
            assert_eq!(merged.rejects[&Reject::PublisherLimit].0, 2);
            assert_eq!(merged.rejects[&Reject::UnknownForm].0, 1);
        }
        let merged = within(Bounds { per_service: 9, ..bounds }, &[("m", 1, many)]);
        assert_eq!(addresses(&merged), ["10.1.0.2:80", "10.1.0.3:80"]);
        assert_eq!(merged.members[0].endpoint().labels.get("zone"), Some("z"), "as where two publishers say so");
    }

    #[test]
    fn the_bound_of_a_publisher_holds_for_all_its_protocols_together() {
        let id = "com.example.A@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";
        let mut data = vec![
            "tri://10.0.0.9:1",
            "rest://10.0.0.2:1",
            "dubbo://10.0.0.3:1",
            "tri://10.0.0.1:1",
            "tri://10.0.0.1:1/?weight=7",
            "dubbo://10.0.0.2:1",
            "dubbo://10.0.0.8:1",
        ];
        let bounds = Bounds { per_publisher: 3, per_service: 9 };
        let places = |members: &[Member]| members.iter().map(|m| m.key().0.to_string()).collect::<Vec<_>>();
        for turn in 0..data.len() {
            data.rotate_left(1);
            let Merged { members, others, rejects } = of_id(id, bounds, &[("a", 1, &data)]);
            assert_eq!(places(&members), ["10.0.0.2"], "{turn}");
            let others: Vec<_> = others.iter().map(|(protocol, members)| (&**protocol, places(members))).collect();
            assert_eq!(others, [("rest", vec!["10.0.0.2".to_owned()]), ("tri", vec!["10.0.0.1".to_owned()])]);
            assert_eq!(rejects[&Reject::PublisherLimit].0, 3);
        }
    }

    #[test]
    fn endpoints_are_sorted_and_counted_once() {
        let merged = merged(&[
            ("b", 1, &["10.0.0.2:80?zone=b", "10.0.0.10:80", "nonsense", "10.0.0.9:80?weight=0"]),
            ("a", 2, &["10.0.0.2:80?zone=a", "10.0.0.1:81", "10.0.0.1:80"]),
        ]);
        assert_eq!(addresses(&merged), ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "10.0.0.10:80"]);
        assert_eq!(merged.members[2].endpoint().labels.get("zone"), Some("a"), "the newer publisher decides");
        assert_eq!(merged.rejects[&Reject::UnknownForm], (1, "nonsense".into()));
        assert_eq!(merged.rejects[&Reject::ZeroWeight].0, 1);
    }

    #[test]
    fn a_weight_of_zero_silences_an_older_publisher_of_the_address() {
        let merged = merged(&[("a", 1, &["10.0.0.1:80", "10.0.0.2:80"]), ("b", 2, &["10.0.0.1:80?weight=0"])]);
        assert_eq!(addresses(&merged), ["10.0.0.2:80"]);
        assert_eq!(merged.rejects[&Reject::ZeroWeight], (1, "10.0.0.1:80".into()));
    }

    #[test]
    fn of_two_equally_new_the_smallest_register_id_decides() {
        for order in [["a", "b"], ["b", "a"]] {
            let data = |id: &str| if id == "a" { ["10.0.0.1:80?zone=a"] } else { ["10.0.0.1:80?zone=b"] };
            let [first, second] = [data(order[0]), data(order[1])];
            let merged = merged(&[(order[0], 1, &first), (order[1], 1, &second)]);
            assert_eq!(merged.members[0].endpoint().labels.get("zone"), Some("a"));
        }
    }

    #[test]
    fn a_service_has_the_documented_form() {
        let merged = merged(&[("a", 1, &["10.0.0.1:7000?app_name=shop"])]);
        let entry = entry(&merged.members);
        assert_eq!(
            entry.ports[0],
            ServicePort { number: 50051, protocol: "GRPC".into(), name: "grpc-tri".into(), target_port: 0 }
        );
        assert_eq!(entry.addresses, ["248.1.2.3"]);
        assert_eq!((entry.location(), entry.resolution()), (Location::MeshInternal, Resolution::Static));
        assert_eq!(entry.export_to, ["*"]);
        assert_eq!(entry.endpoints[0].ports["grpc-tri"], 7000);
        assert_eq!(entry.endpoints[0].labels["app"], "shop");
    }

    #[test]
    fn uniform_weights_are_left_out() {
        let weights = |data: &[&str]| {
            let merged = merged(&[("a", 1, data)]);
            entry(&merged.members).endpoints.iter().map(|e| e.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(&["10.0.0.1:80?weight=50", "10.0.0.2:80?weight=50"]), [0, 0]);
        assert_eq!(weights(&["10.0.0.1:80?weight=50", "10.0.0.2:80"]), [50, 100]);
    }

    #[test]
    fn an_override_changes_what_it_names() {
        let policy = |exception: serde_json::Value| {
            let config = serde_json::json!({"ports": {"tri": 1234}, "overrides": {"com.example.*": exception}});
            Policy::new(serde_json::from_value(config).unwrap(), &[], "ns").unwrap()
        };
        let merged = merged(&[("a", 1, &["10.0.0.1:7000"])]);
        let with = |exception| shaped(&merged.members, EndpointMode::Inline, &policy(exception));
        let port = |entry: &ServiceEntry| {
            (entry.ports[0].number, entry.ports[0].protocol.clone(), entry.ports[0].name.clone())
        };
        let entry = with(serde_json::json!({"port": 80, "protocol": "http", "exportTo": ["~"], "dns": true}));
        assert_eq!(port(&entry), (80, "HTTP".into(), "http-tri".into()));
        assert_eq!(entry.endpoints[0].ports["http-tri"], 7000);
        assert_eq!((entry.export_to.as_slice(), entry.resolution()), (&["~".to_owned()][..], Resolution::Dns));
        assert_eq!(port(&with(serde_json::json!({}))), (1234, "GRPC".into(), "grpc-tri".into()));
    }

    #[test]
    fn a_workload_entry_is_selected_by_its_service_alone() {
        let merged = merged(&[("Reg 1", 1, &["10.0.0.1:7000?weight=50&app=session&zone=z", "10.0.0.2:7000"])]);
        let entry = shaped(&merged.members, EndpointMode::WorkloadEntry, &policy());
        let selected = entry.workload_selector.as_ref().unwrap().labels.clone();
        assert!(entry.endpoints.is_empty() && selected.len() == 1);
        let made = |host: &str, index: usize| {
            let member = &merged.members[index];
            (workload_name(host, member), workload_entry(host, member, "grpc-tri", 1))
        };
        let (name, first) = made(HOST, 0);
        assert!(selected.iter().all(|(key, value)| first.labels[key] == *value));
        let keys: Vec<&str> = first.labels.keys().map(String::as_str).collect();
        assert_eq!(keys, ["sofa.registry/app", "sofa.registry/service", "sofa.registry/zone"]);
        assert_eq!(read_back(first.clone(), &Arc::default()).as_ref(), Some(merged.members[0].endpoint()));
        assert_eq!(workload_label("example.com/rpcVer"), "sofa.registry/example.com_rpcVer");
        assert_eq!((first.address.as_str(), first.ports["grpc-tri"], first.weight), ("10.0.0.1", 7000, 50));
        assert_eq!(made(HOST, 1).1.weight, 100, "each says its weight by itself");
        assert!(name.starts_with("reg-1-") && name != made(HOST, 1).0 && name != made("other.sofa.mesh", 0).0);
        assert_ne!(made("other.sofa.mesh", 0).1.labels, first.labels);
    }

    #[test]
    fn mtls_is_the_operators_word() {
        let identity = "spiffe://cluster.local/ns/orders/sa/orders";
        let config = serde_json::json!({"mtls": [{"applications": ["orders"], "identities": [identity]}]});
        let policy = Policy::new(serde_json::from_value(config).unwrap(), &[], "ns").unwrap();
        let endpoint = |text: &str| payload::parse(text, "", payload::Client::Sofarpc, &policy.rules(ID)).unwrap();
        let endpoints = vec![
            endpoint("10.0.0.1:80?app_name=orders"),
            endpoint("10.0.0.2:80?app_name=users&security.istio.io/tlsMode=istio&tlsMode=istio"),
        ];
        let members: Vec<Member> =
            Member::all(&Arc::new(Parsed { endpoints: endpoints.into(), ..Parsed::default() })).collect();
        let entry = shaped(&members, EndpointMode::Inline, &policy);
        assert_eq!(entry.endpoints[0].labels.get(TLS_LABEL.0).map(String::as_str), Some("istio"));
        assert_eq!(entry.endpoints[1].labels.get(TLS_LABEL.0), None, "a publisher cannot ask for it");
        assert_eq!(entry.subject_alt_names, [identity]);
        assert!(shaped(&members[1..], EndpointMode::Inline, &policy).subject_alt_names.is_empty());
    }
}
