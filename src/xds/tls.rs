//! TLS of the MoX listeners. Files that change are read again by the next connection.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
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
    config: ArcSwap<ServerConfig>,
    /// When the files were looked at last.
    looked: Mutex<Instant>,
    /// When the files that were read last were modified. Locked while files are read, so that one thread does.
    modified: Mutex<Vec<Option<SystemTime>>>,
}

impl Tls {
    /// Reads the files; `None` if there are to be none.
    pub fn open(files: &TlsFiles) -> Result<Option<Arc<Self>>> {
        let (Some(cert), Some(key)) = (&files.cert, &files.key) else { return Ok(None) };
        let modified = Mutex::new(modified(files));
        let config = ArcSwap::from_pointee(load(cert, key, files.client_ca.as_deref())?);
        let looked = Mutex::new(Instant::now());
        Ok(Some(Arc::new(Self { files: files.clone(), config, looked, modified })))
    }

    /// Shakes hands, with the certificate that the files have now.
    pub async fn accept(self: &Arc<Self>, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        if self.is_to_look() {
            // Files are read where they keep no stream waiting, however slow their disk is.
            let tls = Arc::clone(self);
            let _ = tokio::task::spawn_blocking(move || tls.look()).await;
        }
        TlsAcceptor::from(self.config.load_full()).accept(stream).await
    }

    /// Whether the files were not looked at for a while; if so the caller is to.
    fn is_to_look(&self) -> bool {
        let mut looked = self.looked.lock();
        let is_to = looked.elapsed() >= LOOK;
        if is_to {
            *looked = Instant::now();
        }
        is_to
    }

    /// Reads the files if they have changed.
    fn look(&self) {
        let (Some(cert), Some(key)) = (&self.files.cert, &self.files.key) else { return };
        // If the lock is taken, another thread reads the files.
        let Some(mut known) = self.modified.try_lock() else { return };
        let modified = modified(&self.files);
        if modified == *known {
            return;
        }
        match load(cert, key, self.files.client_ca.as_deref()) {
            Ok(config) => {
                self.config.store(Arc::new(config));
                tracing::info!(event = "certificate_read", "the certificate was read again");
            }
            Err(error) => {
                tracing::error!(
                    event = "certificate_refused",
                    %error,
                    "the changed certificate is of no use, the one before stays"
                );
            }
        }
        *known = modified;
    }
}

/// When each of the files was modified; `None`: no such file.
fn modified(files: &TlsFiles) -> Vec<Option<SystemTime>> {
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
