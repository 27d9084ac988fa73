//! Starting containers: output, exit status, and programs that cannot be executed.

use std::fs;

use rustix::process::Signal;
use serde_json::json;
use whelk_tests::{Engine, images};

#[test]
fn run_forwards_output_and_exit_status() {
    Engine::start().both(|cli| {
        let output = cli.sh(&[], "echo out; echo err >&2; exit 42");
        output.exits(42);
        assert_eq!(
            (output.out().as_str(), output.err().as_str()),
            ("out\n", "err\n")
        );
        let echoed = cli.feed(
            &["run", "--rm", "-i", "--network", "none", "busybox", "cat"],
            b"in\n",
        );
        assert_eq!(echoed.ok(), "in");
        assert_eq!(cli.run(&["ps", "-aq"]).ok(), "");
    });
}

#[test]
fn commands_that_cannot_run_have_dockers_exit_statuses() {
    Engine::start().both(|cli| {
        let check = |command: &str, code: i32, text: &str| {
            cli.run(&["run", "--rm", "--network", "none", "busybox", command])
                .refuses(code, text);
            assert_eq!(cli.run(&["ps", "-aq"]).ok(), "", "after {command}");
        };
        check(
            "nosuch",
            127,
            "exec: \"nosuch\": executable file not found in $PATH",
        );
        check("", 127, "exec: \"\": executable file not found in $PATH");
        check(
            "/nosuch/x",
            127,
            "exec: \"/nosuch/x\": stat /nosuch/x: no such file or directory",
        );
        check(
            "/etc/passwd",
            126,
            "exec: \"/etc/passwd\": permission denied",
        );
        check(
            "/etc",
            126,
            "exec: \"/etc\": is a directory: permission denied",
        );
    });
}

/// The shim reports the failed execve after the start: it is in the output, with exit status 255.
#[test]
fn an_exec_format_error_is_in_the_containers_output() {
    let engine = Engine::start();
    let root = images::small_root()
        .program("text", "no program")
        .program("orphan", "#!/nosuch\n");
    engine.import("broken", &[], &root.finish());
    let profile = engine.scratch("seccomp").join("profile.json");
    let rule = r#"{"names": ["execve"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}"#;
    fs::write(
        &profile,
        format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#),
    )
    .unwrap();
    let filter = format!("seccomp={}", profile.display());
    engine.both(|cli| {
        let check = |flags: &[&str], command: &str, text: &str| {
            let run = [
                &["run", "--network", "none", "--name", "bad"],
                flags,
                &["broken", command],
            ]
            .concat();
            assert_eq!(
                cli.run(&run).fails(255),
                format!("exec {command}: {text}"),
                "{flags:?}"
            );
            let state = &engine.inspect("bad")["State"];
            assert_eq!(
                (&state["Status"], &state["ExitCode"], &state["Error"]),
                (&json!("exited"), &json!(255), &json!("")),
                "{command}"
            );
            assert_eq!(
                cli.run(&["logs", "bad"]).err().trim(),
                format!("exec {command}: {text}")
            );
            cli.run(&["rm", "bad"]).ok();
        };
        for more in [&[][..], &["--security-opt", "no-new-privileges"]] {
            check(more, "/text", "exec format error");
            check(more, "/orphan", "no such file or directory");
            check(
                &[more, &["--security-opt", &filter]].concat(),
                "/bin/true",
                "operation not permitted",
            );
        }
        cli.run(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "up",
            "broken",
            "sleep",
            "600",
        ])
        .ok();
        let output = cli.run(&["exec", "up", "/text"]);
        assert_eq!(output.exits(255).trim(), "exec /text: exec format error");
        cli.run(&["exec", "-d", "up", "/text"]).ok();
    });
}

#[test]
fn a_failed_start_leaves_a_created_container_with_the_error() {
    Engine::start().both(|cli| {
        let output = cli.run(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "bad",
            "busybox",
            "nosuch",
        ]);
        output.refuses(127, "executable file not found in $PATH");
        let state = &cli.engine().inspect("bad")["State"];
        assert_eq!(
            (state["Status"].as_str(), state["ExitCode"].as_i64()),
            (Some("created"), Some(127))
        );
        assert!(
            state["Error"]
                .as_str()
                .unwrap()
                .contains("executable file not found"),
            "{state}"
        );
        let output = cli.run(&["start", "bad"]);
        output.refuses(1, "Error: failed to start containers: bad");
        assert_eq!(cli.run(&["rm", "bad"]).ok(), "bad");
    });
}

#[test]
fn run_forwards_signals() {
    Engine::start().both(|cli| {
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            let mut running = cli.spawn(&[
                "run",
                "--rm",
                "--init",
                "--network",
                "none",
                "busybox",
                "sh",
                "-c",
                "echo ready; exec sleep 600",
            ]);
            running.expect("ready");
            running.signal(signal);
            running.finish().exits(code);
        }
    });
}

#[test]
fn start_attached_forwards_output_and_exit_status() {
    Engine::start().both(|cli| {
        cli.run(&[
            "create",
            "--network",
            "none",
            "--name",
            "seven",
            "busybox",
            "sh",
            "-c",
            "echo hi; exit 7",
        ])
        .ok();
        for _ in 0..2 {
            let output = cli.run(&["start", "-a", "seven"]);
            output.exits(7);
            assert_eq!(output.out(), "hi\n");
        }
        assert_eq!(cli.run(&["start", "seven"]).ok(), "seven");
        assert_eq!(cli.run(&["wait", "seven"]).ok(), "7");
    });
}

#[test]
fn a_cidfile_holds_the_id() {
    Engine::start().both(|cli| {
        let file = cli
            .engine()
            .scratch("cid")
            .join(format!("{:?}", cli.program()));
        let path = file.display().to_string();
        let id = cli
            .run(&[
                "create",
                "--network",
                "none",
                "--cidfile",
                &path,
                "busybox",
                "true",
            ])
            .ok();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), id);
        cli.run(&["create", "--cidfile", &path, "busybox", "true"])
            .refuses(1, "container ID file found");
    });
}
