//! Starting a further process in a running container.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::{Deserialize, Serialize};
use whelk_sys::process::{CloneFlags, Cloned, clone_process, exit_now, run_isolated, setns};
use whelk_sys::seccomp::Instruction;

use crate::affinity;
use crate::cgroup::Cgroup;
use crate::error::{Error, Result, os};
use crate::namespaces;
use crate::process;
use crate::seccomp::Filter;
use crate::spec::{Linux, NamespaceKind, Personality, Process};
use crate::sync::{Message, Received, SyncChannel};
use crate::terminal;
use crate::user::UserRequest;

/// What to run, and in which container.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// pidfd of the container's first process.
    pub init: &'a OwnedFd,
    /// Id of the container; its session keyring is joined.
    pub container: &'a str,
    /// The container's configuration, for the namespaces to enter.
    pub linux: &'a Linux,
    pub process: &'a Process,
    pub user: Option<&'a UserRequest>,
    pub filter: Option<&'a Filter>,
    pub streams: Option<[OwnedFd; 3]>,
    /// Number of descriptors after the three standard streams that the program inherits.
    pub preserved: u32,
}

/// A process that runs in the container. It is a child of the caller.
#[derive(Debug)]
pub struct Executed {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
}

/// A process that has been created but has not executed its program yet. How long that takes
/// depends on the container: a slow file system, a frozen cgroup or exhausted memory can delay it
/// without bound.
#[derive(Debug)]
pub struct Starting {
    /// The process that enters the container and creates the actual one there; it exits as soon as
    /// it has.
    intermediate: (Pid, OwnedFd),
    process: Option<(Pid, OwnedFd)>,
    sync: SyncChannel,
    terminal: Option<OwnedFd>,
}

/// How far the start of a process has come.
#[derive(Debug)]
pub enum Progress {
    /// The program has not been executed yet.
    Pending,
    /// The kernel has accepted the program, or the process was killed before that.
    Started,
}

/// Starts a process in the container. Returns once the kernel has accepted its program.
///
/// # Errors
/// Returns the same errors as [`crate::launch::create`].
pub fn exec(request: &ExecRequest<'_>, cgroup: Option<&Cgroup>) -> Result<Executed> {
    let mut starting = start(request, cgroup)?;
    let outcome = starting.advance(true);
    if outcome.is_err() {
        starting.kill();
    }
    starting.reap_intermediate();
    match (outcome, starting.process) {
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

/// Begins to start a process in the container without waiting for it; [`Starting::advance`] reports
/// its progress.
///
/// Processes in the container see the new process from its creation, and those that may trace it
/// could reach the host through its root and its descriptors (CVE-2016-9962). Therefore an
/// intermediate process, which is not visible in the container, first enters the namespaces and
/// closes all descriptors that are not meant for the container, and creates the process only then.
///
/// # Errors
/// Returns the same errors as [`crate::launch::create`].
pub fn start(exec: &ExecRequest<'_>, cgroup: Option<&Cgroup>) -> Result<Starting> {
    let (ours, theirs) = SyncChannel::pair()?;
    ours.pass_credentials()?;
    let mut cgroup = cgroup;
    let nested;
    let mut cloned = clone_process(CloneFlags::default(), cgroup.and_then(Cgroup::clone_into));
    if cloned.as_ref().is_err_and(is_busy) {
        // EBUSY: the container has created sub-cgroups. In cgroup v2 only leaves may hold processes
        // ("no internal processes"), so the one its first process is in is used.
        nested = Cgroup::of_process(exec.init)?;
        cgroup = Some(&nested);
        cloned = clone_process(CloneFlags::default(), None);
    }
    match cloned.map_err(os("create process"))? {
        Cloned::Parent { pid, pidfd } => Ok(Starting {
            intermediate: (pid, pidfd),
            process: None,
            sync: ours,
            terminal: None,
        }),
        Cloned::Child => {
            drop(ours);
            let error = match intermediate(exec, cgroup) {
                Ok(config) => run_isolated(
                    process::STREAMS + exec.preserved,
                    theirs.into(),
                    &config,
                    spawn,
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
    /// execve has succeeded or failed.
    ///
    /// # Errors
    /// Returns an error if the process cannot be set up or its program cannot be executed; the
    /// process exits then.
    pub fn advance(&mut self, wait: bool) -> Result<Progress> {
        loop {
            if let Some(progress) = self.next(wait)? {
                return Ok(progress);
            }
        }
    }

    /// Receives one message. Returns the progress if no more are expected now, `None` otherwise.
    fn next(&mut self, wait: bool) -> Result<Option<Progress>> {
        match self.sync.receive_next(wait)? {
            Received::Message(Message::Spawned, _, sender) => {
                let pid = sender
                    .ok_or_else(|| Error::Os("the new process sent no credentials".into()))?;
                // It is an unreaped child of this process, so its pid cannot have been reused even
                // if it has exited.
                let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| {
                    // Without a pidfd nobody could kill it later.
                    let _ = kill_process(pid, Signal::KILL);
                    os("open pidfd of the new process")(error)
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
            Received::Nothing => Ok(Some(Progress::Pending)),
        }
    }

    /// Returns the descriptor that becomes readable when [`Starting::advance`] has something to
    /// report.
    pub fn descriptor(&self) -> &OwnedFd {
        self.sync.descriptor()
    }

    /// Returns the pid and pidfd of the process, once it exists.
    pub fn process(&self) -> Option<&(Pid, OwnedFd)> {
        self.process.as_ref()
    }

    /// Takes the master end of the terminal that the process has opened for itself.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// Kills the process and the intermediate one, whatever they have done so far. The parent still
    /// has to reap both.
    pub fn kill(&mut self) {
        // A process that cannot report that it exists exits by itself.
        self.sync.shut_down_reading();
        while self.process.is_none() && matches!(self.next(false), Ok(None)) {}
        for (_, pidfd) in self.process.iter().chain([&self.intermediate]) {
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }

    fn reap_intermediate(&self) {
        let _ =
            rustix::process::pidfd_send_signal(&self.intermediate.1, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(
            Some(self.intermediate.0),
            rustix::process::WaitOptions::empty(),
        );
    }
}

fn is_busy(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
}

/// The fields of a filter's instructions, and the other fields of the filter.
type Fields = (Vec<(u16, u8, u8, u32)>, u32, Option<(String, String)>);

/// Everything the process needs inside the container. It is passed as JSON: nothing else of the
/// memory of the process that starts it may be used there.
#[derive(Serialize, Deserialize)]
struct ProcessConfig {
    container: String,
    process: Process,
    user: Option<UserRequest>,
    has_user_namespace: bool,
    personality: Option<Personality>,
    filter: Option<Fields>,
    has_streams: bool,
    preserved: u32,
}

impl ProcessConfig {
    fn encode(exec: &ExecRequest<'_>) -> Result<Vec<u8>> {
        let fields = |it: &Instruction| (it.code, it.jump_true, it.jump_false, it.value);
        let config = Self {
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
        serde_json::to_vec(&config).map_err(|error| Error::Os(error.to_string()))
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

/// Runs in the intermediate process: sets what needs files of the host, and enters the container.
/// Returns the configuration of the actual process as JSON.
fn intermediate(exec: &ExecRequest<'_>, cgroup: Option<&Cgroup>) -> Result<Vec<u8>> {
    let config = ProcessConfig::encode(exec)?;
    let affinity = exec.process.exec_cpu_affinity.as_ref();
    let run_on =
        |processors: Option<&String>| processors.map_or(Ok(()), |list| affinity::set(list));
    run_on(affinity.and_then(|affinity| affinity.initial.as_ref()))?;
    {
        let own_proc = process::own_proc()?;
        process::set_oom_score(&own_proc, exec.process)?;
        // The label set for the next execve is inherited by children.
        process::label(&own_proc, exec.process)?;
    }
    // The cgroup comes first, so that everything from here on is accounted to the container.
    cgroup.map_or(Ok(()), Cgroup::enter)?;
    run_on(affinity.and_then(|affinity| affinity.finally.as_ref()))?;
    match (&exec.streams, exec.process.terminal) {
        (Some([input, output, error]), _) => process::replace_streams([input, output, error])?,
        // Placeholders until the terminal has been opened.
        (None, true) => {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map_err(os("open /dev/null"))?;
            process::replace_streams([&null; 3])?;
        }
        (None, false) => {}
    }
    setns(exec.init.as_fd(), namespaces::all_flags(exec.linux))
        .map_err(os("enter the container"))?;
    rustix::process::chdir("/").map_err(os("chdir to the container's root"))?;
    Ok(config)
}

/// Creates the process with CLONE_PARENT, as a child of the process that started the exec. Returns
/// the exit status of the intermediate process, or that of a process that could not execute its
/// program.
fn spawn(config: &[u8], sync: OwnedFd) -> i32 {
    let sync = SyncChannel::from(sync);
    let error = match clone_process(CloneFlags::PARENT, None) {
        Ok(Cloned::Parent { .. }) => return 0,
        Ok(Cloned::Child) => enter(config, &sync),
        Err(error) => os("create process")(error),
    };
    let _ = sync.send(&Message::Failed(error), None);
    1
}

/// Sets up the process and executes its program. Returns only on failure.
fn enter(config: &[u8], sync: &SyncChannel) -> Error {
    let entered = || -> Result<Error> {
        sync.send(&Message::Spawned, None)?;
        let config: ProcessConfig =
            serde_json::from_slice(config).map_err(|error| Error::Os(error.to_string()))?;
        let filter = config.filter();
        Ok(prepare(&config, filter.as_ref(), sync)?.execute(None))
    };
    entered().unwrap_or_else(|error| error)
}

fn prepare<'a>(
    config: &'a ProcessConfig,
    filter: Option<&'a Filter>,
    sync: &SyncChannel,
) -> Result<process::Prepared<'a>> {
    rustix::process::setsid().map_err(os("setsid"))?;
    if config.has_user_namespace {
        process::become_root()?;
    }
    process::join_keyring(&config.container, false)?;
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(os("open the container's root"))?;
    let identity = process::identity(&root, &config.process, config.user.as_ref())?;
    if config.process.terminal {
        let terminal = terminal::open(
            &terminal::entered_devpts()?,
            config.process.console_size.as_ref(),
        )?;
        sync.send(&Message::Console, Some(&terminal.master))?;
        terminal::control(&terminal.slave, identity.uid)?;
        process::replace_streams([&terminal.slave; 3])?;
    } else if config.has_streams {
        process::chown_streams(identity.uid);
    }
    let personality = config.personality.as_ref();
    process::prepare(
        &config.process,
        process::PrepareOptions {
            identity,
            filter,
            personality,
            preserved: config.preserved,
        },
    )
}
