//! Archives of saved images.

use std::io::{self};

use crate::common::images::{CONFIG, LAYER, blob_name, descriptor, docker_archive};
use crate::common::{Bench, Entry, file, load, pack};
use crate::{
    base, check_stored, check_two, middle, names, parts, saved, summary, to_save, top, two_images,
};
use serde_json::{Value, json};
use whelk_image::archive::{Saved, save};
use whelk_image::{Digest, Error};
use whelk_sys::fs;

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
fn the_parent_of_an_image_is_kept_if_it_is_saved() {
    let (one, two) = two_images();
    let (one_id, two_id) = (one.id(), two.id());
    let bench = Bench::new();
    let archive = pack(&docker_archive(&[(&one, &["app:1"]), (&two, &["app:2"])]));
    load(&bench.store, archive.as_slice(), None).unwrap();
    let mut images = to_save(&[(&two_id, &["app:2"]), (&one_id, &["app:1"])]);
    images[0].parent = Some(one_id.clone());
    let check = |images: &[Saved], expected: Option<&Digest>| {
        let mut archive = Vec::new();
        save(&bench.store, images, &mut archive).unwrap();
        let other = Bench::new();
        let loaded = load(&other.store, archive.as_slice(), None).unwrap();
        assert_eq!(loaded.len(), images.len());
        for image in &loaded {
            let expected = expected.filter(|_| image.id == two_id);
            assert_eq!(image.parent.as_ref(), expected);
        }
    };
    check(&images, Some(&one_id));
    check(&images[..1], None);
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
    let error = save(&bench.store, &images, io::sink()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains(data.to_str().unwrap()) && error.ends_with("no such file or directory"),
        "missing content: {error}"
    );
    bench
        .store
        .staging
        .discard(&bench.store.snapshots.path(&Digest::of(&middle())))
        .unwrap();
    let error = save(&bench.store, &images, io::sink()).unwrap_err();
    let layer = Digest::of(&middle());
    let hex = layer.as_str().trim_start_matches("sha256:");
    assert!(error.to_string().contains(hex), "missing layer: {error}");
}
