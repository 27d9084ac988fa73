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

/// The PEM files of a client.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Files {
    /// The file of trusted authorities; `None` for those that this host trusts.
    pub authorities: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Accepts every server.
    pub skip_verify: bool,
}

impl TlsFlags {
    /// Returns the files to use, or `None` for connections without TLS, by the rules of Docker's
    /// CLI: `--tlsverify` enables TLS whatever its value; only the defaults of the certificate and
    /// the key may be missing, and an empty path is none. The defaults are in `DOCKER_CERT_PATH`,
    /// or in the configuration directory, whatever `--config` is.
    ///
    /// # Errors
    /// Returns an error if it cannot be determined whether a default exists, or if a file named by a
    /// flag would be ignored: without a flag that enables TLS, Docker's CLI connects without it, and
    /// with only one of certificate and key it does not authenticate.
    pub(crate) fn files(
        &self,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Files>, String> {
        let is_set = |name| variable(name).is_some();
        let verify = self
            .tlsverify
            .unwrap_or_else(|| is_set("DOCKER_TLS_VERIFY"));
        let uses_tls =
            verify || self.tlsverify.is_some() || self.tls.unwrap_or_else(|| is_set("DOCKER_TLS"));
        if !uses_tls {
            return match self.given_file().filter(|_| self.tls.is_none()) {
                Some(flag) => Err(format!(
                    "{flag}: without TLS, the file is not used: use --tlsverify, or --tls=false for plain text"
                )),
                None => Ok(None),
            };
        }
        let directory = ["DOCKER_CERT_PATH", "DOCKER_CONFIG"]
            .iter()
            .find_map(|name| variable(name).map(PathBuf::from))
            .or_else(|| Some(Path::new(&variable("HOME")?).join(".docker")))
            .unwrap_or_default();
        let given = |path: &Path| Some(path.to_owned()).filter(|path| path != Path::new(""));
        let or_default = |flag: &Option<PathBuf>, name: &str| match flag {
            Some(path) => Ok(given(path)),
            None => if_exists(directory.join(name)),
        };
        let certificate = or_default(&self.tlscert, "cert.pem")?;
        let key = or_default(&self.tlskey, "key.pem")?;
        match (&certificate, &key) {
            (Some(path), None) if self.tlscert.is_some() => Err(format!(
                "--tlscert: the certificate {} is not used without a key: use --tlskey",
                path.display()
            )),
            (None, Some(path)) if self.tlskey.is_some() => Err(format!(
                "--tlskey: the key {} is not used without a certificate: use --tlscert",
                path.display()
            )),
            _ => Ok(Some(Files {
                authorities: match &self.tlscacert {
                    Some(path) => given(path),
                    None => Some(directory.join("ca.pem")),
                },
                certificate,
                key,
                skip_verify: !verify,
            })),
        }
    }

    /// Returns the first given flag that has an effect only with TLS.
    pub(crate) fn given(&self) -> Option<&'static str> {
        match (self.tlsverify, self.tls) {
            (Some(_), _) => Some("--tlsverify"),
            (None, Some(true)) => Some("--tls"),
            (None, None) => self.given_file(),
            (None, Some(false)) => None,
        }
    }

    fn given_file(&self) -> Option<&'static str> {
        [
            ("--tlscacert", &self.tlscacert),
            ("--tlscert", &self.tlscert),
            ("--tlskey", &self.tlskey),
        ]
        .iter()
        .find_map(|(flag, path)| path.as_ref().map(|_| *flag))
    }
}

/// Returns the path of a file if it exists.
///
/// # Errors
/// Returns an error that names the file if that cannot be determined: a connection without it would
/// silently be less protected than requested.
pub(crate) fn if_exists(path: PathBuf) -> Result<Option<PathBuf>, String> {
    match std::fs::metadata(&path) {
        Ok(_) => Ok(Some(path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("stat {}: {}", path.display(), plain(&error))),
    }
}

impl Files {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error with Docker's text if one is missing or cannot be used.
    pub(crate) fn load(&self) -> Outcome<Tls> {
        let unusable = |text: &str| Failure::new(format!("Failed to initialize: {text}"));
        let read = |path: &PathBuf| -> Outcome<Vec<u8>> {
            std::fs::read(path).map_err(|error| {
                let text = format!("open {}: {}", path.display(), plain(&error));
                super::endpoint::unresolved(&text)
            })
        };
        let given = self.authorities.as_ref().map(read).transpose()?;
        let certificate = self.certificate.as_ref().map(read).transpose()?;
        let key = self.key.as_ref().map(read).transpose()?;
        let authorities = match given {
            _ if self.skip_verify => Vec::new(),
            Some(authorities) => authorities,
            None => whelk_client::system_authorities().map_err(|reason| unusable(&reason))?,
        };
        let trust = match self.skip_verify {
            true => Trust::Anyone,
            false => Trust::Authorities(&authorities),
        };
        let identity = certificate.as_deref().zip(key.as_deref());
        Tls::new(trust, identity).map_err(|error| {
            let named = |path: &Option<PathBuf>| match path {
                Some(path) => format!(" ({})", path.display()),
                None => String::new(),
            };
            unusable(&match error {
                Unusable::NoAuthority => format!(
                    "failed to retrieve context tls info: ca.pem seems invalid{}",
                    named(&self.authorities)
                ),
                Unusable::NoKey | Unusable::EncryptedKey => {
                    format!("{error}{}", named(&self.key))
                }
                Unusable::NoCertificate | Unusable::Mismatch | Unusable::Other(_) => format!(
                    "failed to retrieve context tls info: tls: {error}{}",
                    named(&self.certificate)
                ),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn flags_and_variables_select_the_files() {
        let files = |flags: &TlsFlags, set: &[&str]| {
            let variable = |name: &str| {
                let value = match name {
                    "HOME" => return Some("/nonexistent".to_owned()),
                    "DOCKER_CERT_PATH" => "/nonexistent/certs",
                    "DOCKER_CONFIG" => "/nonexistent/config",
                    _ => "1",
                };
                set.contains(&name).then(|| value.to_owned())
            };
            let files = flags.files(&variable).unwrap();
            files.map(|files| {
                let path = files.authorities.unwrap_or_default();
                (path.display().to_string(), files.skip_verify)
            })
        };
        let flags = |tls, tlsverify| TlsFlags {
            tls,
            tlsverify,
            ..TlsFlags::default()
        };
        let own = |skip| Some(("/nonexistent/.docker/ca.pem".to_owned(), skip));
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
        for (place, path) in [
            ("DOCKER_CERT_PATH", "/nonexistent/certs/ca.pem"),
            ("DOCKER_CONFIG", "/nonexistent/config/ca.pem"),
        ] {
            assert_eq!(
                files(&flags(None, None), &["DOCKER_TLS_VERIFY", place]),
                Some((path.into(), false))
            );
        }
    }

    #[test]
    fn a_certificate_needs_a_key() {
        let variable = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        let pem = Some(PathBuf::from("x.pem"));
        let with = |tlscert: &Option<PathBuf>, tlskey: &Option<PathBuf>| TlsFlags {
            tls: Some(true),
            tlscert: tlscert.clone(),
            tlskey: tlskey.clone(),
            ..TlsFlags::default()
        };
        for (flags, text) in [
            (
                with(&pem, &None),
                "--tlscert: the certificate x.pem is not used",
            ),
            (with(&None, &pem), "--tlskey: the key x.pem is not used"),
        ] {
            let refused = flags.files(&variable).unwrap_err();
            assert!(refused.contains(text), "{refused}");
        }
        assert!(with(&pem, &pem).files(&variable).is_ok());
    }

    #[test]
    fn unusable_files_are_named() {
        let scratch = Scratch::temporary("pem").unwrap();
        let directory = scratch.path();
        let told = |certificate: &str, key: &str| {
            let write = |name: &str, content: &str| {
                let path = directory.join(name);
                std::fs::write(&path, content).unwrap();
                Some(path)
            };
            let files = Files {
                authorities: None,
                certificate: write("cert.pem", certificate),
                key: write("key.pem", key),
                skip_verify: true,
            };
            files.load().unwrap_err().text
        };
        let key = "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n";
        for (certificate, key, text) in [
            ("", "", "no valid private key found ("),
            (
                "",
                key,
                "failed to find any PEM data in certificate input (",
            ),
            (
                "",
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "private key is encrypted: use one without a passphrase (",
            ),
        ] {
            let told = told(certificate, key);
            assert!(told.contains(text), "{told}");
        }
    }
}
