//! The list of services, and the page of each.

use maud::{Markup, html};
use serde_json::Value;

use crate::host::{
    admin::{
        query,
        services::{self, Asked, Row, STATES},
    },
    console::{
        explain::ladder,
        parts::{link, scrolling, text},
    },
    engine::Engine,
    page::counted,
};

/// The services that are asked for, and the form to ask for others.
pub(super) fn list(engine: &Engine, asked: &Asked) -> Markup {
    let list = services::list(engine, asked);
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

/// A service: its ladder, its publishers, who consumes it, and its entry; `None`: nothing is known of it.
pub(super) fn service(engine: &Engine, name: &str) -> Option<Markup> {
    let shown = services::shown(engine, name)?;
    Some(html! {
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
    })
}

/// In which namespaces it is seen, and by whom it is consumed as far as that is known here.
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
