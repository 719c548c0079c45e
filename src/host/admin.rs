//! Pages for operators, the same over HTTP and through the session server's own port. Requests that change something need
//! `mox.admin.token` in the header `X-Mox-Token`.

use std::sync::{Arc, Weak};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config,
    error::Error,
    host::{engine::Engine, metrics},
    kubernetes,
    snapshot::kubectl,
};

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const TOKEN_HEADER: &str = "x-mox-token";

/// One page.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// HTTP status.
    pub status: u16,
    /// Media type.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Page {
    fn json(value: &impl Serialize) -> Self {
        match serde_json::to_string_pretty(value) {
            Ok(body) => Self { status: 200, content_type: "application/json", body: body + "\n" },
            Err(error) => Self::text(500, format!("{error}\n")),
        }
    }

    fn text(status: u16, body: String) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }
}

/// Makes the page of a path.
pub fn page(engine: &Engine, path: &str, query: &str) -> Page {
    match path.trim_end_matches('/') {
        "/mox" | "/mox/status" => Page::json(&engine.status()),
        "/mox/fresh" => fresh(engine),
        "/mox/streams" => {
            let status = engine.status();
            Page::json(&json!({ "clients": status.clients, "streams": status.streams }))
        }
        "/mox/istio-config" => Page::text(200, istio_config(engine, query)),
        "/mox/metrics" => Page { status: 200, content_type: PROMETHEUS, body: metrics::text(engine) },
        "/mox/kubernetes" => match engine.kubernetes() {
            Some(sink) => Page::json(&sink.report()),
            None => Page::text(404, "mox.kubernetes.enabled is not set\n".to_owned()),
        },
        "/mox/kubernetes/rbac" => Page::text(200, kubernetes::rbac(engine.config())),
        "/mox/dump" => match query.split('&').find_map(|pair| pair.strip_prefix("type=")).unwrap_or("ServiceEntry") {
            kind @ "ServiceEntry" => Page::json(&kubectl::list(kind, &engine.view().service_entries)),
            kind @ "WorkloadEntry" => Page::json(&kubectl::list(kind, &engine.view().workload_entries)),
            kind @ "DestinationRule" => Page::json(&kubectl::list(kind, &engine.view().destination_rules)),
            other => {
                Page::text(404, format!("type {other:?} is not served; there are {}\n", kubectl::KINDS.join(" and ")))
            }
        },
        _ => Page::text(
            404,
            "there are /mox/status, /mox/streams, /mox/metrics, /mox/istio-config, /mox/kubernetes, /mox/kubernetes/rbac and \
             /mox/dump\n"
                .to_owned(),
        ),
    }
}

/// What to paste into Istio's mesh configuration, with the host that the query names.
fn istio_config(engine: &Engine, query: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    let host = query.split('&').find_map(|pair| pair.strip_prefix("host="));
    let host = host.filter(|host| !host.is_empty() && host.chars().all(legal)).unwrap_or("session-server.example.com");
    let config = engine.config();
    let bound = engine.status().listening;
    let port = bound.as_ref().map_or(config.listen, |bound| bound.mox).port();
    let sources = |ports: &mut dyn Iterator<Item = u16>| {
        let lines: String = ports.map(|port| format!("  - address: xds://{host}:{port}\n")).collect();
        format!("meshConfig:\n  configSources:\n{lines}  - address: k8s://\n")
    };
    let mut text = format!("# Everything from one source.\n{}", sources(&mut [port].into_iter()));
    for (count, addresses) in bound.map(|bound| bound.slices).unwrap_or_default() {
        let list = sources(&mut addresses.iter().map(std::net::SocketAddr::port));
        text += &format!(
            "\n# Or in {count} parts, so that a change costs istiod 1/{count}. All of them, and not the one above beside them.\n{list}"
        );
    }
    text
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

/// Executes a request that changes something: `POST /mox/{freeze,thaw,release,policy}` and
/// `/mox/kubernetes/{purge,resume}`.
pub fn change(engine: &Engine, path: &str, token: &str, body: &[u8]) -> Page {
    match &engine.config().admin.token {
        None => return Page::text(403, "mox.admin.token is not set, so nothing can be changed here\n".to_owned()),
        Some(own) if !own.is(token) => {
            return Page::text(403, format!("the header {TOKEN_HEADER} does not hold mox.admin.token\n"));
        }
        Some(_) => {}
    }
    match path.trim_end_matches('/') {
        "/mox/freeze" => {
            engine.freeze();
            Page::json(&json!({ "frozen": true }))
        }
        "/mox/thaw" => {
            engine.thaw();
            Page::json(&json!({ "frozen": false }))
        }
        // Asked of every session server, of which one may hold and another not.
        "/mox/release" => Page::json(&json!({ "released": engine.release().is_ok() })),
        "/mox/policy" => {
            let document = serde_json::from_slice(body)
                .map_err(|error| Error::InvalidArgument(format!("this is no JSON: {error}")));
            let policy = document.and_then(|document| config::policy_from_json(document, &engine.config().namespace));
            match policy.and_then(|policy| engine.set_policy(policy)) {
                Ok(hash) => Page::json(&json!({ "hash": hash })),
                Err(error) => Page::text(400, format!("{error}\n")),
            }
        }
        path @ ("/mox/kubernetes/purge" | "/mox/kubernetes/resume") => {
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
        _ => Page::text(
            404,
            "there are /mox/freeze, /mox/thaw, /mox/release, /mox/policy, /mox/kubernetes/purge and \
             /mox/kubernetes/resume\n"
                .to_owned(),
        ),
    }
}

/// Serves the pages until `draining` is true.
pub async fn serve(listener: TcpListener, engine: Weak<Engine>, mut draining: watch::Receiver<bool>) {
    let router = Router::new().fallback(answer).with_state(engine);
    let stop = async move {
        let _ = draining.wait_for(|draining| *draining).await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the admin listener failed");
    }
}

async fn answer(
    State(engine): State<Weak<Engine>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(engine): Option<Arc<Engine>> = engine.upgrade() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let page = match method {
        Method::GET => page(&engine, uri.path(), uri.query().unwrap_or_default()),
        Method::POST => {
            let token = headers.get(TOKEN_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
            change(&engine, uri.path(), token, &body)
        }
        _ => return StatusCode::METHOD_NOT_ALLOWED.into_response(),
    };
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, page.content_type)], page.body).into_response()
}
