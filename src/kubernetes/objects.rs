//! Objects of the API: what one holds, and which ones the served resources become.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hasher,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    digest::hex,
    istio::names::SERVICE_LABEL,
    proto::{envoy::service::discovery::v3::DiscoveryResponse, istio::mcp::v1alpha1::Resource},
    snapshot::kubectl,
    translate::{names, payload::DEFAULT_WEIGHT},
};

/// Label and annotation with `mox.kubernetes.owner`. The label is for selection; an object is ours only if the annotation,
/// which nobody copies by a template, says so as well.
pub(super) const OWNER: &str = "sofa.registry/owner";
/// Labels and annotations with this are ours; others are left to whoever set them.
const OURS: &str = "sofa.registry/";
/// The API server takes 4,096.
const MAX_ENDPOINTS: usize = 3_500;
/// etcd takes 1.5 MiB by default, and the server adds its own part.
const MAX_BYTES: usize = 1 << 20;
const MAX_NAME: usize = 253;

/// Kinds, in the order in which new ones are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(super) enum Kind {
    /// One endpoint.
    WorkloadEntry,
    /// A service.
    ServiceEntry,
    /// How an application's addresses are called.
    DestinationRule,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::WorkloadEntry, Self::ServiceEntry, Self::DestinationRule];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::WorkloadEntry => "WorkloadEntry",
            Self::ServiceEntry => "ServiceEntry",
            Self::DestinationRule => "DestinationRule",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::WorkloadEntry => "workloadentries",
            Self::ServiceEntry => "serviceentries",
            Self::DestinationRule => "destinationrules",
        }
    }
}

/// Which object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: Arc<str>,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

/// What an object holds that is ours to say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Content {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Value,
}

/// What is remembered of a content.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Form {
    /// Hash of all of it.
    pub(super) digest: u128,
    /// Hashes of addresses and ports, sorted.
    pub(super) endpoints: Box<[u64]>,
    /// What joins a ServiceEntry and its WorkloadEntries.
    pub(super) group: Option<u128>,
    /// A ServiceEntry whose endpoints are WorkloadEntries.
    pub(super) selects: bool,
}

impl Content {
    /// Its form, and its size as JSON.
    pub(super) fn form(&self, kind: Kind) -> (Form, usize) {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(&json);
        let (high, _) = digest.split_first_chunk::<16>().expect("a SHA-256 has 32 bytes");
        let label = |labels: &Value| u128::from_str_radix(labels[SERVICE_LABEL].as_str()?, 16).ok();
        let selector = &self.spec["workloadSelector"]["labels"];
        let selects = kind == Kind::ServiceEntry && selector.is_object();
        let (endpoints, group) = match kind {
            Kind::WorkloadEntry => (vec![endpoint_hash(&self.spec)], label(&self.spec["labels"])),
            Kind::ServiceEntry if selects => (Vec::new(), label(selector)),
            Kind::ServiceEntry => {
                let group = self.host().and_then(|host| u128::from_str_radix(&group_label(host), 16).ok());
                (self.endpoints().iter().map(endpoint_hash).collect(), group)
            }
            Kind::DestinationRule => (Vec::new(), None),
        };
        let mut endpoints = endpoints;
        endpoints.sort_unstable();
        let form = Form { digest: u128::from_be_bytes(*high), endpoints: endpoints.into(), group, selects };
        (form, json.len())
    }

    fn host(&self) -> Option<&str> {
        self.spec["hosts"][0].as_str()
    }

    fn endpoints(&self) -> &[Value] {
        self.spec["endpoints"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Adds the endpoints that only `spec` has.
    pub(super) fn keep_endpoints_of(&mut self, spec: &Value) {
        let own: HashSet<u64> = self.endpoints().iter().map(endpoint_hash).collect();
        let others = spec["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
        let kept: Vec<Value> =
            others.iter().filter(|endpoint| !own.contains(&endpoint_hash(endpoint))).cloned().collect();
        let Some(endpoints) = self.spec["endpoints"].as_array_mut().filter(|_| !kept.is_empty()) else { return };
        endpoints.extend(kept);
        // One that all of either had was left out.
        endpoints.iter_mut().filter(|endpoint| endpoint["weight"].is_null()).for_each(|endpoint| {
            endpoint["weight"] = DEFAULT_WEIGHT.into();
        });
    }

    /// The request that writes it; with `over`, only over that state (uid, resourceVersion) of the object.
    pub(super) fn apply(&self, api: &str, namespace: &str, key: &Key, over: Option<(&str, &str)>) -> Vec<u8> {
        let mut metadata = json!({
            "name": key.name, "namespace": namespace, "labels": self.labels, "annotations": self.annotations,
        });
        if let Some((uid, version)) = over {
            metadata["uid"] = uid.into();
            metadata["resourceVersion"] = version.into();
        }
        let object = json!({ "apiVersion": api, "kind": key.kind.name(), "metadata": metadata, "spec": self.spec });
        serde_json::to_vec(&object).unwrap_or_default()
    }
}

fn endpoint_hash(endpoint: &Value) -> u64 {
    // With fixed keys; compared within a process only.
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(endpoint["address"].as_str().unwrap_or_default().as_bytes());
    hasher.write_u64(port(endpoint));
    hasher.finish()
}

fn port(endpoint: &Value) -> u64 {
    endpoint["ports"].as_object().and_then(|ports| ports.values().next()?.as_u64()).unwrap_or_default()
}

/// As the translation labels WorkloadEntries.
fn group_label(host: &str) -> String {
    hex(&Sha256::digest(host)[..16])
}

/// An object as the API server shows it.
#[derive(Debug, Deserialize)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    uid: String,
    pub(super) resource_version: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
}

/// What is known of an object in the API.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    /// It is another's.
    Foreign,
    Ours {
        uid: Arc<str>,
        version: Arc<str>,
        form: Form,
        deleting: bool,
    },
}

impl Object {
    pub(super) fn seen(self, kind: Kind, owner: &str) -> Seen {
        let Self { metadata, spec } = self;
        let is_owner = |tags: &BTreeMap<String, String>| tags.get(OWNER).is_some_and(|value| value == owner);
        if !is_owner(&metadata.labels) || !is_owner(&metadata.annotations) {
            return Seen::Foreign;
        }
        let ours = |tags: BTreeMap<String, String>| tags.into_iter().filter(|(key, _)| key.starts_with(OURS)).collect();
        let content = Content { labels: ours(metadata.labels), annotations: ours(metadata.annotations), spec };
        Seen::Ours {
            uid: metadata.uid.into(),
            version: metadata.resource_version.into(),
            form: content.form(kind).0,
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }
}

/// An object that is wanted, with all it holds.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) key: Key,
    pub(super) content: Content,
    pub(super) form: Form,
}

/// The objects of a served resource: itself first, then its WorkloadEntries where it has too many endpoints to hold them.
/// `selects` says whether that is so now. `None` for what cannot be decoded, which we have encoded.
pub(super) fn wanted(kind: Kind, framed: &Bytes, owner: &str, selects: bool) -> Option<Vec<Wanted>> {
    let any = DiscoveryResponse::decode(framed.clone()).ok()?.resources.pop()?;
    let resource = Resource::decode(any.value).ok()?;
    let metadata = resource.metadata?;
    let owned = (OWNER.to_owned(), owner.to_owned());
    let mut content = Content {
        labels: metadata.labels.into_iter().chain([owned.clone()]).collect(),
        annotations: metadata.annotations.into_iter().chain([owned]).collect(),
        spec: kubectl::spec_of(kind.name(), resource.body?.value).ok()?,
    };
    let key = Key { kind, name: object_name(&metadata.name) };
    let (mut form, bytes) = content.form(kind);
    let share = if selects { 2 } else { 1 };
    let mut workloads = Vec::new();
    if kind == Kind::ServiceEntry
        && !form.endpoints.is_empty()
        && (form.endpoints.len() > MAX_ENDPOINTS / share || bytes > MAX_BYTES / share)
    {
        workloads = content.split();
        form = content.form(kind).0;
    }
    Some(std::iter::once(Wanted { key, content, form }).chain(workloads).collect())
}

impl Content {
    /// Makes WorkloadEntries of the endpoints of a ServiceEntry, and this one select them.
    fn split(&mut self) -> Vec<Wanted> {
        let Some(host) = self.host().map(str::to_owned) else { return Vec::new() };
        let Value::Array(endpoints) = self.spec["endpoints"].take() else { return Vec::new() };
        let label = group_label(&host);
        let workload = |mut spec: Value| {
            let address = spec["address"].as_str().unwrap_or_default();
            let digest = hex(&Sha256::digest(format!("{host}\n{address}\n{}", port(&spec)))[..8]);
            let readable = names::label(address).unwrap_or_else(|| "endpoint".to_owned());
            let name = format!("{}-{digest}", readable[..readable.len().min(46)].trim_end_matches('-'));
            spec["labels"][SERVICE_LABEL] = label.as_str().into();
            // One that all have is left out, and one of them may change.
            if spec["weight"].is_null() {
                spec["weight"] = DEFAULT_WEIGHT.into();
            }
            let labels = self.labels.iter().filter(|(key, _)| *key == OWNER).map(|(k, v)| (k.clone(), v.clone()));
            let content = Self { labels: labels.collect(), annotations: self.annotations.clone(), spec };
            let form = content.form(Kind::WorkloadEntry).0;
            Wanted { key: Key { kind: Kind::WorkloadEntry, name: name.into() }, content, form }
        };
        let workloads = endpoints.into_iter().map(workload).collect();
        if let Value::Object(spec) = &mut self.spec {
            spec.remove("endpoints");
            spec.insert("workloadSelector".to_owned(), json!({ "labels": { SERVICE_LABEL: label } }));
        }
        workloads
    }
}

/// The name of the object of a resource `namespace/name`. Names are lower-case hosts, of which an object's name may be two
/// characters shorter; one that is longer loses leading labels and carries the first 32 hex digits of its SHA-256.
pub(super) fn object_name(resource: &str) -> Arc<str> {
    let name = resource.split_once('/').map_or(resource, |(_, name)| name);
    if name.len() <= MAX_NAME {
        return name.into();
    }
    let labels: Vec<String> = name.split('.').map(str::to_owned).collect();
    names::hash_first_label(&labels, &hex(&Sha256::digest(name)[..16]), MAX_NAME).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::istio::networking::v1alpha3::{ServiceEntry, WorkloadEntry},
        snapshot::{Changes, Resource, Set, Snapshot, partition::Part},
    };

    fn framed(endpoints: usize, label: &str) -> Bytes {
        let endpoint = |n: usize| WorkloadEntry {
            address: format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255),
            ports: [("tcp".to_owned(), 80)].into(),
            labels: [("app".to_owned(), label.to_owned())].into(),
            ..WorkloadEntry::default()
        };
        let endpoints = (0..endpoints).map(endpoint).collect();
        let entry = ServiceEntry { hosts: vec!["a.sofa.mesh".into()], endpoints, ..ServiceEntry::default() };
        let resource = Resource::service_entry("ns/a".into(), BTreeMap::new(), BTreeMap::new(), &entry);
        let changes: Changes = [((1, "ns/a".into()), Some(resource))].into();
        let set = Set::new(Arc::new(Snapshot::default().with(&changes)), Part::WHOLE);
        set.find("ns/a").unwrap().framed().clone()
    }

    fn objects(endpoints: usize, label: &str, selects: bool) -> Vec<Wanted> {
        wanted(Kind::ServiceEntry, &framed(endpoints, label), "me", selects).unwrap()
    }

    #[test]
    fn endpoints_move_out_above_the_bounds_and_back_below_half_of_them() {
        assert_eq!(objects(3_500, "x", false).len(), 1);
        assert_eq!(objects(3_501, "x", false).len(), 3_502);
        assert_eq!(objects(1_751, "x", true).len(), 1_752);
        assert_eq!(objects(1_750, "x", true).len(), 1);
        let long = "x".repeat(1_000);
        assert_eq!(objects(1_100, &long, false).len(), 1_101, "by size");
        assert_eq!(objects(600, &long, true).len(), 601);
        assert_eq!(objects(400, &long, true).len(), 1);
        assert_eq!(objects(0, "x", true).len(), 1);
    }

    #[test]
    fn the_parts_belong_together() {
        let whole = &objects(10, "x", false)[0];
        let parts = objects(4_000, "x", false);
        assert!(parts[0].form.selects && parts[0].form.endpoints.is_empty() && !whole.form.selects);
        assert_eq!(whole.form.endpoints.len(), 10);
        assert!(parts.iter().all(|part| part.form.group == whole.form.group && part.form.group.is_some()));
        let names: std::collections::BTreeSet<_> = parts.iter().map(|part| &part.key.name).collect();
        assert_eq!(names.len(), 4_001);
        assert!(parts[1].key.name.starts_with("10-0-0-0-"), "{}", parts[1].key.name);
        let inline: std::collections::BTreeSet<u64> =
            objects(10, "x", false)[0].form.endpoints.iter().copied().collect();
        let apart: std::collections::BTreeSet<u64> = parts[1..].iter().map(|part| part.form.endpoints[0]).collect();
        assert!(apart.is_superset(&inline));
    }

    #[test]
    fn what_the_server_shows_of_what_was_written_is_the_same() {
        let wanted = &objects(3, "x", false)[0];
        let written = wanted.content.apply("networking.istio.io/v1", "ns", &wanted.key, None);
        let mut shown: Value = serde_json::from_slice(&written).unwrap();
        shown["metadata"]["uid"] = "u".into();
        shown["metadata"]["resourceVersion"] = "7".into();
        shown["metadata"]["labels"]["team"] = "another's".into();
        shown["status"] = json!({ "addresses": [] });
        let seen = serde_json::from_value::<Object>(shown.clone()).unwrap().seen(Kind::ServiceEntry, "me");
        let (uid, version, form) = ("u".into(), "7".into(), wanted.form.clone());
        assert_eq!(seen, Seen::Ours { uid, version, form, deleting: false });
        for tags in ["labels", "annotations"] {
            let mut foreign = shown.clone();
            foreign["metadata"][tags][OWNER] = "you".into();
            let foreign = serde_json::from_value::<Object>(foreign).unwrap();
            assert_eq!(foreign.seen(Kind::ServiceEntry, "me"), Seen::Foreign);
        }
    }

    #[test]
    fn endpoints_of_another_content_are_kept_beside_its_own() {
        let mut content = objects(2, "x", false).remove(0).content;
        let seen = json!({ "endpoints": [
            { "address": "10.0.0.1", "ports": { "tcp": 80 }, "weight": 7 },
            { "address": "10.9.9.9", "ports": { "tcp": 80 } },
        ] });
        content.keep_endpoints_of(&seen);
        let shown: Vec<_> =
            content.endpoints().iter().map(|e| (e["address"].as_str().unwrap(), &e["weight"])).collect();
        let all = json!(DEFAULT_WEIGHT);
        assert_eq!(shown, [("10.0.0.0", &all), ("10.0.0.1", &all), ("10.9.9.9", &all)], "its own word counts");
        let before = content.clone();
        content.keep_endpoints_of(&seen);
        assert_eq!(content, before);
    }

    #[test]
    fn names_of_objects_are_short_enough() {
        assert_eq!(&*object_name("ns/com.example.demo"), "com.example.demo");
        let long = format!("ns/{}", ["x".repeat(63), "y".repeat(63), "z".repeat(63), "w".repeat(62)].join("."));
        let name = object_name(&long);
        assert!(name.len() <= 253 && name.ends_with(&"w".repeat(62)), "{name}");
        assert!(name.split('.').all(|label| (1..=63).contains(&label.len())));
        assert_ne!(name, object_name(&long.replace('y', "v")));
    }
}
