//! The one port of a service.

use crate::{model::DataInfoId, policy::Rules, proto::istio::networking::v1alpha3::ServicePort};

/// Port number, Istio protocol and port name by the protocol in the dataId, or in the texts of Dubbo's client. Protocols that
/// Istio's validation does not know (`pkg/config/protocol/instance.go`) are TCP.
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

/// The port of the service of a dataInfoId, or of one that it has beside that, by another protocol.
pub fn port(id: &str, other: Option<&str>, rules: &Rules<'_>) -> ServicePort {
    // Dubbo 3 publishes applications, without a protocol, in a group of its own.
    let by_group = |id: DataInfoId<'_>| (id.group == "dubbo").then_some("dubbo");
    let own = || DataInfoId::parse(id).and_then(|id| id.protocol().or_else(|| by_group(id)));
    let protocol = other.or_else(own).unwrap_or("DEFAULT");
    let protocol = if protocol.eq_ignore_ascii_case("DEFAULT") { "bolt" } else { protocol };
    let known = PORTS.iter().find(|(name, ..)| name.eq_ignore_ascii_case(protocol));
    let (number, usual, name) =
        known.map_or((12200, "TCP", "tcp"), |(_, number, usual, name)| (*number, *usual, *name));
    let name = match (rules.protocol, known) {
        (None, _) => name.to_owned(),
        (Some(istio), None) => istio.to_ascii_lowercase().replace('_', "-"),
        (Some(istio), Some((protocol, ..))) => format!("{}-{protocol}", istio.to_ascii_lowercase().replace('_', "-")),
    };
    ServicePort {
        number: u32::from(rules.port.or_else(|| rules.policy.port(protocol)).unwrap_or(number)),
        protocol: rules.protocol.unwrap_or(usual).to_ascii_uppercase(),
        name,
        target_port: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        model::PROTOCOLS,
        policy::{Policy, PolicyConfig},
    };

    #[test]
    fn every_known_protocol_has_a_port() {
        assert_eq!(PORTS.map(|(name, ..)| name).into_iter().collect::<BTreeSet<_>>(), PROTOCOLS.into());
    }

    #[test]
    fn what_speaks_another_protocol_has_the_port_of_that() {
        let document = serde_json::json!({
            "ports": { "hessian": 8081, "rest": 8342 },
            "overrides": { "com.*": { "host": "a.b", "port": 1, "protocol": "HTTP" } },
        });
        let policy = Policy::new(serde_json::from_value::<PolicyConfig>(document).unwrap(), &[], "ns").unwrap();
        let id = "com.example.A@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";
        let of = |other: Option<&str>| {
            let rules = policy.rules(id);
            let port = port(id, other, &if other.is_some() { rules.beside() } else { rules });
            (port.number, port.protocol, port.name)
        };
        let is = |number, protocol: &str, name: &str| (number, protocol.to_owned(), name.to_owned());
        assert_eq!(of(None), is(1, "HTTP", "http-dubbo"), "an override is about the main service");
        assert_eq!(of(Some("tri")), is(50051, "GRPC", "grpc-tri"));
        assert_eq!(of(Some("rest")), is(8342, "HTTP", "http-rest"));
        assert_eq!(of(Some("hessian")), is(8081, "TCP", "tcp"));
    }
}
