//! Whiteouts, devices, attributes and owners.

use crate::common::{Bench, apply, device, dir, entry, file, pack, symlink, whiteout};
use crate::{contained, refused};
use tar::EntryType;

#[test]
fn rejects_whiteouts_with_invalid_names() {
    refused(
        "",
        &[
            ("nothing", &[file(".wh.", "")]),
            ("this directory", &[file(".wh..", "")]),
            ("the parent", &[file(".wh...", "")]),
            (
                "the parent of a directory",
                &[dir("d/"), file("d/.wh...", "")],
            ),
            ("below a file", &[file("f", ""), whiteout("f/x")]),
            ("in the parent", &[file("../.wh.store", "")]),
        ],
    );
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
    refused(
        "entry \"gone\": ",
        &[
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
        ],
    );
}

#[test]
fn rejects_overlayfs_attributes() {
    refused(
        "overlay.",
        &[
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
        ],
    );
}

/// A value that the kernel rejects makes the archive invalid.
#[test]
fn rejects_invalid_attributes() {
    refused(
        "entry \"f\": set extended attribute ",
        &[
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
            (
                "a capability of an unknown version",
                &[file("f", "").xattr(
                    "security.capability",
                    [[0, 0, 0, 9], [0; 4], [0; 4], [0; 4], [0; 4]].concat(),
                )],
            ),
            (
                "an access list without others",
                &[file("f", "").xattr(ACCESS, acl(&[(1, 7), (4, 5)]))],
            ),
            (
                "an access list in another order",
                &[file("f", "").xattr(ACCESS, acl(&[(4, 5), (1, 7), (0x20, 5)]))],
            ),
            (
                "an access list without a mask",
                &[file("f", "").xattr(ACCESS, acl(&[(1, 7), (2, 7), (4, 5), (0x20, 5)]))],
            ),
            (
                "an access list of an unknown kind",
                &[file("f", "").xattr(ACCESS, acl(&[(1, 7), (4, 5), (0x20, 5), (0x40, 5)]))],
            ),
            (
                "an access list with unknown permissions",
                &[file("f", "").xattr(ACCESS, acl(&[(1, 8), (4, 5), (0x20, 5)]))],
            ),
        ],
    );
}

const ACCESS: &str = "system.posix_acl_access";

/// Returns an ACL with these kinds of entries and permissions.
fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
    let mut value = vec![2, 0, 0, 0];
    for (kind, permissions) in entries {
        let id: u32 = if matches!(kind, 2 | 8) { 5 } else { u32::MAX };
        value.extend([kind.to_le_bytes(), permissions.to_le_bytes()].concat());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Valid ACLs are kept, and set the permissions of the group.
#[test]
fn keeps_access_lists() {
    let full = acl(&[(1, 7), (2, 6), (2, 7), (4, 5), (8, 1), (0x10, 4), (0x20, 1)]);
    let minimal = acl(&[(1, 6), (4, 4), (0x20, 0)]);
    let bench = Bench::new();
    bench.unpack(&pack(&[
        dir("d/").xattr("system.posix_acl_default", full.clone()),
        file("f", "f").xattr(ACCESS, full),
        file("g", "g").xattr(ACCESS, minimal),
        file("h", "h").xattr(ACCESS, acl(&[])),
    ]));
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
    refused(
        ": owner",
        &[
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
        ],
    );
}

/// chown(2) takes -1 as "do not change": a set-id file would keep root as its owner.
#[test]
fn rejects_the_owner_minus_one() {
    const NONE: u64 = u32::MAX as u64;
    refused(
        ": owner 4294967295 is out of range",
        &[
            ("owner", &[file("f", "").owner(NONE, 0).mode(0o4755)]),
            ("group", &[file("f", "").owner(0, NONE).mode(0o2755)]),
            ("a directory's", &[dir("d/").owner(NONE, NONE)]),
            ("a link's", &[symlink("l", "x").owner(NONE, NONE)]),
            ("extended header", &[file("f", "").pax("uid", "4294967295")]),
        ],
    );
}
