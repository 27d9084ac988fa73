//! `buildx history export`: records of builds in one file, a compressed OCI layout, as Docker Desktop imports it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::path::Path;

use bytes::{Buf as _, Bytes};
use clap::Args;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use whelk_buildkit::pb::Timestamp;
use whelk_buildkit::pb::content::{ReadContentRequest, ReadContentResponse};
use whelk_buildkit::pb::control::{BuildHistoryRecord, Descriptor, UpdateBuildHistoryRequest};

use super::super::BuilderFlags;
use super::inspect::attachments;
use super::{Builds, failed};
use crate::{Failure, Outcome, files, plain, terminal};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const RECORD: &str = "application/vnd.buildkit.historyrecord.v0";

/// The annotation with the type of a file that the layout calls JSON.
const OWN_TYPE: &str = "vnd.export-build.descriptor.mediatype";

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    pub flags: BuilderFlags,
    /// Export all build records for the builder
    #[arg(long)]
    all: bool,
    /// Ensure build records are finalized before exporting
    #[arg(long)]
    finalize: bool,
    /// Output file path
    #[arg(short, long, default_value = "", hide_default_value = true)]
    output: String,
    /// The builds; the last one without them
    #[arg(value_name = "REF")]
    names: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Entry>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u8,
    media_type: &'static str,
    config: Entry,
    layers: Vec<Entry>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: String,
    digest: String,
    size: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

/// A record in JSON as Go writes BuildKit's message.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Record<'a> {
    r#ref: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    frontend: &'a str,
    frontend_attrs: &'a BTreeMap<String, String>,
    exporters: Vec<Output<'a>>,
    #[serde(rename = "error", skip_serializing_if = "Option::is_none")]
    error: Option<Error<'a>>,
    created_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<Time>,
    #[serde(rename = "logs", skip_serializing_if = "Option::is_none")]
    logs: Option<Blob<'a>>,
    exporter_response: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Results<'a>>,
    generation: i32,
    #[serde(rename = "numTotalSteps")]
    total_steps: i32,
    #[serde(rename = "numCompletedSteps")]
    completed_steps: i32,
    #[serde(rename = "numCachedSteps")]
    cached_steps: i32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Output<'a> {
    r#type: &'a str,
    attrs: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Error<'a> {
    code: i32,
    message: &'a str,
}

#[derive(Serialize)]
struct Time {
    seconds: i64,
    nanos: i32,
}

#[derive(Serialize)]
struct Blob<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Results<'a> {
    results: BTreeMap<String, Blob<'a>>,
}

/// A file of the layout, whose content comes in pieces.
struct Packed {
    path: String,
    size: u64,
    pieces: mpsc::Receiver<Bytes>,
}

/// Pieces as one stream.
struct Pieces(mpsc::Receiver<Bytes>, Bytes);

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.1.is_empty() {
            match self.0.blocking_recv() {
                Some(next) => self.1 = next,
                None => return Ok(0),
            }
        }
        let count = self.1.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.1[..count]);
        self.1.advance(count);
        Ok(count)
    }
}

pub(super) async fn export(builds: &Builds, args: ExportArgs) -> Outcome {
    let mut records = Vec::new();
    match (args.all, args.names.as_slice()) {
        (true, []) => records = builds.list(Vec::new()).await?,
        (true, _) => return Err(Failure::new("cannot specify refs when using --all")),
        (false, []) => records.push(builds.find("").await?),
        (false, names) => {
            for name in names {
                records.push(builds.find(name).await?);
            }
        }
    }
    if args.output.is_empty() && terminal::stdout_is_terminal() {
        return Err(Failure::new(
            "refusing to write to console, use --output to specify a file or pipe",
        ));
    }
    for record in records.iter().filter(|_| args.finalize) {
        let request = UpdateBuildHistoryRequest {
            r#ref: record.r#ref.clone(),
            finalize: true,
            ..UpdateBuildHistoryRequest::default()
        };
        builds.update(&request).await?;
    }
    let path = (!args.output.is_empty()).then(|| Path::new(&args.output));
    let shown = path.map_or("/dev/stdout".into(), |path| path.display().to_string());
    let wrong = |error: std::io::Error| Failure::new(format!("write {shown}: {}", plain(&error)));
    let (packed, queue) = mpsc::channel(1);
    let path = path.map(Path::to_owned);
    let writing = tokio::task::spawn_blocking(move || pack(queue, path.as_deref()));
    let sent = send(builds, &records, packed).await;
    let written = writing.await;
    let written = written.map_err(|error| Failure::new(error.to_string()))?;
    sent?;
    let file = written.map_err(|error| Failure::new(format!("write {shown}: {error}")))?;
    if let Some(file) = file {
        file.finish().map_err(wrong)?;
    }
    Ok(0)
}

/// Writes the archive to a file, or to the standard output. Blocking.
fn pack(
    mut queue: mpsc::Receiver<Packed>,
    path: Option<&Path>,
) -> Result<Option<files::Output>, whelk_image::Error> {
    let failed = |error: std::io::Error| whelk_image::Error::invalid(error.to_string());
    let file = path.map(files::Output::create).transpose();
    let mut file = file.map_err(failed)?;
    let produce = move |output: &mut dyn std::io::Write| {
        let mut archive = tar::Builder::new(output);
        while let Some(Packed { path, size, pieces }) = queue.blocking_recv() {
            let mut header = tar::Header::new_gnu();
            header.set_size(size);
            header.set_mode(0o644);
            let content = Pieces(pieces, Bytes::new()).take(size);
            archive
                .append_data(&mut header, path, content)
                .map_err(failed)?;
        }
        archive.finish().map_err(failed)
    };
    whelk_image::gzip::compress(produce, |piece| match &mut file {
        Some(file) => file.write_all(&piece),
        None => std::io::stdout().write_all(&piece),
    })?;
    std::io::stdout().flush().map_err(failed)?;
    Ok(file)
}

/// Sends the files of the layout.
async fn send(
    builds: &Builds,
    records: &[BuildHistoryRecord],
    packed: mpsc::Sender<Packed>,
) -> Outcome<()> {
    let mut layout = Layout {
        packed,
        present: BTreeSet::new(),
    };
    layout
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .await?;
    let mut manifests = Vec::new();
    for record in records {
        let config = layout.json(RECORD, &json_of(record)).await?;
        let mut layers = Vec::new();
        if let Some(logs) = &record.logs {
            layout.copy(builds, logs).await?;
            layers.push(entry(&logs.media_type, logs));
        }
        for (_, descriptor) in attachments(record) {
            layout.copy(builds, descriptor).await?;
            layers.push(Entry {
                annotations: [(OWN_TYPE, descriptor.media_type.clone())].into(),
                ..entry("application/json", descriptor)
            });
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST,
            config,
            layers,
        };
        manifests.push(layout.json(MANIFEST, &manifest).await?);
    }
    let index = Index {
        schema_version: 2,
        media_type: "application/vnd.oci.image.index.v1+json",
        manifests,
    };
    layout.file("index.json", &encoded(&index)?).await
}

/// The layout that is being written.
struct Layout {
    packed: mpsc::Sender<Packed>,
    /// The digests of blobs that it has.
    present: BTreeSet<String>,
}

impl Layout {
    /// Begins a file; its content is sent to what is returned.
    async fn begin(&self, path: String, size: u64) -> mpsc::Sender<Bytes> {
        let (sender, pieces) = mpsc::channel(4);
        // One that has failed tells it at its end.
        let _ = self.packed.send(Packed { path, size, pieces }).await;
        sender
    }

    async fn file(&self, path: &str, content: &[u8]) -> Outcome<()> {
        let sender = self.begin(path.to_owned(), content.len() as u64).await;
        let _ = sender.send(Bytes::copy_from_slice(content)).await;
        Ok(())
    }

    async fn json(&mut self, kind: &str, object: &impl Serialize) -> Outcome<Entry> {
        let content = encoded(object)?;
        let digits: String = Sha256::digest(&content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.file(&format!("blobs/sha256/{digits}"), &content)
            .await?;
        Ok(Entry {
            media_type: kind.to_owned(),
            digest: format!("sha256:{digits}"),
            size: i64::try_from(content.len()).unwrap_or(i64::MAX),
            annotations: BTreeMap::new(),
        })
    }

    /// Copies a blob of the history.
    async fn copy(&mut self, builds: &Builds, descriptor: &Descriptor) -> Outcome<()> {
        let digest = &descriptor.digest;
        if !self.present.insert(digest.clone()) {
            return Ok(());
        }
        let digits = digest.strip_prefix("sha256:").filter(|digits| {
            digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        let digits = digits.ok_or_else(|| Failure::new(format!("invalid digest {digest:?}")))?;
        let size = u64::try_from(descriptor.size).unwrap_or(0);
        let sender = self.begin(format!("blobs/sha256/{digits}"), size).await;
        let method = "containerd.services.content.v1.Content/Read";
        let stream = builds.channel.stream(method, Default::default());
        let mut stream = stream.map_err(failed)?;
        let request = ReadContentRequest {
            digest: digest.clone(),
            ..ReadContentRequest::default()
        };
        stream.requests.send(&request).await.map_err(failed)?;
        stream.requests.close();
        let mut sent = 0;
        while let Some(ReadContentResponse { data, .. }) = stream.next().await.map_err(failed)? {
            sent += data.len() as u64;
            let _ = sender.send(data).await;
        }
        match sent == size {
            true => Ok(()),
            false => Err(Failure::new(format!(
                "read {digest}: {sent} bytes instead of {size}"
            ))),
        }
    }
}

fn encoded(object: &impl Serialize) -> Outcome<Vec<u8>> {
    serde_json::to_vec_pretty(object).map_err(|error| Failure::new(error.to_string()))
}

fn entry(kind: &str, descriptor: &Descriptor) -> Entry {
    Entry {
        media_type: kind.to_owned(),
        digest: descriptor.digest.clone(),
        size: descriptor.size,
        annotations: BTreeMap::new(),
    }
}

fn json_of(record: &BuildHistoryRecord) -> Record<'_> {
    fn blob(descriptor: &Descriptor) -> Blob<'_> {
        Blob {
            media_type: &descriptor.media_type,
            digest: &descriptor.digest,
            size: descriptor.size,
        }
    }
    let time = |time: Timestamp| Time {
        seconds: time.seconds,
        nanos: time.nanos,
    };
    let exporters = record.exporters.iter().map(|exporter| Output {
        r#type: &exporter.kind,
        attrs: &exporter.attrs,
    });
    let results = record.result.as_ref().map(|result| {
        let all = result.results.iter();
        let all = all.map(|(place, descriptor)| (place.to_string(), blob(descriptor)));
        Results {
            results: all.collect(),
        }
    });
    Record {
        r#ref: &record.r#ref,
        frontend: &record.frontend,
        frontend_attrs: &record.frontend_attrs,
        exporters: exporters.collect(),
        error: record.error.as_ref().map(|error| Error {
            code: error.code,
            message: &error.message,
        }),
        created_at: record.created_at.map(time),
        completed_at: record.completed_at.map(time),
        logs: record.logs.as_ref().map(blob),
        exporter_response: &record.exporter_response,
        result: results,
        generation: record.generation,
        total_steps: record.total_steps,
        completed_steps: record.completed_steps,
        cached_steps: record.cached_steps,
    }
}
