//! A stream over a body and a channel, with the test's clock.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use http_body::Frame;
use parking_lot::Mutex;
use prost::Message;
use tokio::{sync::mpsc, task::JoinHandle};
use tracing_subscriber::{
    Layer,
    layer::{self, SubscriberExt},
};

use super::*;
use crate::{
    proto::{envoy::service::discovery::v3::DiscoveryRequest, google::rpc, istio::networking::v1alpha3::ServiceEntry},
    snapshot::{Resource, signals::Signals, view::View},
    xds::{
        codec::{self, ResponseBody},
        limits::{MaxBytes, MaxStreams, NACK_TEXT, REFUSED},
        pace::PaceRule,
        times::VariantTimes,
    },
};

/// Says what is sent to it, and stays open.
struct Says(mpsc::UnboundedReceiver<DiscoveryRequest>);

impl http_body::Body for Says {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(Some(request)) = self.0.poll_recv(context) else { return Poll::Pending };
        let (body, mut message) = (request.encode_to_vec(), BytesMut::new());
        message.put_u8(0);
        message.put_u32(body.len() as u32);
        message.put_slice(&body);
        Poll::Ready(Some(Ok(Frame::data(message.freeze()))))
    }
}

/// The other ends of a stream: its client, its view and its server.
struct Ends {
    streams: Arc<Streams>,
    view: watch::Sender<View>,
    signals: Signals,
    says: mpsc::UnboundedSender<DiscoveryRequest>,
    hears: ResponseBody,
    ended: JoinHandle<Option<Remains>>,
    _stops: [watch::Sender<bool>; 2],
}

fn stream() -> Ends {
    paced(PaceRule { duty: 1.0, max: SLOW })
}

fn paced(rule: PaceRule) -> Ends {
    bounded(rule, MaxBytes::ANY)
}

fn bounded(rule: PaceRule, bytes: MaxBytes) -> Ends {
    let (says, said) = mpsc::unbounded_channel();
    let streams = Arc::new(Streams::new(rule, bytes));
    let account = streams.budget.open();
    let requests = Requests::new(tonic::body::Body::new(Says(said)), 16 << 20, Arc::clone(&account));
    let most = MaxStreams { in_all: 1, per_address: 1 };
    let (view, signals) = (watch::Sender::new(View { shown: true, ..View::default() }), Signals::default());
    let (draining, fenced) = (watch::Sender::new(false), watch::Sender::new(false));
    let (outbox, hears) = codec::exit();
    let stream = Stream {
        view: view.subscribe(),
        changes: signals.subscribe(Partition::WHOLE),
        partition: Partition::WHOLE,
        drain: Drain::new(draining.subscribe(), fenced.subscribe()),
        registered: streams.register(None, Partition::WHOLE, false, most).unwrap(),
        streams: Arc::clone(&streams),
        prime: false,
        limits: StreamLimits { streams: most, types: 1, request: 1 << 20, response: 1 << 20 },
        kept: account.hold(),
        outbox,
        turn: Arc::default(),
    };
    let ended = tokio::spawn(stream.run::<Sotw>(requests));
    Ends { streams, view, signals, says, hears, ended, _stops: [draining, fenced] }
}

impl Ends {
    /// The one service has another host.
    fn change(&self, host: &str) {
        let old = self.view.borrow().clone();
        let entry = ServiceEntry { hosts: vec![host.to_owned()], ..ServiceEntry::default() };
        let entry = Resource::service_entry("a/b".into(), BTreeMap::new(), BTreeMap::new(), &entry);
        let changes = [((0, "a/b".into()), Some(entry))].into();
        let new = View { service_entries: Arc::new(old.service_entries.with(&changes)), ..old.clone() };
        self.signals.tell(&old, &new, || _ = self.view.send_replace(new.clone()));
    }

    /// Asks for services, or answers a response.
    fn say(&self, nonce: &str, error: Option<&str>) {
        let error_detail = error.map(|message| rpc::Status { message: message.to_owned(), ..Default::default() });
        let request = asks("networking.istio.io/v1alpha3/ServiceEntry");
        self.says.send(DiscoveryRequest { response_nonce: nonce.into(), error_detail, ..request }).unwrap();
    }

    /// The next message, or the end.
    async fn hear(&mut self) -> Option<Result<Outgoing, Status>> {
        std::future::poll_fn(|context| self.hears.poll_next(context)).await
    }

    /// The nonce of the next response, and what has passed until it came.
    async fn heard(&mut self) -> (String, Duration) {
        let begin = Instant::now();
        match self.hear().await {
            Some(Ok(Outgoing::Response(response))) => {
                response.handed.note(Instant::now()); // as the transport does
                (response.nonce, begin.elapsed())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn asks(type_url: &str) -> DiscoveryRequest {
    let node = Some(Node { id: "test".into(), ..Node::default() });
    DiscoveryRequest { node, type_url: type_url.into(), ..Default::default() }
}

/// How the stream of a client ends that says this, and whether something is left of it.
async fn end(says: Option<DiscoveryRequest>, reads: bool) -> (bool, Option<tonic::Code>, Duration) {
    let begin = Instant::now();
    let mut stream = stream();
    says.into_iter().for_each(|request| stream.says.send(request).unwrap());
    let (remains, status) = match reads {
        true => {
            let status = stream.hear().await.and_then(Result::err).map(|status| status.code());
            ((&mut stream.ended).await.unwrap(), status)
        }
        false => ((&mut stream.ended).await.unwrap(), None),
    };
    let after = begin.elapsed();
    assert_eq!(stream.streams.list(0, usize::MAX).len(), usize::from(remains.is_some()));
    let is_left = remains.is_some();
    drop(stream.hears);
    if let Some(remains) = remains {
        assert!(remains.gone().await, "the transport has noticed");
    }
    assert!(stream.streams.list(0, usize::MAX).is_empty());
    (is_left, status, after)
}

#[tokio::test(start_paused = true)]
async fn times_count_from_the_publication_to_the_transport_and_from_there_to_the_ack() {
    let mut stream = stream();
    let counted = |stream: &Ends| {
        let [VariantTimes { sent, acked }, delta] = stream.streams.times.counted();
        assert_eq!((delta.sent.count(), delta.acked.count()), (0, 0));
        [(sent.count(), sent.sum), (acked.count(), acked.sum)]
    };
    let (none, span) = (Duration::ZERO, Duration::from_secs(3));
    stream.change("1.test");
    tokio::time::sleep(span).await;
    stream.say("", None);
    assert_eq!(stream.heard().await.0, "1");
    tokio::time::sleep(span).await;
    stream.say("1", None);
    tokio::time::sleep(span).await;
    assert_eq!(counted(&stream), [(0, none), (1, span)], "the client asked, and then took its time");
    stream.change("2.test");
    assert_eq!(stream.heard().await.0, "2");
    assert_eq!(counted(&stream), [(1, none), (1, span)]);
    tokio::time::sleep(span).await;
    stream.change("3.test");
    tokio::time::sleep(span).await;
    stream.change("4.test");
    tokio::time::sleep(span).await;
    stream.say("2", None);
    assert_eq!(stream.heard().await.0, "3");
    assert_eq!(counted(&stream), [(2, 2 * span), (2, 4 * span)], "the older of two changes waited for that answer");
    tokio::time::sleep(span).await;
    stream.say("3", Some("no"));
    tokio::time::sleep(span).await;
    assert_eq!(counted(&stream), [(2, 2 * span), (2, 4 * span)], "a refusal is no ACK");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_refuses_is_left_alone_for_a_while() {
    let mut stream = stream();
    stream.change("1.test");
    stream.say("", None);
    assert_eq!(stream.heard().await.0, "1");
    stream.say("1", Some("no"));
    tokio::time::sleep(REFUSED / 10).await;
    stream.change("2.test");
    tokio::time::sleep(REFUSED / 10).await;
    stream.change("3.test");
    let (nonce, waited) = stream.heard().await;
    assert_eq!(nonce, "2");
    assert!(waited >= REFUSED / 2 && waited <= REFUSED, "{waited:?}");
    stream.say("2", None);
    tokio::time::sleep(REFUSED / 10).await;
    stream.change("4.test");
    let (nonce, waited) = stream.heard().await;
    assert!(
        nonce == "3" && waited < REFUSED / 10,
        "one response for both changes, and then as ever: {nonce} {waited:?}"
    );
}

/// Pushed to for half of the time, a client is left alone for as long as it took for each response.
#[tokio::test(start_paused = true)]
async fn a_client_that_takes_its_time_is_left_as_much() {
    let mut stream = paced(PaceRule { duty: 0.5, max: SLOW });
    stream.change("0.test");
    stream.say("", None);
    let (mut nonce, _) = stream.heard().await;
    for n in 1..4 {
        let taken = Duration::from_millis(60) * n;
        tokio::time::sleep(taken).await; // what the client does with it
        stream.change(&format!("{n}.test"));
        stream.say(&nonce, None);
        let (next, waited) = stream.heard().await;
        assert_eq!(waited, taken);
        let shown = stream.streams.list(0, usize::MAX)[0].types.values().next().unwrap().ack_millis;
        assert_eq!(stream.streams.slowest_ack(), shown);
        assert_eq!(shown, Some(taken.as_millis() as u64));
        nonce = next;
    }
}

/// Collects log lines: the message and every field.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: layer::Context<'_, S>) {
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!(" {field}={value:?}");
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_refuses_on_and_on_is_logged_once_and_in_short() {
    let lines = Lines::default();
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
    let mut stream = stream();
    stream.say("", None);
    for n in 1..10 {
        stream.change(&format!("{n}.test"));
        let (nonce, _) = stream.heard().await;
        stream.say(&nonce, Some(&"é".repeat(10_000)));
        while stream.streams.nacks.load(Ordering::Relaxed) < n {
            tokio::task::yield_now().await;
        }
    }
    let shown = &stream.streams.list(0, usize::MAX)[0].types["networking.istio.io/v1alpha3/ServiceEntry"];
    assert_eq!(shown.error.as_ref().unwrap().chars().count(), NACK_TEXT);
    let lines = lines.0.lock();
    let refused: Vec<_> = lines.iter().filter(|line| line.contains("event=\"response_refused\"")).collect();
    assert!(refused.len() == 1 && refused[0].chars().count() <= 500, "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_let_go() {
    let (cut, status, after) = end(None, true).await;
    assert_eq!((cut, status, after.as_secs()), (false, Some(tonic::Code::DeadlineExceeded), FIRST_REQUEST.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_ended() {
    let (cut, status, after) = end(Some(asks("x")), false).await;
    assert_eq!((cut, status, after.as_secs()), (true, None, SLOW.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_for_more_than_its_share_is_ended_and_gives_all_back() {
    let most = MaxBytes { stream: 1 << 20, ..MaxBytes::ANY };
    let mut stream = bounded(PaceRule { duty: 1.0, max: SLOW }, most);
    let names = |from: usize| (from..from + 1_000).map(|n| format!("ns/{n:060}")).collect();
    let ask =
        |nonce: &str, from| DiscoveryRequest { response_nonce: nonce.into(), resource_names: names(from), ..asks("x") };
    stream.says.send(ask("", 0)).unwrap();
    let (nonce, _) = stream.heard().await;
    assert!((100_000..400_000).contains(&stream.streams.budget.held()), "{}", stream.streams.budget.held());
    // More names, as many as it had: the old ones are given back.
    stream.says.send(ask(&nonce, 1_000)).unwrap();
    let (nonce, _) = stream.heard().await;
    assert!((100_000..400_000).contains(&stream.streams.budget.held()), "{}", stream.streams.budget.held());
    let too_many =
        DiscoveryRequest { resource_names: (0..10).flat_map(|n| names(n * 1_000)).collect(), ..ask(&nonce, 0) };
    stream.says.send(too_many).unwrap();
    let status = loop {
        match stream.hear().await {
            Some(Err(status)) => break status,
            Some(Ok(_)) => {}
            None => panic!("the stream ends without a status"),
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("mox.limits.stream-bytes"), "{status:?}");
    assert!(stream.ended.await.unwrap().is_none(), "its client has read why");
    assert_eq!((stream.streams.budget.held(), stream.streams.budget.refused()), (0, 1));
}

/// Long work is done by one stream at a time, apart from the threads that serve others: so nothing of it happens meanwhile.
#[tokio::test(start_paused = true)]
async fn a_small_request_about_many_names_is_long_work() {
    let mut stream = stream();
    let names = (0..2 * LONG).map(|n| format!("ns/{n:060}")).collect();
    stream.says.send(DiscoveryRequest { resource_names: names, ..asks("x") }).unwrap();
    let (nonce, _) = stream.heard().await;
    let held = stream.streams.budget.held();
    let streams = Arc::clone(&stream.streams);
    let alone = streams.alone().await;
    let few = DiscoveryRequest { response_nonce: nonce, resource_names: vec!["a".into()], ..asks("x") };
    stream.says.send(few).unwrap();
    tokio::time::sleep(REFUSED).await;
    assert!(streams.budget.held() >= held, "the names are still there");
    drop(alone);
    stream.heard().await;
    assert!(streams.budget.held() < held / 100, "{}", streams.budget.held());
}
