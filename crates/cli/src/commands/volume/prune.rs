//! The `volume prune` command.

use clap::Args;
use whelk_api_types::VolumePruneResponse;
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::arguments::prune_filters;
use crate::commands::confirm::confirmed;
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove all unused volumes, not just anonymous ones
    #[arg(short, long)]
    all: bool,
    /// Provide filter values (e.g. "label=<label>")
    #[arg(long)]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn prune(client: &Client, args: PruneArgs) -> Outcome {
    let what = if args.all {
        "all local volumes"
    } else {
        "anonymous local volumes"
    };
    if !args.force && !confirmed(&format!("{what} not used by at least one container")) {
        return Ok(0);
    }
    let mut given = args.filter;
    if args.all {
        given.push("all=true".into());
    }
    let filters = prune_filters(&given)?;
    let path = format!("/volumes/prune{}", query(&[("filters", &filters)]));
    let answer: VolumePruneResponse = client.post(&path).await?;
    let deleted = answer.volumes_deleted;
    if !deleted.is_empty() {
        print_line!("Deleted Volumes:\n{}\n", deleted.join("\n"))?;
    }
    print_line!(
        "Total reclaimed space: {}",
        size::decimal(answer.space_reclaimed, 4)
    )?;
    Ok(0)
}
