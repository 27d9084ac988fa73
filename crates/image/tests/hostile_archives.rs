//! Tests with hostile image archives: each must be refused without storing anything of it and
//! without changes outside of the store.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use common::images::{
    CONFIG, INDEX, Image, LAYER, MANIFEST, blob, blob_name, bytes, config, descriptor,
    docker_archive, index, index_json, manifest_json, oci_archive,
};
use common::{
    Bench, CLIMB, Entry, device, dir, endless, entry, file, gzip, hard_link, load, noise, pack,
    pack_open, symlink, within,
};
use serde_json::{Value, json};
use tar::EntryType;
use whelk_image::{Digest, Error};

/// The parts of an image archive that errors name first.
const PARTS: [&str; 4] = [
    "invalid archive: ",
    "invalid image configuration: ",
    "invalid manifest, layers length mismatch: expected ",
    "layer ",
];

/// Checks that an image archive is refused before anything of it is stored.
#[track_caller]
fn check_load(what: &str, archive: &[u8]) {
    let bench = Bench::new();
    let guard = bench.guard();
    match load(&bench.store, archive, None) {
        Err(Error::Invalid(text)) => assert!(
            PARTS.iter().any(|part| text.starts_with(part)),
            "{what}: {text}"
        ),
        other => panic!("{what}: {other:?}"),
    }
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
fn rejects_files_that_are_not_image_archives() {
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
        (
            "a root file system",
            &[dir("etc/"), file("etc/passwd", "root:x:0:0")],
        ),
        ("a directory as the manifest", &[dir("manifest.json")]),
    ]);
    let whole = pack(&docker_archive(&[(&image(), &["name:1"])]));
    for length in [1, 100, 512, 700, 1024, 2000] {
        check_load(&format!("{length} bytes of an archive"), &whole[..length]);
        check_load(
            &format!("{length} bytes of a compressed archive"),
            &gzip(&whole)[..length.min(60)],
        );
    }
}

#[test]
fn rejects_malformed_manifests() {
    let deep = "[".repeat(100_000);
    let large = format!("[{}]", " ".repeat(9 << 20));
    load_refused(&[
        ("no JSON", &[file("manifest.json", "nonsense")]),
        ("empty", &[file("manifest.json", "")]),
        ("an object", &[file("manifest.json", "{}")]),
        ("null", &[file("manifest.json", "null")]),
        ("without a configuration", &[file("manifest.json", "[{}]")]),
        (
            "numbers",
            &[file("manifest.json", r#"[{"Config": 1, "Layers": [2]}]"#)],
        ),
        ("deeply nested", &[file("manifest.json", &deep)]),
        ("deeply nested index", &[file("index.json", &deep)]),
        (
            "larger than anybody needs",
            &[file("manifest.json", &large)],
        ),
        ("a large index", &[file("index.json", &large)]),
        (
            "cut short",
            &[file(
                "manifest.json",
                &bytes(&json!([{"Config": "c"}]))[..10],
            )],
        ),
        (
            "a link to itself",
            &[symlink("manifest.json", "manifest.json")],
        ),
        (
            "a link out of the archive",
            &[symlink("manifest.json", "/etc/passwd")],
        ),
    ]);
}

#[test]
fn rejects_missing_parts_and_parts_outside() {
    let image = image();
    let (config, layer) = (blob_name(&image.config), blob_name(&image.layers[0]));
    let with = |manifest: Entry| vec![blob(&image.config), blob(&image.layers[0]), manifest];
    let mut climbing = with(manifest_json(&config, &[&layer], &[]));
    climbing.insert(0, file(format!("{CLIMB}/planted"), "x"));
    load_refused(&[
        (
            "configuration",
            &[
                blob(&image.layers[0]),
                manifest_json(&config, &[&layer], &[]),
            ],
        ),
        (
            "layer",
            &[blob(&image.config), manifest_json(&config, &[&layer], &[])],
        ),
        (
            "absolute configuration",
            &with(manifest_json("/etc/passwd", &[&layer], &[])),
        ),
        (
            "climbing configuration",
            &with(manifest_json("../../etc/passwd", &[&layer], &[])),
        ),
        (
            "absolute layer",
            &with(manifest_json(&config, &["/etc/passwd"], &[])),
        ),
        (
            "climbing layer",
            &with(manifest_json(&config, &[&format!("{CLIMB}/file")], &[])),
        ),
        ("empty names", &with(manifest_json("", &[""], &[]))),
        (
            "a directory as the layer",
            &[
                blob(&image.config),
                dir("d/"),
                manifest_json(&config, &["d"], &[]),
            ],
        ),
        ("climbing entry", &[file("../manifest.json", "[]")]),
        (
            "climbing entry in the middle",
            &[file("a/../../manifest.json", "[]")],
        ),
        ("climbing entry with an honest manifest", &climbing),
    ]);
}

#[test]
fn rejects_links_that_do_not_end_at_a_file() {
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
        (
            "climbing",
            &with(&[symlink("a/layer.tar", "../../../etc/passwd")]),
        ),
        (
            "climbing from the top",
            &with(&[
                symlink("a/layer.tar", "../b"),
                symlink("b", "../../../etc/passwd"),
            ]),
        ),
        (
            "absolute hard link",
            &with(&[hard_link("a/layer.tar", "/etc/passwd")]),
        ),
        (
            "climbing hard link",
            &with(&[hard_link("a/layer.tar", "../etc/passwd")]),
        ),
        ("itself", &with(&[symlink("a/layer.tar", "layer.tar")])),
        (
            "loop",
            &with(&[symlink("a/layer.tar", "../b"), symlink("b", "a/layer.tar")]),
        ),
        (
            "loop of hard links",
            &with(&[hard_link("a/layer.tar", "b"), hard_link("b", "a/layer.tar")]),
        ),
        ("missing", &with(&[symlink("a/layer.tar", "../nowhere")])),
        ("without a target", &with(&[symlink("a/layer.tar", "")])),
    ]);
    // The chain ends in a valid file, after a hundred links.
    let mut chain = vec![symlink("a/layer.tar", "../l0")];
    chain.extend((0..100).map(|step| symlink(format!("l{step}"), format!("l{}", step + 1))));
    chain.push(file("l100", &image.layers[0]));
    load_refused(&[("long chain", &with(&chain))]);
}

#[test]
fn ignores_other_entry_types() {
    for kind in [
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
        EntryType::new(b'V'),
    ] {
        let mut entries = docker_archive(&[(&image(), &["name:1"])]);
        entries.insert(0, entry(kind, "odd"));
        // Images do not use these types, and nothing is created from them.
        let bench = Bench::new();
        let loaded = load(&bench.store, pack(&entries).as_slice(), None).unwrap();
        assert_eq!(loaded[0].id, image().id(), "{kind:?}");
        bench.check_temporary("odd");
    }
    let large = vec![b'x'; 5 << 20];
    load_refused(&[
        ("long name", &[file(&large, "")]),
        (
            "extended header",
            &[file("manifest.json", "[]").pax("comment", &large)],
        ),
    ]);
    let bench = Bench::new();
    let claims = pack_open(&[entry(EntryType::XHeader, "header").size(1 << 40)]);
    let store = bench.store.clone();
    let result = within(60, move || load(&store, endless(claims, 1 << 40), None));
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_empty("endless header");
}

#[test]
fn rejects_content_with_wrong_digests() {
    let (image, other) = (image(), Image::new("other", &[layer()]));
    let (config, layer) = (blob_name(&image.config), blob_name(&image.layers[0]));
    let hex = image.id().hex().to_owned();
    let manifest = manifest_json(&config, &[&layer], &[]);
    let bad_layer = file(&layer, pack(&[file("f", "something else")]));
    let bad_config = file(&config, &other.config);
    load_refused(&[
        (
            "configuration",
            &[bad_config.clone(), blob(&image.layers[0]), manifest.clone()],
        ),
        (
            "layer",
            &[blob(&image.config), bad_layer.clone(), manifest.clone()],
        ),
        (
            "old configuration",
            &[
                file(format!("{hex}.json"), &other.config),
                blob(&image.layers[0]),
                manifest_json(&format!("{hex}.json"), &[&layer], &[]),
            ],
        ),
        (
            "layer under a name without a digest",
            &[
                blob(&image.config),
                file("a/layer.tar", pack(&[file("f", "else")])),
                manifest_json(&config, &["a/layer.tar"], &[]),
            ],
        ),
        (
            "link to something else",
            &[
                blob(&image.config),
                file("x", "else"),
                hard_link(&layer, "x"),
                manifest.clone(),
            ],
        ),
    ]);
    let mut oci = oci_archive(&[(&image, "docker.io/library/name:1")]);
    oci.insert(0, bad_layer);
    let bench = Bench::new();
    match load(&bench.store, pack(&oci).as_slice(), None) {
        // The same name twice: the last one counts, as when unpacking.
        Ok(loaded) => assert_eq!(loaded[0].id, image.id()),
        Err(error) => assert!(matches!(error, Error::Invalid(_)), "{error}"),
    }
    let manifest = Digest::of(&oci_manifest(&image));
    let oci: Vec<Entry> = oci_archive(&[(&image, "docker.io/library/name:1")]);
    let mut bad_manifest = oci.clone();
    bad_manifest.push(file(
        format!("blobs/sha256/{}", manifest.hex()),
        oci_manifest(&other),
    ));
    let mut bad_oci_config = oci;
    bad_oci_config.push(bad_config);
    load_refused(&[
        ("manifest", &bad_manifest),
        ("configuration in OCI's layout", &bad_oci_config),
    ]);
}

fn oci_manifest(image: &Image) -> Vec<u8> {
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| descriptor(LAYER, layer))
        .collect();
    bytes(
        &json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &image.config), "layers": layers}),
    )
}

/// Parts are extracted to numbered files. A second part of the same name must not replace the
/// content of one that was checked.
#[test]
fn a_repeated_part_does_not_replace_a_checked_one() {
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
    match load(&bench.store, pack(&entries).as_slice(), None) {
        Ok(loaded) => {
            assert_eq!(
                (loaded.len(), &loaded[0].id),
                (1, &good.id()),
                "the loaded content does not match its digest"
            );
            assert_eq!(loaded[0].config.config.cmd, ["good"]);
        }
        Err(error) => assert!(matches!(error, Error::Invalid(_)), "{error}"),
    }
    bench.check_temporary("twice");
}

#[test]
fn rejects_invalid_digests() {
    let layer = layer();
    let good = Digest::of(&layer);
    let upper = format!("sha256:{}", good.hex().to_uppercase());
    for digest in [
        "sha256:../../x",
        "sha256:",
        "",
        "../../x",
        "sha512:00",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        &upper,
        &good.as_str()[..70],
    ] {
        let config = config("x", &[digest.to_owned()]);
        let entries = [
            blob(&layer),
            blob(&config),
            manifest_json(&blob_name(&config), &[&blob_name(&layer)], &[]),
        ];
        check_load(&format!("diff-id {digest:?}"), &pack(&entries));
        let bad = json!({"mediaType": MANIFEST, "digest": digest, "size": 2});
        check_load(
            &format!("index with {digest:?}"),
            &pack(&[index_json(std::slice::from_ref(&bad)), file("x", "{}")]),
        );
        let manifest = bytes(&json!({"schemaVersion": 2, "config": bad, "layers": []}));
        check_load(
            &format!("manifest with {digest:?}"),
            &pack(&[
                blob(&manifest),
                index_json(&[descriptor(MANIFEST, &manifest)]),
            ]),
        );
        let manifest = bytes(
            &json!({"schemaVersion": 2, "config": descriptor(CONFIG, &config), "layers": [bad]}),
        );
        let entries = [
            blob(&config),
            blob(&manifest),
            index_json(&[descriptor(MANIFEST, &manifest)]),
        ];
        check_load(&format!("layer with {digest:?}"), &pack(&entries));
    }
}

/// Checks an image with this configuration, whose layers are these parts.
#[track_caller]
fn check_config(what: &str, config: &[u8], layers: &[&str]) {
    check_load(
        what,
        &pack(&[
            blob(&layer()),
            file("config", config),
            manifest_json("config", layers, &["name:1"]),
        ]),
    );
}

#[test]
fn rejects_inconsistent_configurations() {
    let layer = layer();
    let (name, diff_id) = (blob_name(&layer), Digest::of(&layer).to_string());
    let one = config("x", std::slice::from_ref(&diff_id));
    check_config(
        "more layers",
        &config("x", &[diff_id.clone(), diff_id.clone()]),
        &[&name],
    );
    check_config("fewer layers", &one, &[&name, &name]);
    check_config("no layers", &config("x", &[]), &[&name]);
    check_config("no layers in the manifest", &one, &[]);
    check_config(
        "another diff-id",
        &config("x", &[Digest::of(b"other").to_string()]),
        &[&name],
    );
    check_config("no JSON", b"nonsense", &[&name]);
    check_config("no root file system", b"{}", &[]);
    check_config(
        "another kind of root file system",
        br#"{"rootfs": {"type": "aufs", "diff_ids": []}}"#,
        &[],
    );
    let history = json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}, "history": [{}, {}]});
    check_config("more history than layers", &bytes(&history), &[&name]);
    let mut large = one;
    large.resize(9 << 20, b' ');
    check_config("larger than anybody needs", &large, &[&name]);
    let (diff_ids, names) = (vec![diff_id; 1001], vec![name.as_str(); 1001]);
    check_config("more layers than possible", &config("x", &diff_ids), &names);
}

#[test]
fn rejects_invalid_names() {
    let image = image();
    let (long, id) = ("a".repeat(300), image.id());
    let names = [
        "",
        "UPPER:1",
        "a b:1",
        "../x:1",
        "/x:1",
        "a:b:c",
        "name:",
        "name@sha256:12",
        "a\0b:1",
        "-x:1",
        "a//b:1",
        &long,
        id.hex(),
    ];
    for name in names {
        check_load(
            &format!("{name:?}"),
            &pack(&docker_archive(&[(&image, &[name])])),
        );
        if !name.is_empty() {
            check_load(
                &format!("annotation {name:?}"),
                &pack(&oci_archive(&[(&image, name)])),
            );
        }
    }
}

#[test]
fn rejects_deep_and_long_indexes() {
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
    many.push(index_json(&vec![descriptor(MANIFEST, &manifest); 10_001]));
    load_refused(&[("ten thousand manifests", &many)]);
}

/// Each of four levels refers to the next one a thousand times; the last one is empty.
#[test]
fn rejects_wide_indexes() {
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
    let result = within(30, move || load(&store, archive.as_slice(), None));
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_empty("wide");
}

/// A document that can be read as two media types lets a verified image become another one
/// (CVE-2021-41190).
#[test]
fn rejects_documents_of_another_media_type() {
    let image = image();
    let manifest = oci_manifest(&image);
    let wrapped = index(&[descriptor(MANIFEST, &manifest)]);
    let parts = [
        blob(&image.config),
        blob(&image.layers[0]),
        blob(&manifest),
        blob(&wrapped),
    ];
    for (what, descriptor) in [
        ("a manifest as an index", descriptor(INDEX, &manifest)),
        ("an index as a manifest", descriptor(MANIFEST, &wrapped)),
        (
            "a configuration as a manifest",
            descriptor(MANIFEST, &image.config),
        ),
        (
            "a layer as a manifest",
            descriptor(MANIFEST, &image.layers[0]),
        ),
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
fn rejects_too_many_entries() {
    let mut entries: Vec<Entry> = (0..20_100)
        .map(|number| file(format!("{number}"), ""))
        .collect();
    entries.extend(docker_archive(&[(&image(), &["name:1"])]));
    load_refused(&[("files", &entries)]);
    let mut entries: Vec<Entry> = (0..20_100)
        .map(|number| symlink(format!("{number}"), "x"))
        .collect();
    entries.extend(docker_archive(&[(&image(), &["name:1"])]));
    load_refused(&[("links", &entries)]);
}

#[test]
fn rejects_images_with_hostile_layers() {
    let layers = [
        pack(&[file("../planted", "x")]),
        pack(&[device(EntryType::Char, "gone", 0, 0)]),
        pack(&[dir("d/").xattr("trusted.overlay.redirect", "/")]),
        noise(1024),
    ];
    for (number, hostile) in layers.iter().enumerate() {
        let image = Image::new("hostile", std::slice::from_ref(hostile));
        check_load(
            &format!("docker, {number}"),
            &pack(&docker_archive(&[(&image, &["name:1"])])),
        );
        check_load(
            &format!("oci, {number}"),
            &pack(&oci_archive(&[(&image, "docker.io/library/name:1")])),
        );
    }
    // A valid layer of the same image may remain until the next `gc`; no image and no partial layer
    // may.
    let bench = Bench::new();
    let image = Image::new("half", &[layer(), layers[0].clone()]);
    let result = load(
        &bench.store,
        pack(&docker_archive(&[(&image, &["name:1"])])).as_slice(),
        None,
    );
    assert!(matches!(result, Err(Error::Invalid(_))), "{result:?}");
    bench.check_temporary("half");
    assert_eq!(bench.names("blobs/sha256"), [""; 0]);
}

#[test]
fn accepts_an_image_without_layers() {
    for (layers, diff_ids) in [
        (json!([]), json!([])),
        (json!(null), json!([])),
        (json!([]), json!(null)),
    ] {
        let bench = Bench::new();
        let config =
            bytes(&json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}));
        let manifest = json!([{"Config": "config.json", "RepoTags": null, "Layers": layers}]);
        let archive = pack(&[
            file("config.json", &config),
            file("manifest.json", bytes(&manifest)),
        ]);
        let loaded = load(&bench.store, archive.as_slice(), None).unwrap();
        assert_eq!(
            (loaded.len(), &loaded[0].id, loaded[0].size),
            (1, &Digest::of(&config), 0)
        );
        assert_eq!(bench.store.content.read(&loaded[0].id).unwrap(), config);
        bench.check_temporary("no layers");
    }
    let without = json!([{"Config": "config.json"}]);
    let config = bytes(&json!({"rootfs": {"type": "layers"}}));
    let bench = Bench::new();
    let archive = pack(&[
        file("config.json", &config),
        file("manifest.json", bytes(&without)),
    ]);
    assert_eq!(
        load(&bench.store, archive.as_slice(), None).unwrap().len(),
        1
    );
}
