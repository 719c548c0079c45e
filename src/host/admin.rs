//! Pages for operators, the same over HTTP and through the session server's own port. Requests that change something need
//! `mox.admin.token` in the header `X-Mox-Token`; those that another session server passes on have its [`signature`] in place.
//!
//! A page has a bounded size, whatever is served and whoever is connected; those that grow with that are [`large`].

mod diff;
pub mod large;
pub mod listener;
mod policy;
pub(super) mod query;
pub mod services;
mod shared;
pub mod signature;
pub mod visibility;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    config,
    error::{Error, Result, quoted},
    host::{
        admin::{large::Cursor, signature::Signed},
        console, diff as hashes,
        documents::Next,
        engine::Engine,
        explain::{beside, explain},
        metrics,
        page::JSON,
    },
    kubernetes, model,
    policy::PolicyConfig,
    snapshot::kubectl::{self, Dump, Format},
    xds::streams::{ClientState, StreamState, Totals},
};

pub use crate::host::page::Page;
pub(super) use diff::compared;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Name in a query of the form that a page is to have, `html` or `json`; where it is not there the header `Accept` decides.
const AS: &str = "as";
const TOKEN_HEADER: &str = "x-mox-token";
const TIME_HEADER: &str = "x-mox-time";
const SIGNATURE_HEADER: &str = "x-mox-signature";

/// Credentials of a request: the token, or a signature and its time; a field that the request does not have is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Credentials {
    /// Header `X-Mox-Token`.
    pub token: String,
    /// Header `X-Mox-Time`, milliseconds since 1970.
    pub time: String,
    /// Header `X-Mox-Signature`, 64 hexadecimal digits.
    pub signature: String,
}

/// Answer to a request.
#[derive(Debug)]
pub enum Answer {
    /// A page, whole.
    Page(Page),
    /// A page that is to be read chunk by chunk.
    Large {
        /// Media type.
        content_type: &'static str,
        /// Where its chunks come from.
        cursor: Cursor,
    },
}

/// What Java's own HTTP client sends that was told nothing; no browser takes these alone.
const JAVA: &str = "text/html, image/gif, image/jpeg,";

/// The query of a request with this header `Accept`: whoever names HTML, and does not rather have JSON, gets pages for people.
pub fn as_accepted(query: &str, accept: &str) -> String {
    match prefers_html(accept) && query::value(query, AS).is_none() {
        true if query.is_empty() => format!("{AS}=html"),
        true => format!("{query}&{AS}=html"),
        false => query.to_owned(),
    }
}

/// Whether HTML, or XHTML as browsers do, is named before JSON, by its weight and then by its place.
fn prefers_html(accept: &str) -> bool {
    let weight = |parameters: &str| {
        let of = |it: &str| it.trim().strip_prefix("q=").map(|q| q.trim().parse::<f32>().unwrap_or_default());
        parameters.split(';').find_map(of).unwrap_or(1.0)
    };
    let of = |names: &[&str]| {
        let ranges = accept.split(',').map(|range| range.split_once(';').unwrap_or((range, "")));
        let named = ranges.enumerate().filter(|(_, (name, _))| names.contains(&&*name.trim().to_ascii_lowercase()));
        let weighed = named.map(|(n, (_, parameters))| (weight(parameters), std::cmp::Reverse(n)));
        weighed.filter(|(weight, _)| *weight > 0.0).max_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal))
    };
    !accept.starts_with(JAVA) && of(&["text/html", "application/xhtml+xml"]) > of(&["application/json"])
}

/// Makes the page of a path.
pub fn page(engine: &Engine, path: &str, query: &str) -> Answer {
    let path = path.trim_end_matches('/');
    if path == "/mox/dump" {
        return dump(engine, query);
    }
    if let Some(asset) = console::asset(path) {
        return Answer::Page(asset);
    }
    if path == "/mox/explain" {
        return Answer::Page(explained(engine, query, Vec::new()));
    }
    if path == "/mox/diff" {
        return Answer::Page(diff::page(engine, query));
    }
    if path.starts_with(hashes::PATH) {
        return Answer::Page(engine.peers().sign(path, query, diff::hashes(engine, path)));
    }
    let walks = path.starts_with("/mox/services") || path == "/mox/visibility";
    let turn = if walks { engine.turn() } else { None };
    if walks && turn.is_none() {
        return Answer::Page(busy());
    }
    if is_for_people(query)
        && let Some(page) = console::page(engine, path, query)
    {
        return Answer::Page(page);
    }
    if let Some(name) = path.strip_prefix("/mox/services/") {
        return Answer::Page(service(engine, &query::decoded_path(name)));
    }
    Answer::Page(match path {
        "/mox" | "/mox/status" => Page::json(&engine.status()),
        "/mox/fresh" => engine.peers().sign(path, query, fresh(engine)),
        "/mox/serving" => engine.peers().sign(path, query, serving(engine)),
        "/mox/consumers" => consumers(engine),
        "/mox/streams" => streams(engine, query),
        "/mox/istio-config" => Page::text(200, istio_config(engine, query)),
        "/mox/policy" => policy::shown(engine, query),
        "/mox/metrics" => Page { content_type: PROMETHEUS, ..Page::text(200, metrics::text(engine)) },
        "/mox/kubernetes" => match engine.kubernetes() {
            Some(sink) => Page::json(&sink.report()),
            None => Page::text(404, "mox.kubernetes.enabled is not set\n".to_owned()),
        },
        "/mox/services" => listed(engine, query),
        "/mox/hour" => Page::json(&engine.hour().lock().shown()),
        "/mox/kubernetes/rbac" => {
            let pods = engine.shared.policy.load().document().visibility.kubernetes;
            Page::text(200, kubernetes::rbac(engine.config(), pods))
        }
        "/mox/visibility" => visibility::all(engine),
        _ => Page::text(
            404,
            "there are /mox/status, /mox/services, /mox/explain, /mox/diff, /mox/policy, /mox/visibility, /mox/streams, /mox/hour, /mox/metrics, \
             /mox/istio-config, /mox/kubernetes, /mox/kubernetes/rbac and /mox/dump\n"
                .to_owned(),
        ),
    })
}

/// A page of the services.
fn listed(engine: &Engine, query: &str) -> Page {
    match services::Asked::of(query) {
        Ok(asked) => Page::json(&services::list(engine, &asked)),
        Err(why) => Page::text(400, why),
    }
}

/// The page of a service.
fn service(engine: &Engine, name: &str) -> Page {
    match services::shown(engine, name) {
        Some(shown) => Page::json(&shown),
        None => Page::text(404, "no such service is known; /mox/explain?q= tells why that may be\n".to_owned()),
    }
}

/// Why something is, or is not, in the mesh, with what other session servers answered to the same.
pub fn explained(engine: &Engine, query: &str, answers: Vec<beside::Answer>) -> Page {
    let Some(_turn) = engine.turn() else { return busy() };
    let asked = query::value(query, "q").unwrap_or_default();
    let explanation = (!asked.trim().is_empty()).then(|| explain(engine, &asked, answers));
    match explanation {
        explanation if is_for_people(query) => console::explained(&asked, explanation.as_ref()),
        Some(explanation) => Page::json(&explanation),
        None => {
            let text = "say what to explain: ?q=<dataInfoId, dataId, host, application or address>\n";
            Page::text(400, text.to_owned())
        }
    }
}

/// Whether a page is to be HTML.
fn is_for_people(query: &str) -> bool {
    query::value(query, AS).as_deref() == Some("html")
}

fn busy() -> Page {
    let text = "others walk over the services, one after the other; ask again in a second\n".to_owned();
    Page { retry_after: Some(1), ..Page::text(429, text) }
}

/// The served resources of a type.
fn dump(engine: &Engine, query: &str) -> Answer {
    let asked = |name: &str, usual: &str| query::value(query, name).unwrap_or_else(|| usual.to_owned());
    let (kind, format) = (asked("type", "ServiceEntry"), asked("format", "json"));
    let Some(kind) = kubectl::KINDS.into_iter().find(|known| *known == kind) else {
        let text = format!("type {} is not served; there are {}\n", quoted(&kind), kubectl::KINDS.join(" and "));
        return Answer::Page(Page::text(404, text));
    };
    let (format, content_type) = match &*format {
        "json" => (Format::Json, JSON),
        "yaml" => (Format::Yaml, "application/yaml"),
        other => {
            return Answer::Page(Page::text(
                400,
                format!("format {} is not known; there are json and yaml\n", quoted(other)),
            ));
        }
    };
    let view = engine.view();
    let snapshot = match kind {
        "WorkloadEntry" => view.workload_entries,
        "DestinationRule" => view.destination_rules,
        _ => view.service_entries,
    };
    match engine.large().open(|| Dump::new(kind, format, &snapshot)) {
        Some(cursor) => Answer::Large { content_type, cursor },
        None => Answer::Page(Page {
            retry_after: Some(1),
            ..Page::text(
                429,
                "another dump is being read, and there is place for one; ask again in a second\n".to_owned(),
            )
        }),
    }
}

/// Who is connected: as many streams, oldest first, as make a page, from the one that the query's `from` says.
fn streams(engine: &Engine, query: &str) -> Page {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Shown {
        totals: Totals,
        clients: Vec<ClientState>,
        clients_left_out: usize,
        streams: Vec<StreamState>,
        streams_left_out: usize,
        /// `from` of the page that follows.
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<usize>,
    }
    let from = query::value(query, "from").unwrap_or_else(|| "0".to_owned());
    let Ok(from) = from.parse::<usize>() else {
        return Page::text(
            400,
            format!("from {} is no number; it is how many streams come before those to show\n", quoted(&from)),
        );
    };
    let ((clients, totals), streams) = (engine.clients(), engine.streams(from));
    let end = from.saturating_add(streams.len());
    Page::json(&Shown {
        clients_left_out: totals.clients - clients.len(),
        streams_left_out: totals.streams.saturating_sub(streams.len()),
        next: (end < totals.streams).then_some(end),
        totals,
        clients,
        streams,
    })
}

/// Text to paste into Istio's mesh configuration, with the host that the query names.
fn istio_config(engine: &Engine, query: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    let host = query::value(query, "host")
        .filter(|host| !host.is_empty() && host.chars().all(legal))
        .unwrap_or_else(|| "session-server.example.com".to_owned());
    let config = engine.config();
    let bound = engine.status().listening;
    let port = bound.as_ref().map_or(config.listen, |bound| bound.mox).port();
    let sources = |ports: &mut dyn Iterator<Item = u16>| {
        let lines: String = ports.map(|port| format!("  - address: xds://{host}:{port}\n")).collect();
        format!("meshConfig:\n  configSources:\n{lines}  - address: k8s://\n")
    };
    let mut text = format!("# Everything from one source.\n{}", sources(&mut [port].into_iter()));
    for (count, addresses) in bound.map(|bound| bound.partitions).unwrap_or_default() {
        let list = sources(&mut addresses.iter().map(std::net::SocketAddr::port));
        text += &format!(
            "\n# Or in {count} partitions, so that a change costs istiod 1/{count}. All of them, and not the one above beside them.\n{list}"
        );
    }
    text
}

/// How much this server serves; what another asks that starts and has no last good state. The status says it too, among much.
fn serving(engine: &Engine) -> Page {
    match engine.view().complete {
        true => Page::json(&engine.status().rounds.serving),
        false => Page::text(503, "the view is not complete\n".to_owned()),
    }
}

/// The clients that subscribe here; what the session server asks that computes who sees what.
fn consumers(engine: &Engine) -> Page {
    match engine.consumer_lines() {
        Some(lines) => Page::text(200, lines.to_string()),
        None => Page::text(503, "it is not known here who subscribes\n".to_owned()),
    }
}

/// Whether this server serves fresh data; what another asks before it refuses its own streams.
fn fresh(engine: &Engine) -> Page {
    let status = engine.status();
    let bound = engine.config().protect.max_staleness.as_millis() as u64 / 2;
    let recent = status.feed.and_then(|feed| feed.oldest_contact_millis).is_some_and(|age| age < bound);
    let serves = status.listening.is_some() && !status.fenced && engine.view().complete;
    match serves && recent {
        true => Page::text(200, "fresh\n".to_owned()),
        false => Page::text(503, "not fresh\n".to_owned()),
    }
}

/// Reads the text of a policy document.
pub(super) fn read_policy(text: &[u8], namespace: &str) -> Result<PolicyConfig> {
    let document = serde_json::from_slice(text)
        .map_err(|error| Error::InvalidArgument(format!("policy: this is no JSON: {error}; give one JSON object")))?;
    config::policy_from_json(document, namespace)
}

/// Whether a request that changes something comes from who may.
fn let_in(engine: &Engine, shown: &Credentials, request: Request<'_>) -> Result<(), (u16, String)> {
    let Some(own) = engine.config().admin.token.as_ref().filter(|own| !own.key().is_empty()) else {
        return Err((403, "mox.admin.token is not set, so nothing can be changed here".to_owned()));
    };
    let (Credentials { token, time, signature }, Request { path, query, body, .. }) = (shown, request);
    if !signature.is_empty() {
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let request = Signed { method: "POST", target: &target, time, signature, body };
        return engine.signatures().check(own.key(), request, model::date());
    }
    own.is(token).then_some(()).ok_or_else(|| (403, format!("the header {TOKEN_HEADER} does not hold mox.admin.token")))
}

/// A request that changes something.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Path, `/mox` included.
    pub path: &'a str,
    /// Query without the question mark.
    pub query: &'a str,
    /// Header `If-Match`; empty: none.
    pub if_match: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// Executes a request that changes something where no documents can be written.
pub fn change(engine: &Engine, shown: &Credentials, request: Request<'_>) -> Page {
    let path = request.path.trim_end_matches('/');
    let shared = ["/mox/freeze", "/mox/thaw", "/mox/policy", "/mox/refresh"].contains(&path);
    // A value that is neither true nor false is refused below.
    let is_dry = path == "/mox/policy" && query::flag(request.query, "dryRun") != Ok(false);
    if shared && engine.has_documents() && is_local(shown, request.query) == Ok(false) && !is_dry {
        return Page::text(
            409,
            "this is for all session servers: send it to the session server's own port, by default 9603\n".to_owned(),
        );
    }
    match ask(engine, shown, request) {
        Next::Page(page) => page,
        Next::Write(_) | Next::Refresh => Page::text(500, "nobody can write documents here\n".to_owned()),
    }
}

/// Whether a request is about this server alone: what another server passes on, or what the operator calls so.
fn is_local(shown: &Credentials, query: &str) -> Result<bool, String> {
    Ok(query::flag(query, "local")? || !shown.signature.is_empty())
}

/// Why a name in the query of a freeze or a thaw is refused: who mistypes `for` is not to freeze without an end.
fn unknown_parameter(path: &str, query: &str) -> Option<String> {
    let known: &[&str] = match path {
        "/mox/freeze" => &["for", "by", "why", "local"],
        "/mox/thaw" => &["by", "why", "local"],
        _ => return None,
    };
    let unknown = query::names(query).find(|name| !known.contains(name))?;
    Some(format!("parameter {} is not known; there are {}\n", quoted(unknown), known.join(", ")))
}

/// Begins a request that changes something: `POST /mox/{freeze,thaw,release,policy}` and
/// `/mox/kubernetes/{purge,resume}`. Where session servers share documents, policy and freeze are for all of them, and
/// [`Page::forward`] has what the others are to do as well.
pub fn ask(engine: &Engine, shown: &Credentials, request: Request<'_>) -> Next {
    if let Err((status, why)) = let_in(engine, shown, request) {
        return Next::Page(Page::text(status, why + "\n"));
    }
    let path = request.path.trim_end_matches('/');
    if path == "/mox/policy"
        && let Some(page) = policy::tried(engine, request)
    {
        return Next::Page(page);
    }
    if let Some(why) = unknown_parameter(path, request.query) {
        return Next::Page(Page::text(400, why));
    }
    let is_local = match is_local(shown, request.query) {
        Ok(is_local) => is_local,
        Err(why) => return Next::Page(Page::text(400, why)),
    };
    if engine.has_documents() {
        match path {
            "/mox/refresh" => return Next::Refresh,
            "/mox/freeze" | "/mox/thaw" | "/mox/policy" if !is_local => {
                return shared::write(engine, path, request)
                    .unwrap_or_else(|why| Next::Page(Page::text(400, why + "\n")));
            }
            _ => {}
        }
    }
    let page = change_here(engine, path, request);
    Next::Page(Page { forward: page.forward.filter(|_| !is_local), ..page })
}

fn change_here(engine: &Engine, path: &str, request: Request<'_>) -> Page {
    let Request { query, body, .. } = request;
    if path == "/mox/freeze" && query::value(query, "for").is_some() {
        let why = "an end of a freeze is kept in the documents that session servers share, and those are off; see \"documents\" \
                   in /mox/status, or freeze without one\n";
        return Page::text(409, why.to_owned());
    }
    let everywhere = |page: Page| match std::str::from_utf8(body) {
        Ok(body) => page.with(path, String::new(), body.to_owned()),
        Err(_) => page,
    };
    match path {
        "/mox/freeze" => {
            engine.freeze();
            everywhere(frozen(engine))
        }
        "/mox/thaw" => {
            engine.thaw();
            everywhere(frozen(engine))
        }
        // Asked of every session server, of which one may hold and another not.
        "/mox/release" => everywhere(Page::json(&json!({ "released": engine.release().is_ok() }))),
        "/mox/refresh" => engine.refreshed(),
        "/mox/policy" => policy::set(engine, request),
        path @ ("/mox/kubernetes/purge" | "/mox/kubernetes/resume") => everywhere(purge(engine, path, body)),
        _ => Page::text(
            404,
            "there are /mox/freeze, /mox/thaw, /mox/release, /mox/policy, /mox/refresh, /mox/kubernetes/purge and \
             /mox/kubernetes/resume\n"
                .to_owned(),
        ),
    }
}

/// Whether what this server serves stays as it is, after a freeze or a thaw of it alone.
fn frozen(engine: &Engine) -> Page {
    let orders = engine.orders();
    let mut shown = json!({ "frozen": orders.is_frozen() });
    if orders.stopped {
        shown["stopped"] = "the registry has stopped its pushes, which a thaw does not end".into();
    }
    if !orders.ordered && engine.is_freeze_shared() {
        shown["shared"] =
            "the freeze of all session servers does not count here, until they are frozen or thawed anew or this one \
                           starts anew"
                .into();
    }
    Page::json(&shown)
}

/// Takes everything out of Kubernetes, or ends that.
fn purge(engine: &Engine, path: &str, body: &[u8]) -> Page {
    let Some(sink) = engine.kubernetes() else {
        return Page::text(404, "mox.kubernetes.enabled is not set\n".to_owned());
    };
    let purging = path.ends_with("purge");
    let done = match purging {
        true => sink.purge(String::from_utf8_lossy(body).trim()),
        false => {
            sink.resume();
            Ok(())
        }
    };
    match done {
        Ok(()) => Page::json(&json!({ "purging": purging, "writer": sink.report().writer })),
        Err(error) => Page::text(400, format!("{error}\n")),
    }
}
