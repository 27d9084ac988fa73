//! The `container prune` command.

use clap::Args;
use whelk_api_types::ContainerPruneResponse;
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::prune_filters;
use crate::commands::confirm::confirmed;
use crate::output::print_line;

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
    if !args.force && !confirmed("all stopped containers") {
        return Ok(0);
    }
    let filters = prune_filters(&args.filter)?;
    let path = format!("/containers/prune{}", query(&[("filters", &filters)]));
    let answer: ContainerPruneResponse = client.post(&path).await?;
    let deleted = answer.containers_deleted.unwrap_or_default();
    if !deleted.is_empty() {
        print_line!("Deleted Containers:\n{}\n", deleted.join("\n"))?;
    }
    print_line!(
        "Total reclaimed space: {}",
        size::decimal(answer.space_reclaimed, 4)
    )?;
    Ok(0)
}
