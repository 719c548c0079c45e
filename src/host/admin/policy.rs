//! The pages of the policy: what is in force and was, a new one, a way back, and a dry run before.

use super::{Page, Request, query, read_policy, shared};
use crate::{
    documents::Stamp,
    error::quoted,
    host::engine::{Engine, Tried},
    policy::PolicyConfig,
};

/// Parameters of a request that sets a policy. Others are refused: who mistypes `dryRun` is not to set it.
const PARAMETERS: [&str; 5] = ["dryRun", "rollback", "by", "why", "local"];

/// The policy in force and those before it, of which the query's `revision` gives one with its document.
pub(super) fn shown(engine: &Engine, query: &str) -> Page {
    match query::value(query, "revision") {
        None => {
            let shown = engine.policies_shown();
            Page { etag: shown["revision"].as_u64(), ..Page::json(&shown) }
        }
        Some(revision) => match revision.parse().ok().and_then(|revision| engine.policy_shown(revision)) {
            Some(shown) => Page::json(&shown),
            None => page(shared::not_remembered(&revision)),
        },
    }
}

/// An HTTP status, and why.
type Refusal = (u16, String);

fn page((status, why): Refusal) -> Page {
    Page::text(status, why + "\n")
}

/// The answer to a dry run, and to a request that is none of those that there are; `None`: the policy is to be set.
pub(super) fn tried(engine: &Engine, request: Request<'_>) -> Option<Page> {
    if let Some(unknown) = query::names(request.query).find(|name| !PARAMETERS.contains(name)) {
        let known = PARAMETERS.join(", ");
        return Some(Page::text(400, format!("parameter {} is not known; there are {known}\n", quoted(unknown))));
    }
    if query::value(request.query, "rollback").is_some() && !request.body.trim_ascii().is_empty() {
        let text = "a roll-back takes the document of the revision that it names; send none, or leave out rollback\n";
        return Some(Page::text(400, text.to_owned()));
    }
    match query::flag(request.query, "dryRun") {
        Ok(false) => None,
        Ok(true) => Some(document(engine, request).map_or_else(page, |document| try_out(engine, document))),
        Err(why) => Some(Page::text(400, why)),
    }
}

/// The document of a request, or of the revision that it goes back to.
fn document(engine: &Engine, request: Request<'_>) -> Result<PolicyConfig, Refusal> {
    if let Some(revision) = shared::rollback(request.query).map_err(|why| (400, why))? {
        return engine.remembered_policy(revision).ok_or_else(|| shared::not_remembered(&revision.to_string()));
    }
    match (request.body.trim_ascii(), engine.has_documents()) {
        (b"null", true) => Ok(engine.own_policy()),
        (b"null", false) => {
            let why = "policy: null goes back to the properties where session servers share documents, which is off here; give \
                       one JSON object, or take rollback=0, the policy that this process was started with";
            Err((400, why.to_owned()))
        }
        (body, _) => read_policy(body, &engine.config().namespace).map_err(|error| (400, error.to_string())),
    }
}

pub(super) fn try_out(engine: &Engine, document: PolicyConfig) -> Page {
    match engine.dry_run(document) {
        Ok(Tried::Told(told)) => Page::json(&told),
        Ok(Tried::Busy) => {
            let text = "another dry run is under way, and there is place for one; ask again in a second\n".to_owned();
            Page { retry_after: Some(1), ..Page::text(429, text) }
        }
        Ok(Tried::TooEarly) => {
            let text = "the view is not complete, so it is not known what a policy would change; ask again later\n";
            Page { retry_after: Some(5), ..Page::text(503, text.to_owned()) }
        }
        Err(error) => Page::text(400, format!("{error}\n")),
    }
}

/// Sets the policy of this server, where session servers share none. The others are asked for the same, with the document itself:
/// each counts its own revisions.
pub(super) fn set(engine: &Engine, request: Request<'_>) -> Page {
    let put = || -> Result<Page, Refusal> {
        let mut stamp = shared::stamp(request.query).map_err(|why| (400, why))?;
        let document = document(engine, request)?;
        if let (Some(revision), true) = (query::value(request.query, "rollback"), stamp.why.is_empty()) {
            stamp.why = format!("back to revision {revision}");
        }
        let text = serde_json::to_string(&document).map_err(|error| (500, error.to_string()))?;
        let Stamp { by, why, .. } = &stamp;
        let given = [("by", by), ("why", why)].into_iter().filter(|(_, text)| !text.is_empty());
        let query = query::of(given);
        Ok(engine.replace_policy(document, stamp, request.if_match).with("/mox/policy", query, text))
    };
    put().unwrap_or_else(page)
}
