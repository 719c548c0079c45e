//! Istio's rules for what this crate makes. istiod never says that it refused a resource, it drops it or keeps the old
//! one for ever, so nothing is served that would not pass.
//!
//! A port of what Istio checks of ServiceEntries, WorkloadEntries and their metadata
//! (`pkg/config/validation/validation.go`, `pkg/config/validation/agent/validation.go`, `pkg/config/labels/instance.go`,
//! `pkg/adsc/adsc.go`), without its warnings, which refuse nothing. Where it is stricter stands in [`STRICT`](crate::istio::rule::STRICT); that it
//! is laxer nowhere, and stricter nowhere else, is what `tests/istio` compares with Istio's own code.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use crate::{
    istio::{
        grammar,
        rule::{Invalid, Rule},
    },
    proto::istio::networking::v1alpha3::{
        ServiceEntry, ServicePort, WorkloadEntry, WorkloadSelector, service_entry::Resolution,
    },
};

type Result<T = (), E = Invalid> = std::result::Result<T, E>;

/// `pkg/config/protocol/instance.go`, compared without case: protocols that carry a host, so that several can share a port.
const WITH_HOST: [&str; 7] = ["http", "http2", "http_proxy", "grpc", "grpc-web", "https", "tls"];
const WITHOUT_HOST: [&str; 5] = ["tcp", "udp", "mongo", "redis", "mysql"];

const UNIX: &str = "unix://";
const REVISION_LABEL: &str = "istio.io/rev";
const REFUSED_ANNOTATIONS: [&str; 2] = ["istio.io/dry-run", "internal.istio.io/webhook-always-reject"];
const OWN_ANNOTATIONS: [&str; 4] = [
    "ResourceVersion",
    "proxy.istio.io/health-checks-enabled",
    "internal.istio.io/parents",
    "internal.istio.io/parent-namespace",
];

/// The first rule that a resource's metadata breaks; `name` is `namespace/name`.
pub fn metadata(name: &str, labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> Result {
    if name.matches('/').count() != 1 {
        return Err(Invalid::new(Rule::Name, "metadata.name", name));
    }
    if let Some(revision) = labels.get(REVISION_LABEL) {
        return Err(Invalid::new(Rule::Revision, "metadata.labels[istio.io/rev]", revision));
    }
    for (keys, rule) in [(&REFUSED_ANNOTATIONS[..], Rule::Annotation), (&OWN_ANNOTATIONS[..], Rule::OwnAnnotation)] {
        if let Some(key) = keys.iter().find(|key| annotations.contains_key(**key)) {
            return Err(Invalid::new(rule, "metadata.annotations", key));
        }
    }
    Ok(())
}

/// The first rule that a ServiceEntry in `namespace` breaks.
pub fn service_entry(entry: &ServiceEntry, namespace: &str) -> Result {
    check_selector(entry.workload_selector.as_ref())?;
    if entry.workload_selector.is_some() && !entry.endpoints.is_empty() {
        return Err(Invalid::new(Rule::SelectorWithEndpoints, "endpoints", entry.endpoints.len()));
    }
    check_hosts(&entry.hosts)?;
    for address in &entry.addresses {
        grammar::check_subnet(address).map_err(|rule| Invalid::new(rule, "addresses", address))?;
    }
    check_ports(&entry.ports)?;
    check_resolution(entry)?;
    for each in &entry.endpoints {
        endpoint(each, entry)?;
    }
    check_export_to(&entry.export_to, namespace)
        .map_err(|_| Invalid::new(Rule::ExportTo, "exportTo", entry.export_to.join(", ")))?;
    // An unset weight counts as 1.
    let sum: u64 = entry.endpoints.iter().map(|endpoint| u64::from(endpoint.weight.max(1))).sum();
    if sum > u64::from(u32::MAX) {
        return Err(Invalid::new(Rule::WeightSum, "the sum of endpoints[].weight", sum));
    }
    Ok(())
}

/// The first rule that a WorkloadEntry breaks as a resource of its own. Whether its service has its ports, and takes its
/// kind of address, is not asked of it.
pub fn workload_entry(entry: &WorkloadEntry) -> Result {
    workload(entry, None)
}

/// The first rule that an endpoint of `service` breaks; the other endpoints do not matter.
pub fn endpoint(endpoint: &WorkloadEntry, service: &ServiceEntry) -> Result {
    match service.resolution() {
        Resolution::Static => workload(endpoint, Some(&service.ports)),
        Resolution::Dns | Resolution::DnsRoundRobin => {
            check_address(endpoint, true)?;
            check_endpoint_ports(endpoint, Some(&service.ports))?;
            check_labels(endpoint)
        }
        // Taken by no service; that is the service's fault.
        Resolution::None | Resolution::DynamicDns => Ok(()),
    }
}

/// Leaves out the endpoints that break a rule, since one would cost istiod the whole service. Counted by rule, with the
/// first of each.
pub fn keep_valid_endpoints(entry: &mut ServiceEntry) -> BTreeMap<Rule, (u32, Invalid)> {
    let mut left_out = BTreeMap::new();
    let mut endpoints = std::mem::take(&mut entry.endpoints);
    endpoints.retain(|each| match endpoint(each, entry) {
        Ok(()) => true,
        Err(invalid) => {
            match left_out.entry(invalid.rule) {
                btree_map::Entry::Vacant(slot) => drop(slot.insert((1, invalid))),
                btree_map::Entry::Occupied(mut slot) => slot.get_mut().0 += 1,
            }
            false
        }
    });
    entry.endpoints = endpoints;
    left_out
}

fn check_selector(selector: Option<&WorkloadSelector>) -> Result {
    let bad = |(key, value): &(&String, &String)| key.is_empty() || key.contains('*') || value.contains('*');
    match selector.and_then(|selector| selector.labels.iter().find(bad)) {
        Some((key, value)) => Err(Invalid::new(Rule::Selector, "workloadSelector", format_args!("{key}={value}"))),
        None => Ok(()),
    }
}

fn check_hosts(hosts: &[String]) -> Result {
    if hosts.is_empty() {
        return Err(Invalid::new(Rule::NoHost, "hosts", ""));
    }
    for host in hosts {
        if !grammar::is_host(host) {
            return Err(Invalid::new(Rule::Host, "hosts", host));
        }
        if !host.contains('.') {
            return Err(Invalid::new(Rule::ShortHost, "hosts", host));
        }
    }
    Ok(())
}

fn check_ports(ports: &[ServicePort]) -> Result {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for ServicePort { number, protocol, name, target_port } in ports {
        if !grammar::is_dns_label(name) {
            return Err(Invalid::new(Rule::PortName, "ports[].name", name));
        }
        if !names.insert(name) {
            return Err(Invalid::new(Rule::PortNameTwice, "ports[].name", name));
        }
        if !is_port(*number) {
            return Err(Invalid::new(Rule::PortNumber, "ports[].number", number));
        }
        if !numbers.insert(number) {
            return Err(Invalid::new(Rule::PortNumberTwice, "ports[].number", number));
        }
        if *target_port != 0 && !is_port(*target_port) {
            return Err(Invalid::new(Rule::TargetPort, "ports[].targetPort", target_port));
        }
        if !protocol.is_empty() && !is_protocol(protocol) {
            return Err(Invalid::new(Rule::Protocol, "ports[].protocol", protocol));
        }
    }
    Ok(())
}

/// The rules that depend on the resolution, but for the rules of the endpoints themselves.
fn check_resolution(entry: &ServiceEntry) -> Result {
    let resolution = Resolution::try_from(entry.resolution)
        .map_err(|_| Invalid::new(Rule::Resolution, "resolution", entry.resolution))?;
    let endpoints = entry.endpoints.len();
    match resolution {
        Resolution::DynamicDns => {
            return Err(Invalid::new(Rule::DynamicDns, "resolution", resolution.as_str_name()));
        }
        Resolution::None if endpoints > 0 => {
            return Err(Invalid::new(Rule::EndpointsWithNone, "endpoints", endpoints));
        }
        Resolution::DnsRoundRobin if endpoints > 1 => {
            return Err(Invalid::new(Rule::RoundRobinEndpoints, "endpoints", endpoints));
        }
        Resolution::None | Resolution::Static => {}
        Resolution::Dns | Resolution::DnsRoundRobin => {
            let unresolvable = entry.hosts.iter().find(|host| endpoints == 0 && !grammar::is_fqdn(host));
            if let Some(host) = unresolvable {
                return Err(Invalid::new(Rule::UnresolvableHost, "hosts", host));
            }
            if let Some(block) = entry.addresses.iter().find(|address| address.contains('/')) {
                return Err(Invalid::new(Rule::CidrResolution, "addresses", block));
            }
        }
    }
    let alike = entry.ports.iter().find(|port| !is_one_of(&WITH_HOST, &port.protocol));
    match alike {
        Some(port) if entry.hosts.len() > 1 && resolution != Resolution::None => {
            Err(Invalid::new(Rule::SeveralHosts, "ports[].protocol", &port.protocol))
        }
        _ => Ok(()),
    }
}

/// Istio's grammar of `exportTo` for a resource in `namespace`, which `.` stands for; the error is the first value that
/// cannot stand where it does.
pub(crate) fn check_export_to<'a>(export_to: &'a [String], namespace: &str) -> Result<(), &'a str> {
    let mut seen = BTreeSet::new();
    for value in export_to {
        let named = if value == "." { namespace } else { value };
        let alone = matches!(named, "*" | "~");
        let legal = value == "~" || named == "*" || named == "." || grammar::is_dns_label(named);
        if !legal || !seen.insert(named) || (alone && export_to.len() > 1) {
            return Err(value);
        }
    }
    Ok(())
}

/// A WorkloadEntry; `ports` are those of its service, if it is known.
fn workload(entry: &WorkloadEntry, ports: Option<&[ServicePort]>) -> Result {
    if let Some(path) = entry.address.strip_prefix(UNIX) {
        if !grammar::is_unix_path(path) {
            return Err(Invalid::new(Rule::UnixPath, "address", &entry.address));
        }
        if !entry.ports.is_empty() {
            return Err(Invalid::new(Rule::UnixPorts, "ports", entry.ports.len()));
        }
        if let Some(ports) = ports.filter(|ports| ports.len() != 1) {
            return Err(Invalid::new(Rule::UnixServicePorts, "the number of the service's ports", ports.len()));
        }
    } else if !entry.address.is_empty() || entry.network.is_empty() {
        check_address(entry, ports.is_none())?;
    }
    check_endpoint_ports(entry, ports)?;
    check_labels(entry)
}

fn check_address(entry: &WorkloadEntry, or_name: bool) -> Result {
    match grammar::check_address(&entry.address, Rule::EndpointAddress) {
        Err(rule) if !(or_name && grammar::is_fqdn(&entry.address)) => {
            Err(Invalid::new(rule, "address", &entry.address))
        }
        _ => Ok(()),
    }
}

fn check_endpoint_ports(entry: &WorkloadEntry, known: Option<&[ServicePort]>) -> Result {
    for (name, number) in &entry.ports {
        if !grammar::is_dns_label(name) {
            return Err(Invalid::new(Rule::EndpointPortName, "ports", name));
        }
        if known.is_some_and(|ports| ports.iter().all(|port| port.name != *name)) {
            return Err(Invalid::new(Rule::UnknownPort, "ports", name));
        }
        if !is_port(*number) {
            return Err(Invalid::new(Rule::EndpointPort, "ports", number));
        }
    }
    Ok(())
}

fn check_labels(entry: &WorkloadEntry) -> Result {
    for (key, value) in &entry.labels {
        if !grammar::is_label_key(key) {
            return Err(Invalid::new(Rule::LabelKey, "labels", key));
        }
        grammar::check_label_value(value).map_err(|rule| Invalid::new(rule, "labels", value))?;
    }
    Ok(())
}

fn is_port(number: u32) -> bool {
    (1..=65_535).contains(&number)
}

/// Whether a port may have it.
pub(crate) fn is_protocol(protocol: &str) -> bool {
    is_one_of(&WITH_HOST, protocol) || is_one_of(&WITHOUT_HOST, protocol)
}

/// Whether a service may have it: a DNS name with a dot.
pub(crate) fn is_service_host(host: &str) -> bool {
    check_hosts(std::slice::from_ref(&host.to_owned())).is_ok() && !host.starts_with('*')
}

fn is_one_of(protocols: &[&str], protocol: &str) -> bool {
    protocols.iter().any(|known| known.eq_ignore_ascii_case(protocol))
}

#[cfg(test)]
mod tests;
