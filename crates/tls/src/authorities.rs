//! The authorities whose signature on a server's certificate this host accepts.

use std::io;
use std::path::Path;

/// Where distributions keep the certificates of authorities.
const FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Returns the certificates (PEM) of the authorities that this host trusts: those in the file that
/// `SSL_CERT_FILE` names, or else in the file of its distribution.
///
/// # Errors
/// Returns a text that names the file if it cannot be read, or if there is none.
pub fn system_authorities() -> Result<Vec<u8>, String> {
    // A file named by `SSL_CERT_FILE` replaces the distribution's.
    if let Some(own) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        return read(Path::new(&own)).map_err(|error| cannot_open(Path::new(&own), &error));
    }
    for path in FILES.map(Path::new) {
        match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return outcome.map_err(|error| cannot_open(path, &error)),
        }
    }
    Err("this host has no certificates of authorities: install them (ca-certificates)".into())
}

#[allow(
    clippy::disallowed_methods,
    reason = "the caller's text names the path, in the words of Go"
)]
fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    let text = error.to_string();
    let cause = text.split(" (os error").next().unwrap_or_default();
    format!("open {}: {}", path.display(), cause.to_lowercase())
}
