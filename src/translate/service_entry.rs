//! One ServiceEntry from one service.

use std::{
    collections::{BTreeMap, btree_map},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    model::{DataInfoId, RegisterVersion},
    policy::Policy,
    proto::istio::networking::v1alpha3::{
        ServiceEntry, ServicePort, WorkloadEntry,
        service_entry::{Location, Resolution},
    },
    store::Entry,
    translate::payload::{Endpoint, Reject},
};

/// Annotation with the exact dataInfoId, since hosts are lower case and may be hashed.
pub const ID_ANNOTATION: &str = "sofa.registry/data-info-id";
/// Label of an entry whose last endpoint went. istiod 1.29 pushes the removal of the last endpoint only if something
/// else in the entry changes with it.
pub const EMPTY_LABEL: &str = "sofa.registry/empty";

/// Port number, Istio protocol and port name by the protocol in the dataId. Protocols that Istio's validation does not
/// know (`pkg/config/protocol/instance.go`) are TCP.
const PORTS: [(&str, u16, &str, &str); 9] = [
    ("bolt", 12200, "TCP", "tcp-bolt"),
    ("tr", 12200, "TCP", "tcp-tr"),
    ("tri", 50051, "GRPC", "grpc-tri"),
    ("triple", 50051, "GRPC", "grpc-tri"),
    ("grpc", 50051, "GRPC", "grpc"),
    ("rest", 8341, "HTTP", "http-rest"),
    ("dubbo", 20880, "TCP", "tcp-dubbo"),
    ("h2c", 8080, "HTTP2", "http2-h2c"),
    ("http", 8080, "HTTP", "http"),
];

/// A service in the shape that Istio serves it.
#[derive(Debug)]
pub struct Shape<'a> {
    /// The host, suffix included.
    pub host: &'a str,
    /// Its virtual address, if VIPs are on.
    pub vip: Option<IpAddr>,
    /// The dataInfoId.
    pub id: &'a str,
    /// Sorted by address and port, each pair once.
    pub endpoints: &'a [Endpoint],
}

/// The endpoints of a service, with what was left out, by reason and with a sample.
#[derive(Debug, Default)]
pub struct Merged {
    /// Sorted by address and port, each pair once.
    pub endpoints: Vec<Endpoint>,
    /// Counted rejects.
    pub rejects: BTreeMap<Reject, (u32, Box<str>)>,
}

/// Puts the publishers of one service together. Of two on one address and port the newest decides, then the smallest
/// registerId, then (for two sources with the same) the endpoint itself.
pub fn merge(entries: &[Arc<Entry>], policy: &Policy) -> Merged {
    let mut merged = Merged::default();
    let mut best: BTreeMap<(IpAddr, u16), (RegisterVersion, String, Endpoint)> = BTreeMap::new();
    for entry in entries {
        let body = entry.body();
        let parsed = entry.parsed.get(&body, policy);
        for endpoint in &parsed.endpoints {
            let candidate = || (entry.version, body.register_id.to_owned(), endpoint.clone());
            match best.entry((endpoint.address, endpoint.port)) {
                btree_map::Entry::Vacant(slot) => {
                    slot.insert(candidate());
                }
                btree_map::Entry::Occupied(mut slot) => {
                    let (version, register_id, other) = slot.get();
                    let newer = entry.version.cmp(version);
                    let newer = newer.then_with(|| register_id.as_str().cmp(body.register_id));
                    let newer = newer.then_with(|| endpoint.cmp(other));
                    if newer.is_gt() {
                        slot.insert(candidate());
                    }
                }
            }
        }
        for (reject, (count, sample)) in &parsed.rejects {
            merged.rejects.entry(*reject).or_insert_with(|| (0, sample.clone())).0 += count;
        }
    }
    let (resting, serving): (Vec<_>, Vec<_>) =
        best.into_values().map(|(_, _, endpoint)| endpoint).partition(|endpoint| endpoint.weight == 0);
    if let Some(first) = resting.first() {
        let sample = std::net::SocketAddr::new(first.address, first.port).to_string();
        merged.rejects.insert(Reject::ZeroWeight, (resting.len() as u32, sample.into()));
    }
    merged.endpoints = serving;
    merged
}

/// The ServiceEntry of a service.
pub fn build(shape: &Shape<'_>, policy: &Policy) -> ServiceEntry {
    let protocol = DataInfoId::parse(shape.id).and_then(|id| id.protocol()).unwrap_or("DEFAULT");
    let protocol = if protocol.eq_ignore_ascii_case("DEFAULT") { "bolt" } else { protocol };
    let known = PORTS.iter().find(|(name, ..)| name.eq_ignore_ascii_case(protocol));
    let (number, istio_protocol, name) =
        known.map_or((12200, "TCP", "tcp"), |(_, number, protocol, name)| (*number, *protocol, *name));
    let uniform = shape.endpoints.windows(2).all(|pair| pair[0].weight == pair[1].weight);
    let endpoint = |endpoint: &Endpoint| WorkloadEntry {
        address: endpoint.address.to_string(),
        ports: [(name.to_owned(), u32::from(endpoint.port))].into(),
        labels: endpoint.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        weight: if uniform { 0 } else { endpoint.weight },
        ..WorkloadEntry::default()
    };
    ServiceEntry {
        hosts: vec![shape.host.to_owned()],
        addresses: shape.vip.iter().map(IpAddr::to_string).collect(),
        ports: vec![ServicePort {
            number: u32::from(policy.port(protocol).unwrap_or(number)),
            protocol: istio_protocol.to_owned(),
            name: name.to_owned(),
            target_port: 0,
        }],
        location: Location::MeshInternal.into(),
        resolution: Resolution::Static.into(),
        endpoints: shape.endpoints.iter().map(endpoint).collect(),
        export_to: policy.export_to().to_vec(),
        ..ServiceEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frame::{self, Event, Publisher},
        policy::PolicyConfig,
        store::{Limits, Store},
    };

    const ID: &str = "com.example.DemoService:1.0@tri#@#DEFAULT_INSTANCE_ID#@#SOFA";

    fn policy() -> Policy {
        Policy::new(PolicyConfig::default(), None).unwrap()
    }

    fn merged(publishers: &[(&str, i64, &[&str])]) -> Merged {
        let store = Store::new(Limits { services: 9, publishers: 99, sources: 9 });
        for (register_id, version, data) in publishers {
            let publisher = Publisher {
                register_id: (*register_id).into(),
                version: RegisterVersion { version: *version, timestamp: 0 },
                payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
                ..Publisher::default()
            };
            let frame = frame::encode_publish("registry", ID, &publisher).unwrap();
            for event in frame::decode(&frame).unwrap() {
                assert!(matches!(event, Event::Publish { .. }));
                store.apply(&event, 0).unwrap();
            }
        }
        merge(&store.take_dirty().pop().unwrap().entries, &policy())
    }

    fn entry(endpoints: &[Endpoint]) -> ServiceEntry {
        let host = "tri.com.example.demoservice.sofa.mesh";
        build(&Shape { host, vip: "248.1.2.3".parse().ok(), id: ID, endpoints }, &policy())
    }

    #[test]
    fn endpoints_are_sorted_and_counted_once() {
        let merged = merged(&[
            ("b", 1, &["10.0.0.2:80?zone=b", "10.0.0.10:80", "nonsense", "10.0.0.9:80?weight=0"]),
            ("a", 2, &["10.0.0.2:80?zone=a", "10.0.0.1:81", "10.0.0.1:80"]),
        ]);
        let addresses: Vec<_> = merged.endpoints.iter().map(|e| format!("{}:{}", e.address, e.port)).collect();
        assert_eq!(addresses, ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "10.0.0.10:80"]);
        assert_eq!(&*merged.endpoints[2].labels["zone"], "a", "the newer publisher decides");
        assert_eq!(merged.rejects[&Reject::UnknownForm], (1, "nonsense".into()));
        assert_eq!(merged.rejects[&Reject::ZeroWeight].0, 1);
    }

    #[test]
    fn a_weight_of_zero_silences_an_older_publisher_of_the_address() {
        let merged = merged(&[("a", 1, &["10.0.0.1:80"]), ("b", 2, &["10.0.0.1:80?weight=0"])]);
        assert!(merged.endpoints.is_empty());
        assert_eq!(merged.rejects[&Reject::ZeroWeight], (1, "10.0.0.1:80".into()));
    }

    #[test]
    fn of_two_equally_new_the_smallest_register_id_decides() {
        for order in [["a", "b"], ["b", "a"]] {
            let data = |id: &str| if id == "a" { ["10.0.0.1:80?zone=a"] } else { ["10.0.0.1:80?zone=b"] };
            let [first, second] = [data(order[0]), data(order[1])];
            let merged = merged(&[(order[0], 1, &first), (order[1], 1, &second)]);
            assert_eq!(&*merged.endpoints[0].labels["zone"], "a");
        }
    }

    #[test]
    fn a_service_has_the_documented_form() {
        let merged = merged(&[("a", 1, &["10.0.0.1:7000?app_name=shop"])]);
        let entry = entry(&merged.endpoints);
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
            entry(&merged.endpoints).endpoints.iter().map(|e| e.weight).collect::<Vec<_>>()
        };
        assert_eq!(weights(&["10.0.0.1:80?weight=50", "10.0.0.2:80?weight=50"]), [0, 0]);
        assert_eq!(weights(&["10.0.0.1:80?weight=50", "10.0.0.2:80"]), [50, 100]);
    }
}
