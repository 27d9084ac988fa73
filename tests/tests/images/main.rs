//! Images: into the engine, out of it, and what they are called there.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

mod export;
mod layers;
mod load;
mod save;
mod tags;

use whelk_tests::Engine;
use whelk_tests::tar;

/// The parts of a saved archive by name.
fn parts_of(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    tar::read(archive)
        .into_iter()
        .filter(|entry| entry.kind == b'0')
        .map(|entry| (entry.path, entry.content))
        .collect()
}

fn runs(engine: &Engine, image: &str) -> String {
    engine
        .whelk(&[
            "run",
            "--rm",
            "--network",
            "none",
            image,
            "cat",
            "/etc/which",
        ])
        .ok()
}
