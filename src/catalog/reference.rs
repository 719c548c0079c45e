//! The definition of what is to be served: everything is read, assigned and built anew, for all services at once.
//!
//! It shares with [`Round`](super::round::Round) how a publisher is read and an entry is built, and nothing of how a round
//! goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use crate::{
    catalog::assignment::vip_candidates,
    config::Config,
    istio::{
        names::{EMPTY_LABEL, ID_ANNOTATION, REGISTER_ID_ANNOTATION},
        validate,
    },
    policy::Policy,
    registry::store::Store,
    snapshot::{Changes, Resource, partition::slice_of},
    translate::{
        names,
        service_entry::{self, EndpointMode, Member, Shape},
    },
};

/// Services that are not served as the registry has them, as the report names them.
#[derive(Debug, Default)]
pub(crate) struct Exceptions {
    /// Served in an old form, with the host and the address of it.
    pub(crate) kept: BTreeMap<String, (String, Option<IpAddr>)>,
    /// Those of them that are kept since their newest form cannot be made.
    pub(crate) quarantined: BTreeSet<String>,
    /// Served without endpoints for a while.
    pub(crate) graces: BTreeSet<String>,
    /// Served with more endpoints than are wanted.
    pub(crate) withheld: BTreeSet<String>,
    /// Not served yet.
    pub(crate) waiting: BTreeSet<String>,
}

/// Everything that is to be served, without the entries of applications.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// Services that are to be served.
    pub(crate) ids: BTreeSet<String>,
    /// Services whose form cannot be made, those that are kept included.
    pub(crate) refused: BTreeSet<String>,
    /// ServiceEntries and WorkloadEntries of all that are no exception and of those in their grace.
    pub(crate) resources: [Changes; 2],
}

/// The definition.
pub(crate) struct Reference<'a> {
    pub(crate) config: &'a Config,
    pub(crate) store: &'a Store,
    pub(crate) policy: &'a Policy,
}

impl Reference<'_> {
    /// The endpoints that the registry and the policy want a service to have; `None`: its publishers cannot be read.
    pub(crate) fn wanted(&self, id: &str) -> Option<Vec<Member>> {
        if !self.policy.serves(id) {
            return Some(Vec::new());
        }
        let merged = || service_entry::merge(&self.store.read(id), &self.policy.rules(id)).members;
        catch_unwind(AssertUnwindSafe(merged)).ok()
    }

    /// Everything that is to be served.
    pub(crate) fn expected(&self, ids: &[&str], exceptions: &Exceptions) -> Expected {
        let Exceptions { kept, quarantined, graces, withheld, waiting } = exceptions;
        let wanted: BTreeMap<&str, Option<Vec<Member>>> = ids.iter().map(|id| (*id, self.wanted(id))).collect();
        let mut expected = Expected::default();
        for id in quarantined {
            let members = wanted[&**id].as_deref();
            let host = self.candidates(id).remove(0);
            if members.is_none_or(|members| self.build(id, &host, None, members).is_none()) {
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
            let mut unreadable = ids.iter().filter(|id| wanted[**id].is_none() && !kept.contains_key(**id));
            let places = self.places(&claimants, kept);
            let mut resources = [Changes::new(), Changes::new()];
            let made = claimants.iter().filter(|id| !withheld.contains(**id)).map(|id| {
                let (host, vip) = &places[id];
                let built = self.build(id, host, *vip, wanted[id].as_deref().unwrap_or_default());
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

    fn candidates(&self, id: &str) -> Vec<String> {
        let suffix = &self.config.host_suffix;
        let rules = self.policy.rules(id);
        let set = rules.host.filter(|host| !names::is_application(&names::resource_name(host, suffix)));
        let made = names::candidates(id, suffix).map(|name| format!("{name}.{suffix}"));
        set.map(str::to_owned).into_iter().chain(made).collect()
    }

    /// By rank, each takes its first candidate that nobody before it took.
    fn places<'i>(
        &self,
        claimants: &[&'i str],
        kept: &BTreeMap<String, (String, Option<IpAddr>)>,
    ) -> BTreeMap<&'i str, (String, Option<IpAddr>)> {
        let mut hosts: BTreeSet<String> = kept.values().map(|(host, _)| host.clone()).collect();
        let mut by_digest: BTreeMap<([u8; 32], &str), String> = BTreeMap::new();
        let mut sorted = claimants.to_vec();
        sorted.sort_unstable();
        for id in sorted {
            let host = self.candidates(id).into_iter().find(|host| hosts.insert(host.clone())).unwrap();
            by_digest.insert((Sha256::digest(&host).into(), id), host);
        }
        let mut vips: BTreeSet<IpAddr> = kept.values().filter_map(|(_, vip)| *vip).collect();
        let place = |((digest, id), host): (([u8; 32], &'i str), String)| {
            let candidates = self.config.vip_cidr.map(|range| vip_candidates(&digest, range)).unwrap_or_default();
            (id, (host, candidates.into_iter().find(|vip| vips.insert(*vip))))
        };
        by_digest.into_iter().map(place).collect()
    }

    /// The resources of a service; `None`: they cannot be made.
    fn build(&self, id: &str, host: &str, vip: Option<IpAddr>, members: &[Member]) -> Option<[Changes; 2]> {
        if members.iter().any(|member| member.endpoint().labels.get("app") == Some("panic-when-made")) {
            return None;
        }
        let (rules, mode) = (self.policy.rules(id), self.config.endpoint_mode);
        let full = |name: String| format!("{}/{name}", self.config.namespace);
        let slice = slice_of(&Sha256::digest(host).into());
        let mut entry = service_entry::build(&Shape { host, vip, id, members, mode }, &rules);
        assert!(validate::keep_valid_endpoints(&mut entry).is_empty());
        validate::service_entry(&entry, &self.config.namespace).ok()?;
        let annotations: BTreeMap<_, _> = [(ID_ANNOTATION.to_owned(), id.to_owned())].into();
        let labels = members.is_empty().then(|| (EMPTY_LABEL.to_owned(), "true".to_owned())).into_iter().collect();
        let name = full(names::resource_name(host, &self.config.host_suffix));
        let resource = Resource::service_entry(name.clone(), labels, annotations.clone(), &entry);
        let services = Changes::from([((slice, name.into()), Some(resource))]);
        let workloads = members.iter().filter(|_| mode == EndpointMode::WorkloadEntry).map(|member| {
            let name = full(service_entry::workload_name(host, member));
            let mut annotations = annotations.clone();
            annotations.insert(REGISTER_ID_ANNOTATION.to_owned(), member.register_id().to_owned());
            let entry = service_entry::workload_entry(host, member, &entry.ports[0].name);
            ((slice, Arc::from(&*name)), Some(Resource::workload_entry(name, annotations, &entry)))
        });
        Some([services, workloads.collect()])
    }
}
