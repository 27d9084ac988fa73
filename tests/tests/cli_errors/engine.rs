//! Engines that do not run, that a command starts, and that are killed during a command.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use whelk_tests::{Engine, Program};

#[test]
fn commands_fail_without_an_engine() {
    let nowhere = std::env::temp_dir().join("no-engine-listens-here.sock");
    for program in [Program::Docker, Program::Whelk] {
        let cases: [(&[&str], i32); 3] = [
            (&["ps"], 1),
            (&["run", "busybox", "true"], 125),
            (&["exec", "a", "b"], 1),
        ];
        for (args, code) in cases {
            let output = Command::new(program.path())
                .args(args)
                .env("DOCKER_HOST", format!("unix://{}", nowhere.display()))
                .env_remove("WHELK_HOST")
                .env_remove("DOCKER_CONTEXT")
                .output()
                .unwrap();
            let err = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{program:?} {args:?}: {err}"
            );
            assert!(
                err.contains("Cannot connect to the ")
                    && err.contains(&format!("unix://{}", nowhere.display())),
                "{program:?} {args:?}: {err}"
            );
        }
    }
    // Nor can it be uninstalled.
    let uninstall = ["daemon", "--uninstall", "--instance", "nosuch", "--root"];
    let output = Command::new(Program::Whelk.path())
        .args(uninstall)
        .arg(&nowhere)
        .arg("--run")
        .arg(&nowhere)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && err.contains("instance \"nosuch\" with root")
            && err.contains("does not exist on this host"),
        "{err}"
    );
    assert!(!nowhere.exists() && !std::path::Path::new("/run/whelk-instance-nosuch.lock").exists());
}

#[test]
fn a_first_command_starts_an_engine() {
    let output = whelk_tests::private_host(
        r#"echo "{\"instance\": \"$name\"}" >/etc/whelk/daemon.json
        "$0" ps -q || exit 8
        engine=$(pgrep -f 'daemon [-]-background')
        "$0" info --format '{{.ServerVersion}}'
        [ "$(readlink /proc/$engine/cwd)" = / ] && kill $engine
        # At once: what the engine kept ready may take a moment to be gone.
        exec "$0" daemon --uninstall"#,
    );
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success()
            && told.contains("whelk: no engine at /run/whelk/whelk.sock, starting one"),
        "{output:?}"
    );
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        env!("CARGO_PKG_VERSION")
    );
}

#[test]
fn an_engine_that_cannot_start_reports_the_cause() {
    let output = whelk_tests::private_host(
        r#"tell() { "$0" "$@" 2>/run/told; code=$?; echo "$1 $code: $(grep -E 'exited|has the hosts' /run/told)"; }
        # The engine listens before it opens its root.
        echo "{\"instance\": \"$name\"}" >/etc/whelk/daemon.json
        mkdir -p /var/lib/whelk/store.db
        tell ps
        tell run busybox true
        tell create busybox true
        # The name of another instance, which --uninstall does not make known.
        "$0" daemon --uninstall --instance $name-other && exit 1
        [ -e /run/whelk-instance-$name-other.lock ] && exit 2
        rmdir /var/lib/whelk/store.db
        echo "{\"instance\": \"$name\", \"hosts\": [\"unix:///run/other.sock\"]}" >/etc/whelk/daemon.json
        tell ps
        exec "$0" daemon --uninstall"#,
    );
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let told: Vec<&str> = told.lines().collect();
    for (line, (code, text)) in [
        ("ps 1: ", "the engine exited during start: "),
        ("run 125: ", "whelk: the engine exited during start: "),
        ("create 1: ", "the engine exited during start: "),
        (
            "ps 1: ",
            "/etc/whelk/daemon.json has the hosts unix:///run/other.sock",
        ),
    ]
    .iter()
    .enumerate()
    {
        let found = told.get(line).copied().unwrap_or_default();
        assert!(
            found.starts_with(code) && found.contains(text),
            "{code}{text}: {told:?}"
        );
    }
}

#[test]
fn containers_survive_a_killed_engine() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let talk = ["sh", "-c", "while :; do echo talk; sleep 0.2; done"];
    cli.up("held", &["-i"], &talk);
    cli.up("tty", &["-t"], &talk);
    let (relay, answered) = relay(&engine);
    let script = "echo begun; sleep 600";
    let mut commands = [
        (
            "run",
            125,
            cli.spawn(&["run", "--name", "ran", "busybox", "sh", "-c", script]),
        ),
        ("attach", 1, cli.spawn(&["attach", "held"])),
        ("attach -t", 1, cli.spawn(&["attach", "--no-stdin", "tty"])),
        (
            "exec",
            1,
            cli.spawn(&["exec", "held", "sh", "-c", "echo begun; sleep 654"]),
        ),
        ("logs", 1, cli.spawn(&["logs", "-f", "held"])),
        ("wait", 1, cli.spawn(&["--host", &relay, "wait", "held"])),
        ("events", 1, cli.spawn(&["events", "--since", "1"])),
    ];
    for (name, _, command) in &mut commands {
        match *name {
            "run" | "exec" => command.expect("begun"),
            // The engine responds when the wait is registered; the command prints nothing then.
            "wait" => answered.recv_timeout(Duration::from_secs(60)).unwrap(),
            "events" => command.expect("container start"),
            _ => command.expect("talk"),
        }
    }
    engine.kill9();
    for (name, code, command) in &mut commands {
        let err = command.finish().fails(*code);
        assert!(
            err.contains("connection to the engine lost") && !err.contains("from daemon"),
            "{name}: {err}"
        );
        let container = match *name {
            "run" => "ran",
            "attach -t" => "tty",
            _ => "held",
        };
        assert!(
            *name == "events"
                || err.contains(&format!(
                    "container {container}; the container keeps running"
                )),
            "{name}: {err}"
        );
        if *name == "run" {
            assert_eq!(
                err.trim(),
                "whelk: connection to the engine lost while attached to container ran; the container keeps running, and \"whelk attach ran\" continues with it"
            );
        }
    }
    engine.restart();
    for name in ["ran", "held", "tty"] {
        assert_eq!(engine.state(name), "running", "{name}");
    }
    let processes = cli.run(&["exec", "held", "ps"]).ok();
    assert!(processes.contains("sleep 654"), "{processes}");
}

/// Relays one connection to the engine. Returns its host, and a channel that receives when the engine
/// has answered.
fn relay(engine: &Engine) -> (String, mpsc::Receiver<()>) {
    let path = engine.scratch("relay").join("socket");
    let host = format!("unix://{}", path.display());
    let listener = UnixListener::bind(path).unwrap();
    let engine = engine.socket();
    let (answers, answered) = mpsc::channel();
    std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let engine = UnixStream::connect(engine).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), engine.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = (&engine).read(&mut buffer) {
            let _ = (&client).write_all(&buffer[..count]);
            let _ = answers.send(());
        }
        let _ = client.shutdown(Shutdown::Both);
    });
    (host, answered)
}

#[test]
fn the_environment_fixes_the_api_version() {
    let engine = Engine::without_images(&[]);
    let with = |program: Program, version: &str, args: &[&str]| {
        let output = Command::new(program.path())
            .env(
                "DOCKER_HOST",
                format!("unix://{}", engine.socket().display()),
            )
            .env("DOCKER_API_VERSION", version)
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let template = "{{.Client.APIVersion}} {{.Client.DefaultAPIVersion}}";
    let version: &[&str] = &["version", "--format", template];
    for (set, args, code, text) in [
        ("1.30", version, 0, "1.30 1.51"),
        ("v1.30", version, 0, "1.30 1.51"),
        ("", version, 0, "1.51 1.51"),
        (
            "foo",
            version,
            1,
            "Error response from daemon: page not found",
        ),
        (
            "1.10",
            &["ps"],
            1,
            "client version 1.10 is too old. Minimum supported API version is 1.24",
        ),
        (
            "9.99",
            &["ps"],
            1,
            "client version 9.99 is too new. Maximum supported API version is 1.55",
        ),
        (
            "a/b c",
            &["ps"],
            1,
            "Error response from daemon: page not found",
        ),
    ] {
        let (status, out, err) = with(Program::Whelk, set, args);
        assert_eq!(status, Some(code), "{set}: {err}");
        assert!(out == text || err.contains(text), "{set}: {out} {err}");
        if set != "a/b c" {
            assert_eq!(
                (status, out, err),
                with(Program::Docker, set, args),
                "{set}"
            );
        }
    }
    let (_, out, _) = with(Program::Whelk, "1.30", &["version"]);
    assert!(out.contains("1.30 (downgraded from 1.51)"), "{out}");
}
