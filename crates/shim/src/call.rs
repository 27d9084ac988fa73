//! A command of another OCI runtime: its process, the time that it may take, and its log.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process_group, pidfd_open, waitpid,
};
use serde::Deserialize;
use whelk_runtime::{Error, Result};
use whelk_sys::process::{end_with_thread, reset_signals_of};
use whelk_sys::{errno_text, fs};

/// How much of a runtime's log is kept, in bytes: the end, which says why a command failed.
const MAX_LOG: usize = 64 << 10;

/// How long a killed command is waited for.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// A command that is under way. It is killed with its children when it takes too long, and by the
/// kernel when the shim ends.
#[derive(Debug)]
pub(crate) struct Call {
    program: PathBuf,
    pid: Pid,
    limit: Duration,
    deadline: Instant,
    /// Whether it was killed because it took too long.
    is_overdue: bool,
    log: Log,
}

/// A FIFO that the runtime takes for its log file: whatever it writes, no file grows.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    fifo: OwnedFd,
    tail: Vec<u8>,
}

impl Log {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        fs::remove_if_exists(&path)?;
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, &path, FileType::Fifo, mode, 0).map_err(fs::at("create", &path))?;
        // Open for writing too: otherwise it would be at its end before the runtime has opened it.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = rustix::fs::open(&path, flags, Mode::empty()).map_err(fs::at("open", &path))?;
        Ok(Self {
            path,
            fifo,
            tail: Vec::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is there. A log that is always full does not keep it from returning.
    fn read(&mut self) {
        const MAX_READS: usize = 16;
        let mut buffer = [0; 4096];
        for _ in 0..MAX_READS {
            let Ok(count @ 1..) = rustix::io::read(&self.fifo, &mut buffer) else {
                return;
            };
            self.tail.extend_from_slice(&buffer[..count]);
            if self.tail.len() > 2 * MAX_LOG {
                self.tail.drain(..self.tail.len() - MAX_LOG);
            }
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_if_exists(&self.path);
    }
}

impl Call {
    /// Begins a command.
    ///
    /// # Errors
    /// Returns an error if the program cannot be executed.
    #[allow(clippy::zombie_processes, reason = "the process is reaped by its pid")]
    pub(crate) fn begin(mut command: Command, log: Log, limit: Duration) -> Result<Self> {
        let program = PathBuf::from(command.get_program());
        reset_signals_of(&mut command);
        end_with_thread(&mut command);
        let child = command
            // So that its children can be killed too.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Error::Os(format!("run {}: {}", program.display(), errno_text(&error)))
            })?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::Os("a process without a pid".into()))?;
        Ok(Self {
            program,
            pid,
            limit,
            deadline: Instant::now() + limit,
            is_overdue: false,
            log,
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Until when to wait for it, also after it was killed.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn log(&self) -> impl AsFd + '_ {
        self.log.fifo.as_fd()
    }

    pub(crate) fn read_log(&mut self) {
        self.log.read();
    }

    /// Kills the command with its children.
    pub(crate) fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Kills a command whose time is over. Returns false if it was killed before, and cannot end.
    pub(crate) fn expire(&mut self) -> bool {
        if self.is_overdue {
            return false;
        }
        self.kill();
        self.is_overdue = true;
        self.deadline = Instant::now() + AFTER_KILL;
        true
    }

    /// Waits for the end of the command.
    ///
    /// # Errors
    /// Returns the error that the runtime has logged.
    pub(crate) fn wait(mut self) -> Result<()> {
        let step = |error: rustix::io::Errno| Error::Os(format!("wait for the runtime: {error}"));
        let pidfd = pidfd_open(self.pid, PidfdFlags::empty()).map_err(|error| {
            self.kill();
            step(error)
        })?;
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut watched = [
                PollFd::new(&pidfd, PollFlags::IN),
                PollFd::new(&self.log.fifo, PollFlags::IN),
            ];
            match poll(&mut watched, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    self.kill();
                    return Err(step(error));
                }
            }
            let has_ended = watched[0].revents().contains(PollFlags::IN);
            self.read_log();
            if has_ended {
                let ended = waitpid(Some(self.pid), WaitOptions::empty()).map_err(step)?;
                let (_, status) = ended.ok_or_else(|| step(rustix::io::Errno::CHILD))?;
                return self.outcome(status);
            }
            if left.is_zero() && !self.expire() {
                return Err(self.overdue());
            }
        }
    }

    /// Returns the outcome of the command, which has ended and was reaped.
    ///
    /// # Errors
    /// Returns the error that the runtime has logged.
    pub(crate) fn outcome(mut self, status: WaitStatus) -> Result<()> {
        if self.is_overdue {
            return Err(self.overdue());
        }
        if status.exit_status() == Some(0) {
            return Ok(());
        }
        self.read_log();
        let ended = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "unknown status".to_owned(),
        };
        let ended = format!("{}: {ended}", self.program.display());
        Err(failure(&self.log.tail, ended))
    }

    /// Returns the error of a command that took too long.
    pub(crate) fn overdue(&self) -> Error {
        let (program, limit) = (self.program.display(), self.limit.as_secs());
        Error::Os(format!("{program} did not answer within {limit} s"))
    }
}

/// Returns the last error of a runtime's log, or what is known of its end.
fn failure(log: &[u8], ended: String) -> Error {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let lines = log.split(|byte| *byte == b'\n').rev();
    let text = lines
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .find(|line| matches!(line.level.as_str(), "error" | "fatal"))
        .map_or(ended, |line| line.msg);
    // The engine puts Docker's words for the steps before it.
    let cause = [
        "error during container init: ",
        "unable to start container process: ",
    ]
    .iter()
    .find_map(|step| text.split_once(step))
    .map_or(text.as_str(), |(_, cause)| cause)
    .to_owned();
    let is_about_program = cause.contains("exec: ") || cause.contains("exec user process");
    let ends_with = |end: &str| is_about_program && cause.ends_with(end);
    let kind =
        if cause.contains("executable file not found") || ends_with("no such file or directory") {
            Error::CommandNotFound
        } else if ends_with("is a directory") {
            Error::ProgramIsDirectory
        } else if ends_with("permission denied") {
            Error::NotExecutable
        } else {
            Error::Os
        };
    kind(cause)
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn errors_of_runtimes_have_kinds() {
        let check = |text: &str, expected: Error| {
            let line = serde_json::json!({"level": "error", "msg": text, "time": "now"});
            let log = format!("{{\"level\":\"warning\",\"msg\":\"x\"}}\n{line}\nnot JSON\n");
            assert_eq!(failure(log.as_bytes(), String::new()), expected);
        };
        let not_found = "exec: \"x\": executable file not found in $PATH";
        check(
            &format!("runc create failed: unable to start container process: {not_found}"),
            Error::CommandNotFound(not_found.into()),
        );
        let denied = "exec: \"/etc\": permission denied";
        check(
            &format!("unable to start container process: error during container init: {denied}"),
            Error::NotExecutable(denied.into()),
        );
        check("something else", Error::Os("something else".into()));
        let ended = "runc: exit status 1".to_owned();
        assert_eq!(failure(b"", ended.clone()), Error::Os(ended));
    }

    /// Runs a script as a runtime, which gets the path of its log.
    fn run(script: &str, limit: Duration) -> (Result<()>, u64) {
        let scratch = Scratch::temporary("call").unwrap();
        let log = Log::create(scratch.path().join("log")).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(log.path());
        let outcome = Call::begin(command, log, limit).and_then(Call::wait);
        let left = fs::list(scratch.path()).unwrap().len();
        (outcome, left.try_into().unwrap())
    }

    #[test]
    fn what_a_command_logs_is_its_error() {
        const LIMIT: Duration = Duration::from_secs(30);
        assert_eq!(run("exit 0", LIMIT), (Ok(()), 0));
        let failed = r#"echo '{"level":"error","msg":"broken"}' >>$1; exit 1"#;
        assert_eq!(run(failed, LIMIT), (Err(Error::Os("broken".into())), 0));
        // Much more than a FIFO holds.
        let chatty = format!("head -c 10000000 /dev/zero >>$1; echo >>$1; {failed}");
        assert_eq!(run(&chatty, LIMIT), (Err(Error::Os("broken".into())), 0));
        assert_eq!(
            run("kill -9 $$", LIMIT),
            (Err(Error::Os("/bin/sh: signal 9".into())), 0)
        );
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let begun = Instant::now();
        let expected = Err(Error::Os("/bin/sh did not answer within 1 s".into()));
        for script in ["sleep 300 & sleep 300; :", "yes >>$1 & yes >>$1; :"] {
            let (outcome, left) = run(script, Duration::from_secs(1));
            assert_eq!((&outcome, left), (&expected, 0), "{script}");
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
