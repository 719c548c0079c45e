//! A stream over a body and a channel, with the test's clock.

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
    snapshot::{Resource, signals::Signals, view::View},
    xds::{
        codec::RequestDecoder,
        limits::{MaxStreams, REFUSED},
        pace::PaceRule,
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

/// What a stream is connected to.
struct Connected {
    streams: Arc<Streams>,
    view: watch::Sender<View>,
    parts: Signals,
    says: mpsc::UnboundedSender<DiscoveryRequest>,
    hears: mpsc::Receiver<Result<Outgoing, Status>>,
    ended: JoinHandle<bool>,
    _stops: [watch::Sender<bool>; 2],
}

fn stream() -> Connected {
    let (says, said) = mpsc::unbounded_channel();
    let requests = Streaming::new_request(RequestDecoder::default(), tonic::body::Body::new(Says(said)), None, None);
    let streams = Arc::new(Streams::new(PaceRule { duty: 1.0, max: SLOW }));
    let most = MaxStreams { in_all: 1, per_address: 1 };
    let (view, parts) = (watch::Sender::new(View { shown: true, ..View::default() }), Signals::default());
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
    assert!(stream.streams.list(0, usize::MAX).is_empty());
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
            Some(Ok(Outgoing::Response(response))) => (response.nonce, begin.elapsed()),
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
    assert_eq!((cut, status, after.as_secs()), (false, Some(tonic::Code::DeadlineExceeded), FIRST_REQUEST.as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_cut() {
    let (cut, status, after) = end(Some(asks("x"))).await;
    assert_eq!((cut, status, after.as_secs()), (true, None, SLOW.as_secs()));
}
