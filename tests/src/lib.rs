//! What the end-to-end cases share: an engine of one's own, both command lines, the API, terminals,
//! and images.
//!
//! Each case starts an [`Engine`] in a directory of its own under an instance name of its own. When
//! it goes out of scope, all its containers are removed, it is stopped, and the machine is searched
//! for what it left: mounts, cgroups, processes, files. Anything found fails the case. Where the
//! test program is killed, `whelk-sweep` does the same.
//!
//! | variable | what it says |
//! | --- | --- |
//! | `WHELK_BIN` | the program to test; otherwise the one that was built beside the cases |
//! | `WHELK_TEST_DIR` | where engines keep their data; otherwise `/var/tmp` |
//! | `WHELK_TOOLS` | where `scripts/setup` unpacked the docker CLI; otherwise `~/.cache/whelk/tools` |
//! | `WHELK_TEST_IMAGES` | where the images are; otherwise `~/.cache/whelk/images`, made when missing |
//! | `WHELK_TEST_KEEP` | when set, what a failed case left on disk is kept |
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "likewise")]
#![allow(
    clippy::print_stderr,
    reason = "what a failed case says of itself goes where the test runner looks"
)]

mod attached;
mod cli;
mod engine;
mod http;
pub mod images;
mod leftovers;
mod private_host;
mod pty;
pub mod serving;
pub mod tar;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use attached::{Attached, Events};
pub use cli::{Cli, Output, Program, Running};
pub use engine::Engine;
pub use http::{Connection, Response, escape};
pub use leftovers::sweep;
pub use private_host::private_host;
pub use pty::Pty;

/// How long anything that must happen may take before the case fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often is asked whether it happened.
const POLL: Duration = Duration::from_millis(5);

/// Asks again and again until `probe` gives a value.
///
/// # Panics
/// When that takes longer than [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        std::thread::sleep(POLL);
    }
}

/// Watches for a while that something does not change.
///
/// # Panics
/// At the first time that `probe` says no.
#[track_caller]
pub fn stays(what: &str, time: Duration, mut probe: impl FnMut() -> bool) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        assert!(
            probe(),
            "no longer true after {:?}: {what}",
            begin.elapsed()
        );
        std::thread::sleep(POLL);
    }
}

/// Whether `probe` comes true before `time` is over.
fn happens(time: Duration, mut probe: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !probe() {
        if begin.elapsed() > time {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// A directory that `variable` names, or one below `~/.cache/whelk`.
fn cache(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()))
                .join(".cache/whelk")
                .join(name)
        },
        PathBuf::from,
    )
}

/// Nanoseconds since the epoch, as file and object names that sort and do not repeat need them, and
/// time filters.
pub fn now_nanos() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}
