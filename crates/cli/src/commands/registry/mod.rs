//! The commands of registries, one file each.

mod login;
mod logout;
mod search;

use clap::Subcommand;

use crate::Outcome;
use crate::client::Client;

pub(crate) use logout::logout;

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Authenticate to a registry
    Login(login::LoginArgs),
    /// Log out from a registry
    Logout(logout::LogoutArgs),
    /// Search Docker Hub for images
    Search(search::SearchArgs),
}

/// Runs a command that needs the engine.
pub(crate) async fn command(client: &Client, command: RegistryCommand) -> Outcome {
    match command {
        RegistryCommand::Login(args) => login::login(client, args).await,
        RegistryCommand::Search(args) => search::search(client, args).await,
        // Works without an engine, see `super::carry_out`.
        RegistryCommand::Logout(_) => Ok(0),
    }
}
