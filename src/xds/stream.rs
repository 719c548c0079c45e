//! One stream of one client.
//!
//! Responses are made when the transport can take them, from the view of that moment: a slow client gets the newest
//! state, not a queue of old ones.

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering};

use bytes::Bytes;
use once_cell::sync::Lazy;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tonic::{Status, Streaming};

use crate::{
    part::Part,
    proto::{envoy::config::core::v3::Node, google::protobuf::value},
    snapshot::{Set, Snapshot, version_of},
    xds::{
        Catalog, MESH_CONFIG, PRIME_TYPE,
        codec::{Flow, Response, Said},
        drain::{Drain, DrainReason},
        limits::{FIRST_REQUEST, REFUSED, SLOW, StreamLimits},
        streams::{Registered, Streams},
        subscription::{Content, Request, Subscription, delta::Delta, sotw::Sotw},
    },
};

/// istiod keeps the first 100 responses of its life in a channel that nobody reads (`XDSUpdates` of its `adsc.go`).
/// Tiny ones in their place save it 100 times the payload. One after the other they would cost more than the payload does.
static PRIMERS: [Lazy<Bytes>; 2] = [Lazy::new(primers::<Sotw>), Lazy::new(primers::<Delta>)];
const PRIME_NONCE: &str = "prime-";

fn primers<S: Subscription>() -> Bytes {
    let primer = |n| response::<S>(PRIME_TYPE.to_owned(), 0, format!("{PRIME_NONCE}{n}"), Content::default());
    (0..100).flat_map(|n| primer(n).framed()).flatten().collect()
}

/// What becomes of the primers on a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Priming {
    /// None so far.
    No,
    /// They go out before anything else.
    Due,
    /// They went out.
    Done,
}

/// What a stream needs from its server.
#[derive(Debug)]
pub(crate) struct Stream<C: Catalog> {
    pub(crate) view: watch::Receiver<C>,
    /// Changes when the view does, in the part that the stream is of.
    pub(crate) changes: watch::Receiver<()>,
    pub(crate) part: Part,
    pub(crate) drain: Drain,
    pub(crate) registered: Registered,
    pub(crate) streams: Arc<Streams>,
    pub(crate) prime: bool,
    pub(crate) limits: StreamLimits,
    pub(crate) flow: Arc<Flow>,
    pub(crate) out: mpsc::Sender<Result<Said, Status>>,
    /// Notified when it may be the stream's turn to push.
    pub(crate) turn: Arc<Notify>,
}

/// Why a stream ends.
pub(crate) enum End {
    /// The client is gone; there is nobody to tell.
    Gone,
    /// The client reads nothing; there is no way to tell it.
    Slow,
    /// To be said to the client.
    Refused(Status),
}

/// One type URL that the client asked for.
struct Wanted<K, S> {
    kind: Option<K>,
    subscription: S,
    /// When the last response was handed to the transport; until it is answered.
    handed: Option<Arc<std::sync::OnceLock<Instant>>>,
    /// The newest set is too large for a response.
    too_large: Option<u128>,
}

struct State<C: Catalog, S> {
    types: BTreeMap<String, Wanted<C::Kind, S>>,
    /// Set by the first request: whether the client is istiod's config client, which keeps what it is sent.
    generator_api: Option<bool>,
    nonce: u64,
    priming: Priming,
    /// What the client was sent last of the kinds that others rest on.
    beneath: BTreeMap<C::Kind, Set>,
    /// The view whose other resources are to follow those they rest on.
    follow: Option<C>,
    /// Since when a change is there that was not sent.
    pending: Option<Instant>,
    /// Until when changes wait since the client did not accept a response.
    refused_until: Option<Instant>,
}

impl<C: Catalog, S> Default for State<C, S> {
    fn default() -> Self {
        Self {
            types: BTreeMap::new(),
            generator_api: None,
            nonce: 0,
            priming: Priming::No,
            beneath: BTreeMap::new(),
            follow: None,
            pending: None,
            refused_until: None,
        }
    }
}

impl<C: Catalog, S: Subscription> State<C, S> {
    /// Whether the client has yet to answer a response of what rests on others.
    fn unanswered(&self) -> bool {
        let rests = |kind: Option<C::Kind>| C::ABOVE.iter().any(|above| kind == Some(*above));
        self.types.values().any(|wanted| rests(wanted.kind) && wanted.subscription.exchange().in_flight())
    }
}

/// When a response may go out.
enum Due {
    Now,
    /// Then, or when its turn comes.
    At(Instant),
    Nothing,
}

impl<C: Catalog> Stream<C> {
    /// Serves the stream until either side ends it; whether the connection is to be cut.
    pub(crate) async fn run<S: Subscription>(mut self, mut requests: Streaming<S::Request>) -> bool {
        match self.serve::<S>(&mut requests).await {
            End::Gone => false,
            End::Slow => {
                self.streams.slow.fetch_add(1, Ordering::Relaxed);
                let peer = self.registered.state.lock().peer;
                tracing::warn!(?peer, "a client has read nothing of what it was sent for {} s", SLOW.as_secs());
                true
            }
            End::Refused(status) => {
                tracing::debug!(code = ?status.code(), message = status.message(), "a stream ends");
                self.flow.begin();
                let told = self.out.send(Err(status));
                tokio::time::timeout(SLOW, told).await.is_err()
            }
        }
    }

    async fn serve<S: Subscription>(&mut self, requests: &mut Streaming<S::Request>) -> End {
        let mut state = State::<C, S>::default();
        let first = tokio::select! {
            first = tokio::time::timeout(FIRST_REQUEST, requests.message()) => first,
            reason = self.drain.begun() => return End::Refused(drained(reason)),
        };
        match first {
            Err(_) => return End::Refused(Status::deadline_exceeded("no request within 10 s")),
            Ok(Ok(Some(request))) => {
                if let Err(status) = self.request(&mut state, &request) {
                    return End::Refused(status);
                }
            }
            Ok(Ok(None)) => return End::Gone,
            Ok(Err(status)) => return End::Refused(status),
        }
        let turn = Arc::clone(&self.turn);
        loop {
            let due = self.due(&mut state);
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = self.request(&mut state, &request) {
                            return End::Refused(status);
                        }
                    }
                    Ok(None) => return End::Gone,
                    // Also a request that is no protobuf or too large; of a client that hung up nobody hears it.
                    Err(status) => return End::Refused(status),
                },
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return End::Refused(drained(DrainReason::Stopping));
                    }
                }
                permit = self.out.clone().reserve_owned(), if matches!(due, Due::Now) => {
                    let Ok(permit) = permit else { return End::Gone };
                    if let Some(said) = self.say(&mut state) {
                        self.flow.begin();
                        permit.send(Ok(said));
                    }
                }
                () = sleep_until(due.at()) => {}
                () = turn.notified(), if due.at().is_some() => {}
                () = sleep_until(self.flow.stalls_at(SLOW)) => {
                    if self.flow.stalls_at(SLOW).is_some_and(|at| at <= Instant::now()) {
                        return End::Slow;
                    }
                }
                reason = self.drain.begun() => return End::Refused(drained(reason)),
            }
        }
    }

    /// Takes a request in.
    fn request<S: Subscription>(&mut self, state: &mut State<C, S>, request: &S::Request) -> Result<(), Status> {
        self.identify(state, request.node())?;
        let type_url = request.type_url();
        if type_url.is_empty() {
            return Err(Status::invalid_argument("type_url is missing"));
        }
        let primed = state.priming != Priming::No && type_url == PRIME_TYPE;
        if type_url == MESH_CONFIG || (primed && request.nonce().starts_with(PRIME_NONCE)) {
            return Ok(());
        }
        let known = state.types.contains_key(type_url);
        if !known && state.types.len() >= self.limits.types {
            return Err(Status::resource_exhausted(format!(
                "more than {} types on one stream (mox.limits.types)",
                self.limits.types
            )));
        }
        let kind = C::kind(type_url);
        let wanted = state.types.entry(type_url.to_owned()).or_insert_with(|| Wanted {
            kind,
            subscription: S::default(),
            handed: None,
            too_large: None,
        });
        if wanted.subscription.request(request) {
            let now = Instant::now();
            // One that was answered was handed over.
            let handed = wanted.handed.take().and_then(|handed| handed.get().copied()).unwrap_or(now);
            self.registered.state.lock().types.entry(type_url.to_owned()).or_default().ack_millis =
                Some((now - handed).as_millis() as u64);
            if let Some(pace) = self.registered.pace().filter(|_| kind.is_some() && !S::DELTA) {
                pace.lock().answered(self.registered.ticket, handed, now);
            }
            if let Some(error) = request.error() {
                state.refused_until = Some(now + REFUSED);
                self.streams.nacks.fetch_add(1, Ordering::Relaxed);
                let (node, type_url) = (&*self.registered.state.lock().node, type_url);
                tracing::warn!(node, type_url, error = error.message, "a client does not accept a response");
            }
        }
        self.show(type_url, &state.types[type_url], 0);
        let asks_services = C::ABOVE.iter().any(|above| kind == Some(*above));
        if asks_services && !known && self.prime && state.generator_api == Some(true) && state.priming == Priming::No {
            state.priming = Priming::Due;
        }
        Ok(())
    }

    /// "Only the first request on a stream is guaranteed to carry the node identifier."
    fn identify<S>(&mut self, state: &mut State<C, S>, node: Option<&Node>) -> Result<(), Status> {
        if state.generator_api.is_some() {
            return Ok(());
        }
        let node = node.filter(|node| !node.id.is_empty());
        let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node id"))?;
        let generator = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("GENERATOR"));
        let generator = generator.and_then(|value| value.kind.as_ref());
        self.registered.identify(&node.id);
        state.generator_api = Some(matches!(generator, Some(value::Kind::StringValue(text)) if text == "api"));
        Ok(())
    }

    /// Whether and when a response can go out: at once what was asked for, at its time what has changed.
    fn due<S: Subscription>(&self, state: &mut State<C, S>) -> Due {
        if state.priming == Priming::Due {
            return Due::Now;
        }
        let view = self.view.borrow().clone();
        let unanswered = state.unanswered();
        let (mut wants, mut asked, mut waits) = (false, false, false);
        let State { types, beneath, .. } = &mut *state;
        for wanted in types.values_mut() {
            let Some(set) = self.sayable(wanted.kind, &view, unanswered, beneath) else { continue };
            if wanted.too_large != Some(set.sum()) && wanted.subscription.wants(&set) {
                wants = true;
                asked |= wanted.subscription.asked();
            }
            let exchange = wanted.subscription.exchange();
            waits |= exchange.in_flight() && exchange.sent() != Some(set.sum());
        }
        let pace = self.registered.pace().filter(|_| !S::DELTA);
        if waits && pace.is_some() {
            // A change is as old as it is, though the one before is not answered yet.
            state.pending.get_or_insert_with(Instant::now);
        }
        let now = Instant::now();
        if let Some(until) = state.refused_until.filter(|until| wants && !asked && *until > now) {
            state.pending.get_or_insert(now);
            pace.iter().for_each(|pace| pace.lock().passed(self.registered.ticket));
            return Due::At(until);
        }
        match (wants, pace) {
            (true, Some(pace)) if !asked => {
                let since = *state.pending.get_or_insert(now);
                match pace.lock().ask(self.registered.ticket, since, now, &self.turn) {
                    None => Due::Now,
                    Some(at) => Due::At(at),
                }
            }
            (true, pace) => {
                if state.pending.take().is_some()
                    && let Some(pace) = pace
                {
                    pace.lock().passed(self.registered.ticket);
                }
                Due::Now
            }
            (false, _) if waits => Due::Nothing,
            (false, pace) => {
                if state.pending.take().is_some()
                    && let Some(pace) = pace
                {
                    // It had its turn, maybe, and what it was for is as it was before.
                    pace.lock().close(self.registered.ticket);
                }
                Due::Nothing
            }
        }
    }

    /// The resources of a type that this stream may have; `None` while nothing may be said about them.
    fn set(&self, kind: Option<C::Kind>, view: &C) -> Option<Set> {
        let snapshot = match kind {
            Some(kind) => Arc::clone(view.resources(kind)?),
            None => Snapshot::none(),
        };
        Some(Set::new(snapshot, self.part))
    }

    /// The same, without what may not be said yet: while a response of what rests on a kind is unanswered, that something of it
    /// is gone.
    fn sayable(
        &self,
        kind: Option<C::Kind>,
        view: &C,
        unanswered: bool,
        beneath: &BTreeMap<C::Kind, Set>,
    ) -> Option<Set> {
        let set = self.set(kind, view)?;
        let old = kind.and_then(|kind| beneath.get(&kind)).filter(|_| unanswered);
        Some(match old {
            Some(old) => set.with_all_of(old),
            None => set,
        })
    }

    /// What goes out next. What others rest on goes before them if it is new and after them if it is gone, so while both are
    /// due there are three responses: the old and the new of it, the others, and the new alone.
    fn choose<S: Subscription>(&self, state: &mut State<C, S>) -> Option<(String, Set)> {
        let unanswered = state.unanswered();
        let State { types, beneath, follow, .. } = state;
        let mut find = |kind: Option<C::Kind>, set: &Set| {
            let wants = |wanted: &mut Wanted<C::Kind, S>| {
                wanted.kind == kind && wanted.too_large != Some(set.sum()) && wanted.subscription.wants(set)
            };
            let found = types.iter_mut().find_map(|(type_url, wanted)| wants(wanted).then_some(type_url));
            found.map(|type_url| (type_url.clone(), set.clone()))
        };
        // Empty, once and at once: istiod waits for an answer to each type.
        if let Some(other) = self.set(None, &self.view.borrow()).and_then(|set| find(None, &set)) {
            return Some(other);
        }
        let current = self.view.borrow().clone();
        // The view that was begun with is finished first, however fast new ones come.
        for view in follow.take().into_iter().chain([current.clone()]) {
            for above in C::ABOVE {
                let Some(chosen) = self.set(Some(*above), &view).and_then(|set| find(Some(*above), &set)) else {
                    continue;
                };
                for kind in C::BENEATH {
                    let Some(new) = self.set(Some(*kind), &view) else { continue };
                    let set = match beneath.get(kind) {
                        Some(old) if find(Some(*kind), &new).is_some() => new.with_all_of(old),
                        _ => new,
                    };
                    if let Some(first) = find(Some(*kind), &set) {
                        beneath.insert(*kind, set);
                        *follow = Some(view);
                        return Some(first);
                    }
                }
                return Some(chosen);
            }
        }
        for kind in C::BENEATH {
            let set = self.sayable(Some(*kind), &current, unanswered, beneath);
            if let Some(chosen) = set.and_then(|set| find(Some(*kind), &set)) {
                beneath.insert(*kind, chosen.1.clone());
                return Some(chosen);
            }
        }
        None
    }

    fn say<S: Subscription>(&mut self, state: &mut State<C, S>) -> Option<Said> {
        if state.priming == Priming::Due {
            state.priming = Priming::Done;
            return Some(Said::Framed(PRIMERS[usize::from(S::DELTA)].clone()));
        }
        let (type_url, set) = self.choose(state)?;
        let wanted = state.types.get_mut(&type_url)?;
        let all = !S::DELTA || wanted.subscription.asked();
        if all && set.bytes() > self.limits.response {
            // A part of the truth would delete the rest, so the client keeps what it has.
            if wanted.too_large.replace(set.sum()).is_none() {
                let (bytes, most) = (set.bytes(), self.limits.response);
                tracing::error!(
                    type_url,
                    bytes,
                    most,
                    "a response would be too large, so the last one stays; use mox.partitions"
                );
            }
            self.show(&type_url, wanted, 0);
            return None;
        }
        wanted.too_large = None;
        state.nonce += 1;
        let content = wanted.subscription.respond(&set, state.nonce);
        let sent = wanted.subscription.exchange().sent().unwrap_or_default();
        let response = response::<S>(type_url.clone(), sent, state.nonce.to_string(), content);
        wanted.handed = Some(Arc::clone(&response.handed));
        self.show(&type_url, wanted, 1);
        self.streams.pushes.fetch_add(1, Ordering::Relaxed);
        self.streams.bytes.fetch_add(response.size() as u64, Ordering::Relaxed);
        // What is left is newer than what goes out now.
        state.pending = None;
        Some(Said::Response(response))
    }

    fn show<S: Subscription>(&self, type_url: &str, wanted: &Wanted<C::Kind, S>, pushes: u64) {
        let exchange = wanted.subscription.exchange();
        let mut state = self.registered.state.lock();
        let shown = state.types.entry(type_url.to_owned()).or_default();
        shown.sent = exchange.sent().map(version_of);
        shown.acked = exchange.acked().map(version_of);
        shown.error = exchange.error().map(str::to_owned);
        shown.pushes += pushes;
        shown.too_large = wanted.too_large.is_some();
        shown.unacked_since = match (exchange.in_flight(), shown.unacked_since) {
            (true, known) if pushes == 0 => known,
            (in_flight, _) => in_flight.then(Instant::now),
        };
    }
}

impl Due {
    fn at(&self) -> Option<Instant> {
        match self {
            Self::At(at) => Some(*at),
            Self::Now | Self::Nothing => None,
        }
    }
}

fn response<S: Subscription>(type_url: String, version: u128, nonce: String, content: Content) -> Response {
    let (version, content) = (version_of(version), Arc::new(content));
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
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
        time::Duration,
    };

    use bytes::{BufMut, BytesMut};
    use http_body::Frame;
    use prost::Message;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::{
        proto::{envoy::service::discovery::v3::DiscoveryRequest, istio::networking::v1alpha3::ServiceEntry},
        snapshot::Resource,
        view::View,
        xds::{codec::RequestDecoder, limits::MaxStreams, pace::Rule, parts::Parts},
    };

    /// Says what is sent to it, and stays open.
    struct Says(mpsc::UnboundedReceiver<DiscoveryRequest>);

    impl http_body::Body for Says {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let Poll::Ready(Some(request)) = self.0.poll_recv(context) else { return Poll::Pending };
            let (body, mut message) = (request.encode_to_vec(), BytesMut::new());
            message.put_u8(0);
            message.put_u32(body.len() as u32);
            message.put_slice(&body);
            Poll::Ready(Some(Ok(Frame::data(message.freeze()))))
        }
    }

    /// What a stream is connected to.
    struct Connected {
        streams: Arc<Streams>,
        view: watch::Sender<View>,
        parts: Parts,
        says: mpsc::UnboundedSender<DiscoveryRequest>,
        hears: mpsc::Receiver<Result<Said, Status>>,
        ended: JoinHandle<bool>,
        _stops: [watch::Sender<bool>; 2],
    }

    fn stream() -> Connected {
        let (says, said) = mpsc::unbounded_channel();
        let requests =
            Streaming::new_request(RequestDecoder::default(), tonic::body::Body::new(Says(said)), None, None);
        let streams = Arc::new(Streams::new(Rule { duty: 1.0, max: SLOW }));
        let most = MaxStreams { in_all: 1, per_address: 1 };
        let (view, parts) = (watch::Sender::new(View { shown: true, ..View::default() }), Parts::default());
        let (draining, fenced) = (watch::Sender::new(false), watch::Sender::new(false));
        let (out, hears) = mpsc::channel(1);
        let stream = Stream {
            view: view.subscribe(),
            changes: parts.subscribe(Part::WHOLE),
            part: Part::WHOLE,
            drain: Drain::new(draining.subscribe(), fenced.subscribe()),
            registered: streams.register(None, Part::WHOLE, false, most).unwrap(),
            streams: Arc::clone(&streams),
            prime: false,
            limits: StreamLimits { streams: most, types: 1, request: 1 << 20, response: 1 << 20 },
            flow: Arc::default(),
            out,
            turn: Arc::default(),
        };
        let ended = tokio::spawn(stream.run::<Sotw>(requests));
        Connected { streams, view, parts, says, hears, ended, _stops: [draining, fenced] }
    }

    fn asks(type_url: &str) -> DiscoveryRequest {
        let node = Some(Node { id: "test".into(), ..Node::default() });
        DiscoveryRequest { node, type_url: type_url.into(), ..Default::default() }
    }

    /// How the stream of a client ends that says this, and whether its connection is cut.
    async fn end(says: Option<DiscoveryRequest>) -> (bool, Option<tonic::Code>, Duration) {
        let begin = Instant::now();
        let mut stream = stream();
        says.into_iter().for_each(|request| stream.says.send(request).unwrap());
        let cut = (&mut stream.ended).await.unwrap();
        let status = stream.hears.recv().await.and_then(Result::err).map(|status| status.code());
        assert!(stream.streams.list().is_empty());
        (cut, status, begin.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_refuses_is_left_alone_for_a_while() {
        let mut stream = stream();
        let mut change = {
            let mut made = 0;
            move |stream: &Connected| {
                made += 1;
                let old = stream.view.borrow().clone();
                let entry = ServiceEntry { hosts: vec![format!("{made}.test")], ..ServiceEntry::default() };
                let entry = Resource::service_entry("a/b".into(), BTreeMap::new(), BTreeMap::new(), &entry);
                let changes = [((0, "a/b".into()), Some(entry))].into();
                let new = View { service_entries: Arc::new(old.service_entries.with(&changes)), ..old.clone() };
                stream.view.send_replace(new.clone());
                stream.parts.tell(&old, &new);
            }
        };
        /// The nonce of the next response, and what has passed until it came.
        async fn heard(stream: &mut Connected) -> (String, Duration) {
            let begin = Instant::now();
            match stream.hears.recv().await {
                Some(Ok(Said::Response(response))) => (response.nonce, begin.elapsed()),
                other => panic!("{other:?}"),
            }
        }
        let answer = |nonce: &str, refused: bool| DiscoveryRequest {
            response_nonce: nonce.into(),
            error_detail: refused.then(Default::default),
            ..asks("networking.istio.io/v1alpha3/ServiceEntry")
        };
        change(&stream);
        stream.says.send(answer("", false)).unwrap();
        assert_eq!(heard(&mut stream).await.0, "1");
        stream.says.send(answer("1", true)).unwrap();
        tokio::time::sleep(REFUSED / 10).await;
        change(&stream);
        tokio::time::sleep(REFUSED / 10).await;
        change(&stream);
        let (nonce, waited) = heard(&mut stream).await;
        assert_eq!(nonce, "2");
        assert!(waited >= REFUSED / 2 && waited <= REFUSED, "{waited:?}");
        stream.says.send(answer("2", false)).unwrap();
        tokio::time::sleep(REFUSED / 10).await;
        change(&stream);
        let (nonce, waited) = heard(&mut stream).await;
        assert!(
            nonce == "3" && waited < REFUSED / 10,
            "one response for both changes, and then as ever: {nonce} {waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_let_go() {
        let (cut, status, after) = end(None).await;
        assert_eq!(
            (cut, status, after.as_secs()),
            (false, Some(tonic::Code::DeadlineExceeded), FIRST_REQUEST.as_secs())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut() {
        let (cut, status, after) = end(Some(asks("x"))).await;
        assert_eq!((cut, status, after.as_secs()), (true, None, SLOW.as_secs()));
    }
}
