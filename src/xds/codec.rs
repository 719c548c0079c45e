//! Requests in, responses out. A response's resources are encoded already; they go to the transport as they are, shared
//! with every other stream.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use prost::{Message, encoding};
use tokio::sync::mpsc;
use tonic::{
    Status,
    codec::{DecodeBuf, Decoder},
};

use crate::proto::envoy::{config::core::v3::ControlPlane, service::discovery::v3::DiscoveryRequest};

/// Pieces smaller than this are put together: a frame of HTTP/2 each would cost more than the copy.
const SMALL: usize = 16 << 10;

/// A DiscoveryResponse whose resources are pages of a snapshot.
#[derive(Debug, Clone)]
pub struct Response {
    /// The type that was asked for, byte for byte.
    pub type_url: String,
    /// Version of the content.
    pub version: String,
    /// Unique on the stream.
    pub nonce: String,
    /// Encoded `resources` fields.
    pub pages: Vec<Bytes>,
}

/// Name of this server, the same everywhere.
const IDENTIFIER: &str = "registry-mox";

// Field numbers of envoy.service.discovery.v3.DiscoveryResponse; `pages` are field 2.
const VERSION_INFO: u32 = 1;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const CONTROL_PLANE: u32 = 6;

/// Before a message of gRPC: not compressed, and its length.
const PREFIX: usize = 5;

impl Response {
    /// The message as gRPC frames it, in pieces; pages are shared and not copied, but for small ones.
    fn framed(&self) -> VecDeque<Bytes> {
        let mut head = BytesMut::new();
        head.put_bytes(0, PREFIX);
        encoding::string::encode(VERSION_INFO, &self.version, &mut head);
        let mut tail = BytesMut::new();
        encoding::string::encode(TYPE_URL, &self.type_url, &mut tail);
        encoding::string::encode(NONCE, &self.nonce, &mut tail);
        encoding::message::encode(CONTROL_PLANE, &ControlPlane { identifier: IDENTIFIER.to_owned() }, &mut tail);
        let length = head.len() - PREFIX + self.pages.iter().map(Bytes::len).sum::<usize>() + tail.len();
        head[1..PREFIX].copy_from_slice(&(length as u32).to_be_bytes());
        let mut pieces = VecDeque::new();
        let mut small = head;
        for page in self.pages.iter().chain([&tail.freeze()]) {
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

    /// Size on the wire, about.
    pub fn size(&self) -> usize {
        self.pages.iter().map(Bytes::len).sum::<usize>() + self.type_url.len() + self.version.len() + 64
    }
}

/// The responses of one stream as a body: a piece at a time, when the transport has room for one. So a stream takes as
/// much memory as its window, not as what it is sent.
#[derive(Debug)]
pub struct ResponseBody {
    responses: mpsc::Receiver<Result<Response, Status>>,
    pieces: VecDeque<Bytes>,
    ended: bool,
}

impl ResponseBody {
    /// A body that ends when the sender is dropped or sends an error.
    pub fn new(responses: mpsc::Receiver<Result<Response, Status>>) -> Self {
        Self { responses, pieces: VecDeque::new(), ended: false }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match self.responses.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(response))) => {
                    self.pieces = response.framed();
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

/// Reads requests.
#[derive(Debug, Default, Clone, Copy)]
pub struct RequestDecoder;

impl Decoder for RequestDecoder {
    type Item = DiscoveryRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DiscoveryRequest>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let request = DiscoveryRequest::decode(bytes);
        request.map(Some).map_err(|error| Status::invalid_argument(format!("no DiscoveryRequest: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{envoy::service::discovery::v3::DiscoveryResponse, google::protobuf::Any};

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
        Response { type_url: "a/b/c".into(), version: "v".into(), nonce: "7".into(), pages }
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
