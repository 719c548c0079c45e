//! What documents say. Unknown keys are refused: a release that does not know one would do something else than those that do.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    config,
    documents::envelope::Stamp,
    model::Millis,
    visibility::{Lease, page::Page},
};

/// How many policies are kept beside the one in force.
const KEPT: usize = 10;

/// The content of a document.
pub(super) trait Content: Clone + PartialEq + Serialize + DeserializeOwned {
    /// Whether session servers settle by themselves which of two documents of one revision counts, since no operator does: the
    /// one whose row is bytewise smaller.
    const SETTLES: bool = false;

    /// Whether this release can do what it says; else what it cannot.
    fn check(&self, namespace: &str) -> Result<(), String>;

    /// Leaves out what can best be spared, where the document is too large for a row; `false`: nothing.
    fn shrink(&mut self) -> bool {
        false
    }
}

/// The document `policy`: the policy of all session servers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyContent {
    /// The policy as the operator wrote it; `None`: that of the properties.
    pub policy: Option<Value>,
    /// Policies before it, the newest first; the last ten, or as many as a row has room for.
    pub history: Vec<PastPolicy>,
}

/// A policy that was in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PastPolicy {
    /// The revision of the document that had it.
    pub revision: u64,
    /// Who wrote that, when and why.
    pub stamp: Stamp,
    /// As [`PolicyContent::policy`].
    pub policy: Option<Value>,
}

impl PolicyContent {
    /// The content that follows on this one, which has `revision`.
    pub(super) fn next(&self, revision: u64, stamp: &Stamp, policy: Option<Value>) -> Self {
        let past = PastPolicy { revision, stamp: stamp.clone(), policy: self.policy.clone() };
        let history = [past].into_iter().chain(self.history.iter().cloned()).take(KEPT).collect();
        Self { policy, history }
    }
}

impl Content for PolicyContent {
    fn check(&self, namespace: &str) -> Result<(), String> {
        let Some(policy) = &self.policy else { return Ok(()) };
        config::stored_policy_from_json(policy, namespace).map(drop).map_err(|error| error.to_string())
    }

    fn shrink(&mut self) -> bool {
        self.history.pop().is_some()
    }
}

/// The document `orders`: what the operator wants of all session servers until he says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrdersContent {
    /// A freeze of what is served; `None`: there is none.
    pub freeze: Option<Freeze>,
}

/// A freeze; who ordered it and why says the document's [`Stamp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Freeze {
    /// When it ends by itself, in milliseconds since 1970 by the writer's clock; `None`: by a thaw only. Others go by how long
    /// after the [`Stamp`] that is: their clocks may be others.
    pub until: Option<Millis>,
}

impl Content for OrdersContent {
    fn check(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// The document `pins`: who has a place that several want, on every session server and over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinsContent {
    /// Whole hosts and virtual addresses, each with the service that has it: its dataInfoId, or `<protocol>://<dataInfoId>` where
    /// it is beside the main one.
    pub places: BTreeMap<Arc<str>, Arc<str>>,
}

impl Content for PinsContent {
    const SETTLES: bool = true;

    fn check(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

impl Content for Lease {
    const SETTLES: bool = true;

    fn check(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

impl Content for Page {
    const SETTLES: bool = true;

    fn check(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}
