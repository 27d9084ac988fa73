//! Creating processes: `clone3`, `execve`, descriptors, signals, keyrings, priorities and limits.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use linux_raw_sys::general as raw;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};

use crate::{check, descriptor_number};

/// The new namespaces of a process and other `CLONE_*` flags.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct CloneFlags(pub u64);

impl CloneFlags {
    pub const NEWCGROUP: Self = Self(raw::CLONE_NEWCGROUP as u64);
    pub const NEWIPC: Self = Self(raw::CLONE_NEWIPC as u64);
    pub const NEWNET: Self = Self(raw::CLONE_NEWNET as u64);
    pub const NEWNS: Self = Self(raw::CLONE_NEWNS as u64);
    pub const NEWPID: Self = Self(raw::CLONE_NEWPID as u64);
    pub const NEWTIME: Self = Self(raw::CLONE_NEWTIME as u64);
    pub const NEWUSER: Self = Self(raw::CLONE_NEWUSER as u64);
    pub const NEWUTS: Self = Self(raw::CLONE_NEWUTS as u64);
    /// The new process becomes a sibling of the caller (CLONE_PARENT).
    pub const PARENT: Self = Self(raw::CLONE_PARENT as u64);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl std::ops::BitOrAssign for CloneFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl std::ops::BitOr for CloneFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Result of [`clone_process`], which returns in both processes.
#[derive(Debug)]
pub enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Forks with `clone3(2)`, into new namespaces given by `flags` and, on cgroup v2, into `cgroup`.
///
/// # Errors
/// Returns `EBUSY` if the calling process has more than one thread: the child of a multi-threaded
/// process may not allocate memory. Otherwise returns the error of clone3(2).
pub fn clone_process(flags: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    if !has_one_thread() {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: libc::c_int = -1;
    let mut args = raw::clone_args {
        flags: flags.0 | u64::from(raw::CLONE_PIDFD),
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        // With CLONE_PARENT the exit signal is inherited from the caller and must be zero here
        // (clone(2)).
        exit_signal: if flags.contains(CloneFlags::PARENT) {
            0
        } else {
            libc::SIGCHLD as u64
        },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        args.flags |= raw::CLONE_INTO_CGROUP;
        args.cgroup = u64::from(descriptor_number(cgroup));
    }
    // SAFETY: clone3(2) without CLONE_VM gives the child a copy of this address space, and no stack
    // is passed, so both sides continue here like after fork(2). The process has one thread
    // (checked above), so no lock can be held by a thread that does not exist in the child. `args`
    // and `pidfd` outlive the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("clone3 returned no pid"))?;
    // SAFETY: with CLONE_PIDFD the kernel stored a fresh descriptor in `pidfd` that nothing else
    // owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid, pidfd })
}

/// Whether the calling process is single-threaded. Determined without `/proc`, which may be that of
/// a container: unshare(2) with `CLONE_THREAD` is permitted only to a single-threaded process, and
/// has no effect then.
fn has_one_thread() -> bool {
    // A thread that has been joined still counts until the kernel has removed it: a moment later, or when it
    // has got a processor again.
    const PAUSE: Duration = Duration::from_millis(1);
    const ATTEMPTS: u32 = 5000;
    for _ in 0..ATTEMPTS {
        // SAFETY: in a single-threaded process the flag has no effect; otherwise the call fails.
        match check(i64::from(unsafe { libc::unshare(libc::CLONE_THREAD) })) {
            Ok(_) => return true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => std::thread::sleep(PAUSE),
            Err(_) => return false,
        }
    }
    false
}

/// Executes the program at `path`. Returns only if that fails.
pub fn exec(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(argv);
    let env = pointers(env);
    // SAFETY: both arrays are null-terminated and their strings live until the call returns.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Executes the file that `fd` refers to. Returns only if that fails.
pub fn exec_fd(fd: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> io::Error {
    let argv = pointers(argv);
    let env = pointers(env);
    // SAFETY: as in `exec`; the empty path is a static C string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Makes the program that `command` starts begin with no signal blocked or ignored, whatever the
/// caller has blocked.
pub fn reset_signals_of(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only sigaction(2) and sigprocmask(2) are called, which are
    // async-signal-safe.
    unsafe { command.pre_exec(crate::signal::reset_all) }
}

/// Makes the kernel kill the process that `command` starts when the thread that starts it ends.
pub fn end_with_thread(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id();
    let arrange = move || {
        let signal = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(signal)?;
        // The parent may have ended before.
        let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        match now.and_then(|pid| u32::try_from(pid).ok()) == Some(parent) {
            true => Ok(()),
            false => Err(rustix::io::Errno::SRCH.into()),
        }
    };
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, which are
    // async-signal-safe.
    unsafe { command.pre_exec(arrange) }
}

/// Makes the process that `command` starts, which must lead a process group, the foreground group
/// of the terminal on its standard input, if that is its controlling terminal. It can read from the
/// terminal and gets its signals then.
pub fn in_foreground(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt;
    let take_terminal = || {
        // SIGTTOU stops a background process group that calls tcsetpgrp(3), unless it is ignored.
        crate::signal::ignore(libc::SIGTTOU);
        // Fails if standard input is not a terminal.
        let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpgrp());
        Ok(())
    };
    // SAFETY: between fork and exec only signal(2), getpgrp(2) and ioctl(2) are called, which are
    // async-signal-safe.
    unsafe { command.pre_exec(take_terminal) }
}

/// Runs `work` in a child process that has the standard streams and no other descriptor. The child
/// exits with the result of `work`; the caller has to reap it.
///
/// # Errors
/// Returns the same errors as [`clone_process`].
pub fn fork_isolated(input: &[u8], work: fn(&[u8]) -> i32) -> io::Result<Pid> {
    match clone_process(CloneFlags::default(), None)? {
        Cloned::Parent { pid, .. } => Ok(pid),
        Cloned::Child => {
            // SAFETY: `work` gets only bytes, and the process exits after it, also if it panics.
            let closed = unsafe { close_others(FIRST_AFTER_STREAMS, None) };
            exit_now(closed.map_or(FAILED, |()| {
                std::panic::catch_unwind(|| work(input)).unwrap_or(FAILED)
            }))
        }
    }
}

/// Closes every descriptor from `first` on except `kept`, runs `work`, and exits with its result.
/// The values that own the closed descriptors stay in memory but are out of reach of `work`, which
/// gets only `input` and `kept`.
pub fn run_isolated(first: u32, kept: OwnedFd, input: &[u8], work: fn(&[u8], OwnedFd) -> i32) -> ! {
    assert!(
        first >= FIRST_AFTER_STREAMS,
        "the standard streams must stay open"
    );
    // SAFETY: `work` gets only bytes and the descriptor that stays open, and the process exits
    // after it, also if it panics.
    let closed = unsafe { close_others(first, Some(kept.as_fd())) };
    exit_now(closed.map_or(FAILED, |()| {
        std::panic::catch_unwind(|| work(input, kept)).unwrap_or(FAILED)
    }))
}

const FIRST_AFTER_STREAMS: u32 = 3;

/// Exit status if `work` panics or the descriptors cannot be closed.
const FAILED: i32 = 1;

/// Closes every descriptor of this thread from `first` on except `kept`.
///
/// # Safety
/// The thread must not use or drop any value that owned or borrowed one of them. Other threads keep
/// theirs (CLOSE_RANGE_UNSHARE).
unsafe fn close_others(first: u32, kept: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let close = |begin: u32, end: u32| {
        if begin > end {
            return Ok(());
        }
        // SAFETY: close_range(2) takes numbers; nothing uses these descriptors any more, as the
        // caller promises.
        check(unsafe {
            libc::syscall(libc::SYS_close_range, begin, end, libc::CLOSE_RANGE_UNSHARE)
        })
        .map(drop)
    };
    let Some(kept) = kept.map(descriptor_number) else {
        return close(first, u32::MAX);
    };
    close(first, kept.saturating_sub(1))?;
    close(first.max(kept + 1), u32::MAX)
}

/// Returns a child that has ended and has not been reaped. It stays a zombie, so that its pid
/// cannot be reused.
pub fn ended_child() -> Option<Pid> {
    // SAFETY: siginfo_t is plain data that is valid for every bit pattern.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: waitid(2) fills in `info`, which outlives the call.
    let result = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            &raw mut info,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: waitid has set this field, to zero if no child has ended.
    Pid::from_raw(unsafe { info.si_pid() })
}

/// Exits immediately without running destructors or flushing buffers, as a forked child that failed
/// must.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Marks every descriptor from `first` on close-on-exec, so that no descriptor of the engine leaks
/// into a container (CVE-2024-21626).
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: only flags of descriptors change; no memory is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Duplicates `fd` to the descriptor `number` (0 to 2), without close-on-exec.
pub fn dup_onto(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // dup3(2) rejects equal numbers; only the flag has to be cleared.
        return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(Into::into);
    }
    assert!(
        (0..=2).contains(&number),
        "only the standard streams are ever replaced"
    );
    // SAFETY: numbers 0 to 2 are not owned by any OwnedFd in this code base; dup3 replaces them
    // atomically.
    check(i64::from(unsafe { libc::dup3(fd.as_raw_fd(), number, 0) })).map(drop)
}

/// Creates new namespaces given by `flags` for the calling thread.
///
/// # Errors
/// Returns `EINVAL` for `CLONE_FILES` and other flags that are not namespaces, so that the
/// descriptor table, on whose sharing safe code relies, stays shared.
pub fn unshare(flags: CloneFlags) -> io::Result<()> {
    const NAMESPACES: u64 = (raw::CLONE_NEWCGROUP
        | raw::CLONE_NEWIPC
        | raw::CLONE_NEWNET
        | raw::CLONE_NEWNS
        | raw::CLONE_NEWPID
        | raw::CLONE_NEWUSER
        | raw::CLONE_NEWUTS
        | raw::CLONE_NEWTIME) as u64;
    if flags.0 & !NAMESPACES != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let flags = libc::c_int::try_from(flags.0).map_err(io::Error::other)?;
    // SAFETY: only namespace flags (checked above): memory and descriptors stay as they are.
    check(i64::from(unsafe { libc::unshare(flags) })).map(drop)
}

/// Joins the namespaces in `flags` of the process of a pidfd (Linux 5.8), or the namespace that
/// `fd` refers to.
pub fn setns(fd: BorrowedFd<'_>, flags: CloneFlags) -> io::Result<()> {
    let flags = libc::c_int::try_from(flags.0).map_err(io::Error::other)?;
    // SAFETY: setns(2) changes only namespaces; no memory is passed.
    check(i64::from(unsafe { libc::setns(fd.as_raw_fd(), flags) })).map(drop)
}

/// Joins the session keyring named `name`, in place of the inherited one: an existing one that is
/// accessible by name, or a new, empty one. Returns its serial number.
///
/// # Errors
/// Returns `ENOSYS` on kernels without keyring support.
pub fn join_session_keyring(name: &CStr) -> io::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: keyctl(2) reads one C string that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .and_then(|serial| i32::try_from(serial).map_err(io::Error::other))
}

/// Lets later processes of the same user join a session keyring by name.
pub fn allow_keyring_joins(serial: i32) -> io::Result<()> {
    const KEYCTL_SETPERM: libc::c_int = 5;
    // keyctl_setperm(3): everything for possessors; for the user the defaults of session keyrings
    // (view, read, link) and search.
    const PERMISSIONS: libc::c_ulong = 0x3f1b_0000;
    // SAFETY: keyctl(2) takes numbers here.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, serial, PERMISSIONS) }).map(drop)
}

/// Sets the execution domain (`personality(2)`), for 32-bit containers on a 64-bit kernel.
pub fn set_personality(domain: libc::c_ulong) -> io::Result<()> {
    // SAFETY: personality(2) takes a number.
    check(i64::from(unsafe { libc::personality(domain) })).map(drop)
}

/// Sets the I/O priority of the calling process; `class` and `level` as in `ioprio_set(2)`.
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: ioprio_set(2) takes numbers.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            (class << CLASS_SHIFT) | level,
        )
    })
    .map(drop)
}

/// Scheduling attributes of `sched_setattr(2)`.
#[derive(Clone, Copy, Default, Debug)]
pub struct SchedAttr {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Sets the calling thread's scheduling policy.
pub fn set_scheduler(attr: SchedAttr) -> io::Result<()> {
    #[repr(C)]
    struct Raw {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let raw = Raw {
        size: u32::try_from(size_of::<Raw>()).map_err(io::Error::other)?,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime,
        deadline: attr.deadline,
        period: attr.period,
    };
    // SAFETY: `raw` has the layout of struct sched_attr version 0 and contains its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) }).map(drop)
}

/// Returns the soft and the hard limit of open files; `u64::MAX` if unlimited.
pub fn file_limit() -> (u64, u64) {
    let limit = getrlimit(Resource::Nofile);
    (
        limit.current.unwrap_or(u64::MAX),
        limit.maximum.unwrap_or(u64::MAX),
    )
}

/// Raises the soft limit of open files to the hard one, if permitted. Programs started later
/// inherit it, and may not support high limits (`select(2)`, or closing all possible descriptors).
pub fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}

/// Returns the descriptors that a service manager passed to this process: `LISTEN_FDS` of them from
/// number 3 on, if `LISTEN_PID` is this process's pid (sd_listen_fds(3)). They are close-on-exec.
///
/// # Errors
/// Returns `EBADF` if one of them is not open, and `EINVAL` if `LISTEN_FDS` is not a number.
pub fn listen_fds() -> io::Result<Vec<OwnedFd>> {
    const FIRST: i32 = 3;
    let variable = |name| std::env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != std::process::id().to_string() {
        return Ok(Vec::new());
    }
    let count: u16 = variable("LISTEN_FDS")
        .parse()
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let numbers = FIRST..FIRST + i32::from(count);
    for number in numbers.clone() {
        // SAFETY: F_SETFD of fcntl(2) changes a flag, and fails if the descriptor is not open.
        check(i64::from(unsafe {
            libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC)
        }))?;
    }
    // Duplicates, because what owns the original numbers cannot be known here. The originals stay
    // open as long as the process lives.
    numbers
        .map(|number| {
            // SAFETY: F_DUPFD_CLOEXEC of fcntl(2) opens a new descriptor and does not affect the
            // old one.
            let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST) };
            check(i64::from(copy))?;
            // SAFETY: a fresh descriptor that nothing else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(copy) })
        })
        .collect()
}

/// Whether fewer than `reserve` further descriptors can be opened. `newest` must have been opened
/// just now: the kernel allocates the lowest free number, so that number indicates how many are
/// open.
pub fn descriptors_are_scarce(newest: BorrowedFd<'_>, reserve: u64) -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    u64::try_from(newest.as_raw_fd()).is_ok_and(|number| number.saturating_add(reserve) >= limit)
}

/// Limits the number of heaps of the C library's allocator, which has eight for each processor otherwise: each keeps what was
/// freed in it, so an engine of many threads would hold several times the memory that it has used at one time.
///
/// Has no effect on another C library than glibc.
pub fn limit_heaps(most: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes a setting of the allocator, which has a lock for it.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, i32::from(most));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clone_process_rejects_multi_threaded_callers() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv());
        let error = clone_process(CloneFlags::default(), None).expect_err("two threads at least");
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        drop(end);
        assert!(other.join().is_ok_and(|received| received.is_err()));
    }

    #[test]
    fn unshare_rejects_flags_that_are_not_namespaces() {
        let error = unshare(CloneFlags(libc::CLONE_FILES as u64)).expect_err("not a namespace");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
