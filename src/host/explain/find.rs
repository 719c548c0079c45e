//! From the words of an operator to services.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use aho_corasick::AhoCorasick;
use serde::Serialize;

use crate::{
    catalog::key::ServiceKey,
    host::{engine::Engine, explain::facts},
    policy::Rules,
    registry::publication::Publication,
    snapshot::{Item, Set, kubectl, partition::Partition},
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
            let of_rejected = parsed.rejects().next().is_some() && rejected();
            let main = of_rejected.then(|| ServiceKey::main(&id));
            main.into_iter().chain(services(&id, &parsed, &is_at)).collect::<Vec<_>>()
        };
        for publication in shared.store.read(&id) {
            // A publisher that brings out a bug is no reason to find nothing.
            keys.extend(catch_unwind(AssertUnwindSafe(|| look(&publication))).unwrap_or_default());
        }
    }
    let all = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
    if let Ok(finder) = AhoCorasick::new([ip.to_string()]) {
        let candidates = all.items().filter(|item| finder.is_match(&**item.framed()));
        keys.extend(candidates.filter_map(|item| serves(item, (ip, port))));
    }
    keys.into_iter().collect()
}

/// The service of an entry that has an endpoint at an address.
fn serves(item: &Item, (ip, port): (IpAddr, Option<u16>)) -> Option<ServiceKey> {
    let (key, body) = facts::entry(item)?;
    let spec = kubectl::spec_of("ServiceEntry", body).ok()?;
    let is_at = |(address, own): (&str, u16)| address.parse() == Ok(ip) && port.is_none_or(|port| port == own);
    facts::places(&spec).any(is_at).then_some(key)
}

/// Services of which a provider names this application. Costs a walk over all that was read.
pub fn of_application(engine: &Engine, name: &str) -> Vec<ServiceKey> {
    let (store, mut keys) = (&engine.shared().store, BTreeSet::new());
    let names_it = |parsed: &Parsed| parsed.endpoints.iter().any(|it| it.application() == Some(name));
    for id in store.ids() {
        for parsed in store.read(&id).iter().filter_map(|publication| publication.memo.last::<Parsed>()) {
            keys.extend(services(&id, &parsed, names_it));
        }
    }
    keys.into_iter().collect()
}

/// The service that a dataInfoId, the text of a key or a host names, whether anything is known of it or not; of a host only one
/// that is served.
pub fn service(engine: &Engine, name: &str) -> Option<ServiceKey> {
    match name.split_once("://").filter(|(_, id)| id.contains("#@#")) {
        Some(_) => Some(ServiceKey::of_text(name.into())),
        None if name.contains("#@#") => Some(ServiceKey::main(&name.into())),
        None => by_host(engine, name),
    }
}

/// The main service of a dataInfoId and those that it has beside it.
fn all_of(engine: &Engine, id: &Arc<str>) -> Vec<ServiceKey> {
    let read = engine.shared().store.read(id);
    let read = read.iter().filter_map(|publication| publication.memo.last::<Parsed>());
    let others: BTreeSet<ServiceKey> =
        read.flat_map(|parsed| services(id, &parsed, |_| true).collect::<Vec<_>>()).collect();
    let main = ServiceKey::main(id);
    [main.clone()].into_iter().chain(others.into_iter().filter(|key| *key != main)).collect()
}

/// The service that is served under a host, of ours or of the operator's.
fn by_host(engine: &Engine, host: &str) -> Option<ServiceKey> {
    let (config, host) = (engine.config(), host.to_ascii_lowercase());
    let name = format!("{}/{}", config.namespace, names::resource_name(&host, &config.host_suffix));
    let all = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
    facts::entry(all.find(&name)?).map(|(key, _)| key)
}

fn address(query: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(place) = query.parse::<SocketAddr>() {
        return Some((place.ip().to_canonical(), Some(place.port())));
    }
    query.parse::<IpAddr>().ok().map(|address| (address.to_canonical(), None))
}

/// The services that a publisher is of, by what was read of it for each.
fn services<'a>(
    id: &'a Arc<str>,
    parsed: &'a Parsed,
    is_it: impl Fn(&Parsed) -> bool + 'a,
) -> impl Iterator<Item = ServiceKey> + 'a {
    let main = is_it(parsed).then(|| ServiceKey::main(id));
    let others = parsed.others.iter().flat_map(|others| others.iter()).filter(move |(_, other)| is_it(other));
    main.into_iter().chain(others.map(|(protocol, _)| ServiceKey::beside(id, protocol)))
}
