//! The pages for people: the same data as the JSON of [`admin`](crate::host::admin), as HTML. They need no script to be read, load
//! nothing from elsewhere, and every text in them is escaped where it stands.

mod charts;
mod decisions;

use std::time::Duration;

use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use crate::{
    histogram::{BOUNDS, Counted},
    host::{
        admin::{
            query,
            services::{self, Asked, List, Row, STATES, Shown},
        },
        diff::{self, Told},
        engine::Engine,
        explain::{Explained, Explanation, facts, ladder::Verdict},
        page::{Page, counted},
        status::Status,
    },
    xds::streams::TypeState,
};

/// Media type of HTML.
const HTML: &str = "text/html; charset=utf-8";
/// No foreign sources, no inline script or style. It stands in each page, so that it holds however that is served.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      form-action 'self'; base-uri 'none'";
const STYLE: &str = include_str!("console/console.css");
const SCRIPT: &str = include_str!("console/console.js");

/// The pages in the order of the menu.
const MENU: [(&str, &str); 6] = [
    ("/mox", "Overview"),
    ("/mox/services", "Services"),
    ("/mox/explain", "Explain"),
    ("/mox/diff", "Compare"),
    ("/mox/streams", "Streams"),
    ("/mox/policy", "Policy"),
];

/// A file that the pages load.
pub fn asset(path: &str) -> Option<Page> {
    let (content_type, text) = match path {
        "/mox/console.css" => ("text/css; charset=utf-8", STYLE),
        "/mox/console.js" => ("text/javascript; charset=utf-8", SCRIPT),
        _ => return None,
    };
    Some(Page { content_type, ..Page::text(200, text.to_owned()) })
}

/// The page of a path for people; `None`: there is none, and what is for tools is for them, too.
pub fn page(engine: &Engine, path: &str, query: &str) -> Option<Page> {
    let (status, title, body) = match path {
        "/mox" => (200, "Overview", overview(engine)),
        "/mox/services" => match Asked::of(query) {
            Ok(asked) => (200, "Services", list(&services::list(engine, &asked), &asked)),
            Err(why) => (400, "Services", html! { h1 { "Services" } p { (why) } }),
        },
        "/mox/streams" => match query::value(query, "from").map_or(Ok(0), |from| from.parse()) {
            Ok(from) => (200, "Streams", streams(engine, from)),
            Err(_) => {
                (400, "Streams", html! { h1 { "Streams" } p { "from is how many streams come before those to show." } })
            }
        },
        "/mox/policy" => (200, "Policy", policy(engine)),
        _ => {
            let name = query::decoded_path(path.strip_prefix("/mox/services/")?);
            match services::shown(engine, &name) {
                Some(shown) => (200, "Service", service(&shown)),
                None => {
                    let why = format!("/mox/explain?q={}", query::encoded(&name));
                    (404, "Service", html! { h1 { (name) } p { "No such service is known. " a href=(why) { "Why?" } } })
                }
            }
        }
    };
    Some(made(status, path, title, &body))
}

fn made(status: u16, path: &str, title: &str, body: &Markup) -> Page {
    Page { content_type: HTML, ..Page::text(status, straight(framed(path, title, body).into_string())) }
}

/// A page in which nothing turns the direction of the text after it: a name with such a character would have our own words read
/// backwards. Such characters stand there as JSON and YAML escape them, so a document stays what it is.
fn straight(page: String) -> String {
    let turns =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !page.contains(turns) {
        return page;
    }
    let mut out = String::with_capacity(page.len());
    for c in page.chars() {
        match turns(c) {
            true => out += &format!("\\u{:04x}", u32::from(c)),
            false => out.push(c),
        }
    }
    out
}

/// The page of what was asked for, if anything was.
pub fn explained(asked: &str, explanation: Option<&Explanation>) -> Page {
    made(200, "/mox/explain", "Explain", &explanation_of(asked, explanation))
}

/// The page on what another session server serves otherwise.
pub fn compared(told: &Told) -> Page {
    let body = html! { (comparing(told)) (differences(told)) };
    made(200, "/mox/diff", "Compare", &body)
}

/// The page on what a document would change, as a dry run tells it.
pub fn compared_document(answer: &Page) -> Page {
    let body = html! {
        (comparing(&Told::default()))
        h2 { "The policy, and what is served" }
        pre tabindex="0" role="region" aria-label="What would change" { (answer.body) }
    };
    made(answer.status, "/mox/diff", "Compare", &body)
}

fn framed(path: &str, title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (title) " · registry-mox" }
                link rel="stylesheet" href="/mox/console.css";
                link rel="icon" href="data:,";
                script src="/mox/console.js" defer {}
            }
            body {
                a.skip href="#main" { "To the content" }
                header {
                    strong { "registry-mox" }
                    nav aria-label="Pages" {
                        ul {
                            @for (to, name) in MENU {
                                li { a href=(to) aria-current=[(to == path).then_some("page")] { (name) } }
                            }
                        }
                    }
                }
                p #stale role="status" {}
                main #main { (body) }
                footer { "For tools: the same addresses with " code { "Accept: application/json" } ", and " a href="/mox/metrics" { "metrics" } "." }
            }
        }
    }
}

/// A service's own page.
fn link(service: &str) -> String {
    format!("/mox/services/{}", query::encoded(service))
}

/// A table that scrolls by itself where the window is narrow, which a keyboard can do, too.
fn scrolling(name: &str, table: &Markup) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label=(name) { (table) } }
}

/// Buttons with the token that they need, and where answers appear.
fn with_token(buttons: &Markup) -> Markup {
    html! {
        p { label { "Token (" code { "mox.admin.token" } "), kept in the memory of this page alone" input #token type="password" autocomplete="off"; } }
        p { (buttons) }
        pre #answer tabindex="-1" aria-live="polite" {}
    }
}

fn overview(engine: &Engine) -> Markup {
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
            (decisions::shown(&decisions::of(&status, (withheld, contested), facts::freeze(engine.orders(), &status.documents.documents).as_ref())))
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

fn list(list: &List, asked: &Asked) -> Markup {
    let Asked { part, application, state, .. } = asked;
    let at = |page: usize| {
        let of = [("q", part), ("app", application), ("state", state), ("page", &page.to_string())];
        format!("/mox/services?{}", query::of(of.into_iter().filter(|(_, value)| !value.is_empty())))
    };
    html! {
        h1 { (counted(list.total, "service")) }
        form role="search" action="/mox/services" {
            label { "Part of the dataInfoId" input name="q" value=(part); }
            label { "Application" input name="app" value=(application); }
            label {
                "State"
                select name="state" {
                    option value="" { "any" }
                    @for name in STATES { option value=(name) selected[name == state] { (name) } }
                }
            }
            button { "Search" }
        }
        (scrolling("Services", &html! {
            table {
                thead { tr { th scope="col" { "Service" } th scope="col" { "Host" } th.n scope="col" { "Publishers" } th.n scope="col" { "Endpoints" } th scope="col" { "exportTo" } th scope="col" { "State" } } }
                tbody {
                    @for Row { service, host, publishers, endpoints, export_to, states } in &list.services {
                        tr {
                            td.long { a href=(link(service)) { (service) } }
                            td.long { (host.as_deref().unwrap_or("none")) }
                            td.n { (publishers) }
                            td.n { (endpoints) }
                            td { (export_to.join(", ")) }
                            td { (states.join(", ")) }
                        }
                    }
                }
            }
        }))
        nav aria-label="More services" {
            p {
                "Page " (list.page) " of " (list.pages) " "
                @if list.page > 1 { a href=(at(list.page - 1)) rel="prev" { "before" } " " }
                @if list.page < list.pages { a href=(at(list.page + 1)) rel="next" { "after" } }
            }
        }
    }
}

/// Pages that remedies name, and that are there to be read.
const NAMED: [&str; 4] = ["/mox/kubernetes/rbac", "/mox/kubernetes", "/mox/streams", "/mox/istio-config"];

/// A remedy, in which the first page that it names leads there.
fn linked(remedy: &str) -> Markup {
    let found = NAMED.into_iter().find_map(|page| Some((page, remedy.split_once(page)?)));
    html! {
        @match found {
            Some((page, (before, after))) => { (before) a href=(page) { (page) } (after) },
            None => (remedy),
        }
    }
}

fn ladder(explained: &Explained) -> Markup {
    html! {
        p { (explained.answer) }
        ol.ladder {
            @for rung in &explained.ladder {
                @let (class, word) = match rung.verdict {
                    Verdict::Passed => ("passed", "passed"),
                    Verdict::Partly => ("partly", "passed in part"),
                    Verdict::Failed => ("failed", "failed"),
                };
                li class=(class) {
                    (format!("{:?}", rung.step)) ": " b { (word) } ", " (rung.found)
                    @if !rung.reasons.is_empty() {
                        span.soft { " " (rung.page) }
                        ul { @for reason in &rung.reasons { li { (reason.says) ". " em { "To do: " (linked(&reason.remedy)) "." } " " span.soft { (reason.key) } } } }
                    }
                }
            }
        }
    }
}

fn explanation_of(asked: &str, explanation: Option<&Explanation>) -> Markup {
    html! {
        h1 { "Why is it, or is it not, in the mesh?" }
        form role="search" action="/mox/explain" {
            label { "dataInfoId, dataId, host, application or address" input name="q" size="60" value=(asked); }
            button { "Explain" }
        }
        @if let Some(answer) = explanation {
            @if answer.services.is_empty() { p { "Nothing that is known has this name, host, application or address. A dataInfoId in full is explained, known or not." } }
            @if !answer.perhaps.is_empty() {
                p { "Whatever was dropped at a limit is unknown:" }
                ul { @for perhaps in &answer.perhaps { li { (perhaps) } } }
            }
            @for one in &answer.services {
                h2 { a href=(link(&one.service)) { (one.service) } }
                (ladder(one))
            }
            @if !answer.servers.is_empty() {
                h2 { "The other session servers" }
                ul {
                    @for other in &answer.servers {
                        li {
                            b { (other.server) } ": "
                            @match (&other.silent, other.differs.is_empty()) {
                                (Some(why), _) => (why),
                                (None, true) => "the same",
                                (None, false) => { "differs" ul { @for it in &other.differs { li { (it.service) ", " (it.step) ": here " (it.here) "; there " (it.there) } } } },
                            }
                        }
                    }
                }
            }
            @if !answer.others.is_empty() {
                h2 { "Others" }
                ul { @for other in &answer.others { li { a href=(link(other)) { (other) } } } }
                @if answer.left_out > 0 { p { "And " (answer.left_out) " more." } }
            }
        }
    }
}

/// The forms to choose by.
fn comparing(told: &Told) -> Markup {
    let server = told.server.as_deref().unwrap_or_default();
    html! {
        h1 { "What differs?" }
        form action="/mox/diff" {
            label { "Another session server" input name="server" value=(server) list="servers"; }
            datalist #servers { @for server in &told.servers { option value=(server) {} } }
            button { "Compare" }
        }
        form action="/mox/diff" {
            input type="hidden" name="document" value="policy";
            label { "Revision of the policy, or none for the one in force" input name="revision"; }
            button { "Compare with what is served" }
        }
    }
}

fn differences(told: &Told) -> Markup {
    let more = |server: &str, from: usize| format!("/mox/diff?server={}&from={from}", query::encoded(server));
    html! {
        @if let Some(server) = &told.server { h2 { "This session server and " (server) } }
        @match told.same {
            Some(true) => p { "Both serve the same, to the last byte." },
            Some(false) => p { (told.parts) " of 128 parts differ." },
            None => {},
        }
        @if let Some(why) = &told.silent { p { "Nothing more is known of the other: " (why) } }
        @for (what, two) in [("policy", &told.policy), ("translation", &told.translation)] {
            @if let Some(two) = two && two.here != two.there { p { "Another " (what) ": here " code { (two.here) } ", there " code { (two.there) } "." } }
        }
        @if !told.services.is_empty() {
            (scrolling("Services that differ", &html! {
                table {
                    thead { tr { th scope="col" { "Service" } th scope="col" { "Here" } th scope="col" { "There" } } }
                    tbody {
                        @for diff::Row { name, service, here, there } in &told.services {
                            tr {
                                td.long { @if let Some(service) = service { a href=(link(service)) { (service) } } @else { (name) } }
                                td { (here.as_deref().unwrap_or("not served")) }
                                td { (there.as_deref().unwrap_or("not served")) }
                            }
                        }
                    }
                }
            }))
        }
        @if told.left_out > 0 { p { "And " (told.left_out) " services of these parts were not compared." } }
        @if let (Some(server), Some(from)) = (&told.server, told.next) {
            nav aria-label="More services" { p { a href=(more(server, from)) rel="next" { "after" } } }
        }
    }
}

fn service(shown: &Shown) -> Markup {
    html! {
        h1 { (shown.explained.service) }
        (ladder(&shown.explained))
        h2 { "Publishers" }
        (scrolling("Publishers", &html! {
            table {
                thead { tr { th scope="col" { "registerId" } th scope="col" { "Payload" } th scope="col" { "Endpoint" } th scope="col" { "Left out" } } }
                tbody {
                    @for publisher in &shown.publishers {
                        @for payload in &publisher.payloads {
                            tr {
                                td.long { (publisher.register_id) }
                                td.long { code { (payload.text) } }
                                td { (payload.endpoint.as_deref().unwrap_or_default()) }
                                td { @if let Some(why) = payload.rejected { (why.to_string()) } }
                            }
                        }
                        @if publisher.payloads_left_out > 0 { tr { td.long { (publisher.register_id) } td colspan="3" { (publisher.payloads_left_out) " more payloads" } } }
                    }
                }
            }
        }))
        @if shown.publishers_left_out > 0 { p { "And " (shown.publishers_left_out) " more publishers." } }
        h2 { "Who consumes it" }
        (consumers(&shown.consumed))
        h2 { "As it is served" }
        @match &shown.entry { Some(entry) => pre tabindex="0" role="region" aria-label="The ServiceEntry" { (entry) }, None => p { "It is not served, or too large to be shown here: " a href="/mox/dump?format=yaml" { "dump" } "." } }
    }
}

fn consumers(consumed: &Value) -> Markup {
    let texts = |all: &Value| {
        let texts = all.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.collect::<Vec<_>>().join(", ")
    };
    let namespaces =
        |all: &Value| Some(texts(all)).filter(|all| !all.is_empty()).unwrap_or_else(|| "nobody".to_owned());
    let visibility = &consumed["visibility"];
    html! {
        p {
            "Visibility is " (text(&visibility["mode"])) @if let Some(why) = visibility["why"].as_str() { " (" (why) ")" }
            ". It is exported to " b { (namespaces(&visibility["exportTo"])) } "."
            @if visibility["mode"] != "off" { " By those who subscribe it would be to " b { (namespaces(&visibility["visibleTo"])) } "." }
        }
        @if let Some(clients) = consumed["consumers"].as_array() {
            (scrolling("Consumers", &html! {
                table {
                    thead { tr { th scope="col" { "Application" } th scope="col" { "Address" } th scope="col" { "Session server" } th scope="col" { "Namespaces" } } }
                    tbody {
                        @for client in clients {
                            tr {
                                td.long { (text(&client["application"])) }
                                td { (text(&client["address"])) }
                                td { (text(&client["server"])) }
                                td { (texts(&client["namespaces"])) }
                            }
                        }
                    }
                }
            }))
        } @else if let Some(holder) = consumed["consumersAt"].as_str() {
            p { "Session server " (holder) " knows them one by one." }
        }
    }
}

/// A text of JSON, or the JSON itself.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Whether a client has what it was sent, and for how long it has not.
fn acknowledged(state: &TypeState) -> String {
    let last = state.acked.as_deref().unwrap_or("nothing");
    match (&state.sent, state.unacked_millis) {
        _ if state.too_large => format!("{last}; the newest state is too large for a response"),
        (None, _) => String::new(),
        (Some(_), Some(millis)) => format!("{last}; owes an answer for {} s", millis / 1_000),
        (sent, None) if *sent == state.acked => "yes".to_owned(),
        (Some(_), None) => last.to_owned(),
    }
}

fn streams(engine: &Engine, from: usize) -> Markup {
    let (clients, totals) = engine.clients();
    let streams = engine.streams(from);
    let end = from.saturating_add(streams.len());
    html! {
        div data-live {
            h1 { (counted(totals.streams, "stream")) " of " (counted(totals.clients, "client")) }
            @for client in clients.iter().filter(|client| client.wrong.is_some()) {
                p { b { (client.node) } ": " (client.wrong.unwrap_or_default()) }
            }
            (scrolling("Streams", &html! {
                table {
                    thead { tr { th scope="col" { "Client" } th scope="col" { "Part" } th scope="col" { "Type" } th scope="col" { "Sent" } th scope="col" { "Acknowledged" } th.n scope="col" { "ms" } th scope="col" { "Refused" } } }
                    tbody {
                        @for stream in &streams {
                            @for (url, state) in &stream.types {
                                tr {
                                    td.long { (stream.node) " " @if let Some(peer) = stream.peer { (peer.to_string()) } }
                                    td { (stream.partition.to_string()) }
                                    td { (url) }
                                    td { (state.sent.as_deref().unwrap_or("nothing")) }
                                    td { (acknowledged(state)) }
                                    td.n { @if let Some(millis) = state.ack_millis { (millis) } }
                                    td.long { (state.error.as_deref().unwrap_or_default()) }
                                }
                            }
                        }
                    }
                }
            }))
            @if end < totals.streams {
                p { "And " (totals.streams - end) " more: " a href=(format!("/mox/streams?from={end}")) rel="next" { "after" } }
            }
        }
    }
}

fn policy(engine: &Engine) -> Markup {
    let shown = engine.policies_shown();
    let document = serde_json::to_string_pretty(&shown["policy"]).unwrap_or_default();
    let revision = text(&shown["revision"]);
    let history = shown["history"].as_array().map_or(&[][..], Vec::as_slice);
    html! {
        div data-live {
            h1 { "Policy, revision " (revision) }
            p { "Hash " code { (text(&shown["hash"])) } ", from " (text(&shown["from"])) ", kept in " (text(&shown["keptIn"])) "." }
        }
        label { "The document" textarea #document spellcheck="false" data-revision=(revision) { (document) } }
        (with_token(&html! {
            button type="button" data-post="/mox/policy?dryRun" data-body="#document" { "Try it: what would change?" } " "
            button type="button" data-post="/mox/policy" data-body="#document" data-match="#document" { "Set it, if nobody was faster" }
        }))
        div data-live {
            h2 { "Before" }
            @if history.is_empty() { p { "None that is remembered." } } @else { (scrolling("Before", &past(history))) }
        }
    }
}

/// The policies before the one in force.
fn past(history: &[Value]) -> Markup {
    html! {
        table {
            thead { tr { th.n scope="col" { "Revision" } th scope="col" { "Hash" } th scope="col" { "By" } th scope="col" { "Why" } th scope="col" { "Go back" } } }
            tbody {
                @for past in history {
                    @let number = text(&past["revision"]);
                    tr {
                        td.n { (number) }
                        td { (text(&past["hash"])) }
                        td.long { (text(&past["stamp"]["by"])) }
                        td.long { (text(&past["stamp"]["why"])) }
                        td {
                            button type="button" data-post=(format!("/mox/policy?dryRun&rollback={number}")) { "Try " (number) } " "
                            button type="button" data-post=(format!("/mox/policy?rollback={number}")) { "Set " (number) }
                        }
                    }
                }
            }
        }
    }
}
