//! Responses as they go out. Their resources are encoded already; they go to the transport as they are, shared with every other
//! stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use parking_lot::Mutex;
use prost::encoding;
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

use crate::{proto::envoy::config::core::v3::ControlPlane, xds::subscription::ResponseContent};

/// Pieces smaller than this are put together: a frame of HTTP/2 each would cost more than the copy.
const SMALL: usize = 16 << 10;

/// A DiscoveryResponse or DeltaDiscoveryResponse whose resources are pages of a snapshot.
#[derive(Debug, Clone)]
pub struct Response {
    /// The type that was asked for, byte for byte.
    pub type_url: String,
    /// Version of the content.
    pub version: Arc<str>,
    /// Unique on the stream.
    pub nonce: String,
    /// The resources.
    pub content: Arc<ResponseContent>,
    /// Whether it is a DeltaDiscoveryResponse.
    pub delta: bool,
    /// When it was handed to the transport.
    pub handed_at: Arc<OnceLock<Instant>>,
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
    pub fn framed(&self) -> VecDeque<Bytes> {
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
        let pages = &self.content.pages;
        let length = head.len() - PREFIX + pages.iter().map(Bytes::len).sum::<usize>() + tail.len();
        head[1..PREFIX].copy_from_slice(&(length as u32).to_be_bytes());
        let mut pieces = VecDeque::new();
        let mut small = head;
        for page in pages.iter().chain([&tail.freeze()]) {
            if page.len() < SMALL {
                small.put_slice(page);
            } else {
                pieces.extend(Some(small.split().freeze()).filter(|small| !small.is_empty()));
                pieces.push_back(page.clone());
            }
            if small.len() >= SMALL {
                pieces.push_back(small.split().freeze());
            }
        }
        pieces.extend(Some(small.freeze()).filter(|small| !small.is_empty()));
        pieces
    }

    /// Bytes on the wire, within some dozens.
    pub fn size(&self) -> usize {
        let ResponseContent { pages, removed } = &*self.content;
        let removed: usize = removed.iter().map(|name| name.len() + 3).sum();
        pages.iter().map(Bytes::len).sum::<usize>() + removed + self.type_url.len() + self.version.len() + 64
    }
}

fn put_text(tag: u32, text: &str, out: &mut BytesMut) {
    encoding::encode_key(tag, encoding::WireType::LengthDelimited, out);
    encoding::encode_varint(text.len() as u64, out);
    out.put_slice(text.as_bytes());
}

/// Whether a client reads what it is sent.
#[derive(Debug, Default)]
pub struct Flow {
    /// Since when the client has read nothing of what waits for it; `None`: nothing waits.
    waits: Mutex<Option<Instant>>,
}

impl Flow {
    /// Notes that something waits from now on, if nothing did.
    pub fn begin(&self) {
        self.waits.lock().get_or_insert_with(Instant::now);
    }

    fn moved(&self, more: bool) {
        *self.waits.lock() = more.then(Instant::now);
    }

    /// When the client will have read nothing for `after`; `None`: nothing waits.
    pub fn stalls_at(&self, after: Duration) -> Option<Instant> {
        self.waits.lock().map(|since| since + after)
    }
}

/// The responses of one stream as a body: a piece at a time, when the transport has room for one. So a stream copies as much
/// as its window holds; the pages of the response that is being sent are shared, and stay as long as that takes.
#[derive(Debug)]
pub struct ResponseBody {
    responses: mpsc::Receiver<Result<Outgoing, Status>>,
    flow: Arc<Flow>,
    pieces: VecDeque<Bytes>,
    ended: bool,
}

impl ResponseBody {
    /// A body that ends when the sender is dropped or sends an error.
    pub fn new(responses: mpsc::Receiver<Result<Outgoing, Status>>, flow: Arc<Flow>) -> Self {
        Self { responses, flow, pieces: VecDeque::new(), ended: false }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                self.flow.moved(!self.pieces.is_empty());
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match self.responses.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(Outgoing::Response(response)))) => {
                    self.pieces = response.framed();
                    let _ = response.handed_at.set(Instant::now());
                    continue;
                }
                Poll::Ready(Some(Ok(Outgoing::Framed(piece)))) => {
                    self.pieces.push_back(piece);
                    continue;
                }
                Poll::Ready(Some(Err(status))) => status,
                Poll::Ready(None) => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
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
        let content = Arc::new(ResponseContent { pages, removed: Vec::new() });
        let (type_url, version, nonce) = ("a/b/c".into(), "v".into(), "7".into());
        Response { type_url, version, nonce, content, delta: false, handed_at: Arc::default() }
    }

    #[test]
    fn a_delta_response_has_what_is_removed() {
        let content = Arc::new(ResponseContent { pages: Vec::new(), removed: vec!["x".into(), "y".into()] });
        let pieces = Response { content, delta: true, ..response(Vec::new()) }.framed();
        let bytes: Vec<u8> = pieces.iter().flatten().copied().collect();
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
            let pieces = response.framed();
            let bytes: Vec<u8> = pieces.iter().flatten().copied().collect();
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
        let pieces = response(pages.clone()).framed();
        assert_eq!(pieces.len(), 5, "head and small, large, two small, large, tail");
        assert_eq!((pieces[1].as_ptr(), pieces[3].as_ptr()), (pages[1].as_ptr(), pages[4].as_ptr()));
        assert_eq!(response(Vec::new()).framed().len(), 1);
    }
}
