//! The history of builds: what is recorded of a build while it runs, and the calls of clients that look it up.

use std::collections::BTreeMap;
use std::io::{Read, Seek as _, Write as _};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use whelk_build::provenance::{Options, Provenance, attribute_without_credentials};
use whelk_buildkit::grpc::{Call, Responses, Result, Status};
use whelk_buildkit::pb::content::{
    Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse,
};
use whelk_buildkit::pb::control::{
    BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo, Descriptor, SolveRequest,
    SolveResponse, StatusResponse, UpdateBuildHistoryRequest,
};
use whelk_buildkit::pb::{Message as _, Timestamp, Unused};
use whelk_engine::events::now;

use super::builds::{Build, Noted};
use super::caches::{IMPORTS, shown_imports};
use super::progress::{self, Listener};
use super::{Buildkit, blocking};

/// The progress of a build: the messages that clients got, each behind its length.
const STATUS: &str = "application/vnd.buildkit.status.v0";
/// An error with its details. (Not a typo of ours.)
const ERROR: &str = "application/vnd.googeapis.google.rpc.status+proto";

/// Attestations, and the annotation with the type of their predicates. Of provenance only the predicate is kept.
const STATEMENT: &str = "application/vnd.in-toto+json";
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// Maximum size of what is recorded of a build's output, in bytes.
const MAX_LOGS: u64 = 64 << 20;

/// Maximum size of a message in a file; those that are written are much smaller.
const MAX_MESSAGE: u32 = 16 << 20;

/// Number of messages that wait to be written, and of bytes that are written or read together.
const WAITING: usize = 64;
pub(super) const TOGETHER: usize = 256 << 10;

/// Size of a piece of a blob that is read.
const PIECE: usize = 1 << 20;

/// A build that is being recorded.
pub(super) struct Recording {
    buildkit: Arc<Buildkit>,
    build: Arc<Build>,
    record: BuildHistoryRecord,
    /// Writes what clients are told, until the progress ends.
    logs: Option<JoinHandle<Result<Logs>>>,
}

/// What was recorded of a build's progress.
#[derive(Default)]
struct Logs {
    descriptor: Option<Descriptor>,
    total: usize,
    cached: usize,
    completed: usize,
    warnings: usize,
}

/// Returns the attributes of a build as its record has them: without credentials.
fn shown(attributes: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let shown = attributes.iter().map(|(name, value)| {
        let value = match name.as_str() {
            IMPORTS => shown_imports(value),
            name => attribute_without_credentials(name, value),
        };
        (name.clone(), value)
    });
    shown.collect()
}

impl Buildkit {
    /// Begins to record a build.
    pub(super) fn record(
        self: &Arc<Self>,
        build: &Arc<Build>,
        request: &SolveRequest,
    ) -> Recording {
        let record = BuildHistoryRecord {
            r#ref: build.id.clone(),
            frontend: request.frontend.clone(),
            frontend_attrs: shown(&request.frontend_attrs),
            exporters: request.exporters.clone(),
            created_at: Some(Timestamp::from_nanos(now())),
            ..BuildHistoryRecord::default()
        };
        self.history.begin(record.clone());
        let logs = tokio::spawn(self.clone().write_logs(build.clone()));
        Recording {
            buildkit: self.clone(),
            build: build.clone(),
            record,
            logs: Some(logs),
        }
    }

    async fn write_logs(self: Arc<Self>, build: Arc<Build>) -> Result<Logs> {
        let (sender, queue) = mpsc::channel(WAITING);
        let writing = tokio::spawn(self.write(queue));
        // It ends with the build's progress.
        let _ = progress::tell(&build.report, &Listener::Record(sender)).await;
        let written = writing.await;
        written.unwrap_or_else(|error| Err(Status::unknown(error.to_string())))
    }

    /// Writes what clients are told. A build may say nothing for hours: no thread waits for it.
    async fn write(self: Arc<Self>, mut queue: mpsc::Receiver<StatusResponse>) -> Result<Logs> {
        let mut logs = Logs::default();
        let mut steps = BTreeMap::new();
        let buildkit = self.clone();
        let writer = blocking(move || buildkit.history.writer().map_err(failed)).await?;
        let (mut writer, mut size) = (Some(writer), 0);
        let mut waiting = Vec::new();
        loop {
            let response = queue.recv().await;
            let is_last = response.is_none();
            if let Some(response) = response {
                logs.count(&response, &mut steps);
                // States of steps are few; output may be without end.
                if writer.is_none() || size > MAX_LOGS && !response.logs.is_empty() {
                    continue;
                }
                let bytes = response.encode_to_vec();
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                waiting.extend_from_slice(&length.to_le_bytes());
                waiting.extend_from_slice(&bytes);
                size += 4 + bytes.len() as u64;
            }
            if (is_last || waiting.len() >= TOGETHER)
                && let Some(mut file) = writer.take()
            {
                let bytes = std::mem::take(&mut waiting);
                let written = blocking(move || {
                    file.write_all(&bytes).map_err(failed)?;
                    Ok(file)
                });
                match written.await {
                    Ok(file) => writer = Some(file),
                    // The rest counts; a full disk must not fail the build.
                    Err(error) => {
                        tracing::warn!("history of builds: write the log of a build: {error}");
                    }
                }
            }
            if is_last {
                break;
            }
        }
        logs.total = steps.len();
        logs.cached = steps.values().filter(|(cached, _)| *cached).count();
        logs.completed = steps.values().filter(|(_, completed)| *completed).count();
        if let Some(writer) = writer {
            let finished = blocking(move || self.history.finish(writer, STATUS).map_err(failed));
            logs.descriptor = Some(finished.await?);
        }
        Ok(logs)
    }

    fn put(&self, media_type: &str, content: &[u8]) -> Result<Descriptor> {
        let mut writer = self.history.writer().map_err(failed)?;
        writer.write_all(content).map_err(failed)?;
        self.history.finish(writer, media_type).map_err(failed)
    }

    /// Keeps the provenance and the attestations of a build's results.
    fn keep_statements(
        &self,
        record: &mut BuildHistoryRecord,
        noted: Noted,
        builder: String,
    ) -> Result<()> {
        let options = Options {
            builder,
            ..Options::default()
        };
        let mut statements = Vec::new();
        for (platform, mut provenance) in noted.provenances {
            provenance.finished = now();
            let predicate = provenance.predicate(&options, None);
            let bytes = serde_json::to_vec(&predicate).map_err(failed)?;
            statements.push((platform, Provenance::kind(&options).to_owned(), bytes));
        }
        statements.extend(noted.statements);
        for (platform, kind, bytes) in statements {
            let mut descriptor = self.put(STATEMENT, &bytes)?;
            descriptor.annotations.insert(PREDICATE_TYPE.into(), kind);
            let result = match platform {
                Some(platform) => record.results.entry(platform).or_default(),
                None => record.result.get_or_insert_with(BuildResultInfo::default),
            };
            result.attestations.push(descriptor);
        }
        Ok(())
    }

    /// Tells of past builds and of those that run; then of what happens, unless the client wants no more.
    pub(super) async fn listen(
        &self,
        request: &BuildHistoryRequest,
        responses: &Responses,
    ) -> Result<()> {
        let (events, mut next) = self.history.listen(request)?;
        for event in events {
            responses.send(&event).await?;
        }
        if request.early_exit {
            return Ok(());
        }
        loop {
            tokio::select! {
                event = next.next() => responses.send(&*event?).await?,
                () = responses.closed() => return Ok(()),
            }
        }
    }

    pub(super) async fn update_history(
        self: &Arc<Self>,
        request: UpdateBuildHistoryRequest,
    ) -> Result<Unused> {
        let buildkit = self.clone();
        blocking(move || {
            let name = &request.r#ref;
            if request.finalize {
                // A record is complete when its build has ended, except for the trace.
                buildkit.make_trace(name)?;
                return Ok(Unused {});
            }
            if request.delete {
                buildkit.history.delete(name)?;
            } else {
                buildkit.history.pin(name, request.pinned)?;
            }
            Ok(Unused {})
        })
        .await
    }

    /// Tells again what clients were told of a build that has ended. Returns whether there is such a record.
    pub(super) async fn replay(
        self: &Arc<Self>,
        name: &str,
        responses: &Responses,
    ) -> Result<bool> {
        let Some(record) = self.history.get(name) else {
            return Ok(false);
        };
        let Some(logs) = record.logs else {
            return Ok(true);
        };
        let buildkit = self.clone();
        let opened = blocking(move || buildkit.history.blob(&logs.digest).map_err(failed)).await?;
        let Some((file, _)) = opened else {
            return Ok(true);
        };
        // The client may take its time: no thread waits for it.
        let mut file = std::io::BufReader::with_capacity(TOGETHER, file);
        loop {
            let (read, messages) = blocking(move || {
                let messages = read_messages(&mut file)?;
                Ok((file, messages))
            })
            .await?;
            if messages.is_empty() {
                return Ok(true);
            }
            for message in messages {
                responses.send(&message).await?;
            }
            file = read;
        }
    }

    /// The service `containerd.services.content.v1.Content`: the blobs of the history, to read.
    pub(super) async fn content(self: Arc<Self>, method: &str, mut call: Call) -> Result<()> {
        match method {
            "Info" => {
                let request: InfoRequest = call.request().await?;
                let buildkit = self.clone();
                let info = blocking(move || {
                    let (_, size) = buildkit.blob(&request.digest)?;
                    Ok(Info {
                        digest: request.digest,
                        size: i64::try_from(size).unwrap_or(i64::MAX),
                        created_at: Some(Timestamp::default()),
                        updated_at: Some(Timestamp::default()),
                        ..Info::default()
                    })
                });
                let info = Some(info.await?);
                call.responses.send(&InfoResponse { info }).await
            }
            "Read" => {
                let request: ReadContentRequest = call.request().await?;
                self.read_blob(request, &call.responses).await
            }
            _ => Err(Status::unimplemented(format!(
                "method {method} of Content: the blobs of the build history can only be read"
            ))),
        }
    }

    fn blob(&self, digest: &str) -> Result<(std::fs::File, u64)> {
        let found = self.history.blob(digest).map_err(failed)?;
        found.ok_or_else(|| Status::not_found(format!("content {digest}: not found")))
    }

    async fn read_blob(
        self: Arc<Self>,
        request: ReadContentRequest,
        responses: &Responses,
    ) -> Result<()> {
        let out_of_range = || Status::invalid("the range is not in the blob");
        let mut offset = u64::try_from(request.offset).map_err(|_| out_of_range())?;
        let wanted = u64::try_from(request.size).map_err(|_| out_of_range())?;
        let (mut file, mut left) = blocking(move || {
            let (mut file, size) = self.blob(&request.digest)?;
            let rest = size.checked_sub(offset).ok_or_else(out_of_range)?;
            file.seek(std::io::SeekFrom::Start(offset))
                .map_err(failed)?;
            Ok((file, if wanted == 0 { rest } else { wanted.min(rest) }))
        })
        .await?;
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let (read, data) = blocking(move || {
                let mut data = vec![0; count];
                file.read_exact(&mut data).map_err(failed)?;
                Ok((file, data))
            })
            .await?;
            file = read;
            // The client may take its time: no thread waits for it.
            let response = ReadContentResponse {
                offset: i64::try_from(offset).unwrap_or(i64::MAX),
                data: data.into(),
            };
            responses.send(&response).await?;
            offset += count as u64;
            left -= count as u64;
        }
        Ok(())
    }
}

impl Logs {
    /// Counts what clients are told. `steps` says of each step whether it was cached, and whether it has ended.
    fn count(&mut self, response: &StatusResponse, steps: &mut BTreeMap<String, (bool, bool)>) {
        self.warnings += response.warnings.len();
        for vertex in &response.vertexes {
            let (cached, completed) = steps.entry(vertex.digest.clone()).or_default();
            *cached |= vertex.cached;
            *completed |= vertex.completed.is_some();
        }
    }
}

/// Reads the next messages of a log, at least one unless it has ended.
pub(super) fn read_messages(file: &mut impl Read) -> Result<Vec<StatusResponse>> {
    let (mut messages, mut size) = (Vec::new(), 0);
    let mut length = [0; 4];
    while size < TOGETHER && file.read_exact(&mut length).is_ok() {
        let length = u32::from_le_bytes(length);
        if length > MAX_MESSAGE {
            return Err(Status::unknown("the log of the build is damaged"));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact(&mut bytes).map_err(failed)?;
        messages.push(StatusResponse::decode(&*bytes).map_err(failed)?);
        size += bytes.len();
    }
    Ok(messages)
}

impl Recording {
    /// Completes the record of a build that has ended.
    pub async fn end(mut self, result: &Result<SolveResponse>) {
        if let Some(completing) = self.complete(result.clone()) {
            let _ = completing.await;
        }
    }

    /// Completes the record, if that has not begun. It goes on also if the client is gone meanwhile.
    fn complete(&mut self, result: Result<SolveResponse>) -> Option<JoinHandle<()>> {
        let logs = self.logs.take()?;
        let (buildkit, build) = (self.buildkit.clone(), self.build.clone());
        let record = std::mem::take(&mut self.record);
        let completing = async move { complete(&buildkit, &build, record, logs, &result).await };
        Some(tokio::spawn(completing))
    }
}

impl Drop for Recording {
    /// The build was cancelled, unless it has ended.
    fn drop(&mut self) {
        self.complete(Err(Status::canceled()));
    }
}

async fn complete(
    buildkit: &Arc<Buildkit>,
    build: &Build,
    mut record: BuildHistoryRecord,
    logs: JoinHandle<Result<Logs>>,
    result: &Result<SolveResponse>,
) {
    build.request.progress.close();
    let logs = logs.await.unwrap_or_else(|error| Err(failed(error)));
    let logs = logs.unwrap_or_else(|error| {
        tracing::warn!("history of builds: {error}");
        Logs::default()
    });
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    record.logs = logs.descriptor;
    record.total_steps = number(logs.total);
    record.cached_steps = number(logs.cached);
    record.completed_steps = number(logs.completed);
    record.warnings = number(logs.warnings);
    record.completed_at = Some(Timestamp::from_nanos(now()));
    let error = match result {
        Ok(response) => {
            record.exporter_response = response.exporter_response.clone();
            None
        }
        Err(status) => Some(status.to_message()),
    };
    let manifests = build.take_manifests();
    let noted = build.take_noted();
    let builder_id = build.attest.provenance.as_ref();
    let builder_id = builder_id.map_or_else(String::new, |options| options.builder.clone());
    let keeper = buildkit.clone();
    let written = blocking(move || {
        if let Some(mut error) = error {
            record.external_error = Some(keeper.put(ERROR, &error.encode_to_vec())?);
            error.details.clear();
            record.error = Some(error);
        }
        if !manifests.is_empty() {
            let mut info = BuildResultInfo::default();
            for (id, (media_type, content)) in manifests {
                let descriptor = keeper.put(&media_type, &content)?;
                info.deprecated.get_or_insert_with(|| descriptor.clone());
                info.results.insert(id, descriptor);
            }
            record.result = Some(info);
        }
        if let Err(error) = keeper.keep_statements(&mut record, noted, builder_id) {
            tracing::warn!("history of builds: provenance of a build: {error}");
        }
        keeper.history.complete(record).map_err(failed)
    });
    if let Err(error) = written.await {
        tracing::warn!("history of builds: {error}");
        buildkit.history.forget(&build.id);
    }
}

pub(super) fn failed(error: impl std::fmt::Display) -> Status {
    Status::unknown(error.to_string())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_buildkit::pb::control::VertexLog;

    use super::*;

    #[test]
    fn logs_are_read_in_parts() {
        let message = |size: usize| StatusResponse {
            logs: vec![VertexLog {
                msg: vec![b'x'; size],
                ..VertexLog::default()
            }],
            ..StatusResponse::default()
        };
        let all: Vec<StatusResponse> = [1, TOGETHER, 2, 3].into_iter().map(message).collect();
        let mut bytes = Vec::new();
        for message in &all {
            let encoded = message.encode_to_vec();
            let length = u32::try_from(encoded.len()).unwrap();
            bytes.extend(length.to_le_bytes());
            bytes.extend(encoded);
        }
        let mut file = bytes.as_slice();
        assert_eq!(read_messages(&mut file).unwrap(), all[..2]);
        assert_eq!(read_messages(&mut file).unwrap(), all[2..]);
        assert!(read_messages(&mut file).unwrap().is_empty());
        let mut cut = &bytes[..bytes.len() - 1];
        read_messages(&mut cut).unwrap();
        assert!(read_messages(&mut cut).is_err());
        let mut damaged = &[0xff; 8][..];
        assert!(read_messages(&mut damaged).is_err());
    }
}
