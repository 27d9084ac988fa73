//! Damaged and malicious image archives are rejected and leave nothing.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, gzip, pack, stored};
use whelk_tests::processes::peak_memory;
use whelk_tests::tar::Tar;
use whelk_tests::{Connection, Engine, Program, eventually};

/// The parts of an image archive that errors name first.
const PARTS: [&str; 4] = [
    "invalid archive: ",
    "invalid image configuration: ",
    "invalid manifest, layers length mismatch: expected ",
    "layer ",
];

/// Loads an archive with both clients and through the API. Each must fail with an error that names
/// the part of the archive, and nothing may be stored.
#[track_caller]
fn refused(engine: &Engine, what: &str, archive: &[u8]) {
    let before = (stored(engine), engine.docker(&["images", "-aq"]).ok());
    for program in [Program::Docker, Program::Whelk] {
        let output = engine.cli(program).feed(&["load"], archive);
        assert_eq!(
            output.code,
            1,
            "{what}, {program:?}: {} {}",
            output.out(),
            output.err()
        );
        assert!(
            PARTS.iter().any(|part| output.err().starts_with(part)),
            "{what}, {program:?}: {}",
            output.err()
        );
    }
    let answer = engine.try_load(archive);
    let text = answer.text();
    let error = answer.json()["message"].as_str().map(str::to_owned);
    let error = error.or_else(|| {
        let message: Value = serde_json::from_str(text.lines().last()?).ok()?;
        Some(message["error"].as_str()?.to_owned())
    });
    assert!(
        error.is_some_and(|error| PARTS.iter().any(|part| error.starts_with(part))),
        "{what}: {} {text}",
        answer.status
    );
    assert_eq!(
        (stored(engine), engine.docker(&["images", "-aq"]).ok()),
        before,
        "{what} left something"
    );
}

fn small(tag: &str) -> Archive {
    Archive::new(tag, vec![images::small_root().finish()])
}

#[test]
fn rejects_files_that_are_not_images() {
    let engine = Engine::without_images(&[]);
    refused(&engine, "nothing", b"");
    refused(&engine, "text", b"hi\n");
    refused(
        &engine,
        "noise",
        &(0..100_000u32)
            .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[1])
            .collect::<Vec<_>>(),
    );
    refused(&engine, "an empty archive", &Tar::new().finish());
    refused(
        &engine,
        "an archive of other files",
        &Tar::new().file("README", "hello").finish(),
    );
    refused(
        &engine,
        "a manifest that is no JSON",
        &Tar::new().file("manifest.json", "garbage").finish(),
    );
    refused(
        &engine,
        "a manifest of another shape",
        &Tar::new().file("manifest.json", "{\"a\": 1}").finish(),
    );
    refused(
        &engine,
        "an index that is no JSON",
        &Tar::new()
            .file("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}")
            .file("index.json", "garbage")
            .finish(),
    );
    refused(&engine, "gzip of nothing", &gzip(b""));
    refused(
        &engine,
        "half of gzip",
        &gzip(&small("x").build())[..20_000],
    );
}

#[test]
fn rejects_incomplete_images() {
    let engine = Engine::without_images(&[]);
    let whole = small("whole");
    let archive = whole.build();
    for length in [
        100,
        600,
        archive.len() / 3,
        archive.len() / 2,
        archive.len() - 5000,
    ] {
        refused(&engine, &format!("cut off at {length}"), &archive[..length]);
    }
    let parts = whole.parts();
    for missing in 0..parts.len() {
        let rest: Vec<_> = parts
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != missing)
            .map(|(_, part)| part.clone())
            .collect();
        refused(
            &engine,
            &format!("without {}", parts[missing].0),
            &pack(&rest),
        );
    }
    engine.load(&archive);
}

#[test]
fn rejects_inconsistent_images() {
    let engine = Engine::without_images(&[]);
    let with = |change: &dyn Fn(&mut Archive)| {
        let mut archive = small("liar");
        change(&mut archive);
        archive.build()
    };
    let digest = |text: &str| format!("sha256:{text}");
    refused(
        &engine,
        "a wrong digest",
        &with(&|archive: &mut Archive| archive.diff_ids = Some(vec![digest(&"0".repeat(64))])),
    );
    refused(
        &engine,
        "too few digests",
        &with(&|archive: &mut Archive| archive.diff_ids = Some(vec![])),
    );
    refused(
        &engine,
        "too many digests",
        &with(&|archive: &mut Archive| {
            archive.diff_ids = Some(vec![digest(&"1".repeat(64)), digest(&"2".repeat(64))])
        }),
    );
    // CVE-2024-3727: a digest is a part of a path.
    for bad in ["../../../../../../tmp/x", "", "xyz", "ABCDEF", "../layers"] {
        refused(
            &engine,
            &format!("the digest {bad:?}"),
            &with(&|archive: &mut Archive| archive.diff_ids = Some(vec![digest(bad)])),
        );
    }
    for algorithm in ["sha999", "md5", "", "../sha256"] {
        let id = format!("{algorithm}:{}", "0".repeat(64));
        refused(
            &engine,
            &id,
            &with(&|archive: &mut Archive| archive.diff_ids = Some(vec![id.clone()])),
        );
    }
    refused(
        &engine,
        "a bad name",
        &with(&|archive: &mut Archive| archive.tags = vec!["Not A Name".to_owned()]),
    );
    let mut damaged = small("damaged").build();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    refused(&engine, "one bit that flipped", &damaged);
}

#[test]
fn parts_of_an_archive_do_not_lead_outside() {
    // CVE-2026-17106 and CVE-2024-3727 for the archive itself.
    let engine = Engine::without_images(&[]);
    let victim = engine.scratch("victim");
    fs::write(victim.join("secret"), "secret").unwrap();
    let outside = victim.display().to_string();
    for path in [
        format!("../../../../../../../..{outside}/new"),
        format!("{outside}/new"),
    ] {
        let manifest = json!([{"Config": path, "RepoTags": ["x:1"], "Layers": [path]}]).to_string();
        refused(
            &engine,
            &path,
            &Tar::new()
                .file(&path, "{}")
                .file("manifest.json", &manifest)
                .finish(),
        );
        let link = Tar::new()
            .symlink("config.json", &format!("{outside}/secret"))
            .file("manifest.json", manifest.replace(&path, "config.json"));
        refused(&engine, "a link to a file of the host", &link.finish());
    }
    let through = Tar::new()
        .symlink("dir", &outside)
        .file("dir/new", "x")
        .file("manifest.json", "[]")
        .finish();
    let _ = engine.try_load(&through);
    assert_eq!(entries(&victim), ["secret"]);
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn layers_write_nothing_outside_the_layer() {
    let engine = Engine::without_images(&[]);
    let victim = engine.scratch("victim");
    fs::write(victim.join("secret"), "secret").unwrap();
    fs::create_dir(victim.join("dir")).unwrap();
    let outside = victim.display().to_string();
    let climbing = format!("../../../../../../../../..{outside}");
    let layers = [
        (
            "a climbing name",
            Tar::new().file(&format!("{climbing}/new"), "x"),
        ),
        (
            "a climbing name behind a directory",
            Tar::new().dir("d").file(&format!("d/{climbing}/new"), "x"),
        ),
        (
            "an absolute name",
            Tar::new().file(&format!("{outside}/new"), "x"),
        ),
        (
            "through a link",
            Tar::new().symlink("d", &outside).file("d/new", "x"),
        ),
        (
            "through a climbing link",
            Tar::new().symlink("d", &climbing).file("d/new", "x"),
        ),
        (
            "through a chain of links",
            Tar::new()
                .symlink("a", "..")
                .symlink("b", "a/..")
                .symlink("d", &format!("b/../../../../../../..{outside}"))
                .file("d/new", "x"),
        ),
        (
            "onto a link",
            Tar::new()
                .symlink("f", &format!("{outside}/secret"))
                .file("f", "overwritten"),
        ),
        (
            "a hard link to a file of the host",
            Tar::new()
                .hard_link("f", &format!("{outside}/secret"))
                .file("f", "overwritten"),
        ),
        (
            "a climbing hard link",
            Tar::new()
                .hard_link("f", &format!("{climbing}/secret"))
                .file("f", "overwritten"),
        ),
        (
            "a hard link to a link",
            Tar::new()
                .symlink("l", &format!("{outside}/secret"))
                .hard_link("f", "l")
                .file("f", "overwritten"),
        ),
        (
            "a hard link through a link",
            Tar::new()
                .symlink("l", &outside)
                .hard_link("f", "l/secret")
                .file("f", "overwritten"),
        ),
        (
            "a directory that becomes a link",
            Tar::new()
                .dir("d")
                .file("d/x", "x")
                .symlink("d", &outside)
                .file("d/new", "x"),
        ),
        (
            "whiteout through a link",
            Tar::new().symlink("d", &outside).file("d/.wh.secret", ""),
        ),
        (
            "opaque through a link",
            Tar::new().symlink("d", &outside).file("d/.wh..wh..opq", ""),
        ),
        (
            "whiteout of the parent",
            Tar::new().dir("d").file("d/.wh...", "").file("d/.wh..", ""),
        ),
        (
            "a directory's rights through a link",
            Tar::new()
                .symlink("d", &format!("{outside}/dir"))
                .dir("d")
                .dir("d/sub"),
        ),
        (
            "a device through a link",
            Tar::new().symlink("d", &outside).device("d/zero", 1, 5),
        ),
        (
            "a pipe through a link",
            Tar::new().symlink("d", &outside).fifo("d/pipe"),
        ),
    ];
    let rights = fs::metadata(victim.join("dir")).unwrap().permissions();
    for (what, layer) in layers {
        let layer = layer.finish();
        // It may be rejected or loaded, as long as no file outside was changed.
        let _ = engine.http(
            "POST",
            "/images/create?fromSrc=-&repo=evil",
            &[("Content-Type", "application/x-tar")],
            &layer,
        );
        let _ = engine.try_load(&Archive::new("evil", vec![layer]).build());
        assert_eq!(entries(&victim), ["dir", "secret"], "{what}");
        assert_eq!(
            fs::read_to_string(victim.join("secret")).unwrap(),
            "secret",
            "{what}"
        );
        assert_eq!(entries(&victim.join("dir")), Vec::<String>::new(), "{what}");
        assert_eq!(
            fs::metadata(victim.join("dir")).unwrap().permissions(),
            rights,
            "{what}"
        );
        assert_eq!(
            entries(&engine.root().join("tmp")),
            Vec::<String>::new(),
            "{what}"
        );
    }
}

#[test]
fn layers_of_an_image_together_write_nothing_outside() {
    // One layer creates a link, the next writes through it.
    let engine = Engine::without_images(&[]);
    let victim = engine.scratch("victim");
    let outside = victim.display().to_string();
    let layers = vec![
        images::small_root().symlink("d", &outside).finish(),
        Tar::new().file("d/new", "x").file("d/.wh.old", "").finish(),
    ];
    let answer = engine.try_load(&Archive::new("layered", layers).build());
    assert_eq!(entries(&victim), Vec::<String>::new());
    if !answer.text().contains("\"error\"") {
        let output = engine.whelk(&[
            "run",
            "--rm",
            "--network",
            "none",
            "layered",
            "cat",
            "/d/new",
        ]);
        assert_eq!(
            output.ok(),
            "x",
            "the later layer's directory takes the link's place"
        );
    }
}

#[test]
fn an_image_without_layers_is_loaded_or_refused_but_runs_nothing_of_the_host() {
    // CVE-2026-24054
    let engine = Engine::without_images(&[]);
    for layers in [vec![], vec![Tar::new().finish()]] {
        let answer = engine.try_load(&Archive::new("empty", layers).build());
        if answer.text().contains("\"error\"") {
            continue;
        }
        for program in [Program::Docker, Program::Whelk] {
            let output = engine.cli(program).run(&[
                "run",
                "--rm",
                "--network",
                "none",
                "empty",
                "/bin/sh",
                "-c",
                "echo ran",
            ]);
            output.refuses(127, "no such file or directory");
        }
    }
}

/// A configuration for these layers with further fields.
fn config(layer: &[u8], more: &str) -> String {
    format!(
        r#"{{"architecture":"amd64","os":"linux",{more}"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        images::sha256(layer)
    )
}

#[test]
fn a_large_configuration_with_many_names_is_read_once() {
    let engine = Engine::without_images(&[]);
    let layer = Tar::new().file("x", "x").finish();
    let config = config(
        &layer,
        &format!(
            r#""config":{{"Labels":{{"large":"{}"}}}},"#,
            "x".repeat(8_000_000)
        ),
    );
    let manifest = |count: usize| {
        let images: Vec<_> = (0..count)
            .map(|n| json!({"Config": "c", "RepoTags": [format!("many:{n}")], "Layers": ["l"]}))
            .collect();
        gzip(
            &Tar::new()
                .file("c", &config)
                .file("l", &layer)
                .file("manifest.json", json!(images).to_string())
                .finish(),
        )
    };
    let archive = manifest(3000);
    assert!(
        archive.len() < 100_000,
        "a small archive: {}",
        archive.len()
    );
    let before = peak_memory(&engine);
    let answer = engine.try_load(&archive);
    assert_eq!(
        answer.text().lines().count(),
        3000,
        "all names: {}",
        &answer.text()[..200]
    );
    let grown = peak_memory(&engine) - before;
    assert!(grown < 150, "{grown} MiB");
    refused(&engine, "too many names", &manifest(10_001));
    let lists = |field: &str, element: &str, count: usize| {
        let text = crate::config(
            &layer,
            &format!(r#""{field}":[{}],"#, vec![element; count].join(",")),
        );
        let manifest =
            json!([{"Config": "c", "RepoTags": ["lists:1"], "Layers": ["l"]}]).to_string();
        gzip(
            &Tar::new()
                .file("c", text)
                .file("l", &layer)
                .file("manifest.json", manifest)
                .finish(),
        )
    };
    refused(
        &engine,
        "an endless history",
        &lists("history", "{}", 2_000_000),
    );
    let layers = json!([{"Config": "c", "Layers": vec!["l"; 100_000]}]).to_string();
    refused(
        &engine,
        "endless layers",
        &Tar::new()
            .file("c", &config)
            .file("l", &layer)
            .file("manifest.json", layers)
            .finish(),
    );
    // Each is within the limit, but their total is not.
    let mut many = Tar::new().file("l", &layer);
    let large = "x".repeat(7_000_000);
    for n in 0..6 {
        many = many.file(
            &format!("c{n}"),
            crate::config(&layer, &format!(r#""comment":"{n}{large}","#)),
        );
    }
    let images: Vec<_> = (0..6)
        .map(|n| json!({"Config": format!("c{n}"), "Layers": ["l"]}))
        .collect();
    refused(
        &engine,
        "too much metadata",
        &gzip(
            &many
                .file("manifest.json", json!(images).to_string())
                .finish(),
        ),
    );
    let whole = Tar::new()
        .file("c", crate::config(&layer, ""))
        .file("l", &layer);
    let whole = whole.file(
        "manifest.json",
        json!([{"Config": "c", "Layers": ["l"]}]).to_string(),
    );
    refused(
        &engine,
        "a long name",
        &whole
            .pax(&[("path", &"n".repeat(3000))])
            .file("n", "")
            .finish(),
    );
    assert!(
        peak_memory(&engine) - before < 300,
        "{} MiB",
        peak_memory(&engine) - before
    );
}

#[test]
fn repeated_entries_need_no_memory() {
    let engine = Engine::without_images(&[]);
    let deep = vec!["d".repeat(200); 18].join("/");
    let repeated = (0..20_000).fold(Tar::new(), |tar, _| {
        tar.pax(&[("path", &format!("{deep}/"))]).dir("d")
    });
    let layer = gzip(&repeated.finish());
    let before = peak_memory(&engine);
    engine.import("again", &[], &layer);
    let grown = peak_memory(&engine) - before;
    assert!(grown < 40, "{grown} MiB for one directory");
}

#[test]
fn directories_have_the_times_of_the_archive() {
    let engine = Engine::without_images(&[]);
    let root = images::small_root()
        .dir("d")
        .dir("d/e")
        .file("d/e/late", "x")
        .file("d/later", "x")
        .symlink("link", "d")
        .file("link/last", "x")
        .dir("d/e")
        .file("d/new/file", "x");
    engine.import("times", &[], &root.finish());
    let output = engine.whelk(&[
        "run",
        "--rm",
        "--network",
        "none",
        "times",
        "stat",
        "-c",
        "%n %Y",
        "/d",
        "/d/e",
        "/d/later",
    ]);
    assert_eq!(
        output.ok(),
        "/d 1704067200\n/d/e 1704067200\n/d/later 1704067200"
    );
}

/// An incomplete upload is rejected, even if the received part is a complete archive.
#[test]
fn an_upload_that_is_cut_off_changes_nothing() {
    let engine = Engine::start();
    engine.docker(&["tag", "busybox", "kept:1"]).ok();
    let image = |name: &str| engine.docker(&["images", "-q", "--no-trunc", name]).ok();
    let before = (image("kept:1"), stored(&engine));
    let whole = Tar::new().file("a", b"content").finish();
    let cut_off = |path: &str, sent: &[u8], chunked: bool| {
        let known = engine.last_words().matches("ended early").count();
        let mut client = Connection::open(&engine.socket()).unwrap();
        let length = if chunked {
            "Transfer-Encoding: chunked"
        } else {
            "Content-Length: 1000000"
        };
        client
            .send_raw(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n").as_bytes())
            .unwrap();
        if chunked && !sent.is_empty() {
            let head = format!("{:x}\r\n", sent.len());
            client.send_raw(head.as_bytes()).unwrap();
        }
        client.send_raw(sent).unwrap();
        drop(client);
        let case = format!(
            "the engine reports the missing end: {path} {} {chunked}",
            sent.len()
        );
        eventually(&case, || {
            (engine.last_words().matches("ended early").count() > known).then_some(())
        });
    };
    for chunked in [false, true] {
        for sent in [&b""[..], &whole[..1024], &whole] {
            cut_off("/images/create?fromSrc=-&repo=kept&tag=1", sent, chunked);
        }
        // `load` stops reading at the end of an archive.
        for sent in [&b""[..], &whole[..1024]] {
            cut_off("/images/load", sent, chunked);
        }
    }
    assert_eq!((image("kept:1"), stored(&engine)), before);
    let all = engine.docker(&["images", "-aq"]).ok();
    assert!(all.lines().all(|id| before.0.contains(id)), "{all}");
}
