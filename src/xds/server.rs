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
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    server::{Grpc, NamedService, StreamingService},
    transport::{
        Server,
        server::{TcpConnectInfo, TcpIncoming},
    },
};

use crate::{
    config::Config,
    proto::envoy::service::discovery::v3::DiscoveryRequest,
    view::View,
    xds::{codec, codec::AdsCodec, stream::Stream, streams::Streams},
};

/// What the server shares with the engine.
#[derive(Debug, Clone)]
pub struct Ads {
    view: watch::Receiver<View>,
    draining: watch::Receiver<bool>,
    streams: Arc<Streams>,
    prime: bool,
    max_streams: usize,
    max_types: usize,
    max_request: usize,
}

impl Ads {
    /// A server of `view` that ends its streams once `draining` is true.
    pub fn new(
        config: &Config,
        view: watch::Receiver<View>,
        draining: watch::Receiver<bool>,
        streams: Arc<Streams>,
    ) -> Self {
        let limits = &config.limits;
        let (max_streams, max_types, max_request) = (limits.streams, limits.types, limits.request);
        Self { view, draining, streams, prime: config.push.prime, max_streams, max_types, max_request }
    }

    /// Serves connections of `listener` until `draining` is true and all are closed.
    pub async fn serve(self, listener: TcpListener) -> Result<(), tonic::transport::Error> {
        let mut draining = self.draining.clone();
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
        let ads = self.clone();
        Box::pin(async move {
            if request.uri().path() != STREAM {
                return Ok(Status::unimplemented("only StreamAggregatedResources is served").into_http());
            }
            let mut grpc = Grpc::new(AdsCodec).max_decoding_message_size(ads.max_request);
            Ok(grpc.streaming(ads, request).await)
        })
    }
}

impl StreamingService<DiscoveryRequest> for Ads {
    type Response = codec::Response;
    type ResponseStream = ReceiverStream<Result<codec::Response, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let ads = self.clone();
        Box::pin(async move {
            let peer: Option<SocketAddr> = request.extensions().get::<TcpConnectInfo>().and_then(|i| i.remote_addr());
            let registered = ads.streams.register(peer, ads.max_streams).ok_or_else(|| {
                Status::resource_exhausted(format!("more than {} streams (mox.limits.streams)", ads.max_streams))
            })?;
            // One response waits for the transport, no more: what comes after it is made later, from a newer view.
            let (out, responses) = mpsc::channel(1);
            let stream = Stream {
                view: ads.view,
                draining: ads.draining,
                registered,
                streams: ads.streams,
                prime: ads.prime,
                max_types: ads.max_types,
                out,
            };
            tokio::spawn(stream.run(request.into_inner()));
            Ok(Response::new(ReceiverStream::new(responses)))
        })
    }
}
