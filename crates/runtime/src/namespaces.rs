//! The namespaces that a container creates and joins, and their id mappings.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use whelk_sys::fs;
use whelk_sys::process::{CloneFlags, setns};

use crate::error::{Error, Result, os, os_at};
use crate::spec::{IdMapping, Linux, Namespace, NamespaceKind, Spec};

const ALL: [NamespaceKind; 8] = [
    NamespaceKind::User,
    NamespaceKind::Mount,
    NamespaceKind::Pid,
    NamespaceKind::Network,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Cgroup,
    NamespaceKind::Time,
];

pub(crate) fn flag(kind: NamespaceKind) -> CloneFlags {
    match kind {
        NamespaceKind::Mount => CloneFlags::NEWNS,
        NamespaceKind::Pid => CloneFlags::NEWPID,
        NamespaceKind::Network => CloneFlags::NEWNET,
        NamespaceKind::Ipc => CloneFlags::NEWIPC,
        NamespaceKind::Uts => CloneFlags::NEWUTS,
        NamespaceKind::User => CloneFlags::NEWUSER,
        NamespaceKind::Cgroup => CloneFlags::NEWCGROUP,
        NamespaceKind::Time => CloneFlags::NEWTIME,
    }
}

/// Returns the flags of all namespaces that the configuration lists, new or joined: an exec enters
/// all of them.
pub(crate) fn all_flags(linux: &Linux) -> CloneFlags {
    ALL.into_iter()
        .filter(|kind| linux.namespace(*kind).is_some())
        .fold(CloneFlags::default(), |flags, kind| flags | flag(kind))
}

/// Returns the flags of the namespaces that clone creates with the first process.
///
/// The cgroup namespace is not among them: its root is the cgroup its creator is in, so it is
/// created once the process is in its cgroup. Neither is a time namespace with offsets: those must
/// be set before a process enters it.
pub(crate) fn clone_flags(linux: &Linux) -> CloneFlags {
    let mut flags = CloneFlags::default();
    for kind in ALL.into_iter().filter(|kind| linux.has_new(*kind)) {
        flags |= flag(kind);
    }
    flags = flags.without(CloneFlags::NEWCGROUP);
    if linux.time_offsets.is_empty() {
        flags
    } else {
        flags.without(CloneFlags::NEWTIME)
    }
}

/// Checks the namespaces of a configuration. A mount namespace is required, since otherwise the
/// container's mounts would be the host's. Host and domain names are only set in a UTS namespace
/// other than the host's.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    let linux = &spec.linux;
    for (name, what) in [
        (&spec.hostname, "hostname"),
        (&spec.domainname, "domainname"),
    ] {
        if !name.is_empty() && !is_separate(linux, NamespaceKind::Uts)? {
            return Err(Error::Refused(format!(
                "unable to set {what} without a private UTS namespace"
            )));
        }
    }
    if linux.namespace(NamespaceKind::Mount).is_none() {
        return Err(Error::invalid(
            "the configuration must list a mount namespace",
        ));
    }
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        if linux.namespaces[..index]
            .iter()
            .any(|other| other.kind == namespace.kind)
        {
            return Err(Error::invalid(format!(
                "duplicate {:?} namespace",
                namespace.kind
            )));
        }
    }
    if linux.has_new(NamespaceKind::User) && linux.uid_mappings.is_empty() {
        return Err(Error::invalid("a new user namespace needs uidMappings"));
    }
    Ok(())
}

/// Whether the container has a different namespace of this kind than the caller. Joining the
/// caller's namespace by path counts as having none.
pub(crate) fn is_separate(linux: &Linux, kind: NamespaceKind) -> Result<bool> {
    let Some(namespace) = linux.namespace(kind) else {
        return Ok(false);
    };
    let Some(path) = &namespace.path else {
        return Ok(true);
    };
    let identity = |path: &Path| {
        rustix::fs::stat(path)
            .map(|stat| (stat.st_dev, stat.st_ino))
            .map_err(os_at("stat namespace", path))
    };
    Ok(identity(path)? != identity(Path::new(own_path(kind)))?)
}

fn own_path(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Mount => "/proc/self/ns/mnt",
        NamespaceKind::Pid => "/proc/self/ns/pid",
        NamespaceKind::Network => "/proc/self/ns/net",
        NamespaceKind::Ipc => "/proc/self/ns/ipc",
        NamespaceKind::Uts => "/proc/self/ns/uts",
        NamespaceKind::User => "/proc/self/ns/user",
        NamespaceKind::Cgroup => "/proc/self/ns/cgroup",
        NamespaceKind::Time => "/proc/self/ns/time",
    }
}

/// Opens the namespace that a configuration names by path; `None` if it is a new one.
pub(crate) fn open(namespace: &Namespace) -> Result<Option<OwnedFd>> {
    let Some(path) = &namespace.path else {
        return Ok(None);
    };
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(os_at("open namespace", path))?;
    Ok(Some(fd))
}

/// Joins the namespaces given by path, except the pid namespace (setns on it only affects children,
/// so the parent joins it). The user namespace comes first, since it determines which others may be
/// joined.
pub(crate) fn join_existing(linux: &Linux) -> Result<()> {
    let mut opened = Vec::new();
    for kind in ALL.into_iter().filter(|kind| *kind != NamespaceKind::Pid) {
        if let Some(namespace) = linux.namespace(kind)
            && let Some(fd) = open(namespace)?
        {
            opened.push((kind, fd));
        }
    }
    for (kind, fd) in opened {
        setns(fd.as_fd(), flag(kind)).map_err(|error| {
            os_at(
                "join namespace",
                Path::new(&format!("{kind:?}").to_lowercase()),
            )(error)
        })?;
    }
    Ok(())
}

/// Creates a time namespace for the caller's next child and sets its clock offsets.
pub(crate) fn new_time_namespace(linux: &Linux) -> Result<()> {
    whelk_sys::process::unshare(CloneFlags::NEWTIME).map_err(os("create time namespace"))?;
    let lines: String = linux
        .time_offsets
        .iter()
        .map(|(clock, offset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs))
        .collect();
    Ok(fs::write("/proc/self/timens_offsets", lines)?)
}

/// Writes the id mappings of a new user namespace, from its parent namespace. `proc` is a procfs in
/// which `pid` is numbered.
pub(crate) fn write_id_maps(
    proc: &OwnedFd,
    pid: Pid,
    uids: &[IdMapping],
    gids: &[IdMapping],
) -> Result<()> {
    let text = |mappings: &[IdMapping]| {
        mappings
            .iter()
            .map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size))
            .collect::<String>()
    };
    for (name, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        let path = format!("{}/{name}", pid.as_raw_nonzero());
        let step = || os_at::<rustix::io::Errno>("write", format!("/proc/{path}"));
        let file = rustix::fs::openat(proc, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(step())?;
        rustix::io::write(&file, text(mappings).as_bytes()).map_err(step())?;
    }
    Ok(())
}
