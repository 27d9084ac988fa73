//! Whiteouts and opaque directories.

use crate::common::{dir, file, hard_link, symlink, whiteout};
use crate::{check, check_files};

#[test]
fn converts_whiteouts_to_overlayfs_form() {
    check(&[whiteout("gone")], &["gone whiteout"]);
    check(
        &[dir("d/"), whiteout("d/gone"), file("d/here", "x")],
        &[
            "d dir 0755 0:0",
            "d/gone whiteout",
            "d/here file 0644 0:0 x",
        ],
    );
    // Missing parents of a whiteout are created.
    check(
        &[whiteout("a/b/gone")],
        &["a dir 0755 0:0", "a/b dir 0755 0:0", "a/b/gone whiteout"],
    );
    // A whiteout is recognized by its name, whatever its entry type.
    check(
        &[
            symlink(".wh.a", "x"),
            dir(".wh.b/"),
            file(".wh.c", "content"),
        ],
        &["a whiteout", "b whiteout", "c whiteout"],
    );
    check(&[whiteout("twice"), whiteout("twice")], &["twice whiteout"]);
}

#[test]
fn opaque_directories() {
    check(
        &[dir("d/"), file("d/.wh..wh..opq", ""), file("d/new", "")],
        &["d dir 0755 0:0 opaque", "d/new file 0644 0:0"],
    );
    check(
        &[dir("d/"), file("d/new", ""), file("d/.wh..wh..opq", "")],
        &["d dir 0755 0:0 opaque", "d/new file 0644 0:0"],
    );
    check(
        &[file("d/.wh..wh..opq", ""), dir("d/").mode(0o700)],
        &["d dir 0700 0:0 opaque"],
    );
    check(
        &[dir("d/"), file("d/.wh..wh..opq", ""), dir("d/").owner(1, 1)],
        &["d dir 0755 1:1 opaque"],
    );
}

/// A layer may hide a name of lower layers and use it again. Whiteouts never hide entries of the
/// same layer (OCI image specification, "Whiteouts").
#[test]
fn whiteouts_do_not_hide_entries_of_the_same_layer() {
    check(
        &[whiteout("d"), dir("d/"), file("d/new", "")],
        &["d dir 0755 0:0 opaque", "d/new file 0644 0:0"],
    );
    check(
        &[dir("d/"), file("d/new", ""), whiteout("d")],
        &["d dir 0755 0:0 opaque", "d/new file 0644 0:0"],
    );
    check(&[whiteout("f"), file("f", "new")], &["f file 0644 0:0 new"]);
    check(&[file("f", "new"), whiteout("f")], &["f file 0644 0:0 new"]);
    check(&[symlink("l", "x"), whiteout("l")], &["l link 0:0 x"]);
    check(&[whiteout("l"), symlink("l", "x")], &["l link 0:0 x"]);
    check(
        &[file("f", "new"), whiteout("g"), hard_link("g", "f")],
        &["f file 0644 0:0 new", "g file 0644 0:0 new"],
    );
}

/// Once a name of the lower layers is hidden, it stays hidden, whatever entries follow.
#[test]
fn a_whiteout_is_not_lost() {
    let opaque = &["d dir 0755 0:0 opaque"];
    check_files(&[whiteout("d"), file("d", "x"), dir("d/")], opaque);
    check_files(&[file("d", "x"), whiteout("d"), dir("d/")], opaque);
    check_files(
        &[whiteout("d"), dir("d/"), file("d", "x"), dir("d/")],
        opaque,
    );
    check_files(&[whiteout("d"), symlink("d", "x"), dir("d/")], opaque);
    check_files(&[dir("d/"), whiteout("d"), dir("d/")], opaque);
    // A file hides a directory of the lower layers as well.
    check_files(&[file("d", "x"), dir("d/")], opaque);
}

#[test]
fn ignores_other_aufs_metadata() {
    check(
        &[
            dir(".wh..wh.plnk/"),
            file(".wh..wh.aufs", ""),
            file("f", ""),
        ],
        &["f file 0644 0:0"],
    );
}
