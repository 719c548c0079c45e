//! Which service has which host, and which host which virtual address.
//!
//! Both go by [`Claims`], so they depend on who claims and not on the order in which they came. A service whose newest form
//! cannot be made keeps the host and the address that it is served under, before all that claim them: what is served
//! stands in nobody's place.

pub mod claims;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::{
    catalog::assignment::claims::Claims,
    digest::prefix,
    snapshot::partition::slice_of,
    translate::names::{self, is_application},
};

/// How many virtual addresses a host may try before it goes without one.
const VIP_CANDIDATES: u8 = 8;

type HostDigest = [u8; 32];

/// The rank of a claim; the first counts before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The claim of a service that stays as it is served.
    Kept,
    /// The claim of any other service.
    Claimed,
}

/// The claim of a service.
#[derive(Debug)]
struct Claim {
    rank: Rank,
    /// The host that the policy sets.
    set: Option<Box<str>>,
    /// The SHA-256 of the host that a virtual address is claimed for.
    digest: HostDigest,
}

/// The place under which a service is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The host, suffix included.
    pub host: Box<str>,
    /// The slice of the host.
    pub slice: usize,
    /// The virtual address of the host; `None`: there are none, or every candidate is another's.
    pub vip: Option<IpAddr>,
}

/// Hosts of services and virtual addresses of hosts.
#[derive(Debug)]
pub struct Assignment {
    suffix: String,
    vip_range: Option<IpNet>,
    claims: HashMap<Arc<str>, Claim>,
    /// Whole hosts.
    hosts: Claims<(Rank, Arc<str>), String>,
    vips: Claims<(Rank, HostDigest, Arc<str>), IpAddr>,
}

/// Services whose host or virtual address may be another than before.
pub type Movers = BTreeSet<Arc<str>>;

impl Assignment {
    /// Nobody claims anything. Hosts end in `.suffix`; without a range there are no virtual addresses.
    pub fn new(suffix: &str, vip_range: Option<IpNet>) -> Self {
        Self {
            suffix: suffix.to_owned(),
            vip_range,
            claims: HashMap::new(),
            hosts: Claims::default(),
            vips: Claims::default(),
        }
    }

    /// Claims a host for a service: the one that the policy sets, or else the best that is made of its dataInfoId. No effect
    /// if it has claimed just that before.
    pub fn claim(&mut self, id: &Arc<str>, set: Option<&str>) -> Movers {
        // The names of applications' entries are no service's.
        let set = set.filter(|host| !is_application(&names::resource_name(host, &self.suffix)));
        if let Some(Claim { rank: Rank::Claimed, set: before, .. }) = self.claims.get(id)
            && before.as_deref() == set
        {
            return Movers::new();
        }
        let made = names::candidates(id, &self.suffix).map(|name| format!("{name}.{}", self.suffix));
        let candidates: Vec<String> = set.map(str::to_owned).into_iter().chain(made).collect();
        let mut movers = self.withdraw(id);
        let claim = Claim { rank: Rank::Claimed, set: set.map(Into::into), digest: HostDigest::default() };
        self.claims.insert(Arc::clone(id), claim);
        let hosts = self.hosts.insert((Rank::Claimed, Arc::clone(id)), candidates);
        self.follow(hosts, &mut movers);
        movers
    }

    /// Keeps the host and the virtual address that a service is served under, whoever else claims them. No effect if it keeps
    /// just these already.
    pub fn keep(&mut self, id: &Arc<str>, host: &str, vip: Option<IpAddr>) -> Movers {
        if self.claims.get(id).is_some_and(|claim| claim.rank == Rank::Kept)
            && self.place(id).is_some_and(|place| (&*place.host, place.vip) == (host, vip))
        {
            return Movers::new();
        }
        let mut movers = self.withdraw(id);
        let digest = Sha256::digest(host).into();
        self.claims.insert(Arc::clone(id), Claim { rank: Rank::Kept, set: None, digest });
        let hosts = self.hosts.insert((Rank::Kept, Arc::clone(id)), [host.to_owned()]);
        let vips = self.vips.insert((Rank::Kept, digest, Arc::clone(id)), vip);
        movers.extend(vips.into_iter().map(|(.., id)| id));
        self.follow(hosts, &mut movers);
        movers
    }

    /// Gives up the claim of a service.
    pub fn withdraw(&mut self, id: &Arc<str>) -> Movers {
        let mut movers = Movers::new();
        if let Some(Claim { rank, digest, .. }) = self.claims.remove(id) {
            movers.extend(self.vips.remove(&(rank, digest, Arc::clone(id))).into_iter().map(|(.., id)| id));
            let hosts = self.hosts.remove(&(rank, Arc::clone(id)));
            self.follow(hosts, &mut movers);
        }
        movers
    }

    /// Claims virtual addresses for the hosts of services that have another than before.
    fn follow(&mut self, hosts: Vec<(Rank, Arc<str>)>, movers: &mut Movers) {
        for key in hosts {
            let (rank, id) = &key;
            if let (Rank::Claimed, Some(claim)) = (rank, self.claims.get_mut(id)) {
                let vip = |digest| (Rank::Claimed, digest, Arc::clone(id));
                let mut vips = self.vips.remove(&vip(claim.digest));
                let host = self.hosts.get(&key).map(String::as_str).unwrap_or_default();
                claim.digest = Sha256::digest(host).into();
                let candidates = self.vip_range.map(|range| vip_candidates(&claim.digest, range));
                vips.extend(self.vips.insert(vip(claim.digest), candidates.unwrap_or_default()));
                movers.extend(vips.into_iter().map(|(.., id)| id));
            }
            movers.insert(key.1);
        }
    }

    /// The place of a service that claims; `None`: every host that it may have is another service's.
    pub fn place(&self, id: &Arc<str>) -> Option<Place> {
        let Claim { rank, digest, .. } = self.claims.get(id)?;
        let host = self.hosts.get(&(*rank, Arc::clone(id)))?;
        let vip = self.vips.get(&(*rank, *digest, Arc::clone(id))).copied();
        Some(Place { host: host.as_str().into(), slice: slice_of(digest), vip })
    }

    /// Services that do not have their first host, since another has it.
    pub fn hosts_moved(&self) -> usize {
        self.hosts.moved()
    }

    /// Hosts that do not have their first virtual address, since another has it.
    pub fn vips_moved(&self) -> usize {
        self.vips.moved()
    }
}

/// Addresses in `range` by the host's hash, best first, without the network's own address.
pub(super) fn vip_candidates(host: &HostDigest, range: IpNet) -> Vec<IpAddr> {
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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SUFFIX: &str = "sofa.mesh";

    fn id(name: &str) -> Arc<str> {
        format!("{name}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA").into()
    }

    fn assignment(range: &str) -> Assignment {
        Assignment::new(SUFFIX, range.parse().ok())
    }

    fn host(assignment: &Assignment, name: &str) -> Option<String> {
        assignment.place(&id(name)).map(|place| place.host.into())
    }

    #[test]
    fn of_two_with_one_host_the_smaller_has_it_and_the_other_is_moved() {
        let mut all = assignment("");
        assert_eq!(all.claim(&id("a.demo"), None), Movers::from([id("a.demo")]));
        assert_eq!(host(&all, "a.demo").as_deref(), Some("a.demo.sofa.mesh"));
        assert_eq!(all.claim(&id("a.Demo"), None), Movers::from([id("a.Demo"), id("a.demo")]));
        assert_eq!(host(&all, "a.Demo").as_deref(), Some("a.demo.sofa.mesh"));
        assert!(host(&all, "a.demo").is_some_and(|host| host.starts_with("a-")));
        assert_eq!(all.hosts_moved(), 1);
        assert_eq!(all.claim(&id("a.Demo"), None), Movers::new(), "it claims that already");
        assert_eq!(all.withdraw(&id("a.Demo")), Movers::from([id("a.demo")]));
        assert_eq!((host(&all, "a.demo").as_deref(), all.hosts_moved()), (Some("a.demo.sofa.mesh"), 0));
    }

    #[test]
    fn what_is_kept_is_nobody_elses() {
        let mut all = assignment("10.96.0.0/30");
        all.claim(&id("a.demo"), None);
        let served = all.place(&id("a.demo")).unwrap();
        assert_eq!(all.keep(&id("a.demo"), &served.host, served.vip), Movers::from([id("a.demo")]));
        assert_eq!(all.keep(&id("a.demo"), &served.host, served.vip), Movers::new(), "it keeps that already");
        all.claim(&id("a.Demo"), None);
        assert_eq!(all.place(&id("a.demo")), Some(served.clone()));
        assert!(
            host(&all, "a.Demo").is_some_and(|host| host.starts_with("a-")),
            "smaller, but not before what is kept"
        );
        // Two hosts that the policy sets go around it as well, and there are two addresses.
        all.claim(&id("other"), Some(&served.host));
        assert_ne!(all.place(&id("other")).unwrap().host, served.host);
        let vips: BTreeSet<_> = ["a.demo", "a.Demo", "other"].map(|name| all.place(&id(name)).unwrap().vip).into();
        assert_eq!(vips.len(), 3, "one has none: {vips:?}");
        assert!(vips.contains(&served.vip) && vips.contains(&None));
        all.claim(&id("a.demo"), None);
        assert_eq!(host(&all, "a.Demo").as_deref(), Some("a.demo.sofa.mesh"), "no longer kept");
    }

    #[test]
    fn a_host_that_the_policy_sets_comes_first_unless_it_is_an_applications() {
        let mut all = assignment("");
        all.claim(&id("a"), Some("b.example.com"));
        assert_eq!(host(&all, "a").as_deref(), Some("b.example.com"));
        assert_eq!(all.claim(&id("a"), Some("p80.orders.app.sofa.mesh")), Movers::from([id("a")]));
        assert_eq!(host(&all, "a").as_deref(), Some("a.sofa.mesh"));
    }

    #[test]
    fn virtual_addresses_are_of_the_range_and_not_its_ends() {
        for range in ["248.0.0.0/6", "10.0.0.0/30", "fd00::/64", "10.0.0.0/32"] {
            let net: IpNet = range.parse().unwrap();
            for host in 0..200u8 {
                let all = vip_candidates(&Sha256::digest([host]).into(), net);
                assert!(all.iter().all(|vip| net.contains(vip) && *vip != net.network() && *vip != net.broadcast()));
            }
        }
    }

    proptest! {
        /// Whatever the history, places are those of a claim of all at once, nobody shares one, and who is moved is told.
        #[test]
        fn any_history_gives_the_places_of_who_is_there(
            history in proptest::collection::vec((0usize..6, prop_oneof![2 => Just(None), 3 => (0usize..4).prop_map(Some)]), 0..40)
        ) {
            let names = ["a.demo", "a.Demo", "A.demo", "b", "c.d", "x"];
            let sets = [None, Some("b.sofa.mesh"), Some("s.example.com"), Some("a.demo.sofa.mesh")];
            let mut all = assignment("10.96.0.0/29");
            let mut claimed: BTreeMap<usize, usize> = BTreeMap::new();
            for (name, claim) in history {
                let places = |all: &Assignment| names.map(|name| all.place(&id(name)));
                let before = places(&all);
                let moved = match claim {
                    Some(set) => { claimed.insert(name, set); all.claim(&id(names[name]), sets[set]) }
                    None => { claimed.remove(&name); all.withdraw(&id(names[name])) }
                };
                let after = places(&all);
                for (n, name) in names.iter().enumerate() {
                    prop_assert!(before[n] == after[n] || after[n].is_none() || moved.contains(&id(name)), "{} moved unsaid", name);
                }
                let mut fresh = assignment("10.96.0.0/29");
                claimed.iter().rev().for_each(|(name, set)| drop(fresh.claim(&id(names[*name]), sets[*set])));
                prop_assert_eq!(&after, &places(&fresh));
                prop_assert_eq!((all.hosts_moved(), all.vips_moved()), (fresh.hosts_moved(), fresh.vips_moved()));
                let hosts: BTreeSet<_> = after.iter().flatten().map(|place| &place.host).collect();
                let vips: BTreeSet<_> = after.iter().flatten().filter_map(|place| place.vip).collect();
                prop_assert_eq!(hosts.len(), claimed.len());
                prop_assert_eq!(vips.len(), after.iter().flatten().filter(|place| place.vip.is_some()).count());
            }
        }
    }
}
