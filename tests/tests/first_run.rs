//! Installation and start of an engine: where it starts and where it refuses to, who may access it,
//! socket activation by systemd, and removal without leftovers.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use whelk_tests::{Engine, Program, eventually, private_host};

/// Runs a script in [`private_host`], which must end with status 0. Returns its output.
#[track_caller]
fn said(script: &str) -> String {
    let output = private_host(script);
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Shell functions for [`private_host`]: `up` starts an engine as a first command does, `down` ends
/// it.
const ENGINE: &str = r#"
up() { "$0" ps -q >/dev/null 2>/run/told || { cat /run/told; exit 8; }; }
down() { end_engine || exit 7; }
"#;

#[test]
fn a_group_can_access_only_the_socket() {
    let told = said(&format!(
        r#"{ENGINE}
        echo "{{\"instance\": \"$name\", \"group\": \"4242\"}}" >/etc/whelk/daemon.json
        up
        cp "$0" /run/client
        as() {{ group=$1; shift; setpriv --reuid 4243 --regid $group --clear-groups "$@"; }}
        as 4242 /run/client version --format 'member {{{{.Server.Version}}}}' || exit 1
        as 4244 /run/client ps && exit 2
        as 4244 /run/client --host unix:///run/whelk/whelk.sock ps && exit 3
        as 4242 ls /run/whelk 2>/dev/null && exit 4
        as 4242 cat /run/whelk/lock 2>/dev/null && exit 5
        find /run/whelk -mindepth 1 -maxdepth 1 -printf 'mode %m %f\n'
        down"#
    ));
    assert!(
        told.contains(concat!("member ", env!("CARGO_PKG_VERSION"))),
        "{told}"
    );
    let refused = "permission denied while trying to connect to the docker API at unix:///run/whelk/whelk.sock";
    assert_eq!(told.matches(refused).count(), 2, "{told}");
    let modes: Vec<_> = told
        .lines()
        .filter_map(|line| line.strip_prefix("mode "))
        .collect();
    assert!(
        modes.len() > 4 && modes.contains(&"660 whelk.sock"),
        "{modes:?}"
    );
    assert!(
        modes.iter().all(|entry| entry.starts_with("600 ")
            || entry.starts_with("700 ")
            || *entry == "660 whelk.sock"),
        "{modes:?}"
    );
}

#[test]
fn an_engine_does_not_start_in_a_chroot() {
    // In a chroot on a mount point, containers would start, but exec would enter the host's root.
    // In one below a mount point, they would not start.
    for (prepare, base) in [
        ("mount --rbind / /run/root", "/run"),
        (
            "mkdir /run/root/proc && mount -t proc proc /run/root/proc",
            "",
        ),
    ] {
        let told = said(&format!(
            r#"mkdir /run/root && {prepare} && cp "$0" /run/root{base}/copy && mkdir /run/root{base}/bundle || exit 9
            inside() {{ chroot /run/root {base}/copy "$@"; }}
            inside daemon --root {base}/d/root --run {base}/d/run --host unix://{base}/d/sock --instance $name && exit 1
            inside oci spec --bundle {base}/bundle || exit 2
            inside oci --root {base}/oci create --bundle {base}/bundle x && exit 3
            true"#
        ));
        let expected = "root directory is not the root of its mount namespace";
        assert_eq!(told.matches(expected).count(), 2, "{prepare}: {told}");
    }
}

#[test]
fn an_engine_does_not_start_on_overlayfs() {
    let told = said(
        r#"mkdir /run/lower /run/upper /run/work /run/merged
        mount -t overlay -o lowerdir=/run/lower,upperdir=/run/upper,workdir=/run/work none /run/merged || exit 9
        "$0" daemon --root /run/merged/root --run /run/d --host unix:///run/d/sock --instance $name && exit 1
        true"#,
    );
    assert!(
        told.contains("the root directory /run/merged/root is on overlayfs")
            && told.contains("choose another one (--root)"),
        "{told}"
    );
}

/// Starts the engine with `socket` as its descriptor 3, the way systemd does.
fn activate(engine: &Engine, socket: Stdio, environment: &str, more: &[&str]) -> Child {
    let script = format!("exec 3<&0 </dev/null; {environment} exec \"$0\" daemon \"$@\"");
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .arg(Program::Whelk.path())
        .arg("--root")
        .arg(engine.root())
        .arg("--run")
        .arg(engine.run());
    command
        .args(["--instance", engine.name(), "--host", "fd://"])
        .args(more);
    command
        .stdin(socket)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn socket_activation_and_readiness_notification() {
    const PASSED: &str = "LISTEN_PID=$$ LISTEN_FDS=1";
    let engine = Engine::without_images(&[]);
    engine.kill9();
    let place = engine.scratch("notify").join("socket");
    let notices = UnixDatagram::bind(&place).unwrap();
    notices
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    fs::remove_file(engine.socket()).unwrap();
    let listener = UnixListener::bind(engine.socket()).unwrap();
    let socket = || Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
    // The engine is started twice. A client that connects in between waits for the second one.
    let mut waiting = None;
    for _ in 0..2 {
        let environment = format!("NOTIFY_SOCKET={} {PASSED}", place.display());
        let mut child = activate(&engine, socket(), &environment, &["--group", "4242"]);
        let mut notice = [0; 64];
        let length = notices.recv(&mut notice).expect("a notice");
        assert_eq!(&notice[..length], b"READY=1");
        assert!(engine.answers());
        if let Some(client) = waiting.take() {
            let client: std::thread::JoinHandle<bool> = client;
            assert!(client.join().unwrap(), "the client that waited");
        }
        let found = fs::metadata(engine.socket()).unwrap();
        assert_eq!(
            (found.permissions().mode() & 0o777, found.gid()),
            (0o660, 4242)
        );
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        let length = notices.recv(&mut notice).expect("a notice");
        assert_eq!(&notice[..length], b"STOPPING=1");
        assert!(
            fs::metadata(engine.socket()).is_ok_and(|found| found.file_type().is_socket()),
            "the socket stays systemd's"
        );
        let path = engine.socket();
        waiting = Some(std::thread::spawn(move || {
            let client = whelk_tests::Connection::open(&path);
            client.is_ok_and(|mut client| {
                client.send("GET", "/_ping", &[], b"").is_ok()
                    && client.head().is_ok_and(|(status, _)| status == 200)
            })
        }));
    }
    drop(listener);
    let refused = |socket: Stdio, environment: &str, text: &str| {
        let output = activate(&engine, socket, environment, &[])
            .wait_with_output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains(text),
            "{environment}: {told}"
        );
    };
    refused(Stdio::null(), PASSED, "not a listening unix stream socket");
    refused(Stdio::null(), "", "no socket was passed (LISTEN_FDS)");
    refused(
        Stdio::null(),
        "LISTEN_PID=1 LISTEN_FDS=1",
        "no socket was passed (LISTEN_FDS)",
    );
    refused(Stdio::null(), "LISTEN_PID=$$ LISTEN_FDS=x", "LISTEN_FDS");
    refused(
        Stdio::null(),
        "LISTEN_PID=$$ LISTEN_FDS=3000",
        "Bad file descriptor",
    );
    let unbound = UnixDatagram::unbound().unwrap();
    refused(
        Stdio::from(std::os::fd::OwnedFd::from(unbound)),
        PASSED,
        "not a listening unix stream socket",
    );
}

#[test]
fn an_exec_that_outlives_its_engine_does_not_count_as_ended() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up("one", &[], &["sleep", "600"]);
    engine.kill9();
    fs::remove_file(engine.socket()).unwrap();
    let listener = UnixListener::bind(engine.socket()).unwrap();
    let start = || {
        let socket = Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
        let child = activate(&engine, socket, "LISTEN_PID=$$ LISTEN_FDS=1", &[]);
        assert!(engine.answers());
        child
    };
    let stop = |mut child: Child| {
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
    };
    let first = start();
    let mut exec = cli.spawn(&["exec", "one", "sh", "-c", "echo begun; sleep 654"]);
    exec.expect("begun");
    // The client's next request waits in the socket's queue for the next engine.
    stop(first);
    let second = start();
    assert_eq!(
        exec.finish().fails(1),
        "connection to the engine lost while attached to a command in container one; the container keeps running, and so does the command"
    );
    stop(second);
}

#[test]
fn systemds_units_are_valid() {
    let engine = Engine::without_images(&[]);
    let root = engine.scratch("root");
    let program = Program::Whelk.path();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut make = Command::new("make");
    make.args(["-s", "install-systemd", "PREFIX=/usr"])
        .arg(format!("DESTDIR={}", root.display()))
        .current_dir(sources);
    let made = make
        .arg(format!("BINDIR={}", program.parent().unwrap().display()))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let units = root.join("usr/lib/systemd/system");
    let service = fs::read_to_string(units.join("whelk.service")).unwrap();
    assert!(
        service.contains(&format!(
            "ExecStart={} daemon --host fd://",
            program.display()
        )),
        "{service}"
    );
    let shutdown = fs::read_to_string(units.join("whelk-shutdown.service")).unwrap();
    let stop = format!(
        "ExecStop={} --host unix:///run/whelk/whelk.sock system stop-containers",
        program.display()
    );
    assert!(shutdown.contains(&stop), "{shutdown}");
    assert!(service.contains("Wants=network-online.target whelk-shutdown.service"));
    if let Ok(output) = Command::new("systemd-analyze")
        .arg("verify")
        .args(
            ["whelk.service", "whelk.socket", "whelk-shutdown.service"]
                .map(|unit| units.join(unit)),
        )
        .env("SYSTEMD_UNIT_PATH", format!("{}:", units.display()))
        .output()
    {
        let told = String::from_utf8_lossy(&output.stderr);
        // A missing manual page is not an error of the units.
        let faults: Vec<_> = told
            .lines()
            .filter(|line| line.contains("whelk") && !line.contains("man "))
            .collect();
        assert!(faults.is_empty(), "{told}");
    }
}

#[test]
fn setup_brings_the_docker_cli_with_its_plugins() {
    let engine = Engine::without_images(&[]);
    for (args, text, least) in [
        (&["--version"][..], "Docker version ", 28),
        (&["compose", "version"], "Docker Compose version ", 2),
        (&["buildx", "version"], "github.com/docker/buildx ", 0),
    ] {
        let told = engine.docker(args).ok();
        let version = told.strip_prefix(text).map(|rest| {
            rest.trim_start_matches('v')
                .split(['.', '-'])
                .next()
                .unwrap_or_default()
        });
        assert!(
            version
                .and_then(|number| number.parse::<u32>().ok())
                .is_some_and(|number| number >= least),
            "{args:?}: {told}"
        );
    }
}

#[test]
fn commands_on_a_terminal_print_no_control_sequences() {
    let engine = Engine::start();
    engine
        .whelk(&[
            "run",
            "-d",
            "--name",
            "up",
            "--network",
            "none",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("scripts/demo");
    // Repeated, because the failure depended on timing.
    for program in [Program::Docker, Program::Whelk].repeat(4) {
        let mut command = Command::new("bash");
        command
            .args([
                "-c",
                r#"eval "$(grep '^on_terminal() ' "$0")"; on_terminal "$@""#,
            ])
            .arg(&demo)
            .arg(program.path());
        command.args(["exec", "-it", "up", "sh", "-c", "tty && echo said"]);
        let host = format!("unix://{}", engine.socket().display());
        // Like a script without input; the end of input must not become a character.
        let output = command
            .env("DOCKER_HOST", host)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "/dev/pts/0\r\nsaid\r\n",
            "{program:?}: {output:?}"
        );
    }
}

#[test]
fn uninstall_works_right_after_the_engine_has_ended() {
    const TIMES: usize = 20;
    let engine = Engine::start();
    for _ in 0..TIMES {
        engine.kill9();
        let output = engine.uninstall();
        assert!(output.status.success(), "{output:?}");
        engine.restart();
    }
    // The pooled shims may detect the engine's end later.
    let mark = format!("/{}/shims", engine.name());
    let shims = eventually("ready shims", || {
        let numbers = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let own = numbers.filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|groups| groups.contains(&mark))
        });
        Some(own.filter_map(Pid::from_raw).collect::<Vec<_>>()).filter(|shims| shims.len() >= 2)
    });
    let all = |signal| {
        for pid in &shims {
            let _ = kill_process(*pid, signal);
        }
    };
    all(Signal::STOP);
    engine.kill9();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            all(Signal::CONT);
        });
        engine.uninstall()
    });
    assert!(output.status.success(), "{output:?}");
    engine.restart();
    engine
        .docker(&["run", "-d", "--network", "none", "busybox", "sleep", "600"])
        .ok();
    engine.kill9();
    // A wait takes 10 s. A single try may take long for another reason.
    let is_soon = |_| {
        let begin = std::time::Instant::now();
        let output = engine.uninstall();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains("still run: stop or remove them first"),
            "{told}"
        );
        begin.elapsed() < Duration::from_secs(5)
    };
    assert!(
        (0..3).any(is_soon),
        "the running container is detected without a wait"
    );
    engine.restart();
}

/// Creates one resource of each kind that an engine can have, and waits. Run as a separate program
/// by the next test, which kills it.
#[test]
#[ignore = "run by a_test_program_that_is_killed_leaves_nothing"]
fn waits_with_resources_of_each_kind() {
    let engine = Engine::start();
    engine.docker(&["network", "create", "own"]).ok();
    engine
        .docker(&[
            "run",
            "-d",
            "--restart",
            "always",
            "--network",
            "own",
            "-p",
            "127.0.0.1::80",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let disk = engine.scratch("disk");
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "none"])
            .arg(&disk)
            .status()
            .unwrap()
            .success()
    );
    fs::write(std::env::var_os("WHELK_TOLD").unwrap(), engine.name()).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_test_program_that_is_killed_leaves_nothing() {
    let place = Engine::without_images(&[]);
    let told = place.scratch("told").join("name");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "waits_with_resources_of_each_kind", "--ignored"])
        .env("WHELK_TOLD", &told);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let name = eventually("the engine to be named", || {
        fs::read_to_string(&told)
            .ok()
            .filter(|name| !name.is_empty())
    });
    let traces = || {
        let tables = Command::new("nft")
            .args(["list", "tables"])
            .output()
            .map(|done| String::from_utf8_lossy(&done.stdout).into_owned());
        let aliases = fs::read_dir("/sys/class/net")
            .unwrap()
            .flatten()
            .map(|link| fs::read_to_string(link.path().join("ifalias")).unwrap_or_default());
        let mut found: Vec<String> = aliases
            .chain(tables.unwrap_or_default().lines().map(str::to_owned))
            .filter(|text| text.contains(&name))
            .collect();
        found.extend(
            fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .filter(|line| line.contains(&name))
                .map(str::to_owned),
        );
        let directories = [
            "/run".into(),
            "/var/tmp".into(),
            std::env::var("WHELK_TEST_DIR").unwrap_or("/var/tmp".into()),
        ];
        for directory in directories {
            let entries = fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned());
            found.extend(entries.filter(|entry| entry.contains(&name)));
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
            found.extend(
                groups
                    .lines()
                    .find(|line| line.contains(&name))
                    .map(str::to_owned),
            );
        }
        found
    };
    let before = traces();
    assert!(before.len() > 6, "{before:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("everything to be gone", || {
        traces().is_empty().then_some(())
    });
}
