//! The only crate with `unsafe`: system calls that `rustix` lacks, each behind a safe function, and
//! file operations that name the path they failed on.
#![allow(
    unsafe_code,
    reason = "this crate is where the unsafe code lives; see each block's SAFETY note"
)]

pub mod bpf;
pub mod copy;
pub mod fs;
pub mod in_root;
pub mod mount;
pub mod net;
pub mod overlay;
pub mod process;
pub mod program;
pub mod quota;
pub mod remove;
pub mod seccomp;
pub mod signal;
mod step;
pub mod text;

pub use step::step;

use std::io;

/// The kernel's message for an error, without Rust's "(os error N)" tail: "no such file or
/// directory".
///
/// Lower-cased at the front, as errors of the field's tools read in the middle of a sentence.
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

/// Whether an error says that something is used up which others may give back: descriptors, memory,
/// processes, or room on a disk.
pub fn is_exhausted(error: &io::Error) -> bool {
    const USED_UP: [i32; 6] = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOMEM,
        libc::EAGAIN,
        libc::ENOSPC,
        libc::EDQUOT,
    ];
    error
        .raw_os_error()
        .is_some_and(|number| USED_UP.contains(&number))
}

/// Turns a system call's `-1`-and-errno result into an `io::Result`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Runs `work` on a thread of its own: whatever namespaces it joins, the caller stays where it is.
fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    // A small stack: what runs here makes a few system calls.
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
