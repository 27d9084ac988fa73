//! Entries that come without their parents, more than once, or for the root.

use std::os::unix::fs::MetadataExt;

use crate::common::{Bench, dir, fifo, file, hard_link, listing, pack, symlink};
use crate::{check, check_files};
use whelk_image::Digest;
use whelk_sys::fs;

#[test]
fn creates_missing_parents() {
    check(
        &[
            file("a/b/c", "x"),
            dir("a/").mode(0o700).owner(1, 1),
            symlink("l/m", "x"),
            fifo("p/q").mode(0o600),
        ],
        &[
            "a dir 0700 1:1",
            "a/b dir 0755 0:0",
            "a/b/c file 0644 0:0 x",
            "l dir 0755 0:0",
            "l/m link 0:0 x",
            "p dir 0755 0:0",
            "p/q fifo 0600 0:0",
        ],
    );
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    check_files(
        &[file("f", "old").mode(0o777), file("f", "new!")],
        &["f file 0644 0:0 new!"],
    );
    check_files(
        &[file("x", "old"), dir("x/"), file("x/y", "")],
        &["x dir 0755 0:0 opaque", "x/y file 0644 0:0"],
    );
    check_files(
        &[
            dir("x/"),
            file("x/y", ""),
            dir("x/z/"),
            file("x/z/deep", ""),
            file("x", "new"),
        ],
        &["x file 0644 0:0 new"],
    );
    check_files(
        &[dir("x/"), file("x/y", ""), symlink("x", "y")],
        &["x link 0:0 y"],
    );
    check_files(
        &[symlink("x", "y"), file("x", "new"), file("z", "")],
        &["x file 0644 0:0 new", "z file 0644 0:0"],
    );
    check_files(
        &[symlink("x", "d"), dir("d/"), dir("x/"), file("x/f", "")],
        &[
            "d dir 0755 0:0",
            "x dir 0755 0:0 opaque",
            "x/f file 0644 0:0",
        ],
    );
    check_files(&[fifo("x"), file("x", "new")], &["x file 0644 0:0 new"]);
    check_files(
        &[dir("x/"), file("x/y", "kept"), dir("x/").mode(0o711)],
        &["x dir 0711 0:0", "x/y file 0644 0:0 kept"],
    );
    // Replacing one name of a file does not affect its other hard links.
    check_files(
        &[file("a", "old"), hard_link("b", "a"), file("a", "new")],
        &["a file 0644 0:0 new", "b file 0644 0:0 old"],
    );
    check_files(
        &[file("a", "1"), file("b", "2"), hard_link("b", "a")],
        &["a file 0644 0:0 1", "b file 0644 0:0 1"],
    );
}

/// The content of a replaced entry is in the archive, but in no file of the layer.
#[test]
fn reproduces_replaced_entries() {
    for entries in [
        [file("f", "old"), file("f", "new")],
        [file("f", "old and longer"), file("f", "new")],
        [file("f", "old"), dir("f/")],
        [file("f", "old"), symlink("f", "x")],
        [file("d/f", "old"), file("d", "new")],
        [file("d/f", "old"), symlink("d", "e")],
        [file("f", "old"), fifo("f")],
        [dir("f/"), file("f", "new")],
    ] {
        let bench = Bench::new();
        let archive = pack(&entries);
        let files = bench.unpack_only(&archive);
        let mut written = Vec::new();
        let result = bench
            .store
            .snapshots
            .replay(&Digest::of(&archive), &mut written);
        assert!(
            result.is_ok() && written == archive,
            "{:?}: {result:?}",
            listing(&files)
        );
    }
}

#[test]
fn reproduces_a_replaced_name_of_a_hard_linked_file() {
    let bench = Bench::new();
    bench.unpack(&pack(&[
        file("a", "old"),
        hard_link("b", "a"),
        file("a", "new"),
        file("b", "newer"),
    ]));
}

#[test]
fn accepts_an_entry_for_the_root() {
    // The last form is the one that kaniko writes.
    for name in ["./", ".", "/"] {
        let bench = Bench::new();
        let files = bench.unpack(&pack(&[
            dir(name).mode(0o711).owner(3, 4).mtime(99),
            file("./f", "x"),
        ]));
        let data = fs::metadata(&files).unwrap();
        assert_eq!(
            (data.mode() & 0o7777, data.uid(), data.gid(), data.mtime()),
            (0o711, 3, 4, 99),
            "{name}"
        );
        assert_eq!(listing(&files), ["f file 0644 0:0 x"], "{name}");
    }
}

#[test]
fn names_may_start_with_a_dot() {
    check(
        &[
            dir("./d/"),
            file("./d/./f", "1"),
            file("d//g", "2"),
            hard_link("./h", "./d//f"),
            file("./d/.wh.gone", ""),
        ],
        &[
            "d dir 0755 0:0",
            "d/f file 0644 0:0 1",
            "d/g file 0644 0:0 2",
            "d/gone whiteout",
            "h file 0644 0:0 1",
        ],
    );
}
