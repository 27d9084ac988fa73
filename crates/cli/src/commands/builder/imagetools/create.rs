//! `buildx imagetools create`.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use whelk_buildkit::pb::Timestamp;
use whelk_buildkit::pb::control::{StatusResponse, Vertex, VertexLog};
use whelk_image::Reference;

use super::combine::{Combined, annotations, combine};
use super::copy::Copy;
use super::filter::{filter, platforms};
use super::source::{Found, Source};
use crate::commands::build::display::{Display, Mode};
use crate::commands::manifest::remote::{Remote, version};
use crate::output::print;
use crate::{Failure, Outcome, files, plain};

/// Maximum size of a file with a source in bytes.
const MAX_FILE: u64 = 4 << 20;

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Add annotation to the image
    #[arg(long)]
    annotation: Vec<String>,
    /// Append to existing manifest
    #[arg(long)]
    append: bool,
    /// Show final image instead of pushing
    #[arg(long)]
    dry_run: bool,
    /// Read source descriptor from file
    #[arg(short, long)]
    file: Vec<String>,
    /// Filter specified platforms of target image
    #[arg(short, long)]
    platform: Vec<String>,
    /// When only a single source is specified, prefer outputting an image index or manifest list instead of performing a carbon copy
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    prefer_index: bool,
    /// Set type of progress output (`auto`, `none`, `plain`, `rawjson`, `tty`). Use `plain` to show container output
    #[arg(long, default_value = "auto")]
    progress: String,
    /// Set reference for new image
    #[arg(short, long)]
    tag: Vec<String>,
    #[arg(value_name = "SOURCE")]
    sources: Vec<String>,
}

pub(super) async fn create(remote: &Remote, args: CreateArgs) -> Outcome {
    if args.sources.is_empty() && args.file.is_empty() {
        return Err(Failure::new("no sources specified"));
    }
    if args.tag.is_empty() && !args.dry_run {
        return Err(Failure::new(
            "can't push with no tags specified, please set --tag or --dry-run",
        ));
    }
    let (tags, sources) = named(&args)?;
    let platforms = platforms(&args.platform)?;
    let annotations = annotations(&args.annotation)?;
    let mode = Mode::new(&args.progress, false)?;
    let mut found = Vec::with_capacity(sources.len());
    for source in &sources {
        found.push(source.find(remote).await?);
    }
    let combined = filter(
        combine(&found, &annotations, args.prefer_index)?,
        &platforms,
    )?;
    if args.dry_run {
        print(&(String::from_utf8_lossy(&combined.bytes) + "\n"))?;
        return Ok(0);
    }
    let mut display = Display::new(mode, "", false);
    let mut outcome = Ok(());
    for tag in &tags {
        let mut progress = Progress::begin(&mut display, tag);
        outcome = push(remote, &combined, &found, tag, &mut progress).await;
        progress.end(outcome.as_ref().err());
        if outcome.is_err() {
            break;
        }
    }
    display.finish();
    outcome?;
    Ok(0)
}

/// Reads the names of the new image and its sources, each with a repository.
fn named(args: &CreateArgs) -> Outcome<(Vec<Reference>, Vec<Source>)> {
    let tag = |text: &String| {
        let tag = text.parse::<Reference>();
        tag.map_err(|error| Failure::new(error.to_string()))
    };
    let tags = args.tag.iter().map(tag).collect::<Outcome<Vec<_>>>()?;
    let mut texts = Vec::new();
    if args.append {
        texts.extend(args.tag.first().cloned());
    }
    for path in &args.file {
        let content = files::read_at_most(path.as_ref(), MAX_FILE)
            .map_err(|error| Failure::new(format!("open {path}: {}", plain(&error))))?;
        let content = String::from_utf8(content)
            .map_err(|_| Failure::new(format!("{path} is not a text")))?;
        texts.push(content.trim().to_owned());
    }
    texts.extend(args.sources.iter().cloned());
    let sources = texts.iter().map(|text| Source::parse(text));
    let mut sources = sources.collect::<Outcome<Vec<_>>>()?;
    let names = tags
        .iter()
        .chain(sources.iter().filter_map(|source| source.name.as_ref()));
    let repositories: BTreeSet<Reference> = names
        .map(|name| Reference {
            tag: None,
            digest: None,
            ..name.clone()
        })
        .collect();
    if repositories.is_empty() {
        return Err(Failure::new(
            "no repositories specified, please set a reference in tag or source",
        ));
    }
    let only = repositories.first().filter(|_| repositories.len() == 1);
    for (source, text) in sources.iter_mut().zip(&texts) {
        source.complete(only, text)?;
    }
    Ok((tags, sources))
}

/// Copies the parts of an image, and pushes it under a name.
async fn push(
    remote: &Remote,
    image: &Combined,
    sources: &[Found],
    tag: &Reference,
    progress: &mut Progress<'_>,
) -> Outcome<()> {
    for (part, source) in &image.parts {
        let from = &sources[*source].name;
        let digest = part.digest()?;
        progress.tell(&format!("copying {digest} from {from} to {tag}\n"));
        Copy::new(remote, from, tag)?.copy(part).await?;
    }
    let digest = image.descriptor.digest()?;
    progress.tell(&format!("pushing {digest} to {tag}\n"));
    let target = tag.clone().with_default_tag();
    let repository = remote.to_write(&target)?;
    let media_type = &image.descriptor.media_type;
    repository
        .put_manifest(&version(&target), media_type, image.bytes.clone())
        .await
        .map_err(|error| Failure::new(format!("failed to push {tag}: {error}")))
}

/// Shows the push of a name as a step of a build.
struct Progress<'a> {
    display: &'a mut Display,
    vertex: Vertex,
}

impl<'a> Progress<'a> {
    fn begin(display: &'a mut Display, tag: &Reference) -> Self {
        let name = format!("[internal] pushing {tag}");
        let mut progress = Self {
            display,
            vertex: Vertex {
                digest: name.clone(),
                name,
                started: now(),
                ..Vertex::default()
            },
        };
        progress.show(None);
        progress
    }

    fn show(&mut self, log: Option<VertexLog>) {
        self.display.update(&StatusResponse {
            vertexes: vec![self.vertex.clone()],
            logs: log.into_iter().collect(),
            ..StatusResponse::default()
        });
    }

    fn tell(&mut self, text: &str) {
        self.show(Some(VertexLog {
            vertex: self.vertex.digest.clone(),
            timestamp: now(),
            stream: 1,
            msg: text.as_bytes().to_vec(),
        }));
    }

    fn end(mut self, failure: Option<&Failure>) {
        self.vertex.completed = now();
        self.vertex.error = failure.map_or(String::new(), |failure| failure.text.clone());
        self.show(None);
    }
}

fn now() -> Option<Timestamp> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let nanos = i64::try_from(time.as_nanos()).ok()?;
    Some(Timestamp::from_nanos(nanos))
}
