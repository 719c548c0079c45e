//! The definition of what is to be served: everything is read, assigned and built anew, for all services at once.
//!
//! The model shares with [`Round`](super::round::Round) how a publisher is read and an entry is built, and nothing of how a round
//! goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use crate::{
    catalog::{
        assignment::{Pins, vip_candidates},
        key::ServiceKey,
        narrowing::exported,
        vips::{Vips, family},
    },
    config::Config,
    istio::{
        names::{EMPTY_LABEL, ID_ANNOTATION, PROTOCOL_ANNOTATION, REGISTER_ID_ANNOTATION},
        validate,
    },
    policy::{Policy, Rules},
    registry::store::Store,
    snapshot::{Changes, Resource, partition::slice_of},
    translate::{
        names,
        service_entry::{self, EndpointMode, Member, Merged, Shape},
    },
    visibility::seen::Seen,
};

/// Services that are not served as the registry has them, as the report names them.
#[derive(Debug, Default)]
pub(crate) struct Exceptions {
    /// Served in an old form, with the host and the addresses of it.
    pub(crate) kept: Places,
    /// The services of them that are kept since their newest form cannot be made.
    pub(crate) quarantined: BTreeSet<String>,
    /// Served without endpoints for a while.
    pub(crate) graces: BTreeSet<String>,
    /// Served with more endpoints than are wanted.
    pub(crate) withheld: BTreeSet<String>,
    /// Not served yet.
    pub(crate) waiting: BTreeSet<String>,
}

/// Hosts and virtual addresses under which services are served.
pub(crate) type Places = BTreeMap<String, (String, Vips)>;

/// Everything that is to be served, without the entries of applications.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// Services that are to be served.
    pub(crate) ids: BTreeSet<String>,
    /// Services whose form cannot be made, those that are kept included.
    pub(crate) refused: BTreeSet<String>,
    /// ServiceEntries, WorkloadEntries and DestinationRules of all that are no exception and of those in their grace.
    pub(crate) resources: [Changes; 3],
}

/// The definition.
pub(crate) struct Reference<'a> {
    pub(crate) config: &'a Config,
    pub(crate) store: &'a Store,
    pub(crate) policy: &'a Policy,
    pub(crate) pins: &'a Pins,
    /// Who is seen to consume what, as it counts.
    pub(crate) seen: Option<&'a Seen>,
}

impl Reference<'_> {
    /// The endpoints that the registry and the policy want a service to have; `None`: its publishers cannot be read.
    pub(crate) fn wanted(&self, id: &str) -> Option<Vec<Member>> {
        let key = ServiceKey::of_text(id.into());
        let id = key.id();
        if !self.policy.serves(id) {
            return Some(Vec::new());
        }
        let merged = || {
            let (rules, bounds) = (self.policy.rules(id), self.config.limits.bounds());
            let Merged { members, mut others, .. } = service_entry::merge(id, &self.store.read(id), &rules, bounds);
            match key.other() {
                None => members,
                Some(protocol) => others.remove(protocol).unwrap_or_default(),
            }
        };
        catch_unwind(AssertUnwindSafe(merged)).ok()
    }

    /// Everything that is to be served, by services at these places.
    pub(crate) fn expected(&self, ids: &[&str], exceptions: &Exceptions, places: &Places) -> Expected {
        let Exceptions { kept, quarantined, graces, withheld, waiting } = exceptions;
        let wanted: BTreeMap<&str, Option<Vec<Member>>> = ids.iter().map(|id| (*id, self.wanted(id))).collect();
        let mut expected = Expected::default();
        for id in quarantined {
            let members = wanted[&**id].as_deref();
            let host = self.candidates(id).remove(0);
            if members.is_none_or(|members| self.build(id, &host, Vips::default(), members).is_none()) {
                expected.refused.insert(id.clone());
            }
        }
        loop {
            let claims = |id: &str| {
                let some = wanted[id].as_ref().is_some_and(|members| !members.is_empty());
                !expected.refused.contains(id)
                    && !kept.contains_key(id)
                    && !waiting.contains(id)
                    && (some || graces.contains(id) || withheld.contains(id))
            };
            let claimants: Vec<&str> = ids.iter().copied().filter(|id| claims(id)).collect();
            // The services that an id has beside its main one are not known while it cannot be read.
            let is_main = |id: &str| ServiceKey::of_text(id.into()).other().is_none();
            let mut unreadable =
                ids.iter().filter(|id| wanted[**id].is_none() && !kept.contains_key(**id) && is_main(id));
            let mut resources = [Changes::new(), Changes::new(), Changes::new()];
            let made = claimants.iter().filter(|id| !withheld.contains(**id)).map(|id| {
                let first = || (self.candidates(id).remove(0), Vips::default());
                let (host, vips) = places.get(*id).cloned().unwrap_or_else(first);
                let built = self.build(id, &host, vips, wanted[id].as_deref().unwrap_or_default());
                (id, built)
            });
            let mut refused = None;
            for (id, built) in made {
                match built {
                    Some(built) => resources.iter_mut().zip(built).for_each(|(all, built)| all.extend(built)),
                    None => refused = refused.or(Some(id.to_string())),
                }
            }
            match refused {
                Some(id) => drop(expected.refused.insert(id)),
                None => {
                    expected.refused.extend(unreadable.by_ref().map(|id| (*id).to_owned()));
                    expected.ids = claimants.into_iter().map(str::to_owned).chain(kept.keys().cloned()).collect();
                    return Expected { resources, ..expected };
                }
            }
        }
    }

    /// The hosts that a service would have, best first.
    pub(crate) fn candidates(&self, id: &str) -> Vec<String> {
        let suffix = &self.config.host_suffix;
        let key = ServiceKey::of_text(id.into());
        let rules = key.rules(self.policy);
        let set = rules.host.filter(|host| !names::is_application(&names::resource_name(host, suffix)));
        let made = names::candidates(key.id(), key.other(), suffix).map(|name| format!("{name}.{suffix}"));
        set.map(str::to_owned).into_iter().chain(made).collect()
    }

    /// Why a service has a right to another place than its own in `places`, where they were served in `before` and `empty`
    /// ones have no endpoints.
    pub(crate) fn wrong(
        &self,
        places: &Places,
        before: &Places,
        kept: &Places,
        empty: impl Fn(&str) -> bool,
    ) -> Option<String> {
        type Has<'a> = &'a dyn Fn(&Places, &str) -> bool;
        let right = |id: &str, place: &str, has: Has<'_>| {
            let pinned = |id: &str| self.pins.get(place).is_some_and(|pinned| **pinned == *id);
            if kept.contains_key(id) {
                (false, false, false, false)
            } else {
                (true, empty(id), !pinned(id), !has(before, id))
            }
        };
        let digest = |id: &str| -> [u8; 32] { Sha256::digest(&*places[id].0).into() };
        for (id, (host, vips)) in places.iter().filter(|(id, _)| !kept.contains_key(*id)) {
            let ranges = self.config.vip_cidr.iter();
            let all: Vec<_> = ranges.flat_map(|range| vip_candidates(&digest(id), *range)).collect();
            if let Some(vip) = vips.0.iter().flatten().find(|vip| !all.contains(vip)) {
                return Some(format!("{id} has {vip}, which {host} cannot have"));
            }
            for better in self.candidates(id).into_iter().take_while(|better| better != host) {
                let has = |places: &Places, id: &str| places.get(id).is_some_and(|(host, _)| *host == better);
                let holder = places.keys().find(|holder| has(places, holder));
                if holder.is_none_or(|holder| (right(holder, &better, &has), holder) > (right(id, &better, &has), id)) {
                    return Some(format!("{id} is served as {host} and has a right to {better}, which {holder:?} has"));
                }
            }
            for range in &self.config.vip_cidr {
                let vip = |vips: &Vips| vips.0[family(range.addr())];
                let candidates = vip_candidates(&digest(id), *range).into_iter();
                for better in candidates.take_while(|better| Some(*better) != vip(vips)) {
                    let has = |places: &Places, id: &str| places.get(id).is_some_and(|(_, it)| vip(it) == Some(better));
                    let holder = places.keys().find(|holder| has(places, holder));
                    let name = better.to_string();
                    let after_me = |holder: &String| {
                        (right(holder, &name, &has), digest(holder)) > (right(id, &name, &has), digest(id))
                    };
                    if holder.is_none_or(after_me) {
                        return Some(format!("{id} has {vips} and a right to {better}, which {holder:?} has"));
                    }
                }
            }
        }
        None
    }

    /// The resources of a service; `None`: they cannot be made.
    fn build(&self, id: &str, host: &str, vips: Vips, members: &[Member]) -> Option<[Changes; 3]> {
        if members.iter().any(|member| member.endpoint().labels.get("app") == Some("panic-when-made")) {
            return None;
        }
        let key = ServiceKey::of_text(id.into());
        let (rules, mode) = (key.rules(self.policy), self.config.endpoint_mode);
        let export_to = exported(&rules, key.id(), self.seen, &self.config.namespace);
        let rules = Rules { export_to: &export_to, ..rules };
        let (id, other) = (key.id(), key.other());
        let full = |name: String| format!("{}/{name}", self.config.namespace);
        let slice = slice_of(&Sha256::digest(host).into());
        let mut entry = service_entry::build(
            &Shape { host, vips: &vips.in_order(&self.config.vip_cidr), id, other, members, mode },
            &rules,
        );
        assert!(validate::keep_valid_endpoints(&mut entry).is_empty());
        validate::service_entry(&entry, &self.config.namespace).ok()?;
        let mut annotations = BTreeMap::from([(ID_ANNOTATION.to_owned(), id.to_owned())]);
        annotations.extend(other.map(|protocol| (PROTOCOL_ANNOTATION.to_owned(), protocol.to_owned())));
        let labels = members.is_empty().then(|| (EMPTY_LABEL.to_owned(), "true".to_owned())).into_iter().collect();
        let name = full(names::resource_name(host, &self.config.host_suffix));
        let resource = Resource::service_entry(name.clone(), labels, annotations.clone(), &entry);
        let rule = rules.warmup.map(|warmup| {
            let rule = service_entry::warmup(host, warmup);
            let rule = Resource::destination_rule(name.clone(), annotations.clone(), &rule);
            ((slice, Arc::from(&*name)), Some(rule))
        });
        let services = Changes::from([((slice, name.into()), Some(resource))]);
        let divisor = service_entry::weight_divisor(members);
        let workloads = members.iter().filter(|_| mode == EndpointMode::WorkloadEntry).map(|member| {
            let name = full(service_entry::workload_name(host, member));
            let mut annotations = annotations.clone();
            annotations.insert(REGISTER_ID_ANNOTATION.to_owned(), member.register_id().to_owned());
            let entry = service_entry::workload_entry(host, member, &entry.ports[0].name, divisor);
            ((slice, Arc::from(&*name)), Some(Resource::workload_entry(name, annotations, &entry)))
        });
        Some([services, workloads.collect(), rule.into_iter().collect()])
    }
}
