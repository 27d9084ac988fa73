//! Operations of an engine that is killed at each of their steps, or in which each step fails. The
//! program under test must be built with debug assertions; `whelk_sys::step` does nothing without.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::{Path, PathBuf};

use whelk_tests::{
    Cli, Connection, Engine, FreeSubnet, Output, Program, VolumePlugin, eventually, free_port,
};

/// Temporary directories of an archive and of its layer, which the next start of the engine removes.
const TEMPORARY_DIRECTORIES: u32 = 2;

/// Resources of the host that only one test uses.
struct Case {
    subnet: FreeSubnet,
    port: u16,
}

impl Case {
    fn new() -> Self {
        Self {
            subnet: FreeSubnet::new(),
            port: free_port(),
        }
    }

    /// Returns the file with the number of the step at which the engine dies or fails.
    fn file(&self) -> PathBuf {
        let name = format!("whelk-steps-{}-{}", std::process::id(), self.port);
        std::env::temp_dir().join(name)
    }

    /// Starts an engine that dies or fails at the step in [`Case::file`].
    fn engine(&self) -> Engine {
        Engine::with_env(&[("WHELK_STEPS", &self.file().to_string_lossy())])
    }

    /// Returns the command that creates a network of few addresses, so that one that was not released
    /// is soon missing.
    fn network(&self) -> Vec<String> {
        let subnet = self.subnet.v4_part(0, 29);
        words(&format!("network create --subnet {subnet} net"))
    }

    /// Returns the command that runs a container in `network` with a published port.
    fn run(&self, flags: &str, network: &str) -> Vec<String> {
        words(&format!(
            "run {flags} --name one --network {network} -p 127.0.0.1:{}:80 busybox sleep 3600",
            self.port
        ))
    }

    /// Repeats `operation` with an engine that is killed one step later each time, until it completes.
    /// `prepare` creates what the operation needs. After each kill, the state is checked, the operation is
    /// repeated, and its objects are removed.
    #[track_caller]
    fn at_every_step(&self, prepare: &[Vec<String>], operation: &[String]) {
        self.at_every_step_of(&self.engine(), prepare, operation, || {});
    }

    /// Like [`Case::at_every_step`], with the caller's engine. `check` is called after the objects of
    /// `prepare` and of the operation were removed.
    #[track_caller]
    fn at_every_step_of(
        &self,
        engine: &Engine,
        prepare: &[Vec<String>],
        operation: &[String],
        check: impl Fn(),
    ) {
        let file = self.file();
        let cli = engine.cli(Program::Whelk);
        for steps in 0.. {
            prepare
                .iter()
                .for_each(|command| drop(run(cli, command).ok()));
            fs::write(&file, steps.to_string()).unwrap();
            let done = run(cli, operation);
            end_count(&file);
            let lived = engine.answers();
            if lived {
                assert!(steps > 0, "this build does not die at a step");
                done.ok();
            } else {
                engine.kill9();
                engine.restart();
            }
            eventually("pauses of the engine to end", || {
                let paused = cli.run(&["ps", "-q", "--filter", "status=paused"]).ok();
                paused.is_empty().then_some(())
            });
            agrees_with_itself(cli);
            is_sound(cli, &format!("after {steps} steps of {operation:?}"));
            self.all_can_be_made_again(cli);
            let when = format!("the interfaces to go after {steps} steps of {operation:?}");
            eventually(&when, || engine.interfaces().is_empty().then_some(()));
            check();
            if lived {
                return;
            }
        }
    }

    /// Repeats `operation` with one step that fails, a later one each time, until none does. `prepare`
    /// creates what the operation needs, once; `reverse` removes its results. After a failure the state
    /// must be as before, and the same operation must succeed. Returns the number of failed steps despite
    /// which the operation succeeded; after a start, they include those of the warm pool.
    #[track_caller]
    fn fails_at_every_step(
        &self,
        prepare: &[Vec<String>],
        operation: &[String],
        reverse: &[Vec<String>],
    ) -> u32 {
        self.fails_at_every_step_of(&self.engine(), prepare, operation, reverse, Vec::new)
    }

    /// Like [`Case::fails_at_every_step`], with the caller's engine. `also` returns further state that a
    /// failed operation could leave.
    #[track_caller]
    fn fails_at_every_step_of(
        &self,
        engine: &Engine,
        prepare: &[Vec<String>],
        operation: &[String],
        reverse: &[Vec<String>],
        also: impl Fn() -> Vec<String>,
    ) -> u32 {
        let file = self.file();
        let cli = engine.cli(Program::Whelk);
        let left_behind = |cli| [left_behind(cli), also()].concat();
        let must = |commands: &[Vec<String>]| {
            commands
                .iter()
                .for_each(|command| drop(run(cli, command).ok()));
        };
        must(prepare);
        // Until the pool of network namespaces is filled.
        let (mut before, mut unchanged) = (Vec::new(), 0);
        let settled = within_seconds(60, || {
            let last = std::mem::replace(&mut before, left_behind(cli));
            unchanged = if last == before { unchanged + 1 } else { 0 };
            std::thread::sleep(std::time::Duration::from_millis(500));
            unchanged >= 3
        });
        assert!(settled, "{before:#?}");
        let is_as_before = |when: &str| {
            let mut now = Vec::new();
            let same = within_seconds(60, || {
                now = left_behind(cli);
                now == before
            });
            assert!(
                same,
                "{when} of {operation:?}: {now:#?}\nbefore: {before:#?}"
            );
        };
        let (mut failures, mut swallowed) = (0, 0);
        for steps in 0.. {
            fs::write(&file, format!("fail {steps}")).unwrap();
            let done = run(cli, operation);
            let has_ended = fs::read_to_string(&file).unwrap().is_empty();
            end_count(&file);
            if done.code != 0 {
                failures += 1;
                let error = done.err();
                assert!(
                    has_ended && error.contains(": input/output error"),
                    "step {steps} of {operation:?}: {error}"
                );
                is_as_before(&format!("after the failure of step {steps} ({error})"));
                run(cli, operation).ok();
            } else if has_ended {
                swallowed += 1;
            }
            must(reverse);
            is_as_before(&format!("after step {steps} and the reverse"));
            if !has_ended {
                assert!(failures > 0, "no step of {operation:?} has failed");
                // Removes the temporary files that could not be removed.
                engine.kill9();
                engine.restart();
                return swallowed;
            }
        }
        unreachable!("the number of steps is finite")
    }

    fn all_can_be_made_again(&self, cli: Cli<'_>) {
        if has(cli, "volume", "copy") {
            assert_eq!(
                cli.run(&["run", "--rm", "-v", "copy:/v", "busybox", "cat", "/v/file"])
                    .ok(),
                "whole"
            );
            cli.run(&["volume", "rm", "copy"]).ok();
        }
        if has(cli, "container", "one") {
            cli.run(&["rm", "-f", "one"]).ok();
        }
        if !has(cli, "network", "net") {
            run(cli, &self.network()).ok();
        }
        // Its port, name and addresses are free again, including the subnet's last address.
        let address = self.subnet.v4_host(6);
        let again = self.run(&format!("-d --ip {address} -v kept:/v"), "net");
        run(cli, &again).ok();
        cli.run(&["rm", "-f", "one"]).ok();
        cli.run(&["network", "rm", "net"]).ok();
        cli.run(&["volume", "rm", "kept"]).ok();
        assert!(
            !has(cli, "network", "net")
                && !has(cli, "volume", "kept")
                && !has(cli, "container", "one")
        );
    }
}

/// Ends the count of steps in `file`. After this, the engine is dead, or will not be killed by it.
fn end_count(file: &Path) {
    let count = fs::File::options().write(true).open(file).unwrap();
    count.lock().unwrap();
    count.set_len(0).unwrap();
    fs::remove_file(file).unwrap();
}

/// Returns whether something becomes true in time.
fn within_seconds(seconds: u32, mut is_true: impl FnMut() -> bool) -> bool {
    (0..seconds * 5).any(|_| {
        let now = is_true();
        if !now {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        now
    })
}

/// Returns the state that a failed operation could change: objects, files and interfaces.
fn left_behind(cli: Cli<'_>) -> Vec<String> {
    let mut found = cli.engine().interfaces();
    // Peers in containers have random names.
    found.iter_mut().for_each(|name| name.truncate(4));
    let lists: [&[&str]; 5] = [
        &[
            "ps",
            "-a",
            "--format",
            "container {{.Names}} {{.State}} {{.Ports}}",
        ],
        &["network", "ls", "--format", "network {{.Name}}"],
        &["volume", "ls", "--format", "volume {{.Name}}"],
        // A container that was not created must not count as a user of a volume.
        &[
            "volume",
            "ls",
            "-f",
            "dangling=true",
            "--format",
            "unused {{.Name}}",
        ],
        &["images", "--format", "image {{.Repository}} {{.ID}}"],
    ];
    for list in lists {
        found.extend(cli.run(list).ok().lines().map(str::to_owned));
    }
    let root = cli.engine().root();
    for directory in ["containers", "volumes", "layers", "blobs/sha256"] {
        let count = fs::read_dir(root.join(directory)).unwrap().count();
        found.push(format!("{directory}: {count}"));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = root.to_string_lossy().into_owned();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&root))
            .map(str::to_owned),
    );
    found
}

fn words(text: &str) -> Vec<String> {
    text.split(' ')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn run(cli: Cli<'_>, command: &[String]) -> Output {
    cli.run(&command.iter().map(String::as_str).collect::<Vec<_>>())
}

fn has(cli: Cli<'_>, kind: &str, name: &str) -> bool {
    let listed: &[&str] = if kind == "container" {
        &["ps", "-a", "--format", "{{.Names}}"]
    } else {
        &[kind, "ls", "--format", "{{.Name}}"]
    };
    cli.run(listed).ok().lines().any(|found| found == name)
}

/// Checks that nothing has leaked, and that all that is recorded is there.
fn is_sound(cli: Cli<'_>, when: &str) {
    let mut last = String::new();
    let is_sound = within_seconds(60, || {
        let done = cli.run(&["system", "check", "--layers"]);
        last = done.out();
        done.code == 0
    });
    assert!(is_sound, "{when}:\n{last}");
}

/// Checks that the container's recorded networks equal its interfaces.
fn agrees_with_itself(cli: Cli<'_>) {
    if !has(cli, "container", "one") {
        return;
    }
    let state = cli.engine().inspect("one");
    if state["State"]["Status"] != "running" {
        return;
    }
    let networks = state["NetworkSettings"]["Networks"].as_object().unwrap();
    let said = networks
        .values()
        .filter(|network| {
            network["IPAddress"]
                .as_str()
                .is_some_and(|address| !address.is_empty())
        })
        .count();
    let found: usize = cli
        .run(&[
            "exec",
            "one",
            "sh",
            "-c",
            "ls -d /sys/class/net/eth* | wc -l",
        ])
        .ok()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(said, found, "{networks:?}");
}

#[test]
fn network_create() {
    let case = Case::new();
    case.at_every_step(&[], &case.network());
}

#[test]
fn network_remove() {
    let case = Case::new();
    case.at_every_step(&[case.network()], &words("network rm net"));
}

#[test]
fn container_with_network_port_and_volume() {
    let case = Case::new();
    case.at_every_step(&[case.network()], &case.run("-d -v kept:/v", "net"));
}

#[test]
fn network_connect() {
    let case = Case::new();
    case.at_every_step(
        &[case.network(), case.run("-d", "bridge")],
        &words("network connect net one"),
    );
}

#[test]
fn network_disconnect() {
    let case = Case::new();
    case.at_every_step(
        &[case.network(), case.run("-d", "net")],
        &words("network disconnect net one"),
    );
}

#[test]
fn container_remove() {
    let case = Case::new();
    case.at_every_step(
        &[case.network(), case.run("-d", "net")],
        &words("rm -f one"),
    );
}

#[test]
fn volume_create_and_remove() {
    let case = Case::new();
    case.at_every_step(&[], &words("volume create kept"));
    case.at_every_step(&[words("volume create kept")], &words("volume rm kept"));
}

#[test]
fn volume_copies() {
    let case = Case::new();
    let made = words("run --rm -v kept:/v busybox sh -c echo${IFS}whole>/v/file");
    case.at_every_step(
        std::slice::from_ref(&made),
        &words("volume clone kept copy"),
    );
    case.at_every_step(
        std::slice::from_ref(&made),
        &words("volume snapshot kept copy"),
    );
    // An archive of what the others copy.
    let archive = std::env::temp_dir().join(format!("whelk-steps-{}.tar", std::process::id()));
    fs::write(
        &archive,
        whelk_tests::tar::Tar::new()
            .file("file", "whole\n")
            .finish(),
    )
    .unwrap();
    case.at_every_step(
        &[made],
        &words(&format!("volume import copy {}", archive.display())),
    );
    fs::remove_file(&archive).unwrap();
}

#[test]
fn network_create_fails() {
    let case = Case::new();
    let swallowed = case.fails_at_every_step(&[], &case.network(), &[words("network rm net")]);
    assert_eq!(swallowed, 0);
}

#[test]
fn container_create_fails() {
    let case = Case::new();
    let swallowed = case.fails_at_every_step(
        &[case.network(), words("volume create kept")],
        &words("create --name one --network net -v kept:/kept -v /etc busybox true"),
        &[words("rm -v one")],
    );
    assert_eq!(swallowed, 0);
}

#[test]
fn container_start_fails() {
    let case = Case::new();
    let create = format!(
        "create --name one --network net -p 127.0.0.1:{}:80 -v kept:/v busybox sleep 3600",
        case.port
    );
    case.fails_at_every_step(
        &[case.network(), words(&create)],
        &words("start one"),
        &[words("rm -f one"), words(&create)],
    );
}

#[test]
fn network_connect_fails() {
    let case = Case::new();
    let swallowed = case.fails_at_every_step(
        &[case.network(), case.run("-d", "bridge")],
        &words("network connect net one"),
        &[words("network disconnect net one")],
    );
    assert_eq!(swallowed, 0);
}

#[test]
fn volume_create_fails() {
    let swallowed = Case::new().fails_at_every_step(
        &[],
        &words("volume create kept"),
        &[words("volume rm kept")],
    );
    assert_eq!(swallowed, 0);
}

#[test]
fn load_fails() {
    let path = whelk_tests::images::busybox().display().to_string();
    let swallowed = Case::new().fails_at_every_step(
        &[words("rmi busybox")],
        &words(&format!("load -i {path}")),
        &[words("rmi busybox")],
    );
    assert!(swallowed <= TEMPORARY_DIRECTORIES, "{swallowed}");
}

/// A container with a layer of its own, which a commit pauses.
const COMMITTED: &str = "run -d --name one --network none -w /made busybox sleep 3600";

#[test]
fn commit_is_killed() {
    let case = Case::new();
    let engine = case.engine();
    let cli = engine.cli(Program::Whelk);
    let count = |directory: &str| fs::read_dir(engine.root().join(directory)).unwrap().count();
    let counts = || (count("layers"), count("blobs/sha256"));
    let before = counts();
    case.at_every_step_of(
        &engine,
        &[words(COMMITTED)],
        &words("commit one made"),
        || {
            if !cli.run(&["images", "-q", "made"]).ok().is_empty() {
                cli.run(&["rmi", "made"]).ok();
            }
            eventually("what was committed to be removed", || {
                (counts() == before).then_some(())
            });
        },
    );
}

/// The next build goes on from the last step that was complete; without the cache nothing is left.
#[test]
fn build_is_killed() {
    let case = Case::new();
    let engine = case.engine();
    let (cli, file) = (engine.cli(Program::Docker), case.file());
    let context = engine.scratch("context");
    let dockerfile =
        "FROM busybox\nCOPY file /file\nRUN --mount=type=cache,target=/c echo made > /made\n";
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    fs::write(context.join("file"), "content").unwrap();
    let build = words(&format!("build -q -t made {}", context.display()));
    let count = |directory: &str| fs::read_dir(engine.root().join(directory)).unwrap().count();
    let counts = || (count("layers"), count("blobs/sha256"), count("tmp"));
    let before = counts();
    for steps in 0.. {
        fs::write(&file, steps.to_string()).unwrap();
        let done = run(cli, &build);
        end_count(&file);
        let lived = engine.answers();
        if lived {
            assert!(steps > 0, "this build does not die at a step");
            done.ok();
        } else {
            engine.kill9();
            engine.restart();
        }
        let when = format!("after {steps} steps of a build");
        is_sound(engine.cli(Program::Whelk), &when);
        run(cli, &build).ok();
        let look = words("run --rm --network none made cat /file /made");
        assert_eq!(run(cli, &look).ok(), "contentmade", "{when}");
        cli.run(&["rmi", "made"]).ok();
        cli.run(&["builder", "prune", "-af"]).ok();
        eventually(&format!("all to be removed {when}"), || {
            (counts() == before).then_some(())
        });
        if lived {
            return;
        }
    }
}

#[test]
fn commit_fails() {
    let swallowed = Case::new().fails_at_every_step(
        &[words(COMMITTED)],
        &words("commit one made"),
        &[words("rmi made")],
    );
    // Temporary directories, and the records before and after the pause and at its end.
    assert!(swallowed <= TEMPORARY_DIRECTORIES + 3, "{swallowed}");
}

#[test]
fn network_connect_that_publishes_a_port_fails() {
    let case = Case::new();
    // The port is published through the first network that leads to the outside.
    let inner = case.subnet.v4_part(8, 29);
    let inner = format!("network create --internal --subnet {inner} inner");
    let swallowed = case.fails_at_every_step(
        &[case.network(), words(&inner), case.run("-d", "inner")],
        &words("network connect net one"),
        &[words("network disconnect net one")],
    );
    assert_eq!(swallowed, 0);
}

#[test]
fn container_with_a_volume_of_a_device_fails() {
    let case = Case::new();
    let create = words("create --name one -v memory:/v -v memory:/w busybox sleep 3600");
    let volume = "volume create -o type=tmpfs -o device=tmpfs memory";
    let swallowed = case.fails_at_every_step(&[words(volume)], &create, &[words("rm -f one")]);
    assert_eq!(swallowed, 0);
    case.fails_at_every_step(
        &[words(volume), create.clone()],
        &words("start one"),
        &[words("rm -f one"), create],
    );
}

/// The name of a plugin.
const PLUGIN: &str = "steps";

/// Returns the command that creates a container with a volume of the plugin.
fn create_with_plugin() -> Vec<String> {
    words("create --name one -v kept:/v busybox sleep 3600")
}

#[test]
fn container_with_a_volume_of_a_plugin() {
    let case = Case::new();
    let engine = case.engine();
    let plugin = VolumePlugin::start(&engine, PLUGIN);
    let nothing_is_left = || {
        let left = || plugin.volumes_and_mounts();
        eventually("the plugin to have nothing left", || {
            left().is_empty().then_some(())
        });
    };
    let volume = words(&format!("volume create -d {PLUGIN} kept"));
    let create = create_with_plugin();
    let operations: [(&[Vec<String>], Vec<String>); 5] = [
        (&[], volume.clone()),
        (std::slice::from_ref(&volume), create.clone()),
        (&[volume.clone(), create.clone()], words("start one")),
        (
            &[volume.clone(), create.clone(), words("start one")],
            words("rm -f one"),
        ),
        (std::slice::from_ref(&volume), words("volume rm kept")),
    ];
    for (prepare, operation) in operations {
        case.at_every_step_of(&engine, prepare, &operation, nothing_is_left);
    }
}

#[test]
fn container_with_a_volume_of_a_plugin_fails() {
    let case = Case::new();
    let engine = case.engine();
    let plugin = VolumePlugin::start(&engine, PLUGIN);
    let left = || plugin.volumes_and_mounts();
    let volume = words(&format!("volume create -d {PLUGIN} kept"));
    let create = create_with_plugin();
    let remove = words("rm -f one");
    let reverse = [words("volume rm kept")];
    let swallowed = case.fails_at_every_step_of(&engine, &[], &volume, &reverse, left);
    assert_eq!(swallowed, 0);
    let prepare = [volume];
    let reverse = [remove.clone()];
    let swallowed = case.fails_at_every_step_of(&engine, &prepare, &create, &reverse, left);
    // A failure to record that the volume was unmounted after it was filled is only logged: the next
    // engine repeats the request to the plugin.
    assert_eq!(swallowed, 1);
    let prepare = [create.clone()];
    let reverse = [remove, create];
    case.fails_at_every_step_of(&engine, &prepare, &words("start one"), &reverse, left);
}

/// The container `one`, which does not run.
const CREATED: &str = "create --name one --network none busybox sleep 3600";

#[test]
fn copies_into_containers() {
    let case = Case::new();
    let engine = case.engine();
    let file = engine.scratch("copied").join("file");
    fs::write(&file, "whole").unwrap();
    let copy = words(&format!("cp {} one:/etc/new", file.display()));
    // Of a running container, the root is only cloned: there is nothing to undo, and no step.
    case.at_every_step_of(&engine, &[words(CREATED)], &copy, || {});
}

#[test]
fn copies_out_of_containers() {
    let case = Case::new();
    let engine = case.engine();
    let target = engine.scratch_text("copied");
    let copy = words(&format!("cp one:/etc/passwd {target}"));
    case.at_every_step_of(&engine, &[words(CREATED)], &copy, || {});
}

#[test]
fn container_update_and_rename() {
    let case = Case::new();
    let update = "update --memory 64m --memory-swap 64m --restart unless-stopped one";
    case.at_every_step(&[words(COMMITTED)], &words(update));
    let engine = case.engine();
    let cli = engine.cli(Program::Whelk);
    case.at_every_step_of(
        &engine,
        &[words(COMMITTED)],
        &words("rename one other"),
        || {
            if has(cli, "container", "other") {
                cli.run(&["rm", "-f", "other"]).ok();
            }
        },
    );
}

#[test]
fn container_with_health_checks() {
    let case = Case::new();
    let run = "run -d --name one --network none --health-cmd true --health-interval 1s busybox sleep 3600";
    case.at_every_step(&[], &words(run));
}

#[test]
fn prunes() {
    let case = Case::new();
    case.at_every_step(&[words(CREATED)], &words("container prune -f"));
    case.at_every_step(&[case.network()], &words("network prune -f"));
    case.at_every_step(&[words("volume create kept")], &words("volume prune -af"));
    let prepare = [
        words("create --name one --network none -w /made busybox true"),
        words("commit one"),
    ];
    case.at_every_step(&prepare, &words("image prune -f"));
    case.at_every_step(&prepare, &words("system prune -f --volumes"));
}

/// Operations that change nothing: an engine that is killed in the middle leaves nothing of them.
#[test]
fn reads_are_killed() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let script = "dd if=/dev/zero of=/big bs=1M count=32 2>/dev/null; mkdir /many; cd /many; seq 20000 | xargs touch; echo ready; exec sleep 600";
    cli.up("one", &["-v", "kept:/v"], &["sh", "-c", script]);
    engine.await_log("one", "ready");
    let script = "touch /made; mkdir /many; cd /many; seq 20000 | xargs touch; dd if=/dev/zero of=/big bs=1M count=32";
    let words = ["run", "--name", "two", "--network", "none", "busybox"];
    cli.run(&[&words[..], &["sh", "-c", script]].concat()).ok();
    let ask = |name: &str, path: &str| {
        let mut client = Connection::open(&engine.socket()).unwrap();
        let path = format!("/containers/{name}/{path}");
        client.send("GET", &path, &[], b"").unwrap();
        client
    };
    let killed = |path: &str, clients: Vec<Connection>, has_head: bool| {
        engine.kill9();
        let mut is_interrupted = true;
        for mut client in clients {
            let is_answered = has_head || client.head().is_ok();
            let is_complete = is_answered
                && loop {
                    match client.part() {
                        Ok(Some(_)) => {}
                        last => break last.is_ok(),
                    }
                };
            is_interrupted &= !is_complete;
        }
        engine.restart();
        assert_eq!(engine.state("one"), "running", "{path}");
        is_sound(cli, path);
        cli.run(&["exec", "one", "test", "-e", "/big"]).ok();
        // Its layers can be mounted.
        let again = cli.run(&["start", "-a", "two"]);
        assert!(
            again.err().contains("File exists"),
            "{path}: {}",
            again.err()
        );
        is_interrupted
    };
    // What is sent while it is read has begun with the head.
    for path in [
        "archive?path=/",
        "export",
        "stats?stream=1",
        "logs?stdout=1&follow=1",
    ] {
        let names = match path.split_once('?') {
            // Of a container that does not run these end at once.
            Some(("stats" | "logs", _)) => &["one"][..],
            _ => &["one", "two"],
        };
        let mut clients: Vec<Connection> = names.iter().map(|name| ask(name, path)).collect();
        for client in &mut clients {
            assert_eq!(client.head().unwrap().0, 200, "{path}");
        }
        assert!(killed(path, clients, true), "{path} was complete");
    }
    // The others are killed after a third of the time that they take, which may be too late once.
    for path in ["changes", "json?size=1"] {
        let is_interrupted = |_| {
            let begin = std::time::Instant::now();
            assert_eq!(ask("two", path).response().unwrap().status, 200, "{path}");
            let time = begin.elapsed() / 3;
            let client = ask("two", path);
            std::thread::sleep(time);
            killed(path, vec![client], false)
        };
        assert!((0..5).any(is_interrupted), "{path} was complete");
    }
}
