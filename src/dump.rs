//! Served resources as `kubectl` would print them.

use prost::Message;
use serde_json::{Map, Value, json};

use crate::{
    proto::istio::{
        mcp::v1alpha1::Resource,
        networking::v1alpha3::{ServiceEntry, WorkloadEntry},
    },
    snapshot::Snapshot,
};

/// Every ServiceEntry of a snapshot, as a Kubernetes list.
pub fn service_entries(snapshot: &Snapshot) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": snapshot.decode().iter().map(item).collect::<Vec<_>>() })
}

fn item(resource: &Resource) -> Value {
    let metadata = resource.metadata.clone().unwrap_or_default();
    let (namespace, name) = metadata.name.split_once('/').unwrap_or(("", &metadata.name));
    let body = resource.body.clone().unwrap_or_default();
    let spec = ServiceEntry::decode(body.value).map(|entry| spec(&entry)).unwrap_or_default();
    let metadata = without_empty(json!({
        "name": name,
        "namespace": namespace,
        "resourceVersion": metadata.version,
        "labels": metadata.labels,
        "annotations": metadata.annotations,
    }));
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata, "spec": spec })
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
        "exportTo": entry.export_to,
    }))
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
        Value::Number(number) => number.as_u64() != Some(0),
        _ => true,
    };
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| set(value)).collect::<Map<_, _>>().into(),
        other => other,
    }
}
