//! Proxies that are reached over TLS.
#![allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use whelk_image::Reference;
use whelk_registry::{Client, Credentials, Proxies, Settings, Version};

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#;

/// An authority, and the directory with its certificate for each host.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    directory: PathBuf,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let name = format!("whelk-proxies-{}-{name}", std::process::id());
        Self {
            issuer: Issuer::new(parameters, key),
            pem,
            directory: std::env::temp_dir().join(name),
        }
    }

    /// Makes clients trust the authority for a server.
    fn trust_for(&self, host: &str) {
        let directory = self.directory.join(host);
        whelk_sys::fs::create_dir_all(&directory, 0o700).unwrap();
        whelk_sys::fs::write(directory.join("ca.crt"), &self.pem).unwrap();
    }

    fn acceptor(&self, host: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = whelk_sys::fs::remove_tree(&self.directory);
    }
}

/// Reads the head of a request.
async fn head(stream: &mut (impl AsyncBufReadExt + Unpin)) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
            break;
        }
    }
    head
}

async fn respond(stream: &mut (impl AsyncWrite + Unpin), status: &str, body: &str) {
    let kind = "content-type: application/vnd.oci.image.manifest.v1+json";
    let length = body.len();
    let text = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Serves as a proxy that is a registry for everything: behind TLS if a tunnel is for port 443, or for
/// requests that it is to forward. Returns its port and the heads of the requests.
async fn proxy(authority: &Authority, registry: &str) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (own, inner) = (
        authority.acceptor("localhost"),
        authority.acceptor(registry),
    );
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = heads.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (own, inner, log) = (own.clone(), inner.clone(), log.clone());
            tokio::spawn(async move {
                let Ok(stream) = own.accept(stream).await else {
                    return;
                };
                serve(BufReader::new(stream), &inner, &log).await;
            });
        }
    });
    (port, heads)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: BufReader<S>,
    inner: &TlsAcceptor,
    log: &Mutex<Vec<String>>,
) {
    let request = head(&mut stream).await;
    let is_tunnel = request.starts_with("CONNECT ");
    log.lock().unwrap().push(request.clone());
    if !is_tunnel {
        respond(&mut stream, "200 OK", MANIFEST).await;
        return;
    }
    if !request.starts_with("CONNECT secret.invalid:443 ") {
        respond(&mut stream, "502 Bad Gateway", "").await;
        return;
    }
    let established = b"HTTP/1.1 200 Connection established\r\n\r\n";
    stream.write_all(established).await.unwrap();
    let Ok(stream) = inner.accept(stream).await else {
        return;
    };
    let mut stream = BufReader::new(stream);
    let request = head(&mut stream).await;
    log.lock().unwrap().push(request);
    respond(&mut stream, "200 OK", MANIFEST).await;
}

fn client(authority: &Authority, proxy: &str) -> Arc<Client> {
    let settings = Settings {
        certificates: authority.directory.clone(),
        insecure: vec!["plain.invalid".parse().unwrap()],
        proxies: Proxies {
            http: proxy.to_owned(),
            https: proxy.to_owned(),
            none: String::new(),
        },
        attempts: 1,
        ..Settings::default()
    };
    settings.check().unwrap();
    Client::new(settings).unwrap()
}

#[tokio::test]
async fn requests_and_tunnels_go_through_a_proxy_over_tls() {
    let authority = Authority::new("own");
    let (port, heads) = proxy(&authority, "secret.invalid").await;
    let url = format!("https://user:sesame@localhost:{port}");
    authority.trust_for("secret.invalid");
    authority.trust_for(&format!("localhost:{port}"));
    let client = client(&authority, &url);
    for name in ["secret.invalid/app:1", "plain.invalid/app:1"] {
        let name: Reference = name.parse().unwrap();
        let repository = client.pull(&name, Credentials::Anonymous).unwrap();
        let version = Version::Tag("1".into());
        let document = repository.manifest(&version).await.unwrap();
        assert_eq!(document.bytes, MANIFEST.as_bytes());
    }
    let heads = heads.lock().unwrap();
    let lines = heads.iter().map(|head| head.lines().next().unwrap());
    let expected = [
        "CONNECT secret.invalid:443 HTTP/1.1",
        "GET /v2/app/manifests/1 HTTP/1.1",
        "CONNECT plain.invalid:443 HTTP/1.1",
        "GET http://plain.invalid/v2/app/manifests/1 HTTP/1.1",
    ];
    assert_eq!(Vec::from_iter(lines), expected);
    // "user:sesame", for the proxy only.
    let shown = heads.iter().map(|head| {
        let head = head.to_lowercase();
        head.contains("proxy-authorization: basic dxnlcjpzzxnhbwu=")
    });
    assert_eq!(Vec::from_iter(shown), [true, false, true, true]);
}

#[tokio::test]
async fn a_proxy_must_have_a_valid_certificate() {
    let authority = Authority::new("unknown");
    let (port, heads) = proxy(&authority, "secret.invalid").await;
    authority.trust_for("secret.invalid");
    let client = client(&authority, &format!("https://localhost:{port}"));
    let name: Reference = "secret.invalid/app:1".parse().unwrap();
    let repository = client.pull(&name, Credentials::Anonymous).unwrap();
    let version = Version::Tag("1".into());
    let error = repository.manifest(&version).await.unwrap_err().to_string();
    let expected = format!(
        "cannot connect to secret.invalid: proxy localhost:{port}: tls: failed to verify certificate: x509: certificate signed by unknown authority"
    );
    assert_eq!(error, expected);
    assert!(heads.lock().unwrap().is_empty());
    // Not a proxy with TLS.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            respond(&mut stream, "400 Bad Request", "").await;
        }
    });
    let client = self::client(&authority, &format!("https://localhost:{port}"));
    let repository = client.pull(&name, Credentials::Anonymous).unwrap();
    let error = repository.manifest(&version).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("proxy localhost:{port}: ")),
        "{error}"
    );
}
