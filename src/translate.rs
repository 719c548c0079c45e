//! From the registry's model to Istio's: pure functions, the same input gives the same bytes.

pub mod claims;
pub mod labels;
pub mod names;
pub mod payload;
pub mod serialized;
pub mod service_entry;

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use crate::{
    model::RegisterVersion,
    policy::Rules,
    translate::payload::{Endpoint, Reject},
};

/// Raised by a release that would serve other bytes for the same data.
pub const TRANSLATION: u32 = 1;

/// A publisher's payloads, read under one policy.
#[derive(Debug, Default)]
pub struct Parsed {
    /// Whose they are.
    pub register_id: Box<str>,
    /// In which version.
    pub version: RegisterVersion,
    /// What can be served.
    pub endpoints: Vec<Endpoint>,
    /// What cannot, counted by reason, with a sample of each.
    pub rejects: BTreeMap<Reject, (u32, Box<str>)>,
}

/// Keeps a publisher's [`Parsed`] until the policy reads it otherwise.
#[derive(Debug, Default)]
pub struct ParsedCell(Mutex<Option<(u64, Arc<Parsed>)>>);

impl ParsedCell {
    /// The endpoints of a publisher, read again only if the policy reads otherwise than last time.
    pub fn get(&self, body: &crate::registry::frame::Body<'_>, rules: &Rules<'_>) -> Arc<Parsed> {
        let policy = rules.policy;
        let mut kept = self.0.lock();
        match &*kept {
            Some((reading, parsed)) if *reading == policy.reading() => Arc::clone(parsed),
            _ => {
                let parsed = Arc::new(payload::parse_publisher(body, rules));
                *kept = Some((policy.reading(), Arc::clone(&parsed)));
                parsed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::Policy,
        registry::frame::{self, Event, Publisher},
    };

    #[test]
    fn a_publisher_is_read_again_only_where_the_policy_reads_otherwise() {
        let publisher = Publisher {
            register_id: "r".into(),
            payloads: vec![b"10.0.0.1:80".as_slice().into()],
            ..Publisher::default()
        };
        let frame = frame::encode_publish("registry", "a", &publisher).unwrap();
        let events: Vec<_> = frame::decode(&frame).unwrap().into_iter().collect();
        let [Event::Publish { body, .. }] = &events[..] else { panic!("{events:?}") };
        let cell = ParsedCell::default();
        let read = |policy: serde_json::Value| {
            let policy = Policy::new(serde_json::from_value(policy).unwrap(), None, "ns").unwrap();
            cell.get(body, &policy.rules("a"))
        };
        let mut before = read(serde_json::json!({}));
        for (policy, again) in [
            (serde_json::json!({"exclude": ["b"], "exportTo": ["~"], "ports": {"bolt": 1}}), false),
            (serde_json::json!({"direct": {"applications": ["*"]}, "overrides": {"a": {"port": 1}}}), false),
            (serde_json::json!({"overrides": {"a": {"port": 2, "host": "a.b"}}}), false),
            (serde_json::json!({"overrides": {"a": {"dns": true}}}), true),
            (serde_json::json!({"labels": ["x"]}), true),
            (serde_json::json!({"mtls": [{"zones": ["x"]}]}), true),
        ] {
            let now = read(policy.clone());
            assert_eq!(!Arc::ptr_eq(&before, &now), again, "{policy}");
            before = now;
        }
    }
}
