//! Names of entries that lead outside the root, or are invalid.

use std::os::unix::ffi::OsStrExt;

use crate::common::{
    Bench, CLIMB, Entry, apply, device, dir, fifo, file, hard_link, pack, symlink,
};
use crate::{check_refused, refused};
use tar::EntryType;
use whelk_image::Error;
use whelk_sys::fs;

#[test]
fn rejects_names_with_parent_components() {
    let target = format!("{CLIMB}/planted");
    let whiteout_there = format!("{CLIMB}/.wh.file");
    let opaque_there = format!("{CLIMB}/.wh..wh..opq");
    refused(
        "path with \"..\" that leads outside of the root",
        &[
            ("file", &[file(&target, "x")]),
            ("directory", &[dir(&target)]),
            ("symbolic link", &[symlink(&target, "x")]),
            ("pipe", &[fifo(&target)]),
            ("device", &[device(EntryType::Char, &target, 1, 3)]),
            ("whiteout", &[file(&whiteout_there, "")]),
            ("opaque mark", &[file(&opaque_there, "")]),
            ("hard link", &[file("f", "x"), hard_link(&target, "f")]),
            ("replacing", &[file(format!("{CLIMB}/file"), "x")]),
            ("describing", &[dir(CLIMB).mode(0o777)]),
            ("in the middle", &[dir("a/"), file("a/../../x", "x")]),
            ("alone", &[dir("..")]),
            (
                "by an extended header",
                &[file("f", "x").pax("path", &target)],
            ),
            ("with a dot in front", &[file(format!("./{target}"), "x")]),
            (
                "long",
                &[file(format!("{}{target}", "a/../".repeat(40)), "x")],
            ),
        ],
    );
}

#[test]
fn absolute_names_stay_inside_the_root() {
    let bench = Bench::new();
    let guard = bench.guard();
    let planted = bench.outside().join("planted");
    let archive = pack(&[file(planted.as_os_str().as_bytes(), "x")]);
    match apply(&bench.store, archive.as_slice(), None) {
        Ok(layer) => {
            let inside = bench
                .store
                .snapshots
                .files(&layer.diff_id)
                .join(planted.strip_prefix("/").unwrap());
            assert_eq!(
                fs::read(inside).unwrap(),
                b"x",
                "unpacked inside the root if it is not refused"
            );
        }
        Err(Error::Invalid(_)) => bench.check_empty("absolute"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(bench.guard(), guard);
}

#[test]
fn rejects_invalid_names() {
    refused(
        "entry \"",
        &[
            ("empty", &[file("", "x")]),
            ("the root as a file", &[file("./", "x")]),
            ("the root as a link", &[symlink(".", "/")]),
            ("the root as a pipe", &[fifo("./")]),
            ("NUL", &[file("f", "x").pax("path", b"a\0b")]),
            ("NUL in a parent", &[file("f", "x").pax("path", b"a\0b/c")]),
            ("a part that is too long", &[file("n".repeat(256), "x")]),
            (
                "a parent that is too long",
                &[file("n".repeat(256) + "/f", "x")],
            ),
            ("too long in all", &[file("d/".repeat(2100) + "f", "x")]),
        ],
    );
}

/// An entry of 2 KB can imply 500 directories.
#[test]
fn bounds_the_number_of_directories_without_an_entry() {
    let entries: Vec<Entry> = (0..9)
        .map(|number| file(format!("{number}/{}f", "d/".repeat(500)), ""))
        .collect();
    check_refused(
        "a small archive with many directories",
        "too many directories without an entry of their own",
        &pack(&entries),
    );
}
