//! Tests of layers: an archive is unpacked to a directory with overlayfs whiteouts, and is
//! reproduced bit for bit.
//!
//! Creating owners, devices and whiteouts needs root.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{
    Bench, Entry, MTIME, apply, device, dir, ended, entry, fifo, file, gzip, hard_link, listing,
    noise, pack, pack_open, pax_records, sparse, symlink, whiteout, within, xattr, zstandard,
};
use tar::{EntryType, Header};
use whelk_image::{Digest, Error, Store};
use whelk_sys::fs;

/// Checks the listing of the directory that the entries are unpacked to.
#[track_caller]
fn check(entries: &[Entry], expected: &[&str]) {
    let bench = Bench::new();
    let files = bench.unpack(&pack(entries));
    assert_eq!(listing(&files), expected);
}

/// Like [`check`], without reproducing the archive. Replaced entries are tested in
/// `reproduces_replaced_entries`.
#[track_caller]
fn check_files(entries: &[Entry], expected: &[&str]) {
    let bench = Bench::new();
    let files = bench.unpack_only(&pack(entries));
    assert_eq!(listing(&files), expected);
}

#[test]
fn files_keep_modes_and_owners() {
    check(
        &[
            dir("bin/"),
            file("bin/su", "set-id").mode(0o4755),
            file("bin/mail", "set-group").mode(0o2711).owner(0, 8),
            dir("tmp/").mode(0o1777),
            file("secret", "").mode(0),
            file("mine", "1").owner(1000, 1001).mode(0o4750),
            file("far", "2").owner(2_000_000_000, 4_294_967_294),
            dir("home/").owner(1000, 1000).mode(0o700),
            file("home/x", "3\n"),
        ],
        &[
            "bin dir 0755 0:0",
            "bin/mail file 2711 0:8 set-group",
            "bin/su file 4755 0:0 set-id",
            "far file 0644 2000000000:4294967294 2",
            "home dir 0700 1000:1000",
            "home/x file 0644 0:0 3",
            "mine file 4750 1000:1001 1",
            "secret file 0000 0:0",
            "tmp dir 1777 0:0",
        ],
    );
}

#[test]
fn reproduces_files_of_all_sizes() {
    let sizes = [
        0, 1, 511, 512, 513, 1023, 1024, 65_535, 65_536, 65_537, 1_000_000,
    ];
    let mut entries = Vec::new();
    for size in sizes {
        entries.push(file(format!("noise-{size}"), noise(size)));
        entries.push(file(format!("zeros-{size}"), vec![0u8; size]));
    }
    let bench = Bench::new();
    let archive = pack(&entries);
    let files = bench.unpack(&archive);
    for size in sizes {
        assert_eq!(
            fs::read(files.join(format!("noise-{size}"))).unwrap(),
            noise(size),
            "{size}"
        );
        assert_eq!(
            fs::read(files.join(format!("zeros-{size}"))).unwrap(),
            vec![0u8; size],
            "{size}"
        );
    }
    let total: usize = sizes.iter().map(|size| size * 2).sum();
    assert_eq!(
        bench.store.snapshots.size(&Digest::of(&archive)).unwrap(),
        total as u64
    );
}

#[test]
fn the_nul_and_continuous_types_are_regular_files() {
    check(
        &[
            file("old", "1").change(|header| header.as_old_mut().linkflag = [0]),
            file("continuous", "2").change(|header| header.set_entry_type(EntryType::Continuous)),
        ],
        &["continuous file 0644 0:0 2", "old file 0644 0:0 1"],
    );
}

/// Unix V7's format has no type for directories; their names end with a slash.
#[test]
fn an_old_archive_marks_directories_by_a_slash() {
    let mut header = Header::new_old();
    header.as_old_mut().name[..2].copy_from_slice(b"d/");
    header.set_mode(0o750);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.extend_from_slice(&pack(&[file("d/f", "")]));
    let bench = Bench::new();
    assert_eq!(
        listing(&bench.unpack(&archive)),
        ["d dir 0750 0:0", "d/f file 0644 0:0"]
    );
}

#[track_caller]
fn check_time(entries: &[Entry], path: &str, expected: (i64, i64)) {
    let bench = Bench::new();
    let files = bench.unpack_only(&pack(entries));
    let data = fs::metadata(files.join(path)).unwrap();
    assert_eq!((data.mtime(), data.mtime_nsec()), expected, "{path}");
}

#[test]
fn times_are_kept() {
    check_time(
        &[file("f", "x").mtime(1_234_567_890)],
        "f",
        (1_234_567_890, 0),
    );
    check_time(&[file("f", "").mtime(0)], "f", (0, 0));
    check_time(
        &[symlink("l", "x").mtime(1_234_567_890)],
        "l",
        (1_234_567_890, 0),
    );
    check_time(&[fifo("p").mtime(1_234_567_890)], "p", (1_234_567_890, 0));
    check_time(&[dir("./").mtime(77), file("f", "")], "", (77, 0));
    // Creating children changes a directory's mtime.
    check_time(
        &[
            dir("d/").mtime(55),
            file("d/f", ""),
            dir("d/e/").mtime(66),
            file("d/e/f", ""),
        ],
        "d",
        (55, 0),
    );
    check_time(
        &[
            dir("d/").mtime(55),
            file("d/f", ""),
            dir("d/e/").mtime(66),
            file("d/e/f", ""),
        ],
        "d/e",
        (66, 0),
    );
}

#[test]
fn pax_times_have_nanoseconds() {
    check_time(
        &[file("f", "x").pax("mtime", "1700000000.123456789")],
        "f",
        (1_700_000_000, 123_456_789),
    );
    check_time(
        &[file("f", "x").pax("mtime", "1700000000.25")],
        "f",
        (1_700_000_000, 250_000_000),
    );
    check_time(
        &[file("f", "x").pax("mtime", "1700000000.1234567891234")],
        "f",
        (1_700_000_000, 123_456_789),
    );
    check_time(
        &[file("f", "x").pax("mtime", "1700000000")],
        "f",
        (1_700_000_000, 0),
    );
    check_time(
        &[dir("d/").pax("mtime", "5.5"), file("d/f", "x")],
        "d",
        (5, 500_000_000),
    );
    check_time(
        &[symlink("l", "x").pax("mtime", "5.000000001")],
        "l",
        (5, 1),
    );
    check_time(
        &[file("f", "x")
            .mtime(9)
            .pax("atime", "5.5")
            .pax("ctime", "6.5")],
        "f",
        (9, 0),
    );
}

#[test]
fn the_last_entry_of_a_directory_sets_its_metadata() {
    let entries = [
        dir("d/").mtime(1).mode(0o700),
        file("d/f", ""),
        dir("d/").mtime(2).mode(0o711).owner(3, 4),
    ];
    check(&entries, &["d dir 0711 3:4", "d/f file 0644 0:0"]);
    check_time(&entries, "d", (2, 0));
}

#[test]
fn hard_links_are_one_file() {
    let entries = [
        file("a", "content").mode(0o4755).owner(5, 6),
        hard_link("b", "a"),
        dir("d/"),
        hard_link("d/c", "./b"),
        symlink("l", "nowhere"),
        // A hard link to a symbolic link is another name of the link, not of its target.
        hard_link("m", "l"),
    ];
    check(
        &entries,
        &[
            "a file 4755 5:6 content",
            "b file 4755 5:6 content",
            "d dir 0755 0:0",
            "d/c file 4755 5:6 content",
            "l link 0:0 nowhere",
            "m link 0:0 nowhere",
        ],
    );
    let bench = Bench::new();
    let files = bench.unpack(&pack(&entries));
    let inode = |name: &str| fs::metadata(files.join(name)).unwrap().ino();
    assert_eq!(
        (inode("b"), inode("d/c"), inode("m")),
        (inode("a"), inode("a"), inode("l"))
    );
    assert_eq!(
        bench
            .store
            .snapshots
            .size(&Digest::of(&pack(&entries)))
            .unwrap(),
        7,
        "content is counted once"
    );
}

#[test]
fn hard_links_with_long_targets() {
    let long = format!(
        "{}/file",
        "directory-with-a-long-name/"
            .repeat(6)
            .trim_end_matches('/')
    );
    let bench = Bench::new();
    let files = bench.unpack(&pack(&[file(&long, "x"), hard_link("b", &long)]));
    assert_eq!(fs::metadata(files.join("b")).unwrap().nlink(), 2);
    let files = bench.unpack(&pack(&[
        file(&long, "x"),
        hard_link("b", "cut").pax("linkpath", &long),
    ]));
    assert_eq!(fs::metadata(files.join("b")).unwrap().nlink(), 2);
}

#[test]
fn symbolic_links_are_kept_as_they_are() {
    let long = "x/".repeat(150);
    check(
        &[
            dir("usr/"),
            dir("usr/bin/"),
            symlink("usr/bin/absolute", "/etc/passwd"),
            symlink("usr/bin/relative", "../lib/thing"),
            symlink("usr/bin/root", "../.."),
            symlink("dangling", "nowhere").owner(7, 8),
            symlink("itself", "itself"),
            symlink("odd", "a//b/./c/"),
            symlink("long", &long),
            symlink("pax", "cut").pax("linkpath", &long),
        ],
        &[
            "dangling link 7:8 nowhere",
            "itself link 0:0 itself",
            &format!("long link 0:0 {long}"),
            "odd link 0:0 a//b/./c/",
            &format!("pax link 0:0 {long}"),
            "usr dir 0755 0:0",
            "usr/bin dir 0755 0:0",
            "usr/bin/absolute link 0:0 /etc/passwd",
            "usr/bin/relative link 0:0 ../lib/thing",
            "usr/bin/root link 0:0 ../..",
        ],
    );
}

/// `CAP_NET_RAW`, permitted, as `setcap` stores it (capabilities(7), version 2).
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn extended_attributes_are_kept() {
    let bench = Bench::new();
    let files = bench.unpack(&pack(&[
        file("ping", "x")
            .mode(0o755)
            .owner(1, 1)
            .xattr("security.capability", CAPABILITY),
        file("f", "x")
            .xattr("user.text", "value")
            .xattr("user.binary", [0, 1, 255, b'=', b' ', 0])
            .xattr("user.empty", ""),
        dir("d/").xattr("user.on.directory", "yes"),
        dir("./").xattr("user.on.root", "yes"),
    ]));
    let value = |path: &str, name: &str| xattr(&files.join(path), name);
    assert_eq!(
        value("ping", "security.capability").as_deref(),
        Some(&CAPABILITY[..]),
        "changing the owner would remove it"
    );
    assert_eq!(value("f", "user.text").as_deref(), Some(&b"value"[..]));
    assert_eq!(
        value("f", "user.binary").as_deref(),
        Some(&[0, 1, 255, b'=', b' ', 0][..])
    );
    assert_eq!(value("f", "user.empty").as_deref(), Some(&b""[..]));
    assert_eq!(
        value("d", "user.on.directory").as_deref(),
        Some(&b"yes"[..])
    );
    assert_eq!(value("", "user.on.root").as_deref(), Some(&b"yes"[..]));
}

/// A pax record ends where its length says. Capabilities are binary, so one of their bytes can be a
/// newline: `CAP_DAC_OVERRIDE` and `CAP_FOWNER` together are.
#[test]
fn extended_attributes_may_contain_newlines() {
    let mut capability = CAPABILITY;
    capability[4] = b'\n';
    let bench = Bench::new();
    let files = bench.unpack(&pack(&[
        file("f", "x")
            .xattr("user.lines", "one\ntwo\n")
            .pax("mtime", "12.5"),
        file("g", "x").xattr("security.capability", capability),
    ]));
    assert_eq!(
        xattr(&files.join("f"), "user.lines").as_deref(),
        Some(&b"one\ntwo\n"[..])
    );
    assert_eq!(
        xattr(&files.join("g"), "security.capability").as_deref(),
        Some(&capability[..])
    );
    assert_eq!(fs::metadata(files.join("f")).unwrap().mtime(), 12);
}

#[test]
fn devices_and_pipes() {
    check(
        &[
            dir("dev/"),
            device(EntryType::Char, "dev/null", 1, 3).mode(0o666),
            device(EntryType::Block, "dev/loop0", 7, 0)
                .mode(0o660)
                .owner(0, 6),
            device(EntryType::Block, "dev/none", 0, 0).mode(0o600),
            device(EntryType::Char, "dev/last", 4095, 1_048_575).mode(0o600),
            fifo("dev/pipe").mode(0o4622).owner(9, 9),
        ],
        &[
            "dev dir 0755 0:0",
            "dev/last char 0600 0:0 4095:1048575",
            "dev/loop0 block 0660 0:6 7:0",
            "dev/none block 0600 0:0 0:0",
            "dev/null char 0666 0:0 1:3",
            "dev/pipe fifo 4622 9:9",
        ],
    );
}

/// GNU tar fills in device numbers for devices only.
#[test]
fn a_pipe_has_no_device_number() {
    check(
        &[entry(EntryType::Fifo, "pipe").mode(0o600)],
        &["pipe fifo 0600 0:0"],
    );
}

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

#[test]
fn keeps_long_and_unusual_names() {
    let component = "c".repeat(255);
    let deep = "d/".repeat(400) + "file";
    let hundred = "h".repeat(100);
    let archive = pack(&[
        file(format!("{component}/{component}"), "gnu"),
        file("cut", "pax").pax("path", format!("pax-{}", "p".repeat(200))),
        file(&hundred, "a field without an end"),
        file(&deep, "deep"),
        file(b"caf\xe9", "not UTF-8"),
        file("new\nline\\ \"quoted\"", "odd"),
        file(".wh", "not a whiteout"),
        file("a.wh.b", "nor this"),
    ]);
    let bench = Bench::new();
    let files = bench.unpack(&archive);
    let content = |path: &Path| String::from_utf8(fs::read(files.join(path)).unwrap()).unwrap();
    assert_eq!(
        content(Path::new(&format!("{component}/{component}"))),
        "gnu"
    );
    assert_eq!(
        content(Path::new(&format!("pax-{}", "p".repeat(200)))),
        "pax"
    );
    assert_eq!(content(Path::new(&hundred)), "a field without an end");
    assert_eq!(content(Path::new(&deep)), "deep");
    assert_eq!(
        content(Path::new(std::ffi::OsStr::from_bytes(b"caf\xe9"))),
        "not UTF-8"
    );
    assert_eq!(content(Path::new("new\nline\\ \"quoted\"")), "odd");
    assert_eq!(content(Path::new(".wh")), "not a whiteout");
    assert_eq!(content(Path::new("a.wh.b")), "nor this");
}

/// POSIX ustar splits long names between two fields.
#[test]
fn joins_names_split_between_two_fields() {
    let path = format!("{}/{}", "p".repeat(120), "n".repeat(90));
    let mut header = Header::new_ustar();
    header.set_path(&path).unwrap();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(1);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.push(b'x');
    archive.resize(1024, 0);
    let bench = Bench::new();
    let files = bench.unpack(&ended(archive));
    assert_eq!(fs::read(files.join(path)).unwrap(), b"x");
}

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

#[test]
fn concurrent_loads_of_a_layer_store_it_once() {
    let bench = Bench::new();
    let archive = pack(&[dir("d/"), file("d/f", noise(10_000))]);
    let layers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| apply(&bench.store, archive.as_slice(), None).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(layers.iter().all(|layer| *layer == layers[0]));
    assert_eq!((layers[0].size, bench.names("layers").len()), (10_000, 1));
    bench.check_temporary("four at once");
    bench.unpack(&archive);
    assert!(bench.store.snapshots.has(&layers[0].diff_id));
}

#[test]
fn removes_layers_completely() {
    let bench = Bench::new();
    let archive = pack(&[
        dir("d/").mode(0),
        file("d/f", "x").mode(0),
        symlink("l", "/"),
        whiteout("gone"),
    ]);
    bench.unpack(&archive);
    let diff_id = Digest::of(&archive);
    bench
        .store
        .staging
        .discard(&bench.store.snapshots.path(&diff_id))
        .unwrap();
    bench.check_empty("removed");
    assert!(!bench.store.snapshots.has(&diff_id));
    bench
        .store
        .staging
        .discard(&bench.store.snapshots.path(&diff_id))
        .expect("removing a missing layer is no error");
    assert!(
        bench
            .store
            .snapshots
            .replay(&diff_id, &mut std::io::sink())
            .is_err()
    );
}

#[test]
fn detects_a_layer_that_was_changed_on_disk() {
    let archive = pack(&[file("f", "content"), dir("d/"), file("d/g", "more")]);
    let diff_id = Digest::of(&archive);
    let same = |change: fn(&Path)| {
        let bench = Bench::new();
        change(&bench.unpack(&archive));
        let mut written = Vec::new();
        bench.store.snapshots.replay(&diff_id, &mut written).is_ok() && written == archive
    };
    assert!(same(|_| {}));
    assert!(!same(|files| fs::write(files.join("f"), "changed").unwrap()));
    assert!(!same(|files| fs::write(files.join("f"), "").unwrap()));
    assert!(!same(|files| fs::remove_file(files.join("f")).unwrap()));
    assert!(!same(|files| {
        fs::remove_tree(files.join("d")).unwrap();
        std::os::unix::fs::symlink("/", files.join("d")).unwrap();
    }));
}

/// A FIFO in place of a file must not make the engine wait for a writer.
#[test]
fn a_fifo_in_the_store_does_not_block() {
    let bench = Bench::new();
    let archive = pack(&[file("f", "content")]);
    let files = bench.unpack(&archive);
    fs::remove_file(files.join("f")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        files.join("f"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let store = bench.store.clone();
    let result = within(20, move || {
        store
            .snapshots
            .replay(&Digest::of(&archive), &mut std::io::sink())
    });
    assert!(result.is_err());
}

#[test]
fn blobs() {
    let bench = Bench::new();
    let digest = bench
        .store
        .content
        .put(&bench.store.leases.take(), b"content")
        .unwrap();
    assert_eq!(digest, Digest::of(b"content"));
    assert_eq!(
        bench
            .store
            .content
            .put(&bench.store.leases.take(), b"content")
            .unwrap(),
        digest
    );
    assert_eq!(bench.store.content.read(&digest).unwrap(), b"content");
    assert!(matches!(
        bench.store.content.read(&Digest::of(b"other")),
        Err(Error::NotFound(_))
    ));
    fs::write(bench.store.content.path(&digest), "damaged").unwrap();
    assert!(matches!(
        bench.store.content.read(&digest),
        Err(Error::Invalid(_))
    ));
    bench
        .store
        .staging
        .discard(&bench.store.content.path(&digest))
        .unwrap();
    bench
        .store
        .staging
        .discard(&bench.store.content.path(&digest))
        .unwrap();
    bench.check_empty("removed");
}

#[test]
fn opening_a_store_removes_incomplete_objects() {
    let bench = Bench::new();
    let archive = pack(&[file("f", "x")]);
    bench.unpack(&archive);
    let blob = bench
        .store
        .content
        .put(&bench.store.leases.take(), b"content")
        .unwrap();
    for directory in ["tmp", "trash"] {
        fs::create_dir_all(
            bench.base.join("store").join(directory).join("half/made"),
            0o700,
        )
        .unwrap();
        fs::write(bench.base.join("store").join(directory).join("file"), "x").unwrap();
        std::os::unix::fs::symlink(
            bench.outside(),
            bench.base.join("store").join(directory).join("link"),
        )
        .unwrap();
    }
    let guard = bench.guard();
    let store = Store::open(&bench.base.join("store")).unwrap();
    assert!(fs::list(bench.base.join("store/tmp")).unwrap().is_empty());
    store.staging.empty_trash().unwrap();
    bench.check_temporary("opened again");
    assert_eq!(bench.guard(), guard);
    assert!(store.snapshots.has(&Digest::of(&archive)));
    assert_eq!(store.content.read(&blob).unwrap(), b"content");
    store.sync().unwrap();
}

#[test]
fn only_root_enters_the_store() {
    let bench = Bench::new();
    let files = bench.unpack(&pack(&[
        file("bin/su", "x").mode(0o4755),
        file("f", "x").mtime(MTIME),
    ]));
    let layer = fs::metadata(files.parent().unwrap()).unwrap();
    assert_eq!(
        layer.mode() & 0o077,
        0,
        "users of the host must not reach set-id programs of an image (CVE-2021-41091)"
    );
    assert_eq!(
        fs::metadata(&files).unwrap().mode() & 0o7777,
        0o755,
        "users in a container can enter its root"
    );
}
