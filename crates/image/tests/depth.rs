//! Tests with very deep directory trees. They are in a test binary of their own because a stack
//! overflow aborts the whole process.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use common::{Bench, apply, file, nested, pack};
use whelk_image::snapshots::{diff, export, export_directory};
use whelk_image::{Digest, Error};

/// Returns a path as long as the kernel accepts in one call (`PATH_MAX`).
fn deep() -> String {
    "d/".repeat(2000)
}

#[test]
fn a_deep_layer_is_unpacked_and_removed() {
    let bench = Bench::new();
    let archive = pack(&[file(deep() + "f", "x")]);
    match apply(&bench.store, archive.as_slice(), None) {
        Ok(layer) => {
            assert!(bench.written(&layer.diff_id) == archive);
            bench
                .store
                .staging
                .discard(&bench.store.snapshots.path(&layer.diff_id))
                .unwrap();
        }
        Err(error) => assert!(matches!(error, Error::Invalid(_)), "{error}"),
    }
    bench.check_empty("deep");
}

#[test]
fn a_refused_deep_layer_leaves_nothing() {
    let bench = Bench::new();
    let archive = pack(&[file(deep() + "f", "x"), file("../x", "")]);
    let result = apply(&bench.store, archive.as_slice(), None);
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_empty("deep");
}

#[test]
fn a_deep_directory_is_replaced() {
    let bench = Bench::new();
    let archive = pack(&[file(deep() + "f", "x"), file("d", "flat")]);
    let result = apply(&bench.store, archive.as_slice(), None);
    assert!(
        matches!(result, Ok(_) | Err(Error::Invalid(_))),
        "{result:?}"
    );
    bench.check_temporary("deep");
}

/// Runs on a thread with a stack of 2 MiB, the size of the engine's threads (and the default of
/// test threads).
#[test]
fn a_deep_layer_is_exported() {
    let bench = Bench::new();
    // Close to the limit of 512 directories.
    let archive = pack(&[file("d/".repeat(511) + "f", "x")]);
    apply(&bench.store, archive.as_slice(), None).unwrap();
    let mut exported = Vec::new();
    let layers = [bench.store.snapshots.files(&Digest::of(&archive))];
    export(&layers, &mut exported).unwrap();
    let mut entries = 0;
    for entry in tar::Archive::new(exported.as_slice()).entries().unwrap() {
        entry.unwrap();
        entries += 1;
    }
    assert_eq!(entries, 512);
}

/// On a stack of 2 MiB, too.
#[test]
fn lists_the_changes_of_a_deep_tree() {
    whelk_sys::process::raise_file_limit();
    for (levels, is_listed) in [(1000, true), (1100, false)] {
        let base = nested("changed", levels);
        let changes = diff(&base, &[]);
        whelk_sys::fs::remove_tree(&base).unwrap();
        match changes {
            // A file in each directory.
            Ok(changes) => assert!(
                is_listed && changes.len() == 2 * levels,
                "{}",
                changes.len()
            ),
            Err(error) => {
                let text = error.to_string();
                assert!(!is_listed && text.contains("too many levels"), "{text}");
            }
        }
    }
}

#[test]
fn exports_a_deep_tree_completely_and_in_order() {
    const LEVELS: usize = 2000;
    let base = nested("exported", LEVELS);
    let mut exported = Vec::new();
    let result = export_directory(&base, &mut exported);
    whelk_sys::fs::remove_tree(&base).unwrap();
    result.unwrap();
    let mut archive = tar::Archive::new(exported.as_slice());
    // The `tar` crate omits `./` where a name is short.
    let name = |path: &[u8]| path.strip_prefix(b"./").unwrap_or(path).to_vec();
    let mut names = archive
        .entries()
        .unwrap()
        .map(|entry| name(&entry.unwrap().path_bytes()));
    assert_eq!(names.next().unwrap(), b"");
    let mut directory = String::new();
    for _ in 0..LEVELS {
        directory += "d/";
        assert!(names.next().unwrap() == directory.as_bytes());
    }
    // On the way up the walk must reopen directories that it closed on the way down.
    while !directory.is_empty() {
        directory.truncate(directory.len() - "d/".len());
        assert!(names.next().unwrap() == format!("{directory}f").as_bytes());
    }
    assert!(names.next().is_none());
}

/// Moves a directory when the first bytes are written.
struct Mover<'a> {
    base: &'a std::path::Path,
    written: Vec<u8>,
}

impl std::io::Write for Mover<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.written.is_empty() {
            let moved = self.base.join("moved");
            whelk_sys::fs::rename(self.base.join("d/d/d"), moved).unwrap();
        }
        self.written.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_export_goes_on_if_a_directory_is_moved() {
    let base = nested("moved", 400);
    let mut output = Mover {
        base: &base,
        written: Vec::new(),
    };
    let result = export_directory(&base, &mut output);
    let exported = std::mem::take(&mut output.written);
    whelk_sys::fs::remove_tree(&base).unwrap();
    result.unwrap();
    let mut archive = tar::Archive::new(exported.as_slice());
    let entries = archive.entries().unwrap();
    let names: Vec<String> = entries
        .map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned())
        .collect();
    for file in ["f", "d/f", "d/d/f"] {
        let is_it = |name: &String| name.trim_start_matches("./") == file;
        assert!(names.iter().any(is_it), "{file}");
    }
}
