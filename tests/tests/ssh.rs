//! `ssh://` hosts, with a substitute for ssh that runs the command on this host.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use whelk_tests::{Engine, Program, eventually};

/// The other host: its programs are in a directory of their own.
struct Far {
    directory: PathBuf,
    socket: PathBuf,
}

impl Far {
    /// Creates the programs of the other host, by their names there.
    fn new(engine: &Engine, name: &str, programs: &[(&str, Program)]) -> Self {
        let directory = engine.scratch(name);
        let (near, far) = (directory.join("near"), directory.join("far"));
        std::fs::create_dir_all(&near).unwrap();
        std::fs::create_dir_all(&far).unwrap();
        for (name, program) in programs {
            symlink(program.path(), far.join(name)).unwrap();
        }
        let far = Self {
            directory,
            socket: engine.socket(),
        };
        far.end_with("", "");
        far
    }

    /// Replaces the substitute for ssh by one that executes shell commands before and after the command
    /// for the other host.
    fn end_with(&self, before: &str, after: &str) {
        // As sshd does, it hands the words after the host to a shell in one text.
        let script = format!(
            "#!/bin/sh\necho \"$@\" >> {log}\n{before}\nwhile [ \"$1\" != -- ]; do shift; done\nshift 2\nexport PATH={far} DOCKER_HOST=unix://{socket}\nunset DOCKER_CONTEXT\n{exec}/bin/sh -c \"$*\"\n{after}\n",
            exec = if after.is_empty() { "exec " } else { "" },
            log = self.directory.join("log").display(),
            far = self.directory.join("far").display(),
            socket = self.socket.display(),
        );
        let ssh = self.directory.join("near/ssh");
        std::fs::write(&ssh, script).unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, program: Program, args: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap();
        let near = self.directory.join("near");
        let mut command = Command::new(program.path());
        command
            .args(args)
            .env("PATH", format!("{}:{path}", near.display()))
            .env("DOCKER_HOST", "ssh://me@far:22")
            .env("DOCKER_CONFIG", self.directory.join("config"))
            .env_remove("WHELK_HOST")
            .env_remove("DOCKER_CONTEXT");
        command
    }

    fn run(&self, program: Program, args: &[&str]) -> Output {
        let mut command = self.command(program, args);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command that must succeed, and returns its output.
    #[track_caller]
    fn says(&self, program: Program, args: &[&str]) -> String {
        let output = self.run(program, args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program:?} {args:?}: {err}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The command lines of ssh.
    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

/// Asserts that no `dial-stdio` process of the test is running.
fn assert_no_dialers(engine: &Engine) {
    let socket = format!("DOCKER_HOST=unix://{}\0", engine.socket().display());
    eventually("the far side's programs have ended", || {
        let dialers = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
                let has = |bytes: Vec<u8>, text: &str| {
                    bytes
                        .windows(text.len())
                        .any(|part| part == text.as_bytes())
                };
                has(read("cmdline"), "dial-stdio") && has(read("environ"), &socket)
            });
        (dialers.count() == 0).then_some(())
    });
}

#[test]
fn each_client_connects_over_ssh_to_each_program() {
    let engine = Engine::start();
    engine.cli(Program::Whelk).up("up", &[], &["sleep", "600"]);
    for (name, there) in [
        ("docker", [("docker", Program::Docker)]),
        ("whelk-as-docker", [("docker", Program::Whelk)]),
        ("whelk", [("whelk", Program::Whelk)]),
    ] {
        let far = Far::new(&engine, name, &there);
        for here in [Program::Whelk, Program::Docker] {
            // Docker's CLI looks for no other program.
            if here == Program::Docker && name == "whelk" {
                continue;
            }
            assert_eq!(far.says(here, &["ps", "--format", "{{.Names}}"]), "up");
            // Streams in both directions, whose input ends first.
            let mut child = far
                .command(here, &["exec", "-i", "up", "sh", "-c", "wc -c; echo end"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = child.stdin.take().unwrap();
            let writer = std::thread::spawn(move || input.write_all(&vec![b'x'; 3 << 20]));
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            assert_eq!(
                (
                    output.status.code(),
                    String::from_utf8_lossy(&output.stdout).trim()
                ),
                (Some(0), "3145728\nend"),
                "{here:?} {there:?}"
            );
        }
        assert_no_dialers(&engine);
        let log = far.log();
        let expected = "-l me -p 22 -o ConnectTimeout=30 -T -- far docker system dial-stdio";
        assert_eq!(log.first().map(String::as_str), Some(expected));
        if name == "whelk" {
            let last = expected.replace("docker", "whelk");
            assert_eq!(log.last(), Some(&last));
        }
    }
}

/// Their connections become ones of HTTP/2, with calls in both directions.
#[test]
fn builds_go_over_ssh() {
    let engine = Engine::start();
    let text = "FROM busybox\nCOPY file /file\nRUN --network=none cp /file /made\n";
    let context = engine.scratch_with("context", &[("Dockerfile", text), ("file", "sent\n")]);
    let build = [
        "build",
        "--no-cache",
        "-t",
        "made",
        context.to_str().unwrap(),
    ];
    let far = Far::new(&engine, "far", &[("docker", Program::Whelk)]);
    for (here, buildkit) in [
        (Program::Docker, "1"),
        (Program::Docker, "0"),
        (Program::Whelk, "1"),
    ] {
        let mut command = far.command(here, &build);
        // There the client finds its plugins.
        let command = command
            .env("DOCKER_CONFIG", engine.docker_config())
            .env("DOCKER_BUILDKIT", buildkit);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{here:?} {buildkit}: {err}");
        let look = ["run", "--rm", "--network", "none", "made", "cat", "/made"];
        assert_eq!(engine.docker(&look).ok(), "sent");
        engine.docker(&["rmi", "made"]).ok();
    }
    assert_no_dialers(&engine);
    engine.has_no_builds();
}

#[test]
fn failures_of_ssh_are_reported() {
    let engine = Engine::without_images(&[]);
    let far = Far::new(&engine, "nothing", &[]);
    let refused = |args: &[&str], text: &str| {
        let output = far.run(Program::Whelk, args);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains(text), "{args:?}: {err}");
        err
    };
    let err = refused(
        &["ps"],
        "error during connect: ssh://me@far:22: command [ssh -l me -p 22 -o ConnectTimeout=30 -T -- far docker system dial-stdio] has exited with exit status 127, make sure the URL is valid",
    );
    assert!(err.contains("not found"), "{err}");
    assert_eq!(far.log().len(), 2, "{:?}", far.log());
    far.end_with("echo 'no route' >&2; exit 255", "");
    refused(&["ps"], "exit status 255");
    refused(&["ps"], "stderr=no route");
    // The client's part is printed nevertheless.
    let output = far.run(Program::Whelk, &["version"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("Client"));
    let calls = far.log();
    assert!(calls.len() > 4, "{calls:?}");
    // Invalid hosts are refused before ssh is executed.
    for (host, text) in [
        ("ssh://", "hostname is empty"),
        (
            "ssh://-oProxyCommand=touch",
            "hostname begins with a hyphen",
        ),
        ("ssh://u:p@h", "plain-text password is not supported"),
    ] {
        refused(&["-H", host, "ps"], text);
        let docker = format!("host={host}");
        let err = refused(&["context", "create", "xx", "--docker", &docker], text);
        assert!(
            err.contains("unable to create docker endpoint config"),
            "{err}"
        );
    }
    assert_eq!(far.log(), calls);
}

#[test]
fn a_stream_that_ssh_interrupts_is_an_error() {
    let engine = Engine::start();
    engine.cli(Program::Whelk).up("up", &[], &["sleep", "600"]);
    let far = Far::new(&engine, "cut", &[("docker", Program::Whelk)]);
    let exec = ["exec", "up", "echo", "said"];
    assert_eq!(far.says(Program::Whelk, &exec), "said");
    far.end_with("", "exit 255");
    let output = far.run(Program::Whelk, &exec);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "said\n");
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("connection to the engine lost while attached to a command in container up"),
        "{err}"
    );
}

#[test]
fn a_context_can_have_an_ssh_host_with_a_socket() {
    let engine = Engine::start();
    engine.cli(Program::Whelk).up("up", &[], &["sleep", "600"]);
    let far = Far::new(&engine, "context", &[("docker", Program::Whelk)]);
    let host = format!("host=ssh://far{}", engine.socket().display());
    for (one, other) in [
        (Program::Whelk, Program::Docker),
        (Program::Docker, Program::Whelk),
    ] {
        far.says(one, &["context", "create", "there", "--docker", &host]);
        for program in [one, other] {
            let names = far.says(program, &["-c", "there", "ps", "--format", "{{.Names}}"]);
            assert_eq!(names, "up", "{program:?}");
        }
        far.says(other, &["context", "rm", "there"]);
    }
    let expected = format!(
        "-o ConnectTimeout=30 -T -- far docker '--host=unix://{}' system dial-stdio",
        engine.socket().display()
    );
    // Docker's CLI quotes a word only if it has to.
    let bare = expected.replace('\'', "");
    for line in far.log() {
        assert!(line == expected || line == bare, "{line}");
    }
}

#[test]
fn a_lost_connection_is_reported() {
    let engine = Engine::start();
    let far = Far::new(&engine, "lost", &[("docker", Program::Whelk)]);
    let mount = format!("{}:/v", far.directory.display());
    engine
        .cli(Program::Whelk)
        .up("up", &["-v", &mount], &["sleep", "600"]);
    let ssh = far.directory.join("near/ssh");
    let works = std::fs::read_to_string(&ssh).unwrap();
    let marker = far.directory.join("broken");
    let breaks = format!(
        "#!/bin/sh\n[ ! -e {} ] || exit 255\n{works}",
        marker.display()
    );
    std::fs::write(&ssh, breaks).unwrap();
    // Its exit code is asked for by a request of its own.
    let output = far.run(Program::Whelk, &["exec", "up", "touch", "/v/broken"]);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        err.contains("connection to the engine lost while") && err.contains("keeps running"),
        "{err}"
    );
}

/// Starts `system dial-stdio` for the engine at a socket.
fn dial_stdio(socket: &std::path::Path) -> std::process::Child {
    Command::new(Program::Whelk.path())
        .args(["system", "dial-stdio"])
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env_remove("WHELK_HOST")
        .env_remove("DOCKER_CONTEXT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn dial_stdio_without_a_reader_ends_after_its_input() {
    let engine = Engine::without_images(&[]);
    let mut child = dial_stdio(&engine.socket());
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    input
        .write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    output.read_exact(&mut [0; 12]).unwrap();
    drop(input);
    // The engine sends nothing more, so the lost reader has to be detected without a write.
    drop(output);
    let status = eventually("the dialer ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(141));
}

#[test]
fn dial_stdio_copies_both_directions_independently() {
    const SIZE: usize = 3 << 20;
    let engine = Engine::without_images(&[]);
    // A substitute for an engine.
    let socket = engine.scratch("dialed").join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut sending = stream.try_clone().unwrap();
        let sent = std::thread::spawn(move || sending.write_all(&vec![b'o'; SIZE]));
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        sent.join().unwrap().unwrap();
        received.len()
    });
    let mut child = dial_stdio(&socket);
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // Everything is written before anything is read.
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        input.write_all(&vec![b'i'; SIZE]).unwrap();
        drop(input);
        done.send(()).unwrap();
    });
    let written = is_done.recv_timeout(whelk_tests::PATIENCE);
    if written.is_err() {
        child.kill().unwrap();
    }
    written.expect("the input is passed on while nobody reads the output");
    let mut read = Vec::new();
    output.read_to_end(&mut read).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((read.len(), serving.join().unwrap()), (SIZE, SIZE));
}
