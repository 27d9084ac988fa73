//! Loading of Docker archives and OCI layouts.

use std::sync::{Arc, Mutex};

use crate::common::images::{
    CONFIG, INDEX, Image, LAYER, MANIFEST, blob, blob_name, bytes, config, descriptor,
    docker_archive, index, index_json, manifest_json, oci_archive, old_docker_archive, sideways,
};
use crate::common::{Bench, Entry, dir, file, gzip, load, pack, zstandard};
use crate::{
    base, check_stored, check_two, middle, names, other_name, parts, saved, summary, top,
    two_images,
};
use serde_json::{Value, json};
use whelk_image::archive::Origin;
use whelk_image::config::ARCHITECTURE;
use whelk_image::descriptor::Manifest;
use whelk_image::progress::{State, Update};
use whelk_image::{Algorithm, Digest, Progress};

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

/// The digests of a layout may be SHA-512 ones. An image's id is the SHA-256 digest of its
/// configuration all the same.
#[test]
fn oci_layouts_with_sha512_digests() {
    let image = Image::new("long", &[base()]);
    let of = |content: &[u8]| Algorithm::Sha512.digest(content);
    let descriptor = |kind: &str, content: &[u8]| json!({"mediaType": kind, "digest": of(content), "size": content.len()});
    let blob = |content: &[u8]| file(format!("blobs/sha512/{}", of(content).hex()), content);
    let manifest = bytes(
        &json!({"schemaVersion": 2, "config": descriptor(CONFIG, &image.config), "layers": [descriptor(LAYER, &base())]}),
    );
    let mut entries = vec![
        blob(&image.config),
        blob(&base()),
        blob(&manifest),
        index_json(&[descriptor(MANIFEST, &manifest)]),
    ];
    let bench = Bench::new();
    let loaded = load(&bench.store, pack(&entries).as_slice(), None).unwrap();
    assert_eq!(loaded[0].id, image.id());
    assert_eq!(loaded[0].origin.manifest, Some(of(&manifest)));
    let content = &bench.store.content;
    assert_eq!(content.read(&of(&manifest)).unwrap(), manifest);
    check_stored(&bench, &image);
    let other = format!("blobs/sha512/{}", of(&base()).hex());
    entries[1] = file(other, middle());
    let error = load(&Bench::new().store, pack(&entries).as_slice(), None).unwrap_err();
    let expected = format!("has the digest {}", of(&middle()));
    assert!(error.to_string().ends_with(&expected), "{error}");
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
fn each_name_stands_for_its_own_index_though_they_share_an_image() {
    let shared = Image::new("shared", &[base()]);
    let others = ["one", "two"].map(|name| Image::new(name, &[base()]));
    let manifest = |image: &Image| {
        bytes(
            &json!({"schemaVersion": 2, "config": descriptor(CONFIG, &image.config), "layers": [descriptor(LAYER, &base())]}),
        )
    };
    let mine = manifest(&shared);
    // The same image by another manifest.
    let mut noted: Value = serde_json::from_slice(&mine).unwrap();
    noted["annotations"] = json!({"a": "1"});
    let noted = bytes(&noted);
    let mut entries = vec![
        blob(&base()),
        blob(&shared.config),
        blob(&mine),
        blob(&noted),
    ];
    let (mut named, mut indexes) = (Vec::new(), Vec::new());
    for ((other, own), tag) in others.iter().zip([&mine, &noted]).zip(["a:1", "a:2"]) {
        let mut own = descriptor(MANIFEST, own);
        own["platform"] = json!({"os": "linux", "architecture": ARCHITECTURE});
        let foreign = manifest(other);
        let mut listed = descriptor(MANIFEST, &foreign);
        listed["platform"] = json!({"os": "linux", "architecture": "s390x"});
        let inner = index(&[own, listed]);
        let mut entry = descriptor(INDEX, &inner);
        entry["annotations"] =
            json!({"io.containerd.image.name": format!("docker.io/library/{tag}")});
        entries.extend([blob(&other.config), blob(&foreign), blob(&inner)]);
        named.push(entry);
        indexes.push(inner);
    }
    // A name without an index.
    let mut plain = descriptor(MANIFEST, &mine);
    plain["annotations"] = json!({"io.containerd.image.name": "docker.io/library/b:1"});
    named.push(plain);
    entries.push(index_json(&named));
    let bench = Bench::new();
    let loaded = load(&bench.store, pack(&entries).as_slice(), None).unwrap();
    assert_eq!(loaded.len(), 3);
    let own = loaded
        .iter()
        .find(|loaded| loaded.id == shared.id())
        .unwrap();
    let found: Vec<_> = own.names.iter().map(|named| named.index.clone()).collect();
    let expected = [
        Some(Digest::of(&indexes[0])),
        Some(Digest::of(&indexes[1])),
        None,
    ];
    assert_eq!(found, expected);
    assert_eq!(own.other_manifests, [Digest::of(&noted)]);
    for kept in indexes.iter().chain([&mine, &noted]) {
        assert_eq!(bench.store.content.read(&Digest::of(kept)).unwrap(), *kept);
    }
}

#[test]
fn an_image_belongs_to_the_innermost_index_that_lists_it() {
    let image = Image::new("nested", &[base()]);
    let manifest = bytes(
        &json!({"schemaVersion": 2, "config": descriptor(CONFIG, &image.config), "layers": [descriptor(LAYER, &base())]}),
    );
    let inner = index(&[descriptor(MANIFEST, &manifest)]);
    let outer = index(&[descriptor(INDEX, &inner)]);
    let mut named = descriptor(INDEX, &outer);
    named["annotations"] = json!({"io.containerd.image.name": "docker.io/library/nested:1"});
    let archive = pack(&[
        blob(&base()),
        blob(&image.config),
        blob(&manifest),
        blob(&inner),
        blob(&outer),
        index_json(&[named]),
    ]);
    let loaded = load(&Bench::new().store, archive.as_slice(), None).unwrap();
    assert_eq!(loaded[0].origin.index, Some(Digest::of(&inner)));
    assert_eq!(loaded[0].names[0].index, Some(Digest::of(&inner)));
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
        whelk_image::archive::load(store, &lease, archive.as_slice(), &[], &progress).unwrap();
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
