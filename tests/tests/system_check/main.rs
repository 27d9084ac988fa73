//! `whelk system check`: each kind of damage is made, named, repaired, and nothing else is touched.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

mod layers;
mod progress;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, unmount};
use whelk_network::Links;
use whelk_runtime::cgroup::Cgroup;
use whelk_tests::{Engine, PATIENCE, eventually};

/// An engine with a running and a stopped container, a volume, and a network.
struct Checked {
    engine: Engine,
    running: String,
    stopped: String,
}

/// A process that a test has started, killed on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Checked {
    fn start() -> Self {
        let engine = Engine::with_directories();
        engine.load(&fs::read(whelk_tests::images::busybox()).unwrap());
        engine.whelk(&["network", "create", "net"]).ok();
        let words = ["run", "-d", "--name", "running", "--network", "net"];
        let more = ["-v", "data:/data", "busybox", "sleep", "600"];
        let running = engine.whelk(&[&words[..], &more].concat()).ok();
        let words = ["run", "-d", "--name", "stopped", "--network", "none"];
        let stopped = engine.whelk(&[&words[..], &["busybox", "touch", "/kept"]].concat());
        let stopped = stopped.ok();
        engine.await_state("stopped", "exited");
        let checked = Self {
            engine,
            running,
            stopped,
        };
        checked.is_sound();
        checked
    }

    fn root(&self, path: &str) -> PathBuf {
        self.engine.root().join(path)
    }

    fn run(&self, path: &str) -> PathBuf {
        self.engine.run().join(path)
    }

    /// Returns the problems that a check prints.
    #[track_caller]
    fn problems(&self, flags: &[&str]) -> Vec<String> {
        let words = [&["system", "check"][..], flags].concat();
        let done = self.engine.whelk(&words);
        let out = done.out();
        let mut lines: Vec<String> = out.lines().map(str::to_owned).collect();
        let result = lines.pop().unwrap_or_default();
        assert!(
            result.ends_with(" bytes of content verified"),
            "{out}{}",
            done.err()
        );
        let counted = match lines.len() {
            0 => String::new(),
            1 => "check: 1 problem".into(),
            count => format!("check: {count} problems"),
        };
        assert_eq!(done.err().trim(), counted, "{out}");
        assert_eq!(done.code, i32::from(!lines.is_empty()));
        lines
    }

    #[track_caller]
    fn is_sound(&self) {
        assert_eq!(self.problems(&["--layers"]), Vec::<String>::new());
    }

    /// Returns everything that a repair could touch.
    fn state(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for directory in [self.engine.root(), self.engine.run()] {
            list(&directory, &mut all);
        }
        all.retain(|path| !path.contains("/store.db") && !path.contains("lost+found"));
        let shown = [
            "inspect",
            "--format",
            "{{.Id}} {{.State}} {{.NetworkSettings.IPAddress}}",
        ];
        let shown = self
            .engine
            .whelk(&[&shown[..], &["running", "stopped"]].concat());
        all.extend(shown.ok().lines().map(str::to_owned));
        all.extend(self.engine.interfaces());
        let parent = Cgroup::at(&format!("/{}", self.engine.name())).unwrap();
        all.extend(parent.children().unwrap());
        all.extend(
            self.engine
                .whelk(&["volume", "ls", "-q"])
                .ok()
                .lines()
                .map(str::to_owned),
        );
        all
    }

    /// Returns the same, when nothing changes any more: what was deleted is gone, and copies are written.
    fn settled(&self) -> BTreeSet<String> {
        const QUIET: Duration = Duration::from_millis(100);
        eventually("nothing to change any more", || {
            let trash = fs::read_dir(self.root("trash")).unwrap().count();
            let state = self.state();
            std::thread::sleep(QUIET);
            (trash == 0 && self.state() == state).then_some(state)
        })
    }

    /// Waits for a state.
    #[track_caller]
    fn await_state(&self, what: &str, expected: &BTreeSet<String>) {
        let begin = Instant::now();
        loop {
            let state = self.state();
            if state == *expected {
                return;
            }
            let changes: Vec<_> = state.symmetric_difference(expected).collect();
            assert!(begin.elapsed() < PATIENCE, "{what}: {changes:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Checks that the one problem after `damage` is named and repaired, and that nothing else is touched.
    #[track_caller]
    fn repairs(&self, damage: impl FnOnce(), problem: &str, done: &str) {
        let before = self.settled();
        damage();
        let damaged = self.state();
        let found = self.problems(&[]);
        assert_eq!(found.len(), 1, "{problem}: {found:?}");
        assert!(found[0].contains(problem), "{problem}: {found:?}");
        self.await_state(&format!("{problem}: a check changes nothing"), &damaged);
        let found = self.problems(&["--repair"]);
        assert_eq!(found.len(), 1, "{problem}: {found:?}");
        let expected = format!("{problem}: {done}");
        assert!(found[0].contains(&expected), "{expected}: {found:?}");
        assert_eq!(self.problems(&[]), Vec::<String>::new(), "{problem}");
        self.await_state(
            &format!("{problem}: a repair changes nothing else"),
            &before,
        );
    }

    /// Kills the running container, and waits until nothing is left of its run.
    #[track_caller]
    fn kill_running(&self) {
        self.engine.whelk(&["kill", "running"]).ok();
        self.engine.await_state("running", "exited");
        let directory = self.run(&format!("containers/{}", self.running));
        eventually("the run directory to be deleted", || {
            (!directory.exists()).then_some(())
        });
    }

    fn lost_and_found(&self, path: &str) -> PathBuf {
        self.root("lost+found").join(path)
    }
}

/// Adds the paths below a directory, if it still exists, without what is below the files of layers.
fn list(directory: &Path, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        all.insert(path.display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !path.ends_with("fs") {
            list(&path, all);
        }
    }
}

#[test]
fn directories_of_containers() {
    let checked = Checked::start();
    let unknown = "a".repeat(64);
    let directory = checked.root(&format!("containers/{unknown}"));
    let belongs = format!("{} belongs to no container", directory.display());
    checked.repairs(
        || {
            fs::create_dir_all(directory.join("upper")).unwrap();
            fs::write(directory.join("upper/data"), "worth").unwrap();
        },
        &belongs,
        "moved to ",
    );
    let place = checked.lost_and_found(&format!("containers/{unknown}/upper/data"));
    assert_eq!(fs::read(place).unwrap(), b"worth");
    checked.repairs(
        || fs::create_dir_all(directory.join("upper")).unwrap(),
        &belongs,
        "removed: it has nothing that a container has written",
    );
    let directory = checked.run(&format!("containers/{unknown}"));
    checked.repairs(
        || fs::create_dir(&directory).unwrap(),
        &format!("{} belongs to no container", directory.display()),
        "removed",
    );
    let directory = checked.run("workloads/step");
    checked.repairs(
        || fs::create_dir(&directory).unwrap(),
        &format!("{} belongs to no workload", directory.display()),
        "removed, with its processes",
    );

    let what = format!("container stopped ({})", &checked.stopped[..12]);
    let own = checked.root(&format!("containers/{}", checked.stopped));
    checked.repairs(
        || fs::remove_file(own.join("container.json")).unwrap(),
        &format!("{what} has lost the copy of its record"),
        "written again",
    );
    checked.repairs(
        || fs::write(own.join("container.json"), "{").unwrap(),
        &format!("{what} has lost the copy of its record"),
        "written again",
    );
    // That of a container that has run has a directory that the kernel has made.
    let words = ["create", "--name", "new", "--network", "none", "busybox"];
    let new = checked.engine.whelk(&words).ok();
    let work = checked.root(&format!("containers/{new}/work"));
    checked.repairs(
        || fs::remove_dir(&work).unwrap(),
        &format!("container new ({}) has lost {}", &new[..12], work.display()),
        "created again",
    );
    checked.engine.whelk(&["rm", "new"]).ok();
    let directory = checked.run(&format!("containers/{}", checked.stopped));
    checked.repairs(
        || fs::create_dir(&directory).unwrap(),
        &format!(
            "{what} does not run, but has the run directory {}",
            directory.display()
        ),
        "removed",
    );
    // Its files are gone for good.
    fs::remove_dir_all(&own).unwrap();
    let found = checked.problems(&["--repair"]);
    let expected = format!("{what} has lost {}: created again", own.display());
    assert!(
        found.len() == 1 && found[0].starts_with(&expected),
        "{found:?}"
    );
    checked.is_sound();
    checked.engine.whelk(&["start", "stopped"]).ok();
    checked.engine.await_state("stopped", "exited");
    assert!(own.join("upper/kept").exists());
}

#[test]
fn what_a_running_container_has_lost_is_named() {
    let checked = Checked::start();
    let what = format!("container running ({})", &checked.running[..12]);
    let own = checked.root(&format!("containers/{}", checked.running));
    let aside = own.with_extension("aside");
    fs::rename(&own, &aside).unwrap();
    // Beside it, what the test has made.
    let found = checked.problems(&["--repair"]);
    let expected = format!(
        "{what} has lost {}; stop it, so that it can be repaired",
        own.display()
    );
    assert!(found.contains(&expected), "{found:?}");
    // Only what belongs to nothing was moved.
    let name = aside.file_name().unwrap().to_str().unwrap();
    let moved = checked.lost_and_found("containers").join(name);
    assert!(moved.exists(), "{found:?}");
    fs::rename(moved, &own).unwrap();
    checked.is_sound();
    assert_eq!(checked.engine.state("running"), "running");
    let socket = checked.run(&format!("containers/{}/shim.sock", checked.running));
    let aside = socket.with_extension("aside");
    fs::rename(&socket, &aside).unwrap();
    let found = checked.problems(&["--repair"]);
    let expected = format!("{what} runs, but has lost {}", socket.display());
    assert!(
        found.len() == 1 && found[0].starts_with(&expected),
        "{found:?}"
    );
    // It can be killed nevertheless.
    checked.kill_running();
    checked.is_sound();
    assert!(!aside.exists());
}

#[test]
fn cgroups_and_mounts() {
    let checked = Checked::start();
    let name = checked.engine.name().to_owned();
    let make = |path: &str| {
        for (_, directory) in Cgroup::at(path).unwrap().paths() {
            fs::create_dir(directory).unwrap();
        }
    };
    let stray = format!("/{name}/{}", "b".repeat(64));
    let mut process = Process(Command::new("sleep").arg("600").spawn().unwrap());
    checked.repairs(
        || {
            make(&stray);
            let pid = process.0.id().to_string();
            for (_, directory) in Cgroup::at(&stray).unwrap().paths() {
                // A set of processors without any takes no process.
                let _ = fs::write(directory.join("cgroup.procs"), &pid);
            }
        },
        &format!("cgroup {stray} belongs to no container"),
        "removed, with the processes in it",
    );
    assert!(!process.0.wait().unwrap().success());
    let own = format!("/{name}/{}", checked.stopped);
    checked.repairs(
        || make(&own),
        &format!("does not run, but has the cgroup {own}"),
        "removed, with the processes in it",
    );
    // A parent of a container's cgroup belongs to it.
    let parent = format!("/{name}/team");
    let words = ["create", "--name", "of-team", "--cgroup-parent", &parent];
    checked
        .engine
        .whelk(&[&words[..], &["busybox"]].concat())
        .ok();
    make(&parent);
    checked.is_sound();
    checked.engine.whelk(&["rm", "of-team"]).ok();
    // So does one that an administrator has prepared for containers.
    assert_eq!(checked.problems(&["--repair"]), Vec::<String>::new());
    for (_, directory) in Cgroup::at(&parent).unwrap().paths() {
        fs::remove_dir(directory).unwrap();
    }
    let workload = format!("/{name}/workload-step");
    checked.repairs(
        || make(&workload),
        &format!("cgroup {workload} belongs to no container"),
        "removed, with its processes",
    );

    let tmpfs = |path: &Path| {
        rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
    };
    let upper = checked.root(&format!("containers/{}/upper", checked.stopped));
    checked.repairs(
        || tmpfs(&upper),
        &format!("something is mounted on {}", upper.display()),
        "unmounted",
    );
    assert!(upper.join("kept").exists());
    // One mount inside of another.
    tmpfs(&upper);
    let inner = upper.join("inner");
    fs::create_dir(&inner).unwrap();
    tmpfs(&inner);
    let expected = [&inner, &upper]
        .map(|path| format!("something is mounted on {}: unmounted", path.display()));
    assert_eq!(checked.problems(&["--repair"]), expected);
    checked.is_sound();
    let words = [
        "volume",
        "create",
        "-o",
        "type=tmpfs",
        "-o",
        "device=tmpfs",
        "apart",
    ];
    checked.engine.whelk(&words).ok();
    let content = checked.root("volumes/apart/_data");
    checked.repairs(
        || tmpfs(&content),
        "volume apart is mounted, though nothing uses it",
        "unmounted",
    );
    let words = [
        "run",
        "-d",
        "--name",
        "user",
        "-v",
        "apart:/v",
        "--network",
        "none",
    ];
    checked
        .engine
        .whelk(&[&words[..], &["busybox", "sleep", "600"]].concat())
        .ok();
    checked.is_sound();
    unmount(&content, UnmountFlags::DETACH).unwrap();
    assert_eq!(
        checked.problems(&["--repair"]),
        ["volume apart is not mounted, though containers use it; restart them"]
    );
    checked.engine.whelk(&["restart", "-t", "0", "user"]).ok();
    checked.is_sound();
}

#[test]
fn volumes_and_copies_of_records() {
    let checked = Checked::start();
    checked.repairs(
        || fs::remove_file(checked.root("volumes/data/volume.json")).unwrap(),
        "volume data has lost the copy of its record",
        "written again",
    );
    checked.repairs(
        || fs::write(checked.root("store.json"), "[").unwrap(),
        &format!(
            "the copy of the engine's records {} is lost",
            checked.root("store.json").display()
        ),
        "written again",
    );
    let half = checked.root("volumes/.half-made");
    checked.repairs(
        || fs::create_dir(&half).unwrap(),
        &format!("{} belongs to no volume", half.display()),
        "removed",
    );
    // What cannot be removed is not said to be.
    let inner = half.join("_data");
    fs::create_dir_all(&inner).unwrap();
    rustix::mount::mount("tmpfs", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
    let found = checked.problems(&["--repair"]);
    unmount(&inner, UnmountFlags::DETACH).unwrap();
    assert!(
        found.len() == 1
            && found[0].contains("belongs to no volume: ")
            && !found[0].contains("removed"),
        "{found:?}"
    );
    checked.problems(&["--repair"]);
    assert!(!half.exists());
    let found = checked.root("volumes/found/_data");
    fs::create_dir_all(&found).unwrap();
    fs::write(found.join("file"), "worth").unwrap();
    let problem = format!("{} belongs to no volume", found.parent().unwrap().display());
    assert_eq!(checked.problems(&[]), [problem.as_str()]);
    assert_eq!(
        checked.problems(&["--repair"]),
        [format!("{problem}: it is a volume again")]
    );
    let words = [
        "run",
        "--rm",
        "--network",
        "none",
        "-v",
        "found:/v",
        "busybox",
    ];
    let read = checked
        .engine
        .whelk(&[&words[..], &["cat", "/v/file"]].concat());
    assert_eq!(read.ok(), "worth");
    checked.engine.whelk(&["volume", "create", "lost"]).ok();
    fs::remove_dir_all(checked.root("volumes/lost")).unwrap();
    let content = checked.root("volumes/lost/_data");
    assert_eq!(
        checked.problems(&["--repair"]),
        [format!(
            "volume lost: {} is missing; mount its disk, or remove the volume",
            content.display()
        )]
    );
    checked.engine.whelk(&["volume", "rm", "lost"]).ok();
    checked.is_sound();
}

#[test]
fn interfaces() {
    let checked = Checked::start();
    let engine = &checked.engine;
    let bridge = engine.bridge();
    let prefix = bridge.strip_suffix('0').unwrap();
    let stray = format!("{prefix}v{}", "0123456789abcdef".repeat(2));
    let stray = &stray[..15];
    checked.repairs(
        || {
            let (mtu, mac) = (1500, [2, 0, 0, 0, 0, 1]);
            let mut links = Links::open().unwrap();
            links.create_bridge(stray, mtu, mac, "").unwrap();
        },
        &format!("interface {stray} belongs to no network and no container"),
        "removed",
    );
    let id = engine.get("/networks/net")["Id"]
        .as_str()
        .unwrap()
        .to_owned();
    let bridge = format!("{prefix}-{id}");
    let bridge = &bridge[..15];
    let gateway = engine.get("/networks/net")["IPAM"]["Config"][0]["Gateway"]
        .as_str()
        .unwrap()
        .to_owned();
    let reaches = || {
        let words = ["exec", "running", "ping", "-c", "1", "-W", "1", &gateway];
        engine.whelk(&words).code == 0
    };
    let is_reached = || eventually("the gateway to be reached", || reaches().then_some(()));
    is_reached();
    checked.repairs(
        || {
            Links::open().unwrap().delete(bridge).unwrap();
            assert!(!reaches());
        },
        &format!("network net has lost its bridge {bridge}"),
        "created again, with the interfaces of its containers",
    );
    is_reached();
    let outer = engine.interfaces().into_iter().find(|name| name != bridge);
    Links::open().unwrap().delete(&outer.unwrap()).unwrap();
    let found = checked.problems(&["--repair"]);
    assert!(
        found.len() == 1
            && found[0].starts_with("container running in network net has lost its interface "),
        "{found:?}"
    );
    engine
        .whelk(&["network", "disconnect", "net", "running"])
        .ok();
    engine.whelk(&["network", "connect", "net", "running"]).ok();
    checked.is_sound();
    is_reached();
}

#[test]
fn content_that_belongs_to_nothing() {
    let checked = Checked::start();
    let digits = "0123456789abcdef".repeat(4);
    for place in [
        format!("blobs/sha256/{digits}"),
        format!("blobs/sha512/{digits}{digits}"),
        "blobs/sha256/other".into(),
        "blobs/partial/other".into(),
        format!("layers/{digits}"),
    ] {
        let path = checked.root(&place);
        checked.repairs(
            || fs::write(&path, "garbage").unwrap(),
            &format!("{} belongs to no image", path.display()),
            "removed",
        );
    }
    // What an interrupted pull has left is no problem, however old it is.
    let partial = checked.root(&format!("blobs/partial/{digits}"));
    fs::write(&partial, "part").unwrap();
    let aged = Command::new("touch")
        .args(["-d", "3 days ago"])
        .arg(&partial)
        .status();
    assert!(aged.unwrap().success());
    assert_eq!(checked.problems(&["--repair"]), Vec::<String>::new());
    assert!(partial.exists());
    fs::remove_file(&partial).unwrap();
    for place in ["tmp/other", "trash/other"] {
        let path = checked.root(place);
        checked.repairs(
            || {
                fs::create_dir(&path).unwrap();
                fs::write(path.join("file"), vec![0; 3_000_000]).unwrap();
                if place.starts_with("trash") {
                    let shown = checked.engine.whelk(&["system", "df", "-v"]).ok();
                    let last = shown.lines().last().unwrap_or_default().to_owned();
                    assert_eq!(last, "Removed, and being deleted: 3MB");
                }
            },
            &format!("{} belongs to no operation", path.display()),
            // Or `is being removed`, if that takes seconds.
            "",
        );
    }
    let shown = checked.engine.whelk(&["system", "df", "-v"]).ok();
    assert!(!shown.contains("being deleted"), "{shown}");
    // What the engine cannot remove itself is named with the reason.
    let path = checked.root("trash/busy");
    fs::create_dir(&path).unwrap();
    rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None).unwrap();
    let found = checked.problems(&[]);
    let mounted = format!("something is mounted on {}", path.display());
    assert!(found.contains(&mounted), "{found:?}");
    checked.problems(&["--repair"]);
    checked.problems(&["--repair"]);
    checked.is_sound();
    eventually("the directory to be removed", || {
        (!path.exists()).then_some(())
    });
}
