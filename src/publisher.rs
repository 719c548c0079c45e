//! Turns what is dirty in the store into the next snapshot.
//!
//! One task. A round takes the dirty services, translates just those, and hands streams a new [`View`] if anything
//! that is served changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};

use crate::{
    config::Config,
    gate::Gate,
    model::{self, Millis},
    policy::Policy,
    snapshot::{Changes, Resource, Snapshot, slice_of},
    store::{Entry, Store},
    translate::{
        claims::Claims,
        names,
        payload::{Endpoint, Reject},
        service_entry::{self, EMPTY_LABEL, ID_ANNOTATION, Merged, Shape},
        validate,
    },
    view::{Held, View},
};

/// How often expired removals are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(10);
/// How many VIPs a host may try before it goes without one.
const VIP_CANDIDATES: u8 = 8;

type HostDigest = [u8; 32];

/// What the publisher shares with those who steer it and those who read from it.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// What the registry said.
    pub store: Store,
    /// What the operator decided.
    pub policy: ArcSwap<Policy>,
    /// What streams see.
    pub view: watch::Sender<View>,
    /// The last answered flush.
    pub flushed: watch::Sender<u64>,
    /// Orders that a round looks at.
    pub orders: Mutex<Orders>,
    /// What the last round found.
    pub report: Mutex<Report>,
}

/// Latches and requests, set from outside.
#[derive(Debug, Default, Clone, Copy)]
pub struct Orders {
    /// The first complete view is in.
    pub loaded: bool,
    /// Since when the engine listens.
    pub listening_since: Option<Instant>,
    /// The operator's latch.
    pub frozen: bool,
    /// Flushes asked for so far.
    pub flushes: u64,
}

/// What the last round found; for status, metrics and tests.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Why the served state is not the newest.
    pub held: Option<Held>,
    /// Rounds that looked at services.
    pub rounds: u64,
    /// Services translated, each time counted.
    pub translations: u64,
    /// ServiceEntries encoded.
    pub encodes: u64,
    /// Views handed to streams.
    pub publishes: u64,
    /// Payloads that are not served at present, by reason.
    pub rejects: BTreeMap<Reject, u64>,
    /// Services that Istio would refuse, with the rule; their last good form is kept.
    pub quarantined: BTreeMap<Arc<str>, String>,
    /// Services whose last endpoint went and whose entry is kept for a while.
    pub in_grace: usize,
    /// Services that do not have their first host, since another has it.
    pub hosts_moved: usize,
    /// Hosts that do not have their first VIP, since another has it.
    pub vips_moved: usize,
}

/// A service that is served.
#[derive(Debug)]
struct Served {
    name: Arc<str>,
    digest: HostDigest,
    /// Since when it has no endpoints.
    empty_since: Option<Millis>,
}

/// The publisher's own state.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    gate: Gate,
    served: HashMap<Arc<str>, Served>,
    /// The served services without endpoints, oldest first.
    graces: BTreeSet<(Millis, Arc<str>)>,
    hosts: Claims<Arc<str>, String>,
    vips: Claims<(HostDigest, Arc<str>), IpAddr>,
    rejects: HashMap<Arc<str>, BTreeMap<Reject, u32>>,
    logged: HashMap<Reject, Instant>,
    /// The next snapshot is not made from the present one.
    from_scratch: bool,
    policy_generation: u64,
}

/// One service in one round.
struct Work {
    merged: Merged,
    empty_since: Option<Millis>,
}

impl Publisher {
    /// A publisher that has served nothing yet.
    pub fn new(shared: Arc<Shared>, gate: Gate) -> Self {
        let policy_generation = shared.policy.load().generation();
        Self {
            shared,
            gate,
            served: HashMap::new(),
            graces: BTreeSet::new(),
            hosts: Claims::default(),
            vips: Claims::default(),
            rejects: HashMap::new(),
            logged: HashMap::new(),
            from_scratch: false,
            policy_generation,
        }
    }

    /// Runs until the task is dropped.
    pub async fn run(mut self) {
        let mut next = self.deadline(model::now());
        loop {
            tokio::select! {
                () = self.shared.store.dirty() => {}
                () = sleep_until(next) => {}
            }
            // Never restarted: a steady stream of changes does not put the push off.
            tokio::time::sleep(self.shared.config.push.quiet).await;
            let now = model::now();
            let round = AssertUnwindSafe(|| tokio::task::block_in_place(|| self.round(now)));
            if catch_unwind(round).is_err() {
                // A bug; the panic is in the log. What was served stays until a round over everything went well.
                self.start_over();
                next = Some(Instant::now() + SWEEP);
                continue;
            }
            next = self.deadline(now);
        }
    }

    /// Forgets what was made so far; the next round makes everything again.
    fn start_over(&mut self) {
        self.served.clear();
        self.graces.clear();
        self.hosts = Claims::default();
        self.vips = Claims::default();
        self.from_scratch = true;
        self.shared.store.mark_all_dirty();
    }

    /// When there is something to do although nothing changes.
    fn deadline(&self, now: Millis) -> Option<Instant> {
        let in_millis = |millis: Millis| Instant::now() + Duration::from_millis(millis.max(0) as u64);
        let Orders { frozen, listening_since, .. } = *self.shared.orders.lock();
        let grace = self.graces.first().map(|(since, _)| in_millis(since + self.empty_grace() - now));
        let sweep = (self.shared.store.counts().tombstones > 0).then(|| Instant::now() + SWEEP);
        let gate = if self.shared.view.borrow().complete { None } else { self.gate.opens_at(listening_since) };
        // Frozen, nothing else is due before the thaw, which wakes us.
        if frozen { sweep } else { [grace, sweep, gate].into_iter().flatten().min() }
    }

    fn empty_grace(&self) -> Millis {
        self.shared.config.protect.empty_grace.as_millis() as Millis
    }

    /// Looks at what is dirty and publishes what came of it.
    pub fn round(&mut self, now: Millis) {
        let shared = Arc::clone(&self.shared);
        let Orders { loaded, listening_since, frozen, flushes } = *shared.orders.lock();
        shared.store.expire(now);
        if !frozen {
            let counts = shared.store.counts();
            let was_complete = shared.view.borrow().complete;
            let complete = was_complete || self.gate.is_open(loaded, listening_since, counts.publishers);
            let changes = self.changes(now, was_complete);
            let current = Arc::clone(&shared.view.borrow().service_entries);
            let next = match (std::mem::take(&mut self.from_scratch), changes.is_empty()) {
                (true, _) => Arc::new(Snapshot::default().with(&changes)),
                (false, true) => Arc::clone(&current),
                (false, false) => Arc::new(current.with(&changes)),
            };
            if next.version() != current.version() || complete != was_complete {
                if complete && !was_complete {
                    tracing::info!(services = next.resources(), "the view is complete, serving starts");
                }
                shared.view.send_replace(View { complete, service_entries: next });
                shared.report.lock().publishes += 1;
            }
            if complete {
                self.gate.remember(counts.publishers);
            }
        }
        let mut report = shared.report.lock();
        report.rounds += 1;
        report.held = match (frozen, shared.view.borrow().complete) {
            (true, _) => Some(Held::Frozen),
            (false, false) => Some(Held::NotLoaded),
            (false, true) => None,
        };
        drop(report);
        shared.flushed.send_replace(flushes);
    }

    /// What the dirty services change in what is served.
    fn changes(&mut self, now: Millis, complete: bool) -> Changes {
        let shared = Arc::clone(&self.shared);
        let policy = shared.policy.load_full();
        let mut dirty: BTreeMap<Arc<str>, Vec<Arc<Entry>>> = BTreeMap::new();
        if policy.generation() != self.policy_generation {
            self.policy_generation = policy.generation();
            shared.store.mark_all_dirty();
            dirty.extend(self.served.keys().map(|id| (Arc::clone(id), Vec::new())));
        }
        let over = now - self.empty_grace();
        let expired = self.graces.iter().take_while(|(since, _)| *since <= over);
        dirty.extend(expired.map(|(_, id)| (Arc::clone(id), shared.store.read(id))));
        dirty.extend(shared.store.take_dirty().into_iter().map(|taken| (taken.data_info_id, taken.entries)));

        // Which services are served, then under which host and VIP; either may change that of others.
        let mut work: BTreeMap<Arc<str>, Work> = BTreeMap::new();
        let mut touched: BTreeSet<Arc<str>> = BTreeSet::new();
        for (id, entries) in dirty {
            let merged = service_entry::merge(&entries, &policy);
            self.count_rejects(&id, &merged);
            let known = self.served.get(&id);
            let empty_since = match known {
                _ if !merged.endpoints.is_empty() => None,
                Some(known) if complete => Some(known.empty_since.unwrap_or(now)),
                _ => Some(over),
            };
            if policy.serves(&id) && empty_since.is_none_or(|since| since > over) {
                touched.extend(self.hosts.insert(Arc::clone(&id), names::candidates(&id, &shared.config.host_suffix)));
                touched.insert(Arc::clone(&id));
                work.insert(id, Work { merged, empty_since });
            } else {
                touched.extend(self.hosts.remove(&id));
                touched.insert(id);
            }
        }
        let mut changes = Changes::new();
        for id in touched.clone() {
            touched.extend(self.settle(&id, &mut changes));
        }
        for id in touched {
            if self.hosts.get(&id).is_some() {
                let again = || Work {
                    merged: service_entry::merge(&shared.store.read(&id), &policy),
                    empty_since: self.served.get(&id).and_then(|served| served.empty_since),
                };
                let work = work.remove(&id).unwrap_or_else(again);
                self.translate(&id, work, &policy, &mut changes);
            }
        }
        let mut report = shared.report.lock();
        report.in_grace = self.graces.len();
        report.hosts_moved = self.hosts.moved();
        report.vips_moved = self.vips.moved();
        changes
    }

    fn suffix(&self) -> &str {
        &self.shared.config.host_suffix
    }

    /// Brings a service's VIP claim and old name in line with its host; returns the services whose VIP changed.
    fn settle(&mut self, id: &Arc<str>, changes: &mut Changes) -> Vec<Arc<str>> {
        let name = self.hosts.get(id).map(String::as_str);
        let known = self.served.get(id);
        if known.map(|known| &*known.name) == name {
            return Vec::new();
        }
        let mut moved = Vec::new();
        let mut empty_since = None;
        if let Some(known) = self.served.remove(id) {
            empty_since = known.empty_since;
            changes.insert((slice_of(&known.digest), full_name(&self.shared.config, &known.name).into()), None);
            moved.extend(self.vips.remove(&(known.digest, Arc::clone(id))));
            if name.is_some() {
                tracing::warn!(data_info_id = &**id, was = &*known.name, is = name, "another service took the host");
            }
        }
        let Some(name) = name else {
            if let Some(since) = empty_since {
                self.graces.remove(&(since, Arc::clone(id)));
            }
            self.shared.report.lock().quarantined.remove(id);
            return moved.into_iter().map(|(_, id)| id).collect();
        };
        let digest: HostDigest = Sha256::digest(format!("{name}.{}", self.suffix())).into();
        let candidates = self.shared.config.vip_cidr.map(|range| vip_candidates(&digest, range)).unwrap_or_default();
        moved.extend(self.vips.insert((digest, Arc::clone(id)), candidates));
        self.served.insert(Arc::clone(id), Served { name: name.into(), digest, empty_since });
        moved.into_iter().map(|(_, id)| id).collect()
    }

    fn translate(&mut self, id: &Arc<str>, work: Work, policy: &Policy, changes: &mut Changes) {
        let suffix = self.shared.config.host_suffix.clone();
        let Some(served) = self.served.get_mut(id) else { return };
        if served.empty_since != work.empty_since {
            let key = |since| (since, Arc::clone(id));
            served.empty_since.map(key).map(|key| self.graces.remove(&key));
            self.graces.extend(work.empty_since.map(key));
            served.empty_since = work.empty_since;
        }
        let host = format!("{}.{suffix}", served.name);
        let vip = self.vips.get(&(served.digest, Arc::clone(id))).copied();
        let endpoints: &[Endpoint] = &work.merged.endpoints;
        let entry = service_entry::build(&Shape { host: &host, vip, id, endpoints }, policy);
        let mut report = self.shared.report.lock();
        report.translations += 1;
        if let Err(rule) = validate::service_entry(&entry) {
            tracing::error!(data_info_id = &**id, rule, "Istio would refuse this service; its last good form is kept");
            report.quarantined.insert(Arc::clone(id), rule);
            return;
        }
        report.quarantined.remove(id);
        report.encodes += 1;
        drop(report);
        let empty = work.empty_since.is_some().then(|| (EMPTY_LABEL.to_owned(), "true".to_owned()));
        let annotations = [(ID_ANNOTATION.to_owned(), id.to_string())].into();
        let slice = slice_of(&served.digest);
        let key = full_name(&self.shared.config, &served.name);
        let resource = Resource::service_entry(key.clone(), empty.into_iter().collect(), annotations, &entry);
        changes.insert((slice, key.into()), Some(resource));
    }

    /// Keeps the counts of what is not served, and says once per reason and minute what is new.
    fn count_rejects(&mut self, id: &Arc<str>, merged: &Merged) {
        let before = self.rejects.remove(id).unwrap_or_default();
        let mut report = self.shared.report.lock();
        for (reject, count) in &before {
            let total = report.rejects.entry(*reject).or_default();
            *total -= u64::from(*count);
        }
        for (reject, (count, sample)) in &merged.rejects {
            *report.rejects.entry(*reject).or_default() += u64::from(*count);
            let grew = before.get(reject).is_none_or(|before| before < count);
            let quiet = |at: &Instant| at.elapsed() < Duration::from_secs(60);
            if grew && *reject != Reject::ZeroWeight && !self.logged.get(reject).is_some_and(quiet) {
                self.logged.insert(*reject, Instant::now());
                tracing::warn!(reason = ?reject, data_info_id = &**id, sample = &**sample, "a payload is not served");
            }
        }
        report.rejects.retain(|_, total| *total > 0);
        drop(report);
        if !merged.rejects.is_empty() {
            let counts = merged.rejects.iter().map(|(reject, (count, _))| (*reject, *count)).collect();
            self.rejects.insert(Arc::clone(id), counts);
        }
    }
}

/// A resource's name as istiod splits it: `namespace/name`.
fn full_name(config: &Config, name: &str) -> String {
    format!("{}/{name}", config.namespace)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Addresses in `range` by the host's hash, best first, without the network's own address.
fn vip_candidates(host: &HostDigest, range: IpNet) -> Vec<IpAddr> {
    let mut candidates: Vec<IpAddr> = Vec::new();
    for attempt in 0..VIP_CANDIDATES {
        let digest: [u8; 32] = Sha256::new().chain_update(host).chain_update([attempt]).finalize().into();
        let (high, _) = digest.split_first_chunk::<16>().expect("a SHA-256 has 32 bytes");
        let bits = u128::from_be_bytes(*high);
        let address = match range {
            IpNet::V4(range) => {
                IpAddr::from((u32::from(range.network()) | (bits as u32 & !u32::from(range.netmask()))).to_be_bytes())
            }
            IpNet::V6(range) => {
                IpAddr::from((u128::from(range.network()) | (bits & !u128::from(range.netmask()))).to_be_bytes())
            }
        };
        if address != range.network() && address != range.broadcast() && !candidates.contains(&address) {
            candidates.push(address);
        }
    }
    candidates
}

/// An empty view, before the first round.
pub fn first_view() -> View {
    View { complete: false, service_entries: Arc::new(Snapshot::default()) }
}
