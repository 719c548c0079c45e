//! The policy of an engine: shared by the session servers or its own, set, shown, and gone back to.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    config,
    documents::{Documents, Name, PastPolicy, Stamp},
    error::{Error, Result},
    host::{
        desk::Following,
        engine::Engine,
        page::Page,
        policies::{Entry, Source},
    },
    model,
    policy::{Policy, PolicyConfig},
};

/// To a writer who does not know what is there.
pub(super) const OTHER: &str = "the document is another than you saw; look at what is there now, and send yours again with its \
                                revision in If-Match";

impl Engine {
    /// Replaces the policy that counts where session servers share none; returns its hash. A document with a mistake changes
    /// nothing, and so does any while a shared one is in force.
    pub fn set_policy(&self, config: PolicyConfig) -> Result<String> {
        let policy = self.compiled(config)?;
        let mut following = self.documents.lock();
        self.put_own(&mut following, &policy, Stamp { when: model::date(), ..Stamp::default() })?;
        Ok(policy.hash().to_owned())
    }

    fn put_own(&self, following: &mut Following, policy: &Arc<Policy>, stamp: Stamp) -> Result<()> {
        if following.stored().is_some() {
            return Err(Error::InvalidArgument(
                "a stored policy is in force, which wins over this one; change it by POST /mox/policy".to_owned(),
            ));
        }
        following.own.take(Arc::clone(policy), stamp);
        self.put_policy(Arc::clone(policy));
        Ok(())
    }

    /// [`Engine::set_policy`] for an operator, if the policy in force is what `If-Match` says.
    pub(super) fn replace_policy(&self, config: PolicyConfig, stamp: Stamp, if_match: &str) -> Page {
        let refused = |error: Error| Page::text(400, format!("{error}\n"));
        let policy = match self.compiled(config) {
            Ok(policy) => policy,
            Err(error) => return refused(error),
        };
        let mut shown = {
            let mut following = self.documents.lock();
            if !following.own.is_matched_by(if_match) {
                let mut shown = self.shown(&following);
                shown["error"] = OTHER.into();
                return Page { status: 409, ..Page::json(&shown) };
            }
            let was = brief(following.own.present());
            if let Err(error) = self.put_own(&mut following, &policy, stamp) {
                return refused(error);
            }
            let mut shown = brief(following.own.present());
            shown["was"] = was;
            shown
        };
        shown["unmatched"] = json!(self.unmatched());
        Page::json(&shown)
    }

    /// The revision of the shared policy, if this is the hash of it.
    pub(super) fn revision_with(&self, hash: &str) -> Option<u64> {
        let following = self.documents.lock();
        let documents = following.documents.as_ref().filter(|_| self.policy_hash() == hash)?;
        Some(documents.shown()[&Name::Policy].revision)
    }

    pub(super) fn compiled_json(&self, policy: &Value) -> Result<Arc<Policy>> {
        config::stored_policy_from_json(policy, &self.config().namespace).and_then(|policy| self.compiled(policy))
    }

    /// The document of a policy that is or was in force; `None`: no such revision is remembered.
    pub(super) fn remembered_policy(&self, revision: u64) -> Option<PolicyConfig> {
        let following = self.documents.lock();
        let own = || following.own.present().policy.document().clone();
        if !following.is_on() {
            return following.own.get(revision).map(|entry| entry.policy.document().clone());
        }
        let policy = following.documents.as_ref()?.policy_of(revision)?;
        let compiled = policy.map(|policy| config::stored_policy_from_json(policy, &self.config().namespace));
        compiled.map_or_else(|| Some(own()), std::result::Result::ok)
    }

    /// The policy that counts where no document has one.
    pub(super) fn own_policy(&self) -> PolicyConfig {
        self.documents.lock().own.present().policy.document().clone()
    }

    /// A policy that is or was in force, with its document.
    pub(super) fn policy_shown(&self, revision: u64) -> Option<Value> {
        let document = self.remembered_policy(revision)?;
        let mut shown = self.policies_shown();
        let history = shown["history"].as_array_mut().map(std::mem::take).unwrap_or_default();
        let past = history.into_iter().find(|past| past["revision"] == revision);
        let mut one = past.unwrap_or_else(|| {
            let fields = ["revision", "hash", "from", "stamp"];
            fields.into_iter().map(|field| (field, shown[field].take())).collect()
        });
        one["policy"] = serde_json::to_value(document).ok()?;
        Some(one)
    }

    /// The policy in force, who wrote it when and why, and those before it.
    pub(super) fn policies_shown(&self) -> Value {
        self.shown(&self.documents.lock())
    }

    /// The hashes of the shared policies before the one in force. Each takes a compilation, so it is made once.
    pub(super) fn hashes(&self, following: &Following) -> Vec<(u64, Stamp, Option<String>)> {
        let hash = |past: &PastPolicy| {
            let policy = past.policy.as_ref()?;
            let known = following.hash_of(past.revision, &past.stamp).cloned();
            let made = || self.compiled_json(policy).ok().map(|policy| policy.hash().to_owned());
            Some((past.revision, past.stamp.clone(), known.unwrap_or_else(made)))
        };
        following.documents.as_ref().map_or(&[][..], Documents::history).iter().filter_map(hash).collect()
    }

    fn shown(&self, following: &Following) -> Value {
        let own = following.own.present();
        let documents = following.documents.as_ref().filter(|_| following.is_on());
        let hash = |PastPolicy { revision, stamp, policy }: &PastPolicy| match policy {
            Some(_) => following.hash_of(*revision, stamp).cloned().flatten(),
            None => Some(own.policy.hash().to_owned()),
        };
        let from = |policy: Option<&Value>| if policy.is_some() { Source::Document } else { own.source };
        let past = |past: &PastPolicy| {
            let PastPolicy { revision, stamp, policy } = past;
            json!({ "revision": revision, "hash": hash(past), "from": from(policy.as_ref()), "stamp": stamp })
        };
        let mut page = match documents {
            Some(documents) => {
                let (shown, stored) = (documents.shown().remove(&Name::Policy), documents.policy());
                json!({
                    "revision": shown.as_ref().map_or(0, |shown| shown.revision),
                    "from": from(stored),
                    "stamp": shown.as_ref().and_then(|shown| shown.stamp.as_ref()),
                    "refused": shown.as_ref().and_then(|shown| shown.refused.as_ref()),
                    "keptIn": "the registry's store, for all session servers",
                    "history": documents.history().iter().map(past).collect::<Vec<_>>(),
                })
            }
            None => {
                let mut page = brief(own);
                page["keptIn"] = "the memory of this process, until it ends".into();
                page["history"] = following.own.history().map(brief).collect();
                page
            }
        };
        let status = following.status();
        page["hash"] = self.policy_hash().into();
        page["policy"] = serde_json::to_value(self.shared.policy.load().document()).unwrap_or_default();
        page["documents"] = json!({ "state": status.state, "why": status.why });
        page
    }
}

/// A policy without its document.
fn brief(Entry { revision, source, stamp, policy }: &Entry) -> Value {
    json!({ "revision": revision, "hash": policy.hash(), "from": source, "stamp": stamp })
}
