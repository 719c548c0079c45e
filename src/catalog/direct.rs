//! Entries for consumers that dial the addresses which the registry gives them.
//!
//! A ServiceEntry with a virtual address never sees such a call. A ServiceEntry whose `addresses` are the providers' own makes
//! istiod listen on each of them, so that the call goes through the mesh. Listeners are keyed by address and port, and dozens of
//! interfaces share one, so there is an entry for each (application, port) that the policy names, beside the services'.
//!
//! An address stays in its entry for a while after its provider went ([`lingering`]).

pub mod lingering;

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use sha2::{Digest, Sha256};

use crate::{
    catalog::{
        changes::{RoundChanges, put, remove},
        direct::lingering::{Lingering, Lingers},
        key::ServiceKey,
        narrowing::is_same,
        notices::Notice,
        report::{DirectCounts, Quarantine},
    },
    config::Config,
    istio::{
        names::{APPLICATION_ANNOTATION, EMPTY_LABEL},
        rule::Invalid,
        validate,
    },
    model::Millis,
    policy::{Balance, Consumers, Policy},
    snapshot::{Resource, partition::slice_of},
    translate::{
        app_entry::{self, Addresses, MAX_ADDRESSES},
        names,
        payload::{Address, Endpoint},
        service_entry::Member,
    },
    visibility::{ServiceId, seen::Seen},
};

pub use lingering::Key;

/// Status names this many endpoints that are not their publishers' own.
const SHOWN: usize = 20;
/// The longest name of an application that has entries, in bytes; who has a longer one counts as without.
const LONGEST_NAME: usize = 256;

/// The endpoints of services at one address and port.
#[derive(Debug, Default)]
struct Claims {
    /// The first has the address.
    ranked: BTreeSet<Claim>,
    /// How many endpoints each application has here.
    applications: BTreeMap<Box<str>, usize>,
    /// How many endpoints there are, those that claim nothing included.
    endpoints: usize,
}

/// An endpoint of a service. Whoever connects from the address comes first, so that nobody takes it by a later word; then the
/// newest by the registry's clock; at a tie the first by application, registerId and service.
#[derive(Debug)]
struct Claim {
    member: Member,
    id: ServiceKey,
}

impl Claims {
    /// Whether it is new.
    fn insert(&mut self, id: &ServiceKey, member: &Member) -> bool {
        if let Some(application) = application(member)
            && self.ranked.insert(Claim { member: member.clone(), id: id.clone() })
        {
            *self.applications.entry(application.into()).or_default() += 1;
            return true;
        }
        false
    }

    /// Whether it was there.
    fn remove(&mut self, id: &ServiceKey, member: &Member) -> bool {
        if let Some(application) = application(member)
            && self.ranked.remove(&Claim { member: member.clone(), id: id.clone() })
            && let Some(count) = self.applications.get_mut(application)
        {
            *count -= 1;
            if *count == 0 {
                self.applications.remove(application);
            }
            return true;
        }
        false
    }

    /// The endpoint that the address and port belong to.
    fn winner(&self) -> Option<&Claim> {
        self.ranked.first()
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
    /// For each address and port what is published there.
    claims: HashMap<(IpAddr, u16), Claims>,
    /// For each application and port the endpoints that it has there.
    entries: BTreeMap<Key, BTreeMap<IpAddr, Member>>,
    /// For each application and port the services that it has there, with their endpoints' number.
    services: BTreeMap<Key, HashMap<ServiceId, usize>>,
    /// Who is seen to consume what; `None`: nothing is known.
    seen: Option<Arc<Seen>>,
    lingering: Lingering,
    /// For each address and port that changed hands since the last [`Direct::changes`] who had it then.
    left: HashMap<(IpAddr, u16), (ServiceKey, Member)>,
    /// Entries to look at, since their endpoints or the policy changed.
    touched: BTreeSet<Key>,
    /// Slices and names of the entries that are served.
    served: BTreeMap<Key, (usize, Arc<str>)>,
    /// `exportTo` of those that follow their consumers.
    exported: BTreeMap<Key, Vec<String>>,
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
        let before = self.policy.replace(Arc::clone(policy));
        if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, policy)) {
            return;
        }
        // The addresses that linger were read under the policy before as well.
        let admits_as_before = before.as_ref().is_none_or(|before| policy.admits_as(before));
        let ended = self.lingering.retain(|id, application, address, member| {
            let is_its = member.is_own() || policy.is_vouched_for(address);
            admits_as_before && is_its && policy.is_direct(application) && policy.serves(id.id())
        });
        if !before.as_ref().is_some_and(|before| policy.makes_direct_as(before)) {
            self.claim_anew(before.is_some(), services);
        }
        self.touched.extend(ended);
    }

    /// Has all services claim anew.
    fn claim_anew<'a>(&mut self, had_policy: bool, services: impl Iterator<Item = (&'a ServiceKey, &'a [Member])>) {
        let Self { served, exported, mixed, crowded, lingering, policy, seen, .. } = std::mem::take(self);
        *self = Self { served, exported, mixed, crowded, lingering, policy, seen, ..Self::default() };
        services.for_each(|(id, members)| members.iter().for_each(|member| self.change(None, id, None, Some(member))));
        if had_policy || self.served.is_empty() {
            self.touch_all();
        } else {
            self.touched.clear();
            self.notices.clear();
        }
    }

    /// Notes that a service has other endpoints than before, both sorted by address and port. Services are `outdated` whose
    /// endpoints were read under another policy. Beside a walk over the endpoints it costs those that differ, each by the logarithm
    /// of the services that have one there.
    pub fn update(
        &mut self,
        now: Millis,
        id: &ServiceKey,
        before: &[Member],
        after: &[Member],
        outdated: &HashSet<ServiceKey>,
    ) {
        let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                // Most are the very same, which is seen without a look at them: they lie all over the memory.
                (Some(had), Some(has)) if had.is_shared(has) => {
                    before.next();
                    after.next();
                    continue;
                }
                (Some(had), Some(has)) => had.key().cmp(&has.key()),
            };
            let had = if order.is_le() { before.next() } else { None };
            let has = if order.is_ge() { after.next() } else { None };
            // Of two applications on one address the newest may have it, so the version counts as well.
            let claim = |member: &Member| (member.version(), member.is_own());
            let is_same = had.zip(has).is_some_and(|(had, has)| had == has && claim(had) == claim(has));
            if !is_same {
                self.change(Some((now, outdated)), id, had, has);
            }
        }
    }

    /// Notes that a service has another endpoint at an address and port than before, or none.
    fn change(
        &mut self,
        went: Option<(Millis, &HashSet<ServiceKey>)>,
        id: &ServiceKey,
        had: Option<&Member>,
        has: Option<&Member>,
    ) {
        let Some(Endpoint { address: Address::Ip(address), port, .. }) = has.or(had).map(Member::endpoint) else {
            return;
        };
        let place = (*address, *port);
        let is_unnamed = |member: &Member| application(member).is_none();
        self.unnamed =
            self.unnamed + usize::from(has.is_some_and(is_unnamed)) - usize::from(had.is_some_and(is_unnamed));
        let claims = self.claims.entry(place).or_default();
        let (holder, before) = claims.winner().map(|claim| (claim.id.clone(), claim.member.clone())).unzip();
        let was_contested = claims.is_contested();
        let policy = self.policy.as_deref();
        let is_vouched_for = policy.is_none_or(|policy| policy.is_vouched_for(*address));
        let gone = had.filter(|had| claims.remove(id, had)).and_then(application);
        let has_claim = |has: &&Member| is_vouched_for || has.is_own();
        let come = has.filter(has_claim).filter(|has| claims.insert(id, has)).and_then(application);
        if gone != come {
            let service = ServiceId::of(id.id());
            for (application, comes) in gone.map(|it| (it, false)).into_iter().chain(come.map(|it| (it, true))) {
                let key: Key = (application.into(), *port);
                count(&mut self.services, &key, service, comes);
                // Who consumes another of its services may be elsewhere.
                if policy.is_some_and(Policy::direct_follows) {
                    self.touched.insert(key);
                }
            }
        }
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
        let after = claims.winner().map(|claim| claim.member.clone());
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
        claims.endpoints = claims.endpoints + usize::from(has.is_some()) - usize::from(had.is_some());
        let is_deserted = claims.endpoints == 0;
        if is_deserted {
            self.claims.remove(&place);
        }
        if has.is_some() {
            self.touched.extend(self.lingering.end(*address, *port));
        }
        if let Some((now, outdated)) = went {
            // Whoever else is there may go in the same round, and then the address has been of the first.
            if let (Some(holder), Some(before)) = (holder, before.clone().filter(|_| before != after)) {
                let is_outdated = outdated.contains(&holder);
                let before = if is_outdated { as_now(&before, self.policy.as_deref()) } else { before };
                self.left.entry(place).or_insert((holder, before));
            }
            if is_deserted && let Some((id, member)) = self.left.remove(&place) {
                self.linger(now, &id, &member);
            }
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

    /// Lets an address stay in its entry, where the last provider went from it. An address that the policy took away goes at
    /// once.
    fn linger(&mut self, now: Millis, id: &ServiceKey, member: &Member) {
        let Endpoint { address: Address::Ip(address), port, .. } = member.endpoint() else { return };
        let (Some(policy), Some(application)) = (&self.policy, application(member)) else { return };
        let key = (Arc::from(application), *port);
        let may_stay =
            policy.is_direct(application) && policy.check_address(*address).is_ok() && policy.serves(id.id());
        if let Some((key, _)) = self.served.get_key_value(&key).filter(|_| may_stay && !policy.linger().is_zero()) {
            self.lingering.begin(now, key, *address, id, member);
        }
    }

    /// The addresses that linger.
    pub fn lingering(&self) -> &Lingering {
        &self.lingering
    }

    /// Has addresses linger that did before, in the entries of a last good state.
    pub fn restore_lingering(&mut self, lingering: Lingering) {
        self.lingering = lingering;
    }

    /// Looks at the entries of which an address has lingered for long enough.
    pub fn expire(&mut self, now: Millis) {
        let linger = self.policy.as_ref().map_or(0, |policy| policy.linger().as_millis() as Millis);
        self.touched.extend(self.lingering.end_since(now - linger));
    }

    /// When an address will have lingered for long enough.
    pub fn deadline(&self) -> Option<Millis> {
        let policy = self.policy.as_ref()?;
        Some(self.lingering.first()? + policy.linger().as_millis() as Millis)
    }

    /// Takes another word of who consumes what; entries are looked at of whose services it is another one.
    pub fn see(&mut self, seen: Option<&Arc<Seen>>) {
        if is_same(self.seen.as_ref(), seen) {
            return;
        }
        let before = std::mem::replace(&mut self.seen, seen.cloned());
        if !self.policy.as_ref().is_some_and(|policy| policy.direct_follows()) {
            return;
        }
        let get = |seen: Option<&Seen>, id: &ServiceId| seen.map(|seen| seen.get(*id).cloned());
        let is_other = |id: &ServiceId| get(before.as_deref(), id) != get(seen.map(|seen| &**seen), id);
        let touched = self.services.iter().filter(|(_, services)| services.keys().any(is_other));
        self.touched.extend(touched.map(|(key, _)| key.clone()));
    }

    /// `exportTo` of an entry.
    fn export_to<'p>(&self, key: &Key, policy: &'p Policy, namespace: &str) -> Cow<'p, [String]> {
        // While its addresses linger that nobody publishes any more, it is for who saw it.
        let last = || self.exported.get(key).filter(|_| policy.direct_follows());
        match (&self.seen, self.services.get(key)) {
            (Some(seen), Some(services)) if policy.direct_follows() => {
                let mut all: Option<Consumers> = None;
                for consumers in services.keys().filter_map(|id| seen.get(*id)) {
                    all.get_or_insert_default().add(consumers);
                }
                policy.direct_visible_to(&key.0, all.as_ref(), namespace)
            }
            (Some(_), None) if last().is_some() => Cow::Owned(last().cloned().unwrap_or_default()),
            _ => Cow::Borrowed(policy.direct_export_to(&key.0)),
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
        self.left.clear();
        for key in std::mem::take(&mut self.touched) {
            let host: Arc<str> = app_entry::host(&key.0, key.1, &config.host_suffix).into();
            let (living, lingering) = (self.entries.get(&key), self.lingering.of(&key));
            if (living.is_none() && lingering.is_none()) || !policy.is_direct(&key.0) {
                match self.served.contains_key(&key) && keep {
                    true => drop(self.touched.insert(key)),
                    false => {
                        self.remove(&key, changes);
                        outcomes.push(Outcome { host, refused: None, kept: false });
                    }
                }
                continue;
            }
            let none = BTreeMap::new();
            let addresses = Addresses { living: living.unwrap_or(&none), lingering: lingering.unwrap_or(&none) };
            let export_to = self.export_to(&key, policy, &config.namespace);
            let made = catch_unwind(AssertUnwindSafe(|| make(&key, &host, &addresses, &export_to, config, policy)));
            match policy.direct_follows() && self.seen.is_some() {
                true => self.exported.insert(key.clone(), export_to.into_owned()),
                false => self.exported.remove(&key),
            };
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
            self.notices.push(Notice::MtlsMixed { application: (*key.0).into(), port: key.1 });
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
        self.exported.remove(key);
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

    /// Addresses that began to linger or no longer do, since the last call.
    pub fn lingering_changed(&mut self) -> Vec<(SocketAddr, Option<Lingers>)> {
        self.lingering.changed()
    }

    /// Counts for status.
    pub fn counts(&self) -> DirectCounts {
        DirectCounts {
            entries: self.served.len(),
            contested: self.contested,
            unnamed: self.unnamed,
            mixed_mtls: self.mixed.len(),
            left_out: self.crowded.values().sum(),
            lingering: self.lingering.count(),
            not_lingering: self.lingering.refused(),
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
    addresses: &Addresses<'_>,
    export_to: &[String],
    config: &Config,
    policy: &Policy,
) -> Result<Build, Invalid> {
    let name = names::resource_name(host, &config.host_suffix);
    let name: Arc<str> = format!("{}/{name}", config.namespace).into();
    let annotations: BTreeMap<_, _> = [(APPLICATION_ANNOTATION.to_owned(), application.to_string())].into();
    let built = app_entry::build(host, *port, addresses, export_to, policy);
    validate::service_entry(&built, &config.namespace)?;
    let rule = app_entry::rule(application, host, addresses, export_to, policy);
    let some = addresses.all().any(|(_, member)| member.endpoint().mtls().is_some());
    let mixed = some && rule.is_none() && policy.balance() == Balance::Client;
    let rule = rule.map(|rule| Resource::destination_rule(name.to_string(), annotations.clone(), &rule));
    let left_out = addresses.living.len().saturating_sub(MAX_ADDRESSES);
    // As of a service, so that istiod tells proxies of the loss.
    let is_empty = policy.balance() == Balance::Mesh && addresses.living.is_empty();
    let labels = is_empty.then(|| (EMPTY_LABEL.to_owned(), "true".to_owned())).into_iter().collect();
    let entry = Resource::beside(name.to_string(), labels, annotations, &built);
    Ok(Build { place: (slice_of(&Sha256::digest(host).into()), name), entry, rule, mixed, left_out })
}

/// Keeps up how many endpoints a service has of an application at a port.
fn count(services: &mut BTreeMap<Key, HashMap<ServiceId, usize>>, key: &Key, service: ServiceId, comes: bool) {
    if comes {
        *services.entry(key.clone()).or_default().entry(service).or_default() += 1;
        return;
    }
    let Some(of) = services.get_mut(key) else { return };
    if let Some(count) = of.get_mut(&service) {
        *count -= 1;
        if *count == 0 {
            of.remove(&service);
        }
    }
    if of.is_empty() {
        services.remove(key);
    }
}

fn shown((address, port, id): &(IpAddr, u16, ServiceKey), application: &str) -> Box<str> {
    let start = |text: &str| text.chars().take(100).collect::<String>();
    let (application, id) = (start(application), start(id.text()));
    format!("{address} {port} {application} {id}").into()
}

/// An endpoint that was read under another policy, with what the policy in force says of mTLS. A zone that is no label is not known
/// any more, so a rule for zones does not find it.
fn as_now(member: &Member, policy: Option<&Policy>) -> Member {
    let endpoint = member.endpoint();
    let (Some(policy), Address::Ip(address)) = (policy, &endpoint.address) else { return member.clone() };
    member.with_mtls(policy.mtls(Some(*address), endpoint.application(), endpoint.labels.get("zone")))
}

fn application(member: &Member) -> Option<&str> {
    member.endpoint().application().filter(|name| name.len() <= LONGEST_NAME)
}

#[cfg(test)]
mod tests;
