//! Who is connected: for status, for limits, and for what the streams of one client share.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit, watch},
    time::Instant,
};

use crate::{
    snapshot::{partition::Partition, view::Catalog},
    xds::{
        budget::Budget,
        codec::Unsent,
        limits::{MaxBytes, MaxStreams},
        pace::{Pace, PaceRule, Ticket},
        quiet::Quiet,
        times::Times,
    },
};

/// The state of one type on one stream.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeState {
    /// Version of the last response.
    pub sent: Option<Arc<str>>,
    /// Version of the last accepted response.
    pub acked: Option<Arc<str>>,
    /// The client's words on the last response, if it did not accept it.
    pub error: Option<String>,
    /// Responses so far.
    pub pushes: u64,
    /// How long the client took to answer the last response that it answered, in milliseconds.
    pub ack_millis: Option<u64>,
    /// For how long the last response is unanswered, in milliseconds. However long, the stream stays.
    pub unacked_millis: Option<u64>,
    /// When the unanswered response went out.
    #[serde(skip)]
    pub unacked_since: Option<Instant>,
    /// The newest set is too large for a response, so that the last one stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub too_large: bool,
}

impl TypeState {
    fn is_unacknowledged(&self) -> bool {
        self.sent.is_some() && self.sent != self.acked
    }
}

/// The state of one stream.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamState {
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// The client's own name for itself; not unique.
    pub node: String,
    /// `all`, or which partition of how many.
    pub partition: Partition,
    /// Whether it is the incremental variant.
    pub delta: bool,
    /// The types that the client asked for, by type URL.
    pub types: BTreeMap<String, TypeState>,
}

impl StreamState {
    /// About as many bytes as it takes to show this.
    fn size(&self) -> usize {
        let of_type =
            |(url, state): (&String, &TypeState)| 256 + url.len() + state.error.as_ref().map_or(0, String::len);
        128 + self.node.len() + self.types.iter().map(of_type).sum::<usize>()
    }
}

/// The streams of one client, and whether they make sense together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientState {
    /// The client's address.
    pub address: Option<IpAddr>,
    /// The client's own name for itself.
    pub node: String,
    /// How many streams the client has.
    pub streams: usize,
    /// The partitions that the streams are of.
    pub partitions: BTreeSet<Partition>,
    /// The mistake in the partitions; `None`: they are everything, each once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong: Option<&'static str>,
}

/// All streams in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Open streams.
    pub streams: usize,
    /// Clients that have any.
    pub clients: usize,
    /// Clients whose streams make no sense together.
    pub wrong: usize,
    /// Types on streams whose last response was not accepted, or not yet.
    pub unacknowledged: usize,
    /// Types on streams that keep their last response, since the newest set is too large for one.
    pub too_large: usize,
}

/// The mistake in the partitions that a client takes; `None`: they are everything, each once.
fn wrong(partitions: &BTreeSet<Partition>) -> Option<&'static str> {
    let counts: BTreeSet<usize> = partitions.iter().map(|partition| partition.count()).collect();
    match counts.first() {
        Some(1) if counts.len() > 1 => Some("it takes everything and partitions beside it"),
        _ if counts.len() > 1 => Some("it takes partitions of different numbers of partitions"),
        Some(count) if partitions.len() < *count => Some("it does not take every partition"),
        _ => None,
    }
}

/// For how long there must be too many old pages before a stream is ended, and a tenth of how long that may take before the next one is.
const RELIEF: Duration = Duration::from_millis(10);

/// A client: its address and its own name for itself.
type Client = (Option<IpAddr>, String);

/// An open stream as the others see it.
#[derive(Debug)]
struct Open {
    address: Option<IpAddr>,
    state: Arc<Mutex<StreamState>>,
    holds: Arc<Holds>,
}

/// Whether a stream holds pages that may be old, until it lets go of them. The rest of the stream then has another of these,
/// so that no notice that was meant for the stream reaches its rest.
#[derive(Debug, Default)]
struct Holds {
    /// Since when, but for what is not sent yet.
    since: Mutex<Option<Instant>>,
    unsent: OnceLock<Unsent>,
    /// Whether the stream was told to end.
    told: AtomicBool,
    /// Tells the stream that it is to end.
    cut: Notify,
    /// Tells that the stream holds nothing any more.
    gone: Notify,
}

impl Holds {
    /// Since when the stream holds pages; `None`: it holds none, or is about to end.
    fn since(&self) -> Option<Instant> {
        let unsent = self.unsent.get().and_then(Unsent::since);
        let since = self.since.lock().into_iter().chain(unsent).min();
        since.filter(|_| !self.told.load(Ordering::Relaxed))
    }
}

/// All streams of a server.
#[derive(Debug)]
pub struct Streams {
    open: Mutex<BTreeMap<Ticket, Open>>,
    /// The pace that streams of a client share; several where its streams make no sense together.
    paces: Mutex<HashMap<Client, Vec<Weak<Mutex<Pace>>>>>,
    rule: PaceRule,
    next: AtomicU64,
    /// Which lines were logged, by event, client and what they are about.
    quiet: Mutex<Quiet<(&'static str, Client, String)>>,
    /// Bytes that streams make us keep.
    pub budget: Arc<Budget>,
    /// Held by the stream that does work that takes long.
    long: Semaphore,
    most: MaxBytes,
    /// How long responses took.
    pub times: Arc<Times>,
    /// Responses sent, without priming.
    pub pushes: AtomicU64,
    /// Bytes of the responses sent.
    pub bytes: AtomicU64,
    /// Responses that a client did not accept.
    pub nacks: AtomicU64,
    /// Streams ended since their client read too slowly.
    pub slow: AtomicU64,
    /// Streams ended since they held the oldest of too many pages.
    pub relieved: AtomicU64,
    /// Connections ended since their client sent too many frames.
    pub floods: AtomicU64,
    /// Connections and streams that were refused, for whatever reason.
    pub refused: AtomicU64,
}

/// The place of a stream in the list, until it is dropped.
#[derive(Debug)]
pub struct Registered {
    streams: Arc<Streams>,
    /// The stream's number, unique in this server.
    pub ticket: Ticket,
    /// The stream as status shows it.
    pub state: Arc<Mutex<StreamState>>,
    holds: Arc<Holds>,
    pace: Option<Arc<Mutex<Pace>>>,
}

impl Streams {
    /// No streams yet; `rule` says how much of a client's time pushes may take, `most` how many bytes all may make us keep.
    pub fn new(rule: PaceRule, most: MaxBytes) -> Self {
        Self {
            open: Mutex::default(),
            paces: Mutex::default(),
            rule,
            next: AtomicU64::new(0),
            quiet: Mutex::default(),
            budget: Arc::new(Budget::new(most)),
            long: Semaphore::const_new(1),
            most,
            times: Arc::default(),
            pushes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            nacks: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            relieved: AtomicU64::new(0),
            floods: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Adds a stream, unless there are too many already; the error names the limit and its value.
    pub fn register(
        self: &Arc<Self>,
        peer: Option<SocketAddr>,
        partition: Partition,
        delta: bool,
        most: MaxStreams,
    ) -> Result<Registered, String> {
        let mut open = self.open.lock();
        if open.len() >= most.in_all {
            return Err(format!("more than {} streams (mox.limits.streams)", most.in_all));
        }
        let address = peer.map(|peer| peer.ip());
        if open.values().filter(|other| other.address == address).count() >= most.per_address {
            let most = most.per_address;
            return Err(format!("more than {most} streams from one address (mox.limits.streams-per-address)"));
        }
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let state = StreamState { peer, node: String::new(), partition, delta, types: BTreeMap::new() };
        let (state, holds) = (Arc::new(Mutex::new(state)), Arc::<Holds>::default());
        open.insert(ticket, Open { address, state: Arc::clone(&state), holds: Arc::clone(&holds) });
        Ok(Registered { streams: Arc::clone(self), ticket, state, holds, pace: None })
    }

    /// Notes that a stream is not even begun with; whether a line of it may be logged: once a minute for each address and reason.
    pub fn refuse(&self, peer: Option<SocketAddr>, reason: &str) -> bool {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let client = (peer.map(|peer| peer.ip()), String::new());
        self.quiet.lock().may_log(("stream_refused", client, reason.to_owned()), Instant::now())
    }

    /// Waits until no other stream does work that takes long, which is so until what this returns is dropped.
    pub async fn alone(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.long.acquire().await.ok()
    }

    /// Ends streams, those first that hold pages for longest, until no more bytes of old pages are held than may be: those of one
    /// whole state more, since whoever makes the next, or writes one to a file or to Kubernetes, holds some for a moment as well.
    /// Follows the views until there are no more.
    pub async fn relieve<C: Catalog>(&self, mut view: watch::Receiver<C>) {
        let too_many = |view: &C| view.pinned() > self.most.pinned.saturating_add(view.size());
        while view.changed().await.is_ok() {
            while too_many(&view.borrow_and_update()) {
                tokio::time::sleep(RELIEF).await;
                if !too_many(&view.borrow()) {
                    break;
                }
                let oldest = {
                    let open = self.open.lock();
                    let holds = open.values().filter_map(|open| open.holds.since().zip(Some(&open.holds)));
                    holds.min_by_key(|(since, _)| *since).map(|(_, holds)| Arc::clone(holds))
                };
                let Some(oldest) = oldest else { break };
                oldest.told.store(true, Ordering::Relaxed);
                oldest.cut.notify_one();
                let _ = tokio::time::timeout(10 * RELIEF, oldest.gone.notified()).await;
            }
        }
    }

    fn states(&self) -> Vec<Arc<Mutex<StreamState>>> {
        self.open.lock().values().map(|open| Arc::clone(&open.state)).collect()
    }

    /// The streams at present, oldest first: from the one at `from` on, one at least and no more than take `most` bytes to
    /// show.
    pub fn list(&self, from: usize, most: usize) -> Vec<StreamState> {
        let (mut shown, mut size) = (Vec::new(), 0);
        for state in self.states().iter().skip(from) {
            let state = state.lock();
            size += state.size();
            if size > most && !shown.is_empty() {
                break;
            }
            let mut state = state.clone();
            for shown in state.types.values_mut() {
                shown.unacked_millis = shown.unacked_since.map(|since| since.elapsed().as_millis() as u64);
            }
            shown.push(state);
        }
        shown
    }

    /// How long the slowest client took to answer the last response that it answered, in milliseconds.
    pub fn slowest_ack(&self) -> Option<u64> {
        let of = |state: &Mutex<StreamState>| state.lock().types.values().filter_map(|it| it.ack_millis).max();
        self.states().iter().filter_map(|state| of(state)).max()
    }

    /// The clients at present, at most `most` of them and those with something wrong first; and everything in numbers.
    pub fn clients(&self, most: usize) -> (Vec<ClientState>, Totals) {
        let mut clients: BTreeMap<Client, (usize, BTreeSet<Partition>)> = BTreeMap::new();
        let mut totals = Totals::default();
        for state in self.states() {
            let stream = state.lock();
            totals.streams += 1;
            totals.unacknowledged += stream.types.values().filter(|state| state.is_unacknowledged()).count();
            totals.too_large += stream.types.values().filter(|state| state.too_large).count();
            if !stream.types.is_empty() {
                let client = clients.entry((stream.peer.map(|peer| peer.ip()), stream.node.clone())).or_default();
                client.0 += 1;
                client.1.insert(stream.partition);
            }
        }
        let client = |((address, node), (streams, partitions)): (Client, (usize, BTreeSet<Partition>))| {
            let wrong = wrong(&partitions);
            ClientState { address, node, streams, partitions, wrong }
        };
        let mut clients: Vec<ClientState> = clients.into_iter().map(client).collect();
        totals.clients = clients.len();
        totals.wrong = clients.iter().filter(|client| client.wrong.is_some()).count();
        clients.sort_by_key(|client| client.wrong.is_none());
        clients.truncate(most);
        (clients, totals)
    }
}

impl Registered {
    /// Notes whose stream this is; at most 256 characters of the name are kept.
    pub fn identify(&mut self, node: &str) {
        let shown: String = node.chars().filter(|c| !c.is_control()).take(256).collect();
        let (peer, partition, delta) = {
            let mut state = self.state.lock();
            state.node.clone_from(&shown);
            (state.peer, state.partition, state.delta)
        };
        if delta {
            return;
        }
        let mut paces = self.streams.paces.lock();
        paces.retain(|_, paces| {
            paces.retain(|pace| pace.strong_count() > 0);
            !paces.is_empty()
        });
        let paces = paces.entry((peer.map(|peer| peer.ip()), shown)).or_default();
        let joins = |pace: &Arc<Mutex<Pace>>| pace.lock().join(self.ticket, partition);
        let pace = paces.iter().filter_map(Weak::upgrade).find(joins).unwrap_or_else(|| {
            let mut pace = Pace::new(self.streams.rule);
            pace.join(self.ticket, partition);
            let pace = Arc::new(Mutex::new(pace));
            paces.push(Arc::downgrade(&pace));
            pace
        });
        self.pace = Some(pace);
    }

    /// Whether a line may be logged now: once a minute for each event, client and what the line is about.
    pub fn may_log(&self, event: &'static str, about: &str) -> bool {
        let client = {
            let state = self.state.lock();
            (state.peer.map(|peer| peer.ip()), state.node.clone())
        };
        self.streams.quiet.lock().may_log((event, client, about.to_owned()), Instant::now())
    }

    /// Notes since when the stream holds pages that may be old, but for what is not sent yet; `None`: it holds none.
    pub fn holds_since(&self, since: Option<Instant>) {
        *self.holds.since.lock() = since;
    }

    /// Notes what the stream sends, whose pages it holds until they are sent.
    pub fn sends(&self, unsent: Unsent) {
        // A stream has one outbox.
        let _ = self.holds.unsent.set(unsent);
    }

    /// Notes that the stream has let go of what it held, and ends, though something is left of it.
    pub fn let_go(&mut self) {
        let left = std::mem::take(&mut self.holds);
        if let Some(open) = self.streams.open.lock().get_mut(&self.ticket) {
            open.holds = Arc::clone(&self.holds);
        }
        left.gone.notify_one();
    }

    /// Waits until the stream is to end, since it holds the oldest of too many pages.
    pub async fn cut(&self) {
        self.holds.cut.notified().await;
    }

    /// The pace that the client's streams share; `None` before the client said who it is, and in the incremental variant.
    pub fn pace(&self) -> Option<&Mutex<Pace>> {
        self.pace.as_deref()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.streams.open.lock().remove(&self.ticket);
        self.holds.gone.notify_one();
        if let Some(pace) = &self.pace {
            pace.lock().part(self.ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::google::protobuf::Any,
        snapshot::{Resource, view::View},
    };

    #[test]
    fn a_client_takes_everything_or_all_parts_of_one_number() {
        let partitions =
            |of: &[(usize, usize)]| of.iter().filter_map(|(i, n)| Partition::new(*i, *n)).collect::<BTreeSet<_>>();
        for right in [&[(0, 1)][..], &[(0, 2), (1, 2)], &[(0, 4), (1, 4), (2, 4), (3, 4)]] {
            assert_eq!(wrong(&partitions(right)), None);
        }
        for false_ in [&[(0, 2)][..], &[(0, 1), (0, 2), (1, 2)], &[(0, 2), (1, 2), (0, 4)]] {
            assert!(wrong(&partitions(false_)).is_some());
        }
    }

    #[test]
    fn streams_are_limited_in_all_and_by_address() {
        let streams = Arc::new(Streams::new(PaceRule { duty: 0.5, max: Duration::from_secs(5) }, MaxBytes::ANY));
        let most = MaxStreams { in_all: 3, per_address: 2 };
        let open = |address: &str| streams.register(address.parse().ok(), Partition::WHOLE, false, most);
        let first = open("127.0.0.1:1").unwrap();
        let _second = open("127.0.0.1:2").unwrap();
        assert!(open("127.0.0.1:3").unwrap_err().contains("per-address"));
        let _third = open("127.0.0.2:1").unwrap();
        assert!(open("127.0.0.3:1").unwrap_err().contains("mox.limits.streams)"));
        drop(first);
        assert!(open("127.0.0.1:3").is_ok());
    }

    #[test]
    fn what_is_shown_is_bounded_and_the_rest_is_counted() {
        let streams = Arc::new(Streams::new(PaceRule { duty: 0.5, max: Duration::from_secs(5) }, MaxBytes::ANY));
        let most = MaxStreams { in_all: 3_000, per_address: 3_000 };
        let partition = Partition::new(0, 2).unwrap();
        let open = |n: usize| {
            let partition = if n == 999 { partition } else { Partition::WHOLE };
            let mut stream = streams.register("127.0.0.1:1".parse().ok(), partition, false, most).unwrap();
            stream.identify(&format!("istiod-{n:04}"));
            let state = TypeState { error: Some("x".repeat(500)), sent: Some("1".into()), ..TypeState::default() };
            stream.state.lock().types = (0..16).map(|n| (format!("example.com/Type{n}"), state.clone())).collect();
            stream
        };
        let open: Vec<Registered> = (0..1_000).map(open).collect();
        let mut shown = 0;
        while shown < 1_000 {
            let list = streams.list(shown, 64 << 10);
            assert!((1..10).contains(&list.len()), "{}", list.len());
            assert!(serde_json::to_string(&list).unwrap().len() < 64 << 10);
            assert_eq!(list[0].node, format!("istiod-{shown:04}"), "none is left out");
            shown += list.len();
        }
        assert_eq!(streams.list(999, 1).len(), 1, "one at least");
        assert!(streams.list(1_000, 64 << 10).is_empty() && streams.list(usize::MAX, 1).is_empty());
        let (clients, totals) = streams.clients(200);
        assert_eq!((clients.len(), &*clients[0].node), (200, "istiod-0999"), "what is wrong comes first");
        let counted = Totals { streams: 1_000, clients: 1_000, wrong: 1, unacknowledged: 16_000, too_large: 0 };
        assert_eq!(totals, counted);
        drop(open);
        assert_eq!(streams.clients(200).1, Totals::default());
    }

    #[test]
    fn streams_of_one_client_share_its_time() {
        let streams = Arc::new(Streams::new(PaceRule { duty: 0.5, max: Duration::from_secs(5) }, MaxBytes::ANY));
        let most = MaxStreams { in_all: 9, per_address: 9 };
        let open = |address: &str, node: &str, index| {
            let partition = Partition::new(index, 2).unwrap();
            let mut stream = streams.register(address.parse().ok(), partition, false, most).unwrap();
            stream.identify(node);
            stream
        };
        let (a, b) = (open("127.0.0.1:1", "istiod-0", 0), open("127.0.0.1:2", "istiod-0", 1));
        let (c, d) = (open("127.0.0.1:3", "istiod-1", 1), open("127.0.0.2:4", "istiod-0", 1));
        let same = |a: &Registered, b: &Registered| std::ptr::eq(a.pace().unwrap(), b.pace().unwrap());
        assert!(same(&a, &b) && !same(&a, &c) && !same(&a, &d));
        // Of one partition there is one stream; others by the same name share among themselves.
        let (e, f) = (open("127.0.0.1:5", "istiod-0", 1), open("127.0.0.1:6", "istiod-0", 0));
        assert!(!same(&a, &e) && same(&e, &f));
        assert!(a.may_log("event", "type") && !b.may_log("event", "type"), "and its line in the log");
        assert!(c.may_log("event", "type") && d.may_log("event", "type") && a.may_log("event", "other"));
    }

    #[tokio::test]
    async fn what_is_left_of_a_stream_hears_nothing_that_was_meant_for_the_stream() {
        let most = MaxBytes { pinned: 0, ..MaxBytes::ANY };
        let streams = Arc::new(Streams::new(PaceRule { duty: 0.5, max: Duration::from_secs(5) }, most));
        let places = MaxStreams { in_all: 9, per_address: 9 };
        let mut registered = streams.register(None, Partition::WHOLE, false, places).unwrap();
        let holds = Arc::clone(&registered.holds);
        // The stream is told to go while it ends by itself.
        registered.holds_since(Some(Instant::now()));
        holds.told.store(true, Ordering::Relaxed);
        holds.cut.notify_one();
        assert_eq!(holds.since(), None, "nobody is told twice");
        registered.let_go();
        let mut gone = Box::pin(holds.gone.notified());
        assert!(gone.as_mut().enable(), "who told it goes on");
        // Nobody told what is left.
        let left = Arc::clone(&streams.open.lock()[&registered.ticket].holds);
        assert!(Arc::ptr_eq(&left, &registered.holds) && left.since().is_none());
        registered.holds_since(Some(Instant::now()));
        assert!(left.since().is_some());
        assert!(!Box::pin(left.cut.notified()).as_mut().enable() && !Box::pin(left.gone.notified()).as_mut().enable());
        drop(registered);
        assert!(Box::pin(left.gone.notified()).as_mut().enable());
    }

    #[tokio::test]
    async fn those_go_who_hold_pages_for_longest_and_no_more_than_must() {
        let most = MaxBytes { pinned: 15_000, ..MaxBytes::ANY };
        let streams = Arc::new(Streams::new(PaceRule { duty: 0.5, max: Duration::from_secs(5) }, most));
        let view = watch::Sender::new(View { shown: true, ..View::default() });
        let relieving = tokio::spawn({
            let (streams, view) = (Arc::clone(&streams), view.subscribe());
            async move { streams.relieve(view).await }
        });
        let change = |n: usize| {
            let any = Any { type_url: "a".into(), value: vec![n as u8; 10_000].into() };
            let changes = [((0, "a".into()), Some(Resource::plain(&any)))].into();
            view.send_modify(|view| view.service_entries = Arc::new(view.service_entries.with(&changes)));
        };
        let begin = Instant::now();
        let places = MaxStreams { in_all: 9, per_address: 9 };
        let (gone, mut goes) = tokio::sync::mpsc::unbounded_channel();
        // Ten thousand may be held by whoever makes the next. Each holds another page; those that came later hold theirs for longer.
        for n in 0..5 {
            change(n);
            let registered = streams.register(None, Partition::WHOLE, false, places).unwrap();
            registered.holds_since((n != 4).then(|| begin - Duration::from_secs(n as u64)));
            let (page, gone) = (view.borrow().service_entries.pages().next().cloned(), gone.clone());
            tokio::spawn(async move {
                registered.cut().await;
                drop((page, registered));
                gone.send(n).unwrap();
            });
        }
        change(5);
        let order = [goes.recv().await, goes.recv().await, goes.recv().await];
        assert_eq!(order, [Some(3), Some(2), Some(1)], "five pages are old and two may stay");
        assert_eq!(view.borrow().pinned() / 10_000, 2);
        let _held = view.borrow().service_entries.pages().next().cloned();
        change(6);
        assert_eq!(goes.recv().await, Some(0), "and nobody who says that it holds nothing");
        drop(view);
        relieving.await.unwrap();
        assert!(goes.try_recv().is_err());
    }
}
