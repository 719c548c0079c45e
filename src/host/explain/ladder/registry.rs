//! What the registry has of a service, and what this session server has read of that.

use std::collections::BTreeMap;

use crate::{
    host::{
        explain::{
            facts::Facts,
            ladder::rung::{Reason, Rung, Step, Verdict, reason},
        },
        page::counted,
    },
    registry::store::{Dropped, UNFINISHED_READS},
    snapshot::view::Held,
};

/// Whether the registry has publishers of it.
pub(super) fn publishers(facts: &Facts) -> Option<Rung> {
    let id = facts.key.id();
    let count = facts.publishers;
    if facts.being_read {
        return Some(Rung::passed(Step::Registry, "a read of it is being applied"));
    }
    let mut reasons = Vec::new();
    for refused in facts.feed.iter().flat_map(|feed| &feed.refused).filter(|it| it.data_info_id == id) {
        reasons.push(reason(
            format!("refused-{}", refused.reason),
            format!("publisher {} is left out: {}", refused.register_id, refused.reason),
            "tell the client's owner what it publishes; docs/protection.md has the bounds",
        ));
    }
    for (limit, dropped) in facts.dropped.iter().filter(|(_, it)| !it.last.is_empty() && id.starts_with(&*it.last)) {
        reasons.push(reason(
            format!("limit-{limit}"),
            format!("{}, the last one of this service", at_limit(&facts.used, limit, dropped.events)),
            match *limit != UNFINISHED_READS {
                true => format!("raise mox.limits.{limit}, or find who publishes so much"),
                false => "reads of the data servers do not come to their end; feed.lastFailure of the status says why"
                    .to_owned(),
            },
        ));
    }
    if count > 0 {
        return Some(Rung::of(Step::Registry, Verdict::Partly, counted(count, "publisher"), reasons));
    }
    if facts.unknown {
        return Some(Rung::passed(Step::Registry, "the registry names it, and it could not be read yet"));
    }
    let dropped = |(limit, it): &(&&str, &Dropped)| **limit != UNFINISHED_READS && it.events > 0;
    let limits: Vec<String> =
        facts.dropped.iter().filter(dropped).map(|(limit, it)| at_limit(&facts.used, limit, it.events)).collect();
    if !limits.is_empty() && reasons.is_empty() {
        let says = format!("{}, perhaps of this service", limits.join("; "));
        reasons.push(reason("may-be-limit", says, "raise that limit, or find who publishes so much"));
    }
    reasons.push(unpublished(facts));
    // A service in its grace, or of the last good state, is served without publishers.
    let verdict = if facts.served.is_some() { Verdict::Partly } else { Verdict::Failed };
    Some(Rung::of(Step::Registry, verdict, "no publisher", reasons))
}

/// Why no publisher is known. Who has just begun, or hears of nothing, does not know what the registry says.
fn unpublished(facts: &Facts) -> Reason {
    if matches!(facts.held, Some(Held::NotLoaded | Held::LastGood)) {
        return reason(
            "not-read",
            "the first view of this session server is not complete, so it may not have read its publishers yet",
            "wait, or ask another session server; feed.owed of the status counts what is still to be read",
        );
    }
    if facts.feed.as_ref().is_some_and(|feed| feed.stale) {
        return reason(
            "not-heard",
            "this session server knows no publisher of it, and has not heard of some data servers for a while",
            "ask another session server, and look after those data servers",
        );
    }
    if facts.is_local() {
        return reason(
            "no-publisher",
            "no client of this session server publishes it (mox.scope=local)",
            "see which session server the provider is connected to, or set mox.scope=cluster",
        );
    }
    reason(
        "no-publisher",
        "the registry names no publisher of it in this data center",
        "see that the provider runs, is connected, and registers this very dataId, instance and group; its case counts",
    )
}

/// The events that were dropped at a limit, with how much of it is used.
pub fn at_limit(used: &BTreeMap<&'static str, (usize, usize)>, limit: &str, events: u64) -> String {
    let used = used.get(limit).map(|(used, most)| format!(" ({used} of {most} used)")).unwrap_or_default();
    format!("{} dropped at mox.limits.{limit}{used}", counted(events as usize, "event"))
}

/// Whether this session server has read them, of late and as a whole.
pub(super) fn read(facts: &Facts) -> Option<Rung> {
    let mut reasons = Vec::new();
    if facts.unknown {
        let says = "its data server could not be read, or what was read could not be taken in, since the start";
        reasons.push(reason(
            "unknown",
            says,
            "look after the slot's data server; feed.lastFailure of the status says why",
        ));
    }
    if facts.being_read {
        reasons.push(reason("being-read", "a read of it is being applied right now", "ask again in a second"));
    }
    if facts.feed.as_ref().is_some_and(|feed| feed.stale) {
        let says = "this session server has not heard of some data servers for longer than mox.protect.max-staleness";
        reasons.push(reason("stale", says, "look after those data servers, or the network to them"));
    }
    let verdict = if facts.unknown && facts.served.is_none() { Verdict::Failed } else { Verdict::Partly };
    let found = if facts.is_local() { "what clients of this session server say" } else { "read from the data servers" };
    Some(Rung::of(Step::Read, verdict, found, reasons))
}
