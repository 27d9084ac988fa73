//! Network namespaces, their loopback interface, and socket filters.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::check;
use crate::process::CloneFlags;
use crate::seccomp::Instruction;

/// Brings up `lo` in the caller's network namespace.
pub fn loopback_up() -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    const FLAGS: libc::c_int = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = FLAGS.try_into().map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS (netdevice(7)) reads an ifreq, which outlives the call.
    check(i64::from(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as libc::Ioctl,
            &raw const request,
        )
    }))
    .map(drop)
}

/// Returns the number of bytes of kernel memory for data that was sent on a unix socket and has not
/// been read by the peer (`SIOCOUTQ`); for TCP, the number of bytes that were not acknowledged.
pub fn unread_by_peer(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ's number (unix(7)), writes one int, which outlives the
    // call.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut count)
    }))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Returns the time since the peer of a TCP connection has last acknowledged anything.
pub fn since_last_acknowledgement(socket: BorrowedFd<'_>) -> io::Result<Duration> {
    // SAFETY: tcp_info is plain data for which all zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    // SAFETY: TCP_INFO (tcp(7)) writes at most `length` bytes to `info`; both outlive the call.
    check(i64::from(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    }))?;
    Ok(Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// Makes the kernel drop all packets that arrive at a socket, so that a listening socket never
/// answers.
pub fn drop_all_packets(socket: BorrowedFd<'_>) -> io::Result<()> {
    attach_filter(
        socket,
        &[Instruction {
            code: RETURN,
            jump_true: 0,
            jump_false: 0,
            value: 0,
        }],
    )
}

/// Makes the kernel drop all netlink messages for a socket except those of one kind that are not
/// caused by requests of the port `excluded_port`.
pub fn filter_notifications(
    socket: BorrowedFd<'_>,
    kind: u16,
    excluded_port: u32,
) -> io::Result<()> {
    // BPF loads convert from big-endian, while netlink headers are in host byte order.
    let (kind, excluded_port) = (
        u16::from_be_bytes(kind.to_ne_bytes()).into(),
        u32::from_be_bytes(excluded_port.to_ne_bytes()),
    );
    const KIND_AT: u32 = 4;
    const PORT_AT: u32 = 12;
    let step = |code, jump_true, jump_false, value| Instruction {
        code,
        jump_true,
        jump_false,
        value,
    };
    attach_filter(
        socket,
        &[
            step(LOAD_HALF, 0, 0, KIND_AT),
            step(JUMP_EQUAL, 0, 3, kind),
            step(LOAD_WORD, 0, 0, PORT_AT),
            step(JUMP_EQUAL, 1, 0, excluded_port),
            step(RETURN, 0, 0, u32::MAX),
            step(RETURN, 0, 0, 0),
        ],
    )
}

// Instruction codes of classic BPF (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn attach_filter(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let count =
        u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let filter = libc::sock_fprog {
        len: count,
        filter: program.as_ptr() as *mut libc::sock_filter,
    };
    let length =
        libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(io::Error::other)?;
    // SAFETY: SO_ATTACH_FILTER (socket(7)) copies a sock_fprog and the program it points to, which
    // has sock_filter's layout and is not written to; both outlive the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    check(i64::from(result)).map(drop)
}

/// Runs `work` inside another network namespace, on a new thread, so that the caller always stays
/// in its own.
///
/// # Errors
/// Returns the error of setns(2); the result of `work` is returned as it is.
pub fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    crate::on_new_thread(|| {
        crate::process::setns(namespace, CloneFlags::NEWNET)?;
        Ok(work())
    })
}

/// Runs `work` inside a new network namespace, on a new thread.
pub fn new_namespace<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    crate::on_new_thread(|| {
        crate::process::unshare(CloneFlags::NEWNET)?;
        work()
    })
}
