//! The `image prune` command.

use clap::Args;
use serde_json::Value;
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::prune_filters;
use crate::commands::confirm::confirmed;
use crate::commands::image::rm::actions;
use crate::output::print_line;

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

pub(crate) async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    let warning = if args.all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    };
    if !args.force && !confirmed(warning) {
        return Ok(0);
    }
    let mut given = args.filter;
    if args.all {
        given.push("dangling=false".into());
    }
    let filters = prune_filters(&given)?;
    let path = format!("/images/prune{}", query(&[("filters", &filters)]));
    let answer = client.post(&path, None).await?;
    if answer["ImagesDeleted"].is_array() {
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

/// Prints the removals of a prune: `untagged: …` and `deleted: …`.
pub(crate) fn print_pruned(removed: &Value) -> Outcome<()> {
    for (action, name) in actions(removed) {
        print_line!("{}: {name}", action.to_lowercase())?;
    }
    Ok(())
}
