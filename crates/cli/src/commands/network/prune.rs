//! The `network prune` command.

use clap::Args;
use whelk_api_types::NetworkPruneResponse;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::prune_filters;
use crate::commands::confirm::confirmed;
use crate::output::print_line;

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
    if !args.force && !confirmed("all custom networks not used by at least one container") {
        return Ok(0);
    }
    let filters = prune_filters(&args.filter)?;
    let path = format!("/networks/prune{}", query(&[("filters", &filters)]));
    let answer: NetworkPruneResponse = client.post(&path).await?;
    let deleted = answer.networks_deleted.unwrap_or_default();
    if !deleted.is_empty() {
        print_line!("Deleted Networks:\n{}\n", deleted.join("\n"))?;
    }
    Ok(0)
}
