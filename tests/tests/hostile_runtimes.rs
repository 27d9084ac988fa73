//! OCI runtimes that hang, lie, or are gone: containers of theirs can be ended nevertheless, and nothing
//! of a failed start is left.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use whelk_tests::processes::{is_alive, status_field};
use whelk_tests::{Cli, Engine, Program, eventually};

/// Debian's runc, except for the command that the file `how` names with a way to misbehave.
const SCRIPT: &str = r#"#!/bin/sh
for word; do
    case $previous in --pid-file) pid_file=$word;; --log) log=$word;; esac
    case $word in create|start|exec|kill|delete) : ${command:=$word};; esac
    previous=$word
done
[ "$command" != delete ] || echo x >>HERE/deleted
how=$(sed -n "s/^$command //p" HERE/how)
case $how in
    hang) echo $$ >HERE/hangs; exec sleep 1000;;
    nothing) exit 0;;
    fail) exit 1;;
    flood) while :; do echo '{"level":"error","msg":"flood"}'; done >>$log;;
    chatty) head -c 300000 /dev/zero | tr '\0' x >&2; exec runc "$@";;
    forget) runc "$@"; rm $pid_file; exit 0;;
    linger) runc "$@"; sleep 1; exit 0;;
    report*) echo ${how#report } >$pid_file; exit 0;;
esac
exec runc "$@"
"#;

struct Hostile {
    engine: Engine,
    directory: PathBuf,
}

impl Hostile {
    #[track_caller]
    fn start() -> Self {
        let engine = Engine::start();
        let directory = engine.scratch("runtime");
        let hostile = Self { engine, directory };
        hostile.install();
        hostile.behave("");
        let path = hostile.program();
        hostile
            .engine
            .configure(&json!({"runtimes": {"hostile": {"path": path}}}));
        hostile.engine.terminate();
        hostile.engine.restart();
        hostile
    }

    fn program(&self) -> PathBuf {
        self.directory.join("program")
    }

    fn install(&self) {
        let script = SCRIPT.replace("HERE", &self.directory.display().to_string());
        fs::write(self.program(), script).unwrap();
        fs::set_permissions(self.program(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Makes a command misbehave from now on: `COMMAND HOW`.
    fn behave(&self, how: &str) {
        let _ = fs::remove_file(self.directory.join("hangs"));
        fs::write(self.directory.join("how"), format!("{how}\n")).unwrap();
    }

    fn cli(&self) -> Cli<'_> {
        self.engine.cli(Program::Docker)
    }

    /// Runs a container that reports SIGUSR1 and ends only by SIGKILL.
    #[track_caller]
    fn up(&self) -> i32 {
        let script = "trap 'echo usr1' USR1; trap : TERM; echo up; while :; do sleep 0.1; done";
        let flags = ["--runtime", "hostile"];
        self.cli().up("held", &flags, &["sh", "-c", script]);
        self.engine.await_log("held", "up");
        self.engine.pid("held")
    }

    #[track_caller]
    fn remove(&self, pid: i32) {
        let begun = Instant::now();
        self.cli().run(&["rm", "-f", "held"]).ok();
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert!(!is_alive(pid));
        self.is_clean();
    }

    /// The pid of the runtime's command that hangs.
    #[track_caller]
    fn hanging(&self) -> i32 {
        eventually("the command hangs", || {
            let text = fs::read_to_string(self.directory.join("hangs")).ok()?;
            text.trim().parse().ok()
        })
    }

    /// Checks that neither commands of the runtime nor cgroups of containers are left.
    #[track_caller]
    fn is_clean(&self) {
        let program = self.program().display().to_string();
        eventually("no command of the runtime is left", || {
            let found = Command::new("pgrep").args(["-f", &program]).output();
            found.unwrap().stdout.is_empty().then_some(())
        });
    }

    #[track_caller]
    fn cgroup_is_gone(&self, id: &str) {
        eventually("the cgroup is gone", || {
            let find = ["/sys/fs/cgroup", "-maxdepth", "6", "-name", id];
            let found = Command::new("find").args(find).output().unwrap();
            found.stdout.is_empty().then_some(())
        });
    }
}

#[test]
fn a_container_ends_though_its_runtime_does_not_kill_it() {
    let hostile = Hostile::start();
    let (engine, cli) = (&hostile.engine, hostile.cli());
    for how in ["hang", "nothing", "fail", "flood"] {
        let pid = hostile.up();
        hostile.behave(&format!("kill {how}"));
        let begun = Instant::now();
        cli.run(&["kill", "-s", "USR1", "held"]).ok();
        assert!(begun.elapsed() < Duration::from_secs(60), "{how}");
        if how != "nothing" {
            engine.await_log("held", "usr1");
        }
        cli.run(&["stop", "-t", "1", "held"]).ok();
        assert_eq!(engine.inspect("held")["State"]["ExitCode"], 137, "{how}");
        assert!(!is_alive(pid), "{how}");
        hostile.behave("");
        cli.run(&["start", "held"]).ok();
        let pid = engine.pid("held");
        hostile.behave(&format!("kill {how}"));
        hostile.remove(pid);
        hostile.behave("");
    }
    for how in ["hang", "nothing", "fail", "flood"] {
        let pid = hostile.up();
        hostile.behave(&format!("delete {how}"));
        hostile.remove(pid);
        hostile.behave("");
    }
    let pid = hostile.up();
    fs::remove_file(hostile.program()).unwrap();
    let output = cli.run(&["exec", "held", "true"]);
    let expected = "no such file or directory";
    assert!(
        output.code != 0 && (output.out() + &output.err()).contains(expected),
        "{} {}",
        output.out(),
        output.err()
    );
    cli.run(&["kill", "-s", "USR1", "held"]).ok();
    engine.await_log("held", "usr1");
    hostile.remove(pid);
}

#[test]
fn an_exec_fails_if_its_runtime_creates_none() {
    let hostile = Hostile::start();
    let (engine, cli) = (&hostile.engine, hostile.cli());
    let pid = hostile.up();
    let init = format!("report {pid}");
    let shim = format!("report {}", status_field(pid, "PPid").unwrap());
    for how in [
        "nothing", "fail", "forget", "report 1", "report x", &init, &shim,
    ] {
        hostile.behave(&format!("exec {how}"));
        let output = cli.run(&["exec", "held", "sleep", "1"]);
        assert_ne!(output.code, 0, "{how}: {}", output.out());
        assert_eq!(engine.state("held"), "running", "{how}");
    }
    for how in ["hang", "flood"] {
        hostile.behave(&format!("exec {how}"));
        let mut exec = cli.spawn(&["exec", "held", "true"]);
        if how == "hang" {
            hostile.hanging();
        }
        // The shim does not wait for it, which would take 10 s.
        let begun = Instant::now();
        cli.run(&["kill", "-s", "USR1", "held"]).ok();
        engine.await_log("held", "usr1");
        assert!(begun.elapsed() < Duration::from_secs(9), "{how}");
        let output = exec.finish();
        assert_ne!(output.code, 0);
        // The client writes it to standard output.
        let said = output.out() + &output.err();
        assert!(said.contains("did not answer within 10 s"), "{said}");
    }
    hostile.behave("");
    assert_eq!(cli.run(&["exec", "held", "echo", "well"]).ok(), "well");
    hostile.remove(pid);
    // A health check whose start hangs fails.
    let health = [
        "--runtime",
        "hostile",
        "--health-cmd",
        "true",
        "--health-interval",
        "1s",
        "--health-timeout",
        "1s",
        "--health-retries",
        "1",
    ];
    cli.up("held", &health, &["sleep", "600"]);
    let healthy = |wanted: &str| {
        eventually(wanted, || {
            (engine.inspect("held")["State"]["Health"]["Status"] == wanted).then_some(())
        });
    };
    healthy("healthy");
    hostile.behave("exec hang");
    healthy("unhealthy");
    hostile.behave("");
    healthy("healthy");
    hostile.remove(engine.pid("held"));
}

#[test]
fn an_execs_process_may_end_before_its_runtime() {
    let hostile = Hostile::start();
    let pid = hostile.up();
    hostile.behave("exec linger");
    let cli = hostile.cli();
    let output = cli.run(&["exec", "held", "sh", "-c", "echo well; exit 7"]);
    assert_eq!((output.code, output.out().trim()), (7, "well"));
    hostile.remove(pid);
}

#[test]
fn a_failed_start_leaves_nothing() {
    let hostile = Hostile::start();
    let (engine, cli) = (&hostile.engine, hostile.cli());
    let create = [
        "create",
        "--name",
        "held",
        "--runtime",
        "hostile",
        "busybox",
        "sleep",
        "600",
    ];
    let id = cli.run(&create).ok();
    for how in [
        "create nothing",
        "create fail",
        "create forget",
        "create report 1",
        "start fail",
    ] {
        hostile.behave(how);
        let output = cli.run(&["start", "held"]);
        assert_ne!(output.code, 0, "{how}");
        hostile.cgroup_is_gone(&id);
        hostile.is_clean();
        assert!(!engine.run().join("containers").join(&id).exists(), "{how}");
        hostile.behave("");
        cli.run(&["start", "held"]).ok();
        assert_eq!(cli.run(&["exec", "held", "echo", "on"]).ok(), "on");
        cli.run(&["kill", "held"]).ok();
        engine.await_state("held", "exited");
    }
    // It runs as far as anybody can tell.
    hostile.behave("start nothing");
    cli.run(&["start", "held"]).ok();
    cli.run(&["kill", "held"]).ok();
    engine.await_state("held", "exited");
}

#[test]
fn a_shim_that_is_killed_during_a_start_leaves_nothing() {
    let hostile = Hostile::start();
    let (engine, cli) = (&hostile.engine, hostile.cli());
    let create = [
        "create",
        "--name",
        "held",
        "--runtime",
        "hostile",
        "busybox",
        "sleep",
        "600",
    ];
    let id = cli.run(&create).ok();
    for command in ["create", "start"] {
        for with_engine in [false, true] {
            hostile.behave(&format!("{command} hang"));
            let mut starting = cli.spawn(&["start", "held"]);
            let pid = hostile.hanging();
            let shim = status_field(pid, "PPid").unwrap().parse().unwrap();
            if with_engine {
                engine.kill9();
            }
            kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
            assert_ne!(starting.finish().code, 0);
            eventually("the command has ended with its shim", || {
                (!is_alive(pid)).then_some(())
            });
            if with_engine {
                engine.restart();
            }
            hostile.cgroup_is_gone(&id);
            hostile.behave("");
            cli.run(&["start", "held"]).ok();
            assert_eq!(cli.run(&["exec", "held", "echo", "on"]).ok(), "on");
            cli.run(&["kill", "held"]).ok();
            engine.await_state("held", "exited");
        }
    }
}

/// What it writes is output of the container, which nobody reads yet.
#[test]
fn a_runtime_may_write_much_before_the_container_runs() {
    let hostile = Hostile::start();
    hostile.behave("create chatty");
    let flags = ["run", "--name", "held", "--runtime", "hostile"];
    let words = [&flags[..], &["busybox", "echo", "done"]].concat();
    let output = hostile.cli().run(&words);
    assert_eq!(output.ok(), "done");
    let written = output.err().chars().filter(|letter| *letter == 'x').count();
    assert_eq!(written, 300_000);
}

/// A runtime may have more than a cgroup and a run directory, such as a virtual machine.
#[test]
fn a_container_whose_shim_was_killed_is_deleted_by_its_runtime() {
    let hostile = Hostile::start();
    let deletions = || {
        let text = fs::read_to_string(hostile.directory.join("deleted"));
        text.unwrap_or_default().lines().count()
    };
    for (how, is_running) in [("", true), ("", false), ("delete hang", true)] {
        let pid = hostile.up();
        let before = deletions();
        hostile.behave(how);
        if !is_running {
            hostile.engine.kill9();
        }
        let shim = status_field(pid, "PPid").unwrap().parse().unwrap();
        kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
        if !is_running {
            hostile.engine.restart();
        }
        hostile.engine.await_state("held", "exited");
        assert_eq!(deletions(), before + 1, "{how}");
        assert!(!is_alive(pid));
        hostile.behave("");
        hostile.remove(pid);
    }
}

#[test]
fn a_runtime_has_the_engines_environment_and_path() {
    let scratch = whelk_tests::Scratch::new("runtime-path");
    let programs = scratch.directory("bin");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let engine = Engine::with_env(&[("PATH", &path), ("MARK_OF_TEST", "seen")]);
    let seen = scratch.join("seen");
    let program = programs.join("only-here");
    let script = format!("#!/bin/sh\nenv >{}\nexec runc \"$@\"\n", seen.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    engine.configure(&json!({"runtimes": {
        "here": {"path": "only-here"}, "gone": {"path": "no-such-program"}
    }}));
    engine.terminate();
    engine.restart();
    let cli = engine.cli(Program::Docker);
    assert_eq!(
        cli.sh(&["--runtime", "here"], "echo $MARK_OF_TEST-").ok(),
        "-"
    );
    let seen = fs::read_to_string(seen).unwrap();
    assert!(
        seen.contains("MARK_OF_TEST=seen\n") && seen.contains(&path),
        "{seen}"
    );
    for private in ["WHELK_", "NOTIFY_SOCKET", "LISTEN_"] {
        assert!(
            !seen.lines().any(|line| line.starts_with(private)),
            "{seen}"
        );
    }
    cli.sh(&["--runtime", "gone"], "").refuses(
        127,
        "runtime gone: exec: \"no-such-program\": executable file not found in $PATH",
    );
}
