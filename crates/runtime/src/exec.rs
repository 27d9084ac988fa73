//! A further process in a running container.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use whelk_sys::process::{CloneFlags, Cloned, clone_process, exit_now, setns};

use crate::affinity;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result, os};
use crate::namespaces;
use crate::process;
use crate::seccomp::Filter;
use crate::spec::{Linux, Process};
use crate::sync::{Message, Received, Sync};
use crate::terminal;
use crate::user::UserRequest;

/// What to run, and where.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container's first process.
    pub init: &'a OwnedFd,
    /// The container's configuration: which namespaces to enter.
    pub linux: &'a Linux,
    pub process: &'a Process,
    pub user: Option<&'a UserRequest>,
    pub filter: Option<&'a Filter>,
    pub streams: Option<[OwnedFd; 3]>,
    /// How many descriptors behind the three streams the program gets as they are.
    pub preserved: u32,
}

/// A process that runs in the container, as a child of the caller.
#[derive(Debug)]
pub struct Executed {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
}

/// A process on its way to its program. What it does on that way depends on the container: a slow file system, a frozen
/// cgroup, exhausted memory may keep it for as long as they like.
#[derive(Debug)]
pub struct Starting {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    sync: Sync,
    terminal: Option<OwnedFd>,
}

/// Starts a process in the container. Returns when the kernel has accepted its program.
///
/// # Errors
/// As [`crate::launch::create`].
pub fn exec(request: &Exec<'_>, cgroup: Option<&Cgroup>) -> Result<Executed> {
    let mut starting = start(request, cgroup)?;
    match starting.settle(true) {
        Ok(_) => Ok(Executed { pid: starting.pid, pidfd: starting.pidfd, terminal: starting.terminal }),
        Err(error) => {
            starting.kill();
            let _ = rustix::process::waitpid(Some(starting.pid), rustix::process::WaitOptions::empty());
            Err(error)
        }
    }
}

/// Begins to start a process in the container; [`Starting::settle`] tells what has become of it.
///
/// The caller must have one thread. Its own "namespace for children" becomes the container's pid namespace and stays
/// so: a caller serves one container.
///
/// # Errors
/// As [`crate::launch::create`].
pub fn start(exec: &Exec<'_>, cgroup: Option<&Cgroup>) -> Result<Starting> {
    let flags = namespaces::all_flags(exec.linux);
    if flags.contains(CloneFlags::NEWPID) {
        setns(exec.init.as_fd(), CloneFlags::NEWPID).map_err(os("enter the container's pid namespace"))?;
    }
    let (ours, theirs) = Sync::pair()?;
    let mut cgroup = cgroup;
    let nested;
    let mut born = clone_process(CloneFlags::default(), cgroup.and_then(Cgroup::birthplace));
    if born.as_ref().is_err_and(is_busy) {
        // The container has divided its cgroup: on v2 only the leaves hold processes. Its first process is in one.
        nested = Cgroup::of_process(exec.init)?;
        cgroup = Some(&nested);
        born = clone_process(CloneFlags::default(), None);
    }
    let (pid, pidfd) = match born.map_err(os("create process"))? {
        Cloned::Child => {
            drop(ours);
            let error = match enter(exec, cgroup, flags, &theirs) {
                Ok(prepared) => prepared.execute(),
                Err(error) => error,
            };
            let _ = theirs.send(&Message::Failed(error), None);
            exit_now(1)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs);
    Ok(Starting { pid, pidfd, sync: ours, terminal: None })
}

impl Starting {
    /// Whether the kernel has accepted the program; with `wait` not before that is decided.
    ///
    /// # Errors
    /// Why the program cannot run; the process ends then.
    pub fn settle(&mut self, wait: bool) -> Result<bool> {
        loop {
            match self.sync.look(wait)? {
                Received::Message(Message::Console, fd) => self.terminal = fd,
                Received::Message(Message::Failed(error), _) => return Err(error),
                Received::Message(message, _) => {
                    return Err(Error::Os(format!("unexpected message {message:?} while starting a process")));
                }
                Received::End => return Ok(true),
                Received::Nothing => return Ok(false),
            }
        }
    }

    /// Becomes readable when [`Starting::settle`] has something to tell.
    pub fn descriptor(&self) -> &OwnedFd {
        self.sync.descriptor()
    }

    /// The terminal that the process has made for itself, for whoever started it.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Ends a process whose program cannot run. Its parent still has to collect it.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }
}

fn is_busy(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
}

fn enter<'a>(exec: &'a Exec<'_>, cgroup: Option<&Cgroup>, flags: CloneFlags, sync: &Sync) -> Result<process::Prepared<'a>> {
    let affinity = exec.process.exec_cpu_affinity.as_ref();
    let run_on = |processors: Option<&String>| processors.map_or(Ok(()), |list| affinity::set(list));
    run_on(affinity.and_then(|affinity| affinity.initial.as_ref()))?;
    // In the cgroup first: what is done from here on counts as the container's.
    cgroup.map_or(Ok(()), Cgroup::enter)?;
    run_on(affinity.and_then(|affinity| affinity.finally.as_ref()))?;
    rustix::process::setsid().map_err(os("setsid"))?;
    setns(exec.init.as_fd(), flags.without(CloneFlags::NEWPID)).map_err(os("enter the container"))?;
    rustix::process::chdir("/").map_err(os("chdir to the container's root"))?;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(os("open the container's root"))?;
    let proc = process::entered_proc()?;
    let identity = process::identity(&root, exec.process, exec.user)?;
    if exec.process.terminal {
        let terminal = terminal::open(&terminal::entered_devpts()?, exec.process.console_size.as_ref())?;
        sync.send(&Message::Console, Some(&terminal.master))?;
        terminal::control(&terminal.slave, identity.uid)?;
        process::take_streams([&terminal.slave; 3], 0)?;
    } else if let Some([input, output, error]) = &exec.streams {
        process::take_streams([input, output, error], identity.uid)?;
    }
    process::prepare(
        exec.process,
        process::Surroundings {
            identity,
            proc: &proc,
            filter: exec.filter,
            personality: exec.linux.personality.as_ref(),
            preserved: exec.preserved,
        },
    )
}
