//! Flags of `run` that no other test program is about.
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
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use whelk_sys::quota::{self, Quota};
use whelk_tests::{Engine, Program, eventually, skipped};

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A file of a container's cgroup as the host sees it: by controller and name on v1, by name on v2; none if
/// the kernel does not have it.
#[track_caller]
fn cgroup_file(engine: &Engine, container: &str, v1: (&str, &str), v2: &str) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", engine.pid(container))).unwrap();
    let path = groups.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        if is_v2() {
            let path = format!("/sys/fs/cgroup{path}/{v2}");
            return controllers.is_empty().then_some(path);
        }
        let (controller, file) = v1;
        let matches = controllers.split(',').any(|one| one == controller);
        matches.then(|| format!("/sys/fs/cgroup/{controller}{path}/{file}"))
    });
    let text = fs::read_to_string(PathBuf::from(path?)).ok()?;
    Some(text.trim().to_owned())
}

#[test]
fn signals_are_passed_on_unless_sig_proxy_is_off() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
        let run = |name: &str, flags: &[&str]| {
            let mut args = vec!["run", "--network", "none", "--name", name];
            args.extend_from_slice(flags);
            args.extend_from_slice(&["busybox", "sh", "-c", script]);
            let mut client = cli.spawn(&args);
            client.expect("ready");
            client.signal(Signal::TERM);
            client.finish()
        };
        let output = run("passes", &[]);
        assert_eq!(output.exits(3), "ready\ngot it\n");
        // The client of Docker does not end either.
        let args = [
            "run",
            "--network",
            "none",
            "--name",
            "keeps",
            "--sig-proxy=false",
            "busybox",
            "sh",
            "-c",
            script,
        ];
        let mut client = cli.spawn(&args);
        client.expect("ready");
        client.signal(Signal::TERM);
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert!(!client.so_far().contains("got it"));
        assert_eq!(engine.state("keeps"), "running");
    });
}

#[test]
fn variables_and_labels_are_read_from_files() {
    let engine = Engine::start();
    let directory = engine.scratch("files");
    let path = |name: &str, content: &str| {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let env = path("env", "# comment\nA=1\nB=from file\nPATH_OF_TESTS\n");
    let more = path("more", "B=2\n");
    let labels = path("labels", "one=1\ntwo=from file\nthree\n");
    engine.both(|cli| {
        let flags = ["--env-file", &env, "--env-file", &more, "-e", "C=3"];
        let output = cli.sh(&flags, "echo $A $B $C ${PATH_OF_TESTS-unset}");
        assert_eq!(output.ok(), "1 2 3 unset");
        cli.up(
            "labelled",
            &["--label-file", &labels, "-l", "two=2"],
            &["true"],
        );
        assert_eq!(
            engine.inspect("labelled")["Config"]["Labels"],
            json!({"one": "1", "two": "2"})
        );
        for flag in ["--env-file", "--label-file"] {
            let output = cli.sh(&[flag, "/no/such/file"], "");
            output.refuses(125, "open /no/such/file: no such file or directory");
        }
    });
}

#[test]
fn the_api_socket_is_mounted() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    assert_eq!(
        cli.sh(&["--use-api-socket"], "stat -c %F /var/run/docker.sock")
            .ok(),
        "socket"
    );
}

#[test]
fn annotations_and_isolation_are_recorded() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let flags = [
            "--annotation",
            "a.b/c=1",
            "--annotation",
            "d=",
            "--isolation",
            "default",
        ];
        cli.up("annotated", &flags, &["true"]);
        let host = &engine.inspect("annotated")["HostConfig"];
        assert_eq!(host["Annotations"], json!({"a.b/c": "1", "d": ""}));
        cli.sh(&["--isolation", "hyperv"], "").refuses(
            125,
            "invalid isolation (hyperv): linux only supports 'default'",
        );
        assert_eq!(
            cli.sh(&["--userns", "host"], "cat /proc/self/uid_map").ok(),
            "0          0 4294967295"
        );
        cli.sh(&["--userns", "private"], "")
            .refuses(125, "--userns: invalid USER mode");
    });
}

#[test]
fn more_limits_are_set_in_the_kernel() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let flags = [
            "--cpu-period", "50000", "--cpu-quota", "25000", "--cpuset-mems", "0", "--cpu-shares", "512",
            "-m", "64m", "--memory-swap", "96m", "--memory-swappiness", "10", "--oom-kill-disable",
            "--oom-score-adj", "100",
        ];
        let output = cli.run(&[&["run", "-d", "--network", "none", "--name", "limited"], &flags[..], &["busybox", "sleep", "600"]].concat());
        output.exits(0);
        let file = |v1: (&str, &str), v2: &str| cgroup_file(engine, "limited", v1, v2);
        if is_v2() {
            assert_eq!(file(("", ""), "cpu.max").as_deref(), Some("25000 50000"));
            assert_eq!(file(("", ""), "memory.swap.max").as_deref(), Some("33554432"));
            for text in [
                "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
                "Your kernel does not support OomKillDisable. OomKillDisable discarded.",
            ] {
                assert!(output.err().contains(text), "{}", output.err());
            }
        } else {
            let value = |controller, name| file((controller, name), "");
            assert_eq!(value("cpu", "cpu.cfs_period_us").as_deref(), Some("50000"));
            assert_eq!(value("cpu", "cpu.cfs_quota_us").as_deref(), Some("25000"));
            assert_eq!(value("memory", "memory.swappiness").as_deref(), Some("10"));
            assert!(value("memory", "memory.oom_control").unwrap().starts_with("oom_kill_disable 1"));
            if let Some(swap) = value("memory", "memory.memsw.limit_in_bytes") {
                assert_eq!(swap, "100663296");
            }
        }
        assert_eq!(file(("cpuset", "cpuset.mems"), "cpuset.mems").as_deref(), Some("0"));
        let adjusted = fs::read_to_string(format!("/proc/{}/oom_score_adj", engine.pid("limited")));
        assert_eq!(adjusted.unwrap().trim(), "100");
        // Not removed while out of memory: nothing would end it.
        cli.run(&["rm", "-f", "limited"]).ok();

        let weight = cli.run(&["run", "-d", "--network", "none", "--name", "weighted", "--blkio-weight", "300", "busybox", "sleep", "600"]);
        weight.exits(0);
        // Of v1, and of v2 with bfq or without.
        let files = [("blkio.weight", "io.bfq.weight", "300"), ("blkio.bfq.weight", "io.weight", if is_v2() { "2930" } else { "300" })];
        let found = files.iter().find_map(|(v1, v2, expected)| {
            let found = cgroup_file(engine, "weighted", ("blkio", v1), v2)?;
            Some((found, *expected))
        });
        // The engine looks for the file in the root, as Docker does, where not all kernels have it.
        match found.filter(|_| weight.err().is_empty()) {
            Some((found, expected)) => assert!(found.contains(expected), "{found}"),
            None => assert!(weight.err().contains("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."), "{}", weight.err()),
        }
    });
}

#[test]
fn real_time_scheduling_needs_the_kernels_support() {
    let has_support = fs::exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").unwrap();
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let flags = ["--cpu-rt-period", "1000000", "--cpu-rt-runtime", "1000"];
        if !has_support {
            return cli
                .sh(&flags, "")
                .refuses(125, "Your kernel does not support CPU real-time scheduler");
        }
        cli.sh(&["--cpu-rt-period", "1000", "--cpu-rt-runtime", "2000"], "")
            .refuses(
                125,
                "cpu real-time runtime cannot be higher than cpu real-time period",
            );
        // The parent's share is 0 unless the administrator gives it one.
        let parent = format!("/{}", engine.name());
        fs::write(
            format!("/sys/fs/cgroup/cpu{parent}/cpu.rt_runtime_us"),
            "10000",
        )
        .unwrap();
        cli.up("timely", &flags, &["sleep", "600"]);
        let runtime = cgroup_file(engine, "timely", ("cpu", "cpu.rt_runtime_us"), "");
        assert_eq!(runtime.as_deref(), Some("1000"));
        cli.run(&["rm", "-f", "timely"]).ok();
    });
}

#[test]
fn deprecated_limits_and_those_of_windows_are_named() {
    let engine = Engine::start();
    let output = engine
        .cli(Program::Whelk)
        .sh(&["--kernel-memory", "64m"], "true");
    assert!(
        output.exits(0).contains("--kernel-memory is ignored"),
        "{}",
        output.err()
    );
    engine.both(|cli| {
        for flags in [
            ["--cpu-count", "1"],
            ["--cpu-percent", "5"],
            ["--io-maxiops", "5"],
        ] {
            let flag = flags[0];
            let code = match cli.program() {
                Program::Docker => 1,
                Program::Whelk => 125,
            };
            cli.sh(&flags, "").refuses(
                code,
                &format!("{flag:?} is only supported on a Docker daemon running on windows"),
            );
        }
    });
}

#[test]
fn the_writable_layer_can_be_limited() {
    let engine = Engine::without_images(&[]);
    let image = engine.scratch("disk").join("image");
    fs::File::create(&image)
        .unwrap()
        .set_len(128 << 20)
        .unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.is_ok_and(|output| output.status.success())
    };
    let busybox = || engine.load(&fs::read(whelk_tests::images::busybox()).unwrap());
    busybox();
    const REFUSED: &str =
        "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";
    engine.both(|cli| {
        cli.sh(&["--storage-opt", "other=1"], "")
            .refuses(125, "unknown option other");
        cli.sh(&["--storage-opt", "size=much"], "")
            .refuses(125, "invalid size: 'much'");
        cli.sh(&["--storage-opt", "size"], "")
            .refuses(125, "invalid storage option");
    });
    let root = engine.root().display().to_string();
    let image = image.display().to_string();
    engine.terminate();
    fs::remove_dir_all(engine.root()).unwrap();
    fs::create_dir(engine.root()).unwrap();
    let mounted = run("mkfs.ext4", &["-q", "-O", "quota,project", &image])
        && run("mount", &["-o", "loop,prjquota", &image, &root]);
    engine.restart();
    busybox();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        engine.both(|cli| {
            if !mounted {
                return cli
                    .sh(&["--storage-opt", "size=2m"], "")
                    .refuses(125, REFUSED);
            }
            let fill = "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; stat -c %s /big";
            let size: u64 = cli
                .sh(&["--storage-opt", "size=2m"], fill)
                .ok()
                .parse()
                .unwrap();
            assert!((1 << 20..=2 << 20).contains(&size), "{size}");
            // Each container has a limit of its own, also after a restart of the engine.
            cli.up("kept", &["--storage-opt", "size=3m"], &["sleep", "600"]);
            engine.kill9();
            engine.restart();
            let size: u64 = cli
                .run(&["exec", "kept", "sh", "-c", fill])
                .ok()
                .parse()
                .unwrap();
            assert!((2 << 20..=3 << 20).contains(&size), "{size}");
            let kept = engine.inspect("kept");
            assert_eq!(kept["HostConfig"]["StorageOpt"], json!({"size": "3m"}));
            // The limit goes with the container.
            let id = kept["Id"].as_str().unwrap();
            let upper = engine.root().join("containers").join(id).join("upper");
            let project = quota::project_of(fs::File::open(upper).unwrap()).unwrap();
            let disk = fs::File::open(engine.root()).unwrap();
            assert_eq!(quota::get(&disk, project).unwrap().limit, 3 << 20);
            cli.run(&["rm", "-f", "kept"]).ok();
            eventually("the limit is removed", || {
                (quota::get(&disk, project).unwrap() == Quota::default()).then_some(())
            });
            // Also after an engine that was killed while it removed one.
            engine.terminate();
            let left = engine.root().join("trash/left/upper");
            fs::create_dir_all(&left).unwrap();
            quota::set_project(fs::File::open(&left).unwrap(), project).unwrap();
            quota::set_limit(&disk, project, 1 << 20).unwrap();
            engine.restart();
            eventually("the limit of what was left is removed", || {
                (quota::get(&disk, project).unwrap() == Quota::default()).then_some(())
            });
        });
    }));
    engine.terminate();
    if mounted {
        eventually("the disk is unmounted", || {
            run("umount", &[&root]).then_some(())
        });
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    if !mounted {
        skipped!("no ext4 with project quotas can be made and mounted");
    }
}
