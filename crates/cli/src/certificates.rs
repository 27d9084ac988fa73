//! The certificates for a connection over TLS: from the TLS flags and Docker's environment
//! variables, or from a context.

use std::path::{Path, PathBuf};

use clap::Args;
use whelk_client::{Tls, Trust, Unusable};

use crate::{Failure, Outcome, plain};

/// The TLS flags before the command.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TlsFlags {
    /// Use TLS; implied by --tlsverify
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub tls: Option<bool>,
    /// Trust certs signed only by this CA [default: ~/.docker/ca.pem]
    #[arg(long)]
    pub tlscacert: Option<PathBuf>,
    /// Path to TLS certificate file [default: ~/.docker/cert.pem]
    #[arg(long)]
    pub tlscert: Option<PathBuf>,
    /// Path to TLS key file [default: ~/.docker/key.pem]
    #[arg(long)]
    pub tlskey: Option<PathBuf>,
    /// Use TLS and verify the remote
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub tlsverify: Option<bool>,
}

/// The PEM files of a client. An empty path is none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Files {
    pub authorities: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Accepts every server.
    pub skip_verify: bool,
}

impl TlsFlags {
    /// Returns the files to use, or `None` for connections without TLS, by the rules of Docker's
    /// CLI: `--tlsverify` enables TLS whatever its value; only the defaults of the certificate and
    /// the key may be missing. `directory` is where the files are if `DOCKER_CERT_PATH` is not set.
    pub(crate) fn files(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
        directory: Option<&Path>,
    ) -> Option<Files> {
        let is_set = |name| variable(name).is_some();
        let verify = self
            .tlsverify
            .unwrap_or_else(|| is_set("DOCKER_TLS_VERIFY"));
        let uses_tls =
            verify || self.tlsverify.is_some() || self.tls.unwrap_or_else(|| is_set("DOCKER_TLS"));
        if !uses_tls {
            return None;
        }
        let directory = variable("DOCKER_CERT_PATH")
            .map(PathBuf::from)
            .or_else(|| directory.map(Path::to_owned))
            .unwrap_or_default();
        let default = |name: &str| Some(directory.join(name)).filter(|path| path.exists());
        Some(Files {
            authorities: self
                .tlscacert
                .clone()
                .unwrap_or_else(|| directory.join("ca.pem")),
            certificate: self
                .tlscert
                .clone()
                .or_else(|| default("cert.pem"))
                .unwrap_or_default(),
            key: self
                .tlskey
                .clone()
                .or_else(|| default("key.pem"))
                .unwrap_or_default(),
            skip_verify: !verify,
        })
    }

    /// Returns the first flag that asks for TLS.
    pub(crate) fn given(&self) -> Option<&'static str> {
        match (self.tlsverify, self.tls) {
            (Some(_), _) => Some("--tlsverify"),
            (None, Some(true)) => Some("--tls"),
            _ => None,
        }
    }
}

impl Files {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error in Docker's words if one is missing or cannot be used.
    pub(crate) fn load(&self) -> Outcome<Tls> {
        let read = |path: &Path| -> Outcome<Vec<u8>> {
            if path.as_os_str().is_empty() {
                return Ok(Vec::new());
            }
            std::fs::read(path).map_err(|error| {
                let text = format!("open {}: {}", path.display(), plain(&error));
                super::endpoint::unresolved(&text)
            })
        };
        let mut authorities = read(&self.authorities)?;
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        if authorities.is_empty() && !self.skip_verify {
            authorities = system_authorities();
        }
        let trust = match self.skip_verify {
            true => Trust::Anyone,
            false => Trust::Authorities(&authorities),
        };
        let has_identity = !certificate.is_empty() && !key.is_empty();
        let identity = has_identity.then_some((certificate.as_slice(), key.as_slice()));
        Tls::new(trust, identity).map_err(|error| {
            let text = match error {
                Unusable::NoAuthority => {
                    "failed to retrieve context tls info: ca.pem seems invalid".to_owned()
                }
                Unusable::NoKey => error.to_string(),
                Unusable::Mismatch | Unusable::Other(_) => {
                    format!("failed to retrieve context tls info: tls: {error}")
                }
            };
            Failure::new(format!("Failed to initialize: {text}"))
        })
    }
}

/// Returns the certificates of the authorities that this host trusts, from the file that its
/// distribution has; empty if there is none.
fn system_authorities() -> Vec<u8> {
    const FILES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let files = own.into_iter().chain(FILES.map(PathBuf::from));
    files
        .filter_map(|path| std::fs::read(path).ok())
        .next()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_variables_select_the_files() {
        let directory = Path::new("/nonexistent");
        let files = |flags: &TlsFlags, set: &[&str]| {
            let variable = |name: &str| {
                set.contains(&name).then(|| {
                    if name == "DOCKER_CERT_PATH" {
                        "/certs"
                    } else {
                        "1"
                    }
                    .to_owned()
                })
            };
            flags
                .files(&variable, Some(directory))
                .map(|files| (files.authorities.display().to_string(), files.skip_verify))
        };
        let flags = |tls, tlsverify| TlsFlags {
            tls,
            tlsverify,
            ..TlsFlags::default()
        };
        let own = |skip| Some(("/nonexistent/ca.pem".to_owned(), skip));
        assert_eq!(files(&flags(None, None), &[]), None);
        assert_eq!(files(&flags(Some(false), None), &["DOCKER_TLS"]), None);
        assert_eq!(files(&flags(Some(true), None), &[]), own(true));
        assert_eq!(files(&flags(None, None), &["DOCKER_TLS"]), own(true));
        assert_eq!(files(&flags(None, Some(true)), &[]), own(false));
        assert_eq!(files(&flags(None, Some(false)), &[]), own(true));
        assert_eq!(
            files(&flags(None, Some(false)), &["DOCKER_TLS_VERIFY"]),
            own(true)
        );
        assert_eq!(
            files(
                &flags(None, None),
                &["DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"]
            ),
            Some(("/certs/ca.pem".into(), false))
        );
    }
}
