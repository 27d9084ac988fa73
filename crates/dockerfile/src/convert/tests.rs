//! Conversions of whole files.

mod files;
mod images;
mod run;
mod stages;
mod warnings;

use std::collections::{BTreeMap, HashMap};

use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{ExecOp, FileOp, Op, Platform, file_action};
use whelk_llb::{CUSTOM_NAME, Graph, Node};

use super::*;

/// A digest of an image's manifest.
const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Knows enough of image names for these tests.
fn reference(text: &str) -> std::result::Result<Reference, String> {
    if text.is_empty() || text.contains(' ') || text != text.to_lowercase() {
        return Err("invalid reference format".into());
    }
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    };
    let long = match name.split_once('/') {
        None => format!("docker.io/library/{name}"),
        Some((host, _)) if host.contains('.') => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
    };
    let short = long
        .strip_prefix("docker.io/library/")
        .or(long.strip_prefix("docker.io/"))
        .unwrap_or(&long);
    Ok(Reference {
        full: format!("{long}:{}", tag.unwrap_or("latest")),
        familiar: match tag {
            Some(tag) => format!("{short}:{tag}"),
            None => short.to_owned(),
        },
    })
}

fn options() -> Options {
    Options {
        session: "s".into(),
        ..Options::new(Platform::new("linux", "amd64", ""), reference)
    }
}

fn build_args(args: &[(&str, &str)]) -> BTreeMap<String, String> {
    let args = args.iter();
    args.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// The configurations of images; others have a default one.
type Images = HashMap<&'static str, &'static str>;

const DEFAULT: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"],"WorkingDir":"/"},
    "rootfs":{"type":"layers","diff_ids":["sha256:1"]},"history":[{"created_by":"base"}]}"#;

struct Done {
    conversion: Conversion,
    graph: Graph,
    warnings: Vec<Warning>,
    requests: Vec<Request>,
}

/// Converts a file, and answers all questions.
fn run_with(text: &str, options: &Options, images: &Images) -> Result<Done> {
    let mut answers = Answers::new();
    let mut asked = Vec::new();
    let mut linter = Linter::default();
    loop {
        match convert(text, options, &answers, &mut linter)? {
            Outcome::Done(conversion) => {
                let graph = Graph::new(conversion.definition.clone())
                    .unwrap_or_else(|error| panic!("{text}: {error}"));
                return Ok(Done {
                    graph,
                    warnings: linter.warnings,
                    requests: asked,
                    conversion: *conversion,
                });
            }
            Outcome::Needs(requests) => {
                assert!(!requests.is_empty());
                for request in requests {
                    asked.push(request.clone());
                    let answer = match &request {
                        Request::Image { reference, .. } if reference.contains("missing") => {
                            Answer::Failed("not found".into())
                        }
                        Request::Image { reference, .. } if reference.contains("endless") => {
                            Answer::Replaced("docker-image:endless".into())
                        }
                        Request::Image { reference, .. } if reference.contains("replaced") => {
                            Answer::Replaced("local://dir".into())
                        }
                        Request::Image { reference, .. } => Answer::Image {
                            reference: reference.clone(),
                            digest: DIGEST.into(),
                            config: images
                                .get(reference.as_str())
                                .copied()
                                .unwrap_or(DEFAULT)
                                .into(),
                        },
                        Request::Ignore { .. } => Answer::Ignore(Some("*.log\n".into())),
                        Request::Time { .. } => Answer::Time(Some(1_700_000_000)),
                    };
                    assert!(answers.insert(request, answer).is_none(), "asked twice");
                }
            }
        }
    }
}

fn run(text: &str, options: &Options) -> Done {
    run_with(text, options, &Images::new()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn failure(text: &str, options: &Options) -> Error {
    match run_with(text, options, &Images::new()) {
        Ok(_) => panic!("{text}: no error"),
        Err(error) => error,
    }
}

impl Done {
    /// Returns the names of all operations, sorted.
    fn names(&self) -> Vec<String> {
        let nodes = self.graph.nodes.iter();
        let mut names: Vec<String> = nodes.map(|node| name(node).to_owned()).collect();
        names.sort();
        names
    }

    fn node(&self, part: &str) -> &Node {
        let mut nodes = self.graph.nodes.iter();
        nodes
            .find(|node| name(node).contains(part))
            .unwrap_or_else(|| panic!("{part}: {:?}", self.names()))
    }

    fn exec(&self, part: &str) -> &ExecOp {
        match &self.node(part).op.kind {
            Some(Kind::Exec(exec)) => exec,
            other => panic!("{part}: {other:?}"),
        }
    }

    fn file(&self, part: &str) -> &FileOp {
        match &self.node(part).op.kind {
            Some(Kind::File(file)) => file,
            other => panic!("{part}: {other:?}"),
        }
    }

    fn source(&self, part: &str) -> (&str, &BTreeMap<String, String>) {
        match &self.node(part).op.kind {
            Some(Kind::Source(source)) => (&source.identifier, &source.attrs),
            other => panic!("{part}: {other:?}"),
        }
    }

    fn copies(&self, part: &str) -> Vec<&whelk_llb::pb::FileActionCopy> {
        let actions = self.file(part).actions.iter();
        let copies = actions.filter_map(|action| match &action.action {
            Some(file_action::Action::Copy(copy)) => Some(copy),
            _ => None,
        });
        copies.collect()
    }

    fn history(&self) -> Vec<(&str, bool)> {
        let entries = self.conversion.image.history.iter();
        entries
            .map(|entry| (entry.created_by.as_str(), entry.empty_layer))
            .collect()
    }
}

fn name(node: &Node) -> &str {
    let names = &node.metadata.description;
    names.get(CUSTOM_NAME).map_or("", String::as_str)
}

/// Returns an operation without its inputs.
fn shape(node: &Node) -> Op {
    Op {
        inputs: Vec::new(),
        ..node.op.clone()
    }
}
