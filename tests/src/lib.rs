//! Support for the end-to-end tests: engines, both command-line clients, the API, terminals, and
//! images.
//!
//! Each test starts an [`Engine`] with its own directory and instance name. On drop, its containers
//! are removed, it is stopped, and the machine is searched for leftovers: mounts, cgroups,
//! processes, files. Any leftover fails the test. If the test program is killed, `whelk-sweep`
//! removes the leftovers.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `WHELK_BIN` | the program to test (default: the one built beside the tests) |
//! | `WHELK_TEST_DIR` | directory for the engines' data (default: `/var/tmp`) |
//! | `WHELK_TOOLS` | where `scripts/setup` unpacked the docker CLI (default: `~/.cache/whelk/tools`) |
//! | `WHELK_OLD_TOOLS` | where `scripts/setup` unpacked older plugins of the docker CLI (default: `~/.cache/whelk/old-tools`) |
//! | `WHELK_TEST_IMAGES` | directory of the images, built when missing (default: `~/.cache/whelk/images`) |
//! | `WHELK_SKIPPED` | file that a line is appended to for each test that is skipped (default: standard output) |
//! | `WHELK_TEST_LAYERS` | how engines keep layers, as the key `layers` of their configuration: `erofs` |
//! | `WHELK_TEST_KEEP` | if set, the directories of failed tests are kept |
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests panic on errors")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "likewise")]
#![allow(
    clippy::print_stderr,
    reason = "output of a failed test goes to standard error"
)]

mod attached;
pub mod builds;
pub mod certificates;
mod cli;
pub mod docker_py;
mod engine;
mod free;
pub mod grpc;
mod http;
pub mod images;
mod leftovers;
mod private_host;
pub mod processes;
mod pty;
pub mod registry;
mod scratch;
pub mod serving;
mod skips;
pub mod tar;
mod volume_plugin;
pub mod web;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use attached::{Attached, Events};
pub use cli::{Cli, Output, Program, Running, debian_registry};
pub use engine::Engine;
pub use free::{FreeSubnet, free_interface_name, free_port};
pub use http::{Connection, Response, escape};
pub use leftovers::sweep;
pub use private_host::private_host;
pub use pty::Pty;
pub use scratch::Scratch;
pub use skips::record_skip;
pub use volume_plugin::VolumePlugin;

/// Returns the form of layers that engines are configured to use.
fn layers() -> Option<String> {
    std::env::var("WHELK_TEST_LAYERS").ok()
}

/// How long an expected event may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polling interval.
const POLL: Duration = Duration::from_millis(5);

/// Polls `probe` until it returns a value.
///
/// # Panics
/// Panics after [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(POLL);
    }
}

/// Checks that `probe` stays true for `time`.
///
/// # Panics
/// Panics when `probe` returns `false`.
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

/// Polls `probe` for `time`. Returns whether it became true.
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

/// Returns a command of skopeo, a client of registries, which `scripts/setup` has unpacked. It accepts images without signatures.
#[must_use]
pub fn skopeo() -> std::process::Command {
    let root = cache("WHELK_SKOPEO", "skopeo");
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    let libraries = libraries.map(|path| root.join(path).display().to_string());
    let mut command = std::process::Command::new(root.join("usr/bin/skopeo"));
    command
        .arg("--insecure-policy")
        .env("LD_LIBRARY_PATH", libraries.join(":"))
        .stdin(std::process::Stdio::null());
    command
}

/// Returns the directory named by an environment variable, or one below `~/.cache/whelk`.
#[must_use]
pub fn cache(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()))
                .join(".cache/whelk")
                .join(name)
        },
        PathBuf::from,
    )
}

/// Returns nanoseconds since the epoch, for time filters and for unique names that sort by time.
pub fn now_nanos() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}
