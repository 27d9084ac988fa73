//! Copies to and from volumes, binds and tmpfs mounts, and into what is read-only.

use std::fs;

use whelk_tests::{Cli, Engine};

fn content(cli: Cli<'_>, path: &str) -> String {
    let output = cli.run(&["cp", &format!("box:{path}"), "-"]);
    assert_eq!(output.code, 0, "{path}: {}", output.err());
    let found = whelk_tests::tar::read(&output.stdout);
    String::from_utf8_lossy(&found[0].content).trim().to_owned()
}

#[test]
fn mounts_are_part_of_the_view() {
    let engine = Engine::start();
    let host = engine.scratch("host");
    fs::write(host.join("own"), "of the host").unwrap();
    let local = engine.scratch("local").join("new");
    fs::write(&local, "copied").unwrap();
    let local = local.display().to_string();
    engine.both(|cli| {
        let bind = format!("{}:/bind", host.display());
        let flags = ["-v", "data:/data", "-v", &bind, "--tmpfs", "/scratch"];
        cli.up(
            "box",
            &flags,
            &[
                "sh",
                "-c",
                "echo v > /data/f; echo t > /scratch/f; echo ready; sleep 600",
            ],
        );
        engine.await_log("box", "ready");
        let check = |is_running: bool| {
            assert_eq!(content(cli, "/data/f"), "v");
            assert_eq!(content(cli, "/bind/own"), "of the host");
            assert!(content(cli, "/etc/hosts").contains("localhost"));
            cli.run(&["cp", &local, "box:/data/new"]).ok();
            cli.run(&["cp", &local, "box:/bind/new"]).ok();
            assert_eq!(fs::read_to_string(host.join("new")).unwrap(), "copied");
            assert_eq!(fs::metadata(host.join("own")).unwrap().len(), 11);
            fs::remove_file(host.join("new")).unwrap();
            if is_running {
                assert_eq!(content(cli, "/scratch/f"), "t");
                cli.run(&["cp", &local, "box:/scratch/new"]).ok();
                let read = cli.run(&["exec", "box", "cat", "/scratch/new", "/data/new"]);
                assert_eq!(read.ok(), "copiedcopied");
            } else {
                cli.run(&["cp", "box:/scratch/f", "-"])
                    .refuses(1, "Could not find the file /scratch/f in container box");
            }
            // Files of the kernel are not part of it.
            cli.run(&["cp", "box:/proc/cpuinfo", "-"])
                .refuses(1, "Could not find the file /proc/cpuinfo in container box");
        };
        check(true);
        cli.run(&["pause", "box"]).ok();
        assert_eq!(content(cli, "/data/f"), "v");
        cli.run(&["unpause", "box"]).ok();
        cli.run(&["kill", "box"]).ok();
        engine.await_state("box", "exited");
        check(false);
        cli.run(&["cp", &local, "box:/etc/hosts"])
            .refuses(1, "device or resource busy");
        cli.run(&["rm", "box"]).ok();
        cli.run(&["volume", "rm", "data"]).ok();
    });
}

#[test]
fn read_only_places_are_refused() {
    let engine = Engine::start();
    let local = engine.scratch("local").join("new");
    fs::write(&local, "copied").unwrap();
    let local = local.display().to_string();
    engine.both(|cli| {
        cli.run(&[
            "create",
            "--name",
            "box",
            "--read-only",
            "-v",
            "kept:/ro:ro",
            "-v",
            "used:/rw",
            "--tmpfs",
            "/tmp",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
        for is_running in [false, true] {
            if is_running {
                cli.run(&["start", "box"]).ok();
            }
            cli.run(&["cp", &local, "box:/x"])
                .refuses(1, "container rootfs is marked read-only");
            cli.run(&["cp", &local, "box:/ro/x"])
                .refuses(1, "mounted volume is marked read-only");
            cli.run(&["cp", &local, "box:/rw/x"]).ok();
            assert_eq!(content(cli, "/rw/x"), "copied");
        }
        cli.run(&["cp", &local, "box:/tmp/x"]).ok();
        assert_eq!(content(cli, "/tmp/x"), "copied");
        cli.run(&["rm", "-f", "box"]).ok();
        cli.run(&["volume", "rm", "kept", "used"]).ok();
    });
}

/// A copy into a container that has not run yet is seen by its processes.
#[test]
fn a_new_container_is_filled_before_its_start() {
    let engine = Engine::start();
    let local = engine.scratch("local").join("script");
    fs::write(&local, "echo from the copy").unwrap();
    let local = local.display().to_string();
    engine.both(|cli| {
        for flags in [
            &["create", "--name", "box"][..],
            &["create", "--rm", "--name", "box"],
        ] {
            cli.run(
                &[
                    flags,
                    &["--network", "none", "busybox", "sh", "/opt/script"],
                ]
                .concat(),
            )
            .ok();
            let directory = engine.scratch("empty").display().to_string();
            cli.run(&["cp", &directory, "box:/opt"]).ok();
            cli.run(&["cp", &local, "box:/opt/script"]).ok();
            assert_eq!(cli.run(&["start", "-a", "box"]).ok(), "from the copy");
            let _ = cli.run(&["rm", "-f", "box"]);
        }
    });
}

/// The working directory is there before the start, also if the image lacks it.
#[test]
fn a_new_container_has_its_working_directory() {
    let engine = Engine::start();
    let local = engine.scratch("local").join("file");
    fs::write(&local, "in place").unwrap();
    let local = local.display().to_string();
    engine.both(|cli| {
        let create = |directory: &str, command: &[&str]| {
            let flags = ["create", "--name", "box", "--network", "none", "-w"];
            cli.run(&[&flags[..], &[directory, "busybox"], command].concat())
                .ok();
        };
        create("/not/there", &["cat", "file"]);
        cli.run(&["cp", &local, "box:/not/there/"]).ok();
        assert_eq!(content(cli, "/not/there/file"), "in place");
        assert_eq!(cli.run(&["start", "-a", "box"]).ok(), "in place");
        cli.run(&["rm", "box"]).ok();
        // What prevents it is an error of the start.
        create("/etc/passwd", &["true"]);
        assert!(content(cli, "/etc/passwd").contains("root"));
        cli.run(&["start", "box"])
            .refuses(1, "Cannot mkdir: /etc/passwd is not a directory");
        cli.run(&["rm", "box"]).ok();
        // A read-only one can be read, not written.
        let out = engine.scratch("out");
        cli.run(&[
            "create",
            "--name",
            "box",
            "--read-only",
            "--network",
            "none",
            "-w",
            "/not/there",
            "busybox",
            "pwd",
        ])
        .ok();
        for target in ["box:/not/there/", "box:/not/there/file"] {
            cli.run(&["cp", &local, target])
                .refuses(1, "container rootfs is marked read-only");
        }
        cli.run(&["cp", "box:/not/there", &out.display().to_string()])
            .ok();
        assert!(out.join("there").is_dir());
        assert_eq!(cli.run(&["start", "-a", "box"]).ok(), "/not/there");
        cli.run(&["rm", "box"]).ok();
    });
}
