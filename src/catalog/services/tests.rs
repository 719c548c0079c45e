use serde_json::json;

use super::*;
use crate::{
    catalog::changes::RoundChanges,
    policy::{Policy, PolicyConfig},
    translate::{Parsed, payload},
};

const ID: &str = "com.example.Demo:1.0@tri#@#DEFAULT_INSTANCE_ID#@#SOFA";

fn policy(document: serde_json::Value) -> Policy {
    let config: PolicyConfig = serde_json::from_value(document).unwrap();
    Policy::compile(config, &[]).unwrap()
}

fn members(data: &[&str]) -> Vec<Member> {
    let policy = policy(json!({}));
    let endpoints = data
        .iter()
        .map(|text| payload::parse(text, "", payload::Client::Sofarpc, &policy.rules(ID)).unwrap())
        .collect();
    Member::all(&Arc::new(Parsed { endpoints, register_id: "r".into(), ..Parsed::default() })).collect()
}

fn place(name: &str, vip: &str) -> Place {
    let host = format!("{name}.sofa.mesh");
    let slice = crate::snapshot::partition::slice_of(&sha2::Digest::finalize(sha2::Sha256::default()).into());
    Place { host: host.into(), slice, vips: vip.parse().into_iter().collect() }
}

/// A single service, served in one way after another.
struct One {
    services: Services,
    id: ServiceKey,
}

impl One {
    fn new(mode: EndpointMode) -> Self {
        let config = Config { endpoint_mode: mode, ..Config::default() };
        Self { services: Services::restored(Arc::new(config), BTreeMap::new()), id: ID.into() }
    }

    /// The changes, with `+` for a resource that is put and `-` for one that is removed; `None`: there are none.
    fn serve(&mut self, place: &Place, data: &[&str], policy: &Policy) -> Result<Option<Vec<String>>, Rule> {
        let members = members(data);
        let made = self.services.make(&self.id, place, &members, data.is_empty(), &policy.rules(ID));
        let Some(mut made) = made.map_err(|invalid| invalid.rule)? else { return Ok(None) };
        let changes = std::mem::take(&mut made.changes);
        self.services.put(&self.id, made, members, data.is_empty().then_some(7), Intent::AsServed);
        Ok(Some(told(changes)))
    }
}

fn told(changes: ServiceChanges) -> Vec<String> {
    let mut all = RoundChanges::default();
    all.add(changes);
    let RoundChanges { service_entries, workload_entries, .. } = all;
    let all = service_entries.into_iter().chain(workload_entries);
    all.map(|((_, name), resource)| format!("{}{name}", if resource.is_some() { '+' } else { '-' })).collect()
}

#[test]
fn a_form_is_made_once_and_takes_the_place_of_the_one_before() {
    let mut one = One::new(EndpointMode::Inline);
    let (usual, a, b) = (policy(json!({})), place("a", "248.0.0.1"), place("b", "248.0.0.1"));
    assert_eq!(one.serve(&a, &["10.0.0.1:80"], &usual), Ok(Some(vec!["+sofa-registry/a".into()])));
    assert_eq!(one.serve(&a, &["10.0.0.1:80"], &usual), Ok(None));
    for other in [
        one.serve(&a, &["10.0.0.2:80"], &usual),
        one.serve(&place("a", "248.0.0.2"), &["10.0.0.2:80"], &usual),
        one.serve(&a, &["10.0.0.2:80"], &policy(json!({ "exportTo": ["~"] }))),
        one.serve(&a, &["10.0.0.2:80"], &policy(json!({ "ports": { "tri": 1 } }))),
        one.serve(&a, &["10.0.0.2:80"], &policy(json!({ "overrides": { "*": { "dns": true } } }))),
        one.serve(&a, &[], &usual),
    ] {
        assert_eq!(other, Ok(Some(vec!["+sofa-registry/a".into()])));
    }
    assert_eq!(one.services.totals(), Totals::default());
    let moved = one.serve(&b, &["10.0.0.2:80", "10.0.0.3:80"], &usual);
    assert_eq!(moved, Ok(Some(vec!["-sofa-registry/a".into(), "+sofa-registry/b".into()])));
    assert_eq!(one.services.totals(), Totals { services: 1, endpoints: 2 });
}

#[test]
fn what_istio_would_refuse_changes_nothing() {
    let mut one = One::new(EndpointMode::Inline);
    let (a, b) = (place("a", ""), place("b", ""));
    one.serve(&a, &["10.0.0.1:80"], &policy(json!({}))).unwrap();
    let refused = policy(json!({ "exportTo": ["sofa-registry", "."] }));
    assert_eq!(one.serve(&b, &["10.0.0.1:80"], &refused), Err(Rule::ExportTo));
    let served = one.services.get(&ID.into()).unwrap();
    assert_eq!((&*served.host, one.services.kept_host(served)), ("a.sofa.mesh", "a.sofa.mesh".to_owned()));
}

#[test]
fn a_workload_entry_is_encoded_once_and_goes_with_its_endpoint_or_host() {
    let mut one = One::new(EndpointMode::WorkloadEntry);
    let (usual, a) = (policy(json!({})), place("a", ""));
    let names = |data: &[&str], host: &str| -> Vec<String> {
        members(data).iter().map(|m| format!("sofa-registry/{}", service_entry::workload_name(host, m))).collect()
    };
    let both = ["10.0.0.1:80", "10.0.0.2:80"];
    assert_eq!(one.serve(&a, &both, &usual).unwrap().unwrap().len(), 3);
    let [first, second] = &names(&both, "a.sofa.mesh")[..] else { panic!("two endpoints") };
    let changed = one.serve(&a, &["10.0.0.1:80", "10.0.0.2:80?weight=7"], &usual).unwrap().unwrap();
    assert_eq!(changed, ["+sofa-registry/a", &format!("+{second}")]);
    let changed = one.serve(&a, &["10.0.0.2:80?weight=7"], &usual).unwrap().unwrap();
    assert_eq!(changed, ["+sofa-registry/a", &format!("-{first}")]);
    let changed =
        one.serve(&a, &["10.0.0.2:80?weight=7"], &policy(json!({ "overrides": { "*": { "protocol": "TCP" } } })));
    assert_eq!(changed.unwrap().unwrap(), ["+sofa-registry/a", &format!("+{second}")], "it names the port");
    let moved: BTreeSet<String> =
        one.serve(&place("b", ""), &["10.0.0.2:80"], &usual).unwrap().unwrap().into_iter().collect();
    let there = &names(&["10.0.0.2:80"], "b.sofa.mesh")[0];
    let expected = ["-sofa-registry/a".into(), "+sofa-registry/b".into(), format!("-{second}"), format!("+{there}")];
    assert_eq!(moved, BTreeSet::from(expected));
    let (gone, had) = one.services.remove(&ID.into()).unwrap();
    assert_eq!((told(gone), had.len()), (vec!["-sofa-registry/b".into(), format!("-{there}")], 1));
    assert_eq!((one.services.iter().count(), one.services.totals()), (0, Totals::default()));
}

#[test]
fn what_is_restored_is_made_anew_whatever_it_was_made_from() {
    let (usual, data) = (policy(json!({})), ["10.0.0.1:80"]);
    let key = (members(&data)[0].endpoint().address.clone(), 80);
    let last = LastService {
        host: "a.old.mesh".into(),
        slice: 3,
        name: "old/a".into(),
        vips: Vips::default(),
        members: members(&data),
        workloads: BTreeMap::from([(key, "old/r-1".into())]),
        empty_since: None,
    };
    for mode in [EndpointMode::Inline, EndpointMode::WorkloadEntry] {
        let config = Config { endpoint_mode: mode, ..Config::default() };
        let last_good = BTreeMap::from([(ID.into(), last.clone())]);
        let mut one = One { services: Services::restored(Arc::new(config), last_good), id: ID.into() };
        let served = one.services.get(&ID.into()).unwrap();
        assert!(served.is_unheard() && served.endpoints == 1);
        assert_eq!(one.services.kept_host(served), "a.sofa.mesh", "nobody else is to have its name");
        assert_eq!(one.services.totals(), Totals { services: 1, endpoints: 1 });
        let changed = one.serve(&place("a", ""), &data, &usual).unwrap().unwrap();
        let removed: Vec<_> = changed.iter().filter(|change| change.starts_with('-')).collect();
        assert_eq!(removed, ["-old/a", "-old/r-1"], "{mode:?}");
        assert_eq!(changed.len(), if mode == EndpointMode::Inline { 3 } else { 4 });
    }
}

#[test]
fn what_is_missing_is_put_beside_what_is_wanted() {
    let mut one = One::new(EndpointMode::Inline);
    one.serve(&place("a", ""), &["10.0.0.1:80", "10.0.0.3:80"], &policy(json!({}))).unwrap();
    let served = one.services.get(&ID.into()).unwrap();
    let with = |data: &[&str], allowed| {
        let all = served.with_missing(&members(data), allowed)?;
        Some(all.iter().map(|member| member.endpoint().address.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(with(&["10.0.0.3:80", "10.0.0.1:80", "10.0.0.2:80"], true), None);
    assert_eq!(with(&["10.0.0.2:80", "10.0.0.3:80"], true).unwrap(), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(with(&[], false).unwrap(), ["10.0.0.1", "10.0.0.3"]);
}

#[test]
fn graces_are_kept_in_order_and_told_when_they_change() {
    let mut one = One::new(EndpointMode::Inline);
    let (usual, a) = (policy(json!({})), place("a", ""));
    one.serve(&a, &[], &usual).unwrap();
    assert_eq!(one.services.graces_changed(), [(ID.into(), Some(7))]);
    assert_eq!(
        (one.services.first_grace(), one.services.expired(6).count(), one.services.expired(7).count()),
        (Some(7), 0, 1)
    );
    one.services.stay(&ID.into(), Some(7), Intent::AsServed);
    assert!(one.services.graces_changed().is_empty());
    one.services.stay(&ID.into(), Some(9), Intent::Unreadable);
    assert_eq!((one.services.empty()[ID], one.services.expired(8).count()), (9, 0));
    assert!(matches!(one.services.take_intent(&ID.into()), Intent::Unreadable));
    one.serve(&a, &["10.0.0.1:80"], &usual).unwrap();
    assert_eq!(one.services.graces_changed(), [(ID.into(), Some(9)), (ID.into(), None)]);
    assert_eq!((one.services.first_grace(), one.services.empty().len()), (None, 0));
}

/// Without `dns` an endpoint with a name breaks a rule of Istio's.
#[test]
fn a_build_tells_whether_it_leaves_out_what_is_served() {
    let (usual, dns) = (policy(json!({})), policy(json!({ "overrides": { "*": { "dns": true } } })));
    let with_name = |data: &[&str]| {
        let endpoints = data
            .iter()
            .map(|text| payload::parse(text, "", payload::Client::Sofarpc, &dns.rules(ID)).unwrap())
            .collect();
        let mut members: Vec<Member> = Member::all(&Arc::new(Parsed { endpoints, ..Parsed::default() })).collect();
        members.sort_by(|a, b| a.key().cmp(&b.key()));
        members
    };
    for mode in [EndpointMode::Inline, EndpointMode::WorkloadEntry] {
        let mut one = One::new(mode);
        let (id, a) = (ServiceKey::from(ID), place("a", ""));
        let mut make = |data: &[&str], policy: &Policy, put: bool| {
            let members = with_name(data);
            let build = one.services.make(&id, &a, &members, false, &policy.rules(ID)).unwrap().unwrap();
            let found = (build.loses, build.endpoints);
            if put {
                one.services.put(&id, build, members, None, Intent::AsServed);
            }
            found
        };
        assert_eq!(make(&["10.0.0.1:80", "a.example.com:80"], &dns, true), (false, 2), "{mode:?}");
        let more = ["10.0.0.1:80", "10.0.0.2:80", "a.example.com:80"];
        // A WorkloadEntry may have a name by itself, but its service does not take it.
        assert_eq!(make(&more, &usual, false), (true, 2), "{mode:?}: as many, but not the same");
        assert_eq!(make(&["10.0.0.1:80", "b.example.com:80"], &usual, false), (false, 1), "{mode:?}: not served");
        assert_eq!(make(&["10.0.0.2:80"], &usual, false), (false, 1), "{mode:?}: not left out");
        assert_eq!(make(&more, &usual, true), (true, 2));
        assert_eq!(make(&["10.0.0.1:80", "a.example.com:80"], &usual, false), (true, 1), "{mode:?}: fewer");
        assert_eq!(make(&["10.0.0.3:80", "10.0.0.4:80", "a.example.com:80"], &usual, false), (false, 2));
    }
}
