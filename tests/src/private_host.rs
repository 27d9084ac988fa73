//! Runs a script in separate namespaces, for tests that use the default directories.

use std::process::{Command, Output, Stdio};

use crate::cli::Program;
use crate::leftovers;

/// Runs before the script: makes `/run`, `/var/lib` and `/var/log` empty, and `/etc` writable, and defines functions
/// for the script.
const PRELUDE: &str = r#"
for place in /run /var/lib /var/log; do mount -t tmpfs none $place || exit 99; done
mkdir /run/.upper /run/.work && mount -t overlay -o lowerdir=/etc,upperdir=/run/.upper,workdir=/run/.work none /etc || exit 99
mkdir -p /etc/whelk && mount -t tmpfs none /etc/whelk || exit 99
# Ends the engine that a first command has started, and uninstalls it when it has ended.
end_engine() {
    kill $(pgrep -f 'daemon [-]-background') || return 1
    tries=0
    while pgrep -f 'daemon [-]-background' >/dev/null; do
        [ $((tries += 1)) -le 600 ] || return 2
        sleep 0.1
    done
    "$0" daemon --uninstall
}
# Waits until a server listens at a port of 127.0.0.1.
await_port() {
    tries=0
    until grep -q " 0100007F:$(printf %04X $1) 00000000:0000 0A " /proc/net/tcp; do
        [ $((tries += 1)) -le 600 ] || return 1
        sleep 0.1
    done
}
"#;

/// Runs a shell script with private mount, PID and network namespaces, which end with it. `$0` is
/// the whelk binary, `$name` an instance name that the script may use. The function `end_engine` ends and uninstalls the
/// engine that a first command has started; `await_port PORT` waits for a server.
///
/// # Panics
/// Panics if anything of the instance except cgroups remains, or if its cgroups cannot be removed.
#[track_caller]
pub fn private_host(script: &str) -> Output {
    let (name, dir) = leftovers::new_instance();
    let mut command = Command::new("setpriv");
    // The first signal kills unshare when this thread ends; the second kills the init process of
    // the PID namespace, and with it all others.
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
    ]);
    command
        .args(["sh", "-c", &format!("{PRELUDE}{script}")])
        .arg(Program::Whelk.path())
        .env("name", &name);
    command
        .env_remove("DOCKER_HOST")
        .env_remove("WHELK_HOST")
        .stdin(Stdio::null());
    let output = command.output().expect("run a script in namespaces");
    let problems = leftovers::end(&name, &dir);
    let _ = std::fs::remove_dir_all(&dir);
    let busy: Vec<_> = problems
        .iter()
        .filter(|problem| !problem.starts_with("cgroup ") || problem.ends_with("removed"))
        .collect();
    assert!(busy.is_empty(), "leftovers: {busy:?}");
    output
}
