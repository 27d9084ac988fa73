//! Images with malicious users, environment variables and configurations.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::time::{Duration, Instant};

use serde_json::json;
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program, images};

const RANGE: &str = "uids and gids must be in range 0-2147483647";

#[test]
fn user_numbers_do_not_wrap() {
    // CVE-2024-40635
    let engine = Engine::start();
    engine.both(|cli| {
        for user in [
            "4294967296",
            "4294967295",
            "2147483648",
            "-1",
            "0:4294967296",
        ] {
            cli.sh(&[&format!("--user={user}")], "id")
                .refuses(125, RANGE);
        }
        cli.sh(&["--group-add", "99999999999"], "id")
            .refuses(125, RANGE);
        cli.sh(&["--user", "0x0"], "id").refuses(
            125,
            "unable to find user 0x0: no matching entries in passwd file",
        );
        assert_eq!(
            cli.sh(&["--user", "2147483647"], "id -u").ok(),
            "2147483647"
        );
        cli.up("up", &[], &["sleep", "600"]);
        cli.run(&["exec", "--user", "4294967296", "up", "id"])
            .refuses(1, RANGE);
        assert_eq!(
            cli.run(&["ps", "-aq"]).ok().lines().count(),
            1,
            "the refused ones are gone"
        );
    });
    for user in ["4294967296", "-1"] {
        engine.import(
            "user",
            &[&format!("USER {user}")],
            &images::small_root().finish(),
        );
        let output = engine.docker(&["run", "--rm", "--network", "none", "user", "id", "-u"]);
        output.refuses(125, RANGE);
        assert_eq!(output.out(), "", "USER {user}");
    }
}

#[test]
fn numeric_users_are_not_looked_up_by_name() {
    // CVE-2026-46680
    let engine = Engine::start();
    let users = "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:trap:/:/bin/sh\n";
    let root = images::bare_root()
        .dir("etc")
        .dir("proc")
        .dir("dev")
        .dir("sys")
        .file("etc/passwd", users)
        .file("etc/group", "root:x:0:\n1000:x:0:\n");
    engine.import("named", &["USER 1000:1000"], &root.finish());
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        assert_eq!(
            cli.run(&[
                "run",
                "--rm",
                "--network",
                "none",
                "named",
                "sh",
                "-c",
                "id -u; id -g"
            ])
            .ok(),
            "1000\n1000"
        );
        assert_eq!(
            cli.run(&[
                "run",
                "--rm",
                "--network",
                "none",
                "--user",
                "1000",
                "named",
                "id",
                "-u"
            ])
            .ok(),
            "1000"
        );
    }
}

#[test]
fn special_or_huge_user_files_do_not_block_the_engine() {
    // CVE-2026-47262
    let engine = Engine::start();
    let line = vec![b'a'; 48 << 20];
    let lines = "nobody:x:1:1::/:/bin/sh\n".repeat(2 << 20);
    let with = |fill: &dyn Fn(Tar) -> Tar| {
        fill(
            images::bare_root()
                .dir("etc")
                .dir("proc")
                .dir("dev")
                .dir("sys"),
        )
        .finish()
    };
    let archives = [
        (
            "a pipe",
            with(&|root: Tar| root.fifo("etc/passwd").fifo("etc/group")),
        ),
        (
            "a device",
            with(&|root: Tar| root.device("etc/passwd", 1, 5).device("etc/group", 1, 5)),
        ),
        (
            "one endless line",
            with(&|root: Tar| root.file("etc/passwd", &line).file("etc/group", &line)),
        ),
        (
            "millions of lines",
            with(&|root: Tar| root.file("etc/passwd", &lines).file("etc/group", &lines)),
        ),
        (
            "a directory",
            with(&|root: Tar| root.dir("etc/passwd").dir("etc/group")),
        ),
        (
            "a link to itself",
            with(&|root: Tar| {
                root.symlink("etc/passwd", "passwd")
                    .symlink("etc/group", "/etc/group")
            }),
        ),
    ];
    for (what, archive) in archives {
        engine.import("users", &[], &archive);
        for flags in [
            ["--user", "somebody"],
            ["--user", "5"],
            ["--group-add", "some"],
        ] {
            let begin = Instant::now();
            let output = engine.whelk(&[
                "run",
                "--rm",
                "--network",
                "none",
                flags[0],
                flags[1],
                "users",
                "id",
                "-u",
            ]);
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{what}, {flags:?}: {:?}",
                begin.elapsed()
            );
            let told = output.err();
            let fine = output.code == 125 && told.contains("read /etc/passwd in the container: ")
                || flags[1] == "5" && output.out() == "5\n";
            assert!(fine, "{what}, {flags:?}: {} {told}", output.code);
        }
    }
    // The engine still works.
    assert_eq!(engine.cli(Program::Whelk).sh(&[], "echo fine").ok(), "fine");
}

#[test]
fn the_engines_environment_does_not_leak() {
    // CVE-2026-57231: an entry without "=" was filled in from the engine's own environment.
    let engine = Engine::with_env(&[("WHELK_TEST_SECRET", "leaked-7f3a")]);
    let root = images::small_root().finish();
    for entry in [
        "WHELK_TEST_SECRET",
        "WHELK_TEST_*",
        "*",
        "",
        "=",
        "A\nWHELK_TEST_SECRET",
    ] {
        let mut archive = images::Archive::new("leak", vec![root.clone()]);
        archive.config["Env"] = json!(["PATH=/bin", entry, "B=c"]);
        let answer = engine.try_load(&archive.build());
        if answer.status != 200 || answer.text().contains("\"error\"") {
            continue;
        }
        for program in [Program::Docker, Program::Whelk] {
            let output =
                engine
                    .cli(program)
                    .run(&["run", "--rm", "--network", "none", "leak", "env"]);
            assert!(
                !output.out().contains("leaked-7f3a"),
                "{entry:?}: {}",
                output.out()
            );
        }
        engine.docker(&["rmi", "-f", "leak"]).ok();
    }
    for entry in ["WHELK_TEST_SECRET", "PATH"] {
        engine.create("asked", &json!({"Image": "busybox", "Cmd": ["/bin/env"], "Env": [entry], "HostConfig": {"NetworkMode": "none"}}));
        let output = engine.docker(&["start", "-a", "asked"]);
        assert!(!output.out().contains("leaked-7f3a"), "{}", output.out());
        engine.docker(&["rm", "asked"]).ok();
    }
}

#[test]
fn nul_bytes_do_not_truncate_strings() {
    let engine = Engine::start();
    let body = |env: &str, cmd: &str| json!({"Image": "busybox", "Env": [env], "Cmd": ["sh", "-c", "env; echo $0 $1", cmd, "end"], "HostConfig": {"NetworkMode": "none"}});
    for (name, body) in [
        ("env", body("A=b\u{0}INJECTED=yes", "x")),
        ("cmd", body("A=b", "x\u{0}INJECTED")),
    ] {
        let (status, answer) = engine.api(
            "POST",
            &format!("/containers/create?name={name}"),
            Some(&body),
        );
        if status == 400 {
            continue;
        }
        assert_eq!(status, 201, "{answer}");
        let output = engine.docker(&["start", "-a", name]);
        assert!(
            output.code != 0 || !output.out().contains("INJECTED=yes\n"),
            "{name}: {}",
            output.out()
        );
    }
}

#[test]
fn labels_of_an_image_have_no_effect() {
    // CVE-2026-53488: a label of the image was taken for one of the engine's own.
    let engine = Engine::start();
    let marker = engine.scratch("labels").join("ran");
    let uri = format!("binary:///bin/touch?{}", marker.display());
    let mut archive = images::Archive::new("labels", vec![images::small_root().finish()]);
    archive.config["Labels"] = json!({
        "containerd.io/restart.loguri": uri, "io.containerd.image.log.uri": uri, "log.uri": uri, "runtime": "/bin/false", "privileged": "true",
        "whelk.privileged": "true", "com.docker.network.mode": "host", "org.opencontainers.runtime": "/bin/false",
    });
    engine.load(&archive.build());
    let output = engine.docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "labels",
        "grep",
        "CapEff",
        "/proc/self/status",
    ]);
    assert_eq!(
        output.ok().split_whitespace().last(),
        Some("00000000a80425fb")
    );
    assert!(!marker.exists());
    let labels = &engine.get("/images/labels/json")["Config"]["Labels"];
    assert_eq!(
        labels["privileged"], "true",
        "they are kept for people to read"
    );
}
