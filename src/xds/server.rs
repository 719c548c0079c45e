//! The gRPC service: finds the variant and the partition that a client asks for, and starts a stream.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request as HttpRequest, Response as HttpResponse};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, body::Body, metadata::GRPC_CONTENT_TYPE, server::NamedService, transport::Server};

use crate::{
    snapshot::{partition::Partition, signals::Signals, view::Catalog},
    xds::{
        codec,
        drain::Drain,
        limits::{StreamLimits, cut},
        listener::{Accepted, Connection},
        requests::Requests,
        stream::Stream,
        streams::Streams,
        subscription::{Subscription, delta::Delta, sotw::Sotw},
    },
};

/// Streams at once on a connection: one for each partition, and as many again.
const MAX_CONNECTION_STREAMS: u32 = 256;
/// Bytes of requests that the transport takes before their stream does, of a stream and of a connection.
const RECEIVE_WINDOW: u32 = 256 << 10;

/// A server of a catalog, as tonic knows it.
#[derive(Debug, Clone)]
pub struct Ads<C> {
    /// The newest resources.
    pub view: watch::Receiver<C>,
    /// Signals in which partitions resources have changed.
    pub signals: Arc<Signals>,
    /// Ends its streams.
    pub drain: Drain,
    /// The streams that are open.
    pub streams: Arc<Streams>,
    /// Whether istiod is sent tiny responses first (`mox.push.prime`).
    pub prime: bool,
    /// Bounds its streams.
    pub limits: StreamLimits,
}

impl<C: Catalog> Ads<C> {
    /// Serves connections on this runtime until it is draining and all are closed.
    pub async fn serve(self, connections: mpsc::Receiver<Connection>) -> Result<(), tonic::transport::Error> {
        let mut drain = self.drain.clone();
        let connections = ReceiverStream::new(connections);
        Server::builder()
            // Half-open connections go after 40 s; a quiet stream answers PINGs and stays.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_concurrent_streams(Some(MAX_CONNECTION_STREAMS))
            .initial_stream_window_size(Some(RECEIVE_WINDOW))
            .initial_connection_window_size(Some(RECEIVE_WINDOW))
            .add_service(self)
            .serve_with_incoming_shutdown(tokio_stream::StreamExt::map(connections, Ok::<_, Infallible>), async move {
                drain.stopping().await;
            })
            .await
    }

    /// The partition that a stream is of: the partition of its port, or, on the port that serves everything, the partition that the host name
    /// asks for.
    fn partition(port: Partition, authority: &str) -> Result<Partition, String> {
        match (port, Partition::named_in(authority)?) {
            (port, None) => Ok(port),
            (Partition::WHOLE, Some(named)) => Ok(named),
            (port, Some(named)) if port == named => Ok(port),
            (port, Some(named)) => {
                Err(format!("the name asks for partition {named}, the port serves partition {port}"))
            }
        }
    }

    /// Starts a stream.
    fn open(&self, request: HttpRequest<Body>) -> Result<HttpResponse<Body>, Status> {
        let accepted = request.extensions().get::<Accepted>().cloned();
        let method = request.uri().path().strip_prefix("/envoy.service.discovery.v3.AggregatedDiscoveryService/");
        match method {
            Some(Sotw::METHOD) => self.stream::<Sotw>(request, accepted),
            Some(Delta::METHOD) => self.stream::<Delta>(request, accepted),
            _ => Err(Status::unimplemented(format!("only {} and {} are served", Sotw::METHOD, Delta::METHOD))),
        }
    }

    fn stream<S: Subscription>(
        &self,
        request: HttpRequest<Body>,
        accepted: Option<Accepted>,
    ) -> Result<HttpResponse<Body>, Status> {
        let authority = authority(&request)?;
        let port = accepted.as_ref().map_or(Partition::WHOLE, |accepted| accepted.partition);
        let partition = Self::partition(port, authority).map_err(Status::invalid_argument)?;
        let peer: Option<SocketAddr> = accepted.as_ref().map(|accepted| accepted.peer);
        let registered = self.streams.register(peer, partition, S::DELTA, self.limits.streams);
        let registered = registered.map_err(Status::resource_exhausted)?;
        let account = self.streams.budget.open();
        let requests = Requests::new(request.into_body(), self.limits.request, Arc::clone(&account));
        // A single response waits for the transport: the next is made when that is gone, from a newer view.
        let (outbox, responses) = codec::exit();
        let stream = Stream {
            view: self.view.clone(),
            changes: self.signals.subscribe(partition),
            partition,
            drain: self.drain.clone(),
            registered,
            streams: Arc::clone(&self.streams),
            prime: self.prime,
            limits: self.limits,
            kept: account.hold(),
            outbox,
            turn: Arc::<Notify>::default(),
        };
        let open = accepted.as_ref().map(Accepted::open);
        tokio::spawn(async move {
            let Some(remains) = stream.run::<S>(requests).await else { return };
            // Beside other streams it may take its time to go; its connection does not stay for it.
            drop(open);
            if !remains.gone().await
                && let Some(accepted) = accepted
            {
                accepted.cut("a stream of its client keeps too much");
            }
        });
        let response = HttpResponse::builder().header(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        let response = response.body(Body::new(responses));
        response.map_err(|error| Status::internal(error.to_string()))
    }
}

/// The host name that a client asks for: `:authority`, or `Host` from a client that leaves that out, as it may
/// (RFC 9113, 8.3.1). A name that cannot be read is refused, so that nobody who asks for a partition is served everything.
fn authority(request: &HttpRequest<Body>) -> Result<&str, Status> {
    let host = || request.headers().get(http::header::HOST).map(|host| host.to_str());
    let authority = request.uri().authority().map(|authority| Ok(authority.as_str())).or_else(host);
    authority.unwrap_or(Ok("")).map_err(|_| Status::invalid_argument("the header host is no text"))
}

impl<C> NamedService for Ads<C> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<C: Catalog> tower_service::Service<HttpRequest<Body>> for Ads<C> {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let peer = request.extensions().get::<Accepted>().map(|accepted| accepted.peer);
        let answer = self.open(request).unwrap_or_else(|status| {
            let (code, message) = (status.code(), cut(status.message(), 300));
            if self.streams.refuse(peer, code.description()) {
                tracing::warn!(event = "stream_refused", ?peer, ?code, message, "a stream is refused");
            }
            status.into_http()
        });
        Box::pin(std::future::ready(Ok(answer)))
    }
}
