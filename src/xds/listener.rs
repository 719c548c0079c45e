//! Connections: who may, how many, and for how long without a purpose.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::{
    part::Part,
    xds::{
        limits::{FIRST_REQUEST, HANDSHAKE, MaxStreams},
        streams::Streams,
        tls::Tls,
    },
};

/// How long to wait where no connection can be accepted, as when there are no descriptors left.
const BACKOFF: Duration = Duration::from_millis(100);
/// How often refused connections are logged.
const QUIET: Duration = Duration::from_secs(60);

/// What every listener of a server shares.
#[derive(Debug)]
pub struct Door {
    /// Who may connect; empty: everybody.
    allow: Vec<IpNet>,
    /// Streams at once. There may be twice as many connections, so that a stream too many is told so.
    most: MaxStreams,
    /// None: plaintext.
    tls: Option<Tls>,
    /// Where refusals are counted.
    streams: Arc<Streams>,
    /// Open connections by address.
    open: Mutex<HashMap<IpAddr, usize>>,
    /// When a refusal was last logged.
    logged: Mutex<Option<Instant>>,
}

/// What is known of a connection.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The client's address.
    pub peer: SocketAddr,
    /// What is served on the port that it came to.
    pub part: Part,
    streamed: Arc<AtomicBool>,
    cut: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

impl Accepted {
    /// A stream was opened on it.
    pub fn streamed(&self) {
        self.streamed.store(true, Ordering::Relaxed);
    }

    /// Ends the connection, whatever its client does.
    pub fn cut(&self) {
        drop(self.cut.lock().take());
    }
}

/// One of the open connections of an address.
#[derive(Debug)]
struct Place {
    door: Arc<Door>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.door.open.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

impl Door {
    /// A door for clients of these addresses (none: everybody), through which nobody has come yet.
    pub fn new(allow: Vec<IpNet>, most: MaxStreams, tls: Option<Tls>, streams: Arc<Streams>) -> Self {
        Self { allow, most, tls, streams, open: Mutex::default(), logged: Mutex::default() }
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, String> {
        if !self.allow.is_empty() && !self.allow.iter().any(|range| range.contains(&address)) {
            return Err("its address is not in mox.allow-cidrs".to_owned());
        }
        let mut open = self.open.lock();
        let MaxStreams { in_all, per_address } = self.most;
        if open.values().sum::<usize>() >= 2 * in_all {
            return Err(format!("there are {} connections, twice mox.limits.streams", 2 * in_all));
        }
        let count = open.entry(address).or_default();
        if *count >= 2 * per_address {
            return Err(format!("there are {count} from this address, twice mox.limits.streams-per-address"));
        }
        *count += 1;
        Ok(Place { door: Arc::clone(self), address })
    }

    /// Counts a connection that is not served, and says so once a minute.
    fn refuse(&self, peer: SocketAddr, why: &str) {
        self.streams.refused.fetch_add(1, Ordering::Relaxed);
        if self.may_log() {
            tracing::warn!(%peer, why, "a connection is refused");
        }
    }

    /// Once a minute.
    fn may_log(&self) -> bool {
        let mut logged = self.logged.lock();
        let may = logged.is_none_or(|at| at.elapsed() >= QUIET);
        if may {
            *logged = Some(Instant::now());
        }
        may
    }
}

/// Accepts connections of one port until nobody takes them.
pub async fn accept(listener: TcpListener, part: Part, door: Arc<Door>, out: mpsc::Sender<Connection>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = out.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if door.may_log() {
                    tracing::error!(%error, "no connection can be accepted");
                }
                tokio::time::sleep(BACKOFF).await;
                continue;
            }
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let place = match door.enter(peer.ip()) {
            Ok(place) => place,
            Err(why) => {
                door.refuse(peer, &why);
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (door, out) = (Arc::clone(&door), out.clone());
        // A handshake keeps nobody else waiting.
        tokio::spawn(async move {
            let io = match &door.tls {
                None => Io::Plain(stream),
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => Io::Tls(Box::new(stream)),
                    Ok(Err(error)) => return door.refuse(peer, &format!("TLS: {error}")),
                    Err(_) => return door.refuse(peer, "no TLS handshake within 10 s"),
                },
            };
            let _ = out.send(Connection::new(io, peer, part, place)).await;
        });
    }
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    accepted: Accepted,
    /// Ends when its sender does.
    cut: oneshot::Receiver<()>,
    /// When it has to have a stream; `None`: it had one.
    purpose: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    fn new(io: Io, peer: SocketAddr, part: Part, place: Place) -> Self {
        let (sender, cut) = oneshot::channel();
        let accepted = Accepted { peer, part, streamed: Arc::default(), cut: Arc::new(Mutex::new(Some(sender))) };
        let purpose = Some(Box::pin(tokio::time::sleep(FIRST_REQUEST)));
        Self { io, accepted, cut, purpose, _place: place }
    }

    /// Whether it is to end now.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if Pin::new(&mut self.cut).poll(context).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "its client reads nothing"));
        }
        if self.accepted.streamed.load(Ordering::Relaxed) {
            self.purpose = None;
        }
        let Some(purpose) = &mut self.purpose else { return Poll::Pending };
        ready!(purpose.as_mut().poll(context));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "it opened no stream"))
    }
}

impl Connected for Connection {
    type ConnectInfo = Accepted;

    fn connect_info(&self) -> Accepted {
        self.accepted.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(context, slices),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(context),
            Io::Tls(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(context),
            Io::Tls(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}
