//! Served resources as `kubectl` would print them.

use bytes::{Buf, Bytes, BytesMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use serde_json::{Map, Value, json};

use crate::{
    proto::{
        google::protobuf::{Any, Duration},
        istio::{
            mcp::v1alpha1::Resource,
            networking::v1alpha3::{DestinationRule, ServiceEntry, WorkloadEntry},
        },
    },
    snapshot::{Item, Snapshot},
};

/// The types that can be dumped.
pub const KINDS: [&str; 3] = ["ServiceEntry", "WorkloadEntry", "DestinationRule"];

/// A chunk ends with the piece that reaches this: a resource without its endpoints, or one endpoint.
const CHUNK: usize = 64 << 10;
/// Fields of a DiscoveryResponse, of an `Any` and of a ServiceEntry.
const RESOURCES: u32 = 2;
const ANY_VALUE: u32 = 2;
const ENDPOINTS: u32 = 6;

/// How a dump is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A Kubernetes list, a line for each resource.
    Json,
    /// A document for each resource.
    Yaml,
}

/// Where a dump stands.
#[derive(Debug)]
enum At {
    Start,
    Resources {
        any: bool,
    },
    /// In a ServiceEntry, before one of these endpoints.
    Endpoints {
        rest: Fields,
        any: bool,
    },
    End,
}

/// Every resource of a snapshot, in chunks of about 64 KiB. Beside the snapshot it takes no more than a chunk and a piece,
/// so it is made endpoint by endpoint: a service may have 50,000 of them.
#[derive(Debug)]
pub struct Dump {
    kind: &'static str,
    format: Format,
    pages: std::vec::IntoIter<Bytes>,
    /// The rest of a page that is not written yet.
    page: Fields,
    at: At,
}

impl Dump {
    /// A dump of a snapshot of `kind`, one of [`KINDS`].
    pub fn new(kind: &'static str, format: Format, snapshot: &Snapshot) -> Self {
        let pages: Vec<Bytes> = snapshot.pages().cloned().collect();
        Self { kind, format, pages: pages.into_iter(), page: Fields::default(), at: At::Start }
    }

    /// One resource of a snapshot, as YAML.
    pub fn one(kind: &'static str, resource: &Item) -> String {
        let pages = vec![resource.framed().clone()].into_iter();
        let mut dump = Self { kind, format: Format::Yaml, pages, page: Fields::default(), at: At::Start };
        let mut out = Vec::new();
        while dump.write(&mut out) {}
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Writes the next piece; false: there is none.
    fn write(&mut self, out: &mut Vec<u8>) -> bool {
        let json = self.format == Format::Json;
        self.at = match std::mem::replace(&mut self.at, At::End) {
            At::End => return false,
            At::Start => {
                if json {
                    out.extend_from_slice(br#"{"apiVersion":"v1","kind":"List","items":["#);
                }
                At::Resources { any: false }
            }
            At::Resources { any } => match self.resource() {
                Some(resource) => {
                    out.extend_from_slice(match (json, any) {
                        (true, true) => b",\n",
                        (true, false) => b"\n",
                        (false, _) => b"---\n",
                    });
                    let (fields, endpoints) = item(self.kind, resource);
                    if json {
                        put_json(&fields, out)
                    } else {
                        put_mapping(&fields, 0, out)
                    }
                    match endpoints {
                        Some(rest) => {
                            if json {
                                // Back into the spec, which is the last field.
                                out.truncate(out.len() - b"}}".len());
                            }
                            out.extend_from_slice(if json { br#","endpoints":["# } else { b"  endpoints:\n" });
                            At::Endpoints { rest, any: false }
                        }
                        None => At::Resources { any: true },
                    }
                }
                None => {
                    out.extend_from_slice(if json { b"\n]}\n" } else { b"" });
                    At::End
                }
            },
            At::Endpoints { mut rest, any } => match rest.next_of(ENDPOINTS) {
                Some(bytes) => {
                    let entry = endpoint(&WorkloadEntry::decode(bytes).unwrap_or_default());
                    if json {
                        out.extend_from_slice(if any { b"," } else { b"" });
                        put_json(&entry, out);
                    } else {
                        out.extend_from_slice(b"  - ");
                        put_entry(&entry, 4, out);
                    }
                    At::Endpoints { rest, any: true }
                }
                None => {
                    out.extend_from_slice(if json { b"]}}" } else { b"" });
                    At::Resources { any: true }
                }
            },
        };
        true
    }

    fn resource(&mut self) -> Option<Resource> {
        loop {
            if let Some(mut any) = self.page.next_of(RESOURCES).map(Fields) {
                return Some(Resource::decode(any.next_of(ANY_VALUE).unwrap_or_default()).unwrap_or_default());
            }
            self.page = Fields(self.pages.next()?);
        }
    }
}

impl Iterator for Dump {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::with_capacity(CHUNK + (CHUNK >> 3));
        while out.len() < CHUNK && self.write(&mut out) {}
        (!out.is_empty()).then(|| out.into())
    }
}

/// A resource as a Kubernetes object, and the endpoints that are still to be added to its spec.
fn item(kind: &str, resource: Resource) -> (Value, Option<Fields>) {
    let metadata = resource.metadata.unwrap_or_default();
    let Any { value: body, .. } = resource.body.unwrap_or_default();
    let (namespace, name) = metadata.name.split_once('/').unwrap_or(("", &metadata.name));
    let (spec, endpoints) = match kind {
        "ServiceEntry" => (spec_of(kind, without_endpoints(&body)), Fields(body)),
        _ => (spec_of(kind, body), Fields::default()),
    };
    let spec = spec.unwrap_or_default();
    let has_any = endpoints.clone().next_of(ENDPOINTS).is_some();
    let metadata = without_empty(json!({
        "name": name,
        "namespace": namespace,
        "resourceVersion": metadata.version,
        "labels": metadata.labels,
        "annotations": metadata.annotations,
    }));
    let object = json!({ "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec });
    (object, has_any.then_some(endpoints))
}

/// An encoded ServiceEntry but for its endpoints.
pub(crate) fn without_endpoints(entry: &Bytes) -> Bytes {
    let mut out = BytesMut::new();
    Fields(entry.clone()).filter(|(tag, _)| *tag != ENDPOINTS).for_each(|(_, field)| out.extend_from_slice(&field));
    out.freeze()
}

/// The rest of an encoded message: shared bytes, of which only the fields that are asked for are decoded.
#[derive(Debug, Clone, Default)]
struct Fields(Bytes);

impl Fields {
    /// The next field with this tag, which is a text, bytes or a message: what it holds.
    fn next_of(&mut self, wanted: u32) -> Option<Bytes> {
        let (_, mut field) = self.find(|(tag, _)| *tag == wanted)?;
        let (_, wire_type) = decode_key(&mut field).ok()?;
        let length = decode_varint(&mut field).ok()?;
        (wire_type == WireType::LengthDelimited && length == field.len() as u64).then_some(field)
    }
}

impl Iterator for Fields {
    type Item = (u32, Bytes);

    /// The next field as it is encoded, tag included. Bytes that cannot be read are the end.
    fn next(&mut self) -> Option<(u32, Bytes)> {
        let mut rest = self.0.clone();
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
        let field = self.0.split_to(self.0.len() - rest.remaining());
        Some((tag, field))
    }
}

/// The `spec` of an encoded resource of `kind`, one of [`KINDS`], as it stands in a Kubernetes object.
pub(crate) fn spec_of(kind: &str, body: Bytes) -> Result<Value, DecodeError> {
    match kind {
        "WorkloadEntry" => WorkloadEntry::decode(body).map(|entry| endpoint(&entry)),
        "DestinationRule" => DestinationRule::decode(body).map(|rule| destination_rule(&rule)),
        _ => ServiceEntry::decode(body).map(|entry| spec(&entry)),
    }
}

fn spec(entry: &ServiceEntry) -> Value {
    let ports =
        entry.ports.iter().map(|port| json!({ "number": port.number, "protocol": port.protocol, "name": port.name }));
    without_empty(json!({
        "hosts": entry.hosts,
        "addresses": entry.addresses,
        "ports": ports.collect::<Vec<_>>(),
        "location": entry.location().as_str_name(),
        "resolution": entry.resolution().as_str_name(),
        "endpoints": entry.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "workloadSelector": entry.workload_selector.as_ref().map(|selector| json!({ "labels": selector.labels })),
        "exportTo": entry.export_to,
        "subjectAltNames": entry.subject_alt_names,
    }))
}

fn destination_rule(rule: &DestinationRule) -> Value {
    let policy = rule.traffic_policy.as_ref();
    let load_balancer = policy.and_then(|policy| policy.load_balancer.as_ref()).map(|it| {
        let warmup = it.warmup_duration_secs.as_ref();
        without_empty(json!({ "simple": it.simple().as_str_name(), "warmupDurationSecs": warmup.map(duration) }))
    });
    let tls = policy.and_then(|policy| policy.tls.as_ref());
    let tls = tls.map(|tls| {
        without_empty(json!({ "mode": tls.mode().as_str_name(), "subjectAltNames": tls.subject_alt_names }))
    });
    let policy = without_empty(json!({ "loadBalancer": load_balancer, "tls": tls }));
    without_empty(json!({ "host": rule.host, "trafficPolicy": policy, "exportTo": rule.export_to }))
}

/// As protobuf writes it in JSON.
fn duration(Duration { seconds, nanos }: &Duration) -> String {
    match nanos / 1_000_000 {
        0 => format!("{seconds}s"),
        millis => format!("{seconds}.{millis:03}s"),
    }
}

fn endpoint(endpoint: &WorkloadEntry) -> Value {
    without_empty(json!({
        "address": endpoint.address,
        "ports": endpoint.ports,
        "labels": endpoint.labels,
        "locality": endpoint.locality,
        "weight": endpoint.weight,
        "serviceAccount": endpoint.service_account,
    }))
}

/// Unset fields are not printed.
fn without_empty(value: Value) -> Value {
    let set = |value: &Value| match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Null => false,
        Value::Number(number) => number.as_u64() != Some(0),
        _ => true,
    };
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| set(value)).collect::<Map<_, _>>().into(),
        other => other,
    }
}

fn put_json(value: &Value, out: &mut Vec<u8>) {
    // A Vec takes everything.
    let _ = serde_json::to_writer(out, value);
}

/// Writes an object, each field on lines of its own, `indent` spaces in.
fn put_mapping(object: &Value, indent: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + indent, b' ');
    put_entry(object, indent, out);
}

/// The same where the spaces before the first field are there already, and for what is no object.
fn put_entry(value: &Value, indent: usize, out: &mut Vec<u8>) {
    let Some(fields) = value.as_object().filter(|fields| !fields.is_empty()) else {
        put_scalar(value, out);
        out.push(b'\n');
        return;
    };
    for (index, (key, value)) in fields.iter().enumerate() {
        out.resize(out.len() + if index > 0 { indent } else { 0 }, b' ');
        put_key(key, out);
        out.push(b':');
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                out.push(b'\n');
                put_mapping(value, indent + 2, out);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push(b'\n');
                for item in items {
                    out.resize(out.len() + indent, b' ');
                    out.extend_from_slice(b"- ");
                    put_entry(item, indent + 2, out);
                }
            }
            scalar => {
                out.push(b' ');
                put_scalar(scalar, out);
                out.push(b'\n');
            }
        }
    }
}

/// Quoted, unless it is a word that is a text to every reader of YAML.
fn put_key(key: &str, out: &mut Vec<u8>) {
    const OTHERS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let word = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphabetic());
    if word && !OTHERS.iter().any(|other| key.eq_ignore_ascii_case(other)) {
        out.extend_from_slice(key.as_bytes());
    } else {
        put_scalar(&key.into(), out);
    }
}

/// JSON is YAML, but for characters that JSON takes as they are and YAML does not: these stand in texts only.
fn put_scalar(value: &Value, out: &mut Vec<u8>) {
    for c in value.to_string().chars() {
        match c {
            '\u{7F}'..='\u{9F}' | '\u{2028}' | '\u{2029}' | '\u{FEFF}' | '\u{FFFE}' | '\u{FFFF}' => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        proto::istio::networking::v1alpha3::{
            ClientTlsSettings, LoadBalancerSettings, ServicePort, TrafficPolicy, WorkloadSelector,
            client_tls_settings::TlSmode, load_balancer_settings::SimpleLb,
        },
        snapshot::{self, Changes},
    };

    /// The definition: everything decoded, and then a list of it.
    fn list(kind: &str, snapshot: &Snapshot) -> Value {
        let item = |resource: Resource| {
            let metadata = resource.metadata.unwrap_or_default();
            let (namespace, name) = metadata.name.split_once('/').unwrap();
            let metadata = without_empty(json!({
                "name": name,
                "namespace": namespace,
                "resourceVersion": metadata.version,
                "labels": metadata.labels,
                "annotations": metadata.annotations,
            }));
            let spec = spec_of(kind, resource.body.unwrap().value).unwrap();
            json!({ "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec })
        };
        let items: Vec<Value> = snapshot.decode().into_iter().map(item).collect();
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }

    fn text(kind: &'static str, format: Format, snapshot: &Snapshot) -> String {
        let chunks: Vec<Bytes> = Dump::new(kind, format, snapshot).collect();
        String::from_utf8(chunks.concat()).unwrap()
    }

    fn check(kind: &'static str, snapshot: &Snapshot) {
        let list = list(kind, snapshot);
        let json = text(kind, Format::Json, snapshot);
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), list);
        assert_eq!(json.lines().count(), snapshot.resources() + 2, "a line for each");
        let yaml = text(kind, Format::Yaml, snapshot);
        let documents: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
        assert_eq!(Value::from(documents), list["items"], "{yaml}");
    }

    fn workload(address: &str, labels: &[(&str, &str)]) -> WorkloadEntry {
        WorkloadEntry {
            address: address.to_owned(),
            ports: HashMap::from([("tcp".to_owned(), 12_200)]).into_iter().collect(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            locality: "eu/a".to_owned(),
            weight: 100,
            ..WorkloadEntry::default()
        }
    }

    fn entry(host: &str, endpoints: Vec<WorkloadEntry>) -> ServiceEntry {
        ServiceEntry {
            hosts: vec![host.to_owned()],
            addresses: vec!["248.0.0.1".to_owned()],
            ports: vec![ServicePort {
                number: 12_200,
                protocol: "TCP".to_owned(),
                name: "tcp".to_owned(),
                target_port: 0,
            }],
            location: 1,
            resolution: 1,
            endpoints,
            export_to: vec!["*".to_owned()],
            ..ServiceEntry::default()
        }
    }

    fn snapshot(resources: impl IntoIterator<Item = (usize, String, snapshot::Resource)>) -> Snapshot {
        let changes: Changes = resources.into_iter().map(|(s, name, r)| ((s, name.into()), Some(r))).collect();
        Snapshot::default().with(&changes)
    }

    fn service(name: &str, annotation: &str, entry: &ServiceEntry) -> snapshot::Resource {
        let annotations = BTreeMap::from([("sofa.registry/data-info-id".to_owned(), annotation.to_owned())]);
        let labels = BTreeMap::from([("sofa.registry/source".to_owned(), "registry".to_owned())]);
        snapshot::Resource::service_entry(format!("ns/{name}"), labels, annotations, entry)
    }

    #[test]
    fn every_kind_and_none_of_it() {
        for kind in KINDS {
            check(kind, &Snapshot::default());
        }
        let selected = ServiceEntry {
            workload_selector: Some(WorkloadSelector { labels: [("a".to_owned(), "b".to_owned())].into() }),
            subject_alt_names: vec!["spiffe://a/b".to_owned()],
            ..entry("b", vec![])
        };
        let services = [
            (1, "a".to_owned(), service("a", "one", &entry("a", vec![workload("10.0.0.1", &[("app", "x")])]))),
            (1, "b".to_owned(), service("b", "two", &selected)),
            (2, "c".to_owned(), service("c", "three", &entry("c", vec![workload("::1", &[]), workload("b.c", &[])]))),
        ];
        check("ServiceEntry", &snapshot(services));
        let workload = snapshot::Resource::workload_entry(
            "ns/w".to_owned(),
            BTreeMap::new(),
            &workload("10.0.0.1", &[("no", "yes"), ("on", "12")]),
        );
        check("WorkloadEntry", &snapshot([(0, "w".to_owned(), workload)]));
        let tls = ClientTlsSettings { mode: TlSmode::IstioMutual.into(), subject_alt_names: vec![] };
        let rule = DestinationRule {
            host: "a.b".to_owned(),
            traffic_policy: Some(TrafficPolicy { load_balancer: None, tls: Some(tls) }),
            export_to: vec![".".to_owned()],
        };
        let warmup = Some(Duration { seconds: 90, nanos: 50_000_000 });
        let load_balancer =
            LoadBalancerSettings { simple: SimpleLb::LeastRequest.into(), warmup_duration_secs: warmup };
        let traffic_policy = Some(TrafficPolicy { load_balancer: Some(load_balancer), tls: None });
        let other = DestinationRule { host: "a.c".to_owned(), traffic_policy, export_to: Vec::new() };
        let expected = json!({ "host": "a.c", "trafficPolicy": { "loadBalancer": {
            "simple": "LEAST_REQUEST", "warmupDurationSecs": "90.050s" } } });
        assert_eq!(destination_rule(&other), expected);
        let rules = [("r", &rule), ("s", &other)].map(|(name, rule)| {
            let made = snapshot::Resource::destination_rule(format!("ns/{name}"), BTreeMap::new(), rule);
            (0, name.to_owned(), made)
        });
        check("DestinationRule", &snapshot(rules));
    }

    /// However large a service is, and all of them together.
    #[test]
    fn a_chunk_is_bounded_at_any_size() {
        let endpoints = |count: usize| -> Vec<WorkloadEntry> {
            let address = |n: usize| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
            (0..count).map(|n| workload(&address(n), &[("app", "orders"), ("zone", "DEFAULT_ZONE")])).collect()
        };
        let large = service("large", "large", &entry("large", endpoints(20_000)));
        let small =
            (0..500).map(|n| (n % 128, format!("s{n}"), service(&format!("s{n}"), "x", &entry("s", endpoints(10)))));
        let all = snapshot(small.chain([(64, "large".to_owned(), large)]));
        assert!(all.bytes() > 1 << 20, "{}", all.bytes());
        for format in [Format::Json, Format::Yaml] {
            let sizes: Vec<usize> = Dump::new("ServiceEntry", format, &all).map(|chunk| chunk.len()).collect();
            let piece = 2 << 10;
            let (last, others) = sizes.split_last().unwrap();
            assert!(others.iter().all(|size| (CHUNK..CHUNK + piece).contains(size)), "{sizes:?}");
            assert!(*last < CHUNK + piece && sizes.len() > 40, "{last} in {} chunks", sizes.len());
        }
        let json = text("ServiceEntry", Format::Json, &all);
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), list("ServiceEntry", &all));
    }

    #[test]
    fn a_dump_is_of_one_state() {
        let old = snapshot([(1, "a".to_owned(), service("a", "old", &entry("a", vec![])))]);
        let dump = Dump::new("ServiceEntry", Format::Json, &old);
        let new = old.with(&Changes::from([((1, "a".into()), None)]));
        drop(old);
        assert_eq!(new.resources(), 0);
        let text = dump.map(|chunk| String::from_utf8(chunk.to_vec()).unwrap()).collect::<String>();
        assert!(text.contains("old"), "{text}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever stands in texts, both formats say it, and no text becomes another value.
        #[test]
        fn texts_of_any_kind(
            texts in proptest::collection::vec(
                prop_oneof![
                    any::<String>(),
                    "(null|true|No|on|~|1e3|0x1F|1_000|-|:|#a|2001-01-01|\\.inf|<<|=|@|%|&a|\\*a|!b| a|a: b|- a)",
                    proptest::collection::vec(
                        prop_oneof![Just('\u{85}'), Just('\u{2028}'), Just('\u{FEFF}'), Just('\u{7F}'), Just('\n'), Just('"')],
                        0..5,
                    ).prop_map(String::from_iter),
                ], 6),
        ) {
            let [a, b, c, d, e, f] = texts.try_into().unwrap();
            let endpoints = vec![workload(&a, &[(&b, &c), (&d, "x")]), workload(&c, &[])];
            let resource = service("n", &e, &ServiceEntry { subject_alt_names: vec![f], ..entry(&d, endpoints) });
            check("ServiceEntry", &snapshot([(0, "n".to_owned(), resource)]));
        }
    }
}
