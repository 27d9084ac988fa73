//! Symbolic and hard links that lead outside the root.

use std::os::unix::ffi::OsStrExt;

use crate::common::{Bench, CLIMB, apply, dir, fifo, file, hard_link, pack, symlink, whiteout};
use crate::{Make, below, contained, refused};
use whelk_image::Error;
use whelk_sys::fs;

/// Applies a layer, which may be refused, and checks that it changes nothing outside of its own
/// directory.
fn check_contained(what: &str, entries: &Make) {
    let bench = Bench::new();
    let guard = bench.guard();
    let archive = pack(&entries(bench.outside().as_os_str().as_bytes()));
    match apply(&bench.store, archive.as_slice(), None) {
        // Links are resolved inside the layer, and the archive is reproduced.
        Ok(layer) => assert!(bench.written(&layer.diff_id) == archive, "{what}"),
        Err(Error::Invalid(_)) => bench.check_empty(what),
        Err(error) => panic!("{what}: {error}"),
    }
    bench.check_temporary(what);
    assert_eq!(bench.guard(), guard, "{what}");
}

#[test]
fn does_not_write_through_links() {
    let through: &[(&str, Make)] = &[
        ("file", |outside| {
            vec![symlink("l", outside), file("l/planted", "x")]
        }),
        ("replacing a file", |outside| {
            vec![symlink("l", outside), file("l/file", "x")]
        }),
        ("directory", |outside| {
            vec![symlink("l", outside), dir("l/planted/")]
        }),
        ("metadata of a directory", |outside| {
            vec![symlink("l", outside), dir("l/directory/").mode(0o777)]
        }),
        ("symbolic link", |outside| {
            vec![symlink("l", outside), symlink("l/planted", "x")]
        }),
        ("pipe", |outside| {
            vec![symlink("l", outside), fifo("l/planted")]
        }),
        ("hard link", |outside| {
            vec![
                symlink("l", outside),
                file("f", "x"),
                hard_link("l/planted", "f"),
            ]
        }),
        ("whiteout", |outside| {
            vec![symlink("l", outside), whiteout("l/file")]
        }),
        ("whiteout of a directory", |outside| {
            vec![symlink("l", outside), whiteout("l/directory")]
        }),
        ("opaque mark", |outside| {
            vec![symlink("l", outside), file("l/.wh..wh..opq", "")]
        }),
        ("metadata of AUFS", |outside| {
            vec![symlink("l", outside), file("l/.wh..wh.aufs", "")]
        }),
        ("a deeper one", |outside| {
            vec![symlink("l", outside), file("l/directory/file", "x")]
        }),
        ("a missing parent", |outside| {
            vec![symlink("l", outside), file("l/a/b/c", "x")]
        }),
        ("two links", |outside| {
            vec![
                symlink("m", outside),
                symlink("l", "m"),
                file("l/planted", "x"),
            ]
        }),
        ("a dangling link", |outside| {
            vec![symlink("l", below(outside, "planted")), file("l/x", "x")]
        }),
        ("the host's root", |_| {
            vec![symlink("l", "/"), file("l/whelk-planted", "x")]
        }),
        ("a relative link", |_| {
            vec![
                symlink("a/b/c/d/l", "../../../.."),
                file("a/b/c/d/l/x", "x"),
            ]
        }),
        ("a link to a directory of the layer", |_| {
            vec![dir("d/"), symlink("l", "d"), file("l/x", "x")]
        }),
        ("a link to itself", |_| {
            vec![symlink("l", "l"), file("l/x", "x")]
        }),
        ("a link to the process", |_| {
            vec![symlink("l", "/proc/self/cwd"), file("l/x", "x")]
        }),
        ("a link with another name", |outside| {
            vec![
                symlink("l", outside),
                hard_link("m", "l"),
                file("m/planted", "x"),
            ]
        }),
    ];
    for (what, entries) in through {
        check_contained(what, entries);
    }
    assert!(!fs::exists("/whelk-planted"));
}

#[test]
fn keeps_links_that_point_above_the_root() {
    // The targets are kept verbatim: whoever follows them in a container stays inside.
    contained(
        "at the top",
        |_| vec![symlink("l", format!("{CLIMB}/file"))],
        &[&format!("l link 0:0 {CLIMB}/file")],
    );
    contained(
        "from below",
        |_| vec![symlink("l", "..")],
        &["l link 0:0 .."],
    );
    contained(
        "used as a directory",
        |_| {
            vec![
                symlink("a/l", "../../../b"),
                file("a/l/x", "x"),
                dir("c/"),
                hard_link("c/y", "a/l/x"),
            ]
        },
        &[
            "a dir 0755 0:0",
            "a/l link 0:0 ../../../b",
            "b dir 0755 0:0",
            "b/x file 0644 0:0 x",
            "c dir 0755 0:0",
            "c/y file 0644 0:0 x",
        ],
    );
    contained(
        "absolute",
        |_| {
            vec![
                dir("d/").mode(0o700),
                symlink("l", "/d/e"),
                file("l/x", "x"),
                whiteout("l/y"),
                file("/d/../f", "f"),
            ]
        },
        &[
            "d dir 0700 0:0",
            "d/e dir 0755 0:0",
            "d/e/x file 0644 0:0 x",
            "d/e/y whiteout",
            "f file 0644 0:0 f",
            "l link 0:0 /d/e",
        ],
    );
    refused(
        "entry \"l\": sym",
        &[
            ("empty", &[symlink("l", "")]),
            (
                "empty in an extended header",
                &[symlink("l", "f").pax("linkpath", "")],
            ),
            ("NUL", &[symlink("l", "f").pax("linkpath", b"a\0b")]),
            (
                "longer than the kernel takes",
                &[symlink("l", "x".repeat(5000))],
            ),
        ],
    );
}

/// A name that was a directory and is a link when it is used again.
#[test]
fn does_not_follow_directories_replaced_by_links() {
    let swaps: &[(&str, Make)] = &[
        ("directory", |o| {
            vec![
                dir("d/"),
                file("d/a", "x"),
                symlink("d", o),
                file("d/planted", "x"),
            ]
        }),
        ("without an entry", |o| {
            vec![file("d/a", "x"), symlink("d", o), file("d/planted", "x")]
        }),
        ("parent", |o| {
            vec![
                file("d/e/a", "x"),
                symlink("d", o),
                file("d/directory/planted", "x"),
            ]
        }),
        ("below", |o| {
            vec![
                file("d/e/a", "x"),
                symlink("d/e", o),
                file("d/e/planted", "x"),
            ]
        }),
        ("twice", |o| {
            vec![
                dir("d/"),
                symlink("d", o),
                dir("d/"),
                file("d/a", ""),
                symlink("d", o),
                file("d/planted", "x"),
            ]
        }),
        ("for a whiteout", |o| {
            vec![
                dir("d/"),
                file("d/a", "x"),
                symlink("d", o),
                whiteout("d/file"),
            ]
        }),
        ("for a hard link", |o| {
            vec![
                file("d/file", "x"),
                symlink("d", o),
                hard_link("f", "d/file"),
            ]
        }),
        ("for a hard link from it", |o| {
            vec![
                file("d/a", "x"),
                file("f", "x"),
                symlink("d", o),
                hard_link("d/planted", "f"),
            ]
        }),
    ];
    for (what, entries) in swaps {
        check_contained(what, entries);
    }
}

/// An entry replaces the link itself, never its target.
#[test]
fn replaces_links_not_their_targets() {
    contained(
        "file",
        |o| vec![symlink("l", below(o, "file")), file("l", "x")],
        &["l file 0644 0:0 x"],
    );
    contained(
        "new file",
        |o| vec![symlink("l", below(o, "planted")), file("l", "x")],
        &["l file 0644 0:0 x"],
    );
    contained(
        "directory",
        |o| vec![symlink("l", o), dir("l/").mode(0o777)],
        &["l dir 0777 0:0 opaque"],
    );
    contained(
        "pipe",
        |o| vec![symlink("l", below(o, "file")), fifo("l").mode(0o666)],
        &["l fifo 0666 0:0"],
    );
    contained(
        "owner",
        |o| vec![symlink("l", below(o, "file")).owner(5, 5).mode(0o777)],
        &["l link 5:5 OUTSIDE/file"],
    );
    contained(
        "whiteout",
        |o| vec![symlink("l", o), whiteout("l")],
        &["l link 0:0 OUTSIDE"],
    );
    contained(
        "whiteout in front",
        |o| vec![whiteout("l"), symlink("l", o)],
        &["l link 0:0 OUTSIDE"],
    );
    let hard = &["h file 0644 0:0 x", "l link 0:0 OUTSIDE/file"];
    contained(
        "other name",
        |o| {
            vec![
                symlink("l", below(o, "file")),
                hard_link("h", "l"),
                file("h", "x"),
            ]
        },
        hard,
    );
    let tree = &["d file 0644 0:0 x"];
    contained(
        "tree with links",
        |o| {
            vec![
                dir("d/"),
                symlink("d/l", o),
                symlink("d/m", below(o, "directory")),
                file("d", "x"),
            ]
        },
        tree,
    );
}

#[test]
fn rejects_hard_links_to_outside() {
    refused(
        "entry \"h\": hard link",
        &[
            ("absolute", &[hard_link("h", "/etc/passwd")]),
            ("climbing", &[hard_link("h", format!("{CLIMB}/file"))]),
            (
                "climbing in the middle",
                &[dir("d/"), hard_link("h", "d/../../f")],
            ),
            (
                "by an extended header",
                &[
                    file("f", ""),
                    hard_link("h", "f").pax("linkpath", "/etc/passwd"),
                ],
            ),
            (
                "through a link",
                &[symlink("l", "/etc"), hard_link("h", "l/passwd")],
            ),
            ("through a file", &[file("f", ""), hard_link("h", "f/x")]),
            ("missing", &[hard_link("h", "nowhere")]),
            ("in a missing directory", &[hard_link("h", "no/where")]),
            (
                "later in the archive",
                &[hard_link("h", "f"), file("f", "")],
            ),
            ("itself", &[file("h", "x"), hard_link("h", "h")]),
            ("without a target", &[hard_link("h", "")]),
            ("the root", &[hard_link("h", "./")]),
            ("a directory", &[dir("d/"), hard_link("h", "d")]),
            // Would create another whiteout without a whiteout name.
            ("a whiteout", &[whiteout("gone"), hard_link("h", "gone")]),
        ],
    );
}
