//! Details of errors, which tell clients where in a Dockerfile a build has failed.

mod solve;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use whelk_llb::pb::{Definition, OpMetadata, Range, Source as SourceMap, SourceInfo};

use crate::grpc::Status;
use crate::pb::Any;

pub use solve::{Failure, Subject, solve};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<Operations<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    language: &'a str,
}

/// The definition of what a file is part of.
#[derive(Serialize)]
struct Operations<'a> {
    def: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, Metadata<'a>>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_cache: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    description: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    caps: &'a BTreeMap<String, bool>,
}

impl<'a> From<&'a Definition> for Operations<'a> {
    fn from(definition: &'a Definition) -> Self {
        let metadata = |metadata: &'a OpMetadata| Metadata {
            ignore_cache: metadata.ignore_cache,
            description: &metadata.description,
            caps: &metadata.caps,
        };
        let all = definition.metadata.iter();
        Self {
            def: definition
                .def
                .iter()
                .map(|op| STANDARD.encode(op))
                .collect(),
            metadata: all
                .map(|(digest, one)| (digest.as_str(), metadata(one)))
                .collect(),
        }
    }
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
    #[serde(default, skip_serializing_if = "is_zero")]
    character: i32,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &i32) -> bool {
    *number == 0
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
        character: position.map_or(0, |position| position.character),
    };
    let ranges = ranges.iter().map(|range| Lines {
        start: line(range.start),
        end: line(range.end),
    });
    let info = Info {
        filename: &info.filename,
        data: STANDARD.encode(&info.data),
        definition: info.definition.as_ref().map(Operations::from),
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

/// Maximum size of the files that the details of an error have, in bytes: there is one for each place.
const MAX_FILES: usize = 256 << 10;

/// What each place, and each range of it, counts besides.
const PLACE: usize = 256;
const RANGE: usize = 64;

impl Status {
    /// Adds the operation that has failed, and the places that it comes from, of which clients print the last detail first.
    #[must_use]
    pub fn at(self, digest: &str, source: Option<&SourceMap>) -> Self {
        let mut status = self.with(vertex(digest));
        let Some((known, infos)) =
            source.and_then(|source| Some((source.locations.get(digest)?, &source.infos)))
        else {
            return status;
        };
        let mut room = MAX_FILES;
        for location in known.locations.iter().rev() {
            let index = usize::try_from(location.source_index).ok();
            let Some(info) = index.and_then(|index| infos.get(index)) else {
                continue;
            };
            let size = info.encoded_len() + PLACE + RANGE * location.ranges.len();
            // A definition may name any number of places in the same file, large or empty.
            let Some(left) = room.checked_sub(size) else {
                break;
            };
            room = left;
            status = status.with(self::source(info, &location.ranges));
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use whelk_llb::pb::{Location, Locations, Position};

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

    #[test]
    fn details_have_the_definition_and_characters() {
        let definition = Definition {
            def: vec![b"op".to_vec()],
            metadata: BTreeMap::from([(
                "sha256:1".to_owned(),
                OpMetadata {
                    caps: BTreeMap::from([("source.local".to_owned(), true)]),
                    ..OpMetadata::default()
                },
            )]),
            source: None,
        };
        let info = SourceInfo {
            filename: "f".into(),
            definition: Some(definition),
            language: "Dockerfile".into(),
            ..SourceInfo::default()
        };
        let start = Some(Position {
            line: 3,
            character: 1,
        });
        let range = Range { start, end: None };
        let text = concat!(
            r#"{"info":{"filename":"f","data":"","definition":{"def":["b3A="],"#,
            r#""metadata":{"sha256:1":{"caps":{"source.local":true}}}},"language":"Dockerfile"},"#,
            r#""ranges":[{"start":{"line":3,"character":1},"end":{"line":0}}]}"#
        );
        let detail = source(&info, &[range]);
        assert_eq!(String::from_utf8_lossy(&detail.value), text);
    }

    #[test]
    fn all_places_of_an_operation_are_told() {
        let info = |filename: &str, size: usize| SourceInfo {
            filename: filename.into(),
            data: vec![b'x'; size],
            ..SourceInfo::default()
        };
        let location = |source_index: i32, line: i32| Location {
            source_index,
            ranges: vec![Range {
                start: Some(Position { line, character: 0 }),
                end: None,
            }],
        };
        let told = |size: usize, locations: Vec<Location>| {
            let source = SourceMap {
                locations: BTreeMap::from([("d".to_owned(), Locations { locations })]),
                infos: vec![info("foo", size), info("bar", size)],
            };
            let status = Status::unknown("x").at("d", Some(&source));
            let all = places(&status).into_iter();
            let all = all.map(|place| (place.filename, place.ranges[0].0));
            all.collect::<Vec<_>>()
        };
        let place = |name: &str, line: usize| (name.to_owned(), line);
        let three = || {
            vec![
                location(0, 7),
                location(1, 8),
                location(0, 9),
                location(2, 1),
            ]
        };
        assert_eq!(
            told(1, three()),
            [place("foo", 9), place("bar", 8), place("foo", 7)]
        );
        assert_eq!(told(MAX_FILES / 2 - 1024, three()).len(), 2);
        assert_eq!(told(0, vec![location(0, 1); 100_000]).len(), 806);
        assert_eq!(told(MAX_FILES + 1, three()).len(), 0);
    }
}
