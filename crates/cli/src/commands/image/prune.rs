//! The `image prune` command.

use clap::Args;
use whelk_api_types::ImagePruneResponse;

use crate::Outcome;
use crate::client::Client;
use crate::commands::confirm::confirmed;
use crate::commands::pruned::{filters, post, print_deleted_images, print_reclaimed};

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
    let mut given = args.filter;
    // As Docker's client, beside those of the user.
    given.push(format!("dangling={}", !args.all));
    let filters = filters(&given)?;
    let warning = if args.all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    };
    if !args.force && !confirmed(warning) {
        return Ok(0);
    }
    let answer: ImagePruneResponse = post(client, "images", &filters).await?;
    print_deleted_images(&answer.images_deleted.unwrap_or_default())?;
    print_reclaimed(answer.space_reclaimed)?;
    Ok(0)
}
