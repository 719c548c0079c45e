//! Responses as they go out. Their resources are encoded already; they go to the transport as they are, shared with every other
//! stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use parking_lot::Mutex;
use prost::encoding;
use tokio::{sync::Notify, time::Instant};
use tonic::Status;

use crate::{
    proto::envoy::config::core::v3::ControlPlane,
    xds::{
        limits::{SLOW, transfer},
        subscription::ResponseContent,
        times::Handed,
    },
};

/// Pieces smaller than this are put together: a frame of HTTP/2 each would cost more than the copy.
const SMALL: usize = 16 << 10;

/// Pieces larger than this are cut: the transport says only of a whole piece that the client has taken it, and the slowest client
/// needs less than [`SLOW`] for one of these.
const LARGE: usize = 512 << 10;

/// A DiscoveryResponse or DeltaDiscoveryResponse whose resources are pages of a snapshot.
#[derive(Debug)]
pub struct Response {
    /// The type that was asked for, byte for byte.
    pub type_url: String,
    /// Version of the content.
    pub version: Arc<str>,
    /// Unique on the stream.
    pub nonce: String,
    /// The resources.
    pub content: ResponseContent,
    /// Whether it is a DeltaDiscoveryResponse.
    pub delta: bool,
    /// When it is handed to the transport.
    pub handed: Arc<Handed>,
}

/// Messages that a stream gives the transport to send.
#[derive(Debug)]
pub enum Outgoing {
    /// A response that is made for this stream.
    Response(Response),
    /// Messages that are the same for every stream, framed.
    Framed(Bytes),
}

/// Name of this server, the same everywhere.
const IDENTIFIER: &str = "registry-mox";

// Field numbers of DiscoveryResponse and DeltaDiscoveryResponse in envoy.service.discovery.v3; pages are field 2 of both.
const VERSION_INFO: u32 = 1;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const CONTROL_PLANE: u32 = 6;
const REMOVED: u32 = 6;
const DELTA_CONTROL_PLANE: u32 = 7;

/// Bytes before a message of gRPC: a flag (not compressed) and the message's length.
const PREFIX: usize = 5;

impl Response {
    /// The message as gRPC frames it, in pieces; pages are shared and not copied, but for small ones.
    pub fn framed(self) -> Pieces {
        let mut head = BytesMut::new();
        head.put_bytes(0, PREFIX);
        put_text(VERSION_INFO, &self.version, &mut head);
        let mut tail = BytesMut::new();
        put_text(TYPE_URL, &self.type_url, &mut tail);
        put_text(NONCE, &self.nonce, &mut tail);
        let control_plane = ControlPlane { identifier: IDENTIFIER.to_owned() };
        if self.delta {
            self.content.removed.iter().for_each(|name| put_text(REMOVED, name, &mut tail));
            encoding::message::encode(DELTA_CONTROL_PLANE, &control_plane, &mut tail);
        } else {
            encoding::message::encode(CONTROL_PLANE, &control_plane, &mut tail);
        }
        let mut pieces = VecDeque::from(self.content.pages);
        let length = head.len() - PREFIX + pieces.iter().map(Bytes::len).sum::<usize>() + tail.len();
        head[1..PREFIX].copy_from_slice(&(length as u32).to_be_bytes());
        pieces.push_front(head.freeze());
        pieces.push_back(tail.freeze());
        Pieces(pieces)
    }

    /// Bytes on the wire, within some dozens.
    pub fn size(&self) -> usize {
        let ResponseContent { pages, removed } = &self.content;
        let removed: usize = removed.iter().map(|name| name.len() + 3).sum();
        pages.iter().map(Bytes::len).sum::<usize>() + removed + self.type_url.len() + self.version.len() + 64
    }
}

fn put_text(tag: u32, text: &str, out: &mut BytesMut) {
    encoding::encode_key(tag, encoding::WireType::LengthDelimited, out);
    encoding::encode_varint(text.len() as u64, out);
    out.put_slice(text.as_bytes());
}

/// The rest of a message. Small pieces are put together when it is their turn, so that nothing is copied that the client
/// does not take.
#[derive(Debug, Default)]
pub struct Pieces(VecDeque<Bytes>);

impl Pieces {
    fn bytes(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        match self.0.front_mut() {
            Some(first) if first.len() > LARGE => return Some(first.split_to(LARGE)),
            Some(first) if first.len() >= SMALL => return self.0.pop_front(),
            _ => {}
        }
        let mut small = BytesMut::new();
        while small.len() < SMALL && self.0.front().is_some_and(|next| next.len() < SMALL) {
            self.0.pop_front().into_iter().for_each(|piece| small.put_slice(&piece));
        }
        Some(small.freeze()).filter(|small| !small.is_empty())
    }
}

/// Where a stream puts its responses and the transport takes them from: one that waits, and what is left of the one that is
/// being sent.
#[derive(Debug, Default)]
struct Exit {
    state: Mutex<State>,
    /// Tells the stream that there is room, or that the transport is gone.
    room: Notify,
    /// Tells the stream that the transport is gone.
    gone: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The message that waits, and since when.
    waiting: Option<(Instant, Result<Outgoing, Status>)>,
    pieces: Pieces,
    /// Since when the client has taken nothing of what there is; `None`: there is nothing.
    idle_since: Option<Instant>,
    /// When the response that is being sent was begun with, and by when it must be sent.
    sending: Option<(Instant, Instant)>,
    /// The stream is over: nothing comes any more.
    closed: bool,
    /// The rest is not to be sent.
    reset: bool,
    /// The transport is gone.
    gone: bool,
    transport: Option<Waker>,
}

/// The stream's end.
#[derive(Debug)]
pub struct Outbox(Arc<Exit>);

/// The responses of one stream that the transport has not sent yet, as others see them.
#[derive(Debug)]
pub struct Unsent(Arc<Exit>);

/// The transport's end: the responses of one stream as a body, a piece at a time, when the transport has room for one. So a
/// stream copies as much as its window holds; the pages of the response that is being sent are shared, and stay as long as that
/// takes.
#[derive(Debug)]
pub struct ResponseBody {
    exit: Arc<Exit>,
    ended: bool,
}

/// The two ends of what a stream sends.
pub fn exit() -> (Outbox, ResponseBody) {
    let exit = Arc::<Exit>::default();
    (Outbox(Arc::clone(&exit)), ResponseBody { exit, ended: false })
}

impl Outbox {
    /// Waits for room for a response; `false`: the transport is gone.
    pub async fn has_room(&self) -> bool {
        loop {
            {
                let state = self.0.state.lock();
                if state.gone || state.waiting.is_none() {
                    return !state.gone;
                }
            }
            self.0.room.notified().await;
        }
    }

    /// Sends this, in place of what waits.
    pub fn send(&self, what: Result<Outgoing, Status>) {
        let mut state = self.0.state.lock();
        let now = Instant::now();
        state.waiting = Some((now, what));
        state.idle_since.get_or_insert(now);
        state.wake();
    }

    /// When the client will have been too slow: it has taken nothing for [`SLOW`], or not all of a response in the time for that.
    pub fn late_at(&self) -> Option<Instant> {
        let state = self.0.state.lock();
        let stalls = state.idle_since.map(|since| since + SLOW);
        stalls.into_iter().chain(state.sending.map(|(_, until)| until)).min()
    }

    /// The responses that are not sent yet, for others to see.
    pub fn unsent(&self) -> Unsent {
        Unsent(Arc::clone(&self.0))
    }

    /// Gives up what is not sent, and ends the stream with a reset as soon as the transport takes notice.
    pub fn reset(&self) {
        let mut state = self.0.state.lock();
        let dropped = (state.waiting.take(), std::mem::take(&mut state.pieces));
        (state.reset, state.idle_since, state.sending) = (true, None, None);
        state.wake();
        drop(state);
        drop(dropped);
    }

    /// Waits until the transport is gone.
    pub async fn gone(&self) {
        while !self.0.state.lock().gone {
            self.0.gone.notified().await;
        }
    }
}

impl Unsent {
    /// Since when a response is being sent, or waits to be.
    pub fn since(&self) -> Option<Instant> {
        let state = self.0.state.lock();
        let waiting = state.waiting.as_ref().filter(|(_, what)| what.is_ok()).map(|(since, _)| *since);
        state.sending.map(|(since, _)| since).or(waiting)
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        state.wake();
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(transport) = self.transport.take() {
            transport.wake();
        }
    }
}

impl ResponseBody {
    /// The message that waits; `None`: nothing comes any more.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Outgoing, Status>>> {
        let mut state = self.exit.state.lock();
        if state.reset {
            return Poll::Ready(Some(Err(Status::cancelled("the client is too slow"))));
        }
        let next = state.waiting.take().map(|(_, next)| next);
        if next.is_some() {
            self.exit.room.notify_one();
            state.idle_since = None;
        } else if !state.closed {
            state.transport = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(next)
    }

    fn piece(&self) -> Option<Bytes> {
        let mut state = self.exit.state.lock();
        let piece = state.pieces.next()?;
        let rest = !state.pieces.is_empty();
        state.idle_since = (rest || state.waiting.is_some()).then(Instant::now);
        state.sending = state.sending.filter(|_| rest);
        Some(piece)
    }

    fn begin(&self, pieces: Pieces) {
        let (now, time) = (Instant::now(), transfer(pieces.bytes()));
        let mut state = self.exit.state.lock();
        state.pieces = pieces;
        (state.idle_since, state.sending) = (Some(now), Some((now, now + time)));
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let mut state = self.exit.state.lock();
        let dropped = (state.waiting.take(), std::mem::take(&mut state.pieces));
        (state.gone, state.idle_since, state.sending) = (true, None, None);
        drop(state);
        drop(dropped);
        self.exit.room.notify_one();
        self.exit.gone.notify_one();
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match ready!(self.poll_next(context)) {
                Some(Ok(Outgoing::Response(response))) => {
                    let handed = Arc::clone(&response.handed);
                    self.begin(response.framed());
                    handed.note(Instant::now());
                    continue;
                }
                Some(Ok(Outgoing::Framed(piece))) => {
                    self.begin(Pieces([piece].into()));
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            if self.exit.state.lock().reset {
                return Poll::Ready(Some(Err(status)));
            }
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message;

    use super::*;
    use crate::proto::{
        envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse},
        google::protobuf::Any,
    };

    /// A page of resources of so many bytes each.
    fn page(sizes: &[usize]) -> Bytes {
        let mut page = BytesMut::new();
        for size in sizes {
            let any = Any { type_url: "t".into(), value: vec![7; *size].into() };
            encoding::message::encode(2, &any, &mut page);
        }
        page.freeze()
    }

    fn response(pages: Vec<Bytes>) -> Response {
        let content = ResponseContent { pages, removed: Vec::new() };
        let (type_url, version, nonce) = ("a/b/c".into(), "v".into(), "7".into());
        Response { type_url, version, nonce, content, delta: false, handed: Arc::default() }
    }

    #[test]
    fn a_delta_response_has_what_is_removed() {
        let content = ResponseContent { pages: Vec::new(), removed: vec!["x".into(), "y".into()] };
        let pieces = Response { content, delta: true, ..response(Vec::new()) }.framed();
        let bytes: Vec<u8> = pieces.flatten().collect();
        let decoded = DeltaDiscoveryResponse::decode(&bytes[PREFIX..]).unwrap();
        assert_eq!(
            (decoded.removed_resources, decoded.system_version_info),
            (vec!["x".into(), "y".into()], "v".into())
        );
        assert_eq!(decoded.control_plane.unwrap().identifier, "registry-mox");
    }

    #[test]
    fn a_response_decodes_as_the_protocols_message() {
        for sizes in [&[][..], &[1, 2], &[100_000], &[10, 100_000, 10, 20_000, 30_000, 5], &[9_000; 9]] {
            let response = response(sizes.iter().map(|size| page(&[*size, 1])).collect());
            let bytes: Vec<u8> = response.framed().flatten().collect();
            assert_eq!(
                (bytes[0], bytes.len()),
                (0, PREFIX + u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize)
            );
            let decoded = DiscoveryResponse::decode(&bytes[PREFIX..]).unwrap();
            let values: Vec<_> = decoded.resources.iter().map(|any| any.value.len()).collect();
            assert_eq!(values, sizes.iter().flat_map(|size| [*size, 1]).collect::<Vec<_>>());
            assert_eq!(
                (decoded.type_url, decoded.version_info, decoded.nonce),
                ("a/b/c".into(), "v".into(), "7".into())
            );
            assert_eq!(decoded.control_plane.unwrap().identifier, "registry-mox");
        }
    }

    #[test]
    fn large_pages_are_shared_and_small_ones_put_together() {
        let pages = vec![page(&[100]), page(&[50_000]), page(&[100]), page(&[100]), page(&[40_000])];
        let pieces: Vec<Bytes> = response(pages.clone()).framed().collect();
        assert_eq!(pieces.len(), 5, "head and small, large, two small, large, tail");
        assert_eq!((pieces[1].as_ptr(), pieces[3].as_ptr()), (pages[1].as_ptr(), pages[4].as_ptr()));
        assert_eq!(response(Vec::new()).framed().count(), 1);
    }

    fn next(body: &mut ResponseBody) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        http_body::Body::poll_frame(Pin::new(body), &mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_time_for_a_piece_and_for_a_whole_response() {
        let (outbox, mut body) = exit();
        let unsent = outbox.unsent();
        assert_eq!((outbox.late_at(), unsent.since()), (None, None));
        outbox.send(Ok(Outgoing::Response(response(vec![page(&[LARGE / 2]), page(&[LARGE / 2])]))));
        let begin = Instant::now();
        assert_eq!(outbox.late_at(), Some(begin + SLOW), "the transport takes nothing at all");
        assert_eq!(unsent.since(), Some(begin));
        assert!(next(&mut body).is_ready() && outbox.has_room().await);
        for _ in 0..3 {
            // Slowly, but it moves: then there is the time for all of it, 60 s and a second for each 32 KiB.
            tokio::time::sleep(SLOW / 2).await;
            assert!(outbox.late_at().unwrap() <= begin + SLOW + Duration::from_secs(17));
            assert_eq!(unsent.since(), Some(begin));
            assert!(next(&mut body).is_ready() || unsent.since().is_none());
            if unsent.since().is_none() {
                break;
            }
        }
        assert_eq!((outbox.late_at(), unsent.since()), (None, None), "all is taken");
    }

    /// The pieces of one large page come after one another, so that a client that takes them slowly is seen to.
    #[tokio::test(start_paused = true)]
    async fn a_client_on_a_line_of_a_megabit_is_never_too_slow_however_much_there_is() {
        let (outbox, mut body) = exit();
        outbox.send(Ok(Outgoing::Response(response(vec![page(&[100 << 20])]))));
        let mut taken = 0;
        while let Poll::Ready(Some(Ok(frame))) = next(&mut body) {
            let bytes = frame.into_data().unwrap().len();
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 * 8.0 / 1e6)).await;
            assert!(outbox.late_at().is_none_or(|at| at > Instant::now()), "after {taken} bytes");
            taken += bytes;
        }
        assert!(taken > 100 << 20);
    }

    #[tokio::test]
    async fn what_is_given_up_is_dropped_at_once_and_the_stream_is_reset() {
        let (outbox, mut body) = exit();
        let pages = vec![page(&[100_000]), page(&[100_000])];
        let send = || outbox.send(Ok(Outgoing::Response(response(pages.clone()))));
        send();
        assert!(next(&mut body).is_ready());
        send();
        assert!(!pages[1].is_unique());
        outbox.reset();
        assert!(pages.iter().all(Bytes::is_unique), "neither what was being sent nor what waited is kept");
        assert!(matches!(next(&mut body), Poll::Ready(Some(Err(_)))));
        drop(body);
        outbox.gone().await;
        assert!(!outbox.has_room().await);
    }

    #[test]
    fn a_stream_that_is_over_ends_when_all_is_sent() {
        let (outbox, mut body) = exit();
        assert!(next(&mut body).is_pending());
        outbox.send(Ok(Outgoing::Framed(page(&[5]))));
        drop(outbox);
        assert!(matches!(next(&mut body), Poll::Ready(Some(Ok(frame))) if frame.is_data()));
        assert!(matches!(next(&mut body), Poll::Ready(Some(Ok(frame))) if frame.is_trailers()));
        assert!(matches!(next(&mut body), Poll::Ready(None)));
    }
}
