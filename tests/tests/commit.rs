//! Images from the changes of containers, as recorded with Docker 28.5.2.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use serde_json::{Value, json};
use whelk_tests::{Cli, Engine, Program, eventually};

fn image(engine: &Engine, name: &str) -> Value {
    engine.get(&format!("/images/{name}/json"))
}

#[track_caller]
fn commit(cli: Cli<'_>, args: &[&str]) -> String {
    let id = cli.run(&[&["commit"], args].concat()).ok();
    assert!(id.starts_with("sha256:"), "{id}");
    id
}

#[test]
fn changes_become_a_layer() {
    let engine = Engine::start();
    engine.both(|cli| {
        let script = "echo hi > /f; ln /f /g; rm /etc/passwd; rm -rf /var/www; rm -rf /home; mkdir -m 700 /home; echo q > /home/x; mkfifo /ff; chown 5:6 /g; chmod 4755 /f; echo z > /vol/x; ln -s f /l; echo ready; sleep 600";
        cli.up("box", &["-v", "/vol"], &["sh", "-c", script]);
        engine.await_log("box", "ready");
        let id = commit(cli, &["-a", "me <me@example.org>", "-m", "what for", "box", "made:one"]);
        assert_eq!(engine.state("box"), "running");
        let look = "cd /; stat -c '%N %a %u %g %h' f g ff l home home/x; cat f; ls -A vol home; ls etc/passwd var/www 2>/dev/null | wc -l";
        let expected = "f 4755 5 6 2\ng 4755 5 6 2\nff 644 0 0 1\nl -> f 777 0 0 1\nhome 700 0 0 1\nhome/x 644 0 0 1\nhi\nhome:\nx\n\nvol:\n0";
        let shown = cli.once("made:one", &["sh", "-c", look]).ok();
        let shown = shown.replace('\'', "").replace("home 700 0 0 2", "home 700 0 0 1");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&shown), sorted(expected));
        let made = image(&engine, "made:one");
        assert_eq!(
            (&made["Id"], &made["Author"], &made["Comment"]),
            (&json!(id), &json!("me <me@example.org>"), &json!("what for"))
        );
        assert_eq!(made["Parent"], image(&engine, "busybox")["Id"]);
        // An archive of both says so, too.
        let archive = engine.scratch_text("saved") + "/archive.tar";
        cli.run(&["save", "-o", &archive, "busybox", "made:one"]).ok();
        cli.run(&["rmi", "made:one"]).ok();
        cli.run(&["load", "-q", "-i", &archive]).ok();
        assert_eq!(image(&engine, "made:one")["Parent"], made["Parent"]);
        let layers = |name: &str| image(&engine, name)["RootFS"]["Layers"].as_array().unwrap().clone();
        let (below, all) = (layers("busybox"), layers("made:one"));
        assert_eq!((all.len(), &all[..below.len()]), (below.len() + 1, &below[..]));
        let history = cli.run(&["history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Comment}}", "made:one"]).ok();
        assert_eq!(history.lines().next().unwrap(), format!("sh -c {script}|what for"));
        // A stopped one, and one without changes.
        cli.run(&["kill", "box"]).ok();
        engine.await_state("box", "exited");
        let second = commit(cli, &["box"]);
        assert_eq!(layers(&second), all);
        cli.run(&["create", "--name", "new", "busybox"]).ok();
        let third = commit(cli, &["new"]);
        assert_eq!(layers(&third), below);
        cli.run(&["rm", "-v", "box", "new"]).ok();
        for id in [id, second, third] {
            cli.run(&["rmi", "-f", &id]).ok();
        }
        assert_eq!(std::fs::read_dir(engine.root().join("layers")).unwrap().count(), below.len());
    });
}

#[test]
fn a_removal_meanwhile_takes_nothing_from_the_image() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let mut made = 0;
    for milliseconds in [1, 5, 20, 60, 150, 600, 2400, 9600] {
        // More time only if the commits before were slower.
        if milliseconds > 150 && made > 0 {
            break;
        }
        let script = "mkdir /d; cd /d; for i in $(seq 4000); do : > $i; done";
        cli.run(&[
            "run",
            "--network",
            "none",
            "--name",
            "box",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| cli.run(&["commit", "box", "made"]));
            std::thread::sleep(std::time::Duration::from_millis(milliseconds));
            cli.run(&["rm", "box"]).ok();
            let commit = commit.join().unwrap();
            if commit.code == 0 {
                made += 1;
                assert_eq!(
                    cli.once("made", &["sh", "-c", "ls /d | wc -l"]).ok(),
                    "4000"
                );
                cli.run(&["rmi", "made"]).ok();
            } else {
                commit.refuses(1, "No such container");
            }
        });
    }
    assert!(made > 0, "no commit was faster than the removal");
}

#[test]
fn instructions_change_the_configuration() {
    let engine = Engine::start();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    engine.both(|cli| {
        cli.run(&[
            "create",
            "--name",
            "box",
            "-e",
            "A=1",
            "-l",
            "l=1",
            "--expose",
            "80",
            "--entrypoint",
            "/bin/sh",
            "-v",
            "/cv",
            "-w",
            "/w",
            "--user",
            "5",
            "busybox",
            "-c",
            "echo hi",
        ])
        .ok();
        let check = |changes: &[&str], expected: &[(&str, Value)]| {
            let flags: Vec<&str> = changes.iter().flat_map(|change| ["-c", *change]).collect();
            commit(cli, &[&flags[..], &["box", "made"]].concat());
            let config = image(&engine, "made")["Config"].clone();
            for (key, value) in expected {
                assert_eq!(&config[key], value, "{changes:?} {key}: {config}");
            }
        };
        check(
            &[],
            &[
                ("User", json!("5")),
                ("ExposedPorts", json!({"80/tcp": {}})),
                ("Env", json!(["A=1", path])),
                ("Entrypoint", json!(["/bin/sh"])),
                ("Cmd", json!(["-c", "echo hi"])),
                ("Volumes", json!({"/cv": {}})),
                ("WorkingDir", json!("/w")),
                ("Labels", json!({"l": "1"})),
            ],
        );
        check(
            &[
                "CMD [\"a\",\"b\"]",
                "ENV B=2 C=3",
                "EXPOSE 8080/udp",
                "LABEL x=y z=\"a b\"",
                "ONBUILD RUN foo",
                "USER joe",
                "VOLUME /vv",
                "WORKDIR rel",
                "STOPSIGNAL SIGUSR1",
                "HEALTHCHECK --interval=5s CMD true",
                "ENTRYPOINT echo x",
            ],
            &[
                ("User", json!("joe")),
                ("ExposedPorts", json!({"80/tcp": {}, "8080/udp": {}})),
                ("Env", json!(["A=1", path, "B=2", "C=3"])),
                ("Entrypoint", json!(["/bin/sh", "-c", "echo x"])),
                ("Cmd", json!(["a", "b"])),
                ("Volumes", json!({"/cv": {}, "/vv": {}})),
                ("WorkingDir", json!("/w/rel")),
                ("Labels", json!({"l": "1", "x": "y", "z": "a b"})),
                ("StopSignal", json!("SIGUSR1")),
                ("OnBuild", json!(["RUN foo"])),
                (
                    "Healthcheck",
                    json!({"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000_i64}),
                ),
            ],
        );
        check(
            &["CMD x y"],
            &[
                ("Entrypoint", json!(["/bin/sh"])),
                ("Cmd", json!(["/bin/sh", "-c", "x y"])),
            ],
        );
        check(
            &["ENV A=9", "LABEL l=2", "ENV D=$A"],
            &[
                ("Env", json!(["A=9", path, "D=9"])),
                ("Labels", json!({"l": "2"})),
            ],
        );
        for (change, text) in [
            ("RUN x", "RUN is not a valid change command"),
            ("FROM x", "FROM is not a valid change command"),
            ("bogus x", "bogus is not a valid change command"),
            ("ENV", "ENV requires at least one argument"),
            ("EXPOSE abc", "containerPort: abc"),
            ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
            ("", "file with no instructions"),
            ("WORKDIR", "WORKDIR requires exactly one argument"),
        ] {
            cli.run(&["commit", "-c", change, "box"]).refuses(1, text);
        }
        cli.run(&["commit", "nosuch", "x"])
            .refuses(1, "No such container: nosuch");
        cli.run(&["commit", "box", "BAD/Upper"]).refuses(
            1,
            "invalid reference format: repository name (Upper) must be lowercase",
        );
        cli.run(&["commit", "box", "sha256:aa"]).refuses(
            1,
            "refusing to create an ambiguous tag using digest algorithm as name",
        );
        cli.run(&["commit"])
            .refuses(1, "requires at least 1 and at most 2 arguments");
    });
}

#[test]
fn the_container_is_paused_meanwhile() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.up("box", &[], &["sleep", "600"]);
    let mut events = engine.events("");
    commit(cli, &["box", "made:run"]);
    assert_eq!(
        events.until("commit"),
        [
            "container pause",
            "image create",
            "image tag",
            "container commit"
        ]
    );
    commit(cli, &["--pause=false", "box"]);
    assert_eq!(
        events.until("commit"),
        ["container unpause", "image create", "container commit"]
    );
    assert_eq!(engine.state("box"), "running");
    for (path, status, text) in [
        ("/commit?container=nosuch", 404, "No such container: nosuch"),
        ("/commit", 400, "invalid name or ID supplied: \"\""),
    ] {
        let (found, answer) = engine.api("POST", path, None);
        assert_eq!((found, answer["message"].as_str()), (status, Some(text)));
    }
}

/// Starts the container `box`, whose commit takes a while.
fn up_large(cli: Cli<'_>, engine: &Engine) {
    let script = "head -c 150000000 /dev/urandom >/large; echo ready; exec sleep 600";
    cli.up("box", &[], &["sh", "-c", script]);
    engine.await_log("box", "ready");
}

#[test]
fn commits_at_the_same_time_share_a_pause() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    up_large(cli, &engine);
    // One of them may be late for the other.
    let is_shared = |_| {
        let mut events = engine.events("");
        std::thread::scope(|scope| {
            for name in ["made:one", "made:two"] {
                scope.spawn(move || commit(cli, &["box", name]));
            }
        });
        let seen = events.until("unpause");
        let count = |action: &str| seen.iter().filter(|event| *event == action).count();
        (count("container pause"), count("container commit")) == (1, 2)
    };
    assert!((0..3).any(is_shared));
    assert_eq!(engine.state("box"), "running");
}

#[test]
fn a_users_pause_outlasts_that_of_a_commit() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    up_large(cli, &engine);
    let record = || {
        let id = engine.inspect("box")["Id"].as_str().unwrap().to_owned();
        let path = engine
            .root()
            .join("containers")
            .join(id)
            .join("container.json");
        std::fs::read_to_string(path).unwrap()
    };
    let mut events = engine.events("");
    std::thread::scope(|scope| {
        let committed = scope.spawn(move || commit(cli, &["box", "made:one"]));
        events.until("pause");
        cli.run(&["pause", "box"]).ok();
        assert!(!committed.is_finished(), "the pause came too late");
        committed.join().unwrap();
    });
    assert_eq!(engine.state("box"), "paused");
    cli.run(&["pause", "box"]).refuses(1, "is already paused");
    eventually("the record", || {
        (!record().contains("paused_by_engine")).then_some(())
    });
    // The next engine does not end it either.
    engine.kill9();
    engine.restart();
    assert_eq!(engine.state("box"), "paused");
    cli.run(&["unpause", "box"]).ok();
    // A user ends the pause of a commit.
    let mut events = engine.events("");
    std::thread::scope(|scope| {
        let committed = scope.spawn(move || commit(cli, &["box", "made:two"]));
        events.until("pause");
        cli.run(&["unpause", "box"]).ok();
        assert!(!committed.is_finished(), "the end came too late");
        cli.run(&["pause", "box"]).ok();
        committed.join().unwrap();
    });
    assert_eq!(engine.state("box"), "paused");
    cli.run(&["unpause", "box"]).ok();
    eventually("the record", || {
        (!record().contains("paused_by_engine")).then_some(())
    });
}

/// A file with holes can be larger than the disk; an image has no holes.
#[test]
fn a_file_that_does_not_fit_is_refused_at_once() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let script = "truncate -s 4000000000000 /sparse; echo ready; exec sleep 600";
    cli.up("box", &[], &["sh", "-c", script]);
    engine.await_log("box", "ready");
    let begin = std::time::Instant::now();
    cli.run(&["commit", "box", "made"])
        .refuses(1, "export sparse: no space left on device");
    assert!(begin.elapsed() < std::time::Duration::from_secs(60));
    assert_eq!(engine.state("box"), "running");
    cli.run(&["exec", "box", "rm", "/sparse"]).ok();
    commit(cli, &["box", "made"]);
}

/// In a layer, such a name would mean that another file was removed.
#[test]
fn names_that_mark_removals_are_left_out() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let script = "mkdir /d /d/.wh..wh..opq; echo x > /d/kept; echo y > /d/.wh.kept; echo z > /d/.wh.; echo ready; exec sleep 600";
    cli.up("box", &[], &["sh", "-c", script]);
    engine.await_log("box", "ready");
    commit(cli, &["box", "made"]);
    assert_eq!(
        cli.once("made", &["sh", "-c", "ls -A /d; cat /d/kept"])
            .ok(),
        "kept\nx"
    );
}
