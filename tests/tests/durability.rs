//! Acknowledged changes survive a power failure, and nothing is deleted because its record is missing.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use whelk_tests::processes::is_alive;
use whelk_tests::{Engine, Program, eventually};

fn shell(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

/// The disk of an engine's root, in a file on the host. Unflushed data of the kernel is not in the file.
struct Disk<'e> {
    engine: &'e Engine,
    image: PathBuf,
}

impl<'e> Disk<'e> {
    fn new(engine: &'e Engine) -> Self {
        let image = engine.scratch("disk").join("image");
        fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        shell(&format!("mkfs.ext4 -q {}", image.display()));
        engine.kill9();
        let disk = Self { engine, image };
        disk.mount();
        engine.restart();
        disk
    }

    /// Mounts the disk so that the kernel writes nothing back on its own during the test.
    fn mount(&self) {
        shell(&format!(
            "mount -o loop,commit=900 {} {}",
            self.image.display(),
            self.engine.root().display()
        ));
    }

    /// Simulates a power failure: only what is on the disk at this moment remains.
    fn lose_power(&self) {
        // Proves that the disk loses data that was not flushed.
        let unsynced = self.engine.root().join("unsynced");
        fs::write(&unsynced, "unsynced").unwrap();
        let left = self.image.with_extension("left");
        shell(&format!(
            "cp --sparse=always {} {}",
            self.image.display(),
            left.display()
        ));
        self.engine.kill9();
        self.end_processes();
        unmount(self.engine.root(), UnmountFlags::DETACH).unwrap();
        fs::rename(left, &self.image).unwrap();
        self.mount();
        assert!(fs::read(&unsynced).is_ok_and(|content| content.is_empty()) || !unsynced.exists());
        let _ = fs::remove_file(&unsynced);
        // The run directory does not survive a power failure.
        fs::remove_dir_all(self.engine.run()).unwrap();
        self.engine.restart();
    }

    /// Ends all processes, as a power failure does.
    fn end_processes(&self) {
        let mark = format!("/{}/", self.engine.name());
        eventually("all processes to end", || {
            let numbers = fs::read_dir("/proc")
                .unwrap()
                .flatten()
                .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
            let own: Vec<i32> = numbers
                .filter(|pid| {
                    fs::read_to_string(format!("/proc/{pid}/cgroup"))
                        .is_ok_and(|groups| groups.contains(&mark))
                })
                .filter(|pid| is_alive(*pid))
                .collect();
            for pid in &own {
                let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL);
            }
            own.is_empty().then_some(())
        });
    }

    fn remove(self) {
        self.engine.kill9();
        self.end_processes();
        unmount(self.engine.root(), UnmountFlags::DETACH).unwrap();
        self.engine.restart();
    }
}

/// Reading a container's files costs no flush of the disk; what is copied into one is on the disk.
#[test]
fn copies_flush_only_what_they_write() {
    let engine = Engine::start();
    let disk = Disk::new(&engine);
    engine.load(&fs::read(whelk_tests::images::busybox()).unwrap());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let body =
            json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}});
        let id = engine.create("made", &body);
        // The first use of an image creates its init layer, which is flushed.
        let url = "/containers/made/archive?path=/";
        assert_eq!(engine.http("HEAD", url, &[], b"").status, 200);
        let probe = engine.root().join("probe");
        fs::write(&probe, "not flushed").unwrap();
        for path in ["/etc", "/etc/passwd"] {
            let url = format!("/containers/made/archive?path={path}");
            assert_eq!(engine.http("HEAD", &url, &[], b"").status, 200);
            assert_eq!(engine.http("GET", &url, &[], b"").status, 200);
        }
        let mark = engine
            .root()
            .join(format!("containers/{id}/work/work/incompat"));
        assert!(
            !mark.exists(),
            "recovery would take it for a `--rm` container"
        );
        disk.lose_power();
        let left = fs::read(&probe).unwrap_or_default();
        assert!(
            left.is_empty(),
            "a copy out of a container has flushed the disk"
        );
        let archive = whelk_tests::tar::Tar::new().file("new", "copied").finish();
        let url = "/containers/made/archive?path=/etc";
        let kind = [("Content-Type", "application/x-tar")];
        assert_eq!(engine.http("PUT", url, &kind, &archive).status, 200);
        disk.lose_power();
        let upper = engine.root().join(format!("containers/{id}/upper/etc/new"));
        assert_eq!(fs::read(upper).unwrap(), b"copied");
        engine.remove_containers().unwrap();
    }));
    disk.remove();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn acknowledged_changes_survive_a_power_failure() {
    let engine = Engine::start();
    let disk = Disk::new(&engine);
    engine.load(&fs::read(whelk_tests::images::busybox()).unwrap());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let post = |path: &str, body: Option<&Value>| {
            let (status, answer) = engine.api("POST", path, body);
            assert!((200..300).contains(&status), "{path}: {answer}");
        };
        let body = json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}});
        engine.create("made", &body);
        disk.lose_power();
        assert_eq!(engine.state("made"), "created");
        post("/containers/made/start", None);
        assert_eq!(
            engine
                .whelk(&[
                    "exec",
                    "made",
                    "sh",
                    "-c",
                    "echo kept >/kept; sync /kept; echo $?"
                ])
                .ok(),
            "0"
        );
        post("/containers/made/rename?name=renamed", None);
        post(
            "/networks/create",
            Some(&json!({"Name": "net", "EnableIPv6": false})),
        );
        post(
            "/volumes/create",
            Some(&json!({"Name": "data", "Labels": {"a": "b"}})),
        );
        post("/images/busybox/tag?repo=other&tag=1", None);
        disk.lose_power();
        assert_eq!(engine.state("made"), "");
        assert_eq!(engine.state("renamed"), "exited");
        let network = engine.get("/networks/net");
        assert_eq!(
            (
                network["Name"].as_str(),
                &engine.get("/volumes/data")["Labels"]["a"]
            ),
            (Some("net"), &json!("b"))
        );
        assert_eq!(
            engine
                .whelk(&[
                    "run",
                    "--rm",
                    "-v",
                    "data:/v",
                    "--network",
                    "none",
                    "other:1",
                    "ls",
                    "-d",
                    "/v"
                ])
                .ok(),
            "/v"
        );
        post("/containers/renamed/start", None);
        assert_eq!(
            engine.whelk(&["exec", "renamed", "cat", "/kept"]).ok(),
            "kept"
        );
        // The state that restart policies depend on.
        post(
            "/containers/renamed/update",
            Some(&json!({"RestartPolicy": {"Name": "unless-stopped"}})),
        );
        disk.lose_power();
        engine.await_state("renamed", "running");
        post("/containers/renamed/stop?t=0", None);
        assert_eq!(engine.api("DELETE", "/networks/net", None).0, 204);
        assert_eq!(engine.api("DELETE", "/volumes/data", None).0, 204);
        disk.lose_power();
        assert_eq!(
            (
                engine.state("renamed").as_str(),
                engine.api("GET", "/networks/net", None).0
            ),
            ("exited", 404)
        );
        assert_eq!(engine.api("GET", "/volumes/data", None).0, 404);
        // The image's content at the target is in the volume; a removed container leaves nothing.
        let mounts = json!([{"Type": "volume", "Source": "copied", "Target": "/bin"}]);
        let body = json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", "Mounts": mounts}});
        engine.create("copies", &body);
        assert_eq!(engine.api("DELETE", "/containers/renamed", None).0, 204);
        disk.lose_power();
        let copied = engine.root().join("volumes/copied/_data/busybox");
        assert!(
            fs::metadata(&copied).is_ok_and(|found| found.len() > 100_000),
            "{copied:?}"
        );
        assert_eq!(engine.state("renamed"), "");
        let aside = engine.root().join("lost+found/containers");
        assert!(!aside.exists());
        let containers = engine.root().join("containers");
        eventually("only one container's directory to be left", || {
            (fs::read_dir(&containers).unwrap().count() == 1).then_some(())
        });
    }));
    disk.remove();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The engine's error, and a function that damages the store's files.
type Damage = (&'static str, fn(&Path));

fn damages() -> Vec<Damage> {
    const PAGE: u64 = 4096;
    vec![
        // SQLite also ignores, without an error, all later frames of the log.
        ("has no record of it", |root| {
            let log = fs::OpenOptions::new()
                .write(true)
                .open(root.join("store.db-wal"))
                .unwrap();
            log.write_all_at(&[0x5a; 64], 32 + PAGE).unwrap();
        }),
        ("is missing", |root| {
            fs::remove_file(root.join("store.db")).unwrap()
        }),
        ("is missing", |root| {
            ["store.db", "store.db-wal"]
                .iter()
                .for_each(|name| fs::remove_file(root.join(name)).unwrap())
        }),
        ("is empty", |root| {
            fs::write(root.join("store.db"), "").unwrap()
        }),
        ("is damaged", |root| {
            fs::write(root.join("store.db"), [0x5a; 8192]).unwrap()
        }),
        ("is missing", |root| {
            fs::remove_file(root.join("store.db-wal")).unwrap()
        }),
        ("is empty", |root| {
            fs::write(root.join("store.db-wal"), "").unwrap()
        }),
        ("is damaged", |root| {
            let log = fs::OpenOptions::new()
                .write(true)
                .open(root.join("store.db-wal"))
                .unwrap();
            log.write_all_at(&[0x5a; 4096], 0).unwrap();
        }),
    ]
}

#[test]
fn a_damaged_store_is_rejected_and_can_be_repaired() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.run(&["network", "create", "net"]).ok();
    cli.run(&["volume", "create", "--label", "a=b", "data"])
        .ok();
    cli.run(&["tag", "busybox", "other:1"]).ok();
    cli.run(&[
        "run",
        "-d",
        "--name",
        "runs",
        "--network",
        "net",
        "--network-alias",
        "alias",
        "busybox",
        "sleep",
        "600",
    ])
    .ok();
    cli.run(&[
        "create",
        "--network",
        "none",
        "--name",
        "first",
        "-v",
        "data:/v",
        "busybox",
        "sleep",
        "600",
    ])
    .ok();
    cli.run(&["rename", "first", "made"]).ok();
    cli.run(&["update", "--restart", "on-failure:3", "made"])
        .ok();
    cli.run(&[
        "run",
        "--network",
        "none",
        "--name",
        "ended",
        "busybox",
        "sh",
        "-c",
        "echo said; echo kept >/kept; exit 3",
    ])
    .exits(3);
    let fields = |name: &str| {
        let found = engine.inspect(name);
        [
            "Id",
            "Name",
            "Created",
            "Image",
            "Config",
            "HostConfig",
            "Mounts",
            "State",
            "NetworkSettings",
        ]
        .map(|field| found[field].clone())
    };
    // Copies of changes at a container's end are written about a second later.
    let ended = engine.inspect("ended")["Id"].as_str().unwrap().to_owned();
    let copy = engine.root().join("containers").join(ended);
    eventually("the copy of what has ended", || {
        let copy = fs::read(copy.join("container.json")).ok()?;
        let copy: Value = serde_json::from_slice(&copy).ok()?;
        (copy["state"]["exit_code"] == 3).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    for (index, (text, damage)) in damages().into_iter().enumerate() {
        let before = ["runs", "made", "ended"].map(&fields);
        let (images, network) = (engine.get("/images/json"), engine.get("/networks/net"));
        let pid = engine.pid("runs");
        engine.kill9();
        damage(&engine.root());
        let said = engine.refuses_to_start();
        assert!(
            said.contains(text) && said.contains("whelk system repair --root"),
            "damage {index}: {said}"
        );
        assert!(is_alive(pid), "damage {index}");
        let told = engine.repair();
        assert!(
            told.contains("containers: 3 from their directories"),
            "damage {index}: {told}"
        );
        engine.restart();
        assert_eq!(
            ["runs", "made", "ended"].map(&fields),
            before,
            "damage {index}: {told}"
        );
        assert_eq!(
            (engine.get("/images/json"), engine.get("/networks/net")),
            (images, network),
            "damage {index}: {told}"
        );
        assert!(is_alive(pid), "damage {index}");
        assert_eq!(cli.run(&["exec", "runs", "echo", "alive"]).ok(), "alive");
        assert_eq!(
            cli.run(&[
                "run",
                "--rm",
                "--network",
                "net",
                "busybox",
                "nslookup",
                "alias"
            ])
            .code,
            0,
            "damage {index}"
        );
        assert_eq!(engine.get("/volumes/data")["Labels"]["a"], "b");
        assert_eq!(cli.run(&["logs", "ended"]).ok(), "said");
    }
    // An undamaged store is not repaired.
    engine.kill9();
    assert!(engine.repair().contains("nothing was changed"));
    engine.restart();
    assert_eq!(
        fs::read_dir(engine.root().join("lost+found"))
            .unwrap()
            .count(),
        damages().len()
    );
    cli.run(&["rm", "-f", "runs", "made", "ended"]).ok();
    cli.run(&["network", "rm", "net"]).ok();
    cli.run(&["volume", "rm", "data"]).ok();
    // The store of a running engine is not repaired.
    let output = Command::new(Program::Whelk.path())
        .args(["system", "repair", "--root"])
        .arg(engine.root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("stop the engine first"),
        "{said}"
    );
}

#[test]
fn directories_without_a_record_are_kept() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.run(&[
        "run",
        "--network",
        "none",
        "--name",
        "one",
        "busybox",
        "sh",
        "-c",
        "echo kept >/kept",
    ])
    .ok();
    let id = engine.inspect("one")["Id"].as_str().unwrap().to_owned();
    let containers = engine.root().join("containers");
    let (unknown, empty) = ("a".repeat(64), "b".repeat(64));
    engine.kill9();
    fs::create_dir_all(containers.join(&unknown).join("upper")).unwrap();
    fs::write(containers.join(&unknown).join("upper/file"), "data").unwrap();
    fs::create_dir_all(containers.join(&empty).join("upper")).unwrap();
    engine.restart();
    let aside = engine.root().join("lost+found/containers");
    assert_eq!(
        fs::read_to_string(aside.join(&unknown).join("upper/file")).unwrap(),
        "data"
    );
    assert!(
        engine.last_words().contains(&unknown),
        "{}",
        engine.last_words()
    );
    eventually("only the known one to be left", || {
        (fs::read_dir(&containers).unwrap().count() == 1).then_some(())
    });
    // An interrupted removal is either reversed or completed.
    engine.kill9();
    fs::rename(containers.join(&id), engine.root().join("trash").join(&id)).unwrap();
    engine.restart();
    assert_eq!(
        fs::read_to_string(containers.join(&id).join("upper/kept")).unwrap(),
        "kept\n"
    );
    // A repair restores a container from a directory with a copy of its record.
    engine.kill9();
    fs::rename(containers.join(&id), aside.join(&id)).unwrap();
    for name in ["store.db", "store.db-wal"] {
        fs::remove_file(engine.root().join(name)).unwrap();
    }
    let told = engine.repair();
    assert!(told.contains("container one is restored from"), "{told}");
    engine.restart();
    assert_eq!(engine.state("one"), "exited");
    assert_eq!(
        fs::read_to_string(containers.join(&id).join("upper/kept")).unwrap(),
        "kept\n"
    );
    cli.run(&["rm", "one"]).ok();
}
