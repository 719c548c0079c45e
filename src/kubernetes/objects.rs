//! Objects of the API, and which ones a served resource becomes.

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
    translate::{names, payload::DEFAULT_WEIGHT, service_entry::workload_label},
};

/// API group of the objects.
pub(super) const GROUP: &str = "networking.istio.io";
/// Label and annotation with `mox.kubernetes.owner`. The label is for selection; an object is ours only if the annotation,
/// which nobody copies by a template, says so as well.
pub(super) const OWNER: &str = "sofa.registry/owner";
/// Prefix of labels and annotations that are ours; all others are left to whoever set them.
const OURS: &str = "sofa.registry/";
/// Most endpoints in a ServiceEntry; the API server takes 4,096.
const MAX_ENDPOINTS: usize = 3_500;
/// Most bytes of an object as JSON: etcd takes 1.5 MiB by default, and the API server adds its own part.
const MAX_BYTES: usize = 1 << 20;
const MAX_NAME: usize = 253;

/// Kinds, in the order in which new objects are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(super) enum ObjectKind {
    /// An endpoint.
    WorkloadEntry,
    /// A service.
    ServiceEntry,
    /// How an application's addresses are called.
    DestinationRule,
}

impl ObjectKind {
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

/// Names an object; all of a sink's objects are in one namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ObjectKey {
    pub(super) kind: ObjectKind,
    pub(super) name: Arc<str>,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

/// A state of an object in the API. A write over it is refused when the object is in another state by then.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ObjectState {
    pub(super) uid: Arc<str>,
    /// `resourceVersion`.
    pub(super) version: Arc<str>,
}

/// As much of an object's content as is remembered, be the object desired or seen in the API.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fingerprint {
    /// Hash of the [`Manifest`].
    pub(super) digest: u128,
    /// Hashes of the endpoints' addresses and ports, sorted.
    pub(super) endpoints: Box<[u64]>,
    /// The service that a ServiceEntry and its WorkloadEntries belong to.
    pub(super) group: Option<u128>,
    /// Whether this is a ServiceEntry whose endpoints are WorkloadEntries.
    pub(super) selects: bool,
}

/// Labels, annotations and spec of an object as JSON text, as a request carries them. Resources are converted into it once
/// a change; it is kept until the object is written.
#[derive(Debug, PartialEq)]
pub(super) struct Manifest {
    /// `"labels":{…},"annotations":{…}`.
    tags: String,
    spec: String,
}

impl Manifest {
    /// Size in bytes.
    pub(super) fn len(&self) -> usize {
        self.tags.len() + self.spec.len()
    }

    fn digest(&self) -> u128 {
        high(&Sha256::new().chain_update(&self.tags).chain_update(&self.spec).finalize())
    }

    /// The body of a server-side apply; with `over`, only over that state of the object.
    pub(super) fn request(&self, api: &str, namespace: &str, key: &ObjectKey, over: Option<&ObjectState>) -> Vec<u8> {
        let quoted = |text: &str| Value::from(text).to_string();
        let over = over.map(|ObjectState { uid, version }| {
            format!(r#""uid":{},"resourceVersion":{},"#, quoted(uid), quoted(version))
        });
        format!(
            r#"{{"apiVersion":{},"kind":"{}","metadata":{{"name":{},"namespace":{},{}{}}},"spec":{}}}"#,
            quoted(api),
            key.kind.name(),
            quoted(&key.name),
            quoted(namespace),
            over.unwrap_or_default(),
            self.tags,
            self.spec
        )
        .into_bytes()
    }

    /// This one of a ServiceEntry, with the endpoints that only `spec` has added.
    pub(super) fn with_endpoints_of(&self, spec: &Value) -> Self {
        let mut own: Value = serde_json::from_str(&self.spec).unwrap_or_default();
        keep_endpoints(&mut own, spec);
        Self { tags: self.tags.clone(), spec: own.to_string() }
    }

    /// A manifest of a test that only compares it.
    #[cfg(test)]
    pub(super) fn of(text: impl Into<String>) -> Self {
        Self { tags: String::new(), spec: text.into() }
    }

    #[cfg(test)]
    pub(super) fn spec(&self) -> &str {
        &self.spec
    }
}

/// Labels, annotations and spec of an object as values.
struct ObjectContent {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Value,
}

impl ObjectContent {
    fn manifest(&self) -> Manifest {
        let text = |tags| serde_json::to_string(tags).unwrap_or_default();
        let tags = format!(r#""labels":{},"annotations":{}"#, text(&self.labels), text(&self.annotations));
        Manifest { tags, spec: self.spec.to_string() }
    }

    fn fingerprint(&self, kind: ObjectKind, manifest: &Manifest) -> Fingerprint {
        let label = |labels: &Value| u128::from_str_radix(labels[SERVICE_LABEL].as_str()?, 16).ok();
        let selector = &self.spec["workloadSelector"]["labels"];
        let selects = kind == ObjectKind::ServiceEntry && selector.is_object();
        let (mut endpoints, group) = match kind {
            ObjectKind::WorkloadEntry => (vec![endpoint_hash(&self.spec)], label(&self.spec["labels"])),
            ObjectKind::ServiceEntry if selects => (Vec::new(), label(selector)),
            ObjectKind::ServiceEntry => {
                (endpoints(&self.spec).iter().map(endpoint_hash).collect(), host(&self.spec).map(group_of))
            }
            ObjectKind::DestinationRule => (Vec::new(), None),
        };
        endpoints.sort_unstable();
        Fingerprint { digest: manifest.digest(), endpoints: endpoints.into(), group, selects }
    }

    fn converted(self, key: ObjectKey) -> Converted {
        let manifest = self.manifest();
        Converted { fingerprint: self.fingerprint(key.kind, &manifest), manifest: Arc::new(manifest), key }
    }

    /// Makes WorkloadEntries of the endpoints of a ServiceEntry, and makes that select them.
    fn split(&mut self) -> Vec<Converted> {
        let Some(host) = host(&self.spec).map(str::to_owned) else { return Vec::new() };
        let Value::Array(endpoints) = self.spec["endpoints"].take() else { return Vec::new() };
        let label = hex(&group_of(&host).to_be_bytes());
        let labels: BTreeMap<_, _> = self.labels.clone().into_iter().filter(|(key, _)| *key == OWNER).collect();
        let workload = |mut spec: Value| {
            let address = spec["address"].as_str().unwrap_or_default();
            let digest = hex(&Sha256::digest(format!("{host}\n{address}\n{}", port(&spec)))[..8]);
            let readable = names::label(address).unwrap_or_else(|| "endpoint".to_owned());
            let name = format!("{}-{digest}", readable[..readable.len().min(46)].trim_end_matches('-'));
            let own: serde_json::Map<String, Value> = serde_json::from_value(spec["labels"].take()).unwrap_or_default();
            let own = own.into_iter().map(|(key, value)| (workload_label(&key), value));
            spec["labels"] = own.chain([(SERVICE_LABEL.to_owned(), label.as_str().into())]).collect();
            // Istio leaves a uniform weight out of a ServiceEntry; a WorkloadEntry stands alone and needs its own.
            if spec["weight"].is_null() {
                spec["weight"] = DEFAULT_WEIGHT.into();
            }
            let content = Self { labels: labels.clone(), annotations: self.annotations.clone(), spec };
            content.converted(ObjectKey { kind: ObjectKind::WorkloadEntry, name: name.into() })
        };
        let workloads = endpoints.into_iter().map(workload).collect();
        if let Value::Object(spec) = &mut self.spec {
            spec.remove("endpoints");
            spec.insert("workloadSelector".to_owned(), json!({ "labels": { SERVICE_LABEL: label } }));
        }
        workloads
    }
}

/// Adds the endpoints that only `other` has to `spec`.
fn keep_endpoints(spec: &mut Value, other: &Value) {
    let own: HashSet<u64> = endpoints(spec).iter().map(endpoint_hash).collect();
    let kept: Vec<Value> =
        endpoints(other).iter().filter(|endpoint| !own.contains(&endpoint_hash(endpoint))).cloned().collect();
    let Some(endpoints) = spec["endpoints"].as_array_mut().filter(|_| !kept.is_empty()) else { return };
    endpoints.extend(kept);
    // A uniform weight was left out on either side: write it before mixing them.
    endpoints.iter_mut().filter(|endpoint| endpoint["weight"].is_null()).for_each(|endpoint| {
        endpoint["weight"] = DEFAULT_WEIGHT.into();
    });
}

fn host(spec: &Value) -> Option<&str> {
    spec["hosts"][0].as_str()
}

fn endpoints(spec: &Value) -> &[Value] {
    spec["endpoints"].as_array().map_or(&[], Vec::as_slice)
}

/// With fixed keys; the hash is compared within a process only.
fn endpoint_hash(endpoint: &Value) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(endpoint["address"].as_str().unwrap_or_default().as_bytes());
    hasher.write_u64(port(endpoint));
    hasher.finish()
}

fn port(endpoint: &Value) -> u64 {
    endpoint["ports"].as_object().and_then(|ports| ports.values().next()?.as_u64()).unwrap_or_default()
}

/// The group of a host, which in hexadecimal is the label that the translation gives WorkloadEntries.
fn group_of(host: &str) -> u128 {
    high(&Sha256::digest(host))
}

fn high(digest: &[u8]) -> u128 {
    digest.first_chunk::<16>().map_or(0, |high| u128::from_be_bytes(*high))
}

/// An object as the API server shows it.
#[derive(Debug, Deserialize)]
pub(super) struct ApiObject {
    pub(super) metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ObjectMeta {
    pub(super) name: String,
    uid: String,
    pub(super) resource_version: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
}

/// An object in the API, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Observed {
    /// The object is somebody else's; its `resourceVersion`.
    Foreign(Arc<str>),
    /// The object carries our owner's name.
    Own(OwnObject),
}

/// An object of ours in the API.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OwnObject {
    pub(super) state: ObjectState,
    pub(super) fingerprint: Fingerprint,
    /// Whether the object is being deleted.
    pub(super) deleting: bool,
}

impl Observed {
    pub(super) fn own(&self) -> Option<&OwnObject> {
        match self {
            Self::Own(own) => Some(own),
            Self::Foreign(_) => None,
        }
    }

    /// `resourceVersion`.
    pub(super) fn version(&self) -> &Arc<str> {
        match self {
            Self::Own(own) => &own.state.version,
            Self::Foreign(version) => version,
        }
    }
}

impl ApiObject {
    pub(super) fn observed(self, kind: ObjectKind, owner: &str) -> Observed {
        let Self { metadata, spec } = self;
        let is_owner = |tags: &BTreeMap<String, String>| tags.get(OWNER).is_some_and(|value| value == owner);
        if !is_owner(&metadata.labels) || !is_owner(&metadata.annotations) {
            return Observed::Foreign(metadata.resource_version.into());
        }
        let ours = |tags: BTreeMap<String, String>| tags.into_iter().filter(|(key, _)| key.starts_with(OURS)).collect();
        let content = ObjectContent { labels: ours(metadata.labels), annotations: ours(metadata.annotations), spec };
        Observed::Own(OwnObject {
            state: ObjectState { uid: metadata.uid.into(), version: metadata.resource_version.into() },
            fingerprint: content.fingerprint(kind, &content.manifest()),
            deleting: metadata.deletion_timestamp.is_some(),
        })
    }
}

/// Whether one version is older than another; false where they are no numbers, which Kubernetes has had them be always.
pub(super) fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version < than)
}

/// An object that a served resource asks for.
#[derive(Debug, Clone)]
pub(super) struct Converted {
    pub(super) key: ObjectKey,
    pub(super) fingerprint: Fingerprint,
    pub(super) manifest: Arc<Manifest>,
}

/// The objects of a served resource: the resource's own first, then its WorkloadEntries where it has too many endpoints to
/// hold them. `selects` says whether that is so now. `None` for what cannot be decoded, which we have encoded.
pub(super) fn convert(kind: ObjectKind, framed: &Bytes, owner: &str, selects: bool) -> Option<Vec<Converted>> {
    let any = DiscoveryResponse::decode(framed.clone()).ok()?.resources.pop()?;
    let resource = Resource::decode(any.value).ok()?;
    let metadata = resource.metadata?;
    let owned = (OWNER.to_owned(), owner.to_owned());
    let mut content = ObjectContent {
        labels: metadata.labels.into_iter().chain([owned.clone()]).collect(),
        annotations: metadata.annotations.into_iter().chain([owned]).collect(),
        spec: kubectl::spec_of(kind.name(), resource.body?.value).ok()?,
    };
    let key = ObjectKey { kind, name: object_name(&metadata.name) };
    let whole = content.manifest();
    let share = if selects { 2 } else { 1 };
    let count = endpoints(&content.spec).len();
    let is_large = count > MAX_ENDPOINTS / share || whole.len() > MAX_BYTES / share;
    if kind == ObjectKind::ServiceEntry && count > 0 && is_large {
        let workloads = content.split();
        return Some(std::iter::once(content.converted(key)).chain(workloads).collect());
    }
    let fingerprint = content.fingerprint(kind, &whole);
    Some(vec![Converted { key, fingerprint, manifest: Arc::new(whole) }])
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
        snapshot::{Changes, Resource, Set, Snapshot, partition::Partition},
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
        let set = Set::new(Arc::new(Snapshot::default().with(&changes)), Partition::WHOLE);
        set.find("ns/a").unwrap().framed().clone()
    }

    fn objects(endpoints: usize, label: &str, selects: bool) -> Vec<Converted> {
        convert(ObjectKind::ServiceEntry, &framed(endpoints, label), "me", selects).unwrap()
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
        assert!(
            parts[0].fingerprint.selects && parts[0].fingerprint.endpoints.is_empty() && !whole.fingerprint.selects
        );
        assert_eq!(whole.fingerprint.endpoints.len(), 10);
        assert!(
            parts
                .iter()
                .all(|part| part.fingerprint.group == whole.fingerprint.group && part.fingerprint.group.is_some())
        );
        let names: std::collections::BTreeSet<_> = parts.iter().map(|part| &part.key.name).collect();
        assert_eq!(names.len(), 4_001);
        let spec: Value = serde_json::from_str(parts[1].manifest.spec()).unwrap();
        assert_eq!(spec["labels"]["sofa.registry/app"], "x", "no Service selects it by app");
        assert_eq!(spec["labels"].as_object().unwrap().len(), 2);
        assert!(parts[1].key.name.starts_with("10-0-0-0-"), "{}", parts[1].key.name);
        let inline: std::collections::BTreeSet<u64> =
            objects(10, "x", false)[0].fingerprint.endpoints.iter().copied().collect();
        let apart: std::collections::BTreeSet<u64> =
            parts[1..].iter().map(|part| part.fingerprint.endpoints[0]).collect();
        assert!(apart.is_superset(&inline));
    }

    #[test]
    fn what_the_server_shows_of_what_was_written_is_the_same() {
        let desired = &objects(3, "x", false)[0];
        let written = desired.manifest.request("networking.istio.io/v1", "ns", &desired.key, None);
        let mut shown: Value = serde_json::from_slice(&written).unwrap();
        shown["metadata"]["uid"] = "u".into();
        shown["metadata"]["resourceVersion"] = "7".into();
        shown["metadata"]["labels"]["team"] = "another's".into();
        shown["status"] = json!({ "addresses": [] });
        let observed = |shown: &Value| {
            serde_json::from_value::<ApiObject>(shown.clone()).unwrap().observed(ObjectKind::ServiceEntry, "me")
        };
        let state = ObjectState { uid: "u".into(), version: "7".into() };
        let own = OwnObject { state: state.clone(), fingerprint: desired.fingerprint.clone(), deleting: false };
        assert_eq!(observed(&shown), Observed::Own(own));
        let over = desired.manifest.request("networking.istio.io/v1", "ns", &desired.key, Some(&state));
        let over: Value = serde_json::from_slice(&over).unwrap();
        assert_eq!((&over["metadata"]["uid"], &over["metadata"]["resourceVersion"]), (&json!("u"), &json!("7")));
        assert_eq!((&over["spec"], &over["kind"]), (&shown["spec"], &json!("ServiceEntry")));
        for tags in ["labels", "annotations"] {
            let mut foreign = shown.clone();
            foreign["metadata"][tags][OWNER] = "you".into();
            assert_eq!(observed(&foreign), Observed::Foreign("7".into()));
        }
    }

    #[test]
    fn endpoints_of_another_content_are_kept_beside_its_own() {
        let manifest = objects(2, "x", false).remove(0).manifest;
        let seen = json!({ "endpoints": [
            { "address": "10.0.0.1", "ports": { "tcp": 80 }, "weight": 7 },
            { "address": "10.9.9.9", "ports": { "tcp": 80 } },
        ] });
        let united = manifest.with_endpoints_of(&seen);
        let spec: Value = serde_json::from_str(united.spec()).unwrap();
        let shown: Vec<_> = endpoints(&spec).iter().map(|e| (e["address"].as_str().unwrap(), &e["weight"])).collect();
        let all = json!(DEFAULT_WEIGHT);
        assert_eq!(shown, [("10.0.0.0", &all), ("10.0.0.1", &all), ("10.9.9.9", &all)], "its own word counts");
        assert_eq!(united.with_endpoints_of(&seen), united);
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
