//! The archive as a stream: its end, global headers, compression.

use std::io::Write;

use crate::check;
use crate::common::{
    Bench, apply, file, gzip, listing, noise, pack, pack_open, pax_records, zstandard,
};
use tar::EntryType;
use whelk_image::Digest;

#[test]
fn accepts_empty_layers() {
    for (archive, digest) in [
        (
            Vec::new(),
            Some("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ),
        // The empty layer that old images contain.
        (
            vec![0u8; 1024],
            Some("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"),
        ),
        (vec![0u8; 10_240], None),
    ] {
        let bench = Bench::new();
        let files = bench.unpack(&archive);
        assert_eq!(listing(&files), [""; 0]);
        let layers = bench.names("layers");
        assert_eq!(layers, [Digest::of(&archive).hex()]);
        if let Some(digest) = digest {
            assert_eq!(format!("sha256:{}", layers[0]), digest);
        }
        assert_eq!(
            bench.store.snapshots.size(&Digest::of(&archive)).unwrap(),
            0
        );
    }
}

#[test]
fn reproduces_data_after_the_end_of_archive_marker() {
    let bench = Bench::new();
    let mut archive = pack(&[file("f", "x")]);
    // More than the limit of an entry's headers, which does not apply here.
    archive.resize(archive.len() + (6 << 20), 0);
    bench.unpack(&archive);
    archive.extend_from_slice(&noise(10_000));
    bench.unpack(&archive);
    // Archives without an end-of-archive marker, as some programs write them.
    bench.unpack(&pack_open(&[file("f", "x"), file("g", noise(1000))]));
}

#[test]
fn ignores_global_headers() {
    let records = pax_records(&[("comment".to_owned(), b"by a program".to_vec())]);
    let global = file("pax_global_header", records)
        .change(|header| header.set_entry_type(EntryType::XGlobalHeader));
    check(&[global, file("f", "x")], &["f file 0644 0:0 x"]);
}

#[track_caller]
fn check_compressed(compressed: &[u8], archive: &[u8]) {
    let bench = Bench::new();
    let layer = apply(&bench.store, compressed, Some(&Digest::of(archive))).unwrap();
    assert_eq!(layer.diff_id, Digest::of(archive));
    assert!(bench.written(&layer.diff_id) == archive);
    assert_eq!(
        listing(&bench.store.snapshots.files(&layer.diff_id)).len(),
        2
    );
}

#[test]
fn compressed_layers() {
    let archive = pack(&[file("f", noise(100_000)), file("g", vec![b'x'; 300_000])]);
    let (first, second) = archive.split_at(50_000);
    check_compressed(&gzip(&archive), &archive);
    check_compressed(&[gzip(first), gzip(second)].concat(), &archive);
    check_compressed(
        &[gzip(b""), gzip(first), gzip(b""), gzip(second)].concat(),
        &archive,
    );
    let mut named = flate2::GzBuilder::new()
        .filename("layer.tar")
        .comment("a comment")
        .mtime(5)
        .write(Vec::new(), flate2::Compression::best());
    named.write_all(&archive).unwrap();
    check_compressed(&named.finish().unwrap(), &archive);
    check_compressed(&zstandard(&archive), &archive);
    check_compressed(&[zstandard(first), zstandard(second)].concat(), &archive);
    // A skippable frame, as in `zstd:chunked` images.
    let mut skipped = vec![0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0];
    skipped.extend_from_slice(b"12345");
    check_compressed(
        &[
            skipped.clone(),
            zstandard(first),
            skipped.clone(),
            zstandard(second),
            skipped,
        ]
        .concat(),
        &archive,
    );
}

#[test]
fn accepts_a_layer_of_zeros() {
    let archive = pack(&[file("a", vec![0u8; 32 << 20]), file("b", vec![0u8; 1])]);
    check_compressed(&zstandard(&archive), &archive);
    check_compressed(&gzip(&archive), &archive);
}
