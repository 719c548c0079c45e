//! The page on what two session servers, or a document and what is served, differ in.

use serde_json::{Value, json};

use super::{busy, is_for_people, policy, query, read_policy, shared};
use crate::{
    error::{Error, Result, quoted},
    host::{
        console,
        diff::{self, Answer, Next, PATH, Told},
        engine::Engine,
        page::Page,
    },
    policy::PolicyConfig,
};

/// To whoever names another server at a port from which nobody is asked.
const ASKS_NOBODY: &str = "nobody is asked from this port; ask the session server's own, by default 9603";

/// Where no other server can be asked.
pub(super) fn page(engine: &Engine, query: &str) -> Page {
    let told = Told { silent: query::value(query, "server").map(|_| ASKS_NOBODY.to_owned()), ..Told::default() };
    document(engine, query).unwrap_or_else(|| shown(query, &told))
}

/// Goes on with a comparison: the page, or what is to be asked, or `list` where it is not known yet who can be asked.
pub fn compared(engine: &Engine, query: &str, listed: Option<&[String]>, answers: &[Answer]) -> Result<Value> {
    let page = match document(engine, query) {
        Some(page) => page,
        None => {
            let Some(listed) = listed else { return Ok(json!({ "list": true })) };
            // Before there are answers nothing is compared, and who asks for a server that there is not takes nobody's turn.
            let turn = if answers.is_empty() { None } else { engine.turn() };
            if turn.is_none() && !answers.is_empty() {
                return value(&busy());
            }
            match diff::next(engine, query, listed, answers)? {
                Next::Ask { server, target } => return Ok(json!({ "server": server, "target": target })),
                Next::Told(told) => shown(query, &told),
            }
        }
    };
    value(&page)
}

fn value(page: &Page) -> Result<Value> {
    serde_json::to_value(page).map_err(|error| Error::Internal(error.to_string()))
}

fn shown(query: &str, told: &Told) -> Page {
    if is_for_people(query) { console::compared(told) } else { Page::json(told) }
}

/// The hashes that another server asks for.
pub(super) fn hashes(engine: &Engine, path: &str) -> Page {
    if !engine.view().complete {
        return Page::text(503, "the view is not complete\n".to_owned());
    }
    let number = path.strip_prefix(PATH).unwrap_or_default().trim_start_matches('/');
    match diff::part(engine, number) {
        _ if number.is_empty() => Page::json(&diff::overview(engine)),
        Some(part) => Page::json(&part),
        None => Page::text(404, "there are the parts 0 to 127\n".to_owned()),
    }
}

/// The page on a document and what is served; `None`: the query names no document.
fn document(engine: &Engine, query: &str) -> Option<Page> {
    let name = query::value(query, "document")?;
    let page = match (&*name, policy_of(engine, query)) {
        ("policy", Ok(document)) => match engine.allow(|| policy::try_out(engine, document)) {
            Ok(page) => page,
            Err(seconds) => {
                let text = "documents are compared for a tenth of each minute, as nobody has to say who asks; ask again later, or \
                            POST the document with dryRun and the admin token\n";
                Page { retry_after: Some(seconds), ..Page::text(429, text.to_owned()) }
            }
        },
        ("policy", Err((status, why))) => Page::text(status, why + "\n"),
        _ => Page::text(400, format!("document {} is not compared; there is policy\n", quoted(&name))),
    };
    Some(if is_for_people(query) { console::compared_document(&page) } else { page })
}

/// The policy of a revision; of none the one in force.
fn policy_of(engine: &Engine, query: &str) -> Result<PolicyConfig, (u16, String)> {
    match query::value(query, "revision").filter(|revision| !revision.is_empty()) {
        Some(revision) => {
            let found = revision.parse().ok().and_then(|revision| engine.remembered_policy(revision));
            found.ok_or_else(|| shared::not_remembered(&revision))
        }
        None => {
            let text = engine.policies_shown()["policy"].to_string();
            read_policy(text.as_bytes(), &engine.config().namespace).map_err(|error| (500, error.to_string()))
        }
    }
}
