//! Runs a container with another OCI runtime, such as runc, by its command line.
//!
//! ```text
//! shim ─ thread with a mount namespace of its own: root and special mounts, config.json
//!      │    └─► RUNTIME create ─► the container's first process, which waits
//!      ├─► RUNTIME start
//!      ├─► RUNTIME exec --detach          for each exec
//!      ├─► RUNTIME kill                   for signals to the first process, except SIGKILL
//!      └─► RUNTIME delete                 after the end
//! ```
//! The shim remains what it is without such a runtime: the parent of the container's processes, which
//! the kernel gives to it as the subreaper when the runtime's command exits, the owner of their streams
//! and of the cgroup. So pausing, limits, statistics and the list of processes need no runtime. The
//! runtime's state is in the run directory and vanishes with it. Nothing of what it reports is believed:
//! the pid of a process must be that of a child of the shim in the container's cgroup.

use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use whelk_runtime::cgroup::Cgroup;
use whelk_runtime::spec::{Process, Root, Spec};
use whelk_runtime::user::{self, Identity};
use whelk_runtime::{Error, Result, Rootfs, attach_root, bind_for_others};
use whelk_sys::fs;
use whelk_sys::process::{CloneFlags, unshare};

use crate::call::{Call, Log};
use crate::console::Console;
use crate::container::pid_number;
use crate::protocol::{ContainerLaunch, ExecLaunch, OciRuntime};

/// How long the runtime may take to create a container, and to start it, including its hooks.
const START_LIMIT: Duration = Duration::from_secs(120);

const EXEC_LIMIT: Duration = Duration::from_secs(10);

/// Below the time after which the engine sends a signal itself.
const KILL_LIMIT: Duration = Duration::from_secs(3);

/// The shim serves nobody meanwhile, and the engine kills a shim that does not report the end of killed
/// processes for 10 s.
const DELETE_LIMIT: Duration = Duration::from_secs(5);

/// The number of the commands that create, start and delete the container, of which there is one at a time.
const ALONE: u64 = 0;

/// The directory of the runtime's state in the run directory.
const STATE: &str = "runtime";

const MAX_PID_FILE: u64 = 32;

/// A process that the runtime has created.
#[derive(Debug)]
pub(crate) struct Made {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
}

impl Made {
    /// Takes over the process whose pid the runtime has written to a file.
    ///
    /// # Errors
    /// Returns an error if it is not a process of the container, of which the shim is the parent.
    fn adopt(pid_file: &Path, cgroup: &Cgroup) -> Result<Self> {
        /// The time from leaving the cgroup to the end.
        const ENDING: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        let text = fs::read_at_most(pid_file, MAX_PID_FILE)?;
        let text = String::from_utf8_lossy(&text);
        let wrong = |what: &str| Error::Os(format!("{}: {text:?} {what}", pid_file.display()));
        let pid = parse_pid(&text).ok_or_else(|| wrong("is not a pid"))?;
        let pidfd =
            pidfd_open(pid, PidfdFlags::empty()).map_err(|error| wrong(&format!("{error}")))?;
        let has_ended = || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let ended = waitid(WaitId::PidFd(pidfd.as_fd()), options);
            let ended = ended.map(|status| status.is_some());
            ended.map_err(|_| wrong("is not a process that the runtime has created"))
        };
        // A process that ends leaves its cgroup first.
        if !has_ended()? && !cgroup.processes()?.contains(&pid_number(pid)) {
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&ENDING));
            if !has_ended()? {
                return Err(wrong("is not a process of the container"));
            }
        }
        Ok(Self {
            pid,
            pidfd,
            terminal: None,
        })
    }

    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

/// The runtime with the container that it is called for.
#[derive(Clone, Copy)]
pub(crate) struct External<'a> {
    launch: &'a ContainerLaunch,
    runtime: &'a OciRuntime,
}

impl<'a> External<'a> {
    /// Returns the container's runtime if it is another one than the shim's own.
    pub(crate) fn of(launch: &'a ContainerLaunch) -> Option<Self> {
        let runtime = launch.runtime.as_ref()?;
        Some(Self { launch, runtime })
    }

    /// Creates the container. Its first process waits for [`External::start`].
    ///
    /// # Errors
    /// Returns the error that the runtime has logged. Something may have been created then.
    pub(crate) fn create(self, streams: Option<[OwnedFd; 3]>, cgroup: &Cgroup) -> Result<Made> {
        let console = self.console(streams.is_none(), ALONE)?;
        // The root is mounted where only this thread and the programs that it starts see it.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.create_here(console.is_some(), streams));
            let failed = |_| {
                Err(Error::Os(
                    "the thread that creates the container has failed".into(),
                ))
            };
            thread.join().unwrap_or_else(failed)
        })?;
        let mut made = self.made(ALONE, cgroup)?;
        made.terminal = console.map(Console::receive).transpose()?;
        Ok(made)
    }

    fn create_here(self, terminal: bool, streams: Option<[OwnedFd; 3]>) -> Result<()> {
        unshare(CloneFlags::NEWNS).map_err(failed("create a mount namespace"))?;
        let root = attach_root(&self.launch.rootfs, &self.launch.scratch)?;
        let spec = self.configuration(&root)?;
        let content = serde_json::to_vec(&spec).map_err(failed("write the configuration"))?;
        fs::write_with_mode(self.path("config.json"), content, 0o600)?;
        let log = self.log(ALONE)?;
        let mut command = self.command("create", &log);
        command.arg("--bundle").arg(&self.launch.run_dir);
        self.add_process_options(&mut command, ALONE, terminal, streams)?;
        Call::begin(command, log, START_LIMIT)?.wait()
    }

    /// Runs the program of the created container.
    ///
    /// # Errors
    /// Returns the error that the runtime has logged.
    pub(crate) fn start(self) -> Result<()> {
        self.run("start", &[], START_LIMIT)
    }

    /// Begins to start a further process; [`External::made`] returns it. `init` is the pid of the
    /// container's first one.
    ///
    /// # Errors
    /// Returns an error if the user does not exist, or if the runtime cannot be executed.
    pub(crate) fn exec(
        self,
        init: Pid,
        number: u64,
        request: &ExecLaunch,
        streams: Option<[OwnedFd; 3]>,
    ) -> Result<(Call, Option<Console>)> {
        let path = format!("/proc/{}/root", pid_number(init));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(failed("open the container's root"))?;
        let mut process = request.process.clone();
        set_user(&mut process, &user::resolve(&root, &request.user)?);
        let terminal = streams.is_none();
        let console = self.console(terminal, number)?;
        let file = self.process_file(number);
        let content = serde_json::to_vec(&process).map_err(failed("write the configuration"))?;
        fs::write_with_mode(&file, content, 0o600)?;
        let log = self.log(number)?;
        let mut command = self.command("exec", &log);
        command.args(["--detach", "--process"]).arg(&file);
        self.add_process_options(&mut command, number, terminal, streams)?;
        let call = Call::begin(command, log, EXEC_LIMIT);
        let call = call.inspect_err(|_| self.remove_files(number))?;
        Ok((call, console))
    }

    /// Returns the process that `create` or an exec with this number has created, and removes the files
    /// of that command.
    ///
    /// # Errors
    /// Returns an error if the runtime has not reported a process of the container.
    pub(crate) fn made(self, number: u64, cgroup: &Cgroup) -> Result<Made> {
        let made = Made::adopt(&self.pid_file(number), cgroup);
        self.remove_files(number);
        made
    }

    /// Returns the pid that the runtime has reported for the exec with this number, if it has.
    pub(crate) fn made_pid(self, number: u64) -> Option<Pid> {
        let text = fs::read_at_most(self.pid_file(number), MAX_PID_FILE).ok()?;
        parse_pid(&String::from_utf8_lossy(&text))
    }

    /// Begins to send a signal to the container's first process.
    ///
    /// # Errors
    /// Returns an error if the runtime cannot be executed.
    pub(crate) fn kill(self, number: u64, signal: i32) -> Result<Call> {
        let log = self.log(number)?;
        let mut command = self.command("kill", &log);
        command.arg(&self.launch.id).arg(signal.to_string());
        Call::begin(command, log, KILL_LIMIT)
    }

    /// Deletes the container, and kills what is left of it.
    ///
    /// # Errors
    /// Returns the error that the runtime has logged.
    pub(crate) fn delete(self) -> Result<()> {
        self.run("delete", &["--force"], DELETE_LIMIT)
    }

    /// Runs a command for the container, and waits for its end.
    fn run(self, name: &str, options: &[&str], limit: Duration) -> Result<()> {
        let log = self.log(ALONE)?;
        let mut command = self.command(name, &log);
        command.args(options).arg(&self.launch.id);
        Call::begin(command, log, limit)?.wait()
    }

    /// Returns the configuration for the runtime: without what only the shim's own one understands.
    /// `root` is the mounted root file system.
    fn configuration(self, root: &OwnedFd) -> Result<Spec> {
        let mut spec = self.launch.spec.clone();
        let path = match &self.launch.rootfs {
            Rootfs::Directory(path) => path.clone(),
            Rootfs::Overlay(_) => self.launch.scratch.clone(),
        };
        let readonly = spec.root.is_some_and(|root| root.readonly);
        spec.root = Some(Root { path, readonly });
        let identity = user::resolve(root, &self.launch.user)?;
        if let Some(process) = &mut spec.process {
            set_user(process, &identity);
        }
        for node in &self.launch.nodes_of_user {
            let devices = spec.linux.devices.iter_mut();
            for device in devices.filter(|device| device.path == node.path) {
                if node.user {
                    device.uid = identity.uid;
                }
                if node.group {
                    device.gid = identity.gid;
                }
            }
        }
        let own = format!("/proc/{}", std::process::id());
        for namespace in &mut spec.linux.namespaces {
            if let Some(path) = &mut namespace.path
                && let Ok(rest) = path.strip_prefix("/proc/self")
            {
                *path = Path::new(&own).join(rest);
            }
        }
        self.add_mounts(&mut spec, root)?;
        Ok(spec)
    }

    /// Mounts what only the shim's own runtime can mount.
    fn add_mounts(self, spec: &mut Spec, root: &OwnedFd) -> Result<()> {
        let (directory, label) = (self.path("mounts"), spec.linux.mount_label.clone());
        let is_shared = |word: &String| word == "shared" || word == "rshared";
        for (index, mount) in spec.mounts.iter_mut().enumerate() {
            if mount.options.iter().any(is_shared) {
                return Err(Error::invalid(format!(
                    "mount {}: shared propagation is not available with the runtime {}",
                    mount.destination,
                    self.runtime.path.display()
                )));
            }
            let at = directory.join(index.to_string());
            if let Some(bind) = bind_for_others(mount, root, &label, &at)? {
                *mount = bind;
            }
        }
        Ok(())
    }

    fn path(self, name: &str) -> PathBuf {
        self.launch.run_dir.join(name)
    }

    fn pid_file(self, number: u64) -> PathBuf {
        self.path(&format!("pid-{number}"))
    }

    fn process_file(self, number: u64) -> PathBuf {
        self.path(&format!("process-{number}.json"))
    }

    fn log(self, number: u64) -> Result<Log> {
        log_in(&self.launch.run_dir, number)
    }

    fn console(self, terminal: bool, number: u64) -> Result<Option<Console>> {
        let listen = || Console::listen(&self.launch.run_dir, &console_name(number));
        terminal.then(listen).transpose()
    }

    fn remove_files(self, number: u64) {
        let console = self.path(&console_name(number));
        for file in [self.pid_file(number), self.process_file(number), console] {
            let _ = fs::remove_if_exists(file);
        }
    }

    fn command(self, name: &str, log: &Log) -> Command {
        command(self.runtime, &self.launch.run_dir, name, log)
    }

    /// Adds what `create` and `exec` have in common.
    fn add_process_options(
        self,
        command: &mut Command,
        number: u64,
        terminal: bool,
        streams: Option<[OwnedFd; 3]>,
    ) -> Result<()> {
        let pid_file = self.pid_file(number);
        fs::remove_if_exists(&pid_file)?;
        command.arg("--pid-file").arg(pid_file);
        if terminal {
            // Relative to the run directory, whose path may exceed the length of a socket address.
            command.arg("--console-socket").arg(console_name(number));
        }
        if let Some([input, output, error]) = streams {
            command.stdin(input).stdout(output).stderr(error);
        }
        command.arg(&self.launch.id);
        Ok(())
    }
}

/// Deletes a container whose shim is gone: what the runtime has made outside of the run directory and of
/// the cgroup, such as a virtual machine. The runtime runs the `poststop` hooks then, too.
///
/// # Errors
/// Returns the error that the runtime has logged.
pub fn delete_left(id: &str, run_dir: &Path, runtime: &OciRuntime) -> Result<()> {
    if !fs::exists(run_dir.join(STATE)) {
        return Ok(());
    }
    let log = log_in(run_dir, ALONE)?;
    let mut command = command(runtime, run_dir, "delete", &log);
    command.arg("--force").arg(id);
    Call::begin(command, log, DELETE_LIMIT)?.wait()
}

fn command(runtime: &OciRuntime, run_dir: &Path, name: &str, log: &Log) -> Command {
    let mut command = Command::new(&runtime.path);
    command
        .args(&runtime.args)
        .arg("--root")
        .arg(run_dir.join(STATE))
        .arg("--log")
        .arg(log.path())
        .args(["--log-format", "json"])
        .arg(name)
        .env_clear()
        .envs(runtime.env.iter().cloned())
        .current_dir(run_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn log_in(run_dir: &Path, number: u64) -> Result<Log> {
    Log::create(run_dir.join(format!("runtime-{number}.log")))
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.trim().parse().ok().and_then(Pid::from_raw)
}

fn console_name(number: u64) -> String {
    format!("console-{number}.sock")
}

fn set_user(process: &mut Process, identity: &Identity) {
    process.user.uid = identity.uid;
    process.user.gid = identity.gid;
    process.user.additional_gids.clone_from(&identity.groups);
}

/// Gives a terminal the size that a process is to find.
pub(crate) fn set_size(terminal: Option<&OwnedFd>, process: &Process) {
    if let (Some(terminal), Some(size)) = (terminal, &process.console_size) {
        let size = rustix::termios::Winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }
}

fn failed<E: Display>(step: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Os(format!("{step}: {error}"))
}
