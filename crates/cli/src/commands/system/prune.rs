//! The `system prune` command.

use clap::Args;
use serde_json::Value;
use whelk_text::size;

use crate::client::{Client, query};
use crate::commands::arguments::prune_filters;
use crate::commands::confirm::asked;
use crate::commands::image::prune::print_pruned;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
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

pub(crate) async fn prune(client: &Client, args: PruneArgs) -> Outcome {
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
