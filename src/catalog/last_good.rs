//! The last good state: what was served before a restart, or before a bug, as it was encoded.

pub mod file;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hashbrown::HashMap;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::{
    catalog::{direct, key::ServiceKey, vips::Vips},
    istio::names::{APPLICATION_ANNOTATION, REGISTER_ID_ANNOTATION, SERVICE_LABEL},
    model::Millis,
    proto::istio::{
        mcp::v1alpha1::Resource as McpResource,
        networking::v1alpha3::{DestinationRule, ServiceEntry, WorkloadEntry},
    },
    snapshot::{Changes, Resource, Snapshot, partition::slice_of, resource, view::View},
    translate::{
        Parsed,
        payload::{Address, Endpoint, label_value},
        service_entry::{self, Member},
    },
};

/// A service as it was served.
#[derive(Debug, Clone)]
pub struct LastService {
    /// The host, suffix included.
    pub host: Box<str>,
    /// The slice of the resources.
    pub slice: usize,
    /// The name of the ServiceEntry, `namespace/name`.
    pub name: Arc<str>,
    /// The virtual addresses of the host.
    pub vips: Vips,
    /// The endpoints, by address and port. The publishers of endpoints that stand in a ServiceEntry are not known.
    pub members: Vec<Member>,
    /// The names of the WorkloadEntries, by address and port.
    pub workloads: BTreeMap<(Address, u16), Arc<str>>,
    /// When the registry took the last endpoint away, if there is none.
    pub empty_since: Option<Millis>,
}

/// The last good state.
#[derive(Debug)]
pub struct LastGood {
    /// How long ago it was good.
    pub age: Duration,
    /// How many publishers the registry had.
    pub publishers: usize,
    /// The snapshots that were served, not to be shown yet.
    pub view: View,
    /// Every service in the snapshots.
    pub services: BTreeMap<ServiceKey, LastService>,
    /// Slices and names of the entries of applications in the snapshots.
    pub entries: BTreeMap<direct::Key, (usize, Arc<str>)>,
}

impl LastGood {
    /// The services and entries that a view serves.
    pub fn of_view(view: &View, empty: &BTreeMap<Arc<str>, Millis>, publishers: usize) -> Result<Self, String> {
        let mut reader = Reader::default();
        for (kind, snapshot) in view.snapshots().into_iter().enumerate() {
            for page in snapshot.pages() {
                reader.read(kind, page.clone())?;
            }
        }
        Ok(reader.finish(view.clone(), empty, publishers))
    }

    /// The snapshots, services and entries in pages of ServiceEntries, WorkloadEntries and DestinationRules.
    fn of_pages(pages: [Bytes; 3], empty: &BTreeMap<Arc<str>, Millis>, publishers: usize) -> Result<Self, String> {
        let mut reader = Reader::default();
        let mut snapshots = pages.into_iter().enumerate().map(|(kind, pages)| {
            let changes = reader.read(kind, pages)?;
            Ok::<_, String>(Arc::new(Snapshot::default().with(&changes)))
        });
        let mut next = || snapshots.next().unwrap_or_else(|| Ok(Arc::default()));
        let (service_entries, workload_entries, destination_rules) = (next()?, next()?, next()?);
        drop(snapshots);
        let view = View { service_entries, workload_entries, destination_rules, ..View::default() };
        Ok(reader.finish(view, empty, publishers))
    }
}

/// A service while its resources are read.
struct Reading {
    service: LastService,
    /// Identities of the certificates of endpoints that are called with mTLS.
    identities: Arc<[String]>,
    /// The registerId of each endpoint's publisher, empty where it is not known, and the endpoint.
    endpoints: Vec<(Box<str>, Endpoint)>,
}

/// Reads resources in the order of [`View::snapshots`].
#[derive(Default)]
struct Reader {
    services: BTreeMap<ServiceKey, Reading>,
    /// Services by the label that their WorkloadEntries have.
    selected: HashMap<String, ServiceKey>,
    entries: BTreeMap<direct::Key, (usize, Arc<str>)>,
    /// The applications in whose entries addresses and ports stand.
    addresses: HashMap<(IpAddr, u16), Arc<str>>,
}

impl Reader {
    /// Reads the resources of one kind, and returns them for a snapshot.
    fn read(&mut self, kind: usize, pages: Bytes) -> Result<Changes, String> {
        let mut changes = Changes::new();
        for field in resource::fields(pages) {
            let field = field.map_err(|error| error.to_string())?;
            let mut read = resource::read(&field).map_err(|error| error.to_string())?;
            let body = read.body.take().unwrap_or_default().value;
            let name: Arc<str> = read.metadata.as_ref().map_or("", |metadata| &metadata.name).into();
            let found = match kind {
                0 => self.service_entry(&read, &name, body).map(Some),
                1 => self.workload_entry(&read, &name, body),
                _ => DestinationRule::decode(body).map(|rule| Some((slice(&rule.host), 0))).map_err(|e| e.to_string()),
            };
            // A WorkloadEntry without its ServiceEntry is selected by nothing.
            let Some((slice, endpoints)) = found? else { continue };
            let resource = Resource::kept(field, &read, endpoints).ok_or("a resource has no version")?;
            changes.insert((slice, name), Some(resource));
        }
        Ok(changes)
    }

    fn service_entry(&mut self, resource: &McpResource, name: &Arc<str>, body: Bytes) -> Result<(usize, u32), String> {
        let entry = ServiceEntry::decode(body).map_err(|error| error.to_string())?;
        let host: Box<str> = entry.hosts.into_iter().next().ok_or("a ServiceEntry has no host")?.into();
        let slice = slice(&host);
        if let Some(application) = annotation(resource, APPLICATION_ANNOTATION) {
            let port = entry.ports.first().and_then(|port| u16::try_from(port.number).ok());
            let key: direct::Key = (application.into(), port.ok_or("the entry of an application has no port")?);
            let addresses = entry.addresses.iter().filter_map(|address| address.parse().ok());
            self.addresses.extend(addresses.map(|address| ((address, key.1), Arc::clone(&key.0))));
            self.entries.insert(key, (slice, Arc::clone(name)));
            return Ok((slice, 0));
        }
        let id = resource.metadata.as_ref().and_then(|metadata| ServiceKey::annotated(&metadata.annotations));
        let id = id.ok_or("a ServiceEntry has no dataInfoId")?;
        let labels = entry.workload_selector.map(|selector| selector.labels).unwrap_or_default();
        self.selected.extend(labels.into_values().map(|label| (label, id.clone())));
        let identities: Arc<[String]> = entry.subject_alt_names.into();
        let count = entry.endpoints.len() as u32;
        let endpoints = entry.endpoints.into_iter().filter_map(|entry| service_entry::read_back(entry, &identities));
        let endpoints = endpoints.map(|endpoint| ("".into(), endpoint)).collect();
        let service = LastService {
            host,
            slice,
            name: Arc::clone(name),
            vips: entry.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            members: Vec::new(),
            workloads: BTreeMap::new(),
            empty_since: None,
        };
        self.services.insert(id, Reading { service, identities, endpoints });
        Ok((slice, count))
    }

    fn workload_entry(
        &mut self,
        resource: &McpResource,
        name: &Arc<str>,
        body: Bytes,
    ) -> Result<Option<(usize, u32)>, String> {
        let entry = WorkloadEntry::decode(body).map_err(|error| error.to_string())?;
        let id = entry.labels.get(SERVICE_LABEL).and_then(|label| self.selected.get(label));
        let Some(read) = id.and_then(|id| self.services.get_mut(id)) else { return Ok(None) };
        let register_id = annotation(resource, REGISTER_ID_ANNOTATION).ok_or("a WorkloadEntry has no registerId")?;
        let endpoint = service_entry::read_back(entry, &read.identities).ok_or("a WorkloadEntry has no port")?;
        read.service.workloads.insert((endpoint.address.clone(), endpoint.port), Arc::clone(name));
        read.endpoints.push((register_id.into(), endpoint));
        Ok(Some((read.service.slice, 1)))
    }

    fn finish(self, view: View, empty: &BTreeMap<Arc<str>, Millis>, publishers: usize) -> LastGood {
        let services = self.services.into_iter().map(|(id, Reading { service, endpoints, .. })| {
            let empty_since = empty.get(id.text()).copied();
            (id, LastService { members: members(endpoints, &self.addresses), empty_since, ..service })
        });
        LastGood { age: Duration::MAX, publishers, view, services: services.collect(), entries: self.entries }
    }
}

fn slice(host: &str) -> usize {
    slice_of(&Sha256::digest(host).into())
}

fn annotation<'a>(resource: &'a McpResource, key: &str) -> Option<&'a str> {
    resource.metadata.as_ref()?.annotations.get(key).map(String::as_str)
}

/// The endpoints of a service. An endpoint that stands in an application's entry, too, has its publisher's own address,
/// and is of that application, of which the endpoint itself has only the label.
fn members(endpoints: Vec<(Box<str>, Endpoint)>, entries: &HashMap<(IpAddr, u16), Arc<str>>) -> Vec<Member> {
    let mut members = Vec::with_capacity(endpoints.len());
    let mut by_publisher: BTreeMap<(Box<str>, Option<IpAddr>), Vec<Endpoint>> = BTreeMap::new();
    for (register_id, mut endpoint) in endpoints {
        let mut own = None;
        if let Address::Ip(address) = &endpoint.address
            && let Some(application) = entries.get(&(*address, endpoint.port))
            && endpoint.labels.get("app") == label_value(application).as_deref()
        {
            own = Some(*address);
            endpoint = endpoint.of_application(application);
        }
        by_publisher.entry((register_id, own)).or_default().push(endpoint);
    }
    for ((register_id, source_address), endpoints) in by_publisher {
        members.extend(Member::all(&Arc::new(Parsed {
            register_id,
            source_address,
            endpoints: endpoints.into(),
            ..Parsed::default()
        })));
    }
    members.sort_by(|a, b| a.key().cmp(&b.key()));
    members
}
