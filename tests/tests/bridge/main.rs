//! BuildKit's protocol with calls that the usual clients do not make: frontends that are programs, definitions made by
//! hand, and clients that are late, hostile or greedy.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::too_many_lines,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod attestations;
mod attributes;
mod calls;
mod containers;
mod control;
mod differences;
mod exporters;
mod hostile;
mod images;
mod limits;
mod operations;
mod outputs;
mod refusals;

use whelk_buildkit::grpc::{Code, Result};
use whelk_buildkit::pb::Unused;
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    Definition, ExecOp, FileAction, FileActionMkFile, FileOp, Meta, Mount, SourceOp,
};
use whelk_llb::{Builder, Output, Vertex};

/// Makes a definition out of operations.
#[derive(Default)]
struct Made(Builder);

impl Made {
    fn add(&mut self, kind: Kind, inputs: &[Output]) -> Output {
        self.0.add(Vertex::new(kind, inputs.to_vec())).unwrap()
    }

    fn source(&mut self, identifier: &str, attributes: &[(&str, &str)]) -> Output {
        let attributes = attributes.iter();
        let source = SourceOp {
            identifier: identifier.to_owned(),
            attrs: attributes
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        self.add(Kind::Source(source), &[])
    }

    fn busybox(&mut self) -> Output {
        self.source("docker-image://docker.io/library/busybox:latest", &[])
    }

    fn exec(&mut self, exec: ExecOp, inputs: &[Output]) -> Output {
        self.add(Kind::Exec(exec), inputs)
    }

    /// Runs a script in busybox.
    fn script(&mut self, text: &str) -> Output {
        let base = self.busybox();
        self.exec(script(text), &[base])
    }

    /// Adds a file operation of one action on a result, or on nothing.
    fn file(&mut self, action: Action, base: Option<Output>) -> Output {
        let inputs: Vec<Output> = base.into_iter().collect();
        let action = FileAction {
            input: if inputs.is_empty() { -1 } else { 0 },
            secondary_input: -1,
            output: 0,
            action: Some(action),
        };
        let op = FileOp {
            actions: vec![action],
        };
        self.add(Kind::File(op), &inputs)
    }

    fn definition(&self, result: Output) -> Definition {
        self.0.definition(Some(result), None)
    }
}

/// Returns a process of the first input.
fn script(text: &str) -> ExecOp {
    let args = ["/bin/sh", "-c", text];
    ExecOp {
        meta: Some(Meta {
            args: args.map(str::to_owned).to_vec(),
            cwd: "/".into(),
            ..Meta::default()
        }),
        mounts: vec![Mount {
            dest: "/".into(),
            ..Mount::default()
        }],
        network: 2,
        ..ExecOp::default()
    }
}

fn make_file(path: &str, content: &str) -> Action {
    Action::Mkfile(FileActionMkFile {
        path: path.to_owned(),
        mode: 0o644,
        data: content.as_bytes().to_vec(),
        owner: None,
        timestamp: -1,
    })
}

/// Returns a definition that only makes a file.
fn file(path: &str, content: &str) -> Definition {
    let mut made = Made::default();
    let result = made.file(make_file(path, content), None);
    made.definition(result)
}

/// Returns the definition of a script in busybox.
fn run(text: &str) -> Definition {
    let mut made = Made::default();
    let result = made.script(text);
    made.definition(result)
}

/// Checks that a call has failed with this code, and a text that has these words in it.
#[track_caller]
fn fails<T: std::fmt::Debug>(answer: Result<T>, code: Code, words: &str) {
    let status = answer.unwrap_err();
    assert!(
        status.code == code && status.message.contains(words),
        "{:?} {} instead of {code:?} {words}",
        status.code,
        status.message
    );
}

const NOTHING: Unused = Unused {};
