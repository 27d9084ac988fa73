//! Containers that another OCI runtime runs (`--runtime`): Debian's runc, and `whelk oci` by its command
//! line.
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use whelk_tests::{Cli, Engine, Program, eventually, stays};

/// The names of the configured runtimes.
const RUNTIMES: [&str; 2] = ["debian", "own"];

#[track_caller]
fn engine() -> Engine {
    let engine = Engine::start();
    let own = Program::Whelk.path().display().to_string();
    engine.configure(&json!({"runtimes": {
        "debian": {"path": "runc"},
        "own": {"path": own, "runtimeArgs": ["oci"]},
        "absent": {"path": "/no/such/runtime"}
    }}));
    engine.terminate();
    engine.restart();
    engine
}

/// Runs a test with both runtimes, each with another client.
#[track_caller]
fn with_each(case: impl Fn(Cli<'_>, &str)) {
    let engine = engine();
    for (name, program) in RUNTIMES.iter().zip([Program::Docker, Program::Whelk]) {
        case(engine.cli(program), name);
        let all = engine.whelk(&["ps", "-aq"]).ok();
        let ids: Vec<&str> = all.split_whitespace().collect();
        if !ids.is_empty() {
            engine.whelk(&[&["rm", "-f"][..], &ids].concat()).ok();
        }
    }
}

#[test]
fn a_container_looks_the_same_as_with_the_engines_own_runtime() {
    with_each(|cli, runtime| {
        let engine = cli.engine();
        let file = engine.scratch("bound").join("file");
        fs::write(&file, "bound").unwrap();
        let bind = format!("{}:/bound:ro", file.display());
        let script = "id; grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; hostname; pwd; env | sort; ulimit -n
            ls /dev; stat -c '%n %t:%T %a %u' /dev/null /dev/tty /dev/x; cat /bound; echo x >/bound; echo x >/proc/sys/kernel/hostname
            grep -E ' (/|/proc|/proc/sys|/sys|/dev|/dev/shm|/t|/etc/hosts|/etc/resolv.conf|/bound|/v) ' /proc/self/mounts | cut -d' ' -f2,3 | sort
            cat /proc/self/cgroup | wc -l; ls /proc/1/exe >/dev/null && readlink /proc/1/exe; cat /proc/sys/net/ipv4/ip_default_ttl; unshare -U true; ls /v";
        let flags = [
            "--hostname",
            "h",
            "-u",
            "daemon",
            "--group-add",
            "100",
            "-e",
            "A=1",
            "-w",
            "/made/here",
            "--ulimit",
            "nofile=100:200",
            "--device",
            "/dev/null:/dev/x:r",
            "-v",
            &bind,
            "-v",
            "/v",
            "--tmpfs",
            "/t",
            "--sysctl",
            "net.ipv4.ip_default_ttl=33",
            "--cap-drop",
            "CHOWN",
            "-m",
            "64m",
            "--init",
        ];
        let output = |runtime: &str| {
            let output = cli.sh(&[&["--runtime", runtime][..], &flags].concat(), script);
            let text = output.out() + &output.err();
            (output.code, text)
        };
        let (own, other) = (output("runc"), output(runtime));
        assert_eq!(other, own, "{runtime}");
        assert!(
            own.1.contains("uid=1(daemon)") && own.1.contains("Seccomp:\t2"),
            "{}",
            own.1
        );
        // With a network, input, and an exit code.
        let run = [
            "run",
            "--rm",
            "-i",
            "--runtime",
            runtime,
            "busybox",
            "sh",
            "-c",
            "cat; ip -4 addr show eth0 | grep -c inet; exit 7",
        ];
        let fed = cli.feed(&run, b"typed\n");
        assert_eq!(fed.exits(7), "typed\n1\n");
        assert_eq!(
            cli.sh(&["--runtime", runtime, "--read-only"], "echo x >/x 2>&1")
                .exits(1)
                .trim(),
            "sh: can't create /x: Read-only file system"
        );
    });
}

#[test]
fn a_container_lives_its_whole_life() {
    with_each(|cli, runtime| {
        let engine = cli.engine();
        let script = "trap 'echo usr1' USR1; trap 'echo term; exit 5' TERM; echo up; while :; do sleep 0.1; done";
        let id = cli.up(
            "life",
            &["--runtime", runtime, "-m", "64m"],
            &["sh", "-c", script],
        );
        engine.await_log("life", "up");
        assert_eq!(engine.inspect("life")["HostConfig"]["Runtime"], runtime);
        assert_eq!(
            cli.run(&[
                "exec",
                "-u",
                "daemon",
                "-e",
                "X=1",
                "-w",
                "/tmp",
                "life",
                "sh",
                "-c",
                "id -un; pwd; echo $X; exit 4"
            ])
            .exits(4),
            "daemon\n/tmp\n1\n"
        );
        assert_eq!(
            cli.feed(&["exec", "-i", "life", "cat"], b"typed").ok(),
            "typed"
        );
        cli.run(&["exec", "life", "no-such"]).exits(127);
        cli.run(&["exec", "-d", "life", "sleep", "600"]).ok();
        let top = cli.run(&["top", "life", "-o", "args"]).ok();
        assert!(top.contains("sleep 600"), "{top}");
        cli.run(&["kill", "-s", "USR1", "life"]).ok();
        engine.await_log("life", "usr1");
        let mut terminal = cli.pty(&[
            "exec",
            "-it",
            "life",
            "sh",
            "-c",
            "stty size; read line; echo got $line",
        ]);
        terminal.keys("words\r");
        terminal.expect("got words");
        // Limits, statistics and pauses are the cgroup's.
        cli.run(&["update", "-m", "32m", "--memory-swap", "64m", "life"])
            .ok();
        let stats = engine.get("/containers/life/stats?stream=false");
        assert_eq!(stats["memory_stats"]["limit"], 32 << 20);
        assert!(
            stats["pids_stats"]["current"].as_u64() >= Some(2),
            "{stats}"
        );
        cli.run(&["pause", "life"]).ok();
        cli.run(&["exec", "life", "true"]).fails(1);
        cli.run(&["unpause", "life"]).ok();
        cli.run(&["exec", "life", "sh", "-c", "echo file >/file"])
            .ok();
        let copied = engine.scratch("copied").join("file");
        cli.run(&["cp", "life:/file", &copied.display().to_string()])
            .ok();
        assert_eq!(fs::read_to_string(copied).unwrap(), "file\n");
        // The engine is killed, and the next one takes the container over.
        engine.kill9();
        engine.restart();
        assert_eq!(engine.state("life"), "running");
        assert_eq!(cli.run(&["exec", "life", "cat", "/file"]).ok(), "file");
        let mut attached = cli.spawn(&["attach", "--sig-proxy=false", "life"]);
        // The client shows only what is written after it was attached.
        eventually("output of the attached container", || {
            cli.run(&["kill", "-s", "USR1", "life"]).ok();
            attached.so_far().contains("usr1").then_some(())
        });
        cli.run(&["stop", "life"]).ok();
        attached.finish().exits(5);
        assert_eq!(engine.inspect("life")["State"]["ExitCode"], 5);
        assert_eq!(cli.run(&["logs", "--tail", "1", "life"]).ok(), "term");
        cli.run(&["start", "life"]).ok();
        assert_eq!(cli.run(&["exec", "life", "cat", "/file"]).ok(), "file");
        cli.run(&["restart", "-t", "0", "life"]).ok();
        let run_dir = engine.run().join("containers").join(&id);
        assert!(run_dir.join("runtime").exists());
        cli.run(&["rm", "-f", "life"]).ok();
        eventually("the runtime's state is gone", || {
            (!run_dir.exists()).then_some(())
        });

        let mut terminal = cli.pty(&[
            "run",
            "-it",
            "--rm",
            "--network",
            "none",
            "--runtime",
            runtime,
            "busybox",
            "sh",
        ]);
        terminal.keys("test -t 0 && echo is a ter''minal; exit 3\r");
        terminal.expect("is a terminal");
        cli.up(
            "again",
            &["--runtime", runtime, "--restart", "on-failure:2"],
            &["sh", "-c", "exit 9"],
        );
        eventually("two restarts", || {
            (engine.inspect("again")["RestartCount"] == 2 && engine.state("again") == "exited")
                .then_some(())
        });
    });
}

#[test]
fn special_mounts_and_hooks_work_with_other_runtimes() {
    with_each(|cli, runtime| {
        let engine = cli.engine();
        engine.whelk(&["volume", "create", "parts"]).ok();
        cli.sh(&["-v", "parts:/p"], "mkdir /p/sub; echo part >/p/sub/file")
            .ok();
        let subpath = "type=volume,src=parts,dst=/sub,volume-subpath=sub";
        let image = "type=image,src=busybox,dst=/image,image-subpath=bin";
        let output = cli.sh(
            &["--runtime", runtime, "--mount", subpath, "--mount", image],
            "cat /sub/file; test -x /image/busybox && echo image; echo x >/image/x",
        );
        assert!(
            output.out() == "part\nimage\n" && output.err().contains("Read-only"),
            "{} {}",
            output.out(),
            output.err()
        );
        cli.run(&["volume", "rm", "parts"]).ok();
        let shared = engine.scratch_text("shared");
        cli.sh(
            &["--runtime", runtime, "-v", &format!("{shared}:/s:rshared")],
            "",
        )
        .fails(125);
    });
}

#[test]
fn an_oom_kill_is_reported_though_the_runtime_removes_the_cgroup() {
    with_each(|cli, runtime| {
        let limits = ["-m", "16m", "--memory-swap", "16m", "--name", "hungry"];
        let run = ["run", "--network", "none", "--runtime", runtime];
        let program = ["busybox", "tail", "/dev/zero"];
        cli.run(&[&run[..], &limits, &program].concat()).exits(137);
        let state = &cli.engine().inspect("hungry")["State"];
        assert_eq!(state["OOMKilled"], true, "{runtime}: {state}");
    });
}

#[test]
fn runtimes_are_read_again_on_sighup() {
    let engine = engine();
    let cli = engine.cli(Program::Docker);
    engine.configure(&json!({"runtimes": {"new": {"path": "runc"}}, "default-runtime": "new"}));
    kill_process(Pid::from_raw(engine.daemon_pid()).unwrap(), Signal::HUP).unwrap();
    eventually("the new default", || {
        (engine.get("/info")["DefaultRuntime"] == "new").then_some(())
    });
    assert_eq!(cli.sh(&[], "echo works").ok(), "works");
    cli.sh(&["--runtime", "debian"], "")
        .refuses(125, "unknown or invalid runtime name: debian");
    // A default that does not exist changes nothing.
    engine.configure(&json!({"default-runtime": "gone"}));
    kill_process(Pid::from_raw(engine.daemon_pid()).unwrap(), Signal::HUP).unwrap();
    stays("the default", Duration::from_secs(1), || {
        engine.get("/info")["DefaultRuntime"] == "new"
    });
}

#[test]
fn unknown_runtimes_and_their_errors_are_reported() {
    with_each(|cli, runtime| {
        let engine = cli.engine();
        cli.sh(&["--runtime", "nosuch"], "")
            .refuses(125, "unknown or invalid runtime name: nosuch");
        cli.sh(&["--runtime", "absent"], "")
            .refuses(127, "run /no/such/runtime: no such file or directory");
        for (command, code) in [("no-such", 127), ("/etc", 126), ("/etc/passwd", 126)] {
            let run = [
                "run",
                "--rm",
                "--network",
                "none",
                "--runtime",
                runtime,
                "busybox",
                command,
            ];
            let output = cli.run(&run);
            assert_eq!(output.code, code, "{command}: {}", output.err());
        }
        let info = engine.get("/info");
        assert_eq!(info["DefaultRuntime"], "runc");
        assert_eq!(info["Runtimes"]["own"]["runtimeArgs"], json!(["oci"]));
        assert_eq!(info["Runtimes"]["debian"], json!({"path": "runc"}));
    });
    let engine = Engine::start();
    engine.set_arguments(&[
        "--add-runtime",
        "more=/usr/sbin/runc",
        "--default-runtime",
        "more",
    ]);
    engine.terminate();
    engine.restart();
    let cli = engine.cli(Program::Docker);
    cli.up("default", &[], &["sleep", "600"]);
    assert_eq!(engine.inspect("default")["HostConfig"]["Runtime"], "more");
    assert!(
        Path::new(&engine.run())
            .join("containers")
            .join(engine.inspect("default")["Id"].as_str().unwrap())
            .join("runtime")
            .exists()
    );
    // A container whose runtime is not configured any more runs on, and does not start again.
    engine.set_arguments(&[]);
    engine.terminate();
    engine.restart();
    assert_eq!(cli.run(&["exec", "default", "echo", "on"]).ok(), "on");
    cli.run(&["restart", "-t", "0", "default"])
        .refuses(1, "unknown or invalid runtime name: more");
    engine.set_arguments(&["--default-runtime", "gone"]);
    engine.terminate();
    let error = engine.refuses_to_start();
    assert!(
        error.contains("specified default runtime 'gone' does not exist"),
        "{error}"
    );
    engine.set_arguments(&[]);
    engine.restart();
}
