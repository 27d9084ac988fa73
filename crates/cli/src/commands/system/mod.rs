//! The commands of the engine as a whole, one file each.

mod build_cache;
mod check;
mod df;
mod dial_stdio;
mod events;
mod info;
mod prune;
pub(crate) mod repair;
mod stop_containers;

use clap::Subcommand;

use crate::Outcome;
use crate::client::Client;
use crate::commands::version::FormatArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Get real time events from the server
    Events(events::EventsArgs),
    /// Display system-wide information
    Info(FormatArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SystemGroup {
    /// Verify the engine's records, content, mounts, interfaces and cgroups
    Check(check::CheckArgs),
    /// Show disk usage
    Df(df::DfArgs),
    /// Proxy the stdio stream to the engine
    #[command(hide = true)]
    DialStdio,
    /// Remove unused data
    Prune(prune::PruneArgs),
    /// Rebuild the records of a stopped engine from its data directory
    Repair(repair::RepairArgs),
    /// Stop all containers before the host shuts down; restart policies start them with the next engine
    StopContainers,
    #[command(flatten)]
    Other(SystemCommand),
}

/// Runs a command that `whelk` and `whelk system` have.
pub(crate) async fn command(client: &Client, command: SystemCommand) -> Outcome {
    match command {
        SystemCommand::Events(args) => events::events(client, args).await,
        SystemCommand::Info(args) => info::info(client, args).await,
    }
}

/// Runs a command of `whelk system` that needs the engine.
pub(crate) async fn group(client: &Client, group: SystemGroup) -> Outcome {
    match group {
        SystemGroup::Check(args) => check::check(client, args).await,
        SystemGroup::Df(args) => df::df(client, args).await,
        SystemGroup::DialStdio => dial_stdio::dial_stdio(client).await,
        SystemGroup::Prune(args) => prune::prune(client, args).await,
        SystemGroup::StopContainers => stop_containers::stop_containers(client).await,
        // Works without an engine, see `super::carry_out`.
        SystemGroup::Repair(_) => Ok(0),
        SystemGroup::Other(other) => command(client, other).await,
    }
}
