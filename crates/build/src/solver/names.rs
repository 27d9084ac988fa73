//! Names of operations, as clients show them. Those that a definition does not name have BuildKit's names, which tell what they do.

use std::borrow::Cow;

use whelk_dockerfile::convert::without_credentials;
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{ExecOp, FileAction, InputIndex};
use whelk_llb::{CUSTOM_NAME, Graph, Node};

use crate::progress::beginning;
use crate::sources::http::redacted;

/// Maximum length of a name that is made here, in bytes.
const MAX: usize = 4096;

/// The same of operations whose names have those of others in them: a small definition may have many of them.
const MAX_OF_OTHERS: usize = 512;

/// Returns the names of all operations of a graph.
pub(super) fn of(graph: &Graph) -> Vec<Cow<'_, str>> {
    // Inputs are before what has them.
    let mut names: Vec<Cow<'_, str>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let name = match node.metadata.description.get(CUSTOM_NAME) {
            Some(name) => Cow::from(name.as_str()),
            None => Cow::from(name(node, &names)),
        };
        names.push(name);
    }
    names
}

/// Returns the name of an operation, without those of other ones in it.
pub(crate) fn alone(node: &Node) -> String {
    match (node.metadata.description.get(CUSTOM_NAME), &node.op.kind) {
        (Some(name), _) => name.clone(),
        (None, Some(Kind::Merge(_))) => "merge".to_owned(),
        (None, Some(Kind::Diff(_))) => "diff".to_owned(),
        (None, _) => name(node, &[]),
    }
}

/// Returns the name of an operation. `names` are those of the operations before it.
fn name(node: &Node, names: &[Cow<'_, str>]) -> String {
    let of_input = |number: usize| {
        let edge = node.inputs.get(number);
        let name = edge.and_then(|edge| names.get(edge.node));
        name.map_or("", |name| beginning(name, MAX_OF_OTHERS))
    };
    let side = |side: Option<&InputIndex>| {
        let number = side.and_then(|side| usize::try_from(side.input).ok());
        number.map_or_else(
            || "scratch".to_owned(),
            |number| format!("({})", of_input(number)),
        )
    };
    let (text, most) = match &node.op.kind {
        Some(Kind::Source(source)) => (identifier(&source.identifier), MAX),
        Some(Kind::Exec(exec)) => (command(exec), MAX),
        Some(Kind::File(file)) => (joined(file.actions.iter().filter_map(action)), MAX),
        Some(Kind::Merge(_)) => {
            let inputs = (0..node.inputs.len()).map(|number| of_input(number).to_owned());
            (format!("merge ({})", joined(inputs)), MAX_OF_OTHERS)
        }
        Some(Kind::Diff(diff)) => {
            let (lower, upper) = (side(diff.lower.as_ref()), side(diff.upper.as_ref()));
            (format!("diff {lower} -> {upper}"), MAX_OF_OTHERS)
        }
        Some(Kind::Build(_)) => ("build".to_owned(), MAX),
        Some(Kind::Passthrough(_)) | None => (node.digest.to_string(), MAX),
    };
    // A script would be several lines.
    beginning(&text, most).replace(char::is_control, " ")
}

/// Returns what a source is, without users, passwords and queries of URLs.
fn identifier(identifier: &str) -> String {
    let images = ["docker-image://", "oci-layout://"];
    match images.iter().any(|scheme| identifier.starts_with(scheme)) {
        // The sign before a digest is not that behind a user.
        true => identifier.to_owned(),
        false => redacted(identifier),
    }
}

/// Returns the arguments of a process.
fn command(exec: &ExecOp) -> String {
    let args = exec
        .meta
        .as_ref()
        .map_or(&[][..], |meta| meta.args.as_slice());
    let text = args.join(" ");
    match text.contains("://") {
        true => without_credentials(&text),
        false => text,
    }
}

fn action(action: &FileAction) -> Option<String> {
    Some(match action.action.as_ref()? {
        Action::Mkdir(mkdir) => format!("mkdir {}", mkdir.path),
        Action::Mkfile(mkfile) => format!("mkfile {}", mkfile.path),
        Action::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
        Action::Rm(rm) => format!("rm {}", rm.path),
        Action::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
    })
}

/// Returns a list of names, of not much more than the maximum.
fn joined(names: impl Iterator<Item = String>) -> String {
    let mut joined = String::new();
    for (number, name) in names.enumerate() {
        if joined.len() > MAX {
            break;
        }
        if number > 0 {
            joined += ", ";
        }
        joined += &name;
    }
    joined
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_llb::pb::{
        DiffOp, FileActionCopy, FileActionMkDir, FileActionMkFile, FileActionRm, FileActionSymlink,
        FileOp, MergeOp, Meta, Mount, SourceOp,
    };
    use whelk_llb::{Builder, Output, Vertex};

    use super::*;

    fn add(made: &mut Builder, kind: Kind, inputs: &[Output]) -> Output {
        made.add(Vertex::new(kind, inputs.to_vec())).unwrap()
    }

    fn source(made: &mut Builder, identifier: &str) -> Output {
        let source = SourceOp {
            identifier: identifier.into(),
            ..SourceOp::default()
        };
        add(made, Kind::Source(source), &[])
    }

    fn process(args: &[&str]) -> Kind {
        Kind::Exec(ExecOp {
            meta: Some(Meta {
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                cwd: "/".into(),
                ..Meta::default()
            }),
            mounts: vec![Mount {
                dest: "/".into(),
                ..Mount::default()
            }],
            ..ExecOp::default()
        })
    }

    fn merge(inputs: i64) -> Kind {
        let inputs = (0..inputs).map(|input| InputIndex { input });
        Kind::Merge(MergeOp {
            inputs: inputs.collect(),
        })
    }

    /// Returns the name of the operation that a result is of.
    fn name_of(made: &Builder, result: Output) -> String {
        let graph = Graph::new(made.definition(Some(result), None)).unwrap();
        let node = graph.result.unwrap().node;
        of(&graph)[node].clone().into_owned()
    }

    #[test]
    fn operations_have_the_names_of_buildkit() {
        let mut made = Builder::default();
        let image = format!(
            "docker-image://docker.io/library/a:1@sha256:{}",
            "0".repeat(64)
        );
        let base = source(&mut made, &image);
        assert_eq!(name_of(&made, base), image);
        let repository = source(&mut made, "git://user:hidden@example.com/a.git#main");
        assert_eq!(name_of(&made, repository), "git://example.com/a.git");
        let run = process(&[
            "sh",
            "-c",
            "echo a\n\x1b[2Jcurl https://user:hidden@example.com/x",
        ]);
        let run = add(&mut made, run, &[base]);
        let expected = "sh -c echo a  [2Jcurl https://example.com/x";
        assert_eq!(name_of(&made, run), expected);

        let actions = [
            Action::Mkdir(FileActionMkDir {
                path: "/d".into(),
                ..FileActionMkDir::default()
            }),
            Action::Mkfile(FileActionMkFile {
                path: "/f".into(),
                ..FileActionMkFile::default()
            }),
            Action::Symlink(FileActionSymlink {
                oldpath: "/old".into(),
                newpath: "/new".into(),
                ..FileActionSymlink::default()
            }),
            Action::Rm(FileActionRm {
                path: "/x".into(),
                ..FileActionRm::default()
            }),
        ];
        let actions = (0..).zip(actions).map(|(number, action)| FileAction {
            // Each goes on with the result of the one before it.
            input: number,
            secondary_input: -1,
            output: if number == 3 { 0 } else { -1 },
            action: Some(action),
        });
        let actions = actions.collect();
        let files = add(&mut made, Kind::File(FileOp { actions }), &[base]);
        let expected = "mkdir /d, mkfile /f, symlink /new -> /old, rm /x";
        assert_eq!(name_of(&made, files), expected);
        let copy = FileAction {
            input: 0,
            secondary_input: 1,
            output: 0,
            action: Some(Action::Copy(FileActionCopy {
                src: "/a".into(),
                dest: "/b".into(),
                ..FileActionCopy::default()
            })),
        };
        let copy = Kind::File(FileOp {
            actions: vec![copy],
        });
        let copy = add(&mut made, copy, &[base, files]);
        assert_eq!(name_of(&made, copy), "copy /a /b");

        let mut named = Vertex::new(merge(2), vec![files, copy]);
        let description = &mut named.metadata.description;
        description.insert(CUSTOM_NAME.to_owned(), "both".to_owned());
        let named = made.add(named).unwrap();
        assert_eq!(name_of(&made, named), "both");
        let merged = add(&mut made, merge(2), &[named, copy]);
        assert_eq!(name_of(&made, merged), "merge (both, copy /a /b)");
        let diff = DiffOp {
            lower: Some(InputIndex { input: -1 }),
            upper: Some(InputIndex { input: 0 }),
        };
        let diff = add(&mut made, Kind::Diff(diff), &[merged]);
        let expected = "diff scratch -> (merge (both, copy /a /b))";
        assert_eq!(name_of(&made, diff), expected);
        let graph = Graph::new(made.definition(Some(diff), None)).unwrap();
        let names: Vec<String> = graph.nodes.iter().map(alone).collect();
        for expected in ["both", "copy /a /b", "merge", "diff"] {
            assert!(names.iter().any(|name| name == expected), "{names:?}");
        }
    }

    #[test]
    fn names_are_not_long() {
        let mut made = Builder::default();
        let base = source(&mut made, "docker-image://docker.io/library/a:1");
        let run = process(&["echo", &"é".repeat(MAX)]);
        let run = add(&mut made, run, &[base]);
        let name = name_of(&made, run);
        assert!(name.len() <= MAX && name.ends_with('é'), "{}", name.len());
        // Each would have twice the name of the one before it.
        let mut result = run;
        for _ in 0..40 {
            let diff = DiffOp {
                lower: Some(InputIndex { input: 0 }),
                upper: Some(InputIndex { input: 1 }),
            };
            let diff = add(&mut made, Kind::Diff(diff), &[base, result]);
            result = add(&mut made, merge(2), &[result, diff]);
        }
        let name = name_of(&made, result);
        let is_cut = name.starts_with("merge (merge (") && name.len() <= MAX_OF_OTHERS;
        assert!(is_cut, "{name}");
    }
}
