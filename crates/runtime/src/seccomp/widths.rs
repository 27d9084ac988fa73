//! The width in which the kernel uses each argument of a system call.
//!
//! An argument is passed in a 64-bit register, but where the kernel declares it as `int` (or
//! another 32-bit type) it uses the low 32 bits only and ignores the others. A filter that compares
//! all 64 bits can be bypassed: `socket(1 << 32 | AF_VSOCK, …)` opens an AF_VSOCK socket.

/// Calls with arguments of less than 64 bits, sorted by name, with one letter for each argument, as
/// declared in `include/linux/syscalls.h`: `i` for 32 bits, `h` for 16 bits (`umode_t`), `.` and
/// unlisted ones for 64. The flags of `clone` are declared as a long, of which the kernel uses the
/// low half (`lower_32_bits`).
#[rustfmt::skip]
const NARROW: &[(&str, &str)] = &[
    ("accept", "i"), ("accept4", "i..i"), ("access", ".i"), ("add_key", "....i"), ("alarm", "i"),
    ("arch_prctl", "i"), ("bind", "i.i"), ("bpf", "i.i"), ("cachestat", "i..i"), ("chmod", ".h"), ("chown", ".ii"),
    ("clock_adjtime", "i"), ("clock_getres", "i"), ("clock_gettime", "i"), ("clock_nanosleep", "ii"),
    ("clock_settime", "i"), ("clone", "i"), ("close", "i"), ("close_range", "iii"), ("connect", "i.i"),
    ("copy_file_range", "i.i..i"), ("creat", ".h"), ("delete_module", ".i"), ("dup", "i"), ("dup2", "ii"),
    ("dup3", "iii"), ("epoll_create", "i"), ("epoll_create1", "i"), ("epoll_ctl", "iii"), ("epoll_pwait", "i.ii"),
    ("epoll_pwait2", "i.i"), ("epoll_wait", "i.ii"), ("eventfd", "i"), ("eventfd2", "ii"), ("execveat", "i...i"),
    ("exit", "i"), ("exit_group", "i"), ("faccessat", "i.i"), ("faccessat2", "i.ii"), ("fadvise64", "i..i"),
    ("fallocate", "ii"), ("fanotify_init", "ii"), ("fanotify_mark", "ii.i"), ("fchdir", "i"), ("fchmod", "ih"),
    ("fchmodat", "i.h"), ("fchmodat2", "i.hi"), ("fchown", "iii"), ("fchownat", "i.iii"), ("fcntl", "ii"),
    ("fdatasync", "i"), ("fgetxattr", "i"), ("file_getattr", "i...i"), ("file_setattr", "i...i"),
    ("finit_module", "i.i"), ("flistxattr", "i"), ("flock", "ii"), ("fremovexattr", "i"), ("fsconfig", "ii..i"),
    ("fsetxattr", "i...i"), ("fsmount", "iii"), ("fsopen", ".i"), ("fspick", "i.i"), ("fstat", "i"),
    ("fstatfs", "i"), ("fsync", "i"), ("ftruncate", "i"), ("futex", ".ii..i"), ("futex_requeue", ".iii"),
    ("futex_wait", "...i.i"), ("futex_waitv", ".ii.i"), ("futex_wake", "..ii"), ("futimesat", "i"),
    ("get_robust_list", "i"), ("getdents", "i.i"), ("getdents64", "i.i"), ("getgroups", "i"), ("getitimer", "i"),
    ("getpeername", "i"), ("getpgid", "i"), ("getpriority", "ii"), ("getrandom", "..i"), ("getrlimit", "i"),
    ("getrusage", "i"), ("getsid", "i"), ("getsockname", "i"), ("getsockopt", "iii"), ("getxattrat", "i.i"),
    ("inotify_add_watch", "i.i"), ("inotify_init1", "i"), ("inotify_rm_watch", "ii"), ("io_setup", "i"),
    ("io_uring_enter", "iiii"), ("io_uring_register", "ii.i"), ("io_uring_setup", "i"), ("ioctl", "ii"),
    ("ioperm", "..i"), ("iopl", "i"), ("ioprio_get", "ii"), ("ioprio_set", "iii"), ("kcmp", "iii"),
    ("kexec_file_load", "ii"), ("keyctl", "i"), ("kill", "ii"), ("landlock_add_rule", "ii.i"),
    ("landlock_create_ruleset", "..i"), ("landlock_restrict_self", "ii"), ("lchown", ".ii"), ("linkat", "i.i.i"),
    ("listen", "ii"), ("listmount", "...i"), ("listns", "...i"), ("listxattrat", "i.i"), ("lseek", "i.i"),
    ("lsetxattr", "....i"), ("lsm_get_self_attr", "i..i"), ("lsm_list_modules", "..i"),
    ("lsm_set_self_attr", "i.ii"), ("madvise", "..i"), ("map_shadow_stack", "..i"), ("mbind", ".....i"),
    ("membarrier", "iii"), ("memfd_create", ".i"), ("memfd_secret", "i"), ("migrate_pages", "i"), ("mkdir", ".h"),
    ("mkdirat", "i.h"), ("mknod", ".hi"), ("mknodat", "i.hi"), ("mlock2", "..i"), ("mlockall", "i"),
    ("modify_ldt", "i"), ("mount_setattr", "i.i"), ("move_mount", "i.i.i"), ("move_pages", "i....i"),
    ("mq_getsetattr", "i"), ("mq_notify", "i"), ("mq_open", ".ih"), ("mq_timedreceive", "i"),
    ("mq_timedsend", "i..i"), ("msgctl", "ii"), ("msgget", "ii"), ("msgrcv", "i...i"), ("msgsnd", "i..i"),
    ("msync", "..i"), ("name_to_handle_at", "i...i"), ("newfstatat", "i..i"), ("nfsservctl", "i"), ("open", ".ih"),
    ("open_by_handle_at", "i.i"), ("open_tree", "i.i"), ("open_tree_attr", "i.i"), ("openat", "i.ih"),
    ("openat2", "i"), ("perf_event_open", ".iii"), ("personality", "i"), ("pidfd_getfd", "iii"),
    ("pidfd_open", "ii"), ("pidfd_send_signal", "ii.i"), ("pipe2", ".i"), ("pkey_free", "i"),
    ("pkey_mprotect", "...i"), ("poll", ".ii"), ("ppoll", ".i"), ("prctl", "i"), ("pread64", "i"),
    ("preadv2", ".....i"), ("prlimit64", "ii"), ("process_madvise", "i..ii"), ("process_mrelease", "ii"),
    ("process_vm_readv", "i"), ("process_vm_writev", "i"), ("pselect6", "i"), ("pwrite64", "i"),
    ("pwritev2", ".....i"), ("quotactl", "i.i"), ("quotactl_fd", "iii"), ("read", "i"), ("readahead", "i"),
    ("readlink", "..i"), ("readlinkat", "i..i"), ("reboot", "iii"), ("recvfrom", "i..i"), ("recvmmsg", "i.ii"),
    ("recvmsg", "i.i"), ("removexattrat", "i.i"), ("renameat", "i.i"), ("renameat2", "i.i.i"),
    ("request_key", "...i"), ("rseq", ".iii"), ("rt_sigaction", "i"), ("rt_sigprocmask", "i"),
    ("rt_sigqueueinfo", "ii"), ("rt_tgsigqueueinfo", "iii"), ("sched_get_priority_max", "i"),
    ("sched_get_priority_min", "i"), ("sched_getaffinity", "ii"), ("sched_getattr", "i.ii"),
    ("sched_getparam", "i"), ("sched_getscheduler", "i"), ("sched_rr_get_interval", "i"),
    ("sched_setaffinity", "ii"), ("sched_setattr", "i.i"), ("sched_setparam", "i"), ("sched_setscheduler", "ii"),
    ("seccomp", "ii"), ("select", "i"), ("semctl", "iii"), ("semget", "iii"), ("semop", "i.i"),
    ("semtimedop", "i.i"), ("sendfile", "ii"), ("sendmmsg", "i.ii"), ("sendmsg", "i.i"), ("sendto", "i..i.i"),
    ("set_mempolicy", "i"), ("setdomainname", ".i"), ("setfsgid", "i"), ("setfsuid", "i"), ("setgid", "i"),
    ("setgroups", "i"), ("sethostname", ".i"), ("setitimer", "i"), ("setns", "ii"), ("setpgid", "ii"),
    ("setpriority", "iii"), ("setregid", "ii"), ("setresgid", "iii"), ("setresuid", "iii"), ("setreuid", "ii"),
    ("setrlimit", "i"), ("setsockopt", "iii.i"), ("setuid", "i"), ("setxattr", "....i"), ("setxattrat", "i.i"),
    ("shmat", "i.i"), ("shmctl", "ii"), ("shmget", "i.i"), ("shutdown", "ii"), ("signalfd", "i"),
    ("signalfd4", "i..i"), ("socket", "iii"), ("socketpair", "iii"), ("splice", "i.i..i"), ("statmount", "...i"),
    ("statx", "i.ii"), ("swapon", ".i"), ("symlinkat", ".i"), ("sync_file_range", "i..i"), ("syncfs", "i"),
    ("sysfs", "i"), ("syslog", "i.i"), ("tee", "ii.i"), ("tgkill", "iii"), ("timer_create", "i"),
    ("timer_delete", "i"), ("timer_getoverrun", "i"), ("timer_gettime", "i"), ("timer_settime", "ii"),
    ("timerfd_create", "ii"), ("timerfd_gettime", "i"), ("timerfd_settime", "ii"), ("tkill", "ii"), ("umask", "i"),
    ("umount2", ".i"), ("unlinkat", "i.i"), ("userfaultfd", "i"), ("ustat", "i"), ("utimensat", "i..i"),
    ("vmsplice", "i..i"), ("wait4", "i.i"), ("waitid", "ii.i"), ("write", "i"),
];

/// Calls with 16-bit user and group ids (`old_uid_t`) on i386, in the same form. The calls with
/// 32-bit ids have other names there (`chown32`).
const NARROW_ON_I386: &[(&str, &str)] = &[
    ("chown", ".hh"),
    ("fchown", "ihh"),
    ("lchown", ".hh"),
    ("setfsgid", "h"),
    ("setfsuid", "h"),
    ("setgid", "h"),
    ("setregid", "hh"),
    ("setresgid", "hhh"),
    ("setresuid", "hhh"),
    ("setreuid", "hh"),
    ("setuid", "h"),
];

/// Returns the number of bits that the kernel uses of argument `index` of a call.
pub(super) fn bits(call: &str, index: usize, i386: bool) -> u32 {
    let width = |table: &[(&str, &str)]| {
        let row = table
            .binary_search_by(|(known, _)| (*known).cmp(call))
            .ok()?;
        match table[row].1.as_bytes().get(index)? {
            b'h' => Some(16),
            b'i' => Some(32),
            _ => None,
        }
    };
    if i386 {
        // i386 registers have 32 bits.
        width(NARROW_ON_I386)
            .or_else(|| width(NARROW))
            .unwrap_or(32)
    } else {
        width(NARROW).unwrap_or(64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_declared_widths() {
        assert!(
            NARROW.is_sorted_by(|a, b| a.0 < b.0) && NARROW_ON_I386.is_sorted_by(|a, b| a.0 < b.0)
        );
        let of = |call: &str| {
            (0..6)
                .map(|index| bits(call, index, false))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("socket"), [32, 32, 32, 64, 64, 64]);
        assert_eq!(
            of("ioctl"),
            [32, 32, 64, 64, 64, 64],
            "the command, not its argument"
        );
        assert_eq!(of("chmod")[..2], [64, 16]);
        assert_eq!(of("personality")[0], 32);
        assert_eq!(of("mmap"), [64; 6]);
        assert_eq!(of("nosuch"), [64; 6]);
        let of = |call: &str| {
            (0..3)
                .map(|index| bits(call, index, true))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("fchown"), [32, 16, 16]);
        assert_eq!(
            (of("chown"), of("chown32"), of("setresuid")),
            (vec![32, 16, 16], vec![32; 3], vec![16; 3])
        );
        assert_eq!((of("chmod"), of("mmap")), (vec![32, 16, 32], vec![32; 3]));
    }
}
