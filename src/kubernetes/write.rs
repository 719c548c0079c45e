//! A write, from the request to its outcome.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    api::Api,
    failure::Failure,
    objects::{ApiObject, Manifest, ObjectKey, Observed},
    plan::{Outcome, WriteRequest},
};

/// Carries out a write of the plan's. Deletes need no manifest.
pub(super) async fn write(
    api: Arc<Api>,
    owner: Arc<str>,
    key: ObjectKey,
    request: WriteRequest,
    manifest: Option<Arc<Manifest>>,
) -> Result<Outcome, Failure> {
    let manifest = || manifest.as_ref().ok_or_else(|| Failure::unreachable("a bug: a write without a manifest"));
    let body = |manifest: &Manifest, over| manifest.request(&api.version, &api.namespace, &key, over);
    match &request {
        WriteRequest::Create => create(&api, &key, body(manifest()?, None), &owner).await,
        WriteRequest::Update(state) => {
            let (_, answer) = api.apply(&key, body(manifest()?, Some(state)), true).await?;
            observed(&answer, &key, &owner).map(Outcome::Applied)
        }
        WriteRequest::Unite(state) => {
            // The version makes sure that what is read is what was seen.
            let united = manifest()?.with_endpoints_of(&api.spec(&key).await?.unwrap_or_default());
            let (_, answer) = api.apply(&key, body(&united, Some(state)), true).await?;
            observed(&answer, &key, &owner).map(Outcome::Applied)
        }
        WriteRequest::Delete(state) => api.delete(&key, state).await.map(|()| Outcome::Deleted),
    }
}

/// A new object is not forced upon one that is there: server-side apply has no way to ask for a name that is free, so an
/// object that others manage, and that came in the moment since the watch, is given back.
async fn create(api: &Api, key: &ObjectKey, body: Vec<u8>, owner: &str) -> Result<Outcome, Failure> {
    let (created, answer) = api.apply(key, body, false).await?;
    if !created && has_others(&answer, &api.manager) {
        let nothing = json!({
            "apiVersion": api.version, "kind": key.kind.name(),
            "metadata": { "name": key.name, "namespace": api.namespace },
        });
        let (_, answer) = api.apply(key, nothing.to_string().into_bytes(), false).await?;
        return Ok(Outcome::Foreign(observed(&answer, key, owner)?));
    }
    observed(&answer, key, owner).map(Outcome::Applied)
}

fn observed(answer: &[u8], key: &ObjectKey, owner: &str) -> Result<Observed, Failure> {
    let object: ApiObject = serde_json::from_slice(answer)
        .map_err(|error| Failure::unreachable(format!("the API server's answer cannot be read: {error}")))?;
    Ok(object.observed(key.kind, owner))
}

/// Whether somebody else has a say in the object's spec.
fn has_others(object: &[u8], manager: &str) -> bool {
    #[derive(Deserialize)]
    struct Managed {
        metadata: ManagedMeta,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ManagedMeta {
        #[serde(default)]
        managed_fields: Vec<FieldManager>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct FieldManager {
        #[serde(default)]
        manager: String,
        #[serde(default)]
        fields_v1: Value,
    }
    let managed = serde_json::from_slice::<Managed>(object).map(|object| object.metadata.managed_fields);
    managed.unwrap_or_default().iter().any(|other| other.manager != manager && !other.fields_v1["f:spec"].is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_manages_a_field_of_the_spec_has_a_say() {
        let managed = |manager: &str, fields: Value| {
            let fields =
                json!([{ "manager": manager, "fieldsV1": fields }, { "manager": "us", "fieldsV1": { "f:spec": {} } }]);
            has_others(json!({ "metadata": { "managedFields": fields } }).to_string().as_bytes(), "us")
        };
        assert!(managed("kubectl", json!({ "f:spec": { "f:hosts": {} } })));
        assert!(!managed("kubectl", json!({ "f:metadata": { "f:labels": {} } })));
        assert!(!managed("us", json!({ "f:spec": { "f:hosts": {} } })));
        assert!(!has_others(b"{}", "us"), "none is known");
    }
}
