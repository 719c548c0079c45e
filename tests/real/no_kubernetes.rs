//! A Kubernetes API server with nothing in it. istiod 1.30 and newer end without one at start, whatever their sources of
//! configuration; from this one they read that there are no objects of any kind, and wait for some.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, body::Body, response::Response};
use http::{Method, StatusCode, Uri, header};
use prost::bytes::Bytes;
use serde_json::json;
use tokio::{net::TcpListener, runtime::Runtime};

/// Serves while it lives.
pub(crate) struct NoKubernetes {
    _runtime: Runtime,
    pub(crate) address: SocketAddr,
}

impl NoKubernetes {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { _runtime: runtime, address }
    }
}

async fn answer(method: Method, uri: Uri) -> Response {
    let (path, query) = (uri.path().trim_matches('/'), uri.query().unwrap_or_default());
    let watches = query.contains("watch=true");
    match path.split('/').collect::<Vec<_>>()[..] {
        _ if method != Method::GET => failure(StatusCode::FORBIDDEN, "Forbidden"),
        ["version"] => ok(json!({ "major": "1", "minor": "35", "gitVersion": "v1.35.0" })),
        ["api"] => ok(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ["apis"] => ok(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] })),
        // Lists are asked for by `sendInitialEvents` first, and in the old way where the server does not know that.
        _ if watches && query.contains("sendInitialEvents=true") => {
            failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid")
        }
        ["api", _, _] | ["api", _, "namespaces", _, _] | ["apis", _, _, _] | ["apis", _, _, "namespaces", _, _] => {
            match watches {
                true => response(StatusCode::OK, Body::new(Nothing)),
                // Without a kind it is read as the one that was asked for.
                false => ok(json!({ "metadata": { "resourceVersion": "1" }, "items": [] })),
            }
        }
        _ => failure(StatusCode::NOT_FOUND, "NotFound"),
    }
}

fn ok(answer: serde_json::Value) -> Response {
    response(StatusCode::OK, answer.to_string().into())
}

fn failure(code: StatusCode, reason: &str) -> Response {
    let status =
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code.as_u16() });
    response(code, status.to_string().into())
}

fn response(code: StatusCode, body: Body) -> Response {
    let response = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    response.body(body).unwrap()
}

/// The events of a watch: there never is one, and it does not end.
struct Nothing;

impl http_body::Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Poll::Pending
    }
}
