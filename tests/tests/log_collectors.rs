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
use whelk_tests::{Engine, Program};

const PATIENCE: Duration = Duration::from_secs(20);

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
    let deadline = Instant::now() + PATIENCE;
    while std::fs::read_dir("/proc").unwrap().flatten().any(is_sender) {
        assert!(Instant::now() < deadline, "a sender does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
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

#[test]
fn a_collector_that_refuses_fails_the_start() {
    let engine = Engine::start();
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
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
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
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
    let tcp = TcpListener::bind(address).unwrap();
    let mut received = lines(accept(&tcp));
    let first = number(&received.next().unwrap());
    assert!((31..60).contains(&first), "{first}");
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
    std::thread::sleep(Duration::from_secs(2));
    let top = cli.run(&["top", "patient"]).ok();
    assert!(top.contains("awk"), "the container did not wait: {top}");
    let received = lines(slow).take(count);
    for (index, line) in received.enumerate() {
        let number: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
        assert_eq!(number, index + 1);
    }
    cli.run(&["rm", "-f", "patient"]).ok();
    await_senders(&engine);
}
