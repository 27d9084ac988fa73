//! The `network prune` command.

use clap::Args;
use whelk_api_types::NetworkPruneResponse;

use crate::Outcome;
use crate::client::Client;
use crate::commands::confirm::confirmed;
use crate::commands::pruned::{filters, post, print_deleted};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    let filters = filters(&args.filter)?;
    if !args.force && !confirmed("all custom networks not used by at least one container") {
        return Ok(0);
    }
    let answer: NetworkPruneResponse = post(client, "networks", &filters).await?;
    print_deleted("Networks", &answer.networks_deleted.unwrap_or_default())?;
    Ok(0)
}
