//! The services that are served, and what a change of the registry changes in their resources.
//!
//! Who is served under which host and VIP depends on the set of services ([`Claims`]); everything else of a service
//! depends on itself alone, so a round translates what is dirty and those whose host or VIP moved.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::{
    breaker::{Breaker, Totals, Verdict},
    digest::prefix,
    direct::Direct,
    istio::{
        names::{EMPTY_LABEL, ID_ANNOTATION, REGISTER_ID_ANNOTATION},
        rule::{Invalid, Rule},
        validate,
    },
    model::Millis,
    policy::{Policy, Rules},
    proto::istio::networking::v1alpha3::{ServiceEntry, ServicePort},
    publisher::{Quarantined, Shared},
    registry::store::{Entry, Taken},
    snapshot::{Changes, Resource, partition::slice_of},
    state::LastService,
    translate::{
        claims::Claims,
        names,
        payload::{Address, Reject},
        service_entry::{self, EndpointMode, Member, Merged, Shape},
    },
    unknown::Unknown,
};

/// How many VIPs a host may try before it goes without one.
const VIP_CANDIDATES: u8 = 8;

type HostDigest = [u8; 32];

/// What is not served of a service, counted by reason and with a sample.
type Rejects = BTreeMap<Reject, (u32, Box<str>)>;

/// What a round changes, by type.
#[derive(Debug, Default)]
pub struct RoundChanges {
    /// In ServiceEntries.
    pub service_entries: Changes,
    /// In WorkloadEntries.
    pub workload_entries: Changes,
    /// In DestinationRules.
    pub destination_rules: Changes,
    /// How many resources were encoded for it.
    pub encodes: u64,
}

/// How far a round may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The registry's view is not complete: nothing is known to be gone.
    Gathering,
    /// It has just become complete, and is judged against the last good state.
    Completed,
    /// What is new is judged against what is served.
    Live,
}

/// A service that is served.
#[derive(Debug)]
struct Served {
    host: Box<str>,
    digest: HostDigest,
    /// Since when it has no endpoints.
    empty_since: Option<Millis>,
    /// Its endpoints, by address and port.
    members: Vec<Member>,
    /// What else its resources were made from; `None` before they were.
    form: Option<Form>,
    /// Its WorkloadEntries, where there are any.
    workloads: Workloads,
}

/// What a service's resources are made from beside its id, host and endpoints.
#[derive(Debug, PartialEq)]
struct Form {
    vip: Option<IpAddr>,
    port: ServicePort,
    export_to: Box<[String]>,
    dns: bool,
    empty: bool,
}

impl Served {
    fn slice(&self) -> usize {
        slice_of(&self.digest)
    }
}

/// The WorkloadEntries of a service as they were made last.
#[derive(Debug, Default)]
struct Workloads {
    port_name: Box<str>,
    made: BTreeMap<(Address, u16), (Arc<str>, Member)>,
}

/// One service in one round.
struct Work {
    members: Vec<Member>,
    /// The policy serves it.
    allowed: bool,
}

/// Every service that is served.
#[derive(Debug)]
pub struct Services {
    shared: Arc<Shared>,
    served: HashMap<Arc<str>, Served>,
    totals: Totals,
    breaker: Breaker,
    /// Services whose removals are withheld.
    withheld: BTreeSet<Arc<str>>,
    /// Services that could not be read yet: nothing goes from them until they are.
    unknown: Unknown,
    /// The services of the last good state, until the first complete view was judged against it.
    last_good: BTreeMap<Arc<str>, LastService>,
    /// Entries by application, made of the services' endpoints; `None` where the policy wants none.
    direct: Option<Direct>,
    /// The served services without endpoints, oldest first.
    graces: BTreeSet<(Millis, Arc<str>)>,
    /// Whole hosts.
    hosts: Claims<Arc<str>, String>,
    /// Hosts that the policy sets; what a claim was made with.
    set_hosts: HashMap<Arc<str>, Box<str>>,
    vips: Claims<(HostDigest, Arc<str>), IpAddr>,
    rejects: HashMap<Arc<str>, BTreeMap<Reject, u32>>,
    /// Endpoints left out by Istio's rules.
    left_out: HashMap<Arc<str>, BTreeMap<Rule, u32>>,
    logged: HashMap<Reject, Instant>,
    /// The policy that everything was made under; `None` before the first round, which makes everything.
    policy: Option<Arc<Policy>>,
}

impl Services {
    /// Those of the last good state.
    pub fn new(shared: Arc<Shared>, last_good: BTreeMap<Arc<str>, LastService>) -> Self {
        let breaker = Breaker::new(shared.config.protect.clone());
        Self {
            shared,
            served: HashMap::new(),
            totals: Totals::default(),
            breaker,
            withheld: BTreeSet::new(),
            unknown: Unknown::default(),
            last_good,
            direct: None,
            graces: BTreeSet::new(),
            hosts: Claims::default(),
            set_hosts: HashMap::new(),
            vips: Claims::default(),
            rejects: HashMap::new(),
            left_out: HashMap::new(),
            logged: HashMap::new(),
            policy: None,
        }
    }

    /// Everything that is served now, as a start from nothing would find it.
    pub fn as_last_good(&self) -> BTreeMap<Arc<str>, LastService> {
        let last = |served: &Served| LastService { members: served.members.clone(), empty_since: served.empty_since };
        // Those that were not looked at yet, also.
        let mut all = self.last_good.clone();
        all.extend(self.served.iter().map(|(id, served)| (Arc::clone(id), last(served))));
        all
    }

    /// The served services without endpoints, and since when.
    pub fn empty(&self) -> BTreeMap<Arc<str>, Millis> {
        self.graces.iter().map(|(since, id)| (Arc::clone(id), *since)).collect()
    }

    /// The breaker that judges removals.
    pub fn breaker(&mut self) -> &mut Breaker {
        &mut self.breaker
    }

    /// When something is to be done although nothing changes.
    pub fn deadline(&self) -> Option<Millis> {
        let grace = self.graces.first().map(|(since, _)| since + self.empty_grace());
        [grace, self.breaker.deadline()].into_iter().flatten().min()
    }

    fn empty_grace(&self) -> Millis {
        self.shared.config.protect.empty_grace.as_millis() as Millis
    }

    /// What the dirty services change in what is served.
    pub fn changes(&mut self, now: Millis, phase: Phase) -> RoundChanges {
        let policy = self.shared.policy.load_full();
        let mut work: BTreeMap<Arc<str>, Work> = BTreeMap::new();
        for (id, entries) in self.dirty(now, phase, &policy) {
            let Some((mut wanted, rejects)) = self.wanted(&id, &entries, &policy) else { continue };
            self.count_rejects(&id, &rejects);
            // Before removals are judged, since of such a service none is known.
            if self.unknown.contains(&id) && wanted.allowed {
                self.keep_served(&id, &mut wanted);
            }
            work.insert(id, wanted);
        }
        let withhold = self.judge(now, phase, &policy, &mut work);

        // Which services are served, then under which host and VIP; either may change that of others.
        let over = now - self.empty_grace();
        let mut touched: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut empty: HashMap<Arc<str>, Millis> = HashMap::new();
        for (id, work) in &mut work {
            if withhold {
                self.withhold(id, work);
            }
            let known = self.served.get(id);
            let since = match known {
                _ if !work.members.is_empty() => None,
                Some(known) => Some(known.empty_since.unwrap_or(now)),
                None => Some(self.last_good.get(id).map_or(over, |last| last.empty_since.unwrap_or(now))),
            };
            if work.allowed && since.is_none_or(|since| since > over) {
                touched.extend(self.claim(id, &policy.rules(id)));
                empty.extend(since.map(|since| (Arc::clone(id), since)));
            } else {
                touched.extend(self.hosts.remove(id));
                self.set_hosts.remove(id);
            }
            touched.insert(Arc::clone(id));
        }
        let mut changes = RoundChanges::default();
        for id in touched.clone() {
            touched.extend(self.settle(&id, &mut changes));
        }
        for id in touched {
            let Some(served) = self.served.get(&id) else { continue };
            let (members, since) = match work.remove(&id) {
                Some(work) => (work.members, empty.get(&id).copied()),
                // Only its host or VIP is another.
                None => (served.members.clone(), served.empty_since),
            };
            self.translate(&id, members, since, &policy, &mut changes);
        }
        if let Some(direct) = &mut self.direct {
            direct.changes(&self.shared.config, &policy, &mut changes);
        }
        if !policy.has_direct() {
            self.direct = None;
        }
        if phase != Phase::Gathering {
            self.last_good.clear();
        }
        let is_served = |id: &str| self.served.get(id).is_some_and(|served| !served.members.is_empty());
        let unknown = if phase == Phase::Gathering { None } else { self.unknown.report(is_served) };
        let mut report = self.shared.report.lock();
        if let Some(unknown) = unknown {
            report.unknown = unknown;
        }
        report.encodes += changes.encodes;
        report.direct = self.direct.as_ref().map(Direct::counts);
        report.in_grace = self.graces.len();
        report.hosts_moved = self.hosts.moved();
        report.vips_moved = self.vips.moved();
        report.withheld = self.breaker.held();
        let mut quarantined_by: BTreeMap<&'static str, u64> = BTreeMap::new();
        report.quarantined.values().for_each(|why| *quarantined_by.entry(why.reason).or_default() += 1);
        report.quarantined_by = quarantined_by;
        changes
    }

    /// What the registry and the policy want of a service, and what was left out of it.
    fn wanted(&self, id: &Arc<str>, entries: &[Arc<Entry>], policy: &Policy) -> Option<(Work, Rejects)> {
        if !policy.serves(id) {
            return Some((Work { members: Vec::new(), allowed: false }, Rejects::new()));
        }
        let Merged { members, rejects } = self.guarded(id, || service_entry::merge(entries, &policy.rules(id)))?;
        Some((Work { members, allowed: true }, rejects))
    }

    /// Services to look at, with their live publishers.
    fn dirty(&mut self, now: Millis, phase: Phase, policy: &Arc<Policy>) -> BTreeMap<Arc<str>, Vec<Arc<Entry>>> {
        let store = &self.shared.store;
        let mut dirty: BTreeMap<Arc<str>, Vec<Arc<Entry>>> = BTreeMap::new();
        if self.policy.as_ref().is_none_or(|before| !Arc::ptr_eq(before, policy)) {
            let before = self.policy.replace(Arc::clone(policy));
            let before = before.as_deref();
            let touched = |id: &str| before.is_none_or(|before| touches(before, policy, id));
            store.mark_dirty(touched);
            match &mut self.direct {
                Some(_) if before.is_some_and(|before| policy.makes_direct_as(before)) => {}
                Some(direct) => direct.touch_all(),
                None if policy.has_direct() => {
                    let mut direct = Direct::default();
                    self.served.iter().for_each(|(id, served)| direct.update(id, &[], &served.members));
                    self.direct = Some(direct);
                }
                None => {}
            }
            let known = self.served.keys().chain(self.last_good.keys()).filter(|id| touched(id));
            dirty.extend(known.map(|id| (Arc::clone(id), Vec::new())));
        }
        let over = now - self.empty_grace();
        let expired = self.graces.iter().take_while(|(since, _)| *since <= over).map(|(_, id)| id);
        let again = if phase == Phase::Completed { Some(self.withheld.iter()) } else { None };
        let again: Vec<&Arc<str>> = expired.chain(again.into_iter().flatten()).collect();
        dirty.extend(again.into_iter().map(|id| (Arc::clone(id), store.read(id))));
        for Taken { data_info_id, entries, unknown } in store.take_dirty() {
            self.unknown.note(&data_info_id, unknown);
            dirty.insert(data_info_id, entries);
        }
        dirty
    }

    /// Whether removals are to be withheld. Adds to the work what was withheld and is not any more.
    fn judge(&mut self, now: Millis, phase: Phase, policy: &Policy, work: &mut BTreeMap<Arc<str>, Work>) -> bool {
        match phase {
            Phase::Gathering => return true,
            Phase::Completed if self.last_good.is_empty() => {
                self.withheld.clear();
                return false;
            }
            Phase::Completed => {
                let counts = self.last_good.iter().map(|(id, last)| (Arc::clone(id), last.members.len()));
                self.breaker.begin_with(now, counts);
            }
            Phase::Live => self.breaker.begin(now, self.totals),
        }
        for (id, work) in &*work {
            let served = match phase {
                Phase::Live => self.served.get(id).map_or(0, |served| served.members.len()),
                // What is not in the last good state was not served.
                _ => 0,
            };
            self.breaker.note(id, served, work.members.len());
        }
        if phase == Phase::Completed {
            // Gathered before, and no part of the last good state.
            let gathered =
                self.served.iter().filter(|(id, _)| !self.last_good.contains_key(*id) && !work.contains_key(*id));
            gathered.for_each(|(id, served)| self.breaker.note(id, 0, served.members.len()));
        }
        let was_held = self.breaker.held().is_some();
        match self.breaker.judge(now) {
            Verdict::Hold => {
                if !was_held {
                    let lost = self.breaker.held().unwrap_or_default();
                    tracing::error!(
                        services = lost.services,
                        endpoints = lost.endpoints,
                        "mass deletion: what is missing stays served until it is back, is released, or \
                         mox.protect.mass-delete-hold is over"
                    );
                }
                true
            }
            Verdict::Pass => {
                if phase == Phase::Completed {
                    self.withheld.clear();
                }
                false
            }
            Verdict::Over(why) => {
                tracing::warn!(why, services = self.withheld.len(), "removals are no longer withheld");
                for id in std::mem::take(&mut self.withheld) {
                    if let btree_map::Entry::Vacant(place) = work.entry(id)
                        && let Some((wanted, _)) =
                            self.wanted(place.key(), &self.shared.store.read(place.key()), policy)
                    {
                        place.insert(wanted);
                    }
                }
                false
            }
        }
    }

    /// Withholds what would go from a service.
    fn withhold(&mut self, id: &Arc<str>, work: &mut Work) {
        let Some(missing) = self.keep_served(id, work) else { return };
        if missing == 0 && work.allowed {
            self.withheld.remove(id);
        } else {
            work.allowed = true;
            self.withheld.insert(Arc::clone(id));
        }
    }

    /// Keeps what is served of a service beside what the registry wants, and returns how many endpoints are not wanted. Before
    /// anything is served the last good state counts.
    fn keep_served(&self, id: &Arc<str>, work: &mut Work) -> Option<usize> {
        let last_good = self.last_good.get(id).map(|last| &last.members);
        let kept = self.served.get(id).map(|served| &served.members).or(last_good)?;
        let wanted: BTreeSet<_> = work.members.iter().map(Member::key).collect();
        let missing: Vec<Member> = kept.iter().filter(|member| !wanted.contains(&member.key())).cloned().collect();
        drop(wanted);
        let count = missing.len();
        if count > 0 {
            work.members.extend(missing);
            work.members.sort_by(|a, b| a.key().cmp(&b.key()));
        }
        Some(count)
    }

    /// Runs one service's part of a round: a bug that one service's data brings out must not hold back the others.
    fn guarded<T>(&self, id: &Arc<str>, part: impl FnOnce() -> T) -> Option<T> {
        let done = catch_unwind(AssertUnwindSafe(part)).ok();
        if done.is_none() {
            self.quarantine(id, Quarantined { reason: "panic", detail: "a bug; the log says where".to_owned() });
        }
        done
    }

    fn quarantine(&self, id: &Arc<str>, why: Quarantined) {
        let Quarantined { reason, detail } = &why;
        tracing::error!(
            data_info_id = &**id,
            reason,
            detail,
            "a service is not served anew; its last good form is kept"
        );
        self.shared.report.lock().quarantined.insert(Arc::clone(id), why);
    }

    /// Claims a host for a service; returns those whose host changed.
    fn claim(&mut self, id: &Arc<str>, rules: &Rules<'_>) -> Vec<Arc<str>> {
        let mut changed = Vec::new();
        let suffix = &self.shared.config.host_suffix;
        let set = rules.host.filter(|host| !names::is_application(&names::resource_name(host, suffix)));
        if self.set_hosts.get(id).map(|host| &**host) != set {
            changed.extend(self.hosts.remove(id));
            self.set_hosts.remove(id);
            self.set_hosts.extend(set.map(|host| (Arc::clone(id), host.into())));
        }
        let made = names::candidates(id, suffix).map(|name| format!("{name}.{suffix}"));
        changed.extend(self.hosts.insert(Arc::clone(id), set.map(str::to_owned).into_iter().chain(made)));
        changed
    }

    /// A resource's name as istiod splits it: `namespace/name`.
    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.shared.config.namespace)
    }

    fn service_name(&self, host: &str) -> String {
        self.full_name(&names::resource_name(host, &self.shared.config.host_suffix))
    }

    /// Brings a service's VIP claim and old name in line with its host; returns the services whose VIP changed.
    fn settle(&mut self, id: &Arc<str>, changes: &mut RoundChanges) -> Vec<Arc<str>> {
        let host = self.hosts.get(id).map(String::as_str);
        let known = self.served.get(id);
        if known.map(|known| &*known.host) == host {
            return Vec::new();
        }
        let mut moved = Vec::new();
        let host: Option<Box<str>> = host.map(Into::into);
        let known = self.served.remove(id);
        if let Some(known) = &known {
            let slice = known.slice();
            changes.service_entries.insert((slice, self.service_name(&known.host).into()), None);
            let gone = known.workloads.made.values().map(|(name, _)| ((slice, Arc::clone(name)), None));
            changes.workload_entries.extend(gone);
            moved.extend(self.vips.remove(&(known.digest, Arc::clone(id))));
            if let Some(host) = &host {
                tracing::warn!(
                    data_info_id = &**id,
                    was = &*known.host,
                    is = &**host,
                    "the service has another host now"
                );
            }
        }
        let (members, empty_since) = known.map(|known| (known.members, known.empty_since)).unwrap_or_default();
        let Some(host) = host else {
            if let Some(since) = empty_since {
                self.graces.remove(&(since, Arc::clone(id)));
            }
            self.count(members.len(), 0);
            self.direct.iter_mut().for_each(|direct| direct.update(id, &members, &[]));
            self.shared.report.lock().quarantined.remove(id);
            self.count_left_out(id, BTreeMap::new());
            return moved.into_iter().map(|(_, id)| id).collect();
        };
        let digest: HostDigest = Sha256::digest(&*host).into();
        let candidates = self.shared.config.vip_cidr.map(|range| vip_candidates(&digest, range)).unwrap_or_default();
        moved.extend(self.vips.insert((digest, Arc::clone(id)), candidates));
        let workloads = Workloads::default();
        let served = Served { host, digest, empty_since, members, form: None, workloads };
        self.served.insert(Arc::clone(id), served);
        moved.into_iter().map(|(_, id)| id).collect()
    }

    /// Keeps the totals when a service has another number of endpoints.
    fn count(&mut self, before: usize, after: usize) {
        self.totals.endpoints = self.totals.endpoints - before + after;
        self.totals.services = self.totals.services - usize::from(before > 0) + usize::from(after > 0);
    }

    fn translate(
        &mut self,
        id: &Arc<str>,
        members: Vec<Member>,
        empty_since: Option<Millis>,
        policy: &Policy,
        changes: &mut RoundChanges,
    ) {
        let Some(served) = self.served.get_mut(id) else { return };
        if served.empty_since != empty_since {
            let key = |since| (since, Arc::clone(id));
            served.empty_since.map(key).map(|key| self.graces.remove(&key));
            self.graces.extend(empty_since.map(key));
            served.empty_since = empty_since;
        }
        let rules = policy.rules(id);
        let form = Form {
            vip: self.vips.get(&(served.digest, Arc::clone(id))).copied(),
            port: service_entry::port(id, &rules),
            export_to: rules.export_to.into(),
            dns: rules.dns,
            empty: empty_since.is_some(),
        };
        if served.form.as_ref() == Some(&form) && served.members == members {
            self.shared.report.lock().quarantined.remove(id);
            return;
        }
        self.shared.report.lock().translations += 1;
        let made = self.guarded(id, || self.make(id, &members, &form, &rules));
        match made {
            None => {}
            Some(Err(invalid)) => {
                let detail = invalid.to_string();
                self.quarantine(id, Quarantined { reason: invalid.rule.name(), detail });
            }
            Some(Ok(made)) => {
                let Some(served) = self.served.get_mut(id) else { return };
                self.direct.iter_mut().for_each(|direct| direct.update(id, &served.members, &members));
                let (before, after) = (served.members.len(), members.len());
                served.members = members;
                served.workloads = made.workloads;
                served.form = Some(form);
                self.count(before, after);
                self.count_left_out(id, made.left_out);
                let mut report = self.shared.report.lock();
                report.quarantined.remove(id);
                changes.encodes += made.changes.encodes;
                changes.service_entries.extend(made.changes.service_entries);
                changes.workload_entries.extend(made.changes.workload_entries);
            }
        }
    }

    /// The resources of a service, checked and encoded; an error is the rule of Istio's that they would break.
    fn make(&self, id: &Arc<str>, members: &[Member], form: &Form, rules: &Rules<'_>) -> Result<Made, Invalid> {
        let served = &self.served[id];
        let (host, mode) = (&served.host, self.shared.config.endpoint_mode);
        let mut entry = service_entry::build(&Shape { host, vip: form.vip, id, members, mode }, rules);
        let mut made = Made { left_out: validate::keep_valid_endpoints(&mut entry), ..Made::default() };
        let labels = form.empty.then(|| (EMPTY_LABEL.to_owned(), "true".to_owned())).into_iter().collect();
        let annotations = [(ID_ANNOTATION.to_owned(), id.to_string())].into();
        let name = self.service_name(host);
        validate::metadata(&name, &labels, &annotations)?;
        validate::service_entry(&entry, &self.shared.config.namespace)?;
        let resource = Resource::service_entry(name.clone(), labels, annotations, &entry);
        made.changes.encodes += 1;
        made.changes.service_entries.insert((served.slice(), name.into()), Some(resource));
        if mode == EndpointMode::WorkloadEntry {
            self.make_workloads(id, served, members, &entry, &mut made);
        }
        Ok(made)
    }

    /// Encodes the WorkloadEntries that differ from what was made last.
    fn make_workloads(
        &self,
        id: &Arc<str>,
        served: &Served,
        members: &[Member],
        service: &ServiceEntry,
        made: &mut Made,
    ) {
        let port_name = &*service.ports[0].name;
        let same_port = *served.workloads.port_name == *port_name;
        for member in members {
            let key = (member.endpoint().address.clone(), member.endpoint().port);
            let known = served.workloads.made.get(&key);
            if let Some((name, known)) = known.filter(|(_, known)| same_port && known == member) {
                made.workloads.made.insert(key, (Arc::clone(name), known.clone()));
                continue;
            }
            let name: Arc<str> = self.full_name(&service_entry::workload_name(&served.host, member)).into();
            let entry = service_entry::workload_entry(&served.host, member, port_name);
            if let Err(invalid) = validate::endpoint(&entry, service).and_then(|()| validate::workload_entry(&entry)) {
                made.left_out.entry(invalid.rule).or_insert((0, invalid)).0 += 1;
                continue;
            }
            let annotations = [(ID_ANNOTATION, &**id), (REGISTER_ID_ANNOTATION, member.register_id())]
                .map(|(key, value)| (key.to_owned(), value.to_owned()));
            let resource = Resource::workload_entry(name.to_string(), annotations.into(), &entry);
            made.changes.encodes += 1;
            made.changes.workload_entries.insert((served.slice(), Arc::clone(&name)), Some(resource));
            made.workloads.made.insert(key, (name, member.clone()));
        }
        let kept: BTreeSet<&Arc<str>> = made.workloads.made.values().map(|(name, _)| name).collect();
        let gone = served.workloads.made.values().map(|(name, _)| name).filter(|name| !kept.contains(name));
        made.changes.workload_entries.extend(gone.map(|name| ((served.slice(), Arc::clone(name)), None)));
        made.workloads.port_name = port_name.into();
    }

    /// Keeps the counts of endpoints that break one of Istio's rules. What cannot be served was left out before, so each is
    /// a bug here.
    fn count_left_out(&mut self, id: &Arc<str>, left_out: BTreeMap<Rule, (u32, Invalid)>) {
        let before = self.left_out.remove(id).unwrap_or_default();
        if before.is_empty() && left_out.is_empty() {
            return;
        }
        let mut report = self.shared.report.lock();
        for (rule, count) in &before {
            *report.invalid_endpoints.entry(*rule).or_default() -= u64::from(*count);
        }
        for (rule, (count, invalid)) in &left_out {
            *report.invalid_endpoints.entry(*rule).or_default() += u64::from(*count);
            if !before.contains_key(rule) {
                tracing::error!(data_info_id = &**id, count, %invalid, "Istio would refuse endpoints; they are left out");
            }
        }
        report.invalid_endpoints.retain(|_, total| *total > 0);
        drop(report);
        if !left_out.is_empty() {
            let counts = left_out.into_iter().map(|(rule, (count, _))| (rule, count)).collect();
            self.left_out.insert(Arc::clone(id), counts);
        }
    }

    /// Keeps the counts of what is not served, and says once per reason and minute what is new.
    fn count_rejects(&mut self, id: &Arc<str>, rejects: &Rejects) {
        let before = self.rejects.remove(id).unwrap_or_default();
        let mut report = self.shared.report.lock();
        for (reject, count) in &before {
            let total = report.rejects.entry(*reject).or_default();
            *total -= u64::from(*count);
        }
        for (reject, (count, sample)) in rejects {
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
        if !rejects.is_empty() {
            let counts = rejects.iter().map(|(reject, (count, _))| (*reject, *count)).collect();
            self.rejects.insert(Arc::clone(id), counts);
        }
    }
}

/// Whether a service has to be looked at when one policy follows on another.
fn touches(before: &Policy, after: &Policy, id: &str) -> bool {
    let (old, new) = (before.rules(id), after.rules(id));
    before.reading() != after.reading()
        || before.serves(id) != after.serves(id)
        || (old.host, old.export_to) != (new.host, new.export_to)
        || service_entry::port(id, &old) != service_entry::port(id, &new)
}

/// What was made of one service.
#[derive(Default)]
struct Made {
    changes: RoundChanges,
    left_out: BTreeMap<Rule, (u32, Invalid)>,
    workloads: Workloads,
}

/// Addresses in `range` by the host's hash, best first, without the network's own address.
fn vip_candidates(host: &HostDigest, range: IpNet) -> Vec<IpAddr> {
    let mut candidates: Vec<IpAddr> = Vec::new();
    for attempt in 0..VIP_CANDIDATES {
        let digest: [u8; 32] = Sha256::new().chain_update(host).chain_update([attempt]).finalize().into();
        let bits = u128::from_be_bytes(prefix(&digest));
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

#[cfg(test)]
mod tests {
    use crate::{
        config::Config,
        host::engine::Engine,
        model::RegisterVersion,
        registry::frame::{self, Publisher},
    };

    fn publish(engine: &Engine, id: &str, version: i64, data: &str) {
        let publisher = Publisher {
            register_id: "a".into(),
            version: RegisterVersion { version, timestamp: 0 },
            payloads: vec![data.as_bytes().into()],
            ..Publisher::default()
        };
        engine.apply(&frame::encode_publish("registry", id, &publisher).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_panic_over_one_service_holds_back_no_other() {
        let engine = std::sync::Arc::new(Engine::open(Config::default()).unwrap());
        engine.loaded();
        for id in ["a.Bad", "b.Good"] {
            publish(&engine, id, 1, "10.0.0.1:80");
        }
        let before = engine.flush().await;
        publish(&engine, "a.Bad", 2, "panic://10.0.0.1:80");
        publish(&engine, "c.New", 1, "10.0.0.2:80");
        assert_eq!(engine.flush().await.services, 3, "the last good form stays, the others go on");
        let report = engine.status().publisher;
        assert_eq!(report.quarantined.keys().map(|id| &**id).collect::<Vec<_>>(), ["a.Bad"]);
        publish(&engine, "a.Bad", 3, "10.0.0.1:80");
        publish(&engine, "c.New", 2, "no address");
        assert_eq!(engine.flush().await.endpoints, before.endpoints);
        assert!(engine.status().publisher.quarantined.is_empty());
        tokio::task::spawn_blocking(move || engine.close()).await.unwrap();
    }
}
