//! From the registry's model to Istio's: pure functions, the same input gives the same bytes.

pub mod claims;
pub mod names;
pub mod payload;
pub mod serialized;
pub mod service_entry;
pub mod validate;

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

/// Keeps a publisher's [`Parsed`] until the policy changes.
#[derive(Debug, Default)]
pub struct ParsedCell(Mutex<Option<(u64, Arc<Parsed>)>>);

impl ParsedCell {
    /// The endpoints of a publisher, read again only if the policy is another than last time.
    pub fn get(&self, body: &crate::frame::Body<'_>, rules: &Rules<'_>) -> Arc<Parsed> {
        let policy = rules.policy;
        let mut kept = self.0.lock();
        match &*kept {
            Some((generation, parsed)) if *generation == policy.generation() => Arc::clone(parsed),
            _ => {
                let parsed = Arc::new(payload::parse_publisher(body, rules));
                *kept = Some((policy.generation(), Arc::clone(&parsed)));
                parsed
            }
        }
    }
}
