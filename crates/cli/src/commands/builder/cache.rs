//! `builder cache`, and `build cache`: the caches of steps (`RUN --mount=type=cache`).

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Serialize;
use whelk_api_types::{BuildCache, BuildCacheImportResponse, SystemDataUsageResponse};
use whelk_buildkit::pb::control::{PruneRequest, UsageRecord};
use whelk_text::size;

use super::prune::{failed, removals};
use crate::client::{Client, no_body, query, read};
use crate::commands::build::connect;
use crate::commands::destination::Destination;
use crate::commands::upload::{file_body, reader_body};
use crate::format::table::Table;
use crate::format::units::since;
use crate::output::print_line;
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the caches of steps (`RUN --mount=type=cache`)
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Write the files of a cache as a tar archive (to STDOUT by default)
    Export(ExportArgs),
    /// Unpack a tar archive into a cache, which is created if it does not exist
    Import(ImportArgs),
    /// Remove caches that no build uses
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Only display IDs
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<String>,
    /// The cache: its ID, or the `id` of its mount, which is its target if that has none
    cache: String,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The cache: its ID, or the `id` of its mount, which is its target if that has none
    cache: String,
    /// Archive to read, or - for STDIN
    #[arg(default_value = "-")]
    file: String,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The caches: their IDs, or the `id` of their mounts
    #[arg(value_name = "CACHE", required = true)]
    caches: Vec<String>,
}

const TABLE: Table = Table {
    row: "*commands.cacheContext",
    id: "ID",
    columns: &[
        ("ID", "CACHE ID"),
        ("Mount", "MOUNT"),
        ("Size", "SIZE"),
        ("CreatedAt", "CREATED AT"),
        ("LastUsedAt", "LAST USED"),
        ("InUse", "IN USE"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ID")]
    id: String,
    mount: String,
    size: String,
    created_at: String,
    last_used_at: String,
    in_use: bool,
}

/// Runs a command of `whelk builder cache`.
pub(super) async fn cache(client: &Client, command: CacheCommand) -> Outcome {
    match command {
        CacheCommand::Ls(args) => ls(client, args).await,
        CacheCommand::Export(args) => export(client, args).await,
        CacheCommand::Import(args) => import(client, args).await,
        CacheCommand::Rm(args) => rm(client, args).await,
    }
}

async fn list(client: &Client) -> Outcome<Vec<BuildCache>> {
    let usage: SystemDataUsageResponse = client.get("/system/df?type=build-cache").await?;
    let mut records = usage.build_cache.unwrap_or_default();
    records.retain(|record| record.kind == "exec.cachemount");
    Ok(records)
}

async fn ls(client: &Client, args: LsArgs) -> Outcome {
    let rows = list(client).await?.into_iter().map(row);
    let default = "{{.ID}}\t{{.Mount}}\t{{.Size}}\t{{.LastUsedAt}}\t{{.InUse}}";
    TABLE.print(&args.format, args.quiet, default, rows.collect())?;
    Ok(0)
}

fn row(record: BuildCache) -> Row {
    Row {
        mount: mount(&record.description),
        id: record.id,
        size: size::decimal(record.size, 4),
        created_at: record.created_at,
        last_used_at: record
            .last_used_at
            .map(|time| since(&time))
            .unwrap_or_default(),
        in_use: record.in_use,
    }
}

/// Returns the id of a mount, which the description of its record ends with.
fn mount(description: &str) -> String {
    let id = description.rsplit_once("with id ");
    let id: Option<String> = id.and_then(|(_, id)| serde_json::from_str(id).ok());
    match id {
        // The namespace in front of it is empty.
        Some(id) => id.strip_prefix('/').unwrap_or(&id).to_owned(),
        None => description.to_owned(),
    }
}

async fn export(client: &Client, args: ExportArgs) -> Outcome {
    let destination = Destination::new(args.output.as_deref(), "cache")?;
    let path = format!("/build/cache/export{}", query(&[("id", &args.cache)]));
    let response = client.send(Method::GET, &path, &[], no_body()).await?;
    destination.write_body(response).await?;
    Ok(0)
}

async fn import(client: &Client, args: ImportArgs) -> Outcome {
    let body = match args.file.as_str() {
        "-" if terminal::stdin_is_terminal() => {
            return Err(Failure::new(
                "requested import from stdin, but stdin is empty",
            ));
        }
        "-" => reader_body(std::io::stdin()),
        path => file_body(path)?,
    };
    let path = format!("/build/cache/import{}", query(&[("id", &args.cache)]));
    let kind = [("content-type", "application/x-tar")];
    let response = client.send(Method::POST, &path, &kind, body).await?;
    let BuildCacheImportResponse { id } = read(response).await?;
    print_line!("{}", terminal::one_line(&id))?;
    Ok(0)
}

/// Removes caches; of those with several copies, all.
async fn rm(client: &Client, args: RmArgs) -> Outcome {
    let channel = connect(client).await?;
    for name in &args.caches {
        // What another name of this call, or somebody else, has removed is not there any more.
        let records = list(client).await?;
        let ids = meant(&records, name);
        if ids.is_empty() {
            let text = format!("no such cache of builds: {name}");
            return Err(Failure::new(text));
        }
        for id in ids {
            let request = PruneRequest {
                filter: vec![format!("type==exec.cachemount,id=={id}")],
                all: true,
                ..PruneRequest::default()
            };
            let mut removed = removals(&channel, &request).await?;
            let first: Option<UsageRecord> = removed.next().await.map_err(failed)?;
            if first.is_none() && list(client).await?.iter().any(|record| record.id == id) {
                let text = format!("cache {name} is used by a build");
                return Err(Failure::new(text));
            }
            // The rest of the call.
            while removed
                .next::<UsageRecord>()
                .await
                .map_err(failed)?
                .is_some()
            {}
        }
        print_line!("{name}")?;
    }
    Ok(0)
}

/// Returns the ids of the caches that a name means: an id, or the one of a mount.
fn meant<'a>(records: &'a [BuildCache], name: &str) -> Vec<&'a str> {
    let found = records.iter().filter(|record| {
        let id = &record.id;
        id == name || mount(&record.description) == name
    });
    found.map(|record| record.id.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_named_in_descriptions() {
        let text = "cached mount root/.cache from exec /bin/sh with id \"//root/.cache\"";
        assert_eq!(mount(text), "/root/.cache");
        assert_eq!(mount("other"), "other");
        assert!(since("2026-01-02T03:04:05.678901234Z").ends_with(" ago"));
        assert_eq!(since("x"), "x");
    }
}
