//! The container's view of its cgroups at `/sys/fs/cgroup`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};
use whelk_sys::in_root;
use whelk_sys::mount::{MountAttr, set_attr};

use crate::cgroup::{Cgroup, Layout, layout};
use crate::error::{Error, Result, os, os_at};
use crate::mount_options::{NODEV, NOEXEC, NOSUID, Options, RDONLY};
use crate::mounts::attach_at;
use crate::spec::Mount;

/// Mounts the cgroup file systems. A container with its own cgroup namespace gets new mounts, whose
/// root is its cgroup; otherwise its cgroup directories are bind-mounted from the host.
pub(crate) fn mount(
    root: &OwnedFd,
    mount: &Mount,
    cgroup: Option<&Cgroup>,
    own_namespace: bool,
) -> Result<()> {
    let options = Options::parse(&mount.options, false)?;
    let target = in_root::create_dir_all(root, &mount.destination, Mode::from_raw_mode(0o755))
        .map_err(os_at("open mount point", &mount.destination))?;
    let step = || os_at::<rustix::io::Errno>("mount cgroup at", &mount.destination);
    let Layout::V1(trees) = layout()? else {
        let tree = match (own_namespace, cgroup) {
            (false, Some(cgroup)) => bind(&cgroup.paths().remove(0).1)?,
            _ => new_mount("cgroup2", &[])?,
        };
        set_attr(
            tree.as_fd(),
            MountAttr {
                set: options.here.set,
                ..MountAttr::default()
            },
            false,
        )
        .map_err(os("set attributes of the cgroup mount"))?;
        return attach_at(&tree, &target).map_err(step());
    };
    let holder = tmpfs()?;
    attach_at(&holder, &target).map_err(step())?;
    for tree in trees {
        let joined = tree.controllers.join(",");
        let name = joined.strip_prefix("name=").unwrap_or(&joined);
        if name.is_empty() {
            continue;
        }
        let mounted = match (own_namespace, cgroup) {
            (false, Some(cgroup)) => match cgroup
                .paths()
                .into_iter()
                .find(|(controllers, _)| *controllers == joined)
            {
                Some((_, path)) => bind(&path)?,
                None => continue,
            },
            _ => new_mount("cgroup", &tree.controllers)?,
        };
        set_attr(
            mounted.as_fd(),
            MountAttr {
                set: options.here.set | NOSUID | NODEV | NOEXEC,
                ..MountAttr::default()
            },
            false,
        )
        .map_err(os("set attributes of the cgroup mount"))?;
        let mount_point = in_root::create_dir_all(&holder, name, Mode::from_raw_mode(0o755))
            .map_err(os_at("create cgroup mount point", name))?;
        attach_at(&mounted, &mount_point).map_err(step())?;
        // Controllers that share a hierarchy are also reachable by their single names (`cpu` →
        // `cpu,cpuacct`).
        for single in tree
            .controllers
            .iter()
            .filter(|_| tree.controllers.len() > 1)
        {
            rustix::fs::symlinkat(name, &holder, single.as_str())
                .map_err(os_at("link cgroup controller", single))?;
        }
    }
    set_attr(
        holder.as_fd(),
        MountAttr {
            set: options.here.set & RDONLY,
            ..MountAttr::default()
        },
        false,
    )
    .map_err(os("make the cgroup directory read-only"))
}

fn tmpfs() -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(os("open tmpfs"))?;
    fsconfig_set_string(context.as_fd(), "mode", "755").map_err(os("configure tmpfs"))?;
    fsconfig_create(context.as_fd()).map_err(os("create tmpfs"))?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags).map_err(os("mount tmpfs"))
}

fn new_mount(kind: &str, controllers: &[String]) -> Result<OwnedFd> {
    let step = || os_at::<rustix::io::Errno>("mount", kind);
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(step())?;
    fsconfig_set_string(context.as_fd(), "source", "cgroup").map_err(step())?;
    for controller in controllers {
        match controller.strip_prefix("name=") {
            Some(name) => fsconfig_set_string(context.as_fd(), "name", name)
                .and_then(|()| fsconfig_set_flag(context.as_fd(), "none")),
            None => fsconfig_set_flag(context.as_fd(), controller.as_str()),
        }
        .map_err(step())?;
    }
    fsconfig_create(context.as_fd()).map_err(step())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(step())
}

fn bind(path: &std::path::Path) -> Result<OwnedFd> {
    open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(|error| Error::Os(format!("open cgroup {}: {error}", path.display())))
}
