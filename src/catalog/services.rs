//! The services that are served, and how a service's resources are made.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    catalog::{
        assignment::Place,
        breaker::Totals,
        changes::{RoundChanges, put, remove},
        last_good::LastService,
    },
    config::Config,
    istio::{
        names::{EMPTY_LABEL, ID_ANNOTATION, REGISTER_ID_ANNOTATION},
        rule::{Invalid, Rule},
        validate,
    },
    model::Millis,
    policy::Rules,
    proto::istio::networking::v1alpha3::{ServiceEntry, ServicePort},
    snapshot::Resource,
    translate::{
        names,
        payload::Address,
        service_entry::{self, EndpointMode, Member, Shape},
    },
};

/// What the registry and the policy want of a service.
#[derive(Debug, Default)]
pub enum Wanted {
    /// What is served of it.
    #[default]
    AsServed,
    /// These endpoints, sorted by address and port; none at all if the policy does not serve it.
    Endpoints {
        /// The endpoints.
        members: Vec<Member>,
        /// Whether the policy serves it.
        allowed: bool,
    },
    /// Unknown: it is of the last good state, and the registry has not named it since the start.
    Unheard,
    /// Unknown: reading its publishers brings out a bug.
    Unreadable,
}

/// A service that is served.
#[derive(Debug)]
pub struct Served {
    /// Its host, suffix included.
    pub host: Box<str>,
    /// The slice of its resources.
    slice: usize,
    /// The name of its ServiceEntry, `namespace/name`.
    name: Arc<str>,
    /// Its virtual address.
    pub vip: Option<IpAddr>,
    /// Its endpoints, by address and port.
    pub members: Vec<Member>,
    /// How many of them are served; Istio would refuse the others.
    pub endpoints: usize,
    /// Since when the registry has no endpoints of it.
    pub empty_since: Option<Millis>,
    wanted: Wanted,
    /// What else its resources were made from; `None`: it is of the last good state, and that is not known.
    form: Option<Form>,
    /// Its WorkloadEntries, where there are any.
    workloads: Workloads,
}

/// What a service's resources are made from beside its id, host, address and endpoints.
#[derive(Debug, PartialEq)]
struct Form {
    port: ServicePort,
    export_to: Box<[String]>,
    dns: bool,
    empty: bool,
}

/// The WorkloadEntries of a service as they were made last.
#[derive(Debug, Default)]
struct Workloads {
    /// The port that they name; empty where that is not known.
    port_name: Box<str>,
    made: BTreeMap<(Address, u16), (Arc<str>, Member)>,
}

/// The resources of a service in a form that Istio takes.
#[derive(Debug)]
pub struct Made {
    /// Where it is served in this form.
    pub place: Place,
    /// How many endpoints it has in this form.
    pub endpoints: usize,
    /// Endpoints without which it was made, by the rule that they break, with the first of each.
    pub left_out: BTreeMap<Rule, (u32, Invalid)>,
    /// What changes in what is served; what this form takes the place of is removed.
    pub changes: RoundChanges,
    name: Arc<str>,
    form: Form,
    workloads: Workloads,
}

impl Served {
    fn restored(last: LastService) -> Self {
        let LastService { host, slice, name, vip, members, mut workloads, empty_since } = last;
        let made = members.iter().filter_map(|member| {
            let key = (member.endpoint().address.clone(), member.endpoint().port);
            let name = workloads.remove(&key)?;
            Some((key, (name, member.clone())))
        });
        let workloads = Workloads { port_name: Box::default(), made: made.collect() };
        let endpoints = members.len();
        let wanted = Wanted::Unheard;
        Self { host, slice, name, vip, members, endpoints, empty_since, wanted, form: None, workloads }
    }

    /// Its endpoints beside those that are wanted; `None` if nothing is missing from `wanted`, which the policy serves.
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

    /// Whether the registry has not named it since the start.
    pub fn is_unheard(&self) -> bool {
        matches!(self.wanted, Wanted::Unheard)
    }
}

/// Every service that is served.
#[derive(Debug)]
pub struct Services {
    config: Arc<Config>,
    served: HashMap<Arc<str>, Served>,
    totals: Totals,
    /// Services without endpoints in the registry, oldest first.
    graces: BTreeSet<(Millis, Arc<str>)>,
    /// Who came into [`Services::graces`], with the time, or went.
    graces_changed: Vec<(Arc<str>, Option<Millis>)>,
}

impl Services {
    /// The services of a last good state, of which the registry has said nothing yet.
    pub fn restored(config: Arc<Config>, last_good: BTreeMap<Arc<str>, LastService>) -> Self {
        let served: HashMap<_, _> = last_good.into_iter().map(|(id, last)| (id, Served::restored(last))).collect();
        let mut totals = Totals::default();
        served.values().for_each(|served| count(&mut totals, 0, served.endpoints));
        Self { config, served, totals, graces: BTreeSet::new(), graces_changed: Vec::new() }
    }

    /// A service that is served.
    pub fn get(&self, id: &str) -> Option<&Served> {
        self.served.get(id)
    }

    /// Every service that is served.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Served)> {
        self.served.iter()
    }

    /// How much is served with endpoints.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Served services that the registry has no endpoints of, and since when.
    pub fn empty(&self) -> BTreeMap<Arc<str>, Millis> {
        let since = |(id, served): (&Arc<str>, &Served)| Some((Arc::clone(id), served.empty_since?));
        self.served.iter().filter_map(since).collect()
    }

    /// Since when the first of them has none, of those that the registry has named.
    pub fn first_grace(&self) -> Option<Millis> {
        self.graces.first().map(|(since, _)| *since)
    }

    /// Those of them that have none since `over` or longer.
    pub fn expired(&self, over: Millis) -> Vec<Arc<str>> {
        let expired = self.graces.iter().take_while(|(since, _)| *since <= over);
        expired.map(|(_, id)| Arc::clone(id)).collect()
    }

    /// Who came into a grace, with the time, or left it since the last call.
    pub fn graces_changed(&mut self) -> Vec<(Arc<str>, Option<Millis>)> {
        std::mem::take(&mut self.graces_changed)
    }

    /// What is wanted of a service that is served; to be given back by [`Services::put`], [`Services::stay`] or
    /// [`Services::remove`].
    pub fn take_wanted(&mut self, id: &str) -> Wanted {
        self.served.get_mut(id).map(|served| std::mem::take(&mut served.wanted)).unwrap_or_default()
    }

    /// A resource's name as istiod splits it, of the host that it is for.
    fn name(&self, host: &str) -> String {
        self.full_name(&names::resource_name(host, &self.config.host_suffix))
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.config.namespace)
    }

    /// The host by which a service that stays as it is keeps its name, also if another suffix was used for it.
    pub fn kept_host(&self, served: &Served) -> String {
        if self.name(&served.host) == *served.name {
            return served.host.to_string();
        }
        let name = served.name.split_once('/').map_or(&*served.name, |(_, name)| name);
        format!("{name}.{}", self.config.host_suffix)
    }

    /// The resources of a service at a place with these endpoints, checked and encoded; `None` if they are served just so. An
    /// error is the rule of Istio's that they would break.
    pub fn make(
        &self,
        id: &Arc<str>,
        place: &Place,
        members: &[Member],
        empty: bool,
        rules: &Rules<'_>,
    ) -> Result<Option<Made>, Invalid> {
        let port = service_entry::port(id, rules);
        let form = Form { port, export_to: rules.export_to.into(), dns: rules.dns, empty };
        let served = self.served.get(id);
        let same = |served: &Served| {
            (&served.host, served.vip) == (&place.host, place.vip)
                && served.form.as_ref() == Some(&form)
                && served.members == members
        };
        if served.is_some_and(same) {
            return Ok(None);
        }
        // A bug, for the tests of those who have to live with one.
        #[cfg(test)]
        assert!(!members.iter().any(|member| member.endpoint().labels.get("app") == Some("panic-when-made")));
        let (Place { host, slice, vip }, mode) = (place, self.config.endpoint_mode);
        let mut entry = service_entry::build(&Shape { host, vip: *vip, id, members, mode }, rules);
        let left_out = validate::keep_valid_endpoints(&mut entry);
        let labels = empty.then(|| (EMPTY_LABEL.to_owned(), "true".to_owned())).into_iter().collect();
        let annotations = [(ID_ANNOTATION.to_owned(), id.to_string())].into();
        let name = self.name(host);
        validate::metadata(&name, &labels, &annotations)?;
        validate::service_entry(&entry, &self.config.namespace)?;
        let mut changes = RoundChanges::default();
        let resource = Resource::service_entry(name.clone(), labels, annotations, &entry);
        let name: Arc<str> = name.into();
        changes.encodes += 1;
        put(&mut changes.service_entries, (*slice, Arc::clone(&name)), resource);
        let (endpoints, workloads) = (entry.endpoints.len(), Workloads::default());
        let mut made = Made { place: place.clone(), endpoints, left_out, changes, name, form, workloads };
        if mode == EndpointMode::WorkloadEntry {
            self.make_workloads(id, members, &entry, &mut made);
            made.endpoints = made.workloads.made.len();
        }
        if let Some(served) = served {
            take_the_place_of(served, &mut made);
        }
        Ok(Some(made))
    }

    /// Encodes the WorkloadEntries that differ from what was made last.
    fn make_workloads(&self, id: &Arc<str>, members: &[Member], service: &ServiceEntry, made: &mut Made) {
        let (host, slice) = (&made.place.host, made.place.slice);
        let port_name = &*service.ports[0].name;
        let served = self.served.get(id).filter(|served| served.host == *host);
        let before = served.map(|served| &served.workloads).filter(|before| *before.port_name == *port_name);
        for member in members {
            let key = (member.endpoint().address.clone(), member.endpoint().port);
            let known = before.and_then(|before| before.made.get(&key)).filter(|(_, known)| known == member);
            if let Some((name, _)) = known {
                made.workloads.made.insert(key, (Arc::clone(name), member.clone()));
                continue;
            }
            let name: Arc<str> = self.full_name(&service_entry::workload_name(host, member)).into();
            let entry = service_entry::workload_entry(host, member, port_name);
            if let Err(invalid) = validate::endpoint(&entry, service).and_then(|()| validate::workload_entry(&entry)) {
                made.left_out.entry(invalid.rule).or_insert((0, invalid)).0 += 1;
                continue;
            }
            let annotations = [(ID_ANNOTATION, &**id), (REGISTER_ID_ANNOTATION, member.register_id())]
                .map(|(key, value)| (key.to_owned(), value.to_owned()));
            let resource = Resource::workload_entry(name.to_string(), annotations.into(), &entry);
            made.changes.encodes += 1;
            put(&mut made.changes.workload_entries, (slice, Arc::clone(&name)), resource);
            made.workloads.made.insert(key, (name, member.clone()));
        }
        made.workloads.port_name = port_name.into();
    }

    /// Serves a service in a new form, with the endpoints that it was made of; returns the endpoints that it had before.
    pub fn put(
        &mut self,
        id: &Arc<str>,
        made: Made,
        members: Vec<Member>,
        empty_since: Option<Millis>,
        wanted: Wanted,
    ) -> Vec<Member> {
        let Made { place: Place { host, slice, vip }, endpoints, name, form, workloads, .. } = made;
        let served = Served {
            host,
            slice,
            name,
            vip,
            members,
            endpoints,
            empty_since: None,
            wanted: Wanted::AsServed,
            form: Some(form),
            workloads,
        };
        let before = self.served.insert(Arc::clone(id), served);
        let had = before.as_ref().map_or(0, |before| before.endpoints);
        count(&mut self.totals, had, endpoints);
        self.leave_grace(id, before.as_ref());
        self.stay(id, empty_since, wanted);
        before.map(|before| before.members).unwrap_or_default()
    }

    /// Takes endpoints that are served alike in the place of a service's, as a newer version of a publisher has them; returns
    /// those that it had.
    pub fn renew(&mut self, id: &str, members: Vec<Member>) -> Vec<Member> {
        let served = self.served.get_mut(id);
        served.map(|served| std::mem::replace(&mut served.members, members)).unwrap_or_default()
    }

    /// Leaves a service as it is served, though `wanted` may be something else.
    pub fn stay(&mut self, id: &Arc<str>, empty_since: Option<Millis>, wanted: Wanted) {
        let Some(served) = self.served.get_mut(id) else { return };
        served.wanted = wanted;
        let before = std::mem::replace(&mut served.empty_since, empty_since);
        let was = before.is_some_and(|since| self.graces.remove(&(since, Arc::clone(id))));
        self.graces.extend(empty_since.map(|since| (since, Arc::clone(id))));
        if (before.filter(|_| was)) != empty_since {
            self.graces_changed.push((Arc::clone(id), empty_since));
        }
    }

    /// No longer serves a service; returns what is to be removed and the endpoints that it had.
    pub fn remove(&mut self, id: &Arc<str>) -> Option<(RoundChanges, Vec<Member>)> {
        let served = self.served.remove(id)?;
        count(&mut self.totals, served.endpoints, 0);
        self.leave_grace(id, Some(&served));
        let mut changes = RoundChanges::default();
        remove(&mut changes.service_entries, (served.slice, Arc::clone(&served.name)));
        for (name, _) in served.workloads.made.values() {
            remove(&mut changes.workload_entries, (served.slice, Arc::clone(name)));
        }
        Some((changes, served.members))
    }

    fn leave_grace(&mut self, id: &Arc<str>, served: Option<&Served>) {
        let since = served.and_then(|served| served.empty_since);
        if since.is_some_and(|since| self.graces.remove(&(since, Arc::clone(id)))) {
            self.graces_changed.push((Arc::clone(id), None));
        }
    }
}

/// Removes what a service is served with and is not any more in its new form.
fn take_the_place_of(served: &Served, made: &mut Made) {
    remove(&mut made.changes.service_entries, (served.slice, Arc::clone(&served.name)));
    let stay: BTreeSet<&Arc<str>> = match served.slice == made.place.slice {
        true => made.workloads.made.values().map(|(name, _)| name).collect(),
        false => BTreeSet::new(),
    };
    for (name, _) in served.workloads.made.values().filter(|(name, _)| !stay.contains(name)) {
        remove(&mut made.changes.workload_entries, (served.slice, Arc::clone(name)));
    }
}

/// Keeps the totals when a service has another number of endpoints.
fn count(totals: &mut Totals, before: usize, after: usize) {
    totals.endpoints = totals.endpoints - before + after;
    totals.services = totals.services - usize::from(before > 0) + usize::from(after > 0);
}

#[cfg(test)]
mod tests;
