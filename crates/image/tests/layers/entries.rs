//! Files, directories, links and devices: their content, metadata and names.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::check;
use crate::common::{
    Bench, Entry, device, dir, ended, entry, fifo, file, hard_link, listing, noise, pack, symlink,
    xattr,
};
use tar::{EntryType, Header};
use whelk_image::Digest;
use whelk_sys::fs;

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
            dir("shared/").owner(0, 50).mode(0o2777),
            // New files in such a directory are its group's.
            file("shared/own", "4").mode(0o666),
            file("shared/group", "5").owner(0, 50).mode(0o2644),
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
            "shared dir 2777 0:50",
            "shared/group file 2644 0:50 5",
            "shared/own file 0666 0:0 4",
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
fn times_before_1970_are_kept() {
    let pax = |time: &str, expected| {
        check_time(&[file("f", "x").mtime(9).pax("mtime", time)], "f", expected);
        check_time(&[symlink("l", "x").pax("mtime", time)], "l", expected);
        check_time(&[dir("d/").pax("mtime", time)], "d", expected);
    };
    pax("-1.5", (-2, 500_000_000));
    pax("-0.5", (-1, 500_000_000));
    pax("-86400", (-86_400, 0));
    // As GNU tar writes it in a header: base 256, negative.
    let early = file("f", "x").change(|header| {
        let field = &mut header.as_old_mut().mtime;
        field.fill(0xff);
        field[11] = 0xfe;
    });
    check_time(&[early], "f", (-2, 0));
    // What is no time is ignored, in both forms.
    for bad in ["1.-5", "1.5x", "", "-"] {
        pax_is_ignored(bad);
    }
}

#[track_caller]
fn pax_is_ignored(time: &str) {
    check_time(&[file("f", "x").mtime(9).pax("mtime", time)], "f", (9, 0));
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

/// Libraries of clients leave fields empty that nobody set; Go's tar package, and so Docker, reads 0.
#[test]
fn empty_numbers_are_zero() {
    check(
        &[
            file("nothing", "1").change(|header| {
                let fields = header.as_old_mut();
                fields.mode.fill(0);
                fields.mtime.fill(0);
                for id in [&mut fields.uid, &mut fields.gid] {
                    id.fill(0);
                }
            }),
            file("spaces", "2").owner(1, 1).change(|header| {
                header.as_old_mut().uid.fill(b' ');
            }),
            device(EntryType::Block, "disk", 0, 7).change(|header| {
                header.as_gnu_mut().unwrap().dev_major.fill(0);
            }),
        ],
        &[
            "disk block 0644 0:0 0:7",
            "nothing file 0000 0:0 1",
            "spaces file 0644 0:1 2",
        ],
    );
    check_time(
        &[file("nothing", "").change(|header| header.as_old_mut().mtime.fill(0))],
        "nothing",
        (0, 0),
    );
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
