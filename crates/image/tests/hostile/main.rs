//! Tests with hostile layers: each must be refused or unpacked inside the root. In both cases no
//! partial layer may remain, and nothing outside the store may change. Hostile image archives are
//! in `hostile_archives`.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

#[path = "../common/mod.rs"]
mod common;
mod headers;
mod links;
mod metadata;
mod names;
mod races;
mod streams;

use std::os::unix::ffi::OsStrExt;

use common::{Bench, Entry, apply, image_form, listing, pack};
use whelk_image::Error;

/// Checks that a layer is refused with [`Error::Invalid`] and a text that contains `expected`.
#[track_caller]
fn check_refused(what: &str, expected: &str, archive: &[u8]) {
    let bench = Bench::new();
    let guard = bench.guard();
    match apply(&bench.store, archive, None) {
        Err(Error::Invalid(text)) => {
            assert!(
                text.starts_with("layer: ") && text.contains(expected),
                "{what}: {text}"
            );
            image_form::check(archive, Err(&text));
        }
        other => panic!("{what}: {other:?}"),
    }
    bench.check_empty(what);
    assert_eq!(bench.guard(), guard, "{what}");
}

/// Like [`check_refused`], for several layers that are refused with the same text.
#[track_caller]
fn refused(expected: &str, cases: &[(&str, &[Entry])]) {
    for (what, entries) in cases {
        check_refused(what, expected, &pack(entries));
    }
}

/// Makes entries, given the path of the directory outside the root.
type Make = fn(&[u8]) -> Vec<Entry>;

/// Checks that a layer is either refused or unpacked to exactly this listing.
#[track_caller]
fn contained(what: &str, entries: Make, expected: &[&str]) {
    let bench = Bench::new();
    let outside = bench.outside();
    let archive = pack(&entries(outside.as_os_str().as_bytes()));
    let guard = bench.guard();
    match apply(&bench.store, archive.as_slice(), None) {
        Ok(layer) => {
            let lines = listing(&bench.store.snapshots.files(&layer.diff_id));
            let lines: Vec<String> = lines
                .iter()
                .map(|line| line.replace(outside.to_str().unwrap(), "OUTSIDE"))
                .collect();
            assert_eq!(lines, expected, "{what}");
            bench.check_temporary(what);
            let files = bench.store.snapshots.files(&layer.diff_id);
            image_form::check(&archive, Ok(&files));
        }
        Err(Error::Invalid(text)) => {
            bench.check_empty(what);
            image_form::check(&archive, Err(&text));
        }
        Err(error) => panic!("{what}: {error}"),
    }
    assert_eq!(bench.guard(), guard, "{what}");
}

fn below(directory: &[u8], name: &str) -> Vec<u8> {
    [directory, b"/", name.as_bytes()].concat()
}
