//! Tests of removals of images that indexes list.
#![allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::sync::Arc;

use whelk_image::archive::{Loaded, Named, Origin};
use whelk_image::descriptor::{Descriptor, MANIFEST};
use whelk_image::{Digest, ImageConfig, Platform, Reference};
use whelk_sys::fs;

use super::{References, Removed};
use crate::filters::Filters;
use crate::images::{Image, Images};
use crate::store::RecordStore;

struct Case {
    images: Arc<Images>,
    root: std::path::PathBuf,
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = fs::remove_tree(&self.root);
    }
}

/// The image with a number: its platform, its tags with the index that each stands for (empty for none),
/// and its digests in registries, of indexes.
type Given<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)]);

fn id(number: usize) -> Digest {
    Digest::of(format!("config {number}").as_bytes())
}

fn manifest(number: usize) -> Digest {
    Digest::of(format!("manifest {number}").as_bytes())
}

fn index(name: &str) -> Option<Digest> {
    (!name.is_empty()).then(|| Digest::of(name.as_bytes()))
}

fn full(name: &str) -> String {
    name.parse::<Reference>().unwrap().to_string()
}

impl Case {
    /// `indexes` list the manifests of images.
    fn new(name: &str, indexes: &[(&str, &[usize])], images: &[Given<'_>]) -> Self {
        let root = format!("whelk-indexes-{name}-{}", std::process::id());
        let root = std::env::temp_dir().join(root);
        fs::create_dir(&root, 0o700).unwrap();
        let store = Arc::new(RecordStore::open(&root).unwrap());
        let case = Self {
            images: Images::open(
                whelk_image::Store::open(&root).unwrap(),
                store,
                Arc::default(),
                &Default::default(),
            )
            .unwrap(),
            root,
        };
        let mut known = case.images.write();
        for (name, listed) in indexes {
            let entry = |number: &usize| Descriptor::new(MANIFEST, manifest(*number), 1);
            let entries = listed.iter().map(entry).collect();
            known.add_entries(&index(name).unwrap(), Some(entries));
        }
        for (number, (platform, tags, digests)) in images.iter().enumerate() {
            let platform: Platform = platform.parse().unwrap();
            let mut config = ImageConfig {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant,
                ..ImageConfig::default()
            };
            let label = ("number".to_owned(), number.to_string());
            config.config.labels.extend([label]);
            let lists = |listed: &&(&str, &[usize])| listed.1.contains(&number);
            let origin = indexes.iter().find(lists).map_or("", |listed| listed.0);
            let digests = digests.iter().map(|(name, of)| {
                let digest = index(of).unwrap();
                format!("{name}@{digest}").parse().unwrap()
            });
            let image = Image {
                id: id(number),
                config,
                other_manifests: Vec::new(),
                parent: None,
                repo_digests: digests.collect(),
                origin: Origin {
                    manifest: Some(manifest(number)),
                    index: index(origin),
                },
                size: 0,
                tagged_at: 0,
            };
            let tags = tags.iter().map(|(tag, of)| (full(tag), index(of)));
            let tags: Vec<_> = tags.collect();
            case.images.assign(&mut known, image, &tags).unwrap();
        }
        drop(known);
        case
    }

    /// Removes a name. Returns the numbers of the images that are left.
    fn remove(&self, name: &str, platforms: &[&str]) -> Vec<usize> {
        let platforms = platforms.iter().map(|text| text.parse().unwrap());
        let platforms: Vec<Platform> = platforms.collect();
        let removed = self.images.remove(name, false, &platforms, |_| Vec::new());
        removed.unwrap();
        self.left()
    }

    fn left(&self) -> Vec<usize> {
        let known = self.images.read();
        let is_there = |number: &usize| known.by_id.contains_key(&id(*number));
        (0..10).filter(is_there).collect()
    }

    fn digests(&self, number: usize) -> Vec<String> {
        let image = self.images.get(&id(number)).unwrap();
        let digests = image.repo_digests.iter();
        digests.map(Reference::familiar).collect()
    }

    fn stands_for(&self, name: &str) -> Option<Digest> {
        self.images.read().index_of(&full(name)).cloned()
    }
}

const X: &str = "x";
const Y: &str = "y";

#[test]
fn an_image_stays_while_a_tag_of_another_stands_for_it() {
    let both = [("a", X)];
    let images: [Given<'_>; 2] = [
        ("linux/amd64", &[("a:latest", X)], &both),
        ("linux/arm64", &[("a:1", X), ("b:arm", X)], &both),
    ];
    let case = Case::new("covered", &[(X, &[0, 1])], &images);
    assert_eq!(case.remove("b:arm", &[]), [0, 1]);
    assert_eq!(case.remove("a:1", &[]), [0, 1]);
    // Its digest is that of the other tag.
    assert_eq!(case.digests(1).len(), 1);
    assert_eq!(case.remove("a:latest", &[]), [0; 0]);
}

#[test]
fn an_image_that_is_named_by_digest_only_stays_for_a_tag() {
    let images: [Given<'_>; 2] = [
        ("linux/amd64", &[], &[("a", X)]),
        ("linux/arm64", &[("b:arm", X)], &[("a", X)]),
    ];
    let case = Case::new("by-digest", &[(X, &[0, 1])], &images);
    let name = format!("a@{}", index(X).unwrap());
    assert_eq!(case.remove(&name, &[]), [0, 1]);
}

#[test]
fn exactly_the_given_platforms_are_removed() {
    let tags = [("a:1", X)];
    let images: [Given<'_>; 4] = [
        ("linux/s390x", &tags, &[]),
        ("linux/arm64", &[], &[]),
        ("linux/arm/v7", &[], &[]),
        ("linux/386", &[], &[]),
    ];
    let case = Case::new("platforms", &[(X, &[0, 1, 2, 3])], &images);
    // The second means the same as the first, and not the next best.
    let arm = ["linux/arm64", "linux/arm64/v8"];
    assert_eq!(case.remove("a:1", &arm), [0, 2, 3]);
    let amd = [
        "linux/arm/v7".parse().unwrap(),
        "linux/amd64".parse().unwrap(),
    ];
    let refused = case.images.remove("a:1", false, &amd, |_| Vec::new());
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(case.left(), [0, 2, 3]);
    // The default one, with the others after it: the name goes with the last.
    let rest = ["linux/s390x", "linux/386", "linux/arm/v7"];
    assert_eq!(case.remove(id(0).as_str(), &rest), [0; 0]);
}

#[test]
fn a_prune_decides_by_the_image_that_is_listed() {
    let images: [Given<'_>; 2] = [
        ("linux/amd64", &[("a:1", X)], &[]),
        ("linux/arm64", &[], &[]),
    ];
    let case = Case::new("prune", &[(X, &[0, 1])], &images);
    let prune = |label: &str| {
        let filters = format!(r#"{{"label": ["number={label}"]}}"#);
        let filters = Filters::parse(&filters, crate::images::FILTERS).unwrap();
        case.images.prune(true, &filters, |_| Vec::new()).unwrap().0
    };
    assert!(prune("1").is_empty());
    let deleted = |number| Removed::Deleted(id(number));
    let removed = prune("0");
    assert!(
        removed.contains(&deleted(0)) && removed.contains(&deleted(1)),
        "{removed:?}"
    );
}

#[test]
fn an_image_of_two_indexes_keeps_the_digest_of_the_other() {
    let images: [Given<'_>; 3] = [
        ("linux/amd64", &[("a:1", X)], &[("a", X)]),
        ("linux/amd64", &[("a:2", Y)], &[("a", Y)]),
        ("linux/arm64", &[], &[("a", X), ("a", Y)]),
    ];
    let case = Case::new("digests", &[(X, &[0, 2]), (Y, &[1, 2])], &images);
    assert_eq!(case.remove("a:1", &[]), [1, 2]);
    assert_eq!(case.digests(2), [format!("a@{}", index(Y).unwrap())]);
}

#[test]
fn a_digest_goes_with_the_last_tag_in_its_repository() {
    // The second image was pushed to the repository of a copy for itself.
    let images: [Given<'_>; 2] = [
        ("linux/amd64", &[("a:1", X), ("copy:1", X)], &[("a", X)]),
        ("linux/arm64", &[], &[("a", X), ("copy", Y)]),
    ];
    let case = Case::new("copy", &[(X, &[0, 1])], &images);
    assert_eq!(case.remove("copy:1", &[]), [0, 1]);
    assert_eq!(case.digests(1), [format!("a@{}", index(X).unwrap())]);
    assert_eq!(case.remove("a:1", &[]), [0; 0]);
}

#[test]
fn what_a_tag_stands_for_does_not_follow_its_image() {
    let images: [Given<'_>; 1] = [("linux/amd64", &[("app:dev", ""), ("app:old", Y)], &[])];
    let case = Case::new("explicit", &[(X, &[0]), (Y, &[0])], &images);
    let known = case.images.get(&id(0)).unwrap();
    let pulled = Loaded {
        id: id(0),
        origin: Origin {
            manifest: Some(manifest(0)),
            index: index(X),
        },
        other_manifests: Vec::new(),
        parent: None,
        config: known.config.clone(),
        names: vec![Named {
            name: "b:1".parse().unwrap(),
            index: index(X),
        }],
        size: 0,
    };
    let digest = format!("b@{}", index(X).unwrap()).parse().unwrap();
    case.images.record_pulled(&pulled, digest).unwrap();
    let expected = [("app:dev", None), ("app:old", index(Y)), ("b:1", index(X))];
    for (name, of) in &expected {
        assert_eq!(case.stands_for(name), *of, "{name}");
    }
    // Also after a restart.
    let records = case.images.store.images().unwrap();
    for (name, of) in &expected {
        assert_eq!(records[0].index_of(&full(name)), *of, "{name}");
    }
}

/// A pull of a tag whose index has changed replaces the index.
#[test]
fn indexes_that_are_replaced_are_forgotten() {
    let images: [Given<'_>; 1] = [("linux/amd64", &[("a:1", X)], &[])];
    let case = Case::new("replaced", &[(X, &[0, 1]), (Y, &[0])], &images);
    let known = case.images.get(&id(0)).unwrap();
    let mut image = Image::clone(&known);
    image.origin.index = index(Y);
    let has = |name: &str| case.images.read().has_entries(&index(name).unwrap());
    assert!(has(X));
    let tags = [(full("a:1"), index(Y))];
    case.images
        .assign(&mut case.images.write(), image, &tags)
        .unwrap();
    assert_eq!((has(X), has(Y)), (false, true));
    // What it listed does not count as listed any more, so that its manifests can go.
    assert!(!case.images.read().is_listed(&manifest(1)));
    let mut entry = Descriptor::new(MANIFEST, manifest(0), 1);
    entry.urls = vec![String::new(); 1000];
    let mut all = case.images.write();
    all.add_entries(&index(Y).unwrap(), Some(vec![entry]));
    assert_eq!(all.entries(index(Y).as_ref())[0].urls, [""; 0]);
}

#[test]
fn a_tag_that_another_image_has_got_meanwhile_stays() {
    let images: [Given<'_>; 2] = [
        ("linux/amd64", &[("a:1", "")], &[]),
        ("linux/amd64", &[("b:1", "")], &[]),
    ];
    let case = Case::new("moved", &[], &images);
    let old = case.images.get(&id(0)).unwrap();
    let gone = case.images.references_of(&old);
    let taken: Reference = "a:1".parse().unwrap();
    case.images.tag("b:1", &taken).unwrap();
    assert_eq!(case.images.untag(&old, gone).unwrap(), [""; 0]);
    assert_eq!(case.images.find("a:1").unwrap().id, id(1));
    // Nor is an image deleted that has got a name.
    case.images
        .tag(id(0).as_str(), &"c:1".parse().unwrap())
        .unwrap();
    let none = References {
        tags: Vec::new(),
        digests: Vec::new(),
        name: Some(String::new()),
    };
    let (others, _) = case.images.belonging(&old, &none);
    assert!(others.is_empty());
    let is_free = |index: &super::Index, image: &Image| !index.is_needed(image, &[]);
    assert!(case.images.delete(&old, is_free).unwrap().is_empty());
    assert_eq!(case.left(), [0, 1]);
}

#[test]
fn nothing_that_an_unreadable_index_may_list_is_pruned() {
    let images: [Given<'_>; 2] = [
        ("linux/amd64", &[("a:1", X)], &[]),
        ("linux/arm64", &[], &[]),
    ];
    let case = Case::new("unreadable", &[], &images);
    case.images.write().add_entries(&index(X).unwrap(), None);
    let prune = || {
        let pruned = case
            .images
            .prune(false, &Filters::default(), |_| Vec::new());
        pruned.unwrap();
        case.left()
    };
    assert_eq!(prune(), [0, 1]);
    case.images
        .write()
        .add_entries(&index(X).unwrap(), Some(Vec::new()));
    assert_eq!(prune(), [0]);
}

#[test]
fn a_manifest_is_tagged_without_the_others_of_its_index() {
    let images: [Given<'_>; 2] = [
        ("linux/amd64", &[("a:1", X)], &[("a", X)]),
        ("linux/arm64", &[], &[("a", X)]),
    ];
    let case = Case::new("tag", &[(X, &[0, 1])], &images);
    for (source, of) in [(manifest(1), None), (index(X).unwrap(), index(X))] {
        let name = format!("a@{source}");
        case.images.tag(&name, &"b:1".parse().unwrap()).unwrap();
        assert_eq!(case.stands_for("b:1"), of, "{name}");
    }
}
