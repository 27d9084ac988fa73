//! Details of errors, which tell clients where in a Dockerfile a build has failed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use whelk_llb::pb::{Range, SourceInfo};

use crate::grpc::Status;
use crate::pb::Any;

#[derive(Serialize)]
struct Vertex<'a> {
    digest: &'a str,
}

#[derive(Serialize)]
struct Source<'a> {
    info: Info<'a>,
    ranges: Vec<Lines>,
}

#[derive(Serialize)]
struct Info<'a> {
    filename: &'a str,
    data: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    language: &'a str,
}

#[derive(Serialize)]
struct Lines {
    start: Line,
    end: Line,
}

#[derive(Serialize)]
struct Line {
    line: i32,
}

/// Returns the detail with the operation that has failed.
pub fn vertex(digest: &str) -> Any {
    detail("Vertex", &Vertex { digest })
}

/// Returns the detail with a file and lines of it, which clients print.
pub fn source(info: &SourceInfo, ranges: &[Range]) -> Any {
    let line = |position: Option<whelk_llb::pb::Position>| Line {
        line: position.map_or(0, |position| position.line),
    };
    let ranges = ranges.iter().map(|range| Lines {
        start: line(range.start),
        end: line(range.end),
    });
    let info = Info {
        filename: &info.filename,
        data: STANDARD.encode(&info.data),
        language: &info.language,
    };
    let ranges = ranges.collect();
    detail("Source", &Source { info, ranges })
}

fn detail(kind: &str, value: &impl Serialize) -> Any {
    Any {
        type_url: format!("github.com/moby/buildkit/errdefs.{kind}+json"),
        value: serde_json::to_vec(value).unwrap_or_default(),
    }
}

impl Status {
    /// Adds the operation that has failed, and where it comes from.
    #[must_use]
    pub fn at(self, digest: &str, place: Option<(&SourceInfo, &[Range])>) -> Self {
        let status = self.with(vertex(digest));
        match place {
            Some((info, ranges)) => status.with(source(info, ranges)),
            None => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use whelk_llb::pb::Position;

    use super::*;

    #[test]
    fn details_are_as_clients_read_them() {
        let info = SourceInfo {
            filename: "Dockerfile".into(),
            data: b"FROM x\n".to_vec(),
            ..SourceInfo::default()
        };
        let position = |line| Some(Position { line, character: 0 });
        let range = Range {
            start: position(1),
            end: position(2),
        };
        let detail = source(&info, &[range]);
        assert_eq!(
            detail.type_url,
            "github.com/moby/buildkit/errdefs.Source+json"
        );
        let text = r#"{"info":{"filename":"Dockerfile","data":"RlJPTSB4Cg=="},"ranges":[{"start":{"line":1},"end":{"line":2}}]}"#;
        assert_eq!(String::from_utf8_lossy(&detail.value), text);
        assert_eq!(vertex("sha256:1").value, br#"{"digest":"sha256:1"}"#);
    }
}
