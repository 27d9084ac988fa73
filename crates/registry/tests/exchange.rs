//! The client against a scripted server on loopback: correct, faulty and hostile responses.
#![allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use whelk_image::{Digest, Reference};
use whelk_registry::{
    Client, Credentials, Error, Kind, Obstacle, Repository, Settings, Version, Wait,
};

/// A server that reads one request per connection and responds with what `answer` returns for it.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Some(head) = head(&mut stream) else {
                    // A TLS handshake. This server speaks HTTP.
                    let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
                    continue;
                };
                log.lock().unwrap().push(head.clone());
                let _ = stream.write_all(&answer(&head));
            }
        });
        Self { address, requests }
    }

    fn repository(&self, credentials: Credentials) -> Repository {
        self.with(Settings::default(), credentials)
    }

    fn with(&self, settings: Settings, credentials: Credentials) -> Repository {
        let name: Reference = format!("{}/team/app:1", self.address).parse().unwrap();
        let client = Client::new(settings).unwrap();
        client.pull(&name, credentials).unwrap()
    }

    /// Method and path of the requests so far.
    fn lines(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let line = |head: &String| head.lines().next().unwrap().replace(" HTTP/1.1", "");
        requests.iter().map(line).collect()
    }
}

/// Reads a request's head, and its body if it has a `Content-Length`; `None` if it is not HTTP.
fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 || (bytes.is_empty() && byte[0] == 22) {
            return None;
        }
        bytes.push(byte[0]);
    }
    let mut head = String::from_utf8(bytes).ok()?;
    if let Some(length) = header(&head, "content-length") {
        let mut body = vec![0; length.parse().ok()?];
        stream.read_exact(&mut body).ok()?;
        head.push_str(&String::from_utf8(body).ok()?);
    }
    Some(head)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn response(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#;
const OCI: &str = "content-type: application/vnd.oci.image.manifest.v1+json\r\n";

fn tag() -> Version {
    Version::Tag("1".into())
}

fn alice() -> Credentials {
    Credentials::Password {
        user: "alice".into(),
        password: "sesame".into(),
    }
}

/// "alice:sesame" in base64.
const ALICE: &str = "Basic YWxpY2U6c2VzYW1l";

async fn refused(repository: &Repository) -> Error {
    repository.manifest(&tag()).await.unwrap_err()
}

#[tokio::test]
async fn a_registry_on_loopback_is_used_without_tls() {
    let server = Server::start(|_| response("200 OK", OCI, MANIFEST));
    let repository = server.repository(Credentials::Anonymous);
    let document = repository.manifest(&tag()).await.unwrap();
    assert_eq!(document.digest, Digest::of(MANIFEST.as_bytes()));
    assert_eq!(document.bytes, MANIFEST.as_bytes());
    assert!(!document.is_index());
    // The request by digest does not try TLS again.
    let version = Version::Digest(document.digest.clone());
    repository.manifest(&version).await.unwrap();
    assert_eq!(
        server.lines(),
        [
            "GET /v2/team/app/manifests/1".to_owned(),
            format!("GET /v2/team/app/manifests/{}", document.digest)
        ]
    );
}

#[tokio::test]
async fn manifests_with_a_wrong_digest_are_rejected() {
    let server = Server::start(|head| {
        let lies = "docker-content-digest: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\r\n";
        let lies = if head.contains("manifests/1 ") {
            lies
        } else {
            ""
        };
        response("200 OK", &format!("{OCI}{lies}"), MANIFEST)
    });
    let repository = server.repository(Credentials::Anonymous);
    for version in [tag(), Version::Digest(Digest::of(b"other"))] {
        let error = repository.manifest(&version).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(
            error
                .to_string()
                .contains("the manifest has the digest sha256:"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn oversized_manifests_are_rejected() {
    let server = Server::start(|_| response("200 OK", OCI, vec![b' '; (4 << 20) + 1]));
    let error = refused(&server.repository(Credentials::Anonymous)).await;
    assert!(
        error
            .to_string()
            .ends_with("the answer is larger than 4194304 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn a_password_is_sent_after_a_challenge_and_then_at_once() {
    let server = Server::start(|head| match header(head, "authorization") {
        Some(ALICE) => response("200 OK", OCI, MANIFEST),
        _ => response(
            "401 Unauthorized",
            "www-authenticate: Basic realm=\"r\"\r\n",
            "",
        ),
    });
    let repository = server.repository(alice());
    repository.manifest(&tag()).await.unwrap();
    repository.manifest(&tag()).await.unwrap();
    // Two requests for the first manifest, one for the second.
    assert_eq!(server.lines().len(), 3);
    let error = refused(&server.repository(Credentials::Anonymous)).await;
    assert_eq!(error.kind(), Kind::Unauthorized);
}

/// A registry that is its own authorization service and accepts the token `good`.
fn token_server(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Server {
    Server::start(move |head| {
        if head.contains(" /token") {
            return answer(head);
        }
        if header(head, "authorization") == Some("Bearer good") {
            return response("200 OK", OCI, MANIFEST);
        }
        let host = header(head, "host").unwrap();
        response(
            "401 Unauthorized",
            &format!(
                "www-authenticate: Bearer realm=\"http://{host}/token\",service=\"a b&c\"\r\n"
            ),
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
        )
    })
}

#[tokio::test]
async fn a_token_is_fetched_once_and_reused() {
    let server = token_server(|_| response("200 OK", "", r#"{"token":"good","expires_in":300}"#));
    let repository = server.repository(alice());
    repository.manifest(&tag()).await.unwrap();
    repository.manifest(&tag()).await.unwrap();
    let token = "GET /token?service=a%20b%26c&scope=repository%3Ateam%2Fapp%3Apull&account=alice";
    let get = "GET /v2/team/app/manifests/1";
    assert_eq!(server.lines(), [get, token, get, get]);
    let requests = server.requests.lock().unwrap();
    assert_eq!(header(&requests[1], "authorization"), Some(ALICE));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_a_form_post() {
    let server = token_server(|head| {
        let is_form = head.starts_with("POST /token HTTP")
            && head.ends_with(
                "service=a%20b%26c&scope=repository%3Ateam%2Fapp%3Apull&client_id=whelk&grant_type=refresh_token&refresh_token=refresh%2Fme",
            );
        let body = if is_form {
            r#"{"access_token":"good"}"#
        } else {
            "{}"
        };
        response("200 OK", "", body)
    });
    let repository = server.repository(Credentials::IdentityToken("refresh/me".into()));
    repository.manifest(&tag()).await.unwrap();
}

#[tokio::test]
async fn errors_of_the_authorization_service_contain_no_secrets() {
    let server = token_server(|_| {
        response(
            "401 Unauthorized",
            "",
            r#"{"details":"incorrect username or password"}"#,
        )
    });
    let error = refused(&server.repository(alice())).await;
    assert_eq!(error.kind(), Kind::Unauthorized);
    let text = format!("{error} {error:?}");
    assert!(text.contains("incorrect username or password"), "{text}");
    assert!(
        !text.contains("sesame") && !text.contains(ALICE) && !text.contains('?'),
        "{text}"
    );
    // A rejected token is not requested again.
    let server = token_server(|_| response("200 OK", "", r#"{"token":"bad"}"#));
    let error = refused(&server.repository(alice())).await;
    assert!(
        error
            .to_string()
            .ends_with("unauthorized: authentication required"),
        "{error}"
    );
    assert_eq!(server.lines().len(), 3);
}

#[tokio::test]
async fn a_registry_token_is_sent_unchanged() {
    let server = token_server(|_| response("500 Oops", "", ""));
    let repository = server.repository(Credentials::RegistryToken("good".into()));
    repository.manifest(&tag()).await.unwrap();
    let error = refused(&server.repository(Credentials::RegistryToken("bad".into()))).await;
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn redirects_to_other_servers_carry_no_credentials() {
    let storage = Server::start(|_| response("200 OK", "", "0123456789"));
    let location = format!("location: http://{}/data?signature=x\r\n", storage.address);
    let server = Server::start(move |head| match header(head, "authorization") {
        None => response(
            "401 Unauthorized",
            "www-authenticate: Basic realm=x\r\n",
            "",
        ),
        Some(_) => response("307 Temporary Redirect", &location, ""),
    });
    let mut blob = server
        .repository(alice())
        .blob(&Digest::of(b"0123456789"), 10, 0);
    assert_eq!(blob.next(|_| {}).await.unwrap().unwrap(), "0123456789");
    let requests = storage.requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .all(|head| header(head, "authorization").is_none()),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_redirect_target_cannot_request_credentials() {
    let storage = Server::start(|head| {
        let host = header(head, "host").unwrap();
        let challenge = format!("www-authenticate: Bearer realm=\"http://{host}/token\"\r\n");
        response("401 Unauthorized", &challenge, "")
    });
    let location = format!("location: http://{}/data\r\n", storage.address);
    let server = Server::start(move |_| response("307 Temporary Redirect", &location, ""));
    let error = refused(&server.repository(alice())).await;
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!(storage.lines(), ["GET /data"]);
}

#[tokio::test]
async fn endless_and_invalid_redirects_are_rejected() {
    for (location, expected) in [
        ("location: /again\r\n", "more than 5 redirects"),
        ("", "a redirect without a location"),
        ("location: ftp://x/y\r\n", "a redirect to another protocol"),
        (
            "location: http://a:b@x/y\r\n",
            "a redirect to a URL with credentials",
        ),
        (
            "location: relative\r\n",
            "/v2/team/app/manifests/relative: more than 5 redirects",
        ),
    ] {
        let server = Server::start(move |_| response("302 Found", location, ""));
        let error = refused(&server.repository(Credentials::Anonymous)).await;
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// Reads a blob to its end.
async fn read(blob: &mut whelk_registry::Blob) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    while let Some(piece) = blob.next(|_| {}).await? {
        content.extend(piece);
    }
    Ok(content)
}

fn content() -> Vec<u8> {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

/// Returns a response with `content`, or the requested range of it, that breaks off after `sent`
/// bytes of the body.
fn cut(head: &str, content: &[u8], sent: usize, ranges: bool) -> Vec<u8> {
    let first: usize = header(head, "range").filter(|_| ranges).map_or(0, |range| {
        range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap()
    });
    let (status, range) = match first {
        0 => ("200 OK", String::new()),
        first => (
            "206 Partial Content",
            format!(
                "content-range: bytes {first}-{}/{}\r\n",
                content.len() - 1,
                content.len()
            ),
        ),
    };
    let mut answer = response(status, &range, &content[first..]);
    let body = answer.len() - (content.len() - first);
    answer.truncate(body + sent);
    answer
}

#[tokio::test]
async fn interrupted_blobs_are_resumed() {
    for ranges in [true, false] {
        let all = content();
        let sent = if ranges { 150_000 } else { 399_000 };
        let part = all.clone();
        let server = Server::start(move |head| {
            let is_first = header(head, "range").is_none();
            cut(
                head,
                &part,
                if is_first { sent } else { part.len() },
                ranges,
            )
        });
        let repository = server.repository(Credentials::Anonymous);
        let mut blob = repository.blob(&Digest::of(&all), all.len() as u64, 0);
        assert!(read(&mut blob).await.unwrap() == all, "ranges: {ranges}");
        assert_eq!(server.lines().len(), 2);
        // Starts at an offset, as after a restart of the engine.
        let mut blob = repository.blob(&Digest::of(&all), all.len() as u64, 1_000);
        assert!(
            read(&mut blob).await.unwrap() == all[1_000..],
            "ranges: {ranges}"
        );
    }
}

#[tokio::test]
async fn blobs_without_progress_fail_after_the_last_attempt() {
    let server = Server::start(|head| cut(head, &content(), 0, true));
    let settings = Settings {
        attempts: 2,
        ..Settings::default()
    };
    let repository = server.with(settings, Credentials::Anonymous);
    let begin = Instant::now();
    let error = read(&mut repository.blob(&Digest::of(b""), 400_000, 0))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().starts_with("GET http://"), "{error}");
    assert_eq!(server.lines().len(), 2);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn blobs_of_wrong_size_or_range_are_rejected() {
    let digest = Digest::of(b"");
    let server = Server::start(|_| response("200 OK", "", "0123456789"));
    let repository = server.repository(Credentials::Anonymous);
    let error = read(&mut repository.blob(&digest, 9, 0)).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("the blob is longer than its 9 bytes"),
        "{error}"
    );
    let server = Server::start(|_| {
        response(
            "206 Partial Content",
            "content-range: bytes 0-9/10\r\n",
            "0123456789",
        )
    });
    let repository = server.repository(Credentials::Anonymous);
    let error = read(&mut repository.blob(&digest, 10, 5))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("the answer is not the range of bytes from 5 on"),
        "{error}"
    );
}

#[tokio::test]
async fn retry_after_is_obeyed_and_lasting_errors_are_not_retried() {
    let answers = Mutex::new(vec![
        response("200 OK", OCI, MANIFEST),
        response("429 Too Many Requests", "retry-after: 1\r\n", ""),
        response("503 Service Unavailable", "retry-after: 0\r\n", ""),
    ]);
    let server = Server::start(move |_| answers.lock().unwrap().pop().unwrap());
    let begin = Instant::now();
    server
        .repository(Credentials::Anonymous)
        .manifest(&tag())
        .await
        .unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    // A lasting error is not retried.
    let server = Server::start(|_| {
        response(
            "404 Not Found",
            "",
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u0007 unknown"}]}"#,
        )
    });
    let error = refused(&server.repository(Credentials::Anonymous)).await;
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(
        error.to_string(),
        format!(
            "GET http://{}/v2/team/app/manifests/1: manifest unknown: manifest unknown",
            server.address
        )
    );
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn mirrors_are_tried_first_without_credentials() {
    let mirror = Server::start(|_| response("404 Not Found", "", ""));
    let server = Server::start(|head| match header(head, "authorization") {
        Some(ALICE) => response("200 OK", OCI, MANIFEST),
        _ => response(
            "401 Unauthorized",
            "www-authenticate: Basic realm=x\r\n",
            "",
        ),
    });
    let settings = Settings {
        mirrors: vec![(
            "*".parse().unwrap(),
            vec![format!("http://{}/cache", mirror.address)],
        )],
        ..Settings::default()
    };
    server
        .with(settings, alice())
        .manifest(&tag())
        .await
        .unwrap();
    assert_eq!(
        mirror.lines(),
        ["GET /v2/team/app/manifests/1"].map(|line| line.replace("/v2", "/cache/v2"))
    );
    let requests = mirror.requests.lock().unwrap();
    assert!(header(&requests[0], "authorization").is_none());
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn connection_errors_name_the_registry() {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let name: Reference = format!("{address}/a:1").parse().unwrap();
    let settings = Settings {
        attempts: 1,
        ..Settings::default()
    };
    let client = Client::new(settings).unwrap();
    let repository = client.pull(&name, Credentials::Anonymous).unwrap();
    let error = refused(&repository).await;
    assert_eq!(
        error.to_string(),
        format!("cannot connect to {address}: connection refused")
    );
}

/// Returns the repository of a registry with these mirrors.
fn mirrored(server: &Server, mirrors: &[&Server]) -> Repository {
    let urls = mirrors
        .iter()
        .map(|mirror| format!("http://{}", mirror.address));
    let settings = Settings {
        mirrors: vec![("*".parse().unwrap(), urls.collect())],
        ..Settings::default()
    };
    server.with(settings, Credentials::Anonymous)
}

#[tokio::test]
async fn mirrors_with_invalid_manifests_are_skipped() {
    let page = "content-type: text/html\r\n";
    let cut = |sent: usize| {
        move |_: &str| {
            let mut answer = response("200 OK", OCI, MANIFEST);
            answer.truncate(answer.len() - MANIFEST.len() + sent);
            answer
        }
    };
    let lie = format!("{OCI}docker-content-digest: {}\r\n", Digest::of(b"other"));
    let mirrors = [
        Server::start(move |_| response("200 OK", page, "<html>Please log in</html>")),
        Server::start(move |_| response("200 OK", &lie, MANIFEST)),
        Server::start(cut(0)),
        Server::start(cut(20)),
        Server::start(|_| response("502 Bad Gateway", "", "")),
        Server::start(|_| response("429 Too Many Requests", "retry-after: 60\r\n", "")),
    ];
    let server = Server::start(|_| response("200 OK", OCI, MANIFEST));
    let repository = mirrored(&server, &mirrors.each_ref());
    let document = repository.manifest(&tag()).await.unwrap();
    assert_eq!(document.bytes, MANIFEST.as_bytes());
    for asked in mirrors.iter().chain([&server]) {
        assert_eq!(asked.lines().len(), 1);
    }
}

#[tokio::test]
async fn mirrors_that_fail_to_send_a_blob_are_skipped() {
    let all = content();
    let (first, rest) = (all.clone(), all.clone());
    let mirrors = [
        Server::start(|_| response("200 OK", "content-type: text/html\r\n", "<html>")),
        Server::start(|head| cut(head, &content(), 0, true)),
        // Sends the beginning of the blob, and nothing when it is resumed.
        Server::start(move |head| {
            let sent = if header(head, "range").is_none() {
                150_000
            } else {
                0
            };
            cut(head, &first, sent, true)
        }),
    ];
    let server = Server::start(move |head| cut(head, &rest, rest.len(), true));
    let repository = mirrored(&server, &mirrors.each_ref());
    let mut blob = repository.blob(&Digest::of(&all), all.len() as u64, 0);
    assert!(read(&mut blob).await.unwrap() == all);
    let asked = mirrors.each_ref().map(|mirror| mirror.lines().len());
    assert_eq!(asked, [1, 1, 2]);
    let requests = server.requests.lock().unwrap();
    assert_eq!(header(&requests[0], "range"), Some("bytes=150000-"));
    // Without mirrors, as a caller wants it whose verification of their content failed.
    assert!(
        repository
            .without_mirrors()
            .unwrap()
            .without_mirrors()
            .is_none()
    );
}

#[tokio::test]
async fn failures_of_all_kinds_count_toward_the_limit() {
    let server = Server::start(|_| response("503 Service Unavailable", "retry-after: 0\r\n", ""));
    let repository = server.with(
        Settings {
            attempts: 3,
            ..Settings::default()
        },
        Credentials::Anonymous,
    );
    let waits = Mutex::new(Vec::new());
    let mut blob = repository.blob(&Digest::of(b"x"), 1, 0);
    let tell = |wait| waits.lock().unwrap().push(wait);
    let error = blob.next(tell).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(server.lines().len(), 3);
    let asked = Wait {
        time: Duration::ZERO,
        is_asked: true,
    };
    assert_eq!(*waits.lock().unwrap(), [asked; 2]);
}

#[tokio::test]
async fn unknown_hosts_are_not_retried() {
    let name: Reference = "registry.invalid/a:1".parse().unwrap();
    let settings = Settings {
        attempts: 10,
        ..Settings::default()
    };
    let client = Client::new(settings).unwrap();
    let repository = client.pull(&name, Credentials::Anonymous).unwrap();
    let begin = Instant::now();
    let error = refused(&repository).await;
    // One lookup takes a few seconds if no name server answers; the waits for ten attempts are minutes.
    let time = begin.elapsed();
    assert!(time < Duration::from_secs(60), "{time:?}");
    let text = error.to_string();
    assert!(
        text.starts_with("cannot connect to registry.invalid: "),
        "{text}"
    );
    let is_there = matches!(
        error,
        Error::Unreachable {
            obstacle: Obstacle::Passing,
            ..
        }
    );
    assert!(!is_there, "{error:?}");
}

#[tokio::test]
async fn a_head_request_returns_the_digest() {
    let digest = Digest::of(MANIFEST.as_bytes());
    let named = format!("docker-content-digest: {digest}\r\n");
    let head = |answer: Vec<u8>| {
        let server = Server::start(move |_| answer.clone());
        async move {
            let repository = server.repository(Credentials::Anonymous);
            let found = repository.digest(&tag()).await;
            assert_eq!(server.lines(), ["HEAD /v2/team/app/manifests/1"]);
            found
        }
    };
    let found = head(response("200 OK", &named, "")).await;
    assert_eq!(found.unwrap(), Some(digest));
    // Without the header, the digest is computed from the document.
    for status in [
        "200 OK",
        "405 Method Not Allowed",
        "404 Not Found",
        "501 Not Implemented",
        "429 Too Many Requests",
    ] {
        assert_eq!(
            head(response(status, "", "")).await.unwrap(),
            None,
            "{status}"
        );
    }
}

#[tokio::test]
async fn missing_credentials_have_dockers_error_text() {
    let server = Server::start(|_| {
        let challenge = "www-authenticate: Basic realm=x\r\n";
        response("401 Unauthorized", challenge, "")
    });
    let url = format!("http://{}/v2/team/app/manifests/1", server.address);
    let repository = server.repository(Credentials::Anonymous);
    let error = refused(&repository).await;
    assert_eq!(error.kind(), Kind::Unauthorized);
    assert_eq!(
        error.to_string(),
        format!("Get \"{url}\": no basic auth credentials")
    );
    let error = repository.digest(&tag()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Head \"{url}\": no basic auth credentials")
    );
}

/// A registry that requires a token from `realm`, and accepts `good`.
fn with_realm(realm: String) -> Server {
    Server::start(move |head| match header(head, "authorization") {
        Some("Bearer good") => response("200 OK", OCI, MANIFEST),
        Some(_) => response(
            "401 Unauthorized",
            "www-authenticate: Bearer realm=\"http://x\",error=\"insufficient_scope\"\r\n",
            r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
        ),
        None => {
            let challenge = format!("www-authenticate: Bearer realm=\"{realm}\",service=\"s\"\r\n");
            response("401 Unauthorized", &challenge, "")
        }
    })
}

#[tokio::test]
async fn insufficient_scope_is_reported_as_denied() {
    let service = Server::start(|_| response("200 OK", "", r#"{"token":"other"}"#));
    let server = with_realm(format!("http://{}/token", service.address));
    let error = refused(&server.repository(Credentials::Anonymous)).await;
    assert_eq!(error.kind(), Kind::Denied);
    // The registry's own error, a consequence, comes second.
    let reported = error.reported().unwrap().to_string();
    assert_eq!(
        reported,
        "denied: requested access to the resource is denied"
    );
}

#[tokio::test]
async fn authorization_redirects_keep_method_and_query() {
    let service = Server::start(|head| match head.split(' ').nth(1).unwrap() {
        path if path.starts_with("/old") => {
            let location = path.replace("/old", "/new");
            response(
                "307 Temporary Redirect",
                &format!("location: {location}\r\n"),
                "",
            )
        }
        _ => response("200 OK", "", r#"{"token":"good"}"#),
    });
    let server = with_realm(format!("http://{}/old?account=a", service.address));
    let scope = "scope=repository%3Ateam%2Fapp%3Apull";
    for (credentials, method, query) in [
        (
            alice(),
            "GET",
            format!("account=a&service=s&{scope}&account=alice"),
        ),
        (
            Credentials::IdentityToken("secret".into()),
            "POST",
            "account=a".to_owned(),
        ),
    ] {
        service.requests.lock().unwrap().clear();
        let repository = server.repository(credentials);
        repository.manifest(&tag()).await.unwrap();
        let expected = ["/old", "/new"].map(|path| format!("{method} {path}?{query}"));
        assert_eq!(service.lines(), expected);
        let requests = service.requests.lock().unwrap();
        if method == "POST" {
            assert!(
                requests
                    .iter()
                    .all(|head| head.contains("refresh_token=secret"))
            );
        } else {
            let sent = requests.iter().map(|head| header(head, "authorization"));
            assert!(sent.eq([Some(ALICE); 2]));
        }
    }
}

#[tokio::test]
async fn authorization_redirects_to_other_servers_carry_no_secrets() {
    let other = Server::start(|_| response("200 OK", "", r#"{"token":"good"}"#));
    let location = format!("location: http://{}/token\r\n", other.address);
    let service = Server::start(move |_| response("308 Permanent Redirect", &location, ""));
    let server = with_realm(format!("http://{}/token", service.address));
    server.repository(alice()).manifest(&tag()).await.unwrap();
    assert!(header(&other.requests.lock().unwrap()[0], "authorization").is_none());
    let identity = Credentials::IdentityToken("secret".into());
    let error = refused(&server.repository(identity)).await;
    assert!(
        error
            .to_string()
            .ends_with("a redirect of an identity token"),
        "{error}"
    );
    assert_eq!(other.lines().len(), 1);
}
