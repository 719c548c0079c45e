//! Why something is, or is not, in the mesh.

use maud::{Markup, html};

use crate::host::{
    console::parts::link,
    explain::{Explained, Explanation, ladder::Verdict},
};

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

/// The ladder of one service.
pub(super) fn ladder(explained: &Explained) -> Markup {
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

/// The form to ask by, and the answer, if anything was asked.
pub(super) fn explanation(asked: &str, answer: Option<&Explanation>) -> Markup {
    html! {
        h1 { "Why is it, or is it not, in the mesh?" }
        form role="search" action="/mox/explain" {
            label { "dataInfoId, dataId, host, application or address" input name="q" size="60" value=(asked); }
            button { "Explain" }
        }
        @if let Some(answer) = answer {
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
