//! The command tree: subcommands, their flags, and their dispatch. Groups of commands are directories.

mod arguments;
mod bake;
mod build;
mod builder;
mod checkpoint;
mod completion;
mod confirm;
pub(crate) mod container;
mod context;
mod destination;
mod each;
mod image;
mod inspect;
mod manifest;
mod messages;
mod network;
mod pruned;
mod registry;
mod system;
mod trust;
mod upload;
mod usage;
mod version;
mod volume;

use std::ffi::OsString;

use clap::{FromArgMatches, Parser, Subcommand};

use crate::client::Client;
use crate::endpoint::{Endpoint, RootFlags};
use crate::flags::{self, Line};
use crate::{Failure, Outcome, autostart, output};

/// Run containers
#[derive(Debug, Parser)]
#[command(
    name = "whelk",
    version,
    disable_version_flag = true,
    disable_help_subcommand = true,
    disable_help_flag = true,
    arg_required_else_help = true,
    after_help = "The engine itself is `whelk daemon`; `whelk oci` is a runtime for other engines, `whelk registry` a registry. Each has a --help of its own."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    flags: RootFlags,
    /// Print help
    // No short form: -h is `run`'s host name.
    #[arg(long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Print version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
enum Command {
    /// Create and run a new container from an image
    Run(container::run::RunArgs),
    #[command(flatten)]
    Container(container::ContainerCommand),
    /// List containers
    Ps(container::ps::PsArgs),
    #[command(flatten)]
    Image(image::ImageCommand),
    /// List images
    Images(image::ls::ImagesArgs),
    /// Remove one or more images
    Rmi(image::rm::RmiArgs),
    /// Build an image from a Dockerfile
    #[command(
        after_help = "The caches of steps (RUN --mount=type=cache) have commands of their own: `whelk build cache ls|export|import|rm`."
    )]
    Build(build::BuildArgs),
    /// Build from a file
    Bake(bake::BakeArgs),
    #[command(flatten)]
    Registry(registry::RegistryCommand),
    #[command(flatten)]
    System(system::SystemCommand),
    /// Manage builds
    #[command(name = "builder")]
    BuilderGroup(builder::Group<builder::BuilderCommand>),
    /// Build with BuildKit's features
    #[command(name = "buildx")]
    BuildxGroup(builder::Group<builder::BuildxCommand>),
    /// Manage containers
    #[command(name = "container", subcommand)]
    ContainerGroup(container::ContainerGroup),
    /// Manage images
    #[command(name = "image", subcommand)]
    ImageGroup(image::ImageGroup),
    /// Manage networks
    #[command(name = "network", subcommand)]
    NetworkGroup(network::NetworkCommand),
    /// Manage volumes
    #[command(name = "volume", subcommand)]
    VolumeGroup(volume::VolumeCommand),
    /// Manage Docker image manifests and manifest lists
    #[command(name = "manifest", subcommand)]
    ManifestGroup(manifest::ManifestCommand),
    /// Manage contexts
    #[command(name = "context", subcommand)]
    ContextGroup(context::ContextCommand),
    /// Manage checkpoints
    #[command(name = "checkpoint", subcommand)]
    CheckpointGroup(checkpoint::CheckpointCommand),
    /// Manage trust on Docker images
    #[command(name = "trust", subcommand)]
    TrustGroup(trust::TrustCommand),
    /// Manage the engine
    #[command(name = "system", subcommand)]
    SystemGroup(system::SystemGroup),
    /// Return low-level information on objects
    Inspect(inspect::InspectArgs),
    /// Show the version information
    Version(version::FormatArgs),
    /// Print a completion script for a shell
    Completion {
        /// bash, zsh or fish
        shell: String,
    },
    /// Print completions for the end of a command line
    #[command(name = "__complete", hide = true)]
    Complete { line: String },
    /// Execute a program in a session of its own
    #[command(name = crate::ssh::SESSION, hide = true)]
    Session {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

impl Command {
    /// Whether the command talks to no engine.
    fn is_offline(&self) -> bool {
        match self {
            Self::Bake(args) => args.is_offline(),
            Self::BuildxGroup(group) => group.is_offline(),
            _ => false,
        }
    }
}

/// Exit code for errors in flags.
pub(crate) const USAGE: u8 = 125;

/// Returns the definitions of all commands.
pub(crate) fn definitions() -> clap::Command {
    usage::tree()
}

/// Runs the command line of this process.
pub(crate) fn run(repair: crate::Repair) -> Outcome {
    let words = std::env::args_os()
        .skip(1)
        .map(OsString::into_string)
        .collect::<Result<Vec<_>, _>>();
    let words = words.map_err(|word| {
        Failure::with_code(
            USAGE,
            format!("the argument {} is not valid UTF-8", word.display()),
        )
    })?;
    let words = builder::with_cache_group(words);
    let commands = usage::named_by(&words);
    let words = match flags::read(&commands, &words) {
        Ok(Line::Words(words)) => words,
        Ok(Line::Help {
            path,
            deprecated_shorthand,
        }) => return usage::help::help(&usage::tree(), &path, deprecated_shorthand),
        Err(mistake) => return Err(usage::mistakes::explain(&usage::tree(), mistake)),
    };
    let path: Vec<String> = usage::path_of(&commands, &words);
    let matches = commands.try_get_matches_from(std::iter::once("whelk".to_owned()).chain(words));
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => return output::print(&error.to_string()).map(|()| 0),
        Err(error) => return Err(Failure::with_code(USAGE, error.to_string())),
    };
    carry_out(cli, repair).map_err(|failure| usage::mistakes::with_trailer(&path, failure))
}

fn carry_out(cli: Cli, repair: crate::Repair) -> Outcome {
    let debug = cli.flags.debug()?;
    match cli.command {
        Command::Completion { shell } => return completion::script(&shell),
        Command::Complete { line } => return completion::complete(&line),
        Command::Session { words } => return Err(crate::ssh::execute_in_session(&words)),
        Command::ContextGroup(command) => return context::group(&cli.flags, command),
        Command::TrustGroup(command) => return trust::group(command),
        Command::SystemGroup(system::SystemGroup::Repair(args)) => {
            return system::repair::repair(args, repair);
        }
        Command::Registry(registry::RegistryCommand::Logout(args)) => {
            return registry::logout(cli.flags.config().as_deref(), &args);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if let Command::ManifestGroup(command) = cli.command {
        let config = cli.flags.config();
        return runtime.block_on(manifest::group(config.as_deref(), command));
    }
    let outcome = runtime.block_on(async {
        let Endpoint {
            host,
            tls,
            context,
            is_default,
        } = cli.flags.endpoint()?;
        let mut client = Client::new(host, tls, context, debug).with_config(cli.flags.config())?;
        let unreachable = |failure: Failure| match cli.command {
            Command::Run(_) | Command::ContainerGroup(container::ContainerGroup::Run(_)) => {
                container::run::not_run(&failure.text)
            }
            _ => failure,
        };
        let is_offline = cli.command.is_offline();
        // `version` also works without an engine, and does not start one.
        if is_default && !is_offline && !matches!(cli.command, Command::Version(_)) {
            autostart::ensure(&client).await.map_err(unreachable)?;
        }
        if is_offline {
            return dispatch(&client, cli.command).await;
        }
        match client.find_remote_program().await {
            // Prints the client's part, and then the error.
            Err(_) if matches!(cli.command, Command::Version(_)) => {}
            found => found.map_err(|error| unreachable(error.into()))?,
        }
        dispatch(&client, cli.command).await
    });
    // A pending read of standard input must not keep the process alive.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(client: &Client, command: Command) -> Outcome {
    match command {
        Command::Run(args) => container::run::run(client, args).await,
        Command::Container(command) => container::command(client, command).await,
        Command::ContainerGroup(command) => container::group(client, command).await,
        Command::Image(command) => image::command(client, command).await,
        Command::Ps(args) => container::ps::ps(client, args).await,
        Command::Images(args) => image::ls::images(client, args).await,
        Command::Rmi(args) => image::rm::rmi(client, args).await,
        Command::ImageGroup(command) => image::group(client, command).await,
        Command::CheckpointGroup(command) => checkpoint::group(client, command).await,
        Command::NetworkGroup(command) => network::group(client, command).await,
        Command::VolumeGroup(command) => volume::group(client, command).await,
        Command::Build(args) => build::build(client, args).await,
        Command::Bake(args) => bake::bake(client, args).await,
        Command::BuilderGroup(group) => builder::builder(client, group).await,
        Command::BuildxGroup(group) => builder::buildx(client, group).await,
        Command::Registry(command) => registry::command(client, command).await,
        Command::System(command) => system::command(client, command).await,
        Command::SystemGroup(command) => system::group(client, command).await,
        Command::Inspect(args) => inspect::inspect(client, args).await,
        Command::Version(args) => version::version(client, args).await,
        // Done without an engine by `carry_out`.
        Command::ContextGroup(_)
        | Command::ManifestGroup(_)
        | Command::TrustGroup(_)
        | Command::Completion { .. }
        | Command::Complete { .. }
        | Command::Session { .. } => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
