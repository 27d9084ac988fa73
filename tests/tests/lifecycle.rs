//! A container's life: its states, its exit status, its names, and what each command says on the
//! way.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use whelk_tests::{Cli, Engine, Program, eventually, images, stays};

/// A program that ends by itself only when it is told to, and says when it can be told.
const TRAPS: &str =
    "trap 'exit 5' USR1; trap 'exit 6' TERM; echo ready; while :; do sleep 0.02; done";

#[test]
fn run_passes_on_output_and_status() {
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
fn commands_that_cannot_run_have_dockers_statuses() {
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

/// The container has started by then: who looks finds the reason in its output, and 255.
#[test]
fn what_the_kernel_does_not_execute_says_so_in_the_containers_output() {
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
fn a_failed_start_leaves_a_created_container_that_says_why() {
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
fn a_signal_ends_with_128_plus_its_number() {
    Engine::start().both(|cli| {
        cli.up("killed", &[], &["sleep", "600"]);
        assert_eq!(cli.run(&["kill", "killed"]).ok(), "killed");
        assert_eq!(cli.run(&["wait", "killed"]).ok(), "137");
        let state = &cli.engine().inspect("killed")["State"];
        assert_eq!(
            (state["ExitCode"].as_i64(), state["OOMKilled"].as_bool()),
            (Some(137), Some(false))
        );
        cli.up("hup", &["--init"], &["sleep", "600"]);
        cli.run(&["kill", "-s", "HUP", "hup"]).ok();
        assert_eq!(cli.run(&["wait", "hup"]).ok(), "129");
        // A shell that is the first process of a container ends like any other.
        cli.sh(&["--init"], "kill -TERM $$").exits(143);
    });
}

#[test]
fn run_passes_on_signals_that_it_gets() {
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
fn states_follow_the_commands() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let id = cli.run(&["create", "--network", "none", "--name", "one", "busybox", "sleep", "600"]).ok();
        assert_eq!((id.len(), engine.state("one").as_str()), (64, "created"));
        for (command, state) in
            [("start", "running"), ("pause", "paused"), ("unpause", "running"), ("kill", "exited"), ("start", "running")]
        {
            assert_eq!(cli.run(&[command, "one"]).ok(), "one", "{command}");
            assert_eq!(engine.state("one"), state, "after {command}");
        }
        assert_eq!(cli.run(&["inspect", "-f", "{{.State.Status}} {{.State.Running}}", "one"]).ok(), "running true");
        cli.run(&["rm", "one"])
            .refuses(1, "cannot remove container \"one\": container is running: stop the container before removing or force remove");
        assert_eq!(cli.run(&["stop", "-t", "0", "one"]).ok(), "one");
        assert_eq!(cli.run(&["rm", "one"]).ok(), "one");
        cli.run(&["rm", "one"]).refuses(1, "Error response from daemon: No such container: one");
        assert_eq!(cli.run(&["rm", "-f", "one"]).exits(0).trim(), "Error response from daemon: No such container: one");
    });
}

/// A container in each state, made anew for each call.
fn fresh(engine: &Engine, state: &str) -> String {
    let command = if state == "exited" {
        json!(["true"])
    } else {
        json!(["sleep", "600"])
    };
    engine.api("DELETE", &format!("/containers/{state}?force=1"), None);
    let id = engine.create(
        state,
        &json!({"Image": "busybox", "Cmd": command, "HostConfig": {"NetworkMode": "none"}}),
    );
    if state != "created" {
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{state}/start"), None)
                .0,
            204
        );
    }
    if state == "exited" {
        engine.await_state(state, "exited");
    }
    if state == "paused" {
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{state}/pause"), None)
                .0,
            204
        );
    }
    id
}

#[test]
fn every_command_in_every_state_answers_as_dockers() {
    let engine = Engine::start();
    // Of each command: the status and the text it gives to created, running, exited, paused. ID
    // stands for the id.
    #[allow(clippy::type_complexity, reason = "a table")]
    let table: &[(&str, &str, [(u16, &str); 4])] = &[
        (
            "POST",
            "start",
            [
                (204, ""),
                (304, ""),
                (204, ""),
                (409, "cannot start a paused container, try unpause instead"),
            ],
        ),
        (
            "POST",
            "stop?t=0",
            [(304, ""), (204, ""), (304, ""), (204, "")],
        ),
        (
            "POST",
            "kill",
            [
                (
                    409,
                    "cannot kill container: created: container ID is not running",
                ),
                (204, ""),
                (
                    409,
                    "cannot kill container: exited: container ID is not running",
                ),
                (204, ""),
            ],
        ),
        (
            "POST",
            "restart?t=0",
            [(204, ""), (204, ""), (204, ""), (204, "")],
        ),
        (
            "POST",
            "pause",
            [
                (409, "container ID is not running"),
                (204, ""),
                (409, "container ID is not running"),
                (409, "Container ID is already paused"),
            ],
        ),
        (
            "POST",
            "unpause",
            [
                (500, "Container ID is not paused"),
                (500, "Container ID is not paused"),
                (500, "Container ID is not paused"),
                (204, ""),
            ],
        ),
        (
            "GET",
            "top",
            [
                (409, "container ID is not running"),
                (200, ""),
                (409, "container ID is not running"),
                (200, ""),
            ],
        ),
        (
            "DELETE",
            "",
            [
                (204, ""),
                (
                    409,
                    "cannot remove container \"running\": container is running: stop the container before removing or force remove",
                ),
                (204, ""),
                (
                    409,
                    "cannot remove container \"paused\": container is paused and must be unpaused first",
                ),
            ],
        ),
        (
            "DELETE",
            "?force=1",
            [(204, ""), (204, ""), (204, ""), (204, "")],
        ),
    ];
    for (method, command, expected) in table {
        for (state, (status, text)) in ["created", "running", "exited", "paused"]
            .into_iter()
            .zip(expected)
        {
            let id = fresh(&engine, state);
            let separator = if command.is_empty() || command.starts_with('?') {
                ""
            } else {
                "/"
            };
            let (found, answer) = engine.api(
                method,
                &format!("/containers/{state}{separator}{command}"),
                None,
            );
            assert_eq!(found, *status, "{method} {command} when {state}: {answer}");
            if !text.is_empty() {
                assert_eq!(
                    answer["message"].as_str(),
                    Some(text.replace("ID", &id).as_str()),
                    "{method} {command} when {state}"
                );
            }
        }
    }
}

#[test]
fn stop_sends_the_stop_signal() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up("own", &["--stop-signal", "USR1"], &["sh", "-c", TRAPS]);
        engine.await_log("own", "ready");
        assert_eq!(cli.run(&["stop", "own"]).ok(), "own");
        assert_eq!(engine.inspect("own")["State"]["ExitCode"], 5);
        cli.up("usual", &[], &["sh", "-c", TRAPS]);
        engine.await_log("usual", "ready");
        cli.run(&["stop", "usual"]).ok();
        assert_eq!(engine.inspect("usual")["State"]["ExitCode"], 6);
        cli.up("given", &[], &["sh", "-c", TRAPS]);
        engine.await_log("given", "ready");
        cli.run(&["stop", "-s", "USR1", "given"]).ok();
        assert_eq!(engine.inspect("given")["State"]["ExitCode"], 5);
    });
}

#[test]
fn stop_kills_when_the_time_is_over_and_not_before() {
    let engine = Engine::start();
    let cli = engine.cli(whelk_tests::Program::Docker);
    // Without a handler, the kernel keeps signals from the first process of a pid namespace.
    let check = |flags: &[&str], stop: &[&str], least: u64, most: u64| {
        cli.up("deaf", flags, &["sleep", "600"]);
        let begin = Instant::now();
        cli.run(&[&["stop"][..], stop, &["deaf"][..]].concat()).ok();
        let took = begin.elapsed();
        assert!(
            (Duration::from_secs(least)..Duration::from_secs(most)).contains(&took),
            "{flags:?} {stop:?} took {took:?}"
        );
        assert_eq!(engine.inspect("deaf")["State"]["ExitCode"], 137);
        cli.run(&["rm", "deaf"]).ok();
    };
    check(&["--stop-timeout", "1"], &[], 1, 8);
    check(&[], &["-t", "2"], 2, 9);
    check(&["--stop-timeout", "20"], &["-t", "0"], 0, 8);
}

#[test]
fn restart_runs_the_program_again_on_the_same_files() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up(
            "again",
            &[],
            &["sh", "-c", "echo x >>/runs; wc -l </runs; exec sleep 600"],
        );
        engine.await_log("again", "1\n");
        let before = engine.inspect("again")["State"].clone();
        assert_eq!(cli.run(&["restart", "-t", "0", "again"]).ok(), "again");
        engine.await_log("again", "1\n2\n");
        let after = engine.inspect("again");
        assert_ne!(after["State"]["Pid"], before["Pid"]);
        assert_ne!(after["State"]["StartedAt"], before["StartedAt"]);
        assert_eq!(
            after["RestartCount"], 0,
            "a restart by hand is none by policy"
        );
        cli.run(&["kill", "again"]).ok();
        cli.run(&["start", "again"]).ok();
        engine.await_log("again", "1\n2\n3\n");
    });
}

#[test]
fn start_attached_shows_output_and_passes_the_status_on() {
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
fn rm_removes_a_container_at_its_end() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.sh(&[], "exit 3").exits(3);
        assert_eq!(cli.run(&["ps", "-aq"]).ok(), "");
        cli.up("soon", &["--rm"], &["sleep", "600"]);
        cli.run(&["kill", "soon"]).ok();
        engine.await_state("soon", "");
        let left =
            || std::fs::read_dir(engine.root().join("containers")).map_or(0, Iterator::count);
        eventually("its directory to be gone", || (left() == 0).then_some(()));
    });
}

#[test]
fn wait_gives_the_status_of_each() {
    Engine::start().both(|cli| {
        for (name, code) in [("five", "exit 5"), ("zero", "exit 0")] {
            cli.up(name, &[], &["sh", "-c", code]);
        }
        cli.up("later", &[], &["sh", "-c", TRAPS]);
        cli.engine().await_log("later", "ready");
        let mut waiting = cli.spawn(&["wait", "five", "zero", "later", "nosuch"]);
        waiting.expect("5\n0\n");
        assert!(waiting.is_running());
        cli.run(&["kill", "-s", "USR1", "later"]).ok();
        let output = waiting.finish();
        output.refuses(1, "Error response from daemon: No such container: nosuch");
        assert_eq!(output.out(), "5\n0\n5\n");
    });
}

#[test]
fn pause_stops_the_clock_of_a_container() {
    Engine::start().both(|cli| {
        let shared = cli.engine().scratch("pause");
        let count = || std::fs::read_to_string(shared.join("n")).unwrap_or_default();
        let volume = format!("{}:/b", shared.display());
        cli.up(
            "counts",
            &["-v", &volume],
            &[
                "sh",
                "-c",
                "i=0; while :; do i=$((i+1)); echo $i >/b/n; done",
            ],
        );
        eventually("it counts", || {
            count()
                .trim()
                .parse::<u64>()
                .is_ok_and(|n| n > 10)
                .then_some(())
        });
        assert_eq!(cli.run(&["pause", "counts"]).ok(), "counts");
        let frozen = count();
        stays(
            "it does not count while it is paused",
            Duration::from_millis(300),
            || count() == frozen,
        );
        cli.run(&["exec", "counts", "true"]).refuses(
            1,
            "Container counts is paused, unpause the container before exec",
        );
        cli.run(&["unpause", "counts"]).ok();
        eventually("it counts again", || (count() != frozen).then_some(()));
        // A paused container can be stopped and removed too.
        cli.run(&["pause", "counts"]).ok();
        cli.run(&["stop", "-t", "0", "counts"]).ok();
        assert_eq!(cli.engine().state("counts"), "exited");
    });
}

#[test]
fn a_restart_policy_starts_again_as_often_as_it_says() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up(
            "thrice",
            &["--restart", "on-failure:2"],
            &["sh", "-c", "echo run; exit 4"],
        );
        eventually("the last try", || {
            (engine.inspect("thrice")["RestartCount"] == 2 && engine.state("thrice") == "exited")
                .then_some(())
        });
        assert_eq!(engine.logs("thrice"), "run\nrun\nrun\n");
        assert_eq!(engine.inspect("thrice")["State"]["ExitCode"], 4);
        cli.up(
            "once",
            &["--restart", "on-failure:2"],
            &["sh", "-c", "echo run"],
        );
        engine.await_state("once", "exited");
        assert_eq!(
            (
                engine.logs("once").as_str(),
                engine.inspect("once")["RestartCount"].as_i64()
            ),
            ("run\n", Some(0))
        );
        cli.up("always", &["--restart", "always"], &["sh", "-c", TRAPS]);
        engine.await_log("always", "ready\n");
        // What dies by itself comes back; what was stopped does not.
        kill_process(Pid::from_raw(engine.pid("always")).unwrap(), Signal::USR1).unwrap();
        engine.await_log("always", "ready\nready\n");
        cli.run(&["stop", "always"]).ok();
        stays("it is stopped", Duration::from_millis(500), || {
            engine.state("always") == "exited"
        });
    });
}

#[test]
fn update_changes_what_inspect_shows() {
    Engine::start().both(|cli| {
        cli.up("changed", &[], &["sleep", "600"]);
        assert_eq!(
            cli.run(&[
                "update",
                "--restart",
                "on-failure:3",
                "--cpus",
                "0.5",
                "changed"
            ])
            .ok(),
            "changed"
        );
        let config = &cli.engine().inspect("changed")["HostConfig"];
        assert_eq!(
            config["RestartPolicy"],
            json!({"Name": "on-failure", "MaximumRetryCount": 3})
        );
        assert_eq!(config["NanoCpus"], 500_000_000);
        cli.run(&["update", "-m", "1m", "changed"])
            .refuses(1, "Minimum memory limit allowed is 6MB");
        cli.run(&["update", "changed"]).refuses(
            1,
            "you must provide one or more flags when using this command",
        );
    });
}

#[test]
fn containers_with_shared_names_can_be_updated() {
    Engine::start().both(|cli| {
        cli.up("donor", &[], &["sleep", "600"]);
        cli.run(&[
            "run",
            "-d",
            "--name",
            "sharing",
            "--network",
            "container:donor",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
        cli.up("named", &["--uts", "host"], &["sleep", "600"]);
        for name in ["sharing", "named"] {
            assert_eq!(cli.run(&["update", "--cpus", "0.5", name]).ok(), name);
            assert_eq!(
                cli.engine().inspect(name)["HostConfig"]["NanoCpus"],
                500_000_000
            );
        }
    });
}

#[test]
fn a_restart_that_fails_for_good_is_the_last() {
    let engine = Engine::start();
    let device = engine.scratch("device").join("node");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::CharacterDevice,
        0o600.into(),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let cli = engine.cli(Program::Whelk);
    cli.up(
        "lost",
        &[
            "--restart",
            "always",
            "--device",
            &format!("{}:/dev/node", device.display()),
        ],
        &["sleep", "600"],
    );
    fs::remove_file(&device).unwrap();
    kill_process(Pid::from_raw(engine.pid("lost")).unwrap(), Signal::KILL).unwrap();
    engine.await_state("lost", "exited");
    let state = engine.inspect("lost")["State"].clone();
    assert!(
        state["Error"]
            .as_str()
            .is_some_and(|error| error.contains("no such file or directory")),
        "{state}"
    );
    // A working directory for which there is no room in the container's own file system.
    let options = ["type=tmpfs", "device=tmpfs", "o=nr_inodes=8"];
    let mut create = vec!["volume", "create"];
    create.extend(options.iter().flat_map(|option| ["-o", option]));
    create.push("small");
    cli.run(&create).ok();
    cli.up("keeps", &["-v", "small:/t"], &["sleep", "600"]);
    cli.up(
        "full",
        &["--restart", "always", "-v", "small:/t", "-w", "/t/x"],
        &[
            "sh",
            "-c",
            "cd /; rmdir /t/x; while touch /t/$((i+=1)); do :; done; sleep 0.2",
        ],
    );
    engine.await_state("full", "exited");
    let state = engine.inspect("full")["State"].clone();
    assert!(
        state["Error"]
            .as_str()
            .is_some_and(|error| error.contains("mkdir /t/x: no space left on device")),
        "{state}"
    );
}

#[test]
fn an_update_that_conflicts_is_refused_as_by_docker() {
    let engine = Engine::start();
    let update = |name: &str, change: serde_json::Value| {
        let (status, answer) =
            engine.api("POST", &format!("/containers/{name}/update"), Some(&change));
        let text = answer["message"].as_str().unwrap_or_default().to_owned();
        (
            status,
            text.split_once(": ")
                .map_or(text.clone(), |(_, rest)| rest.to_owned()),
        )
    };
    let make = |name: &str, mut host: serde_json::Value| {
        host["NetworkMode"] = json!("none");
        engine.create(
            name,
            &json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": host}),
        )
    };
    // What creation has filled in does not count as asked for.
    for (name, host) in [
        ("uts", json!({"NetworkMode": "none", "UTSMode": "host"})),
        ("net", json!({"NetworkMode": "container:uts"})),
    ] {
        engine.create(
            name,
            &json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": host}),
        );
        assert_eq!(update(name, json!({"Memory": 64 << 20})).0, 200, "{name}");
    }
    let conflict = |what: &str, other: &str| {
        (
            409,
            format!(
                "Conflicting options: {what} cannot be updated as {other} has already been set"
            ),
        )
    };
    make("nano", json!({"NanoCpus": 1_000_000_000}));
    assert_eq!(
        update("nano", json!({"CpuQuota": 50_000})),
        conflict("CPU Quota", "NanoCPUs")
    );
    assert_eq!(
        update("nano", json!({"CpuPeriod": 50_000})),
        conflict("CPU Period", "NanoCPUs")
    );
    let id = make("quota", json!({"CpuQuota": 50_000, "AutoRemove": true}));
    assert_eq!(
        update("quota", json!({"NanoCpus": 1_000_000_000})),
        conflict("Nano CPUs", "CPU Quota")
    );
    let (status, answer) = engine.api(
        "POST",
        "/containers/quota/update",
        Some(&json!({"RestartPolicy": {"Name": "always"}})),
    );
    let text = format!(
        "Cannot update container {id}: Restart policy cannot be updated because AutoRemove is enabled for the container"
    );
    assert_eq!(
        (status, answer["message"].as_str()),
        (409, Some(text.as_str()))
    );
    assert_eq!(
        update("quota", json!({"RestartPolicy": {"Name": "no"}})).0,
        200
    );
    let (status, text) = update("quota", json!({"RestartPolicy": {"Name": "bogus"}}));
    assert!(
        status == 400 && text.starts_with("unknown policy 'bogus'"),
        "{text}"
    );
    for (given, shown) in [(7, 7), (-1, 0), (9, 9), (-5, 0), (0, 0)] {
        assert_eq!(update("nano", json!({"PidsLimit": given})).0, 200);
        assert_eq!(
            engine.inspect("nano")["HostConfig"]["PidsLimit"],
            shown,
            "{given}"
        );
    }
    // No limit is what the kernel has, too, while it runs and at its next start.
    update("nano", json!({"PidsLimit": 7}));
    let limit = |name: &str| {
        engine
            .whelk(&[
                "exec",
                name,
                "sh",
                "-c",
                "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null",
            ])
            .out()
    };
    engine.whelk(&["start", "nano"]).ok();
    assert_eq!(limit("nano").trim(), "7");
    assert_eq!(update("nano", json!({"PidsLimit": -1})).0, 200);
    assert_eq!(limit("nano").trim(), "max");
    engine.whelk(&["restart", "-t", "0", "nano"]).ok();
    assert_eq!(limit("nano").trim(), "max");
}

#[test]
fn top_lists_the_processes_as_the_host_sees_them() {
    let words = |line: Option<&str>| {
        line.unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    Engine::start().both(|cli: Cli<'_>| {
        cli.up("busy", &[], &["sleep", "600"]);
        let pid = cli.engine().pid("busy").to_string();
        let text = cli.run(&["top", "busy"]).ok();
        assert_eq!(words(text.lines().next()), ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
        let row = words(text.lines().nth(1));
        assert_eq!((row[0].as_str(), &row[1], &row[7..]), ("root", &pid, &["sleep".to_owned(), "600".to_owned()][..]));
        let text = cli.run(&["top", "busy", "-o", "pid,args"]).ok();
        assert_eq!(words(text.lines().nth(1)), [pid.as_str(), "sleep", "600"]);
        cli.run(&["top", "nosuch"]).refuses(1, "No such container: nosuch");
        // What processes call themselves does not get to the terminal as it is, nor hides them.
        let script = "n=\"$(printf '/tmp/a\\033b\\nc\\377')\"; printf '#!/bin/sh\\nsleep 600\\n' >\"$n\"; chmod +x \"$n\"; exec \"$n\" \"$(printf 'x\\033[31m\\ny\\377')\"";
        cli.up("named", &[], &["sh", "-c", script]);
        eventually("the program to run", || {
            let text = cli.run(&["top", "named", "-o", "pid,comm,args"]).ok();
            (text.contains(" a?b?c? ") && text.contains(" /tmp/a?b c? x?[31m y?")).then_some(())
        });
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

#[test]
fn pruning_leaves_what_is_used_or_too_new() {
    let engine = Engine::start();
    engine.both(|cli| {
        let count = |what: &str| engine.get(what).as_array().map_or(0, Vec::len);
        cli.run(&[
            "run",
            "--name",
            "over",
            "--network",
            "none",
            "--label",
            "a=1",
            "busybox",
            "true",
        ])
        .ok();
        cli.run(&["network", "create", "unused"]).ok();
        cli.up("runs", &["--label", "a=1"], &["sleep", "300"]);
        for command in ["container", "network", "image", "system"] {
            cli.run(&[command, "prune", "-f", "--filter", "until=1h"])
                .ok();
            cli.run(&[command, "prune", "-f", "--filter", "until=nonsense"])
                .refuses(1, "nonsense");
        }
        assert_eq!(
            (count("/containers/json?all=1"), count("/networks")),
            (2, 4),
            "all of it is newer than an hour"
        );
        let told = cli
            .run(&["system", "prune", "-f", "--filter", "label=a=1"])
            .ok();
        assert!(
            told.contains("Deleted Containers:") && told.contains("Total reclaimed space:"),
            "{told}"
        );
        assert_eq!(
            (count("/containers/json?all=1"), count("/networks")),
            (1, 4),
            "what runs, and what has no such label"
        );
        let told = cli
            .run(&["system", "prune", "-f", "--filter", "until=0s"])
            .ok();
        assert!(told.contains("unused"), "{told}");
        assert_eq!(count("/networks"), 3);
        assert!(
            !cli.run(&["images", "-q", "--filter", "until=1h"])
                .ok()
                .is_empty(),
            "the image was made long ago"
        );
        cli.run(&["rm", "-f", "runs"]).ok();
    });
}

#[test]
fn a_stop_that_waits_holds_up_nobody() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.up(
        "stubborn",
        &["--restart", "always"],
        &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"],
    );
    let mut waits = cli.spawn(&["stop", "-t", "60", "stubborn"]);
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    assert!(waits.is_running());
    cli.run(&["start", "stubborn"]).ok();
    cli.run(&["pause", "stubborn"]).ok();
    cli.run(&["unpause", "stubborn"]).ok();
    cli.run(&["stop", "-t", "0", "stubborn"]).ok();
    waits.finish().ok();
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(engine.inspect("stubborn")["State"]["ExitCode"], 137);
    stays(
        "it stays stopped, though somebody asked for its start meanwhile",
        Duration::from_millis(500),
        || engine.state("stubborn") == "exited",
    );
    // The same for a restart, and for one without end.
    cli.run(&["start", "stubborn"]).ok();
    let mut restarts = cli.spawn(&["restart", "-t", "-1", "stubborn"]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(restarts.is_running());
    cli.run(&["rm", "-f", "stubborn"]).ok();
    // It may have come back for a moment in between.
    let _ = restarts.finish();
    assert_eq!(engine.get("/containers/json?all=1"), json!([]));
}

#[test]
fn the_status_of_a_removed_container_can_be_asked_for_by_id() {
    let engine = Engine::start();
    let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", "exit 7"], "HostConfig": {"NetworkMode": "none", "AutoRemove": true}});
    for condition in ["", "?condition=next-exit", "?condition=removed"] {
        let id = engine.create("short", &body);
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{id}/start"), None)
                .0,
            204
        );
        engine.await_state(&id, "");
        assert_eq!(
            engine.api("POST", &format!("/containers/{id}/wait{condition}"), None),
            (200, json!({"StatusCode": 7})),
            "{condition}"
        );
        assert_eq!(
            engine
                .api("POST", &format!("/containers/short/wait{condition}"), None)
                .0,
            404
        );
    }
    // Whoever removes one knows what he does.
    let id = engine.create("short", &body);
    assert_eq!(
        engine.api("DELETE", &format!("/containers/{id}"), None).0,
        204
    );
    assert_eq!(
        engine
            .api("POST", &format!("/containers/{id}/wait"), None)
            .0,
        404
    );
}

#[test]
fn a_pause_that_takes_long_holds_up_nobody() {
    let engine = Engine::start();
    // A disk whose image lies on another one that can be stopped: waiting for a disk is what
    // nothing interrupts.
    let (outer, inner) = (engine.scratch("outer"), engine.scratch("inner"));
    let run = |program: &str, args: &[&Path]| {
        Command::new(program)
            .args(args)
            .output()
            .is_ok_and(|done| done.status.success())
    };
    let disk = |image: &Path, size: u64, place: &Path| {
        fs::File::create(image)
            .unwrap()
            .set_len(size << 20)
            .unwrap();
        run("mkfs.ext4", &[image]) && run("mount", &[Path::new("-oloop"), image, place])
    };
    if !disk(&engine.scratch("images").join("outer"), 24, &outer) {
        // Where no disk can be made there is nothing to wait for.
        return;
    }
    assert!(disk(&outer.join("inner"), 8, &inner));
    let cli = engine.cli(Program::Whelk);
    cli.up(
        "stuck",
        &["-v", &format!("{}:/d", inner.display())],
        &["sleep", "600"],
    );
    assert!(run("fsfreeze", &[Path::new("-f"), &outer]));
    // Nothing may fail outside of this while the file system is frozen: the process could not even
    // be killed.
    let outcome = std::panic::catch_unwind(|| {
        cli.run(&[
            "exec",
            "-d",
            "stuck",
            "dd",
            "if=/dev/zero",
            "of=/d/file",
            "bs=4k",
            "count=4",
            "conv=fsync",
        ])
        .ok();
        eventually("the process to be stuck", || {
            let found = cli.run(&["top", "stuck", "-o", "stat,pid,args"]).ok();
            found
                .lines()
                .any(|line| line.starts_with('D'))
                .then_some(())
        });
        let mut pausing = cli.spawn(&["pause", "stuck"]);
        std::thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        assert!(pausing.is_running());
        let resized = engine
            .api("POST", "/containers/stuck/resize?h=10&w=10", None)
            .0;
        assert!(
            engine.get("/containers/stuck/top")["Processes"]
                .as_array()
                .is_some()
        );
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(resized, 200);
        pausing
            .finish()
            .refuses(1, "a process did not stop within 8 s");
        assert_eq!(engine.state("stuck"), "running");
        assert_eq!(
            cli.run(&["exec", "stuck", "echo", "goes on"]).ok(),
            "goes on"
        );
    });
    let thawed = run("fsfreeze", &[Path::new("-u"), &outer]);
    cli.run(&["rm", "-f", "stuck"]).ok();
    // What the kernel has of a disk that is not used any more, it gives back when it finds the
    // time.
    let unmount = |place: &Path| {
        (0..100).any(|_| {
            let done = run("umount", &[place]);
            if !done {
                std::thread::sleep(Duration::from_millis(50));
            }
            done
        })
    };
    let unmounted = unmount(&inner) && unmount(&outer);
    if let Err(failure) = outcome {
        std::panic::resume_unwind(failure);
    }
    assert_eq!((thawed, unmounted), (true, true));
}
