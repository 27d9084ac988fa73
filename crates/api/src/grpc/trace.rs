//! Traces of builds that have ended: the steps with their times, as `buildx history trace` shows them.
//!
//! The engine keeps no trace while it builds. One is made of the recorded progress when a client asks for it.

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};

use serde::Serialize;
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::Timestamp;
use whelk_buildkit::pb::control::{BuildHistoryRecord, Vertex};
use whelk_llb::Digest;

use super::Buildkit;
use super::history::{TOGETHER, failed, read_messages};

/// One span after the other, in the form of OpenTelemetry's package for Go.
const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";

/// The number of a span's kind that says that it is internal.
const INTERNAL: i32 = 1;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Span<'a> {
    name: &'a str,
    span_context: Context<'a>,
    parent: Context<'a>,
    span_kind: i32,
    start_time: String,
    end_time: String,
    attributes: Vec<Attribute<'a>>,
    status: Outcome<'a>,
    child_span_count: usize,
    resource: [Attribute<'a>; 1],
}

#[derive(Serialize)]
struct Context<'a> {
    #[serde(rename = "TraceID")]
    trace: &'a str,
    #[serde(rename = "SpanID")]
    span: String,
    #[serde(rename = "TraceFlags")]
    flags: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute<'a> {
    key: &'a str,
    value: Value<'a>,
}

#[derive(Serialize)]
#[serde(tag = "Type", content = "Value", rename_all = "UPPERCASE")]
enum Value<'a> {
    Bool(bool),
    String(&'a str),
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outcome<'a> {
    code: &'a str,
    description: &'a str,
}

impl<'a> Outcome<'a> {
    fn of(error: &'a str) -> Self {
        let code = if error.is_empty() { "Unset" } else { "Error" };
        Self {
            code,
            description: error,
        }
    }
}

/// Returns the first digits of a digest, as the id of a trace or of a span.
fn id(text: &str, digits: usize) -> String {
    let digest = Digest::of(text.as_bytes()).to_string();
    let hexadecimal = digest.trim_start_matches("sha256:").chars();
    hexadecimal.take(digits).collect()
}

fn time(timestamp: Timestamp) -> String {
    let nanoseconds = i128::from(timestamp.to_nanos());
    let time = jiff::Timestamp::from_nanosecond(nanoseconds);
    time.unwrap_or_default().to_string()
}

/// The ids of a build's spans.
struct Ids<'a> {
    build: &'a str,
    trace: String,
}

impl Ids<'_> {
    fn context(&self, span: String) -> Context<'_> {
        Context {
            trace: &self.trace,
            span,
            flags: "01",
        }
    }

    fn of_build(&self) -> String {
        id(&format!("build {}", self.build), 16)
    }

    fn of_step(&self, digest: &str) -> String {
        id(&format!("step {} {digest}", self.build), 16)
    }
}

/// Makes the trace of a build: a span of the build, and one of each step that has ended.
fn spans(record: &BuildHistoryRecord, steps: &[Vertex]) -> serde_json::Result<Vec<u8>> {
    let ids = Ids {
        build: &record.r#ref,
        trace: id(&format!("trace {}", record.r#ref), 32),
    };
    let resource = || {
        [Attribute {
            key: "service.name",
            value: Value::String("whelk"),
        }]
    };
    let (begin, end) = (record.created_at, record.completed_at);
    let begin = begin.unwrap_or_default();
    let error = record.error.as_ref();
    let build = Span {
        name: "moby.buildkit.v1.Control/Solve",
        span_context: ids.context(ids.of_build()),
        parent: Context {
            trace: "00000000000000000000000000000000",
            span: "0000000000000000".to_owned(),
            flags: "00",
        },
        span_kind: INTERNAL,
        start_time: time(begin),
        end_time: time(end.unwrap_or(begin)),
        attributes: vec![Attribute {
            key: "ref",
            value: Value::String(&record.r#ref),
        }],
        status: Outcome::of(error.map_or("", |error| error.message.as_str())),
        child_span_count: steps.len(),
        resource: resource(),
    };
    let mut text = serde_json::to_vec(&build)?;
    text.push(b'\n');
    for step in steps {
        let (Some(started), Some(completed)) = (step.started, step.completed) else {
            continue;
        };
        let span = Span {
            name: &step.name,
            span_context: ids.context(ids.of_step(&step.digest)),
            parent: ids.context(ids.of_build()),
            span_kind: INTERNAL,
            start_time: time(started),
            end_time: time(completed),
            attributes: vec![
                Attribute {
                    key: "vertex",
                    value: Value::String(&step.digest),
                },
                Attribute {
                    key: "cached",
                    value: Value::Bool(step.cached),
                },
            ],
            status: Outcome::of(&step.error),
            child_span_count: 0,
            resource: resource(),
        };
        serde_json::to_writer(&mut text, &span)?;
        text.push(b'\n');
    }
    Ok(text)
}

impl Buildkit {
    /// Makes the trace of a build that has ended, unless there is one. Blocking.
    pub(super) fn make_trace(&self, name: &str) -> Result<()> {
        let Some(record) = self.history.get(name).filter(|one| one.trace.is_none()) else {
            return Ok(());
        };
        let logs = record
            .logs
            .as_ref()
            .map(|logs| self.history.blob(&logs.digest));
        let Some((file, _)) = logs.transpose().map_err(failed)?.flatten() else {
            return Ok(());
        };
        let mut file = BufReader::with_capacity(TOGETHER, file);
        // The last that was told of a step counts, in the order in which they have begun.
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let mut steps: Vec<Vertex> = Vec::new();
        loop {
            let messages = read_messages(&mut file)?;
            if messages.is_empty() {
                break;
            }
            for vertex in messages.into_iter().flat_map(|message| message.vertexes) {
                let place = *places.entry(vertex.digest.clone()).or_insert(steps.len());
                match steps.get_mut(place) {
                    Some(known) => *known = vertex,
                    None => steps.push(vertex),
                }
            }
        }
        let text = spans(&record, &steps).map_err(failed)?;
        let mut writer = self.history.writer().map_err(failed)?;
        writer.write_all(&text).map_err(failed)?;
        let trace = self.history.finish(writer, TRACE).map_err(failed)?;
        let added = self.history.add_trace(name, trace);
        added.map_err(|status: Status| status.context("trace of a build"))
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spans_of_the_build() {
        let at = |nanos: i64| Some(Timestamp::from_nanos(nanos));
        let record = BuildHistoryRecord {
            r#ref: "build".into(),
            created_at: at(1_000_000_000),
            completed_at: at(3_000_000_000),
            ..BuildHistoryRecord::default()
        };
        let step = |digest: &str, completed: Option<Timestamp>| Vertex {
            digest: digest.into(),
            name: format!("step {digest}"),
            started: at(1_500_000_000),
            completed,
            ..Vertex::default()
        };
        let steps = [step("one", at(2_000_000_000)), step("two", None)];
        let text = String::from_utf8(spans(&record, &steps).unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let trace = id("trace build", 32);
        let (build, one) = (id("build build", 16), id("step build one", 16));
        assert_eq!(
            lines[1],
            format!(
                concat!(
                    r#"{{"Name":"step one","SpanContext":{{"TraceID":"{trace}","SpanID":"{one}","TraceFlags":"01"}},"#,
                    r#""Parent":{{"TraceID":"{trace}","SpanID":"{build}","TraceFlags":"01"}},"SpanKind":1,"#,
                    r#""StartTime":"1970-01-01T00:00:01.5Z","EndTime":"1970-01-01T00:00:02Z","#,
                    r#""Attributes":[{{"Key":"vertex","Value":{{"Type":"STRING","Value":"one"}}}},"#,
                    r#"{{"Key":"cached","Value":{{"Type":"BOOL","Value":false}}}}],"#,
                    r#""Status":{{"Code":"Unset","Description":""}},"ChildSpanCount":0,"#,
                    r#""Resource":[{{"Key":"service.name","Value":{{"Type":"STRING","Value":"whelk"}}}}]}}"#
                ),
                trace = trace,
                one = one,
                build = build,
            )
        );
        assert!(lines[0].contains(&build) && lines[0].contains(&"0".repeat(32)));
    }
}
