//! Tests of layers: an archive is unpacked to a directory with overlayfs whiteouts, and is
//! reproduced bit for bit.
//!
//! Creating owners, devices and whiteouts needs root.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

#[path = "../common/mod.rs"]
mod common;
mod entries;
mod order;
mod sparse;
mod store;
mod streams;
mod whiteouts;

use common::{Bench, Entry, listing, pack};

/// Checks the listing of the directory that the entries are unpacked to.
#[track_caller]
fn check(entries: &[Entry], expected: &[&str]) {
    let bench = Bench::new();
    let files = bench.unpack(&pack(entries));
    assert_eq!(listing(&files), expected);
}

/// Like [`check`], without reproducing the archive. Replaced entries are tested in
/// `reproduces_replaced_entries`.
#[track_caller]
fn check_files(entries: &[Entry], expected: &[&str]) {
    let bench = Bench::new();
    let files = bench.unpack_only(&pack(entries));
    assert_eq!(listing(&files), expected);
}
