//! Contexts that are fetched from a server instead of sent by the client.

use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{FileAction, FileActionCopy, FileOp, file_action};
use whelk_llb::{Builder, Graph, Output, Vertex};

use super::context::http_source;
use super::git::{self, Git};
use super::{graph, metadata};
use crate::error::Result;
use crate::path;

/// The name of the file that the content of a URL gets.
const FILE: &str = "context";

/// A context on a server.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteContext {
    /// Its source.
    pub graph: Graph,
    /// The name of the file that it is, a Dockerfile or an archive; `None` for a directory.
    pub file: Option<&'static str>,
}

impl RemoteContext {
    /// Returns the context that a text means: a git repository, or a URL. Returns `None` for others. `keep_git_dir` is
    /// the argument of the build that says whether a repository has its directory `.git`.
    ///
    /// # Errors
    /// Returns an error if the parameters of a repository are invalid.
    pub fn parse(text: &str, keep_git_dir: bool) -> Result<Option<Self>> {
        if let Some(mut git) = Git::parse(text)? {
            if keep_git_dir {
                git.keep_git_dir = Some(true);
            }
            let (source, caps) = git.source();
            let name = format!("[internal] load git source {}", git::redacted(text));
            let mut builder = Builder::default();
            let vertex = Vertex {
                metadata: metadata(&name, &caps),
                ..Vertex::new(Kind::Source(source), Vec::new())
            };
            let output = builder.add(vertex).map_err(graph)?;
            return Ok(Some(Self {
                graph: finish(&builder, output)?,
                file: None,
            }));
        }
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Ok(None);
        }
        let mut builder = Builder::default();
        let vertex = Vertex {
            metadata: metadata("[internal] load remote build context", &["source.http"]),
            ..Vertex::new(Kind::Source(http_source(text, FILE, "")), Vec::new())
        };
        let output = builder.add(vertex).map_err(graph)?;
        Ok(Some(Self {
            graph: finish(&builder, output)?,
            file: Some(FILE),
        }))
    }

    /// Returns the host, with the port, of the URL of a context. Returns `None` for what is none.
    pub fn host(text: &str) -> Option<String> {
        match Git::parse(text) {
            Ok(Some(git)) => Some(git.host().to_owned()),
            _ => git::host(text).map(str::to_owned),
        }
    }

    /// Returns the text of a context as it may be shown: without a user and a password, and, of a URL that is no repository, without
    /// what is asked for, which may be a signature.
    pub fn shown(text: &str) -> String {
        let bare = git::redacted(text);
        let is_file = git::is_http(text);
        match bare.split_once('?').filter(|_| is_file) {
            Some((file, _)) => file.to_owned(),
            None => bare,
        }
    }

    /// Returns the graph of the files in the archive that it is.
    ///
    /// # Errors
    /// Returns an error if the graph would be too large.
    pub fn unpacked(&self) -> Result<Graph> {
        let action = FileActionCopy {
            src: path::absolute("/", FILE, false),
            attempt_unpack_docker_compatibility: true,
            ..copy()
        };
        copied(&self.graph, action, &format!("copy /{FILE} /"))
    }
}

/// Returns the graph of a directory of a context.
///
/// # Errors
/// Returns an error if the graph would be too large.
pub fn subdirectory(context: &Graph, directory: &str) -> Result<Graph> {
    let action = FileActionCopy {
        src: path::absolute("/", directory, false),
        dir_copy_contents: true,
        ..copy()
    };
    copied(context, action, &format!("copy {directory} /"))
}

fn copy() -> FileActionCopy {
    FileActionCopy {
        dest: "/".into(),
        create_dest_path: true,
        mode: -1,
        timestamp: -1,
        ..FileActionCopy::default()
    }
}

/// Returns the graph of an empty directory into which something of another graph is copied.
fn copied(from: &Graph, action: FileActionCopy, name: &str) -> Result<Graph> {
    let mut builder = Builder::default();
    let from = builder.add_graph(from).map_err(graph)?;
    let op = FileOp {
        actions: vec![FileAction {
            input: -1,
            secondary_input: if from.is_some() { 0 } else { -1 },
            output: 0,
            action: Some(file_action::Action::Copy(action)),
        }],
    };
    let vertex = Vertex {
        metadata: metadata(name, &["file.base"]),
        ..Vertex::new(Kind::File(op), from.into_iter().collect())
    };
    let output = builder.add(vertex).map_err(graph)?;
    finish(&builder, output)
}

fn finish(builder: &Builder, output: Output) -> Result<Graph> {
    Graph::new(builder.definition(Some(output), None)).map_err(graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identifier(graph: &Graph) -> &str {
        match graph.nodes.first().and_then(|node| node.op.kind.as_ref()) {
            Some(Kind::Source(source)) => &source.identifier,
            _ => "",
        }
    }

    #[test]
    fn contexts_are_recognized_by_their_form() {
        for (text, expected) in [
            (
                "https://h/a.tar.gz",
                Some(("https://h/a.tar.gz", Some(FILE))),
            ),
            (
                "http://buildkit-session/x",
                Some(("http://buildkit-session/x", Some(FILE))),
            ),
            ("https://h/a.git#v1", Some(("git://h/a.git#v1", None))),
            ("git@h:a.git", Some(("git://h/a.git", None))),
            ("", None),
            ("dir", None),
        ] {
            let found = RemoteContext::parse(text, false).unwrap_or_default();
            let found = found
                .as_ref()
                .map(|found| (identifier(&found.graph), found.file));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn hosts_are_known_and_credentials_are_not_shown() {
        for (text, host, shown) in [
            (
                "https://u:secret@h:8/a.git#v1:d",
                Some("h:8"),
                "https://h:8/a.git#v1:d",
            ),
            (
                "https://u:secret@h/x.tar?sign=secret",
                Some("h"),
                "https://h/x.tar",
            ),
            (
                "https://h/a.git?ref=v1",
                Some("h"),
                "https://h/a.git?ref=v1",
            ),
            ("github.com/a/b", Some("github.com"), "github.com/a/b"),
            ("git@h:a.git", Some("h"), "git@h:a.git"),
            ("/a/b", None, "/a/b"),
        ] {
            assert_eq!(RemoteContext::host(text).as_deref(), host, "{text}");
            assert_eq!(RemoteContext::shown(text), shown);
        }
    }

    #[test]
    fn archives_are_unpacked_and_directories_selected() {
        let found = RemoteContext::parse("https://h/a.tar", false).unwrap_or_default();
        let found = found.map(|found| found.unpacked().unwrap_or_default());
        let graph = found.unwrap_or_default();
        assert_eq!(graph.nodes.len(), 2);
        let below = subdirectory(&graph, "a/b").unwrap_or_default();
        let last = below.nodes.last().and_then(|node| node.op.kind.as_ref());
        let Some(Kind::File(op)) = last else {
            panic!("{below:?}");
        };
        let Some(file_action::Action::Copy(copy)) = &op.actions[0].action else {
            panic!("{op:?}");
        };
        assert_eq!((copy.src.as_str(), copy.dest.as_str()), ("/a/b", "/"));
    }
}
