//! Served resources as `kubectl` would print them.

use bytes::Bytes;
use prost::{DecodeError, Message};
use serde_json::{Map, Value, json};

use crate::{
    proto::istio::{
        mcp::v1alpha1::Resource,
        networking::v1alpha3::{DestinationRule, ServiceEntry, WorkloadEntry},
    },
    snapshot::Snapshot,
};

/// The types that can be dumped.
pub const KINDS: [&str; 3] = ["ServiceEntry", "WorkloadEntry", "DestinationRule"];

/// Every resource of a snapshot of `kind`, one of [`KINDS`], as a Kubernetes list.
pub fn list(kind: &str, snapshot: &Snapshot) -> Value {
    let items: Vec<Value> = snapshot.decode().iter().map(|resource| item(kind, resource)).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

fn item(kind: &str, resource: &Resource) -> Value {
    let metadata = resource.metadata.clone().unwrap_or_default();
    let (namespace, name) = metadata.name.split_once('/').unwrap_or(("", &metadata.name));
    let spec = spec_of(kind, resource.body.clone().unwrap_or_default().value);
    let metadata = without_empty(json!({
        "name": name,
        "namespace": namespace,
        "resourceVersion": metadata.version,
        "labels": metadata.labels,
        "annotations": metadata.annotations,
    }));
    json!({ "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec.unwrap_or_default() })
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
    let tls = rule.traffic_policy.as_ref().and_then(|policy| policy.tls.as_ref());
    let tls = tls.map(|tls| {
        without_empty(json!({ "mode": tls.mode().as_str_name(), "subjectAltNames": tls.subject_alt_names }))
    });
    without_empty(json!({ "host": rule.host, "trafficPolicy": { "tls": tls }, "exportTo": rule.export_to }))
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

/// What is unset is not printed.
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
