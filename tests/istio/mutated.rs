//! Good resources, broken at random: the verdict here against Istio's.

use std::collections::BTreeMap;

use harness::random::Random;
use prost::Message;
use registry_mox::{
    proto::{
        google::protobuf::Any,
        istio::{
            mcp::v1alpha1::{Metadata, Resource},
            networking::v1alpha3::{
                ServiceEntry, ServicePort, WorkloadEntry, WorkloadSelector,
                service_entry::{Location, Resolution},
            },
        },
    },
    testing::istio::{
        rule::{Invalid, Rule, STRICT},
        validate,
    },
};

use crate::oracle::{self, VERSIONS};

const BATCH: usize = 20_000;
const NAMESPACE: &str = "sofa";

/// A resource whose verdict is asked.
#[derive(Debug, Clone)]
struct Case {
    metadata: Metadata,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Service(ServiceEntry),
    Workload(WorkloadEntry),
}

impl Case {
    fn verdict(&self) -> Result<(), Invalid> {
        let Metadata { name, labels, annotations, .. } = &self.metadata;
        let namespace = name.split('/').next().unwrap_or_default();
        validate::metadata(name, labels, annotations).and_then(|()| match &self.body {
            Body::Service(entry) => validate::service_entry(entry, namespace),
            Body::Workload(entry) => validate::workload_entry(entry),
        })
    }

    fn any(&self) -> Any {
        let (kind, value) = match &self.body {
            Body::Service(entry) => ("ServiceEntry", entry.encode_to_vec()),
            Body::Workload(entry) => ("WorkloadEntry", entry.encode_to_vec()),
        };
        let type_url = format!("type.googleapis.com/istio.networking.v1alpha3.{kind}");
        let body = Some(Any { type_url, value: value.into() });
        let resource = Resource { metadata: Some(self.metadata.clone()), body };
        let type_url = "type.googleapis.com/istio.mcp.v1alpha1.Resource".to_owned();
        Any { type_url, value: resource.encode_to_vec().into() }
    }
}

pub(crate) fn run(inputs: usize, seed: u64) {
    let mut random = Random::new(seed);
    let (mut judged, mut valid, mut repaired) = (0, 0, 0);
    let mut hits: BTreeMap<Rule, usize> = BTreeMap::new();
    let mut tolerated: BTreeMap<(Rule, &str), usize> = BTreeMap::new();
    let mut disagreements = Vec::new();
    while judged < inputs {
        let mut cases: Vec<Case> = Vec::with_capacity(BATCH * 2);
        while cases.len() < BATCH {
            let case = case(&mut random);
            // The entry that is served once the bad endpoints are left out is judged as well.
            if let (Body::Service(entry), Err(_)) = (&case.body, case.verdict()) {
                let mut entry = entry.clone();
                if !validate::keep_valid_endpoints(&mut entry).is_empty() {
                    let case = Case { body: Body::Service(entry), ..case.clone() };
                    repaired += usize::from(case.verdict().is_ok());
                    cases.push(case);
                }
            }
            cases.push(case);
        }
        let resources: Vec<Any> = cases.iter().map(Case::any).collect();
        let ours: Vec<Result<(), Invalid>> = cases.iter().map(Case::verdict).collect();
        judged += cases.len();
        valid += ours.iter().filter(|verdict| verdict.is_ok()).count();
        for invalid in ours.iter().filter_map(|verdict| verdict.as_ref().err()) {
            *hits.entry(invalid.rule).or_default() += 1;
        }
        for (version, theirs) in VERSIONS.into_iter().zip(oracle::verdicts(&resources)) {
            for ((case, ours), theirs) in cases.iter().zip(&ours).zip(theirs) {
                match (ours, theirs) {
                    (Ok(()), None) | (Err(_), Some(_)) => {}
                    (Err(invalid), None) if STRICT.iter().any(|(rule, _)| *rule == invalid.rule) => {
                        *tolerated.entry((invalid.rule, version)).or_default() += 1;
                    }
                    (Ok(()), Some(why)) => {
                        disagreements.push(format!("{version} refuses what passes here: {why}\n  {case:?}"));
                    }
                    (Err(invalid), None) => {
                        disagreements.push(format!("{version} takes what does not pass here: {invalid}\n  {case:?}"));
                    }
                }
            }
        }
    }
    println!("mutated: {judged} resources, {valid} valid, {repaired} of them by leaving endpoints out");
    for rule in Rule::ALL {
        let strict: Vec<_> = VERSIONS.iter().filter_map(|v| Some((*v, *tolerated.get(&(*rule, *v))?))).collect();
        let hits = hits.get(rule).copied().unwrap_or_default();
        println!(
            "mutated: {hits:6} break {rule}{}",
            if strict.is_empty() { String::new() } else { format!("; taken by {strict:?}") }
        );
    }
    disagreements.iter().take(5).for_each(|disagreement| println!("mutated: {disagreement:.2000}"));
    assert_eq!(disagreements.len(), 0, "disagreements with Istio; the first are above");
    assert!((20..=80).contains(&(valid * 100 / judged)), "{valid} of {judged} are valid: no good test");
    let least = (inputs / 5_000).max(1);
    for rule in Rule::ALL {
        assert!(hits.get(rule).is_some_and(|hits| *hits >= least), "fewer than {least} resources break {rule}");
    }
    for (rule, _) in STRICT {
        let by_any = VERSIONS.iter().any(|version| tolerated.contains_key(&(rule, *version)));
        assert!(by_any, "{rule} is in STRICT, but no version of Istio takes what breaks it");
    }
}

/// A good resource with up to three changes, each of which may break it or not.
fn case(random: &mut Random) -> Case {
    let metadata = Metadata {
        name: format!("{NAMESPACE}/a.b"),
        version: "1".to_owned(),
        labels: map([("sofa.registry/empty", "true")]),
        annotations: map([("sofa.registry/data-info-id", "a#@#b#@#c")]),
        ..Metadata::default()
    };
    let body =
        if random.percent(20) { Body::Workload(good_workload(random)) } else { Body::Service(good_service(random)) };
    let mut case = Case { metadata, body };
    for _ in 0..random.below(4) {
        match &mut case.body {
            _ if random.percent(5) => change_metadata(random, &mut case.metadata),
            Body::Service(entry) => change_service(random, entry),
            Body::Workload(entry) => change_workload(random, entry),
        }
    }
    case
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn good_workload(random: &mut Random) -> WorkloadEntry {
    WorkloadEntry {
        address: random.pick(&["10.0.0.1", "2001:db8::1", "172.16.0.9"]).to_owned(),
        ports: [("tcp".to_owned(), 12200)].into(),
        labels: map([("app", "shop"), ("example.com/zone", "GZ00A")]),
        weight: random.below(3) as u32 * 100,
        ..WorkloadEntry::default()
    }
}

fn good_service(random: &mut Random) -> ServiceEntry {
    let resolution = match random.below(20) {
        0..9 => Resolution::Static,
        9..12 => Resolution::None,
        12..16 => Resolution::Dns,
        16..19 => Resolution::DnsRoundRobin,
        _ => Resolution::DynamicDns,
    };
    let mut entry = ServiceEntry {
        hosts: vec!["a.sofa.mesh".to_owned()],
        addresses: vec!["248.0.0.1".to_owned()],
        ports: vec![ServicePort { number: 12200, protocol: "TCP".into(), name: "tcp".into(), target_port: 0 }],
        location: if random.percent(80) { Location::MeshInternal.into() } else { Location::MeshExternal.into() },
        resolution: resolution.into(),
        export_to: vec!["*".to_owned()],
        ..ServiceEntry::default()
    };
    let most = match resolution {
        Resolution::Static | Resolution::Dns => 4,
        Resolution::DnsRoundRobin => 2,
        Resolution::None => 1,
        Resolution::DynamicDns => {
            entry.hosts = vec!["*.sofa.mesh".to_owned()];
            entry.addresses.clear();
            entry.location = Location::MeshExternal.into();
            entry.ports[0].protocol = "HTTP".to_owned();
            return entry;
        }
    };
    if random.percent(10) {
        entry.workload_selector = Some(WorkloadSelector { labels: map([("app", "shop")]) });
    } else {
        entry.endpoints = (0..random.below(most)).map(|_| good_workload(random)).collect();
    }
    if random.percent(30) {
        entry.ports[0].protocol = random.pick(&["HTTP", "GRPC", "http2", "TLS", "HTTPS", "grpc-web"]).to_owned();
    }
    entry
}

fn change_metadata(random: &mut Random, metadata: &mut Metadata) {
    match random.below(4) {
        0 => {
            let names =
                ["sofa/a", "sofa", "sofa/a/b", "/", "sofa/", "/a", "", "other/A_b", "~/a", "*/a", "a.b/c", "./c"];
            metadata.name = any_of(random, &names);
        }
        1 => {
            let keys =
                ["istio.io/rev", "istio.io/rev", "istio.io/use-waypoint", "topology.istio.io/network", "", "a b"];
            let key = any_of(random, &keys);
            metadata.labels.insert(key, random.pick(&["default", "canary", "", "true"]).to_owned());
        }
        _ => {
            #[rustfmt::skip]
            let keys = [
                "istio.io/dry-run", "internal.istio.io/webhook-always-reject", "internal.istio.io/parents",
                "internal.istio.io/parent-namespace", "ResourceVersion", "proxy.istio.io/health-checks-enabled", "",
                "a b", "networking.istio.io/exportTo",
            ];
            metadata.annotations.insert(any_of(random, &keys), random.pick(&["true", "", "x"]).to_owned());
        }
    }
}

/// A pick of `usual`; now and then a changed one, or anything.
fn any_of(random: &mut Random, usual: &[&str]) -> String {
    match random.below(20) {
        0 => random.text(12),
        1 => splice(random, usual),
        _ => random.pick(usual).to_owned(),
    }
}

/// A pick of `usual` with a character changed, removed or added.
fn splice(random: &mut Random, usual: &[&str]) -> String {
    let mut characters: Vec<char> = random.pick(usual).chars().collect();
    let at = random.below(characters.len() + 1);
    match random.below(3) {
        0 if at < characters.len() => drop(characters.remove(at)),
        1 if at < characters.len() => characters[at] = random.character(),
        _ => characters.insert(at, random.character()),
    }
    characters.into_iter().collect()
}

fn host(random: &mut Random) -> String {
    if random.percent(10) {
        let (label, count) = (random.below(70), 1 + random.below(8));
        return vec!["x".repeat(label); count].join(".");
    }
    #[rustfmt::skip]
    let usual = [
        "b.sofa.mesh", "B.Sofa.Mesh", "a", "*", "*.sofa.mesh", "*sofa.mesh", "*-a.mesh", "*.", "*-", "**.a", "*a",
        "*.*.a", "a.*.b", "a*.b", "a.b.", "a.b..", ".a.b", ".", "", "a_b.c", "a.1", "1", "1.a", "a.007", "a.-1",
        "a.+1", "a.0x1", "a.9223372036854775807", "a.9223372036854775808", "a.99999999999999999999", "-a.b", "a-.b",
        "a.b-", "a.é", "a b.c", "a.b\n", "a/b.c", "10.0.0.1", "xn--a.b", "a..b", "*-.b",
    ];
    any_of(random, &usual)
}

fn address(random: &mut Random) -> String {
    #[rustfmt::skip]
    let usual = [
        "10.0.0.2", "10.0.0.1/8", "10.0.0.0/32", "10.0.0.0/33", "10.0.0.0/0", "10.0.0.0/00", "10.0.0.0/08",
        "10.0.0.0/+8", "10.0.0.0/", "/8", "10.0.0.0/8/8", "10.0.0.0/-1", "10.0.0.0/8 ", "10.0.0.01", "10.0.0.256",
        "10.0.0", "10.0.0.0.0", "0x0a.0.0.1", "", "a.example.com", "2001:db8::1", "2001:DB8::/32", "2001:db8::/128",
        "2001:db8::/129", "::", "::/0", "::ffff:10.0.0.1", "::ffff:10.0.0.1/96", "::10.0.0.1", "::10.0.0.01",
        "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::3:4:5:6:7:8",
        "1:2:3:4::5:6:7:8", "1:2:3:4:5:6:10.0.0.1", "1:2:3:4:5:10.0.0.1", "1:2:3:4:5:6:7:10.0.0.1", "12345::",
        "::g", ":1", "1:", ":::", "1::2::3", "00001::", "fe80::1%eth0", "fe80::1%", "fe80::1%eth0/64",
        "fe80::1%a/b/c", "10.0.0.1%eth0", "::ffff:10.0.0.1%a", "[::1]", " ::1", "10.0.0.1:80", "unix:///run/x",
        "１0.0.0.1",
    ];
    any_of(random, &usual)
}

fn port_number(random: &mut Random) -> u32 {
    let usual = [0, 1, 80, 12200, 65_535, 65_536, 1 << 31, u32::MAX];
    usual[random.below(usual.len())]
}

fn port_name(random: &mut Random) -> String {
    let long = "x".repeat(62 + random.below(3));
    let usual = ["http", "tcp", "TCP", "tcp-bolt", "a.b", "a_b", "", "-a", "a-", "1", "é", "a b", "*", "tcp\n", &long];
    any_of(random, &usual)
}

fn label(random: &mut Random) -> (String, String) {
    let (long, prefix) = ("x".repeat(62 + random.below(3)), format!("{}.a/k", "p".repeat(249 + random.below(4))));
    #[rustfmt::skip]
    let keys = [
        "app", "A.b_c-d", "example.com/k", "Example.COM/k", "a/b/c", "/k", "k/", "", "-k", "k-", "_k", ".k", "k.",
        "a b", "é", "a_b/k", "a..b/k", ".a/k", "a./k", "a-/k", "security.istio.io/tlsMode", "k\n", "*", &long,
        &prefix,
    ];
    let values = ["a", "A.b_c-d", "", "-a", "a-", "_", ".", "a b", "a/b", "é", "a\n", "1", "true", "*", "a:b", &long];
    if random.percent(10) {
        ("k".to_owned(), long)
    } else if random.percent(50) {
        (any_of(random, &keys), "a".to_owned())
    } else {
        ("k".to_owned(), any_of(random, &values))
    }
}

fn change_workload(random: &mut Random, entry: &mut WorkloadEntry) {
    match random.below(16) {
        0..4 => entry.address = address(random),
        4 => entry.address = host(random),
        5 => {
            let paths = ["/run/x", "@abstract", "@", "", "run/x", "/run/", "/", "//", " /x", "/a b", "@/"];
            entry.address = format!("unix://{}", any_of(random, &paths));
            if random.percent(70) {
                entry.ports.clear();
            }
        }
        6 => entry.network = any_of(random, &["", "n1", "a b"]),
        7 => entry.address.clear(),
        8 => drop(entry.ports.insert(port_name(random), 80)),
        9 => entry.ports.extend([("tcp".to_owned(), port_number(random))]),
        10 => entry.ports.clear(),
        11 | 12 => entry.labels.extend([label(random)]),
        13 => entry.weight = [0, 1 << 31, u32::MAX][random.below(3)],
        14 => entry.locality = any_of(random, &["", "r", "r/z", "r/z/s", "r/z/s/x", "/", "//", "*"]),
        _ => entry.service_account = any_of(random, &["", "default", "a b", "*"]),
    }
}

fn change_port(random: &mut Random, port: &mut ServicePort) {
    #[rustfmt::skip]
    let protocols = [
        "", "TCP", "tcp", "UDP", "gRPC", "GRPC-Web", "grpc_web", "http", "HTTP_PROXY", "http-proxy", "HTTP2",
        "https", "TLS", "Mongo", "redis", "MySQL", "bolt", "dubbo", "tri", "HBONE", "DoubleHBONE",
        "UnsupportedProtocol", "TCP ", "ＴCP", "\u{212A}", "auto", "http3",
    ];
    match random.below(5) {
        0 => port.number = port_number(random),
        1 => port.name = port_name(random),
        2 => port.target_port = port_number(random),
        _ => port.protocol = any_of(random, &protocols),
    }
}

fn change_service(random: &mut Random, entry: &mut ServiceEntry) {
    let endpoints = entry.endpoints.len();
    match random.below(23) {
        0 => entry.hosts = vec![host(random)],
        1 => entry.hosts.push(host(random)),
        2 => entry.hosts.push("b.sofa.mesh".to_owned()),
        3 if random.percent(30) => entry.hosts.clear(),
        3 => entry.hosts[..].iter_mut().for_each(|host| host.insert_str(0, "*.")),
        4 => entry.addresses = vec![address(random)],
        5 => entry.addresses.push(address(random)),
        6 if random.percent(30) => entry.addresses.clear(),
        6 => entry.addresses.push("10.0.0.0/8".to_owned()),
        7 | 8 => {
            let mut port = ServicePort { number: 81, protocol: "HTTP".into(), name: "other".into(), target_port: 0 };
            change_port(random, &mut port);
            entry.ports.push(port);
        }
        9 | 10 if !entry.ports.is_empty() => {
            let at = random.below(entry.ports.len());
            change_port(random, &mut entry.ports[at]);
        }
        9 | 10 => entry.ports.clear(),
        11 => entry.location = [0, 1, 2, -1][random.below(4)],
        12 => entry.resolution = [0, 1, 2, 3, 4, 5, -1, i32::MAX][random.below(8)],
        13 => entry.endpoints.push(good_workload(random)),
        14..18 if endpoints > 0 => {
            let at = random.below(endpoints);
            change_workload(random, &mut entry.endpoints[at]);
        }
        14..18 => entry.export_to.clear(),
        18 => {
            let values = [".", "*", "~", "sofa", "other", "Other", "a.b", "", "-", "é"];
            entry.export_to = (0..=random.below(2)).map(|_| any_of(random, &values)).collect();
        }
        19 => {
            let (keys, values) = (["app", "", "a*", "*", "a b", "é"], ["a", "", "*", "a*", "a b"]);
            let labels = (0..random.below(3)).map(|_| (any_of(random, &keys), any_of(random, &values))).collect();
            entry.workload_selector = Some(WorkloadSelector { labels });
            if random.percent(70) {
                entry.endpoints.clear();
            }
        }
        20 => {
            // Either is fine alone.
            entry.ports.push(ServicePort { number: 82, name: "second".into(), ..ServicePort::default() });
            entry.endpoints.push(WorkloadEntry { address: "unix:///run/x".into(), ..WorkloadEntry::default() });
        }
        21 => entry.subject_alt_names = vec![any_of(random, &["", "spiffe://a/ns/b/sa/c", "*", "a b"])],
        _ => entry.endpoints.clear(),
    }
}
