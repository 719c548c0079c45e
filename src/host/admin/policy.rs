//! The pages of the policy: what is in force and was, a new one, a way back, and a dry run before.

use serde::Serialize;

use super::{Asked, Forward, Page, read_policy};
use crate::{
    host::{
        admin::query,
        engine::{Engine, Tried},
        policies::{Entry, Policies, Source, Stamp},
    },
    model,
    policy::PolicyConfig,
};

/// The longest text of who, and of why, in characters; the rest is left out.
const BY: usize = 200;
const WHY: usize = 1_000;
/// Parameters of a request that sets a policy. Others are refused: who mistypes `dryRun` is not to set it.
const PARAMETERS: [&str; 5] = ["dryRun", "rollback", "by", "why", "local"];

/// A policy without its document. The Java side reads the first two where they are.
#[derive(Serialize)]
struct Shown<'a> {
    hash: &'a str,
    revision: u64,
    source: Source,
    #[serde(flatten)]
    stamp: Option<&'a Stamp>,
}

/// A policy of before with its document.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    shown: Shown<'a>,
    document: &'a PolicyConfig,
}

/// The policy in force, and those before it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Present<'a> {
    #[serde(flatten)]
    present: Shown<'a>,
    kept_in: &'static str,
    history: Vec<Shown<'a>>,
    document: &'a PolicyConfig,
}

/// The answer to who set a policy.
#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    is: Shown<'a>,
    was: Shown<'a>,
}

impl<'a> From<&'a Entry> for Shown<'a> {
    fn from(Entry { revision, source, stamp, policy }: &'a Entry) -> Self {
        Self { revision: *revision, hash: policy.hash(), source: *source, stamp: stamp.as_ref() }
    }
}

/// The policy in force, with its document and those before it, which the query's `revision` gives whole.
pub(super) fn shown(engine: &Engine, query: &str) -> Page {
    let policies = engine.policies();
    let Some(revision) = query::value(query, "revision") else { return present(200, &policies) };
    match revision.parse().ok().and_then(|revision| policies.get(revision)) {
        Some(entry) => Page::json(&Whole { shown: entry.into(), document: entry.policy.document() }),
        None => {
            Page::text(404, format!("revision {revision:?} is not remembered; GET /mox/policy names those that are\n"))
        }
    }
}

fn present(status: u16, policies: &Policies) -> Page {
    let page = Page::json(&Present {
        present: policies.present().into(),
        kept_in: "the memory of this process, until it ends; then the properties are in force",
        history: policies.history().map(Shown::from).collect(),
        document: policies.present().policy.document(),
    });
    Page { status: if page.status == 200 { status } else { page.status }, ..page }
}

/// Sets the policy that the body has, or that of a revision before; or tells what it would change.
pub(super) fn set(engine: &Engine, asked: &Asked, body: &[u8]) -> Page {
    if let Some(unknown) = query::names(&asked.query).find(|name| !PARAMETERS.contains(name)) {
        let known = PARAMETERS.join(", ");
        return Page::text(400, format!("parameter {unknown:?} is not known; there are {known}\n"));
    }
    let is_dry = match query::flag(&asked.query, "dryRun") {
        Ok(is_dry) => is_dry,
        Err(why) => return Page::text(400, why),
    };
    let rollback = query::value(&asked.query, "rollback");
    let document = match &rollback {
        Some(revision) => of_revision(engine, revision, body),
        None => read_policy(body, &engine.config().namespace).map_err(|error| Page::text(400, format!("{error}\n"))),
    };
    let document = match document {
        Ok(document) => document,
        Err(page) => return page,
    };
    if is_dry { try_out(engine, document) } else { put(engine, asked, document, rollback.as_deref()) }
}

/// The document of a policy that was in force.
fn of_revision(engine: &Engine, revision: &str, body: &[u8]) -> Result<PolicyConfig, Page> {
    if !body.trim_ascii().is_empty() {
        let text = "a roll-back takes the document of the revision that it names; send none, or leave out rollback\n";
        return Err(Page::text(400, text.to_owned()));
    }
    let policies = engine.policies();
    let entry = revision.parse().ok().and_then(|revision| policies.get(revision));
    entry.map(|entry| entry.policy.document().clone()).ok_or_else(|| {
        Page::text(404, format!("revision {revision:?} is not remembered; GET /mox/policy names those that are\n"))
    })
}

fn try_out(engine: &Engine, document: PolicyConfig) -> Page {
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

fn put(engine: &Engine, asked: &Asked, document: PolicyConfig, rollback: Option<&str>) -> Page {
    let said = |name: &str, header: &str, most: usize| {
        let text = query::value(&asked.query, name).unwrap_or_else(|| header.to_owned());
        text.chars().filter(|c| !c.is_control()).take(most).collect::<String>()
    };
    let (by, mut why) = (said("by", &asked.by, BY), said("why", &asked.why, WHY));
    if let (Some(revision), true) = (rollback, why.is_empty()) {
        why = format!("back to revision {revision}");
    }
    let forward = serde_json::to_string(&document).ok().map(|body| {
        let given = [("by", &by), ("why", &why)].into_iter().filter(|(_, text)| !text.is_empty());
        Forward { query: query::of(given), body }
    });
    let stamp = Stamp { by, why, when: model::date() };
    match engine.replace_policy(document, stamp, &asked.if_match) {
        Ok(Ok(was)) => {
            let policies = engine.policies();
            let done = Page::json(&Done { is: policies.present().into(), was: (&was).into() });
            Page { forward, ..done }
        }
        // With what the writer has to know to write it anew.
        Ok(Err(_)) => present(412, &engine.policies()),
        Err(error) => Page::text(400, format!("{error}\n")),
    }
}
