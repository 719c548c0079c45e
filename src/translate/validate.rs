//! Istio's rules for what this crate makes. istiod never says that it refused an entry, it drops it or keeps the old
//! one for ever, so nothing is served that would not pass
//! (`pkg/config/validation/validation.go`, `ValidateServiceEntry`).

use std::collections::BTreeSet;

use crate::proto::istio::networking::v1alpha3::{ServiceEntry, service_entry::Resolution};

/// Protocols of `pkg/config/protocol/instance.go`, compared without case.
const PROTOCOLS: [&str; 12] =
    ["tcp", "udp", "grpc", "grpc-web", "http", "http_proxy", "http2", "https", "tls", "mongo", "redis", "mysql"];

/// The first rule that an entry breaks.
pub fn service_entry(entry: &ServiceEntry) -> Result<(), String> {
    if entry.hosts.is_empty() {
        return Err("it has no host".to_owned());
    }
    entry.hosts.iter().try_for_each(|host| check_host(host))?;
    for address in &entry.addresses {
        if address.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("address \"{address}\" is no IP address"));
        }
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for port in &entry.ports {
        if !crate::policy::is_dns_label(&port.name) || !names.insert(&port.name) {
            return Err(format!("port name \"{}\" is no DNS label or stands twice", port.name));
        }
        if !(1..=65_535).contains(&port.number) || !numbers.insert(port.number) {
            return Err(format!("port number {} is outside 1..65535 or stands twice", port.number));
        }
        if !PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(&port.protocol)) {
            return Err(format!("port protocol \"{}\" is not one of Istio's", port.protocol));
        }
    }
    if entry.resolution() != Resolution::Static {
        return Err(format!("resolution {:?} is not made here", entry.resolution()));
    }
    for endpoint in &entry.endpoints {
        if endpoint.address.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("endpoint address \"{}\" is no IP address", endpoint.address));
        }
        for (name, port) in &endpoint.ports {
            if !names.contains(name) || !(1..=65_535).contains(port) {
                return Err(format!("endpoint port {name}: {port} names no port of the service or is no port"));
            }
        }
        for (key, value) in &endpoint.labels {
            if !is_label_key(key) || !is_label_value(value) {
                return Err(format!("endpoint label {key}: \"{value}\" is not a Kubernetes label"));
            }
        }
    }
    Ok(())
}

fn check_host(host: &str) -> Result<(), String> {
    let legal = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if host.len() > 255 || !host.split('.').all(legal) || numeric_end || !host.contains('.') {
        return Err(format!("host \"{host}\" is no DNS name with a dot and a last label that is no number"));
    }
    Ok(())
}

fn is_label_name(name: &str, max: usize) -> bool {
    let alphanumeric = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= max
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
}

fn is_label_key(key: &str) -> bool {
    match key.rsplit_once('/') {
        Some((prefix, name)) => check_host(&format!("{prefix}.x")).is_ok() && is_label_name(name, 63),
        None => is_label_name(key, 63),
    }
}

fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_label_name(value, 63)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::istio::networking::v1alpha3::{ServicePort, WorkloadEntry};

    fn good() -> ServiceEntry {
        ServiceEntry {
            hosts: vec!["a.sofa.mesh".into()],
            addresses: vec!["248.0.0.1".into()],
            ports: vec![ServicePort { number: 80, protocol: "TCP".into(), name: "tcp".into(), target_port: 0 }],
            resolution: Resolution::Static.into(),
            endpoints: vec![WorkloadEntry {
                address: "10.0.0.1".into(),
                ports: [("tcp".to_owned(), 80)].into(),
                labels: [("example.com/app".to_owned(), "a".to_owned())].into(),
                ..WorkloadEntry::default()
            }],
            ..ServiceEntry::default()
        }
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
        assert_eq!(service_entry(&good()), Ok(()));
        let breaks: [(&str, fn(&mut ServiceEntry)); 11] = [
            ("no host", |e| e.hosts.clear()),
            ("host \"a_b.c\"", |e| e.hosts[0] = "a_b.c".into()),
            ("host \"a.1\"", |e| e.hosts[0] = "a.1".into()),
            ("address \"x\"", |e| e.addresses[0] = "x".into()),
            ("port name \"TCP\"", |e| e.ports[0].name = "TCP".into()),
            ("port number 0", |e| e.ports[0].number = 0),
            ("protocol \"bolt\"", |e| e.ports[0].protocol = "bolt".into()),
            ("resolution", |e| e.resolution = Resolution::None.into()),
            ("endpoint address", |e| e.endpoints[0].address = "host".into()),
            ("endpoint port http", |e| e.endpoints[0].ports = [("http".to_owned(), 80)].into()),
            ("endpoint label", |e| e.endpoints[0].labels = [("a".to_owned(), "b c".to_owned())].into()),
        ];
        for (says, break_it) in breaks {
            let mut entry = good();
            break_it(&mut entry);
            let error = service_entry(&entry).expect_err(says);
            assert!(error.contains(says), "{error}");
        }
    }
}
