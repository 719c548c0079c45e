//! Streams, each with what it was sent and took.

use maud::{Markup, html};

use crate::{
    host::{console::parts::scrolling, engine::Engine, page::counted},
    xds::streams::TypeState,
};

/// The streams after the first `from`, as many as a page shows.
pub(super) fn streams(engine: &Engine, from: usize) -> Markup {
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
