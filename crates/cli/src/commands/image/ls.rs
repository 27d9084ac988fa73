//! The `images` command.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde::Serialize;
use whelk_api_types::ImageSummary;
use whelk_text::size;

use super::tree::tree;
use crate::client::{Client, query};
use crate::commands::arguments::filters;
use crate::format::table::Table;
use crate::format::units::{ago, local_time, short_id};
use crate::output::print;
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Show all images (default hides intermediate images)
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided
    #[arg(short, long)]
    filter: Vec<String>,
    /// Format output using a custom template
    #[arg(long, default_value = "", hide_default_value = true)]
    format: String,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// List multi-platform images as a tree
    #[arg(long)]
    tree: bool,
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

impl ImagesArgs {
    /// Checks that `--tree` is given alone.
    fn check_tree(&self) -> Outcome<()> {
        let conflicts = [
            ("--quiet", self.quiet),
            ("--no-trunc", self.no_trunc),
            ("--show-digest", self.digests),
            ("--format", !self.format.is_empty()),
        ];
        match conflicts.iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(Failure::new(format!(
                "{flag} is not yet supported with --tree"
            ))),
            None => Ok(()),
        }
    }
}

const TABLE: Table = Table {
    row: "*formatter.imageContext",
    id: "ID",
    columns: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("VirtualSize", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("Containers", "CONTAINERS"),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    repository: String,
    tag: String,
    digest: String,
    #[serde(rename = "ID")]
    id: String,
    created_since: String,
    created_at: String,
    size: String,
    virtual_size: String,
    shared_size: String,
    unique_size: String,
    containers: String,
}

/// Docker's placeholder for a missing name.
const NONE: &str = "<none>";

/// Docker's placeholder for a number that was not requested.
const UNKNOWN: &str = "N/A";

pub(crate) async fn images(client: &Client, args: ImagesArgs) -> Outcome {
    if args.tree {
        args.check_tree()?;
    }
    let mut given = args.filter.clone();
    given.extend(
        args.repository
            .as_ref()
            .map(|repository| format!("reference={repository}")),
    );
    let flag = |is_set: bool| if is_set { "1" } else { "" };
    let mut images: Vec<ImageSummary> = client
        .get(&format!(
            "/images/json{}",
            query(&[
                ("all", flag(args.all)),
                ("filters", &filters(&given)?),
                ("manifests", flag(args.tree)),
            ])
        ))
        .await?;
    if args.tree {
        if !args.all {
            images.retain(|image| {
                !image.repo_tags.is_empty() || image.repo_digests.iter().flatten().next().is_some()
            });
        }
        let width = terminal::size().map(|(_, columns)| usize::from(columns));
        print(&tree(
            &images,
            width.filter(|_| terminal::stdout_is_terminal()),
        ))?;
        return Ok(0);
    }
    let rows = images
        .iter()
        .flat_map(|image| rows(image, args.no_trunc, args.digests))
        .collect();
    let default = if args.digests {
        "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    } else {
        "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
    };
    let format = client.format(args.format, args.quiet, "imagesFormat");
    TABLE.print(&format, args.quiet, default, rows)?;
    Ok(0)
}

/// Returns the row of an image with its first tag and without a digest, as `system df` has it.
pub(crate) fn usage_row(image: &ImageSummary) -> Row {
    let name = image.repo_tags.first().map_or(NONE, String::as_str);
    let (repository, tag) = name.rsplit_once(':').unwrap_or((name, NONE));
    row(image, true, [repository, tag, ""])
}

/// Returns the row of an image with these names: repository, tag and digest.
fn row(image: &ImageSummary, no_trunc: bool, [repository, tag, digest]: [&str; 3]) -> Row {
    // The engine sends -1 for values that were not requested.
    let shown = |bytes: Option<u64>| {
        bytes.map_or_else(|| UNKNOWN.to_owned(), |bytes| size::decimal(bytes, 4))
    };
    let shared = u64::try_from(image.shared_size).ok();
    let containers = u64::try_from(image.containers).ok();
    Row {
        repository: repository.to_owned(),
        tag: tag.to_owned(),
        digest: digest.to_owned(),
        id: if no_trunc {
            image.id.clone()
        } else {
            short_id(&image.id)
        },
        created_since: ago(image.created),
        created_at: local_time(image.created),
        size: size::decimal(image.size, 3),
        virtual_size: size::decimal(image.size, 4),
        shared_size: shown(shared),
        unique_size: shown(shared.map(|shared| image.size.saturating_sub(shared))),
        containers: containers.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string()),
    }
}

/// Returns a row for each name of an image, as Docker does: with `digests` for each digest that the
/// tag's repository has for it, and for repositories that have nothing but digests. An image without
/// a name has a row too.
fn rows(image: &ImageSummary, no_trunc: bool, digests: bool) -> Vec<Row> {
    let row =
        |repository: &str, tag: &str, digest: &str| row(image, no_trunc, [repository, tag, digest]);
    let mut by_repository: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in image.repo_digests.iter().flatten() {
        let (repository, digest) = name.split_once('@').unwrap_or((name, NONE));
        by_repository.entry(repository).or_default().push(digest);
    }
    let mut rows = Vec::new();
    let mut repositories = BTreeSet::new();
    for name in &image.repo_tags {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, NONE));
        repositories.insert(repository);
        match by_repository.get(repository).filter(|_| digests) {
            Some(found) => rows.extend(found.iter().map(|digest| row(repository, tag, digest))),
            None => rows.push(row(repository, tag, NONE)),
        }
    }
    for (repository, found) in by_repository {
        if repositories.contains(repository) {
            continue;
        }
        if digests {
            rows.extend(found.iter().map(|digest| row(repository, NONE, digest)));
        } else {
            rows.push(row(repository, NONE, NONE));
        }
    }
    if rows.is_empty() {
        rows.push(row(NONE, NONE, NONE));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_shown_beside_the_tags_of_their_repository() {
        let strings = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        let shown = |tags: &[&str], digests: &[&str], with_digests: bool| -> Vec<String> {
            let image = ImageSummary {
                repo_tags: strings(tags),
                repo_digests: Some(strings(digests)),
                ..ImageSummary::default()
            };
            let rows = rows(&image, true, with_digests);
            let text = |row: &Row| format!("{} {} {}", row.repository, row.tag, row.digest);
            rows.iter().map(text).collect()
        };
        let tags = ["app:1", "app:2", "host:5000/app:1"];
        let digests = ["app@sha256:a", "app@sha256:b", "other@sha256:a"];
        assert_eq!(
            shown(&tags, &digests, true),
            [
                "app 1 sha256:a",
                "app 1 sha256:b",
                "app 2 sha256:a",
                "app 2 sha256:b",
                "host:5000/app 1 <none>",
                "other <none> sha256:a",
            ]
        );
        assert_eq!(
            shown(&tags, &digests, false),
            [
                "app 1 <none>",
                "app 2 <none>",
                "host:5000/app 1 <none>",
                "other <none> <none>",
            ]
        );
        assert_eq!(shown(&[], &[], true), ["<none> <none> <none>"]);
    }
}
