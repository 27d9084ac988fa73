//! Certificates for tests of TLS.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(parameters, key),
            certificate,
        }
    }

    /// Creates `ca.pem`, `cert.pem` and `key.pem` in a directory: a certificate for this host's
    /// loopback addresses, for servers and clients.
    pub fn issue(&self, directory: &Path, name: &str) {
        self.issue_until(directory, name, 2100);
    }

    /// Like [`issue`](Self::issue), with the year of the certificate's end.
    pub fn issue_until(&self, directory: &Path, name: &str, year: i32) {
        self.create(directory, name, &["localhost", "127.0.0.1", "::1"], year);
    }

    /// Like [`issue`](Self::issue), for a host of this name.
    pub fn issue_for(&self, directory: &Path, host: &str) {
        self.create(directory, host, &[host], 2100);
    }

    fn create(&self, directory: &Path, name: &str, hosts: &[&str], year: i32) {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut parameters = CertificateParams::new(hosts).expect("parameters");
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.not_before = date_time_ymd(2001, 1, 1);
        parameters.not_after = date_time_ymd(year, 1, 1);
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters
            .signed_by(&key, &self.issuer)
            .expect("a certificate");
        let write = |name: &str, content: &str| {
            fs::write(directory.join(name), content).expect("write a certificate");
        };
        write("ca.pem", &self.certificate);
        write("cert.pem", &certificate.pem());
        write("key.pem", &key.serialize_pem());
    }
}

/// Returns the flags of the engine and of clients for the files of [`Authority::issue`], with
/// `--tlsverify`.
pub fn flags(directory: &Path) -> [String; 4] {
    let path = |name: &str| -> PathBuf { directory.join(name) };
    [
        "--tlsverify".to_owned(),
        format!("--tlscacert={}", path("ca.pem").display()),
        format!("--tlscert={}", path("cert.pem").display()),
        format!("--tlskey={}", path("key.pem").display()),
    ]
}
