//! TLS connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use whelk_tls::{Trust, Unusable, server_name, tls_problem};

use crate::transport::{late, tcp};

/// How long a server may take for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS settings of a client.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ClientConfig>);

impl PartialEq for Tls {
    /// Compares identity, not content.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

impl Tls {
    /// As [`whelk_tls::config`].
    ///
    /// # Errors
    /// Returns an error if something is malformed, or if the key does not belong to the
    /// certificate.
    pub fn new(trust: Trust<'_>, identity: Option<(&[u8], &[u8])>) -> Result<Self, Unusable> {
        whelk_tls::config(trust, identity).map(Self)
    }

    /// Opens a connection to `HOST:PORT`, with limits for the time of each step.
    pub(crate) async fn connect(&self, address: &str) -> io::Result<TlsStream<TcpStream>> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = server_name(host)?;
        self.secure(name, tcp(address).await?).await
    }

    /// Begins TLS on an open connection to `host`, which may be an address in brackets, within a time
    /// limit.
    ///
    /// # Errors
    /// Returns an error if the handshake fails ([`tls_reason`]).
    pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        self.secure(server_name(host)?, stream).await
    }

    async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: ServerName<'static>,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        let handshake = TlsConnector::from(self.0.clone()).connect(name, stream);
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .unwrap_or_else(|_| Err(late("TLS handshake timeout")))
    }
}

/// Returns the text that Docker's client has for an error of TLS; `None` for other errors.
pub fn tls_reason(error: &io::Error) -> Option<String> {
    let reason = tls_problem(error)?;
    let is_about_client = matches!(
        error.get_ref()?.downcast_ref::<rustls::Error>()?,
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRequired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        )
    );
    Some(if is_about_client {
        format!(
            "the server probably has client authentication (--tlsverify) enabled; check your TLS client certification settings: {reason}"
        )
    } else {
        reason
    })
}
