//! The server's certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

const MAX_FILE: u64 = 1 << 20;

/// A TLS server's configuration, read from files in PEM form.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: Mutex<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error that names the file if one is missing or malformed, or if the key does not
    /// belong to the certificate.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, String> {
        Ok(Self {
            config: Mutex::new(read(&certificate, &key)?.into()),
            certificate,
            key,
        })
    }

    /// Reads the files again, for new connections.
    ///
    /// # Errors
    /// See [`Self::load`]; what was read before stays in use.
    pub fn reload(&self) -> Result<(), String> {
        *self.config.lock().ignore_poison() = read(&self.certificate, &self.key)?.into();
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.lock().ignore_poison()))
    }
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, String> {
    let read = |path: &Path| fs::read_at_most(path, MAX_FILE).map_err(|error| error.to_string());
    let at = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| at(certificate, &error))?;
    if chain.is_empty() {
        return Err(at(certificate, &"no certificate in PEM form"));
    }
    let parsed = PrivateKeyDer::from_pem_slice(&read(key)?);
    let parsed = parsed.map_err(|_| at(key, &"no private key in PEM form"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, parsed)
        .map_err(|error| at(key, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
