//! From the words of an operator to services.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use aho_corasick::AhoCorasick;
use serde::Serialize;
use serde_json::Value;

use crate::{
    catalog::{key::ServiceKey, report::Report},
    host::{engine::Engine, explain::facts},
    istio::names::SERVICE_LABEL,
    policy::{Globs, Rules},
    registry::publication::Publication,
    snapshot::{Item, Set, kubectl, partition::Partition, resource},
    translate::{
        Parsed, names,
        payload::{self, Address, Client, Endpoint},
        reading::{Reading, readings},
        service_entry,
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
    /// A host that is served, or that services would have.
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
    // A host's own form first: what is not served under it may still be meant.
    let (config, mut ids) = (engine.config(), store.ids());
    ids.extend(dropped(engine));
    let host = query.to_ascii_lowercase();
    let keys = of_host(engine, &host, &ids);
    if !keys.is_empty() {
        return (Found::Host, keys);
    }
    if let Some(address) = address(query) {
        let keys = at(engine, address);
        return (Found::Address(address), keys);
    }
    let known = known(engine, &ids);
    let data_id = |key: &ServiceKey| key.id().split_once("#@#").is_some_and(|(data_id, _)| data_id == query);
    let of_data_id: BTreeSet<ServiceKey> = known.iter().filter(|key| data_id(key)).cloned().collect();
    if !of_data_id.is_empty() {
        let beside = of_data_id.iter().flat_map(|key| all_of(engine, &key.id().into()));
        let all: BTreeSet<ServiceKey> = beside.chain(of_data_id.iter().cloned()).collect();
        return (Found::DataId, all.into_iter().collect());
    }
    let keys = of_application(engine, query);
    if !keys.is_empty() {
        return (Found::Application, keys);
    }
    let keys = of_host(engine, &format!("{host}.{}", config.host_suffix), &ids);
    if !keys.is_empty() {
        return (Found::Host, keys);
    }
    let small = query.to_lowercase();
    let keys: Vec<ServiceKey> = known.into_iter().filter(|key| key.text().to_lowercase().contains(&small)).collect();
    (if keys.is_empty() { Found::Nothing } else { Found::Part }, keys)
}

/// The dataInfoIds of which the last events were dropped, one at each limit: nothing else is known of these.
fn dropped(engine: &Engine) -> impl Iterator<Item = Arc<str>> {
    let dropped = engine.shared().store.dropped().into_values();
    dropped.filter(|it| it.last.matches("#@#").count() == 2).map(|it| it.last.into())
}

/// The keys' texts that the report names, by state.
pub fn named(report: &Report) -> [(&'static str, Vec<&Arc<str>>); 5] {
    [
        ("quarantined", report.quarantined.keys().collect()),
        ("withheld", report.withheld_services.iter().collect()),
        ("waiting", report.waiting_services.iter().collect()),
        ("in-grace", report.graces.keys().collect()),
        ("contested", report.standing_back.keys().collect()),
    ]
}

/// All that have a name here: what the registry has, or lost at a limit, what is served, with publishers or without, and what
/// rounds name. Costs a walk over the metadata of what is served.
fn known(engine: &Engine, ids: &[Arc<str>]) -> BTreeSet<ServiceKey> {
    let mut known: BTreeSet<ServiceKey> = ids.iter().map(ServiceKey::main).collect();
    {
        let report = engine.shared().report.lock();
        let named = named(&report).into_iter().flat_map(|(_, texts)| texts);
        known.extend(named.map(|text| ServiceKey::of_text(Arc::clone(text))).filter(|key| !key.is_entry()));
    }
    let all = Set::new(Arc::clone(&engine.view().service_entries), Partition::WHOLE);
    known.extend(all.items().filter_map(|item| facts::entry(item).map(|(key, _)| key)));
    known
}

/// The services that a host is of: who is served under it, who would rather be, and who would be if the policy let it in or no
/// limit had dropped it. Costs a walk over the dataInfoIds.
fn of_host(engine: &Engine, host: &str, ids: &[Arc<str>]) -> Vec<ServiceKey> {
    let (shared, config) = (engine.shared(), engine.config());
    let mut keys: Vec<ServiceKey> = by_host(engine, host).into_iter().collect();
    if let Some(contest) = shared.report.lock().contested.get(host) {
        keys.extend(
            [&contest.holder].into_iter().chain(&contest.waiting).map(|it| ServiceKey::of_text(Arc::clone(it))),
        );
    }
    let name = host.strip_suffix(&config.host_suffix).and_then(|name| name.strip_suffix('.'));
    match name.map(|name| (name, names::read(name))) {
        Some((_, Some((id, other)))) => {
            let named = ids.iter().filter(|known| known.eq_ignore_ascii_case(&id));
            keys.extend(named.map(|id| other.map_or_else(|| ServiceKey::main(id), |by| ServiceKey::beside(id, by))));
        }
        Some((name, None)) => {
            let is_it = |id: &&Arc<str>| names::candidates(id, None, &config.host_suffix).any(|made| made == name);
            keys.extend(ids.iter().filter(is_it).map(ServiceKey::main));
        }
        None => {}
    }
    let policy = shared.policy.load();
    let overrides = policy.document().overrides.iter().filter(|(_, it)| it.host.as_deref() == Some(host));
    let globs = Globs::new(overrides.map(|(glob, _)| glob.as_str()));
    if !globs.is_empty() {
        let of_override = |id: &&Arc<str>| globs.any(id) && policy.rules(id).host == Some(host);
        keys.extend(ids.iter().filter(of_override).map(ServiceKey::main));
    }
    let mut seen = BTreeSet::new();
    keys.retain(|key| !key.is_entry() && seen.insert(key.clone()));
    keys
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

/// Services of which a provider names this application, excluded ones as well, and those that are served without providers under
/// its label. Costs a walk over all publishers, each read where no round has read it, and one over what is served.
pub fn of_application(engine: &Engine, name: &str) -> Vec<ServiceKey> {
    let (shared, mut keys) = (engine.shared(), BTreeSet::new());
    let (policy, limit) = (shared.policy.load_full(), shared.config.limits.endpoints_per_publisher);
    let names_it = |parsed: &Parsed| parsed.endpoints.iter().any(|it| it.application() == Some(name));
    let mut published = HashSet::new();
    for id in shared.store.ids() {
        let rules = || Rules { keeps: false, ..policy.rules(&id) };
        let read = |it: &Publication| payload::parsed(it, Client::of(&id), &rules(), limit);
        let publications = shared.store.read(&id);
        if !publications.is_empty() {
            published.insert(Arc::clone(&id));
        }
        for publication in publications {
            let read = || catch_unwind(AssertUnwindSafe(|| read(&publication))).unwrap_or_default();
            let parsed = publication.memo.last::<Parsed>().unwrap_or_else(read);
            keys.extend(services(&id, &parsed, names_it));
        }
    }
    let view = engine.view();
    let Ok(finder) = AhoCorasick::new([name]) else { return keys.into_iter().collect() };
    let all = |snapshot| Set::new(Arc::clone(snapshot), Partition::WHOLE);
    let workloads = all(&view.workload_entries);
    let candidates = workloads.items().filter(|item| finder.is_match(&**item.framed()));
    let selected: BTreeSet<String> = candidates.filter_map(|item| selected_by(item, name)).collect();
    let has_label = |spec: &Value| {
        let own = spec["endpoints"].as_array().into_iter().flatten().any(|it| it["labels"]["app"] == name);
        own || facts::selected(spec).is_some_and(|label| selected.contains(label))
    };
    let entries = all(&view.service_entries);
    let candidates = entries.items().filter(|item| !selected.is_empty() || finder.is_match(&**item.framed()));
    // What has publishers was looked at, and they know better.
    let without = candidates.filter_map(facts::entry).filter(|(key, _)| !published.contains(key.id()));
    keys.extend(without.filter_map(|(key, body)| {
        let spec = kubectl::spec_of("ServiceEntry", body).ok()?;
        has_label(&spec).then_some(key)
    }));
    keys.into_iter().collect()
}

/// The label of the service whose WorkloadEntry this is, if it has an application's label.
fn selected_by(item: &Item, name: &str) -> Option<String> {
    let body = resource::read(item.framed()).ok()?.body?.value;
    let label = |label: &str| resource::workload_label(body.clone(), label);
    (*label(&service_entry::workload_label("app"))? == *name).then(|| label(SERVICE_LABEL).map(|it| it.to_string()))?
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

pub(super) fn address(query: &str) -> Option<(IpAddr, Option<u16>)> {
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
