//! The difference of two served views, by services and applications, as an operator reads it.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::{DecodeError, Message};
use serde::Serialize;

use crate::{
    catalog::key::ServiceKey,
    istio::names::{EMPTY_LABEL, SERVICE_LABEL},
    proto::istio::{
        mcp::v1alpha1::Metadata,
        networking::v1alpha3::{ServiceEntry, WorkloadEntry},
    },
    snapshot::{Set, Snapshot, kubectl, partition::Partition, resource, view::View},
};

/// A list names this many.
pub const LISTED: usize = 100;

/// How many there are, and the first [`LISTED`] of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed<T> {
    /// How many there are.
    pub count: usize,
    /// The first of them, in the order of their names.
    pub first: Vec<T>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

impl<T> Listed<T> {
    /// Counts one more, and lists it while there is room.
    pub fn add(&mut self, one: impl FnOnce() -> T) {
        self.count += 1;
        if self.first.len() < LISTED {
            self.first.push(one());
        }
    }
}

/// The difference of one view from another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Services.
    pub services: ServiceChanges,
    /// Their endpoints; those of services that come or go included.
    pub endpoints: Counts,
    /// Entries for consumers that dial addresses.
    pub entries: NamedChanges,
    /// DestinationRules.
    pub destination_rules: NamedChanges,
}

/// Changes of services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceChanges {
    /// Services that are not served before.
    pub come: Listed<ServiceShown>,
    /// Services that are not served any more.
    pub go: Listed<ServiceShown>,
    /// Services that are served otherwise, those that are renamed included.
    pub change: Listed<ServiceChange>,
    /// Services that have another host.
    pub renamed: Listed<Renamed>,
    /// Services that have no endpoint any more and keep their entry for a while; they are among those that change.
    pub emptied: usize,
}

/// A service that comes or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceShown {
    /// The service: its dataInfoId, or `<protocol>://<dataInfoId>`.
    pub data_info_id: Arc<str>,
    /// Its host.
    pub host: String,
    /// How many endpoints it has.
    pub endpoints: usize,
}

/// A service that is served otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceChange {
    /// The service: its dataInfoId, or `<protocol>://<dataInfoId>`.
    pub data_info_id: Arc<str>,
    /// Fields of the ServiceEntry that are other than before, endpoints apart.
    pub fields: Vec<&'static str>,
    /// Its endpoints.
    pub endpoints: Counts,
}

/// A service that has another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Renamed {
    /// The service: its dataInfoId, or `<protocol>://<dataInfoId>`.
    pub data_info_id: Arc<str>,
    /// Its host before.
    pub from: String,
    /// Its host after.
    pub to: String,
}

/// Changes of resources that have a name alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NamedChanges {
    /// Not there before.
    pub come: Listed<String>,
    /// Not there any more.
    pub go: Listed<String>,
    /// Other than before.
    pub change: Listed<String>,
}

/// How many come, go and change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Not there before.
    pub come: usize,
    /// Not there any more.
    pub go: usize,
    /// Other than before.
    pub change: usize,
}

/// The resources of a service that the views differ in, encoded, in one of them.
#[derive(Debug, Default)]
struct Side {
    entry: Option<Bytes>,
    /// The entry is labelled as one without endpoints.
    is_empty: bool,
    workloads: Vec<Bytes>,
}

/// The endpoints of a service, or those that differ, by address and port. They stay encoded, as most of a large difference is
/// endpoints: equal ones are equal bytes.
type Endpoints = BTreeMap<(String, u32), Bytes>;

/// The endpoints of a ServiceEntry; the rest is left out.
#[derive(Clone, PartialEq, Message)]
struct Inline {
    #[prost(bytes = "bytes", repeated, tag = "6")]
    endpoints: Vec<Bytes>,
}

/// The part of an endpoint that tells it from others; the rest is left out.
#[derive(Clone, PartialEq, Message)]
struct At {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(btree_map = "string, uint32", tag = "2")]
    ports: BTreeMap<String, u32>,
}

/// Names of resources, and whether each is in the older and in the newer view.
type Names = BTreeMap<Arc<str>, [bool; 2]>;

/// The difference of `after` from `before`. An error is a bug: what is served was encoded here.
pub fn difference(before: &View, after: &View) -> Result<Difference, String> {
    let (mut services, mut entries, mut rules) = (BTreeMap::<Arc<str>, [Side; 2]>::new(), Names::new(), Names::new());
    for (side, name, framed) in apart(&before.service_entries, &after.service_entries) {
        let (Metadata { annotations, labels, .. }, body) = read(&framed)?;
        if let Some(key) = key(&annotations) {
            let of = &mut services.entry(key).or_default()[side];
            (of.entry, of.is_empty) = (Some(body), labels.contains_key(EMPTY_LABEL));
        } else {
            entries.entry(name).or_default()[side] = true;
        }
    }
    for (side, name, framed) in apart(&before.workload_entries, &after.workload_entries) {
        let (Metadata { annotations, .. }, body) = read(&framed)?;
        let key = key(&annotations).ok_or_else(|| format!("the WorkloadEntry {name} is nobody's"))?;
        services.entry(key).or_default()[side].workloads.push(body);
    }
    for (side, name, _) in apart(&before.destination_rules, &after.destination_rules) {
        rules.entry(name).or_default()[side] = true;
    }
    let mut difference =
        Difference { entries: named(entries), destination_rules: named(rules), ..Difference::default() };
    for (id, [old, new]) in services {
        difference.add(id, old, new)?;
    }
    Ok(difference)
}

/// The resources that two snapshots differ in, with where each is: 0 in the older, 1 in the newer. By slice and name in each.
fn apart(older: &Arc<Snapshot>, newer: &Arc<Snapshot>) -> Vec<(usize, Arc<str>, Bytes)> {
    let (old, new) = (Set::new(Arc::clone(older), Partition::WHOLE), Set::new(Arc::clone(newer), Partition::WHOLE));
    let sides = [old.since(&new), new.since(&old)];
    let items = sides.iter().enumerate().flat_map(|(side, apart)| apart.changed.iter().map(move |item| (side, *item)));
    items.map(|(side, item)| (side, Arc::clone(item.name()), item.framed().clone())).collect()
}

/// The text of the key of the service that a resource is of.
fn key(annotations: &BTreeMap<String, String>) -> Option<Arc<str>> {
    ServiceKey::annotated(annotations).map(|key| Arc::clone(key.text()))
}

/// The metadata and the body of a resource.
fn read(framed: &Bytes) -> Result<(Metadata, Bytes), String> {
    let resource = resource::read(framed).map_err(|error| error.to_string())?;
    Ok((resource.metadata.unwrap_or_default(), resource.body.unwrap_or_default().value))
}

fn named(names: Names) -> NamedChanges {
    let mut changes = NamedChanges::default();
    for (name, [old, new]) in names {
        let list = match (old, new) {
            (false, _) => &mut changes.come,
            (_, false) => &mut changes.go,
            (true, true) => &mut changes.change,
        };
        list.add(|| name.to_string());
    }
    changes
}

impl Difference {
    fn add(&mut self, id: Arc<str>, old: Side, new: Side) -> Result<(), String> {
        self.services.emptied += usize::from(new.is_empty && !old.is_empty);
        let (old_entry, old) = decoded(old)?;
        let (new_entry, new) = decoded(new)?;
        let all = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
        let mut counts = Counts::default();
        for key in all {
            match (old.get(key), new.get(key)) {
                (None, _) => counts.come += 1,
                (_, None) => counts.go += 1,
                (old, new) => counts.change += usize::from(old != new),
            }
        }
        self.endpoints.come += counts.come;
        self.endpoints.go += counts.go;
        self.endpoints.change += counts.change;
        let data_info_id = Arc::clone(&id);
        let shown = |entry: &ServiceEntry, endpoints| ServiceShown { data_info_id, host: host(entry), endpoints };
        match (&old_entry, &new_entry) {
            (None, Some(entry)) => self.services.come.add(|| shown(entry, counts.come)),
            (Some(entry), None) => self.services.go.add(|| shown(entry, counts.go)),
            (old_entry, new_entry) => {
                let mut fields = Vec::new();
                if let (Some(old), Some(new)) = (old_entry, new_entry) {
                    fields = fields_apart(old, new);
                    let (from, to) = (host(old), host(new));
                    if from != to {
                        self.services.renamed.add(|| Renamed { data_info_id: Arc::clone(&id), from, to });
                    }
                }
                self.services.change.add(|| ServiceChange { data_info_id: id, fields, endpoints: counts });
            }
        }
        Ok(())
    }
}

fn host(entry: &ServiceEntry) -> String {
    entry.hosts.first().cloned().unwrap_or_default()
}

/// The entry without its endpoints, and these, wherever they stand. A label that joins the two tells nothing of an endpoint.
fn decoded(side: Side) -> Result<(Option<ServiceEntry>, Endpoints), String> {
    let read = |body: &Bytes| {
        let entry = ServiceEntry::decode(kubectl::without_endpoints(body))?;
        Ok::<_, DecodeError>((entry, Inline::decode(body.clone())?.endpoints))
    };
    let unlabelled = |workload: Bytes| {
        let mut workload = WorkloadEntry::decode(workload)?;
        workload.labels.remove(SERVICE_LABEL);
        Ok::<_, DecodeError>(workload.encode_to_vec().into())
    };
    let located = |encoded: Result<Bytes, DecodeError>| {
        let encoded = encoded?;
        let At { address, ports } = At::decode(encoded.clone())?;
        Ok(((address, ports.into_values().next().unwrap_or_default()), encoded))
    };
    let all = || {
        let (entry, inline) = side.entry.as_ref().map(read).transpose()?.unzip();
        let inline = inline.unwrap_or_default().into_iter().map(Ok);
        let all = side.workloads.into_iter().map(unlabelled).chain(inline).map(located);
        Ok((entry, all.collect::<Result<Endpoints, DecodeError>>()?))
    };
    all().map_err(|error: DecodeError| error.to_string())
}

/// The fields in which two entries differ, endpoints apart.
fn fields_apart(old: &ServiceEntry, new: &ServiceEntry) -> Vec<&'static str> {
    let fields = [
        ("hosts", old.hosts != new.hosts),
        ("addresses", old.addresses != new.addresses),
        ("ports", old.ports != new.ports),
        ("resolution", old.resolution != new.resolution),
        ("exportTo", old.export_to != new.export_to),
        ("subjectAltNames", old.subject_alt_names != new.subject_alt_names),
        ("workloadSelector", old.workload_selector != new.workload_selector),
    ];
    fields.into_iter().filter(|(_, differs)| *differs).map(|(field, _)| field).collect()
}
