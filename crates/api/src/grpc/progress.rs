//! The progress of a build, as BuildKit tells it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use whelk_build::{Event, EventKind, Frames, FrontendWarning, Log};
use whelk_buildkit::grpc::{Responses, Result, Status};
use whelk_buildkit::pb::Timestamp;
use whelk_buildkit::pb::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use whelk_dockerfile::lint::Warning;
use whelk_engine::events::now;
use whelk_image::progress::{State, Update};
use whelk_llb::Digest;
use whelk_sys::sync::IgnorePoison as _;

use super::builds::Report;
use super::result::ranges;

/// The state of a step as a client knows it.
#[derive(Debug, Default)]
struct VertexState {
    vertex: Vertex,
    /// Sends its output.
    output: Option<JoinHandle<()>>,
    /// The last status sent of each part of the step, by the part's id.
    parts: BTreeMap<String, VertexStatus>,
}

impl VertexState {
    /// Ends the parts that have not ended, and returns them: clients show the end of a step only when all of its parts have ended.
    fn end_parts(&mut self, at: Timestamp) -> Vec<VertexStatus> {
        let open = self.parts.values_mut();
        let open = open.filter(|part| part.completed.is_none());
        let ended = open.map(|part| {
            part.timestamp = Some(at);
            part.completed = Some(at);
            part.clone()
        });
        ended.collect()
    }
}

/// A receiver of a build's progress.
#[derive(Clone, Debug)]
pub(super) enum Listener {
    Client(Responses),
    /// The history.
    Record(mpsc::Sender<StatusResponse>),
}

impl Listener {
    async fn send(&self, response: StatusResponse) -> Result<()> {
        match self {
            Self::Client(responses) => responses.send(&response).await,
            Self::Record(sender) => sender.send(response).await.map_err(|_| Status::canceled()),
        }
    }
}

/// Tells of a build from its beginning to its end.
pub(super) async fn tell(report: &Report, listener: &Listener) -> Result<()> {
    let mut teller = Teller {
        report,
        listener,
        known: HashMap::new(),
    };
    let mut follower = report.progress.follow();
    while let Some(event) = follower.next().await {
        teller.event(event).await?;
    }
    Ok(())
}

struct Teller<'a> {
    report: &'a Report,
    listener: &'a Listener,
    known: HashMap<Digest, VertexState>,
}

impl Drop for Teller<'_> {
    fn drop(&mut self) {
        for output in self
            .known
            .values()
            .filter_map(|known| known.output.as_ref())
        {
            output.abort();
        }
    }
}

impl Teller<'_> {
    async fn event(&mut self, event: Event) -> Result<()> {
        let (vertex, at) = (event.vertex, Timestamp::from_nanos(event.at));
        let part = match event.kind {
            EventKind::Warning(warning) => return self.warning(&warning).await,
            EventKind::FrontendWarning(warning) => {
                return self.frontend_warning(vertex.to_string(), &warning).await;
            }
            EventKind::Pull(update) => match pull(update) {
                Some(part) => part,
                None => return Ok(()),
            },
            EventKind::Transfer {
                name,
                bytes,
                is_done,
            } => Part {
                id: name,
                current: bytes,
                is_done,
                ..Part::default()
            },
            EventKind::Part { name, is_done } => Part {
                id: name,
                is_done,
                ..Part::default()
            },
            kind => return self.state(vertex, at, kind).await,
        };
        self.part(vertex, at, part).await
    }

    /// Tells of the state of a step.
    async fn state(&mut self, step: Digest, at: Timestamp, kind: EventKind) -> Result<()> {
        let digest = step.to_string();
        let known = self.known.entry(step).or_default();
        let vertex = &mut known.vertex;
        match kind {
            EventKind::Announced { name, inputs } => {
                *vertex = Vertex {
                    digest,
                    inputs: inputs.iter().map(Digest::to_string).collect(),
                    name,
                    ..Vertex::default()
                };
            }
            EventKind::Started { log } => {
                vertex.started = Some(at);
                let vertexes = vec![vertex.clone()];
                let response = StatusResponse {
                    vertexes,
                    ..StatusResponse::default()
                };
                self.listener.send(response).await?;
                // Clients do not show output of a step that they do not know.
                if let Some(log) = log {
                    let sending = output(log, digest, self.listener.clone());
                    known.output = Some(tokio::spawn(sending));
                }
                return Ok(());
            }
            EventKind::Cached => {
                vertex.started.get_or_insert(at);
                vertex.completed = Some(at);
                vertex.cached = true;
            }
            EventKind::Done => {
                if let Some(output) = known.output.take() {
                    let _ = output.await;
                }
                vertex.started.get_or_insert(at);
                vertex.completed = Some(at);
            }
            EventKind::Failed(error) => {
                if let Some(output) = known.output.take() {
                    let _ = output.await;
                }
                vertex.started.get_or_insert(at);
                vertex.completed = Some(at);
                vertex.error = super::result::message(error.root(), Some(&step));
            }
            EventKind::Left => {
                if let Some(output) = known.output.take() {
                    output.abort();
                }
                if vertex.started.is_none() {
                    return Ok(());
                }
                vertex.completed = Some(at);
                vertex.error = "context canceled".into();
            }
            EventKind::Pull(_)
            | EventKind::Transfer { .. }
            | EventKind::Part { .. }
            | EventKind::Warning(_)
            | EventKind::FrontendWarning(_) => return Ok(()),
        }
        let (vertexes, completed) = (vec![vertex.clone()], vertex.completed);
        let statuses = match completed {
            Some(at) => known.end_parts(at),
            None => Vec::new(),
        };
        self.send(StatusResponse {
            vertexes,
            statuses,
            ..StatusResponse::default()
        })
        .await
    }

    async fn part(&mut self, vertex: Digest, at: Timestamp, part: Part) -> Result<()> {
        let known = self.known.entry(vertex).or_default();
        let told = known.parts.get(&part.id);
        let started = told.and_then(|told| told.started).unwrap_or(at);
        let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let status = VertexStatus {
            name: part.id.clone(),
            id: part.id,
            vertex: vertex.to_string(),
            current: size(part.current),
            total: size(part.total),
            timestamp: Some(at),
            started: Some(started),
            completed: part.is_done.then_some(at),
        };
        known.parts.insert(status.id.clone(), status.clone());
        self.send(StatusResponse {
            statuses: vec![status],
            ..StatusResponse::default()
        })
        .await
    }

    async fn warning(&self, warning: &Warning) -> Result<()> {
        let file = self.report.file.lock().ignore_poison().clone();
        let Some((vertex, info)) = file else {
            return Ok(());
        };
        let warning = VertexWarning {
            vertex: vertex.to_string(),
            level: 1,
            short: warning.short().into_bytes(),
            detail: vec![warning.rule.description().as_bytes().to_vec()],
            url: warning.rule.url(),
            info: Some(info),
            ranges: ranges(&[warning.lines]),
        };
        self.send(StatusResponse {
            warnings: vec![warning],
            ..StatusResponse::default()
        })
        .await
    }

    /// Passes a warning of the client's frontend on.
    async fn frontend_warning(&self, vertex: String, warning: &FrontendWarning) -> Result<()> {
        let warning = VertexWarning {
            vertex,
            level: warning.level,
            short: warning.short.clone(),
            detail: warning.detail.clone(),
            url: warning.url.clone(),
            info: warning.info.clone(),
            ranges: warning.ranges.clone(),
        };
        self.send(StatusResponse {
            warnings: vec![warning],
            ..StatusResponse::default()
        })
        .await
    }

    async fn send(&self, response: StatusResponse) -> Result<()> {
        self.listener.send(response).await
    }
}

/// A part of a step.
#[derive(Debug, Default)]
struct Part {
    id: String,
    current: u64,
    total: u64,
    is_done: bool,
}

/// Returns what is shown of a layer that is pulled.
fn pull(update: Update) -> Option<Part> {
    let Update {
        id,
        state,
        current,
        total,
        ..
    } = update;
    let (id, is_done) = match state {
        State::Downloading => (id, false),
        State::DownloadComplete | State::AlreadyExists => (id, true),
        State::Extracting => (format!("extracting {id}"), false),
        State::PullComplete => (format!("extracting {id}"), true),
        _ => return None,
    };
    Some(Part {
        id,
        current: if is_done { total } else { current },
        total,
        is_done,
    })
}

/// Sends the output of a step as it comes.
async fn output(log: Arc<Log>, vertex: String, listener: Listener) {
    let (mut at, mut frames) = (0, Frames::default());
    loop {
        let bytes = match log.read_lines(at).await {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!("output of a step of a build: {error}");
                return;
            }
        };
        at += bytes.len() as u64;
        let timestamp = Some(Timestamp::from_nanos(now()));
        let logs = frames
            .add(&bytes)
            .into_iter()
            .map(|(stream, msg)| VertexLog {
                vertex: vertex.clone(),
                timestamp,
                stream: stream.into(),
                msg,
            });
        let response = StatusResponse {
            logs: logs.collect(),
            ..StatusResponse::default()
        };
        if !response.logs.is_empty() && listener.send(response).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_build::Error;

    use super::*;

    #[tokio::test]
    async fn parts_end_with_their_step() {
        let report = Report::default();
        let work = report.progress.begin("exporting to image");
        for (name, is_done) in [("exporting layers", true), ("pushing layers", false)] {
            let name = name.to_owned();
            work.add(EventKind::Part { name, is_done });
        }
        let failed = work.end(Err::<(), _>(Error::invalid("no such server")));
        assert!(failed.is_err());
        report.progress.close();
        let (sender, mut told) = mpsc::channel(16);
        tell(&report, &Listener::Record(sender)).await.unwrap();
        let mut last = StatusResponse::default();
        while let Some(response) = told.recv().await {
            last = response;
        }
        assert_eq!(last.vertexes[0].error, "no such server");
        let [part] = &last.statuses[..] else {
            panic!("{:?}", last.statuses);
        };
        assert_eq!(part.id, "pushing layers");
        assert!(part.started.is_some() && part.completed == last.vertexes[0].completed);
    }
}
