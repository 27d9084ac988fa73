//! Details of errors, which tell clients where in a Dockerfile a build has failed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use whelk_llb::pb::{Range, SourceInfo};

use crate::grpc::Status;
use crate::pb::Any;

#[derive(Serialize)]
struct Vertex<'a> {
    digest: &'a str,
}

#[derive(Serialize)]
struct Exit {
    #[serde(rename = "Code")]
    code: u32,
}

/// [`Vertex`] as it is received.
#[derive(Deserialize)]
struct ReceivedVertex {
    digest: String,
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

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(default)]
    line: i32,
}

/// Returns the detail with the operation that has failed.
pub fn vertex(digest: &str) -> Any {
    detail("Vertex", &Vertex { digest })
}

/// Returns the detail with the exit code of a process that has failed.
pub fn exit(code: u32) -> Any {
    Any {
        type_url: "github.com/moby/buildkit/gatewayapi.ExitMessage+json".into(),
        value: serde_json::to_vec(&Exit { code }).unwrap_or_default(),
    }
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

/// Returns the digest of the operation that has failed.
pub fn failed_vertex(status: &Status) -> Option<String> {
    let mut details = status.details.iter();
    let detail = details.find(|detail| detail.type_url.ends_with("errdefs.Vertex+json"))?;
    let vertex: ReceivedVertex = serde_json::from_slice(&detail.value).ok()?;
    Some(vertex.digest)
}

/// Returns whether a detail has a file and lines of it.
pub fn is_source(detail: &Any) -> bool {
    detail.type_url.ends_with("errdefs.Source+json")
}

fn detail(kind: &str, value: &impl Serialize) -> Any {
    Any {
        type_url: format!("github.com/moby/buildkit/errdefs.{kind}+json"),
        value: serde_json::to_vec(value).unwrap_or_default(),
    }
}

/// What a failed step has left, as an image: whelk's own.
const FAILED_IMAGE: &str = "whelk/FailedImage";

/// Returns the detail with the id of the image that has the state of a failed step.
pub fn failed_image(id: &str) -> Any {
    Any {
        type_url: FAILED_IMAGE.into(),
        value: id.as_bytes().to_vec(),
    }
}

/// Returns the id of the image that has the state of a failed step.
pub fn image_of_failed(status: &Status) -> Option<String> {
    let mut details = status.details.iter();
    let detail = details.find(|detail| detail.type_url == FAILED_IMAGE)?;
    String::from_utf8(detail.value.clone()).ok()
}

/// Removes the details with images from an error.
pub fn remove_failed_images(status: &mut Status) {
    let is_image = |detail: &Any| detail.type_url == FAILED_IMAGE;
    status.details.retain(|detail| !is_image(detail));
}

/// Returns the name of the container that the client of a build runs the shell of a failed step in. The engine removes it when
/// the session of the build has ended.
pub fn shell_of_failed(build: &str) -> String {
    format!("build-{build}")
}

/// Lines of a file that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub filename: String,
    pub data: Vec<u8>,
    /// First and last lines, from 1.
    pub ranges: Vec<(usize, usize)>,
}

/// [`Source`] as it is received.
#[derive(Deserialize)]
struct ReceivedSource {
    #[serde(default)]
    info: ReceivedInfo,
    #[serde(default)]
    ranges: Vec<ReceivedLines>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ReceivedInfo {
    filename: String,
    data: String,
}

#[derive(Deserialize)]
struct ReceivedLines {
    start: Line,
    end: Line,
}

/// Returns the places in files that a status has.
pub fn places(status: &Status) -> Vec<Place> {
    let sources = status.details.iter();
    let sources = sources.filter(|detail| detail.type_url.ends_with("errdefs.Source+json"));
    let place = |detail: &Any| {
        let source: ReceivedSource = serde_json::from_slice(&detail.value).ok()?;
        let number = |line: &Line| usize::try_from(line.line).unwrap_or(0);
        let ranges = source.ranges.iter();
        Some(Place {
            filename: source.info.filename,
            data: STANDARD.decode(source.info.data).unwrap_or_default(),
            ranges: ranges
                .map(|lines| (number(&lines.start), number(&lines.end)))
                .collect(),
        })
    };
    sources.filter_map(place).collect()
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
        assert_eq!(exit(7).value, br#"{"Code":7}"#);
        let place = Place {
            filename: "Dockerfile".into(),
            data: b"FROM x\n".to_vec(),
            ranges: vec![(1, 2)],
        };
        let status = Status::unknown("x").with(vertex("y")).with(detail);
        assert_eq!(places(&status), [place]);
        assert_eq!(failed_vertex(&status).as_deref(), Some("y"));
        assert_eq!(failed_vertex(&Status::unknown("x")), None);
        let mut status = status.with(failed_image("sha256:2"));
        assert_eq!(image_of_failed(&status).as_deref(), Some("sha256:2"));
        remove_failed_images(&mut status);
        assert_eq!(image_of_failed(&status), None);
        assert_eq!(failed_vertex(&status).as_deref(), Some("y"));
    }
}
