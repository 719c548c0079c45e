//! The policy in force, where another is tried or set, and those before it.

use maud::{Markup, html};
use serde_json::Value;

use crate::host::{
    console::parts::{scrolling, text, with_token},
    engine::Engine,
};

pub(super) fn policy(engine: &Engine) -> Markup {
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
