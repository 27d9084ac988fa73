//! The `image prune` command.

use clap::Args;
use whelk_api_types::{ImageDeleteResponseItem, ImagePruneResponse};
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
    let answer: ImagePruneResponse = client.post(&path).await?;
    if let Some(deleted) = answer.images_deleted {
        print_line!("Deleted Images:")?;
        print_pruned(&deleted)?;
        print_line!("")?;
    }
    print_line!(
        "Total reclaimed space: {}",
        size::decimal(answer.space_reclaimed, 4)
    )?;
    Ok(0)
}

/// Prints the removals of a prune: `untagged: …` and `deleted: …`.
pub(crate) fn print_pruned(removed: &[ImageDeleteResponseItem]) -> Outcome<()> {
    for (action, name) in actions(removed) {
        print_line!("{}: {name}", action.to_lowercase())?;
    }
    Ok(())
}
