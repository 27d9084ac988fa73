//! Containers run on when the engine is killed, and the next engine recovers their state.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::json;
use whelk_tests::processes::{is_alive, shim_of};
use whelk_tests::{Connection, Engine, Program, eventually, stays};

/// A script that prints increasing numbers until the file `/b/stop` exists.
const COUNTS: &str =
    "i=0; while [ ! -e /b/stop ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 7";

/// The last number in a log that must count from one without a gap.
#[track_caller]
fn counted(log: &str) -> usize {
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(
        numbers.iter().copied().eq(1..=numbers.len()),
        "a gap in {numbers:?}"
    );
    numbers.len()
}

#[test]
fn containers_run_without_the_engine() {
    let engine = Engine::start();
    let shared = engine.scratch("shared");
    let cli = engine.cli(Program::Docker);
    let id = cli.up(
        "counts",
        &["-v", &format!("{}:/b", shared.display())],
        &["sh", "-c", COUNTS],
    );
    engine.await_log("counts", "3\n");
    let before = engine.inspect("counts");
    let pid = engine.pid("counts");
    engine.kill9();
    stays(
        "the container runs without an engine",
        Duration::from_millis(300),
        || is_alive(pid),
    );
    engine.restart();
    let after = engine.inspect("counts");
    assert_eq!(after["Id"], id.as_str());
    for field in ["Status", "Pid", "StartedAt"] {
        assert_eq!(after["State"][field], before["State"][field], "{field}");
    }
    assert_eq!(after["HostConfig"], before["HostConfig"]);
    // Its log has no gap for the time without an engine, and continues.
    let reached = counted(&engine.logs("counts"));
    eventually("the log to go on", || {
        (counted(&engine.logs("counts")) > reached + 5).then_some(())
    });
    // All operations work on the recovered container.
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        assert_eq!(cli.run(&["exec", "counts", "echo", "alive"]).ok(), "alive");
        assert!(cli.run(&["top", "counts"]).ok().contains("sh -c"));
        cli.run(&["pause", "counts"]).ok();
        cli.run(&["unpause", "counts"]).ok();
        let mut attached = cli.spawn(&["attach", "--no-stdin", "counts"]);
        attached.expect("\n");
        drop(attached);
    }
    let mut following = cli.spawn(&["logs", "-f", "counts"]);
    following.expect("\n5\n");
    fs::write(shared.join("stop"), "").unwrap();
    assert_eq!(cli.run(&["wait", "counts"]).ok(), "7");
    counted(&following.finish().ok());
}

#[test]
fn an_exit_without_the_engine_is_recorded_later() {
    let engine = Engine::start();
    let shared = engine.scratch("shared");
    let volume = format!("{}:/b", shared.display());
    let cli = engine.cli(Program::Docker);
    cli.up("exits", &["-v", &volume], &["sh", "-c", COUNTS]);
    cli.up("removed", &["--rm", "-v", &volume], &["sh", "-c", COUNTS]);
    cli.up("killed", &[], &["sleep", "600"]);
    cli.up(
        "again",
        &["--restart", "always", "-v", &volume],
        &["sh", "-c", "echo run; [ -e /b/second ] || { while [ ! -e /b/stop ]; do sleep 0.02; done; exit 1; }; exec sleep 600"],
    );
    engine.await_log("again", "run\n");
    let pids = ["exits", "removed", "killed", "again"].map(|name| engine.pid(name));
    engine.kill9();
    fs::write(shared.join("second"), "").unwrap();
    fs::write(shared.join("stop"), "").unwrap();
    kill_process(Pid::from_raw(pids[2]).unwrap(), Signal::KILL).unwrap();
    eventually("all of them to end", || {
        (!pids.iter().any(|pid| is_alive(*pid))).then_some(())
    });
    engine.restart();
    engine.await_state("exits", "exited");
    let state = &engine.inspect("exits")["State"];
    assert_eq!(
        (state["ExitCode"].as_i64(), state["Pid"].as_i64()),
        (Some(7), Some(0)),
        "{state}"
    );
    assert!(
        state["FinishedAt"].as_str().unwrap() > state["StartedAt"].as_str().unwrap(),
        "{state}"
    );
    counted(&engine.logs("exits"));
    assert_eq!(cli.run(&["wait", "killed"]).ok(), "137");
    engine.await_state("removed", "");
    engine.await_log("again", "run\nrun\n");
    engine.await_state("again", "running");
}

#[test]
fn a_paused_container_stays_paused_over_a_restart() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up("frozen", &[], &["sleep", "600"]);
    cli.run(&["pause", "frozen"]).ok();
    engine.kill9();
    engine.restart();
    assert_eq!(engine.state("frozen"), "paused");
    cli.run(&["unpause", "frozen"]).ok();
    assert_eq!(
        cli.run(&["exec", "frozen", "echo", "thawed"]).ok(),
        "thawed"
    );
}

#[test]
fn containers_that_did_not_run_are_unchanged() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "create",
        "--network",
        "none",
        "--name",
        "made",
        "--label",
        "k=v",
        "busybox",
        "true",
    ])
    .ok();
    cli.up("over", &[], &["sh", "-c", "echo said; exit 3"]);
    engine.await_state("over", "exited");
    cli.run(&["tag", "busybox", "other:1"]).ok();
    let before = (
        engine.inspect("made"),
        engine.inspect("over"),
        engine.get("/images/json"),
    );
    engine.kill9();
    engine.restart();
    assert_eq!(
        (
            engine.inspect("made"),
            engine.inspect("over"),
            engine.get("/images/json")
        ),
        before
    );
    assert_eq!(cli.run(&["logs", "over"]).ok(), "said");
    assert_eq!(cli.run(&["start", "-a", "over"]).exits(3), "said\n");
    cli.run(&["rm", "made"]).ok();
}

#[test]
fn a_terminal_survives_a_killed_engine() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "run",
        "-dit",
        "--network",
        "none",
        "--name",
        "shell",
        "busybox",
        "sh",
    ])
    .ok();
    let mut before = cli.pty(&["attach", "shell"]);
    before.insist("kept=$((40+2)); echo is$kept\n", "is42");
    engine.kill9();
    before.finish();
    engine.restart();
    let mut after = cli.pty(&["attach", "shell"]);
    after.insist("echo still$kept\n", "still42");
    after.resize(33, 99);
    after.insist("stty size\n", "33 99");
    after.keys("exit 5\n");
    assert_eq!(after.finish(), 5, "{}", after.screen());
}

#[test]
fn a_container_whose_shim_is_killed_ends_and_can_be_restarted() {
    let engine = Engine::start();
    for away in [false, true] {
        let name = format!("orphan-{away}");
        engine.cli(Program::Docker).up(
            &name,
            &[],
            &["sh", "-c", "echo run; sleep 600 & sleep 600"],
        );
        engine.await_log(&name, "run");
        let (pid, shim) = (engine.pid(&name), shim_of(&engine, &name));
        if away {
            engine.kill9();
        }
        kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
        if away {
            engine.restart();
        }
        engine.await_state(&name, "exited");
        eventually("its processes to be gone", || {
            (!is_alive(pid)).then_some(())
        });
        assert_ne!(
            engine.inspect(&name)["State"]["ExitCode"],
            0,
            "nobody knows how it ended, so it did not end well"
        );
        engine.whelk(&["start", &name]).ok();
        engine.await_log(&name, "run\nrun\n");
        engine.whelk(&["rm", "-f", &name]).ok();
    }
}

#[test]
fn an_engine_killed_at_any_time_leaves_consistent_state() {
    let engine = Engine::start();
    for round in 0..8u64 {
        std::thread::scope(|scope| {
            // Their results do not matter, because the engine is killed.
            let mut clients = Vec::new();
            for client in 0..3 {
                let name = format!("half-{round}-{client}");
                let cli = engine.cli(if client == 0 {
                    Program::Docker
                } else {
                    Program::Whelk
                });
                clients.push(scope.spawn(move || {
                    cli.run(&[
                        "run",
                        "-d",
                        "--rm",
                        "--network",
                        "none",
                        "--name",
                        &name,
                        "busybox",
                        "sleep",
                        "600",
                    ])
                    .code
                }));
            }
            // Each round kills the engine at another time.
            std::thread::sleep(Duration::from_millis(7 * round * round));
            engine.kill9();
            for client in clients {
                let _ = client.join().unwrap();
            }
        });
        engine.restart();
        for container in engine.get("/containers/json?all=1").as_array().unwrap() {
            let (id, state) = (
                container["Id"].as_str().unwrap(),
                container["State"].as_str().unwrap(),
            );
            // A `--rm` container that was only created, or that has ended, was removed.
            assert_eq!(state, "running", "{container}");
            let started = engine.inspect(id)["State"]["StartedAt"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(started.starts_with("20"), "{started}");
            assert_eq!(engine.whelk(&["exec", id, "echo", "alive"]).ok(), "alive");
        }
        engine.remove_containers().unwrap();
        for directory in ["containers", "tmp"] {
            eventually(&format!("{directory} to be empty"), || {
                fs::read_dir(engine.root().join(directory))
                    .unwrap()
                    .next()
                    .is_none()
                    .then_some(())
            });
        }
    }
}

#[test]
fn an_engine_killed_during_a_load_shows_no_partial_image() {
    let engine = Engine::without_images(&[]);
    let archive = fs::read(whelk_tests::images::busybox()).unwrap();
    for round in 0..6u64 {
        std::thread::scope(|scope| {
            let loading = scope.spawn(|| {
                engine
                    .cli(Program::Whelk)
                    .feed(&["load", "-q"], &archive)
                    .code
            });
            // Each round kills the engine at another time.
            std::thread::sleep(Duration::from_millis(10 * round));
            engine.kill9();
            let _ = loading.join().unwrap();
        });
        engine.restart();
        let tmp: Vec<_> = fs::read_dir(engine.root().join("tmp")).unwrap().collect();
        assert!(tmp.is_empty(), "{tmp:?}");
        if engine.get("/images/json") != json!([]) {
            assert_eq!(
                engine.cli(Program::Docker).sh(&[], "echo whole").ok(),
                "whole"
            );
            engine.docker(&["rmi", "busybox"]).ok();
        }
    }
    engine.load(&archive);
    assert_eq!(
        engine.cli(Program::Docker).sh(&[], "echo whole").ok(),
        "whole"
    );
}

#[test]
fn two_engines_run_side_by_side() {
    let (one, two) = (Engine::start(), Engine::start());
    let ids = [&one, &two].map(|engine| {
        engine
            .cli(Program::Docker)
            .up("same", &[], &["sleep", "600"])
    });
    for (engine, id) in [(&one, &ids[0]), (&two, &ids[1])] {
        assert_eq!(engine.whelk(&["ps", "-q", "--no-trunc"]).ok(), *id);
    }
    one.kill9();
    assert_eq!(two.docker(&["exec", "same", "echo", "fine"]).ok(), "fine");
    one.restart();
    two.docker(&["rm", "-f", "same"]).ok();
    assert_eq!(one.docker(&["exec", "same", "echo", "fine"]).ok(), "fine");
}

#[test]
fn an_instance_name_is_used_by_one_engine() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("runs", &[], &["sleep", "600"]);
    let said = engine.start_rival(None);
    let holder = format!(
        " (process {pid}); to replace it, stop it first: `kill {pid}` (its containers keep running)\n",
        pid = engine.daemon_pid()
    );
    let (name, root) = (engine.name(), engine.root());
    let refusal = format!(
        "instance {name:?} is in use by another engine with root {}{holder}",
        root.display()
    );
    assert!(said.ends_with(&refusal), "{said}");
    // An engine with another name cannot use this one's run directory.
    let said = engine.start_rival(Some("rival"));
    assert!(
        said.ends_with(&format!(
            "{} is in use by another engine{holder}",
            engine.run().display()
        )),
        "{said}"
    );
    // An engine with another name and other directories cannot use its socket.
    let other = format!("{}other", engine.name());
    let mut command = std::process::Command::new(Program::Whelk.path());
    command
        .args(["daemon", "--instance", &other, "--root"])
        .arg(engine.scratch("other-root"))
        .arg("--run")
        .arg(engine.scratch("other-run"))
        .arg("--host")
        .arg(format!("unix://{}", engine.socket().display()));
    let output = command.output().unwrap();
    fs::remove_file(format!("/run/whelk-instance-{other}.lock")).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && said.ends_with(&format!(
                "{} is in use by another engine{}; or listen elsewhere: `--host unix:///PATH`\n",
                engine.socket().display(),
                holder.trim_end()
            )),
        "{said}"
    );
    assert_eq!(
        engine.docker(&["exec", "runs", "echo", "fine"]).ok(),
        "fine"
    );
    // A root belongs to one instance name, from which the names of cgroups and bridges are derived.
    engine.kill9();
    let another = format!("{}another", engine.name());
    for more in [&["--uninstall"][..], &[]] {
        let mut command = std::process::Command::new(Program::Whelk.path());
        command
            .args(["daemon", "--instance", &another, "--root"])
            .arg(engine.root())
            .arg("--run")
            .arg(engine.scratch("run"))
            .args(more);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success()
                && said.contains(&format!("belongs to instance {:?}", engine.name())),
            "{said}"
        );
    }
    let _ = fs::remove_file(format!("/run/whelk-instance-{another}.lock"));
    engine.restart();
    assert_eq!(
        engine.docker(&["exec", "runs", "echo", "fine"]).ok(),
        "fine"
    );
}

#[test]
fn an_unresponsive_shim_does_not_block_others() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    for name in ["stuck", "well"] {
        cli.up(name, &[], &["sh", "-c", COUNTS]);
    }
    let (pid, shim) = (
        engine.pid("stuck"),
        Pid::from_raw(shim_of(&engine, "stuck")).unwrap(),
    );
    kill_process(shim, Signal::STOP).unwrap();
    engine.kill9();
    engine.restart();
    assert_eq!(cli.run(&["exec", "well", "echo", "fine"]).ok(), "fine");
    assert_eq!(engine.state("stuck"), "running");
    assert!(
        is_alive(pid),
        "nobody ends a container because its shim is slow"
    );
    kill_process(shim, Signal::CONT).unwrap();
    eventually("it to be picked up", || {
        (cli.run(&["exec", "stuck", "echo", "back"]).out() == "back\n").then_some(())
    });
    // Its end is reported to waiting clients.
    let mut waits = cli.spawn(&["wait", "stuck"]);
    assert!(waits.is_running());
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert_eq!(waits.finish().ok(), "137");
}

#[test]
fn a_container_with_a_stopped_shim_can_be_killed() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let shared = engine.scratch("shared");
    let volume = format!("{}:/b", shared.display());
    let told = "trap 'touch /b/$HOSTNAME; exit 0' TERM; echo ready; while :; do sleep 0.02; done";
    let up = |name: &str, script: &str| {
        let options = ["-v", &volume, "--hostname", name];
        cli.up(name, &options, &["sh", "-c", script]);
        if script == told {
            engine.await_log(name, "ready");
        }
        (engine.pid(name), shim_of(&engine, name))
    };
    let processes: Vec<(i32, i32)> = [
        ("stopped", told),
        ("paused", told),
        ("killed", COUNTS),
        ("removed", COUNTS),
    ]
    .into_iter()
    .map(|(name, script)| up(name, script))
    .collect();
    cli.run(&["pause", "paused"]).ok();
    for (_, shim) in &processes {
        kill_process(Pid::from_raw(*shim).unwrap(), Signal::STOP).unwrap();
    }
    // The shim of `removed` has more waiting connections than its socket accepts.
    let id = engine.inspect("removed")["Id"].as_str().unwrap().to_owned();
    // By a short path: the length of a socket's address is limited.
    let directory = fs::File::open(engine.run().join("containers").join(id)).unwrap();
    let path = format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd());
    let address = SocketAddrUnix::new(path).unwrap();
    let connections: Vec<_> = (0..100)
        .map_while(|_| {
            let (kind, flags) = (SocketType::STREAM, SocketFlags::NONBLOCK);
            let socket = socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
            connect(&socket, &address).ok().map(|()| socket)
        })
        .collect();
    assert!(
        (1..100).contains(&connections.len()),
        "{}",
        connections.len()
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Docker's CLI gets it on the stream of the exec.
            let said = cli.run(&["exec", "killed", "true"]).exits(128);
            let silent = format!("the shim (pid {}) does not answer", processes[2].1);
            assert!(said.contains(&silent), "{said}");
            cli.run(&["kill", "killed"]).ok();
        });
        scope.spawn(|| cli.run(&["stop", "-t", "5", "stopped"]).ok());
        scope.spawn(|| cli.run(&["stop", "-t", "5", "paused"]).ok());
        scope.spawn(|| cli.run(&["rm", "-f", "removed"]).ok());
    });
    for name in ["stopped", "paused"] {
        assert!(shared.join(name).exists(), "the stop signal arrives");
    }
    for name in ["stopped", "paused", "killed"] {
        let state = &engine.inspect(name)["State"];
        // The shim that knew another exit code was killed.
        assert_eq!(
            (&state["Status"], &state["ExitCode"]),
            (&json!("exited"), &json!(137)),
            "{name}"
        );
    }
    assert!(counted(&cli.run(&["logs", "killed"]).ok()) > 0);
    assert_eq!(engine.api("GET", "/containers/removed/json", None).0, 404);
    for (pid, shim) in processes {
        eventually(&format!("{pid} and {shim} to be gone"), || {
            (!is_alive(pid) && !is_alive(shim)).then_some(())
        });
    }
    for name in ["stopped", "killed"] {
        cli.run(&["start", name]).ok();
    }
}

#[test]
fn replies_of_a_slow_shim_are_awaited() {
    const STALL: Duration = Duration::from_secs(8);
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let shared = engine.scratch("shared");
    let volume = format!("{}:/b", shared.display());
    let script = "trap 'echo bye; exit 0' TERM; trap 'echo usr1' USR1; echo ready
        while :; do sleep 0.02; done";
    let shims = ["stopped", "killed", "told"].map(|name| {
        cli.up(name, &["-v", &volume], &["sh", "-c", script]);
        eventually("its output", || {
            (cli.run(&["logs", name]).out() == "ready\n").then_some(())
        });
        let shim = Pid::from_raw(shim_of(&engine, name)).unwrap();
        kill_process(shim, Signal::STOP).unwrap();
        shim
    });
    let resume = |shim: Pid| kill_process(shim, Signal::CONT).unwrap();
    let [stopped, killed, told] = shims;
    std::thread::scope(|scope| {
        scope.spawn(|| cli.run(&["stop", "-t", "60", "stopped"]).ok());
        scope.spawn(|| cli.run(&["kill", "killed"]).ok());
        scope.spawn(|| {
            // Neither the signal nor the exec is repeated when the shim continues.
            cli.run(&["kill", "-s", "USR1", "told"]).ok();
            cli.run(&["exec", "told", "touch", "/b/ran"]).exits(128);
            resume(told);
            cli.run(&["exec", "told", "true"]).ok();
            cli.run(&["stop", "-t", "60", "told"]).ok();
        });
        std::thread::sleep(STALL);
        resume(stopped);
        resume(killed);
    });
    for (name, code, said) in [
        ("stopped", 0, "ready\nbye\n"),
        ("killed", 137, "ready\n"),
        ("told", 0, "ready\nusr1\nbye\n"),
    ] {
        let state = &engine.inspect(name)["State"];
        assert_eq!(
            (&state["Status"], &state["ExitCode"], &state["Error"]),
            (&json!("exited"), &json!(code), &json!("")),
            "{name}"
        );
        assert_eq!(cli.run(&["logs", name]).out(), said, "{name}");
    }
    assert!(!shared.join("ran").exists());
}

#[test]
fn a_pause_of_the_engines_own_that_fails_leaves_no_mark() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up("cc", &[], &["sh", "-c", COUNTS]);
    let shim = Pid::from_raw(shim_of(&engine, "cc")).unwrap();
    kill_process(shim, Signal::STOP).unwrap();
    // It is committed as it is.
    cli.run(&["commit", "cc", "made:1"]).ok();
    assert_eq!(engine.state("cc"), "running");
    let id = engine.inspect("cc")["Id"].as_str().unwrap().to_owned();
    let record = engine.root().join("containers").join(id);
    eventually("the record", || {
        let record = fs::read_to_string(record.join("container.json")).unwrap();
        (!record.contains("paused_by_engine")).then_some(())
    });
    kill_process(shim, Signal::CONT).unwrap();
    eventually("it to be reachable", || {
        (cli.run(&["exec", "cc", "echo", "back"]).out() == "back\n").then_some(())
    });
    assert_eq!(engine.state("cc"), "running");
}

#[test]
fn an_engine_without_free_descriptors_kills_nothing() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up(
        "calm",
        &[],
        &[
            "sh",
            "-c",
            "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done",
        ],
    );
    engine.await_log("calm", "ready");
    let pid = engine.pid("calm");
    // Connected beforehand, because the engine cannot accept connections then.
    let mut clients = ["stop?t=0", "kill"].map(|action| {
        let mut client = Connection::open(&engine.socket()).unwrap();
        client.send("GET", "/_ping", &[], b"").unwrap();
        assert_eq!(client.response().unwrap().status, 200);
        (action, client)
    });
    let daemon = Pid::from_raw(engine.daemon_pid());
    // Not 0: poll(2) accepts no more descriptors than that.
    const IN_USE: u64 = 8;
    let none = Rlimit {
        current: Some(IN_USE),
        ..getrlimit(Resource::Nofile)
    };
    let before = prlimit(daemon, Resource::Nofile, none).unwrap();
    for (action, client) in &mut clients {
        let path = format!("/containers/calm/{action}");
        client.send("POST", &path, &[], b"").unwrap();
        let answer = client.response().unwrap();
        let text = answer.text();
        assert_eq!(answer.status, 500, "{action}: {text}");
        assert!(text.contains("too many open files"), "{action}: {text}");
        assert!(is_alive(pid), "{action}");
    }
    prlimit(daemon, Resource::Nofile, before).unwrap();
    cli.run(&["stop", "-t", "60", "calm"]).ok();
    assert_eq!(engine.inspect("calm")["State"]["ExitCode"], 3);
}

/// Lets the container `talks` print on a full disk: it goes on, and each line that its log has not got is counted.
#[track_caller]
fn lines_of_a_log_are_lost_and_counted(engine: &Engine, shared: &Path) {
    let filters = "%7B%22event%22%3A%5B%22log_lost%22%5D%7D";
    let mut events = engine.events(&format!("filters={filters}"));
    fs::write(shared.join("talk"), "").unwrap();
    let event = events.next_event().unwrap();
    let attributes = &event["Actor"]["Attributes"];
    assert_eq!(attributes["name"], "talks");
    assert_eq!(attributes["driver"], "json-file");
    let lines: u64 = attributes["lines"].as_str().unwrap().parse().unwrap();
    assert!(lines > 0, "{attributes}");
    let error = attributes["error"].as_str().unwrap();
    assert!(
        error.starts_with("write ") && error.ends_with("-json.log: no space left on device"),
        "{error}"
    );
    fs::remove_file(shared.join("talk")).unwrap();
    assert_eq!(engine.state("talks"), "running");
}

#[test]
fn on_a_full_disk_containers_can_be_stopped_and_removed() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let engine = Engine::start();
    engine.kill9();
    mount(
        "tmpfs",
        engine.root(),
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=24m"),
    )
    .unwrap();
    engine.restart();
    engine.load(&fs::read(whelk_tests::images::busybox()).unwrap());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let cli = engine.cli(Program::Docker);
        let shared = engine.scratch("shared");
        let fill = "while [ ! -e /b/go ]; do sleep 0.05; done; dd if=/dev/zero of=/fill bs=64k 2>/dev/null; while :; do dd if=/dev/zero bs=1k count=1 2>/dev/null >>/more || sleep 0.1; done";
        let volume = format!("{}:/b", shared.display());
        for name in ["stopped", "killed", "removed"] {
            cli.up(name, &["-v", &volume], &["sh", "-c", fill]);
        }
        let talk = "while :; do [ -e /b/talk ] && yes | head -n 100; sleep 0.1; done";
        cli.up("talks", &["-v", &volume], &["sh", "-c", talk]);
        fs::write(shared.join("go"), "").unwrap();
        let free = || rustix::fs::statvfs(engine.root()).unwrap().f_bavail;
        eventually("the disk to be full", || (free() == 0).then_some(()));
        lines_of_a_log_are_lost_and_counted(&engine, &shared);
        cli.run(&["stop", "-t", "0", "stopped"]).ok();
        cli.run(&["kill", "killed"]).ok();
        for name in ["stopped", "killed"] {
            engine.await_state(name, "exited");
        }
        let warnings = || engine.get("/info")["Warnings"].to_string();
        eventually("a warning that copies of records are out of date", || {
            warnings().contains("out of date").then_some(())
        });
        // Also by an engine that starts on a full disk.
        engine.kill9();
        engine.restart();
        eventually("the disk to be full again", || (free() == 0).then_some(()));
        assert_eq!(engine.state("removed"), "running");
        cli.run(&["restart", "-t", "0", "removed"]).ok();
        cli.run(&["rename", "stopped", "filler"]).ok();
        for name in ["filler", "killed", "removed", "talks"] {
            cli.run(&["rm", "-f", name]).ok();
        }
        assert_eq!(engine.get("/containers/json?all=1"), json!([]));
        // A volume may fill the disk as well.
        cli.up(
            "volume",
            &["-v", "filled:/v"],
            &[
                "sh",
                "-c",
                "cat /dev/zero >/v/fill 2>/dev/null; exec sleep 600",
            ],
        );
        eventually("the disk to be full", || (free() == 0).then_some(()));
        cli.run(&["stop", "-t", "0", "volume"]).ok();
        cli.run(&["start", "volume"]).ok();
        cli.run(&["rm", "-f", "volume"]).ok();
        cli.run(&["volume", "rm", "filled"]).ok();
        eventually("room on the disk", || (free() > 1000).then_some(()));
        eventually("no warning", || (warnings() == "null").then_some(()));
        assert_eq!(cli.sh(&[], "echo again").ok(), "again");
    }));
    engine.kill9();
    unmount(engine.root(), UnmountFlags::DETACH).unwrap();
    engine.restart();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn on_a_full_disk_commits_and_copies_fail_and_leave_nothing() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let engine = Engine::start();
    engine.kill9();
    mount(
        "tmpfs",
        engine.root(),
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=32m"),
    )
    .unwrap();
    engine.restart();
    engine.load(&fs::read(whelk_tests::images::busybox()).unwrap());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let cli = engine.cli(Program::Docker);
        let script = "dd if=/dev/urandom of=/half bs=1M count=12 2>/dev/null; echo old > /file; echo ready; exec sleep 600";
        cli.up("box", &[], &["sh", "-c", script]);
        engine.await_log("box", "ready");
        let free = || rustix::fs::statvfs(engine.root()).unwrap().f_bavail;
        let before = free();
        cli.run(&["commit", "box", "made"])
            .refuses(1, "no space left on device");
        assert_eq!(engine.state("box"), "running");
        let large = engine.scratch("large").join("file");
        fs::write(&large, vec![b'x'; 20 << 20]).unwrap();
        let large = large.display().to_string();
        for target in ["box:/file", "box:/new"] {
            cli.run(&["cp", &large, target])
                .refuses(1, "no space left on device");
        }
        let found = cli.run(&[
            "exec",
            "box",
            "sh",
            "-c",
            "cat /file; ls /new 2>&1 | wc -l; wc -c < /half",
        ]);
        assert_eq!(found.ok(), format!("old\n1\n{}", 12 << 20));
        let found = cli.run(&["exec", "box", "ls", "/"]).ok();
        assert!(!found.contains("import"), "{found}");
        eventually("the space to be free again", || {
            (free() + 64 >= before).then_some(())
        });
        engine.whelk(&["system", "check", "--layers"]).ok();
        cli.run(&["exec", "box", "rm", "/half"]).ok();
        cli.run(&["commit", "box", "made"]).ok();
        cli.run(&["rm", "-f", "box"]).ok();
    }));
    engine.kill9();
    unmount(engine.root(), UnmountFlags::DETACH).unwrap();
    engine.restart();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn restart_policies_start_containers_after_a_reboot() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let names = ["always", "unless", "failure", "plain", "halted", "removed"];
    for (name, flags) in names.iter().zip([
        &["--restart", "always"][..],
        &["--restart", "unless-stopped"],
        &["--restart", "on-failure"],
        &[],
        &["--restart", "unless-stopped"],
        &["--rm"],
    ]) {
        cli.up(name, flags, &["sleep", "600"]);
    }
    cli.run(&["stop", "-t", "0", "halted"]).ok();
    engine.kill9();
    // Nothing is left of what runs, and of what is on a tmpfs: processes, their exit records, sockets.
    let processes: Vec<i32> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            cgroup.contains(engine.name())
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    assert!(processes.len() >= 10, "{processes:?}");
    for pid in &processes {
        let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL);
    }
    eventually("all to be dead", || {
        processes.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
    for entry in fs::read_dir(engine.run()).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        }
        .unwrap();
    }
    engine.restart();
    let running = || {
        let names = names.into_iter();
        names
            .filter(|name| engine.state(name) == "running")
            .collect::<Vec<_>>()
    };
    eventually("what the policies say", || {
        (running() == ["always", "unless", "failure"]).then_some(())
    });
    assert_eq!(
        ["plain", "halted"].map(|name| engine.state(name)),
        ["exited", "exited"]
    );
    engine.await_state("removed", "");
    engine.whelk(&["system", "check"]).ok();
}
