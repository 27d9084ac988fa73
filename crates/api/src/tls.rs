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
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
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
    /// Reads the files. An expired certificate is only logged as an error, because the engine has to
    /// start and serve its other sockets.
    ///
    /// # Errors
    /// Returns an error that names the file if one is missing or malformed, or if the key does not
    /// belong to the certificate.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>> {
        let (config, validity) = files.read()?;
        if let Err(error) = validity {
            tracing::error!("{error}; clients will refuse it: renew it and send SIGHUP");
        }
        let config = RwLock::new(config.into());
        Ok(Arc::new(Self { files, config }))
    }

    /// Reads the files again. Connections that exist are not affected.
    ///
    /// # Errors
    /// See [`Self::load`]; also if the certificate has expired. The previous certificates stay in
    /// use.
    pub fn reload(&self) -> Result<()> {
        let (config, validity) = self.files.read()?;
        validity?;
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
                    .map(|certificate| subject(certificate));
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

/// Returns the subject of a client's certificate.
fn subject(certificate: &CertificateDer<'_>) -> String {
    match certificate::parse(certificate).map(|certificate| certificate.subject) {
        Some(subject) if !subject.is_empty() => subject,
        _ => "a certificate without a name".into(),
    }
}

impl TlsFiles {
    /// Returns the configuration, and whether the certificate can be used now.
    fn read(&self) -> Result<(ServerConfig, Result<()>)> {
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
        let validity = check_validity(&chain, &self.certificate);
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
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session skips the verification of the client's certificate, which may have
        // expired, or whose authority may have been removed, since then.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((config, validity))
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
    let (used, skipped) = roots.add_parsable_certificates(certificates(OPERATION, path)?);
    if used == 0 {
        return Err(at(OPERATION, path, "no certificate that can be used"));
    }
    if skipped > 0 {
        tracing::warn!(
            "TLS: {skipped} of the CA certificates in {} cannot be used and are skipped",
            path.display()
        );
    }
    Ok(roots)
}

/// Checks that the server's certificate has not expired: all clients would refuse it. Whether it is a
/// certificate at all is checked by `rustls`.
fn check_validity(chain: &[CertificateDer<'_>], path: &Path) -> Result<()> {
    let parsed = chain.first().and_then(|first| certificate::parse(first));
    if let Some(certificate) = parsed
        && certificate.not_after < jiff::Timestamp::now().as_second()
    {
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
    const READABLE_BY_OTHERS: u32 = 0o004;
    // Follows links, unlike `fs::metadata`.
    if let Ok(found) = std::fs::metadata(key)
        && found.permissions().mode() & READABLE_BY_OTHERS != 0
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
    // The response of Go's server, whose text clients show.
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

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};
    use rustls::{ClientConfig, HandshakeKind};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// Files of a server and a client, removed on drop.
    struct Files {
        directory: PathBuf,
        authority: (Issuer<'static, KeyPair>, CertificateDer<'static>),
    }

    impl Files {
        fn new(name: &str) -> Self {
            let directory =
                std::env::temp_dir().join(format!("whelk-tls-{}-{name}", std::process::id()));
            fs::create_dir(&directory, 0o700).unwrap();
            let mut parameters = CertificateParams::new(Vec::new()).unwrap();
            parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = parameters.self_signed(&key).unwrap();
            std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
            let authority = (Issuer::new(parameters, key), certificate.der().clone());
            let files = Self {
                directory,
                authority,
            };
            files.issue(2100);
            files
        }

        /// Issues the server's certificate, with the year of its end.
        fn issue(&self, year: i32) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
            parameters.not_before = date_time_ymd(2001, 1, 1);
            parameters.not_after = date_time_ymd(year, 1, 1);
            let key = KeyPair::generate().unwrap();
            let certificate = parameters.signed_by(&key, &self.authority.0).unwrap();
            std::fs::write(self.directory.join("cert.pem"), certificate.pem()).unwrap();
            std::fs::write(self.directory.join("key.pem"), key.serialize_pem()).unwrap();
            (certificate.der().clone(), key.into())
        }

        fn load(&self) -> Result<Arc<Tls>> {
            let path = |name: &str| self.directory.join(name);
            Tls::load(TlsFiles {
                clients: Some(path("ca.pem")),
                certificate: path("cert.pem"),
                key: path("key.pem"),
            })
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    #[tokio::test]
    async fn sessions_are_not_resumed() {
        let files = Files::new("sessions");
        let mut roots = RootCertStore::empty();
        roots.add(files.authority.1.clone()).unwrap();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (certificate, key) = files.issue(2100);
            let tls = files.load().unwrap();
            let provider = rustls::crypto::ring::default_provider();
            let config = ClientConfig::builder_with_provider(provider.into())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(vec![certificate], key)
                .unwrap();
            let connector = TlsConnector::from(Arc::new(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            for _ in 0..2 {
                let server = async {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (mut stream, subject) = tls.accept(stream).await.unwrap();
                    // Tickets arrive before the data.
                    stream.write_all(b"x").await.unwrap();
                    stream.flush().await.unwrap();
                    (stream, subject)
                };
                let client = async {
                    let stream = TcpStream::connect(address).await.unwrap();
                    let name = "localhost".try_into().unwrap();
                    let mut stream = connector.connect(name, stream).await.unwrap();
                    stream.read_exact(&mut [0; 1]).await.unwrap();
                    stream.get_ref().1.handshake_kind()
                };
                let ((_, subject), kind) = tokio::join!(server, client);
                assert_eq!(kind, Some(HandshakeKind::Full), "{version:?}");
                assert_eq!(subject.as_deref(), Some("CN=rcgen self signed cert"));
            }
        }
    }

    #[test]
    fn an_expired_certificate_is_refused_by_reload_only() {
        let files = Files::new("expired");
        files.issue(2002);
        let tls = files.load().unwrap();
        let refused = tls.reload().unwrap_err().to_string();
        assert!(
            refused.contains("it expired at 2002-01-01T00:00:00Z"),
            "{refused}"
        );
        files.issue(2100);
        tls.reload().unwrap();
    }

    #[test]
    fn bad_certificates_of_authorities_are_skipped() {
        let files = Files::new("bundle");
        let path = files.directory.join("ca.pem");
        let good = std::fs::read_to_string(&path).unwrap();
        let bad = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, format!("{bad}{good}")).unwrap();
        assert_eq!(roots(&path).unwrap().len(), 1);
        std::fs::write(&path, bad).unwrap();
        let refused = roots(&path).unwrap_err().to_string();
        assert!(
            refused.ends_with("ca.pem: no certificate that can be used"),
            "{refused}"
        );
    }
}
