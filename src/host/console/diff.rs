//! What another session server serves otherwise, or a document would change.

use maud::{Markup, html};

use crate::host::{
    admin::query,
    console::parts::{link, scrolling},
    diff::{Row, Told},
    page::Page,
};

/// The comparison with another session server.
pub(super) fn servers(told: &Told) -> Markup {
    html! { (comparing(told)) (differences(told)) }
}

/// The comparison with what a document would change, as a dry run tells it.
pub(super) fn document(answer: &Page) -> Markup {
    html! {
        (comparing(&Told::default()))
        h2 { "The policy, and what is served" }
        pre tabindex="0" role="region" aria-label="What would change" { (answer.body) }
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
                        @for Row { name, service, here, there } in &told.services {
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
