//! TLS settings of clients: which servers they trust, which certificate they show, and the texts of errors.
#![forbid(unsafe_code)]

mod authorities;

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage,
    RootCertStore, SignatureScheme,
};

pub use authorities::system_authorities;

/// Which servers a client accepts.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Every server: the connection is encrypted, but with whom is unknown.
    Anyone,
    /// Servers whose certificate is for their name and signed by one of these (PEM).
    Authorities(&'a [u8]),
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("no certificate of an authority found")]
    NoAuthority,
    #[error("failed to find any PEM data in certificate input")]
    NoCertificate,
    #[error("no valid private key found")]
    NoKey,
    #[error("private key is encrypted: use one without a passphrase")]
    EncryptedKey,
    #[error("private key does not match public key")]
    Mismatch,
    #[error("{0}")]
    Other(rustls::Error),
}

/// Returns the settings of a client with the certificate and the key `identity` (PEM), if the server is
/// to know who it is.
///
/// # Errors
/// Returns an error if something is malformed, or if the key does not belong to the certificate.
pub fn config(
    trust: Trust<'_>,
    identity: Option<(&[u8], &[u8])>,
) -> Result<Arc<ClientConfig>, Unusable> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(Unusable::Other)?;
    let builder = match trust {
        Trust::Anyone => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyone(
                provider.signature_verification_algorithms,
            ))),
        Trust::Authorities(pem) => {
            let mut roots = RootCertStore::empty();
            let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(Unusable::NoAuthority);
            }
            builder.with_root_certificates(roots)
        }
    };
    let Some((chain, key)) = identity else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        // "ENCRYPTED PRIVATE KEY" (PKCS #8) or "Proc-Type: 4,ENCRYPTED".
        let is_encrypted = key.windows(9).any(|window| window == b"ENCRYPTED");
        if is_encrypted {
            Unusable::EncryptedKey
        } else {
            Unusable::NoKey
        }
    })?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .filter_map(Result::ok)
        .collect();
    if chain.is_empty() {
        return Err(Unusable::NoCertificate);
    }
    let config = builder.with_client_auth_cert(chain, key);
    config.map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Unusable::Mismatch,
        other => Unusable::Other(other),
    })
}

/// Returns the name that a server's certificate must be for: that of the host, which may be an address in
/// brackets.
///
/// # Errors
/// Returns an error if it is no name and no address.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(name.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Returns the text that Go has for an error of TLS; `None` for other errors.
pub fn tls_problem(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(error) => {
            let reason = match error {
                CertificateError::UnknownIssuer => "certificate signed by unknown authority".into(),
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => {
                    format!("certificate has expired or is not yet valid: {error}")
                }
                other => other.to_string(),
            };
            format!("tls: failed to verify certificate: x509: {reason}")
        }
        rustls::Error::AlertReceived(alert) => {
            let reason = match alert {
                AlertDescription::BadCertificate => "bad certificate",
                AlertDescription::CertificateExpired => "expired certificate",
                AlertDescription::CertificateRequired => "certificate required",
                AlertDescription::CertificateUnknown => "unknown certificate",
                AlertDescription::UnknownCA => "unknown certificate authority",
                AlertDescription::UnsupportedCertificate => "unsupported certificate",
                other => return Some(format!("remote error: tls: {other:?}")),
            };
            format!("remote error: tls: {reason}")
        }
        // The first byte is none that TLS has. What else the server may speak is not shown.
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "http: server gave HTTP response to HTTPS client".into()
        }
        other => format!("tls: {other}"),
    })
}

/// Accepts every certificate, but checks that the server has its key.
#[derive(Debug)]
struct AcceptAnyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
