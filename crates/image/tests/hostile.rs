//! Tests with hostile layers: each must be refused or unpacked inside the root. In both cases no
//! partial layer may remain, and nothing outside the store may change. Hostile image archives are
//! in `hostile_archives`.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{
    Bench, CLIMB, Entry, apply, device, dir, ended, endless, entry, fifo, file, gzip, hard_link,
    listing, load, names, noise, pack, pack_open, sparse, symlink, whiteout, within, zstandard,
};
use tar::EntryType;
use whelk_image::compression::decompress;
use whelk_image::{Digest, Error};
use whelk_sys::fs;

/// Checks that a layer is refused with [`Error::Invalid`].
#[track_caller]
fn check_refused(what: &str, archive: &[u8]) {
    let bench = Bench::new();
    let guard = bench.guard();
    let result = apply(&bench.store, archive, None);
    assert!(
        matches!(result, Err(Error::Invalid(_))),
        "{what}: {result:?}"
    );
    bench.check_empty(what);
    assert_eq!(bench.guard(), guard, "{what}");
}

#[track_caller]
fn refused(cases: &[(&str, &[Entry])]) {
    for (what, entries) in cases {
        check_refused(what, &pack(entries));
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
        }
        Err(Error::Invalid(_)) => bench.check_empty(what),
        Err(error) => panic!("{what}: {error}"),
    }
    assert_eq!(bench.guard(), guard, "{what}");
}

fn below(directory: &[u8], name: &str) -> Vec<u8> {
    [directory, b"/", name.as_bytes()].concat()
}

#[test]
fn rejects_names_with_parent_components() {
    let target = format!("{CLIMB}/planted");
    let whiteout_there = format!("{CLIMB}/.wh.file");
    let opaque_there = format!("{CLIMB}/.wh..wh..opq");
    refused(&[
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
    ]);
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
    refused(&[
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
    ]);
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
    refused(&[
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
    ]);
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
    refused(&[
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
    ]);
}

#[test]
fn rejects_whiteouts_with_invalid_names() {
    refused(&[
        ("nothing", &[file(".wh.", "")]),
        ("this directory", &[file(".wh..", "")]),
        ("the parent", &[file(".wh...", "")]),
        (
            "the parent of a directory",
            &[dir("d/"), file("d/.wh...", "")],
        ),
        ("below a file", &[file("f", ""), whiteout("f/x")]),
        ("in the parent", &[file("../.wh.store", "")]),
    ]);
    contained(
        "metadata of AUFS",
        |_| vec![file(".wh..wh.x", "x"), file("d/.wh..wh.orph", "")],
        &["d dir 0755 0:0"],
    );
    contained(
        "more dots",
        |_| vec![file(".wh....", "")],
        &["... whiteout"],
    );
    contained("twice", |_| vec![file(".wh..wh", "")], &[".wh whiteout"]);
}

/// Overlayfs whiteouts are created only from whiteout names.
#[test]
fn rejects_devices_that_are_whiteouts() {
    refused(&[
        ("0:0", &[device(EntryType::Char, "gone", 0, 0)]),
        ("without numbers", &[entry(EntryType::Char, "gone")]),
        // `dev_t` keeps 12 bits of the major and 20 of the minor number: these would be truncated
        // to 0:0.
        ("4096:0", &[device(EntryType::Char, "gone", 4096, 0)]),
        ("0:1048576", &[device(EntryType::Char, "gone", 0, 1 << 20)]),
        (
            "4096:1048576",
            &[device(EntryType::Char, "gone", 4096, 1 << 20)],
        ),
    ]);
}

#[test]
fn rejects_overlayfs_attributes() {
    refused(&[
        ("opaque", &[dir("d/").xattr("trusted.overlay.opaque", "y")]),
        (
            "redirect",
            &[dir("d/").xattr("trusted.overlay.redirect", "/../../etc")],
        ),
        (
            "metacopy",
            &[file("f", "").xattr("trusted.overlay.metacopy", "")],
        ),
        (
            "origin",
            &[file("f", "").xattr("trusted.overlay.origin", "x")],
        ),
        (
            "whiteout by attribute",
            &[file("f", "").xattr("trusted.overlay.whiteout", "")],
        ),
        ("user", &[dir("d/").xattr("user.overlay.opaque", "y")]),
        (
            "on the root",
            &[dir("./").xattr("trusted.overlay.redirect", "/")],
        ),
        (
            "after others",
            &[file("f", "")
                .xattr("user.a", "b")
                .xattr("trusted.overlay.opaque", "y")],
        ),
    ]);
}

/// A value that the kernel rejects makes the archive invalid.
#[test]
fn rejects_invalid_attributes() {
    refused(&[
        (
            "a long name",
            &[file("f", "").xattr(&format!("user.{}", "n".repeat(300)), "x")],
        ),
        ("no name", &[file("f", "").xattr("user.", "x")]),
        ("NUL in the name", &[file("f", "").xattr("user.a\0b", "x")]),
        (
            "a large value",
            &[file("f", "").xattr("user.a", vec![b'x'; (64 << 10) + 1])],
        ),
        (
            "a broken access list",
            &[file("f", "").xattr("system.posix_acl_access", [2, 0, 0, 0, 9])],
        ),
        (
            "a broken capability",
            &[file("f", "").xattr("security.capability", "x")],
        ),
    ]);
}

/// Many attributes, each valid: file systems differ in how many they accept.
#[test]
fn bounds_the_number_of_attributes() {
    let bench = Bench::new();
    let guard = bench.guard();
    let mut bomb = file("f", "");
    for number in 0..1000 {
        bomb = bomb.xattr(&format!("user.{number}"), vec![b'x'; 1000]);
    }
    if apply(&bench.store, pack(&[bomb]).as_slice(), None).is_err() {
        bench.check_empty("refused");
    }
    bench.check_temporary("attributes");
    assert_eq!(bench.guard(), guard);
}

#[test]
fn rejects_owners_out_of_range() {
    refused(&[
        ("33 bits", &[file("f", "").owner(1 << 32, 0)]),
        ("33 bits, group", &[file("f", "").owner(0, 1 << 32)]),
        ("all bits", &[file("f", "").owner(u64::MAX, 0)]),
        ("a directory's", &[dir("d/").owner(1 << 40, 0)]),
        ("a link's", &[symlink("l", "x").owner(0, 1 << 40)]),
        ("extended header", &[file("f", "").pax("uid", "4294967296")]),
        (
            "extended header, group",
            &[file("f", "").pax("gid", "18446744073709551615")],
        ),
        (
            "no number",
            &[file("f", "").change(|header| header.as_old_mut().uid = *b"nobody\0\0")],
        ),
    ]);
}

/// chown(2) takes -1 as "do not change": a set-id file would keep root as its owner.
#[test]
fn rejects_the_owner_minus_one() {
    const NONE: u64 = u32::MAX as u64;
    refused(&[
        ("owner", &[file("f", "").owner(NONE, 0).mode(0o4755)]),
        ("group", &[file("f", "").owner(0, NONE).mode(0o2755)]),
        ("a directory's", &[dir("d/").owner(NONE, NONE)]),
        ("a link's", &[symlink("l", "x").owner(NONE, NONE)]),
        ("extended header", &[file("f", "").pax("uid", "4294967295")]),
    ]);
}

#[test]
fn rejects_malformed_numbers() {
    refused(&[
        (
            "size",
            &[file("f", "x").change(|header| header.as_old_mut().size = *b"not a number")],
        ),
        (
            "negative size",
            &[file("f", "x").change(|header| header.as_old_mut().size = [0xff; 12])],
        ),
        (
            "mode",
            &[file("f", "x").change(|header| header.as_old_mut().mode = *b"rwxrwxrw")],
        ),
        (
            "device",
            &[device(EntryType::Char, "c", 1, 3)
                .change(|header| header.as_gnu_mut().unwrap().dev_major = *b"12345678")],
        ),
    ]);
    let mut archive = pack(&[file("f", "x")]);
    archive[0] = b'g';
    check_refused("checksum", &archive);
}

#[test]
fn rejects_unknown_entry_types() {
    for kind in [b'V', b'M', b'D', b'N', b'A', b'?', b' ', 0xff] {
        check_refused(
            &format!("type {kind}"),
            &pack(&[entry(EntryType::new(kind), "f")]),
        );
    }
}

#[test]
fn rejects_oversized_headers() {
    let large = vec![b'x'; 5 << 20];
    refused(&[
        ("extended header", &[file("f", "").xattr("user.x", &large)]),
        ("long name", &[file(&large, "")]),
        ("long link", &[symlink("l", &large)]),
        ("whiteout with content", &[file(".wh.f", &large)]),
    ]);
    for kind in [
        EntryType::XHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XGlobalHeader,
    ] {
        let bench = Bench::new();
        let claims = pack_open(&[entry(kind, "header").size(1 << 40)]);
        let result = within(60, {
            let store = bench.store.clone();
            move || apply(&store, endless(claims, 1 << 40), None)
        });
        assert!(
            matches!(result, Err(Error::Invalid(_))),
            "{kind:?}: {result:?}"
        );
        bench.check_empty("endless header");
    }
}

#[test]
fn rejects_malformed_pax_headers() {
    let header = |content: &[u8]| {
        file("x", content).change(|header| header.set_entry_type(EntryType::XHeader))
    };
    for content in [
        &b"nonsense\n"[..],
        b"99 path=x\n",
        b"5 a=b\n",
        b"8 nokey\n",
        b"\xff\xff path=x\n",
        b"99999999999999999999999 path=x\n",
    ] {
        check_refused(
            &String::from_utf8_lossy(content),
            &pack(&[header(content), file("f", "x")]),
        );
    }
    refused(&[
        ("nothing follows", &[header(b"9 path=x\n")]),
        (
            "twice",
            &[header(b"9 path=x\n"), header(b"9 path=y\n"), file("f", "x")],
        ),
        (
            "key that is no text",
            &[header(b"7 \xff\xff=x\n"), file("f", "x")],
        ),
        (
            "size beyond the archive",
            &[file("f", "x").pax("size", "1000000")],
        ),
        (
            "size beyond all",
            &[file("f", "x").pax("size", u64::MAX.to_string())],
        ),
    ]);
}

/// Wherever a stream is truncated, a partial file must not be accepted as complete.
#[test]
fn rejects_truncated_archives() {
    let archive = pack(&[
        file("a", noise(700)),
        dir("d/").xattr("user.x", "y"),
        file("d/b", noise(2000)),
        symlink("l", "a"),
    ]);
    let bench = Bench::new();
    for length in (1..archive.len())
        .step_by(61)
        .chain((512..archive.len()).step_by(512))
    {
        let cut = &archive[..length];
        match apply(&bench.store, cut, None) {
            // Truncated between two entries, it is an archive without an end-of-archive marker.
            Ok(layer) => {
                assert_eq!(layer.diff_id, Digest::of(cut), "{length}");
                assert!(
                    length % 512 == 0 || length > archive.len() - 1024,
                    "{length}"
                );
                bench
                    .store
                    .staging
                    .discard(&bench.store.snapshots.path(&layer.diff_id))
                    .unwrap();
            }
            Err(Error::Invalid(_)) => {}
            Err(error) => panic!("{length}: {error}"),
        }
        // The expected digest detects truncation in any case.
        let result = apply(&bench.store, cut, Some(&Digest::of(&archive)));
        assert!(
            matches!(result, Err(Error::Invalid(_))),
            "{length}: {result:?}"
        );
        bench.check_empty("cut");
    }
}

#[test]
fn rejects_truncated_compressed_streams() {
    let archive = pack(&[file("a", noise(3000)), file("b", vec![b'x'; 50_000])]);
    for compressed in [gzip(&archive), zstandard(&archive)] {
        let bench = Bench::new();
        for length in (1..compressed.len())
            .step_by(37)
            .chain(compressed.len() - 12..compressed.len())
        {
            let result = apply(&bench.store, &compressed[..length], None);
            assert!(
                matches!(result, Err(Error::Invalid(_))),
                "{length} of {}: {result:?}",
                compressed.len()
            );
            bench.check_empty("cut");
        }
    }
}

#[test]
fn rejects_damaged_streams() {
    let archive = pack(&[file("a", noise(3000)), file("b", vec![b'x'; 50_000])]);
    for whole in [gzip(&archive), zstandard(&archive), archive.clone()] {
        let bench = Bench::new();
        for position in (0..whole.len()).step_by(whole.len() / 50) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x55;
            match apply(
                &bench.store,
                damaged.as_slice(),
                Some(&Digest::of(&archive)),
            ) {
                Err(Error::Invalid(_)) => bench.check_empty("damaged"),
                // Some bytes of the gzip header (such as its mtime) do not affect the content.
                Ok(layer) => {
                    assert!(position < 10, "{position}");
                    bench
                        .store
                        .staging
                        .discard(&bench.store.snapshots.path(&layer.diff_id))
                        .unwrap();
                }
                Err(error) => panic!("{position} of {}: {error}", whole.len()),
            }
        }
    }
}

#[test]
fn rejects_a_layer_with_another_diff_id() {
    let bench = Bench::new();
    let archive = pack(&[file("f", "x")]);
    for stream in [archive.clone(), gzip(&archive), zstandard(&archive)] {
        let text = match apply(&bench.store, stream.as_slice(), Some(&Digest::of(b"other"))) {
            Err(Error::Invalid(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(
            text.contains(Digest::of(b"other").as_str())
                && text.contains(Digest::of(&archive).as_str()),
            "{text}"
        );
        bench.check_empty("not expected");
    }
}

#[test]
fn rejects_unsupported_compressions() {
    let starts: [(&str, &[u8]); 2] = [
        ("bzip2", b"BZh91AY&SY\x01\x02\x03\x04"),
        ("xz", b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46"),
    ];
    for (name, start) in starts {
        let bench = Bench::new();
        let mut stream = start.to_vec();
        stream.extend_from_slice(&noise(5000));
        let results = [
            apply(&bench.store, stream.as_slice(), None).map(drop),
            load(&bench.store, stream.as_slice(), None).map(drop),
        ];
        for result in results {
            match result {
                Err(Error::Invalid(text)) => assert!(text.contains(name), "{text}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        bench.check_empty(name);
    }
}

/// A zstd frame may request a window of any size; the decoder must not allocate it.
#[test]
fn rejects_zstd_frames_with_huge_windows() {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff];
    frame.extend_from_slice(&noise(1000));
    check_refused("window", &frame);
}

/// Repeats a compressed stream.
struct Again {
    stream: Vec<u8>,
    times: usize,
    position: usize,
}

impl Read for Again {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.times == 0 {
            return Ok(0);
        }
        let rest = &self.stream[self.position..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count;
        if self.position == self.stream.len() {
            self.position = 0;
            self.times -= 1;
        }
        Ok(count)
    }
}

/// 5 GiB of zeros, compressed to some kilobytes.
fn bomb(compress: fn(&[u8]) -> Vec<u8>) -> Again {
    Again {
        stream: compress(&vec![0u8; 64 << 20]),
        times: 80,
        position: 0,
    }
}

#[test]
fn stops_a_decompression_bomb() {
    let mut stream = decompress(bomb(zstandard)).unwrap();
    let mut buffer = vec![0u8; 1 << 20];
    let mut total = 0u64;
    let error = loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("all {total} bytes came out"),
            Ok(count) => total += count as u64,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("decompression bomb"), "{error}");
    assert!(total < (4 << 30) + (16 << 20), "{total}");
}

/// Fast gzip does not make bombs: its ratio stays below the limit, which real layers reach.
#[test]
fn a_refused_decompression_bomb_leaves_nothing() {
    let bench = Bench::new();
    let result = apply(&bench.store, bomb(zstandard), None);
    assert!(
        matches!(&result, Err(Error::Invalid(text)) if text.contains("decompression bomb")),
        "{result:?}"
    );
    bench.check_empty("bomb");
}

#[test]
fn rejects_malformed_sparse_files() {
    const HUGE: u64 = 1 << 62;
    let content = noise(1024);
    #[allow(clippy::type_complexity, reason = "a table")]
    let cases: &[(&str, &[(u64, u64)], u64)] = &[
        ("overlapping", &[(0, 512), (256, 512)], 1024),
        ("out of order", &[(4096, 512), (0, 512)], 8192),
        ("larger than said", &[(0, 512), (4096, 512)], 1000),
        ("smaller than said", &[(0, 512), (4096, 512)], 9000),
        ("more than there is", &[(0, 512), (4096, 5120)], 9216),
        ("less than there is", &[(0, 512)], 512),
        ("beyond all numbers", &[(u64::MAX - 100, 1024)], 1024),
        ("not aligned", &[(0, 100), (4096, 924)], 5020),
    ];
    for (what, parts, size) in cases {
        check_refused(what, &ended(sparse("f", parts, &content, *size)));
    }
    check_refused(
        "cut short",
        &sparse("f", &[(0, 512), (4096, 4096)], &noise(4608), 8192)[..2048],
    );
    // Nothing to write, but a size that would take years to count to.
    let bench = Bench::new();
    let store = bench.store.clone();
    let archive = ended(sparse("f", &[(HUGE, 0)], b"", HUGE));
    let result = within(30, move || apply(&store, archive.as_slice(), None));
    assert!(result.is_err(), "{result:?}");
    bench.check_empty("huge");
}

/// The pieces of a sparse file are in a list; removing them one by one from its front would take
/// hours.
#[test]
fn unpacks_a_sparse_file_of_many_pieces_quickly() {
    let parts: Vec<(u64, u64)> = (0..150_000).map(|part| (part * 1024, 512)).collect();
    let content = vec![b'x'; 150_000 * 512];
    let archive = ended(sparse("f", &parts, &content, 149_999 * 1024 + 512));
    let bench = Bench::new();
    let store = bench.store.clone();
    let result = within(60, move || apply(&store, archive.as_slice(), None));
    assert!(
        matches!(result, Ok(_) | Err(Error::Invalid(_))),
        "{result:?}"
    );
    bench.check_temporary("many parts");
}

/// While layers are unpacked, another thread repeatedly exchanges their directory for a link.
#[test]
fn concurrent_exchanges_of_directories_do_not_lead_outside() {
    let bench = Bench::new();
    let guard = bench.guard();
    let mut entries = vec![dir("d/"), dir("d/e/"), dir("x/")];
    for number in 0..100 {
        entries.push(file(format!("d/file{number}"), "planted").mode(0o4777));
        entries.push(file(format!("x/{number}"), "x"));
        entries.push(file("d/file", "planted"));
        entries.push(dir("d/directory/").mode(0o777).owner(1, 1));
        entries.push(file(format!("d/e/{number}"), "x"));
        entries.push(symlink(format!("d/l{number}"), "x"));
        entries.push(hard_link(format!("d/h{number}"), format!("x/{number}")));
        entries.push(hard_link(format!("x/h{number}"), "d/file"));
        entries.push(whiteout(&format!("d/w{number}")));
        entries.push(file("d/directory/.wh..wh..opq", ""));
        entries.push(dir(format!("d/n{number}/m/")));
    }
    let done = AtomicBool::new(false);
    let archive = pack(&entries);
    std::thread::scope(|scope| {
        let racer = scope.spawn(|| {
            let (mut swaps, start) = (0u64, Instant::now());
            while !done.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(120) {
                swaps += swap(&bench.base);
            }
            swaps
        });
        for _ in 0..60 {
            // Unpacking may fail; only its effects outside matter.
            if let Ok(layer) = apply(&bench.store, archive.as_slice(), None) {
                let _ = bench
                    .store
                    .staging
                    .discard(&bench.store.snapshots.path(&layer.diff_id));
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(
            racer.join().unwrap() > 0,
            "the other thread never exchanged a directory"
        );
    });
    assert_eq!(bench.guard(), guard);
}

/// Repeatedly exchanges `d` of every layer being unpacked for a link to the outside.
fn swap(base: &Path) -> u64 {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let decoy = base.join("decoy");
    if !fs::metadata(&decoy).is_ok_and(|decoy| decoy.is_symlink()) {
        // It is the directory itself, which may still be written to: then the next time.
        if fs::remove_tree(&decoy).is_err()
            || std::os::unix::fs::symlink(base.join("outside"), &decoy).is_err()
        {
            return 0;
        }
    }
    let mut swaps = 0;
    for name in names(&base.join("store/tmp")) {
        let victim = base.join("store/tmp").join(name).join("fs/d");
        if renameat_with(CWD, &victim, CWD, &decoy, RenameFlags::EXCHANGE).is_ok() {
            swaps += 1;
            std::thread::yield_now();
            let _ = renameat_with(CWD, &victim, CWD, &decoy, RenameFlags::EXCHANGE);
        }
    }
    swaps
}
