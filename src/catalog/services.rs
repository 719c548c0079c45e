//! The services that are served, and how a service's resources are made.

mod large;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use hashbrown::HashMap;

use crate::{
    catalog::{
        assignment::Place,
        breaker::{Totals, tenant},
        changes::ServiceChanges,
        key::ServiceKey,
        last_good::LastService,
        services::large::Encoded,
        vips::Vips,
    },
    config::Config,
    istio::{
        names::{EMPTY_LABEL, ID_ANNOTATION, PROTOCOL_ANNOTATION, REGISTER_ID_ANNOTATION},
        rule::{Invalid, Rule},
        validate,
    },
    model::Millis,
    policy::Rules,
    proto::istio::networking::v1alpha3::{ServiceEntry, ServicePort, WorkloadEntry},
    snapshot::{Draft, Resource},
    translate::{
        names,
        payload::{Address, Endpoint},
        port::port,
        service_entry::{self, Common, EndpointMode, Member, Shape},
    },
};

/// The endpoints that the registry and the policy want a service to have.
#[derive(Debug, Default)]
pub enum Intent {
    /// The endpoints that are served.
    #[default]
    AsServed,
    /// These endpoints.
    Endpoints {
        /// Sorted by address and port, each pair once.
        members: Vec<Member>,
        /// Whether the policy serves the service; where it does not there are no members.
        allowed: bool,
    },
    /// Not known: the service is of the last good state, and the registry has not named it since the start.
    Unheard,
    /// Not known: reading the publishers brings out a bug.
    Unreadable,
}

/// A service that is served.
#[derive(Debug)]
pub struct Service {
    /// The host, suffix included.
    pub host: Box<str>,
    /// The slice of the resources.
    slice: usize,
    /// The name of the ServiceEntry, `namespace/name`.
    name: Arc<str>,
    /// The virtual addresses of the host.
    pub vips: Vips,
    /// The endpoints, by address and port.
    pub members: Vec<Member>,
    /// How many endpoints are served; Istio would refuse the other members.
    pub endpoints: usize,
    /// When the registry took the last endpoint away, if there is none.
    pub empty_since: Option<Millis>,
    intent: Intent,
    made: Made,
    workloads: Workloads,
    /// The entry, where the service is large and its endpoints stand in it.
    encoded: Option<Encoded>,
}

/// What a service's resources were made from.
#[derive(Debug)]
enum Made {
    /// Not known: the service is of the last good state, which does not say that.
    Unsaid,
    /// Of what the policy in force makes of it now, whatever that is.
    InForce,
    /// Of this.
    Of(Inputs),
}

impl Made {
    /// The inputs, if they are known.
    fn of(&self) -> Option<&Inputs> {
        match self {
            Self::Of(inputs) => Some(inputs),
            Self::Unsaid | Self::InForce => None,
        }
    }
}

/// Everything that a service's resources are made from, but for its key, host, virtual addresses and endpoints.
#[derive(Debug, PartialEq)]
struct Inputs {
    port: ServicePort,
    export_to: Box<[String]>,
    dns: bool,
    /// Whether the entry is labelled as one without endpoints.
    empty: bool,
    /// Divisor of the weights, where endpoints have resources of their own.
    divisor: u32,
    /// How long endpoints warm up, by a DestinationRule.
    warmup: Option<Duration>,
}

/// The WorkloadEntries of a service: their names, and the endpoints that they were made of. There are none where endpoints
/// stand in the ServiceEntry.
type Workloads = BTreeMap<(Address, u16), (Arc<str>, Member)>;

/// The resources of a service in a form that Istio takes.
#[derive(Debug)]
pub struct Build {
    /// The host, slice and virtual addresses that the resources were made for.
    pub place: Place,
    /// How many endpoints the resources have.
    pub endpoints: usize,
    /// Endpoints that were left out, counted by the rule that they break, with the first of each.
    pub left_out: BTreeMap<Rule, (u32, Invalid)>,
    /// Endpoints were left out that are served.
    pub loses: bool,
    /// The resources, and the removal of those that they take the place of.
    pub changes: ServiceChanges,
    name: Arc<str>,
    inputs: Inputs,
    workloads: Workloads,
    encoded: Option<Encoded>,
}

impl Service {
    fn restored(last: LastService) -> Self {
        let LastService { host, slice, name, vips, members, mut workloads, empty_since } = last;
        let workloads = members.iter().filter_map(|member| {
            let key = (member.endpoint().address.clone(), member.endpoint().port);
            let name = workloads.remove(&key)?;
            Some((key, (name, member.clone())))
        });
        let (workloads, endpoints, intent) = (workloads.collect(), members.len(), Intent::Unheard);
        let (made, encoded) = (Made::Unsaid, None);
        Self { host, slice, name, vips, members, endpoints, empty_since, intent, made, workloads, encoded }
    }

    /// The wanted endpoints, together with those that are served and not wanted. `None` if no endpoint is missing among the
    /// wanted ones and the policy allows the service.
    pub fn with_missing(&self, wanted: &[Member], allowed: bool) -> Option<Vec<Member>> {
        let keys: BTreeSet<_> = wanted.iter().map(Member::key).collect();
        let missing = self.members.iter().filter(|member| !keys.contains(&member.key()));
        let mut all: Vec<Member> = missing.cloned().collect();
        if all.is_empty() && allowed {
            return None;
        }
        all.extend_from_slice(wanted);
        all.sort_by(|a, b| a.key().cmp(&b.key()));
        Some(all)
    }

    /// Whether the DestinationRule is served that these inputs make.
    fn has_rule(&self, name: &str, inputs: &Inputs) -> bool {
        let is_alike = |own: &Inputs| own.warmup.is_some() && own.warmup == inputs.warmup;
        *self.name == *name && self.made.of().is_some_and(is_alike)
    }

    /// Whether a DestinationRule is served, as far as is known.
    fn may_have_rule(&self) -> bool {
        self.made.of().is_none_or(|inputs| inputs.warmup.is_some())
    }

    /// Whether the registry has not named the service since the start.
    pub fn is_unheard(&self) -> bool {
        matches!(self.intent, Intent::Unheard)
    }
}

/// Every service that is served.
#[derive(Debug)]
pub struct Services {
    config: Arc<Config>,
    /// Boxed, since a table has place for up to twice as many as there are.
    services: HashMap<ServiceKey, Box<Service>>,
    totals: Totals,
    /// By tenant, those with endpoints.
    tenants: HashMap<Box<str>, Totals>,
    /// Services without endpoints that the registry has named, the longest empty first.
    graces: BTreeSet<(Millis, ServiceKey)>,
    /// Services that came into [`Services::graces`], with the time, or left.
    graces_changed: Vec<(Arc<str>, Option<Millis>)>,
}

impl Services {
    /// The services of a last good state, of which the registry has said nothing yet.
    pub fn restored(config: Arc<Config>, last_good: BTreeMap<ServiceKey, LastService>) -> Self {
        let services: HashMap<_, _> =
            last_good.into_iter().map(|(id, last)| (id, Service::restored(last).into())).collect();
        let (totals, tenants) = (Totals::default(), HashMap::new());
        let mut all = Self { config, services, totals, tenants, graces: BTreeSet::new(), graces_changed: Vec::new() };
        let counts: Vec<_> = all.services.iter().map(|(id, service)| (id.clone(), service.endpoints)).collect();
        counts.into_iter().for_each(|(id, endpoints)| all.count(&id, 0, endpoints));
        all
    }

    /// Has services of which the policy in force makes what is served pass for made by it, until [`Services::end_current`]: this is
    /// what a copy knows beyond a last good state. Other endpoints or another place are made anew all the same.
    pub fn begin_current(&mut self, is_current: impl Fn(&ServiceKey) -> bool) {
        for (key, service) in &mut self.services {
            // Of one without endpoints it depends on why there are none.
            let is_told = !service.members.is_empty() || service.empty_since.is_some();
            if is_told && is_current(key) {
                service.made = Made::InForce;
            }
        }
    }

    /// Before another policy is followed.
    pub fn end_current(&mut self) {
        for service in self.services.values_mut().filter(|service| matches!(service.made, Made::InForce)) {
            service.made = Made::Unsaid;
        }
    }

    /// A service, if it is served.
    pub fn get(&self, id: &ServiceKey) -> Option<&Service> {
        self.services.get(id).map(|service| &**service)
    }

    /// Every service that is served, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &Service)> {
        self.services.iter().map(|(key, service)| (key, &**service))
    }

    /// Services with endpoints, and their endpoints.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Services of a tenant with endpoints, and their endpoints.
    pub fn totals_of(&self, tenant: &str) -> Totals {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }

    /// Keeps the totals when a service has another number of endpoints.
    fn count(&mut self, id: &ServiceKey, before: usize, after: usize) {
        if before == after {
            return;
        }
        let count = |totals: &mut Totals| {
            totals.endpoints = totals.endpoints - before + after;
            totals.services = totals.services - usize::from(before > 0) + usize::from(after > 0);
            totals.services
        };
        count(&mut self.totals);
        let tenant = tenant(id.id());
        let services = match self.tenants.get_mut(tenant) {
            Some(totals) => count(totals),
            None => count(self.tenants.entry(tenant.into()).or_default()),
        };
        if services == 0 {
            self.tenants.remove(tenant);
        }
    }

    /// Services whose last endpoint the registry took away, and when.
    pub fn empty(&self) -> BTreeMap<Arc<str>, Millis> {
        let since = |(id, service): (&ServiceKey, &Service)| Some((Arc::clone(id.text()), service.empty_since?));
        self.iter().filter_map(since).collect()
    }

    /// Services in their grace, and since when; unlike [`Services::empty`] it costs no more than there are.
    pub fn graces(&self) -> BTreeMap<Arc<str>, Millis> {
        self.graces.iter().map(|(since, key)| (Arc::clone(key.text()), *since)).collect()
    }

    /// When the oldest grace began.
    pub fn first_grace(&self) -> Option<Millis> {
        self.graces.first().map(|(since, _)| *since)
    }

    /// Services whose grace began at `over` or before, the longest empty first.
    pub fn expired(&self, over: Millis) -> impl Iterator<Item = &ServiceKey> {
        self.graces.iter().take_while(move |(since, _)| *since <= over).map(|(_, id)| id)
    }

    /// Services whose grace began, with the time, or ended since the last call.
    pub fn graces_changed(&mut self) -> Vec<(Arc<str>, Option<Millis>)> {
        std::mem::take(&mut self.graces_changed)
    }

    /// Lends the intent of a service that is served; [`Services::put`], [`Services::stay`], [`Services::keep`] or
    /// [`Services::remove`] ends the loan.
    pub fn take_intent(&mut self, id: &ServiceKey) -> Intent {
        self.services.get_mut(id).map(|service| std::mem::take(&mut service.intent)).unwrap_or_default()
    }

    /// The name of the ServiceEntry of a host, as istiod splits it.
    fn name(&self, host: &str) -> String {
        self.full_name(&names::resource_name(host, &self.config.host_suffix))
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.config.namespace)
    }

    /// The host to claim for a service that stays as it is, so that nobody else gets its name; the last good state may have
    /// another suffix.
    pub fn kept_host(&self, service: &Service) -> String {
        if self.name(&service.host) == *service.name {
            return service.host.to_string();
        }
        let name = service.name.split_once('/').map_or(&*service.name, |(_, name)| name);
        format!("{name}.{}", self.config.host_suffix)
    }

    /// The resources of a service at a place with these endpoints, checked and encoded; `None` if the service is served just
    /// so. An error is the rule of Istio's that the resources would break.
    pub fn make(
        &self,
        id: &ServiceKey,
        place: &Place,
        members: &[Member],
        empty: bool,
        rules: &Rules<'_>,
    ) -> Result<Option<Build>, Invalid> {
        let port = port(id.id(), id.other(), rules);
        let divisor = match self.config.endpoint_mode {
            EndpointMode::Inline => 1,
            EndpointMode::WorkloadEntry => service_entry::weight_divisor(members),
        };
        let (export_to, dns, warmup) = (rules.export_to.into(), rules.dns, rules.warmup);
        let inputs = Inputs { port, export_to, dns, empty, divisor, warmup };
        let before = self.get(id);
        let is_same = |service: &Service| {
            (&service.host, service.vips) == (&place.host, place.vips)
                && match &service.made {
                    Made::Unsaid => false,
                    Made::InForce => is_alike(&service.members, members),
                    Made::Of(before) => *before == inputs && service.members == members,
                }
        };
        if before.is_some_and(is_same) {
            return Ok(None);
        }
        // A bug, for the tests of those who have to live with one.
        #[cfg(test)]
        assert!(!members.iter().any(|member| member.endpoint().labels.get("app") == Some("panic-when-made")));
        let (Place { host, slice, vips }, mode) = (place, self.config.endpoint_mode);
        let vips = vips.in_order(&self.config.vip_cidr);
        let shape = Shape { host, vips: &vips, id: id.id(), other: id.other(), members, mode };
        let labels = empty.then(|| (EMPTY_LABEL.to_owned(), "true".to_owned())).into_iter().collect();
        let annotations = annotations(id);
        let name = self.name(host);
        validate::metadata(&name, &labels, &annotations)?;
        let draft = |bytes: usize| Draft::service_entry(name.clone(), labels.clone(), annotations.clone(), bytes);
        let (entry, resource, left_out, encoded) = match self.encode(&shape, rules, before, draft)? {
            Some((entry, resource, encoded)) => (entry, resource, BTreeMap::new(), Some(encoded)),
            None => {
                let mut entry = service_entry::build(&shape, rules);
                let left_out = validate::keep_valid_endpoints(&mut entry);
                validate::service_entry(&entry, &self.config.namespace)?;
                let resource = Resource::service_entry(name.clone(), labels, annotations, &entry);
                (entry, resource, left_out, None)
            }
        };
        let endpoints = if encoded.is_some() { members.len() } else { entry.endpoints.len() };
        let name: Arc<str> = name.into();
        let service_entries = vec![((*slice, Arc::clone(&name)), Some(resource))];
        let mut changes = ServiceChanges { service_entries, encodes: 1, ..ServiceChanges::default() };
        let is_served = before.is_some_and(|service| service.has_rule(&name, &inputs));
        if let Some(warmup) = rules.warmup.filter(|_| !is_served) {
            let rule = service_entry::warmup(host, warmup);
            let rule = Resource::destination_rule(name.to_string(), self::annotations(id), &rule);
            changes.encodes += 1;
            changes.destination_rules.push(((*slice, Arc::clone(&name)), Some(rule)));
        }
        let (place, workloads) = (place.clone(), Workloads::default());
        let mut build = Build { place, endpoints, left_out, loses: false, changes, name, inputs, workloads, encoded };
        if mode == EndpointMode::WorkloadEntry {
            self.make_workloads(id, members, &entry, &mut build);
            build.endpoints = build.workloads.len();
        }
        if let Some(before) = before {
            build.loses = !build.left_out.is_empty() && loses(before, members, &entry, &build);
            take_the_place_of(before, &mut build);
        }
        Ok(Some(build))
    }

    /// The entry of a large service with endpoints in it, checked: without these, and encoded with them. `None` if the service is
    /// none, or an endpoint has to be left out. An error is the rule of Istio's that the entry would break.
    fn encode(
        &self,
        shape: &Shape<'_>,
        rules: &Rules<'_>,
        before: Option<&Service>,
        draft: impl FnOnce(usize) -> Draft,
    ) -> Result<Option<(ServiceEntry, Resource, Encoded)>, Invalid> {
        let (Some(first), true) = (shape.members.first(), shape.members.len() >= large::LARGE) else { return Ok(None) };
        if shape.mode != EndpointMode::Inline {
            return Ok(None);
        }
        let known = before.and_then(|service| Some((service.encoded.as_ref()?, &service.members[..])));
        let common = match known {
            Some((encoded, members)) => encoded.common.after(members, shape.members),
            None => Common::of(shape.members),
        };
        let entry = service_entry::build_without_endpoints(shape, rules, &common);
        let weights = common.weights;
        let Some((resource, encoded)) = large::encode(&entry, shape.members, common, rules.dns, known, draft) else {
            return Ok(None);
        };
        // That the sum of all weights fits is what they are divided for; the others are checked as they are encoded.
        let first = service_entry::inline_endpoint(first, &entry.ports[0].name, weights);
        validate::service_entry(&ServiceEntry { endpoints: vec![first], ..entry.clone() }, &self.config.namespace)?;
        Ok(Some((entry, resource, encoded)))
    }

    /// Encodes the WorkloadEntries that differ from those that are served.
    fn make_workloads(&self, id: &ServiceKey, members: &[Member], entry: &ServiceEntry, build: &mut Build) {
        let (host, slice) = (&build.place.host, build.place.slice);
        let port_name = &*entry.ports[0].name;
        let (dns, divisor) = (build.inputs.dns, build.inputs.divisor);
        let is_alike =
            |inputs: &Inputs| inputs.port.name == port_name && (inputs.dns, inputs.divisor) == (dns, divisor);
        let served = self.get(id).filter(|service| service.host == *host);
        let served = served.filter(|service| service.made.of().is_some_and(is_alike));
        for member in members {
            let key = (member.endpoint().address.clone(), member.endpoint().port);
            let same = served.and_then(|service| service.workloads.get(&key)).filter(|(_, known)| known == member);
            if let Some((name, _)) = same {
                build.workloads.insert(key, (Arc::clone(name), member.clone()));
                continue;
            }
            let name: Arc<str> = self.full_name(&service_entry::workload_name(host, member)).into();
            let workload = service_entry::workload_entry(host, member, port_name, divisor);
            let valid = validate::endpoint(&workload, entry).and_then(|()| validate::workload_entry(&workload));
            if let Err(invalid) = valid {
                build.left_out.entry(invalid.rule).or_insert((0, invalid)).0 += 1;
                continue;
            }
            let mut annotations = annotations(id);
            annotations.insert(REGISTER_ID_ANNOTATION.to_owned(), member.register_id().to_owned());
            let resource = Resource::workload_entry(name.to_string(), annotations, &workload);
            build.changes.encodes += 1;
            build.changes.workload_entries.push(((slice, Arc::clone(&name)), Some(resource)));
            build.workloads.insert(key, (name, member.clone()));
        }
    }

    /// Serves a service in a new form, with the endpoints that it was made of; returns the endpoints that were served before.
    pub fn put(
        &mut self,
        id: &ServiceKey,
        build: Build,
        members: Vec<Member>,
        empty_since: Option<Millis>,
        intent: Intent,
    ) -> Vec<Member> {
        let Build { place: Place { host, slice, vips }, endpoints, name, inputs, workloads, encoded, .. } = build;
        let service = Service {
            host,
            slice,
            name,
            vips,
            members,
            endpoints,
            empty_since: None,
            intent: Intent::AsServed,
            made: Made::Of(inputs),
            workloads,
            encoded,
        };
        let before = self.services.insert(id.clone(), Box::new(service));
        self.count(id, before.as_ref().map_or(0, |before| before.endpoints), endpoints);
        self.leave_grace(id, before.as_deref());
        self.stay(id, empty_since, intent);
        before.map(|before| before.members).unwrap_or_default()
    }

    /// Replaces a service's endpoints by equal ones of newer versions of their publishers; returns the old ones.
    pub fn renew(&mut self, id: &ServiceKey, members: Vec<Member>) -> Vec<Member> {
        let service = self.services.get_mut(id);
        service.map(|service| std::mem::replace(&mut service.members, members)).unwrap_or_default()
    }

    /// Leaves the resources of a service as they are.
    pub fn stay(&mut self, id: &ServiceKey, empty_since: Option<Millis>, intent: Intent) {
        let Some(service) = self.services.get_mut(id) else { return };
        service.intent = intent;
        let before = std::mem::replace(&mut service.empty_since, empty_since);
        // The grace of a restored service is not counted before the registry names the service.
        let counted = before.filter(|since| self.graces.remove(&(*since, id.clone())));
        self.graces.extend(empty_since.map(|since| (since, id.clone())));
        if counted != empty_since {
            self.graces_changed.push((Arc::clone(id.text()), empty_since));
        }
    }

    /// Leaves a service as it is, of which nothing is known: a grace that began before is not over, and ends no service until
    /// the registry says that it has no endpoints. A service that is served with endpoints, since a form without them could not be
    /// made, may have had some all the time where its publishers cannot be read: its grace begins anew.
    pub fn keep(&mut self, id: &ServiceKey, intent: Intent) {
        let Some(service) = self.services.get_mut(id) else { return };
        let has_some = matches!(intent, Intent::Unreadable) && !service.members.is_empty();
        service.intent = intent;
        if service.empty_since.is_some_and(|since| self.graces.remove(&(since, id.clone()))) {
            self.graces_changed.push((Arc::clone(id.text()), None));
        }
        service.empty_since = service.empty_since.filter(|_| !has_some);
    }

    /// No longer serves a service; returns the removal of its resources, and its endpoints.
    pub fn remove(&mut self, id: &ServiceKey) -> Option<(ServiceChanges, Vec<Member>)> {
        let service = self.services.remove(id)?;
        self.count(id, service.endpoints, 0);
        self.leave_grace(id, Some(&service));
        let gone = |name: &Arc<str>| ((service.slice, Arc::clone(name)), None);
        let changes = ServiceChanges {
            service_entries: vec![gone(&service.name)],
            workload_entries: service.workloads.values().map(|(name, _)| gone(name)).collect(),
            destination_rules: service.may_have_rule().then(|| gone(&service.name)).into_iter().collect(),
            encodes: 0,
        };
        Some((changes, service.members))
    }

    fn leave_grace(&mut self, id: &ServiceKey, service: Option<&Service>) {
        let since = service.and_then(|service| service.empty_since);
        if since.is_some_and(|since| self.graces.remove(&(since, id.clone()))) {
            self.graces_changed.push((Arc::clone(id.text()), None));
        }
    }
}

/// The annotations by which a service's resources say whose they are.
fn annotations(id: &ServiceKey) -> BTreeMap<String, String> {
    let other = id.other().map(|protocol| (PROTOCOL_ANNOTATION.to_owned(), protocol.to_owned()));
    [(ID_ANNOTATION.to_owned(), id.id().to_owned())].into_iter().chain(other).collect()
}

/// Whether the endpoints of a view are these. A ServiceEntry does not say whose its endpoints are.
fn is_alike(restored: &[Member], members: &[Member]) -> bool {
    let is_same = |(restored, member): (&Member, &Member)| {
        restored.endpoint() == member.endpoint()
            && (restored.register_id().is_empty() || restored.register_id() == member.register_id())
    };
    restored.len() == members.len() && restored.iter().zip(members).all(is_same)
}

/// Whether endpoints are left out of a build that are served of the service.
fn loses(service: &Service, members: &[Member], entry: &ServiceEntry, build: &Build) -> bool {
    if service.endpoints < service.members.len() {
        // Some of its endpoints were left out before, so it is not known which are served.
        return build.endpoints < service.endpoints;
    }
    let served: BTreeSet<_> = service.members.iter().map(Member::key).collect();
    // Endpoints in the entry stand in the order of the members that they were made of.
    let mut inline = entry.endpoints.iter().peekable();
    let mut is_left_out = |member: &Member| {
        let Endpoint { address, port, .. } = member.endpoint();
        let is_it = |entry: &&WorkloadEntry| {
            entry.address == address.to_string() && entry.ports.values().eq([&u32::from(*port)])
        };
        inline.next_if(is_it).is_none() && !build.workloads.contains_key(&(address.clone(), *port))
    };
    members.iter().any(|member| is_left_out(member) && served.contains(&member.key()))
}

/// Adds to a build the removal of the resources that are served of the service and have no place in the new form.
fn take_the_place_of(service: &Service, build: &mut Build) {
    let gone = |name: &Arc<str>| ((service.slice, Arc::clone(name)), None);
    if service.may_have_rule() && !service.has_rule(&build.name, &build.inputs) {
        build.changes.destination_rules.push(gone(&service.name));
    }
    if (service.slice, &service.name) != (build.place.slice, &build.name) {
        build.changes.service_entries.push(gone(&service.name));
    }
    let stay: BTreeSet<&Arc<str>> = match service.slice == build.place.slice {
        true => build.workloads.values().map(|(name, _)| name).collect(),
        false => BTreeSet::new(),
    };
    let go = service.workloads.values().filter(|(name, _)| !stay.contains(name));
    build.changes.workload_entries.extend(go.map(|(name, _)| gone(name)));
}

#[cfg(test)]
mod tests;
