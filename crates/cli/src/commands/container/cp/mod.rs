//! The `cp` command.

mod local;
mod progress;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use whelk_api_types::ContainerPathStat;
use whelk_image::snapshots::{Copied, Extraction, Owner, export_copy, extract};

use self::local::Found;
use self::progress::Progress;
use crate::client::{ApiResult, Client, escape_name, no_body, query};
use crate::commands::destination;
use crate::commands::upload::{pieces_body, reader_body};
use crate::{Failure, Outcome, plain};

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    archive: bool,
    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached
    #[arg(short, long)]
    quiet: bool,
    #[arg(value_name = "CONTAINER:SRC_PATH|SRC_PATH|-")]
    source: String,
    #[arg(value_name = "DEST_PATH|-|CONTAINER:DEST_PATH")]
    destination: String,
}

pub(crate) async fn cp(client: &Client, args: CpArgs) -> Outcome {
    if args.source.is_empty() {
        return Err(Failure::new("source can not be empty"));
    }
    if args.destination.is_empty() {
        return Err(Failure::new("destination can not be empty"));
    }
    let (source, destination) = (split(&args.source), split(&args.destination));
    match (source, destination) {
        ((Some(container), source), (None, destination)) => {
            copy_out(client, &args, container, source, destination).await?
        }
        ((None, source), (Some(container), destination)) => {
            copy_in(client, &args, container, source, destination).await?
        }
        ((Some(_), _), (Some(_), _)) => {
            return Err(Failure::new("copying between containers is not supported"));
        }
        ((None, _), (None, _)) => {
            return Err(Failure::new("must specify at least one container source"));
        }
    }
    Ok(0)
}

/// Splits `CONTAINER:PATH`. A path of this machine with a colon begins with `/` or `.`.
fn split(argument: &str) -> (Option<&str>, &str) {
    match argument.split_once(':') {
        Some((container, path))
            if !argument.starts_with('/')
                && !container.starts_with('.')
                && !container.is_empty() =>
        {
            (Some(container), path)
        }
        _ => (None, argument),
    }
}

fn archive_path(container: &str, path: &str, more: &[(&str, &str)]) -> String {
    let pairs = [&[("path", path)], more].concat();
    format!(
        "/containers/{}/archive{}",
        escape_name(container),
        query(&pairs)
    )
}

fn stat_of(response: &hyper::Response<Incoming>) -> Outcome<ContainerPathStat> {
    let header = response.headers().get("x-docker-container-path-stat");
    header
        .and_then(|value| STANDARD.decode(value.as_bytes()).ok())
        .and_then(|json| serde_json::from_slice(&json).ok())
        .and_then(|value| whelk_api_types::read(value).ok())
        .ok_or_else(|| Failure::new("unable to decode container path stat header"))
}

async fn stat(
    client: &Client,
    container: &str,
    path: &str,
) -> ApiResult<hyper::Response<Incoming>> {
    let path = archive_path(container, path, &[]);
    client.send(Method::HEAD, &path, &[], no_body()).await
}

async fn copy_out(
    client: &Client,
    args: &CpArgs,
    container: &str,
    source: &str,
    destination: &str,
) -> Outcome<()> {
    let target = if destination == "-" {
        destination.to_owned()
    } else {
        local::absolute(destination)?
    };
    local::check_output(&target)?;
    let (mut source, mut rebased) = (source.to_owned(), String::new());
    if args.follow_link
        && let Ok(response) = stat(client, container, &source).await
    {
        let stat = stat_of(&response)?;
        if stat.mode & ContainerPathStat::SYMLINK != 0 {
            (source, rebased) = local::rebased(&source, &stat.link_target);
        }
    }
    let path = archive_path(container, &source, &[]);
    let response = client.send(Method::GET, &path, &[], no_body()).await?;
    if target == "-" {
        return destination::copy(response, &mut std::io::stdout(), "/dev/stdout").await;
    }
    let found = Found {
        exists: true,
        is_directory: stat_of(&response)?.mode & ContainerPathStat::DIRECTORY != 0,
        path: source,
        rebased,
    };
    let place = local::destination(&target)?;
    let (directory, renamed) = local::prepare(&found, &place)?;
    let progress = Progress::start(args.quiet, "Copying from container - ");
    let unpacked = unpack(response, directory, renamed, progress.bytes.clone()).await;
    progress.finish(&target).await;
    unpacked
}

/// Unpacks a response's body on a thread, while it is received.
async fn unpack(
    response: hyper::Response<Incoming>,
    directory: String,
    renamed: Option<(String, String)>,
    bytes: Arc<AtomicU64>,
) -> Outcome<()> {
    let (sender, receiver) = mpsc::channel(8);
    let thread = tokio::task::spawn_blocking(move || {
        let open = std::fs::File::open(&directory)
            .map_err(|error| Failure::new(format!("open {directory}: {}", plain(&error))))?;
        let extraction = Extraction {
            shown: &directory,
            keeps_kinds: true,
            owner: Owner::Process,
            renamed: renamed.map(|(old, new)| (old.into_bytes(), new.into_bytes())),
            ..Extraction::default()
        };
        let reader = Received {
            receiver,
            rest: Bytes::new(),
        };
        extract(reader, open.into(), extraction).map_err(|error| Failure::new(error.to_string()))
    });
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let data = match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => data,
                Err(_) => continue,
            },
            Err(error) => {
                let _ = sender.send(Err(error.to_string())).await;
                break;
            }
        };
        bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        if sender.send(Ok(data)).await.is_err() {
            break;
        }
    }
    drop(sender);
    thread
        .await
        .map_err(|error| Failure::new(error.to_string()))?
}

/// A blocking reader for what is received.
struct Received {
    receiver: mpsc::Receiver<Result<Bytes, String>>,
    rest: Bytes,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(data)) => self.rest = data,
                Some(Err(text)) => {
                    return Err(std::io::Error::other(format!(
                        "the engine ended the stream prematurely: {text}"
                    )));
                }
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

async fn copy_in(
    client: &Client,
    args: &CpArgs,
    container: &str,
    source: &str,
    destination: &str,
) -> Outcome<()> {
    let from_stdin = source == "-";
    let source = if from_stdin {
        source.to_owned()
    } else {
        local::absolute(source)?
    };
    let place = place_in(client, container, destination).await?;
    let progress = Progress::start(args.quiet || from_stdin, "Copying to container - ");
    let (directory, body) = if from_stdin {
        if !place.is_directory {
            return Err(Failure::new(format!(
                "destination \"{container}:{destination}\" must be a directory"
            )));
        }
        (place.path.clone(), reader_body(std::io::stdin()))
    } else {
        let found = local::source(&source, args.follow_link)?;
        let (copied, top) = local::open(&found)?;
        let (directory, renamed) = local::prepare(&found, &place)?;
        let top = renamed.map_or(top, |(_, new)| new);
        (directory, archive_body(copied, top, progress.bytes.clone()))
    };
    let mut more = vec![("noOverwriteDirNonDir", "true")];
    if args.archive {
        more.push(("copyUIDGID", "true"));
    }
    let path = archive_path(container, &directory, &more);
    let headers = [("content-type", "application/x-tar")];
    let sent = client.send(Method::PUT, &path, &headers, body).await;
    progress
        .finish(&format!("{container}:{}", place.path))
        .await;
    sent?;
    Ok(())
}

/// Returns what a path in a container refers to, with a link at its end followed. One that cannot be
/// found out does not exist: the engine answers then.
async fn place_in(client: &Client, container: &str, path: &str) -> Outcome<Found> {
    let mut place = Found {
        path: path.to_owned(),
        ..Found::default()
    };
    let Ok(response) = stat(client, container, path).await else {
        return Ok(place);
    };
    let mut stat = stat_of(&response)?;
    if stat.mode & ContainerPathStat::SYMLINK != 0 {
        place.path.clone_from(&stat.link_target);
        let Ok(response) = self::stat(client, container, &place.path).await else {
            return Ok(place);
        };
        stat = stat_of(&response)?;
    }
    if stat.mode & ContainerPathStat::DEVICE != 0 {
        return Err(Failure::new(format!(
            "destination \"{container}:{path}\" must be a directory or a regular file: got a device"
        )));
    }
    place.exists = true;
    place.is_directory = stat.mode & ContainerPathStat::DIRECTORY != 0;
    Ok(place)
}

/// Returns a request body with an archive of local files, which is written on a separate thread.
fn archive_body(copied: Copied, top: String, bytes: Arc<AtomicU64>) -> crate::client::Body {
    pieces_body(move |send| {
        let mut counted = |piece: Vec<u8>| {
            bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            send(piece)
        };
        export_copy(copied, Path::new(&top), &mut counted)
            .map_err(|error| std::io::Error::other(error.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_containers_from_paths() {
        assert_eq!(split("box:/a:b"), (Some("box"), "/a:b"));
        assert_eq!(split("box:"), (Some("box"), ""));
        for local in ["/a:b", "./a:b", "../a:b", "a", "-", ":a"] {
            assert_eq!(split(local), (None, local));
        }
    }
}
