//! The pages over HTTP, on a port of their own. Whatever clients do, there are so many connections and no more, each with
//! one request and a deadline, and pages are made beside the threads that serve streams.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::{
    Answer, Credentials, Page, Request, SIGNATURE_HEADER, TIME_HEADER, TOKEN_HEADER, as_accepted, change,
    large::{Cursor, Large},
    page,
};
use crate::host::engine::Engine;

/// How long to wait where no connection can be accepted, as when there are no descriptors left.
const BACKOFF: Duration = Duration::from_millis(100);
/// How often refused connections are logged.
const QUIET: Duration = Duration::from_secs(60);
/// How long a stop waits for answers under way.
const DRAIN: Duration = Duration::from_secs(1);
/// How much of an answer is kept for a slow client, beside a chunk.
const BUFFER: usize = 64 << 10;

/// Bounds on the clients of the listener.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// How long a request's head may take to come.
    pub head: Duration,
    /// How long a request may take from there to the end of its answer, unless that is a large page.
    pub request: Duration,
    /// Bytes of a request's body.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, head: Duration::from_secs(10), request: Duration::from_secs(30), body: 1 << 20 }
    }
}

/// Serves until `draining` is true.
pub async fn serve(listener: TcpListener, engine: Weak<Engine>, mut draining: watch::Receiver<bool>, limits: Limits) {
    let mut connections = JoinSet::new();
    let mut logged: Option<Instant> = None;
    // Once a minute.
    let mut may_log = || {
        let may = logged.is_none_or(|at| at.elapsed() >= QUIET);
        logged = if may { Some(Instant::now()) } else { logged };
        may
    };
    loop {
        let accepted = tokio::select! {
            _ = draining.wait_for(|draining| *draining) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if may_log() {
                    tracing::error!(event = "admin_accept_failed", %error, "no admin connection can be accepted");
                }
                sleep(BACKOFF).await;
                continue;
            }
        };
        let Some(alive) = engine.upgrade() else { break };
        match refusal(&alive, peer, connections.len(), limits) {
            Some(why) => {
                alive.count_refused();
                if may_log() {
                    tracing::warn!(event = "admin_connection_refused", %peer, why, "an admin connection is refused");
                }
            }
            None => drop(connections.spawn(connection(stream, Weak::clone(&engine), limits))),
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    // Connections that are left are cut.
    let _ = timeout(DRAIN, all).await;
}

/// Why a connection is not let in.
fn refusal(engine: &Engine, peer: SocketAddr, open: usize, limits: Limits) -> Option<&'static str> {
    let address: IpAddr = peer.ip().to_canonical();
    let allow = &engine.config().allow_cidrs;
    if !allow.is_empty() && !allow.iter().any(|range| range.contains(&address)) {
        return Some("its address is not in mox.allow-cidrs");
    }
    (open >= limits.connections).then_some("there are too many; each ends with its answer")
}

/// A request and its answer, within a time.
async fn connection(stream: TcpStream, engine: Weak<Engine>, limits: Limits) {
    let (reads, read) = oneshot::channel();
    let reads = Mutex::new(Some(reads));
    let service = service_fn(move |request| {
        let (engine, reads) = (Weak::clone(&engine), reads.lock().take());
        async move { Ok::<_, Infallible>(answer(request, engine, reads, limits).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // A client's own faults end its connection and are not logged.
        _ = serving => {}
        () = deadline(read, limits) => {}
    }
}

/// Until when a connection may live: its request has a time, a large page one of its own.
async fn deadline(read: oneshot::Receiver<(Arc<Large>, u64)>, limits: Limits) {
    let until = Instant::now() + limits.head + limits.request;
    let Ok(Ok((large, id))) = timeout_at(until, read).await else { return sleep_until(until).await };
    let late = large.over(id).await;
    if !late {
        // The last of it is still to be sent.
        sleep(limits.request).await;
    }
}

type Reply = Response<Either<Full<Bytes>, Chunks>>;

async fn answer(
    request: http::Request<Incoming>,
    engine: Weak<Engine>,
    reads: Option<oneshot::Sender<(Arc<Large>, u64)>>,
    limits: Limits,
) -> Reply {
    let (head, body) = request.into_parts();
    let accept = head.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let query = as_accepted(head.uri.query().unwrap_or_default(), accept);
    let path = head.uri.path().to_owned();
    let made = match head.method {
        Method::GET => spawn_blocking(move || engine.upgrade().map(|engine| page(&engine, &path, &query))),
        Method::POST => {
            let Ok(body) = Limited::new(body, limits.body).collect().await else {
                return text(Page::text(413, format!("a body has at most {} bytes\n", limits.body)));
            };
            let header = |name: &str| {
                head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
            };
            let shown = Credentials {
                token: header(TOKEN_HEADER),
                time: header(TIME_HEADER),
                signature: header(SIGNATURE_HEADER),
            };
            let if_match = header(header::IF_MATCH.as_str());
            spawn_blocking(move || {
                let (engine, body) = (engine.upgrade()?, body.to_bytes());
                let request = Request { path: &path, query: &query, if_match: &if_match, body: &body };
                Some(Answer::Page(change(&engine, &shown, request)))
            })
        }
        _ => return text(Page::text(405, "there are GET and POST\n".to_owned())),
    };
    match made.await {
        Ok(Some(Answer::Page(page))) => text(page),
        Ok(Some(Answer::Large { content_type, cursor })) => {
            if let Some(reads) = reads {
                // Who reads this page and is gone already has no need of a deadline.
                let _ = reads.send((Arc::clone(cursor.large()), cursor.id()));
            }
            let chunks = Chunks { cursor: Arc::new(cursor), next: None };
            reply(StatusCode::OK, content_type, Either::Right(chunks))
        }
        Ok(None) => text(Page::text(503, "the engine is closed\n".to_owned())),
        // A bug; the panic is in the log.
        Err(_) => text(Page::text(500, "the page cannot be made, see the log\n".to_owned())),
    }
}

fn text(page: Page) -> Reply {
    let status = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = reply(status, page.content_type, Either::Left(page.body.into()));
    if let Some(seconds) = page.retry_after {
        reply.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    let etag = page.etag.and_then(|revision| HeaderValue::try_from(format!("\"{revision}\"")).ok());
    if let Some(etag) = etag {
        reply.headers_mut().insert(header::ETAG, etag);
    }
    reply
}

fn reply(status: StatusCode, content_type: &'static str, body: Either<Full<Bytes>, Chunks>) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    // No browser takes it for another type, or shows it in another's page.
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        reply.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    reply
}

/// The body of a large page: a chunk is made when the connection has room for it.
struct Chunks {
    cursor: Arc<Cursor>,
    next: Option<JoinHandle<crate::error::Result<Option<Bytes>>>>,
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let cursor = Arc::clone(&self.cursor);
        let next = self.next.get_or_insert_with(|| spawn_blocking(move || cursor.next()));
        let made = ready!(Pin::new(next).poll(context));
        self.next = None;
        let chunk = made.map_err(io::Error::other).and_then(|chunk| chunk.map_err(io::Error::other));
        Poll::Ready(chunk.transpose().map(|chunk| chunk.map(Frame::data)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    use super::*;
    use crate::{
        config::Config,
        model::RegisterVersion,
        registry::frame::{self, Publisher},
    };

    /// An engine, and its pages on the runtime of the test, whose time stands still while anything is to be done.
    struct Served {
        engine: Arc<Engine>,
        address: SocketAddr,
        _draining: watch::Sender<bool>,
    }

    async fn serve_here() -> Served {
        let engine = Arc::new(Engine::open(Config::default()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let draining = watch::Sender::new(false);
        let serving = serve(listener, Arc::downgrade(&engine), draining.subscribe(), Limits::default());
        tokio::spawn(serving);
        Served { engine, address, _draining: draining }
    }

    async fn connect(served: &Served, request: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        // So that a client that reads nothing has little in its hands.
        socket.set_recv_buffer_size(4 << 10).unwrap();
        let mut client = socket.connect(served.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client
    }

    /// The bytes that come until the connection ends, orderly or not.
    async fn rest(mut client: TcpStream) -> usize {
        let (mut bytes, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            match client.read(&mut buffer).await {
                Ok(0) | Err(_) => return bytes,
                Ok(count) => bytes += count,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_to_its_end_ends() {
        let served = serve_here().await;
        for (half, seconds) in [
            ("", 10),
            ("GET /mox/status HTTP/1.1\r\nHost: x\r\nX-More", 10),
            ("POST /mox/freeze HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", 40),
        ] {
            let client = connect(&served, half).await;
            let began = Instant::now();
            assert_eq!(rest(client).await, 0, "{half:?}");
            assert!((seconds..seconds + 2).contains(&began.elapsed().as_secs()), "{half:?}: {:?}", began.elapsed());
        }
    }

    #[tokio::test]
    async fn browsers_take_a_page_for_what_it_is() {
        let served = serve_here().await;
        for path in ["/mox", "/mox/dump", "/mox/none"] {
            let mut client = connect(&served, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            let (head, _) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
            assert!(head.contains("x-frame-options: DENY"), "{path}: {head}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_of_a_large_page_loses_it() {
        let served = serve_here().await;
        let engine = &served.engine;
        for n in 0..4_000 {
            let data: Vec<String> =
                (0..40).map(|e| format!("10.{}.{}.{e}:12200?app_name=orders", n >> 8, n & 255)).collect();
            let publisher = Publisher {
                register_id: "r".into(),
                version: RegisterVersion { version: 1, timestamp: 0 },
                payloads: data.iter().map(|text| text.as_bytes().into()).collect(),
                ..Publisher::default()
            };
            let frame = frame::encode_publish("registry", &format!("com.example.S{n}:1.0@DEFAULT"), &publisher);
            engine.apply(&frame.unwrap()).unwrap();
        }
        engine.loaded();
        engine.flush().await;
        let began = Instant::now();
        let stalled = connect(&served, "GET /mox/dump HTTP/1.1\r\nHost: x\r\n\r\n").await;
        while engine.large().counts().ended == 0 {
            sleep(Duration::from_millis(100)).await;
            assert!(began.elapsed().as_secs() < 60, "its place is never free");
        }
        assert!(began.elapsed().as_secs() >= 10);
        // Before anything is read, so that it is not the reading that ends it.
        assert!(matches!(page(engine, "/mox/dump", ""), Answer::Large { .. }), "the place is free");
        let received = rest(stalled).await;
        let whole = rest(connect(&served, "GET /mox/dump HTTP/1.1\r\nHost: x\r\n\r\n").await).await;
        // The kernel takes 4 MiB for a client, more or less.
        assert!(received < whole && whole > 12 << 20, "{received} of {whole}");
    }
}
