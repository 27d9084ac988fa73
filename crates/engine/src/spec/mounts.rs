//! Lists the mounts of a container in mount order: the default ones, the engine's and the user's.

use std::path::Path;

use whelk_runtime::spec::Mount;

use super::SpecContext;
use super::process::INIT;
use crate::model::{HostConfig, IpcMode};
use crate::security::Options;

pub(super) fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

pub(super) fn mounts(
    host: &HostConfig,
    options: &Options,
    context: &SpecContext<'_>,
) -> Vec<Mount> {
    let writable_kernel = host.privileged;
    let sys: &[&str] = if writable_kernel {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["nosuid", "noexec", "nodev", "ro"]
    };
    let cgroup: &[&str] = if options.writable_cgroups.unwrap_or(writable_kernel) {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["ro", "nosuid", "noexec", "nodev"]
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/sys", "sysfs", "sysfs", sys),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", cgroup),
    ];
    // With the host's IPC namespace this shows the host's queues.
    mounts.push(mount(
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ));
    // A user's mount replaces the default mount with the same target; one on /dev replaces all
    // default mounts below it too.
    mounts.retain(|default| {
        let replaces = |target: &str| {
            target == default.destination
                || target == "/dev" && default.destination.starts_with("/dev/")
        };
        !context
            .mounts
            .iter()
            .any(|mount| replaces(&mount.destination))
    });
    mounts.extend(by_depth(engine_mounts(host, context), context.mounts));
    mounts
}

/// Returns the mounts that the engine adds: /dev/shm, `hosts`, `hostname` and `resolv.conf`, and
/// the init process of `--init`.
fn engine_mounts(host: &HostConfig, context: &SpecContext<'_>) -> Vec<Mount> {
    let shm = match (&host.ipc_mode, context.ipc_of) {
        (IpcMode::Host, _) => Some(mount(
            "/dev/shm",
            "bind",
            "/dev/shm",
            &["rbind", "rprivate"],
        )),
        (_, Some(pid)) => Some(mount(
            "/dev/shm",
            "bind",
            &format!("/proc/{pid}/root/dev/shm"),
            &["rbind", "rprivate"],
        )),
        (IpcMode::None, None) => None,
        (_, None) => {
            let size = format!("size={}", host.shm_size);
            Some(mount(
                "/dev/shm",
                "tmpfs",
                "shm",
                &["nosuid", "noexec", "nodev", "mode=1777", &size],
            ))
        }
    };
    let read_only: &[&str] = if host.readonly_rootfs {
        &["rbind", "rprivate", "ro"]
    } else {
        &["rbind", "rprivate"]
    };
    let names = ["resolv.conf", "hostname", "hosts"].map(|file| {
        mount(
            &format!("/etc/{file}"),
            "bind",
            &context.names.join(file).to_string_lossy(),
            read_only,
        )
    });
    let init = (host.init == Some(true)).then(|| init(context.executable));
    shm.into_iter().chain(names).chain(init).collect()
}

/// Returns the engine's and the user's mounts in mount order: parents before children, so that a
/// volume on `/etc` does not hide `/etc/hosts`. A user's mount replaces the engine's with the same
/// target.
fn by_depth(mut mounts: Vec<Mount>, of_user: &[Mount]) -> Vec<Mount> {
    mounts.retain(|mount| {
        !of_user
            .iter()
            .any(|other| other.destination == mount.destination)
    });
    mounts.extend_from_slice(of_user);
    mounts.sort_by_key(|mount| crate::mounts::depth(&mount.destination));
    mounts
}

/// Returns the mount of the engine's own program as the container's init process. It is an overlay
/// without an upper layer, so that a container with the right to remount it read-write cannot write
/// to the host's file.
fn init(executable: &Path) -> Mount {
    let (directory, name) = (
        executable.parent().unwrap_or(Path::new("/")),
        executable.file_name().unwrap_or_default(),
    );
    let layers =
        whelk_sys::program::layers(directory).map(|layer| format!("lowerdir+={}", layer.display()));
    let subdirectory = format!("X-mount.subdir={}", name.to_string_lossy());
    Mount {
        destination: INIT.into(),
        kind: "overlay".into(),
        source: executable.to_string_lossy().into_owned(),
        options: layers
            .into_iter()
            .chain([subdirectory, "private".into(), "ro".into()])
            .collect(),
        ..Mount::default()
    }
}

/// Returns the root mount's propagation: shared or slave if a mount needs it to propagate to or
/// from the host, else empty.
pub(super) fn rootfs_propagation(mounts: &[Mount]) -> String {
    let any = |kind: &str| {
        mounts
            .iter()
            .flat_map(|mount| &mount.options)
            .any(|word| word.strip_prefix('r').unwrap_or(word) == kind)
    };
    if any("shared") {
        "shared"
    } else if any("slave") {
        "slave"
    } else {
        ""
    }
    .into()
}
