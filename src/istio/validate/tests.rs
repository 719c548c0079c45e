use super::*;
use crate::istio::rule::STRICT;
use crate::proto::istio::networking::v1alpha3::service_entry::Location;

type Break<T> = (&'static str, fn(&mut T), Result<(), Rule>);

const OK: Result<(), Rule> = Ok(());

fn port(number: u32, name: &str, protocol: &str) -> ServicePort {
    ServicePort { number, protocol: protocol.into(), name: name.into(), target_port: 0 }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn good_endpoint() -> WorkloadEntry {
    WorkloadEntry {
        address: "10.0.0.1".into(),
        ports: [("tcp".to_owned(), 80)].into(),
        labels: labels(&[("example.com/app", "a"), ("zone", "")]),
        weight: 100,
        ..WorkloadEntry::default()
    }
}

fn good() -> ServiceEntry {
    ServiceEntry {
        hosts: vec!["a.sofa.mesh".into()],
        addresses: vec!["248.0.0.1".into()],
        ports: vec![port(80, "tcp", "TCP")],
        location: Location::MeshInternal.into(),
        resolution: Resolution::Static.into(),
        endpoints: vec![good_endpoint()],
        export_to: vec!["*".into()],
        ..ServiceEntry::default()
    }
}

fn by_dns(entry: &mut ServiceEntry, resolution: Resolution) {
    entry.resolution = resolution.into();
    entry.endpoints.clear();
}

fn select(entry: &mut ServiceEntry, pairs: &[(&str, &str)]) {
    entry.endpoints.clear();
    entry.workload_selector = Some(WorkloadSelector { labels: labels(pairs) });
}

#[test]
fn the_rules_of_a_service_entry() {
    let table: &[Break<ServiceEntry>] = &[
        ("as it is", |_| {}, OK),
        ("no host", |e| e.hosts.clear(), Err(Rule::NoHost)),
        ("every host", |e| e.hosts[0] = "*".into(), Err(Rule::Host)),
        ("a wildcard", |e| e.hosts[0] = "*.sofa.mesh".into(), OK),
        ("a partial wildcard", |e| e.hosts[0] = "*-a.sofa.mesh".into(), OK),
        ("an inner wildcard", |e| e.hosts[0] = "a.*.mesh".into(), Err(Rule::Host)),
        ("an underscore", |e| e.hosts[0] = "a_b.c".into(), Err(Rule::Host)),
        ("a last label that is a number", |e| e.hosts[0] = "a.1".into(), Err(Rule::Host)),
        ("a last label beyond numbers", |e| e.hosts[0] = format!("a.{}", "9".repeat(20)), OK),
        ("a dot at the end", |e| e.hosts[0] = "a.b.".into(), OK),
        ("a long label", |e| e.hosts[0] = format!("{}.b", "a".repeat(64)), Err(Rule::Host)),
        ("a long host", |e| e.hosts[0] = format!("{}b", "a.".repeat(128)), Err(Rule::Host)),
        ("no dot", |e| e.hosts[0] = "a".into(), Err(Rule::ShortHost)),
        ("no address", |e| e.addresses.clear(), OK),
        ("a name as address", |e| e.addresses[0] = "x".into(), Err(Rule::Address)),
        ("a block", |e| e.addresses[0] = "10.0.0.1/8".into(), OK),
        ("a block of IPv6", |e| e.addresses[0] = "2001:db8::/32".into(), OK),
        ("a block too small", |e| e.addresses[0] = "10.0.0.1/33".into(), Err(Rule::Address)),
        ("a block with a sign", |e| e.addresses[0] = "10.0.0.1/+8".into(), Err(Rule::Address)),
        ("a block with a zero", |e| e.addresses[0] = "10.0.0.1/08".into(), Err(Rule::Address)),
        ("two slashes", |e| e.addresses[0] = "10.0.0.1/8/8".into(), Err(Rule::Address)),
        ("a zone", |e| e.addresses[0] = "fe80::1%eth0".into(), Err(Rule::AddressZone)),
        ("a port name in upper case", |e| e.ports.push(port(81, "Other", "HTTP")), OK),
        ("a bad port name", |e| e.ports.push(port(81, "a.b", "HTTP")), Err(Rule::PortName)),
        ("a port name twice", |e| e.ports.push(port(81, "tcp", "HTTP")), Err(Rule::PortNameTwice)),
        ("port 0", |e| e.ports[0].number = 0, Err(Rule::PortNumber)),
        ("port 65536", |e| e.ports[0].number = 65_536, Err(Rule::PortNumber)),
        ("a port twice", |e| e.ports.push(port(80, "other", "HTTP")), Err(Rule::PortNumberTwice)),
        ("a target port", |e| e.ports[0].target_port = 65_535, OK),
        ("target port 65536", |e| e.ports[0].target_port = 65_536, Err(Rule::TargetPort)),
        ("no protocol", |e| e.ports[0].protocol.clear(), OK),
        ("a protocol in any case", |e| e.ports[0].protocol = "gRPC-web".into(), OK),
        ("protocol bolt", |e| e.ports[0].protocol = "bolt".into(), Err(Rule::Protocol)),
        ("two hosts on TCP", |e| e.hosts.push("b.sofa.mesh".into()), Err(Rule::SeveralHosts)),
        (
            "two hosts on HTTP",
            |e| {
                e.hosts.push("b.sofa.mesh".into());
                e.ports[0].protocol = "http".into();
            },
            OK,
        ),
        ("an unknown resolution", |e| e.resolution = 9, Err(Rule::Resolution)),
        ("resolution DYNAMIC_DNS", |e| by_dns(e, Resolution::DynamicDns), Err(Rule::DynamicDns)),
        ("NONE", |e| by_dns(e, Resolution::None), OK),
        ("endpoints with NONE", |e| e.resolution = Resolution::None.into(), Err(Rule::EndpointsWithNone)),
        ("DNS of the host itself", |e| by_dns(e, Resolution::Dns), OK),
        (
            "DNS of a wildcard",
            |e| {
                by_dns(e, Resolution::DnsRoundRobin);
                e.hosts[0] = "*.sofa.mesh".into();
            },
            Err(Rule::UnresolvableHost),
        ),
        (
            "DNS and a block",
            |e| {
                by_dns(e, Resolution::Dns);
                e.addresses[0] = "10.0.0.0/8".into();
            },
            Err(Rule::CidrResolution),
        ),
        (
            "two endpoints in turn",
            |e| {
                e.endpoints.push(good_endpoint());
                e.resolution = Resolution::DnsRoundRobin.into();
            },
            Err(Rule::RoundRobinEndpoints),
        ),
        ("a selector", |e| select(e, &[("app", "a b")]), OK),
        ("a selector of everything", |e| select(e, &[]), OK),
        ("a selector without a key", |e| select(e, &[("", "a")]), Err(Rule::Selector)),
        ("a selector with a wildcard", |e| select(e, &[("app", "a*")]), Err(Rule::Selector)),
        (
            "a selector beside endpoints",
            |e| e.workload_selector = Some(WorkloadSelector::default()),
            Err(Rule::SelectorWithEndpoints),
        ),
        ("exported to two", |e| e.export_to = vec![".".into(), "other".into()], OK),
        ("exported to no one", |e| e.export_to = vec!["~".into()], OK),
        ("exported to all and one", |e| e.export_to.push("other".into()), Err(Rule::ExportTo)),
        ("exported to no one and one", |e| e.export_to = vec!["~".into(), "a".into()], Err(Rule::ExportTo)),
        ("exported to one twice", |e| e.export_to = vec!["a".into(), "a".into()], Err(Rule::ExportTo)),
        ("exported home twice", |e| e.export_to = vec![".".into(), "sofa".into()], Err(Rule::ExportTo)),
        ("exported to no name", |e| e.export_to = vec!["a.b".into()], Err(Rule::ExportTo)),
        (
            "weights beyond 32 bits",
            |e| {
                e.endpoints[0].weight = u32::MAX;
                e.endpoints.push(WorkloadEntry { weight: 0, ..good_endpoint() });
            },
            Err(Rule::WeightSum),
        ),
        ("a bad endpoint", |e| e.endpoints[0].address = "host".into(), Err(Rule::EndpointAddress)),
    ];
    for (name, change, expected) in table {
        let mut entry = good();
        change(&mut entry);
        assert_eq!(service_entry(&entry, "sofa").map_err(|invalid| invalid.rule), *expected, "{name}");
    }
}

#[test]
fn the_rules_of_an_endpoint() {
    /// As an endpoint of a STATIC service, of a DNS service, and as a resource.
    type Row = (&'static str, fn(&mut WorkloadEntry), [Result<(), Rule>; 3]);
    let all = |rule| [Err(rule); 3];
    let table: &[Row] = &[
        ("as it is", |_| {}, [OK; 3]),
        ("IPv6", |e| e.address = "2001:DB8::1".into(), [OK; 3]),
        ("a zone", |e| e.address = "fe80::1%eth0".into(), all(Rule::AddressZone)),
        ("a leading zero", |e| e.address = "10.0.0.01".into(), all(Rule::EndpointAddress)),
        ("a host name", |e| e.address = "a.example.com".into(), [Err(Rule::EndpointAddress), OK, OK]),
        ("a bad host name", |e| e.address = "a_b".into(), all(Rule::EndpointAddress)),
        ("no address", |e| e.address.clear(), all(Rule::EndpointAddress)),
        (
            "a network only",
            |e| {
                e.address.clear();
                e.network = "n".into();
            },
            [OK, Err(Rule::EndpointAddress), OK],
        ),
        (
            "a socket",
            |e| {
                e.address = "unix:///run/x".into();
                e.ports.clear();
            },
            [OK, Err(Rule::EndpointAddress), OK],
        ),
        (
            "an abstract socket",
            |e| {
                e.address = "unix://@x".into();
                e.ports.clear();
            },
            [OK, Err(Rule::EndpointAddress), OK],
        ),
        (
            "a socket by a relative path",
            |e| e.address = "unix://run".into(),
            [Err(Rule::UnixPath), Err(Rule::EndpointAddress), Err(Rule::UnixPath)],
        ),
        (
            "a socket with ports",
            |e| e.address = "unix:///run/x".into(),
            [Err(Rule::UnixPorts), Err(Rule::EndpointAddress), Err(Rule::UnixPorts)],
        ),
        ("a bad port name", |e| e.ports.extend([("-".into(), 1)]), all(Rule::EndpointPortName)),
        (
            "another port",
            |e| e.ports.extend([("http".into(), 1)]),
            [Err(Rule::UnknownPort), Err(Rule::UnknownPort), OK],
        ),
        ("port 0", |e| e.ports.extend([("tcp".into(), 0)]), all(Rule::EndpointPort)),
        ("port 65536", |e| e.ports.extend([("tcp".into(), 65_536)]), all(Rule::EndpointPort)),
        ("a long label in a prefix", |e| e.labels = labels(&[(&format!("{}/a", "x".repeat(253)), "")]), [OK; 3]),
        ("a long prefix", |e| e.labels = labels(&[(&format!("{}/a", "x".repeat(254)), "")]), all(Rule::LabelKey)),
        ("a long key", |e| e.labels = labels(&[(&"x".repeat(64), "")]), all(Rule::LabelKey)),
        ("an empty key", |e| e.labels = labels(&[("", "")]), all(Rule::LabelKey)),
        ("two slashes", |e| e.labels = labels(&[("a/b/c", "")]), all(Rule::LabelKey)),
        ("a blank in a value", |e| e.labels = labels(&[("a", "b c")]), all(Rule::LabelValue)),
        ("a dash at a value's end", |e| e.labels = labels(&[("a", "b-")]), all(Rule::LabelValue)),
        ("a long value", |e| e.labels = labels(&[("a", &"b".repeat(64))]), all(Rule::LabelValueLength)),
    ];
    let (fixed, mut resolved) = (good(), good());
    resolved.resolution = Resolution::Dns.into();
    for (name, change, expected) in table {
        let mut entry = good_endpoint();
        change(&mut entry);
        let results = [endpoint(&entry, &fixed), endpoint(&entry, &resolved), workload_entry(&entry)];
        assert_eq!(results.map(|result| result.map_err(|invalid| invalid.rule)), *expected, "{name}");
    }
    let two_ports = ServiceEntry { ports: vec![port(1, "a", "TCP"), port(2, "b", "TCP")], ..good() };
    let socket = WorkloadEntry { address: "unix:///run/x".into(), ..WorkloadEntry::default() };
    assert_eq!(endpoint(&socket, &two_ports).unwrap_err().rule, Rule::UnixServicePorts);
}

#[test]
fn the_rules_of_metadata() {
    let rule = |name, label: &[(&str, &str)], annotation: &[(&str, &str)]| {
        metadata(name, &labels(label), &labels(annotation)).map_err(|invalid| invalid.rule)
    };
    assert_eq!(rule("ns/a.b", &[("sofa.registry/empty", "true")], &[("sofa.registry/data-info-id", "@#/ ")]), OK);
    assert_eq!(rule("ns", &[], &[]), Err(Rule::Name));
    assert_eq!(rule("ns/a/b", &[], &[]), Err(Rule::Name));
    assert_eq!(rule("ns/a", &[("istio.io/rev", "canary")], &[]), Err(Rule::Revision));
    for key in REFUSED_ANNOTATIONS {
        assert_eq!(rule("ns/a", &[], &[(key, "")]), Err(Rule::Annotation));
    }
    for key in OWN_ANNOTATIONS {
        assert_eq!(rule("ns/a", &[], &[(key, "")]), Err(Rule::OwnAnnotation));
    }
}

#[test]
fn a_bad_endpoint_is_left_out_and_counted() {
    let mut entry = good();
    entry.endpoints =
        ["10.0.0.1", "x", "10.0.0.2", "y"].map(|a| WorkloadEntry { address: a.into(), ..good_endpoint() }).into();
    entry.endpoints[2].labels = labels(&[("a", "b c")]);
    let left_out = keep_valid_endpoints(&mut entry);
    assert_eq!(entry, good());
    let counts: Vec<_> = left_out.iter().map(|(rule, (count, first))| (*rule, *count, first.detail.as_str())).collect();
    assert_eq!(counts, [(Rule::EndpointAddress, 2, "address \"x\""), (Rule::LabelValue, 1, "labels \"b c\"")]);
    assert_eq!(service_entry(&entry, "sofa"), Ok(()));
}

#[test]
fn an_error_names_field_value_rule_and_remedy() {
    let mut entry = good();
    entry.hosts[0] = format!("a\nb{}", "x".repeat(200));
    let text = service_entry(&entry, "sofa").unwrap_err().to_string();
    assert!(text.starts_with("hosts \"a\\nbxxx") && text.contains("…\" breaks host: a host has at most 255"), "{text}");
    assert!(text.len() < 400, "{text}");
}

#[test]
fn strict_rules_stand_once_in_their_list() {
    let strict: BTreeSet<_> = STRICT.iter().map(|(rule, _)| rule).collect();
    assert_eq!(strict.len(), STRICT.len());
}
