//! The `prune` commands of containers and images, and `system prune`.

use clap::Args;
use serde_json::Value;
use whelk_text::size;

use super::images::print_pruned;
use super::{asked, confirmed, prune_filters};
use crate::client::{Client, query};
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all unused images, not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn prune(client: &Client, args: PruneArgs, what: &str) -> Outcome {
    if !args.force {
        let warning = if what == "containers" {
            "all stopped containers"
        } else if args.all {
            "all images without at least one container associated to them"
        } else {
            "all dangling images"
        };
        if !confirmed(warning) {
            return Ok(0);
        }
    }
    let mut given = args.filter;
    if what == "images" && args.all {
        given.push("dangling=false".into());
    }
    let answer = client
        .post(
            &format!(
                "/{what}/prune{}",
                query(&[("filters", &prune_filters(&given)?)])
            ),
            None,
        )
        .await?;
    if what == "containers" {
        let deleted: Vec<&str> = answer["ContainersDeleted"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !deleted.is_empty() {
            print_line!("Deleted Containers:\n{}\n", deleted.join("\n"))?;
        }
    } else if answer["ImagesDeleted"].is_array() {
        print_line!("Deleted Images:")?;
        print_pruned(&answer["ImagesDeleted"])?;
        print_line!("")?;
    }
    print_line!(
        "Total reclaimed space: {}",
        size::decimal(answer["SpaceReclaimed"].as_u64().unwrap_or(0), 4)
    )?;
    Ok(0)
}

#[derive(Debug, Args)]
pub(crate) struct PruneAllArgs {
    /// Remove all unused images not just dangling ones
    #[arg(short, long)]
    all: bool,
    /// Prune anonymous volumes
    #[arg(long)]
    volumes: bool,
    /// Provide filter values (e.g. "label=<key>=<value>")
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn prune_all(client: &Client, args: PruneAllArgs) -> Outcome {
    if args.volumes
        && args
            .filter
            .iter()
            .any(|filter| filter.starts_with("until="))
    {
        return Err(Failure::new(
            "ERROR: The \"until\" filter is not supported with \"--volumes\"",
        ));
    }
    let mut parts = vec![
        "  - all stopped containers",
        "  - all networks not used by at least one container",
    ];
    if args.volumes {
        parts.push("  - all anonymous volumes not used by at least one container");
    }
    parts.push(if args.all {
        "  - all images without at least one container associated to them"
    } else {
        "  - all dangling images"
    });
    if !args.force
        && !asked(&format!(
            "WARNING! This will remove:\n{}\n\nAre you sure you want to continue? [y/N] ",
            parts.join("\n")
        ))
    {
        return Ok(0);
    }
    let mut kinds = vec![
        ("containers", "ContainersDeleted", "Deleted Containers"),
        ("networks", "NetworksDeleted", "Deleted Networks"),
    ];
    if args.volumes {
        kinds.push(("volumes", "VolumesDeleted", "Deleted Volumes"));
    }
    kinds.push(("images", "ImagesDeleted", "Deleted Images"));
    let mut reclaimed = 0;
    for (kind, field, title) in kinds {
        let mut given = args.filter.clone();
        if kind == "images" && args.all {
            given.push("dangling=false".into());
        }
        let answer = client
            .post(
                &format!(
                    "/{kind}/prune{}",
                    query(&[("filters", &prune_filters(&given)?)])
                ),
                None,
            )
            .await?;
        let deleted = answer[field]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if !deleted.is_empty() {
            print_line!("{title}:")?;
            if kind == "images" {
                print_pruned(&answer[field])?;
            }
            for name in deleted.iter().filter_map(Value::as_str) {
                print_line!("{name}")?;
            }
            print_line!("")?;
        }
        reclaimed += answer["SpaceReclaimed"].as_u64().unwrap_or(0);
    }
    print_line!("Total reclaimed space: {}", size::decimal(reclaimed, 4))?;
    Ok(0)
}
