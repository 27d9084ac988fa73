//! The `volume prune` command.

use clap::Args;
use whelk_api_types::VolumePruneResponse;

use crate::Outcome;
use crate::client::Client;
use crate::commands::confirm::confirmed;
use crate::commands::pruned::{filters, post, print_deleted, print_reclaimed};

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
    let mut given = args.filter;
    if args.all {
        given.push("all=true".into());
    }
    let filters = filters(&given)?;
    let what = if args.all {
        "all local volumes"
    } else {
        "anonymous local volumes"
    };
    if !args.force && !confirmed(&format!("{what} not used by at least one container")) {
        return Ok(0);
    }
    let answer: VolumePruneResponse = post(client, "volumes", &filters).await?;
    print_deleted("Volumes", &answer.volumes_deleted)?;
    print_reclaimed(answer.space_reclaimed)?;
    Ok(0)
}
