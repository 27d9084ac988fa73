//! The commands of checkpoints, one file each. Only engines with experimental features have them.

mod create;
mod ls;
mod rm;

use clap::Subcommand;

use crate::Outcome;
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// Create a checkpoint from a running container
    Create(create::CreateCheckpointArgs),
    /// List checkpoints for a container
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove a checkpoint
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
}

/// Runs a command of `whelk checkpoint`.
pub(crate) async fn group(client: &Client, command: CheckpointCommand) -> Outcome {
    match command {
        CheckpointCommand::Create(args) => create::create(client, args).await,
        CheckpointCommand::Ls(args) => ls::ls(client, args).await,
        CheckpointCommand::Rm(args) => rm::rm(client, args).await,
    }
}
