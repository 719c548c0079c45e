//! Everything that is known of one service at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;

use crate::{
    catalog::{assignment::claims::Contest, key::ServiceKey, orders::Orders, report::Quarantine},
    config::{Config, Scope},
    documents::{Name, Shown, Stamp},
    error::quoted,
    host::{documents::date, engine::Engine, feed::Feed},
    istio::{
        names::SERVICE_LABEL,
        rule::{Invalid, Rule},
        validate,
    },
    kubernetes::report::Problem,
    model::Millis,
    policy::{Policy, Rules},
    registry::{
        publication::Publication,
        store::{Dropped, Taken},
    },
    snapshot::{
        Item, Set, Snapshot, kubectl,
        partition::{Partition, slice_of},
        resource, version_of,
        view::{Held, View},
    },
    translate::{
        names,
        payload::{Client, Rejects},
        reading::{Reading, readings},
        service_entry::{self, EndpointMode, Member, Merged, Shape},
    },
    xds::streams::{ClientState, StreamState},
};

/// Publishers of which each payload is looked at.
const LOOKED_AT: usize = 100;
/// Payloads of one of them.
const PAYLOADS: usize = 20;
/// How often a service is looked at that a read is being applied to, and how long after the last time.
const PEEKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(10);

/// The entry of a service as it is served.
#[derive(Debug)]
pub struct Served {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// The host.
    pub host: String,
    /// Hash of its content, as delta clients see it.
    pub version: Arc<str>,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// `spec.exportTo`.
    pub export_to: Vec<String>,
    /// Addresses and ports of its endpoints, where they stand in it.
    pub places: Option<BTreeSet<(String, u16)>>,
}

/// A publisher and what became of its payloads.
#[derive(Debug)]
pub struct Publisher {
    /// Its registerId.
    pub register_id: String,
    /// The first of its payloads.
    pub readings: Vec<Reading>,
    /// How many more it has.
    pub left_out: usize,
}

/// A freeze of what is served.
#[derive(Debug, PartialEq, Eq)]
pub struct Freeze {
    /// By whom, or by what, as the end of a sentence.
    pub says: String,
    /// How it ends.
    pub remedy: &'static str,
}

/// The freeze of what is served, with who ordered it, why and when, as far as the documents say that.
pub fn freeze(orders: Orders, documents: &BTreeMap<Name, Shown>) -> Option<Freeze> {
    let ordered = || {
        let Some(Stamp { by, why, when }) = documents.get(&Name::Orders).and_then(|it| it.stamp.clone()) else {
            return "by an order to all session servers".to_owned();
        };
        let when = date(when);
        let why = if why.is_empty() { String::new() } else { format!(": {}", quoted(&why)) };
        format!("by an order of {} to all session servers, of {when}{why}", quoted(&by))
    };
    let own = || "by an order to this session server alone".to_owned();
    let pushes = || "since the registry has stopped its pushes".to_owned();
    let causes = [orders.ordered.then(ordered), orders.frozen.then(own), orders.stopped.then(pushes)];
    let causes: Vec<String> = causes.into_iter().flatten().collect();
    let remedy = match (orders.ordered || orders.frozen, orders.stopped) {
        (true, false) => "POST /mox/thaw when it may change again",
        (false, true) => "give the registry its pushes back, in its own console; a thaw does not end that",
        _ => "POST /mox/thaw, and give the registry its pushes back",
    };
    (!causes.is_empty()).then(|| Freeze { says: causes.join(", and "), remedy })
}

/// How much of each limit at which events are dropped is used, and what it is.
pub fn used(engine: &Engine) -> BTreeMap<&'static str, (usize, usize)> {
    let (counts, limits) = (engine.shared().store.counts(), &engine.config().limits);
    BTreeMap::from([
        ("services", (counts.services, limits.services)),
        ("publishers", (counts.publishers, limits.publishers)),
        ("bytes", (counts.bytes, limits.bytes)),
        ("endpoints", (counts.endpoints, limits.endpoints)),
    ])
}

/// How far a stream is with ServiceEntries.
#[derive(Debug)]
pub struct Told {
    /// The client's address and its own name for itself.
    pub client: String,
    /// Whether it asked for ServiceEntries.
    pub asked: bool,
    /// Whether the service is in its part.
    pub has_it: bool,
    /// Whether the newest state of its part was sent.
    pub sent: bool,
    /// Whether it was taken.
    pub acked: bool,
    /// Whether anything was taken at all.
    pub ever: bool,
    /// Whether it is told of what changes only, so that its last response says nothing of this service.
    pub delta: bool,
    /// The client's words, if it refused.
    pub error: Option<String>,
    /// The newest state is too large for a response.
    pub too_large: bool,
    /// For how long it owes an answer, in milliseconds.
    pub waits: Option<u64>,
}

/// Everything that there is to know.
#[derive(Debug)]
pub struct Facts {
    /// The service.
    pub key: ServiceKey,
    /// The settings.
    pub config: Arc<Config>,
    /// The policy in force.
    pub policy: Arc<Policy>,
    /// Why the newest document of the policy does not count, where it does not.
    pub policy_refused: Option<String>,
    /// How the data servers are followed, as far as the host says.
    pub feed: Option<Feed>,
    /// What limits dropped.
    pub dropped: BTreeMap<&'static str, Dropped>,
    /// How much of a limit is used, and what it is.
    pub used: BTreeMap<&'static str, (usize, usize)>,
    /// Live publishers, all of them.
    pub publishers: usize,
    /// The first of them.
    pub looked_at: Vec<Publisher>,
    /// Whether it has others that could not be read yet.
    pub unknown: bool,
    /// A read of it is being applied right now.
    pub being_read: bool,
    /// The endpoints that the registry and the policy want it to have.
    pub wanted: Vec<Member>,
    /// Payloads left out, by reason, with a sample.
    pub rejects: Rejects,
    /// Wanted endpoints that Istio would refuse, by rule.
    pub invalid: BTreeMap<Rule, (u32, Invalid)>,
    /// Why its newest form cannot be made.
    pub quarantine: Option<Quarantine>,
    /// Why what is served is not the newest.
    pub held: Option<Held>,
    /// Whether streams are told anything.
    pub shown: bool,
    /// Something of it is withheld by the breaker.
    pub withheld: bool,
    /// The service waits, since too many came.
    pub waiting: bool,
    /// When it lost its last endpoint, milliseconds since the epoch.
    pub grace: Option<Millis>,
    /// Hosts and addresses that it wants and another has.
    pub contests: Vec<(Arc<str>, Contest<Arc<str>>)>,
    /// Who else would rather have the host that it has.
    pub rivals: Option<Contest<Arc<str>>>,
    /// Why what is served is frozen, if it is.
    pub freeze: Option<Freeze>,
    /// What is served of it.
    pub served: Option<Served>,
    /// Whether anybody listens at `mox.listen`.
    pub listening: bool,
    /// Streams are refused, since another session server has fresher data.
    pub fenced: bool,
    /// Each stream.
    pub streams: Vec<Told>,
    /// Clients whose parts make no sense together.
    pub wrong: Vec<ClientState>,
    /// A problem of its object in Kubernetes.
    pub kubernetes: Option<Problem>,
    /// The address that is asked for, with or without a port.
    pub address: Option<(IpAddr, Option<u16>)>,
    /// Addresses and ports that linger, of those asked for.
    pub lingering: Vec<SocketAddr>,
}

impl Facts {
    /// What is known of a service; of its publishers first those at an address, if one is asked for.
    pub fn of(engine: &Engine, key: &ServiceKey, address: Option<(IpAddr, Option<u16>)>) -> Self {
        let shared = engine.shared();
        let (config, policy) = (Arc::clone(&shared.config), shared.policy.load_full());
        let id: Arc<str> = key.id().into();
        // A read of a large service is applied in steps; the next moment has it whole.
        let taken = (0..PEEKS).find_map(|_| {
            let taken = shared.store.peek(&id);
            if taken.is_none() {
                std::thread::sleep(PAUSE);
            }
            taken
        });
        let being_read = taken.is_none();
        let Taken { entries, unknown, .. } =
            taken.unwrap_or_else(|| Taken { data_info_id: Arc::clone(&id), entries: Vec::new(), unknown: false });
        let rules = Rules { keeps: false, ..key.rules(&policy) };
        let of_all = Rules { keeps: false, ..policy.rules(&id) };
        // What a round lives through must not end a page.
        let read = || match policy.serves(&id) {
            true => service_entry::merge(&id, &entries, &of_all, config.limits.bounds()),
            false => Merged::default(),
        };
        let merged = catch_unwind(AssertUnwindSafe(read));
        let broken = merged.is_err();
        let merged = merged.unwrap_or_default();
        let mut others = merged.others;
        let wanted = match key.other() {
            None => merged.members,
            Some(other) => others.remove(other).unwrap_or_default(),
        };
        let client = Client::of(&id);
        let publisher = |publication: &Arc<Publication>| {
            let body = publication.body();
            let wanted = |reading: &Reading| address.is_none_or(|(ip, port)| reading.is_at(ip, port));
            let read = || readings(&body, client, &of_all, PAYLOADS, wanted);
            let (readings, left_out) = catch_unwind(AssertUnwindSafe(read)).unwrap_or_default();
            Publisher { register_id: body.register_id.as_str().to_owned(), readings, left_out }
        };
        let is_at = |publisher: &Publisher| address.is_none() || !publisher.readings.is_empty();
        let publishers = entries.len();
        let mut entries = entries;
        entries.sort_by_cached_key(|entry| entry.body().register_id.as_str().to_owned());
        let looked_at: Vec<Publisher> = entries.iter().map(publisher).filter(is_at).take(LOOKED_AT).collect();

        let view = engine.view();
        let mut served = served(key, &policy, &config, &view.service_entries);
        let made = || invalid(key, &wanted, &rules, served.as_ref());
        let invalid = catch_unwind(AssertUnwindSafe(made)).unwrap_or_default();
        let text = key.text();
        let report = shared.report.lock();
        let places = report.standing_back.get(text).into_iter().flatten();
        let contest = |place: &Arc<str>| Some((Arc::clone(place), report.contested.get(place)?.clone()));
        let contests = places.filter_map(contest).collect();
        let lingering = report.lingering.keys().filter(|place| {
            address.is_some_and(|(ip, port)| place.ip() == ip && port.is_none_or(|port| port == place.port()))
        });
        let lingering = lingering.copied().collect();
        let quarantine = report.quarantined.get(text).cloned().or_else(|| broken.then(Quarantine::by_panic));
        let held = report.held;
        let has_it = |contest: &&Contest<Arc<str>>| contest.holder == *text;
        let of_host = |served: &Served| report.contested.get(&*served.host).filter(has_it).cloned();
        let rivals = served.as_ref().and_then(of_host);
        let (withheld, waiting) = (report.withheld_services.contains(text), report.waiting_services.contains(text));
        let grace = report.graces.get(text).copied();
        drop(report);
        if served.is_none() && (held.is_some() || quarantine.is_some() || unknown) {
            // It may stand where another policy put it.
            served = served_anywhere(key, &config, &view.service_entries);
        }
        if let Some(served) = &mut served
            && config.endpoint_mode == EndpointMode::WorkloadEntry
        {
            let places = workloads(&served.host, &wanted, &config, &view.workload_entries);
            served.endpoints = places.len();
            served.places = Some(places);
        }
        let slice = served.as_ref().map(|served| slice_of(&digest(&served.host)));
        let streams = engine.streams(0).iter().map(|stream| told(stream, &view, slice)).collect();
        let wrong = engine.clients().0.into_iter().filter(|client| client.wrong.is_some()).collect();
        let (listening, fenced, feed) = engine.reached();
        let documents = engine.documents_status().documents;
        let policy_refused = documents.get(&Name::Policy).and_then(|it| Some(it.refused.as_ref()?.detail.clone()));
        let kubernetes = served.as_ref().and_then(|served| {
            let name = served.name.split_once('/').map_or(&*served.name, |(_, name)| name);
            let report = engine.kubernetes()?.report();
            let object = format!("ServiceEntry {name}");
            let problem = report.problems.iter().find(|(known, _)| **known == object)?;
            Some(problem.1.clone())
        });
        Self {
            key: key.clone(),
            policy_refused,
            feed,
            dropped: shared.store.dropped(),
            used: used(engine),
            rivals,
            freeze: freeze(engine.orders(), &documents),
            publishers,
            looked_at,
            unknown,
            being_read,
            wanted,
            rejects: merged.rejects,
            invalid,
            quarantine,
            held,
            shown: view.shown,
            withheld,
            waiting,
            grace,
            contests,
            served,
            listening,
            fenced,
            streams,
            wrong,
            kubernetes,
            address,
            lingering,
            policy,
            config,
        }
    }

    /// Whether only publishers of this session server are served.
    pub fn is_local(&self) -> bool {
        self.config.scope == Scope::Local
    }

    /// Whether the endpoints are served that the registry and the policy want.
    pub fn is_as_wanted(&self) -> bool {
        let Some(served) = &self.served else { return self.wanted.is_empty() };
        // Endpoints that Istio would refuse are wanted and left out.
        let invalid: u32 = self.invalid.values().map(|(count, _)| count).sum();
        let is_whole = served.endpoints + invalid as usize == self.wanted.len();
        let wanted = || self.wanted.iter().map(|it| (it.endpoint().address.to_string(), it.endpoint().port)).collect();
        is_whole && served.places.as_ref().is_none_or(|places| places.is_subset(&wanted()))
    }
}

fn digest(host: &str) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    Sha256::digest(host).into()
}

/// The entry that says in its annotations that it is this service's, under the hosts that the service may have.
fn served(key: &ServiceKey, policy: &Policy, config: &Config, snapshot: &Arc<Snapshot>) -> Option<Served> {
    let all = Set::new(Arc::clone(snapshot), Partition::WHOLE);
    let set = key.rules(policy).host.map(str::to_owned);
    let made = names::candidates(key.id(), key.other(), &config.host_suffix)
        .map(|name| format!("{name}.{}", config.host_suffix));
    set.into_iter().chain(made).find_map(|host| {
        let name = format!("{}/{}", config.namespace, names::resource_name(&host, &config.host_suffix));
        served_by(all.find(&name)?, key, config)
    })
}

/// The same under whatever host. Costs a walk over everything that is served.
fn served_anywhere(key: &ServiceKey, config: &Config, snapshot: &Arc<Snapshot>) -> Option<Served> {
    let (all, id) = (Set::new(Arc::clone(snapshot), Partition::WHOLE), key.id().as_bytes());
    let finder = aho_corasick::AhoCorasick::new([id]).ok()?;
    all.items().filter(|item| finder.is_match(&**item.framed())).find_map(|item| served_by(item, key, config))
}

/// An entry as it is served, if it is the service's.
fn served_by(item: &Item, key: &ServiceKey, config: &Config) -> Option<Served> {
    let (_, body) = entry(item).filter(|(own, _)| own == key)?;
    let spec = kubectl::spec_of("ServiceEntry", body).ok()?;
    let texts = |field: &Value| {
        let all = field.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let places = (config.endpoint_mode == EndpointMode::Inline)
        .then(|| places(&spec).map(|(address, port)| (address.to_owned(), port)).collect());
    Some(Served {
        name: Arc::clone(item.name()),
        version: version_of(item.digest()),
        endpoints: item.endpoints() as usize,
        export_to: texts(&spec["exportTo"]),
        host: texts(&spec["hosts"]).into_iter().next()?,
        places,
    })
}

/// The wanted endpoints that have a WorkloadEntry.
fn workloads(host: &str, wanted: &[Member], config: &Config, snapshot: &Arc<Snapshot>) -> BTreeSet<(String, u16)> {
    let all = Set::new(Arc::clone(snapshot), Partition::WHOLE);
    let has = |member: &&Member| {
        let name = format!("{}/{}", config.namespace, service_entry::workload_name(host, member));
        all.find(&name).is_some()
    };
    wanted.iter().filter(has).map(|it| (it.endpoint().address.to_string(), it.endpoint().port)).collect()
}

/// The service of an entry, and the entry as it is encoded; `None`: it is an application's.
pub fn entry(item: &Item) -> Option<(ServiceKey, Bytes)> {
    let resource = resource::read(item.framed()).ok()?;
    Some((ServiceKey::annotated(&resource.metadata?.annotations)?, resource.body?.value))
}

/// The value of the label by which a ServiceEntry selects its WorkloadEntries.
pub fn selected(spec: &Value) -> Option<&str> {
    spec["workloadSelector"]["labels"][SERVICE_LABEL].as_str()
}

/// Addresses and ports of the endpoints that stand in a `spec`.
pub fn places(spec: &Value) -> impl Iterator<Item = (&str, u16)> {
    spec["endpoints"].as_array().into_iter().flatten().filter_map(|endpoint| {
        let port = endpoint["ports"].as_object()?.values().next()?.as_u64()?;
        Some((endpoint["address"].as_str()?, u16::try_from(port).ok()?))
    })
}

/// The wanted endpoints that Istio would refuse.
fn invalid(
    key: &ServiceKey,
    wanted: &[Member],
    rules: &Rules<'_>,
    served: Option<&Served>,
) -> BTreeMap<Rule, (u32, Invalid)> {
    let host = served.map_or("a.b", |served| &served.host);
    let (id, other, mode) = (key.id(), key.other(), EndpointMode::Inline);
    let mut entry = service_entry::build(&Shape { host, vips: &[], id, other, members: wanted, mode }, rules);
    validate::keep_valid_endpoints(&mut entry)
}

/// How far a stream is. `slice`: where the service is, if it is served.
fn told(stream: &StreamState, view: &View, slice: Option<usize>) -> Told {
    let of_entries = stream.types.iter().find(|(url, _)| url.ends_with("/ServiceEntry"));
    let newest = version_of(Set::new(Arc::clone(&view.service_entries), stream.partition).sum());
    let state = of_entries.map(|(_, state)| state);
    let is = |version: Option<&Arc<str>>| version == Some(&newest);
    let peer = stream.peer.map_or_else(|| "?".to_owned(), |peer| peer.ip().to_string());
    Told {
        client: format!("{} ({peer})", if stream.node.is_empty() { "unnamed" } else { &stream.node }),
        asked: state.is_some(),
        has_it: slice.is_none_or(|slice| stream.partition.slices().contains(&slice)),
        sent: is(state.and_then(|state| state.sent.as_ref())),
        acked: is(state.and_then(|state| state.acked.as_ref())),
        ever: state.is_some_and(|state| state.acked.is_some()),
        delta: stream.delta,
        error: state.and_then(|state| state.error.clone()),
        too_large: state.is_some_and(|state| state.too_large),
        waits: state.and_then(|state| state.unacked_millis),
    }
}
