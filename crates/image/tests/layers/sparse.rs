//! Sparse files in the formats of GNU tar.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use crate::common::{Bench, apply, dir, ended, file, noise, pack, sparse};
use whelk_image::Error;
use whelk_image::snapshots::Form;
use whelk_sys::fs;

const MIB: u64 = 1 << 20;

#[test]
fn sparse_files_keep_their_holes() {
    let content = noise(1024);
    let bench = Bench::new();
    let mut archive = sparse(
        "holes",
        &[(MIB, 512), (3 * MIB, 512), (8 * MIB, 0)],
        &content,
        8 * MIB,
    );
    archive.extend_from_slice(&pack(&[file("after", "x")]));
    let files = bench.unpack(&archive);
    let mut expected = vec![0u8; 8 << 20];
    expected[1 << 20..][..512].copy_from_slice(&content[..512]);
    expected[3 << 20..][..512].copy_from_slice(&content[512..]);
    assert!(fs::read(files.join("holes")).unwrap() == expected);
    assert!(
        fs::metadata(files.join("holes")).unwrap().blocks() < 1024,
        "the holes are on disk"
    );
    assert_eq!(fs::read(files.join("after")).unwrap(), b"x");
}

#[test]
fn sparse_files_with_more_pieces_than_a_header_holds() {
    let parts: Vec<(u64, u64)> = (0..60)
        .map(|part| (part * 8192, if part == 59 { 100 } else { 512 }))
        .collect();
    let content = noise(59 * 512 + 100);
    let size = 59 * 8192 + 100;
    let bench = Bench::new();
    let files = bench.unpack(&ended(sparse("parts", &parts, &content, size)));
    let mut expected = vec![0u8; usize::try_from(size).unwrap()];
    for (number, part) in content.chunks(512).enumerate() {
        expected[number * 8192..][..part.len()].copy_from_slice(part);
    }
    assert!(fs::read(files.join("parts")).unwrap() == expected);
}

/// In an image, positions are numbers of blocks, and sizes have 64 bits.
#[test]
fn files_of_more_than_4_gib_are_whole_in_images() {
    const SIZE: u64 = 5 << 30;
    let mut bench = Bench::new();
    if bench.store.snapshots.set_form(Some(Form::Images)).is_err() {
        return;
    }
    let content = noise(1024);
    let parts = [(0, 512), (SIZE - 512, 512)];
    let mut archive = sparse("large", &parts, &content, SIZE);
    archive.extend_from_slice(&pack(&[
        file("after", noise(9000)),
        dir("d/"),
        file("d/x", "x"),
    ]));
    let layer = apply(&bench.store, archive.as_slice(), None).unwrap();
    let image = bench.store.snapshots.files(&layer.diff_id);
    assert!(
        fs::metadata(&image).unwrap().blocks() < 1024,
        "the holes are on disk"
    );
    let mounted = whelk_sys::erofs::mount(&image).unwrap();
    let root = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
    let large = fs::open(root.join("large")).unwrap();
    assert_eq!(large.metadata().unwrap().len(), SIZE);
    let mut piece = [1; 1024];
    large.read_exact_at(&mut piece, SIZE - 1024).unwrap();
    assert_eq!(piece[..512], [0; 512]);
    assert_eq!(piece[512..], content[512..]);
    large.read_exact_at(&mut piece, 0).unwrap();
    assert_eq!(piece[..512], content[..512]);
    assert_eq!(piece[512..], [0; 512]);
    assert!(fs::read(root.join("after")).unwrap() == noise(9000));
    assert_eq!(fs::read(root.join("d/x")).unwrap(), b"x");
    assert!(bench.written(&layer.diff_id) == archive);
}

/// GNU sparse format 1.0 has the map in front of the content and the name in the pax header. Read
/// as a regular file, it would have the wrong name and contain the map.
#[test]
fn recognizes_sparse_files_in_pax_headers() {
    let mut content = b"1\n1048576\n512\n".to_vec();
    content.resize(512, 0);
    content.extend_from_slice(&noise(512));
    let archive = pack(&[file("GNUSparseFile.1/holes", content)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "holes")
        .pax("GNU.sparse.realsize", (MIB + 512).to_string())]);
    let bench = Bench::new();
    match apply(&bench.store, archive.as_slice(), None) {
        Err(Error::Invalid(_)) => bench.check_empty("refused"),
        Ok(layer) => {
            let content = fs::read(bench.store.snapshots.files(&layer.diff_id).join("holes"))
                .expect("the file has its own name");
            assert!(
                content[..1 << 20].iter().all(|&byte| byte == 0)
                    && content[1 << 20..] == noise(512)
            );
            assert!(bench.written(&layer.diff_id) == archive);
        }
        Err(error) => panic!("{error}"),
    }
}
