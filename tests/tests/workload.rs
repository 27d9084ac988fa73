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
use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use whelk_engine::instance::Instance;
use whelk_engine::model::NetworkMode;
use whelk_engine::model::network::option;
use whelk_engine::networks::{SandboxConfig, Sandboxes};
use whelk_engine::workload::{Bundle, WorkloadNetwork, Workloads};
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
    let engine = Engine::with_directories();
    engine.load(&std::fs::read(whelk_tests::images::busybox()).unwrap());
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
        bridge: engine
            .networks
            .find("bridge")
            .unwrap()
            .option(option::BRIDGE_NAME)
            .unwrap()
            .to_owned(),
    };
    context.ends_by_itself().await;
    context.is_killed().await;
    context.does_not_start().await;
    context
        .has_the_network_that_it_is_given(&engine.sandboxes)
        .await;
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
    /// The default network's bridge on the host.
    bridge: String,
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
            cgroup_parent: String::new(),
            rootfs: Rootfs::Overlay(Overlay {
                lower: vec![lower],
                upper,
                work,
                volatile: true,
            }),
            layers: Vec::new(),
            user: UserRequest::default(),
            filter: None,
            log: LogConfig {
                driver: Driver::None,
                ..LogConfig::default()
            },
            stdin: false,
            attached: Vec::new(),
            nodes_of_user: Vec::new(),
            network: WorkloadNetwork::None,
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
            bound: false,
            tells_exit: false,
        };
        let mut further = started.exec(exec).await.unwrap();
        assert_eq!(read(&mut further.streams).await, "sh\n4\n");
        assert_eq!(further.end.wait().await.code, 0);
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

    /// Returns the output of a workload that lists its interfaces and their addresses.
    async fn interfaces(&self, id: &str, network: WorkloadNetwork) -> String {
        let mut bundle = self.bundle(id, &["ip", "-o", "addr"]);
        bundle.network = network;
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        bundle
            .attached
            .push((everything(), theirs.into_std().unwrap().into()));
        let started = self.workloads.start(bundle).await.unwrap();
        let text = read(&mut ours).await;
        assert_eq!(started.wait().await.code, 0, "{text}");
        text
    }

    async fn has_the_network_that_it_is_given(&self, sandboxes: &Arc<Sandboxes>) {
        let none = self.interfaces("four", WorkloadNetwork::None).await;
        assert!(
            none.contains("127.0.0.1") && !none.contains("eth0"),
            "{none}"
        );
        let host = self.interfaces("five", WorkloadNetwork::Host).await;
        assert!(host.contains(&self.bridge), "{host}");

        let config = SandboxConfig {
            id: "a".repeat(64),
            name: "step".into(),
            mode: NetworkMode::Bridge,
            ..SandboxConfig::default()
        };
        let endpoints = [("bridge".to_owned(), Default::default())].into();
        let opened = sandboxes.clone();
        let sandbox = tokio::task::spawn_blocking(move || opened.open(&config, &endpoints))
            .await
            .unwrap()
            .unwrap();
        let address = sandbox.state().endpoints["bridge"].addresses()[0];
        let sandbox = Arc::new(sandbox);
        let bundle = self.bundle("six", &["sleep", "1000"]);
        let sleeping = Bundle {
            network: WorkloadNetwork::Sandbox(sandbox.clone()),
            ..bundle
        };
        let sleeping = self.workloads.start(sleeping).await.unwrap();
        let seen = self
            .interfaces("seven", WorkloadNetwork::Sandbox(sandbox))
            .await;
        assert!(
            seen.contains("eth0") && seen.contains(&address.to_string()),
            "{seen}"
        );
        // The first workload still has it, and it goes with the last.
        let ports = format!("/sys/class/net/{}/brif", self.bridge);
        let is_attached = || Path::new(&ports).read_dir().unwrap().count() > 0;
        assert!(is_attached());
        drop(sleeping);
        eventually("the sandbox is detached", || (!is_attached()).then_some(()));
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
