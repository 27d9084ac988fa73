//! `whelk oci`: the life of a container through the OCI runtime command line.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test says why it fails by failing"
)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use whelk_tests::{Engine, Program, eventually, skipped};

/// A bundle with busybox, and a directory for the runtime's state, both in the engine's scratch
/// directory.
struct Bundle {
    engine: Engine,
    path: PathBuf,
    id: String,
}

impl Bundle {
    fn new(script: &str, change: impl FnOnce(&mut Value)) -> Self {
        let engine = Engine::start();
        let path = engine.scratch("bundle");
        let rootfs = path.join("rootfs");
        fs::create_dir(&rootfs).unwrap();
        engine
            .docker(&["create", "--name", "source", "busybox"])
            .ok();
        let archive = path.join("root.tar");
        engine
            .docker(&["export", "-o", &archive.display().to_string(), "source"])
            .ok();
        assert!(
            Command::new("tar")
                .arg("-C")
                .arg(&rootfs)
                .arg("-xf")
                .arg(&archive)
                .status()
                .unwrap()
                .success()
        );
        let id = format!("oci-{}", std::process::id())
            + &path
                .display()
                .to_string()
                .replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let bundle = Self { engine, path, id };
        bundle.call(&["spec", "--bundle", &bundle.path.display().to_string()]);
        let config = bundle.path.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
        change(&mut spec);
        fs::write(config, spec.to_string()).unwrap();
        bundle
    }

    fn output(&self, args: &[&str]) -> Output {
        let state = self.path.join("state").display().to_string();
        Command::new(Program::Whelk.path())
            .args(["oci", "--root", &state])
            .args(args)
            .output()
            .unwrap()
    }

    fn call(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, args: &[&str], text: &str) {
        let output = self.output(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(text),
            "{args:?}: expected {text:?} in {error:?}"
        );
    }

    fn bundle_path(&self) -> String {
        self.path.display().to_string()
    }

    fn create(&self) {
        // Standard output stays with the container: it must not be this command's pipe.
        let log = fs::File::create(self.path.join("log")).unwrap();
        let state = self.path.join("state").display().to_string();
        let mut command = Command::new(Program::Whelk.path());
        command.args([
            "oci",
            "--root",
            &state,
            "create",
            "--bundle",
            &self.bundle_path(),
            &self.id,
        ]);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        assert!(
            command.status().unwrap().success(),
            "{}",
            fs::read_to_string(self.path.join("log")).unwrap()
        );
    }

    fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.call(&["state", &self.id])).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.output(&["delete", "--force", &self.id]);
        assert!(
            std::thread::panicking() || !cgroup_exists(&self.id),
            "the cgroup of {} is left",
            self.id
        );
    }
}

/// CVE-2019-5736: a process in the container opens the runtime's program for writing.
#[test]
fn the_runtime_cannot_be_overwritten_from_inside() {
    let trap = "printf '#!/proc/self/exe\\n' >/evil; chmod +x /evil; touch /ready; while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in /bin/busybox|'') ;; *) \
        ( exec 9<$p/exe && i=0 && while [ $i -lt 300 ]; do echo POISON >>/proc/self/fd/9 && touch /wrote; i=$((i+1)); done ) ;; esac; done; done 2>/dev/null";
    let bundle = Bundle::new(trap, |spec| {
        spec["root"]["readonly"] = json!(false);
        spec["process"]["args"] = json!(["sh", "-c", trap]);
    });
    // A copy, in case that it is overwritten.
    let program = bundle.path.join("whelk");
    fs::copy(Program::Whelk.path(), &program).unwrap();
    let before = fs::read(&program).unwrap();
    let state = bundle.path.join("state");
    let call = |args: &[&str]| {
        Command::new(&program)
            .args(["oci", "--root", &state.display().to_string()])
            .args(args)
            .stdout(std::process::Stdio::null())
            .status()
    };
    assert!(
        call(&["create", "--bundle", &bundle.bundle_path(), &bundle.id])
            .unwrap()
            .success()
    );
    assert!(call(&["start", &bundle.id]).unwrap().success());
    let rootfs = bundle.path.join("rootfs");
    eventually("the trap to be set", || {
        rootfs.join("ready").exists().then_some(())
    });
    for _ in 0..30 {
        assert!(!call(&["exec", &bundle.id, "/evil"]).unwrap().success());
        assert!(call(&["exec", &bundle.id, "true"]).unwrap().success());
    }
    assert!(
        !rootfs.join("wrote").exists() && fs::read(&program).unwrap() == before,
        "the program was changed"
    );
}

/// The name is in the line of `/proc/PID/stat` by which the process is recognized.
#[test]
fn a_process_name_may_contain_any_characters() {
    let script = "n=\"$(printf '/tmp/) Z\\377')\"; printf '#!/bin/sh\\nsleep 600; true\\n' >\"$n\"; chmod +x \"$n\"; exec \"$n\"";
    let bundle = Bundle::new(script, |spec| spec["root"]["readonly"] = json!(false));
    bundle.create();
    bundle.call(&["start", &bundle.id]);
    eventually("the program to run", || {
        bundle
            .call(&["ps", &bundle.id])
            .contains("sleep 600")
            .then_some(())
    });
    assert_eq!(bundle.status(), "running");
    bundle.fails(&["delete", &bundle.id], "not stopped");
}

#[test]
fn rejects_hostnames_and_sysctls_of_shared_namespaces() {
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for (change, text) in [
        (
            json!({"hostname": "evil"}),
            "unable to set hostname without a private UTS namespace",
        ),
        (
            json!({"hostname": "", "domainname": "evil"}),
            "unable to set domainname without a private UTS namespace",
        ),
        (
            json!({"hostname": "", "sysctl": {"net.ipv4.ip_forward": "9"}}),
            "sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace",
        ),
    ] {
        let bundle = Bundle::new("true", |spec| {
            spec["hostname"] = change["hostname"].clone();
            spec["domainname"] = json!(change["domainname"].as_str().unwrap_or_default());
            spec["linux"]["sysctl"] = change.get("sysctl").cloned().unwrap_or(json!({}));
            // Namespaces given by the host's paths count as shared.
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"},
                {"type": "uts", "path": "/proc/self/ns/uts"}, {"type": "network", "path": "/proc/self/ns/net"}]);
        });
        bundle.fails(
            &["run", "--bundle", &bundle.bundle_path(), &bundle.id],
            text,
        );
    }
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/hostname").unwrap(),
        own
    );
}

fn cgroup_exists(name: &str) -> bool {
    ["", "memory", "pids", "freezer"].iter().any(|tree| {
        PathBuf::from("/sys/fs/cgroup")
            .join(tree)
            .join(name)
            .exists()
    })
}

#[test]
fn a_container_goes_through_all_its_states() {
    let bundle = Bundle::new("echo started; sleep 600; true", |spec| {
        spec["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}})
    });
    let id = bundle.id.as_str();
    bundle.create();
    assert_eq!(bundle.status(), "created");
    bundle.fails(
        &["create", "--bundle", &bundle.bundle_path(), id],
        "already exists",
    );
    bundle.call(&["start", id]);
    eventually("the program to run", || {
        fs::read_to_string(bundle.path.join("log"))
            .unwrap()
            .contains("started")
            .then_some(())
    });
    assert_eq!(bundle.status(), "running");
    bundle.fails(&["start", id], "cannot start a container that is running");
    bundle.fails(&["delete", id], "not stopped");
    let pids: Vec<i32> =
        serde_json::from_str(&bundle.call(&["ps", "--format", "json", id])).unwrap();
    assert_eq!(pids.len(), 2, "the shell and its child: {pids:?}");
    bundle.call(&["pause", id]);
    assert_eq!(bundle.status(), "paused");
    bundle.call(&["resume", id]);
    bundle.call(&["update", "--memory", "33554432", id]);
    assert_eq!(bundle.call(&["list", "--quiet"]).trim(), id);
    bundle.call(&["kill", id, "KILL"]);
    eventually("the container to end", || {
        (bundle.status() == "stopped").then_some(())
    });
    bundle.fails(&["kill", id], "container not running");
    bundle.call(&["delete", id]);
    bundle.fails(&["state", id], "container does not exist");
}

#[test]
fn run_and_exec_exit_with_the_programs_status() {
    let bundle = Bundle::new("exit 7", |_| {});
    let output = bundle.output(&["run", "--bundle", &bundle.bundle_path(), &bundle.id]);
    assert_eq!(
        output.status.code(),
        Some(7),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let running = Bundle::new("sleep 600", |_| {});
    running.create();
    running.call(&["start", &running.id]);
    assert_eq!(
        running
            .call(&[
                "exec",
                "--env",
                "A=b",
                "--cwd",
                "/tmp",
                &running.id,
                "sh",
                "-c",
                "echo $A $(pwd) $(id -u)"
            ])
            .trim(),
        "b /tmp 0"
    );
    assert_eq!(
        running
            .output(&["exec", &running.id, "sh", "-c", "exit 3"])
            .status
            .code(),
        Some(3)
    );
    running.fails(
        &["exec", &running.id, "nosuch"],
        "executable file not found in $PATH",
    );
}

#[test]
fn rejected_bundles_leave_nothing() {
    let bundle = Bundle::new("true", |spec| spec["process"]["args"] = json!(["nosuch"]));
    let path = bundle.bundle_path();
    bundle.fails(
        &["run", "--bundle", &path, &bundle.id],
        "executable file not found in $PATH",
    );
    bundle.fails(
        &["run", "--bundle", "/nonexistent", &bundle.id],
        "no such file or directory",
    );
    bundle.fails(&["state", "../x"], "invalid container ID");
    fs::write(bundle.path.join("config.json"), "{").unwrap();
    bundle.fails(&["create", "--bundle", &path, &bundle.id], "config.json");
    assert_eq!(bundle.call(&["list", "--quiet"]), "");
    assert!(!cgroup_exists(&bundle.id));
    drop(bundle.engine.docker(&["ps"]));
}

#[test]
fn features_lists_what_is_supported() {
    let bundle = Bundle::new("true", |_| {});
    let features: Value = serde_json::from_str(&bundle.call(&["features"])).unwrap();
    assert_eq!(features["ociVersionMax"], "1.2.1");
    assert!(
        features["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .contains(&json!("time"))
    );
}

#[test]
fn exec_options_take_effect() {
    let bundle = Bundle::new("sleep 600", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin:/usr/bin", "SAID=before"]);
        spec["process"]["capabilities"] =
            json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]});
    });
    bundle.create();
    bundle.call(&["start", &bundle.id]);
    let exec = |flags: &[&str], script: &str| {
        bundle
            .call(&[&["exec"], flags, &[&bundle.id, "sh", "-c", script]].concat())
            .trim()
            .to_owned()
    };
    assert_eq!(
        exec(&["--env", "SAID=after"], "echo $SAID; env | grep -c SAID"),
        "after\n1",
        "the later value counts"
    );
    let held = "grep CapEff /proc/self/status";
    assert!(
        exec(&[], held).ends_with("0000000000000020")
            && exec(&["--cap", "CAP_CHOWN"], held).ends_with("0000000000000021")
    );
    // Descriptors after the standard streams: only as many as requested, and only those that exist.
    let through = |flags: &str| {
        let state = bundle.path.join("state").display().to_string();
        let whelk = Program::Whelk.path();
        let script = format!(
            "exec 3>/dev/null 4>/dev/null; exec {} oci --root {state} exec {flags} {} ls /proc/self/fd",
            whelk.display(),
            bundle.id
        );
        Command::new("sh").arg("-c").arg(script).output().unwrap()
    };
    let open = |flags: &str| {
        String::from_utf8(through(flags).stdout)
            .unwrap()
            .split_whitespace()
            .filter(|fd| matches!(*fd, "3" | "4"))
            .count()
    };
    // The listing itself opens one.
    assert_eq!((open(""), open("--preserve-fds 2")), (1, 2));
    let refused = through("--preserve-fds 9");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("is not open"),
        "{refused:?}"
    );
    // A process object may name processors.
    let object = json!({"args": ["sh", "-c", "grep Cpus_allowed_list /proc/self/status"], "cwd": "/", "user": {"uid": 0, "gid": 0},
        "env": ["PATH=/bin"], "execCPUAffinity": {"initial": "0", "final": "1"}});
    let file = bundle.path.join("process.json");
    fs::write(&file, object.to_string()).unwrap();
    let said = bundle.call(&["exec", "--process", &file.display().to_string(), &bundle.id]);
    assert!(said.trim().ends_with("1"), "{said}");
    bundle.call(&["pause", &bundle.id]);
    bundle.fails(&["exec", &bundle.id, "true"], "paused");
    bundle.call(&["resume", &bundle.id]);
}

#[test]
fn hooks_run_at_their_lifecycle_steps() {
    let bundle = Bundle::new("sleep 600", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin:/usr/bin", "OF=process"]);
        spec["root"]["readonly"] = json!(false);
        let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        spec["hooks"] = json!({
            "startContainer": [hook("echo $OF > /started")],
            "poststop": [hook("exit 1"), hook("touch /tmp/whelk-poststop-$$; rm /tmp/whelk-poststop-$$; exit 0")],
        });
    });
    bundle.create();
    let mark = bundle.path.join("rootfs/started");
    assert!(!mark.exists(), "not before the start");
    bundle.call(&["start", &bundle.id]);
    eventually("the hook to have run", || {
        (fs::read_to_string(&mark).ok()? == "process\n").then_some(())
    });
    let output = bundle.output(&["delete", "--force", &bundle.id]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && told.matches("warning: poststop").count() == 1,
        "{told}"
    );
}

#[test]
fn delete_force_removes_leftovers_of_a_killed_create() {
    let bundle = Bundle::new("true", |_| {});
    let directory = bundle.path.join("state").join(&bundle.id);
    fs::create_dir_all(&directory).unwrap();
    fs::copy(
        bundle.path.join("config.json"),
        directory.join("config.json"),
    )
    .unwrap();
    bundle.fails(
        &["create", "--bundle", &bundle.bundle_path(), &bundle.id],
        "already exists",
    );
    bundle.call(&["delete", "--force", &bundle.id]);
    let output = bundle.output(&["run", "--bundle", &bundle.bundle_path(), &bundle.id]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_unknown_capability_is_a_warning() {
    let bundle = Bundle::new("true", |spec| {
        spec["process"]["capabilities"] = json!({"bounding": ["CAP_NOSUCH"]})
    });
    let output = bundle.output(&["run", "--bundle", &bundle.bundle_path(), &bundle.id]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success()
            && told.contains("ignoring unknown or unavailable capabilities: [CAP_NOSUCH]"),
        "{told}"
    );
}

#[test]
fn ids_of_a_mount_are_mapped() {
    let bundle = Bundle::new("stat -c %u:%g /m/file >&2", |_| {});
    let shared = bundle.engine.scratch("shared");
    fs::write(shared.join("file"), "").unwrap();
    let config = bundle.path.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/m", "type": "bind", "source": shared, "options": ["rbind", "idmap"], "uidMappings": mapping, "gidMappings": mapping,
    }));
    fs::write(config, spec.to_string()).unwrap();
    let output = bundle.output(&["run", "--bundle", &bundle.bundle_path(), &bundle.id]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Not every file system supports ID-mapped mounts on every kernel; ext4 does.
    const EXT4: i64 = 0xef53;
    let must = rustix::fs::statfs(&shared).unwrap().f_type == EXT4;
    assert!(
        said.contains("100000:100000")
            || !must && !output.status.success() && said.contains("map ids of"),
        "{said}"
    );
}

#[test]
fn huge_pages_are_limited_where_the_kernel_counts_them() {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !controllers.split_whitespace().any(|one| one == "hugetlb") {
        return skipped!("no controller hugetlb in a cgroup v2 tree");
    }
    let limits = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]});
    let bundle = Bundle::new("sleep 600", |spec| spec["linux"]["resources"] = limits);
    bundle.create();
    let file = PathBuf::from("/sys/fs/cgroup")
        .join(&bundle.id)
        .join("hugetlb.2MB.max");
    assert_eq!(
        fs::read_to_string(file).unwrap().trim(),
        (4 << 20).to_string()
    );
}
