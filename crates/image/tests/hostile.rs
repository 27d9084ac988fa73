//! Layers and image archives from people who mean harm: each is refused, or is unpacked to what it may be, and either
//! way nothing half-made stays behind and nothing outside the store changes.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::images::{
    CONFIG, INDEX, Image, LAYER, MANIFEST, blob, blob_name, bytes, config, descriptor, docker_archive, index, index_json, manifest_json,
    oci_archive,
};
use common::{
    Bench, Entry, device, dir, ended, entry, fifo, file, gzip, hard_link, listing, names, noise, pack, pack_open, sparse, symlink, whiteout,
    within, zstandard,
};
use serde_json::{Value, json};
use tar::EntryType;
use whelk_image::archive::load;
use whelk_image::compression::decompress;
use whelk_image::{Digest, Error};
use whelk_sys::fs;

/// From the root of a layer that is being unpacked to the directory that nothing may touch.
const CLIMB: &str = "../../../../outside";

/// A layer that must be refused for what it is.
#[track_caller]
fn check_refused(what: &str, archive: &[u8]) {
    let bench = Bench::new();
    let guard = bench.guard();
    let result = bench.store.put_layer(archive, None);
    assert!(matches!(result, Err(Error::Invalid(_))), "{what}: {result:?}");
    bench.check_empty(what);
    assert_eq!(bench.guard(), guard, "{what}");
}

#[track_caller]
fn refused(cases: &[(&str, &[Entry])]) {
    for (what, entries) in cases {
        check_refused(what, &pack(entries));
    }
}

/// A layer that may be refused, but if it is not, becomes exactly this. `entries` gets the directory outside.
#[track_caller]
fn contained(what: &str, entries: fn(&[u8]) -> Vec<Entry>, expected: &[&str]) {
    let bench = Bench::new();
    let outside = bench.outside();
    let archive = pack(&entries(outside.as_os_str().as_bytes()));
    let guard = bench.guard();
    match bench.store.put_layer(archive.as_slice(), None) {
        Ok(layer) => {
            let lines = listing(&bench.store.layer_files(&layer.diff_id));
            let lines: Vec<String> = lines.iter().map(|line| line.replace(outside.to_str().unwrap(), "OUTSIDE")).collect();
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
fn names_that_climb() {
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
        ("staying inside", &[dir("a/"), file("a/../x", "x")]),
        ("at the end", &[dir("a/b/..")]),
        ("alone", &[dir("..")]),
        ("by an extended header", &[file("f", "x").pax("path", &target)]),
        ("with a dot in front", &[file(format!("./{target}"), "x")]),
        ("long", &[file(format!("{}{target}", "a/../".repeat(40)), "x")]),
    ]);
}

#[test]
fn names_from_the_root_of_the_host() {
    let bench = Bench::new();
    let guard = bench.guard();
    let planted = bench.outside().join("planted");
    let archive = pack(&[file(planted.as_os_str().as_bytes(), "x")]);
    match bench.store.put_layer(archive.as_slice(), None) {
        Ok(layer) => {
            let inside = bench.store.layer_files(&layer.diff_id).join(planted.strip_prefix("/").unwrap());
            assert_eq!(fs::read(inside).unwrap(), b"x", "where it belongs if it is not refused");
        }
        Err(Error::Invalid(_)) => bench.check_empty("absolute"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(bench.guard(), guard);
}

#[test]
fn names_that_are_none() {
    refused(&[
        ("empty", &[file("", "x")]),
        ("the root as a file", &[file("./", "x")]),
        ("the root as a link", &[symlink(".", "/")]),
        ("the root as a pipe", &[fifo("./")]),
        ("NUL", &[file("f", "x").pax("path", b"a\0b")]),
        ("NUL in a parent", &[file("f", "x").pax("path", b"a\0b/c")]),
        ("a part that is too long", &[file("n".repeat(256), "x")]),
        ("a parent that is too long", &[file("n".repeat(256) + "/f", "x")]),
        ("too long in all", &[file("d/".repeat(2100) + "f", "x")]),
    ]);
}

#[test]
fn writing_through_links() {
    let through: &[(&str, fn(&[u8]) -> Vec<Entry>)] = &[
        ("file", |outside| vec![symlink("l", outside), file("l/planted", "x")]),
        ("replacing a file", |outside| vec![symlink("l", outside), file("l/file", "x")]),
        ("directory", |outside| vec![symlink("l", outside), dir("l/planted/")]),
        ("describing a directory", |outside| vec![symlink("l", outside), dir("l/directory/").mode(0o777)]),
        ("symbolic link", |outside| vec![symlink("l", outside), symlink("l/planted", "x")]),
        ("pipe", |outside| vec![symlink("l", outside), fifo("l/planted")]),
        ("hard link", |outside| vec![symlink("l", outside), file("f", "x"), hard_link("l/planted", "f")]),
        ("whiteout", |outside| vec![symlink("l", outside), whiteout("l/file")]),
        ("whiteout of a directory", |outside| vec![symlink("l", outside), whiteout("l/directory")]),
        ("opaque mark", |outside| vec![symlink("l", outside), file("l/.wh..wh..opq", "")]),
        ("bookkeeping of AUFS", |outside| vec![symlink("l", outside), file("l/.wh..wh.aufs", "")]),
        ("a deeper one", |outside| vec![symlink("l", outside), file("l/directory/file", "x")]),
        ("a missing parent", |outside| vec![symlink("l", outside), file("l/a/b/c", "x")]),
        ("two links", |outside| vec![symlink("m", outside), symlink("l", "m"), file("l/planted", "x")]),
        ("a dangling link", |outside| vec![symlink("l", below(outside, "planted")), file("l/x", "x")]),
        ("the host's root", |_| vec![symlink("l", "/"), file("l/whelk-planted", "x")]),
        ("a relative link", |_| vec![symlink("a/b/c/d/l", "../../../.."), file("a/b/c/d/l/x", "x")]),
        ("a link to a directory of the layer", |_| vec![dir("d/"), symlink("l", "d"), file("l/x", "x")]),
        ("a link to itself", |_| vec![symlink("l", "l"), file("l/x", "x")]),
        ("a link to the process", |_| vec![symlink("l", "/proc/self/cwd"), file("l/x", "x")]),
        ("a link with another name", |outside| vec![symlink("l", outside), hard_link("m", "l"), file("m/planted", "x")]),
    ];
    for (what, entries) in through {
        let bench = Bench::new();
        let guard = bench.guard();
        let archive = pack(&entries(bench.outside().as_os_str().as_bytes()));
        let result = bench.store.put_layer(archive.as_slice(), None);
        assert!(matches!(result, Err(Error::Invalid(_))), "{what}: {result:?}");
        bench.check_empty(what);
        assert_eq!(bench.guard(), guard, "{what}");
    }
    assert!(!fs::exists("/whelk-planted"));
}

#[test]
fn links_that_climb_above_the_root() {
    let there = format!("{CLIMB}/file");
    refused(&[
        ("at the top", &[symlink("l", &there)]),
        ("one step", &[symlink("l", "..")]),
        ("from below", &[symlink("a/b/l", "../../..")]),
        ("down and up", &[symlink("a/l", "x/y/../../../..")]),
        ("by an extended header", &[symlink("l", "f").pax("linkpath", &there)]),
        ("long", &[symlink("l", format!("{}{there}", "x/../".repeat(40)))]),
        ("empty", &[symlink("l", "")]),
        ("empty in an extended header", &[symlink("l", "f").pax("linkpath", "")]),
        ("NUL", &[symlink("l", "f").pax("linkpath", b"a\0b")]),
        ("longer than the kernel takes", &[symlink("l", "x".repeat(5000))]),
    ]);
}

/// A name that was a directory, and is a link the next time it is used.
#[test]
fn directories_that_become_links() {
    let swaps: &[(&str, fn(&[u8]) -> Vec<Entry>)] = &[
        ("directory", |o| vec![dir("d/"), file("d/a", "x"), symlink("d", o), file("d/planted", "x")]),
        ("without an entry", |o| vec![file("d/a", "x"), symlink("d", o), file("d/planted", "x")]),
        ("parent", |o| vec![file("d/e/a", "x"), symlink("d", o), file("d/directory/planted", "x")]),
        ("below", |o| vec![file("d/e/a", "x"), symlink("d/e", o), file("d/e/planted", "x")]),
        ("twice", |o| vec![dir("d/"), symlink("d", o), dir("d/"), file("d/a", ""), symlink("d", o), file("d/planted", "x")]),
        ("for a whiteout", |o| vec![dir("d/"), file("d/a", "x"), symlink("d", o), whiteout("d/file")]),
        ("for a hard link", |o| vec![file("d/file", "x"), symlink("d", o), hard_link("f", "d/file")]),
        ("for a hard link from it", |o| vec![file("d/a", "x"), file("f", "x"), symlink("d", o), hard_link("d/planted", "f")]),
    ];
    for (what, entries) in swaps {
        let bench = Bench::new();
        let guard = bench.guard();
        let archive = pack(&entries(bench.outside().as_os_str().as_bytes()));
        let result = bench.store.put_layer(archive.as_slice(), None);
        assert!(matches!(result, Err(Error::Invalid(_))), "{what}: {result:?}");
        bench.check_empty(what);
        assert_eq!(bench.guard(), guard, "{what}");
    }
}

/// What replaces a link replaces the link, never what it points to.
#[test]
fn links_that_are_replaced() {
    contained("file", |o| vec![symlink("l", below(o, "file")), file("l", "x")], &["l file 0644 0:0 x"]);
    contained("new file", |o| vec![symlink("l", below(o, "planted")), file("l", "x")], &["l file 0644 0:0 x"]);
    contained("directory", |o| vec![symlink("l", o), dir("l/").mode(0o777)], &["l dir 0777 0:0 opaque"]);
    contained("pipe", |o| vec![symlink("l", below(o, "file")), fifo("l").mode(0o666)], &["l fifo 0666 0:0"]);
    contained("owner", |o| vec![symlink("l", below(o, "file")).owner(5, 5).mode(0o777)], &["l link 5:5 OUTSIDE/file"]);
    contained("whiteout", |o| vec![symlink("l", o), whiteout("l")], &["l link 0:0 OUTSIDE"]);
    contained("whiteout in front", |o| vec![whiteout("l"), symlink("l", o)], &["l link 0:0 OUTSIDE"]);
    let hard = &["h file 0644 0:0 x", "l link 0:0 OUTSIDE/file"];
    contained("other name", |o| vec![symlink("l", below(o, "file")), hard_link("h", "l"), file("h", "x")], hard);
    let tree = &["d file 0644 0:0 x"];
    contained("tree with links", |o| vec![dir("d/"), symlink("d/l", o), symlink("d/m", below(o, "directory")), file("d", "x")], tree);
}

#[test]
fn hard_links_to_elsewhere() {
    refused(&[
        ("absolute", &[hard_link("h", "/etc/passwd")]),
        ("climbing", &[hard_link("h", format!("{CLIMB}/file"))]),
        ("climbing in the middle", &[dir("d/"), hard_link("h", "d/../../f")]),
        ("by an extended header", &[file("f", ""), hard_link("h", "f").pax("linkpath", "/etc/passwd")]),
        ("through a link", &[symlink("l", "/etc"), hard_link("h", "l/passwd")]),
        ("through a link to the layer", &[file("d/f", ""), symlink("l", "d"), hard_link("h", "l/f")]),
        ("through a file", &[file("f", ""), hard_link("h", "f/x")]),
        ("missing", &[hard_link("h", "nowhere")]),
        ("in a missing directory", &[hard_link("h", "no/where")]),
        ("later in the archive", &[hard_link("h", "f"), file("f", "")]),
        ("itself", &[file("h", "x"), hard_link("h", "h")]),
        ("without a target", &[hard_link("h", "")]),
        ("the root", &[hard_link("h", "./")]),
        ("a directory", &[dir("d/"), hard_link("h", "d")]),
        // It would be one more whiteout, without the name of one.
        ("a whiteout", &[whiteout("gone"), hard_link("h", "gone")]),
    ]);
}

#[test]
fn whiteouts_without_a_proper_name() {
    refused(&[
        ("nothing", &[file(".wh.", "")]),
        ("this directory", &[file(".wh..", "")]),
        ("the parent", &[file(".wh...", "")]),
        ("the parent of a directory", &[dir("d/"), file("d/.wh...", "")]),
        ("below a file", &[file("f", ""), whiteout("f/x")]),
        ("in the parent", &[file("../.wh.store", "")]),
    ]);
    contained("bookkeeping of AUFS", |_| vec![file(".wh..wh.x", "x"), file("d/.wh..wh.orph", "")], &["d dir 0755 0:0"]);
    contained("more dots", |_| vec![file(".wh....", "")], &["... whiteout"]);
    contained("twice", |_| vec![file(".wh..wh", "")], &[".wh whiteout"]);
}

/// Overlay's whiteouts are made from the archive's, and from nothing else.
#[test]
fn whiteouts_as_devices() {
    refused(&[
        ("0:0", &[device(EntryType::Char, "gone", 0, 0)]),
        ("without numbers", &[entry(EntryType::Char, "gone")]),
        // The kernel keeps 12 bits of a major number and 20 of a minor one: these would become 0:0.
        ("4096:0", &[device(EntryType::Char, "gone", 4096, 0)]),
        ("0:1048576", &[device(EntryType::Char, "gone", 0, 1 << 20)]),
        ("4096:1048576", &[device(EntryType::Char, "gone", 4096, 1 << 20)]),
    ]);
}

#[test]
fn attributes_of_overlay() {
    refused(&[
        ("opaque", &[dir("d/").xattr("trusted.overlay.opaque", "y")]),
        ("redirect", &[dir("d/").xattr("trusted.overlay.redirect", "/../../etc")]),
        ("metacopy", &[file("f", "").xattr("trusted.overlay.metacopy", "")]),
        ("origin", &[file("f", "").xattr("trusted.overlay.origin", "x")]),
        ("whiteout by attribute", &[file("f", "").xattr("trusted.overlay.whiteout", "")]),
        ("user", &[dir("d/").xattr("user.overlay.opaque", "y")]),
        ("on the root", &[dir("./").xattr("trusted.overlay.redirect", "/")]),
        ("after others", &[file("f", "").xattr("user.a", "b").xattr("trusted.overlay.opaque", "y")]),
    ]);
}

/// What the kernel does not take is the archive's fault.
#[test]
fn attributes_that_cannot_be() {
    refused(&[
        ("a long name", &[file("f", "").xattr(&format!("user.{}", "n".repeat(300)), "x")]),
        ("no name", &[file("f", "").xattr("user.", "x")]),
        ("NUL in the name", &[file("f", "").xattr("user.a\0b", "x")]),
        ("a large value", &[file("f", "").xattr("user.a", vec![b'x'; (64 << 10) + 1])]),
        ("a broken access list", &[file("f", "").xattr("system.posix_acl_access", [2, 0, 0, 0, 9])]),
        ("a broken capability", &[file("f", "").xattr("security.capability", "x")]),
    ]);
}

/// Many attributes, each allowed: file systems differ in how many they take.
#[test]
fn a_bomb_of_attributes() {
    let bench = Bench::new();
    let guard = bench.guard();
    let mut bomb = file("f", "");
    for number in 0..1000 {
        bomb = bomb.xattr(&format!("user.{number}"), vec![b'x'; 1000]);
    }
    if bench.store.put_layer(pack(&[bomb]).as_slice(), None).is_err() {
        bench.check_empty("refused");
    }
    bench.check_temporary("attributes");
    assert_eq!(bench.guard(), guard);
}

#[test]
fn owners_out_of_range() {
    refused(&[
        ("33 bits", &[file("f", "").owner(1 << 32, 0)]),
        ("33 bits, group", &[file("f", "").owner(0, 1 << 32)]),
        ("all bits", &[file("f", "").owner(u64::MAX, 0)]),
        ("a directory's", &[dir("d/").owner(1 << 40, 0)]),
        ("a link's", &[symlink("l", "x").owner(0, 1 << 40)]),
        ("extended header", &[file("f", "").pax("uid", "4294967296")]),
        ("extended header, group", &[file("f", "").pax("gid", "18446744073709551615")]),
        ("no number", &[file("f", "").change(|header| header.as_old_mut().uid = *b"nobody\0\0")]),
    ]);
}

/// To chown(2) the number -1 means "leave it": a set-id file would stay root's.
#[test]
fn the_owner_that_is_none() {
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
fn numbers_that_are_none() {
    refused(&[
        ("size", &[file("f", "x").change(|header| header.as_old_mut().size = *b"not a number")]),
        ("negative size", &[file("f", "x").change(|header| header.as_old_mut().size = [0xff; 12])]),
        ("mode", &[file("f", "x").change(|header| header.as_old_mut().mode = *b"rwxrwxrw")]),
        ("device", &[device(EntryType::Char, "c", 1, 3).change(|header| header.as_gnu_mut().unwrap().dev_major = *b"12345678")]),
    ]);
    let mut archive = pack(&[file("f", "x")]);
    archive[0] = b'g';
    check_refused("checksum", &archive);
}

#[test]
fn types_that_nobody_has() {
    for kind in [b'V', b'M', b'D', b'N', b'A', b'?', b' ', 0xff] {
        check_refused(&format!("type {kind}"), &pack(&[entry(EntryType::new(kind), "f")]));
    }
}

/// Zeros without end, after a beginning.
fn endless(beginning: Vec<u8>, length: u64) -> impl Read + Send {
    io::Cursor::new(beginning).chain(io::repeat(0).take(length))
}

#[test]
fn headers_that_fill_memory() {
    let large = vec![b'x'; 5 << 20];
    refused(&[
        ("extended header", &[file("f", "").xattr("user.x", &large)]),
        ("long name", &[file(&large, "")]),
        ("long link", &[symlink("l", &large)]),
        ("whiteout with content", &[file(".wh.f", &large)]),
    ]);
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::GNULongLink, EntryType::XGlobalHeader] {
        let bench = Bench::new();
        let claims = pack_open(&[entry(kind, "header").size(1 << 40)]);
        let result = within(60, {
            let store = bench.store.clone();
            move || store.put_layer(endless(claims, 1 << 40), None)
        });
        assert!(matches!(result, Err(Error::Invalid(_))), "{kind:?}: {result:?}");
        bench.check_empty("endless header");
    }
}

#[test]
fn extended_headers_that_are_malformed() {
    let header = |content: &[u8]| file("x", content).change(|header| header.set_entry_type(EntryType::XHeader));
    for content in [&b"nonsense\n"[..], b"99 path=x\n", b"5 a=b\n", b"8 nokey\n", b"\xff\xff path=x\n", b"99999999999999999999999 path=x\n"] {
        check_refused(&String::from_utf8_lossy(content), &pack(&[header(content), file("f", "x")]));
    }
    refused(&[
        ("nothing follows", &[header(b"9 path=x\n")]),
        ("twice", &[header(b"9 path=x\n"), header(b"9 path=y\n"), file("f", "x")]),
        ("key that is no text", &[header(b"7 \xff\xff=x\n"), file("f", "x")]),
        ("size beyond the archive", &[file("f", "x").pax("size", "1000000")]),
        ("size beyond all", &[file("f", "x").pax("size", u64::MAX.to_string())]),
    ]);
}

/// Wherever a stream breaks off, a half of a file is never taken for the whole.
#[test]
fn archives_that_break_off() {
    let archive = pack(&[file("a", noise(700)), dir("d/").xattr("user.x", "y"), file("d/b", noise(2000)), symlink("l", "a")]);
    let bench = Bench::new();
    for length in (1..archive.len()).step_by(61).chain((512..archive.len()).step_by(512)) {
        let cut = &archive[..length];
        match bench.store.put_layer(cut, None) {
            // What stops between two entries is an archive without an end mark.
            Ok(layer) => {
                assert_eq!(layer.diff_id, Digest::of(cut), "{length}");
                assert!(length % 512 == 0 || length > archive.len() - 1024, "{length}");
                bench.store.remove_layer(&layer.diff_id).unwrap();
            }
            Err(Error::Invalid(_)) => {}
            Err(error) => panic!("{length}: {error}"),
        }
        // Whoever knows what is to come notices in any case.
        let result = bench.store.put_layer(cut, Some(&Digest::of(&archive)));
        assert!(matches!(result, Err(Error::Invalid(_))), "{length}: {result:?}");
        bench.check_empty("cut");
    }
}

#[test]
fn compressed_streams_that_break_off() {
    let archive = pack(&[file("a", noise(3000)), file("b", vec![b'x'; 50_000])]);
    for compressed in [gzip(&archive), zstandard(&archive)] {
        let bench = Bench::new();
        for length in (1..compressed.len()).step_by(37).chain(compressed.len() - 12..compressed.len()) {
            let result = bench.store.put_layer(&compressed[..length], None);
            assert!(matches!(result, Err(Error::Invalid(_))), "{length} of {}: {result:?}", compressed.len());
            bench.check_empty("cut");
        }
    }
}

#[test]
fn streams_with_damage() {
    let archive = pack(&[file("a", noise(3000)), file("b", vec![b'x'; 50_000])]);
    for whole in [gzip(&archive), zstandard(&archive), archive.clone()] {
        let bench = Bench::new();
        for position in (0..whole.len()).step_by(whole.len() / 50) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x55;
            match bench.store.put_layer(damaged.as_slice(), Some(&Digest::of(&archive))) {
                Err(Error::Invalid(_)) => bench.check_empty("damaged"),
                // A byte of gzip's header (its time, say) says nothing about the content.
                Ok(layer) => {
                    assert!(position < 10, "{position}");
                    bench.store.remove_layer(&layer.diff_id).unwrap();
                }
                Err(error) => panic!("{position} of {}: {error}", whole.len()),
            }
        }
    }
}

#[test]
fn a_layer_that_is_not_the_expected_one() {
    let bench = Bench::new();
    let archive = pack(&[file("f", "x")]);
    for stream in [archive.clone(), gzip(&archive), zstandard(&archive)] {
        let text = match bench.store.put_layer(stream.as_slice(), Some(&Digest::of(b"other"))) {
            Err(Error::Invalid(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(text.contains(Digest::of(b"other").as_str()) && text.contains(Digest::of(&archive).as_str()), "{text}");
        bench.check_empty("not expected");
    }
}

#[test]
fn compressions_that_are_not_read() {
    let starts: [(&str, &[u8]); 2] = [("bzip2", b"BZh91AY&SY\x01\x02\x03\x04"), ("xz", b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46")];
    for (name, start) in starts {
        let bench = Bench::new();
        let mut stream = start.to_vec();
        stream.extend_from_slice(&noise(5000));
        let results = [bench.store.put_layer(stream.as_slice(), None).map(drop), load(&bench.store, stream.as_slice()).map(drop)];
        for result in results {
            match result {
                Err(Error::Invalid(text)) => assert!(text.contains(name), "{text}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        bench.check_empty(name);
    }
}

/// A frame may ask for a window of any size; the decoder must not make one.
#[test]
fn zstd_frames_that_ask_for_all_memory() {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff];
    frame.extend_from_slice(&noise(1000));
    check_refused("window", &frame);
}

/// A compressed stream over and over.
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

/// 5 GiB of zeros in some kilobytes.
fn bomb(compress: fn(&[u8]) -> Vec<u8>) -> Again {
    Again { stream: compress(&vec![0u8; 64 << 20]), times: 80, position: 0 }
}

#[test]
fn a_decompression_bomb_ends() {
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

#[test]
#[ignore = "hashes twice 4 GiB, which takes a while"]
fn a_decompression_bomb_leaves_nothing() {
    for compress in [gzip, zstandard] {
        let bench = Bench::new();
        let result = bench.store.put_layer(bomb(compress), None);
        assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
        bench.check_empty("bomb");
    }
}

#[test]
fn sparse_files_that_are_malformed() {
    const HUGE: u64 = 1 << 62;
    let content = noise(1024);
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
    check_refused("cut short", &sparse("f", &[(0, 512), (4096, 4096)], &noise(4608), 8192)[..2048]);
    // Nothing to write, but a size that takes years to count to.
    let bench = Bench::new();
    let store = bench.store.clone();
    let archive = ended(sparse("f", &[(HUGE, 0)], b"", HUGE));
    let result = within(30, move || store.put_layer(archive.as_slice(), None));
    assert!(result.is_err(), "{result:?}");
    bench.check_empty("huge");
}

/// The parts of a sparse file are kept in a list; taking them one by one from its front takes hours.
#[test]
fn a_sparse_file_of_very_many_parts_ends() {
    let parts: Vec<(u64, u64)> = (0..150_000).map(|part| (part * 1024, 512)).collect();
    let content = vec![b'x'; 150_000 * 512];
    let archive = ended(sparse("f", &parts, &content, 149_999 * 1024 + 512));
    let bench = Bench::new();
    let store = bench.store.clone();
    let result = within(60, move || store.put_layer(archive.as_slice(), None));
    assert!(matches!(result, Ok(_) | Err(Error::Invalid(_))), "{result:?}");
    bench.check_temporary("many parts");
}

/// While layers are unpacked, somebody swaps their directory for a link, again and again.
#[test]
fn a_racer_in_the_scratch_directory() {
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
            // Whether it works does not matter: only what it does.
            if let Ok(layer) = bench.store.put_layer(archive.as_slice(), None) {
                let _ = bench.store.remove_layer(&layer.diff_id);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(racer.join().unwrap() > 0, "the racer never got a hold");
    });
    assert_eq!(bench.guard(), guard);
}

/// Exchanges `d` of every layer that is being unpacked for a link to the outside, and back.
fn swap(base: &Path) -> u64 {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let decoy = base.join("decoy");
    if !fs::metadata(&decoy).is_ok_and(|decoy| decoy.is_symlink()) {
        // It is the directory itself, which may still be written to: then the next time.
        if fs::remove_tree(&decoy).is_err() || std::os::unix::fs::symlink(base.join("outside"), &decoy).is_err() {
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

/// An image archive that must be refused before anything of it gets into the store.
#[track_caller]
fn check_load(what: &str, archive: &[u8]) {
    let bench = Bench::new();
    let guard = bench.guard();
    let result = load(&bench.store, archive);
    assert!(matches!(result, Err(Error::Invalid(_))), "{what}: {result:?}");
    bench.check_empty(what);
    assert_eq!(bench.guard(), guard, "{what}");
}

#[track_caller]
fn load_refused(cases: &[(&str, &[Entry])]) {
    for (what, entries) in cases {
        check_load(what, &pack(entries));
    }
}

fn layer() -> Vec<u8> {
    pack(&[file("f", "content of the layer")])
}

fn image() -> Image {
    Image::new("good", &[layer()])
}

#[test]
fn archives_that_are_none() {
    check_load("nothing", b"");
    check_load("a few words", b"this is not an archive");
    check_load("noise", &noise(10_000));
    let mut stream = noise(10_000);
    stream[..2].copy_from_slice(&[0x1f, 0x8b]);
    check_load("noise after gzip's magic", &stream);
    stream[..4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
    check_load("noise after zstd's magic", &stream);
    check_load("empty", &[0; 10_240]);
    check_load("gzip of nothing", &gzip(b""));
    load_refused(&[
        ("no manifest", &[blob(&image().config), blob(&layer())]),
        ("a root file system", &[dir("etc/"), file("etc/passwd", "root:x:0:0")]),
        ("a directory as the manifest", &[dir("manifest.json")]),
    ]);
    let whole = pack(&docker_archive(&[(&image(), &["name:1"])]));
    for length in [1, 100, 512, 700, 1024, 2000] {
        check_load(&format!("{length} bytes of an archive"), &whole[..length]);
        check_load(&format!("{length} bytes of a compressed archive"), &gzip(&whole)[..length.min(60)]);
    }
}

#[test]
fn manifests_that_are_malformed() {
    let deep = "[".repeat(100_000);
    let large = format!("[{}]", " ".repeat(9 << 20));
    load_refused(&[
        ("no JSON", &[file("manifest.json", "nonsense")]),
        ("empty", &[file("manifest.json", "")]),
        ("an object", &[file("manifest.json", "{}")]),
        ("null", &[file("manifest.json", "null")]),
        ("without a configuration", &[file("manifest.json", "[{}]")]),
        ("numbers", &[file("manifest.json", r#"[{"Config": 1, "Layers": [2]}]"#)]),
        ("deeply nested", &[file("manifest.json", &deep)]),
        ("deeply nested index", &[file("index.json", &deep)]),
        ("larger than anybody needs", &[file("manifest.json", &large)]),
        ("a large index", &[file("index.json", &large)]),
        ("cut short", &[file("manifest.json", &bytes(&json!([{"Config": "c"}]))[..10])]),
        ("a link to itself", &[symlink("manifest.json", "manifest.json")]),
        ("a link out of the archive", &[symlink("manifest.json", "/etc/passwd")]),
    ]);
}

#[test]
fn parts_that_are_missing_or_elsewhere() {
    let image = image();
    let (config, layer) = (blob_name(&image.config), blob_name(&image.layers[0]));
    let with = |manifest: Entry| vec![blob(&image.config), blob(&image.layers[0]), manifest];
    let mut climbing = with(manifest_json(&config, &[&layer], &[]));
    climbing.insert(0, file(format!("{CLIMB}/planted"), "x"));
    load_refused(&[
        ("configuration", &[blob(&image.layers[0]), manifest_json(&config, &[&layer], &[])]),
        ("layer", &[blob(&image.config), manifest_json(&config, &[&layer], &[])]),
        ("absolute configuration", &with(manifest_json("/etc/passwd", &[&layer], &[]))),
        ("climbing configuration", &with(manifest_json("../../etc/passwd", &[&layer], &[]))),
        ("absolute layer", &with(manifest_json(&config, &["/etc/passwd"], &[]))),
        ("climbing layer", &with(manifest_json(&config, &[&format!("{CLIMB}/file")], &[]))),
        ("empty names", &with(manifest_json("", &[""], &[]))),
        ("a directory as the layer", &[blob(&image.config), dir("d/"), manifest_json(&config, &["d"], &[])]),
        ("absolute entry", &[file("/manifest.json", "[]")]),
        ("climbing entry", &[file("../manifest.json", "[]")]),
        ("climbing entry in the middle", &[file("a/../../manifest.json", "[]")]),
        ("climbing entry with an honest manifest", &climbing),
    ]);
}

#[test]
fn links_between_parts() {
    let image = image();
    let config = blob_name(&image.config);
    let with = |links: &[Entry]| {
        let mut entries = vec![blob(&image.config), blob(&image.layers[0])];
        entries.extend_from_slice(links);
        entries.push(manifest_json(&config, &["a/layer.tar"], &[]));
        entries
    };
    load_refused(&[
        ("absolute", &with(&[symlink("a/layer.tar", "/etc/passwd")])),
        ("climbing", &with(&[symlink("a/layer.tar", "../../../etc/passwd")])),
        ("climbing from the top", &with(&[symlink("a/layer.tar", "../b"), symlink("b", "../../../etc/passwd")])),
        ("absolute hard link", &with(&[hard_link("a/layer.tar", "/etc/passwd")])),
        ("climbing hard link", &with(&[hard_link("a/layer.tar", "../etc/passwd")])),
        ("itself", &with(&[symlink("a/layer.tar", "layer.tar")])),
        ("loop", &with(&[symlink("a/layer.tar", "../b"), symlink("b", "a/layer.tar")])),
        ("loop of hard links", &with(&[hard_link("a/layer.tar", "b"), hard_link("b", "a/layer.tar")])),
        ("missing", &with(&[symlink("a/layer.tar", "../nowhere")])),
        ("without a target", &with(&[symlink("a/layer.tar", "")])),
    ]);
    // The chain ends in an honest file, and goes a hundred steps.
    let mut chain = vec![symlink("a/layer.tar", "../l0")];
    chain.extend((0..100).map(|step| symlink(format!("l{step}"), format!("l{}", step + 1))));
    chain.push(file("l100", &image.layers[0]));
    load_refused(&[("long chain", &with(&chain))]);
}

#[test]
fn kinds_of_parts_that_archives_of_images_do_not_have() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::new(b'V')] {
        let mut entries = docker_archive(&[(&image(), &["name:1"])]);
        entries.insert(0, entry(kind, "odd"));
        check_load(&format!("{kind:?}"), &pack(&entries));
    }
    let large = vec![b'x'; 5 << 20];
    load_refused(&[("long name", &[file(&large, "")]), ("extended header", &[file("manifest.json", "[]").pax("comment", &large)])]);
    let bench = Bench::new();
    let claims = pack_open(&[entry(EntryType::XHeader, "header").size(1 << 40)]);
    let store = bench.store.clone();
    let result = within(60, move || load(&store, endless(claims, 1 << 40)));
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_empty("endless header");
}

#[test]
fn contents_under_wrong_digests() {
    let (image, other) = (image(), Image::new("other", &[layer()]));
    let (config, layer) = (blob_name(&image.config), blob_name(&image.layers[0]));
    let hex = image.id().hex().to_owned();
    let manifest = manifest_json(&config, &[&layer], &[]);
    let bad_layer = file(&layer, pack(&[file("f", "something else")]));
    let bad_config = file(&config, &other.config);
    load_refused(&[
        ("configuration", &[bad_config.clone(), blob(&image.layers[0]), manifest.clone()]),
        ("layer", &[blob(&image.config), bad_layer.clone(), manifest.clone()]),
        (
            "old configuration",
            &[file(format!("{hex}.json"), &other.config), blob(&image.layers[0]), manifest_json(&format!("{hex}.json"), &[&layer], &[])],
        ),
        (
            "layer under a name without a digest",
            &[blob(&image.config), file("a/layer.tar", pack(&[file("f", "else")])), manifest_json(&config, &["a/layer.tar"], &[])],
        ),
        ("link to something else", &[blob(&image.config), file("x", "else"), hard_link(&layer, "x"), manifest.clone()]),
    ]);
    let mut oci = oci_archive(&[(&image, "docker.io/library/name:1")]);
    oci.insert(0, bad_layer);
    let bench = Bench::new();
    match load(&bench.store, pack(&oci).as_slice()) {
        // The same name twice: the last one counts, as when it is unpacked.
        Ok(loaded) => assert_eq!(loaded[0].id, image.id()),
        Err(error) => assert!(matches!(error, Error::Invalid(_)), "{error}"),
    }
    let manifest = Digest::of(&oci_manifest(&image));
    let oci: Vec<Entry> = oci_archive(&[(&image, "docker.io/library/name:1")]);
    let mut bad_manifest = oci.clone();
    bad_manifest.push(file(format!("blobs/sha256/{}", manifest.hex()), oci_manifest(&other)));
    let mut bad_oci_config = oci;
    bad_oci_config.push(bad_config);
    load_refused(&[("manifest", &bad_manifest), ("configuration in OCI's layout", &bad_oci_config)]);
}

fn oci_manifest(image: &Image) -> Vec<u8> {
    let layers: Vec<Value> = image.layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    bytes(&json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &image.config), "layers": layers}))
}

/// Parts are set aside under names of the store's own. When one comes twice, no other may get its place.
#[test]
fn a_part_that_comes_twice_does_not_let_others_be_exchanged() {
    let (good, evil) = (image(), Image::new("evil", &[layer()]));
    let (config, layer) = (blob_name(&good.config), blob_name(&good.layers[0]));
    let entries = [
        blob(&good.layers[0]),
        blob(&good.config),
        blob(&good.config),
        file("x", &evil.config),
        manifest_json(&config, &[&layer], &["name:1"]),
    ];
    let bench = Bench::new();
    match load(&bench.store, pack(&entries).as_slice()) {
        Ok(loaded) => {
            assert_eq!((loaded.len(), &loaded[0].id), (1, &good.id()), "what was loaded is not what its digest said");
            assert_eq!(loaded[0].config.config.cmd, ["good"]);
        }
        Err(error) => assert!(matches!(error, Error::Invalid(_)), "{error}"),
    }
    bench.check_temporary("twice");
}

#[test]
fn digests_that_are_none() {
    let layer = layer();
    let good = Digest::of(&layer);
    let upper = format!("sha256:{}", good.hex().to_uppercase());
    for digest in ["sha256:../../x", "sha256:", "", "../../x", "sha512:00", "md5:d41d8cd98f00b204e9800998ecf8427e", &upper, &good.as_str()[..70]] {
        let config = config("x", &[digest.to_owned()]);
        let entries = [blob(&layer), blob(&config), manifest_json(&blob_name(&config), &[&blob_name(&layer)], &[])];
        check_load(&format!("diff-id {digest:?}"), &pack(&entries));
        let bad = json!({"mediaType": MANIFEST, "digest": digest, "size": 2});
        check_load(&format!("index with {digest:?}"), &pack(&[index_json(&[bad.clone()]), file("x", "{}")]));
        let manifest = bytes(&json!({"schemaVersion": 2, "config": bad, "layers": []}));
        check_load(&format!("manifest with {digest:?}"), &pack(&[blob(&manifest), index_json(&[descriptor(MANIFEST, &manifest)])]));
        let manifest = bytes(&json!({"schemaVersion": 2, "config": descriptor(CONFIG, &config), "layers": [bad]}));
        let entries = [blob(&config), blob(&manifest), index_json(&[descriptor(MANIFEST, &manifest)])];
        check_load(&format!("layer with {digest:?}"), &pack(&entries));
    }
}

/// An image with this configuration, whose layers are these parts.
#[track_caller]
fn check_config(what: &str, config: &[u8], layers: &[&str]) {
    check_load(what, &pack(&[blob(&layer()), file("config", config), manifest_json("config", layers, &["name:1"])]));
}

#[test]
fn configurations_that_do_not_fit() {
    let layer = layer();
    let (name, diff_id) = (blob_name(&layer), Digest::of(&layer).to_string());
    let one = config("x", &[diff_id.clone()]);
    check_config("more layers", &config("x", &[diff_id.clone(), diff_id.clone()]), &[&name]);
    check_config("fewer layers", &one, &[&name, &name]);
    check_config("no layers", &config("x", &[]), &[&name]);
    check_config("no layers in the manifest", &one, &[]);
    check_config("another diff-id", &config("x", &[Digest::of(b"other").to_string()]), &[&name]);
    check_config("no JSON", b"nonsense", &[&name]);
    check_config("no root file system", b"{}", &[]);
    check_config("another kind of root file system", br#"{"rootfs": {"type": "aufs", "diff_ids": []}}"#, &[]);
    let history = json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}, "history": [{}, {}]});
    check_config("more history than layers", &bytes(&history), &[&name]);
    let mut large = one;
    large.resize(9 << 20, b' ');
    check_config("larger than anybody needs", &large, &[&name]);
    let (diff_ids, names) = (vec![diff_id; 1001], vec![name.as_str(); 1001]);
    check_config("more layers than possible", &config("x", &diff_ids), &names);
}

#[test]
fn names_that_are_no_references() {
    let image = image();
    let (long, id) = ("a".repeat(300), image.id());
    let names = ["", "UPPER:1", "a b:1", "../x:1", "/x:1", "a:b:c", "name:", "name@sha256:12", "a\0b:1", "-x:1", "a//b:1", &long, id.hex()];
    for name in names {
        check_load(&format!("{name:?}"), &pack(&docker_archive(&[(&image, &[name])])));
        if !name.is_empty() {
            check_load(&format!("annotation {name:?}"), &pack(&oci_archive(&[(&image, name)])));
        }
    }
}

#[test]
fn indexes_without_end() {
    let image = image();
    let manifest = oci_manifest(&image);
    let mut entries = vec![blob(&image.config), blob(&image.layers[0]), blob(&manifest)];
    let mut inner = descriptor(MANIFEST, &manifest);
    for _ in 0..50 {
        let content = index(&[inner]);
        entries.push(blob(&content));
        inner = descriptor(INDEX, &content);
    }
    entries.push(index_json(&[inner]));
    load_refused(&[("nested", &entries)]);

    let mut many = vec![blob(&image.config), blob(&image.layers[0]), blob(&manifest)];
    many.push(index_json(&vec![descriptor(MANIFEST, &manifest); 2000]));
    load_refused(&[("thousands of images", &many)]);
}

/// Each of four levels names the next one a thousand times, and the last one names nothing.
#[test]
fn wide_indexes_end() {
    let mut content = index(&[]);
    let mut entries = vec![blob(&content)];
    for _ in 0..4 {
        content = index(&vec![descriptor(INDEX, &content); 1000]);
        entries.push(blob(&content));
    }
    entries.push(file("index.json", &content));
    let bench = Bench::new();
    let store = bench.store.clone();
    let archive = pack(&entries);
    let result = within(30, move || load(&store, archive.as_slice()));
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_empty("wide");
}

/// One document read as two kinds is how a checked image becomes another one (CVE-2021-41190).
#[test]
fn documents_under_another_type() {
    let image = image();
    let manifest = oci_manifest(&image);
    let wrapped = index(&[descriptor(MANIFEST, &manifest)]);
    let parts = [blob(&image.config), blob(&image.layers[0]), blob(&manifest), blob(&wrapped)];
    for (what, descriptor) in [
        ("a manifest as an index", descriptor(INDEX, &manifest)),
        ("an index as a manifest", descriptor(MANIFEST, &wrapped)),
        ("a configuration as a manifest", descriptor(MANIFEST, &image.config)),
        ("a layer as a manifest", descriptor(MANIFEST, &image.layers[0])),
        ("a layer as an index", descriptor(INDEX, &image.layers[0])),
    ] {
        let mut entries = parts.to_vec();
        entries.push(index_json(&[descriptor]));
        check_load(what, &pack(&entries));
    }
    check_load("no images", &pack(&[index_json(&[])]));
    let mut foreign = descriptor(MANIFEST, &manifest);
    foreign["platform"] = json!({"os": "windows", "architecture": "amd64"});
    let mut entries = parts.to_vec();
    entries.push(index_json(&[foreign]));
    check_load("images of other systems only", &pack(&entries));
}

#[test]
fn entries_by_the_thousand() {
    let mut entries: Vec<Entry> = (0..20_100).map(|number| file(format!("{number}"), "")).collect();
    entries.extend(docker_archive(&[(&image(), &["name:1"])]));
    load_refused(&[("files", &entries)]);
    let mut entries: Vec<Entry> = (0..20_100).map(|number| symlink(format!("{number}"), "x")).collect();
    entries.extend(docker_archive(&[(&image(), &["name:1"])]));
    load_refused(&[("links", &entries)]);
}

#[test]
fn hostile_layers_in_images() {
    let layers = [
        pack(&[file("../planted", "x")]),
        pack(&[symlink("l", "/"), file("l/whelk-planted", "x")]),
        pack(&[device(EntryType::Char, "gone", 0, 0)]),
        pack(&[dir("d/").xattr("trusted.overlay.redirect", "/")]),
        noise(1024),
    ];
    for (number, hostile) in layers.iter().enumerate() {
        let image = Image::new("hostile", &[hostile.clone()]);
        check_load(&format!("docker, {number}"), &pack(&docker_archive(&[(&image, &["name:1"])])));
        check_load(&format!("oci, {number}"), &pack(&oci_archive(&[(&image, "docker.io/library/name:1")])));
    }
    // An honest layer beside it may stay, for the next collection to take; no image does, and nothing half-made.
    let bench = Bench::new();
    let image = Image::new("half", &[layer(), layers[0].clone()]);
    let result = load(&bench.store, pack(&docker_archive(&[(&image, &["name:1"])])).as_slice());
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_temporary("half");
    assert_eq!(bench.names("blobs/sha256"), [""; 0]);
}

#[test]
fn an_image_without_layers_is_one() {
    for (layers, diff_ids) in [(json!([]), json!([])), (json!(null), json!([])), (json!([]), json!(null))] {
        let bench = Bench::new();
        let config = bytes(&json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}));
        let manifest = json!([{"Config": "config.json", "RepoTags": null, "Layers": layers}]);
        let archive = pack(&[file("config.json", &config), file("manifest.json", bytes(&manifest))]);
        let loaded = load(&bench.store, archive.as_slice()).unwrap();
        assert_eq!((loaded.len(), &loaded[0].id, loaded[0].size), (1, &Digest::of(&config), 0));
        assert_eq!(bench.store.blob(&loaded[0].id).unwrap(), config);
        bench.check_temporary("no layers");
    }
    let without = json!([{"Config": "config.json"}]);
    let config = bytes(&json!({"rootfs": {"type": "layers"}}));
    let bench = Bench::new();
    let archive = pack(&[file("config.json", &config), file("manifest.json", bytes(&without))]);
    assert_eq!(load(&bench.store, archive.as_slice()).unwrap().len(), 1);
}
