//! Pages for operators, read only; the same over HTTP and through the session server's own port.

use std::sync::{Arc, Weak};

use axum::{
    Router,
    extract::State,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};

use crate::{dump, engine::Engine};

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
        "/mox/streams" => Page::json(&engine.status().streams),
        "/mox/dump" => match query.split('&').find_map(|pair| pair.strip_prefix("type=")).unwrap_or("ServiceEntry") {
            "ServiceEntry" => Page::json(&dump::service_entries(&engine.view().service_entries)),
            other => Page::text(404, format!("type {other:?} is not served; there is ServiceEntry\n")),
        },
        _ => Page::text(404, "there are /mox/status, /mox/streams and /mox/dump\n".to_owned()),
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

async fn answer(State(engine): State<Weak<Engine>>, method: Method, uri: Uri) -> Response {
    let Some(engine): Option<Arc<Engine>> = engine.upgrade() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    if method != Method::GET {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let page = page(&engine, uri.path(), uri.query().unwrap_or_default());
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, page.content_type)], page.body).into_response()
}
