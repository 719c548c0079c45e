//! Which globs of a policy are about nothing, for who set it: most likely there is a slip in them.

use std::collections::HashSet;

use crate::{
    policy::{Matches, Policy},
    registry::store::Store,
    translate::Parsed,
};

/// Most globs that are named.
const NAMED: usize = 100;

/// The globs that match none of the registry's services, or, where they are on applications, none that names itself in a
/// publication that was read; each as its setting and the glob in brackets, the first hundred. `None` while there are no
/// services.
///
/// Costs a walk over the services, and one over the publications where applications are asked for, until each such glob has
/// found one.
pub fn unmatched(store: &Store, policy: &Policy) -> Option<Vec<String>> {
    let ids = store.ids();
    let mut matches = Matches::new(policy);
    ids.iter().for_each(|id| matches.service(id));
    let mut applications: HashSet<Box<str>> = HashSet::new();
    for id in &ids {
        if !matches.misses_applications() {
            break;
        }
        for publication in store.read(id) {
            let Some(parsed) = publication.memo.peek::<Parsed>() else { continue };
            let others = parsed.others.iter().flat_map(|others| others.values());
            let endpoints = others.chain([&parsed]).flat_map(|parsed| &parsed.endpoints);
            for application in endpoints.filter_map(|endpoint| endpoint.application()) {
                if !applications.contains(application) {
                    matches.application(application);
                    applications.insert(application.into());
                }
            }
        }
    }
    (!ids.is_empty())
        .then(|| matches.all().into_iter().filter(|it| it.matches == 0).map(|it| it.to_string()).take(NAMED).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::PolicyConfig,
        registry::{
            frame::{self, Publisher},
            store::Limits,
        },
        translate::payload::{self, Client},
    };

    #[test]
    fn globs_on_services_and_on_applications_that_match_nothing_are_named() {
        let store = Store::new(Limits::NONE);
        let policy = |document: serde_json::Value| {
            Policy::new(serde_json::from_value::<PolicyConfig>(document).unwrap(), &[], "ns").unwrap()
        };
        assert_eq!(unmatched(&store, &policy(serde_json::json!({ "exclude": ["x"] }))), None, "nothing is known yet");
        let id = "com.example.A@dubbo#@#DEFAULT_INSTANCE_ID#@#SOFA";
        let payloads = ["10.0.0.1:80?app_name=shop", "tri://10.0.0.1:81?app_name=支付"];
        let publisher = Publisher {
            register_id: "r".into(),
            payloads: payloads.map(|text| text.as_bytes().into()).into(),
            ..Publisher::default()
        };
        let frame = frame::encode_publish("registry", id, &publisher).unwrap();
        for event in frame::decode(&frame).unwrap() {
            store.apply(&event, 0).unwrap();
        }
        let document = |applications: &[&str]| {
            policy(serde_json::json!({
                "include": ["com.example.*", "com.exmaple.*"],
                "exclude": ["*.B"],
                "overrides": { "com.example.A@dubbo": {}, "com.example.A@dubbo#": {} },
                "direct": { "applications": applications },
                "mtls": [{ "applications": ["ship"] }],
            }))
        };
        let on_services = ["policy.include[com.exmaple.*]", "policy.exclude[*.B]"];
        let named = |applications: &[&str]| unmatched(&store, &document(applications)).unwrap();
        assert_eq!(
            named(&["sh?p", "支付"]),
            [
                &on_services[..],
                &[
                    "policy.mtls[0].applications[ship]",
                    "policy.direct.applications[sh?p]",
                    "policy.direct.applications[支付]",
                    "policy.overrides[com.example.A@dubbo#]"
                ]
            ]
            .concat(),
            "no publication was read yet"
        );
        for publication in store.read(id) {
            let policy = document(&[]);
            payload::parsed(&publication, Client::of(id), &policy.rules(id), 9);
        }
        assert_eq!(
            named(&["sh?p", "支付"]),
            [&on_services[..], &["policy.mtls[0].applications[ship]", "policy.overrides[com.example.A@dubbo#]"]]
                .concat()
        );
        assert_eq!(unmatched(&store, &policy(serde_json::json!({}))), Some(Vec::new()));
        let many: Vec<String> = (0..250).map(|n| format!("none{n}")).collect();
        assert_eq!(unmatched(&store, &policy(serde_json::json!({ "exclude": many }))).unwrap().len(), NAMED);
    }
}
