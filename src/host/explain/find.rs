//! What an operator asks for, taken to services.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;

use crate::{
    catalog::key::ServiceKey,
    host::{engine::Engine, explain::facts::Facts},
    istio::names::{ID_ANNOTATION, PROTOCOL_ANNOTATION},
    snapshot::{Set, partition::Partition, resource},
    translate::{
        Parsed, names,
        payload::{Address, Endpoint},
    },
};

/// Most services that are named without being explained.
pub(super) const NAMED: usize = 100;

/// What a query was taken for, in the order in which it is tried.
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
        let keys = by_endpoint(engine, |parsed| {
            let is_at = |endpoint: &Endpoint| {
                matches!(&endpoint.address, Address::Ip(ip) if *ip == address.0)
                    && address.1.is_none_or(|port| port == endpoint.port)
            };
            parsed.endpoints.iter().any(is_at)
        });
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
    let field = resource::fields(all.find(&name)?.framed().clone()).next()?.ok()?;
    let annotations = resource::read(&field).ok()?.metadata?.annotations;
    let protocol = annotations.get(PROTOCOL_ANNOTATION).map(String::as_str);
    Some(ServiceKey::annotated(annotations.get(ID_ANNOTATION)?, protocol))
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
