//! The MoX listener over TLS, with certificates made here.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use harness::{
    Mox, SOON,
    client::{MoxClient, framed, node},
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use registry_mox::proto::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde_json::json;
use tokio::net::TcpStream;

struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
struct Identity {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap(), key }
    }

    fn trust(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }
}

struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("mox-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn write(&self, name: &str, pem: &str) -> PathBuf {
        let file = self.0.join(name);
        std::fs::write(&file, pem).unwrap();
        file
    }

    fn identity(&self, identity: &Identity) -> serde_json::Value {
        json!({
            "cert": self.write("cert.pem", &identity.certificate.pem()),
            "key": self.write("key.pem", &identity.key.serialize_pem()),
        })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn client(roots: RootCertStore, identity: Option<&Identity>) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Asks for ServiceEntries over TLS; the server's certificate, if it answers.
async fn ask(address: SocketAddr, config: Arc<ClientConfig>) -> Result<CertificateDer<'static>, String> {
    let talk = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream =
            connector.connect("mox.test".try_into().unwrap(), stream).await.map_err(|error| error.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let (client, connection) = h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.map_err(|error| error.to_string())?;
        let path = "https://mox.test/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
        let request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
        let (answer, mut out) =
            client.send_request(request.body(()).unwrap(), false).map_err(|error| error.to_string())?;
        let type_url = "networking.istio.io/v1/ServiceEntry".into();
        let body = DiscoveryRequest { node: Some(node("client")), type_url, ..DiscoveryRequest::default() };
        out.send_data(framed(&body.encode_to_vec()), false).map_err(|error| error.to_string())?;
        let data: Option<Result<Bytes, _>> = answer.await.map_err(|error| error.to_string())?.into_body().data().await;
        connection.abort();
        data.ok_or("no answer")?.map_err(|error| error.to_string())?;
        Ok(shown)
    };
    tokio::time::timeout(SOON, talk).await.expect("an end in time")
}

#[tokio::test]
async fn tls_with_the_servers_certificate_read_again_when_it_changes() {
    let (files, authority) = (Files::new("reload"), Authority::new());
    let first = authority.issue("mox.test");
    let mox = Mox::open(json!({ "tls": files.identity(&first) }));
    mox.engine.loaded();
    let address = mox.engine.listen().unwrap().mox;
    let config = || client(authority.trust(), None);
    assert_eq!(ask(address, config()).await.unwrap(), *first.certificate.der());
    assert!(ask(address, client(Authority::new().trust(), None)).await.is_err(), "a client that trusts another");
    let plain = MoxClient::connect(&address.to_string(), Node::default()).await;
    assert!(plain.is_err(), "no plaintext");
    // While the two files do not belong together the certificate before stays.
    let second = authority.issue("mox.test");
    files.write("cert.pem", "nonsense");
    let shown = until_changed(address, &config, &first, Duration::from_millis(1_500)).await;
    assert_eq!(shown, *first.certificate.der());
    files.identity(&second);
    let shown = until_changed(address, &config, &first, SOON).await;
    assert_eq!(shown, *second.certificate.der());
}

/// The certificate that is shown as soon as it is another than `before`, or after `within`.
async fn until_changed(
    address: SocketAddr,
    config: &dyn Fn() -> Arc<ClientConfig>,
    before: &Identity,
    within: Duration,
) -> CertificateDer<'static> {
    let deadline = tokio::time::Instant::now() + within;
    loop {
        let shown = ask(address, config()).await.unwrap();
        if shown != *before.certificate.der() || tokio::time::Instant::now() > deadline {
            return shown;
        }
        tokio::time::sleep(Duration::from_millis(50)).await; // the polling interval
    }
}

#[tokio::test]
async fn with_an_authority_for_clients_only_they_are_let_in() {
    let (files, authority, others) = (Files::new("client"), Authority::new(), Authority::new());
    let mut tls = files.identity(&authority.issue("mox.test"));
    tls["clientCa"] = json!(files.write("clients.pem", &others.0.pem()));
    let mox = Mox::open(json!({ "tls": tls }));
    mox.engine.loaded();
    let address = mox.engine.listen().unwrap().mox;
    assert!(ask(address, client(authority.trust(), None)).await.is_err());
    let stranger = authority.issue("istiod");
    assert!(ask(address, client(authority.trust(), Some(&stranger))).await.is_err());
    let friend = others.issue("istiod");
    ask(address, client(authority.trust(), Some(&friend))).await.unwrap();
}

#[test]
fn a_file_that_is_of_no_use_is_named() {
    let files = Files::new("bad");
    let authority = Authority::new();
    let good = files.identity(&authority.issue("mox.test"));
    let bad = files.write("bad.pem", "nonsense");
    for (setting, says) in [("cert", "mox.tls.cert"), ("key", "mox.tls.key"), ("clientCa", "mox.tls.clientCa")] {
        let mut tls = good.clone();
        tls[setting] = json!(bad);
        let mox = Mox::closed(json!({ "listen": "127.0.0.1:0", "tls": tls }));
        let error = mox.engine.listen().unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("bad.pem"), "{error}");
    }
}
