//! Connections: who may connect, how many connections there may be, and for how long they may stay without a stream.

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
    snapshot::partition::Partition,
    xds::{
        limits::{FIRST_REQUEST, HANDSHAKE, MaxStreams, cut},
        quiet::Quiet,
        streams::Streams,
        tls::Tls,
    },
};

/// How long to wait where no connection can be accepted, as when there are no descriptors left.
const BACKOFF: Duration = Duration::from_millis(100);
/// Characters of what a log line says of a refused connection.
const DETAIL: usize = 300;

/// The door of a server, which all its listeners share: who may come in, and who is in.
#[derive(Debug)]
pub struct Door {
    /// Who may connect; empty: everybody.
    allow: Vec<IpNet>,
    /// Streams at once. There may be twice as many connections, so that the client of a stream too many is told why.
    most: MaxStreams,
    /// `None`: plaintext.
    tls: Option<Arc<Tls>>,
    /// Where refusals are counted.
    streams: Arc<Streams>,
    /// Open connections by address.
    open: Mutex<HashMap<IpAddr, usize>>,
    /// Which refusals were logged, by reason and address; no address: no connection can be accepted at all.
    quiet: Mutex<Quiet<(&'static str, Option<IpAddr>)>>,
}

/// Why a connection is refused.
#[derive(Debug)]
struct Refusal {
    /// A stable word.
    reason: &'static str,
    /// The same for people, with the setting and its value.
    detail: String,
}

/// An open connection as its streams know it.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The client's address.
    pub peer: SocketAddr,
    /// The partition that is served on the port of the connection.
    pub partition: Partition,
    streamed: Arc<AtomicBool>,
    cut: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

impl Accepted {
    /// Notes that a stream was opened on the connection.
    pub fn streamed(&self) {
        self.streamed.store(true, Ordering::Relaxed);
    }

    /// Ends the connection, whatever its client does.
    pub fn cut(&self) {
        drop(self.cut.lock().take());
    }
}

/// The place of an open connection among those of its address, until it is dropped.
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
    pub fn new(allow: Vec<IpNet>, most: MaxStreams, tls: Option<Arc<Tls>>, streams: Arc<Streams>) -> Self {
        Self { allow, most, tls, streams, open: Mutex::default(), quiet: Mutex::default() }
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refusal> {
        let refusal = |reason, detail| Err(Refusal { reason, detail });
        if !self.allow.is_empty() && !self.allow.iter().any(|range| range.contains(&address)) {
            return refusal("address_not_allowed", "its address is not in mox.allow-cidrs".to_owned());
        }
        let mut open = self.open.lock();
        let MaxStreams { in_all, per_address } = self.most;
        if open.values().sum::<usize>() >= 2 * in_all {
            let detail = format!("there are {} connections, twice mox.limits.streams", 2 * in_all);
            return refusal("too_many_connections", detail);
        }
        let count = open.entry(address).or_default();
        if *count >= 2 * per_address {
            let detail = format!("there are {count} from this address, twice mox.limits.streams-per-address");
            return refusal("too_many_from_address", detail);
        }
        *count += 1;
        Ok(Place { door: Arc::clone(self), address })
    }

    /// Counts a connection that is not served, and logs it once a minute for each reason and address.
    fn refuse(&self, peer: SocketAddr, Refusal { reason, detail }: &Refusal) {
        self.streams.refused.fetch_add(1, Ordering::Relaxed);
        if self.may_log(reason, Some(peer.ip())) {
            let detail = cut(detail, DETAIL);
            tracing::warn!(event = "connection_refused", reason, %peer, detail, "a connection is refused");
        }
    }

    fn may_log(&self, reason: &'static str, address: Option<IpAddr>) -> bool {
        self.quiet.lock().may_log((reason, address), Instant::now())
    }
}

/// Accepts connections of one port until nobody takes them.
pub async fn accept(listener: TcpListener, partition: Partition, door: Arc<Door>, out: mpsc::Sender<Connection>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = out.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if door.may_log("accept_failed", None) {
                    tracing::error!(event = "accept_failed", %error, "no connection can be accepted");
                }
                tokio::time::sleep(BACKOFF).await;
                continue;
            }
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let place = match door.enter(peer.ip()) {
            Ok(place) => place,
            Err(refusal) => {
                door.refuse(peer, &refusal);
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let (door, out) = (Arc::clone(&door), out.clone());
        // In a task of its own, so that a handshake keeps no other connection waiting.
        tokio::spawn(async move {
            let refuse = |reason, detail| door.refuse(peer, &Refusal { reason, detail });
            let io = match &door.tls {
                None => Io::Plain(stream),
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => Io::Tls(Box::new(stream)),
                    Ok(Err(error)) => return refuse("tls_failed", error.to_string()),
                    Err(_) => return refuse("tls_timeout", "no TLS handshake within 10 s".to_owned()),
                },
            };
            let _ = out.send(Connection::new(io, peer, partition, place)).await;
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
    /// Ends with its sender, which [`Accepted::cut`] drops.
    cut: oneshot::Receiver<()>,
    /// Ends when the connection must have had a stream; `None`: it had one.
    no_stream: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    fn new(io: Io, peer: SocketAddr, partition: Partition, place: Place) -> Self {
        let (sender, cut) = oneshot::channel();
        let accepted = Accepted { peer, partition, streamed: Arc::default(), cut: Arc::new(Mutex::new(Some(sender))) };
        let no_stream = Some(Box::pin(tokio::time::sleep(FIRST_REQUEST)));
        Self { io, accepted, cut, no_stream, _place: place }
    }

    /// Ready with the reason when the connection is to end.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if Pin::new(&mut self.cut).poll(context).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "its client reads nothing"));
        }
        if self.accepted.streamed.load(Ordering::Relaxed) {
            self.no_stream = None;
        }
        let Some(no_stream) = &mut self.no_stream else { return Poll::Pending };
        ready!(no_stream.as_mut().poll(context));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xds::{limits::MaxBytes, pace::PaceRule};

    #[test]
    fn who_may_not_come_in_is_told_a_stable_word_and_who_leaves_makes_place() {
        let streams = Arc::new(Streams::new(PaceRule { duty: 1.0, max: Duration::ZERO }, MaxBytes::ANY));
        let most = MaxStreams { in_all: 2, per_address: 1 };
        let allow = vec!["10.0.0.0/8".parse().unwrap()];
        let door = Arc::new(Door::new(allow, most, None, streams));
        let enter = |address: &str| door.enter(address.parse().unwrap());
        let refused = |address: &str| enter(address).unwrap_err().reason;
        assert_eq!(refused("192.0.2.1"), "address_not_allowed");
        let mut places: Vec<_> = (0..2).map(|_| enter("10.0.0.1").unwrap()).collect();
        assert_eq!(refused("10.0.0.1"), "too_many_from_address");
        places.extend((0..2).map(|_| enter("10.0.0.2").unwrap()));
        assert_eq!(refused("10.0.0.3"), "too_many_connections");
        places.pop();
        assert!(enter("10.0.0.3").is_ok());
    }
}
