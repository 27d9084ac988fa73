//! TLS for TCP listeners: reads the certificates, and accepts handshakes.
//!
//! A certificate that was renewed is used after [`Tls::reload`], for new connections.

use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison;

use crate::certificate;

/// The PEM files of a TLS server.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authorities whose clients are accepted. Without them, every client is.
    pub clients: Option<PathBuf>,
    /// The server's certificate, followed by those between it and its authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The current TLS configuration.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
}

const MAX_FILE_SIZE: u64 = 1 << 20;

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error that names the file if one is missing or malformed, if the key does not
    /// belong to the certificate, or if the certificate has expired.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>> {
        let config = RwLock::new(files.read()?.into());
        Ok(Arc::new(Self { files, config }))
    }

    /// Reads the files again. Connections that exist are not affected.
    ///
    /// # Errors
    /// See [`Self::load`]; the previous certificates stay in use.
    pub fn reload(&self) -> Result<()> {
        let config = self.files.read()?;
        *self.config.write().ignore_poison() = config.into();
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read().ignore_poison()))
    }

    /// Accepts a handshake. Returns the stream, and the subject of the client's certificate if it
    /// has one. A client that does not speak TLS but HTTP gets the response that Docker sends.
    pub(crate) async fn accept(
        &self,
        mut stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<String>)> {
        if is_http(&stream).await? {
            reject_http(&mut stream).await;
            return Err(Error::other("the client sent HTTP without TLS"));
        }
        match self.acceptor().accept(stream).into_fallible().await {
            Ok(stream) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let subject = certificates
                    .and_then(<[_]>::first)
                    .and_then(|certificate| certificate::parse(certificate))
                    .map(|certificate| certificate.subject);
                Ok((stream, subject))
            }
            Err((error, mut stream)) => {
                // The alert was sent; the client must be able to read it.
                end(&mut stream).await;
                Err(error)
            }
        }
    }
}

impl TlsFiles {
    fn read(&self) -> Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(Error::other)?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots(path)?.into(), provider)
                        .build()
                        .map_err(|error| at("use the CA certificates", path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates("read the certificate", &self.certificate)?;
        check_validity(&chain, &self.certificate)?;
        let key = read("read the key", &self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
            let reason = "no private key in PEM form (an encrypted key cannot be used)";
            at("read the key", &self.key, reason)
        })?;
        warn_if_readable(&self.key);
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let reason = match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!("the key does not belong to {}", self.certificate.display())
                }
                error => error.to_string(),
            };
            at("use the key", &self.key, reason)
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn at(operation: &str, path: &Path, reason: impl std::fmt::Display) -> Error {
    let text = format!("TLS: {operation} {}: {reason}", path.display());
    Error::new(ErrorKind::InvalidInput, text)
}

fn read(operation: &str, path: &Path) -> Result<Vec<u8>> {
    fs::read_at_most(path, MAX_FILE_SIZE).map_err(|error| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("TLS: {operation}: {error}"),
        )
    })
}

/// Returns the certificates of a file, at least one.
fn certificates(operation: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let content = read(operation, path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&content)
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| at(operation, path, error))?;
    if certificates.is_empty() {
        return Err(at(operation, path, "no certificate in PEM form"));
    }
    Ok(certificates)
}

fn roots(path: &Path) -> Result<RootCertStore> {
    const OPERATION: &str = "read the CA certificates";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(OPERATION, path)? {
        roots
            .add(certificate)
            .map_err(|error| at(OPERATION, path, error))?;
    }
    Ok(roots)
}

/// Checks that the server's certificate has not expired: all clients would refuse it.
fn check_validity(chain: &[CertificateDer<'_>], path: &Path) -> Result<()> {
    let parsed = chain.first().and_then(|first| certificate::parse(first));
    let Some(certificate) = parsed else {
        return Err(at("read the certificate", path, "not an X.509 certificate"));
    };
    if certificate.not_after < jiff::Timestamp::now().as_second() {
        let end = jiff::Timestamp::from_second(certificate.not_after).unwrap_or_default();
        return Err(at(
            "use the certificate",
            path,
            format!("it expired at {end}"),
        ));
    }
    Ok(())
}

fn warn_if_readable(key: &Path) {
    // Follows links, unlike `fs::metadata`.
    if let Ok(found) = std::fs::metadata(key)
        && found.permissions().mode() & 0o007 != 0
    {
        tracing::warn!(
            "TLS: the key {} can be read by every user: `chmod o= {}`",
            key.display(),
            key.display()
        );
    }
}

/// Returns whether a client begins with an HTTP request instead of a handshake.
async fn is_http(stream: &TcpStream) -> Result<bool> {
    const METHODS: [&[u8]; 6] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PRI "];
    let mut head = [0; 7];
    let length = stream.peek(&mut head).await?;
    let is_begin = |method: &&[u8]| head[..length].starts_with(method);
    Ok(METHODS.iter().any(is_begin))
}

async fn reject_http(stream: &mut TcpStream) {
    // As Go's server answers: clients show the text.
    const ANSWER: &[u8] =
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    let _ = stream.write_all(ANSWER).await;
    end(stream).await;
}

/// Ends a connection so that the client can read what was sent: closing a socket with unread input
/// resets the connection.
async fn end(stream: &mut TcpStream) {
    const PATIENCE: Duration = Duration::from_secs(1);
    const LIMIT: u64 = 1 << 20;
    let _ = stream.shutdown().await;
    let mut nowhere = tokio::io::sink();
    let mut rest = stream.take(LIMIT);
    let _ = tokio::time::timeout(PATIENCE, tokio::io::copy(&mut rest, &mut nowhere)).await;
}
