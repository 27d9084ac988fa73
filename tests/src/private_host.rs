//! A script in namespaces of its own, for what happens at the usual places.

use std::process::{Command, Output, Stdio};

use crate::cli::Program;
use crate::leftovers;

/// What comes before the script: `/run`, `/var/lib` and `/var/log` are empty, and `/etc` can be
/// changed.
const PRELUDE: &str = r#"
for place in /run /var/lib /var/log; do mount -t tmpfs none $place || exit 99; done
mkdir /run/.upper /run/.work && mount -t overlay -o lowerdir=/etc,upperdir=/run/.upper,workdir=/run/.work none /etc || exit 99
mkdir -p /etc/whelk && mount -t tmpfs none /etc/whelk || exit 99
"#;

/// Runs a shell script as on a host of its own: mounts, processes and the network are, and all of
/// it ends with the script. `$0` is our program, `$name` the name that an instance may have there.
///
/// # Panics
/// When the instance's cgroups are in use after the end.
#[track_caller]
pub fn private_host(script: &str) -> Output {
    let (name, dir) = leftovers::new_instance();
    let mut command = Command::new("setpriv");
    // The first signal ends it with this thread, the second the first process of its process
    // namespace, and so all others.
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
    assert!(busy.is_empty(), "left behind: {busy:?}");
    output
}
