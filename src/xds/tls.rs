//! TLS of the MoX listeners. Files that change are read again by the next connection.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    config::TlsFiles,
    error::{Error, Result},
};

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Certificates, kept up with their files.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    state: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Vec<Option<SystemTime>>,
    looked: Instant,
}

impl Tls {
    /// Reads the files; `None` if there are to be none.
    pub fn open(files: &TlsFiles) -> Result<Option<Self>> {
        let (Some(cert), Some(key)) = (&files.cert, &files.key) else { return Ok(None) };
        let stamps = stamps(files);
        let config = Arc::new(load(cert, key, files.client_ca.as_deref())?);
        let state = Mutex::new(Loaded { config, stamps, looked: Instant::now() });
        Ok(Some(Self { files: files.clone(), state }))
    }

    /// Shakes hands.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config()).accept(stream).await
    }

    fn config(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock();
        if state.looked.elapsed() < LOOK {
            return Arc::clone(&state.config);
        }
        state.looked = Instant::now();
        let stamps = stamps(&self.files);
        if stamps != state.stamps
            && let (Some(cert), Some(key)) = (&self.files.cert, &self.files.key)
        {
            match load(cert, key, self.files.client_ca.as_deref()) {
                Ok(config) => {
                    state.config = Arc::new(config);
                    tracing::info!("the certificate was read again");
                }
                Err(error) => tracing::error!(%error, "the changed certificate is of no use, the one before stays"),
            }
            state.stamps = stamps;
        }
        Arc::clone(&state.config)
    }
}

fn stamps(files: &TlsFiles) -> Vec<Option<SystemTime>> {
    let files = [&files.cert, &files.key, &files.client_ca];
    files.into_iter().flatten().map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok()).collect()
}

fn load(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<ServerConfig> {
    let wrong = |setting: &str, file: &Path, error: &dyn std::fmt::Display| {
        Error::Config(format!("mox.tls.{setting}: \"{}\": {error}", file.display()))
    };
    let chain = certificates(cert).map_err(|error| wrong("cert", cert, &error))?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Internal(error.to_string()))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for ca in certificates(file).map_err(|error| wrong("clientCa", file, &error))? {
                roots.add(ca).map_err(|error| wrong("clientCa", file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong("clientCa", file, &error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key_der).map_err(|error| wrong("cert", cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(file: &Path) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
    let read = |error: rustls::pki_types::pem::Error| error.to_string();
    let all: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(read)?.collect::<std::result::Result<_, _>>().map_err(read)?;
    if all.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(all) }
}
