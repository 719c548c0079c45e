use prost::Message;

use super::*;
use crate::{
    policy::PolicyConfig,
    proto::istio::networking::v1alpha3::{DestinationRule, ServiceEntry},
    snapshot::Snapshot,
    translate::{Parsed, payload, service_entry},
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
    policy(serde_json::json!({ "direct": { "applications": ["orders"], "balance": "mesh", "addresses": addresses } }))
}

/// A policy that Istio's validation refuses for every entry.
fn refused() -> Policy {
    policy(serde_json::json!({ "direct": { "applications": ["*"] }, "exportTo": [".", "sofa-registry"] }))
}

fn changes(direct: &mut Direct, policy: &Policy, keep: bool) -> (Vec<String>, Vec<Outcome>) {
    let mut changes = RoundChanges::default();
    let outcomes = direct.changes(&Config::default(), policy, keep, &mut changes);
    let sign = |there: bool| if there { '+' } else { '-' };
    let named = |((_, name), made): (&(usize, Arc<str>), &Option<Resource>)| format!("{}{name}", sign(made.is_some()));
    (changes.service_entries.iter().map(named).collect(), outcomes)
}

const ORDERS: &str = "sofa-registry/p80.orders.app";
const USERS: &str = "sofa-registry/p80.users.app";

#[test]
fn an_address_is_the_newests_and_only_what_is_touched_is_made() {
    let (mut direct, all) = (Direct::default(), all());
    let orders = members(&["10.0.0.1:80?app=orders", "10.0.0.2:80?app=orders"], 1);
    direct.update(0, &"a".into(), &[], &orders, &HashSet::new());
    assert_eq!(changes(&mut direct, &all, false).0, [format!("+{ORDERS}")]);
    assert!(changes(&mut direct, &all, false).0.is_empty());
    direct.update(0, &"b".into(), &[], &members(&["10.0.0.2:80?app=users"], 2), &HashSet::new());
    let both = changes(&mut direct, &all, false).0;
    assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([format!("+{ORDERS}"), format!("+{USERS}")]));
    assert_eq!((direct.counts().contested, direct.notices().len()), (1, 1));
    // The same again in a newer version: it has the address now.
    let newer = members(&["10.0.0.1:80?app=orders", "10.0.0.2:80?app=orders"], 3);
    direct.update(0, &"a".into(), &orders, &newer, &HashSet::new());
    let both = changes(&mut direct, &all, false).0;
    assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([format!("+{ORDERS}"), format!("-{USERS}")]));
    direct.update(0, &"a".into(), &newer, &[], &HashSet::new());
    let both = changes(&mut direct, &all, false).0;
    assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([format!("-{ORDERS}"), format!("+{USERS}")]));
    assert_eq!((direct.counts().entries, direct.counts().contested), (1, 0));
}

#[test]
fn what_istio_would_refuse_is_served_as_before_and_named() {
    let (mut direct, all, refused) = (Direct::default(), all(), refused());
    direct.update(0, &"a".into(), &[], &members(&["10.0.0.1:80?app=orders"], 1), &HashSet::new());
    changes(&mut direct, &all, false);
    direct.update(0, &"b".into(), &[], &members(&["10.0.0.3:80?app=users"], 1), &HashSet::new());
    direct.touch_all();
    let (changed, outcomes) = changes(&mut direct, &refused, false);
    assert_eq!((changed.len(), direct.counts().entries), (0, 1), "the old one stays, the new one does not come");
    let reasons = outcomes.iter().map(|it| (&*it.host, it.refused.as_ref().unwrap().reason, it.kept));
    let expected = [("p80.orders.app.sofa.mesh", "export-to", true), ("p80.users.app.sofa.mesh", "export-to", false)];
    assert_eq!(reasons.collect::<Vec<_>>(), expected);
    direct.touch_all();
    let (_, outcomes) = changes(&mut direct, &all, false);
    assert!(outcomes.len() == 2 && outcomes.iter().all(|outcome| outcome.refused.is_none()));
}

#[test]
fn what_a_last_good_state_had_is_not_removed_while_it_is_to_be_kept() {
    let served = BTreeMap::from([((Arc::from("orders"), 80), (3, Arc::from("old/name")))]);
    let id: ServiceKey = "a".into();
    let orders = members(&["10.0.0.1:80?app=orders"], 1);
    let mut direct = Direct::restored(served);
    direct.follow(&Arc::new(all()), std::iter::once((&id, &orders[..])));
    assert!(changes(&mut direct, &all(), true).0.is_empty(), "nothing is touched");
    direct.update(0, &id, &orders, &[], &HashSet::new());
    direct.expire(60_000);
    assert!(changes(&mut direct, &all(), true).0.is_empty());
    assert_eq!(changes(&mut direct, &all(), false).0, ["-old/name"]);
    assert!(direct.is_empty());
}

#[test]
fn an_entry_that_gets_another_name_leaves_none_behind() {
    let served = BTreeMap::from([((Arc::from("orders"), 80), (3, Arc::from("old/name")))]);
    let mut direct = Direct::restored(served);
    direct.follow(&Arc::new(all()), std::iter::empty());
    direct.update(0, &"a".into(), &[], &members(&["10.0.0.1:80?app=orders"], 1), &HashSet::new());
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
    claimed().for_each(|(id, members)| direct.update(0, id, &[], members, &HashSet::new()));
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
    ids.iter().zip(&all).for_each(|(id, members)| direct.update(0, id, members, &[], &HashSet::new()));
    assert_eq!((direct.entries.len(), direct.claims.len(), direct.counts().not_own), (0, 0, 0));
}

/// The entry of orders as it is made now, and whether it is labelled as one without endpoints.
fn orders(direct: &mut Direct, policy: &Policy) -> Option<(ServiceEntry, bool)> {
    direct.touch_all();
    let mut changes = RoundChanges::default();
    direct.changes(&Config::default(), policy, false, &mut changes);
    let made = changes.service_entries.into_iter().find(|((_, name), _)| **name == *ORDERS)?.1?;
    let snapshot = Snapshot::default().with(&[((0, ORDERS.into()), Some(made))].into());
    let resource = snapshot.decode().pop().unwrap();
    let is_empty = resource.metadata.unwrap().labels.contains_key(EMPTY_LABEL);
    Some((ServiceEntry::decode(resource.body.unwrap().value).unwrap(), is_empty))
}

#[test]
fn an_address_lingers_after_its_provider_and_its_endpoint_goes_at_once() {
    let id: ServiceKey = "a".into();
    let both = members(&["10.0.0.1:80?app=orders", "10.0.0.2:80?app=orders"], 1);
    for (policy, endpoints) in [(all(), [0, 0]), (mesh(&["10.0.0.0/24"]), [2, 1])] {
        let mut direct = Direct::default();
        direct.follow(&Arc::new(policy), std::iter::empty());
        let policy = Arc::clone(direct.policy.as_ref().unwrap());
        let state = |direct: &mut Direct| {
            orders(direct, &policy).map(|(entry, is_empty)| (entry.addresses, entry.endpoints.len(), is_empty))
        };
        let addresses = |all: &[&str]| all.iter().map(|address| (*address).to_owned()).collect::<Vec<_>>();
        let two = addresses(&["10.0.0.1", "10.0.0.2"]);
        direct.update(0, &id, &[], &both, &HashSet::new());
        assert_eq!(state(&mut direct), Some((two.clone(), endpoints[0], false)));
        direct.update(1_000, &id, &both, &both[1..], &HashSet::new());
        assert_eq!(state(&mut direct), Some((two.clone(), endpoints[1], false)));
        assert_eq!((direct.deadline(), direct.counts().lingering), (Some(61_000), 1));
        direct.update(31_000, &id, &both[1..], &[], &HashSet::new());
        assert_eq!(state(&mut direct), Some((two, 0, endpoints[0] > 0)), "all linger, and the entry stays for them");
        direct.expire(60_999);
        assert_eq!(direct.counts().lingering, 2);
        direct.expire(61_000);
        assert_eq!(state(&mut direct), Some((addresses(&["10.0.0.2"]), 0, endpoints[0] > 0)));
        direct.expire(91_000);
        assert_eq!((state(&mut direct), direct.is_empty(), direct.deadline()), (None, true, None));
    }
}

#[test]
fn an_address_lingers_until_somebody_is_there_or_the_policy_says_otherwise() {
    let id: ServiceKey = "a".into();
    let orders = members(&["10.0.0.1:80?app=orders"], 1);
    let document = |more: serde_json::Value| {
        let mut document = serde_json::json!({ "direct": { "applications": ["orders", "users"] } });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Arc::new(policy(document))
    };
    let direct_of = |applications: &[&str], linger: &str| serde_json::json!({ "direct": { "applications": applications, "linger": linger } });
    let first = document(serde_json::json!({}));
    let gone_under = |policy: &Arc<Policy>| {
        let mut direct = Direct::default();
        direct.follow(policy, std::iter::empty());
        direct.update(0, &id, &[], &orders, &HashSet::new());
        changes(&mut direct, policy, false);
        direct.update(5, &id, &orders, &[], &HashSet::new());
        direct
    };
    assert_eq!(gone_under(&first).counts().lingering, 1);
    assert_eq!(gone_under(&document(direct_of(&["orders"], "0s"))).counts().lingering, 0, "switched off");
    // Who is there ends it, whether he says his name or not.
    for data in ["10.0.0.1:80?app=orders", "10.0.0.1:80?app=users", "10.0.0.1:80?app=other", "10.0.0.1:80"] {
        let mut direct = gone_under(&first);
        direct.touched.clear();
        direct.update(6, &"b".into(), &[], &members(&[data], 2), &HashSet::new());
        assert_eq!(direct.counts().lingering, 0, "{data}");
        assert!(direct.touched.contains(&("orders".into(), 80)), "{data}");
    }
    // An address that is still published for another service never lingers, though nobody there says his name.
    let (mut direct, nameless) = (Direct::default(), members(&["10.0.0.1:80"], 1));
    direct.follow(&first, std::iter::empty());
    direct.update(0, &"b".into(), &[], &nameless, &HashSet::new());
    direct.update(0, &id, &[], &orders, &HashSet::new());
    changes(&mut direct, &first, false);
    direct.update(5, &id, &orders, &[], &HashSet::new());
    assert_eq!(changes(&mut direct, &first, false).0, [format!("-{ORDERS}")]);
    // Other policies.
    let mtls = serde_json::json!([{ "zones": ["z"] }]);
    for (stays, other) in [
        (true, serde_json::json!({ "exportTo": ["~"] })),
        (true, direct_of(&["ord*"], "90s")),
        (false, direct_of(&["ord*"], "0s")),
        (false, direct_of(&["users"], "60s")),
        (false, serde_json::json!({ "endpoints": { "deny": ["10.0.0.0/24"] } })),
        (false, serde_json::json!({ "mtls": mtls })),
        (false, serde_json::json!({ "exclude": ["a"] })),
        (false, serde_json::json!({ "direct": { "applications": ["*"], "balance": "mesh" } })),
        (
            true,
            serde_json::json!({ "direct": { "applications": ["*"], "balance": "mesh", "addresses": ["10.0.0.1/32"] } }),
        ),
    ] {
        let mut direct = gone_under(&first);
        let other = document(other);
        direct.follow(&other, std::iter::empty());
        direct.expire(7);
        assert_eq!(direct.counts().lingering, usize::from(stays), "{other:?}");
        let changed = changes(&mut direct, &other, false).0;
        assert_eq!(changed, [format!("{}{ORDERS}", if stays { '+' } else { '-' })], "{other:?}");
    }
    // An address that the policy itself takes away goes with it; who goes after another policy lingers with what that one says of mTLS.
    let identity = "spiffe://mesh/ns/shop/sa/orders";
    for (stays, other) in [
        (false, serde_json::json!({ "endpoints": { "deny": ["10.0.0.1/32"] } })),
        (false, serde_json::json!({ "exclude": ["a"] })),
        (true, serde_json::json!({ "mtls": [{ "applications": ["orders"], "identities": [identity] }] })),
    ] {
        let mut direct = Direct::default();
        direct.follow(&first, std::iter::empty());
        direct.update(0, &id, &[], &orders, &HashSet::new());
        changes(&mut direct, &first, false);
        let other = document(other);
        direct.follow(&other, std::iter::once((&id, &orders[..])));
        direct.update(5, &id, &orders, &[], &HashSet::from_iter([id.clone()]));
        assert_eq!(direct.counts().lingering, usize::from(stays), "{other:?}");
        let lingers = direct.lingering.of(&("orders".into(), 80)).map(|all| all[&"10.0.0.1".parse().unwrap()].clone());
        let mtls = lingers.map(|member| member.endpoint().mtls().unwrap().to_vec());
        assert_eq!(mtls, stays.then(|| vec![identity.to_owned()]));
        assert_eq!(changes(&mut direct, &other, false).0.len(), 1, "{other:?}");
    }
}

#[test]
fn an_address_lingers_for_who_had_it_though_another_is_there_until_the_same_round() {
    let (ids, policy) = ([ServiceKey::from("a"), "b".into()], Arc::new(all()));
    for other in ["10.0.0.1:80", "10.0.0.1:80?app=users"] {
        let (orders, other) = (members(&["10.0.0.1:80?app=orders"], 2), members(&[other], 1));
        for order in [[0, 1], [1, 0]] {
            let mut direct = Direct::default();
            direct.follow(&policy, std::iter::empty());
            let of = [&orders, &other];
            (0..2).for_each(|n| direct.update(0, &ids[n], &[], of[n], &HashSet::new()));
            assert_eq!(changes(&mut direct, &policy, false).0, [format!("+{ORDERS}")]);
            order.into_iter().for_each(|n| direct.update(5, &ids[n], of[n], &[], &HashSet::new()));
            let lingers = Lingers { application: "orders".into(), since: 5 };
            assert_eq!(direct.lingering_changed(), [("10.0.0.1:80".parse().unwrap(), Some(lingers))]);
        }
    }
}

#[test]
fn an_entry_of_before_a_start_is_looked_at_where_the_policy_ends_what_lingers_in_it() {
    let (id, orders) = ("a".into(), members(&["10.0.0.1:80?app=orders"], 1));
    let (first, other) = (Arc::new(all()), Arc::new(policy(serde_json::json!({ "exclude": ["a"] }))));
    let mut direct = Direct::default();
    direct.follow(&first, std::iter::empty());
    direct.update(0, &id, &[], &orders, &HashSet::new());
    changes(&mut direct, &first, false);
    direct.update(5, &id, &orders, &[], &HashSet::new());
    changes(&mut direct, &first, false);
    let mut restored = Direct::restored(direct.served.clone());
    restored.restore_lingering(direct.lingering.clone());
    restored.follow(&other, std::iter::empty());
    assert_eq!((restored.lingering.count(), changes(&mut restored, &other, false).0), (0, vec![format!("-{ORDERS}")]));
}

#[test]
fn what_lingers_keeps_no_more_than_its_own_endpoint_and_a_short_name() {
    let mut direct = Direct::default();
    direct.follow(&Arc::new(all()), std::iter::empty());
    let longest = "x".repeat(LONGEST_NAME);
    let names = [format!("10.0.0.1:80?app={longest}"), format!("10.0.0.2:80?app={longest}x"), "10.0.0.3:81".to_owned()];
    let there = members(&names.each_ref().map(|name| &**name), 1);
    let id = "a".into();
    direct.update(0, &id, &[], &there, &HashSet::new());
    assert_eq!((direct.entries.len(), direct.unnamed), (1, 2));
    changes(&mut direct, &all(), false);
    direct.update(5, &id, &there, &[], &HashSet::new());
    let changed = direct.lingering_changed();
    let (key, _) = direct.served.first_key_value().unwrap();
    assert_eq!(&*key.0, longest);
    let [(_, Some(lingers))] = &changed[..] else { panic!("one lingers") };
    assert!(Arc::ptr_eq(&lingers.application, &key.0), "one name");
    let member = direct.lingering.of(key).unwrap().values().next().unwrap();
    assert!(*member == there[0] && !member.is_shared(&there[0]));
    assert!(member.alone().is_shared(member), "no copy of what is alone already");
}

#[test]
fn no_more_linger_than_a_proxy_can_bear() {
    let id: ServiceKey = "a".into();
    let data = |application: usize, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("10.{application}.{}.{}:80?app=app{application}", n >> 8, n & 255)).collect()
    };
    let mut direct = Direct::default();
    let all = all();
    let mut go = |application: usize, count: usize| {
        let data = data(application, count);
        let there = members(&data.iter().map(String::as_str).collect::<Vec<_>>(), 1);
        direct.policy.get_or_insert_with(|| Arc::new(self::all()));
        direct.update(0, &id, &[], &there, &HashSet::new());
        changes(&mut direct, &all, false);
        direct.update(1, &id, &there, &[], &HashSet::new());
        let counts = direct.counts();
        (counts.lingering, counts.not_lingering)
    };
    assert_eq!(go(0, 1_005), (1_000, 5));
    for application in 1..10 {
        assert_eq!(go(application, 1_000), (1_000 * (application + 1), 5));
    }
    assert_eq!(go(10, 3), (10_000, 8));
}

#[test]
fn a_sample_has_the_start_of_what_publishers_chose() {
    let mut direct = Direct::default();
    let application = format!("orders{}", "x".repeat(200));
    let data = format!("10.0.0.1:80?app={application}");
    let any = self::policy(serde_json::json!({ "direct": { "applications": ["*"], "balance": "mesh" } }));
    direct.follow(&Arc::new(any), std::iter::empty());
    direct.update(0, &(&*"i".repeat(200)).into(), &[], &members(&[&data], 1), &HashSet::new());
    let sample = format!("10.0.0.1 80 {} {}", &application[..100], "i".repeat(100));
    assert_eq!(direct.counts().not_own_sample, [sample.into()]);
}

#[test]
fn where_the_proxy_chooses_new_providers_warm_up_by_the_policy() {
    let rule = |balance: &str| {
        let overrides = serde_json::json!({ "or*": { "warmup": "90s" }, "*": { "warmup": "5s", "exportTo": ["a"] } });
        let policy = policy(serde_json::json!({ "direct": {
            "applications": ["*"], "balance": balance, "addresses": ["10.0.0.0/8"], "overrides": overrides } }));
        let (mut direct, mut changes) = (Direct::default(), RoundChanges::default());
        direct.update(0, &"a".into(), &[], &members(&["10.0.0.1:80?app=orders"], 1), &HashSet::new());
        direct.changes(&Config::default(), &policy, false, &mut changes);
        let rules = Snapshot::default().with(&changes.destination_rules).decode();
        rules.into_iter().map(|rule| DestinationRule::decode(rule.body.unwrap().value).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(rule("mesh"), [service_entry::warmup("p80.orders.app.sofa.mesh", std::time::Duration::from_secs(90))]);
    assert_eq!(rule("client"), [], "there the consumer does that");
}

#[test]
fn an_application_has_an_export_of_its_own() {
    let mut direct = Direct::default();
    let document = |overrides| serde_json::json!({ "exportTo": ["a"], "direct": { "applications": ["*"], "overrides": overrides } });
    let with = policy(document(serde_json::json!({ "or*": { "exportTo": ["b"] }, "*": { "exportTo": ["~"] } })));
    direct.update(0, &"a".into(), &[], &members(&["10.0.0.1:80?app=orders"], 1), &HashSet::new());
    assert_eq!(orders(&mut direct, &with).unwrap().0.export_to, ["b"], "the most specific glob decides");
    let without = policy(document(serde_json::json!({ "Or*": { "exportTo": ["b"] }, "or*": {} })));
    assert_eq!(orders(&mut direct, &without).unwrap().0.export_to, ["a"]);
    assert!(!with.makes_direct_as(&without));
}

#[test]
fn an_application_is_exported_to_the_consumers_of_any_of_its_services() {
    let document = serde_json::json!({ "direct": { "applications": ["*"] }, "visibility": { "mode": "on" } });
    let (policy, mut direct) = (Arc::new(policy(document)), Direct::default());
    // None: the entry was not looked at.
    let export = |direct: &mut Direct| -> Option<Vec<String>> {
        let mut changes = RoundChanges::default();
        direct.changes(&Config::default(), &policy, false, &mut changes);
        let entry = Snapshot::default().with(&changes.service_entries).decode().pop()?;
        Some(ServiceEntry::decode(entry.body?.value).unwrap().export_to)
    };
    let seen = |pairs: &[(&str, &[&str])]| Some(Arc::new(Seen::with(pairs)));
    direct.follow(&policy, std::iter::empty());
    let one = members(&["10.0.0.1:80?app=orders"], 1);
    ["a", "b"].into_iter().for_each(|id| direct.update(0, &id.into(), &[], &one, &HashSet::new()));
    assert_eq!(export(&mut direct).unwrap(), ["*"], "nothing is known yet");
    direct.see(seen(&[("a", &["shop"]), ("c", &["pay"])]).as_ref());
    assert_eq!(export(&mut direct).unwrap(), ["shop"]);
    direct.see(seen(&[("a", &["shop"]), ("b", &["batch"]), ("c", &["pay"])]).as_ref());
    assert_eq!(export(&mut direct).unwrap(), ["batch", "shop"]);
    direct.see(seen(&[("a", &["shop"]), ("b", &["batch"]), ("c", &["pay"]), ("d", &["x"])]).as_ref());
    assert_eq!(export(&mut direct), None, "it is of another application");
    // A service that comes at an address that is there already.
    direct.update(0, &"c".into(), &[], &one, &HashSet::new());
    assert_eq!(export(&mut direct).unwrap(), ["batch", "pay", "shop"]);
    direct.update(0, &"b".into(), &one, &[], &HashSet::new());
    assert_eq!(export(&mut direct).unwrap(), ["pay", "shop"]);
    // While its address lingers nothing tells who consumes it.
    ["a", "c"].into_iter().for_each(|id| direct.update(0, &id.into(), &one, &[], &HashSet::new()));
    assert_eq!(
        (export(&mut direct).unwrap(), direct.counts().lingering),
        (vec!["pay".to_owned(), "shop".to_owned()], 1)
    );
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

    /// Places where services have endpoints, whatever these claim.
    fn populated(&self) -> BTreeSet<(IpAddr, u16)> {
        let place = |member: &Member| match member.endpoint() {
            Endpoint { address: Address::Ip(address), port, .. } => (*address, *port),
            other => panic!("{other:?} has no address"),
        };
        self.services.values().flatten().map(place).collect()
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
        waits in proptest::collection::vec(proptest::sample::select(vec![0, 1, 29_999, 30_000, 60_000]), 40),
        policies in proptest::collection::vec(0usize..3, 40),
    ) {
        let all = [all(), mesh(&[]), mesh(&["10.0.0.2/31"])].map(Arc::new);
        let (mut now, mut gone) = (0, BTreeMap::<(IpAddr, u16), Lingers>::new());
        let mut told = gone.clone();
        let (mut direct, mut policy) = (Direct::default(), Arc::clone(&all[0]));
        direct.follow(&policy, std::iter::empty());
        let mut naive = Naive { services: BTreeMap::new(), policy: Arc::clone(&policy) };
        for (((service, version, source, endpoints), other), wait) in history.into_iter().zip(policies).zip(waits) {
            now += wait;
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
            changes(&mut direct, &policy, false);
            let (served, had) = (direct.served.clone(), naive.entries());
            let before = naive.services.insert(id.clone(), after.clone()).unwrap_or_default();
            let touched = direct.entries.clone();
            direct.update(now, &id, &before, &after, &HashSet::new());
            direct.expire(now);
            let (entries, populated) = (naive.entries(), naive.populated());
            for key in touched.keys().chain(entries.keys()).filter(|key| touched.get(*key) != entries.get(*key)) {
                proptest::prop_assert!(direct.touched.contains(key), "{:?} is other and not touched", key);
            }
            proptest::prop_assert_eq!(&direct.entries, &entries);
            // An address lingers where the last provider of an entry went, until somebody is there or a minute is over.
            let is_its = |place: &(IpAddr, u16), application: &str| {
                let last = had.get(&(application.into(), place.1)).and_then(|entry| entry.get(&place.0));
                let own = last.or_else(|| direct.lingering.of(&(application.into(), place.1))?.get(&place.0));
                policy.is_direct(application) && (policy.is_vouched_for(place.0) || own.is_some_and(Member::is_own))
            };
            gone.retain(|place, lingers| is_its(place, &lingers.application));
            for ((application, port), entry) in &had {
                for address in entry.keys().filter(|address| !populated.contains(&(**address, *port))) {
                    if policy.is_direct(application) && served.contains_key(&(Arc::clone(application), *port)) {
                        gone.insert((*address, *port), Lingers { application: Arc::clone(application), since: now });
                    }
                }
            }
            gone.retain(|place, lingers| !populated.contains(place) && lingers.since + 60_000 > now);
            for (address, lingers) in direct.lingering_changed() {
                match lingers {
                    Some(lingers) => drop(told.insert((address.ip(), address.port()), lingers)),
                    None => drop(told.remove(&(address.ip(), address.port()))),
                }
            }
            proptest::prop_assert_eq!(&told, &gone);
            proptest::prop_assert_eq!(direct.lingering.count(), gone.len());
            proptest::prop_assert_eq!(direct.deadline(), gone.values().map(|lingers| lingers.since + 60_000).min());
            changes(&mut direct, &policy, false);
            let both = entries.keys().cloned().chain(gone.iter().map(|((_, port), it)| (Arc::clone(&it.application), *port)));
            let both: BTreeSet<Key> = both.filter(|(application, _)| policy.is_direct(application)).collect();
            proptest::prop_assert!(direct.served.keys().eq(&both), "{:?} are served, not {:?}", direct.served, both);
            let unnamed = naive.services.values().flatten().filter(|member| application(member).is_none()).count();
            proptest::prop_assert_eq!((direct.contested, direct.unnamed), (naive.contested(), unnamed));
            proptest::prop_assert_eq!(direct.claims.len(), populated.len());
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
    ids.iter().for_each(|id| direct.update(0, id, &[], &before, &HashSet::new()));
    COMPARED.set(0);
    ids.iter().for_each(|id| direct.update(0, id, &before, &after, &HashSet::new()));
    COMPARED.get()
}

#[test]
fn a_claim_costs_the_logarithm_of_what_is_there() {
    let (few, many) = (compared(100, 50), compared(1_000, 50));
    assert!(few > 0 && many < 10 * few * 2, "{few} for 100 interfaces, {many} for 1000");
    assert!(many < 1_000 * 30, "{many}");
    assert_eq!(compared(100, 1), compared(100, 100), "other addresses cost nothing");
}
