//! Trees deeper than honest programs make them. In a file of its own, because what would fail here is the stack, which
//! takes the whole process with it.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use common::{Bench, file, pack};
use whelk_image::{Digest, Error, export};

/// As deep as a path can be that the kernel takes at once (`PATH_MAX`).
fn deep() -> String {
    "d/".repeat(2000)
}

#[test]
fn a_deep_layer_is_unpacked_and_removed() {
    let bench = Bench::new();
    let archive = pack(&[file(deep() + "f", "x")]);
    match bench.store.put_layer(archive.as_slice(), None) {
        Ok(layer) => {
            assert!(bench.written(&layer.diff_id) == archive);
            bench.store.discard(&bench.store.layer_path(&layer.diff_id)).unwrap();
        }
        Err(error) => assert!(matches!(error, Error::Invalid(_)), "{error}"),
    }
    bench.check_empty("deep");
}

#[test]
fn a_deep_layer_that_is_refused_leaves_nothing() {
    let bench = Bench::new();
    let archive = pack(&[file(deep() + "f", "x"), file("../x", "")]);
    let result = bench.store.put_layer(archive.as_slice(), None);
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_empty("deep");
}

#[test]
fn a_deep_directory_is_replaced() {
    let bench = Bench::new();
    let archive = pack(&[file(deep() + "f", "x"), file("d", "flat")]);
    let result = bench.store.put_layer(archive.as_slice(), None);
    assert!(matches!(result, Ok(_) | Err(Error::Invalid(_))), "{result:?}");
    bench.check_temporary("deep");
}

/// On a thread with the stack that an engine's threads have (2 MiB, as tests' threads do).
#[test]
fn a_deep_layer_is_exported() {
    let bench = Bench::new();
    let archive = pack(&[file(deep() + "f", "x")]);
    if bench.store.put_layer(archive.as_slice(), None).is_err() {
        return;
    }
    let mut exported = Vec::new();
    let result = export(&[bench.store.layer_files(&Digest::of(&archive))], &mut exported);
    if result.is_ok() {
        let mut entries = 0;
        for entry in tar::Archive::new(exported.as_slice()).entries().unwrap() {
            entry.unwrap();
            entries += 1;
        }
        assert_eq!(entries, 2001);
    }
}
