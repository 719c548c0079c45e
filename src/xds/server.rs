//! The gRPC listener.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request as HttpRequest, Response as HttpResponse};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tonic::{
    Status, Streaming,
    body::Body,
    metadata::GRPC_CONTENT_TYPE,
    server::NamedService,
    transport::{
        Server,
        server::{TcpConnectInfo, TcpIncoming},
    },
};

use crate::{
    config::Config,
    view::View,
    xds::{
        codec::{RequestDecoder, ResponseBody},
        stream::Stream,
        streams::Streams,
    },
};

/// What ends streams.
#[derive(Debug, Clone)]
pub struct Ends {
    /// The server stops.
    pub draining: watch::Receiver<bool>,
    /// Clients are to go to another server.
    pub fenced: watch::Receiver<bool>,
}

/// What the server shares with the engine.
#[derive(Debug, Clone)]
pub struct Ads {
    view: watch::Receiver<View>,
    ends: Ends,
    streams: Arc<Streams>,
    prime: bool,
    max_streams: usize,
    max_types: usize,
    max_request: usize,
}

impl Ads {
    /// A server of `view` that ends its streams as `ends` says.
    pub fn new(config: &Config, view: watch::Receiver<View>, ends: Ends, streams: Arc<Streams>) -> Self {
        let limits = &config.limits;
        let (max_streams, max_types, max_request) = (limits.streams, limits.types, limits.request);
        Self { view, ends, streams, prime: config.push.prime, max_streams, max_types, max_request }
    }

    /// Serves connections of `listener` until it is draining and all are closed.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let mut draining = self.ends.draining.clone();
        Server::builder()
            // Half-open connections go after 40 s; a connection without traffic is none.
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(self)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async move {
                let _ = draining.wait_for(|draining| *draining).await;
            })
            .await
    }
}

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

const STREAM: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

impl tower_service::Service<HttpRequest<Body>> for Ads {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let answer = self.open(request).unwrap_or_else(|status| status.into_http());
        Box::pin(std::future::ready(Ok(answer)))
    }
}

impl Ads {
    /// Starts a stream.
    fn open(&self, request: HttpRequest<Body>) -> Result<HttpResponse<Body>, Status> {
        if request.uri().path() != STREAM {
            return Err(Status::unimplemented("only StreamAggregatedResources is served"));
        }
        let peer: Option<SocketAddr> = request.extensions().get::<TcpConnectInfo>().and_then(|info| info.remote_addr());
        let registered = self.streams.register(peer, self.max_streams).ok_or_else(|| {
            Status::resource_exhausted(format!("more than {} streams (mox.limits.streams)", self.max_streams))
        })?;
        let requests = Streaming::new_request(RequestDecoder, request.into_body(), None, Some(self.max_request));
        // One response waits for the transport, no more: what comes after it is made later, from a newer view.
        let (out, responses) = mpsc::channel(1);
        let stream = Stream {
            view: self.view.clone(),
            ends: self.ends.clone(),
            registered,
            streams: Arc::clone(&self.streams),
            prime: self.prime,
            max_types: self.max_types,
            out,
        };
        tokio::spawn(stream.run(requests));
        let response = HttpResponse::builder().header(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        let response = response.body(Body::new(ResponseBody::new(responses)));
        response.map_err(|error| Status::internal(error.to_string()))
    }
}
