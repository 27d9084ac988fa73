//! Creating a container: the side of the child, from clone to execve.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use whelk_sys::process::{CloneFlags, unshare};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result, limit_memory, os};
use crate::launch::{Gate, Launch};
use crate::mounts::{self, Context, KeyMounts};
use crate::spec::{NamespaceKind, Process};
use crate::sync::{Message, SyncChannel};
use crate::{cgroup_mount, devices, hooks, masks, namespaces, process, rootfs, sysctls, terminal};

/// Sets up the container in the new process and executes its program. Returns only on failure.
pub(crate) fn run(launch: &Launch<'_>, cgroup: Option<&Cgroup>, sync: &SyncChannel) -> Error {
    match set_up(launch, cgroup, sync) {
        Ok(prepared) => prepared.execute(matches!(launch.gate, Gate::Starter).then_some(sync)),
        Err(error) => error,
    }
}

fn set_up<'a>(
    launch: &'a Launch<'_>,
    cgroup: Option<&Cgroup>,
    sync: &SyncChannel,
) -> Result<process::Prepared<'a>> {
    let spec = launch.spec;
    let linux = &spec.linux;
    let Some(process) = &spec.process else {
        return Err(Error::invalid("the configuration has no process"));
    };
    let own_user_namespace = linux.namespace(NamespaceKind::User).is_some();
    let own_proc = process::own_proc()?;
    process::set_oom_score(&own_proc, process)?;
    // The cgroup comes first, so that everything from here on is accounted to the container.
    cgroup.map_or(Ok(()), Cgroup::enter)?;
    if cgroup.is_some() && linux.resources.memory.limit.is_some_and(|limit| limit > 0) {
        limit_memory();
    }
    rustix::process::setsid().map_err(os("setsid"))?;
    if linux.has_new(NamespaceKind::User) {
        // Until its ids are mapped, the process has the overflow uid and gid.
        sync.expect(&Message::IdsMapped)?;
    }
    namespaces::join_existing(linux)?;
    if own_user_namespace {
        process::become_root()?;
    }
    process::join_keyring(launch.id, true)?;
    if linux.has_new(NamespaceKind::Cgroup) {
        // The root of a new cgroup namespace is the cgroup that the process is in at this moment.
        unshare(CloneFlags::NEWCGROUP).map_err(os("create cgroup namespace"))?;
    }
    if linux.has_new(NamespaceKind::Network) {
        whelk_sys::net::loopback_up().map_err(os("bring up loopback"))?;
    }
    rustix::process::umask(rustix::fs::Mode::empty());

    let null = devices::host_null()?;
    let shared = mounts::clone_shared(&spec.mounts, &linux.rootfs_propagation)?;
    let root = rootfs::attach(launch.rootfs, launch.scratch)?;
    let keys = mount_all(launch, cgroup, &root, shared)?;
    let left = if keys.dev_is_bound {
        Vec::new()
    } else {
        devices::create(&root, &linux.devices, own_user_namespace)?
    };
    let terminal = open_terminal(process, &keys, &root, sync)?;
    run_hooks(launch, sync)?;

    sysctls::set(keys.proc.as_ref(), &linux.sysctl)?;
    masks::mask(&root, &linux.masked_paths, &null)?;
    masks::read_only(&root, &linux.readonly_paths)?;
    set_names(&spec.hostname, &spec.domainname)?;
    if launch.make_cwd {
        process::create_working_directory(&root, &process.cwd)?;
    }
    keys.make_read_only()?;
    let identity = process::identity(&root, process, launch.user)?;
    if !keys.dev_is_bound {
        devices::give(&root, launch.nodes_of_user, &left, &identity)?;
    }
    rootfs::pivot(&root)?;
    rootfs::finish(
        &linux.rootfs_propagation,
        spec.root.as_ref().is_some_and(|root| root.readonly),
    )?;

    match (&terminal, &launch.streams) {
        (Some(slave), _) => {
            terminal::control(slave, identity.uid)?;
            process::replace_streams([slave; 3])?;
        }
        (None, Some([input, output, error])) => {
            process::replace_streams([input, output, error])?;
            process::chown_streams(identity.uid);
        }
        (None, None) => {}
    }
    let options = process::PrepareOptions {
        identity,
        filter: launch.filter,
        personality: linux.personality.as_ref(),
        preserved: launch.preserved,
    };
    process::label(&own_proc, process)?;
    let prepared = process::prepare(process, options)?;
    sync.send(&Message::Ready, None)?;
    match &launch.gate {
        Gate::Starter => drop(sync.expect(&Message::Start)?),
        Gate::Fifo(fifo) => wait_for_byte(fifo)?,
    }
    let state = crate::state_json(launch.id, "created", 1, launch.bundle, &spec.annotations);
    hooks::run_with(&spec.hooks.start_container, &state, &process.env)?;
    Ok(prepared)
}

fn mount_all(
    launch: &Launch<'_>,
    cgroup: Option<&Cgroup>,
    root: &OwnedFd,
    mut shared: HashMap<usize, OwnedFd>,
) -> Result<KeyMounts> {
    let linux = &launch.spec.linux;
    let user_namespace = match linux.namespace(NamespaceKind::User) {
        Some(_) => Some(
            rustix::fs::open(
                "/proc/self/ns/user",
                OFlags::RDONLY | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .map_err(os("open own user namespace"))?,
        ),
        None => None,
    };
    let context = Context {
        root,
        mount_label: &linux.mount_label,
        user_namespace: user_namespace.as_ref(),
    };
    let mut keys = KeyMounts::default();
    for (index, mount) in launch.spec.mounts.iter().enumerate() {
        if matches!(mount.kind.as_str(), "cgroup" | "cgroup2") {
            cgroup_mount::mount(root, mount, cgroup, linux.has_new(NamespaceKind::Cgroup))?;
        } else {
            context.mount(mount, shared.remove(&index), &mut keys)?;
        }
    }
    Ok(keys)
}

fn open_terminal(
    process: &Process,
    keys: &KeyMounts,
    root: &OwnedFd,
    sync: &SyncChannel,
) -> Result<Option<OwnedFd>> {
    if !process.terminal {
        return Ok(None);
    }
    let devpts = keys
        .devpts
        .as_ref()
        .ok_or_else(|| Error::invalid("a terminal needs a devpts mount"))?;
    let terminal = terminal::open(devpts, process.console_size.as_ref())?;
    if !keys.dev_is_bound {
        terminal::mount_console(root, &terminal.slave)?;
    }
    sync.send(&Message::Console, Some(&terminal.master))?;
    Ok(Some(terminal.slave))
}

fn run_hooks(launch: &Launch<'_>, sync: &SyncChannel) -> Result<()> {
    let hooks = &launch.spec.hooks;
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        sync.send(&Message::RunHooks, None)?;
        sync.expect(&Message::HooksDone)?;
    }
    // createContainer hooks run in the container's namespaces but before pivot_root, with the
    // host's files (OCI runtime specification, "POSIX-platform Hooks").
    hooks::run(
        &hooks.create_container,
        &crate::state_json(
            launch.id,
            "creating",
            rustix::process::getpid().as_raw_nonzero().get(),
            launch.bundle,
            &launch.spec.annotations,
        ),
    )
}

/// Mounts a procfs of the calling process's pid namespace without attaching it anywhere.
pub(crate) fn private_proc() -> Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).map_err(os("open procfs"))?;
    fsconfig_create(&context).map_err(os("create procfs"))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(os("mount procfs"))
}

fn set_names(hostname: &str, domainname: &str) -> Result<()> {
    if !hostname.is_empty() {
        rustix::system::sethostname(hostname.as_bytes()).map_err(os("set hostname"))?;
    }
    if !domainname.is_empty() {
        rustix::system::setdomainname(domainname.as_bytes()).map_err(os("set domain name"))?;
    }
    Ok(())
}

fn wait_for_byte(fifo: &OwnedFd) -> Result<()> {
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(fifo, &mut byte) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop).map_err(os("wait for start")),
        }
    }
}
