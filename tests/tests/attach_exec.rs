//! exec and attach: further processes in a container, and connections to running ones.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;
use whelk_tests::{Connection, Engine, Program, Pty, eventually, images};

#[test]
fn exec_forwards_streams_and_exit_status() {
    Engine::start().both(|cli| {
        cli.up("up", &[], &["sleep", "600"]);
        let output = cli.run(&["exec", "up", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        output.exits(7);
        assert_eq!(
            (output.out().as_str(), output.err().as_str()),
            ("out\n", "err\n")
        );
        cli.run(&["exec", "up", "sh", "-c", "kill -9 $$"])
            .exits(137);
        cli.run(&["exec", "up", "sh", "-c", "kill -TERM $$"])
            .exits(143);
        assert_eq!(
            cli.feed(
                &["exec", "-i", "up", "sh", "-c", "cat; echo end"],
                b"through\n"
            )
            .ok(),
            "through\nend"
        );
        assert_eq!(
            cli.feed(&["exec", "up", "cat"], b"not for it").ok(),
            "",
            "without -i nothing is passed in"
        );
        let large = vec![b'x'; 3 << 20];
        assert_eq!(cli.feed(&["exec", "-i", "up", "cat"], &large).stdout, large);
    });
}

#[test]
fn exec_of_an_invalid_command_has_dockers_exit_status() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up("up", &[], &["sleep", "600"]);
        let check = |args: &[&str], code: i32, text: &str| {
            let all = cli.run(&[&["exec"][..], args].concat()).exits(code);
            assert!(all.contains(text), "{args:?}: {all}");
        };
        check(
            &["up", "nosuch"],
            127,
            "exec: \"nosuch\": executable file not found in $PATH",
        );
        check(
            &["up", "/etc/passwd"],
            126,
            "exec: \"/etc/passwd\": permission denied",
        );
        check(
            &["up", "/etc"],
            126,
            "exec: \"/etc\": is a directory: permission denied",
        );
        check(
            &["-w", "/nosuch", "up", "pwd"],
            127,
            "no such file or directory",
        );
        check(
            &["-u", "nosuch", "up", "true"],
            1,
            "unable to find user nosuch: no matching entries in passwd file",
        );
        check(&["nosuch", "true"], 1, "No such container: nosuch");
        check(
            &["-d", "up", "nosuch"],
            1,
            "executable file not found in $PATH",
        );
        cli.run(&[
            "create",
            "--network",
            "none",
            "--name",
            "made",
            "busybox",
            "true",
        ])
        .ok();
        check(&["made", "true"], 1, "is not running");
        cli.run(&["pause", "up"]).ok();
        check(
            &["up", "true"],
            1,
            "Container up is paused, unpause the container before exec",
        );
        assert_eq!(engine.inspect("up")["State"]["Status"], "paused");
    });
}

#[test]
fn exec_has_its_own_user_directory_and_environment() {
    Engine::start().both(|cli| {
        cli.up("up", &["-e", "A=b", "-w", "/tmp"], &["sleep", "600"]);
        let exec = |args: &[&str]| cli.run(&[&["exec"][..], args].concat()).ok();
        assert_eq!(
            exec(&["up", "sh", "-c", "pwd; id -u; echo $A $HOME"]),
            "/tmp\n0\nb /root"
        );
        assert_eq!(
            exec(&[
                "-u",
                "nobody",
                "-w",
                "/etc",
                "-e",
                "A=c",
                "-e",
                "X=y",
                "up",
                "sh",
                "-c",
                "pwd; id -un; echo $A $X $HOME"
            ]),
            "/etc\nnobody\nc y /home"
        );
        assert_eq!(
            exec(&["-u", "1000:10", "up", "id"]),
            "uid=1000 gid=10(wheel) groups=10(wheel)"
        );
        assert_eq!(
            exec(&["-t", "up", "sh", "-c", "tty; echo $TERM"]),
            "/dev/pts/0\r\nxterm"
        );
        // It is in the container's namespaces and cgroup.
        let host = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        exec(&["-d", "up", "sh", "-c", "touch /tmp/made; exec sleep 300"]);
        eventually("the detached exec to run", || {
            (exec(&["up", "ls", "/tmp"]) == "made").then_some(())
        });
        let top = cli.run(&["top", "up", "-o", "pid,args"]).ok();
        let pid = top
            .lines()
            .find(|line| line.ends_with("sleep 300"))
            .and_then(|line| line.split_whitespace().next())
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(host(pid), host(cli.engine().pid("up")));
    });
}

#[test]
fn exec_can_be_inspected() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let id = engine.create_exec(
        "up",
        &json!({"Cmd": ["sh", "-c", "read x; exit 5"], "AttachStdin": true, "AttachStdout": true}),
    );
    let before = engine.get(&format!("/exec/{id}/json"));
    assert_eq!(
        (
            before["Running"].as_bool(),
            before["ExitCode"].is_null(),
            before["Pid"].as_i64()
        ),
        (Some(false), true, Some(0))
    );
    let mut stream = engine.start_exec(&id, false);
    let running = eventually("it to run", || {
        let found = engine.get(&format!("/exec/{id}/json"));
        (found["Running"] == true && found["Pid"].as_i64() > Some(0)).then_some(found)
    });
    assert_eq!(running["ContainerID"], engine.inspect("up")["Id"]);
    assert_eq!(engine.inspect("up")["ExecIDs"], json!([id]));
    stream.write(b"go\n");
    stream.to_end();
    let after = eventually("its end to be known", || {
        let found = engine.get(&format!("/exec/{id}/json"));
        (found["Running"] == false).then_some(found)
    });
    assert_eq!(after["ExitCode"], 5);
    eventually("the container to forget it", || {
        engine.inspect("up")["ExecIDs"].is_null().then_some(())
    });
    let (status, answer) = engine.api(
        "POST",
        &format!("/exec/{id}/start"),
        Some(&json!({"Detach": true})),
    );
    assert!(
        status >= 400 || answer.to_string().contains("has already run"),
        "{status} {answer}"
    );
    assert_eq!(
        engine.api("GET", "/exec/nosuch/json", None),
        (404, json!({"message": "No such exec instance: nosuch"}))
    );
}

#[test]
fn a_terminal_can_be_detached_and_attached_again() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let mut first = cli.pty(&[
            "run",
            "-it",
            "--name",
            "shell",
            "--network",
            "none",
            "busybox",
            "sh",
        ]);
        first.insist("echo mark$((1+1))\n", "mark2");
        first.keys("\x10\x11");
        assert_eq!(first.finish(), 0, "{}", first.screen());
        assert_eq!(engine.state("shell"), "running");
        let mut second = cli.pty(&["attach", "shell"]);
        second.insist("echo mark$((2+2))\n", "mark4");
        second.keys("\x10\x11");
        assert_eq!(second.finish(), 1, "{}", second.screen());
        assert!(
            second.screen().contains("read escape sequence"),
            "{}",
            second.screen()
        );
        let mut third = cli.pty(&["attach", "--detach-keys", "ctrl-a,b", "shell"]);
        third.insist("echo mark$((3+3))\n", "mark6");
        third.keys("\x01b");
        assert_eq!(third.finish(), 1, "{}", third.screen());
        let mut last = cli.pty(&["attach", "shell"]);
        last.insist("echo mark$((4+4))\n", "mark8");
        last.keys("exit 4\n");
        assert_eq!(last.finish(), 4, "{}", last.screen());
        engine.await_state("shell", "exited");
        cli.run(&["attach", "shell"]).refuses(
            1,
            "You cannot attach to a stopped container, start it first",
        );
    });
}

/// Changes the size of a client's terminal until that of the container has it. A client listens to its terminal's changes some time after
/// the start.
#[track_caller]
fn resized(client: &mut Pty, rows: u16, columns: u16) {
    eventually("the other size", || {
        // Only a change is told.
        client.resize(rows + 1, columns);
        client.resize(rows, columns);
        std::thread::sleep(Duration::from_millis(200));
        client.insist("stty size; echo asked$((3+3))\n", "asked6");
        client
            .screen()
            .contains(&format!("{rows} {columns}"))
            .then_some(())
    });
}

#[test]
fn a_terminal_has_the_size_of_the_clients_terminal() {
    Engine::start().both(|cli| {
        let mut shell = cli.pty(&["run", "-it", "--rm", "--network", "none", "busybox", "sh"]);
        shell.insist("stty size\n", "24 80");
        resized(&mut shell, 40, 132);
        shell.keys("exit\n");
        assert_eq!(shell.finish(), 0, "{}", shell.screen());
        cli.up("up", &[], &["sleep", "600"]);
        let mut exec = cli.pty(&["exec", "-it", "up", "sh"]);
        resized(&mut exec, 30, 100);
        exec.keys("exit 6\n");
        assert_eq!(exec.finish(), 6, "{}", exec.screen());
    });
}

#[test]
fn interrupt_keys_reach_the_program() {
    Engine::start().both(|cli| {
        let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
        let mut session = cli.pty(&[
            "run",
            "-it",
            "--rm",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            script,
        ]);
        session.expect("ready");
        session.keys("\x03");
        session.expect("caught");
        assert_eq!(session.finish(), 9);
    });
}

#[test]
fn tty_without_a_terminal_is_rejected() {
    Engine::start().both(|cli| {
        cli.run(&["run", "-it", "--rm", "--network", "none", "busybox", "true"])
            .refuses(1, "the input device is not a TTY");
        cli.up("up", &[], &["sleep", "600"]);
        cli.run(&["exec", "-it", "up", "true"])
            .refuses(1, "the input device is not a TTY");
    });
}

#[test]
fn attached_clients_share_output_and_input() {
    let engine = Engine::start();
    let body = json!({"Image": "busybox", "Cmd": ["cat"], "OpenStdin": true, "HostConfig": {"NetworkMode": "none"}});
    engine.create("echo", &body);
    let streams = "stream=1&stdin=1&stdout=1&stderr=1";
    let mut early = engine.attach("echo", streams, true);
    assert_eq!(engine.api("POST", "/containers/echo/start", None).0, 204);
    let mut other = engine.attach("echo", streams, true);
    let silent = engine.attach("echo", "stream=1&stderr=1", true);
    early.write(b"from the first\n");
    early.expect("from the first\n");
    other.expect("from the first\n");
    other.write(b"from the second\n");
    early.expect("from the second\n");
    other.expect("from the second\n");
    // One client disconnects; the program and the other clients are not affected.
    drop(early);
    other.write(b"still here\n");
    other.expect("still here\n");
    let mut late = engine.attach("echo", &format!("{streams}&logs=1"), true);
    late.expect("from the first\nfrom the second\nstill here\n");
    assert_eq!(engine.api("POST", "/containers/echo/kill", None).0, 204);
    other.to_end();
    assert_eq!(
        silent.to_end(),
        (String::new(), String::new()),
        "it asked for standard error only"
    );
}

#[test]
fn stdin_once_closes_input_after_the_first_client() {
    let engine = Engine::start();
    for once in [true, false] {
        let name = format!("once-{once}");
        let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", "cat; echo end"], "OpenStdin": true, "StdinOnce": once, "HostConfig": {"NetworkMode": "none"}});
        engine.create(&name, &body);
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{name}/start"), None)
                .0,
            204
        );
        let mut client = engine.attach(&name, "stream=1&stdin=1&stdout=1", true);
        client.write(b"in\n");
        client.expect("in\n");
        client.close_input();
        if once {
            client.expect("end\n");
            client.to_end();
            engine.await_state(&name, "exited");
        } else {
            drop(client);
            let mut next = engine.attach(&name, "stream=1&stdin=1&stdout=1", true);
            next.write(b"more\n");
            next.expect("more\n");
            assert_eq!(engine.state(&name), "running");
        }
    }
}

#[test]
fn attach_exits_with_the_programs_status() {
    Engine::start().both(|cli| {
        let gate = cli.engine().scratch(&format!("gate-{:?}", cli.program()));
        let script = "while [ ! -e /b/go ]; do echo tick; sleep 0.05; done; exit 3";
        cli.up(
            "ticks",
            &["-v", &format!("{}:/b", gate.display())],
            &["sh", "-c", script],
        );
        let mut attached = cli.spawn(&["attach", "--no-stdin", "ticks"]);
        attached.expect("tick\ntick\n");
        fs::write(gate.join("go"), "").unwrap();
        attached.finish().exits(3);
        cli.up("paused", &[], &["sleep", "600"]);
        cli.run(&["pause", "paused"]).ok();
        cli.run(&["attach", "paused"]).refuses(
            1,
            "You cannot attach to a paused container, unpause it first",
        );
    });
}

#[test]
fn large_output_is_complete_and_in_order() {
    Engine::start().both(|cli| {
        let output = cli.sh(&[], "seq 200000");
        output.exits(0);
        let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
        assert!(
            output.out() == expected,
            "{} of {} bytes",
            output.stdout.len(),
            expected.len()
        );
        cli.up("up", &[], &["sleep", "600"]);
        assert!(cli.run(&["exec", "up", "seq", "200000"]).out() == expected);
    });
}

#[test]
fn rejects_invalid_detach_keys() {
    Engine::start().both(|cli| {
        cli.up("up", &[], &["sleep", "600"]);
        cli.run(&["exec", "--detach-keys", "bogus", "up", "true"])
            .refuses(1, "Invalid escape keys (bogus) provided");
    });
}

#[test]
fn output_is_complete_after_the_program_closes_its_input() {
    Engine::start().both(|cli| {
        cli.up("up", &[], &["sleep", "600"]);
        for round in 0..10 {
            let mut running = cli.spawn(&[
                "exec",
                "-i",
                "up",
                "sh",
                "-c",
                "exec 0</dev/null; sleep .3; seq 1 100000; exit 7",
            ]);
            let mut input = running.stdin.take().unwrap();
            let writer =
                std::thread::spawn(move || while input.write_all(&b"y\n".repeat(4096)).is_ok() {});
            let output = running.finish();
            assert_eq!(
                (output.exits(7).lines().last(), output.err().as_str()),
                (Some("100000"), ""),
                "round {round}"
            );
            writer.join().unwrap();
        }
    });
}

#[test]
fn stream_data_follows_the_response_head() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up(
        "up",
        &[],
        &["sh", "-c", "while :; do echo tick; sleep .01; done"],
    );
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "tcp"),
        ("Content-Type", "application/json"),
    ];
    let check = |path: &str, body: &str| {
        let mut connection = Connection::open(&engine.socket()).unwrap();
        connection
            .send("POST", path, &upgrade, body.as_bytes())
            .unwrap();
        // A client that reads late gets everything that was sent.
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(connection.head().unwrap().0, 101, "{path}");
        assert_eq!(
            connection.unread(),
            0,
            "{path}: the stream came with the head"
        );
        assert!(connection.part().unwrap().is_some(), "{path}");
    };
    for _ in 0..5 {
        let id = engine.create_exec("up", &json!({"Cmd": ["echo", "x"], "AttachStdout": true}));
        check(&format!("/exec/{id}/start"), "{}");
        check("/containers/up/attach?stream=1&stdout=1&logs=1", "");
    }
}

#[test]
fn a_stream_ends_at_its_end_or_two_seconds_after_its_process() {
    Engine::start().both(|cli| {
        cli.up("up", &[], &["sleep", "600"]);
        let exec = |script: &str| cli.run(&["exec", "up", "sh", "-c", script]);
        // Output is late if the program has no processor for two seconds.
        let is_whole = |_| {
            let output = exec("(sleep .5; yes x | head -c 200000) & exit 4");
            output.exits(4);
            output.stdout.len() == 200_000
        };
        assert!((0..3).any(is_whole));
        let begin = Instant::now();
        assert_eq!(
            exec("echo first; (sleep 300; echo late) & exit 0").ok(),
            "first"
        );
        let taken = begin.elapsed();
        assert!(
            (Duration::from_millis(1900)..Duration::from_secs(60)).contains(&taken),
            "{taken:?}"
        );
    });
}

#[test]
fn a_resize_before_the_start_takes_effect() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.up("up", &[], &["sleep", "600"]);
    for round in 0..30 {
        let id = engine.create_exec(
            "up",
            &json!({"Cmd": ["sleep", "600"], "Tty": true, "AttachStdout": true}),
        );
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| engine.start_exec(&id, true));
            assert_eq!(
                engine.api("POST", &format!("/exec/{id}/resize?h=20&w=30"), None),
                (200, json!(null)),
                "round {round}"
            );
            drop(starting.join());
        });
    }
    assert_eq!(
        engine
            .api("POST", "/containers/up/resize?h=20&w=30", None)
            .0,
        200,
        "without a terminal there is nothing to do"
    );
    let id = engine.create_exec("up", &json!({"Cmd": ["true"]}));
    engine.start_exec(&id, false).to_end();
    // Without attached streams the answer does not wait for the end.
    eventually("the exec to end", || {
        (engine.get(&format!("/exec/{id}/json"))["Running"] == false).then_some(())
    });
    let gone = json!({"message": format!("NotFound: process does not exist {id}: not found")});
    assert_eq!(
        engine.api("POST", &format!("/exec/{id}/resize?h=20&w=30"), None),
        (404, gone)
    );
    cli.run(&["kill", "up"]).ok();
    let stopped = engine.inspect("up")["Id"].as_str().map(str::to_owned);
    let stopped = format!("container {} is not running", stopped.unwrap_or_default());
    assert_eq!(
        engine.api("POST", &format!("/exec/{id}/resize?h=20&w=30"), None),
        (409, json!({"message": stopped}))
    );
}

#[test]
fn a_client_that_attaches_during_a_start_is_attached() {
    let engine = Engine::start();
    let engine = &engine;
    let shared = &engine.scratch("shared");
    let script = "until [ -e /b/$0 ]; do sleep .05; done; echo said";
    let body = |name: &str| json!({"Image": "busybox", "Cmd": ["sh", "-c", script, name], "HostConfig": {"NetworkMode": "none", "Binds": [format!("{}:/b", shared.display())]}});
    for round in 0..6 {
        let names: Vec<String> = (0..4)
            .map(|number| format!("race-{round}-{number}"))
            .collect();
        names
            .iter()
            .for_each(|name| drop(engine.create(name, &body(name))));
        std::thread::scope(|scope| {
            for (name, delay) in names.iter().zip([0, 1, 2, 4]) {
                scope.spawn(move || {
                    assert_eq!(
                        engine
                            .api("POST", &format!("/containers/{name}/start"), None)
                            .0,
                        204
                    )
                });
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(delay));
                    let attached = engine.attach(name, "stream=1&stdout=1&stderr=1", true);
                    fs::write(shared.join(name), "").unwrap();
                    let said = attached.to_end();
                    assert_eq!(said, ("said\n".to_owned(), String::new()), "{name}");
                });
            }
        });
    }
}

#[test]
fn the_third_interrupt_ends_the_command_line() {
    Engine::start().both(|cli| {
        let mut running = cli.spawn(&[
            "run",
            "--name",
            "deaf",
            "--network",
            "none",
            "busybox",
            "sleep",
            "600",
        ]);
        cli.engine().await_state("deaf", "running");
        // Pending signals of one kind are merged, so that more than three may be needed.
        eventually("the command line to end", || {
            std::thread::sleep(Duration::from_millis(200));
            let is_running = running.is_running();
            if is_running {
                running.signal(rustix::process::Signal::INT);
            }
            (!is_running).then_some(())
        });
        running
            .finish()
            .refuses(1, "got 3 SIGTERM/SIGINTs, forcefully exiting");
        assert_eq!(cli.engine().state("deaf"), "running");
    });
}

#[test]
fn a_shell_behind_init_has_its_terminal() {
    Engine::start().both(|cli| {
        let mut shell = cli.pty(&[
            "run",
            "-it",
            "--rm",
            "--init",
            "--network",
            "none",
            "busybox",
            "sh",
        ]);
        shell.expect("/ # ");
        // When the mark is printed, the terminal already belongs to the new program.
        shell.keys("sh -c 'echo mark$((1+1)); exec sleep 60'\n");
        shell.expect("mark2");
        shell.keys("\x03");
        shell.expect("/ # ");
        shell.keys("exit 5\n");
        assert_eq!(shell.finish(), 5, "{}", shell.screen());
        // Without a terminal, and with a terminal that is not the input.
        assert_eq!(
            cli.feed(
                &[
                    "run",
                    "-i",
                    "--rm",
                    "--init",
                    "--network",
                    "none",
                    "busybox",
                    "cat"
                ],
                b"through\n"
            )
            .ok(),
            "through"
        );
        assert_eq!(
            cli.run(&[
                "run",
                "-t",
                "--rm",
                "--init",
                "--network",
                "none",
                "busybox",
                "echo",
                "said"
            ])
            .ok(),
            "said"
        );
    });
}

#[test]
fn attaching_again_shows_the_prompt() {
    Engine::start().both(|cli| {
        let mut first = cli.pty(&[
            "run",
            "-it",
            "--name",
            "shell",
            "--network",
            "none",
            "busybox",
            "sh",
        ]);
        first.expect("/ # ");
        first.keys("\x10\x11");
        assert_eq!(first.finish(), 0);
        for _ in 0..2 {
            let mut again = cli.pty(&["attach", "shell"]);
            again.expect("/ # ");
            again.keys("\x10\x11");
            assert_eq!(again.finish(), 1);
        }
    });
}

#[test]
fn disconnected_clients_are_noticed() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    engine.create(
        "made",
        &json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}),
    );
    let open = || {
        fs::read_dir(format!("/proc/{}/fd", engine.daemon_pid()))
            .unwrap()
            .count()
    };
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "tcp")];
    let before = open();
    let mut clients = Vec::new();
    for _ in 0..20 {
        for (method, path, headers) in [
            ("GET", "/events", &[][..]),
            ("POST", "/containers/up/wait", &[]),
            ("POST", "/containers/made/wait?condition=next-exit", &[]),
            ("GET", "/containers/up/logs?follow=1&stdout=1", &[]),
            (
                "POST",
                "/containers/up/attach?stream=1&stdout=1&stdin=1",
                &[],
            ),
            (
                "POST",
                "/containers/up/attach?stream=1&stdout=1&stdin=1",
                &upgrade,
            ),
        ] {
            let mut client = Connection::open(&engine.socket()).unwrap();
            client.send(method, path, headers, b"").unwrap();
            client.head().unwrap();
            clients.push(client);
        }
    }
    eventually("the engine to have what it needs for them", || {
        (open() > before + 200).then_some(())
    });
    // A client that has closed its sending side still gets the response.
    let mut patient = Connection::open(&engine.socket()).unwrap();
    patient
        .send("POST", "/containers/up/wait", &[], b"")
        .unwrap();
    patient.half_close().unwrap();
    drop(clients);
    eventually("the engine to close what was left", || {
        (open() < before + 10).then_some(())
    });
    assert_eq!(engine.api("POST", "/containers/up/kill", None).0, 204);
    assert_eq!(
        patient.response().unwrap().json(),
        json!({"StatusCode": 137})
    );
}

#[test]
fn input_arrives_after_its_sender_has_disconnected() {
    let engine = Engine::start();
    let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", "sleep .5; wc -c"], "OpenStdin": true, "StdinOnce": true, "HostConfig": {"NetworkMode": "none"}});
    engine.create("counts", &body);
    let mut client = engine.attach("counts", "stream=1&stdin=1", true);
    assert_eq!(engine.api("POST", "/containers/counts/start", None).0, 204);
    client.write(&vec![b'x'; 600_000]);
    drop(client);
    engine.await_log("counts", "600000\n");
}

/// The processes that have ended and that a container's shim has not waited for, and those on their
/// way to their program.
fn children_of_shim(engine: &Engine, name: &str) -> (Vec<i32>, Vec<i32>) {
    let status = |pid: i32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |status: &str, key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let init = engine.pid(name);
    let shim = field(&status(init), "PPid:");
    let numbers = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children: Vec<(i32, String)> = numbers
        .map(|pid| (pid, status(pid)))
        .filter(|(_, status)| field(status, "PPid:") == shim)
        .collect();
    let with = |wanted: &dyn Fn(&str) -> bool| {
        children
            .iter()
            .filter(|(pid, status)| *pid != init && wanted(status))
            .map(|(pid, _)| *pid)
            .collect::<Vec<_>>()
    };
    let has_ended = |status: &str| field(status, "State:").starts_with('Z');
    // The intermediate process, which has the same name, is not in the container's pid namespace.
    let is_starting = |status: &str| {
        !has_ended(status)
            && field(status, "Name:").starts_with("whelk-shim")
            && field(status, "NSpid:").split_whitespace().count() > 1
    };
    (with(&has_ended), with(&is_starting))
}

#[test]
fn ended_processes_are_reaped_while_another_starts() {
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let shared = engine.scratch("shared");
    fs::write(shared.join("busybox"), images::busybox_program()).unwrap();
    fs::set_permissions(shared.join("busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    let volume = format!("{}:/d", shared.display());
    // An open or execve of the file blocks until the holder of its lease releases it, at most
    // lease-break-time (45 s).
    let hold = "
import fcntl, os, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open('/d/busybox', os.O_RDONLY)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
time.sleep(600)
";
    let cli = engine.cli(Program::Whelk);
    let hold_it = |name: &str| {
        cli.run(&[
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            "-v",
            &volume,
            "python",
            "python3",
            "-c",
            hold,
        ])
        .ok();
        engine.await_log(name, "held");
    };
    cli.up("up", &["-v", &volume], &["sleep", "600"]);
    hold_it("first");
    let stuck = |what: &str| {
        eventually(what, || {
            let (ended, starting) = children_of_shim(&engine, "up");
            // The intermediate process has also ended.
            (starting.len() == 1 && ended.is_empty()).then(|| starting[0])
        })
    };
    let mut slow = cli.spawn(&["exec", "up", "/d/busybox", "sh", "-c", "exit 7"]);
    stuck("the exec to wait for its program");
    cli.run(&["exec", "up", "sh", "-c", "exit 3"]).exits(3);
    stuck("what has ended to be waited for");
    assert!(slow.is_running());
    cli.run(&["rm", "-f", "first"]).ok();
    slow.finish().exits(7);

    // A process that is killed before its exec is reaped as well.
    hold_it("second");
    let mut killed = cli.spawn(&["exec", "up", "/d/busybox", "true"]);
    let pid = stuck("the second exec to wait for its program");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    killed.finish().exits(137);
    assert_eq!(children_of_shim(&engine, "up"), (Vec::new(), Vec::new()));
}
