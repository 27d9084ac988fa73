//! Attaching over a WebSocket, with a client of another project.

use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};
use whelk_tests::{Engine, PATIENCE, Program, escape, eventually, now_nanos};

use super::check;

type Client = WebSocket<UnixStream>;

/// Attaches to a container, and returns the status of the response if it is not 101.
fn open(engine: &Engine, path: &str) -> Result<Client, u16> {
    let stream = UnixStream::connect(engine.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    match tungstenite::client(format!("ws://localhost{path}"), stream) {
        Ok((client, response)) => {
            assert_eq!(response.status(), 101);
            Ok(client)
        }
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            Err(response.status().as_u16())
        }
        Err(error) => panic!("{path}: {error}"),
    }
}

fn attach(engine: &Engine, query: &str) -> Client {
    open(engine, &format!("/containers/target/attach/ws?{query}")).unwrap()
}

/// Reads output until it has `text`.
fn read_until(client: &mut Client, text: &str) -> String {
    let mut output = Vec::new();
    loop {
        if let Message::Binary(bytes) = client.read().unwrap() {
            output.extend(bytes);
        }
        let found = String::from_utf8_lossy(&output).into_owned();
        if found.contains(text) {
            return found;
        }
    }
}

/// Reads output until the engine closes the WebSocket, and returns it with the status.
fn read_all(client: &mut Client) -> (String, u16) {
    let mut output = Vec::new();
    loop {
        match client.read().unwrap() {
            Message::Binary(bytes) => output.extend(bytes),
            Message::Text(text) => output.extend(text.as_bytes()),
            Message::Close(close) => {
                let text = String::from_utf8_lossy(&output).into_owned();
                return (text, close.unwrap().code.into());
            }
            _ => {}
        }
    }
}

/// Creates the container `target` with standard input.
fn create(engine: &Engine, tty: bool, command: &str) {
    let body = json!({
        "Image": "busybox", "Cmd": ["sh", "-c", command], "Tty": tty, "OpenStdin": true,
        "HostConfig": {"NetworkMode": "none"},
    });
    engine.create("target", &body);
}

fn start(engine: &Engine) {
    let (status, answer) = engine.api("POST", "/containers/target/start", None);
    assert_eq!(status, 204, "{answer}");
}

const ALL: &str = "stream=1&stdin=1&stdout=1&stderr=1";

#[test]
fn input_and_output_pass_through_frames() {
    let engine = Engine::start();
    create(&engine, false, "echo err >&2; cat");
    // Attached before the start, so that nothing is missed.
    let mut client = attach(&engine, ALL);
    start(&engine);
    assert_eq!(
        read_until(&mut client, "\n"),
        "err\n",
        "without a header of Docker's stream format"
    );
    client.send(Message::binary(&b"in\n"[..])).unwrap();
    assert_eq!(read_until(&mut client, "\n"), "in\n");
    client.send(Message::text("text\n")).unwrap();
    assert_eq!(read_until(&mut client, "\n"), "text\n");
    client.send(Message::Ping(b"ping"[..].into())).unwrap();
    assert_eq!(client.read().unwrap(), Message::Pong(b"ping"[..].into()));
    let large = "0123456789abcde\n".repeat(4 << 10);
    client.send(Message::text(large.clone() + "end\n")).unwrap();
    assert_eq!(read_until(&mut client, "end\n"), large + "end\n");
    engine.docker(&["kill", "target"]).ok();
    assert_eq!(read_all(&mut client), (String::new(), 1000));
}

#[test]
fn versions_and_parameters_select_the_streams() {
    let engine = Engine::start();
    create(&engine, false, "read line; echo out; echo err >&2");
    // All streams before 1.42, in frames of text before 1.28.
    let path =
        |version: &str, query: &str| format!("{version}/containers/target/attach/ws?{query}");
    let mut all = open(&engine, &path("/v1.41", "stream=1")).unwrap();
    let mut texts = open(&engine, &path("/v1.27", "stream=1")).unwrap();
    let mut out = open(&engine, &path("/v1.42", "stream=1&stdout=1")).unwrap();
    let mut none = open(&engine, &path("", "stream=1")).unwrap();
    start(&engine);
    none.send(Message::text("without stdin\n")).unwrap();
    all.send(Message::text("go\n")).unwrap();
    assert!(matches!(texts.read().unwrap(), Message::Text(_)));
    let (text, _) = read_all(&mut all);
    assert!(
        text.len() == 8 && text.contains("out\n") && text.contains("err\n"),
        "{text}"
    );
    assert_eq!(read_all(&mut out), ("out\n".to_owned(), 1000));
    assert_eq!(read_all(&mut none), (String::new(), 1000));
    // What was logged, without a stream and before one.
    engine.await_state("target", "exited");
    let mut logged = attach(&engine, "logs=1&stderr=1");
    assert_eq!(read_all(&mut logged), ("err\n".to_owned(), 1000));
    let mut both = attach(&engine, &format!("logs=1&{ALL}"));
    start(&engine);
    both.send(Message::text("go\n")).unwrap();
    assert_eq!(read_all(&mut both).0.len(), 16);
}

#[test]
fn a_client_detaches_and_leaves_the_container_running() {
    let engine = Engine::start();
    create(&engine, true, "while read line; do echo got $line; done");
    start(&engine);
    let is_attached_again = |client: &mut Client| {
        client.send(Message::binary(&b"again\r"[..])).unwrap();
        read_until(client, "got again");
    };
    // By its keys, of which a terminal takes two by default.
    let mut client = attach(&engine, &format!("{ALL}&detachKeys=ctrl-x"));
    is_attached_again(&mut client);
    client.send(Message::binary(&b"\x18"[..])).unwrap();
    read_all(&mut client);
    let mut client = attach(&engine, ALL);
    client.send(Message::binary(&b"\x10\x11"[..])).unwrap();
    read_all(&mut client);
    // By a closing handshake, which is answered.
    let mut client = attach(&engine, ALL);
    is_attached_again(&mut client);
    client.close(None).unwrap();
    let ended = loop {
        if let Err(error) = client.read() {
            break error;
        }
    };
    assert!(
        matches!(ended, tungstenite::Error::ConnectionClosed),
        "{ended}"
    );
    // Without one.
    let client = attach(&engine, ALL);
    drop(client);
    is_attached_again(&mut attach(&engine, ALL));
    assert_eq!(engine.inspect("target")["State"]["Status"], "running");
}

#[test]
fn a_program_does_not_wait_for_a_client_that_has_left() {
    let engine = Engine::start();
    create(
        &engine,
        false,
        "read line; head -c 3000000 /dev/zero; echo done >&2",
    );
    let client = attach(&engine, "stream=1&stdout=1");
    let mut starter = attach(&engine, "stream=1&stdin=1&stderr=1");
    start(&engine);
    drop(client);
    starter.send(Message::text("go\n")).unwrap();
    assert_eq!(read_all(&mut starter), ("done\n".to_owned(), 1000));
    engine.await_state("target", "exited");
}

#[test]
fn messages_that_are_too_large_end_only_their_connection() {
    let engine = Engine::start();
    create(&engine, false, "cat");
    start(&engine);
    let mut client = attach(&engine, ALL);
    client
        .send(Message::binary(vec![b'x'; (1 << 20) + 1]))
        .unwrap();
    assert_eq!(read_all(&mut client), (String::new(), 1009));
    let mut client = attach(&engine, ALL);
    client.send(Message::text("still there\n")).unwrap();
    read_until(&mut client, "still there\n");
}

#[test]
fn refused_websockets_have_a_status() {
    let engine = Engine::start();
    create(&engine, false, "cat");
    let path = format!("/containers/target/attach/ws?{ALL}");
    let refused = |path: &str, status: u16, text: &str| {
        check(&engine, "GET", path, None, status, text);
    };
    refused(&path, 400, "not websocket protocol");
    let missing = "/containers/nosuch/attach/ws?stream=1";
    refused(missing, 404, "No such container: nosuch");
    assert_eq!(open(&engine, missing).err(), Some(404));
    let keys = "/containers/target/attach/ws?detachKeys=bogus";
    refused(keys, 400, "Invalid detach keys (bogus) provided");
    let valid = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    ];
    let ask = |headers: &[(&str, &str)]| -> (u16, Value) {
        let response = engine.http("GET", &path, headers, b"");
        (response.status, response.json()["message"].clone())
    };
    assert_eq!(
        ask(&valid[..3]),
        (400, json!("missing or bad WebSocket Version"))
    );
    let foreign = [&valid[..], &[("Origin", "https://elsewhere.test")]].concat();
    let (status, text) = ask(&foreign);
    assert!(
        status == 403 && text.as_str().unwrap().contains("https://elsewhere.test"),
        "{text}"
    );
    start(&engine);
    engine.docker(&["pause", "target"]).ok();
    assert_eq!(open(&engine, &path).err(), Some(409));
    engine.docker(&["unpause", "target"]).ok();
    // None of them has attached.
    let until = now_nanos() / 1_000_000_000 + 1;
    let filters = escape(r#"{"event": ["attach"]}"#);
    let mut events = engine.events(&format!("since=1&until={until}&filters={filters}"));
    assert_eq!(events.next_event(), None);
}

#[test]
fn websockets_end_with_the_engine() {
    let engine = Engine::start();
    create(&engine, false, "cat");
    start(&engine);
    let mut client = attach(&engine, ALL);
    engine.terminate();
    // Not a normal end.
    assert!(client.read().is_err());
    engine.restart();
    let mut client = attach(&engine, ALL);
    client.send(Message::text("here\n")).unwrap();
    read_until(&mut client, "here\n");
    let pid = engine.pid("target");
    engine.cli(Program::Docker).run(&["kill", "target"]).ok();
    eventually("the end of the program", || {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}
