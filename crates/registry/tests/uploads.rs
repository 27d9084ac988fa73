//! Uploads to a server on loopback that breaks connections, forgets uploads and refuses requests.
#![allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use whelk_image::{Digest, Reference};
use whelk_registry::{Client, Credentials, Error, Kind, Repository, Settings, Source, Wait};

const MIB: usize = 1 << 20;

/// What the server does with the next request that has content, or that completes an upload.
enum Fault {
    /// Keeps the first bytes of the content and closes the connection.
    Cut(usize),
    /// Ignores the content and responds with this status, and `Retry-After: 0`.
    Status(&'static str),
}

#[derive(Default)]
struct State {
    received: Vec<u8>,
    requests: Vec<String>,
    faults: VecDeque<Fault>,
    /// It does not know an upload any more when asked for its status.
    forgets: bool,
    requires_length: bool,
    min_chunk: Option<usize>,
}

#[derive(Clone)]
struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap().to_string(),
            state: Arc::new(Mutex::new(state)),
        };
        let own = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                own.serve(stream);
            }
        });
        server
    }

    fn repository(&self) -> Repository {
        let name: Reference = format!("{}/app:1", self.address).parse().unwrap();
        let settings = Settings {
            attempts: 3,
            ..Settings::default()
        };
        let client = Client::new(settings).unwrap();
        client.push(&name, Credentials::Anonymous)
    }

    fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Responds to one request. Errors are the client's.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        if stream.fill_buf().ok()?.first() == Some(&22) {
            // A TLS handshake. This server speaks HTTP.
            return respond(&mut stream, "400 Bad Request", "");
        }
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            stream.read_line(&mut head).ok().filter(|read| *read > 0)?;
        }
        let method = head.split(' ').next()?.to_owned();
        let range = header(&head, "content-range");
        let mut state = self.state.lock().unwrap();
        let line = format!("{method} {}", range.unwrap_or_default());
        state.requests.push(line.trim().to_owned());
        let location = "location: /v2/app/blobs/uploads/1\r\n";
        match method.as_str() {
            "HEAD" => return respond(&mut stream, "404 Not Found", ""),
            "GET" if state.forgets => return respond(&mut stream, "404 Not Found", ""),
            "GET" => {
                let last = state.received.len().saturating_sub(1);
                let headers = format!("{location}range: 0-{last}\r\n");
                return respond(&mut stream, "204 No Content", &headers);
            }
            "POST" => {
                state.received.clear();
                let least = state
                    .min_chunk
                    .map(|least| format!("oci-chunk-min-length: {least}\r\n"));
                let headers = format!("{location}{}", least.unwrap_or_default());
                return respond(&mut stream, "202 Accepted", &headers);
            }
            _ => {}
        }
        let has_length = header(&head, "content-length").is_some();
        if state.requires_length && !has_length {
            body(&mut stream, &head, usize::MAX)?;
            return respond(&mut stream, "411 Length Required", "");
        }
        let first = range.map(|range| range.split('-').next().unwrap().parse().unwrap());
        if first.is_some_and(|first: usize| first != state.received.len()) {
            return respond(&mut stream, "416 Range Not Satisfiable", "");
        }
        match state.faults.pop_front() {
            Some(Fault::Cut(length)) => {
                let content = body(&mut stream, &head, length)?;
                state.received.extend(content);
                return None;
            }
            Some(Fault::Status(status)) => {
                body(&mut stream, &head, usize::MAX)?;
                return respond(&mut stream, status, "retry-after: 0\r\n");
            }
            None => {}
        }
        let content = body(&mut stream, &head, usize::MAX)?;
        state.received.extend(content);
        if method == "PATCH" {
            let headers = format!("{location}range: 0-{}\r\n", state.received.len() - 1);
            return respond(&mut stream, "202 Accepted", &headers);
        }
        let digest = Digest::of(&state.received).to_string().replace(':', "%3A");
        if head.lines().next()?.contains(&digest) {
            respond(&mut stream, "201 Created", "")
        } else {
            respond(&mut stream, "400 Bad Request", "")
        }
    }
}

fn respond(stream: &mut BufReader<TcpStream>, status: &str, headers: &str) -> Option<()> {
    let head =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n{headers}\r\n");
    stream.get_mut().write_all(head.as_bytes()).ok()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// Reads a request's body, or its first `limit` bytes.
fn body(stream: &mut BufReader<TcpStream>, head: &str, limit: usize) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    if let Some(length) = header(head, "content-length") {
        content.resize(limit.min(length.parse().ok()?), 0);
        stream.read_exact(&mut content).ok()?;
        return Some(content);
    }
    while content.len() < limit {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).ok()?;
        if length == 0 {
            break;
        }
        content.extend_from_slice(&chunk[..length]);
    }
    content.truncate(limit);
    Some(content)
}

fn content(length: usize) -> Vec<u8> {
    let bytes = (0..=250).flat_map(|byte: u8| std::iter::repeat_n(byte, 1000));
    bytes.cycle().take(length).collect()
}

/// Uploads content, and returns the waits.
async fn upload(server: &Server, content: &[u8]) -> Result<Vec<Wait>, Error> {
    let waits = Mutex::new(Vec::new());
    let digest = Digest::of(content);
    let open = || {
        let (sender, pieces) = mpsc::channel(1);
        let (tell, end) = oneshot::channel();
        let all = Bytes::copy_from_slice(content);
        let known = (digest.clone(), all.len() as u64);
        tokio::spawn(async move {
            for at in (0..all.len()).step_by(100_000) {
                let piece = all.slice(at..all.len().min(at + 100_000));
                if sender.send(piece).await.is_err() {
                    return;
                }
            }
            let _ = tell.send(known);
        });
        Source { pieces, end }
    };
    let tell = |wait| waits.lock().unwrap().push(wait);
    let uploaded = server.repository().upload(open, tell).await?;
    assert_eq!(uploaded, (digest, content.len() as u64));
    assert!(server.state.lock().unwrap().received == content);
    Ok(waits.into_inner().unwrap())
}

#[tokio::test]
async fn interrupted_uploads_are_resumed() {
    let server = Server::start(State {
        faults: [Fault::Cut(2 * MIB), Fault::Cut(MIB)].into(),
        ..State::default()
    });
    let content = content(6 * MIB);
    let waits = upload(&server, &content).await.unwrap();
    assert_eq!(waits.len(), 2);
    let expected = [
        "POST",
        "PATCH",
        "GET",
        "PATCH 2097152-6291455",
        "GET",
        "PATCH 3145728-6291455",
        "PUT",
    ];
    assert_eq!(server.requests(), expected);
}

#[tokio::test]
async fn uploads_that_the_registry_forgets_start_again() {
    let server = Server::start(State {
        faults: [Fault::Cut(2 * MIB)].into(),
        forgets: true,
        ..State::default()
    });
    upload(&server, &content(4 * MIB)).await.unwrap();
    let expected = ["POST", "PATCH", "GET", "POST", "PATCH 0-4194303", "PUT"];
    assert_eq!(server.requests(), expected);
}

#[tokio::test]
async fn chunks_have_the_minimum_length_that_the_registry_requires() {
    let server = Server::start(State {
        requires_length: true,
        min_chunk: Some(5 * MIB),
        ..State::default()
    });
    upload(&server, &content(11 * MIB)).await.unwrap();
    let chunks = server.requests();
    let expected = [
        "POST",
        "PATCH",
        "POST",
        "PATCH 0-5242879",
        "PATCH 5242880-10485759",
        "PATCH 10485760-11534335",
        "PUT",
    ];
    assert_eq!(chunks, expected);
    let server = Server::start(State {
        requires_length: true,
        min_chunk: Some(65 * MIB),
        ..State::default()
    });
    let error = upload(&server, &content(2 * MIB)).await.unwrap_err();
    let text = "the registry requires chunks of at least 68157440 bytes, more than 67108864";
    assert!(error.to_string().ends_with(text), "{error}");
}

#[tokio::test]
async fn temporary_refusals_of_uploads_are_retried_after_the_requested_wait() {
    let server = Server::start(State {
        faults: [
            Fault::Status("429 Too Many Requests"),
            Fault::Status("503 Service Unavailable"),
        ]
        .into(),
        ..State::default()
    });
    let waits = upload(&server, &content(1000)).await.unwrap();
    assert!(waits.len() == 2 && waits.iter().all(|wait| wait.is_asked));
    // A small blob is sent again; a large one is complete when the last request fails.
    let expected = ["POST", "PUT", "HEAD", "POST", "PUT", "HEAD", "POST", "PUT"];
    assert_eq!(server.requests(), expected);
    let server = Server::start(State::default());
    let mut faults = VecDeque::new();
    faults.extend([Fault::Cut(usize::MAX), Fault::Status("502 Bad Gateway")]);
    server.state.lock().unwrap().faults = faults;
    upload(&server, &content(2 * MIB)).await.unwrap();
    let expected = ["POST", "PATCH", "GET", "PUT", "GET", "PUT"];
    assert_eq!(server.requests(), expected);
    let server = Server::start(State {
        faults: (0..3).map(|_| Fault::Status("500 Oops")).collect(),
        ..State::default()
    });
    let error = upload(&server, &content(10)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(server.requests().len(), 8);
}
