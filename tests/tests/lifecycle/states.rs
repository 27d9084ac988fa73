//! States of containers, and what each command does in each of them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use whelk_tests::{Cli, Engine, Program, eventually, skipped, stays};

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

/// Creates a container in a given state.
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
fn every_command_in_every_state_responds_like_docker() {
    let engine = Engine::start();
    // For each command, status and text for a created, running, exited and paused container. ID stands
    // for the id.
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
fn a_paused_container_does_not_run() {
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
        assert!(text.starts_with("PID                 "), "{text:?}");
        assert_eq!(words(text.lines().nth(1)), [pid.as_str(), "sleep", "600"]);
        cli.run(&["top", "nosuch"]).refuses(1, "No such container: nosuch");
        // Control characters in a process's name are not printed, and the process is listed.
        let script = "n=\"$(printf '/tmp/a\\033b\\nc\\377')\"; printf '#!/bin/sh\\nsleep 600\\n' >\"$n\"; chmod +x \"$n\"; exec \"$n\" \"$(printf 'x\\033[31m\\ny\\377')\"";
        cli.up("named", &[], &["sh", "-c", script]);
        eventually("the program to run", || {
            let text = cli.run(&["top", "named", "-o", "pid,comm,args"]).ok();
            (text.contains(" a?b?c? ") && text.contains(" /tmp/a?b c? x?[31m y?")).then_some(())
        });
    });
}

#[test]
fn top_has_the_columns_and_orders_of_ps() {
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let script = "trap : HUP; sleep 601 & sh -c 'sleep 602; :' & wait";
    Engine::start().both(|cli: Cli<'_>| {
        cli.up("tree", &["--user", "1:2"], &["sh", "-c", script]);
        let pid = cli.engine().pid("tree").to_string();
        let commands = |args: &[&str]| {
            let text = cli.run(&[&["top", "tree"], args].concat()).ok();
            text.lines().skip(1).map(|line| words(line)[1..].join(" ")).collect::<Vec<_>>()
        };
        eventually("the processes to run", || (commands(&["-eo", "pid,args"]).len() == 4).then_some(()));
        let tree = commands(&["-o", "pid,args", "--forest"]);
        assert_eq!(tree[1], "\\_ sleep 601");
        assert_eq!(tree[2], "\\_ sh -c sleep 602; :");
        assert!(tree[3].ends_with("\\_ sleep 602") && tree[0].starts_with("sh -c trap"), "{tree:?}");
        let mut sorted = commands(&["-o", "pid,args", "--sort=-pid"]);
        sorted.reverse();
        assert_eq!(sorted, commands(&["-o", "pid,args", "--sort", "pid"]));
        assert_eq!(commands(&["-o", "pid,args", "k-args"])[..2], ["sleep 602", "sleep 601"]);
        let threads = cli.run(&["top", "tree", "-eLf", "-p", &pid]).ok();
        let row = words(threads.lines().nth(1).unwrap());
        assert_eq!((threads.lines().count(), &row[1], &row[3]), (2, &pid, &pid));
        cli.run(&["top", "tree", "-eZ"]).refuses(1, "ps option \"-Z\" is not supported");
        let started = cli.run(&["top", "tree", "-o", "pid,lstart", "-p", &pid]).ok();
        let started: Vec<_> = started.lines().map(words).collect();
        assert_eq!((started[0][1].as_str(), started[1].len()), ("STARTED", 6), "{started:?}");
        // The same as the host's ps shows, if there is one.
        const STABLE: &str = "pid,ppid,pgid,sid,tpgid,lwp,nlwp,uid,euser,ruid,gid,egroup,rgid,ni,pri,opri,rtprio,cls,sched,f,tname,tt,vsz,sz,pending,blocked,ignored,caught,netns,pidns,utsns,comm,args";
        let host = Command::new("ps").args(["-ww", "-o", STABLE, "-p", &pid]).output();
        let Some(host) = host.ok().filter(|host| host.status.success()) else {
            return skipped!("no ps");
        };
        let shown = cli.run(&["top", "tree", "-o", STABLE, "-p", &pid]).ok();
        let host = String::from_utf8_lossy(&host.stdout);
        let [expected, shown] = [&host, shown.as_str()].map(|text| text.lines().map(words).collect::<Vec<_>>());
        assert_eq!(shown, expected);
    });
}

#[test]
fn a_slow_pause_does_not_block_other_requests() {
    let engine = Engine::start();
    // A file system whose image is on another one that can be frozen: a process that waits for its disk
    // cannot be interrupted.
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
        return skipped!("no ext4 can be made and mounted");
    }
    assert!(disk(&outer.join("inner"), 8, &inner));
    let cli = engine.cli(Program::Whelk);
    cli.up(
        "stuck",
        &["-v", &format!("{}:/d", inner.display())],
        &["sleep", "600"],
    );
    assert!(run("fsfreeze", &[Path::new("-f"), &outer]));
    // Panics are caught until the file system is thawed: otherwise the process could not be killed.
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
        // Requests meanwhile do not wait for the pause, but may be late for another reason.
        let is_quick = |_| {
            let mut pausing = cli.spawn(&["pause", "stuck"]);
            std::thread::sleep(Duration::from_millis(300));
            let begin = Instant::now();
            let resized = engine
                .api("POST", "/containers/stuck/resize?h=10&w=10", None)
                .0;
            assert!(
                engine.get("/containers/stuck/top")["Processes"]
                    .as_array()
                    .is_some()
            );
            assert_eq!(resized, 200);
            let is_quick = begin.elapsed() < Duration::from_secs(5) && pausing.is_running();
            pausing
                .finish()
                .refuses(1, "a process did not stop within 8 s");
            is_quick
        };
        assert!((0..3).any(is_quick));
        assert_eq!(engine.state("stuck"), "running");
        assert_eq!(
            cli.run(&["exec", "stuck", "echo", "goes on"]).ok(),
            "goes on"
        );
    });
    let thawed = run("fsfreeze", &[Path::new("-u"), &outer]);
    cli.run(&["rm", "-f", "stuck"]).ok();
    // The kernel releases an unused disk asynchronously.
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
