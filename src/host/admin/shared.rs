//! Requests that change what all session servers share: the policy, and a freeze.

use std::time::Duration;

use serde_json::Value;

use crate::{
    documents::{Freeze, OrdersContent, Stamp},
    error::quoted,
    host::{
        admin::{Page, Request, query},
        documents::{Next, OURSELVES},
        engine::Engine,
    },
    model::{self, Millis},
};

/// Digits of a policy's hash.
const HASH: usize = 16;
/// Most characters of who writes, and of why.
const MOST_BY: usize = 100;
const MOST_WHY: usize = 500;
/// The longest freeze with an end.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Begins the write that a request asks for; an error says what is wrong with the request.
pub(super) fn write(engine: &Engine, path: &str, request: Request<'_>) -> Result<Next, String> {
    let Request { query, if_match, body, .. } = request;
    let is_policy = path == "/mox/policy";
    let saw = if is_policy { saw_policy(engine, if_match)? } else { saw(if_match)? };
    let stamp = stamp(query)?;
    Ok(match path {
        "/mox/freeze" => {
            let freeze = Freeze { until: end(query, stamp.when)? };
            engine.write_orders(OrdersContent { freeze: Some(freeze) }, &stamp, saw)
        }
        "/mox/thaw" => engine.write_orders(OrdersContent::default(), &stamp, saw),
        _ => match rollback(query)? {
            None => engine.write_policy(document(body)?, &stamp, saw),
            Some(revision) => {
                let Some(policy) = engine.stored_policy(revision) else {
                    let (status, why) = not_remembered(&revision.to_string());
                    return Ok(Next::Page(Page::text(status, why + "\n")));
                };
                let why = if stamp.why.is_empty() { format!("back to revision {revision}") } else { stamp.why };
                engine.write_policy(policy, &Stamp { why, ..stamp }, saw)
            }
        },
    })
}

/// To who names a revision that is none of those that are remembered.
pub(super) fn not_remembered(revision: &str) -> (u16, String) {
    (404, format!("revision {} is not remembered; GET /mox/policy names those that are", quoted(revision)))
}

/// The revision that a request goes back to; `None`: it goes back to none.
pub(super) fn rollback(query: &str) -> Result<Option<u64>, String> {
    let Some(text) = query::value(query, "rollback") else { return Ok(None) };
    let revision = text.parse();
    revision.map(Some).map_err(|_| format!("rollback {} is no revision; GET /mox/policy has them", quoted(&text)))
}

/// The policy of a body; `null` goes back to the properties.
fn document(body: &[u8]) -> Result<Option<Value>, String> {
    let policy: Value = serde_json::from_slice(body)
        .map_err(|error| format!("policy: this is no JSON: {error}; give one JSON object"))?;
    Ok(Some(policy).filter(|policy| !policy.is_null()))
}

/// Who asks, now and why, as the query says.
pub(super) fn stamp(query: &str) -> Result<Stamp, String> {
    let by = text(query, "by", MOST_BY)?;
    if by == OURSELVES {
        return Err(format!("by {OURSELVES:?} is who writes what no operator asks for; give another name"));
    }
    Ok(Stamp { by, when: model::date(), why: text(query, "why", MOST_WHY)? })
}

/// The revision of an `If-Match`, with quotes or without; `None`: whatever is there.
fn saw(if_match: &str) -> Result<Option<u64>, String> {
    let bare = if_match.trim().trim_start_matches("W/").trim_matches('"');
    match bare {
        "" | "*" => Ok(None),
        bare => bare.parse().map(Some).map_err(|_| {
            format!(
                "If-Match {} is no revision; give that of GET /mox/policy, 0 where there is no document",
                quoted(if_match)
            )
        }),
    }
}

/// The revision of an `If-Match` that may have the policy's hash in its place.
fn saw_policy(engine: &Engine, if_match: &str) -> Result<Option<u64>, String> {
    let tag = if_match.trim().trim_matches('"');
    let is_hash = tag.len() == HASH && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    match engine.revision_with(tag) {
        Some(revision) => Ok(Some(revision)),
        // That of another policy is none that there is.
        None if is_hash => Ok(Some(u64::MAX)),
        None => saw(if_match),
    }
}

/// When a freeze ends that begins now.
fn end(query: &str, now: Millis) -> Result<Option<Millis>, String> {
    let Some(span) = query::value(query, "for") else { return Ok(None) };
    let wrong = || format!("for {} is no span; allowed are 1s to 365d, as 30m or 2h", quoted(&span));
    let span = humantime::parse_duration(&span).map_err(|_| wrong())?;
    if span < Duration::from_secs(1) || span > LONGEST {
        return Err(wrong());
    }
    Ok(Some(now.saturating_add(span.as_millis() as Millis)))
}

fn text(query: &str, name: &str, most: usize) -> Result<String, String> {
    let text = query::value(query, name).unwrap_or_default();
    match text.chars().count() > most || text.chars().any(char::is_control) {
        true => Err(format!("{name} has at most {most} characters, on one line; shorten it")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_writer_saw_is_a_revision() {
        for (if_match, revision) in [("", None), ("*", None), ("3", Some(3)), ("\"3\"", Some(3)), ("W/\"0\"", Some(0))]
        {
            assert_eq!(saw(if_match), Ok(revision));
        }
        assert!(saw("\"abc\"").is_err() && saw("-1").is_err());
    }

    #[test]
    fn a_freeze_ends_after_a_span() {
        assert_eq!(end("", 5), Ok(None));
        assert_eq!(end("for=2h", 5), Ok(Some(7_200_005)));
        assert_eq!(end("for=1h%2030m", 0), Ok(Some(5_400_000)));
        for wrong in ["for=", "for=x", "for=0s", "for=900d", "for=-1s"] {
            assert!(end(wrong, 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_and_why_are_short() {
        assert_eq!(text("by=ann&why=it+moves", "why", 10), Ok("it moves".to_owned()));
        assert!(stamp("by=ann").is_ok() && stamp("by=registry-mox").is_err());
        assert!(text("why=12345678901", "why", 10).is_err() && text("why=a%0Ab", "why", 10).is_err());
    }
}
