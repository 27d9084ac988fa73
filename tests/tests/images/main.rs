//! Images: load, save, import, export, tags, and how layers are unpacked.
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
mod removal;
mod save;
mod tags;

use whelk_tests::{Engine, Program, images, tar};

/// The parts of a saved archive by name.
fn parts_of(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    tar::read(archive)
        .into_iter()
        .filter(|entry| entry.kind == b'0')
        .map(|entry| (entry.path, entry.content))
        .collect()
}

/// Returns the tag that an image built by [`images::marked`] contains.
fn mark(engine: &Engine, image: &str) -> String {
    engine.cli(Program::Whelk).once(image, &images::WHICH).ok()
}
