//! A stream of a client: requests in, responses out. `Order` decides what goes out and when; here are the transport, the
//! clock, status and logs.
//!
//! Responses are made when the transport can take them, from the view of that moment: a slow client gets the newest
//! state, not a queue of old ones.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use once_cell::sync::Lazy;
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Notify, watch},
    time::Instant,
};
use tonic::{Code, Status};

use crate::{
    proto::{envoy::config::core::v3::Node, google::protobuf::value},
    snapshot::{partition::Partition, version_of, view::Catalog},
    xds::{
        budget::Held,
        codec::{Outbox, Outgoing, Response},
        drain::{Drain, DrainReason},
        limits::{FIRST_REQUEST, SLOW, StreamLimits, TYPE_URL, cut},
        order::{Answer, BadRequest, Bounds, Due, Next, NextResponse, Order, PRIME_NONCE, PRIME_TYPE},
        requests::{Encoded, Requests},
        streams::{Registered, Streams},
        subscription::{Request, ResponseContent, Subscription, delta::Delta, sotw::Sotw},
        times::{Change, Handed},
    },
};

/// istiod keeps the first 100 responses of its life in a channel that nobody reads (`XDSUpdates` of its `adsc.go`).
/// Tiny responses in their place save it 100 times the payload. They go out as one piece: as 100 they would cost more than the
/// payload does.
static PRIMERS: [Lazy<Bytes>; 2] = [Lazy::new(primers::<Sotw>), Lazy::new(primers::<Delta>)];

fn primers<S: Subscription>() -> Bytes {
    let primer = |n| response::<S>(PRIME_TYPE, 0, format!("{PRIME_NONCE}{n}"), ResponseContent::default());
    (0..100).flat_map(|n| primer(n).framed()).flatten().collect()
}

/// How many names of a stream are looked up, or taken in, on the thread that serves other streams as well.
const LONG: usize = 4_096;
/// Bytes that a name takes, about.
const NAME: usize = 200;

/// Does work that may take long: then apart from the threads that serve other streams.
fn apart<T>(long: bool, work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread if long => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A stream, with what it needs from its server.
#[derive(Debug)]
pub(crate) struct Stream<C: Catalog> {
    pub(crate) view: watch::Receiver<C>,
    /// Signals that the view has changed in the stream's partition, and when.
    pub(crate) changes: watch::Receiver<Option<Instant>>,
    pub(crate) partition: Partition,
    pub(crate) drain: Drain,
    pub(crate) registered: Registered,
    pub(crate) streams: Arc<Streams>,
    pub(crate) prime: bool,
    pub(crate) limits: StreamLimits,
    /// Bytes that are kept of what the client asked for and said.
    pub(crate) kept: Held,
    pub(crate) outbox: Outbox,
    /// Notified when it may be the stream's turn to push.
    pub(crate) turn: Arc<Notify>,
}

/// Why a stream ends.
pub(crate) enum StreamEnd {
    /// The client is gone.
    Gone,
    /// The client reads too slowly, so that no status reaches it.
    Slow,
    /// The stream holds the oldest of too many pages.
    Pins,
    /// The server ends the stream, with a status for the client.
    Refused(Status),
}

/// The rest of a stream that was reset, until the transport takes notice of that. The transport asks for more only when the
/// client opens its window, so it may take notice late, and never if the client does not; and what it has in hand, of one page or
/// two, stays until then.
#[derive(Debug)]
pub(crate) struct Remains {
    registered: Registered,
    outbox: Outbox,
}

impl Remains {
    /// Waits until the transport has ended the stream (`true`), or until there are so many pages that this stream's must go.
    pub(crate) async fn gone(&self) -> bool {
        self.registered.holds_since(Some(Instant::now()));
        tokio::select! {
            () = self.outbox.gone() => true,
            () = self.registered.cut() => false,
        }
    }
}

/// When the last response of each type was handed to the transport.
type HandedBy = BTreeMap<Arc<str>, Arc<Handed>>;

/// When a response may go out.
enum Turn {
    Now,
    /// At this time, or when the stream is notified of its turn.
    At(Instant),
    /// Not before a request, or a change of the view.
    Never,
}

impl<C: Catalog> Stream<C> {
    /// Serves the stream until either side ends it. If the transport does not take the end, the stream is reset, and what is left
    /// of it until the transport notices is returned.
    pub(crate) async fn run<S: Subscription>(mut self, mut requests: Requests<S::Request>) -> Option<Remains> {
        self.registered.sends(self.outbox.unsent());
        match self.serve::<S>(&mut requests).await {
            StreamEnd::Gone => return None,
            StreamEnd::Slow => {
                self.streams.slow.fetch_add(1, Ordering::Relaxed);
                self.log_cut("client_reads_too_slowly");
            }
            StreamEnd::Pins => {
                self.streams.relieved.fetch_add(1, Ordering::Relaxed);
                self.log_cut("client_pins_pages");
            }
            StreamEnd::Refused(status) => {
                self.log_end(&status);
                self.outbox.send(Err(status));
                let told = tokio::time::timeout(SLOW, self.outbox.has_room());
                tokio::select! {
                    told = told => if told.is_ok() {
                        return None;
                    },
                    () = self.registered.cut() => {}
                }
            }
        }
        self.outbox.reset();
        self.registered.let_go();
        let Self { registered, outbox, .. } = self;
        Some(Remains { registered, outbox })
    }

    /// Logs that a client does not keep up, once a minute for each client.
    fn log_cut(&self, event: &'static str) {
        if self.registered.may_log(event, "") {
            let state = self.registered.state.lock();
            let (peer, node) = (state.peer, cut(&state.node, 80));
            tracing::warn!(event, ?peer, node, "a stream is ended, since its client does not keep up");
        }
    }

    /// Logs that the server ends the stream, once a minute for each client and reason.
    fn log_end(&self, status: &Status) {
        let (code, message) = (status.code(), cut(status.message(), 300));
        if !self.registered.may_log("stream_ended", code.description()) {
            return;
        }
        let (peer, node) = {
            let state = self.registered.state.lock();
            (state.peer, cut(&state.node, 80).to_owned())
        };
        match code {
            Code::ResourceExhausted => {
                tracing::warn!(
                    event = "stream_ended",
                    ?peer,
                    node,
                    ?code,
                    message,
                    "a stream that wants too much ends"
                );
            }
            _ => tracing::debug!(event = "stream_ended", ?peer, node, ?code, message, "a stream ends"),
        }
    }

    async fn serve<S: Subscription>(&mut self, requests: &mut Requests<S::Request>) -> StreamEnd {
        let first = loop {
            let first = tokio::select! {
                first = tokio::time::timeout(FIRST_REQUEST, requests.next()) => first,
                reason = self.drain.begun() => return StreamEnd::Refused(drained(reason)),
            };
            // A large request may take longer, and has a deadline of its own.
            if first.is_ok() || !requests.has_begun() {
                break first;
            }
        };
        let first = match first {
            Err(_) => return StreamEnd::Refused(Status::deadline_exceeded("no request within 10 s")),
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) => return StreamEnd::Gone,
            Ok(Err(status)) => return StreamEnd::Refused(status),
        };
        let bounds = Bounds { types: self.limits.types, response: self.limits.response };
        let (mut order, mut handed) = (Order::<C, S>::new(self.partition, bounds), HandedBy::new());
        if let Err(status) = self.take(&mut order, &handed, first, true).await {
            return StreamEnd::Refused(status);
        }
        let (turn, streams) = (Arc::clone(&self.turn), Arc::clone(&self.streams));
        loop {
            self.registered.holds_since(order.holds_since());
            let long = order.lookups(&self.view.borrow().clone()) > LONG;
            let due = {
                let _alone = if long { streams.alone().await } else { None };
                apart(long, || self.turn(&mut order))
            };
            tokio::select! {
                request = requests.next() => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = self.take(&mut order, &handed, request, false).await {
                            return StreamEnd::Refused(status);
                        }
                    }
                    Ok(None) => return StreamEnd::Gone,
                    // A broken connection, or a request that is no protobuf or too large.
                    Err(status) => return StreamEnd::Refused(status),
                },
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return StreamEnd::Refused(drained(DrainReason::Stopping));
                    }
                }
                has_room = self.outbox.has_room(), if matches!(due, Turn::Now) => {
                    if !has_room {
                        return StreamEnd::Gone;
                    }
                    let long = order.lookups(&self.view.borrow().clone()) > LONG;
                    let said = {
                        let _alone = if long { streams.alone().await } else { None };
                        apart(long, || self.say(&mut order, &mut handed))
                    };
                    if let Err(status) = self.kept.resize(order.kept()) {
                        return StreamEnd::Refused(status);
                    }
                    if let Some(said) = said {
                        self.outbox.send(Ok(said));
                    }
                }
                () = sleep_until(due.at()) => {}
                () = turn.notified(), if due.at().is_some() => {}
                () = sleep_until(self.outbox.late_at()) => {
                    if self.outbox.late_at().is_some_and(|at| at <= Instant::now()) {
                        return StreamEnd::Slow;
                    }
                }
                () = self.registered.cut() => return StreamEnd::Pins,
                reason = self.drain.begun() => return StreamEnd::Refused(drained(reason)),
            }
        }
    }

    /// Notes whose stream this is; whether the client is istiod's config client, which keeps what it is sent.
    /// "Only the first request on a stream is guaranteed to carry the node identifier."
    /// <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#basic-protocol-overview>
    fn identify(&mut self, node: Option<&Node>) -> Result<bool, Status> {
        let node = node.filter(|node| !node.id.is_empty());
        let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node id"))?;
        let generator = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("GENERATOR"));
        let generator = generator.and_then(|value| value.kind.as_ref());
        self.registered.identify(&node.id);
        Ok(matches!(generator, Some(value::Kind::StringValue(text)) if text == "api"))
    }

    /// Takes a request in, which may be the first of the stream; takes long where there are many names.
    async fn take<S: Subscription>(
        &mut self,
        order: &mut Order<C, S>,
        handed: &HandedBy,
        request: Encoded<S::Request>,
        first: bool,
    ) -> Result<(), Status> {
        // A request of few bytes may be about all names that the client has asked for.
        let long = request.cost().saturating_add(order.kept()) > LONG * NAME;
        let streams = Arc::clone(&self.streams);
        let _alone = if long { streams.alone().await } else { None };
        apart(long, || {
            let (request, held) = request.decode()?;
            if first {
                let keeps = self.identify(request.node())?;
                order.prime(keeps && self.prime);
            }
            self.request(order, handed, request)?;
            // The names that are kept of the request are charged for instead.
            drop(held);
            self.kept.resize(order.kept())
        })
    }

    fn request<S: Subscription>(
        &mut self,
        order: &mut Order<C, S>,
        handed: &HandedBy,
        request: S::Request,
    ) -> Result<(), Status> {
        let (type_url, now) = (&*cut(request.type_url(), TYPE_URL + 1).to_owned(), Instant::now());
        let received = order.request(request, now).map_err(|bad| match bad {
            BadRequest::NoType => Status::invalid_argument("type_url is missing"),
            BadRequest::LongType(bytes) => {
                Status::invalid_argument(format!("type_url has {bytes} bytes; {TYPE_URL} are allowed"))
            }
            BadRequest::TooManyTypes => Status::resource_exhausted(format!(
                "more than {} types on one stream (mox.limits.types)",
                self.limits.types
            )),
        })?;
        let Some(received) = received else { return Ok(()) };
        if let Some(answer) = received.answer {
            // An answered response has reached the transport, so the time is set.
            let handed = handed.get(type_url).and_then(|handed| handed.at()).unwrap_or(now);
            self.registered.state.lock().types.entry(type_url.to_owned()).or_default().ack_millis =
                Some((now - handed).as_millis() as u64);
            if let Some(pace) = self.registered.pace().filter(|_| received.served && !S::DELTA) {
                pace.lock().answered(self.registered.ticket, handed, now);
            }
            if answer == Answer::Ack && received.served {
                self.streams.times.acked(S::DELTA, handed, now);
            }
            if answer == Answer::Nack {
                self.streams.nacks.fetch_add(1, Ordering::Relaxed);
                self.log_nack(type_url, order.exchange(type_url).and_then(|(exchange, _)| exchange.error()));
            }
        }
        self.show(order, type_url, 0);
        Ok(())
    }

    /// Logs what a client says of a response that it does not accept, within 500 characters.
    fn log_nack(&self, type_url: &str, error: Option<&str>) {
        if self.registered.may_log("response_refused", type_url) {
            let node = &self.registered.state.lock().node;
            let (node, type_url, error) = (cut(node, 80), cut(type_url, 80), cut(error.unwrap_or_default(), 240));
            tracing::warn!(event = "response_refused", node, type_url, error, "a client does not accept a response");
        }
    }

    /// When the next response may go out. In state of the world, changes wait for their turn among the client's streams.
    fn turn<S: Subscription>(&self, order: &mut Order<C, S>) -> Turn {
        let now = Instant::now();
        // First the view, since its time is there before it.
        let view = self.view.borrow().clone();
        let published = self.changes.borrow().map_or(now, |published| published.min(now));
        let due = order.due(&view, published, now);
        let ticket = self.registered.ticket;
        let Some(pace) = self.registered.pace().filter(|_| !S::DELTA) else {
            return match due {
                Due::Asked | Due::Changed(_) => Turn::Now,
                Due::NotBefore(at) => Turn::At(at),
                Due::Nothing | Due::Undone => Turn::Never,
            };
        };
        match due {
            Due::Changed(since) => pace.lock().ask(ticket, since, now, &self.turn).map_or(Turn::Now, Turn::At),
            Due::Asked => {
                pace.lock().passed(ticket);
                Turn::Now
            }
            Due::NotBefore(at) => {
                pace.lock().passed(ticket);
                Turn::At(at)
            }
            Due::Undone => {
                // The change was undone before it was sent: give the turn back.
                pace.lock().close(ticket);
                Turn::Never
            }
            Due::Nothing => Turn::Never,
        }
    }

    /// Makes the next message for the transport, from the newest view.
    fn say<S: Subscription>(&mut self, order: &mut Order<C, S>, handed: &mut HandedBy) -> Option<Outgoing> {
        let view = self.view.borrow().clone();
        match order.next(&view, Instant::now()) {
            Next::Nothing => None,
            Next::Primers => Some(Outgoing::Framed(PRIMERS[usize::from(S::DELTA)].clone())),
            Next::TooLarge { type_url, bytes, first } => {
                if first && self.registered.may_log("response_too_large", &type_url) {
                    let (type_url, most) = (&*type_url, self.limits.response);
                    tracing::error!(
                        event = "response_too_large",
                        type_url,
                        bytes,
                        most,
                        "a response would be too large, so the last one stays; use mox.partitions"
                    );
                }
                self.show(order, &type_url, 0);
                None
            }
            Next::Response(NextResponse { type_url, version, nonce, content, since }) => {
                let times = || Arc::clone(&self.streams.times);
                let tells = since.map(|published| Change { published, delta: S::DELTA, times: times() });
                let mut response = response::<S>(&type_url, version, nonce.to_string(), content);
                response.handed = Arc::new(Handed::new(tells));
                self.show(order, &type_url, 1);
                handed.insert(type_url, Arc::clone(&response.handed));
                self.streams.pushes.fetch_add(1, Ordering::Relaxed);
                self.streams.bytes.fetch_add(response.size() as u64, Ordering::Relaxed);
                Some(Outgoing::Response(response))
            }
        }
    }

    /// Puts a type into status, after a request of it or after `pushes` responses.
    fn show<S: Subscription>(&self, order: &Order<C, S>, type_url: &str, pushes: u64) {
        let Some((exchange, too_large)) = order.exchange(type_url) else { return };
        let mut state = self.registered.state.lock();
        let shown = state.types.entry(type_url.to_owned()).or_default();
        shown.sent = exchange.sent().map(version_of);
        shown.acked = exchange.acked().map(version_of);
        shown.error = exchange.error().map(str::to_owned);
        shown.pushes += pushes;
        shown.too_large = too_large;
        shown.unacked_since = match (exchange.in_flight(), shown.unacked_since) {
            (true, known) if pushes == 0 => known,
            (in_flight, _) => in_flight.then(Instant::now),
        };
    }
}

impl Turn {
    fn at(&self) -> Option<Instant> {
        match self {
            Self::At(at) => Some(*at),
            Self::Now | Self::Never => None,
        }
    }
}

fn response<S: Subscription>(type_url: &str, version: u128, nonce: String, content: ResponseContent) -> Response {
    let (type_url, version) = (type_url.to_owned(), version_of(version));
    Response { type_url, version, nonce, content, delta: S::DELTA, handed: Arc::default() }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn drained(reason: DrainReason) -> Status {
    Status::unavailable(match reason {
        DrainReason::Stopping => "the server is stopping",
        DrainReason::Fenced => "this session server is cut off from its data, another is not",
    })
}

#[cfg(test)]
mod tests;
