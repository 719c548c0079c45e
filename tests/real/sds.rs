//! Gives a proxy its certificate, as Istio's agent does: a server of Envoy's SecretDiscoveryService that knows the two
//! secrets of a sidecar and reads each from files.

use std::{
    convert::Infallible,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use prost::{Message, bytes::BytesMut};
use registry_mox::{
    proto::{envoy::service::discovery::v3::DiscoveryRequest, google::protobuf::Any},
    testing::xds::{
        budget::Budget,
        codec::{self, Outgoing, Response},
        limits::MaxBytes,
        requests::Requests,
        subscription::ResponseContent,
    },
};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::{
    body::Body,
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};
use tower_service::Service;

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

// The parts of `envoy/extensions/transport_sockets/tls/v3/secret.proto` that are needed here.
#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    tls_certificate: Option<TlsCertificate>,
    #[prost(message, optional, tag = "4")]
    validation_context: Option<ValidationContext>,
}

#[derive(Clone, PartialEq, Message)]
struct TlsCertificate {
    #[prost(message, optional, tag = "1")]
    certificate_chain: Option<DataSource>,
    #[prost(message, optional, tag = "2")]
    private_key: Option<DataSource>,
}

#[derive(Clone, PartialEq, Message)]
struct ValidationContext {
    #[prost(message, optional, tag = "1")]
    trusted_ca: Option<DataSource>,
}

#[derive(Clone, PartialEq, Message)]
struct DataSource {
    #[prost(bytes = "vec", tag = "2")]
    inline_bytes: Vec<u8>,
}

/// Serves while it lives.
pub(crate) struct Sds {
    _runtime: Runtime,
    pub(crate) address: SocketAddr,
}

impl Sds {
    /// With what `certificates.sh` made for a name.
    pub(crate) fn start(address: Ipv4Addr, certificates: PathBuf, name: &'static str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((address, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let service = Secrets { certificates, name };
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        Self { _runtime: runtime, address }
    }
}

#[derive(Clone)]
struct Secrets {
    certificates: PathBuf,
    name: &'static str,
}

impl Secrets {
    fn secret(&self, name: &str) -> Secret {
        let read = |file: String| {
            let path = self.certificates.join(file);
            Some(DataSource { inline_bytes: fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) })
        };
        let mut secret = Secret { name: name.to_owned(), ..Secret::default() };
        if name == "ROOTCA" {
            secret.validation_context = Some(ValidationContext { trusted_ca: read("root.pem".to_owned()) });
        } else {
            secret.tls_certificate = Some(TlsCertificate {
                certificate_chain: read(format!("{}.pem", self.name)),
                private_key: read(format!("{}.key", self.name)),
            });
        }
        secret
    }
}

impl NamedService for Secrets {
    const NAME: &'static str = "envoy.service.secret.v3.SecretDiscoveryService";
}

impl Service<http::Request<Body>> for Secrets {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let account = Arc::new(Budget::new(MaxBytes::ANY)).open();
        let mut requests = Requests::<DiscoveryRequest>::new(request.into_body(), 1 << 20, account);
        let (outbox, responses) = codec::exit();
        let secrets = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.next().await {
                let Ok((request, _held)) = request.decode() else { return };
                if !request.response_nonce.is_empty() {
                    continue; // an acknowledgement
                }
                let mut page = BytesMut::new();
                for name in &request.resource_names {
                    let value = secrets.secret(name).encode_to_vec().into();
                    prost::encoding::message::encode(2, &Any { type_url: TYPE.to_owned(), value }, &mut page);
                }
                let response = Response {
                    type_url: TYPE.to_owned(),
                    version: "1".into(),
                    nonce: "1".to_owned(),
                    content: ResponseContent { pages: vec![page.freeze()], removed: Vec::new() },
                    delta: false,
                    handed: Arc::default(),
                };
                if !outbox.has_room().await {
                    return;
                }
                outbox.send(Ok(Outgoing::Response(response)));
            }
        });
        let response = http::Response::builder().header(http::header::CONTENT_TYPE, "application/grpc");
        Box::pin(async { Ok(response.body(Body::new(responses)).unwrap()) })
    }
}
