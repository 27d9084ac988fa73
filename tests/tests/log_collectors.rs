//! Logs that are sent to collectors: syslog, GELF and fluentd on loopback and unix sockets, some of them slow, gone or
//! refusing.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whelk_tests::{Engine, PATIENCE, Program, eventually, free_port};

/// Runs a script in a container with a log driver and its options.
#[track_caller]
fn up(engine: &Engine, name: &str, driver: &str, options: &[&str], script: &str) {
    let mut flags = vec!["--log-driver", driver];
    for option in options {
        flags.extend(["--log-opt", option]);
    }
    engine
        .cli(Program::Docker)
        .up(name, &flags, &["sh", "-c", script]);
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn lines(stream: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(stream).lines().map(Result::unwrap)
}

/// Waits until all processes that send logs have ended, which they do at most 10 s after their containers.
#[track_caller]
fn await_senders(engine: &Engine) {
    let is_sender = |entry: std::fs::DirEntry| {
        let read =
            |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        read("comm") == "whelk-log\n" && read("cgroup").contains(engine.name())
    };
    eventually("the senders to end", || {
        let mut processes = std::fs::read_dir("/proc").unwrap().flatten();
        (!processes.any(is_sender)).then_some(())
    });
}

/// Waits until the event `log_lost` reports at least one line, and returns it.
#[track_caller]
fn await_loss(engine: &Engine, name: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let until = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let output = engine.cli(Program::Docker).run(&[
            "events",
            "--since",
            "1",
            "--until",
            &until.to_string(),
            "--filter",
            &format!("container={name}"),
            "--format",
            "{{json .}}",
        ]);
        let events = output.ok();
        let found = events
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|event| event["Action"] == "log_lost");
        if let Some(event) = found {
            return event["Actor"]["Attributes"].clone();
        }
        assert!(Instant::now() < deadline, "no loss was reported: {events}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn syslog_has_dockers_layouts_on_each_transport() {
    let engine = Engine::start();
    let directory = engine.scratch("syslog");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let unix = UnixListener::bind(directory.join("stream")).unwrap();
    let datagrams = UnixDatagram::bind(directory.join("datagrams")).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let say = |name: &str, address: &str, more: &[&str]| {
        let address = format!("syslog-address={address}");
        let options = [&[address.as_str(), "tag={{.Name}}"], more].concat();
        up(
            &engine,
            name,
            "syslog",
            &options,
            "echo out; sleep .2; echo err >&2",
        );
    };
    let check = |line: &str, before: &str, after: &str| {
        assert!(
            line.starts_with(before) && line.trim_end().ends_with(after),
            "{line}"
        );
    };

    say(
        "tcp",
        &format!("tcp://{}", tcp.local_addr().unwrap()),
        &["syslog-format=rfc5424"],
    );
    let received: Vec<String> = lines(accept(&tcp)).collect();
    assert_eq!(received.len(), 2, "{received:?}");
    check(&received[0], "<30>1 20", " tcp - out");
    check(&received[1], "<27>1 20", " tcp - err");

    say(
        "udp",
        &format!("udp://{}", udp.local_addr().unwrap()),
        &["syslog-facility=local1"],
    );
    let mut buffer = [0; 2048];
    let count = udp.recv(&mut buffer).unwrap();
    check(
        std::str::from_utf8(&buffer[..count]).unwrap(),
        "<142>",
        "]: out",
    );
    let count = udp.recv(&mut buffer).unwrap();
    check(
        std::str::from_utf8(&buffer[..count]).unwrap(),
        "<139>",
        "]: err",
    );

    let path = directory.join("stream");
    say(
        "unix",
        &format!("unix://{}", path.display()),
        &["syslog-format=rfc3164"],
    );
    let received: Vec<String> = lines(unix.accept().unwrap().0).collect();
    check(&received[0], "<30>", "]: out");

    let path = directory.join("datagrams");
    say("unixgram", &format!("unixgram://{}", path.display()), &[]);
    let count = datagrams.recv(&mut buffer).unwrap();
    check(
        std::str::from_utf8(&buffer[..count]).unwrap(),
        "<30>",
        "]: out",
    );

    for name in ["tcp", "udp", "unix", "unixgram"] {
        engine.await_state(name, "exited");
        let logs = engine.cli(Program::Docker).run(&["logs", name]);
        logs.exits(0);
        assert_eq!(
            (logs.out(), logs.err()),
            ("out\n".to_owned(), "err\n".to_owned()),
            "{name}"
        );
    }
}

#[test]
fn gelf_has_dockers_fields_over_udp_and_tcp() {
    let engine = Engine::start();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = format!("gelf-address=udp://{}", udp.local_addr().unwrap());
    let options = [
        address.as_str(),
        "gelf-compression-type=none",
        "labels=nope",
    ];
    up(&engine, "udp", "gelf", &options, "echo hi");
    let mut buffer = [0; 4096];
    let count = udp.recv(&mut buffer).unwrap();
    let message: Value = serde_json::from_slice(&buffer[..count]).unwrap();
    let id = engine.inspect("udp")["Id"].as_str().unwrap().to_owned();
    for (field, expected) in [
        ("version", json!("1.1")),
        ("short_message", json!("hi")),
        ("level", json!(6)),
        ("_container_id", json!(id)),
        ("_container_name", json!("udp")),
        ("_image_name", json!("busybox")),
        ("_command", json!("sh -c echo hi")),
        ("_tag", json!(id[..12])),
    ] {
        assert_eq!(message[field], expected, "{field} in {message}");
    }

    // gzip is the default.
    for (name, compression, magic) in [
        ("default", &[][..], 0x1f),
        ("gzip", &["gelf-compression-type=gzip"], 0x1f),
        (
            "zlib",
            &["gelf-compression-type=zlib", "gelf-compression-level=9"],
            0x78,
        ),
    ] {
        let options = [&[address.as_str()], compression].concat();
        up(&engine, name, "gelf", &options, "echo compressed");
        let count = udp.recv(&mut buffer).unwrap();
        let packed = &buffer[..count];
        assert_eq!(packed[0], magic, "{name}");
        let mut text = String::new();
        let decoded = if magic == 0x1f {
            flate2::read::GzDecoder::new(packed).read_to_string(&mut text)
        } else {
            flate2::read::ZlibDecoder::new(packed).read_to_string(&mut text)
        };
        decoded.unwrap();
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&message["short_message"], &message["_container_name"]),
            (&json!("compressed"), &json!(name))
        );
        engine.await_state(name, "exited");
        assert_eq!(
            engine.cli(Program::Docker).run(&["logs", name]).ok(),
            "compressed"
        );
    }

    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("gelf-address=tcp://{}", tcp.local_addr().unwrap());
    up(
        &engine,
        "tcp",
        "gelf",
        &[&address],
        "echo a; sleep .1; echo b >&2",
    );
    let mut received = Vec::new();
    accept(&tcp).read_to_end(&mut received).unwrap();
    let messages: Vec<Value> = received
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
        .map(|part| serde_json::from_slice(part).unwrap())
        .collect();
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[1]["short_message"], "b");
    assert_eq!(messages[1]["level"], 3);
}

/// Decodes strings, maps and arrays of MessagePack as the driver writes them.
fn unpack(bytes: &mut &[u8]) -> Value {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (front, rest) = bytes.split_at(count);
        *bytes = rest;
        front
    }
    let kind = take(bytes, 1)[0];
    let text = |bytes: &mut &[u8], length: usize| {
        Value::from(String::from_utf8_lossy(take(bytes, length)).into_owned())
    };
    match kind {
        0x80..=0x8f => {
            let entries = (0..kind & 15).map(|_| {
                let key = unpack(bytes).as_str().unwrap().to_owned();
                (key, unpack(bytes))
            });
            entries.collect()
        }
        0x90..=0x9f => (0..kind & 15).map(|_| unpack(bytes)).collect(),
        0xa0..=0xbf => text(bytes, usize::from(kind & 31)),
        0xd9 => {
            let length = take(bytes, 1)[0];
            text(bytes, length.into())
        }
        0xda => {
            let length = u16::from_be_bytes(take(bytes, 2).try_into().unwrap());
            text(bytes, length.into())
        }
        0xce => u32::from_be_bytes(take(bytes, 4).try_into().unwrap()).into(),
        0xd7 => {
            assert_eq!(take(bytes, 1), [0]);
            let seconds = u32::from_be_bytes(take(bytes, 4).try_into().unwrap());
            let nanoseconds = u32::from_be_bytes(take(bytes, 4).try_into().unwrap());
            json!([seconds, nanoseconds])
        }
        other => panic!("unexpected type {other:x}"),
    }
}

#[test]
fn fluentd_gets_records_with_parts_of_long_lines() {
    let engine = Engine::start();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("fluentd-address={}", tcp.local_addr().unwrap());
    let options = [
        address.as_str(),
        "tag=app.{{.Name}}",
        "env=MODE",
        "fluentd-sub-second-precision=true",
    ];
    let script = "export A; echo hi; head -c 20000 /dev/zero | tr '\\0' x; echo; echo end";
    up(&engine, "fluent", "fluentd", &options, script);
    let mut received = Vec::new();
    accept(&tcp).read_to_end(&mut received).unwrap();
    let mut rest = &received[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        messages.push(unpack(&mut rest));
    }
    assert_eq!(messages.len(), 4);
    let first = &messages[0];
    assert_eq!(first[0], "app.fluent");
    assert!(first[1].is_array() && first[3] == json!({}), "{first}");
    assert_eq!(first[2]["log"], "hi");
    assert_eq!(first[2]["source"], "stdout");
    assert_eq!(first[2]["container_name"], "/fluent");
    assert_eq!(first[2]["container_id"], engine.inspect("fluent")["Id"]);
    let parts: Vec<(usize, &Value, &Value)> = messages[1..3]
        .iter()
        .map(|message| {
            let record = &message[2];
            let length = record["log"].as_str().unwrap().len();
            (length, &record["partial_ordinal"], &record["partial_last"])
        })
        .collect();
    assert_eq!(
        parts,
        [
            (16384, &json!("1"), &json!("false")),
            (3616, &json!("2"), &json!("true"))
        ]
    );
    assert_eq!(messages[1][2]["partial_id"], messages[2][2]["partial_id"]);
    assert_eq!(messages[3][2]["partial_message"], Value::Null);
}

/// Returns tags and texts of the messages up to the end of a stream, which TLS does not have to announce.
fn fluentd_messages(mut stream: impl Read) -> Vec<(String, String)> {
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    let mut rest = &received[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let message = unpack(&mut rest);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        messages.push((text(&message[0]), text(&message[2]["log"])));
    }
    messages
}

#[test]
fn fluentd_is_reached_over_tls_and_at_a_unix_socket() {
    let files = whelk_tests::Scratch::new("fluentd");
    let (place, other) = (files.directory("tls"), files.directory("other"));
    let authority = whelk_tests::certificates::Authority::new("logs");
    authority.issue(&place, "collector");
    whelk_tests::certificates::Authority::new("other").issue(&other, "other");
    // The authorities that are trusted are those of the engine.
    let trusted = place.join("ca.pem");
    let engine = Engine::with_env(&[("SSL_CERT_FILE", trusted.to_str().unwrap())]);
    let expected = ["one", "two"].map(|text| ("app.fluent".to_owned(), text.to_owned()));
    let script = "echo one; echo two";

    let path = files.join("fluent.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let address = format!("fluentd-address=unix://{}", path.display());
    let options = [address.as_str(), "tag=app.{{.Name}}"];
    up(&engine, "fluent", "fluentd", &options, script);
    let (stream, _) = unix.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(fluentd_messages(stream), expected);
    assert_eq!(engine.logs("fluent"), "one\ntwo\n");
    engine.whelk(&["rm", "-f", "fluent"]).ok();

    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("fluentd-address=tls://{}", tcp.local_addr().unwrap());
    let options = [address.as_str(), "tag=app.{{.Name}}"];
    let server = std::thread::spawn(move || {
        let messages = fluentd_messages(accept_tls(&tcp, &place, false));
        (messages, tcp)
    });
    up(&engine, "fluent", "fluentd", &options, script);
    let (messages, tcp) = server.join().unwrap();
    assert_eq!(messages, expected);
    assert_eq!(engine.logs("fluent"), "one\ntwo\n");

    let server = std::thread::spawn(move || {
        let _ = accept_tls(&tcp, &other, false).read(&mut [0; 1]);
    });
    let words = ["run", "--log-driver=fluentd", "--log-opt", &address];
    let refused = engine.docker(&[&words[..], &["busybox", "true"]].concat());
    let text = refused.fails(125);
    assert!(
        text.contains("certificate signed by unknown authority"),
        "{text}"
    );
    server.join().unwrap();
    await_senders(&engine);
}

#[test]
fn a_collector_that_refuses_fails_the_start() {
    let engine = Engine::start();
    // The kernel gives it to nobody else, and no client connects to itself from it.
    let gone = format!("127.0.0.1:{}", free_port());
    let cli = engine.cli(Program::Docker);
    let refused = |driver: &str, options: &[&str], text: &str| {
        let mut arguments = vec!["run", "--rm", "--network", "none", "--log-driver", driver];
        for option in options {
            arguments.extend(["--log-opt", option]);
        }
        arguments.extend(["busybox", "true"]);
        let output = cli.run(&arguments);
        assert!(output.err().contains(text), "{}", output.err());
    };
    let failed = "failed to create task for container: failed to initialize logging driver: ";
    let connect = format!("{failed}dial tcp {gone}: connect: connection refused");
    refused(
        "syslog",
        &[&format!("syslog-address=tcp://{gone}")],
        &connect,
    );
    refused("fluentd", &[&format!("fluentd-address={gone}")], &connect);
    let gelf = format!(
        "{failed}gelf: cannot connect to GELF endpoint: {gone} dial tcp {gone}: connect: connection refused"
    );
    refused("gelf", &[&format!("gelf-address=tcp://{gone}")], &gelf);
    refused("gelf", &[], "gelf-address is a required parameter");
    refused(
        "syslog",
        &["bogus=1"],
        "unknown log opt 'bogus' for syslog log driver",
    );
    refused(
        "fluentd",
        &["cache-disabled=x"],
        "invalid value for option cache-disabled: x",
    );
    if !std::path::Path::new("/run/systemd/journal/socket").exists() {
        refused(
            "journald",
            &[],
            &format!("{failed}journald is not enabled on this host"),
        );
    }
    // Without waiting for it, as asked for.
    let address = format!("fluentd-address={gone}");
    up(
        &engine,
        "later",
        "fluentd",
        &[&address, "fluentd-async=true"],
        "echo hi",
    );
    engine.await_state("later", "exited");
    assert_eq!(engine.logs("later"), "hi\n");
    await_senders(&engine);
}

#[test]
fn lines_arrive_while_the_engine_is_killed_and_after_the_collector_came_back() {
    let engine = Engine::start();
    // The kernel gives it to nobody else while nobody listens.
    let address = format!("127.0.0.1:{}", free_port());
    let tcp = TcpListener::bind(&address).unwrap();
    let option = format!("syslog-address=tcp://{address}");
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep .05; done";
    up(&engine, "steady", "syslog", &[&option], script);
    let number = |line: &str| -> u32 { line.rsplit(' ').next().unwrap().parse().unwrap() };
    let mut received = lines(accept(&tcp));
    assert_eq!(number(&received.next().unwrap()), 1);
    engine.kill9();
    for expected in 2..=20 {
        assert_eq!(number(&received.next().unwrap()), expected);
    }
    engine.restart();
    for expected in 21..=30 {
        assert_eq!(number(&received.next().unwrap()), expected);
    }
    // Refuses for a moment, and comes back at the same address.
    drop((received, tcp));
    std::thread::sleep(Duration::from_millis(300));
    let tcp = TcpListener::bind(&address).unwrap();
    // Those that were written while nobody listened wait or are lost, and for a second more some may be.
    let written = number(engine.logs("steady").lines().last().unwrap());
    let mut received = lines(accept(&tcp));
    let first = number(&received.next().unwrap());
    assert!(
        (31..written + 400).contains(&first),
        "{first} after {written}"
    );
    for expected in first + 1..first + 20 {
        assert_eq!(number(&received.next().unwrap()), expected);
    }
    engine
        .cli(Program::Docker)
        .run(&["rm", "-f", "steady"])
        .ok();
    await_senders(&engine);
}

#[test]
fn a_collector_that_takes_nothing_loses_lines_if_that_is_asked_for() {
    let engine = Engine::start();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("syslog-address=tcp://{}", tcp.local_addr().unwrap());
    let options = [address.as_str(), "mode=non-blocking", "max-buffer-size=64k"];
    // More than the sockets on the way hold.
    let script = "yes $(printf %0200d 1) | head -c 40000000; sleep 600";
    up(&engine, "lossy", "syslog", &options, script);
    let silent = accept(&tcp);
    let lost = await_loss(&engine, "lossy");
    assert_eq!(lost["driver"], "syslog");
    assert_eq!(lost["error"], "the buffer for the collector is full");
    assert!(lost["lines"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    drop((silent, tcp));
    engine.cli(Program::Docker).run(&["rm", "-f", "lossy"]).ok();
    await_senders(&engine);
}

#[test]
fn a_container_waits_for_a_slow_collector() {
    let engine = Engine::start();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("syslog-address=tcp://{}", tcp.local_addr().unwrap());
    let count = 100_000;
    let script = format!(
        "awk 'BEGIN {{ for (i = 1; i <= {count}; i++) printf \"%0200d\\n\", i }}'; sleep 600"
    );
    let options = [address.as_str(), "cache-disabled=true"];
    up(&engine, "patient", "syslog", &options, &script);
    let slow = accept(&tcp);
    let cli = engine.cli(Program::Docker);
    cli.run(&["logs", "patient"])
        .refuses(1, "configured logging driver does not support reading");
    // The shell has the program in its arguments, too.
    let writes = || {
        let top = cli.run(&["top", "patient"]).ok();
        top.lines().filter(|line| line.contains("awk")).count() > 1
    };
    eventually("the program to run", || writes().then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    assert!(writes(), "the container did not wait");
    let received = lines(slow).take(count);
    for (index, line) in received.enumerate() {
        let number: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(number, index + 1);
    }
    cli.run(&["rm", "-f", "patient"]).ok();
    await_senders(&engine);
}

/// Accepts a TLS connection of a client whose certificate the authority in `place` has signed, or one without.
fn accept_tls(
    listener: &TcpListener,
    place: &std::path::Path,
    wants_certificate: bool,
) -> rustls::StreamOwned<rustls::ServerConnection, TcpStream> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = |name: &str| CertificateDer::from_pem_file(place.join(name)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate("ca.pem")).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let verifier = match wants_certificate {
        true => verifier,
        false => verifier.allow_unauthenticated(),
    };
    let verifier = verifier.build().unwrap();
    let key = PrivateKeyDer::from_pem_file(place.join("key.pem")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate("cert.pem")], key)
        .unwrap();
    let session = rustls::ServerConnection::new(config.into()).unwrap();
    rustls::StreamOwned::new(session, accept(listener))
}

#[test]
fn syslog_is_sent_over_tls() {
    let engine = Engine::start();
    let (place, other) = (engine.scratch("tls"), engine.scratch("other"));
    let authority = whelk_tests::certificates::Authority::new("logs");
    authority.issue(&place, "collector");
    whelk_tests::certificates::Authority::new("other").issue(&other, "other");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!(
        "syslog-address=tcp+tls://{}",
        listener.local_addr().unwrap()
    );
    let file = |key: &str, name: &str| format!("{key}={}", place.join(name).display());
    let ca = file("syslog-tls-ca-cert", "ca.pem");
    let (cert, key) = (
        file("syslog-tls-cert", "cert.pem"),
        file("syslog-tls-key", "key.pem"),
    );
    // More than TLS buffers, and what is larger than one of its records.
    let script = "i=0; while [ $i -lt 2000 ]; do echo line-$i-0123456789012345678901234567890123456789; i=$((i+1)); done; echo end";
    let server = std::thread::spawn({
        let place = place.clone();
        move || {
            let stream = accept_tls(&listener, &place, true);
            let lines: Vec<String> = BufReader::new(stream)
                .lines()
                .map_while(Result::ok)
                .collect();
            (lines, listener)
        }
    });
    up(
        &engine,
        "tls",
        "syslog",
        &[&address, &ca, &cert, &key],
        script,
    );
    let (received, listener) = server.join().unwrap();
    assert_eq!(received.len(), 2001);
    assert!(
        received[1999].contains(": line-1999-0123"),
        "{}",
        received[1999]
    );
    assert!(received[2000].ends_with(": end"));
    engine.await_state("tls", "exited");
    assert_eq!(engine.logs("tls").lines().count(), 2001);
    // An authority that has not signed the collector's certificate.
    let wrong = format!("syslog-tls-ca-cert={}", other.join("ca.pem").display());
    let server = std::thread::spawn({
        let place = place.clone();
        move || {
            let _ = accept_tls(&listener, &place, true).read(&mut [0; 1]);
            listener
        }
    });
    let mut flags = vec!["run", "--log-driver=syslog"];
    for option in [&address, &wrong, &cert, &key] {
        flags.extend(["--log-opt", option]);
    }
    flags.extend(["busybox", "true"]);
    let refused = engine.docker(&flags);
    assert!(
        refused
            .fails(125)
            .contains("certificate signed by unknown authority"),
        "{}",
        refused.err()
    );
    let listener = server.join().unwrap();
    // Every certificate is accepted if that is asked for.
    let server = std::thread::spawn({
        move || {
            let mut line = String::new();
            BufReader::new(accept_tls(&listener, &place, true))
                .read_line(&mut line)
                .unwrap();
            line
        }
    });
    let skip = "syslog-tls-skip-verify=true";
    up(
        &engine,
        "any",
        "syslog",
        &[&address, &wrong, skip, &cert, &key],
        "echo hello",
    );
    assert!(server.join().unwrap().ends_with(": hello\n"));
    await_senders(&engine);
}

/// Reads a fluentd message with a chunk id from the front of a stream.
fn read_with_chunk(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> (String, String) {
    loop {
        let mut rest = &buffer[..];
        // An incomplete message panics in `unpack`.
        let parsed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (unpack(&mut rest), rest.len())
        }));
        if let Ok((message, left)) = parsed {
            buffer.drain(..buffer.len() - left);
            let log = message[2]["log"].as_str().unwrap().to_owned();
            return (log, message[3]["chunk"].as_str().unwrap().to_owned());
        }
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the stream ends");
        buffer.extend(&bytes[..count]);
    }
}

#[test]
fn fluentd_lines_are_sent_again_until_they_are_acknowledged() {
    use std::io::Write as _;
    let engine = Engine::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("fluentd-address={}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut stream = accept(&listener);
        let mut buffer = Vec::new();
        // The connection breaks before the first line is acknowledged.
        seen.push(read_with_chunk(&mut stream, &mut buffer));
        drop(stream);
        let mut stream = accept(&listener);
        buffer.clear();
        while seen.last().is_none_or(|(log, _)| log != "three") {
            let (log, chunk) = read_with_chunk(&mut stream, &mut buffer);
            let mut answer = b"\x81\xa3ack\xd9".to_vec();
            answer.push(u8::try_from(chunk.len()).unwrap());
            answer.extend(chunk.as_bytes());
            stream.write_all(&answer).unwrap();
            seen.push((log, chunk));
        }
        seen
    });
    let options = [
        &address[..],
        "fluentd-request-ack=true",
        "fluentd-retry-wait=50ms",
    ];
    up(
        &engine,
        "ack",
        "fluentd",
        &options,
        "echo one; echo two; sleep 1; echo three",
    );
    let seen = server.join().unwrap();
    let logs: Vec<&str> = seen.iter().map(|(log, _)| log.as_str()).collect();
    assert_eq!(logs, ["one", "one", "two", "three"]);
    assert_eq!(seen[0].1, seen[1].1, "the same line has the same id");
    assert_ne!(seen[1].1, seen[2].1);
    await_senders(&engine);
}

/// A socket whose owner does not accept, as that of a stopped daemon.
#[test]
fn a_stopped_collector_at_a_unix_socket_keeps_no_process() {
    let engine = Engine::start();
    let path = engine.scratch("stopped").join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let mut waiting = Vec::new();
    // Fill the backlog.
    loop {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        match rustix::net::connect(&socket, &address) {
            Ok(()) => waiting.push(socket),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let address = format!("syslog-address=unix://{}", path.display());
    let output = engine.docker(&[
        "run",
        "--log-driver=syslog",
        "--log-opt",
        &address,
        "busybox",
        "true",
    ]);
    assert!(
        output.fails(125).contains("i/o timeout"),
        "{}",
        output.err()
    );
    await_senders(&engine);
}

#[test]
fn losses_without_an_engine_are_reported_by_the_next_one() {
    let engine = Engine::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("gelf-address=tcp://{}", listener.local_addr().unwrap());
    let gate = engine.scratch("gate");
    let volume = format!("{}:/gate", gate.display());
    let flags = [
        "-v",
        &volume,
        "--log-driver=gelf",
        "--log-opt",
        &address,
        "--log-opt=mode=non-blocking",
        "--log-opt=max-buffer-size=20k",
        "--log-opt=gelf-tcp-max-reconnect=0",
    ];
    let script = "until [ -e /gate/go ]; do sleep 0.1; done; i=0; while [ $i -lt 20000 ]; do echo line-$i-01234567890123456789012345678901234567890123456789; i=$((i+1)); done";
    engine
        .cli(Program::Docker)
        .up("silent", &flags, &["sh", "-c", script]);
    // It takes nothing: all lines of one read do not fit, but those that do are kept.
    let stream = accept(&listener);
    let pid = engine.pid("silent");
    engine.kill9();
    std::fs::write(gate.join("go"), "").unwrap();
    eventually("the container to end without waiting", || {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    engine.restart();
    engine.await_state("silent", "exited");
    let lost = await_loss(&engine, "silent");
    let lines: u64 = lost["lines"].as_str().unwrap().parse().unwrap();
    assert!((1000..20000).contains(&lines), "{lost}");
    drop(stream);
    await_senders(&engine);
}

#[test]
fn journald_gets_fields_at_its_socket() {
    let scratch = whelk_sys::Scratch::temporary("journal").unwrap();
    let journal = UnixDatagram::bind(scratch.path().join("socket")).unwrap();
    journal.set_read_timeout(Some(PATIENCE)).unwrap();
    let script = format!(
        r#"
        echo "{{\"instance\": \"$name\"}}" >/etc/whelk/daemon.json
        mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal || exit 2
        "$0" load -q -i {} || exit 3
        "$0" run --name first --network none --log-driver journald --log-opt tag=app --log-opt labels=zone -l zone=a busybox sh -c 'echo one; echo two >&2' || exit 4
        # The process that sends the log of the second run does not wait for that of the first.
        tries=0
        while pgrep -x whelk-log >/dev/null; do [ $((tries += 1)) -le 600 ] || exit 8; sleep 0.1; done
        "$0" start first || exit 5
        "$0" wait first
        "$0" logs first || exit 6
        "$0" rm first
        end_engine || exit 7"#,
        scratch.path().display(),
        whelk_tests::images::busybox().display(),
    );
    let output = whelk_tests::private_host(&script);
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("one\n") && shown.matches("one\n").count() >= 2,
        "{shown}"
    );
    let mut entries = Vec::new();
    for _ in 0..4 {
        let mut bytes = [0; 4096];
        let length = journal.recv(&mut bytes).expect("an entry");
        entries.push(String::from_utf8(bytes[..length].to_vec()).unwrap());
    }
    let field = |entry: &str, name: &str| {
        let mut found = entry
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let value = found.next().unwrap_or_default().to_owned();
        assert_eq!(found.next(), None, "{name}: {entry}");
        value
    };
    let fields = |name: &str| {
        entries
            .iter()
            .map(|entry| field(entry, name))
            .collect::<Vec<_>>()
    };
    assert_eq!(fields("MESSAGE"), ["one", "two", "one", "two"]);
    assert_eq!(fields("PRIORITY"), ["6", "3", "6", "3"]);
    assert_eq!(fields("CONTAINER_LOG_ORDINAL"), ["1", "2", "1", "2"]);
    assert_eq!(fields("CONTAINER_TAG"), ["app"; 4]);
    assert_eq!(fields("ZONE"), ["a"; 4]);
    assert_eq!(fields("CONTAINER_NAME"), ["first"; 4]);
    let epochs = fields("CONTAINER_LOG_EPOCH");
    assert!(
        epochs[0].len() == 64 && epochs[0] == epochs[1],
        "{epochs:?}"
    );
    assert_ne!(epochs[1], epochs[2], "each run has its own");
}
