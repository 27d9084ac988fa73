//! Network namespaces, and what each of them needs: its loopback interface up.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::check;
use crate::process::CloneFlags;

/// Brings `lo` up in the caller's network namespace.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS (netdevice(7)) reads an ifreq, which outlives the call.
    check(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as libc::Ioctl, &raw const request) })).map(drop)
}

/// Has the kernel drop all packets that arrive at a socket. One that listens then stays silent.
pub fn drop_all_packets(socket: BorrowedFd<'_>) -> io::Result<()> {
    // BPF_RET | BPF_K: keep no byte.
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: SO_ATTACH_FILTER (socket(7)) copies a sock_fprog and the program it points to, which outlive the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), length) };
    check(i64::from(result)).map(drop)
}

/// Runs `work` inside another network namespace, on a thread of its own: however it ends, the caller stays where it is.
///
/// # Errors
/// `setns(2)`'s; `work`'s own outcome is inside.
pub fn within<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_own_thread(|| {
        crate::process::setns(namespace, CloneFlags::NEWNET)?;
        Ok(work())
    })
}

/// Runs `work` inside a new network namespace, on a thread of its own.
pub fn new_namespace<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_own_thread(|| {
        crate::process::unshare(CloneFlags::NEWNET)?;
        work()
    })
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    // A small stack: what runs here makes a few system calls.
    const STACK: usize = 64 << 10;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}
