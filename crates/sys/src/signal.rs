//! Signal descriptors, signal masks and dispositions, and sending signals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::{check, owned};

/// Blocks `signals` for the calling thread and returns a non-blocking descriptor that becomes
/// readable when one of them is pending.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: `set` is an initialised sigset_t that outlives both calls; signalfd returns a fresh
    // descriptor.
    unsafe {
        check(i64::from(libc::sigprocmask(
            libc::SIG_BLOCK,
            &raw const set,
            std::ptr::null_mut(),
        )))?;
        let fd = check(i64::from(libc::signalfd(
            -1,
            &raw const set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        )))?;
        Ok(owned(fd))
    }
}

/// Reads all pending signals from a descriptor created by [`signal_fd`].
pub fn drain(fd: &OwnedFd) -> Vec<i32> {
    let mut buffer = [0u8; 8 * size_of::<libc::signalfd_siginfo>()];
    let mut signals = Vec::new();
    while let Ok(read) = rustix::io::read(fd.as_fd(), &mut buffer) {
        if read == 0 {
            break;
        }
        // `ssi_signo` is the first u32 of each record (signalfd(2)).
        signals.extend(
            buffer[..read]
                .chunks_exact(size_of::<libc::signalfd_siginfo>())
                .map(|record| i32::from_ne_bytes([record[0], record[1], record[2], record[3]])),
        );
    }
    signals
}

/// Unblocks all signals and resets their dispositions to the default, before a program is executed:
/// execve(2) keeps blocked and ignored signals.
pub fn reset_all() -> io::Result<()> {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler. For signals that cannot be changed (KILL, STOP,
        // those of the C library) the call returns an error, which is ignored.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let none = set_of(&[]);
    // SAFETY: `none` is an initialised sigset_t.
    check(i64::from(unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    }))
    .map(drop)
}

/// Makes the process ignore `signal`.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Sends `signal` to a process by pid; 0 only checks whether it exists.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes numbers.
    check(i64::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// Sends any `signal`, including real-time signals, to the process of a pidfd.
pub fn pidfd_send(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: pidfd_send_signal(2) with no siginfo takes numbers only.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd,
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the whole set before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}
