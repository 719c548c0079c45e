//! Entries for consumers that dial the addresses which the registry gives them.
//!
//! A ServiceEntry with a virtual address never sees such a call. A ServiceEntry whose `addresses` are the providers' own makes
//! istiod listen on each of them, so that the call goes through the mesh. Listeners are keyed by address and port, and dozens of
//! interfaces share one, so there is an entry for each (application, port) that the policy names, beside the services'.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use crate::{
    catalog::{
        changes::{RoundChanges, put, remove},
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

/// An application and its port: what there is an entry for.
pub type Key = (Box<str>, u16);

/// The entries, kept up as services change.
#[derive(Debug, Default)]
pub struct Direct {
    /// For each address and port the endpoints that are published there, by service.
    claims: HashMap<(IpAddr, u16), BTreeMap<Arc<str>, Member>>,
    /// For each application and port the endpoints that it has there.
    entries: BTreeMap<Key, BTreeMap<IpAddr, Member>>,
    /// Entries to look at, since their endpoints or the policy changed.
    touched: BTreeSet<Key>,
    /// Slices and names of the entries that are served.
    served: BTreeMap<Key, (usize, Arc<str>)>,
    contested: BTreeSet<(IpAddr, u16)>,
    /// Entries of which some addresses only are to be called with mTLS.
    mixed: BTreeSet<Key>,
    /// How many addresses are left out of the entries that have too many.
    crowded: BTreeMap<Key, usize>,
    unnamed: usize,
    notices: Vec<Notice>,
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
    /// The entries of a last good state, and the endpoints of its services.
    pub fn restored<'a>(
        served: BTreeMap<Key, (usize, Arc<str>)>,
        services: impl Iterator<Item = (&'a Arc<str>, &'a [Member])>,
    ) -> Self {
        let mut direct = Self::default();
        services.for_each(|(id, members)| direct.update(id, &[], members));
        Self { served, touched: BTreeSet::new(), notices: Vec::new(), ..direct }
    }

    /// Notes that a service has other endpoints than before. Costs the endpoints that differ.
    pub fn update(&mut self, id: &Arc<str>, before: &[Member], after: &[Member]) {
        let keep: HashMap<_, &Member> = after.iter().map(|member| (member.key(), member)).collect();
        let had: HashMap<_, &Member> = before.iter().map(|member| (member.key(), member)).collect();
        for member in before.iter().filter(|member| !keep.contains_key(&member.key())) {
            self.claim(id, member, None);
        }
        // Of two applications on one address the newest has it, so the version counts as well.
        let same = |member: &&Member, had: &&Member| had == member && had.version() == member.version();
        for member in after.iter().filter(|member| !had.get(&member.key()).is_some_and(|had| same(member, had))) {
            self.claim(id, member, Some(member));
        }
        let unnamed = |members: &[Member]| members.iter().filter(|member| application(member).is_none()).count();
        self.unnamed = self.unnamed + unnamed(after) - unnamed(before);
    }

    fn claim(&mut self, id: &Arc<str>, at: &Member, by: Option<&Member>) {
        let Endpoint { address: Address::Ip(address), port, .. } = at.endpoint() else { return };
        let place = (*address, *port);
        let claims = self.claims.entry(place).or_default();
        let before = winner(claims).cloned();
        match by {
            Some(member) => claims.insert(Arc::clone(id), member.clone()),
            None => claims.remove(id),
        };
        let after = winner(claims).cloned();
        let applications: BTreeSet<Box<str>> = claims.values().filter_map(application).map(Into::into).collect();
        let contested = applications.len() > 1;
        if contested && !self.contested.contains(&place) {
            let newest = after.as_ref().and_then(application).map(Into::into);
            let (address, port) = place;
            self.notices.push(Notice::AddressContested { address, port, newest, claimed_by: applications });
        }
        match contested {
            true => self.contested.insert(place),
            false => self.contested.remove(&place),
        };
        if claims.is_empty() {
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
            contested: self.contested.len(),
            unnamed: self.unnamed,
            mixed_mtls: self.mixed.len(),
            left_out: self.crowded.values().sum(),
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
    let some = entry.values().any(|member| member.endpoint().mtls.is_some());
    let mixed = some && rule.is_none() && policy.balance() == Balance::Client;
    let rule = rule.map(|rule| Resource::destination_rule(name.to_string(), annotations.clone(), &rule));
    let left_out = entry.len().saturating_sub(MAX_ADDRESSES);
    let entry = Resource::beside(name.to_string(), annotations, &built);
    Ok(Build { place: (slice_of(&Sha256::digest(host).into()), name), entry, rule, mixed, left_out })
}

fn application(member: &Member) -> Option<&str> {
    member.endpoint().labels.get("app")
}

/// The endpoint that an address and port belong to: the newest by the registry's clock; at a tie the first by application and
/// registerId.
fn winner(claims: &BTreeMap<Arc<str>, Member>) -> Option<&Member> {
    let named = claims.values().filter(|member| application(member).is_some());
    named.max_by(|a, b| {
        let newer = (a.version().timestamp, a.version().version).cmp(&(b.version().timestamp, b.version().version));
        let name = |member: &Member| (application(member).map(str::to_owned), member.register_id().to_owned());
        newer.then_with(|| name(b).cmp(&name(a)))
    })
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
        Policy::compile(config, None).unwrap()
    }

    fn members(data: &[&str], version: i64) -> Vec<Member> {
        let policy = policy(serde_json::json!({}));
        let endpoints = data.iter().map(|text| payload::parse(text, "", false, &policy.rules("a")).unwrap()).collect();
        let version = crate::model::RegisterVersion { version, timestamp: 0 };
        Member::all(&Arc::new(Parsed { endpoints, version, ..Parsed::default() })).collect()
    }

    fn all() -> Policy {
        policy(serde_json::json!({ "direct": { "applications": ["*"] } }))
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
        let id: Arc<str> = "a".into();
        let orders = members(&["10.0.0.1:80?app=orders"], 1);
        let mut direct = Direct::restored(served, std::iter::once((&id, &orders[..])));
        assert!(changes(&mut direct, &all(), true).0.is_empty(), "nothing is touched");
        direct.update(&id, &orders, &[]);
        assert!(changes(&mut direct, &all(), true).0.is_empty());
        assert_eq!(changes(&mut direct, &all(), false).0, ["-old/name"]);
        assert!(direct.is_empty());
    }

    #[test]
    fn an_entry_that_gets_another_name_leaves_none_behind() {
        let served = BTreeMap::from([((Box::from("orders"), 80), (3, Arc::from("old/name")))]);
        let mut direct = Direct::restored(served, std::iter::empty());
        direct.update(&"a".into(), &[], &members(&["10.0.0.1:80?app=orders"], 1));
        let changed = BTreeSet::from_iter(changes(&mut direct, &all(), false).0);
        assert_eq!(changed, BTreeSet::from(["-old/name".to_owned(), format!("+{ORDERS}")]));
    }
}
