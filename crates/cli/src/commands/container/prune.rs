//! The `container prune` command.

use clap::Args;
use whelk_api_types::ContainerPruneResponse;

use crate::Outcome;
use crate::client::Client;
use crate::commands::confirm::confirmed;
use crate::commands::pruned::{filters, post, print_deleted, print_reclaimed};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Provide filter values
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    let filters = filters(&args.filter)?;
    if !args.force && !confirmed("all stopped containers") {
        return Ok(0);
    }
    let answer: ContainerPruneResponse = post(client, "containers", &filters).await?;
    let deleted = answer.containers_deleted.unwrap_or_default();
    print_deleted("Containers", &deleted)?;
    print_reclaimed(answer.space_reclaimed)?;
    Ok(0)
}
