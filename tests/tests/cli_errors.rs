//! What both command lines say to mistakes, and the status they end with.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use whelk_tests::{Engine, Program, eventually};

/// Runs a command line that must fail through both programs. Where Docker's text names its program,
/// ours may name itself.
#[track_caller]
fn check(engine: &Engine, args: &[&str], code: i32, text: &str) {
    engine.docker(args).refuses(code, text);
    let err = engine.whelk(args).fails(code);
    let renamed = text.replace("docker ", "whelk ");
    assert!(
        err.contains(text) || err.contains(&renamed),
        "whelk {}: expected {text:?} in {err:?}",
        args.join(" ")
    );
}

#[track_caller]
fn check_nothing_left(engine: &Engine) {
    eventually("nothing to be left", || {
        (engine.get("/containers/json?all=1") == serde_json::json!([])).then_some(())
    });
}

#[test]
fn images_that_are_not_there_or_cannot_be() {
    let engine = Engine::start();
    check(
        &engine,
        &["run", "--rm", "--pull", "never", "nosuchimage", "true"],
        125,
        "Error response from daemon: No such image: nosuchimage:latest",
    );
    check(
        &engine,
        &["create", "--pull", "never", "nosuchimage:tag"],
        1,
        "Error response from daemon: No such image: nosuchimage:tag",
    );
    check(
        &engine,
        &["run", "--rm", "--pull", "bogus", "busybox", "true"],
        125,
        "invalid pull option: 'bogus': must be one of \"always\", \"missing\" or \"never\"",
    );
    check(
        &engine,
        &["run", "UPPER"],
        125,
        "invalid reference format: repository name (library/UPPER) must be lowercase",
    );
    for bad in [
        "a b",
        "busybox:bad/tag",
        "",
        "-busybox:x",
        "busybox@sha256:xyz",
    ] {
        check(
            &engine,
            &["run", "--rm", "--", bad],
            125,
            "invalid reference format",
        );
    }
    check(
        &engine,
        &["inspect", "--type", "image", "nosuch"],
        1,
        "No such image: nosuch:latest",
    );
    check_nothing_left(&engine);
}

#[test]
fn flags_that_do_not_exist_or_lack_their_value() {
    let engine = Engine::start();
    check(&engine, &["run", "--nosuch"], 125, "unknown flag: --nosuch");
    check(
        &engine,
        &["run", "-Z"],
        125,
        "unknown shorthand flag: 'Z' in -Z",
    );
    check(
        &engine,
        &["run", "--memory"],
        125,
        "flag needs an argument: --memory",
    );
    check(
        &engine,
        &["run", "-m"],
        125,
        "flag needs an argument: 'm' in -m",
    );
    check(&engine, &["ps", "--nosuch"], 125, "unknown flag: --nosuch");
    check(
        &engine,
        &["nosuchcommand"],
        1,
        "unknown command: docker nosuchcommand",
    );
    check(
        &engine,
        &["container", "nosuch"],
        1,
        "unknown command: docker container nosuch",
    );
    let counts: [(&[&str], &str); 10] = [
        (&["run"], "'docker run' requires at least 1 argument"),
        (&["create"], "'docker create' requires at least 1 argument"),
        (&["start"], "'docker start' requires at least 1 argument"),
        (&["rm"], "'docker rm' requires at least 1 argument"),
        (
            &["exec", "x"],
            "'docker exec' requires at least 2 arguments",
        ),
        (&["logs", "a", "b"], "'docker logs' requires 1 argument"),
        (&["rename", "a"], "'docker rename' requires 2 arguments"),
        (&["ps", "x"], "'docker ps' accepts no arguments"),
        (
            &["images", "a", "b"],
            "'docker images' requires at most 1 argument",
        ),
        (&["tag", "a"], "'docker tag' requires 2 arguments"),
    ];
    for (args, text) in counts {
        check(&engine, args, 1, text);
    }
    check_nothing_left(&engine);
}

#[test]
fn values_that_make_no_sense() {
    let engine = Engine::start();
    let run = |flags: &[&str], text: &str| {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend_from_slice(flags);
        args.extend_from_slice(&["busybox", "true"]);
        check(&engine, &args, 125, text);
    };
    run(
        &["-m", "abc"],
        "invalid argument \"abc\" for \"-m, --memory\" flag: invalid size: 'abc'",
    );
    run(&["-m", "10x"], "invalid suffix: 'x'");
    run(&["-m", "1m"], "Minimum memory limit allowed is 6MB");
    run(
        &["--cpus", "abc"],
        "invalid argument \"abc\" for \"--cpus\" flag: failed to parse abc as a rational number",
    );
    run(
        &["--pids-limit", "abc"],
        "invalid argument \"abc\" for \"--pids-limit\" flag: strconv.ParseInt: parsing \"abc\": invalid syntax",
    );
    run(&["--ulimit", "foo=1"], "invalid ulimit type: foo");
    run(
        &["--ulimit", "nofile=10:5"],
        "ulimit soft limit must be less than or equal to hard limit: 10 > 5",
    );
    run(&["-e", "=x"], "invalid environment variable: =x");
    run(
        &["--label", "=x"],
        "invalid argument \"=x\" for \"-l, --label\" flag: invalid label '=x': empty name",
    );
    run(&["--label", "a b=x"], "label 'a b' contains whitespaces");
    run(
        &["--env-file", "/nosuch"],
        "open /nosuch: no such file or directory",
    );
    run(
        &["-a", "bogus"],
        "valid streams are STDIN, STDOUT and STDERR",
    );
    run(&["--stop-signal", "BOGUS"], "invalid signal: BOGUS");
    run(
        &["--restart", "always"],
        "conflicting options: cannot specify both --restart and --rm",
    );
    run(
        &["--cap-add", "FOO"],
        "invalid CapAdd: unknown capability: \"CAP_FOO\"",
    );
    run(
        &["--security-opt", "foo"],
        "Invalid --security-opt: \"foo\"",
    );
    run(
        &["--security-opt", "seccomp=/nosuch.json"],
        "opening seccomp profile (/nosuch.json) failed: open /nosuch.json: no such file or directory",
    );
    run(
        &["--sysctl", "foo.bar=1"],
        "sysctl 'foo.bar=1' is not allowed",
    );
    run(
        &["--device", "/etc/passwd"],
        "error gathering device information while adding custom device \"/etc/passwd\": not a device node",
    );
    run(&["--device", "x"], "x is not an absolute path");
    run(&["--pid", "bogus"], "--pid: invalid PID mode");
    run(&["--ipc", "bogus"], "invalid IPC mode: bogus");
    run(&["--uts", "bogus"], "--uts: invalid UTS mode");
    run(
        &["--log-driver", "bogus"],
        "error looking up logging plugin bogus: plugin \"bogus\" not found",
    );
    run(
        &["--log-driver", "json-file", "--log-opt", "bogus=1"],
        "unknown log opt 'bogus' for json-file log driver",
    );
    run(
        &["--log-driver", "json-file", "--log-opt", "max-size=abc"],
        "invalid size: 'abc'",
    );
    run(
        &["--mount", "bogus"],
        "invalid argument \"bogus\" for \"--mount\" flag: invalid field 'bogus' must be a key=value pair",
    );
    run(
        &["-w", "relative"],
        "the working directory 'relative' is invalid, it needs to be an absolute path",
    );
    run(
        &["-u", "nosuch"],
        "unable to find user nosuch: no matching entries in passwd file",
    );
    run(
        &["--runtime", "bogus"],
        "unknown or invalid runtime name: bogus",
    );
    check_nothing_left(&engine);
}

#[test]
fn networks_that_are_not_there() {
    let engine = Engine::start();
    for (network, text) in [
        ("container:nosuch", "No such container: nosuch"),
        (
            "container:",
            "invalid network mode: invalid container format container:<name|id>",
        ),
        ("nosuchnet", "nosuchnet"),
    ] {
        check(
            &engine,
            &["run", "--rm", "--network", network, "busybox", "true"],
            125,
            text,
        );
    }
    check_nothing_left(&engine);
}

#[test]
fn things_that_are_not_there() {
    let engine = Engine::start();
    for command in [
        "start", "stop", "kill", "restart", "pause", "unpause", "wait", "rm", "logs", "top",
        "attach",
    ] {
        check(
            &engine,
            &[command, "nosuch"],
            1,
            "No such container: nosuch",
        );
    }
    for kind in ["container", "network", "volume"] {
        check(
            &engine,
            &[kind, "inspect", ""],
            1,
            &format!("invalid {kind} name or ID: value is empty"),
        );
    }
    check(
        &engine,
        &["exec", "nosuch", "true"],
        1,
        "No such container: nosuch",
    );
    check(
        &engine,
        &["export", "nosuch"],
        1,
        "No such container: nosuch",
    );
    check(
        &engine,
        &["inspect", "nosuch"],
        1,
        "Error: No such object: nosuch",
    );
    check(
        &engine,
        &["inspect", "--type", "bogus", "nosuch"],
        1,
        "unknown type: \"bogus\"",
    );
    check(&engine, &["save", "nosuch"], 1, "No such image: nosuch");
    check(
        &engine,
        &["load", "-i", "/nosuch"],
        1,
        "open /nosuch: no such file or directory",
    );
    check(
        &engine,
        &["import", "/nosuch"],
        1,
        "open /nosuch: no such file or directory",
    );
    check(
        &engine,
        &["ps", "--filter", "foo=bar"],
        1,
        "Error response from daemon: invalid filter 'foo'",
    );
    check(
        &engine,
        &["ps", "--filter", "foo"],
        125,
        "bad format of filter (expected name=value)",
    );
    check(
        &engine,
        &["ps", "--format", "{{"],
        1,
        "template: :1: unclosed action",
    );
}

#[test]
fn signals_that_are_none() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    check(
        &engine,
        &["kill", "-s", "BOGUS", "up"],
        1,
        "cannot kill container: up: invalid signal: BOGUS",
    );
    check(&engine, &["kill", "-s", "0", "up"], 1, "invalid signal: 0");
    check(
        &engine,
        &["kill", "-s", "65", "up"],
        1,
        "the linux daemon does not support signal 65",
    );
    check(
        &engine,
        &["stop", "-s", "BOGUS", "up"],
        1,
        "cannot stop container: up: invalid signal: BOGUS",
    );
    check(
        &engine,
        &["restart", "-s", "BOGUS", "up"],
        1,
        "Cannot restart container up: invalid signal: BOGUS",
    );
    check(
        &engine,
        &["stop", "-t", "abc", "up"],
        125,
        "invalid argument \"abc\" for \"-t, --timeout\" flag: strconv.ParseInt: parsing \"abc\": invalid syntax",
    );
    assert_eq!(engine.state("up"), "running", "none of them did anything");
}

#[test]
fn an_engine_that_is_not_there() {
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
    // Nor can it be taken off the host.
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
fn help_is_there_and_no_failure() {
    let engine = Engine::without_images(&[]);
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        let cases: [(&[&str], &str); 4] = [
            (&["--help"], "run"),
            (&["run", "--help"], "--memory"),
            (&["ps", "--help"], "--filter"),
            (&["image", "--help"], "inspect"),
        ];
        for (args, text) in cases {
            let said = cli.run(args).exits(0);
            assert!(said.contains(text), "{program:?} {args:?}: {said}");
        }
    }
}

#[test]
fn what_is_to_come_is_refused_by_name() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let cases: [(&[&str], i32, &str); 6] = [
        (
            &["cp", "up:/etc/hosts", "/tmp/never"],
            1,
            "copying files to and from containers: not available in this version of whelk",
        ),
        (
            &["diff", "up"],
            1,
            "listing file system changes of containers: not available",
        ),
        (
            &["commit", "up", "x"],
            1,
            "creating images from containers: not available",
        ),
        (
            &["stats", "--no-stream", "up"],
            1,
            "statistics: not available",
        ),
        (&["search", "x"], 1, "searching registries: not available"),
        (
            &["plugin", "install", "x"],
            1,
            "installing plugins: not available",
        ),
    ];
    for (args, code, text) in cases {
        engine.docker(args).refuses(code, text);
    }
    assert_eq!(
        engine.docker(&["plugin", "ls", "-q"]).ok(),
        "",
        "there are none"
    );
    for command in ["build", "pull", "cp", "commit", "compose"] {
        engine.whelk(&[command, "x"]).refuses(
            1,
            &format!("whelk: {command}: not available in this version of whelk"),
        );
    }
    engine.whelk(&["container", "stats"]).refuses(
        1,
        "whelk: container stats: not available in this version of whelk",
    );
    engine
        .whelk(&["run", "--health-interval", "5s", "busybox"])
        .refuses(125, "--health-interval: health checks are not available");
    engine
        .whelk(&["run", "--pull", "always", "busybox", "true"])
        .refuses(125, "pulling from registries is not available");
}

/// Runs a command of our program whose standard output is a pipe that nobody reads.
fn unread(engine: &Engine, args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    written_to(engine, args, writer.into())
}

/// Runs a command of our program on a full disk.
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
fn commands_whose_reader_leaves_end_silently() {
    let engine = Engine::start();
    for args in PRINTING {
        assert_eq!(
            unread(&engine, args),
            (Some(141), String::new()),
            "{args:?}"
        );
    }
    // The reader of a stream leaves in the middle of it.
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
    // Of several containers, the first line that nobody reads is the last thing done, as in
    // Docker.
    for name in ["one", "two"] {
        engine.whelk(&["create", "--name", name, "busybox"]).ok();
    }
    assert_eq!(
        unread(&engine, &["rm", "one", "two"]),
        (Some(141), String::new())
    );
    assert_eq!(
        (engine.state("one"), engine.state("two")),
        (String::new(), "created".into())
    );
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
    // Everything is done that was asked for.
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
    }
    assert_eq!(
        (engine.state("one"), engine.state("two")),
        Default::default()
    );
    // The programs that are no client print, too.
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
fn templates_do_what_scripts_rely_on() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("one", &["--label", "a.b=c d"], &["sleep", "600"]);
    for (args, expected) in [
        (
            &[
                "inspect",
                "-f",
                "{{if .State.Health}}h{{else}}none{{end}}{{.SizeRw}}",
                "one",
            ][..],
            "none<nil>",
        ),
        (
            &[
                "ps",
                "--format",
                "{{.Label \"a.b\"}}|{{printf \"%.2s\" .Names}}",
            ],
            "c d|on",
        ),
        (
            &[
                "inspect",
                "-f",
                "{{html \"<a>\"}} {{urlquery \"a b\"}}",
                "one",
            ],
            "&lt;a&gt; a+b",
        ),
    ] {
        for program in [Program::Docker, Program::Whelk] {
            let said = engine.cli(program).run(args).ok();
            assert_eq!(
                said.replace("<no value>", "<nil>"),
                expected,
                "{program:?} {args:?}"
            );
        }
    }
}

#[test]
fn an_upload_that_is_refused_is_told_why() {
    let engine = Engine::without_images(&[]);
    let file = engine.scratch("files").join("garbage");
    std::fs::write(&file, vec![0xa7; 5_000_000]).unwrap();
    for _ in 0..10 {
        check(
            &engine,
            &["load", "-i", &file.display().to_string()],
            1,
            "invalid archive: not a tar archive",
        );
    }
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
fn archives_replace_nothing_but_files() {
    let engine = Engine::start();
    let dir = engine.scratch("out");
    engine.whelk(&["create", "--name", "one", "busybox"]).ok();
    engine.whelk(&["volume", "create", "vol"]).ok();
    std::os::unix::fs::symlink("target", dir.join("link")).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let commands: [(&[&str], &str); 3] = [
        (&["save", "busybox"], "failed to save image"),
        (&["export", "one"], "failed to export container"),
        (&["volume", "export", "vol"], "failed to export volume"),
    ];
    for (command, failed) in commands {
        let to = |place: &str| engine.whelk(&[command, &["-o", place]].concat());
        for (place, why) in [
            (path("nosuch/x"), "invalid output path: stat "),
            (path(""), "cannot write to a directory"),
            (path("link"), "cannot write to a symbolic link directly"),
            (
                "/dev/full".into(),
                "cannot write to a character device file",
            ),
        ] {
            to(&place).refuses(1, &format!("{failed}: {why}"));
        }
        to(&path("archive")).ok();
        assert!(std::fs::metadata(dir.join("archive")).unwrap().len() > 0);
    }
    let mut left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["archive", "link"]);
}

#[test]
fn an_engine_that_is_killed_leaves_the_containers() {
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
            // The engine answers when it waits; nothing is printed then.
            "wait" => answered.recv_timeout(Duration::from_secs(20)).unwrap(),
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
fn a_save_that_is_interrupted_leaves_no_file() {
    let engine = Engine::without_images(&[]);
    let dir = engine.scratch("out");
    let path = engine.scratch("slow").join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut command = Command::new(Program::Whelk.path())
            .env("DOCKER_HOST", format!("unix://{}", path.display()))
            .args(["save", "busybox", "-o"])
            .arg(dir.join("archive"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut client, _) = listener.accept().unwrap();
        let _request = client.read(&mut [0; 4096]).unwrap();
        client
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
            .unwrap();
        let files = || std::fs::read_dir(&dir).unwrap().map(Result::unwrap);
        eventually("the begin to be written", || {
            let written = |file: std::fs::DirEntry| file.metadata().unwrap().len() == 5;
            files().any(written).then_some(())
        });
        kill_process(Pid::from_child(&command), signal).unwrap();
        assert_eq!(command.wait().unwrap().code(), Some(code));
        let mut said = String::new();
        command.stderr.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((said.as_str(), files().count()), ("", 0));
    }
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

#[test]
fn detach_keys_are_checked_before_anything_is_made() {
    let engine = Engine::start();
    for keys in ["foo", "ctrl-", "ctrl-a,", "ctrl-1"] {
        engine
            .whelk(&["run", "--detach-keys", keys, "busybox", "true"])
            .refuses(125, &format!("Invalid detach keys ({keys}) provided"));
    }
    check_nothing_left(&engine);
    engine.whelk(&["create", "--name", "one", "busybox"]).ok();
    engine
        .whelk(&["start", "-a", "--detach-keys", "foo", "one"])
        .refuses(1, "Invalid detach keys (foo) provided");
    assert_eq!(engine.state("one"), "created");
}

/// Command lines to which both programs say the same words, line by line.
const ALIKE: &str = "
port one 80/foo
port one foo
port one foo/udp
port one 70000
port one 80-81
port one 5-3
port one ''
rename one two
rename nosuch x
rename one ''
rename ' ' x
rename one 'a b'
inspect --type foo one
inspect --type '' one
image inspect ''
inspect ''
history ''
rmi ''
logs --until 2020-13-45 one
logs --since 2020-1-1 one
logs --since abc one
events --until 2020-13-45
rm ''
rm /
rm ' '
rm -f ''
stop ''
network connect bridge ''
network connect '' ''
network disconnect bridge ''
network connect --driver-opt x bridge one
network create bridge
network create host
network create --gateway 1.2.3.4 net
volume create --opt x vol
create --annotation '' busybox
create --log-opt x busybox
create --log-driver none --log-opt x=y busybox
create --storage-opt x busybox
create -v '' busybox
create -v ab: busybox
create -v :/b busybox
create -v /a:/b:ro:x busybox
create -p 99999:80 busybox
create -p a:80 busybox
create -p 1.2.3:80:80 busybox
create -p [::1:80:80 busybox
create -p 1:2:3:4 busybox
create -p 80/foo busybox
create -p '' busybox
create -p 80: busybox
create -p abc busybox
create -p 1-3:5-6 busybox
create -p a=b busybox
create -p a=b,c busybox
create -p target=80,published=70000 busybox
create --expose '' busybox
create --expose 80/foo busybox
create --expose 5-3 busybox
create --expose 70000 busybox
create --mount '' busybox
create --mount type=tmpfs,dst=/x,tmpfs-size=foo busybox
create --mount type=tmpfs,dst=/x,tmpfs-mode=foo busybox
create --mount type=bind,src=/tmp,dst=/x,bind-recursive=foo busybox
create --mount 'src=v,\"dst=/b' busybox
create --mount 'dst=/b,src=\"a' busybox
create --ulimit nofile=1:2:3 busybox
create --device /dev/null:x busybox
create --device /dev/null:/a:z busybox
create --device /a:/b:c:d busybox
create --device '' busybox
create --device-read-bps foo:1 busybox
create --device-read-bps /dev/sda:x busybox
create --device-read-iops /dev/sda:x busybox
create --blkio-weight-device /dev/sda:5 busybox
create --device-cgroup-rule foo busybox
create --userns foo busybox
create --cgroupns foo busybox
create --pid container: busybox
create --uts foo busybox
create --network bridge --network bridge busybox
create --network bridge --network a busybox
create --pull foo busybox
create --restart :3 busybox
create --env-file /tmp busybox
update --restart on-failure:x one
image prune --filter foo -f
container prune --filter foo -f
network prune --filter foo -f
volume prune --filter foo -f
system prune --filter foo -f
run
rm
exec one
rename one
ps x
container nosuch
network --nosuch
--nosuch
nosuch
help nosuch
help run nosuch
";

#[test]
fn errors_are_in_the_words_of_dockers_command_line() {
    let engine = Engine::start();
    for name in ["one", "two"] {
        engine
            .whelk(&["create", "--name", name, "busybox", "true"])
            .ok();
    }
    let said = |program, args: &[&str]| {
        let output = engine.cli(program).run(args);
        (output.out(), output.err().trim().replace("docker", "whelk"))
    };
    let mut differ = Vec::new();
    for line in ALIKE.lines().filter(|line| !line.is_empty()) {
        let args = words(line);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (docker, whelk) = (said(Program::Docker, &args), said(Program::Whelk, &args));
        if docker != whelk {
            differ.push(format!("{line}\n  {docker:?}\n  {whelk:?}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    // The engine's text ends with a space, which the command lines do not print.
    let refused = engine.whelk(&["network", "create", "bridge"]).err();
    assert!(refused.ends_with("network\n"), "{refused:?}");
}

#[test]
fn both_command_lines_accept_the_same() {
    let engine = Engine::start();
    engine.both(|cli| {
        for line in [
            "create --annotation x --annotation a=b busybox",
            "create -v /: busybox",
            "create -p target=80,mode=ingress busybox",
            "create -p 80/tcp/udp busybox",
            "create --mac-address '' busybox",
            "create --mount type=BIND,SRC=/tmp,dst=/x busybox",
            "create --network bridge --network host busybox",
            "image prune -f --filter ''",
            "network create --ipam-opt x accepted",
            "network rm accepted",
        ] {
            let args = words(line);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            cli.run(&args).ok();
        }
    });
}

/// Splits a command line at spaces. Single quotes group.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (index, part) in line.split('\'').enumerate() {
        let mut pieces = part.split(' ');
        if index % 2 == 1 {
            words.last_mut().unwrap().push_str(part);
            continue;
        }
        words
            .last_mut()
            .unwrap()
            .push_str(pieces.next().unwrap_or_default());
        words.extend(pieces.map(str::to_owned));
    }
    words
}
