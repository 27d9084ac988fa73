//! The `create` command.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitOptions, waitpid};
use whelk_runtime::cgroup::{Cgroup, default_rules};
use whelk_runtime::launch::{self, Gate, Launch};
use whelk_runtime::spec::{Resources, Spec};
use whelk_runtime::{Error, Result, Rootfs, seccomp};
use whelk_sys::{fs, signal};

use super::process::{check_preserved, remove_unknown_capabilities, send_terminal};
use crate::state::{StateFile, directory, process};
use crate::{Create, Log};

/// Creates a container from its bundle. Its program starts with [`super::start::start`].
pub(super) fn create(root: &Path, args: &Create, log: &Log) -> Result<()> {
    let bundle = fs::canonicalize(&args.bundle.bundle)?;
    let config = fs::read(bundle.join("config.json"))?;
    let mut spec: Spec = serde_json::from_slice(&config)
        .map_err(|error| Error::invalid(format!("config.json: {error}")))?;
    if !spec.oci_version.starts_with("1.") {
        return Err(Error::invalid(format!(
            "config.json has ociVersion {:?}, but this runtime supports 1.x only",
            spec.oci_version
        )));
    }
    let terminal = spec
        .process
        .as_ref()
        .is_some_and(|process| process.terminal);
    if terminal != args.console_socket.is_some() {
        return Err(Error::invalid(if terminal {
            "a terminal needs --console-socket"
        } else {
            "--console-socket needs a terminal in the configuration"
        }));
    }
    spec.process
        .iter_mut()
        .for_each(|process| remove_unknown_capabilities(process, log));
    check_preserved(args.preserve_fds)?;
    whelk_sys::mount::check_root_directory().map_err(|error| Error::Os(error.to_string()))?;
    let path = cgroup_path(&args.id, &spec);
    let mut cgroup = Cgroup::at(&path)?;
    let directory = directory(root, &args.id)?;
    fs::create_dir_all(root, 0o700)?;
    fs::create_dir(&directory, 0o700).map_err(|error| {
        if error.source.kind() == std::io::ErrorKind::AlreadyExists {
            Error::State(format!(
                "container with given ID {} already exists",
                args.id
            ))
        } else {
            error.into()
        }
    })?;
    let made = fs::write(directory.join("config.json"), &config)
        .map_err(Error::from)
        .and_then(|()| create_process(args, &spec, &bundle, &directory, &mut cgroup, path));
    if made.is_err() {
        let _ = cgroup.remove();
        let _ = fs::remove_tree(&directory);
    }
    made
}

/// Returns the path of a container's cgroup, by default below the root.
pub(super) fn cgroup_path(id: &str, spec: &Spec) -> String {
    if spec.linux.cgroups_path.is_empty() {
        format!("/{id}")
    } else {
        format!("/{}", spec.linux.cgroups_path.trim_start_matches('/'))
    }
}

/// Creates the cgroup and the first process of a container, and writes its state.
fn create_process(
    args: &Create,
    spec: &Spec,
    bundle: &Path,
    directory: &Path,
    cgroup: &mut Cgroup,
    path: String,
) -> Result<()> {
    let root_path = spec
        .root
        .as_ref()
        .map(|root| bundle.join(&root.path))
        .ok_or_else(|| Error::invalid("the configuration has no root"))?;
    let rootfs = Rootfs::Directory(fs::canonicalize(root_path)?);
    let filter = spec
        .linux
        .seccomp
        .as_ref()
        .map(seccomp::compile)
        .transpose()?;
    let fifo_path = directory.join("exec.fifo");
    let step =
        |error: rustix::io::Errno| Error::Os(format!("create {}: {error}", fifo_path.display()));
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo_path, Mode::from_raw_mode(0o600)).map_err(step)?;
    // Opened for reading and writing: a reader then waits for a byte instead of returning when a
    // writer closes the FIFO.
    let fifo = rustix::fs::open(&fifo_path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(step)?;
    cgroup.create(&with_default_devices(&spec.linux.resources))?;
    let launch = Launch {
        id: &args.id,
        spec,
        bundle,
        rootfs: &rootfs,
        scratch: directory,
        user: None,
        make_cwd: true,
        filter: filter.as_ref(),
        streams: None,
        preserved: args.preserve_fds,
        nodes_of_user: &[],
        gate: Gate::Fifo(fifo),
    };
    let created = launch::create(&launch, Some(cgroup))?;
    let pid = created.pid.as_raw_nonzero().get();
    let finish = || -> Result<()> {
        if let (Some(terminal), Some(socket)) = (&created.terminal, &args.console_socket) {
            send_terminal(terminal, socket)?;
        }
        let (_, start_time) = process(pid)
            .ok_or_else(|| Error::Os("the container's first process has ended".into()))?;
        StateFile {
            id: args.id.clone(),
            pid,
            start_time,
            bundle: bundle.to_owned(),
            cgroup: path,
            created: jiff::Timestamp::now().to_string(),
        }
        .save(directory)?;
        args.pid_file.as_ref().map_or(Ok(()), |file| {
            fs::replace(file, pid.to_string(), 0o644).map_err(Into::into)
        })
    };
    finish().inspect_err(|_| {
        let _ = signal::pidfd_send(&created.pidfd, 9);
        let _ = waitpid(Some(created.pid), WaitOptions::empty());
    })
}

/// Returns the limits with the default device rules added, which are allowed for every container.
fn with_default_devices(resources: &Resources) -> Resources {
    let mut resources = resources.clone();
    if !resources.devices.is_empty() {
        resources.devices.extend(default_rules());
    }
    resources
}
