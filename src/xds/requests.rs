//! The requests of one stream, as they come in.
//!
//! A client says in five bytes how long its request is and may then take its time, and a request of few bytes can be a message of
//! many. So a request has a deadline, and what it takes is charged to its stream before there is memory for it.

use std::{marker::PhantomData, sync::Arc};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use prost::encoding::{WireType, decode_key, decode_varint};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};

use crate::xds::{
    budget::{Account, Held},
    limits::transfer,
    subscription::Request,
};

/// Bytes before a message of gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Bytes of a request that there is memory for before they have come.
const AHEAD: usize = 64 << 10;
/// The rest of a buffer above this is copied, so that the buffer goes with the request that it was for.
const SMALL: usize = 16 << 10;

// Bytes that a decoded message takes beyond the bytes of its texts, at most.
const NAME: usize = 80;
const VERSION: usize = 150;
const OTHER: usize = 64;
/// Bytes of a decoded message for each byte of a field that is neither a name nor a version: fields that are empty and need only
/// two bytes are structures all the same.
const OTHER_SHARE: usize = 32;

/// Reads requests from the body of a stream.
#[derive(Debug)]
pub struct Requests<R> {
    body: Body,
    /// Bytes of a request at most.
    most: usize,
    account: Arc<Account>,
    buffer: BytesMut,
    /// The bytes of the buffer, charged.
    buffered: Held,
    /// Since when there is a part of a request.
    since: Option<Instant>,
    request: PhantomData<fn() -> R>,
}

/// A request that is not decoded yet, and charged for as if it were.
#[derive(Debug)]
pub struct Encoded<R> {
    message: Bytes,
    /// The bytes that the request takes decoded; given back when this is dropped.
    held: Held,
    request: PhantomData<fn() -> R>,
}

impl<R: Request> Requests<R> {
    /// The requests in a body, of so many bytes each at most.
    pub fn new(body: Body, most: usize, account: Arc<Account>) -> Self {
        let buffered = account.hold();
        Self { body, most, account, buffer: BytesMut::new(), buffered, since: None, request: PhantomData }
    }

    /// Whether a part of a request has come.
    pub fn has_begun(&self) -> bool {
        self.since.is_some()
    }

    /// The next request; `None`: there are no more. Nothing is lost if this is dropped before it is ready.
    pub async fn next(&mut self) -> Result<Option<Encoded<R>>, Status> {
        loop {
            if let Some(request) = self.take()? {
                return Ok(Some(request));
            }
            let overdue = self.since.map(|since| since + transfer(self.buffer.len()));
            let late = async {
                match overdue {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                () = late => return Err(Status::deadline_exceeded("a request takes too long to come in")),
            };
            let data = match frame {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ends within a request")),
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Some(Err(status)) => return Err(status),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            self.buffered.resize(self.buffer.len() + data.len())?;
            self.buffer.extend_from_slice(&data);
            if !self.buffer.is_empty() {
                self.since.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Takes a whole request out of the buffer.
    fn take(&mut self) -> Result<Option<Encoded<R>>, Status> {
        let Some((mut prefix, body)) = self.buffer.split_at_checked(PREFIX) else { return Ok(None) };
        if prefix.get_u8() != 0 {
            return Err(Status::unimplemented("requests are taken uncompressed only"));
        }
        let length = prefix.get_u32() as usize;
        if length > self.most {
            let most = self.most;
            return Err(Status::out_of_range(format!(
                "a request of {length} bytes; {most} are allowed (mox.limits.request)"
            )));
        }
        let Some(body) = body.get(..length) else {
            // As much as has come and is charged for, since the client only says that there will be more.
            let (come, missing) = (self.buffer.len(), PREFIX + length - self.buffer.len());
            self.buffer.reserve(missing.min(come.max(AHEAD)));
            return Ok(None);
        };
        // From here on the request is charged for what it takes decoded, which is more.
        self.buffered.resize(self.buffer.len() - PREFIX - length)?;
        let held = charge::<R>(body, &self.account)?;
        let message = self.buffer.split_to(PREFIX + length).freeze().slice(PREFIX..);
        if length > SMALL || self.buffer.is_empty() {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        self.since = (!self.buffer.is_empty()).then(Instant::now);
        Ok(Some(Encoded { message, held, request: PhantomData }))
    }
}

impl<R: Request> Encoded<R> {
    /// A request as it came in, unless its account has not as much as it takes.
    #[cfg(any(test, feature = "testing"))]
    pub fn new(message: Bytes, account: &Arc<Account>) -> Result<Self, Status> {
        let held = charge::<R>(&message, account)?;
        Ok(Self { message, held, request: PhantomData })
    }

    /// Bytes that it takes decoded, at most.
    pub fn cost(&self) -> usize {
        self.held.bytes()
    }

    /// The request, which is charged for until what this returns beside it is dropped.
    pub fn decode(self) -> Result<(R, Held), Status> {
        let request = R::decode(self.message);
        Ok((request.map_err(|error| Status::invalid_argument(format!("this is no request: {error}")))?, self.held))
    }
}

/// Charges for what a request takes decoded.
fn charge<R: Request>(message: &[u8], account: &Arc<Account>) -> Result<Held, Status> {
    let cost = cost::<R>(message).ok_or_else(|| Status::invalid_argument("this is no request"))?;
    let mut held = account.hold();
    held.resize(cost)?;
    Ok(held)
}

/// Bytes that a request takes decoded, itself included, at most; `None`: it is none.
fn cost<R: Request>(mut message: &[u8]) -> Option<usize> {
    let mut cost = message.len();
    while !message.is_empty() {
        let (field, wire) = decode_key(&mut message).ok()?;
        let length = match wire {
            WireType::Varint => decode_varint(&mut message).ok().map(|_| 0)?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut message).ok()?).ok()?,
            // Of an old form of the protocol, which no request ever had.
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        message = message.get(length..)?;
        cost += match field {
            _ if R::NAMES.contains(&field) => NAME + length,
            _ if R::VERSIONS == Some(field) => VERSION + length,
            _ => OTHER + OTHER_SHARE.saturating_mul(length),
        };
    }
    Some(cost)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        pin::Pin,
        task::{Context, Poll},
        time::Duration,
    };

    use bytes::BufMut;
    use http_body::Frame;
    use prost::Message;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
        xds::{
            budget::Budget,
            limits::{MaxBytes, SLOW},
        },
    };

    /// Bytes that are sent to it, as they are sent.
    struct Says(mpsc::UnboundedReceiver<Bytes>);

    impl http_body::Body for Says {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(context).map(|said| said.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    fn requests(most: usize, stream: usize) -> (mpsc::UnboundedSender<Bytes>, Requests<DiscoveryRequest>, Arc<Budget>) {
        let (says, said) = mpsc::unbounded_channel();
        let budget = Arc::new(Budget::new(MaxBytes { stream, ..MaxBytes::ANY }));
        (says, Requests::new(Body::new(Says(said)), most, budget.open()), budget)
    }

    fn framed(request: &DiscoveryRequest) -> Vec<u8> {
        let (body, mut message) = (request.encode_to_vec(), Vec::new());
        message.put_u8(0);
        message.put_u32(body.len() as u32);
        message.extend(body);
        message
    }

    fn names(count: usize, length: usize) -> DiscoveryRequest {
        DiscoveryRequest { resource_names: vec!["x".repeat(length); count], ..DiscoveryRequest::default() }
    }

    #[tokio::test]
    async fn requests_come_out_as_they_went_in_however_they_are_cut() {
        let all = [names(0, 0), names(3, 5), names(1, 100_000), names(2, 1), names(9, 9)];
        let bytes = all.iter().flat_map(framed).collect::<Vec<u8>>();
        for piece in [1, 7, 1_000, bytes.len()] {
            let (says, mut requests, budget) = requests(1 << 20, 1 << 20);
            bytes.chunks(piece).for_each(|piece| says.send(Bytes::copy_from_slice(piece)).unwrap());
            for request in &all {
                assert_eq!(requests.next().await.unwrap().unwrap().decode().unwrap().0, *request);
            }
            assert_eq!(budget.held(), 0, "nothing is held of what was taken");
            assert_eq!(requests.buffer.capacity(), 0);
            drop(says);
            assert!(requests.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_request_is_refused_before_it_is_decoded() {
        let ends = async |bytes: &[u8], stream| {
            let (says, mut requests, budget) = requests(1 << 20, stream);
            says.send(Bytes::copy_from_slice(bytes)).unwrap();
            drop(says);
            let code = requests.next().await.unwrap_err().code();
            drop(requests);
            assert_eq!(budget.held(), 0);
            code
        };
        let honest = framed(&names(1_000, 70));
        assert_eq!(ends(&honest, honest.len()).await, Code::ResourceExhausted, "it takes more than its bytes");
        assert_eq!(ends(&honest[..99], 98).await, Code::ResourceExhausted, "and so does a part of it");
        assert_eq!(ends(&honest[..99], 99).await, Code::Internal);
        assert_eq!(ends(&[0, 0, 16, 0, 1], usize::MAX).await, Code::OutOfRange);
        assert_eq!(ends(&[1, 0, 0, 0, 0], usize::MAX).await, Code::Unimplemented);
        for no_request in [&[0x1b, 0x1c][..], &[0x1a, 9], &[0x80], &[0]] {
            let message = [&[0, 0, 0, 0, no_request.len() as u8][..], no_request].concat();
            assert_eq!(ends(&message, usize::MAX).await, Code::InvalidArgument, "{no_request:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_only_announced_takes_no_memory() {
        let (most, request) = (16 << 20, framed(&names(1, 10 << 20)));
        let (says, mut requests, budget) = requests(most, 4 * most);
        let mut come = 0;
        for bytes in [PREFIX, 100, AHEAD, 1 << 20] {
            says.send(Bytes::copy_from_slice(&request[come..come + bytes])).unwrap();
            come += bytes;
            assert!(tokio::time::timeout(Duration::from_millis(1), requests.next()).await.is_err(), "a part of it");
            let capacity = requests.buffer.capacity();
            assert!(capacity <= 2 * (come + AHEAD), "{capacity} bytes where {come} have come");
            assert_eq!(budget.held(), come);
        }
        says.send(Bytes::copy_from_slice(&request[come..])).unwrap();
        assert!(requests.next().await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_to_its_end_is_given_up() {
        let (says, mut requests, _budget) = requests(1 << 20, 1 << 20);
        assert!(tokio::time::timeout(2 * SLOW, requests.next()).await.is_err() && !requests.has_begun());
        let begin = Instant::now();
        tokio::spawn(async move {
            for byte in framed(&names(1, 1_000)) {
                if says.send(vec![byte].into()).is_err() {
                    return;
                }
                tokio::time::sleep(SLOW / 100).await;
            }
        });
        assert!(tokio::time::timeout(SLOW / 2, requests.next()).await.is_err() && requests.has_begun());
        assert_eq!(requests.next().await.unwrap_err().code(), Code::DeadlineExceeded);
        assert!((SLOW..SLOW * 2).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_request_is_charged_for_what_it_takes() {
        // Many names of few bytes, and a client that comes back.
        let small = names(100_000, 1).encode_to_vec();
        let cost_of_small = cost::<DiscoveryRequest>(&small).unwrap();
        assert!(cost_of_small > 100_000 * (size_of::<String>() + 32), "{cost_of_small} for {} bytes", small.len());
        let versions: HashMap<String, String> = (0..50_000)
            .map(|n| (format!("sofa-registry/com.example.facade.a-service-of-some-length-{n:06}"), "0".repeat(32)))
            .collect();
        let back =
            DeltaDiscoveryRequest { initial_resource_versions: versions.into_iter().collect(), ..Default::default() };
        let cost_of_back = cost::<DeltaDiscoveryRequest>(&back.encode_to_vec()).unwrap();
        assert!(cost_of_back < MaxBytes::default().stream / 2, "{cost_of_back}");
    }
}
