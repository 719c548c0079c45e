//! Attacks by clients of the MoX port and by readers of the admin pages, on a process of its own.

use std::{
    fs,
    future::Future,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use harness::{
    SOON,
    client::{Delta, Request, SERVICE, SERVICE_ENTRY, Sotw, framed, node},
    http2,
};
use prost::Message;
use registry_mox::proto::envoy::service::discovery::v3::DiscoveryRequest;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tonic::Code;

use crate::{
    Result, Size,
    scene::{Outcome, Scene},
};

const MB: u64 = 1_000_000;

/// Runs a client in this thread.
fn block_on<T>(client: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(client)
}

/// Runs so many of a kind at once.
fn at_once(many: usize, one: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let one = &one;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..many).map(|n| scope.spawn(move || one(n))).collect();
        running.into_iter().try_for_each(|one| one.join().map_err(|_| "a client panicked")?)
    })
}

/// Reads a page to its end and keeps nothing of it; its status.
fn read_page(admin: SocketAddr, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut buffer = vec![0; 64 << 10];
    let mut status = None;
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return status.ok_or_else(|| "a page without a status".into());
        }
        if status.is_none() {
            status = String::from_utf8_lossy(&buffer[..read]).split(' ').nth(1).and_then(|code| code.parse().ok());
        }
    }
}

/// Eight readers that come back at once, refused ones after a tenth of a second.
pub(crate) fn dumps(size: Size) -> Result<Outcome> {
    let mut scene = Scene::apart(size, size.of(10_000), &json!({}))?;
    let [whole, refused, other] = [const { AtomicUsize::new(0) }; 3];
    scene.attack(|target, _, stop| {
        at_once(8, |_| {
            loop {
                match read_page(target.admin, "/mox/dump")? {
                    200 => whole.fetch_add(1, Relaxed),
                    429 => {
                        std::thread::sleep(Duration::from_millis(100));
                        refused.fetch_add(1, Relaxed)
                    }
                    _ => other.fetch_add(1, Relaxed),
                };
                if stop.load(Relaxed) {
                    return Ok(());
                }
            }
        })
    })?;
    let (whole, refused, other) = (whole.into_inner(), refused.into_inner(), other.into_inner());
    scene.bound(format!("one at a time: {whole} whole, {refused} refused"), whole > 0 && other == 0);
    scene.bound_of_memory(100 * MB);
    scene.bound_of_pushes(1.1);
    scene.end()
}

/// A stream that asks for more and more names until it is ended, again and again.
pub(crate) fn names(size: Size) -> Result<Outcome> {
    let names = size.of(1_000_000);
    let limit = (64 << 20) / size.divisor;
    let limits = json!({ "limits": { "streamBytes": limit.max(65_536) } });
    let mut scene = Scene::apart(size, size.of(1_000).max(100), &limits)?;
    let (ended, otherwise) = (AtomicUsize::new(0), AtomicUsize::new(0));
    scene.attack(|target, _, stop| {
        block_on(async {
            loop {
                let mut stream = Delta::connect(&target.mox.to_string()).await;
                for first in (0..names).step_by(10_000.min(names)) {
                    let many: Vec<String> =
                        (first..first + 10_000.min(names)).map(|n| format!("sofa-registry/{n:060}")).collect();
                    stream.ask("", &many.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
                }
                match stream.end().await {
                    Code::ResourceExhausted => ended.fetch_add(1, Relaxed),
                    _ => otherwise.fetch_add(1, Relaxed),
                };
                if stop.load(Relaxed) {
                    return Ok(());
                }
            }
        })
    })?;
    let status = scene.status()?;
    let (ended, otherwise) = (ended.into_inner(), otherwise.into_inner());
    scene.bound(format!("RESOURCE_EXHAUSTED {ended} of {}", ended + otherwise), otherwise == 0);
    scene.bound(format!("{} bytes kept", status["streamBytes"]), status["streamBytes"].as_u64() < Some(4 << 10));
    scene.bound_of_memory(128 * MB);
    scene.end()
}

/// A stream of everything that is read by drops: its window opens when it has been read.
async fn drip(mox: SocketAddr, pause: Duration, stop: &AtomicBool) -> Result<()> {
    let connection = tokio::net::TcpStream::connect(mox).await?;
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder.initial_window_size(65_535).handshake::<_, Bytes>(connection).await?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{mox}{SERVICE}{}", DiscoveryRequest::METHOD))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut out) = client.ready().await?.send_request(request, false)?;
    let ask = DiscoveryRequest { node: Some(node("slow")), type_url: SERVICE_ENTRY.into(), ..Default::default() };
    out.send_data(framed(&ask.encode_to_vec()), false)?;
    let mut body = response.await?.into_body();
    // Ended by the server, or by us: the next one comes.
    while let Some(Ok(data)) = body.data().await
        && !stop.load(Relaxed)
    {
        tokio::time::sleep(pause).await;
        let _ = body.flow_control().release_capacity(data.len());
    }
    Ok(())
}

/// Streams that come one after the other while everything changes, so that each holds a state of its own.
pub(crate) fn slow(size: Size) -> Result<Outcome> {
    const PINNED: u64 = 16 << 20;
    let services = size.of(10_000);
    let mut scene = Scene::apart(size, services, &json!({ "limits": { "pinnedBytes": PINNED } }))?;
    scene.churn = services / 50;
    scene.attack(|target, _, stop| {
        at_once(20, |n| {
            std::thread::sleep(size.window / 20 * n as u32);
            while !stop.load(Relaxed) {
                block_on(drip(target.mox, Duration::from_millis(250), stop))?;
            }
            Ok(())
        })
    })?;
    let status = scene.status()?;
    let [bytes, pinned, relieved] =
        ["bytes", "pinnedBytes", "relieved"].map(|name| status[name].as_u64().unwrap_or(u64::MAX));
    scene.bound(
        format!("{} of {} MB pinned in the end, {relieved} streams ended", pinned / MB, (PINNED + bytes) / MB),
        pinned <= PINNED + bytes && (relieved > 0 || size.divisor > 1),
    );
    // What is pinned, what is served, and what each connection has in hand.
    scene.bound_of_memory(PINNED + 4 * bytes + 32 * MB);
    scene.end()
}

/// Streams that take what they are sent and accept none of it.
pub(crate) fn silent(size: Size) -> Result<Outcome> {
    let mut scene = Scene::apart(size, size.of(1_000).max(100), &json!({}))?;
    scene.churn = 10;
    let most = AtomicUsize::new(0);
    scene.attack(|target, _, stop| {
        block_on(async {
            let clients = (0..20).map(|_| async {
                let mut stream = Sotw::connect(&target.mox.to_string()).await;
                stream.ask(SERVICE_ENTRY, &[]);
                let mut responses = 0;
                while !stop.load(Relaxed) {
                    if tokio::time::timeout(Duration::from_millis(50), stream.message()).await.is_ok() {
                        responses += 1;
                    }
                }
                most.fetch_max(responses, Relaxed);
            });
            together(clients.collect()).await;
            Ok(())
        })
    })?;
    let most = most.into_inner();
    scene.bound(format!("{most} response unanswered at most"), most == 1);
    scene.bound_of_memory(64 * MB);
    scene.end()
}

/// Runs all of them to their ends, in turn on this task.
async fn together<F: Future<Output = ()>>(all: Vec<F>) {
    let mut all: Vec<_> = all.into_iter().map(|one| Some(Box::pin(one))).collect();
    std::future::poll_fn(|context| {
        for one in &mut all {
            if one.as_mut().is_some_and(|one| one.as_mut().poll(context).is_ready()) {
                *one = None;
            }
        }
        if all.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// PRIORITY, WINDOW_UPDATE, PING and SETTINGS without end; who is cut comes again.
pub(crate) fn frames(size: Size) -> Result<Outcome> {
    let mut scene = Scene::apart(size, size.of(1_000).max(100), &json!({}))?;
    let (connections, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    scene.attack(|target, _, stop| {
        let floods = http2::floods();
        at_once(floods.len(), |n| {
            let many = floods[n].repeat(100);
            loop {
                block_on(async {
                    let mut socket = tokio::net::TcpStream::connect(target.mox).await?;
                    connections.fetch_add(1, Relaxed);
                    socket.write_all(http2::PREFACE).await?;
                    socket.write_all(&http2::settings()).await?;
                    let (mut reads, mut writes) = socket.into_split();
                    // What it says is not looked at.
                    let reads = tokio::spawn(async move { tokio::io::copy(&mut reads, &mut tokio::io::sink()).await });
                    let mut written = 0;
                    while !reads.is_finished() && writes.write_all(&many).await.is_ok() {
                        written += 100;
                        tokio::task::yield_now().await;
                    }
                    most.fetch_max(written, Relaxed);
                    let _ = reads.await;
                    Ok(())
                })?;
                if stop.load(Relaxed) {
                    return Ok(());
                }
            }
        })
    })?;
    let floods = scene.status()?["floods"].as_u64().unwrap_or_default() as usize;
    let (connections, most) = (connections.into_inner(), most.into_inner());
    scene.bound(format!("{floods} of {connections} connections ended"), floods == connections);
    // Frames that lie in buffers of the kernel when it ends have been written as well.
    scene.bound(format!("after {most} frames at most, with what the kernel holds"), most < 1_000_000);
    scene.bound_of_memory(32 * MB);
    scene.end()
}

/// Connections that begin a request and say no more.
pub(crate) fn half(size: Size) -> Result<Outcome> {
    let mut scene = Scene::apart(size, size.of(1_000).max(100), &json!({}))?;
    let files = |pid: u32| -> Result<usize> { Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
    let (before, most) = (files(scene.target.pid)?, AtomicUsize::new(0));
    let waits = Mutex::new(Vec::new());
    scene.attack(|target, _, stop| {
        let mut open = Vec::new();
        for _ in 0..600 {
            let mut stream = TcpStream::connect(target.admin)?;
            // It may be refused already.
            let _ = stream.write_all(b"GET /mox/status HTTP/1.1\r\nHost: x");
            open.push(stream);
        }
        let begun = Instant::now();
        while !stop.load(Relaxed) {
            most.fetch_max(files(target.pid)?, Relaxed);
            std::thread::sleep(Duration::from_millis(50));
        }
        if size.divisor > 1 {
            open.clear(); // their time is not waited for
        }
        // Whoever asks is served when the time of the half ones is over.
        while read_page(target.admin, "/mox/status").is_err() && begun.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(50));
        }
        waits.lock().unwrap_or_else(PoisonError::into_inner).push(begun.elapsed());
        Ok(())
    })?;
    let most = most.into_inner().saturating_sub(before);
    let waits = waits.into_inner()?;
    let longest = waits.into_iter().max().unwrap_or_default();
    scene.bound(format!("{most} files more at most"), most <= 64 + 16);
    scene.bound(format!("a page again after {:.0} s", longest.as_secs_f64()), longest < SOON);
    scene.bound_of_memory(32 * MB);
    scene.end()
}
