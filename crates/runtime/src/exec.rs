//! A further process in a running container.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::{Deserialize, Serialize};
use whelk_sys::process::{CloneFlags, Cloned, clone_process, end_apart, exit_now, setns};
use whelk_sys::seccomp::Instruction;

use crate::affinity;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result, os};
use crate::namespaces;
use crate::process;
use crate::seccomp::Filter;
use crate::spec::{Linux, NamespaceKind, Personality, Process};
use crate::sync::{Message, Received, Sync};
use crate::terminal;
use crate::user::UserRequest;

/// What to run, and where.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container's first process.
    pub init: &'a OwnedFd,
    /// Whose session keyring is entered.
    pub container: &'a str,
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

/// A process on its way to its program. What it does on that way depends on the container: a slow
/// file system, a frozen cgroup, exhausted memory may keep it for as long as they like.
#[derive(Debug)]
pub struct Starting {
    /// Goes ahead into the container and ends when the process is born.
    guide: (Pid, OwnedFd),
    process: Option<(Pid, OwnedFd)>,
    sync: Sync,
    terminal: Option<OwnedFd>,
}

/// How far a process is on its way.
#[derive(Debug)]
pub enum Progress {
    OnItsWay,
    /// The kernel has accepted its program, or it has been ended before.
    Started,
}

/// Starts a process in the container. Returns when the kernel has accepted its program.
///
/// # Errors
/// As [`crate::launch::create`].
pub fn exec(request: &Exec<'_>, cgroup: Option<&Cgroup>) -> Result<Executed> {
    let mut starting = start(request, cgroup)?;
    let settled = starting.settle(true);
    if settled.is_err() {
        starting.kill();
    }
    starting.collect_guide();
    match (settled, starting.process) {
        (Ok(_), Some((pid, pidfd))) => Ok(Executed {
            pid,
            pidfd,
            terminal: starting.terminal,
        }),
        (Ok(_), None) => Err(died()),
        (Err(error), process) => {
            if let Some((pid, _)) = process {
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            }
            Err(error)
        }
    }
}

fn died() -> Error {
    Error::Os("the process died while it was set up".into())
}

/// Begins to start a process in the container; [`Starting::settle`] tells what has become of it.
///
/// What runs in the container sees the process from its birth, and whoever may trace it can look
/// through its root and its descriptors (CVE-2016-9962). So it is born by a guide that the
/// container does not see, which is inside by then and has closed what is not the container's.
///
/// # Errors
/// As [`crate::launch::create`].
pub fn start(exec: &Exec<'_>, cgroup: Option<&Cgroup>) -> Result<Starting> {
    let (ours, theirs) = Sync::pair()?;
    ours.tell_senders()?;
    let mut cgroup = cgroup;
    let nested;
    let mut cloned = clone_process(CloneFlags::default(), cgroup.and_then(Cgroup::birthplace));
    if cloned.as_ref().is_err_and(is_busy) {
        // The container has divided its cgroup: on v2 only the leaves hold processes. Its first
        // process is in one.
        nested = Cgroup::of_process(exec.init)?;
        cgroup = Some(&nested);
        cloned = clone_process(CloneFlags::default(), None);
    }
    match cloned.map_err(os("create process"))? {
        Cloned::Parent { pid, pidfd } => Ok(Starting {
            guide: (pid, pidfd),
            process: None,
            sync: ours,
            terminal: None,
        }),
        Cloned::Child => {
            drop(ours);
            let error = match guide(exec, cgroup) {
                Ok(inside) => end_apart(
                    process::STREAMS + exec.preserved,
                    theirs.into(),
                    &inside,
                    bear,
                ),
                Err(error) => error,
            };
            let _ = theirs.send(&Message::Failed(error), None);
            exit_now(1)
        }
    }
}

impl Starting {
    /// Receives the messages that the new process has sent so far. With `wait`, blocks until its
    /// execve succeeded or failed.
    ///
    /// # Errors
    /// Why the program cannot run; the process ends then.
    pub fn settle(&mut self, wait: bool) -> Result<Progress> {
        loop {
            if let Some(progress) = self.next(wait)? {
                return Ok(progress);
            }
        }
    }

    /// Receives one message; answers when there is none.
    fn next(&mut self, wait: bool) -> Result<Option<Progress>> {
        match self.sync.look(wait)? {
            Received::Message(Message::Born, _, sender) => {
                let pid = sender.ok_or_else(|| Error::Os("a process without a number".into()))?;
                // A child that nobody has waited for yet: the number is still its own, also when it
                // has ended.
                let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| {
                    // Without a descriptor nobody could end it later.
                    let _ = kill_process(pid, Signal::KILL);
                    os("open the process")(error)
                })?;
                self.process = Some((pid, pidfd));
                Ok(None)
            }
            Received::Message(Message::Console, fd, _) => {
                self.terminal = fd;
                Ok(None)
            }
            Received::Message(Message::Failed(error), ..) => Err(error),
            Received::Message(message, ..) => Err(Error::Os(format!(
                "unexpected message {message:?} while starting a process"
            ))),
            Received::End if self.process.is_none() => Err(died()),
            Received::End => Ok(Some(Progress::Started)),
            Received::Nothing => Ok(Some(Progress::OnItsWay)),
        }
    }

    /// Becomes readable when [`Starting::settle`] has something to tell.
    pub fn descriptor(&self) -> &OwnedFd {
        self.sync.descriptor()
    }

    /// The process, once it is born.
    pub fn process(&self) -> Option<&(Pid, OwnedFd)> {
        self.process.as_ref()
    }

    /// The terminal that the process has made for itself, for whoever started it.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Ends the process and its guide, however far they are. Their parent still has to wait for
    /// both.
    pub fn kill(&mut self) {
        // A process that has not said that it is born ends itself when it cannot.
        self.sync.refuse_more();
        while self.process.is_none() && matches!(self.next(false), Ok(None)) {}
        for (_, pidfd) in self.process.iter().chain([&self.guide]) {
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }

    fn collect_guide(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.guide.1, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.guide.0), rustix::process::WaitOptions::empty());
    }
}

fn is_busy(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
}

/// The fields of a filter's instructions, and the rest of the filter.
type Fields = (Vec<(u16, u8, u8, u32)>, u32, Option<(String, String)>);

/// What the process has to know inside the container: all that it keeps of its starter's memory, as
/// text.
#[derive(Serialize, Deserialize)]
struct Inside {
    container: String,
    process: Process,
    user: Option<UserRequest>,
    has_user_namespace: bool,
    personality: Option<Personality>,
    filter: Option<Fields>,
    has_streams: bool,
    preserved: u32,
}

impl Inside {
    fn encode(exec: &Exec<'_>) -> Result<Vec<u8>> {
        let fields = |it: &Instruction| (it.code, it.jump_true, it.jump_false, it.value);
        let inside = Self {
            container: exec.container.to_owned(),
            process: exec.process.clone(),
            user: exec.user.cloned(),
            has_user_namespace: exec.linux.namespace(NamespaceKind::User).is_some(),
            personality: exec.linux.personality.clone(),
            filter: exec.filter.map(|filter| {
                (
                    filter.program.iter().map(fields).collect(),
                    filter.flags,
                    filter.listener.clone(),
                )
            }),
            has_streams: exec.streams.is_some(),
            preserved: exec.preserved,
        };
        serde_json::to_vec(&inside).map_err(|error| Error::Os(error.to_string()))
    }

    fn filter(&self) -> Option<Filter> {
        let (program, flags, listener) = self.filter.as_ref()?;
        let instruction = |&(code, jump_true, jump_false, value): &_| Instruction {
            code,
            jump_true,
            jump_false,
            value,
        };
        Some(Filter {
            program: program.iter().map(instruction).collect(),
            flags: *flags,
            listener: listener.clone(),
        })
    }
}

/// Goes into the container, having prepared what needs the host's files. Returns what the process
/// has to know there.
fn guide(exec: &Exec<'_>, cgroup: Option<&Cgroup>) -> Result<Vec<u8>> {
    let inside = Inside::encode(exec)?;
    let affinity = exec.process.exec_cpu_affinity.as_ref();
    let run_on =
        |processors: Option<&String>| processors.map_or(Ok(()), |list| affinity::set(list));
    run_on(affinity.and_then(|affinity| affinity.initial.as_ref()))?;
    {
        let own_proc = process::own_proc()?;
        process::set_oom_score(&own_proc, exec.process)?;
        // The label for the next execve is handed on to children.
        process::label(&own_proc, exec.process)?;
    }
    // In the cgroup first: what is done from here on counts as the container's.
    cgroup.map_or(Ok(()), Cgroup::enter)?;
    run_on(affinity.and_then(|affinity| affinity.finally.as_ref()))?;
    match (&exec.streams, exec.process.terminal) {
        (Some([input, output, error]), _) => process::take_streams([input, output, error])?,
        // Until there is one.
        (None, true) => {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map_err(os("open /dev/null"))?;
            process::take_streams([&null; 3])?;
        }
        (None, false) => {}
    }
    setns(exec.init.as_fd(), namespaces::all_flags(exec.linux))
        .map_err(os("enter the container"))?;
    rustix::process::chdir("/").map_err(os("chdir to the container's root"))?;
    Ok(inside)
}

/// Bears the process, as a sibling: whoever started the guide is its parent. Returns the guide's
/// status, or that of a process that could not become its program.
fn bear(inside: &[u8], sync: OwnedFd) -> i32 {
    let sync = Sync::from(sync);
    let error = match clone_process(CloneFlags::PARENT, None) {
        Ok(Cloned::Parent { .. }) => return 0,
        Ok(Cloned::Child) => enter(inside, &sync),
        Err(error) => os("create process")(error),
    };
    let _ = sync.send(&Message::Failed(error), None);
    1
}

/// Becomes the program. Returns only the error that kept the process from it.
fn enter(inside: &[u8], sync: &Sync) -> Error {
    let entered = || -> Result<Error> {
        sync.send(&Message::Born, None)?;
        let inside: Inside =
            serde_json::from_slice(inside).map_err(|error| Error::Os(error.to_string()))?;
        let filter = inside.filter();
        Ok(prepare(&inside, filter.as_ref(), sync)?.execute(None))
    };
    entered().unwrap_or_else(|error| error)
}

fn prepare<'a>(
    inside: &'a Inside,
    filter: Option<&'a Filter>,
    sync: &Sync,
) -> Result<process::Prepared<'a>> {
    rustix::process::setsid().map_err(os("setsid"))?;
    if inside.has_user_namespace {
        process::become_root()?;
    }
    process::join_keyring(&inside.container, false)?;
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(os("open the container's root"))?;
    let identity = process::identity(&root, &inside.process, inside.user.as_ref())?;
    if inside.process.terminal {
        let terminal = terminal::open(
            &terminal::entered_devpts()?,
            inside.process.console_size.as_ref(),
        )?;
        sync.send(&Message::Console, Some(&terminal.master))?;
        terminal::control(&terminal.slave, identity.uid)?;
        process::take_streams([&terminal.slave; 3])?;
    } else if inside.has_streams {
        process::give_streams(identity.uid);
    }
    let personality = inside.personality.as_ref();
    process::prepare(
        &inside.process,
        process::Surroundings {
            identity,
            filter,
            personality,
            preserved: inside.preserved,
        },
    )
}
