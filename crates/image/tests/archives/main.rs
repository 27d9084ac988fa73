//! Tests of image archives: `load`, `save` and `import`, and `export` of merged layers.
//!
//! Merging layers needs root, for the overlay mount.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

#[path = "../common/mod.rs"]
mod common;
mod export;
mod import;
mod load;
mod save;

use std::io::Read;
use std::path::PathBuf;

use common::images::Image;
use common::{Bench, Entry, dir, file, hard_link, load, noise, pack, symlink, whiteout};
use tar::Archive;
use whelk_image::archive::{Loaded, Saved, save};
use whelk_image::snapshots::export;
use whelk_image::{Digest, Platform, Reference};

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
    let names = loaded.names.iter();
    names.map(|named| named.name.to_string()).collect()
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
            images: vec![((*id).clone(), Platform::host())],
            names: names.iter().map(reference).collect(),
            parent: None,
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

#[track_caller]
fn exported(lower: &[PathBuf]) -> Vec<u8> {
    let mut archive = Vec::new();
    export(lower, &mut archive).unwrap();
    archive
}
