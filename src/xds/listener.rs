//! Connections: who may connect, how many connections there may be, and for how long they may stay without a stream.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use ipnet::IpNet;
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::{
    snapshot::partition::Partition,
    xds::{
        frames::Frames,
        limits::{FIRST_REQUEST, HANDSHAKE, MaxStreams, cut},
        quiet::Quiet,
        streams::Streams,
        tls::Tls,
        workers::{Seat, Workers},
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
    /// Connections at once.
    most_connections: usize,
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
    /// How many streams are open on it.
    streams: Arc<watch::Sender<usize>>,
    cut: Arc<Mutex<Option<oneshot::Sender<&'static str>>>>,
}

/// An open stream of a connection, until it is dropped.
#[derive(Debug)]
pub struct OpenStream(Arc<watch::Sender<usize>>);

impl Accepted {
    /// Notes that a stream is opened on the connection.
    pub fn open(&self) -> OpenStream {
        self.streams.send_modify(|streams| *streams += 1);
        OpenStream(Arc::clone(&self.streams))
    }

    /// Ends the connection, whatever its client does.
    pub fn cut(&self, reason: &'static str) {
        if let Some(cut) = self.cut.lock().take() {
            // A connection that is gone needs no end.
            let _ = cut.send(reason);
        }
    }

    /// Waits until the connection has been without a stream for too long.
    async fn idle(&self) {
        let mut streams = self.streams.subscribe();
        loop {
            let none = streams.wait_for(|streams| *streams == 0).await.is_ok();
            let some = tokio::time::timeout(FIRST_REQUEST, streams.wait_for(|streams| *streams > 0)).await;
            if none && some.is_err() {
                return;
            }
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|streams| *streams -= 1);
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
        let most_connections = most_connections(most, getrlimit(Resource::Nofile).current);
        Self { allow, most, most_connections, tls, streams, open: Mutex::default(), quiet: Mutex::default() }
    }

    /// How many connections there may be at once.
    pub fn most_connections(&self) -> usize {
        self.most_connections
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Refusal> {
        let refusal = |reason, detail| Err(Refusal { reason, detail });
        if !self.allow.is_empty() && !self.allow.iter().any(|range| range.contains(&address)) {
            return refusal("address_not_allowed", "its address is not in mox.allow-cidrs".to_owned());
        }
        let mut open = self.open.lock();
        let MaxStreams { in_all, per_address } = self.most;
        if open.values().sum::<usize>() >= self.most_connections {
            let most = self.most_connections;
            let why = match most < 2 * in_all {
                true => "half of the files that the process may open (ulimit -n)",
                false => "twice mox.limits.streams",
            };
            return refusal("too_many_connections", format!("there are {most} connections, {why}"));
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

    /// Counts a connection that is ended since its client sends too many frames, and logs it once a minute for each address.
    fn flooded(&self, peer: SocketAddr) {
        self.streams.floods.fetch_add(1, Ordering::Relaxed);
        if self.may_log("too_many_frames", Some(peer.ip())) {
            tracing::warn!(event = "connection_flooded", %peer, "a connection is ended, since its client sends too many frames");
        }
    }

    fn may_log(&self, reason: &'static str, address: Option<IpAddr>) -> bool {
        self.quiet.lock().may_log((reason, address), Instant::now())
    }
}

/// Connections at once: twice the streams, but half of the files that the process may open at most, since it opens others, too.
fn most_connections(most: MaxStreams, files: Option<u64>) -> usize {
    let half = files.map_or(usize::MAX, |files| usize::try_from(files / 2).unwrap_or(usize::MAX));
    (2 * most.in_all).min(half.max(1))
}

/// Accepts connections of one port until nobody takes them.
pub async fn accept(listener: TcpListener, partition: Partition, door: Arc<Door>, workers: Arc<Workers<Connection>>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = workers.closed() => return,
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
        let (door, Some((runtime, out, seat))) = (Arc::clone(&door), workers.seat()) else { return };
        // In a task of its own, so that a handshake keeps no other connection waiting.
        runtime.spawn(async move {
            let refuse = |reason, detail| door.refuse(peer, &Refusal { reason, detail });
            // A socket's readiness goes to the runtime that it is registered with, so it moves to that of its thread.
            let stream = match stream.into_std().and_then(TcpStream::from_std) {
                Ok(stream) => stream,
                Err(error) => return refuse("accept_failed", error.to_string()),
            };
            let io = match &door.tls {
                None => Io::Plain(stream),
                Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => Io::Tls(Box::new(stream)),
                    Ok(Err(error)) => return refuse("tls_failed", error.to_string()),
                    Err(_) => return refuse("tls_timeout", "no TLS handshake within 10 s".to_owned()),
                },
            };
            let (connection, accepted, ended) = Connection::new(io, peer, partition, place, seat);
            if out.send(connection).await.is_err() {
                return;
            }
            tokio::select! {
                _ = ended => {}
                () = accepted.idle() => accepted.cut("it has no stream"),
            }
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
    /// Ready with the reason when the connection is to end.
    cut: oneshot::Receiver<&'static str>,
    /// The reason, once it is to end.
    over: Option<&'static str>,
    frames: Frames,
    place: Place,
    _seat: Seat,
    /// Dropped with the connection.
    _open: oneshot::Sender<()>,
}

impl Connection {
    /// A connection, what its streams know of it, and what ends with it.
    fn new(
        io: Io,
        peer: SocketAddr,
        partition: Partition,
        place: Place,
        seat: Seat,
    ) -> (Self, Accepted, oneshot::Receiver<()>) {
        let ((sender, cut), (open, ended)) = (oneshot::channel(), oneshot::channel());
        let cut_by = Arc::new(Mutex::new(Some(sender)));
        let accepted = Accepted { peer, partition, streams: Arc::default(), cut: cut_by };
        let frames = Frames::new(Instant::now());
        let connection =
            Self { io, accepted: accepted.clone(), cut, over: None, frames, place, _seat: seat, _open: open };
        (connection, accepted, ended)
    }

    /// Ready with the reason when the connection is to end.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.over.is_none() {
            self.over = Some(ready!(Pin::new(&mut self.cut).poll(context)).unwrap_or("it is over"));
        }
        Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, self.over.unwrap_or_default()))
    }

    /// Notes what was read; an error if the client sends more frames than it may.
    fn count(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.frames.read(bytes, Instant::now()) {
            return Ok(());
        }
        self.over = Some("its client sends too many frames");
        self.place.door.flooded(self.accepted.peer);
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its client sends too many frames"))
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
        let before = buffer.filled().len();
        ready!(match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
        })?;
        Poll::Ready(self.count(&buffer.filled()[before..]))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = ready!(match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(context, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(context, bytes),
        })?;
        self.frames.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = ready!(match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(context, slices),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(context, slices),
        })?;
        self.frames.sent(sent);
        Poll::Ready(Ok(sent))
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

    #[test]
    fn connections_leave_half_of_the_files_to_others() {
        let most = MaxStreams { in_all: 4_096, per_address: 1_024 };
        let of = |files| most_connections(most, files);
        assert_eq!(
            [of(None), of(Some(u64::MAX)), of(Some(65_536)), of(Some(1_024)), of(Some(0))],
            [8_192, 8_192, 8_192, 512, 1]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_while_it_has_no_stream_whether_it_had_one_or_not() {
        let accepted = || Accepted {
            peer: ([127, 0, 0, 1], 1).into(),
            partition: Partition::WHOLE,
            streams: Arc::default(),
            cut: Arc::default(),
        };
        let begin = Instant::now();
        accepted().idle().await;
        assert_eq!(begin.elapsed(), FIRST_REQUEST);
        let (accepted, begin) = (accepted(), Instant::now());
        let streams = accepted.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FIRST_REQUEST / 2).await;
            let (one, two) = (streams.open(), streams.open());
            tokio::time::sleep(FIRST_REQUEST * 5).await;
            drop(one);
            tokio::time::sleep(FIRST_REQUEST * 5).await;
            drop(two);
        });
        accepted.idle().await;
        assert_eq!(begin.elapsed(), FIRST_REQUEST * 23 / 2);
    }
}
