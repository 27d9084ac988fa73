//! Export of merged layers.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Bench, Entry, device, dir, fifo, file, hard_link, pack, symlink, whiteout};
use crate::exported;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use tar::{Archive, EntryType};
use whelk_image::snapshots::export_directory;
use whelk_sys::fs;

/// Formats the entries of an archive: name, kind, mode, owner, and details of the kind.
fn lines(archive: &[u8]) -> Vec<String> {
    let mut archive = Archive::new(archive);
    let mut lines = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut extensions = String::new();
        if let Some(records) = entry.pax_extensions().unwrap() {
            for record in records {
                let record = record.unwrap();
                extensions += &format!(
                    " {}={}",
                    record.key().unwrap(),
                    String::from_utf8_lossy(record.value_bytes())
                );
            }
        }
        let mut content = String::new();
        if entry.header().entry_type() == EntryType::Regular {
            entry.read_to_string(&mut content).unwrap();
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry
            .link_name_bytes()
            .map(|link| String::from_utf8_lossy(&link).into_owned())
            .unwrap_or_default();
        let header = entry.header();
        let owner = format!("{}:{}", header.uid().unwrap(), header.gid().unwrap());
        let owned = format!("{:04o} {owner}", header.mode().unwrap());
        let number = |number: io::Result<Option<u32>>| number.unwrap().unwrap();
        let what = match header.entry_type() {
            EntryType::Directory => format!("dir {owned}"),
            EntryType::Regular => format!("file {owned} {content}"),
            EntryType::Symlink => format!("link {owner} {link}"),
            EntryType::Link => format!("hard link {link}"),
            EntryType::Fifo => format!("fifo {owned}"),
            kind => format!(
                "{kind:?} {owned} {}:{}",
                number(header.device_major()),
                number(header.device_minor())
            ),
        };
        lines.push(format!("{name} {}{extensions}", what.trim_end()));
    }
    lines
}

/// Checks the export of a container with these layers, lowest first.
#[track_caller]
fn check_export(layers: &[&[Entry]], expected: &[&str]) {
    let bench = Bench::new();
    let mut lower: Vec<PathBuf> = layers
        .iter()
        .map(|layer| bench.unpack_only(&pack(layer)))
        .collect();
    lower.reverse();
    assert_eq!(lines(&exported(&lower)), expected);
}

#[test]
fn export_merges_layers() {
    check_export(
        &[
            &[
                dir("d/"),
                file("d/a", "old"),
                file("d/b", "old"),
                file("gone", "secret"),
                dir("e/"),
                file("e/gone", "secret"),
            ],
            &[
                dir("d/").mode(0o700).owner(1, 2),
                file("d/a", "new"),
                whiteout("gone"),
                whiteout("e"),
                file("f", "x").mode(0o4755),
            ],
        ],
        &[
            "d/ dir 0700 1:2",
            "d/a file 0644 0:0 new",
            "d/b file 0644 0:0 old",
            "f file 4755 0:0 x",
        ],
    );
    check_export(
        &[
            &[dir("d/"), file("d/old", "secret"), file("x", "old")],
            &[dir("d/"), file("d/.wh..wh..opq", ""), file("d/new", "")],
            &[dir("x/")],
        ],
        &["d/ dir 0755 0:0", "d/new file 0644 0:0", "x/ dir 0755 0:0"],
    );
    // Hidden and used again: by a directory, and two layers later.
    check_export(
        &[
            &[dir("d/"), file("d/old", "secret")],
            &[whiteout("d"), dir("d/"), file("d/new", "")],
        ],
        &["d/ dir 0755 0:0", "d/new file 0644 0:0"],
    );
    check_export(
        &[
            &[dir("d/"), file("d/old", "secret")],
            &[whiteout("d")],
            &[dir("d/"), file("d/new", "")],
        ],
        &["d/ dir 0755 0:0", "d/new file 0644 0:0"],
    );
}

#[test]
fn an_opaque_mark_on_the_root_is_ignored() {
    check_export(
        &[
            &[file("old", "x"), dir("d/")],
            &[file(".wh..wh..opq", ""), file("new", "")],
            &[file("newer", "")],
        ],
        &[
            "d/ dir 0755 0:0",
            "new file 0644 0:0",
            "newer file 0644 0:0",
            "old file 0644 0:0 x",
        ],
    );
}

#[test]
fn whiteouts_of_a_single_layer_are_not_exported() {
    check_export(
        &[&[
            dir("d/"),
            whiteout("d/gone"),
            whiteout("gone"),
            file("f", "x"),
        ]],
        &["d/ dir 0755 0:0", "f file 0644 0:0 x"],
    );
}

#[test]
fn exports_a_stack_with_the_same_layer_twice() {
    check_export(
        &[&[file("a", "1")], &[file("b", "2")], &[file("a", "1")]],
        &["a file 0644 0:0 1", "b file 0644 0:0 2"],
    );
    check_export(&[&[], &[file("a", "1")], &[]], &["a file 0644 0:0 1"]);
}

#[test]
fn export_keeps_links() {
    check_export(
        &[
            &[
                file("a", "x").owner(1, 1),
                hard_link("b", "a"),
                dir("d/"),
                hard_link("d/c", "a"),
                symlink("l", "d/c"),
                hard_link("m", "l"),
            ],
            &[file("z", "")],
        ],
        &[
            "a file 0644 1:1 x",
            "b hard link a",
            "d/ dir 0755 0:0",
            "d/c hard link a",
            "l link 0:0 d/c",
            "m hard link l",
            "z file 0644 0:0",
        ],
    );
    // The first name is replaced; the others remain links to the old file.
    check_export(
        &[
            &[file("a", "old"), hard_link("b", "a"), hard_link("c", "a")],
            &[file("a", "new")],
        ],
        &[
            "a file 0644 0:0 new",
            "b file 0644 0:0 old",
            "c hard link b",
        ],
    );
    let long = "x/".repeat(120);
    check_export(
        &[
            &[
                symlink("absolute", "/etc/passwd").owner(5, 6),
                dir("d/"),
                symlink("d/dangling", "../usr/nowhere"),
                symlink("long", &long),
            ],
            &[],
        ],
        &[
            "absolute link 5:6 /etc/passwd",
            "d/ dir 0755 0:0",
            "d/dangling link 0:0 ../usr/nowhere",
            &format!("long link 0:0 {long}"),
        ],
    );
}

/// A link's target is exported verbatim, even if it is not a normalized path.
#[test]
fn export_keeps_targets_to_the_byte() {
    check_export(
        &[&[symlink("l", "a//b/./c/.")], &[]],
        &["l link 0:0 a//b/./c/."],
    );
}

#[test]
fn export_keeps_attributes_and_times() {
    check_export(
        &[
            &[
                file("f", "x")
                    .xattr("user.note", "hello")
                    .pax("mtime", "1000.25"),
                dir("d/").xattr("user.dir", "yes").mode(0o1777),
                file("plain", ""),
            ],
            &[
                file("z", ""),
                dir("d/").xattr("user.dir", "new").mode(0o1777),
                file("d/.wh..wh..opq", ""),
            ],
        ],
        &[
            "d/ dir 1777 0:0 SCHILY.xattr.user.dir=new",
            "f file 0644 0:0 x mtime=1000.250000000 SCHILY.xattr.user.note=hello",
            "plain file 0644 0:0",
            "z file 0644 0:0",
        ],
    );
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let bench = Bench::new();
    let lower = [
        bench.unpack_only(&pack(&[])),
        bench.unpack_only(&pack(&[
            file("ping", "").xattr("security.capability", capability)
        ])),
    ];
    let archive = exported(&lower);
    let again = bench.unpack(&archive);
    assert_eq!(
        crate::common::xattr(&again.join("ping"), "security.capability").as_deref(),
        Some(&capability[..])
    );
}

#[test]
fn times_before_1970_are_exported() {
    let times = ["-1.500000000", "-0.500000000", "-5", "5.250000000", "5"];
    let mut entries = vec![symlink("link", "x").pax("mtime", "-7")];
    for (number, time) in times.iter().enumerate() {
        entries.push(file(format!("file{number}"), "").pax("mtime", time));
        entries.push(dir(format!("dir{number}/")).pax("mtime", time));
    }
    let bench = Bench::new();
    let lower = [
        bench.unpack_only(&pack(&[])),
        bench.unpack_only(&pack(&entries)),
    ];
    let files = bench.unpack(&exported(&lower));
    let time = |name: &str| {
        let found = fs::metadata(files.join(name)).unwrap();
        (found.mtime(), found.mtime_nsec())
    };
    let expected = [
        (-2, 500_000_000),
        (-1, 500_000_000),
        (-5, 0),
        (5, 250_000_000),
        (5, 0),
    ];
    for (number, expected) in expected.into_iter().enumerate() {
        assert_eq!(time(&format!("file{number}")), expected);
        assert_eq!(time(&format!("dir{number}")), expected);
    }
    assert_eq!(time("link"), (-7, 0));
}

/// Busybox's tar refuses archives in which a header has no name.
#[test]
fn all_headers_of_an_export_have_names() {
    let bench = Bench::new();
    let lower = [bench.unpack_only(&pack(&[
        file("f", "x").pax("mtime", "1000.25"),
        dir("d/").xattr("user.dir", "yes"),
        file("long/".repeat(40), ""),
    ]))];
    let archive = exported(&lower);
    let mut raw = Archive::new(&archive[..]);
    let names: Vec<_> = raw
        .entries()
        .unwrap()
        .raw(true)
        .map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned())
        .collect();
    assert!(names.iter().any(|name| name.starts_with("PaxHeaders")));
    assert!(names.iter().all(|name| !name.is_empty()), "{names:?}");
}

#[test]
fn export_of_devices_and_long_names() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    check_export(
        &[
            &[
                device(EntryType::Char, "null", 1, 3).mode(0o666),
                device(EntryType::Block, "disk", 8, 1).owner(0, 6),
                fifo("pipe"),
                dir(format!("{}/", "d".repeat(200))),
                file(&long, "x"),
            ],
            &[],
        ],
        &[
            &format!("{}/ dir 0755 0:0", "d".repeat(200)),
            &format!("{long} file 0644 0:0 x"),
            "disk Block 0644 0:6 8:1",
            "null Char 0666 0:0 1:3",
            "pipe fifo 0644 0:0",
        ],
    );
}

/// A socket is useless without the program that listens on it.
#[test]
fn sockets_are_not_exported() {
    let bench = Bench::new();
    let upper = bench.base.join("upper");
    fs::create_dir(&upper, 0o755).unwrap();
    let listener = UnixListener::bind(upper.join("socket")).unwrap();
    fs::hard_link(upper.join("socket"), upper.join("zsocket")).unwrap();
    let lower = bench.unpack_only(&pack(&[file("f", "x")]));
    let archive = exported(&[upper, lower]);
    drop(listener);
    assert_eq!(lines(&archive), ["f file 0644 0:0 x"]);
}

/// A container can create any device, but not open it: the engine must not do that for it.
#[test]
fn content_is_only_that_of_regular_files() {
    const LENGTH: usize = 64 << 10;
    let bench = Bench::new();
    let directory = bench.base.join("files");
    fs::create_dir(&directory, 0o755).unwrap();
    let (file, node) = (directory.join("file"), bench.base.join("node"));
    fs::write(&file, "x".repeat(LENGTH)).unwrap();
    let zero = rustix::fs::makedev(1, 5);
    mknodat(CWD, &node, FileType::CharacterDevice, Mode::RUSR, zero).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                renameat_with(CWD, &file, CWD, &node, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let mut kinds = BTreeSet::new();
        let begin = Instant::now();
        // The other thread may have no processor for a while.
        for round in 0.. {
            let is_enough = round >= 2000 && kinds.len() == 3;
            if is_enough || begin.elapsed() > Duration::from_secs(60) {
                break;
            }
            let mut archive = Vec::new();
            export_directory(&directory, &mut archive).unwrap();
            let mut archive = Archive::new(archive.as_slice());
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                kinds.insert(format!("{:?}", entry.header().entry_type()));
                assert!(
                    content.iter().all(|&byte| byte == b'x'),
                    "read from a device"
                );
            }
        }
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(kinds.len(), 3, "both were seen: {kinds:?}");
    });
}
