//! Which service has which host, and which host which virtual addresses, one of each range.
//!
//! All go by [`Claims`]. Of several services that want one host, or hosts that want one address, comes first:
//!
//! 1. who has to stay as it is served, since its newest form cannot be made: what is served stands in nobody's place;
//! 2. who has endpoints, so that none that is empty is in the way of one that can be called;
//! 3. who has a pin to it, on which all session servers agree ([`Pins`]);
//! 4. who is served under it. So a newcomer takes nothing from anybody, whatever its dataInfoId: what is served is no pure
//!    function of what the registry says in this one point, and the last good state remembers it over a restart;
//! 5. the bytewise smallest dataInfoId, or host by its SHA-256.

pub mod claims;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use hashbrown::HashMap;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::{
    catalog::{
        assignment::claims::{Claims, Contest},
        key::ServiceKey,
        vips::{FAMILIES, Vips, family},
    },
    digest::prefix,
    snapshot::partition::slice_of,
    translate::names::{self, is_application},
};

/// How many virtual addresses a host may try before it goes without one.
const VIP_CANDIDATES: u8 = 8;

type HostDigest = [u8; 32];

/// The right of a service to a host or address: of two the smaller counts before the other. Each field is false for who
/// comes first; the default is the best right there is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// The service does not have to stay as it is served.
    may_move: bool,
    /// The service has no endpoints.
    is_empty: bool,
    /// The service has no pin to the host or address.
    has_no_pin: bool,
    /// The service is not served under the host or address.
    is_new: bool,
}

/// What the rights of a service to its candidates are made from.
struct Rights<'a> {
    id: &'a ServiceKey,
    may_move: bool,
    is_empty: bool,
    served: Option<&'a Place>,
    pins: &'a Pins,
}

impl Rights<'_> {
    fn to_host(&self, host: &str) -> Right {
        let is_served = self.served.is_some_and(|served| *served.host == *host);
        self.to(is_served, || self.pins.get(host))
    }

    fn to_vip(&self, vip: IpAddr) -> Right {
        let is_served = self.served.is_some_and(|served| served.vips.0[family(vip)] == Some(vip));
        self.to(is_served, || self.pins.get(&*vip.to_string()))
    }

    fn to<'p>(&self, is_served: bool, pinned: impl FnOnce() -> Option<&'p Arc<str>>) -> Right {
        let has_pin = || !self.pins.is_empty() && pinned() == Some(self.id.text());
        Right {
            may_move: self.may_move,
            is_empty: self.is_empty,
            has_no_pin: self.may_move && !has_pin(),
            is_new: self.may_move && !is_served,
        }
    }
}

/// The claim of a service.
#[derive(Debug, PartialEq)]
enum Claim {
    /// To the place that it is served under.
    Kept,
    /// To the best place that it can have.
    Best {
        /// The host that the policy sets.
        set: Option<Box<str>>,
        is_empty: bool,
    },
}

/// The place under which a service is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The host, suffix included.
    pub host: Box<str>,
    /// The slice of the host.
    pub slice: usize,
    /// The virtual addresses of the host; where there is none of a range, every candidate is another's.
    pub vips: Vips,
}

/// A service that is served under another host or virtual address than before.
#[derive(Debug)]
pub struct Move {
    /// The service.
    pub id: ServiceKey,
    /// Its place before.
    pub was: Place,
    /// Its place from now on.
    pub is: Place,
}

/// Hosts, suffix included, and virtual addresses, each with the service that is to have it, as all session servers agree.
pub type Pins = BTreeMap<Arc<str>, Arc<str>>;

/// Hosts of services and virtual addresses of hosts.
#[derive(Debug)]
pub struct Assignment {
    suffix: String,
    /// By family.
    vip_ranges: [Option<IpNet>; FAMILIES],
    /// The claims of services, with the SHA-256 of the host that a virtual address is claimed for.
    claims: HashMap<ServiceKey, (Claim, HostDigest)>,
    /// Whole hosts.
    hosts: Claims<Right, ServiceKey, Arc<str>>,
    /// By family.
    vips: [Claims<Right, (HostDigest, ServiceKey), IpAddr>; FAMILIES],
    pins: Arc<Pins>,
    /// Where services are served, as far as anybody was told.
    served: HashMap<ServiceKey, Place>,
    /// Services whose place may be another than the one in `served`.
    unsettled: Movers,
}

/// Services whose host or virtual address may be another than before.
pub type Movers = BTreeSet<ServiceKey>;

impl Assignment {
    /// Nobody claims anything. Hosts end in `.suffix`; without a range there are no virtual addresses, and of a family there is
    /// one range at most.
    pub fn new(suffix: &str, vip_ranges: &[IpNet]) -> Self {
        let mut by_family = [None; FAMILIES];
        vip_ranges.iter().for_each(|range| by_family[family(range.addr())] = Some(*range));
        Self {
            suffix: suffix.to_owned(),
            vip_ranges: by_family,
            claims: HashMap::new(),
            hosts: Claims::default(),
            vips: Default::default(),
            pins: Arc::default(),
            served: HashMap::new(),
            unsettled: Movers::new(),
        }
    }

    /// Claims a host for a service with or without endpoints: the one that the policy sets, or else the best that is made of
    /// its dataInfoId. No effect if it has claimed just that before.
    pub fn claim(&mut self, id: &ServiceKey, set: Option<&str>, is_empty: bool) -> Movers {
        let set = set.filter(|host| self.may_set(host));
        let claim = Claim::Best { set: set.map(Into::into), is_empty };
        if self.claims.get(id).is_some_and(|(known, _)| *known == claim) {
            return Movers::new();
        }
        let digest = self.claims.get(id).map(|(_, digest)| *digest).unwrap_or_default();
        self.claims.insert(id.clone(), (claim, digest));
        let movers = self.claim_best(id);
        self.told(movers)
    }

    /// Whether a policy may set a host: the names of applications' entries are no service's.
    pub fn may_set(&self, host: &str) -> bool {
        !is_application(&names::resource_name(host, &self.suffix))
    }

    /// The pins that count.
    pub fn pins(&self) -> Arc<Pins> {
        Arc::clone(&self.pins)
    }

    /// From now on these pins count, and no others.
    pub fn pin(&mut self, pins: &Arc<Pins>) -> Movers {
        // The same pins come in nearly every round, and there may be thousands.
        if Arc::ptr_eq(&self.pins, pins) || *self.pins == **pins {
            return Movers::new();
        }
        let before = std::mem::replace(&mut self.pins, Arc::clone(pins));
        let changed = |(place, _): &(&Arc<str>, &Arc<str>)| before.get(*place) != pins.get(*place);
        let concerned: Movers =
            before.iter().chain(&**pins).filter(changed).map(|(_, id)| ServiceKey::of_text(Arc::clone(id))).collect();
        let movers = concerned.iter().flat_map(|id| self.claim_best(id)).collect();
        self.told(movers)
    }

    /// Keeps the host and the virtual addresses that a service is served under, whoever else claims them. No effect if it keeps
    /// just these already.
    pub fn keep(&mut self, id: &ServiceKey, host: &str, vips: Vips) -> Movers {
        if self.claims.get(id).is_some_and(|(claim, _)| *claim == Claim::Kept)
            && self.place(id).is_some_and(|place| (&*place.host, place.vips) == (host, vips))
        {
            return Movers::new();
        }
        let digest = Sha256::digest(host).into();
        let mut movers = Movers::from([id.clone()]);
        let right = Right::default();
        if let Some((_, before)) = self.claims.insert(id.clone(), (Claim::Kept, digest))
            && before != digest
        {
            // The address that it has under another host is not free in between, or others would move for nothing.
            for (claims, vip) in self.vips.iter_mut().zip(vips.0) {
                vip.into_iter()
                    .for_each(|vip| claims.hand_over(&(before, id.clone()), &(digest, id.clone()), vip, right));
            }
            self.withdraw_vips(before, id, &mut movers);
        }
        for (claims, vip) in self.vips.iter_mut().zip(vips.0) {
            movers.extend(ids(claims.set(&(digest, id.clone()), vip.map(|vip| (vip, right)))));
        }
        let hosts = self.hosts.set(id, [(host.into(), right)]);
        self.follow(hosts, &mut movers);
        self.told(movers)
    }

    /// Whether a service keeps the place that it is served under, whatever it would claim.
    pub fn keeps(&self, id: &ServiceKey) -> bool {
        matches!(self.claims.get(id), Some((Claim::Kept, _)))
    }

    /// Gives up the claim of a service.
    pub fn withdraw(&mut self, id: &ServiceKey) -> Movers {
        let mut movers = Movers::new();
        if let Some((_, digest)) = self.claims.remove(id) {
            self.withdraw_vips(digest, id, &mut movers);
            let hosts = self.hosts.remove(id);
            self.follow(hosts, &mut movers);
        }
        self.unsettled.insert(id.clone());
        self.told(movers)
    }

    /// From now on services are served where they have their places, and whoever follows is told so: who has a place keeps
    /// it. Returns who was served elsewhere before.
    pub fn settle(&mut self) -> Vec<Move> {
        let mut moves = Vec::new();
        for id in std::mem::take(&mut self.unsettled) {
            let is = self.place(&id);
            let was = match is.clone() {
                Some(is) => self.served.insert(id.clone(), is),
                None => self.served.remove(&id),
            };
            if was == is {
                continue;
            }
            // Its rights are others, and since nobody has a better one to what it has, nobody moves.
            self.renew_rights(&id);
            if let (Some(was), Some(is)) = (was, is) {
                moves.push(Move { id, was, is });
            }
        }
        moves
    }

    fn told(&mut self, movers: Movers) -> Movers {
        self.unsettled.extend(movers.iter().cloned());
        movers
    }

    /// The rights of a service to what it claims.
    fn rights<'a>(&'a self, id: &'a ServiceKey) -> Rights<'a> {
        let (may_move, is_empty) = match self.claims.get(id) {
            Some((Claim::Best { is_empty, .. }, _)) => (true, *is_empty),
            Some((Claim::Kept, _)) | None => (false, false),
        };
        Rights { id, may_move, is_empty, served: self.served.get(id), pins: &self.pins }
    }

    /// Claims what a service with a claim to the best claims already, with the rights that it has now.
    fn renew_rights(&mut self, id: &ServiceKey) {
        let Some((Claim::Best { .. }, digest)) = self.claims.get(id) else { return };
        let (vip, rights) = ((*digest, id.clone()), self.rights(id));
        let hosts = self.hosts.candidates(id).iter();
        let hosts: Vec<_> = hosts.map(|(host, _)| (Arc::clone(host), rights.to_host(host))).collect();
        let vips: [Vec<_>; FAMILIES] = std::array::from_fn(|family| {
            self.vips[family].candidates(&vip).iter().map(|(vip, _)| (*vip, rights.to_vip(*vip))).collect()
        });
        self.hosts.set(id, hosts);
        self.vips.iter_mut().zip(vips).filter(|(_, vips)| !vips.is_empty()).for_each(|(claims, candidates)| {
            claims.set(&vip, candidates);
        });
    }

    /// Claims a host, and a virtual address for it, for a service with a claim to the best.
    fn claim_best(&mut self, id: &ServiceKey) -> Movers {
        let mut movers = Movers::new();
        if let Some((Claim::Best { set, .. }, _)) = self.claims.get(id) {
            let made = names::candidates(id.id(), id.other(), &self.suffix)
                .map(|name| format!("{name}.{}", self.suffix).into());
            let candidates = set.iter().map(|host| Arc::from(&**host)).chain(made);
            let rights = self.rights(id);
            let right = |host: Arc<str>| {
                let right = rights.to_host(&host);
                (host, right)
            };
            let candidates: Vec<(Arc<str>, Right)> = candidates.map(right).collect();
            let mut hosts = self.hosts.set(id, candidates);
            hosts.push(id.clone());
            self.follow(hosts, &mut movers);
        }
        movers
    }

    /// Claims virtual addresses for the hosts of services that may have another than before.
    fn follow(&mut self, hosts: Vec<ServiceKey>, movers: &mut Movers) {
        for id in hosts {
            let Some((Claim::Best { .. }, digest)) = self.claims.get_mut(&id) else { continue };
            let host = self.hosts.get(&id).map(|host| HostDigest::from(Sha256::digest(&**host)));
            let before = std::mem::replace(digest, host.unwrap_or_default());
            if before != *digest {
                self.withdraw_vips(before, &id, movers);
                movers.insert(id.clone());
            }
            if host.is_some() {
                self.claim_vips(&id, movers);
            }
        }
    }

    /// Gives up the claims of a service to virtual addresses for a host.
    fn withdraw_vips(&mut self, host: HostDigest, id: &ServiceKey, movers: &mut Movers) {
        let vip = (host, id.clone());
        self.vips.iter_mut().for_each(|claims| movers.extend(ids(claims.remove(&vip))));
    }

    /// Claims a virtual address of each range for the host of a service with a claim to the best.
    fn claim_vips(&mut self, id: &ServiceKey, movers: &mut Movers) {
        let Some((Claim::Best { .. }, digest)) = self.claims.get(id) else { return };
        let vip = (*digest, id.clone());
        for (family, range) in self.vip_ranges.into_iter().enumerate() {
            let Some(range) = range else {
                // A service of a last good state may have one of a range that is no more.
                let claims = &mut self.vips[family];
                movers.extend(claims.get(&vip).map(|_| id.clone()));
                movers.extend(ids(claims.remove(&vip)));
                continue;
            };
            let rights = self.rights(id);
            let candidates = vip_candidates(&vip.0, range).into_iter().map(|vip| (vip, rights.to_vip(vip)));
            let candidates: Vec<(IpAddr, Right)> = candidates.collect();
            movers.extend(ids(self.vips[family].set(&vip, candidates)));
        }
    }

    /// The place of a service that claims; `None`: every host that it may have is another service's.
    pub fn place(&self, id: &ServiceKey) -> Option<Place> {
        let (_, digest) = self.claims.get(id)?;
        let host = self.hosts.get(id)?;
        let vip = (*digest, id.clone());
        let vips = Vips(self.vips.each_ref().map(|claims| claims.get(&vip).copied()));
        Some(Place { host: (**host).into(), slice: slice_of(digest), vips })
    }

    /// Services that do not have their first host, since another has it.
    pub fn hosts_moved(&self) -> usize {
        self.hosts.moved()
    }

    /// Hosts that do not have their first virtual address of a range, since another has it.
    pub fn vips_moved(&self) -> usize {
        self.vips.iter().map(Claims::moved).sum()
    }

    /// Services that may wait for other places than at the last call, each with the hosts and virtual addresses that it would
    /// rather have than what it has.
    pub fn waits_changed(&mut self) -> Vec<(Arc<str>, Vec<Arc<str>>)> {
        let mut changed: BTreeSet<ServiceKey> = self.hosts.waits_changed().into_iter().collect();
        let of_vips = self.vips.iter_mut().flat_map(Claims::waits_changed);
        changed.extend(of_vips.map(|(_, id)| id));
        let places = |id: ServiceKey| {
            let hosts = self.hosts.waits_for(&id).cloned();
            let vip = (self.claims.get(&id).map(|(_, digest)| *digest).unwrap_or_default(), id.clone());
            let vips = self.vips.iter().flat_map(|claims| claims.waits_for(&vip)).map(|vip| vip.to_string().into());
            let places = hosts.chain(vips).collect();
            (Arc::clone(id.text()), places)
        };
        changed.into_iter().map(places).collect()
    }

    /// Hosts and virtual addresses for which other services contend than at the last call, by the texts of these; `None`: nobody
    /// any more.
    pub fn contests_changed(&mut self) -> Vec<(Arc<str>, Option<Contest<Arc<str>>>)> {
        let shown = |holder: ServiceKey, waiting: Vec<ServiceKey>, count| Contest {
            holder: Arc::clone(holder.text()),
            waiting: waiting.iter().map(|key| Arc::clone(key.text())).collect(),
            count,
        };
        let hosts = self.hosts.contests_changed().into_iter().map(|(host, contest)| {
            let contest = contest.map(|Contest { holder, waiting, count }| shown(holder, waiting, count));
            (host, contest)
        });
        let vips = self.vips.iter_mut().flat_map(Claims::contests_changed).map(|(vip, contest)| {
            let contest = contest
                .map(|Contest { holder: (_, holder), waiting, count }| shown(holder, ids(waiting).collect(), count));
            (vip.to_string().into(), contest)
        });
        hosts.chain(vips).collect()
    }
}

fn ids(vips: Vec<(HostDigest, ServiceKey)>) -> impl Iterator<Item = ServiceKey> {
    vips.into_iter().map(|(_, id)| id)
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
    use proptest::prelude::*;

    use super::*;

    const SUFFIX: &str = "sofa.mesh";

    fn id(name: &str) -> ServiceKey {
        ServiceKey::main(&format!("{name}:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA").into())
    }

    fn assignment(range: &str) -> Assignment {
        let ranges: Vec<IpNet> = range.split_whitespace().map(|range| range.parse().unwrap()).collect();
        Assignment::new(SUFFIX, &ranges)
    }

    fn host(assignment: &Assignment, name: &str) -> Option<String> {
        assignment.place(&id(name)).map(|place| place.host.into())
    }

    const PLAIN: Option<&str> = Some("a.demo.sofa.mesh");

    #[test]
    fn whoever_has_the_pin_has_the_place_if_there_are_endpoints() {
        let mut all = assignment("248.0.0.0/6");
        all.claim(&id("a.Demo"), None, false);
        all.settle();
        all.claim(&id("a.demo"), None, false);
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN);
        let pins = |name: &str| Arc::new(Pins::from([(PLAIN.unwrap().into(), Arc::clone(id(name).text()))]));
        let movers = all.pin(&pins("a.demo"));
        assert_eq!(movers, [id("a.Demo"), id("a.demo")].into());
        assert_eq!(host(&all, "a.demo").as_deref(), PLAIN, "also from who is served");
        assert_eq!(all.settle().len(), 1);
        assert!(all.pin(&pins("a.demo")).is_empty());
        all.claim(&id("a.demo"), None, true);
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN, "an empty one is in nobody's way");
        all.claim(&id("a.demo"), None, false);
        assert_eq!(host(&all, "a.demo").as_deref(), PLAIN);
        all.settle();
        // Without a pin it stays where it is, and a pin of one that is not there is for nobody.
        all.pin(&Arc::default());
        assert_eq!(host(&all, "a.demo").as_deref(), PLAIN);
        all.pin(&pins("a.DEMO"));
        assert_eq!(host(&all, "a.demo").as_deref(), PLAIN);
        all.withdraw(&id("a.demo"));
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN);
    }

    #[test]
    fn of_two_that_come_at_once_the_smaller_has_the_host() {
        for order in [["a.demo", "a.Demo"], ["a.Demo", "a.demo"]] {
            let mut all = assignment("");
            order.iter().for_each(|name| drop(all.claim(&id(name), None, false)));
            assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN);
            assert!(host(&all, "a.demo").is_some_and(|host| host.starts_with("a-")));
            assert_eq!(all.hosts_moved(), 1);
            assert_eq!(all.claim(&id("a.Demo"), None, false), Movers::new(), "it claims that already");
            assert!(all.withdraw(&id("a.Demo")).contains(&id("a.demo")));
            assert_eq!((host(&all, "a.demo").as_deref(), all.hosts_moved()), (PLAIN, 0));
        }
    }

    #[test]
    fn who_is_served_under_a_host_keeps_it_while_it_has_endpoints() {
        let mut all = assignment("");
        let (served, newcomer) = (id("a.demo"), id("a.Demo"));
        all.claim(&served, None, false);
        all.settle();
        all.claim(&newcomer, None, false);
        all.settle();
        assert_eq!(host(&all, "a.demo").as_deref(), PLAIN);
        let contests = all.contests_changed();
        let [(name, Some(Contest { holder, waiting, count: 1 }))] = &contests[..] else { panic!("{contests:?}") };
        assert_eq!((Some(&**name), holder, &waiting[..]), (PLAIN, served.text(), &[Arc::clone(newcomer.text())][..]));
        // Without endpoints it is in the way of nobody.
        assert_eq!(all.claim(&served, None, true), Movers::from([&newcomer, &served].map(ServiceKey::clone)));
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN);
        let moves: Vec<_> = all.settle().into_iter().map(|Move { id, was, is }| (id, was.host, is.host)).collect();
        assert_eq!(moves.len(), 2);
        assert!(moves.iter().any(|(id, _, is)| *id == newcomer && Some(&**is) == PLAIN));
        // And now the other is served under it.
        all.claim(&served, None, false);
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN);
        assert!(all.withdraw(&newcomer).contains(&served));
        assert_eq!(host(&all, "a.demo").as_deref(), PLAIN);
        all.settle();
        let contests = all.contests_changed();
        assert!(matches!(&contests[..], [(name, None)] if Some(&**name) == PLAIN), "{contests:?}");
    }

    #[test]
    fn what_nobody_was_told_of_is_nobodys() {
        let mut all = assignment("");
        all.claim(&id("a.demo"), None, false);
        all.claim(&id("a.Demo"), None, false);
        assert!(all.settle().is_empty(), "none was served before");
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN);
        assert!(all.claim(&id("A.demo"), None, false).contains(&id("A.demo")));
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN, "the third is smaller, but this one is served");
    }

    #[test]
    fn what_is_kept_is_nobody_elses() {
        let mut all = assignment("10.96.0.0/30");
        all.claim(&id("a.demo"), None, false);
        let served = all.place(&id("a.demo")).unwrap();
        assert_eq!(all.keep(&id("a.demo"), &served.host, served.vips), Movers::from([id("a.demo")]));
        assert_eq!(all.keep(&id("a.demo"), &served.host, served.vips), Movers::new(), "it keeps that already");
        all.claim(&id("a.Demo"), None, false);
        assert_eq!(all.place(&id("a.demo")), Some(served.clone()));
        assert!(
            host(&all, "a.Demo").is_some_and(|host| host.starts_with("a-")),
            "smaller, but not before what is kept"
        );
        // Two hosts that the policy sets go around it as well, and there are two addresses.
        all.claim(&id("other"), Some(&served.host), false);
        assert_ne!(all.place(&id("other")).unwrap().host, served.host);
        let vips: BTreeSet<_> = ["a.demo", "a.Demo", "other"].map(|name| all.place(&id(name)).unwrap().vips).into();
        assert_eq!(vips.len(), 3, "one has none: {vips:?}");
        assert!(vips.contains(&served.vips) && vips.contains(&Vips::default()));
        all.claim(&id("a.demo"), None, false);
        assert_eq!(host(&all, "a.Demo").as_deref(), PLAIN, "no longer kept");
    }

    #[test]
    fn an_address_of_a_range_that_is_no_more_goes() {
        let mut before = assignment("248.0.0.0/6 fd00::/64");
        before.claim(&id("a.demo"), None, false);
        let served = before.place(&id("a.demo")).unwrap();
        assert!(served.vips.0.iter().all(Option::is_some));
        for ranges in ["248.0.0.0/6", "fd00::/64", "10.0.0.0/8", ""] {
            let mut all = assignment(ranges);
            all.keep(&id("a.demo"), &served.host, served.vips);
            all.settle();
            assert_eq!(all.place(&id("a.demo")), Some(served.clone()), "until it can be made");
            assert_eq!(all.claim(&id("a.demo"), None, false), Movers::from([id("a.demo")]));
            let vips: Vec<IpAddr> = all.place(&id("a.demo")).unwrap().vips.0.into_iter().flatten().collect();
            let ranges: Vec<IpNet> = ranges.split_whitespace().map(|range| range.parse().unwrap()).collect();
            assert_eq!(vips.len(), ranges.len());
            assert!(vips.iter().all(|vip| ranges.iter().any(|range| range.contains(vip))), "{vips:?}");
            assert_eq!(all.settle().len(), 1);
        }
    }

    #[test]
    fn a_host_that_the_policy_sets_comes_first_unless_it_is_an_applications() {
        let mut all = assignment("");
        all.claim(&id("a"), Some("b.example.com"), false);
        assert_eq!(host(&all, "a").as_deref(), Some("b.example.com"));
        assert_eq!(all.claim(&id("a"), Some("p80.orders.app.sofa.mesh"), false), Movers::from([id("a")]));
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

    const NAMES: [&str; 6] = ["a.demo", "a.Demo", "A.demo", "b", "c.d", "x"];
    const SETS: [Option<&str>; 4] = [None, Some("b.sofa.mesh"), Some("s.example.com"), Some("a.demo.sofa.mesh")];
    const RANGES: &str = "10.96.0.0/29 fd00::/125";

    type Places = [Option<Place>; 6];

    fn places(all: &Assignment) -> Places {
        NAMES.map(|name| all.place(&id(name)))
    }

    /// The hosts that a service would have, best first.
    fn wanted(n: usize, set: usize) -> Vec<String> {
        let id = id(NAMES[n]);
        let made = names::candidates(id.id(), id.other(), SUFFIX).map(|name| format!("{name}.{SUFFIX}"));
        SETS[set].map(str::to_owned).into_iter().chain(made).collect()
    }

    /// Claims of services: the host that is set and whether they are empty; `None`: to stay as they are served.
    type Model = BTreeMap<usize, Option<(usize, bool)>>;

    /// Who else may have what a service would rather have than its own, and by which right.
    fn check(now: &Places, served: &Places, model: &Model) -> Result<(), TestCaseError> {
        let right = |n: usize, is_served: bool| match model[&n] {
            None => (false, false, false),
            Some((_, is_empty)) => (true, is_empty, !is_served),
        };
        let vips =
            |place: &Place, range: &str| vip_candidates(&Sha256::digest(&*place.host).into(), range.parse().unwrap());
        for (n, claim) in model {
            let mine = now[*n].as_ref();
            let Some((set, _)) = claim else {
                prop_assert!(mine == served[*n].as_ref(), "{} was to stay", NAMES[*n]);
                continue;
            };
            for host in wanted(*n, *set).into_iter().take_while(|host| mine.is_none_or(|mine| *mine.host != **host)) {
                let is_served = |n: usize| served[n].as_ref().is_some_and(|served| *served.host == *host);
                let holder = model.keys().find(|m| now[**m].as_ref().is_some_and(|place| *place.host == *host));
                prop_assert!(holder.is_some(), "{} may have {}", NAMES[*n], host);
                let holder = *holder.unwrap();
                let (theirs, ours) = (right(holder, is_served(holder)), right(*n, is_served(*n)));
                prop_assert!(
                    (theirs, id(NAMES[holder])) < (ours, id(NAMES[*n])),
                    "{} has a right to {}",
                    NAMES[*n],
                    host
                );
            }
            let Some(mine) = mine else { continue };
            for (family, range) in RANGES.split_whitespace().enumerate() {
                let vip_of = |place: &Place| place.vips.0[family];
                for vip in vips(mine, range).into_iter().take_while(|vip| vip_of(mine) != Some(*vip)) {
                    let is_served = |n: usize| served[n].as_ref().is_some_and(|served| vip_of(served) == Some(vip));
                    let holder =
                        model.keys().find(|m| now[**m].as_ref().is_some_and(|place| vip_of(place) == Some(vip)));
                    prop_assert!(holder.is_some(), "{} may have {}", NAMES[*n], vip);
                    let holder = *holder.unwrap();
                    let digest = |place: &Place| HostDigest::from(Sha256::digest(&*place.host));
                    let (theirs, ours) = (right(holder, is_served(holder)), right(*n, is_served(*n)));
                    let (theirs, ours) = ((theirs, digest(now[holder].as_ref().unwrap())), (ours, digest(mine)));
                    prop_assert!(theirs < ours, "{} has a right to {}", NAMES[*n], vip);
                }
            }
        }
        let taken = || now.iter().flatten();
        prop_assert_eq!(taken().map(|place| &place.host).collect::<BTreeSet<_>>().len(), taken().count());
        let vips: Vec<IpAddr> = taken().flat_map(|place| place.vips.0).flatten().collect();
        prop_assert_eq!(vips.iter().collect::<BTreeSet<_>>().len(), vips.len());
        prop_assert_eq!(taken().count(), model.len(), "everybody has a host");
        Ok(())
    }

    proptest! {
        /// Whatever the history, nobody has a host or address that another has a better right to, nobody who is served and has
        /// endpoints loses its own, who is moved is told, and a restart moves nobody.
        #[test]
        fn in_any_history_everybody_has_what_it_has_a_right_to(
            history in proptest::collection::vec((0..NAMES.len(), 0u8..10, 0..SETS.len()), 0..60)
        ) {
            let mut all = assignment(RANGES);
            let (mut model, mut served) = (Model::new(), Places::default());
            for (n, what, set) in history {
                let (name, before) = (id(NAMES[n]), places(&all));
                let moved = match (what, &served[n]) {
                    (0..6, _) => {
                        model.insert(n, Some((set, what < 2)));
                        all.claim(&name, SETS[set], what < 2)
                    }
                    (6, Some(place)) => {
                        model.insert(n, None);
                        all.keep(&name, &place.host, place.vips)
                    }
                    (6 | 7, _) => {
                        model.remove(&n);
                        all.withdraw(&name)
                    }
                    _ => {
                        for Move { id: moved, was, is } in all.settle() {
                            let n = NAMES.iter().position(|name| id(name) == moved).unwrap();
                            prop_assert_eq!((served[n].as_ref(), before[n].as_ref()), (Some(&was), Some(&is)));
                            prop_assert!(was != is);
                        }
                        served = before.clone();
                        prop_assert_eq!(&places(&all), &served, "nobody moves when it is told");
                        Movers::new()
                    }
                };
                let after = places(&all);
                check(&after, &served, &model)?;
                for (n, name) in NAMES.iter().enumerate() {
                    let is_told = before[n] == after[n] || after[n].is_none() || moved.contains(&id(name));
                    prop_assert!(is_told, "{} moved unsaid", name);
                }
                // Whoever was served somewhere and has endpoints moves to what it would rather have, or because it wants another.
                for (n, claim) in &model {
                    if let (Some(Some((set, false))), Some(was), Some(is)) = (Some(claim), &served[*n], &after[*n])
                        && was.host != is.host
                    {
                        let wanted = wanted(*n, *set);
                        let at = |place: &Place| wanted.iter().position(|host| **host == *place.host);
                        prop_assert!(at(was).is_none_or(|was| at(is).unwrap() < was), "{} lost its host", NAMES[*n]);
                    }
                }
            }
            all.settle();
            let before = places(&all);
            let mut restarted = assignment(RANGES);
            for (name, place) in NAMES.iter().zip(&before) {
                place.iter().for_each(|place| drop(restarted.keep(&id(name), &place.host, place.vips)));
            }
            restarted.settle();
            for (n, claim) in &model {
                claim.iter().for_each(|(set, is_empty)| drop(restarted.claim(&id(NAMES[*n]), SETS[*set], *is_empty)));
                prop_assert_eq!(&places(&restarted), &before);
            }
        }
    }
}
