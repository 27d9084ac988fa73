//! The API over HTTP/2: with prior knowledge on the unix socket, and selected by TLS (ALPN).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use whelk_tests::certificates::{Authority, flags};
use whelk_tests::{Engine, PATIENCE, Program, free_port};

/// One connection to an engine.
#[derive(Clone)]
struct Client {
    sender: SendRequest<Full<Bytes>>,
    /// The scheme and host of its requests.
    base: &'static str,
}

impl Client {
    async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        base: &'static str,
    ) -> Self {
        let connected = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = connected.unwrap();
        tokio::spawn(connection);
        Self { sender, base }
    }

    async fn unix(engine: &Engine) -> Self {
        let stream = UnixStream::connect(engine.socket()).await.unwrap();
        Self::over(stream, "http://localhost").await
    }

    async fn tls(port: u16, certificates: &Path) -> Self {
        let read = |name: &str| std::fs::read(certificates.join(name)).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&read("ca.pem")).unwrap())
            .unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&read("cert.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from("localhost").unwrap(), stream)
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Self::over(stream, "https://localhost").await
    }

    async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", "application/json");
        let request = request.body(Full::new(body.into())).unwrap();
        let response = self.sender.clone().send_request(request);
        let response = tokio::time::timeout(PATIENCE, response).await;
        let response = response.unwrap().unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        response
    }

    /// Sends a request that must succeed. Returns the body.
    async fn fetch(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Bytes {
        let response = self.send(method, path, body).await;
        let status = response.status();
        let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await;
        let body = body.unwrap().unwrap().to_bytes();
        assert!(status.is_success(), "{method} {path}: {status} {body:?}");
        body
    }
}

/// Reads from a response without an end until it has had this text.
async fn read_until(body: &mut Incoming, text: &str) {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
        let frame = frame.unwrap().unwrap().unwrap();
        read.extend_from_slice(&frame.into_data().unwrap());
    }
}

/// Carries out a test on a connection of each kind.
fn on_each(test: impl AsyncFn(&Engine, Client)) {
    let engine = Engine::start();
    let (certificates, port) = (engine.scratch("certificates"), free_port());
    Authority::new("authority").issue(&certificates, "client");
    let mut arguments = vec![format!("--host=tcp://127.0.0.1:{port}")];
    arguments.extend(flags(&certificates));
    engine.kill9();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    engine.set_arguments(&arguments);
    engine.restart();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        test(&engine, Client::unix(&engine).await).await;
        test(&engine, Client::tls(port, &certificates).await).await;
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

#[test]
fn requests_and_streams_share_a_connection() {
    on_each(async |engine, client| {
        let ping = client.send("GET", "/_ping", "").await;
        assert!(ping.headers().contains_key("api-version"));
        let ping = ping.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(ping, "OK");
        let version = client.fetch("GET", "/version", "").await;
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&version).unwrap(),
            engine.get("/version")
        );
        // Endless streams, while other requests are answered.
        let mut events = client.send("GET", "/events", "").await.into_body();
        let command = r#"{"Image": "busybox", "Cmd": ["sh", "-c", "echo first; sleep 1; echo second; sleep 600"]}"#;
        client
            .fetch("POST", "/containers/create?name=talker", command)
            .await;
        client.fetch("POST", "/containers/talker/start", "").await;
        read_until(&mut events, r#""Action":"start""#).await;
        let path = "/containers/talker/logs?stdout=1&follow=1";
        let mut logs = client.send("GET", path, "").await.into_body();
        read_until(&mut logs, "second").await;
        let waited = client.send("POST", "/containers/talker/wait", "").await;
        // The reset of a stream does not affect others.
        drop(logs);
        client
            .fetch("DELETE", "/containers/talker?force=1", "")
            .await;
        let waited = waited.into_body().collect();
        let waited = tokio::time::timeout(PATIENCE, waited).await.unwrap();
        let waited = waited.unwrap().to_bytes();
        assert!(
            String::from_utf8_lossy(&waited).contains(r#""StatusCode":137"#),
            "{waited:?}"
        );
        read_until(&mut events, r#""Action":"destroy""#).await;
    });
}

#[test]
fn large_bodies_are_sent_in_both_directions() {
    on_each(async |engine, client| {
        let saved = client.fetch("GET", "/images/busybox/get", "").await;
        let expected = engine.http("GET", "/images/busybox/get", &[], b"").body;
        assert!(saved.len() > 1 << 20 && saved == expected);
        engine.cli(Program::Whelk).run(&["rmi", "busybox"]).ok();
        let loaded = client.fetch("POST", "/images/load?quiet=1", saved).await;
        assert!(
            String::from_utf8_lossy(&loaded).contains("Loaded image: busybox:latest"),
            "{loaded:?}"
        );
        engine.cli(Program::Whelk).sh(&[], "true").ok();
    });
}

#[test]
fn many_streams_run_side_by_side() {
    on_each(async |engine, client| {
        let expected = engine.http("GET", "/images/busybox/get", &[], b"").body;
        let mut requests = JoinSet::new();
        // More than a connection may have at once, both before and after the client has the server's
        // SETTINGS: the client sends the rest when others are done.
        for number in 0..300 {
            let client = client.clone();
            requests.spawn(async move {
                match number % 30 {
                    0 => client.fetch("GET", "/images/busybox/get", "").await,
                    _ => client.fetch("GET", "/_ping", "").await,
                }
            });
        }
        let mut counts = [0, 0];
        while let Some(body) = requests.join_next().await {
            let body = body.unwrap();
            let is_image = body.len() > 2;
            assert!(if is_image {
                body == expected
            } else {
                body == "OK"
            });
            counts[usize::from(is_image)] += 1;
        }
        assert_eq!(counts, [290, 10]);
    });
}

/// A connection that sends frames of HTTP/2 (RFC 9113) by hand, and never reads.
struct Raw(std::os::unix::net::UnixStream);

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Raw {
    fn open(engine: &Engine, settings: &[u8]) -> Self {
        let stream = std::os::unix::net::UnixStream::connect(engine.socket()).unwrap();
        // An engine that does not read any more is not waited for.
        stream
            .set_write_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let mut raw = Self(stream);
        assert!(raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
        assert!(raw.frame(SETTINGS, 0, 0, settings));
        raw
    }

    /// Returns whether the engine has taken the bytes.
    fn send(&mut self, bytes: &[u8]) -> bool {
        std::io::Write::write_all(&mut self.0, bytes).is_ok()
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.send(&frame)
    }

    fn request(&mut self, flags: u8, stream: u32, path: &str) -> bool {
        // GET, http, and the authority "x" (RFC 7541).
        let mut block = vec![
            0x82,
            0x86,
            0x01,
            1,
            b'x',
            0x04,
            u8::try_from(path.len()).unwrap(),
        ];
        block.extend(path.bytes());
        self.frame(HEADERS, flags | END_STREAM, stream, &block)
    }
}

/// Sends the frames with this number of a flood. Returns whether the engine has taken them.
type Flood = fn(&mut Raw, u32) -> bool;

#[test]
fn floods_of_frames_hurt_nobody_else() {
    /// In KiB.
    const MOST_MEMORY: u64 = 64 << 10;
    let engine = Engine::start();
    let floods: [(&str, Flood); 7] = [
        ("settings", |raw, _| raw.frame(SETTINGS, 0, 0, &[])),
        ("pings", |raw, _| raw.frame(PING, 0, 0, &[0; 8])),
        ("empty continuations", |raw, number| match number {
            0 => raw.request(0, 1, "/_ping"),
            _ => raw.frame(CONTINUATION, 0, 1, &[]),
        }),
        ("long heads", |raw, number| match number {
            0 => raw.request(0, 1, "/_ping"),
            // Literal fields that are not indexed.
            _ => raw.frame(
                CONTINUATION,
                0,
                1,
                &[&[0, 1, b'a', 0x7f, 0x81, 0x7c][..], &[b'b'; 16_000]].concat(),
            ),
        }),
        ("rapid resets", |raw, number| {
            let stream = 2 * number + 1;
            raw.request(END_HEADERS, stream, "/containers/json")
                && raw.frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])
        }),
        ("requests with closed windows", |raw, number| {
            raw.request(END_HEADERS, 2 * number + 1, "/info")
        }),
        ("window updates", |raw, _| {
            raw.frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])
        }),
    ];
    engine.get("/info");
    let before = whelk_tests::processes::resident_memory(engine.daemon_pid());
    for (name, send) in floods {
        // No window for what the engine sends (SETTINGS_INITIAL_WINDOW_SIZE).
        let mut raw = Raw::open(&engine, &[0, 4, 0, 0, 0, 0]);
        let taken = (0..20_000)
            .take_while(|number| send(&mut raw, *number))
            .count();
        // Meanwhile, and afterwards, others are served.
        let begin = std::time::Instant::now();
        engine.get("/version");
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{name}: {:?}",
            begin.elapsed()
        );
        let memory = whelk_tests::processes::resident_memory(engine.daemon_pid());
        assert!(
            memory < before + MOST_MEMORY,
            "{name}: {before} {memory}, {taken} taken"
        );
        drop(raw);
    }
    engine.get("/info");
}
