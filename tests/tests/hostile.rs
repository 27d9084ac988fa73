//! Containers and images that try to access the host. Most cases are vulnerabilities that other
//! engines had.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use whelk_tests::processes::{resident_memory, shim_of};
use whelk_tests::{Engine, Program, eventually, images, stays};

/// Content that must not appear in a container's output.
const SECRET: &str = "only-the-host-knows-7f3a";

/// A directory of the host that no container mounts.
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
        let entries: Vec<_> = fs::read_dir(&self.dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(entries, ["secret"], "after {after}");
        assert_eq!(
            fs::read_to_string(self.dir.join("secret")).unwrap(),
            SECRET,
            "after {after}"
        );
    }
}

#[test]
fn the_whelk_binary_cannot_be_overwritten_from_a_container() {
    // CVE-2019-5736: the container opens the runtime through /proc/PID/exe, and writes to it after
    // the runtime has exited.
    let engine = Engine::start();
    let program = Program::Whelk.path();
    let before = fs::read(&program).unwrap();
    let root = images::small_root().program("evil", "#!/proc/self/exe\n");
    engine.import("evil", &["CMD [\"/evil\"]"], &root.finish());
    // The script's interpreter is the program itself, which exits because of unknown arguments.
    let output = engine.docker(&["run", "--rm", "--network", "none", "evil"]);
    assert_ne!(output.code, 0);
    let script = "echo ready; while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in /bin/busybox|'') ;; *) \
        ( exec 9<$p/exe && i=0 && while [ $i -lt 300 ]; do echo POISON >>/proc/self/fd/9 && echo WROTE; i=$((i+1)); done ) ;; esac; done; done 2>/dev/null";
    engine
        .docker(&[
            "run",
            "-d",
            "--name",
            "trap",
            "--network",
            "none",
            "evil",
            "sh",
            "-c",
            script,
        ])
        .ok();
    engine.await_log("trap", "ready");
    for _ in 0..20 {
        assert_ne!(engine.docker(&["exec", "trap", "/evil"]).code, 0);
        engine.whelk(&["exec", "trap", "true"]).ok();
    }
    assert!(!engine.logs("trap").contains("WROTE"));
    assert!(
        fs::read(&program).unwrap() == before,
        "the program was changed"
    );
}

/// A container that may mount can make a read-only mount writable, if it has a descriptor of it.
#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "uses the numbers of x86_64's system calls"
)]
fn a_container_that_may_mount_cannot_overwrite_the_whelk_binary() {
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let program = Program::Whelk.path();
    let before = fs::read(&program).unwrap();
    // Clears MOUNT_ATTR_RDONLY by mount_setattr(2) on each mount that is not the container's own.
    let trap = "
import ctypes, errno, os
libc = ctypes.CDLL(None)
attr = (ctypes.c_uint64 * 4)(0, 1, 0, 0)
def tried(path):
    try:
        fd = os.open(path, os.O_PATH)
        libc.syscall(ctypes.c_long(442), fd, b'', 0x1000, attr, 32)
        os.write(os.open('/proc/self/fd/%d' % fd, os.O_WRONLY | os.O_APPEND), b'POISON')
        print('WROTE', path, flush=True)
    except OSError as error:
        # Only that it runs is in the way.
        if error.errno == errno.ETXTBSY: print('REACHED', path, flush=True)
tried('/sbin/docker-init')
open('/evil', 'w').write('#!/proc/self/exe\\n')
os.chmod('/evil', 0o755)
print('ready', flush=True)
own = os.readlink('/proc/self/exe')
while True:
    for pid in os.listdir('/proc'):
        try:
            if pid.isdigit() and pid != '1' and os.readlink('/proc/%s/exe' % pid) != own: tried('/proc/%s/exe' % pid)
        except OSError: pass
";
    let flags = [
        "--network",
        "none",
        "--init",
        "--cap-add",
        "SYS_ADMIN",
        "--security-opt",
        "seccomp=unconfined",
    ];
    let run = [
        &["run", "-d", "--name", "trap"],
        &flags[..],
        &["python", "python3", "-c", trap],
    ]
    .concat();
    engine.docker(&run).ok();
    engine.await_log("trap", "ready");
    for _ in 0..20 {
        assert_ne!(engine.docker(&["exec", "trap", "/evil"]).code, 0);
    }
    assert_eq!(engine.logs("trap"), "ready\n");
    assert!(
        fs::read(&program).unwrap() == before,
        "the program was changed"
    );
}

#[test]
fn directory_links_of_an_image_do_not_lead_outside() {
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
            let root = others
                .fold(images::bare_root(), |root, other| root.dir(other))
                .symlink(place, target);
            engine.import("linked", &[], &root.finish());
            for program in [Program::Docker, Program::Whelk] {
                let output = engine.cli(program).run(&[
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    "linked",
                    "sh",
                    "-c",
                    &script,
                ]);
                let all = output.out() + &output.err();
                assert!(
                    !all.contains(SECRET) && !all.contains("WROTE"),
                    "/{place} is a link to {target}: {all}"
                );
                victim.assert_untouched(&format!("/{place} as a link to {target}"));
            }
        }
    }
}

#[test]
fn links_of_an_image_are_resolved_inside_its_root() {
    let engine = Engine::start();
    let source = engine.scratch("source");
    fs::write(source.join("x"), "seen").unwrap();
    let root = images::small_root()
        .dir("real")
        .symlink("absolute", "/real")
        .symlink("relative", "./real");
    engine.import("links", &[], &root.finish());
    for link in ["absolute", "relative"] {
        let volume = format!("{}:/{link}/sub", source.display());
        let output = engine.whelk(&[
            "run",
            "--rm",
            "--network",
            "none",
            "-v",
            &volume,
            "links",
            "cat",
            "/real/sub/x",
        ]);
        assert_eq!(output.ok(), "seen", "{link}");
    }
}

#[test]
fn no_working_directory_leads_outside() {
    // CVE-2024-21626: a descriptor of a directory of the host, inherited by the program's process.
    let engine = Engine::start();
    let victim = Victim::new(&engine);
    let read = format!(
        "cat ../../../../../../../../../..{}/secret; cat {}/secret",
        victim.path(),
        victim.path()
    );
    let given = format!("{}:{}", victim.path(), victim.path());
    assert!(
        engine
            .cli(Program::Docker)
            .sh(&["-v", &given], &read)
            .out()
            .contains(SECRET),
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
            // `exec` writes the runtime's errors to standard output.
            let told = output.out() + &output.err();
            // Either the directory is refused, or the script runs in another one without the file.
            assert!(
                output.code != 0 && (told.contains(&directory) || told.contains("can't open")),
                "{directory}: {} {told}",
                output.code
            );
            assert!(
                !output.out().contains(SECRET),
                "{directory}: {}",
                output.out()
            );
        }
    }
    // The working directory of an image.
    let root = images::small_root()
        .symlink("fd", "/proc/self/fd/8")
        .symlink("cwd", "/proc/1/cwd")
        .symlink("host", &victim.path());
    for link in ["fd", "cwd", "host"] {
        engine.import(
            "workdir",
            &[&format!("WORKDIR /{link}/new")],
            &root.clone().finish(),
        );
        let output = engine.docker(&[
            "run",
            "--rm",
            "--network",
            "none",
            "workdir",
            "sh",
            "-c",
            &read,
        ]);
        assert!(!output.out().contains(SECRET), "{link}: {}", output.out());
        victim.assert_untouched(link);
    }
}

/// Stops the racing thread when its test ends, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_mount_point_replaced_by_a_link_does_not_lead_outside() {
    // CVE-2021-30465, CVE-2024-45310: another container swaps a directory in a shared volume while
    // this one starts.
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
            let program = if round % 2 == 0 {
                Program::Docker
            } else {
                Program::Whelk
            };
            let output = engine.cli(program).sh(
                &["-v", &volume, "-v", &directory, "-v", &file],
                "cat /s/real/secret /s/link/secret /s/real/*/secret",
            );
            assert!(!output.out().contains(SECRET), "round {round}");
            victim.assert_untouched(&format!("round {round}"));
        }
    });
}

#[test]
fn a_device_replaced_by_a_link_is_not_followed() {
    // Another container replaces a device in a shared volume by a link as soon as it is created.
    const DEVICES: usize = 100;
    let engine = Engine::start();
    let victim = Victim::new(&engine);
    let (shared, links, secret) = (
        engine.scratch("shared"),
        engine.scratch("links"),
        victim.dir.join("secret"),
    );
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let names: Vec<String> = (0..DEVICES).map(|number| format!("d{number}")).collect();
    let volume = format!("{}:/s", shared.display());
    let flags: Vec<String> = names
        .iter()
        .map(|name| format!("--device=/dev/zero:/s/{name}"))
        .collect();
    let run = [
        &["run", "--rm", "--network", "none", "-v", &volume][..],
        &flags.iter().map(String::as_str).collect::<Vec<_>>(),
    ]
    .concat();
    let swapped = AtomicUsize::new(0);
    for _ in 0..15 {
        names
            .iter()
            .for_each(|name| symlink(&secret, links.join(name)).unwrap());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&over);
            scope.spawn(|| {
                // The engine creates the devices one after the other. Prepared links and a single
                // rename keep the time between creation and replacement short.
                for (device, link) in names
                    .iter()
                    .map(|name| (shared.join(name), links.join(name)))
                {
                    while fs::symlink_metadata(&device).is_err() {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                    fs::rename(&link, &device).unwrap();
                    swapped.fetch_add(1, Ordering::Relaxed);
                }
            });
            engine
                .whelk(&[&run[..], &["busybox", "true"]].concat())
                .ok();
        });
        assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
        for name in &names {
            fs::remove_file(shared.join(name)).ok();
            fs::remove_file(links.join(name)).ok();
        }
    }
    assert!(
        swapped.into_inner() > 0,
        "no device was replaced in time: the case shows nothing"
    );
}

#[test]
fn shared_memory_is_resolved_in_its_owners_root() {
    let engine = Engine::start();
    let victim = Victim::new(&engine);
    engine.both(|cli| {
        // Its owner replaces it by a link to another directory of the host.
        let script = format!(
            "umount /dev/shm && rmdir /dev/shm && ln -s {} /dev/shm && echo ready; exec sleep 600",
            victim.path()
        );
        cli.up(
            "donor",
            &["--ipc", "shareable", "--privileged"],
            &["sh", "-c", &script],
        );
        engine.await_log("donor", "ready");
        let output = cli.sh(
            &["--ipc", "container:donor"],
            "cat /dev/shm/secret; echo x >/dev/shm/new; mount",
        );
        assert!(
            output.code != 0
                && !output.out().contains(SECRET)
                && !output.out().contains("/dev/shm"),
            "{}",
            output.out()
        );
        victim.assert_untouched("a container with its donor's shared memory");
        // The link is resolved inside the donor's root.
        cli.run(&[
            "exec",
            "donor",
            "sh",
            "-c",
            &format!("mkdir -p {0} && echo fine >{0}/file", victim.path()),
        ])
        .ok();
        assert_eq!(
            cli.sh(&["--ipc", "container:donor"], "cat /dev/shm/file")
                .ok(),
            "fine"
        );
        victim.assert_untouched("a link inside the donor");
    });
}

#[test]
fn an_exec_does_not_affect_host_processes() {
    // In the host's /proc, which the container has, the container's process ids are those of other
    // processes.
    let engine = Engine::start();
    let scores = || -> Vec<String> {
        let read =
            |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
        (1..300)
            .filter(|pid| *pid != std::process::id())
            .map(read)
            .collect()
    };
    let before = scores();
    engine.both(|cli| {
        cli.up(
            "up",
            &["-v", "/proc:/proc", "--oom-score-adj", "321"],
            &["sleep", "600"],
        );
        for _ in 0..30 {
            assert_eq!(
                cli.run(&["exec", "up", "cat", "/proc/self/oom_score_adj"])
                    .ok(),
                "321"
            );
        }
    });
    let changed = scores()
        .iter()
        .zip(&before)
        .any(|(now, before)| now != before && now.trim() == "321");
    assert!(!changed, "{before:?} {:?}", scores());
}

#[test]
fn an_exec_leaks_no_descriptors_to_tracers() {
    // CVE-2016-9962: a tracer reads the root and the descriptors of a process that is entering the
    // container.
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let mark = engine.root().join("lock");
    let watch = "
import os, sys
print('ready', flush=True)
while True:
    for pid in os.listdir('/proc'):
        if not pid.isdigit() or pid == '1': continue
        try:
            if os.path.exists('/proc/%s/root%s' % (pid, sys.argv[1])): print('ROOT', flush=True)
            for fd in os.listdir('/proc/%s/fd' % pid):
                target = os.readlink('/proc/%s/fd/%s' % (pid, fd))
                if target.startswith((sys.argv[2], '/sys/fs/cgroup')): print('FD', target, flush=True)
        except OSError: pass
";
    let run = [
        "run",
        "-d",
        "--name",
        "watch",
        "--network",
        "none",
        "--cap-add",
        "SYS_PTRACE",
        "python",
        "python3",
        "-c",
        watch,
    ];
    let places = [
        mark.display().to_string(),
        engine.root().parent().unwrap().display().to_string(),
    ];
    engine
        .docker(&[&run[..], &[&places[0], &places[1]]].concat())
        .ok();
    engine.await_log("watch", "ready");
    for program in [Program::Docker, Program::Whelk] {
        for flags in [&[][..], &["-i"], &["-u", "nobody"]] {
            for _ in 0..8 {
                engine
                    .cli(program)
                    .run(&[&["exec"], flags, &["watch", "true"]].concat())
                    .ok();
            }
        }
    }
    assert_eq!(engine.logs("watch"), "ready\n");
}

#[test]
fn a_container_cannot_replace_the_masks_of_kernel_files() {
    // CVE-2025-31133: /dev/null in a volume is a link, whose target is mounted over /proc/keys.
    let engine = Engine::start();
    let dev = engine.scratch("dev");
    symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let mut said = String::new();
    for program in [Program::Docker, Program::Whelk] {
        let output = engine.cli(program).sh(
            &["-v", &format!("{}:/dev", dev.display())],
            "cat /proc/keys; echo evil >/proc/keys && cat /proc/keys",
        );
        said.push_str(&output.out());
    }
    let after = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if after != pattern {
        fs::write("/proc/sys/kernel/core_pattern", &pattern).unwrap();
    }
    assert_eq!(after, pattern);
    assert!(
        !said.contains(pattern.trim()) && !said.contains("evil"),
        "{said}"
    );
}

#[test]
fn nothing_is_mounted_over_proc() {
    Engine::start().both(|cli| {
        let fake = cli.engine().scratch("fake");
        fs::create_dir_all(fake.join("self/attr")).unwrap();
        for place in ["/proc", "/proc/sys", "/proc/self/attr", "/x/../proc"] {
            let output = cli.sh(&["-v", &format!("{}:{place}", fake.display())], "true");
            output.refuses(125, "cannot be mounted because it is inside /proc");
        }
    });
}

#[test]
fn mount_point_paths_cannot_lead_outside() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        let victim = Victim::new(engine);
        let source = engine.scratch("source");
        fs::write(source.join("x"), "seen").unwrap();
        assert_eq!(
            cli.sh(
                &["-v", &format!("{}:/../../../here", source.display())],
                "cat /here/x"
            )
            .ok(),
            "seen"
        );
        let climbing = format!("{}:/../../..{}/here", source.display(), victim.path());
        assert_eq!(
            cli.sh(&["-v", &climbing], &format!("cat {}/here/x", victim.path()))
                .ok(),
            "seen"
        );
        victim.assert_untouched("a mount point in the container of the same name");
        // CVE-2022-23648: an image declares a volume at such a path.
        let root = images::small_root().symlink("link", &victim.path());
        engine.import(
            "volumes",
            &[&format!("VOLUME /../..{} /link/new", victim.path())],
            &root.finish(),
        );
        let output = cli.run(&[
            "run",
            "--rm",
            "--network",
            "none",
            "volumes",
            "cat",
            &format!("{}/secret", victim.path()),
            "/link/secret",
        ]);
        assert!(!output.out().contains(SECRET));
        victim.assert_untouched("an image with volumes");
    });
}

#[test]
fn long_configurations_are_passed_completely() {
    // CVE-2021-43784: lengths of 64 KiB and more overflowed in the message to the container's init.
    let engine = Engine::start();
    let source = engine.scratch("source");
    let environment: Vec<String> = (0..3)
        .map(|n| format!("BIG{n}={}", "x".repeat(100_000 + n)))
        .collect();
    let binds: Vec<String> = (0..300)
        .map(|n| {
            format!(
                "{}:/mounts/with-a-long-name-for-good-measure-{n}:ro",
                source.display()
            )
        })
        .collect();
    let script = "echo ${#BIG0} ${#BIG1} ${#BIG2}; grep -c ' /mounts/with-a-long-name.* ro,' /proc/self/mountinfo; env | grep -c ^BIG";
    engine.create("big", &json!({"Image": "busybox", "Cmd": ["sh", "-c", script], "Env": environment, "HostConfig": {"NetworkMode": "none", "Binds": binds}}));
    assert_eq!(
        engine.whelk(&["start", "-a", "big"]).ok(),
        "100000 100001 100002\n300\n3"
    );
}

#[test]
fn engine_files_and_sockets_are_not_accessible_to_others() {
    // CVE-2021-41091 (setuid programs below the data root), CVE-2020-15257 (a shim on an abstract
    // socket).
    let engine = Engine::start();
    let id = engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let mode = |path: &Path| {
        fs::metadata(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .mode()
            & 0o777
    };
    // Whether other users can traverse all directories of a path.
    let reachable = |path: PathBuf| {
        path.ancestors()
            .take_while(|place| place.starts_with(engine.root()) || place.starts_with(engine.run()))
            .all(|place| mode(place) & 0o001 != 0)
    };
    assert!(
        !reachable(engine.root().join("layers")),
        "layers hold set-id programs"
    );
    assert!(
        !reachable(engine.root().join("containers").join(&id)),
        "containers may have set-id programs"
    );
    assert!(
        !reachable(engine.run().join("containers").join(&id)),
        "a shim's socket"
    );
    assert_eq!(mode(&engine.socket()) & 0o007, 0, "the API's socket");
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let ours: Vec<&str> = sockets
        .lines()
        .filter(|line| line.contains(" @") && line.contains(engine.name()))
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn unread_output_does_not_use_memory() {
    // CVE-2022-31030
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let shim = shim_of(&engine, "up");
    let exec = engine.create_exec("up", &json!({"Cmd": ["yes"], "AttachStdout": true}));
    let unread = engine.start_exec(&exec, false);
    stays("memory is bounded", Duration::from_secs(1), || {
        resident_memory(shim) < 32 << 10 && resident_memory(engine.daemon_pid()) < 256 << 10
    });
    assert_eq!(engine.whelk(&["exec", "up", "echo", "alive"]).ok(), "alive");
    drop(unread);
}

#[test]
fn abandoned_attachments_are_released() {
    // CVE-2025-64329
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    let open = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let (shim, daemon) = (shim_of(&engine, "up"), engine.daemon_pid());
    let before = (open(shim), open(daemon));
    for _ in 0..300 {
        drop(engine.attach("up", "stream=1&stdout=1&stderr=1", true));
    }
    eventually("their descriptors to be closed", || {
        (open(shim) <= before.0 + 8 && open(daemon) <= before.1 + 32).then_some(())
    });
}

#[test]
fn a_hanging_file_system_blocks_only_its_container() {
    // The container mounts a FUSE file system without a server over its own /etc.
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let freeze = "
import ctypes, os, time
fd = os.open('/dev/fuse', os.O_RDWR)
options = b'fd=%d,rootmode=40000,user_id=0,group_id=0' % fd
assert ctypes.CDLL(None).mount(b'x', b'/etc', b'fuse', ctypes.c_ulong(0), options) == 0
print('ready', flush=True)
time.sleep(600)
";
    let flags = [
        "--network",
        "none",
        "--device",
        "/dev/fuse",
        "--cap-add",
        "SYS_ADMIN",
    ];
    engine
        .docker(
            &[
                &["run", "-d", "--name", "frozen"],
                &flags[..],
                &["python", "python3", "-c", freeze],
            ]
            .concat(),
        )
        .ok();
    engine.await_log("frozen", "ready");
    let body = json!({"Cmd": ["true"], "User": "nobody"}).to_string();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            let make = || {
                engine
                    .http(
                        "POST",
                        "/containers/frozen/exec",
                        &[("Content-Type", "application/json")],
                        body.as_bytes(),
                    )
                    .status
            };
            scope.spawn(make);
        }
        // Execs whose start has reached the container's shim.
        for _ in 0..4 {
            let exec = engine.create_exec("frozen", &json!({"Cmd": ["true"]}));
            scope.spawn({
                let engine = &engine;
                move || {
                    engine
                        .http(
                            "POST",
                            &format!("/exec/{exec}/start"),
                            &[("Content-Type", "application/json")],
                            b"{\"Detach\":true}",
                        )
                        .status
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        for path in ["/containers/json", "/containers/frozen/json", "/info"] {
            let asked = Instant::now();
            let (status, answer) = engine.api("GET", path, None);
            assert!(
                status == 200 && asked.elapsed() < Duration::from_secs(30),
                "{path}: {status} {answer}"
            );
        }
        assert_eq!(
            engine.cli(Program::Whelk).sh(&[], "echo others run").ok(),
            "others run"
        );
        engine.docker(&["rm", "-f", "frozen"]).ok();
    });
}

#[test]
fn vlan_tags_do_not_bypass_the_firewall() {
    // The rules of a bridge see a tagged frame as another protocol, but its receivers remove the
    // tag.
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let cli = engine.cli(Program::Docker);
    let victim = [
        "run", "-d", "--name", "victim", "python", "python3", "-u", "-c",
    ];
    let listen = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 5000))
print('ready')
while True:
    received = s.recvfrom(100)
    print(received)
    s.sendto(b'seen', received[1])
";
    cli.run(&[&victim[..], &[listen]].concat()).ok();
    engine.await_log("victim", "ready");
    let network = &engine.inspect("victim")["NetworkSettings"]["Networks"]["bridge"];
    let [address, mac, gateway] =
        ["IPAddress", "MacAddress", "Gateway"].map(|key| network[key].as_str().unwrap().to_owned());
    // Frames with none, one and two tags: an ARP reply for the gateway's address, and a datagram
    // with that address as its source.
    let attack = "
import socket, struct, sys
mac, address, gateway = bytes.fromhex(sys.argv[1].replace(':', '')), socket.inet_aton(sys.argv[2]), socket.inet_aton(sys.argv[3])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
own = s.getsockname()[4]
arp = struct.pack('!HHBBH', 1, 0x800, 6, 4, 2) + own + gateway + mac + address
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
def datagram(text, source):
    head = lambda sum: struct.pack('!BBHHHBBH', 0x45, 0, 28 + len(text), 0, 0, 64, 17, sum) + source + address
    return head(checksum(head(0))) + struct.pack('!HHHH', 1, 5000, 8 + len(text), 0) + text
for tags in [], [0x8100], [0x8100, 0x8100], [0x88a8, 0x8100], [0x88a8, 0x88a8, 0x8100]:
    for ethertype, body in (0x806, arp), (0x800, datagram(b'forged', gateway)):
        s.send(mac + own + b''.join(struct.pack('!HH', tag, 0) for tag in tags) + struct.pack('!H', ethertype) + body)
other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
other.settimeout(60)
other.sendto(b'honest', (sys.argv[2], 5000))
# Before that, its end could remove the interface with the datagram still queued there.
other.recvfrom(100)
";
    cli.run(&[
        "run", "--rm", "python", "python3", "-c", attack, &mac, &address, &gateway,
    ])
    .ok();
    engine.await_log("victim", "honest");
    assert!(
        !engine.logs("victim").contains("forged"),
        "{}",
        engine.logs("victim")
    );
    let neighbours = cli.run(&["exec", "victim", "cat", "/proc/net/arp"]).ok();
    let forged = neighbours
        .lines()
        .filter(|line| line.starts_with(&format!("{gateway} ")))
        .any(|line| !line.contains("00:00:00:00:00:00"));
    assert!(!forged, "{neighbours}");
}
