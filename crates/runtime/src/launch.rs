//! Creating and starting a container: the side of the parent.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use whelk_sys::process::{CloneFlags, Cloned, clone_process, exit_now, setns};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result, os};
use crate::rootfs::Rootfs;
use crate::seccomp::Filter;
use crate::spec::{NamespaceKind, Spec};
use crate::sync::{Message, SyncChannel};
use crate::user::UserRequest;
use crate::{child, hooks, namespaces, sysctls};

/// Everything that a container is created from.
#[derive(Debug)]
pub struct Launch<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    pub rootfs: &'a Rootfs,
    /// Empty directory on which an overlay root is attached, inside the container's own mount
    /// namespace.
    pub scratch: &'a Path,
    /// The user by name, resolved in the container's files; `None` uses the ids of the
    /// configuration.
    pub user: Option<&'a UserRequest>,
    /// Whether to create the working directory if the root lacks it.
    pub make_cwd: bool,
    pub filter: Option<&'a Filter>,
    /// Standard input, output and error of the program; unused with a terminal.
    pub streams: Option<[OwnedFd; 3]>,
    /// Number of descriptors after the three standard streams that the program inherits.
    pub preserved: u32,
    /// Device nodes that belong to the program's user.
    pub nodes_of_user: &'a [NodeOfUser],
    /// What the created container waits for before it executes its program.
    pub gate: Gate,
}

/// A device node in the container whose owner is the user of its first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NodeOfUser {
    pub path: String,
    /// Whether the node's user is the process's.
    pub user: bool,
    /// Whether the node's group is the process's.
    pub group: bool,
}

/// How a created container is told to start.
#[derive(Debug)]
pub enum Gate {
    /// By [`Created::start`], called by the process that created it.
    Starter,
    /// By a byte written to this FIFO, by any process.
    Fifo(OwnedFd),
}

/// A container that is set up and waits to execute its program.
#[derive(Debug)]
pub struct Created {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// Master end of the terminal, if there is one.
    pub terminal: Option<OwnedFd>,
    sync: SyncChannel,
}

/// Creates the container's first process and sets up its environment, up to the point where its
/// program would be executed.
///
/// The cgroup must exist. On an error everything is undone except the cgroup, which belongs to the
/// caller.
///
/// # Errors
/// Returns [`Error::CommandNotFound`] or [`Error::NotExecutable`] if the program cannot be run, and
/// the error of the failed step otherwise.
pub fn create(launch: &Launch<'_>, cgroup: Option<&Cgroup>) -> Result<Created> {
    let linux = &launch.spec.linux;
    namespaces::check(launch.spec)?;
    sysctls::check(linux)?;
    if let Some(namespace) = linux.namespace(NamespaceKind::Pid)
        && let Some(existing) = namespaces::open(namespace)?
    {
        setns(existing.as_fd(), CloneFlags::NEWPID).map_err(os("join pid namespace"))?;
    }
    if linux.has_new(NamespaceKind::Time) && !linux.time_offsets.is_empty() {
        namespaces::new_time_namespace(linux)?;
    }
    let (ours, theirs) = SyncChannel::pair()?;
    let clone_into = cgroup.and_then(Cgroup::clone_into);
    let (pid, pidfd) = match clone_process(namespaces::clone_flags(linux), clone_into)
        .map_err(os("create the container's first process"))?
    {
        Cloned::Child => {
            drop(ours);
            let error = child::run(launch, cgroup, &theirs);
            let text = format!("{error}\n");
            if theirs.send(&Message::Failed(error), None).is_err() {
                // The parent has exited: the container's standard error is the only place left to
                // report to.
                let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
            }
            exit_now(1)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    let mut created = Created {
        pid,
        pidfd,
        terminal: None,
        sync: ours,
    };
    match created.await_ready(launch) {
        Ok(()) => Ok(created),
        Err(error) => {
            created.abandon();
            Err(error)
        }
    }
}

impl Created {
    /// Writes the id maps and answers the child's messages until it reports that it is ready.
    fn await_ready(&mut self, launch: &Launch<'_>) -> Result<()> {
        let linux = &launch.spec.linux;
        if linux.has_new(NamespaceKind::User) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let proc = rustix::fs::open("/proc", flags, Mode::empty()).map_err(os("open /proc"))?;
            namespaces::write_id_maps(&proc, self.pid, &linux.uid_mappings, &linux.gid_mappings)?;
            self.sync
                .send(&Message::IdsMapped, None)
                .map_err(|error| self.or_childs_error(error))?;
        }
        loop {
            match self.sync.receive()? {
                Some((Message::Console, terminal)) => self.terminal = terminal,
                Some((Message::RunHooks, _)) => {
                    let state = state(launch, self.pid.as_raw_nonzero().get(), "creating");
                    hooks::run(&launch.spec.hooks.prestart, &state)?;
                    hooks::run(&launch.spec.hooks.create_runtime, &state)?;
                    self.sync.send(&Message::HooksDone, None)?;
                }
                Some((Message::Ready, _)) => return Ok(()),
                Some((Message::Failed(error), _)) => return Err(error),
                Some((message, _)) => {
                    return Err(Error::Os(format!(
                        "unexpected message {message:?} while starting a container"
                    )));
                }
                None => {
                    return Err(Error::Os(
                        "the container's first process died while it was set up".into(),
                    ));
                }
            }
        }
    }

    /// Returns the error that the child has sent, if there is one; `error` otherwise. A send fails
    /// because the child has failed, and the child's error has the cause.
    fn or_childs_error(&self, error: Error) -> Error {
        match self.sync.receive() {
            Ok(Some((Message::Failed(cause), _))) => cause,
            _ => error,
        }
    }

    /// Tells the container to execute its program. Returns `None` once the kernel has accepted it,
    /// or the text of the kernel's error: the process counts as started and ended then.
    ///
    /// # Errors
    /// Returns an error if a step before `execve` fails.
    pub fn start(&mut self) -> Result<Option<String>> {
        self.sync
            .send(&Message::Start, None)
            .map_err(|error| self.or_childs_error(error))?;
        match self.sync.receive()? {
            None => Ok(None),
            Some((Message::NotExecuted(text), _)) => Ok(Some(text)),
            Some((Message::Failed(error), _)) => {
                self.abandon();
                Err(error)
            }
            Some((message, _)) => Err(Error::Os(format!(
                "unexpected message {message:?} at the start of a container"
            ))),
        }
    }

    /// Kills the process and reaps it.
    pub fn abandon(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

/// Returns the container's state for hooks.
fn state(launch: &Launch<'_>, pid: i32, status: &str) -> serde_json::Value {
    crate::state_json(
        launch.id,
        status,
        pid,
        launch.bundle,
        &launch.spec.annotations,
    )
}
