//! Export and import, and changes of the configuration on import.

use std::fs;

use serde_json::json;
use whelk_tests::tar::{self, Tar};
use whelk_tests::{Engine, Program, eventually};

#[test]
fn a_container_exported_and_imported_is_an_image() {
    Engine::start().both(|cli| {
        cli.up(
            "source",
            &[],
            &[
                "sh",
                "-c",
                "echo made >/made; rm /etc/group; exec sleep 600",
            ],
        );
        cli.engine().await_state("source", "running");
        eventually("the program to have done it", || {
            (cli.run(&["exec", "source", "ls", "/etc/group"]).code != 0).then_some(())
        });
        let exported = cli.run(&["export", "source"]);
        assert_eq!(exported.code, 0, "{}", exported.err());
        let entries = tar::read(&exported.stdout);
        assert_eq!(tar::file(&exported.stdout, "made"), b"made\n");
        assert!(
            !entries.iter().any(|entry| entry.path == "etc/group")
                && entries.iter().any(|entry| entry.path == "bin/busybox")
        );
        let id = cli
            .feed(
                &[
                    "import",
                    "--change",
                    "CMD [\"cat\", \"/made\"]",
                    "--change",
                    "ENV A=b",
                    "-",
                    "flat:1",
                ],
                &exported.stdout,
            )
            .ok();
        assert_eq!(cli.run(&["images", "-q", "--no-trunc", "flat:1"]).ok(), id);
        assert_eq!(
            cli.run(&["run", "--rm", "--network", "none", "flat:1"])
                .ok(),
            "made"
        );
        assert_eq!(
            cli.run(&[
                "image",
                "inspect",
                "-f",
                "{{json .Config.Env}} {{len .RootFS.Layers}}",
                "flat:1"
            ])
            .ok(),
            "[\"A=b\"] 1"
        );
        let file = cli
            .engine()
            .scratch("export")
            .join("x.tar")
            .display()
            .to_string();
        cli.run(&["export", "-o", &file, "source"]).ok();
        cli.run(&["import", &file]).ok();
        cli.run(&["rmi", "flat:1"]).ok();
    });
}

#[test]
fn changes_follow_the_rules_of_dockerfiles() {
    let engine = Engine::without_images(&[]);
    let config = |changes: &[&str]| {
        engine.import("changed", changes, &Tar::new().file("x", "x").finish());
        engine.get("/images/changed/json")["Config"].clone()
    };
    let found = config(&[
        "ENV P=/a",
        "ENV P=$P:/x Q=${P}:b",
        "WORKDIR x",
        "WORKDIR y",
        "EXPOSE 90-92 53/udp",
        "LABEL \"a b\"=c",
    ]);
    assert_eq!(found["Env"], json!(["P=/a:/x", "Q=/a:b"]));
    assert_eq!(
        (&found["WorkingDir"], &found["Labels"]),
        (&json!("/x/y"), &json!({"a b": "c"}))
    );
    assert_eq!(
        found["ExposedPorts"],
        json!({"53/udp": {}, "90/tcp": {}, "91/tcp": {}, "92/tcp": {}})
    );
    let found = config(&[
        "HEALTHCHECK --interval=5s --retries=3 CMD echo a",
        "ENTRYPOINT [\"e\"]",
        "CMD c d",
        "ONBUILD RUN x",
    ]);
    assert_eq!(
        found["Healthcheck"],
        json!({"Test": ["CMD-SHELL", "echo a"], "Interval": 5_000_000_000_i64, "Retries": 3})
    );
    assert_eq!(
        (&found["Entrypoint"], &found["Cmd"]),
        (&json!(["e"]), &json!(["/bin/sh", "-c", "c d"]))
    );
    assert_eq!(found["OnBuild"], json!(["RUN x"]));
    let archive = Tar::new().file("x", "x").finish();
    engine.both(|cli| {
        cli.feed(
            &[
                "import",
                "-c",
                "USER 5:6",
                "-c",
                "STOPSIGNAL SIGUSR1",
                "-c",
                "VOLUME /v",
                "-",
                "by-cli",
            ],
            &archive,
        )
        .ok();
        let found = &cli.engine().get("/images/by-cli/json")["Config"];
        assert_eq!(
            (&found["User"], &found["StopSignal"], &found["Volumes"]),
            (&json!("5:6"), &json!("SIGUSR1"), &json!({"/v": {}}))
        );
        for (change, text) in [
            ("RUN x", "RUN is not a valid change command"),
            ("STOPSIGNAL FOO", "invalid signal: FOO"),
            ("EXPOSE x", "invalid containerPort: x"),
            ("ENV A", "ENV must have two arguments"),
        ] {
            cli.feed(&["import", "-c", change, "-", "refused"], &archive)
                .refuses(1, text);
        }
        cli.run(&["image", "inspect", "refused"])
            .refuses(1, "No such image");
    });
}

/// Returns a function that returns what the kernel has logged since this call.
fn kernel_log() -> impl FnOnce() -> String {
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open("/dev/kmsg")
        .unwrap();
    log.seek(SeekFrom::End(0)).unwrap();
    move || {
        let mut text = Vec::new();
        let mut record = [0; 8192];
        while let Ok(count) = log.read(&mut record) {
            text.extend_from_slice(&record[..count]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[test]
fn a_running_container_is_exported_from_its_mounted_root() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up(
        "runs",
        &["--tmpfs", "/scratch", "-v", "/data"],
        &[
            "sh",
            "-c",
            "echo new >/new; echo no >/scratch/x; rm /etc/group; exec sleep 600",
        ],
    );
    eventually("the program to have done it", || {
        (cli.run(&["exec", "runs", "ls", "/etc/group"]).code != 0).then_some(())
    });
    // Another engine may cause a warning of the kernel at the same time, but not in every round.
    let quiet = (0..5).any(|_| {
        let log = kernel_log();
        let exported = tar::read(&cli.run(&["export", "runs"]).stdout);
        let names: Vec<&str> = exported.iter().map(|entry| entry.path.as_str()).collect();
        assert!(
            names.contains(&"new")
                && names.contains(&"bin/busybox")
                && names.contains(&"scratch")
                && names.contains(&"data"),
            "{names:?}"
        );
        assert!(
            !names.contains(&"scratch/x")
                && !names.contains(&"etc/group")
                && !names.iter().any(|name| name.starts_with("proc/"))
        );
        !log().contains("is in-use")
    });
    assert!(quiet, "overlay warns that a directory is mounted twice");
    cli.run(&["kill", "runs"]).ok();
    engine.await_state("runs", "exited");
    assert_eq!(
        tar::file(&cli.run(&["export", "runs"]).stdout, "new"),
        b"new\n"
    );
}
