//! Workloads without a record: the life of an OCI configuration under a shim, and workloads that a
//! killed engine leaves behind.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use whelk_engine::instance::Instance;
use whelk_engine::workload::{Bundle, Workloads};
use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::spec::Process;
use whelk_runtime::user::UserRequest;
use whelk_runtime::{Overlay, Rootfs};
use whelk_shim::logs::{Driver, LogConfig};
use whelk_shim::protocol::{Attach, ExecLaunch};
use whelk_tests::{Engine, Program, eventually};

/// Set in the process that hosts an engine of its own: its root, its run directory, its instance
/// name, and a directory for the layers of workloads.
const HOST: &str = "WHELK_TEST_WORKLOADS";

#[test]
fn a_workload_needs_no_record_and_ends_with_its_engine() {
    if let Ok(host) = std::env::var(HOST) {
        let places: Vec<&str> = host.split('\n').collect();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(host_workloads(&places));
    }
    let engine = Engine::start();
    let places = [
        engine.root().display().to_string(),
        engine.run().display().to_string(),
        engine.name().to_owned(),
        engine.scratch_text("workloads"),
    ];
    engine.kill9();
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("a_workload_needs_no_record_and_ends_with_its_engine")
        .env(HOST, places.join("\n"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(host.stdout.take().unwrap()).lines();
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("left: ")?.parse::<i32>().ok());
    host.kill().unwrap();
    host.wait().unwrap();
    let process = PathBuf::from(format!("/proc/{}", pid.expect("the test of workloads")));
    // It does not depend on the engine.
    assert!(process.exists() && engine.run().join("workloads/left").exists());
    engine.restart();
    // In the background: the next engine's start does not wait for it.
    eventually("the workload is killed", || {
        (!process.exists() && !engine.run().join("workloads/left").exists()).then_some(())
    });
    assert_left_nothing(&engine.run(), engine.name(), "left");
    // Other leftovers are found when the engine is dropped.
}

/// Opens an engine, runs workloads, and prints the pid of one that it leaves running.
async fn host_workloads(places: &[&str]) {
    let &[root, run, name, layers] = places else {
        panic!("{places:?}")
    };
    let instance = Instance::new(root.into(), run.into(), name.into()).unwrap();
    let engine = whelk_engine::Engine::open(instance, Program::Whelk.path())
        .await
        .unwrap();
    let context = Context {
        workloads: &engine.workloads,
        root: Path::new(root),
        run: Path::new(run),
        name,
        layers: Path::new(layers),
    };
    context.ends_by_itself().await;
    context.is_killed().await;
    context.does_not_start().await;
    context.has_a_given_network().await;
    let left = context.bundle("left", &["sleep", "1000"]);
    let left = engine.workloads.start(left).await.unwrap();
    println!("left: {}", left.pid);
    std::future::pending().await
}

struct Context<'a> {
    workloads: &'a Workloads,
    root: &'a Path,
    run: &'a Path,
    name: &'a str,
    layers: &'a Path,
}

impl Context<'_> {
    fn bundle(&self, id: &str, command: &[&str]) -> Bundle {
        let spec = json!({
            "ociVersion": "1.2.0",
            "process": {"args": command, "env": ["PATH=/bin"], "cwd": "/"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
            ]},
        });
        let layers = self.root.join("layers").read_dir().unwrap();
        let lower = layers
            .map(|entry| entry.unwrap().path().join("fs"))
            .find(|layer| layer.join("bin/busybox").exists())
            .expect("the layer of busybox");
        let [upper, work] = ["upper", "work"].map(|kind| self.layers.join(id).join(kind));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        Bundle {
            id: id.into(),
            spec: serde_json::from_value(spec).unwrap(),
            rootfs: Rootfs::Overlay(Overlay {
                lower: vec![lower],
                upper,
                work,
                volatile: true,
            }),
            user: UserRequest::default(),
            filter: None,
            log: LogConfig {
                driver: Driver::None,
                ..LogConfig::default()
            },
            stdin: false,
            attached: Vec::new(),
            network: None,
        }
    }

    /// A workload with streams, in which a further process is started.
    async fn ends_by_itself(&self) {
        let script = "cat /proc/1/comm; read line; echo got $line; exit 7";
        let mut bundle = self.bundle("one", &["sh", "-c", script]);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        bundle.stdin = true;
        bundle
            .attached
            .push((everything(), theirs.into_std().unwrap().into()));
        let started = self.workloads.start(bundle).await.unwrap();
        assert!(self.run.join("workloads/one/shim.sock").exists());
        let exec = ExecLaunch {
            id: "further".into(),
            process: Process {
                args: ["sh", "-c", "cat /proc/1/comm; ls /proc/self/fd | wc -l"]
                    .map(str::to_owned)
                    .to_vec(),
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                ..Process::default()
            },
            user: UserRequest::default(),
            filter: None,
            attach: Some(everything()),
            stdin: false,
        };
        let (_, mut output) = started.exec(exec).await.unwrap();
        assert_eq!(read(&mut output).await, "sh\n4\n");
        ours.write_all(b"a line\n").await.unwrap();
        assert_eq!(read(&mut ours).await, "sh\ngot a line\n");
        assert_eq!(started.wait().await.code, 7);
        assert_left_nothing(self.run, self.name, "one");
    }

    async fn is_killed(&self) {
        let bundle = self.bundle("two", &["sleep", "1000"]);
        let started = self.workloads.start(bundle).await.unwrap();
        started.kill(9).await.unwrap();
        let exit = started.wait().await;
        assert_eq!((exit.code, exit.signal), (137, Some(9)));
        assert_left_nothing(self.run, self.name, "two");
    }

    /// A workload in a given network namespace.
    async fn has_a_given_network(&self) {
        let namespace = std::thread::spawn(|| {
            whelk_sys::process::unshare(whelk_sys::process::CloneFlags::NEWNET).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = namespace.join().unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&namespace.metadata().unwrap());
        let mut bundle = self.bundle("four", &["readlink", "/proc/self/ns/net"]);
        bundle.network = Some(namespace.into());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        bundle
            .attached
            .push((everything(), theirs.into_std().unwrap().into()));
        let started = self.workloads.start(bundle).await.unwrap();
        assert_eq!(read(&mut ours).await, format!("net:[{inode}]\n"));
        assert_eq!(started.wait().await.code, 0);
    }

    async fn does_not_start(&self) {
        let bundle = self.bundle("three", &["missing"]);
        let error = self.workloads.start(bundle).await.unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
        assert_left_nothing(self.run, self.name, "three");
    }
}

fn everything() -> Attach {
    Attach {
        stdin: true,
        stdout: true,
        stderr: true,
        raw: Some(true),
        ..Attach::default()
    }
}

async fn read(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[track_caller]
fn assert_left_nothing(run: &Path, name: &str, id: &str) {
    assert!(!run.join("workloads").join(id).exists(), "{id}");
    let cgroup = Cgroup::at(&format!("/{name}/workload-{id}")).unwrap();
    assert!(!cgroup.exists(), "{id}");
}
