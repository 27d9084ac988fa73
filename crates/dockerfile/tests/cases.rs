//! BuildKit's cases of its parser.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests fail by panics"
)]

use std::fs;
use std::path::{Path, PathBuf};

use whelk_dockerfile::lint::Linter;
use whelk_dockerfile::{Stages, parse};

fn cases(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cases")
        .join(kind);
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn files_parse_to_the_trees_of_buildkit() {
    let cases = cases("parser");
    assert!(cases.len() >= 30);
    for case in cases {
        let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
        let expected = fs::read_to_string(case.join("result")).unwrap();
        let dockerfile = parse(&text).unwrap_or_else(|error| panic!("{case:?}: {error}"));
        let tree: String = dockerfile
            .lines
            .iter()
            .map(|line| format!("({line})\n"))
            .collect();
        assert_eq!(tree.trim(), expected.trim(), "{case:?}");
    }
}

#[test]
fn invalid_files_are_refused() {
    let cases = cases("negative");
    assert!(cases.len() >= 4);
    for case in cases {
        let text = fs::read_to_string(case.join("Dockerfile")).unwrap();
        let stages =
            parse(&text).and_then(|dockerfile| Stages::parse(&dockerfile, &mut Linter::default()));
        assert!(stages.is_err(), "{case:?}");
    }
}
