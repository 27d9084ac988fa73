//! Output that cannot be written, and closed pipes.

use std::process::Command;

use whelk_tests::{Engine, Program};

/// Runs whelk with a standard output that is a pipe without a reader.
fn unread(engine: &Engine, args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    written_to(engine, args, writer.into())
}

/// Runs whelk with a standard output on a full disk.
fn on_full_disk(engine: &Engine, args: &[&str]) -> (Option<i32>, String) {
    let full = std::fs::File::options().write(true).open("/dev/full");
    written_to(engine, args, full.unwrap().into())
}

fn written_to(engine: &Engine, args: &[&str], out: std::process::Stdio) -> (Option<i32>, String) {
    let output = Command::new(Program::Whelk.path())
        .env(
            "WHELK_HOST",
            format!("unix://{}", engine.socket().display()),
        )
        .args(args)
        .stdout(out)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), err)
}

/// Commands that print each in its own way: lines, tables, JSON, help, streams.
const PRINTING: [&[&str]; 15] = [
    &["create", "busybox", "true"],
    &["run", "-d", "busybox", "true"],
    &["run", "--rm", "busybox", "echo", "hello"],
    &["run", "--rm", "-t", "busybox", "echo", "hello"],
    &["ps", "-a"],
    &["images", "-q"],
    &["image", "inspect", "busybox"],
    &["version"],
    &["info"],
    &["--version"],
    &["run", "--help"],
    &["save", "busybox"],
    &["system", "df", "-v"],
    &["volume", "create"],
    &["completion", "bash"],
];

#[test]
fn commands_end_silently_on_a_closed_pipe() {
    let engine = Engine::start();
    for args in PRINTING {
        assert_eq!(
            unread(&engine, args),
            (Some(141), String::new()),
            "{args:?}"
        );
    }
    // The reader of a stream closes it before its end.
    engine
        .whelk(&["run", "-d", "--name", "talking", "busybox", "yes"])
        .ok();
    for args in [&["logs", "-f", "talking"][..], &["attach", "talking"]] {
        let line = format!("{} {}", Program::Whelk.path().display(), args.join(" "));
        let script = format!("set -o pipefail; {line} | head -n 1");
        let output = Command::new("bash")
            .env(
                "WHELK_HOST",
                format!("unix://{}", engine.socket().display()),
            )
            .args(["-c", &script])
            .output()
            .unwrap();
        assert_eq!(
            (output.status.code(), &output.stdout[..], &output.stderr[..]),
            (Some(141), &b"y\n"[..], &b""[..]),
            "{args:?}"
        );
    }
    // With several containers, the command ends at the first line that it cannot write, as in Docker.
    for name in ["one", "two"] {
        engine.whelk(&["create", "--name", name, "busybox"]).ok();
    }
    assert_eq!(
        unread(&engine, &["rm", "one", "two"]),
        (Some(141), String::new())
    );
    // The other one may be removed by then, as the requests are made at the same time.
    assert_eq!(engine.state("one"), "");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let engine = Engine::start();
    for args in PRINTING {
        let (code, err) = on_full_disk(&engine, args);
        assert!(
            code == Some(1) && err.contains("write /dev/stdout: no space left on device"),
            "{args:?}: {code:?} {err}"
        );
    }
    // All objects are processed.
    for name in ["one", "two"] {
        engine.whelk(&["create", "--name", name, "busybox"]).ok();
    }
    for args in [&["start", "one", "two"], &["rm", "one", "two"]] {
        let (code, err) = on_full_disk(&engine, args);
        assert_eq!(
            (code, err.trim()),
            (Some(1), "write /dev/stdout: no space left on device"),
            "{args:?}"
        );
        if args[0] == "start" {
            engine.whelk(&["wait", "one", "two"]).ok();
        }
    }
    assert_eq!(
        (engine.state("one"), engine.state("two")),
        Default::default()
    );
    // The entry points besides the client.
    for args in [&["oci", "features"][..], &["oci", "list"]] {
        let (code, err) = on_full_disk(&engine, args);
        assert!(
            code == Some(1) && err.contains("no space left on device"),
            "{args:?}: {code:?} {err}"
        );
    }
    let status = Command::new(Program::Whelk.path())
        .args(["daemon", "--bogus"])
        .stderr(
            std::fs::File::options()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        )
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn each_error_is_printed_and_one_of_unwritten_output() {
    let engine = Engine::start();
    let no = "Error response from daemon: No such container: nosuch";
    let said = engine.whelk(&["rm", "nosuch", "nosuch"]).fails(1);
    assert_eq!(said, format!("{no}\n{no}"));
    for name in ["one", "two"] {
        engine
            .whelk(&["create", "--name", name, "busybox", "true"])
            .ok();
    }
    let full = "write /dev/stdout: no space left on device";
    let full_device = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let whelk = |args: &[&str]| {
        let output = Command::new(Program::Whelk.path())
            .env(
                "DOCKER_HOST",
                format!("unix://{}", engine.socket().display()),
            )
            .args(args)
            .stdout(full_device.try_clone().unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        whelk(&["start", "one", "nosuch", "two"]),
        format!("{no}\n{full}\nError: failed to start containers: nosuch\n")
    );
    assert_eq!(whelk(&["rm", "-f", "one", "two"]), format!("{full}\n"));
}

/// As any user, and without an engine.
#[test]
fn a_configuration_is_validated() {
    let engine = Engine::start();
    let file = engine.scratch("configuration").join("daemon.json");
    let run = |content: &str| {
        std::fs::write(&file, content).unwrap();
        let output = Command::new(Program::Whelk.path())
            .args(["daemon", "--validate", "--config-file"])
            .arg(&file)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let good = r#"{"debug": true, "log-opts": {"max-size": "1m"}}"#;
    assert_eq!(run(good), (Some(0), "configuration OK\n".into()));
    for (content, text) in [
        (
            r#"{"features": {}, "bridge": "b", "x": 1}"#,
            "bridge is not supported: the default network is the engine's own; the following directives don't match any configuration option: x",
        ),
        (
            r#"{"log-opts": {"max-size": "much"}}"#,
            "invalid size: 'much'",
        ),
        (r#"{"dns": ["x"]}"#, "dns: "),
        (
            r#"{"hosts": ["tcp://0.0.0.0:1"]}"#,
            "host tcp://0.0.0.0:1: TCP needs certificates",
        ),
        (
            r#"{"hosts": ["tcp://127.0.0.1:1"], "tlsverify": true, "tlscacert": "/nosuch/ca.pem"}"#,
            "/nosuch/ca.pem",
        ),
        (r#"{"hosts": ["http://x"]}"#, "unsupported host"),
        (
            r#"{"hosts": ["unix:///a", "unix:///a"]}"#,
            "host unix:///a is given twice",
        ),
        (
            r#"{"min-api-version": "1.23"}"#,
            "min-api-version: minimum supported API version is 1.24: 1.23",
        ),
        (
            r#"{"min-api-version": "v1.40"}"#,
            "API version must be provided without \"v\" prefix",
        ),
        (r#"{"oom-score-adjust": 2000}"#, "oom-score-adjust: 2000"),
    ] {
        let (code, shown) = run(content);
        assert!(
            code == Some(1) && shown.contains(text),
            "{content}: {code:?} {shown}"
        );
    }
}
