//! Everything that is known of one service at one moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::Value;

use crate::{
    catalog::{assignment::claims::Contest, key::ServiceKey, report::Quarantine},
    config::{Config, Scope},
    host::{engine::Engine, feed::Feed},
    istio::{
        names::{ID_ANNOTATION, PROTOCOL_ANNOTATION},
        rule::{Invalid, Rule},
        validate,
    },
    model::Millis,
    policy::{Policy, Rules},
    registry::{
        publication::Publication,
        store::{Dropped, Taken},
    },
    snapshot::{
        Item, Set, kubectl,
        partition::{Partition, slice_of},
        resource, version_of,
        view::{Held, View},
    },
    translate::{
        names,
        payload::{Client, Rejects},
        reading::{Reading, readings},
        service_entry::{self, EndpointMode, Member, Shape},
    },
    xds::streams::{ClientState, StreamState},
};

/// Publishers of which each payload is looked at.
const LOOKED_AT: usize = 100;
/// Payloads of one of them.
const PAYLOADS: usize = 20;

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
    /// The client's words, if it refused.
    pub error: Option<String>,
    /// The newest state is too large for a response.
    pub too_large: bool,
    /// For how long it owes an answer, in milliseconds.
    pub waits: Option<u64>,
}

/// What there is to know.
#[derive(Debug)]
pub struct Facts {
    /// The service.
    pub key: ServiceKey,
    /// The settings.
    pub config: Arc<Config>,
    /// The policy in force.
    pub policy: Arc<Policy>,
    /// How the data servers are followed, as far as the host says.
    pub feed: Option<Feed>,
    /// What limits dropped.
    pub dropped: BTreeMap<&'static str, Dropped>,
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
    /// Something of it is withheld by the breaker.
    pub withheld: bool,
    /// It waits, since too many came.
    pub waiting: bool,
    /// When it lost its last endpoint, milliseconds since the epoch.
    pub grace: Option<Millis>,
    /// Hosts and addresses that it wants and another has.
    pub contests: Vec<(Arc<str>, Contest<Arc<str>>)>,
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
    /// A problem of its object in Kubernetes, in the API server's words.
    pub kubernetes: Option<String>,
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
        let taken = shared.store.peek(&id);
        let being_read = taken.is_none();
        let Taken { entries, unknown, .. } =
            taken.unwrap_or_else(|| Taken { data_info_id: Arc::clone(&id), entries: Vec::new(), unknown: false });
        let rules = key.rules(&policy);
        let merged = service_entry::merge(&id, &entries, &policy.rules(&id), config.limits.bounds());
        let mut others = merged.others;
        let wanted = match key.other() {
            None => merged.members,
            Some(other) => others.remove(other).unwrap_or_default(),
        };
        let client = Client::of(&id);
        let publisher = |publication: &Arc<Publication>| {
            let body = publication.body();
            let (readings, left_out) = readings(&body, client, &policy.rules(&id), PAYLOADS);
            Publisher { register_id: body.register_id.as_str().to_owned(), readings, left_out }
        };
        let is_at = |publisher: &Publisher| {
            address.is_none_or(|(ip, port)| publisher.readings.iter().any(|reading| reading.is_at(ip, port)))
        };
        let publishers = entries.len();
        let mut entries = entries;
        entries.sort_by(|a, b| a.body().register_id.as_str().cmp(b.body().register_id.as_str()));
        let looked_at: Vec<Publisher> = entries.iter().map(publisher).filter(is_at).take(LOOKED_AT).collect();

        let view = engine.view();
        let all = Set::new(Arc::clone(&view.service_entries), Partition::WHOLE);
        let served = served(key, &policy, &config, &all);
        let invalid = invalid(key, &wanted, &rules, served.as_ref());
        let text = key.text();
        let report = shared.report.lock();
        let contests = report.contested.iter().filter(|(_, contest)| contest.waiting.contains(text));
        let contests = contests.map(|(place, contest)| (Arc::clone(place), contest.clone())).collect();
        let lingering = report.lingering.keys().filter(|place| {
            address.is_some_and(|(ip, port)| place.ip() == ip && port.is_none_or(|port| port == place.port()))
        });
        let lingering = lingering.copied().collect();
        let (quarantine, held) = (report.quarantined.get(text).cloned(), report.held);
        let (withheld, waiting) = (report.withheld_services.contains(text), report.waiting_services.contains(text));
        let grace = report.graces.get(text).copied();
        drop(report);
        let slice = served.as_ref().map(|served| slice_of(&digest(&served.host)));
        let streams = engine.streams(0).iter().map(|stream| told(stream, &view, slice)).collect();
        let wrong = engine.clients().0.into_iter().filter(|client| client.wrong.is_some()).collect();
        let (listening, fenced, feed) = engine.reached();
        let kubernetes = served.as_ref().and_then(|served| {
            let name = served.name.split_once('/').map_or(&*served.name, |(_, name)| name);
            let report = engine.kubernetes()?.report();
            let problem = report.problems.iter().find(|(object, _)| object.rsplit('/').next() == Some(name))?;
            serde_json::to_string(problem.1).ok()
        });
        Self {
            key: key.clone(),
            feed,
            dropped: shared.store.dropped(),
            publishers,
            looked_at,
            unknown,
            being_read,
            wanted,
            rejects: merged.rejects,
            invalid,
            quarantine,
            held,
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
}

fn digest(host: &str) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    Sha256::digest(host).into()
}

/// The host and the item of the entry that says in its annotations that it is this service's, under the hosts that the service may
/// have, with the entry itself, which is not read.
pub fn item<'a>(key: &ServiceKey, policy: &Policy, config: &Config, all: &'a Set) -> Option<(String, &'a Item, Bytes)> {
    let set = key.rules(policy).host.map(str::to_owned);
    let made = names::candidates(key.id(), key.other(), &config.host_suffix)
        .map(|name| format!("{name}.{}", config.host_suffix));
    set.into_iter().chain(made).find_map(|host| {
        let name = format!("{}/{}", config.namespace, names::resource_name(&host, &config.host_suffix));
        let item = all.find(&name)?;
        let field = resource::fields(item.framed().clone()).next()?.ok()?;
        let resource = resource::read(&field).ok()?;
        let annotations = resource.metadata?.annotations;
        let is_its = annotations.get(ID_ANNOTATION).is_some_and(|id| id == key.id())
            && annotations.get(PROTOCOL_ANNOTATION).map(String::as_str) == key.other();
        is_its.then_some((host, item, resource.body?.value))
    })
}

/// What is served of a service.
pub fn served(key: &ServiceKey, policy: &Policy, config: &Config, all: &Set) -> Option<Served> {
    let (host, item, entry) = item(key, policy, config, all)?;
    let body = kubectl::spec_of("ServiceEntry", entry).ok()?;
    let texts = |field: &Value| {
        let all = field.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let endpoints = body["endpoints"].as_array();
    let place = |endpoint: &Value| {
        let port = endpoint["ports"].as_object()?.values().next()?.as_u64()?;
        Some((endpoint["address"].as_str()?.to_owned(), u16::try_from(port).ok()?))
    };
    let places = (config.endpoint_mode == EndpointMode::Inline)
        .then(|| endpoints.into_iter().flatten().filter_map(place).collect());
    Some(Served {
        name: Arc::clone(item.name()),
        version: version_of(item.digest()),
        endpoints: item.endpoints() as usize,
        export_to: texts(&body["exportTo"]),
        host,
        places,
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
        error: state.and_then(|state| state.error.clone()),
        too_large: state.is_some_and(|state| state.too_large),
        waits: state.and_then(|state| state.unacked_millis),
    }
}
