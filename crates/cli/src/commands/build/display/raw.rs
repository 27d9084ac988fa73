//! Progress as JSON, a line for each message, in the form of BuildKit's client.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use whelk_buildkit::pb::Timestamp;
use whelk_buildkit::pb::control::StatusResponse;
use whelk_llb::pb;

use crate::output::warn_line;

#[derive(Serialize)]
struct Status<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<Vertex<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<Part<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<Log<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning<'a>>,
}

#[derive(Serialize)]
struct Vertex<'a> {
    digest: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    inputs: &'a [String],
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct Part<'a> {
    id: &'a str,
    vertex: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    total: i64,
    current: i64,
    timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct Log<'a> {
    vertex: &'a str,
    stream: i64,
    data: String,
    timestamp: Option<String>,
}

#[derive(Serialize)]
struct Warning<'a> {
    vertex: &'a str,
    level: i64,
    short: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    #[serde(rename = "sourceInfo", skip_serializing_if = "Option::is_none")]
    info: Option<Source<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    range: Vec<Range>,
}

#[derive(Serialize)]
struct Source<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    filename: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    data: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    language: &'a str,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Position {
    #[serde(skip_serializing_if = "is_zero")]
    line: i64,
    #[serde(skip_serializing_if = "is_zero")]
    character: i64,
}

fn position(position: Option<pb::Position>) -> Position {
    let position = position.unwrap_or_default();
    Position {
        line: position.line.into(),
        character: position.character.into(),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

fn time(time: Option<Timestamp>) -> Option<String> {
    let time = time?;
    let time = jiff::Timestamp::new(time.seconds, time.nanos).ok()?;
    Some(time.to_string())
}

/// Writes a message to the standard error.
pub(super) fn print(response: &StatusResponse) {
    if let Some(text) = encode(response) {
        warn_line!("{text}");
    }
}

fn encode(response: &StatusResponse) -> Option<String> {
    let vertexes = response.vertexes.iter().map(|vertex| Vertex {
        digest: &vertex.digest,
        inputs: &vertex.inputs,
        name: &vertex.name,
        started: time(vertex.started),
        completed: time(vertex.completed),
        cached: vertex.cached,
        error: &vertex.error,
    });
    let statuses = response.statuses.iter().map(|part| Part {
        id: &part.id,
        vertex: &part.vertex,
        name: &part.name,
        total: part.total,
        current: part.current,
        timestamp: time(part.timestamp),
        started: time(part.started),
        completed: time(part.completed),
    });
    let logs = response.logs.iter().map(|log| Log {
        vertex: &log.vertex,
        stream: log.stream,
        data: STANDARD.encode(&log.msg),
        timestamp: time(log.timestamp),
    });
    let warnings = response.warnings.iter().map(|warning| Warning {
        vertex: &warning.vertex,
        level: warning.level,
        short: STANDARD.encode(&warning.short),
        detail: warning
            .detail
            .iter()
            .map(|text| STANDARD.encode(text))
            .collect(),
        url: &warning.url,
        info: warning.info.as_ref().map(|info| Source {
            filename: &info.filename,
            data: STANDARD.encode(&info.data),
            language: &info.language,
        }),
        range: warning.ranges.iter().map(range).collect(),
    });
    let status = Status {
        vertexes: vertexes.collect(),
        statuses: statuses.collect(),
        logs: logs.collect(),
        warnings: warnings.collect(),
    };
    serde_json::to_string(&status).ok()
}

fn range(range: &pb::Range) -> Range {
    Range {
        start: position(range.start),
        end: position(range.end),
    }
}

#[cfg(test)]
mod tests {
    use whelk_buildkit::pb::control::VertexWarning;

    use super::*;

    #[test]
    fn warnings_have_their_lines() {
        let at = |line: i32| Some(pb::Position { line, character: 0 });
        let warning = VertexWarning {
            vertex: "v".into(),
            level: 1,
            short: b"s".to_vec(),
            info: Some(pb::SourceInfo {
                filename: "Dockerfile".into(),
                data: b"FROM x\n".to_vec(),
                ..pb::SourceInfo::default()
            }),
            ranges: vec![pb::Range {
                start: at(1),
                end: at(2),
            }],
            ..VertexWarning::default()
        };
        let response = StatusResponse {
            warnings: vec![warning],
            ..StatusResponse::default()
        };
        let expected = r#"{"warnings":[{"vertex":"v","level":1,"short":"cw==","sourceInfo":{"filename":"Dockerfile","data":"RlJPTSB4Cg=="},"range":[{"start":{"line":1},"end":{"line":2}}]}]}"#;
        assert_eq!(encode(&response).as_deref(), Some(expected));
    }
}
