//! Property tests with random input: stacks of layers against a model, reproduction of archives,
//! and image references.
#![allow(clippy::unwrap_used, reason = "a test stops where something fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;

use common::{Bench, Entry, apply, dir, file, image_form, pack, symlink, whiteout};
use proptest::prelude::*;
use tar::{Archive, EntryType};
use whelk_image::snapshots::export;
use whelk_image::{Digest, Reference};

/// What exists at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory(u32),
    File(u32, Vec<u8>),
    Link(String),
}

type Tree = BTreeMap<String, Node>;

/// A change that a layer makes to a path.
#[derive(Clone, Debug)]
enum Change {
    Add(Node),
    Delete,
    /// Hides the content of this directory in lower layers.
    Empty,
}

/// A layer in the model: a set of changes without an order.
#[derive(Clone, Debug, Default)]
struct Layer {
    added: Tree,
    deleted: BTreeSet<String>,
    emptied: BTreeSet<String>,
    /// Whether whiteouts come before or after the other entries of their directory.
    whiteouts_last: bool,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Removes everything below a directory.
fn remove_below(tree: &mut Tree, path: &str) {
    let prefix = format!("{path}/");
    tree.retain(|name, _| !name.starts_with(&prefix));
}

impl Layer {
    /// Creates a layer from changes in any order, skipping those that contradict earlier ones.
    fn new(changes: &[(String, Change)], whiteouts_last: bool) -> Self {
        let mut layer = Self {
            whiteouts_last,
            ..Self::default()
        };
        for (path, change) in changes {
            layer.change(path, change);
        }
        layer
    }

    fn change(&mut self, path: &str, change: &Change) {
        let add = match change {
            Change::Add(node) => Some(node.clone()),
            Change::Delete => None,
            Change::Empty => Some(Node::Directory(0o755)),
        };
        let fits = match (&add, self.added.get(path)) {
            (Some(Node::Directory(_)), Some(there)) => matches!(there, Node::Directory(_)),
            (Some(_), Some(_)) => false,
            _ => true,
        };
        if !fits || !self.make_parents(parent(path)) {
            return;
        }
        match change {
            Change::Delete => {
                self.deleted.insert(path.to_owned());
            }
            Change::Empty => {
                self.emptied.insert(path.to_owned());
            }
            Change::Add(_) => {}
        }
        if let Some(node) = add {
            self.added.insert(path.to_owned(), node);
        }
    }

    /// Adds entries for the directories above a change, as regular tools do.
    fn make_parents(&mut self, path: &str) -> bool {
        if path.is_empty() {
            return true;
        }
        match self.added.get(path) {
            Some(Node::Directory(_)) => true,
            Some(_) => false,
            None => {
                let possible = self.make_parents(parent(path));
                if possible {
                    self.added.insert(path.to_owned(), Node::Directory(0o755));
                }
                possible
            }
        }
    }

    /// Applies the layer to a tree.
    fn apply(&self, tree: &mut Tree) {
        for path in &self.deleted {
            tree.remove(path);
            remove_below(tree, path);
        }
        for path in &self.emptied {
            remove_below(tree, path);
        }
        for (path, node) in &self.added {
            if !matches!(
                (node, tree.get(path)),
                (Node::Directory(_), Some(Node::Directory(_)))
            ) {
                remove_below(tree, path);
            }
            tree.insert(path.clone(), node.clone());
        }
    }

    /// Returns the layer's archive, with directories before their content.
    fn archive(&self) -> Vec<u8> {
        let mut entries = Vec::new();
        if !self.whiteouts_last {
            self.hide("", &mut entries);
        }
        for (path, node) in &self.added {
            match node {
                Node::Directory(mode) => {
                    entries.push(dir(format!("{path}/")).mode(*mode));
                    if !self.whiteouts_last {
                        self.hide(path, &mut entries);
                    }
                }
                Node::File(mode, content) => entries.push(file(path, content).mode(*mode)),
                Node::Link(target) => entries.push(symlink(path, target)),
            }
        }
        if self.whiteouts_last {
            self.hide("", &mut entries);
            for (path, node) in &self.added {
                if matches!(node, Node::Directory(_)) {
                    self.hide(path, &mut entries);
                }
            }
        }
        pack(&entries)
    }

    /// Adds the whiteouts in one directory.
    fn hide(&self, directory: &str, entries: &mut Vec<Entry>) {
        if self.emptied.contains(directory) {
            entries.push(file(format!("{directory}/.wh..wh..opq"), ""));
        }
        entries.extend(
            self.deleted
                .iter()
                .filter(|path| parent(path) == directory)
                .map(|path| whiteout(path)),
        );
    }
}

/// Few names, so that layers interact.
fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..=3)
        .prop_map(|parts| parts.join("/"))
}

fn nodes() -> impl Strategy<Value = Node> {
    prop_oneof![
        prop::sample::select(vec![0o755, 0o700, 0o1777]).prop_map(Node::Directory),
        (
            prop::sample::select(vec![0o644, 0o4755]),
            prop::collection::vec(any::<u8>(), 0..20)
        )
            .prop_map(|(mode, content)| Node::File(mode, content)),
        prop::sample::select(vec!["a", "b/c", "/a/b", "nowhere"])
            .prop_map(|target| Node::Link(target.to_owned())),
    ]
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => nodes().prop_map(Change::Add),
        2 => Just(Change::Delete),
        1 => Just(Change::Empty),
    ]
}

fn layers() -> impl Strategy<Value = Layer> {
    (
        prop::collection::vec((paths(), changes()), 0..12),
        any::<bool>(),
    )
        .prop_map(|(changes, last)| Layer::new(&changes, last))
}

/// Reads the tree of an exported file system.
fn tree(archive: &[u8]) -> Tree {
    let mut archive = Archive::new(archive);
    let mut tree = Tree::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mode = entry.header().mode().unwrap();
        let node = match entry.header().entry_type() {
            EntryType::Directory => Node::Directory(mode),
            EntryType::Regular => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                Node::File(mode, content)
            }
            EntryType::Symlink => Node::Link(
                String::from_utf8(entry.link_name_bytes().unwrap().into_owned()).unwrap(),
            ),
            other => panic!("{name} is a {other:?}"),
        };
        tree.insert(name.trim_end_matches('/').to_owned(), node);
    }
    tree
}

/// Checks that a container sees this stack of layers as the model does.
fn check_layers(layers: &[Layer]) {
    let bench = Bench::new();
    let mut expected = Tree::new();
    let mut lower: Vec<PathBuf> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        // Makes every layer unique: stacks with the same layer twice have a test of their own.
        let mut layer = layer.clone();
        layer
            .added
            .insert(format!("layer{number}"), Node::File(0o644, Vec::new()));
        layer.apply(&mut expected);
        lower.insert(0, bench.unpack(&layer.archive()));
    }
    let mut archive = Vec::new();
    export(&lower, &mut archive).unwrap();
    assert_eq!(tree(&archive), expected);
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn merged_layers_match_the_model(stack in prop::collection::vec(layers(), 2..6)) {
        check_layers(&stack);
    }
}

/// Cases that failed once.
#[test]
fn merges_the_layers_of_known_failures() {
    let layer = |changes: &[(&str, Change)], last: bool| {
        let changes: Vec<(String, Change)> = changes
            .iter()
            .map(|(path, change)| ((*path).to_owned(), change.clone()))
            .collect();
        Layer::new(&changes, last)
    };
    let add_file = || Change::Add(Node::File(0o644, b"x".to_vec()));
    let add_directory = || Change::Add(Node::Directory(0o755));
    for last in [false, true] {
        let base = layer(
            &[
                ("a/b/c", add_file()),
                ("a/c", add_file()),
                ("b", add_file()),
            ],
            last,
        );
        // Deleted and created again in one layer.
        check_layers(&[
            base.clone(),
            layer(&[("a", Change::Delete), ("a/c", add_file())], last),
        ]);
        check_layers(&[
            base.clone(),
            layer(&[("a/b", Change::Delete), ("a/b", add_directory())], last),
        ]);
        // Deleted in one layer and created again in the next.
        check_layers(&[
            base.clone(),
            layer(&[("a", Change::Delete)], last),
            layer(&[("a/b", add_directory())], last),
        ]);
        // A file in a middle layer hides the directory below it.
        check_layers(&[
            base.clone(),
            layer(&[("a", add_file())], last),
            layer(&[("a/c", add_file())], last),
        ]);
        check_layers(&[
            base.clone(),
            layer(&[("a", Change::Empty)], last),
            layer(&[("a/b", add_directory())], last),
        ]);
        check_layers(&[
            base.clone(),
            layer(&[("b", add_directory())], last),
            layer(&[("b", Change::Delete)], last),
        ]);
        // Deleting a name that does not exist has no effect.
        check_layers(&[
            base,
            layer(&[("c", Change::Delete), ("c/a", Change::Delete)], last),
        ]);
    }
}

/// A path component of a reference.
fn components() -> impl Strategy<Value = String> {
    (
        "[a-z0-9]{1,6}",
        prop::collection::vec(("(\\.|_|__|-{1,3})", "[a-z0-9]{1,4}"), 0..3),
    )
        .prop_map(|(first, rest)| {
            rest.iter()
                .fold(first, |name, (separator, part)| name + separator + part)
        })
}

fn domains() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("docker.io/".to_owned()),
        Just("localhost/".to_owned()),
        Just("[::1]:5000/".to_owned()),
        "[a-z0-9]{1,5}\\.[a-z]{2,3}/",
        "[a-zA-Z0-9]{1,5}:[0-9]{1,5}/",
    ]
}

fn references() -> impl Strategy<Value = String> {
    let tag = prop_oneof![Just(String::new()), ":[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}"];
    let digest = prop_oneof![
        Just(String::new()),
        any::<u8>().prop_map(|byte| format!("@{}", Digest::of(&[byte])))
    ];
    (
        domains(),
        prop::collection::vec(components(), 1..4),
        tag,
        digest,
    )
        .prop_map(|(domain, path, tag, digest)| {
            // A first component that contains a dot is a domain.
            let domain = if domain.is_empty() && path.len() > 1 && path[0].contains('.') {
                "docker.io/".to_owned()
            } else {
                domain
            };
            format!("{domain}{}{tag}{digest}", path.join("/"))
        })
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn references_are_printed_as_parsed(text in references()) {
        let reference = text.parse::<Reference>().map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        let printed = reference.to_string();
        prop_assert_eq!(printed.parse::<Reference>().unwrap(), reference.clone());
        // The familiar form parses to the same reference, unless its first path component looks
        // like a domain.
        let first = reference.path.split('/').next().unwrap_or_default();
        if reference.domain != "docker.io" || !first.contains('.') {
            prop_assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn parsed_references_are_valid(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,30}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn parsing_never_panics(text in any::<String>()) {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
        let _ = text.parse::<Digest>();
    }
}

proptest! {
    #![proptest_config(cases(300))]

    /// Input that is not a valid archive must leave nothing behind.
    #[test]
    fn damaged_archives_leave_nothing(
        (layer, places) in (layers(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6))
    ) {
        let bench = Bench::new();
        let guard = bench.guard();
        let mut archive = layer.archive();
        for (place, byte) in places {
            let place = place.index(archive.len());
            archive[place] = byte;
        }
        match apply(&bench.store, archive.as_slice(), None) {
            Ok(layer) => {
                prop_assert_eq!(layer.diff_id.clone(), Digest::of(&archive));
                prop_assert!(bench.written(&layer.diff_id) == archive);
                bench.check_temporary("unpacked");
                let files = bench.store.snapshots.files(&layer.diff_id);
                image_form::check(&archive, Ok(&files));
            }
            Err(error) => {
                bench.check_empty("refused");
                image_form::check(&archive, Err(&error.to_string()));
            }
        }
        prop_assert_eq!(bench.guard(), guard);
    }
}
