//! The init process of a container with `--init`: starts the program, forwards signals, and reaps
//! orphans.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use rustix::process::{WaitOptions, wait};
use whelk_sys::{process, signal};

/// Signals that concern this process and are not forwarded: SIGILL, SIGTRAP, SIGABRT, SIGBUS,
/// SIGFPE, SIGSEGV, SIGCHLD, SIGTTIN, SIGTTOU.
const OWN: [i32; 9] = [4, 5, 6, 7, 8, 11, 17, 21, 22];

pub(crate) fn main(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let mut arguments: Vec<_> = arguments.collect();
    if arguments.first().is_some_and(|first| first == "--") {
        arguments.remove(0);
    }
    let Some((program, rest)) = arguments.split_first() else {
        return super::report("init", Err("no program to run"));
    };
    let passed: Vec<i32> = (1..=31)
        .filter(|signal| !OWN.contains(signal) && !matches!(signal, 9 | 19))
        .collect();
    let watched: Vec<i32> = passed.iter().copied().chain([17]).collect();
    let signals = match signal::signal_fd(&watched) {
        Ok(signals) => signals,
        Err(error) => return super::report("init", Err(error)),
    };
    let child = match spawn(program, rest) {
        Ok(child) => child,
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound {
                127
            } else {
                126
            };
            let _ = super::report(
                "init",
                Err(format!(
                    "{}: {}",
                    program.display(),
                    whelk_sys::errno_text(&error)
                )),
            );
            return ExitCode::from(code);
        }
    };
    loop {
        let mut ready = [rustix::event::PollFd::new(
            &signals,
            rustix::event::PollFlags::IN,
        )];
        let _ = rustix::event::poll(&mut ready, None);
        for number in signal::drain(&signals)
            .into_iter()
            .filter(|number| *number != 17)
        {
            let _ = signal::kill(child, number);
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid.as_raw_nonzero().get() == child {
                let status = std::process::ExitStatus::from_raw(status.as_raw());
                let code = status
                    .code()
                    .or_else(|| status.signal().map(|signal| 128 + signal))
                    .unwrap_or(255);
                return ExitCode::from(u8::try_from(code).unwrap_or(255));
            }
        }
    }
}

/// Starts the program in a process group of its own, in the foreground of the terminal if there is
/// one, with no signals blocked. Must not use clone3, which a container's seccomp filter may
/// reject.
fn spawn(program: &std::ffi::OsStr, arguments: &[std::ffi::OsString]) -> std::io::Result<i32> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    command.args(arguments).process_group(0);
    // Signals are reset last, because taking the terminal changes the disposition of SIGTTOU.
    let child = process::reset_signals_of(process::in_foreground(&mut command)).spawn()?;
    i32::try_from(child.id()).map_err(std::io::Error::other)
}
