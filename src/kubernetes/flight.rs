//! One write, from the request to what came of it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    api::{Api, Failure},
    objects::{Content, Key, Object, Seen},
};

/// A write of an object, and what it was made from.
pub(super) struct Attempt {
    pub(super) key: Key,
    /// Digest of what was wanted, version of what was seen.
    pub(super) basis: (Option<u128>, Option<Arc<str>>),
    pub(super) step: Step,
}

pub(super) enum Step {
    /// `over_known`: over a state that was seen to be ours; else there is none as far as it is known.
    Apply { body: Vec<u8>, over_known: bool },
    /// Over that state, by uid and version, whose endpoints are kept beside the content's own.
    Unite { content: Content, uid: Arc<str>, version: Arc<str> },
    /// That state, by uid and version.
    Delete(Arc<str>, Arc<str>),
}

/// What came of it.
pub(super) struct Landing {
    pub(super) attempt: Attempt,
    pub(super) outcome: Result<Outcome, Failure>,
}

pub(super) enum Outcome {
    /// It is written; this is what the server made of it.
    Applied(Seen),
    /// In the same moment somebody else made one of this name; it is left as it was.
    Foreign,
    Deleted,
}

impl Attempt {
    pub(super) async fn fly(mut self, api: Arc<Api>, owner: Arc<str>) -> Landing {
        let outcome = match &mut self.step {
            Step::Delete(uid, version) => api.delete(&self.key, uid, version).await.map(|()| Outcome::Deleted),
            Step::Apply { body, over_known } => {
                let (body, over_known) = (std::mem::take(body), *over_known);
                apply(&api, &self.key, body, over_known, &owner).await
            }
            Step::Unite { content, uid, version } => unite(&api, &self.key, content, (uid, version), &owner).await,
        };
        Landing { attempt: self, outcome }
    }
}

/// A new object is not forced upon one that is there: server-side apply has no way to ask for a name that is free, so an
/// object that others manage, and that came in the moment since the watch, is given back.
async fn apply(api: &Api, key: &Key, body: Vec<u8>, over_known: bool, owner: &str) -> Result<Outcome, Failure> {
    let (created, answer) = api.apply(key, body, over_known).await?;
    let unreadable = |error: serde_json::Error| Failure::Unreachable(format!("its answer: {error}").into());
    if !created && !over_known && has_others(&answer, &api.manager) {
        let nothing = json!({
            "apiVersion": api.version, "kind": key.kind.name(),
            "metadata": { "name": key.name, "namespace": api.namespace },
        });
        api.apply(key, nothing.to_string().into_bytes(), false).await?;
        return Ok(Outcome::Foreign);
    }
    let object: Object = serde_json::from_slice(&answer).map_err(unreadable)?;
    Ok(Outcome::Applied(object.seen(key.kind, owner)))
}

/// The version makes sure that what is read is what was seen.
async fn unite(
    api: &Api,
    key: &Key,
    content: &mut Content,
    over: (&str, &str),
    owner: &str,
) -> Result<Outcome, Failure> {
    content.keep_endpoints_of(&api.spec(key).await?.unwrap_or_default());
    let body = content.apply(&api.version, &api.namespace, key, Some(over));
    apply(api, key, body, true, owner).await
}

/// Whether somebody else has a say in the object's spec.
fn has_others(object: &[u8], manager: &str) -> bool {
    #[derive(Deserialize)]
    struct Managed {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        #[serde(default)]
        managed_fields: Vec<Manager>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manager {
        #[serde(default)]
        manager: String,
        #[serde(default)]
        fields_v1: Value,
    }
    let managed = serde_json::from_slice::<Managed>(object).map(|object| object.metadata.managed_fields);
    managed.unwrap_or_default().iter().any(|other| other.manager != manager && !other.fields_v1["f:spec"].is_null())
}
