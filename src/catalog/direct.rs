//! Entries for consumers that dial the addresses which the registry gives them.
//!
//! A ServiceEntry with a virtual address never sees such a call. A ServiceEntry whose `addresses` are the providers' own makes
//! istiod listen on each of them, so that the call goes through the mesh. Listeners are keyed by address and port, and dozens of
//! interfaces share one, so there is an entry for each (application, port) that the policy names, beside the services'.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use crate::{
    catalog::{
        changes::{RoundChanges, put, remove},
        key::ServiceKey,
        notices::Notice,
        report::{DirectCounts, Quarantine},
    },
    config::Config,
    istio::{names::APPLICATION_ANNOTATION, rule::Invalid, validate},
    policy::{Balance, Policy},
    snapshot::{Resource, partition::slice_of},
    translate::{
        app_entry::{self, MAX_ADDRESSES},
        names,
        payload::{Address, Endpoint},
        service_entry::Member,
    },
};

/// Status names this many endpoints that are not their publishers' own.
const SHOWN: usize = 20;

/// An application and its port: what there is an entry for.
pub type Key = (Box<str>, u16);

/// The endpoints of services at one address and port that name an application.
#[derive(Debug, Default)]
struct Claims {
    /// The first has the address.
    ranked: BTreeSet<Claim>,
    /// How many endpoints each application has here.
    applications: BTreeMap<Box<str>, usize>,
}

/// An endpoint of a service. Whoever connects from the address comes first, so that nobody takes it by a later word; then the
/// newest by the registry's clock; at a tie the first by application, registerId and service.
#[derive(Debug)]
struct Claim {
    member: Member,
    id: ServiceKey,
}

impl Claims {
    fn insert(&mut self, id: &ServiceKey, member: &Member) {
        if let Some(application) = application(member)
            && self.ranked.insert(Claim { member: member.clone(), id: id.clone() })
        {
            *self.applications.entry(application.into()).or_default() += 1;
        }
    }

    fn remove(&mut self, id: &ServiceKey, member: &Member) {
        if let Some(application) = application(member)
            && self.ranked.remove(&Claim { member: member.clone(), id: id.clone() })
            && let Some(count) = self.applications.get_mut(application)
        {
            *count -= 1;
            if *count == 0 {
                self.applications.remove(application);
            }
        }
    }

    /// The endpoint that the address and port belong to.
    fn winner(&self) -> Option<&Member> {
        self.ranked.first().map(|claim| &claim.member)
    }

    fn is_contested(&self) -> bool {
        self.applications.len() > 1
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        #[cfg(test)]
        COMPARED.set(COMPARED.get() + 1);
        let age = |claim: &Self| {
            let version = claim.member.version();
            (claim.member.is_own(), version.timestamp, version.version)
        };
        let newest = age(other).cmp(&age(self));
        let newest = newest.then_with(|| application(&self.member).cmp(&application(&other.member)));
        let newest = newest.then_with(|| self.member.register_id().cmp(other.member.register_id()));
        newest.then_with(|| self.id.cmp(&other.id))
    }
}

#[cfg(test)]
thread_local! {
    /// How many claims were compared with another.
    static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Claim {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Claim {}

/// The entries, kept up as services change.
#[derive(Debug, Default)]
pub struct Direct {
    /// For each address and port the endpoints that are published there.
    claims: HashMap<(IpAddr, u16), Claims>,
    /// For each application and port the endpoints that it has there.
    entries: BTreeMap<Key, BTreeMap<IpAddr, Member>>,
    /// Entries to look at, since their endpoints or the policy changed.
    touched: BTreeSet<Key>,
    /// Slices and names of the entries that are served.
    served: BTreeMap<Key, (usize, Arc<str>)>,
    /// How many addresses and ports more than one application has.
    contested: usize,
    /// Entries of which some addresses only are to be called with mTLS.
    mixed: BTreeSet<Key>,
    /// How many addresses are left out of the entries that have too many.
    crowded: BTreeMap<Key, usize>,
    unnamed: usize,
    /// Endpoints that are in no entry since their address is not their publisher's own, with the application that they name.
    not_own: BTreeMap<(IpAddr, u16, ServiceKey), Box<str>>,
    notices: Vec<Notice>,
    /// The policy that says whose claims count; `None`: the entries are those of a last good state, and nobody claims yet.
    policy: Option<Arc<Policy>>,
}

/// The result of a look at an entry.
#[derive(Debug)]
pub struct Outcome {
    /// The host of the entry.
    pub host: Arc<str>,
    /// Why the newest form cannot be made; `None`: it was made, or the entry is not to be served.
    pub refused: Option<Quarantine>,
    /// The newest form cannot be made, and an older form is served on.
    pub kept: bool,
}

impl Direct {
    /// The entries of a last good state.
    pub fn restored(served: BTreeMap<Key, (usize, Arc<str>)>) -> Self {
        Self { served, ..Self::default() }
    }

    /// Follows a policy. Where it makes entries otherwise than the one before, all services claim anew and every entry is
    /// looked at; under the first policy after a last good state only those that change from then on.
    pub fn follow<'a>(&mut self, policy: &Arc<Policy>, services: impl Iterator<Item = (&'a ServiceKey, &'a [Member])>) {
        if self.policy.as_ref().is_some_and(|before| policy.makes_direct_as(before)) {
            return;
        }
        let Self { served, mixed, crowded, policy: before, .. } = std::mem::take(self);
        *self = Self { served, mixed, crowded, policy: Some(Arc::clone(policy)), ..Self::default() };
        services.for_each(|(id, members)| self.update(id, &[], members));
        if before.is_some() || self.served.is_empty() {
            self.touch_all();
        } else {
            self.touched.clear();
            self.notices.clear();
        }
    }

    /// Notes that a service has other endpoints than before, both sorted by address and port. Beside a walk over them it costs
    /// the endpoints that differ, each by the logarithm of the services that have one there.
    pub fn update(&mut self, id: &ServiceKey, before: &[Member], after: &[Member]) {
        let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(had), Some(has)) => had.key().cmp(&has.key()),
            };
            let had = if order.is_le() { before.next() } else { None };
            let has = if order.is_ge() { after.next() } else { None };
            // Of two applications on one address the newest may have it, so the version counts as well.
            let claim = |member: &Member| (member.version(), member.is_own());
            let is_same = had.zip(has).is_some_and(|(had, has)| had == has && claim(had) == claim(has));
            if !is_same {
                self.change(id, had, has);
            }
        }
    }

    /// Notes that a service has another endpoint at an address and port than before, or none.
    fn change(&mut self, id: &ServiceKey, had: Option<&Member>, has: Option<&Member>) {
        let Some(Endpoint { address: Address::Ip(address), port, .. }) = has.or(had).map(Member::endpoint) else {
            return;
        };
        let place = (*address, *port);
        let is_unnamed = |member: &Member| application(member).is_none();
        self.unnamed =
            self.unnamed + usize::from(has.is_some_and(is_unnamed)) - usize::from(had.is_some_and(is_unnamed));
        let claims = self.claims.entry(place).or_default();
        let before = claims.winner().cloned();
        let was_contested = claims.is_contested();
        let policy = self.policy.as_deref();
        let is_vouched_for = policy.is_none_or(|policy| policy.is_vouched_for(*address));
        had.into_iter().for_each(|member| claims.remove(id, member));
        has.into_iter().filter(|has| is_vouched_for || has.is_own()).for_each(|member| claims.insert(id, member));
        if !is_vouched_for {
            let had_it = self.not_own.remove(&(*address, *port, id.clone()));
            let is_direct = |application: &&str| policy.is_some_and(|policy| policy.is_direct(application));
            if let Some(application) = has.filter(|has| !has.is_own()).and_then(application).filter(is_direct) {
                self.not_own.insert((*address, *port, id.clone()), application.into());
                if had_it.is_none() {
                    let (id, application) = (Arc::clone(id.text()), application.into());
                    self.notices.push(Notice::AddressNotOwn { id, address: *address, port: *port, application });
                }
            }
        }
        let after = claims.winner().cloned();
        match (was_contested, claims.is_contested()) {
            (false, true) => {
                let newest = after.as_ref().and_then(application).map(Into::into);
                let claimed_by = claims.applications.keys().cloned().collect();
                self.notices.push(Notice::AddressContested { address: *address, port: *port, newest, claimed_by });
                self.contested += 1;
            }
            (true, false) => self.contested -= 1,
            _ => {}
        }
        if claims.ranked.is_empty() {
            self.claims.remove(&place);
        }
        if before == after {
            return;
        }
        for member in [&before, &after].into_iter().flatten() {
            if let Some(application) = application(member) {
                self.touched.insert((application.into(), *port));
            }
        }
        if let Some(application) = before.as_ref().and_then(application) {
            let key = (application.into(), *port);
            let entry = self.entries.entry(key.clone()).or_default();
            entry.remove(address);
            if entry.is_empty() {
                self.entries.remove(&key);
            }
        }
        if let Some((application, member)) = after.as_ref().and_then(|member| Some((application(member)?, member))) {
            self.entries.entry((application.into(), *port)).or_default().insert(*address, member.clone());
        }
    }

    /// Looks at every entry again, for another policy.
    pub fn touch_all(&mut self) {
        self.touched.extend(self.entries.keys().chain(self.served.keys()).cloned());
    }

    /// Looks at the entries that were touched since the last time. With `keep` no entry is removed: entries to be removed are
    /// looked at again next time.
    pub fn changes(
        &mut self,
        config: &Config,
        policy: &Policy,
        keep: bool,
        changes: &mut RoundChanges,
    ) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let host: Arc<str> = app_entry::host(&key.0, key.1, &config.host_suffix).into();
            let Some(entry) = self.entries.get(&key).filter(|_| policy.is_direct(&key.0)) else {
                match self.served.contains_key(&key) && keep {
                    true => drop(self.touched.insert(key)),
                    false => {
                        self.remove(&key, changes);
                        outcomes.push(Outcome { host, refused: None, kept: false });
                    }
                }
                continue;
            };
            let made = catch_unwind(AssertUnwindSafe(|| make(&key, &host, entry, config, policy)));
            let made = match made {
                Ok(made) => made.map_err(|Invalid { rule, detail }| Quarantine { reason: rule.name(), detail }),
                Err(_) => Err(Quarantine::by_panic()),
            };
            let kept = made.is_err() && self.served.contains_key(&key);
            let refused = made.map(|made| self.put(key, made, changes)).err();
            outcomes.push(Outcome { host, refused, kept });
        }
        outcomes
    }

    fn put(&mut self, key: Key, made: Build, changes: &mut RoundChanges) {
        let Build { place, entry, rule, mixed, left_out } = made;
        if self.served.get(&key).is_some_and(|before| *before != place) {
            self.remove(&key, changes);
        }
        if !mixed {
            self.mixed.remove(&key);
        } else if self.mixed.insert(key.clone()) {
            self.notices.push(Notice::MtlsMixed { application: key.0.clone(), port: key.1 });
        }
        match left_out {
            0 => self.crowded.remove(&key),
            left_out => self.crowded.insert(key.clone(), left_out),
        };
        changes.encodes += 1 + u64::from(rule.is_some());
        match rule {
            Some(rule) => put(&mut changes.destination_rules, place.clone(), rule),
            None => remove(&mut changes.destination_rules, place.clone()),
        }
        put(&mut changes.service_entries, place.clone(), entry);
        self.served.insert(key, place);
    }

    fn remove(&mut self, key: &Key, changes: &mut RoundChanges) {
        self.mixed.remove(key);
        self.crowded.remove(key);
        if let Some(place) = self.served.remove(key) {
            remove(&mut changes.service_entries, place.clone());
            remove(&mut changes.destination_rules, place);
        }
    }

    /// Whether no entry is served.
    pub fn is_empty(&self) -> bool {
        self.served.is_empty()
    }

    /// Notices since the last call.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Counts for status.
    pub fn counts(&self) -> DirectCounts {
        DirectCounts {
            entries: self.served.len(),
            contested: self.contested,
            unnamed: self.unnamed,
            mixed_mtls: self.mixed.len(),
            left_out: self.crowded.values().sum(),
            not_own: self.not_own.len(),
            not_own_sample: self
                .not_own
                .iter()
                .take(SHOWN)
                .map(|(claim, application)| shown(claim, application))
                .collect(),
        }
    }
}

/// The resources of an entry.
struct Build {
    place: (usize, Arc<str>),
    entry: Resource,
    rule: Option<Resource>,
    /// Some addresses only are to be called with mTLS.
    mixed: bool,
    /// Addresses above the most that an entry may have.
    left_out: usize,
}

fn make(
    (application, port): &Key,
    host: &str,
    entry: &BTreeMap<IpAddr, Member>,
    config: &Config,
    policy: &Policy,
) -> Result<Build, Invalid> {
    let name = names::resource_name(host, &config.host_suffix);
    let name: Arc<str> = format!("{}/{name}", config.namespace).into();
    let annotations: BTreeMap<_, _> = [(APPLICATION_ANNOTATION.to_owned(), application.to_string())].into();
    let built = app_entry::build(host, *port, entry, policy);
    validate::service_entry(&built, &config.namespace)?;
    let rule = app_entry::mtls(host, entry, policy);
    let some = entry.values().any(|member| member.endpoint().mtls().is_some());
    let mixed = some && rule.is_none() && policy.balance() == Balance::Client;
    let rule = rule.map(|rule| Resource::destination_rule(name.to_string(), annotations.clone(), &rule));
    let left_out = entry.len().saturating_sub(MAX_ADDRESSES);
    let entry = Resource::beside(name.to_string(), annotations, &built);
    Ok(Build { place: (slice_of(&Sha256::digest(host).into()), name), entry, rule, mixed, left_out })
}

fn shown((address, port, id): &(IpAddr, u16, ServiceKey), application: &str) -> Box<str> {
    let id: String = id.text().chars().take(100).collect();
    format!("{address} {port} {application} {id}").into()
}

fn application(member: &Member) -> Option<&str> {
    member.endpoint().application()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::PolicyConfig,
        translate::{Parsed, payload},
    };

    fn policy(document: serde_json::Value) -> Policy {
        let config: PolicyConfig = serde_json::from_value(document).unwrap();
        Policy::compile(config, &[]).unwrap()
    }

    fn members(data: &[&str], version: i64) -> Vec<Member> {
        members_from(None, data, version)
    }

    fn members_from(source_address: Option<IpAddr>, data: &[&str], version: i64) -> Vec<Member> {
        let policy = policy(serde_json::json!({}));
        let endpoints = data
            .iter()
            .map(|text| payload::parse(text, "", payload::Client::Sofarpc, &policy.rules("a")).unwrap())
            .collect();
        let version = crate::model::RegisterVersion { version, timestamp: 0 };
        let mut members: Vec<Member> =
            Member::all(&Arc::new(Parsed { endpoints, version, source_address, ..Parsed::default() })).collect();
        members.sort_by(|a, b| a.key().cmp(&b.key()));
        members
    }

    fn all() -> Policy {
        policy(serde_json::json!({ "direct": { "applications": ["*"] } }))
    }

    fn mesh(addresses: &[&str]) -> Policy {
        policy(
            serde_json::json!({ "direct": { "applications": ["orders"], "balance": "mesh", "addresses": addresses } }),
        )
    }

    /// A policy that Istio's validation refuses for every entry.
    fn refused() -> Policy {
        policy(serde_json::json!({ "direct": { "applications": ["*"] }, "exportTo": [".", "sofa-registry"] }))
    }

    fn changes(direct: &mut Direct, policy: &Policy, keep: bool) -> (Vec<String>, Vec<Outcome>) {
        let mut changes = RoundChanges::default();
        let outcomes = direct.changes(&Config::default(), policy, keep, &mut changes);
        let sign = |there: bool| if there { '+' } else { '-' };
        let named =
            |((_, name), made): (&(usize, Arc<str>), &Option<Resource>)| format!("{}{name}", sign(made.is_some()));
        (changes.service_entries.iter().map(named).collect(), outcomes)
    }

    const ORDERS: &str = "sofa-registry/p80.orders.app";
    const USERS: &str = "sofa-registry/p80.users.app";

    #[test]
    fn an_address_is_the_newests_and_only_what_is_touched_is_made() {
        let (mut direct, all) = (Direct::default(), all());
        let orders = members(&["10.0.0.1:80?app=orders", "10.0.0.2:80?app=orders"], 1);
        direct.update(&"a".into(), &[], &orders);
        assert_eq!(changes(&mut direct, &all, false).0, [format!("+{ORDERS}")]);
        assert!(changes(&mut direct, &all, false).0.is_empty());
        direct.update(&"b".into(), &[], &members(&["10.0.0.2:80?app=users"], 2));
        let both = changes(&mut direct, &all, false).0;
        assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([format!("+{ORDERS}"), format!("+{USERS}")]));
        assert_eq!((direct.counts().contested, direct.notices().len()), (1, 1));
        // The same again in a newer version: it has the address now.
        let newer = members(&["10.0.0.1:80?app=orders", "10.0.0.2:80?app=orders"], 3);
        direct.update(&"a".into(), &orders, &newer);
        let both = changes(&mut direct, &all, false).0;
        assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([format!("+{ORDERS}"), format!("-{USERS}")]));
        direct.update(&"a".into(), &newer, &[]);
        let both = changes(&mut direct, &all, false).0;
        assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([format!("-{ORDERS}"), format!("+{USERS}")]));
        assert_eq!((direct.counts().entries, direct.counts().contested), (1, 0));
    }

    #[test]
    fn what_istio_would_refuse_is_served_as_before_and_named() {
        let (mut direct, all, refused) = (Direct::default(), all(), refused());
        direct.update(&"a".into(), &[], &members(&["10.0.0.1:80?app=orders"], 1));
        changes(&mut direct, &all, false);
        direct.update(&"b".into(), &[], &members(&["10.0.0.3:80?app=users"], 1));
        direct.touch_all();
        let (changed, outcomes) = changes(&mut direct, &refused, false);
        assert_eq!((changed.len(), direct.counts().entries), (0, 1), "the old one stays, the new one does not come");
        let reasons = outcomes.iter().map(|it| (&*it.host, it.refused.as_ref().unwrap().reason, it.kept));
        let expected =
            [("p80.orders.app.sofa.mesh", "export-to", true), ("p80.users.app.sofa.mesh", "export-to", false)];
        assert_eq!(reasons.collect::<Vec<_>>(), expected);
        direct.touch_all();
        let (_, outcomes) = changes(&mut direct, &all, false);
        assert!(outcomes.len() == 2 && outcomes.iter().all(|outcome| outcome.refused.is_none()));
    }

    #[test]
    fn what_a_last_good_state_had_is_not_removed_while_it_is_to_be_kept() {
        let served = BTreeMap::from([((Box::from("orders"), 80), (3, Arc::from("old/name")))]);
        let id: ServiceKey = "a".into();
        let orders = members(&["10.0.0.1:80?app=orders"], 1);
        let mut direct = Direct::restored(served);
        direct.follow(&Arc::new(all()), std::iter::once((&id, &orders[..])));
        assert!(changes(&mut direct, &all(), true).0.is_empty(), "nothing is touched");
        direct.update(&id, &orders, &[]);
        assert!(changes(&mut direct, &all(), true).0.is_empty());
        assert_eq!(changes(&mut direct, &all(), false).0, ["-old/name"]);
        assert!(direct.is_empty());
    }

    #[test]
    fn an_entry_that_gets_another_name_leaves_none_behind() {
        let served = BTreeMap::from([((Box::from("orders"), 80), (3, Arc::from("old/name")))]);
        let mut direct = Direct::restored(served);
        direct.follow(&Arc::new(all()), std::iter::empty());
        direct.update(&"a".into(), &[], &members(&["10.0.0.1:80?app=orders"], 1));
        let changed = BTreeSet::from_iter(changes(&mut direct, &all(), false).0);
        assert_eq!(changed, BTreeSet::from(["-old/name".to_owned(), format!("+{ORDERS}")]));
    }

    #[test]
    fn where_the_proxy_chooses_an_address_is_its_publishers_own_or_vouched_for() {
        let mut direct = Direct::default();
        let ids: [ServiceKey; 3] = ["Orders", "X", "Y"].map(Into::into);
        let own = "10.0.0.1".parse().ok();
        let evil = "10.66.6.6".parse().ok();
        let all = [
            members_from(own, &["10.0.0.1:80?app=orders", "10.0.0.2:80?app=orders"], 1),
            members_from(
                evil,
                &["10.0.0.1:80?app=orders&weight=5", "10.0.9.9:80?app=orders", "10.66.6.6:80?app=orders"],
                9,
            ),
            members_from(None, &["10.0.9.10:3306?app=orders", "10.0.9.11:3306?app=users"], 9),
        ];
        let claimed = || ids.iter().zip(&all).map(|(id, members)| (id, &members[..]));
        let addresses = |direct: &Direct| {
            let all = direct.entries.iter().filter(|((application, _), _)| &**application == "orders");
            all.flat_map(|((_, port), entry)| entry.keys().map(move |ip| format!("{ip}:{port}"))).collect::<Vec<_>>()
        };
        direct.follow(&Arc::new(mesh(&[])), std::iter::empty());
        claimed().for_each(|(id, members)| direct.update(id, &[], members));
        assert_eq!(addresses(&direct), ["10.0.0.1:80", "10.66.6.6:80"]);
        let counts = direct.counts();
        assert_eq!((counts.not_own, counts.contested, direct.notices().len()), (4, 0, 4));
        let named =
            ["10.0.0.1 80 orders X", "10.0.0.2 80 orders Orders", "10.0.9.9 80 orders X", "10.0.9.10 3306 orders Y"];
        assert_eq!(counts.not_own_sample, named.map(Box::from));
        // Another policy: all claim anew.
        direct.follow(&Arc::new(mesh(&["10.0.0.0/24"])), claimed());
        assert_eq!((addresses(&direct).len(), direct.counts().not_own), (3, 2));
        let weight = direct.entries[&("orders".into(), 80)][&own.unwrap()].endpoint().weight;
        assert_eq!(weight, 100, "the newest has another address");
        direct.follow(&Arc::new(self::all()), claimed());
        assert_eq!((addresses(&direct).len(), direct.counts().not_own, direct.counts().contested), (5, 0, 0));
        direct.follow(&Arc::new(mesh(&[])), claimed());
        ids.iter().zip(&all).for_each(|(id, members)| direct.update(id, members, &[]));
        assert_eq!((direct.entries.len(), direct.claims.len(), direct.counts().not_own), (0, 0, 0));
    }

    /// The definition: all endpoints at an address and port are looked at.
    struct Naive {
        services: BTreeMap<ServiceKey, Vec<Member>>,
        policy: Arc<Policy>,
    }

    impl Naive {
        fn at(&self) -> BTreeMap<(IpAddr, u16), Vec<(&ServiceKey, &Member)>> {
            let mut at: BTreeMap<_, Vec<_>> = BTreeMap::new();
            for (id, member) in self.services.iter().flat_map(|(id, members)| members.iter().map(move |m| (id, m))) {
                let Endpoint { address: Address::Ip(address), port, .. } = member.endpoint() else { continue };
                let counts = member.is_own() || self.policy.is_vouched_for(*address);
                if application(member).is_some() && counts {
                    at.entry((*address, *port)).or_default().push((id, member));
                }
            }
            at
        }

        fn entries(&self) -> BTreeMap<Key, BTreeMap<IpAddr, Member>> {
            let mut entries = BTreeMap::<Key, BTreeMap<IpAddr, Member>>::new();
            for ((address, port), claims) in self.at() {
                let rank = |(id, member): &(&ServiceKey, &Member)| {
                    let version = member.version();
                    let newest = std::cmp::Reverse((member.is_own(), version.timestamp, version.version));
                    let name = (application(member).map(str::to_owned), member.register_id().to_owned());
                    (newest, name, ServiceKey::clone(id))
                };
                let (_, winner) = claims.into_iter().min_by_key(rank).unwrap();
                let key = (application(winner).unwrap().into(), port);
                entries.entry(key).or_default().insert(address, winner.clone());
            }
            entries
        }

        fn contested(&self) -> usize {
            let several = |claims: &Vec<(&ServiceKey, &Member)>| {
                let all: BTreeSet<&str> = claims.iter().filter_map(|(_, member)| application(member)).collect();
                all.len() > 1
            };
            self.at().values().filter(|claims| several(claims)).count()
        }
    }

    proptest::proptest! {
        #[test]
        fn any_history_gives_the_entries_of_who_is_there(
            history in proptest::collection::vec(
                (0usize..4, 0i64..4, 0u8..5, proptest::collection::btree_map((1u8..4, 80u16..82), 0usize..4, 0..4)), 0..40),
            policies in proptest::collection::vec(0usize..3, 40),
        ) {
            let all = [all(), mesh(&[]), mesh(&["10.0.0.2/31"])].map(Arc::new);
            let (mut direct, mut policy) = (Direct::default(), Arc::clone(&all[0]));
            direct.follow(&policy, std::iter::empty());
            let mut naive = Naive { services: BTreeMap::new(), policy: Arc::clone(&policy) };
            for ((service, version, source, endpoints), other) in history.into_iter().zip(policies) {
                let id: ServiceKey = (&*format!("s{service}")).into();
                let apps = ["?app=orders", "?app=b", "?app=orders&weight=3", ""];
                let data: Vec<String> =
                    endpoints.iter().map(|((host, port), app)| format!("10.0.0.{host}:{port}{}", apps[*app])).collect();
                let data: Vec<&str> = data.iter().map(String::as_str).collect();
                let after = members_from(format!("10.0.0.{source}").parse().ok(), &data, version);
                if version == 0 {
                    policy = Arc::clone(&all[other]);
                    naive.policy = Arc::clone(&policy);
                }
                direct.follow(&policy, naive.services.iter().map(|(id, members)| (id, &members[..])));
                let before = naive.services.insert(id.clone(), after.clone()).unwrap_or_default();
                let touched = direct.entries.clone();
                direct.touched.clear();
                direct.update(&id, &before, &after);
                let entries = naive.entries();
                for key in touched.keys().chain(entries.keys()).filter(|key| touched.get(*key) != entries.get(*key)) {
                    proptest::prop_assert!(direct.touched.contains(key), "{:?} is other and not touched", key);
                }
                proptest::prop_assert_eq!(&direct.entries, &entries);
                let unnamed = naive.services.values().flatten().filter(|member| application(member).is_none()).count();
                proptest::prop_assert_eq!((direct.contested, direct.unnamed), (naive.contested(), unnamed));
                proptest::prop_assert_eq!(direct.claims.len(), naive.at().len());
                let not_own = naive.services.values().flatten().filter(|member| {
                    let Endpoint { address: Address::Ip(address), .. } = member.endpoint() else { return false };
                    let is_direct = application(member).is_some_and(|application| policy.is_direct(application));
                    is_direct && !member.is_own() && !policy.is_vouched_for(*address)
                });
                proptest::prop_assert_eq!(direct.not_own.len(), not_own.count());
            }
        }
    }

    /// Compared claims for one more instance, where so many are, of so many interfaces.
    fn compared(interfaces: usize, instances: usize) -> usize {
        let mut direct = Direct::default();
        let data: Vec<String> = (0..=instances).map(|n| format!("10.0.{}.{}:80?app=hot", n >> 8, n & 255)).collect();
        let data: Vec<&str> = data.iter().map(String::as_str).collect();
        let (before, after) = (members(&data[..instances], 1), members(&data, 1));
        let ids: Vec<ServiceKey> = (0..interfaces).map(|n| (&*format!("s{n}")).into()).collect();
        ids.iter().for_each(|id| direct.update(id, &[], &before));
        COMPARED.set(0);
        ids.iter().for_each(|id| direct.update(id, &before, &after));
        COMPARED.get()
    }

    #[test]
    fn a_claim_costs_the_logarithm_of_what_is_there() {
        let (few, many) = (compared(100, 50), compared(1_000, 50));
        assert!(few > 0 && many < 10 * few * 2, "{few} for 100 interfaces, {many} for 1000");
        assert!(many < 1_000 * 30, "{many}");
        assert_eq!(compared(100, 1), compared(100, 100), "other addresses cost nothing");
    }
}
