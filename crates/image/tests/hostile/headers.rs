//! Headers that are malformed or too large.

use crate::common::{
    Bench, apply, device, ended, endless, entry, file, noise, pack, pack_open, sparse, symlink,
    within,
};
use crate::{check_refused, refused};
use tar::EntryType;
use whelk_image::Error;

#[test]
fn rejects_malformed_numbers() {
    refused(
        "",
        &[
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
        ],
    );
    let mut archive = pack(&[file("f", "x")]);
    archive[0] = b'g';
    check_refused("checksum", "header checksum mismatch", &archive);
}

#[test]
fn rejects_unknown_entry_types() {
    for kind in [b'V', b'M', b'D', b'N', b'A', b'?', b' ', 0xff] {
        check_refused(
            &format!("type {kind}"),
            "entry \"f\": unknown entry type",
            &pack(&[entry(EntryType::new(kind), "f")]),
        );
    }
}

#[test]
fn rejects_oversized_headers() {
    let large = vec![b'x'; 5 << 20];
    refused(
        "read archive: an entry's headers are larger than 1048576 bytes",
        &[
            ("extended header", &[file("f", "").xattr("user.x", &large)]),
            ("long name", &[file(&large, "")]),
            ("long link", &[symlink("l", &large)]),
            ("whiteout with content", &[file(".wh.f", &large)]),
        ],
    );
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
            "entry \"f\": malformed pax header",
            &pack(&[header(content), file("f", "x")]),
        );
    }
    refused(
        "",
        &[
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
        ],
    );
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
        check_refused(what, "sparse", &ended(sparse("f", parts, &content, *size)));
    }
    check_refused(
        "cut short",
        "entry \"f\": 5120 of 8192 bytes: the archive is truncated",
        &sparse("f", &[(0, 512), (4096, 4096)], &noise(4608), 8192)[..2048],
    );
    // Nothing to write, but a size that would take years to count to.
    let bench = Bench::new();
    let store = bench.store.clone();
    let archive = ended(sparse("f", &[(HUGE, 0)], b"", HUGE));
    let result = within(30, move || apply(&store, archive.as_slice(), None));
    let error = result.unwrap_err().to_string();
    assert!(error.starts_with("layer: entry \"f\": "), "{error}");
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
