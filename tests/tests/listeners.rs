//! The sockets that an engine listens on: several unix sockets, sockets passed by systemd, and TCP
//! with and without TLS.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test says why it fails by failing"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use whelk_tests::builds::PROTOCOLS;
use whelk_tests::certificates::{Authority, flags};
use whelk_tests::{Engine, Output, PATIENCE, Program, eventually, free_port};

/// The clients that these tests use.
const PROGRAMS: [Program; 2] = [Program::Docker, Program::Whelk];

fn words(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// Starts the engine again with more arguments.
#[track_caller]
fn restart(engine: &Engine, arguments: &[&str]) {
    engine.kill9();
    engine.set_arguments(arguments);
    engine.restart();
}

/// Starts the engine again with more arguments, which must fail with this text.
#[track_caller]
fn refuses(engine: &Engine, arguments: &[&str], text: &str) {
    engine.set_arguments(arguments);
    let told = engine.refuses_to_start();
    assert!(told.contains(text), "{arguments:?}: {told}");
}

/// Returns whether a request over TCP, without TLS, gets the response to `/_ping`.
fn pings(address: &str) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("OK"))
}

#[test]
fn an_engine_listens_on_all_hosts() {
    let engine = Engine::without_images(&[]);
    let (second, port) = (engine.scratch("sockets").join("second"), free_port());
    let hosts = [
        format!("--host=unix://{}", second.display()),
        // Only on loopback, as with Docker.
        format!("--host=tcp://:{port}"),
        format!("--host=tcp://[::1]:{port}"),
        "--tls=false".to_owned(),
    ];
    restart(&engine, &words(&hosts));
    assert!(engine.answers() && pings(&format!("127.0.0.1:{port}")));
    assert!(pings(&format!("[::1]:{port}")));
    let host = format!("unix://{}", second.display());
    for program in [Program::Docker, Program::Whelk] {
        engine.cli(program).run(&["-H", &host, "ps"]).ok();
        let tcp = format!("tcp://127.0.0.1:{port}");
        engine.cli(program).run(&["-H", &tcp, "ps"]).ok();
    }
    let mode = fs::metadata(&second).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let log = engine.last_words();
    assert!(
        log.contains(&format!("listening at tcp://[::1]:{port}"))
            && log.contains(&format!("listening at tcp://127.0.0.1:{port}"))
            && log.contains("a script in a browser"),
        "{log}"
    );
}

/// As Go's server accepts them: curl and some SDKs send filters so.
#[test]
fn quotes_in_a_url_need_not_be_escaped() {
    let engine = Engine::without_images(&[]);
    let port = free_port();
    let hosts = [
        format!("--host=tcp://127.0.0.1:{port}"),
        "--tls=false".to_owned(),
    ];
    restart(&engine, &words(&hosts));
    for (name, label) in [("one", "a=<1>"), ("two", "b=2")] {
        let label = format!("--label={label}");
        engine.whelk(&["volume", "create", &label, name]).ok();
    }
    let get = |query: &str, more: &str| {
        format!("GET /volumes?filters={query} HTTP/1.1\r\nHost: x\r\n{more}\r\n")
    };
    let filters = r#"{"label":["a=<1>"]}"#;
    let requests = [
        get(filters, ""),
        // A body of known length that looks like a request, and a request after it.
        "POST /volumes/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{\"Name\": \"three\"}\n".to_owned(),
        get(filters, "Connection: close\r\n"),
    ];
    let read = |mut stream: Box<dyn ReadWrite>| {
        stream.write_all(requests.concat().as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let unix = std::os::unix::net::UnixStream::connect(engine.socket()).unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
    for stream in [Box::new(unix) as Box<dyn ReadWrite>, Box::new(tcp)] {
        let answer = read(stream);
        let found = |text: &str| answer.matches(text).count();
        assert_eq!(
            (found("HTTP/1.1 200 OK"), found("HTTP/1.1 201 Created")),
            (2, 1),
            "{answer}"
        );
        assert_eq!(
            (found(r#""Name":"one""#), found(r#""Name":"two""#)),
            (2, 0),
            "{answer}"
        );
        assert_eq!(found(r#""Name":"three""#), 1, "{answer}");
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn a_start_fails_on_hosts_that_cannot_be_served() {
    let engine = Engine::without_images(&[]);
    engine.kill9();
    let place = engine.scratch("sockets");
    let (file, first) = (place.join("file"), place.join("first"));
    fs::write(&file, "precious").unwrap();
    let unix = |path: &Path| format!("--host=unix://{}", path.display());
    refuses(
        &engine,
        &[&unix(&first), &unix(&file)],
        &format!(
            "listen at {}: the file there is not a socket",
            file.display()
        ),
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(!first.exists(), "a socket that was bound before");
    refuses(
        &engine,
        &[&unix(&first), &unix(&first)],
        &format!("host unix://{} is given twice", first.display()),
    );
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let tcp = format!("--host=tcp://127.0.0.1:{port}");
    refuses(
        &engine,
        &[&unix(&first), &tcp, "--tls=false"],
        &format!("listen at tcp://127.0.0.1:{port}: address already in use"),
    );
    assert!(!first.exists(), "a socket that was bound before");
    for (host, text) in [
        ("tcp://127.0.0.1:x", "expected tcp://[ADDRESS][:PORT]"),
        ("http://127.0.0.1", "unsupported host \"http://127.0.0.1\""),
        ("fd://", "no socket was passed (LISTEN_FDS)"),
        ("tcp://nosuch.invalid:1", "resolve nosuch.invalid"),
    ] {
        refuses(&engine, &["--host", host, "--tls=false"], text);
    }
    for host in ["fd://", "unix://", "npipe://x"] {
        let text = format!("unsupported host {host:?} of BuildKit's protocol");
        refuses(&engine, &["--buildkit-host", host], &text);
    }
    refuses(
        &engine,
        &[&unix(&first), "--buildkit-host", &unix(&first)[7..]],
        &format!("host unix://{} is given twice", first.display()),
    );
    let remote = ["--buildkit-host", "tcp://127.0.0.1:0"];
    refuses(&engine, &remote, "TCP needs certificates: use --tlsverify");
    engine.set_arguments(&[]);
    engine.restart();
}

#[test]
fn tcp_without_tls_must_be_explicit_and_local() {
    let engine = Engine::without_images(&[]);
    engine.kill9();
    let local = format!("--host=tcp://127.0.0.1:{}", free_port());
    let text = "TCP needs certificates: use --tlsverify";
    refuses(&engine, &[&local], text);
    refuses(&engine, &[&local], "or --tls=false");
    for host in ["tcp://0.0.0.0:0", "tcp://[::]:0"] {
        refuses(&engine, &["--host", host], text);
        let text = "everyone who can reach this address would have root's privileges";
        refuses(&engine, &["--host", host, "--tls=false"], text);
    }
    let with_file = [local.as_str(), "--tls=false", "--tlscert=cert.pem"];
    refuses(
        &engine,
        &with_file,
        "tlscert: without TLS, the file is not used",
    );
    let place = engine.scratch("certificates");
    Authority::new("ca").issue(&place, "server");
    let mut unverified = flags(&place);
    unverified[0] = "--tlsverify=false".into();
    let mut arguments = words(&unverified);
    arguments.push("--host=tcp://0.0.0.0:0");
    refuses(&engine, &arguments, "refused without verifying clients");
    engine.set_arguments(&[]);
    engine.restart();
}

#[test]
fn systemd_passes_several_sockets() {
    let engine = Engine::without_images(&[]);
    engine.kill9();
    let place = engine.scratch("sockets");
    let first = UnixListener::bind(place.join("first")).unwrap();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = second.local_addr().unwrap().port();
    let start = |more: &[&str]| {
        let script = "exec 3<&0 4<&1 </dev/null >/dev/null; \
            LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=api:remote exec \"$0\" daemon \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(Program::Whelk.path());
        command.arg("--root").arg(engine.root());
        command.arg("--run").arg(engine.run());
        command
            .args(["--instance", engine.name()])
            .args(more)
            .stdin(Stdio::from(OwnedFd::from(first.try_clone().unwrap())))
            .stdout(Stdio::from(OwnedFd::from(second.try_clone().unwrap())))
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let ping = |host: &str| {
        engine
            .cli(Program::Docker)
            .run(&["-H", host, "version"])
            .code
            == 0
    };
    let unix = format!("unix://{}", place.join("first").display());
    let tcp = format!("tcp://127.0.0.1:{port}");
    // Each with a host that must be served, and whether the TCP socket is.
    for (hosts, serves_tcp) in [
        (&["fd://"][..], true),
        (&["fd://api"], false),
        (&["fd://3"], false),
        (&["fd://remote", "fd://api"], true),
    ] {
        let mut arguments = vec!["--tls=false"];
        arguments.extend(hosts.iter().flat_map(|host| ["--host", host]));
        let mut child = start(&arguments);
        assert!(ping(&unix), "{hosts:?}");
        if serves_tcp {
            assert!(ping(&tcp), "{hosts:?}");
        }
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        let mut told = String::new();
        child.stderr.unwrap().read_to_string(&mut told).unwrap();
        assert!(status.success(), "{told}");
        assert_eq!(told.contains(&tcp), serves_tcp, "{told}");
    }
    let same = format!("--host={unix}");
    for (arguments, text) in [
        (
            &["--host", "fd://none"][..],
            "passed no socket with this name",
        ),
        (&["--host", "fd://5"], "passed no socket with this name"),
        (&["--host", "fd://remote"], "TCP needs certificates"),
        (&["--host=fd://api", "--host=fd://3"], "given twice"),
        (&["--host=fd://api", &same], "given twice"),
    ] {
        let output = start(arguments).wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(text), "{told}");
    }
    drop((first, second));
    engine.restart();
}

/// An engine that listens on TCP with TLS, and the certificates of its authority.
struct Remote {
    engine: Engine,
    authority: Authority,
    port: u16,
    /// Flags of a client with a certificate.
    client: Vec<String>,
}

impl Remote {
    fn start() -> Self {
        let (engine, authority, port) = (Engine::start(), Authority::new("ca"), free_port());
        let (server, client) = (engine.scratch("server"), engine.scratch("client"));
        authority.issue(&server, "server");
        authority.issue(&client, "joe");
        let mut arguments = flags(&server).to_vec();
        // All addresses.
        arguments.push(format!("--host=tcp://0.0.0.0:{port}"));
        restart(&engine, &words(&arguments));
        let mut remote = Self {
            engine,
            authority,
            port,
            client: Vec::new(),
        };
        remote.client = remote.with(&client);
        remote
    }

    fn host(&self) -> String {
        format!("--host=tcp://127.0.0.1:{}", self.port)
    }

    fn with(&self, certificates: &Path) -> Vec<String> {
        let mut list = flags(certificates).to_vec();
        list.push(self.host());
        list
    }

    fn run(&self, program: Program, flags: &[String], command: &[&str]) -> Output {
        let words = [&words(flags), command].concat();
        self.engine.cli(program).run(&words)
    }

    fn client<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        [&words(&self.client), command].concat()
    }
}

#[test]
fn streams_pass_through_tls() {
    let remote = Remote::start();
    for program in PROGRAMS {
        let cli = remote.engine.cli(program);
        let echo = ["run", "-i", "--rm", "--network=none", "busybox", "cat"];
        let input = vec![b'x'; 1 << 20];
        // `cat` ends when the end of the input arrives, and all of the output comes back.
        let output = cli.feed(&remote.client(&echo), &input);
        output.ok();
        assert!(output.stdout == input, "{} bytes", output.stdout.len());
        let up = [
            "run",
            "-di",
            "--network=none",
            "--name=one",
            "busybox",
            "sh",
        ];
        cli.run(&remote.client(&up)).ok();
        let exec = ["exec", "-i", "one", "sh", "-c", "cat; echo err >&2; exit 3"];
        let output = cli.feed(&remote.client(&exec), b"in\n");
        assert_eq!(
            (output.exits(3).as_str(), output.out().as_str()),
            ("in\nerr\n", "in\n")
        );
        let mut logs = cli.spawn(&remote.client(&["logs", "-f", "one"]));
        let mut attached = cli.spawn(&remote.client(&["attach", "one"]));
        attached.write(b"echo to $((40+2))\n");
        attached.expect("to 42");
        logs.expect("to 42");
        // The input of a container that was started detached stays open.
        attached.write(b"exit\n");
        attached.finish().ok();
        logs.finish().ok();
        let terminal = ["run", "-it", "--rm", "--network=none", "busybox", "sh"];
        let mut terminal = cli.pty(&remote.client(&terminal));
        terminal.insist("echo $((6*7))\n", "42");
        terminal.keys("exit\n");
        assert_eq!(terminal.finish(), 0);
        remote.engine.remove_containers().unwrap();
    }
}

#[test]
fn builds_pass_through_tls() {
    let remote = Remote::start();
    let text = "FROM busybox\nCOPY file /file\nRUN --network=none cp /file /made\n";
    let files = [("Dockerfile", text), ("file", "sent\n")];
    let context = remote.engine.scratch_with("context", &files);
    let build = [
        "build",
        "--no-cache",
        "-t",
        "made",
        context.to_str().unwrap(),
    ];
    for (program, env) in [
        (Program::Docker, PROTOCOLS[0]),
        (Program::Docker, PROTOCOLS[1]),
        (Program::Whelk, PROTOCOLS[1]),
    ] {
        let cli = remote.engine.cli(program).with_env(env);
        cli.run(&remote.client(&build)).exits(0);
        let look = ["run", "--rm", "--network=none", "made", "cat", "/made"];
        assert_eq!(cli.run(&remote.client(&look)).ok(), "sent");
        cli.run(&remote.client(&["rmi", "made"])).ok();
    }
}

#[test]
fn input_is_forwarded_before_it_ends() {
    /// More bytes than all buffers of the connection hold.
    const SIZE: usize = 32 << 20;
    let remote = Remote::start();
    // The reader is slow, so that the buffers are full when the end of the input is sent.
    let script = "n=0; while [ $n -lt 128 ]; do \
            dd bs=256k count=1 iflag=fullblock of=/dev/null 2>&1 | grep -q 1+0 || exit 9; \
            sleep 0.02; n=$((n + 1)); done; echo all";
    let mut command = ["run", "-i", "--rm", "--network=none", "busybox"].to_vec();
    command.extend(["sh", "-c", script]);
    let cli = remote.engine.cli(Program::Whelk);
    let mut running = cli.spawn(&remote.client(&command));
    running.write(&vec![b'x'; SIZE]);
    running.expect("all");
    running.finish().ok();
}

#[test]
fn only_clients_with_a_valid_certificate_are_served() {
    let remote = Remote::start();
    let place = remote.engine.scratch("others");
    let directory = |name: &str| {
        let path = place.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (foreign, expired, bare) = (
        directory("foreign"),
        directory("expired"),
        directory("bare"),
    );
    Authority::new("other").issue(&foreign, "eve");
    remote.authority.issue_until(&expired, "joe", 2002);
    fs::copy(
        remote.engine.scratch("client").join("ca.pem"),
        bare.join("ca.pem"),
    )
    .unwrap();
    for program in PROGRAMS {
        remote.run(program, &remote.client, &["ps"]).ok();
        let refused = |flags: &[String], text: &str| {
            let output = remote.run(program, flags, &["ps"]);
            output.refuses(1, text);
        };
        // The client does not accept the server.
        refused(
            &remote.with(&foreign),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        );
        // The server does not accept the client.
        let mut unverified = remote.with(&foreign);
        unverified[0] = "--tls".into();
        refused(&unverified, "tls: ");
        refused(&remote.with(&expired), "tls: ");
        let bare = [
            "--tlsverify".to_owned(),
            format!("--tlscacert={}", bare.join("ca.pem").display()),
            remote.host(),
        ];
        refused(&bare, "tls: ");
        refused(
            &[remote.host()],
            "Error response from daemon: Client sent an HTTP request to an HTTPS server.",
        );
        remote.run(program, &remote.client, &["ps"]).ok();
    }
    for text in [
        "peer sent no certificates",
        "certificate expired",
        "the client sent HTTP without TLS",
    ] {
        eventually(text, || {
            remote.engine.last_words().contains(text).then_some(())
        });
    }
}

#[test]
fn unfinished_handshakes_do_not_keep_clients_away() {
    let remote = Remote::start();
    let connect = || TcpStream::connect(("127.0.0.1", remote.port)).unwrap();
    let mut idle: Vec<TcpStream> = Vec::new();
    // They are closed after 10 s. A single client may be late for another reason.
    let is_soon = |_| {
        let mut more: Vec<TcpStream> = (0..300).map(|_| connect()).collect();
        for stream in more.iter_mut().step_by(2) {
            // The first bytes of a handshake.
            stream.write_all(&[0x16, 3, 1, 2]).unwrap();
        }
        idle.extend(more);
        let begin = Instant::now();
        remote.run(Program::Docker, &remote.client, &["ps"]).ok();
        begin.elapsed() < Duration::from_secs(8)
    };
    assert!((0..3).any(is_soon));
    assert!(remote.engine.answers());
    // The oldest have made room for others; the rest is closed later.
    for stream in &mut idle {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let read = stream.read(&mut [0; 64]);
        assert!(
            !matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "an idle connection stayed open: {read:?}"
        );
    }
}

#[test]
fn certificates_are_read_again_on_sighup() {
    let remote = Remote::start();
    let (server, other) = (
        remote.engine.scratch("server"),
        remote.engine.scratch("other"),
    );
    let authority = Authority::new("other");
    authority.issue(&other, "ann");
    let ann = remote.with(&other);
    let served = |flags: &[String]| remote.run(Program::Docker, flags, &["ps"]).code == 0;
    let hangup = |text: &str| {
        let pid = Pid::from_raw(remote.engine.daemon_pid()).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
        eventually(text, || {
            remote.engine.last_words().contains(text).then_some(())
        });
    };
    assert!(served(&remote.client) && !served(&ann));
    // A key that does not match: the old ones stay.
    fs::copy(other.join("key.pem"), server.join("key.pem")).unwrap();
    hangup("the key does not belong to");
    assert!(served(&remote.client) && !served(&ann));
    authority.issue(&server, "server");
    hangup("the certificates were read again");
    assert!(!served(&remote.client) && served(&ann));
}

#[test]
fn a_start_fails_on_unusable_certificates() {
    let engine = Engine::without_images(&[]);
    engine.kill9();
    let place = engine.scratch("certificates");
    let authority = Authority::new("ca");
    let list = [
        flags(&place).to_vec(),
        vec![format!("--host=tcp://127.0.0.1:{}", free_port())],
    ]
    .concat();
    let file = |name: &str| place.join(name).display().to_string();
    let refused = |text: &str| refuses(&engine, &words(&list), text);
    refused(&format!("{}: no such file or directory", file("ca.pem")));
    authority.issue(&place, "server");
    fs::write(place.join("ca.pem"), "no certificate").unwrap();
    refused(&format!(
        "TLS: read the CA certificates {}: no certificate in PEM form",
        file("ca.pem")
    ));
    authority.issue(&place, "server");
    let key = fs::read(place.join("key.pem")).unwrap();
    authority.issue(&place, "another");
    fs::write(place.join("key.pem"), key).unwrap();
    refused(&format!("the key does not belong to {}", file("cert.pem")));
    fs::write(
        place.join("key.pem"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----",
    )
    .unwrap();
    refused(&format!(
        "TLS: read the key {}: no private key",
        file("key.pem")
    ));
    authority.issue(&place, "server");
    fs::set_permissions(place.join("key.pem"), PermissionsExt::from_mode(0o644)).unwrap();
    // The keys of the configuration file are those of Docker's.
    engine.configure(&serde_json::json!({
        "tlsverify": true, "tlscacert": file("ca.pem"), "tlscert": file("cert.pem"), "tlskey": file("key.pem"),
    }));
    engine.set_arguments(&[list.last().unwrap()]);
    engine.restart();
    let log = engine.last_words();
    assert!(log.contains("can be read by every user"), "{log}");
}

#[test]
fn an_expired_certificate_does_not_stop_the_engine() {
    let engine = Engine::without_images(&[]);
    let place = engine.scratch("certificates");
    Authority::new("ca").issue_until(&place, "server", 2002);
    let tcp = format!("--host=tcp://127.0.0.1:{}", free_port());
    let mut arguments = flags(&place).to_vec();
    arguments.push(tcp);
    restart(&engine, &words(&arguments));
    assert!(engine.answers());
    let text = format!(
        "TLS: use the certificate {}: it expired at 2002-01-01T00:00:00Z",
        place.join("cert.pem").display()
    );
    assert!(engine.last_words().contains(&text));
    let pid = Pid::from_raw(engine.daemon_pid()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    let text = "the previous certificates stay in use";
    eventually(text, || engine.last_words().contains(text).then_some(()));
}
