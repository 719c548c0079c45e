//! Which policies were in force: the present one, where it comes from, and the last ten before it, to go back to.
//!
//! They count where session servers share no policy, and this alone remembers them, until the process ends. A shared one is in
//! the [`Documents`](crate::documents::Documents).

use std::{collections::VecDeque, sync::Arc};

use serde::Serialize;

use crate::{documents::Stamp, policy::Policy};

/// How many policies are kept beside the one in force.
const KEPT: usize = 10;

/// Where a policy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The properties that this process was started with.
    Properties,
    /// A request to this session server, which alone remembers it.
    Local,
    /// The document that session servers share.
    Document,
}

/// A policy that is or was in force.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Counts the policies that were in force; that of the properties is 0.
    pub revision: u64,
    /// Where it comes from.
    pub source: Source,
    /// Who set it; `None`: nobody, it is the properties'.
    pub stamp: Option<Stamp>,
    /// The policy.
    pub policy: Arc<Policy>,
}

/// The policy in force and those before it.
#[derive(Debug)]
pub struct Policies {
    present: Entry,
    /// The newest first.
    history: VecDeque<Entry>,
    /// Hash of the policy that the properties say.
    properties: String,
}

impl Policies {
    /// The policy of the properties is in force.
    pub fn new(properties: Arc<Policy>) -> Self {
        let hash = properties.hash().to_owned();
        let present = Entry { revision: 0, source: Source::Properties, stamp: None, policy: properties };
        Self { present, history: VecDeque::new(), properties: hash }
    }

    /// The policy in force.
    pub fn present(&self) -> &Entry {
        &self.present
    }

    /// The policies before it, the newest first.
    pub fn history(&self) -> impl Iterator<Item = &Entry> {
        self.history.iter()
    }

    /// The policy of a revision, if it is remembered.
    pub fn get(&self, revision: u64) -> Option<&Entry> {
        [&self.present].into_iter().chain(&self.history).find(|entry| entry.revision == revision)
    }

    /// Whether a condition of `If-Match` holds: the hash of the policy in force or its revision, in quotes or not, of several
    /// one; `*`, or nothing, always does.
    pub fn is_matched_by(&self, condition: &str) -> bool {
        let is_it = |tag: &str| {
            let tag = tag.trim().trim_matches('"');
            tag == "*" || tag == self.present.policy.hash() || tag.parse() == Ok(self.present.revision)
        };
        condition.is_empty() || condition.split(',').any(is_it)
    }

    /// Takes a policy that is in force from now on; one that is already changes nothing, and who set that stays.
    pub fn take(&mut self, policy: Arc<Policy>, stamp: Stamp) {
        if policy.hash() == self.present.policy.hash() {
            return;
        }
        let source = if policy.hash() == self.properties { Source::Properties } else { Source::Local };
        let next = Entry { revision: self.present.revision + 1, source, stamp: Some(stamp), policy };
        self.history.push_front(std::mem::replace(&mut self.present, next));
        self.history.truncate(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(port: u16) -> Arc<Policy> {
        let document = serde_json::json!({ "ports": { "bolt": port } });
        Arc::new(Policy::new(serde_json::from_value(document).unwrap(), &[], "ns").unwrap())
    }

    fn by(by: &str) -> Stamp {
        Stamp { by: by.to_owned(), ..Stamp::default() }
    }

    #[test]
    fn ten_are_remembered_beside_the_one_in_force() {
        let mut policies = Policies::new(policy(1));
        for port in 2..=20 {
            policies.take(policy(port), by("ann"));
            policies.take(policy(port), by("bob"));
        }
        let present = policies.present();
        assert_eq!(
            (present.revision, present.stamp.clone().unwrap().by),
            (19, "ann".to_owned()),
            "an equal one is none"
        );
        assert_eq!(
            policies.history().map(|entry| entry.revision).collect::<Vec<_>>(),
            (9..19).rev().collect::<Vec<_>>()
        );
        assert_eq!(policies.get(9).unwrap().policy.hash(), policy(10).hash());
        assert!(policies.get(8).is_none());
    }

    #[test]
    fn a_policy_says_where_it_comes_from() {
        let mut policies = Policies::new(policy(1));
        assert_eq!((policies.present().source, &policies.present().stamp), (Source::Properties, &None));
        policies.take(policy(2), by("ann"));
        assert_eq!(policies.present().source, Source::Local);
        policies.take(policy(1), by("bob"));
        assert_eq!((policies.present().source, policies.present().revision), (Source::Properties, 2));
    }

    #[test]
    fn a_condition_is_a_hash_or_a_revision() {
        let mut policies = Policies::new(policy(1));
        policies.take(policy(2), by("ann"));
        let hash = policy(2).hash().to_owned();
        for holds in ["", "*", "1", "\"1\"", &hash, &format!("\"{hash}\""), &format!("\"x\", \"{hash}\"")] {
            assert!(policies.is_matched_by(holds), "{holds}");
        }
        for fails in ["0", "2", "\"\"", policy(1).hash(), "x,y", "-1"] {
            assert!(!policies.is_matched_by(fails), "{fails}");
        }
    }
}
