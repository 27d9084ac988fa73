//! Tests of removals.
#![allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::sync::Arc;

use whelk_image::ImageConfig;
use whelk_image::archive::Origin;
use whelk_sys::fs;

use super::*;
use crate::filters::Filters;
use crate::store::RecordStore;

/// Images with these tags and digests of registries. They have a manifest of their own each, and
/// one index.
struct Case {
    images: Arc<Images>,
    root: std::path::PathBuf,
}

impl Drop for Case {
    fn drop(&mut self) {
        let _ = fs::remove_tree(&self.root);
    }
}

impl Case {
    fn new(name: &str, images: &[(&[&str], &[&str])]) -> Self {
        let root = format!("whelk-images-{name}-{}", std::process::id());
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
        for (number, (tags, digests)) in images.iter().enumerate() {
            let manifest = Digest::of(format!("manifest {number}").as_bytes());
            let digests = digests.iter().map(|name| format!("{name}@{manifest}"));
            let image = Image {
                id: Digest::of(format!("config {number}").as_bytes()),
                config: ImageConfig::default(),
                other_manifests: Vec::new(),
                parent: None,
                repo_digests: digests.map(|name| name.parse().unwrap()).collect(),
                origin: Origin {
                    manifest: Some(manifest),
                    index: Some(Digest::of(b"index")),
                },
                size: 0,
                tagged_at: 0,
            };
            let full = |tag: &&str| tag.parse::<Reference>().unwrap().to_string();
            let index = image.origin.index.clone();
            let tags = tags.iter().map(|tag| (full(tag), index.clone()));
            let tags: Vec<_> = tags.collect();
            let images = &case.images;
            images.assign(&mut images.write(), image, &tags).unwrap();
        }
        case
    }

    /// Removes a name, in which `#N` is the manifest's digest of an image and `#` the index's.
    /// Returns what was untagged, and `deleted`, or the error.
    fn remove(&self, name: &str) -> Vec<String> {
        let digest = |number: u32| Digest::of(format!("manifest {number}").as_bytes());
        let name = name.replace("#0", digest(0).as_str());
        let name = name.replace("#1", digest(1).as_str());
        let name = name.replace('#', Digest::of(b"index").as_str());
        match self.images.remove(&name, false, &[], |_| Vec::new()) {
            Ok(removed) => removed
                .into_iter()
                .map(|removed| match removed {
                    Removed::Untagged(name) => name.replace(digest(0).as_str(), "#0"),
                    Removed::Deleted(_) => "deleted".into(),
                    Removed::DeletedLayer(_) => "layer".into(),
                })
                .collect(),
            Err(error) => vec![error.to_string().replace(digest(0).as_str(), "#0")],
        }
    }
}

#[test]
fn a_name_with_a_digest_selects_the_digest_and_nothing_else() {
    let case = Case::new(
        "references",
        &[(&["a:1", "a:2", "b:1"], &["a", "registry.test/c"])],
    );
    assert_eq!(case.remove("b@#0"), ["No such image: b@#0"]);
    // Whatever the tag is.
    assert_eq!(case.remove("a:3@#0"), ["a:3@#0"]);
    assert_eq!(case.remove("a@#0"), ["No such image: a@#0"]);
    assert_eq!(case.remove("a:1@#0"), ["No such image: a:1@#0"]);
    assert_eq!(case.remove("a:1"), ["a:1"]);
    assert_eq!(case.remove("a:2"), ["a:2"]);
    assert_eq!(case.remove("b:1"), ["b:1"]);
    assert_eq!(
        case.remove("registry.test/c@#0"),
        ["registry.test/c@#0", "deleted"]
    );
    assert!(case.images.store.images().unwrap().is_empty());
    // The last tag in its repository takes the digests there with it.
    let case = Case::new("last", &[(&["a:1", "a:2", "b:1"], &["a"])]);
    assert_eq!(case.remove("a:1"), ["a:1"]);
    assert_eq!(case.remove("a:2"), ["a:2", "a@#0"]);
    assert_eq!(case.remove("b:1"), ["b:1", "deleted"]);
}

#[test]
fn references_are_removed_in_dockers_order() {
    let case = Case::new("order", &[(&["b:1", "a:2", "a:1"], &["b", "a"])]);
    let id = Digest::of(b"config 0");
    let removed = case
        .images
        .remove(id.as_str(), true, &[], |_| Vec::new())
        .unwrap();
    let manifest = Digest::of(b"manifest 0");
    let shown = removed.iter().filter_map(|removed| match removed {
        Removed::Untagged(name) => Some(name.replace(manifest.as_str(), "#0")),
        _ => None,
    });
    let shown: Vec<String> = shown.collect();
    assert_eq!(shown, ["a:1", "a:2", "a@#0", "b:1", "b@#0"]);
}

#[test]
fn an_id_with_references_in_several_repositories_must_be_forced() {
    for (index, (tags, digests, is_removed)) in [
        (&[] as &[&str], &[] as &[&str], true),
        (&["a:1"], &[], true),
        (&["a:1"], &["a"], true),
        (&[], &["a"], true),
        (&["a:1", "a:2"], &[], false),
        (&["a:1"], &["registry.test/a"], false),
        (&["localhost:5000/a:1"], &["localhost:5000/a"], true),
        (&[], &["a", "b"], false),
        (&["a:1"], &["a", "b"], false),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case::new(&format!("several-{index}"), &[(tags, digests)]);
        let removed = case.remove(Digest::of(b"config 0").as_str());
        let expected = if is_removed {
            removed.last().is_some_and(|last| last == "deleted")
        } else {
            removed
                .concat()
                .ends_with("image is referenced in multiple repositories")
        };
        assert!(expected, "{tags:?} {digests:?}: {removed:?}");
        // A prune removes it nevertheless.
        let pruned = case.images.prune(true, &Filters::default(), |_| Vec::new());
        assert_eq!(
            pruned.unwrap().0.is_empty(),
            is_removed,
            "{tags:?} {digests:?}"
        );
        assert!(case.images.store.images().unwrap().is_empty());
    }
}

#[test]
fn each_removed_tag_is_published_though_the_next_one_fails() {
    let case = Case::new("untag", &[(&["a:1", "a:2"], &[])]);
    let published = || {
        let (past, _) = case.images.events.subscribe();
        past.iter().filter(|event| event.action == "untag").count()
    };
    // The store refuses to delete the second tag.
    let forbid = "CREATE TRIGGER kept BEFORE DELETE ON tags WHEN OLD.name LIKE '%:2' BEGIN SELECT RAISE(FAIL, 'kept'); END";
    case.images.store.execute(forbid);
    let id = Digest::of(b"config 0");
    let removed = case.images.remove(id.as_str(), true, &[], |_| Vec::new());
    assert!(removed.is_err(), "{removed:?}");
    assert_eq!(published(), 1);
}

#[test]
fn a_prune_removes_only_images_without_a_tag_though_they_share_a_digest() {
    let case = Case::new("shared", &[(&[], &[]), (&["a:1"], &[]), (&[], &[])]);
    let index: Reference = format!("a@{}", Digest::of(b"index")).parse().unwrap();
    let mut ids = Vec::new();
    for image in case.images.write().by_id.values_mut() {
        Arc::make_mut(image).repo_digests = vec![index.clone()];
        ids.push(image.id.clone());
    }
    let prune = |all| case.images.prune(all, &Filters::default(), |_| Vec::new());
    let (removed, _) = prune(false).unwrap();
    let deleted = |id: &Digest| removed.contains(&Removed::Deleted(id.clone()));
    assert_eq!(
        ids.iter().filter(|id| deleted(id)).count(),
        2,
        "{removed:?}"
    );
    assert_eq!(case.remove("a:1").last().unwrap(), "deleted");
}

#[test]
fn a_digest_is_removed_and_not_another_of_its_repository() {
    let case = Case::new("two", &[(&[], &["a"])]);
    let other: Reference = format!("a@{}", Digest::of(b"other")).parse().unwrap();
    for image in case.images.write().by_id.values_mut() {
        Arc::make_mut(image).repo_digests.push(other.clone());
    }
    assert_eq!(case.remove("a@#0"), ["a@#0"]);
    assert_eq!(case.remove(&other.familiar()).last().unwrap(), "deleted");
}

#[test]
fn a_prune_of_all_removes_references_of_every_kind() {
    let case = Case::new("prune", &[(&["a:1"], &["a", "registry.test/c"])]);
    let pruned = case.images.prune(true, &Filters::default(), |_| Vec::new());
    let (removed, _) = pruned.unwrap();
    assert!(
        matches!(removed.last(), Some(Removed::Deleted(_))),
        "{removed:?}"
    );
    assert_eq!(removed.len(), 4);
}
