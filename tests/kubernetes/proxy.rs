//! Stands between a sink and the API server: counts its requests, and answers some as a server in trouble would.

use std::{path::PathBuf, sync::Arc, time::Instant};

use axum::{
    body::{self, Body},
    extract::{Request, State},
    response::Response,
};
use harness::process::root;
use kube::Client;
use tokio::{net::TcpListener, runtime::Runtime, sync::Notify, task::JoinHandle};

use crate::server::{PATIENCE, Shared};

/// A request as it came to the proxy.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) path: String,
}

impl Asked {
    pub(crate) fn is_write(&self) -> bool {
        self.path.starts_with("/apis/networking.istio.io/") && self.method != "GET"
    }

    pub(crate) fn name(&self) -> &str {
        self.path.split('?').next().unwrap().rsplit('/').next().unwrap()
    }
}

/// The proxy's treatment of a request.
pub(crate) enum Fate {
    /// The request is passed on.
    Pass,
    /// The proxy answers itself: status, Retry-After in seconds, body.
    Answer(u16, Option<u64>, String),
    /// The request is passed on, and its answer kept until the [`Kept`] is told to go on.
    Keep(Arc<Kept>),
    /// The connection is cut instead of an answer, after it was passed on or before.
    Cut { after: bool },
}

/// An answer that comes late.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    here: Notify,
    goes_on: Notify,
}

impl Kept {
    /// Waits until the API server has answered.
    pub(crate) fn is_here(&self, runtime: &Runtime) {
        let here = async { tokio::time::timeout(PATIENCE, self.here.notified()).await };
        runtime.block_on(here).expect("nothing of the kind was asked");
    }

    /// Lets the answer through.
    pub(crate) fn let_go(&self) {
        self.goes_on.notify_one();
    }
}

type Rule = Box<dyn FnMut(&Asked) -> Fate + Send>;

#[derive(Clone)]
struct Way {
    upstream: Client,
    asked: Shared<Vec<Asked>>,
    rule: Arc<parking_lot::Mutex<Rule>>,
}

pub(crate) struct Proxy {
    pub(crate) kubeconfig: PathBuf,
    way: Way,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) fn start(runtime: &Runtime, upstream: Client) -> Self {
        let rule: Rule = Box::new(|_| Fate::Pass);
        let way = Way { upstream, asked: Arc::default(), rule: Arc::new(parking_lot::Mutex::new(rule)) };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = axum::Router::new().fallback(pass).with_state(way.clone());
        let task = runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        let kubeconfig = root().join(format!("target/real/home/kubernetes/proxy-{port}.kubeconfig"));
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\nusers: [{{name: none, user: {{}}}}]\n\
             clusters: [{{name: test, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: none}}}}]\n"
        );
        std::fs::write(&kubeconfig, config).unwrap();
        Self { kubeconfig, way, task }
    }

    /// From now on.
    pub(crate) fn rule(&self, rule: impl FnMut(&Asked) -> Fate + Send + 'static) {
        *self.way.rule.lock() = Box::new(rule);
    }

    /// The requests since the last time, in the order in which they came.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.way.asked.lock().unwrap())
    }

    /// The requests since the last call that write objects.
    pub(crate) fn writes(&self) -> Vec<Asked> {
        self.take().into_iter().filter(Asked::is_write).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(way): State<Way>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path_and_query().unwrap().to_string();
    let asked = Asked { at: Instant::now(), method: parts.method.to_string(), path: path.clone() };
    way.asked.lock().unwrap().push(asked.clone());
    let rule = Arc::clone(&way.rule);
    // A rule may ask the API server itself, and waits for it.
    let fate = tokio::task::spawn_blocking(move || (rule.lock())(&asked)).await.unwrap();
    let cut = || {
        let gone = std::io::Error::other("cut");
        Response::new(Body::from_stream(tokio_stream::once(Err::<bytes::Bytes, _>(gone))))
    };
    match fate {
        Fate::Answer(status, retry_after, body) => {
            let mut response = Response::builder().status(status).header("content-type", "application/json");
            if let Some(seconds) = retry_after {
                response = response.header("retry-after", seconds);
            }
            return response.body(Body::from(body)).unwrap();
        }
        Fate::Cut { after: false } => return cut(),
        Fate::Cut { after: true } | Fate::Pass | Fate::Keep(_) => {}
    }
    let mut request = http::Request::builder().method(parts.method).uri(path);
    for (name, value) in parts.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "host" | "content-length")) {
        request = request.header(name, value);
    }
    let request = request.body(kube::client::Body::from(body.to_vec())).unwrap();
    match way.upstream.send(request).await {
        Ok(response) => match fate {
            Fate::Cut { .. } => cut(),
            Fate::Keep(kept) => {
                let (parts, body) = response.into_parts();
                let body = body::to_bytes(Body::new(body), usize::MAX).await.unwrap();
                kept.here.notify_one();
                kept.goes_on.notified().await;
                // Streamed as it came, since its headers say so.
                Response::from_parts(parts, Body::from_stream(tokio_stream::once(Ok::<_, std::io::Error>(body))))
            }
            _ => response.map(Body::new),
        },
        Err(_) => cut(),
    }
}
