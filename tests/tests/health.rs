//! Health checks.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use whelk_tests::{Cli, Engine, Program, eventually, images, stays};

fn health(engine: &Engine, name: &str) -> Value {
    engine.inspect(name)["State"]["Health"].clone()
}

fn status(engine: &Engine, name: &str) -> String {
    let health = health(engine, name);
    health["Status"].as_str().unwrap_or("none").to_owned()
}

#[track_caller]
fn await_status(engine: &Engine, name: &str, wanted: &str) {
    eventually(&format!("{name} to be {wanted}"), || {
        (status(engine, name) == wanted).then_some(())
    });
}

/// Returns the results of a container's checks once there are `count` of them.
#[track_caller]
fn await_results(engine: &Engine, name: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{count} results for {name}"), || {
        let log = health(engine, name)["Log"].as_array().cloned();
        log.filter(|log| log.len() >= count)
    })
}

fn listed(cli: Cli<'_>, filter: &str) -> String {
    let filter = format!("health={filter}");
    cli.run(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"])
        .ok()
}

fn ps_status(cli: Cli<'_>, name: &str) -> String {
    let filter = format!("name={name}");
    cli.run(&["ps", "-a", "--filter", &filter, "--format", "{{.Status}}"])
        .ok()
}

/// Returns the pids of the host's processes with this argument.
fn processes_with(argument: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let has = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|word| word == argument.as_bytes())
    };
    let found: Vec<i32> = pids.into_iter().filter(has).collect();
    // Those that are still there run at the same time; others may have begun after the end of what was found before them.
    found.into_iter().filter(has).collect()
}

/// Waits for the result of a check that was given up after it had written its output, which the first ones may not have done in time.
#[track_caller]
fn await_given_up(engine: &Engine, name: &str, is_output: impl Fn(&str) -> bool) -> String {
    eventually(&format!("the output of {name}"), || {
        let results = await_results(engine, name, 1);
        results.iter().find_map(|result| {
            let output = result["Output"].as_str()?;
            (result["ExitCode"] == -1 && is_output(output)).then(|| output.to_owned())
        })
    })
}

/// Returns a number of seconds to sleep by which a test knows its own processes.
fn mark(number: u32) -> String {
    format!("{}.{number}", 40_000 + std::process::id())
}

#[test]
fn a_container_becomes_unhealthy_and_healthy_again() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let flags = |start_period| {
            [
                "--health-cmd",
                "echo hi; test -e /ok",
                "--health-interval",
                "300ms",
                "--health-retries",
                "2",
                "--health-start-period",
                start_period,
                "--health-start-interval",
                "200ms",
            ]
        };
        // Before the first check.
        let later = ["--health-cmd", "true", "--health-interval", "10m"];
        cli.up("later", &later, &["sleep", "600"]);
        assert_eq!(
            health(engine, "later"),
            json!({"Status": "starting", "FailingStreak": 0, "Log": []})
        );
        cli.run(&["rm", "-f", "later"]).ok();
        // During the start period.
        cli.up("begins", &flags("10m"), &["sleep", "600"]);
        assert_eq!(
            engine.inspect("begins")["Config"]["Healthcheck"],
            json!({
                "Test": ["CMD-SHELL", "echo hi; test -e /ok"], "Interval": 300_000_000,
                "StartPeriod": 600_000_000_000_i64, "StartInterval": 200_000_000, "Retries": 2,
            })
        );
        let first = await_results(engine, "begins", 3)[0].clone();
        assert_eq!(
            (&first["ExitCode"], &first["Output"]),
            (&json!(1), &json!("hi\n"))
        );
        assert!(first["Start"].as_str() < first["End"].as_str(), "{first}");
        assert_eq!(
            (
                status(engine, "begins").as_str(),
                &health(engine, "begins")["FailingStreak"]
            ),
            ("starting", &json!(0)),
            "failures of the start period do not count"
        );
        assert_eq!(listed(cli, "starting"), "begins");
        assert!(ps_status(cli, "begins").ends_with("(health: starting)"));
        cli.run(&["rm", "-f", "begins"]).ok();
        // After it.
        let mut events = engine.events("");
        cli.up("one", &flags("1s"), &["sleep", "600"]);
        await_status(engine, "one", "unhealthy");
        await_results(engine, "one", 5);
        assert_eq!(health(engine, "one")["Log"].as_array().unwrap().len(), 5);
        assert!(ps_status(cli, "one").ends_with("(unhealthy)"));
        assert_eq!(listed(cli, "unhealthy"), "one");
        cli.run(&["exec", "one", "touch", "/ok"]).ok();
        await_status(engine, "one", "healthy");
        assert_eq!(health(engine, "one")["FailingStreak"], 0);
        assert!(ps_status(cli, "one").ends_with("(healthy)"));
        assert_eq!(
            (
                listed(cli, "healthy").as_str(),
                listed(cli, "none").as_str()
            ),
            ("one", "")
        );
        let until_unhealthy = events.until("health_status: unhealthy");
        let last = &until_unhealthy[until_unhealthy.len() - 4..];
        assert_eq!(
            last,
            [
                "container exec_create: /bin/sh -c echo hi; test -e /ok",
                "container exec_start: /bin/sh -c echo hi; test -e /ok",
                "container exec_die",
                "container health_status: unhealthy",
            ]
        );
        let until_healthy = events.until("health_status: healthy");
        assert_eq!(
            until_healthy
                .iter()
                .filter(|line| line.contains("health_status"))
                .count(),
            1
        );
        // Checks leave no execs behind.
        stays("few execs", Duration::from_millis(700), || {
            engine.inspect("one")["ExecIDs"]
                .as_array()
                .is_none_or(|execs| execs.len() <= 1)
        });
    });
}

#[test]
fn pauses_and_exits_interrupt_checks() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let flags = ["--health-cmd", "echo hi", "--health-interval", "200ms"];
        cli.up("one", &flags, &["sleep", "600"]);
        await_status(engine, "one", "healthy");
        let mut events = engine.events("");
        cli.run(&["pause", "one"]).ok();
        let paused = health(engine, "one");
        // As Docker shows it.
        assert_eq!(
            (&paused["Status"], &paused["FailingStreak"]),
            (&json!("unhealthy"), &json!(0))
        );
        assert!(ps_status(cli, "one").ends_with("(Paused)"));
        stays("no check", Duration::from_millis(700), || {
            health(engine, "one") == paused
        });
        cli.run(&["unpause", "one"]).ok();
        await_status(engine, "one", "healthy");
        let seen = events.until("health_status: healthy");
        assert!(
            !seen.iter().any(|line| line.contains("unhealthy")),
            "{seen:?}"
        );
        await_results(engine, "one", 5);
        cli.run(&["stop", "-t", "0", "one"]).ok();
        let stopped = health(engine, "one");
        assert_eq!(
            (&stopped["Status"], stopped["Log"].as_array().map(Vec::len)),
            (&json!("unhealthy"), Some(5))
        );
        stays("no check", Duration::from_millis(500), || {
            health(engine, "one") == stopped
        });
        engine.await_state("one", "exited");
        let mut events = engine.events("");
        cli.run(&["start", "one"]).ok();
        await_status(engine, "one", "healthy");
        events.until("start");
        events.until("health_status: healthy");
    });
}

#[test]
fn a_check_that_takes_too_long_is_killed_with_its_children() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let sleep = mark(1);
        let script = format!("trap '' TERM INT HUP; echo x; sleep {sleep} & sleep {sleep}");
        let flags = [
            "--health-cmd",
            &script,
            "--health-interval",
            "100ms",
            "--health-timeout",
            "300ms",
            "--health-retries",
            "1",
        ];
        cli.up("slow", &flags, &["sleep", "600"]);
        await_status(engine, "slow", "unhealthy");
        let expected = "Health check exceeded timeout (300ms): x\n";
        await_given_up(engine, "slow", |output| output == expected);
        // Never more than those of the check that runs, also while it is being replaced.
        stays("few processes", Duration::from_secs(2), || {
            processes_with(&sleep).len() <= 2
        });
        cli.run(&["pause", "slow"]).ok();
        cli.run(&["unpause", "slow"]).ok();
        stays("few processes", Duration::from_secs(1), || {
            processes_with(&sleep).len() <= 2
        });
        cli.run(&["rm", "-f", "slow"]).ok();
        assert_eq!(processes_with(&sleep), [0; 0]);
        // Its own end is quick, but a child has its output: it is given up like one that hangs.
        let sleep = mark(2);
        let script = format!("sleep {sleep} & echo bg");
        let flags = [
            "--health-cmd",
            &script,
            "--health-interval",
            "100ms",
            "--health-timeout",
            "300ms",
        ];
        cli.up("child", &flags, &["sleep", "600"]);
        let expected = "Health check exceeded timeout (300ms): bg\n";
        await_given_up(engine, "child", |output| output == expected);
        stays("few processes", Duration::from_secs(2), || {
            processes_with(&sleep).len() <= 1
        });
    });
}

#[test]
fn only_the_beginning_of_the_output_is_kept() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let up = |name: &str, script: &str, timeout: &str| {
            let flags = [
                "--health-cmd",
                script,
                "--health-interval",
                "100ms",
                "--health-timeout",
                timeout,
                "--health-retries",
                "1",
            ];
            cli.up(name, &flags, &["sleep", "600"]);
        };
        up("endless", "yes", "1s");
        up(
            "long",
            "head -c 3000000 /dev/zero | tr '\\000' a; exit 3",
            "30s",
        );
        up("exact", "head -c 4096 /dev/zero | tr '\\000' a", "30s");
        up("binary", "printf 'a\\377b'; kill -9 $$", "30s");
        let output = |name: &str| {
            let result = await_results(engine, name, 1)[0].clone();
            let output = result["Output"].as_str().unwrap().to_owned();
            (result["ExitCode"].as_i64().unwrap(), output)
        };
        assert_eq!(output("long"), (3, format!("{}...", "a".repeat(4096))));
        assert_eq!(output("exact"), (0, "a".repeat(4096)));
        assert_eq!(output("binary"), (137, "a\u{fffd}b".into()));
        let prefix = "Health check exceeded timeout (1s): y\ny\n";
        let text = await_given_up(engine, "endless", |output| {
            output.starts_with(prefix) && output.ends_with("...")
        });
        assert!(text.len() < 4200, "{}", text.len());
        cli.run(&["rm", "-f", "endless", "long", "exact", "binary"])
            .ok();
    });
}

#[test]
fn a_check_is_an_exec_of_the_container() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let flags = [
        "--health-cmd",
        "id -u; id -g; pwd; echo $A",
        "--health-interval",
        "100ms",
        "-u",
        "7:8",
        "-w",
        "/tmp",
        "-e",
        "A=b",
    ];
    cli.up("one", &flags, &["sleep", "600"]);
    assert_eq!(
        await_results(&engine, "one", 1)[0]["Output"],
        "7\n8\n/tmp\nb\n"
    );
    let create = |name: &str, test: Value| {
        let check = json!({"Test": test, "Interval": 100_000_000, "Retries": 1});
        engine.create(
            name,
            &json!({
                "Image": "busybox", "Cmd": ["sleep", "600"], "Shell": ["/bin/sh", "-ec"],
                "Healthcheck": check, "HostConfig": {"NetworkMode": "none"},
            }),
        );
        engine.whelk(&["start", name]).ok();
    };
    create(
        "shell",
        json!(["CMD-SHELL", "echo $0 $1; false; echo", "x", "y"]),
    );
    create(
        "words",
        json!(["CMD", "sh", "-c", "echo $0; exit 2", "a b"]),
    );
    create("missing", json!(["CMD", "nosuch", "a"]));
    create("empty", json!(["CMD"]));
    let result = |name: &str| {
        let result = await_results(&engine, name, 1)[0].clone();
        let output = result["Output"].as_str().unwrap().to_owned();
        (result["ExitCode"].as_i64().unwrap(), output)
    };
    assert_eq!(result("shell"), (1, "x y\n".into()));
    assert_eq!(result("words"), (2, "a b\n".into()));
    let (code, text) = result("missing");
    assert!(
        code == -1 && text.contains("exec: \"nosuch\": executable file not found in $PATH"),
        "{text}"
    );
    assert_eq!(
        result("empty"),
        (-1, "the health check has no command".into())
    );
    create("none", json!(["NONE"]));
    assert_eq!(health(&engine, "none"), Value::Null);
    assert_eq!(listed(cli, "none"), "none");
}

#[test]
fn an_image_has_a_check() {
    let engine = Engine::start();
    let check = "HEALTHCHECK --interval=200ms --retries=4 CMD echo from the image";
    let root = images::small_root().finish();
    engine.import("checked", &[check, "CMD [\"sleep\", \"600\"]"], &root);
    engine.both(|cli| {
        let run = |name: &str, flags: &[&str]| {
            let args = ["run", "-d", "--network", "none", "--name", name];
            cli.run(&[&args[..], flags, &["checked"]].concat()).ok();
            engine.inspect(name)["Config"]["Healthcheck"].clone()
        };
        let of_image = json!(["CMD-SHELL", "echo from the image"]);
        assert_eq!(
            run("all", &[]),
            json!({"Test": of_image, "Interval": 200_000_000, "Retries": 4})
        );
        assert_eq!(
            run("part", &["--health-timeout", "30s", "--health-retries", "1"]),
            json!({
                "Test": of_image, "Interval": 200_000_000, "Timeout": 30_000_000_000_u64, "Retries": 1,
            })
        );
        assert_eq!(
            run("other", &["--health-cmd", "echo mine"])["Test"],
            json!(["CMD-SHELL", "echo mine"])
        );
        assert_eq!(run("without", &["--no-healthcheck"])["Test"], json!(["NONE"]));
        assert_eq!(await_results(&engine, "part", 1)[0]["Output"], "from the image\n");
        assert_eq!(await_results(&engine, "other", 1)[0]["Output"], "mine\n");
        assert_eq!(listed(cli, "none"), "without");
    });
}

#[test]
fn invalid_checks_have_dockers_texts() {
    Engine::start().both(|cli| {
        for (flags, text) in [
            (&["--health-interval", "-1s"][..], "--health-interval cannot be negative"),
            (&["--health-timeout", "-1s"], "--health-timeout cannot be negative"),
            (&["--health-retries", "-1"], "--health-retries cannot be negative"),
            (&["--health-start-period", "-1s"], "--health-start-period cannot be negative"),
            (&["--health-start-interval", "-1s"], "--health-start-interval cannot be negative"),
            (
                &["--health-interval", "x"],
                "invalid argument \"x\" for \"--health-interval\" flag: time: invalid duration \"x\"",
            ),
            (
                &["--health-retries", "x"],
                "invalid argument \"x\" for \"--health-retries\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
            ),
            (
                &["--no-healthcheck", "--health-cmd", "x"],
                "--no-healthcheck conflicts with --health-* options",
            ),
            (
                &["--no-healthcheck", "--health-retries", "1"],
                "--no-healthcheck conflicts with --health-* options",
            ),
            (
                &["--health-interval", "1us"],
                "Interval in Healthcheck cannot be less than 1ms",
            ),
            (
                &["--health-cmd", "x", "--health-start-interval", "1us"],
                "StartInterval in Healthcheck cannot be less than 1ms",
            ),
        ] {
            cli.run(&[&["run"], flags, &["busybox", "true"]].concat())
                .refuses(125, text);
        }
    });
}

#[test]
fn versions_differ() {
    let engine = Engine::start();
    engine.create(
        "one",
        &json!({
            "Image": "busybox", "Cmd": ["sleep", "600"],
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 100_000_000},
        }),
    );
    let listed = |version: &str| engine.get(&format!("{version}/containers/json?all=1"))[0].clone();
    assert_eq!(
        listed("/v1.52")["Health"],
        json!({"Status": "none", "FailingStreak": 0})
    );
    assert!(listed("/v1.51").get("Health").is_none());
    engine.whelk(&["start", "one"]).ok();
    await_status(&engine, "one", "healthy");
    assert_eq!(
        listed("/v1.52")["Health"],
        json!({"Status": "healthy", "FailingStreak": 0})
    );
    let body = json!({
        "Image": "busybox", "Healthcheck": {"Test": ["CMD", "true"], "StartInterval": 2_000_000},
    });
    let shown = |version: &str, name: &str| {
        let path = format!("{version}/containers/create?name={name}");
        assert_eq!(engine.api("POST", &path, Some(&body)).0, 201);
        engine.inspect(name)["Config"]["Healthcheck"]["StartInterval"].clone()
    };
    assert_eq!(shown("/v1.43", "old"), Value::Null);
    assert_eq!(shown("/v1.44", "new"), 2_000_000);
}

#[test]
fn checks_go_on_after_the_engine_was_killed() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let sleep = mark(3);
    let up = |name: &str, script: &str| {
        let flags = [
            "--health-cmd",
            script,
            "--health-interval",
            "200ms",
            "--health-retries",
            "1",
            "--health-timeout",
            "1h",
        ];
        cli.up(name, &flags, &["sleep", "600"]);
    };
    up("good", "true");
    up("bad", "test -e /ok");
    up("paused", "true");
    up("ended", "true");
    up("stuck", &format!("sleep {sleep} & sleep {sleep}"));
    for (name, wanted) in [
        ("good", "healthy"),
        ("bad", "unhealthy"),
        ("paused", "healthy"),
        ("ended", "healthy"),
    ] {
        await_status(&engine, name, wanted);
    }
    eventually("the check that hangs", || {
        (processes_with(&sleep).len() == 2).then_some(())
    });
    cli.run(&["pause", "paused"]).ok();
    let ended = engine.pid("ended");
    engine.kill9();
    eventually("its processes to go", || {
        processes_with(&sleep).is_empty().then_some(())
    });
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(ended).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("its end", || {
        (!whelk_tests::processes::is_alive(ended)).then_some(())
    });
    engine.restart();
    // Unlike with Docker, the status is known at once.
    assert_eq!(status(&engine, "good"), "healthy");
    assert_eq!(status(&engine, "bad"), "unhealthy");
    assert_eq!(status(&engine, "paused"), "unhealthy");
    engine.await_state("ended", "exited");
    assert_eq!(status(&engine, "ended"), "unhealthy");
    cli.run(&["exec", "bad", "touch", "/ok"]).ok();
    await_status(&engine, "bad", "healthy");
    cli.run(&["unpause", "paused"]).ok();
    await_status(&engine, "paused", "healthy");
    eventually("another check", || {
        (processes_with(&sleep).len() == 2).then_some(())
    });
    assert_eq!(status(&engine, "stuck"), "starting");
    cli.run(&["stop", "-t", "0", "stuck"]).ok();
    assert_eq!(processes_with(&sleep), [0; 0]);
}

#[test]
fn an_unhealthy_container_is_killed_stopped_or_restarted() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let up = |name: &str, action: &str, more: &[&str]| {
        let flags = [
            "--health-cmd",
            "false",
            "--health-interval",
            "300ms",
            "--health-retries",
            "2",
            "--health-on-failure",
            action,
        ];
        cli.up(name, &[&flags[..], more].concat(), &["sleep", "600"]);
    };
    up("none", "none", &[]);
    up("kill", "kill", &[]);
    up("again", "kill", &["--restart", "on-failure"]);
    up(
        "stop",
        "stop",
        &["--stop-signal", "KILL", "--restart", "always"],
    );
    up("restart", "restart", &["--stop-signal", "KILL"]);
    let first = engine.inspect("restart")["State"]["StartedAt"].clone();
    assert_eq!(
        engine.inspect("stop")["Config"]["Healthcheck"]["OnFailure"],
        "stop"
    );
    assert!(
        engine.inspect("none")["Config"]["Healthcheck"]
            .get("OnFailure")
            .is_none()
    );
    engine.await_state("kill", "exited");
    assert_eq!(engine.inspect("kill")["State"]["ExitCode"], 137);
    engine.await_state("stop", "exited");
    eventually("a restart by the policy", || {
        (engine.inspect("again")["RestartCount"].as_i64() >= Some(1)).then_some(())
    });
    eventually("a restart", || {
        (engine.inspect("restart")["State"]["StartedAt"] != first).then_some(())
    });
    await_status(&engine, "restart", "starting");
    await_status(&engine, "none", "unhealthy");
    stays("it is left alone", Duration::from_millis(500), || {
        engine.state("none") == "running"
            && engine.state("stop") == "exited"
            && engine.state("kill") == "exited"
    });
    cli.run(&["run", "--health-cmd", "x", "--health-on-failure", "die", "busybox", "true"])
        .refuses(125, "unknown action for an unhealthy container 'die': expected 'none', 'kill', 'restart' or 'stop'");
}

#[test]
fn checks_do_not_push_out_other_events() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let mut live = engine.events("");
    cli.up(
        "checked",
        &["--health-cmd", "true", "--health-interval", "2ms"],
        &["sleep", "600"],
    );
    // More than are remembered, if those of checks counted.
    let mut seen = 0;
    while seen < 1200 {
        seen += usize::from(live.next_event().is_some());
    }
    cli.run(&["rm", "-f", "checked"]).ok();
    let until = whelk_tests::now_nanos() / 1_000_000_000 + 1;
    let past = engine.events(&format!("since=1&until={until}")).all();
    assert!(
        past.iter().any(|event| event == "container create"),
        "{} events",
        past.len()
    );
    assert!(
        past.iter().any(|event| event == "container exec_die"),
        "{} events",
        past.len()
    );
}
