//! Creating and starting a container: the starter's side.

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
use crate::sync::{Message, Sync};
use crate::user::UserRequest;
use crate::{child, hooks, namespaces, sysctls};

/// All that a container is made of.
#[derive(Debug)]
pub struct Launch<'a> {
    pub id: &'a str,
    pub spec: &'a Spec,
    pub bundle: &'a Path,
    pub rootfs: &'a Rootfs,
    /// An empty directory to attach an overlay root on, inside the container's own mount namespace.
    pub scratch: &'a Path,
    /// The user by name, resolved in the container's files; `None` takes the numbers of the
    /// configuration.
    pub user: Option<&'a UserRequest>,
    /// Create the working directory if the root lacks it.
    pub make_cwd: bool,
    pub filter: Option<&'a Filter>,
    /// Input, output and error of the program; unused with a terminal.
    pub streams: Option<[OwnedFd; 3]>,
    /// How many descriptors behind the three streams the program gets as they are.
    pub preserved: u32,
    /// What the made container waits on before it executes its program.
    pub gate: Gate,
}

/// How a made container is told to start.
#[derive(Debug)]
pub enum Gate {
    /// By [`Created::start`], by the same process that made it.
    Starter,
    /// By a byte written to this FIFO, by any later process.
    Fifo(OwnedFd),
}

/// A container that is all set up and waits to execute its program.
#[derive(Debug)]
pub struct Created {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// The terminal's master end, when there is one.
    pub terminal: Option<OwnedFd>,
    sync: Sync,
}

/// Makes the container's first process and everything around it, up to the point where its program
/// would run.
///
/// The cgroup must have been created. On an error everything is undone but the cgroup, which is the
/// caller's.
///
/// # Errors
/// [`Error::CommandNotFound`] and [`Error::NotExecutable`] for the program; the step that failed
/// otherwise.
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
    let (ours, theirs) = Sync::pair()?;
    let birthplace = cgroup.and_then(Cgroup::birthplace);
    let (pid, pidfd) = match clone_process(namespaces::birth_flags(linux), birthplace)
        .map_err(os("create the container's first process"))?
    {
        Cloned::Child => {
            drop(ours);
            let error = child::run(launch, cgroup, &theirs);
            let text = format!("{error}\n");
            if theirs.send(&Message::Failed(error), None).is_err() {
                // The starter is gone: whoever has the container's error output is left to tell.
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
    match created.settle(launch) {
        Ok(()) => Ok(created),
        Err(error) => {
            created.abandon();
            Err(error)
        }
    }
}

impl Created {
    fn settle(&mut self, launch: &Launch<'_>) -> Result<()> {
        let linux = &launch.spec.linux;
        if linux.has_new(NamespaceKind::User) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let proc = rustix::fs::open("/proc", flags, Mode::empty()).map_err(os("open /proc"))?;
            namespaces::write_id_maps(&proc, self.pid, &linux.uid_mappings, &linux.gid_mappings)?;
            self.sync
                .send(&Message::IdsMapped, None)
                .map_err(|error| self.explain(error))?;
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

    /// If a message could not be sent because the child failed, the child's own error says more.
    fn explain(&self, error: Error) -> Error {
        match self.sync.receive() {
            Ok(Some((Message::Failed(cause), _))) => cause,
            _ => error,
        }
    }

    /// Lets the program run. Returns when the kernel has accepted it, or what the kernel said
    /// instead: the process is one that has started and ended then.
    ///
    /// # Errors
    /// A step right before `execve` failed.
    pub fn start(&mut self) -> Result<Option<String>> {
        self.sync
            .send(&Message::Start, None)
            .map_err(|error| self.explain(error))?;
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

    /// Kills the half-made process and reaps it.
    fn abandon(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

/// The container's state as hooks and `state` show it.
fn state(launch: &Launch<'_>, pid: i32, status: &str) -> serde_json::Value {
    crate::state_json(
        launch.id,
        status,
        pid,
        launch.bundle,
        &launch.spec.annotations,
    )
}
