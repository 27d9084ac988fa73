//! The commands of volumes, one file each.

mod clone;
mod create;
mod export;
mod import;
mod inspect;
pub(super) mod ls;
mod prune;
mod rm;
mod snapshot;
mod update;

use clap::Subcommand;

use crate::Outcome;
use crate::client::Client;

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
pub(crate) enum VolumeCommand {
    /// Copy a volume into a new one
    Clone(clone::CloneArgs),
    /// Create a volume
    Create(create::CreateVolumeArgs),
    /// Write a volume's content as a tar archive to a file or STDOUT
    Export(export::ExportArgs),
    /// Unpack a tar archive into a volume, which is created if it is missing
    Import(import::ImportArgs),
    /// Display detailed information on one or more volumes
    Inspect(inspect::InspectArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove unused local volumes
    Prune(prune::PruneArgs),
    /// Remove one or more volumes
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
    /// Copy a volume's current content into a new read-only volume
    Snapshot(snapshot::SnapshotArgs),
    /// Update a volume (cluster volumes only)
    Update(update::UpdateArgs),
}

/// Runs a command of `whelk volume`.
pub(crate) async fn group(client: &Client, command: VolumeCommand) -> Outcome {
    match command {
        VolumeCommand::Clone(args) => clone::clone(client, args).await,
        VolumeCommand::Create(args) => create::create(client, args).await,
        VolumeCommand::Export(args) => export::export(client, args).await,
        VolumeCommand::Import(args) => import::import(client, args).await,
        VolumeCommand::Inspect(args) => super::inspect::inspect(client, args).await,
        VolumeCommand::Ls(args) => ls::ls(client, args).await,
        VolumeCommand::Prune(args) => prune::prune(client, args).await,
        VolumeCommand::Rm(args) => rm::rm(client, args).await,
        VolumeCommand::Snapshot(args) => snapshot::snapshot(client, args).await,
        VolumeCommand::Update(args) => update::update(args),
    }
}
