//! The only crate with `unsafe`: system calls that `rustix` lacks and compression with ISA-L, each
//! behind a safe function, and file operations whose errors name the path.
#![allow(
    unsafe_code,
    reason = "all unsafe code of the project is in this crate; see each block's SAFETY note"
)]

pub mod bpf;
pub mod copy;
pub mod erofs;
pub mod fs;
pub mod gzip;
pub mod in_root;
pub mod mount;
pub mod net;
pub mod overlay;
pub mod process;
pub mod program;
pub mod quota;
pub mod remove;
mod scratch;
pub mod seccomp;
pub mod signal;
mod step;
pub mod sync;
pub mod text;
pub mod xattr;

pub use scratch::Scratch;
pub use step::{fallible_step, in_background, step};

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Returns the message of an error without Rust's "(os error N)" suffix: "no such file or
/// directory".
///
/// The first letter is lower case, as in the error messages of Go programs, because it continues a
/// sentence.
pub fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !chars.as_str().starts_with(char::is_uppercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Whether an error means that a resource is used up which others may release: descriptors, memory,
/// processes, or disk space.
pub fn is_exhausted(error: &io::Error) -> bool {
    const EXHAUSTED: [i32; 6] = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
        libc::EAGAIN,
        libc::ENOSPC,
        libc::EDQUOT,
    ];
    error
        .raw_os_error()
        .is_some_and(|number| EXHAUSTED.contains(&number))
}

/// Converts a system call's result (-1 and errno on failure) to an `io::Result`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes the descriptor that a system call returned.
///
/// # Safety
/// `result` is a new descriptor that nothing else owns.
#[expect(
    clippy::cast_possible_truncation,
    reason = "descriptors are ints, which the kernel returns as longs"
)]
unsafe fn owned(result: libc::c_long) -> OwnedFd {
    // SAFETY: as the caller promises.
    unsafe { OwnedFd::from_raw_fd(result as RawFd) }
}

/// Returns a descriptor's number for a field of a kernel structure that is an unsigned integer.
fn descriptor_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// Runs `work` on a new thread, so that namespaces it joins do not affect the caller.
fn on_new_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    // A small stack suffices for a few system calls.
    const STACK: usize = 64 << 10;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
    })
}
