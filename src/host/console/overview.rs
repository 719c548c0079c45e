//! The overview: what is served, what is to be decided, and how this session server fares.

use std::time::Duration;

use maud::{Markup, html};

use crate::{
    histogram::{BOUNDS, Counted},
    host::{
        console::{charts, decisions, parts::with_token},
        engine::Engine,
        explain::facts::freeze,
        status::Status,
    },
};

pub(super) fn overview(engine: &Engine) -> Markup {
    let (status, samples) = (engine.status(), engine.hour().lock().samples());
    // The status names the first of them.
    let (withheld, contested) = {
        let report = engine.shared().report.lock();
        (report.withheld_services.len(), report.contested.len())
    };
    html! {
        h1 { "What is served" }
        div data-live {
            ul.cards {
                li { b { (status.served.services) } "services" }
                li { b { (status.served.endpoints) } "endpoints" }
                li { b { (status.totals.clients) } "istiods and other clients" }
                li { b { (status.totals.streams) } "streams, " (status.totals.unacknowledged) " unacknowledged" }
                li { b { (held(&status)) } "held" }
                li { b { (status.store.publishers) } "publishers" }
            }
            h2 { "To decide" }
            (decisions::shown(&decisions::of(&status, (withheld, contested), freeze(engine.orders(), &status.documents.documents).as_ref())))
            h2 { "This session server" }
            table {
                @for (what, value) in facts(&status) {
                    tr { th scope="row" { (what) } td { (value) } }
                }
            }
            h2 { (charts::span(samples.len())) }
            (charts::charts(&samples))
        }
        h2 { "Change something" }
        (with_token(&html! {
            button type="button" data-post="/mox/freeze" { "Freeze" } " "
            button type="button" data-post="/mox/thaw" { "Thaw" } " "
            button type="button" data-post="/mox/release" { "Release what is held" }
        }))
    }
}

/// Why what is served is not the newest.
fn held(status: &Status) -> String {
    status.served.held.map_or_else(|| "nothing".to_owned(), |held| held.to_string())
}

/// Within which bound 99 of 100 were, of all since the start.
fn within(of: &[Counted]) -> String {
    let count: u64 = of.iter().map(Counted::count).sum();
    let is_within = |at: &usize| of.iter().map(|it| it.within[*at]).sum::<u64>() >= (count * 99).div_ceil(100);
    let shown = |bound: Duration| match bound.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{} ms", seconds * 1e3),
        seconds => format!("{seconds} s"),
    };
    match (0..BOUNDS.len()).find(is_within) {
        _ if count == 0 => "none yet".to_owned(),
        Some(at) => format!("{count}, 99 % of them within {}", shown(BOUNDS[at])),
        None => format!("{count}, more than 1 % of them over {}", shown(BOUNDS[BOUNDS.len() - 1])),
    }
}

/// Facts about this session server, each with its name.
fn facts(status: &Status) -> Vec<(&'static str, String)> {
    let listening = status.listening.as_ref().map_or("nowhere".to_owned(), |bound| bound.mox.to_string());
    let mut facts = vec![
        ("Release", format!("{}, translation {}", status.release, status.translation)),
        ("Listens at", listening),
        ("Policy", status.policy.clone()),
        ("Pushes", format!("{}, {} bytes, {} refused", status.pushes, status.pushed_bytes, status.nacks)),
        ("Changes, to the view that has them", within(&[status.times.published])),
        ("Changes, from the view to the streams", within(&status.times.responses.map(|of| of.sent))),
        ("Responses, to their ACK", within(&status.times.responses.map(|of| of.acked))),
        (
            "Rejected payloads",
            match &status.rounds.rejects {
                none if none.is_empty() => "none".to_owned(),
                some => some.iter().map(|(why, count)| format!("{why} {count}")).collect::<Vec<_>>().join(", "),
            },
        ),
    ];
    if status.rounds.no_baseline {
        let says = "judged by nothing; see whether there are as many services as you expect";
        facts.push(("First view after the start", says.to_owned()));
    }
    if let Some(feed) = &status.feed {
        facts.push(("Registry", format!("{} services in {} slots, {} to be read", feed.ids, feed.slots, feed.owed)));
        facts.extend(feed.last_failure.clone().map(|failure| ("Last failed read", failure)));
    }
    facts
}
