//! The `network prune` command.

use clap::Args;
use serde_json::Value;

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
    let answer = client
        .post(
            &format!(
                "/networks/prune{}",
                query(&[("filters", &prune_filters(&args.filter)?)])
            ),
            None,
        )
        .await?;
    let deleted: Vec<&str> = answer["NetworksDeleted"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !deleted.is_empty() {
        print_line!("Deleted Networks:\n{}\n", deleted.join("\n"))?;
    }
    Ok(0)
}
