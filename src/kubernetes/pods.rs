//! In which namespace the pod at an address is: a value over what the API server shows of pods.
//!
//! Kept is what the question needs, about 120 bytes for each pod. Of several pods that have an address the newer one counts. When
//! a pod goes its address says for a while what it said: a session server may see its client go later than the API server its pod. It
//! says as well that another pod may be there, which is shown later than its client comes.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// So many pods are told apart; the addresses of more say nothing.
const MOST: usize = 200_000;
/// So many changes are remembered one by one.
const MOST_CHANGES: usize = 4_096;
/// How long the address of a pod that is gone says what it said, unless another pod has it.
const LINGER: Duration = Duration::from_secs(600);

/// An address of either family; IPv4 as IPv6 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Address([u8; 16]);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        })
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.0).to_canonical()
    }
}

/// A pod: the first eight bytes of the SHA-256 of its uid.
pub(super) type PodId = u64;

/// What is shown of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodSeen {
    pub(super) id: PodId,
    pub(super) namespace: Arc<str>,
    /// When it was made, in a form that grows with time.
    pub(super) made: u64,
    /// Its addresses, one of each family at most; none where it has none of its own, or has ended.
    pub(super) addresses: [Option<Address>; 2],
}

#[derive(Debug)]
struct Pod {
    namespace: Arc<str>,
    made: u64,
    /// Zeros stand for none, which no pod has.
    addresses: [[u8; 16]; 2],
}

impl Pod {
    fn addresses(&self) -> impl Iterator<Item = Address> + use<> {
        self.addresses.into_iter().filter(|address| *address != [0; 16]).map(Address)
    }
}

/// Addresses by which the answer may be another one since some moment.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed {
    /// These.
    These(HashSet<IpAddr>),
    /// Any.
    Any,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pods: HashMap<PodId, Pod>,
    addresses: HashMap<Address, PodId>,
    /// Pods that have an address which a newer one has.
    rivals: HashMap<Address, BTreeSet<(u64, PodId)>>,
    /// The pods of each namespace, so that its name is there once.
    namespaces: HashMap<Arc<str>, usize>,
    /// What the addresses of pods say that are gone, and until when.
    gone: HashMap<Address, (Arc<str>, Instant)>,
    /// These addresses, the first that is forgotten first; some may be in use again.
    going: VecDeque<(Instant, Address)>,
    /// Pods for which there was no room, as many of them as there is room for.
    left_out: HashSet<PodId>,
    /// How many changes there were.
    version: u64,
    /// The last of them.
    changes: VecDeque<Address>,
}

impl Pods {
    /// The namespace of the pod at an address, and whether the pod is gone, so that another one that is not shown yet may have it.
    pub(super) fn namespace(&self, address: IpAddr) -> Option<(&Arc<str>, bool)> {
        let address = address.into();
        let gone = || self.gone.get(&address).map(|(namespace, _)| (namespace, true));
        self.held(address).map(|namespace| (namespace, false)).or_else(gone)
    }

    fn held(&self, address: Address) -> Option<&Arc<str>> {
        self.addresses.get(&address).and_then(|id| self.pods.get(id)).map(|pod| &pod.namespace)
    }

    /// Takes all pods there are, in the place of those that are known.
    pub(super) fn listed(&mut self, now: Instant, all: Vec<PodSeen>) {
        let mut next = Self::default();
        all.into_iter().for_each(|pod| next.shown(now, pod));
        let mut before = std::mem::replace(self, next);
        (self.version, self.changes) = (before.version, std::mem::take(&mut before.changes));
        (self.gone, self.going) = (std::mem::take(&mut before.gone), std::mem::take(&mut before.going));
        for address in before.addresses.keys() {
            if !self.addresses.contains_key(address)
                && let Some(namespace) = before.held(*address)
            {
                self.linger(now, *address, Arc::clone(namespace));
                self.note(*address);
            }
        }
        let is_other = |address: &&Address| before.held(**address) != self.held(**address);
        let other: Vec<Address> = self.addresses.keys().filter(is_other).copied().collect();
        for address in other {
            self.gone.remove(&address);
            self.note(address);
        }
        self.expire(now);
    }

    /// A pod is new or changed.
    pub(super) fn shown(&mut self, now: Instant, seen: PodSeen) {
        self.expire(now);
        if seen.addresses.iter().all(Option::is_none) {
            return self.gone(now, seen.id);
        }
        let addresses = seen.addresses.map(|address| address.map_or([0; 16], |address| address.0));
        if let Some(pod) = self.pods.get_mut(&seen.id) {
            let before = std::mem::replace(&mut pod.addresses, addresses);
            let left = before.into_iter().filter(|address| *address != [0; 16] && !addresses.contains(address));
            left.for_each(|address| self.release(now, Address(address), seen.id));
        } else if self.pods.len() >= MOST {
            if self.left_out.len() < MOST {
                self.left_out.insert(seen.id);
            }
            return;
        } else {
            let known = self.namespaces.get_key_value(&seen.namespace).map(|(known, _)| Arc::clone(known));
            let namespace = known.unwrap_or(seen.namespace);
            *self.namespaces.entry(Arc::clone(&namespace)).or_default() += 1;
            self.left_out.remove(&seen.id);
            self.pods.insert(seen.id, Pod { namespace, made: seen.made, addresses });
        }
        seen.addresses.into_iter().flatten().for_each(|address| self.claim(address, seen.id));
    }

    /// A pod is gone.
    pub(super) fn gone(&mut self, now: Instant, id: PodId) {
        self.expire(now);
        self.left_out.remove(&id);
        let Some(pod) = self.pods.get(&id) else { return };
        pod.addresses().for_each(|address| self.release(now, address, id));
        if let Some(pod) = self.pods.remove(&id)
            && let Some(count) = self.namespaces.get_mut(&pod.namespace)
        {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&pod.namespace);
            }
        }
    }

    fn made(&self, id: PodId) -> (u64, PodId) {
        (self.pods.get(&id).map_or(0, |pod| pod.made), id)
    }

    fn claim(&mut self, address: Address, id: PodId) {
        let before = self.namespace_at(address);
        let holder = match self.addresses.get(&address) {
            Some(holder) if *holder != id => {
                let (older, newer) = (self.made(*holder).min(self.made(id)), self.made(*holder).max(self.made(id)));
                self.rivals.entry(address).or_default().insert(older);
                newer.1
            }
            _ => id,
        };
        self.addresses.insert(address, holder);
        self.gone.remove(&address);
        if before != self.namespace_at(address) {
            self.note(address);
        }
    }

    fn release(&mut self, now: Instant, address: Address, id: PodId) {
        let made = self.made(id);
        let before = self.namespace_at(address);
        if let Some(rivals) = self.rivals.get_mut(&address) {
            rivals.remove(&made);
        }
        if self.addresses.get(&address) == Some(&id) {
            match self.rivals.get_mut(&address).and_then(BTreeSet::pop_last) {
                Some((_, next)) => drop(self.addresses.insert(address, next)),
                None => {
                    self.addresses.remove(&address);
                    if let Some((namespace, _)) = before.clone() {
                        self.linger(now, address, namespace);
                    }
                }
            }
        }
        if self.rivals.get(&address).is_some_and(BTreeSet::is_empty) {
            self.rivals.remove(&address);
        }
        if before != self.namespace_at(address) {
            self.note(address);
        }
    }

    fn namespace_at(&self, address: Address) -> Option<(Arc<str>, bool)> {
        self.namespace(address.into()).map(|(namespace, is_gone)| (Arc::clone(namespace), is_gone))
    }

    fn linger(&mut self, now: Instant, address: Address, namespace: Arc<str>) {
        let until = now + LINGER;
        self.gone.insert(address, (namespace, until));
        self.going.push_back((until, address));
        while self.going.len() > MOST {
            self.forget_first();
        }
    }

    /// Forgets the addresses whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.going.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((until, address)) = self.going.pop_front() else { return };
        if self.gone.get(&address).is_some_and(|(_, of)| *of == until) {
            self.gone.remove(&address);
            self.note(address);
        }
    }

    fn note(&mut self, address: Address) {
        self.version += 1;
        self.changes.push_back(address);
        if self.changes.len() > MOST_CHANGES {
            self.changes.pop_front();
        }
    }

    /// A number that grows with every change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// What changed since there were so many changes.
    pub(super) fn changed(&self, since: u64) -> Changed {
        let count = self.version.saturating_sub(since) as usize;
        if count > self.changes.len() {
            return Changed::Any;
        }
        Changed::These(self.changes.iter().rev().take(count).map(|address| (*address).into()).collect())
    }

    /// How many pods there are, and how many there was no room for.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.pods.len(), self.left_out.len())
    }

    /// The last change counts on, so that whoever asks for changes is told of this as well.
    pub(super) fn forget(&mut self) {
        *self = Self { version: self.version + 1, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn address(n: u16) -> IpAddr {
        if n.is_multiple_of(2) {
            [10, 0, (n >> 8) as u8, n as u8].into()
        } else {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into()
        }
    }

    fn pod(id: PodId, namespace: &str, addresses: &[u16]) -> PodSeen {
        let of = |at: usize| addresses.get(at).map(|n| address(*n).into());
        PodSeen { id, namespace: namespace.into(), made: id, addresses: [of(0), of(1)] }
    }

    fn said(pods: &Pods, n: u16) -> Option<&str> {
        pods.namespace(address(n)).map(|(name, _)| &**name)
    }

    fn these(all: &[u16]) -> Changed {
        Changed::These(all.iter().map(|n| address(*n)).collect())
    }

    #[test]
    fn an_address_says_the_namespace_of_its_newest_pod() {
        let (mut pods, now) = (Pods::default(), Instant::now());
        pods.listed(now, vec![pod(1, "shop", &[0, 1]), pod(2, "pay", &[2]), pod(3, "host", &[])]);
        assert_eq!([0, 1, 2, 4].map(|n| said(&pods, n)), [Some("shop"), Some("shop"), Some("pay"), None]);
        assert_eq!(pods.namespace("::ffff:10.0.0.2".parse().unwrap()).map(|(name, _)| &**name), Some("pay"));
        assert_eq!(pods.count(), (2, 0), "who has no address of its own is no pod here");
        let before = pods.version();

        // The address moves before the old pod is seen to go, and that goes later.
        pods.shown(now, pod(5, "batch", &[2]));
        assert_eq!(said(&pods, 2), Some("batch"));
        pods.shown(now, pod(2, "pay", &[2]));
        assert_eq!(said(&pods, 2), Some("batch"), "the older one says so again");
        pods.gone(now, 2);
        assert_eq!(said(&pods, 2), Some("batch"));
        assert_eq!(pods.changed(before), these(&[2]));

        // Of two that have an address the newer one goes first.
        pods.shown(now, pod(4, "shop", &[2]));
        assert_eq!(said(&pods, 2), Some("batch"));
        pods.shown(now, pod(5, "batch", &[4]));
        assert_eq!((said(&pods, 2), said(&pods, 4)), (Some("shop"), Some("batch")), "an address is another pod's");
        assert_eq!(pods.changed(pods.version()), these(&[]));
    }

    #[test]
    fn the_address_of_a_pod_that_ended_speaks_for_a_while_unless_another_has_it() {
        let (mut pods, now) = (Pods::default(), Instant::now());
        pods.listed(now, vec![pod(1, "shop", &[0]), pod(2, "shop", &[2]), pod(3, "shop", &[4]), pod(4, "pay", &[6])]);
        let before = pods.version();
        pods.gone(now, 1);
        pods.shown(now, pod(2, "shop", &[])); // it has ended
        pods.listed(now, vec![pod(4, "pay", &[6]), pod(5, "batch", &[2])]);
        assert_eq!([0, 2, 4].map(|n| said(&pods, n)), [Some("shop"), Some("batch"), Some("shop")]);
        let is_gone = |n: u16| pods.namespace(address(n)).map(|(_, is_gone)| is_gone);
        assert_eq!([0, 2, 4, 6].map(is_gone), [Some(true), Some(false), Some(true), Some(false)]);
        assert_eq!(pods.changed(before), these(&[0, 2, 4]), "what says the same is no change");
        let before = pods.version();
        pods.shown(now, pod(6, "shop", &[4]));
        assert_eq!((pods.namespace(address(4)), pods.changed(before)), (Some((&"shop".into(), false)), these(&[4])));
        pods.gone(now, 6);
        let before = pods.version();
        pods.expire(now + LINGER - Duration::from_millis(1));
        assert_eq!(said(&pods, 0), Some("shop"));
        pods.expire(now + LINGER);
        assert_eq!([0, 2, 4, 6].map(|n| said(&pods, n)), [None, Some("batch"), None, Some("pay")]);
        assert_eq!(pods.changed(before), these(&[0, 4]));
        assert_eq!(pods.namespaces.len(), 2, "a namespace without pods is forgotten");
    }

    #[test]
    fn many_changes_are_any() {
        let (mut pods, now) = (Pods::default(), Instant::now());
        for n in 0..MOST_CHANGES as u16 {
            pods.shown(now, pod(n.into(), "shop", &[n]));
        }
        let Changed::These(all) = pods.changed(0) else { panic!("each is remembered") };
        assert_eq!(all.len(), MOST_CHANGES);
        pods.shown(now, pod(u64::MAX, "shop", &[u16::MAX]));
        assert_eq!((pods.changed(0), pods.changed(pods.version() - 1)), (Changed::Any, these(&[u16::MAX])));
        let before = pods.version();
        pods.forget();
        assert_eq!((pods.changed(before), pods.count()), (Changed::Any, (0, 0)));
    }

    #[test]
    fn pods_without_room_are_counted_once() {
        let (mut pods, now) = (Pods::default(), Instant::now());
        (0..MOST as u64).for_each(|id| pods.shown(now, PodSeen { id, ..pod(0, "shop", &[0]) }));
        for _ in 0..3 {
            pods.shown(now, PodSeen { id: u64::MAX, ..pod(0, "shop", &[2]) });
        }
        assert_eq!(pods.count(), (MOST, 1));
        pods.gone(now, 0);
        pods.shown(now, PodSeen { id: u64::MAX, ..pod(0, "shop", &[2]) });
        assert_eq!(pods.count(), (MOST, 0));
    }

    #[test]
    fn fifty_thousand_pods_take_little_room() {
        let (mut pods, now) = (Pods::default(), Instant::now());
        let seen = |n: u64| {
            let at = |base: [u8; 2]| IpAddr::from([base[0], base[1], (n >> 8) as u8, n as u8]).into();
            let addresses = [Some(at([10, (n >> 16) as u8])), None];
            PodSeen { id: n, namespace: format!("n{}", n % 500).into(), made: n, addresses }
        };
        pods.listed(now, (0..50_000).map(seen).collect());
        assert_eq!((pods.count(), pods.namespaces.len()), ((50_000, 0), 500));
        // A table is full at 7/8, and takes a byte more for each place.
        let bytes = |capacity: usize, size: usize| capacity * 8 / 7 * (size + 1);
        let all = bytes(pods.pods.capacity(), size_of::<(PodId, Pod)>())
            + bytes(pods.addresses.capacity(), size_of::<(Address, PodId)>())
            + pods.changes.capacity() * size_of::<Address>();
        println!("{} bytes for each pod", all / 50_000);
        assert!(all / 50_000 <= 128, "{} bytes for each pod", all / 50_000);
    }

    proptest! {
        /// After any history it says what a list of the pods that are there says.
        #[test]
        fn any_history_ends_with_what_a_list_says(
            steps in proptest::collection::vec((0..12_u64, 0..3_usize, 0..6_u16, 0..7_u16, 0..8_u8), 0..60)
        ) {
            let now = Instant::now();
            let mut pods = Pods::default();
            let mut there: BTreeMap<PodId, (&str, Vec<u16>)> = BTreeMap::new();
            for (id, namespace, first, second, what) in steps {
                let before: Vec<_> = (0..8).map(|n| pods.namespace_at(address(n).into())).collect();
                let version = pods.version();
                let namespace = there.get(&id).map_or(["a", "b", "c"][namespace], |(name, _)| *name);
                match what {
                    0 => {
                        there.remove(&id);
                        pods.gone(now, id);
                    }
                    1 => {
                        there.remove(&id);
                        pods.shown(now, pod(id, namespace, &[]));
                    }
                    2 => {
                        let all = there.iter().map(|(id, (name, addresses))| pod(*id, name, addresses));
                        pods.listed(now, all.collect());
                    }
                    _ => {
                        let addresses = if second == first { vec![first] } else { vec![first, second] };
                        pods.shown(now, pod(id, namespace, &addresses));
                        there.insert(id, (namespace, addresses));
                    }
                }
                let Changed::These(changed) = pods.changed(version) else { panic!("few changes") };
                for n in 0..8 {
                    let is_other = before[n as usize] != pods.namespace_at(address(n).into());
                    prop_assert!(!is_other || changed.contains(&address(n)), "{n} is other than before");
                }
            }
            pods.expire(now + LINGER);
            let mut fresh = Pods::default();
            fresh.listed(now, there.iter().map(|(id, (name, addresses))| pod(*id, name, addresses)).collect());
            for n in 0..8 {
                prop_assert_eq!(said(&pods, n), said(&fresh, n));
            }
            prop_assert_eq!(pods.pods.len(), fresh.pods.len());
            prop_assert_eq!(pods.rivals.len(), fresh.rivals.len());
            prop_assert_eq!(pods.namespaces.len(), fresh.namespaces.len());
        }
    }
}
