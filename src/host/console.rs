//! The pages for people: the same data as the JSON of [`admin`](crate::host::admin), as HTML. They need no script to be read, load
//! nothing from elsewhere, and every text in them is escaped where it stands.
//!
//! The content of each page has a file of its own; here is what all of them stand in.

mod charts;
mod decisions;
mod diff;
mod explain;
mod overview;
mod parts;
mod policy;
mod services;
mod streams;

use maud::{DOCTYPE, Markup, html};

use crate::host::{
    admin::{query, services::Asked},
    diff::Told,
    engine::Engine,
    explain::Explanation,
    page::Page,
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
        "/mox" => (200, "Overview", overview::overview(engine)),
        "/mox/services" => match Asked::of(query) {
            Ok(asked) => (200, "Services", services::list(engine, &asked)),
            Err(why) => (400, "Services", html! { h1 { "Services" } p { (why) } }),
        },
        "/mox/streams" => match query::value(query, "from").map_or(Ok(0), |from| from.parse()) {
            Ok(from) => (200, "Streams", streams::streams(engine, from)),
            Err(_) => {
                (400, "Streams", html! { h1 { "Streams" } p { "from is how many streams come before those to show." } })
            }
        },
        "/mox/policy" => (200, "Policy", policy::policy(engine)),
        _ => {
            let name = query::decoded_path(path.strip_prefix("/mox/services/")?);
            match services::service(engine, &name) {
                Some(service) => (200, "Service", service),
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
    made(200, "/mox/explain", "Explain", &explain::explanation(asked, explanation))
}

/// The page on what another session server serves otherwise.
pub fn compared(told: &Told) -> Page {
    made(200, "/mox/diff", "Compare", &diff::servers(told))
}

/// The page on what a document would change, as a dry run tells it.
pub fn compared_document(answer: &Page) -> Page {
    made(answer.status, "/mox/diff", "Compare", &diff::document(answer))
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
