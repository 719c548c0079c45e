//! From the words of an operator to services.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use aho_corasick::AhoCorasick;
use serde::Serialize;
use serde_json::Value;

use crate::{
    catalog::key::ServiceKey,
    host::{engine::Engine, explain::facts::Facts},
    istio::names::{ID_ANNOTATION, PROTOCOL_ANNOTATION},
    policy::Rules,
    registry::publication::Publication,
    snapshot::{Item, Set, kubectl, partition::Partition, resource},
    translate::{
        Parsed, names,
        payload::{self, Address, Client, Endpoint},
        reading::{Reading, readings},
    },
};

/// Most services that are named without being explained.
pub(super) const NAMED: usize = 100;

/// Kinds of queries, in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", content = "value")]
pub enum Found {
    /// A whole dataInfoId, known or not.
    DataInfoId,
    /// A host that is served.
    Host,
    /// An address, with or without a port, at which services have publishers.
    Address(#[serde(skip)] (IpAddr, Option<u16>)),
    /// A dataId, in whatever group and instance.
    DataId,
    /// An application that providers name.
    Application,
    /// A part of dataInfoIds.
    Part,
    /// Nothing that is known.
    Nothing,
}

impl Found {
    /// The address.
    pub fn address(&self) -> Option<(IpAddr, Option<u16>)> {
        match self {
            Self::Address(address) => Some(*address),
            _ => None,
        }
    }
}

/// The services that a query is about, and what it was taken for.
pub fn find(engine: &Engine, query: &str) -> (Found, Vec<ServiceKey>) {
    let store = &engine.shared().store;
    if query.is_empty() {
        return (Found::Nothing, Vec::new());
    }
    if let Some((_, id)) = query.split_once("://").filter(|(_, id)| id.contains("#@#")) {
        let key = ServiceKey::of_text(query.into());
        return (Found::DataInfoId, vec![if key.id() == id { key } else { ServiceKey::main(&query.into()) }]);
    }
    if query.contains("#@#") || store.has(query) {
        return (Found::DataInfoId, all_of(engine, &query.into()));
    }
    if let Some(key) = by_host(engine, query) {
        return (Found::Host, vec![key]);
    }
    if let Some(address) = address(query) {
        let keys = at(engine, address);
        return (Found::Address(address), keys);
    }
    let ids = store.ids();
    let part = |id: &Arc<str>| id.split_once("#@#").map_or(&**id, |(data_id, _)| data_id).to_owned();
    let of_data_id: Vec<&Arc<str>> = ids.iter().filter(|id| part(id) == query).collect();
    if !of_data_id.is_empty() {
        return (Found::DataId, of_data_id.into_iter().flat_map(|id| all_of(engine, id)).collect());
    }
    let keys = of_application(engine, query);
    if !keys.is_empty() {
        return (Found::Application, keys);
    }
    let small = query.to_lowercase();
    let mut keys: Vec<ServiceKey> =
        ids.iter().filter(|id| id.to_lowercase().contains(&small)).map(ServiceKey::main).collect();
    keys.sort();
    (if keys.is_empty() { Found::Nothing } else { Found::Part }, keys)
}

/// Services that have an address: as a publisher says, whether that is served or not, or as they are served without one. Costs a walk
/// over all publishers, each read where no round has read it, and one over what is served.
fn at(engine: &Engine, (ip, port): (IpAddr, Option<u16>)) -> Vec<ServiceKey> {
    let (shared, mut keys) = (engine.shared(), BTreeSet::new());
    let (policy, limit) = (shared.policy.load_full(), shared.config.limits.endpoints_per_publisher);
    let is_at = |parsed: &Parsed| {
        let here = |it: &Endpoint| matches!(&it.address, Address::Ip(own) if *own == ip);
        parsed.endpoints.iter().any(|it| here(it) && port.is_none_or(|port| port == it.port))
    };
    for id in shared.store.ids() {
        let (client, rules) = (Client::of(&id), Rules { keeps: false, ..policy.rules(&id) });
        let look = |publication: &Publication| {
            let parsed = payload::parsed(publication, client, &rules, limit);
            let is_rejected = |reading: &Reading| reading.made.is_err() && reading.is_at(ip, port);
            let rejected = || !readings(&publication.body(), client, &rules, 1, is_rejected).0.is_empty();
            let is_main = is_at(&parsed) || (parsed.rejects().next().is_some() && rejected());
            let others = parsed.others.iter().flat_map(|others| others.iter()).filter(|(_, other)| is_at(other));
            let others = others.map(|(protocol, _)| ServiceKey::beside(&id, protocol));
            is_main.then(|| ServiceKey::main(&id)).into_iter().chain(others).collect::<Vec<_>>()
        };
        for publication in shared.store.read(&id) {
            // A publisher that brings out a bug is no reason to find nothing.
            keys.extend(catch_unwind(AssertUnwindSafe(|| look(&publication))).unwrap_or_default());
        }
    }
    let all = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
    if let Ok(finder) = AhoCorasick::new([ip.to_string()]) {
        let candidates = all.items().filter(|item| finder.is_match(&**item.framed()));
        keys.extend(candidates.filter(|item| serves(item, ip, port).unwrap_or_default()).filter_map(key_of));
    }
    keys.into_iter().collect()
}

/// Whether an entry has an endpoint at an address.
fn serves(item: &Item, ip: IpAddr, port: Option<u16>) -> Option<bool> {
    let field = resource::fields(item.framed().clone()).next()?.ok()?;
    let spec = kubectl::spec_of("ServiceEntry", resource::read(&field).ok()?.body?.value).ok()?;
    let is_port = |own: &Value| port.is_none_or(|port| own.as_u64() == Some(port.into()));
    let is_it = |endpoint: &Value| {
        let address = endpoint["address"].as_str().and_then(|text| text.parse::<IpAddr>().ok());
        address == Some(ip) && endpoint["ports"].as_object().is_some_and(|ports| ports.values().any(is_port))
    };
    Some(spec["endpoints"].as_array()?.iter().any(is_it))
}

/// The service of an entry; `None`: it is an application's.
fn key_of(item: &Item) -> Option<ServiceKey> {
    let field = resource::fields(item.framed().clone()).next()?.ok()?;
    let annotations = resource::read(&field).ok()?.metadata?.annotations;
    let protocol = annotations.get(PROTOCOL_ANNOTATION).map(String::as_str);
    Some(ServiceKey::annotated(annotations.get(ID_ANNOTATION)?, protocol))
}

/// Services of which a provider names this application.
pub fn of_application(engine: &Engine, name: &str) -> Vec<ServiceKey> {
    by_endpoint(engine, |parsed| parsed.endpoints.iter().any(|it| it.application() == Some(name)))
}

/// The service that a dataInfoId, the text of a key or a host is of, if anything is known of it.
pub fn service(engine: &Engine, name: &str) -> Option<ServiceKey> {
    let key = match name.split_once("://").filter(|(_, id)| id.contains("#@#")) {
        Some(_) => ServiceKey::of_text(name.into()),
        None if name.contains("#@#") => ServiceKey::main(&name.into()),
        None => return by_host(engine, name),
    };
    let served = || Facts::of(engine, &key, None).served.is_some();
    (key.is_known(&engine.shared().store) || served()).then_some(key)
}

/// The main service of a dataInfoId and those that it has beside it.
fn all_of(engine: &Engine, id: &Arc<str>) -> Vec<ServiceKey> {
    let mut protocols: BTreeSet<Arc<str>> = BTreeSet::new();
    for publication in engine.shared().store.read(id) {
        if let Some(parsed) = publication.memo.last::<Parsed>() {
            protocols.extend(parsed.others.iter().flat_map(|others| others.keys().cloned()));
        }
    }
    let others = protocols.iter().map(|protocol| ServiceKey::beside(id, protocol));
    [ServiceKey::main(id)].into_iter().chain(others).collect()
}

/// The service that is served under a host, of ours or of the operator's.
fn by_host(engine: &Engine, host: &str) -> Option<ServiceKey> {
    let (config, host) = (engine.config(), host.to_ascii_lowercase());
    let name = format!("{}/{}", config.namespace, names::resource_name(&host, &config.host_suffix));
    let all = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
    key_of(all.find(&name)?)
}

fn address(query: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(place) = query.parse::<SocketAddr>() {
        return Some((place.ip().to_canonical(), Some(place.port())));
    }
    query.parse::<IpAddr>().ok().map(|address| (address.to_canonical(), None))
}

/// Services of which a publisher was read so that `is_it`. Costs a walk over all that was read.
fn by_endpoint(engine: &Engine, is_it: impl Fn(&Parsed) -> bool) -> Vec<ServiceKey> {
    let mut keys = BTreeSet::new();
    let store = &engine.shared().store;
    for id in store.ids() {
        for publication in store.read(&id) {
            let Some(parsed) = publication.memo.last::<Parsed>() else { continue };
            if is_it(&parsed) {
                keys.insert(ServiceKey::main(&id));
            }
            for (protocol, other) in parsed.others.iter().flat_map(|others| others.iter()) {
                if is_it(other) {
                    keys.insert(ServiceKey::beside(&id, protocol));
                }
            }
        }
    }
    keys.into_iter().collect()
}
