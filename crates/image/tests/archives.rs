//! Tests of image archives: `load`, `save` and `import`, and `export` of merged layers.
//!
//! Merging layers needs root, for the overlay mount.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use common::images::{
    CONFIG, INDEX, Image, LAYER, MANIFEST, blob, blob_name, bytes, config, descriptor,
    docker_archive, index, index_json, manifest_json, oci_archive, old_docker_archive, sideways,
};
use common::{
    Bench, Entry, device, dir, fifo, file, gzip, hard_link, import, load, noise, pack, symlink,
    whiteout, zstandard,
};
use serde_json::{Value, json};
use tar::{Archive, EntryType};
use whelk_image::archive::{Import, Loaded, Origin, Saved, save};
use whelk_image::config::{ARCHITECTURE, ContainerConfig};
use whelk_image::descriptor::Manifest;
use whelk_image::progress::{State, Update};
use whelk_image::snapshots::export;
use whelk_image::{Digest, Error, Progress, Reference};
use whelk_sys::fs;

fn base() -> Vec<u8> {
    pack(&[
        dir("etc/"),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        hard_link("etc/same", "etc/passwd"),
        symlink("lib", "usr/lib"),
    ])
}

fn middle() -> Vec<u8> {
    pack(&[
        dir("etc/"),
        whiteout("etc/same"),
        file("data", noise(20_000)).mode(0o4755).owner(3, 4),
    ])
}

fn top() -> Vec<u8> {
    pack(&[file("program", "x").mode(0o755)])
}

/// Returns two images with a common base layer.
fn two_images() -> (Image, Image) {
    (
        Image::new("one", &[base(), middle()]),
        Image::new("two", &[base(), top()]),
    )
}

/// Formats loaded images, one line per image: names and size.
fn summary(loaded: &[Loaded]) -> Vec<String> {
    loaded
        .iter()
        .map(|image| format!("{} {}", names(image).join(","), image.size))
        .collect()
}

fn names(loaded: &Loaded) -> Vec<String> {
    loaded.names.iter().map(ToString::to_string).collect()
}

/// Checks that the image is in the store, bit for bit.
#[track_caller]
fn check_stored(bench: &Bench, image: &Image) {
    assert_eq!(bench.store.content.read(&image.id()).unwrap(), image.config);
    for layer in &image.layers {
        assert!(bench.written(&Digest::of(layer)) == *layer);
    }
    bench.check_temporary("loaded");
}

#[track_caller]
fn check_two(archive: &[u8]) {
    let (one, two) = two_images();
    let bench = Bench::new();
    let loaded = load(&bench.store, archive, None).unwrap();
    assert_eq!([&loaded[0].id, &loaded[1].id], [&one.id(), &two.id()]);
    assert_eq!(
        summary(&loaded),
        [
            "docker.io/library/app:1,docker.io/library/app:latest 20022",
            "host:5000/team/app:v2 23"
        ],
        "files shared by hard links are counted once"
    );
    assert_eq!(loaded[0].config.config.cmd, ["one"]);
    check_stored(&bench, &one);
    check_stored(&bench, &two);
    assert_eq!(
        bench.names("layers").len(),
        3,
        "the common layer is stored once"
    );
}

fn other_name(name: &str, target: &str) -> Entry {
    hard_link(name, target)
}

#[test]
fn docker_archives() {
    let (one, two) = two_images();
    let images: &[(&Image, &[&str])] = &[
        (&one, &["app:1", "app"]),
        (&two, &["host:5000/team/app:v2"]),
    ];
    check_two(&pack(&docker_archive(images)));
    check_two(&gzip(&pack(&docker_archive(images))));
    check_two(&zstandard(&pack(&docker_archive(images))));
    check_two(&pack(&old_docker_archive(images, sideways)));
    check_two(&pack(&old_docker_archive(images, other_name)));
    // Parts may come in any order, and may start with `./`.
    let mut entries = docker_archive(images);
    entries.reverse();
    check_two(&pack(&entries));
}

#[test]
fn part_names_may_start_with_a_dot() {
    let image = Image::new("dot", &[base()]);
    let (config, layer) = (blob_name(&image.config), blob_name(&image.layers[0]));
    let bench = Bench::new();
    let archive = pack(&[
        dir("./"),
        file(format!("./{config}"), &image.config),
        file(format!("./{layer}"), &image.layers[0]),
        file(
            "./manifest.json",
            bytes(&json!([{"Config": config, "Layers": [format!("./{layer}")]}])),
        ),
    ]);
    assert_eq!(
        load(&bench.store, archive.as_slice(), None).unwrap()[0].id,
        image.id()
    );
    check_stored(&bench, &image);
}

#[test]
fn oci_layouts() {
    let (one, two) = two_images();
    let bench = Bench::new();
    let archive = pack(&oci_archive(&[
        (&one, "docker.io/library/app:1"),
        (&two, "host:5000/team/app:v2"),
    ]));
    let loaded = load(&bench.store, archive.as_slice(), None).unwrap();
    assert_eq!([&loaded[0].id, &loaded[1].id], [&one.id(), &two.id()]);
    assert_eq!(
        summary(&loaded),
        ["docker.io/library/app:1 20022", "host:5000/team/app:v2 23"]
    );
    check_stored(&bench, &one);
    check_stored(&bench, &two);
}

/// Compressed layers are named by the digest of the compressed blob; the configuration has the
/// digests of the uncompressed archives (diff IDs).
#[test]
fn oci_layouts_with_compressed_layers() {
    let image = Image::new("compressed", &[base(), middle(), top()]);
    let blobs = [gzip(&base()), zstandard(&middle()), top()];
    let types = [
        format!("{LAYER}+gzip"),
        format!("{LAYER}+zstd"),
        LAYER.to_owned(),
    ];
    let layers: Vec<Value> = blobs
        .iter()
        .zip(&types)
        .map(|(blob, media_type)| descriptor(media_type, blob))
        .collect();
    let manifest = bytes(
        &json!({"schemaVersion": 2, "config": descriptor(CONFIG, &image.config), "layers": layers}),
    );
    let mut entries: Vec<Entry> = blobs.iter().map(|content| blob(content)).collect();
    entries.extend([
        blob(&image.config),
        blob(&manifest),
        index_json(&[descriptor(MANIFEST, &manifest)]),
    ]);
    let bench = Bench::new();
    let loaded = load(&bench.store, pack(&entries).as_slice(), None).unwrap();
    assert_eq!(
        (loaded.len(), &loaded[0].id, loaded[0].names.len()),
        (1, &image.id(), 0)
    );
    check_stored(&bench, &image);
}

/// As `docker buildx` writes images for several platforms: the blobs of other platforms may be
/// missing.
#[test]
fn loads_the_own_platform_of_several() {
    let image = Image::new("mine", &[base()]);
    let manifest = bytes(
        &json!({"schemaVersion": 2, "config": descriptor(CONFIG, &image.config), "layers": [descriptor(LAYER, &base())]}),
    );
    let mut mine = descriptor(MANIFEST, &manifest);
    mine["platform"] = json!({"os": "linux", "architecture": ARCHITECTURE});
    let mut foreign = descriptor(MANIFEST, b"not in the archive");
    foreign["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let mut attestation = descriptor(MANIFEST, b"not there either");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = index(&[foreign, mine, attestation]);
    let mut named = descriptor(INDEX, &inner);
    named["annotations"] = json!({"io.containerd.image.name": "docker.io/library/multi:1", "org.opencontainers.image.ref.name": "1"});
    let bench = Bench::new();
    let archive = pack(&[
        blob(&base()),
        blob(&image.config),
        blob(&manifest),
        blob(&inner),
        index_json(&[named]),
    ]);
    let loaded = load(&bench.store, archive.as_slice(), None).unwrap();
    assert_eq!(
        (loaded.len(), &loaded[0].id, names(&loaded[0])),
        (1, &image.id(), vec!["docker.io/library/multi:1".to_owned()])
    );
    check_stored(&bench, &image);
    // Both are kept to the byte, and belong to the image; the layout's own index is the archive's.
    let origin = &loaded[0].origin;
    assert_eq!(origin.manifest, Some(Digest::of(&manifest)));
    assert_eq!(origin.index, Some(Digest::of(&inner)));
    for kept in [&manifest, &inner] {
        let digest = Digest::of(kept);
        assert_eq!(bench.store.content.read(&digest).unwrap(), *kept);
    }
    assert_eq!(bench.names("blobs/sha256").len(), 3);
}

#[test]
fn keeps_the_manifest_of_an_image_without_an_index() {
    let image = Image::new("x", &[base()]);
    let bench = Bench::new();
    let archive = pack(&oci_archive(&[(&image, "x:1"), (&image, "x:2")]));
    let loaded = load(&bench.store, archive.as_slice(), None).unwrap();
    let origin = &loaded[0].origin;
    let stored = bench.store.content.read(origin.manifest.as_ref().unwrap());
    let manifest = Manifest::parse(&stored.unwrap()).unwrap();
    assert_eq!(manifest.config.digest, image.id());
    assert_eq!((loaded.len(), &origin.index), (1, &None));
    // Docker's layout has no manifest of the image.
    let archive = pack(&docker_archive(&[(&image, &["x:1"])]));
    let loaded = load(&bench.store, archive.as_slice(), None).unwrap();
    assert_eq!(loaded[0].origin, Origin::default());
}

#[test]
fn reports_the_progress_of_the_layers_that_it_unpacks() {
    let image = Image::new("x", &[base(), middle()]);
    let bench = Bench::new();
    let archive = pack(&docker_archive(&[(&image, &[])]));
    let updates = || {
        let updates = Arc::new(Mutex::new(Vec::new()));
        let list = updates.clone();
        let progress = Progress::to(move |update| list.lock().unwrap().push(update));
        let (store, lease) = (&bench.store, bench.store.leases.take());
        whelk_image::archive::load(store, &lease, archive.as_slice(), None, &progress).unwrap();
        std::mem::take(&mut *updates.lock().unwrap())
    };
    let first = updates();
    for layer in &image.layers {
        let digest = Digest::of(layer);
        let of_layer = |update: &&Update| digest.hex().starts_with(&update.id);
        let last = first.iter().rfind(of_layer).unwrap();
        assert_eq!(last.id.len(), 12);
        let size = layer.len() as u64;
        assert_eq!((last.current, last.total), (size, size));
        assert_eq!(last.state, State::LoadingLayer);
    }
    assert_eq!(updates(), [], "the layers are there");
}

#[test]
fn keeps_a_configuration_to_the_byte() {
    let text = String::from_utf8(config("x", &[Digest::of(&base()).to_string()])).unwrap();
    let config = text
        .replacen('{', "{ \"unknown\" : [1, null],\n", 1)
        .into_bytes();
    let bench = Bench::new();
    let archive = pack(&[
        blob(&config),
        blob(&base()),
        manifest_json(&blob_name(&config), &[&blob_name(&base())], &["x"]),
    ]);
    let loaded = load(&bench.store, archive.as_slice(), None).unwrap();
    assert_eq!(loaded[0].id, Digest::of(&config));
    assert_eq!(bench.store.content.read(&loaded[0].id).unwrap(), config);
    let again = parts(&saved(&bench, &[(&loaded[0].id, &["x"])]));
    assert!(
        again
            .iter()
            .any(|(name, content)| *name == blob_name(&config) && *content == config)
    );
}

#[test]
fn loading_twice_changes_nothing() {
    let (one, _) = two_images();
    let bench = Bench::new();
    let archive = pack(&docker_archive(&[(&one, &["app:1"])]));
    let first = load(&bench.store, archive.as_slice(), None).unwrap();
    let layers = bench.names("layers");
    assert_eq!(load(&bench.store, archive.as_slice(), None).unwrap(), first);
    assert_eq!(bench.names("layers"), layers);
    check_stored(&bench, &one);
}

#[test]
fn accepts_an_image_with_the_same_layer_twice() {
    let empty = pack(&[]);
    let image = Image::new("twice", &[base(), empty.clone(), top(), empty]);
    let bench = Bench::new();
    let loaded = load(
        &bench.store,
        pack(&docker_archive(&[(&image, &["twice:1"])])).as_slice(),
        None,
    )
    .unwrap();
    assert_eq!(
        (
            loaded[0].config.rootfs.diff_ids.len(),
            bench.names("layers").len()
        ),
        (4, 3)
    );
    let archive = saved(&bench, &[(&image.id(), &["twice:1"])]);
    let other = Bench::new();
    assert_eq!(
        load(&other.store, archive.as_slice(), None).unwrap()[0].id,
        image.id()
    );
    check_stored(&other, &image);
}

#[track_caller]
fn saved(bench: &Bench, images: &[(&Digest, &[&str])]) -> Vec<u8> {
    let mut archive = Vec::new();
    save(&bench.store, &to_save(images), &mut archive).unwrap();
    archive
}

fn to_save(images: &[(&Digest, &[&str])]) -> Vec<Saved> {
    let reference = |name: &&str| name.parse::<Reference>().unwrap().with_default_tag();
    images
        .iter()
        .map(|(id, names)| Saved {
            id: (*id).clone(),
            names: names.iter().map(reference).collect(),
        })
        .collect()
}

/// Returns the files in an archive.
fn parts(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = Archive::new(archive);
    let mut parts = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        parts.push((name, content));
    }
    parts
}

#[test]
fn saved_images_can_be_loaded() {
    let (one, two) = two_images();
    let (one_id, two_id) = (one.id(), two.id());
    let first = Bench::new();
    load(
        &first.store,
        pack(&docker_archive(&[(&one, &["ignored:1"]), (&two, &[])])).as_slice(),
        None,
    )
    .unwrap();
    let images: &[(&Digest, &[&str])] = &[
        (&one_id, &["app:1", "app"]),
        (&two_id, &["host:5000/team/app:v2"]),
    ];
    let archive = saved(&first, images);
    assert!(
        saved(&first, images) == archive,
        "saving the same images gives the same archive"
    );
    check_two(&archive);
    let second = Bench::new();
    load(&second.store, archive.as_slice(), None).unwrap();
    assert!(
        saved(&second, images) == archive,
        "saving from another store gives the same archive"
    );

    let all = parts(&archive);
    let mut seen: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    seen.sort_unstable();
    let count = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), count, "no part is written twice");
    for (name, content) in &all {
        if name.starts_with("blobs/") {
            assert_eq!(*name, blob_name(content));
        }
    }
    for layer in [base(), middle(), top()] {
        assert!(seen.contains(&blob_name(&layer).as_str()));
    }
    // Either the OCI or the Docker layout alone is enough.
    let without = |part: &str| {
        let rest: Vec<Entry> = all
            .iter()
            .filter(|(name, _)| name != part)
            .map(|(name, content)| file(name, content))
            .collect();
        pack(&rest)
    };
    check_two(&without("index.json"));
    let third = Bench::new();
    let loaded = load(&third.store, without("manifest.json").as_slice(), None).unwrap();
    let found: Vec<String> = loaded
        .iter()
        .map(|image| format!("{} {}", image.id, names(image).join(",")))
        .collect();
    assert_eq!(
        found,
        [
            format!("{one_id} docker.io/library/app:1,docker.io/library/app:latest"),
            format!("{two_id} host:5000/team/app:v2"),
        ]
    );
    check_stored(&third, &one);
    check_stored(&third, &two);
}

#[test]
fn saved_archives_match_dockers() {
    let (one, _) = two_images();
    let bench = Bench::new();
    load(
        &bench.store,
        pack(&docker_archive(&[(&one, &["app:1"])])).as_slice(),
        None,
    )
    .unwrap();
    let id = one.id();
    let part = |archive: &[u8], name: &str| -> Value {
        let (_, content) = parts(archive)
            .into_iter()
            .find(|(there, _)| there == name)
            .unwrap();
        serde_json::from_slice(&content).unwrap()
    };
    let archive = saved(&bench, &[(&id, &["app:1", "me/app"])]);
    let layers = json!([blob_name(&base()), blob_name(&middle())]);
    assert_eq!(
        part(&archive, "manifest.json"),
        json!([{"Config": blob_name(&one.config), "RepoTags": ["app:1", "me/app:latest"], "Layers": layers, "LayerSources": {
            Digest::of(&base()).as_str(): descriptor(LAYER, &base()),
            Digest::of(&middle()).as_str(): descriptor(LAYER, &middle()),
        }}])
    );
    let last = Digest::of(&middle());
    assert_eq!(
        part(&archive, "repositories"),
        json!({"app": {"1": last.hex()}, "me/app": {"latest": last.hex()}})
    );
    assert_eq!(
        part(&archive, "oci-layout"),
        json!({"imageLayoutVersion": "1.0.0"})
    );
    let index = part(&archive, "index.json");
    assert_eq!(
        (
            &index["schemaVersion"],
            index["manifests"].as_array().unwrap().len()
        ),
        (&json!(2), 2)
    );
    let entry = &index["manifests"][1];
    assert_eq!(
        entry["annotations"],
        json!({"io.containerd.image.name": "docker.io/me/app:latest", "org.opencontainers.image.ref.name": "latest"})
    );
    let digest: Digest = entry["digest"].as_str().unwrap().parse().unwrap();
    let manifest = part(&archive, &format!("blobs/sha256/{}", digest.hex()));
    assert_eq!(manifest["config"], descriptor(CONFIG, &one.config));
    assert_eq!(
        manifest["layers"],
        json!([descriptor(LAYER, &base()), descriptor(LAYER, &middle())])
    );

    // An image without a name is saved without one.
    let archive = saved(&bench, &[(&id, &[])]);
    assert_eq!(part(&archive, "manifest.json")[0]["RepoTags"], Value::Null);
    let other = Bench::new();
    assert_eq!(
        summary(&load(&other.store, archive.as_slice(), None).unwrap()),
        [" 20022"]
    );
}

#[test]
fn refuses_to_save_damaged_images() {
    let (one, _) = two_images();
    let id = one.id();
    let bench = Bench::new();
    let images = to_save(&[(&id, &["app:1"])]);
    assert!(matches!(
        save(&bench.store, &images, io::sink()),
        Err(Error::NotFound(_))
    ));
    load(
        &bench.store,
        pack(&docker_archive(&[(&one, &["app:1"])])).as_slice(),
        None,
    )
    .unwrap();
    save(&bench.store, &images, io::sink()).unwrap();
    let data = bench
        .store
        .snapshots
        .files(&Digest::of(&middle()))
        .join("data");
    fs::write(&data, vec![b'x'; 20_000]).unwrap();
    let result = save(&bench.store, &images, io::sink());
    assert!(
        matches!(result, Err(Error::Invalid(_))),
        "changed content: {result:?}"
    );
    fs::remove_file(&data).unwrap();
    assert!(
        save(&bench.store, &images, io::sink()).is_err(),
        "missing content"
    );
    bench
        .store
        .staging
        .discard(&bench.store.snapshots.path(&Digest::of(&middle())))
        .unwrap();
    assert!(
        save(&bench.store, &images, io::sink()).is_err(),
        "missing layer"
    );
}

#[test]
fn imports_a_root_file_system() {
    let archive = pack(&[
        dir("bin/"),
        file("bin/sh", "#!").mode(0o755),
        symlink("sh", "bin/sh"),
    ]);
    for stream in [archive.clone(), gzip(&archive), zstandard(&archive)] {
        let bench = Bench::new();
        let what = Import {
            config: ContainerConfig {
                cmd: vec!["/bin/sh".into()],
                env: vec!["A=1".into()],
                ..ContainerConfig::default()
            },
            comment: "from elsewhere".into(),
            platform: None,
            name: Some("me/imported:1".parse().unwrap()),
        };
        let loaded = import(&bench.store, stream.as_slice(), what).unwrap();
        assert_eq!(
            (names(&loaded), loaded.size),
            (vec!["docker.io/me/imported:1".to_owned()], 2)
        );
        assert_eq!(loaded.config.rootfs.diff_ids, [Digest::of(&archive)]);
        assert_eq!(
            (
                loaded.config.os.as_str(),
                loaded.config.architecture.as_str()
            ),
            ("linux", ARCHITECTURE)
        );
        assert_eq!(
            (&loaded.config.config.cmd[..], &loaded.config.config.env[..]),
            (&["/bin/sh".to_owned()][..], &["A=1".to_owned()][..])
        );
        assert_eq!(
            (
                loaded.config.history.len(),
                loaded.config.history[0].comment.as_str()
            ),
            (1, "from elsewhere")
        );
        let stored = bench.store.content.read(&loaded.id).unwrap();
        assert_eq!(
            whelk_image::ImageConfig::parse(&stored).unwrap(),
            loaded.config
        );
        assert!(bench.written(&Digest::of(&archive)) == archive);
        // The result is a regular image.
        let other = Bench::new();
        let again = load(
            &other.store,
            saved(&bench, &[(&loaded.id, &["me/imported:1"])]).as_slice(),
            None,
        )
        .unwrap();
        assert_eq!(again, [loaded]);
    }
}

#[test]
fn import_resolves_links_inside_the_root() {
    let bench = Bench::new();
    let archive = pack(&[symlink("l", "/"), file("l/whelk-planted", "x")]);
    let loaded = import(&bench.store, archive.as_slice(), Import::default()).unwrap();
    let files = bench
        .store
        .snapshots
        .files(&loaded.config.rootfs.diff_ids[0]);
    assert!(fs::exists(files.join("whelk-planted")) && !fs::exists("/whelk-planted"));
    assert!(bench.written(&Digest::of(&archive)) == archive);
}

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

#[track_caller]
fn exported(lower: &[PathBuf]) -> Vec<u8> {
    let mut archive = Vec::new();
    export(lower, &mut archive).unwrap();
    archive
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
        common::xattr(&again.join("ping"), "security.capability").as_deref(),
        Some(&capability[..])
    );
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

#[test]
fn importing_an_export_gives_the_same_files() {
    let bench = Bench::new();
    let lower = bench.unpack_only(&pack(&[
        dir("bin/"),
        file("bin/su", noise(5000)).mode(0o4755),
        hard_link("bin/same", "bin/su"),
        symlink("sh", "/bin/su").owner(7, 7),
        file("gone", ""),
        fifo("pipe"),
        device(EntryType::Char, "null", 1, 3),
    ]));
    let upper = bench.unpack_only(&pack(&[
        whiteout("gone"),
        dir("bin/").owner(2, 2).mtime(99),
        file("with", "x").xattr("user.a", "b").pax("mtime", "77.5"),
        file("n".repeat(200), "long"),
    ]));
    let archive = exported(&[upper, lower]);
    let loaded = import(&bench.store, archive.as_slice(), Import::default()).unwrap();
    assert!(bench.written(&loaded.config.rootfs.diff_ids[0]) == archive);
    assert!(
        exported(&[bench
            .store
            .snapshots
            .files(&loaded.config.rootfs.diff_ids[0])])
            == archive
    );
}
