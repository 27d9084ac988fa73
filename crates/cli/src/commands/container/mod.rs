//! The commands of containers, one file each.

mod attach;
mod commit;
mod cp;
pub(crate) mod create;
mod diff;
mod exec;
mod export;
mod inspect;
mod kill;
mod logs;
mod pause;
mod port;
mod ports;
mod prune;
pub(crate) mod ps;
mod rename;
mod restart;
mod rm;
pub(crate) mod run;
mod start;
mod stats;
mod stop;
mod stream;
mod top;
mod unpause;
mod update;
pub(crate) mod wait;

use clap::{Args, Subcommand};

use crate::Outcome;
use crate::client::{Client, escape_name};
use crate::commands::each::for_each_at_once;

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
pub(crate) enum ContainerCommand {
    /// Create a new container
    Create(create::CreateContainerArgs),
    /// Start one or more stopped containers
    Start(start::StartArgs),
    /// Stop one or more running containers
    Stop(stop::StopArgs),
    /// Restart one or more containers
    Restart(stop::StopArgs),
    /// Kill one or more running containers
    Kill(kill::KillArgs),
    /// Remove one or more containers
    #[command(alias = "remove")]
    Rm(rm::RmArgs),
    /// Fetch the logs of a container
    Logs(logs::LogsArgs),
    /// Execute a command in a running container
    Exec(exec::ExecArgs),
    /// Attach local standard input, output, and error streams to a running container
    Attach(attach::AttachArgs),
    /// Block until one or more containers stop, then print their exit codes
    Wait(Names),
    /// Pause all processes within one or more containers
    Pause(Names),
    /// Unpause all processes within one or more containers
    Unpause(Names),
    /// List port mappings or a specific mapping for the container
    Port(port::PortArgs),
    /// Display the running processes of a container
    Top(top::TopArgs),
    /// Display a live stream of container(s) resource usage statistics
    Stats(stats::StatsArgs),
    /// Rename a container
    Rename(rename::RenameArgs),
    /// Update configuration of one or more containers
    Update(update::UpdateArgs),
    /// Export a container's filesystem as a tar archive
    Export(export::ExportArgs),
    /// Copy files/folders between a container and the local filesystem
    Cp(cp::CpArgs),
    /// Create a new image from a container's changes
    Commit(commit::CommitArgs),
    /// Inspect changes to files or directories on a container's filesystem
    Diff(diff::DiffArgs),
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
pub(crate) enum ContainerGroup {
    /// Create and run a new container from an image
    Run(run::RunArgs),
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    /// Display detailed information on one or more containers
    Inspect(inspect::InspectArgs),
    /// Remove all stopped containers
    Prune(prune::PruneArgs),
    #[command(flatten)]
    Other(ContainerCommand),
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Runs a command that `whelk` and `whelk container` have.
pub(crate) async fn command(client: &Client, command: ContainerCommand) -> Outcome {
    match command {
        ContainerCommand::Create(args) => create::create(client, args).await,
        ContainerCommand::Start(args) => start::start(client, args).await,
        ContainerCommand::Stop(args) => stop::stop(client, args).await,
        ContainerCommand::Restart(args) => restart::restart(client, args).await,
        ContainerCommand::Kill(args) => kill::kill(client, args).await,
        ContainerCommand::Rm(args) => rm::rm(client, args).await,
        ContainerCommand::Logs(args) => logs::logs(client, args).await,
        ContainerCommand::Exec(args) => exec::exec(client, args).await,
        ContainerCommand::Attach(args) => attach::attach(client, args).await,
        ContainerCommand::Wait(names) => wait::wait(client, names).await,
        ContainerCommand::Pause(names) => pause::pause(client, names).await,
        ContainerCommand::Unpause(names) => unpause::unpause(client, names).await,
        ContainerCommand::Port(args) => port::port(client, args).await,
        ContainerCommand::Top(args) => top::top(client, args).await,
        ContainerCommand::Stats(args) => stats::stats(client, args).await,
        ContainerCommand::Rename(args) => rename::rename(client, args).await,
        ContainerCommand::Update(args) => update::update(client, args).await,
        ContainerCommand::Export(args) => export::export(client, args).await,
        ContainerCommand::Commit(args) => commit::commit(client, args).await,
        ContainerCommand::Cp(args) => cp::cp(client, args).await,
        ContainerCommand::Diff(args) => diff::diff(client, args).await,
    }
}

/// Runs a command of `whelk container`.
pub(crate) async fn group(client: &Client, group: ContainerGroup) -> Outcome {
    match group {
        ContainerGroup::Run(args) => run::run(client, args).await,
        ContainerGroup::Ls(args) => ps::ps(client, args).await,
        ContainerGroup::Inspect(args) => super::inspect::inspect(client, args).await,
        ContainerGroup::Prune(args) => prune::prune(client, args).await,
        ContainerGroup::Other(other) => command(client, other).await,
    }
}

/// Posts an action without parameters for each container.
pub(crate) async fn post_each(client: &Client, names: &[String], action: &str) -> Outcome {
    for_each_at_once(names, async |name| {
        client
            .post_no_content(&format!("/containers/{}/{action}", escape_name(name)))
            .await?;
        Ok(true)
    })
    .await
}
