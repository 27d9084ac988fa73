//! The commands of networks, one file each.

mod connect;
mod create;
mod disconnect;
mod inspect;
mod ls;
mod prune;
mod rm;

use clap::Subcommand;

use crate::Outcome;
use crate::client::Client;

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Connect a container to a network
    Connect(connect::ConnectArgs),
    /// Create a network
    Create(create::CreateNetworkArgs),
    /// Disconnect a container from a network
    Disconnect(disconnect::DisconnectArgs),
    /// Display detailed information on one or more networks
    Inspect(inspect::InspectArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(ls::LsArgs),
    /// Remove all unused networks
    Prune(prune::PruneArgs),
    /// Remove one or more networks
    #[command(visible_alias = "remove")]
    Rm(rm::RmArgs),
}

/// Runs a command of `whelk network`.
pub(crate) async fn group(client: &Client, command: NetworkCommand) -> Outcome {
    match command {
        NetworkCommand::Connect(args) => connect::connect(client, args).await,
        NetworkCommand::Create(args) => create::create(client, args).await,
        NetworkCommand::Disconnect(args) => disconnect::disconnect(client, args).await,
        NetworkCommand::Inspect(args) => super::inspect::inspect(client, args).await,
        NetworkCommand::Ls(args) => ls::ls(client, args).await,
        NetworkCommand::Prune(args) => prune::prune(client, args).await,
        NetworkCommand::Rm(args) => rm::rm(client, args).await,
    }
}
