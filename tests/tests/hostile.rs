//! Containers and images that try to get out. Each case is a way in which engines were broken before.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a panic with its place is all the error handling that a test needs")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use whelk_tests::{Engine, Program, eventually, images, stays};

/// Nothing that a container says may contain this.
const SECRET: &str = "only-the-host-knows-7f3a";

/// A directory of the host that no container was given.
struct Victim {
    dir: PathBuf,
}

impl Victim {
    fn new(engine: &Engine) -> Self {
        let dir = engine.scratch("victim");
        fs::write(dir.join("secret"), SECRET).unwrap();
        Self { dir }
    }

    fn path(&self) -> String {
        self.dir.display().to_string()
    }

    #[track_caller]
    fn assert_untouched(&self, after: &str) {
        let entries: Vec<_> = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(entries, ["secret"], "after {after}");
        assert_eq!(fs::read_to_string(self.dir.join("secret")).unwrap(), SECRET, "after {after}");
    }
}

#[test]
fn our_own_program_cannot_be_overwritten_from_inside() {
    // CVE-2019-5736: the container opens the runtime through /proc/PID/exe and writes to it when it has ended.
    let engine = Engine::start();
    let program = Program::Whelk.path();
    let before = fs::read(&program).unwrap();
    let root = images::small_root().program("evil", "#!/proc/self/exe\n");
    engine.import("evil", &["CMD [\"/evil\"]"], &root.finish());
    assert_ne!(engine.docker(&["run", "--rm", "--network", "none", "evil"]).code, 0);
    let script = "echo ready; while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in /bin/busybox|'') ;; *) \
        ( exec 9<$p/exe && i=0 && while [ $i -lt 300 ]; do echo POISON >>/proc/self/fd/9 && echo WROTE; i=$((i+1)); done ) ;; esac; done; done 2>/dev/null";
    engine.docker(&["run", "-d", "--name", "trap", "--network", "none", "evil", "sh", "-c", script]).ok();
    engine.await_log("trap", "ready");
    for _ in 0..20 {
        assert_ne!(engine.docker(&["exec", "trap", "/evil"]).code, 0);
        engine.whelk(&["exec", "trap", "true"]).ok();
    }
    assert!(!engine.logs("trap").contains("WROTE"));
    assert!(fs::read(&program).unwrap() == before, "the program was changed");
}

#[test]
fn an_image_whose_directories_are_links_reaches_nothing_outside() {
    // CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2026-41579
    let engine = Engine::start();
    let victim = Victim::new(&engine);
    let places = ["proc", "sys", "dev", "etc", "run"];
    let inside = victim.path();
    let climbing = format!("/../../../../../../../..{inside}");
    let script = format!(
        "cat {inside}/secret /etc/secret /run/secret /dev/secret; echo $(cat /proc/sys/kernel/panic) >/proc/sys/kernel/panic && echo WROTE; ls -a /proc/sys /sys /dev"
    );
    for place in places {
        for target in [inside.as_str(), climbing.as_str(), "/proc/1/root", "."] {
            let others = places.iter().filter(|other| **other != place);
            let root = others.fold(images::bare_root(), |root, other| root.dir(other)).symlink(place, target);
            engine.import("linked", &[], &root.finish());
            for program in [Program::Docker, Program::Whelk] {
                let output = engine.cli(program).run(&["run", "--rm", "--network", "none", "linked", "sh", "-c", &script]);
                let all = output.out() + &output.err();
                assert!(!all.contains(SECRET) && !all.contains("WROTE"), "/{place} is a link to {target}: {all}");
                victim.assert_untouched(&format!("/{place} as a link to {target}"));
            }
        }
    }
}

#[test]
fn a_link_inside_the_image_is_followed_inside_the_image() {
    let engine = Engine::start();
    let source = engine.scratch("source");
    fs::write(source.join("x"), "seen").unwrap();
    let root = images::small_root().dir("real").symlink("absolute", "/real").symlink("relative", "./real");
    engine.import("links", &[], &root.finish());
    for link in ["absolute", "relative"] {
        let volume = format!("{}:/{link}/sub", source.display());
        let output = engine.whelk(&["run", "--rm", "--network", "none", "-v", &volume, "links", "cat", "/real/sub/x"]);
        assert_eq!(output.ok(), "seen", "{link}");
    }
}

#[test]
fn no_working_directory_leads_out() {
    // CVE-2024-21626: a descriptor of a directory of the host, inherited by the program's process.
    let engine = Engine::start();
    let victim = Victim::new(&engine);
    let read = format!("cat ../../../../../../../../../..{}/secret; cat {}/secret", victim.path(), victim.path());
    let given = format!("{}:{}", victim.path(), victim.path());
    assert!(
        engine.cli(Program::Docker).sh(&["-v", &given], &read).out().contains(SECRET),
        "the script finds the secret where it is allowed to"
    );
    let cli = engine.cli(Program::Whelk);
    cli.up("up", &[], &["sleep", "600"]);
    for number in 3..=20 {
        let directory = format!("/proc/self/fd/{number}");
        let outputs = [
            cli.sh(&["-w", &directory], &read),
            cli.sh(&["-w", &format!("{directory}/../..")], &read),
            cli.run(&["exec", "-w", &directory, "up", "sh", "-c", &read]),
            engine.docker(&["exec", "--workdir", &directory, "up", "sh", "-c", &read]),
        ];
        for output in outputs {
            assert!(output.code != 0 && !output.out().contains(SECRET), "{directory}: {}", output.out());
        }
    }
    // The same hidden in the image.
    let root = images::small_root().symlink("fd", "/proc/self/fd/8").symlink("cwd", "/proc/1/cwd").symlink("host", &victim.path());
    for link in ["fd", "cwd", "host"] {
        engine.import("workdir", &[&format!("WORKDIR /{link}/new")], &root.clone().finish());
        let output = engine.docker(&["run", "--rm", "--network", "none", "workdir", "sh", "-c", &read]);
        assert!(!output.out().contains(SECRET), "{link}: {}", output.out());
        victim.assert_untouched(link);
    }
}

/// Ends the racer when its case ends, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_link_swapped_under_a_mount_point_leads_nowhere() {
    // CVE-2021-30465, CVE-2024-45310: another container swaps a directory in a shared volume while this one starts.
    let engine = Engine::start();
    let victim = Victim::new(&engine);
    let shared = engine.scratch("shared");
    let source = engine.scratch("source");
    fs::write(source.join("file"), "fine").unwrap();
    let (real, link) = (shared.join("real"), shared.join("link"));
    fs::create_dir(&real).unwrap();
    symlink(&victim.dir, &link).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, &real, CWD, &link, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let volume = format!("{}:/s", shared.display());
        for round in 0..30 {
            let directory = format!("{}:/s/real/dir{round}", source.display());
            let file = format!("{}/file:/s/real/file{round}", source.display());
            let program = if round % 2 == 0 { Program::Docker } else { Program::Whelk };
            let output = engine
                .cli(program)
                .sh(&["-v", &volume, "-v", &directory, "-v", &file], "cat /s/real/secret /s/link/secret /s/real/*/secret");
            assert!(!output.out().contains(SECRET), "round {round}");
            victim.assert_untouched(&format!("round {round}"));
        }
    });
}

#[test]
fn what_covers_kernel_files_cannot_be_chosen_by_the_container() {
    // CVE-2025-31133: /dev/null in a volume is a link, and what it points to is mounted over /proc/keys.
    let engine = Engine::start();
    let dev = engine.scratch("dev");
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut said = String::new();
    for program in [Program::Docker, Program::Whelk] {
        let output =
            engine.cli(program).sh(&["-v", &format!("{}:/dev", dev.display())], "cat /proc/keys; echo evil >/proc/keys && cat /proc/keys");
        said.push_str(&output.out());
    }
    let after = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if after != pattern {
        fs::write("/proc/sys/kernel/core_pattern", &pattern).unwrap();
    }
    assert_eq!(after, pattern);
    assert!(!said.contains(pattern.trim()) && !said.contains("evil"), "{said}");
}

#[test]
fn nothing_is_mounted_over_proc() {
    Engine::start().both(|cli| {
        let fake = cli.engine().scratch("fake");
        fs::create_dir_all(fake.join("self/attr")).unwrap();
        for place in ["/proc", "/proc/sys", "/proc/self/attr", "/x/../proc"] {
            let output = cli.sh(&["-v", &format!("{}:{place}", fake.display())], "true");
            assert_ne!(output.code, 0, "{place}");
        }
    });
}

#[test]
fn a_mount_points_path_cannot_climb_out() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let victim = Victim::new(engine);
        let source = engine.scratch("source");
        fs::write(source.join("x"), "seen").unwrap();
        assert_eq!(cli.sh(&["-v", &format!("{}:/../../../here", source.display())], "cat /here/x").ok(), "seen");
        let climbing = format!("{}:/../../..{}/here", source.display(), victim.path());
        assert_eq!(cli.sh(&["-v", &climbing], &format!("cat {}/here/x", victim.path())).ok(), "seen");
        victim.assert_untouched("a mount point in the container of the same name");
        // CVE-2022-23648: an image that declares a volume there.
        let root = images::small_root().symlink("link", &victim.path());
        engine.import("volumes", &[&format!("VOLUME /../..{} /link/new", victim.path())], &root.finish());
        let output = cli.run(&["run", "--rm", "--network", "none", "volumes", "cat", &format!("{}/secret", victim.path()), "/link/secret"]);
        assert!(!output.out().contains(SECRET));
        victim.assert_untouched("an image with volumes");
    });
}

#[test]
fn long_configurations_arrive_whole() {
    // CVE-2021-43784: lengths of 64 KiB and more wrapped around on their way into the container.
    let engine = Engine::start();
    let source = engine.scratch("source");
    let environment: Vec<String> = (0..3).map(|n| format!("BIG{n}={}", "x".repeat(100_000 + n))).collect();
    let binds: Vec<String> = (0..300).map(|n| format!("{}:/mounts/with-a-long-name-for-good-measure-{n}:ro", source.display())).collect();
    let script = "echo ${#BIG0} ${#BIG1} ${#BIG2}; grep -c ' /mounts/with-a-long-name.* ro,' /proc/self/mountinfo; env | grep -c ^BIG";
    engine.create("big", &json!({"Image": "busybox", "Cmd": ["sh", "-c", script], "Env": environment, "HostConfig": {"NetworkMode": "none", "Binds": binds}}));
    assert_eq!(engine.whelk(&["start", "-a", "big"]).ok(), "100000 100001 100002\n300\n3");
}

#[test]
fn the_engines_files_and_sockets_are_closed_to_others() {
    // CVE-2021-41091 (setuid programs below the data root), CVE-2020-15257 (a shim on an abstract socket).
    let engine = Engine::start();
    let id = engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let mode = |path: &Path| fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o777;
    // Somewhere on the way down, others are stopped.
    let reachable = |path: PathBuf| {
        path.ancestors()
            .take_while(|place| place.starts_with(engine.root()) || place.starts_with(engine.run()))
            .all(|place| mode(place) & 0o001 != 0)
    };
    assert!(!reachable(engine.root().join("layers")), "layers hold set-id programs");
    assert!(!reachable(engine.root().join("containers").join(&id)), "so do containers");
    assert!(!reachable(engine.run().join("containers").join(&id)), "a shim's socket");
    assert_eq!(mode(&engine.socket()) & 0o007, 0, "the API's socket");
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let ours: Vec<&str> = sockets.lines().filter(|line| line.contains(" @") && line.contains(engine.name())).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

/// A number in kilobytes from a process's status.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().split(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// The shim of a container: the parent of its first process.
fn shim_of(engine: &Engine, name: &str) -> i32 {
    let status = fs::read_to_string(format!("/proc/{}/status", engine.pid(name))).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|rest| rest.trim().parse().ok()).unwrap()
}

#[test]
fn output_that_nobody_reads_does_not_eat_memory() {
    // CVE-2022-31030
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let shim = shim_of(&engine, "up");
    let exec = engine.create_exec("up", &json!({"Cmd": ["yes"], "AttachStdout": true}));
    let unread = engine.start_exec(&exec, false);
    stays("memory is bounded", Duration::from_secs(1), || resident(shim) < 32 << 10 && resident(engine.daemon_pid()) < 256 << 10);
    assert_eq!(engine.whelk(&["exec", "up", "echo", "alive"]).ok(), "alive");
    drop(unread);
}

#[test]
fn abandoned_attachments_are_forgotten() {
    // CVE-2025-64329
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let open = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let (shim, daemon) = (shim_of(&engine, "up"), engine.daemon_pid());
    let before = (open(shim), open(daemon));
    for _ in 0..300 {
        drop(engine.attach("up", "stream=1&stdout=1&stderr=1", true));
    }
    eventually("their descriptors to be closed", || (open(shim) <= before.0 + 8 && open(daemon) <= before.1 + 32).then_some(()));
}
