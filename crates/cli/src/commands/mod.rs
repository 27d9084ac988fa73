//! The command tree: subcommands, their flags, and their dispatch.

mod attach;
mod completion;
mod containers;
mod create;
mod destination;
mod df;
mod events;
mod exec;
mod images;
mod info;
mod inspect;
mod logs;
mod messages;
mod mounts;
mod networking;
mod networks;
mod ports;
mod prune;
mod ps;
mod repair;
mod run;
mod usage;
mod version;
mod volumes;

use std::ffi::OsString;

use clap::{Args, FromArgMatches, Parser, Subcommand};
use serde_json::Value;

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
    after_help = "The engine itself is `whelk daemon`; `whelk oci` is a runtime for other engines. Both have a --help of their own."
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
    Run(run::RunArgs),
    #[command(flatten)]
    Container(ContainerCommand),
    #[command(flatten)]
    Image(ImageCommand),
    #[command(flatten)]
    System(SystemCommand),
    /// Manage containers
    #[command(name = "container", subcommand)]
    ContainerGroup(ContainerGroup),
    /// Manage images
    #[command(name = "image", subcommand)]
    ImageGroup(ImageGroup),
    /// Manage networks
    #[command(name = "network", subcommand)]
    NetworkGroup(networks::NetworkCommand),
    /// Manage volumes
    #[command(name = "volume", subcommand)]
    VolumeGroup(volumes::VolumeCommand),
    /// Manage the engine
    #[command(name = "system", subcommand)]
    SystemGroup(SystemGroup),
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
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
enum ContainerCommand {
    /// Create a new container
    Create(create::CreateContainerArgs),
    /// Start one or more stopped containers
    Start(containers::StartArgs),
    /// Stop one or more running containers
    Stop(containers::StopArgs),
    /// Restart one or more containers
    Restart(containers::StopArgs),
    /// Kill one or more running containers
    Kill(containers::KillArgs),
    /// Remove one or more containers
    #[command(alias = "remove")]
    Rm(containers::RmArgs),
    /// List containers
    Ps(ps::PsArgs),
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
    Port(ports::PortArgs),
    /// Display the running processes of a container
    Top(containers::TopArgs),
    /// Rename a container
    Rename { container: String, new_name: String },
    /// Update configuration of one or more containers
    Update(containers::UpdateArgs),
    /// Export a container's filesystem as a tar archive
    Export(containers::ExportArgs),
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
enum ContainerGroup {
    Run(run::RunArgs),
    /// List containers
    #[command(visible_alias = "list")]
    Ls(ps::PsArgs),
    /// Display detailed information on one or more containers
    Inspect(inspect::InspectContainerArgs),
    /// Remove all stopped containers
    Prune(prune::PruneArgs),
    #[command(flatten)]
    Other(ContainerCommand),
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List images
    Images(images::ImagesArgs),
    /// Remove one or more images
    Rmi(images::RmiArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag {
        source_image: String,
        target_image: String,
    },
    /// Show the history of an image
    History(images::HistoryArgs),
    /// Load an image from a tar archive or STDIN
    Load(images::LoadArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(images::SaveArgs),
    /// Import the contents from a tarball to create a filesystem image
    Import(images::ImportArgs),
}

#[derive(Debug, Subcommand)]
enum ImageGroup {
    /// List images
    #[command(visible_alias = "list")]
    Ls(images::ImagesArgs),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(images::RmiArgs),
    /// Display detailed information on one or more images
    Inspect(inspect::InspectImageArgs),
    /// Remove unused images
    Prune(prune::PruneArgs),
    #[command(flatten)]
    Other(ImageCommand),
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    /// Get real time events from the server
    Events(events::EventsArgs),
    /// Display system-wide information
    Info(version::FormatArgs),
}

#[derive(Debug, Subcommand)]
enum SystemGroup {
    /// Show disk usage
    Df(df::DfArgs),
    /// Remove unused data
    Prune(prune::PruneAllArgs),
    /// Rebuild the records of a stopped engine from its data directory
    Repair(repair::RepairArgs),
    #[command(flatten)]
    Other(SystemCommand),
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Exit code for errors in flags.
const USAGE: u8 = 125;

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
    let commands = usage::named_by(&words);
    let words = match flags::read(&commands, &words) {
        Ok(Line::Words(words)) => words,
        Ok(Line::Help {
            path,
            deprecated_shorthand,
        }) => return usage::help(&usage::tree(), &path, deprecated_shorthand),
        Err(mistake) => return Err(usage::explain(&usage::tree(), mistake)),
    };
    let path: Vec<String> = usage::path_of(&commands, &words);
    let matches = commands.try_get_matches_from(std::iter::once("whelk".to_owned()).chain(words));
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => return output::print(&error.to_string()).map(|()| 0),
        Err(error) => return Err(Failure::with_code(USAGE, error.to_string())),
    };
    carry_out(cli, repair).map_err(|failure| usage::with_trailer(&path, failure))
}

fn carry_out(cli: Cli, repair: crate::Repair) -> Outcome {
    let debug = cli.flags.debug()?;
    match cli.command {
        Command::Completion { shell } => return completion::script(&shell),
        Command::Complete { line } => return completion::complete(&line),
        Command::SystemGroup(SystemGroup::Repair(args)) => return repair::repair(args, repair),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let Endpoint {
            host,
            tls,
            context,
            is_default,
        } = cli.flags.endpoint()?;
        let client = Client::new(host, tls, context, debug);
        // `version` also works without an engine, and does not start one.
        if is_default && !matches!(cli.command, Command::Version(_)) {
            autostart::ensure(&client).await?;
        }
        dispatch(&client, cli.command).await
    });
    // A pending read of standard input must not keep the process alive.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(client: &Client, command: Command) -> Outcome {
    match command {
        Command::Run(args) | Command::ContainerGroup(ContainerGroup::Run(args)) => {
            run::run(client, args).await
        }
        Command::Container(command) | Command::ContainerGroup(ContainerGroup::Other(command)) => {
            container(client, command).await
        }
        Command::ContainerGroup(ContainerGroup::Ls(args)) => ps::ps(client, args).await,
        Command::ContainerGroup(ContainerGroup::Inspect(args)) => {
            inspect::inspect(client, args).await
        }
        Command::ContainerGroup(ContainerGroup::Prune(args)) => {
            prune::prune(client, args, "containers").await
        }
        Command::Image(command) | Command::ImageGroup(ImageGroup::Other(command)) => {
            image(client, command).await
        }
        Command::ImageGroup(ImageGroup::Ls(args)) => images::images(client, args).await,
        Command::ImageGroup(ImageGroup::Rm(args)) => images::rmi(client, args).await,
        Command::ImageGroup(ImageGroup::Inspect(args)) => inspect::inspect(client, args).await,
        Command::ImageGroup(ImageGroup::Prune(args)) => prune::prune(client, args, "images").await,
        Command::NetworkGroup(command) => networks::network(client, command).await,
        Command::VolumeGroup(command) => volumes::volume(client, command).await,
        Command::SystemGroup(SystemGroup::Prune(args)) => prune::prune_all(client, args).await,
        Command::SystemGroup(SystemGroup::Df(args)) => df::df(client, args).await,
        Command::System(command) | Command::SystemGroup(SystemGroup::Other(command)) => {
            match command {
                SystemCommand::Events(args) => events::events(client, args).await,
                SystemCommand::Info(args) => info::info(client, args).await,
            }
        }
        Command::Inspect(args) => inspect::inspect(client, args).await,
        Command::Version(args) => version::version(client, args).await,
        Command::Completion { .. }
        | Command::Complete { .. }
        | Command::SystemGroup(SystemGroup::Repair(_)) => Ok(0),
    }
}

async fn container(client: &Client, command: ContainerCommand) -> Outcome {
    match command {
        ContainerCommand::Create(args) => create::create(client, args).await,
        ContainerCommand::Start(args) => containers::start(client, args).await,
        ContainerCommand::Stop(args) => containers::stop(client, args, "stop").await,
        ContainerCommand::Restart(args) => containers::stop(client, args, "restart").await,
        ContainerCommand::Kill(args) => containers::kill(client, args).await,
        ContainerCommand::Rm(args) => containers::rm(client, args).await,
        ContainerCommand::Ps(args) => ps::ps(client, args).await,
        ContainerCommand::Logs(args) => logs::logs(client, args).await,
        ContainerCommand::Exec(args) => exec::exec(client, args).await,
        ContainerCommand::Attach(args) => attach::attach(client, args).await,
        ContainerCommand::Wait(names) => containers::wait(client, names).await,
        ContainerCommand::Pause(names) => {
            containers::each(client, &names.containers, "pause").await
        }
        ContainerCommand::Unpause(names) => {
            containers::each(client, &names.containers, "unpause").await
        }
        ContainerCommand::Port(args) => ports::port(client, args).await,
        ContainerCommand::Top(args) => containers::top(client, args).await,
        ContainerCommand::Rename {
            container,
            new_name,
        } => containers::rename(client, &container, &new_name).await,
        ContainerCommand::Update(args) => containers::update(client, args).await,
        ContainerCommand::Export(args) => containers::export(client, args).await,
    }
}

async fn image(client: &Client, command: ImageCommand) -> Outcome {
    match command {
        ImageCommand::Images(args) => images::images(client, args).await,
        ImageCommand::Rmi(args) => images::rmi(client, args).await,
        ImageCommand::Tag {
            source_image,
            target_image,
        } => images::tag(client, &source_image, &target_image).await,
        ImageCommand::History(args) => images::history(client, args).await,
        ImageCommand::Load(args) => images::load(client, args).await,
        ImageCommand::Save(args) => images::save(client, args).await,
        ImageCommand::Import(args) => images::import(client, args).await,
    }
}

/// Rejects flags of Docker's CLI that this version does not support.
pub(crate) fn not_available(flags: &[(&str, bool)], what: &str) -> Outcome<()> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::new(format!(
            "{flag}: {what} not available in this version of whelk"
        ))),
        None => Ok(()),
    }
}

/// Encodes `key=value` filters of the flag `-f, --filter` as the API's JSON; empty if there are
/// none.
pub(crate) fn filters(given: &[String]) -> Outcome<String> {
    filters_of(given, "-f, --filter")
}

/// Encodes the filters of a command whose flag has no short form.
pub(crate) fn prune_filters(given: &[String]) -> Outcome<String> {
    filters_of(given, "--filter")
}

fn filters_of(given: &[String], flag: &str) -> Outcome<String> {
    let mut map = serde_json::Map::new();
    for filter in given.iter().filter(|filter| !filter.is_empty()) {
        let Some((key, value)) = filter.split_once('=') else {
            return Err(Failure::with_code(
                USAGE,
                format!(
                    "invalid argument {filter:?} for {flag:?} flag: bad format of filter (expected name=value)"
                ),
            ));
        };
        map.entry(key.trim().to_lowercase())
            .or_insert_with(|| Value::Array(Vec::new()))
            .as_array_mut()
            .map(|list| list.push(Value::from(value.trim())))
            .unwrap_or_default();
    }
    Ok(if map.is_empty() {
        String::new()
    } else {
        Value::Object(map).to_string()
    })
}

/// Parses `key=value` options. A key without a value gets an empty value, as in Docker; the engine
/// rejects those that need one.
pub(crate) fn key_values(given: &[String]) -> serde_json::Map<String, Value> {
    given
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .map(|(key, value)| (key.to_owned(), Value::from(value)))
        .collect()
}

/// Parses `key=value` labels given by `flag`. A key without a value gets an empty value.
///
/// # Errors
/// Returns an error if a key is empty or contains white space.
pub(crate) fn labels_of(given: &[String], flag: &str) -> Outcome<serde_json::Map<String, Value>> {
    given
        .iter()
        .map(|entry| {
            let wrong = |text: String| {
                Err(Failure::with_code(
                    USAGE,
                    format!("invalid argument {entry:?} for \"{flag}\" flag: {text}"),
                ))
            };
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            match key.trim_start() {
                "" => wrong(format!("invalid label '{entry}': empty name")),
                key if key.contains(char::is_whitespace) => {
                    wrong(format!("label '{key}' contains whitespaces"))
                }
                key => Ok((key.to_owned(), Value::from(value))),
            }
        })
        .collect()
}

/// Asks for confirmation of a removal. Returns `false` without a terminal.
pub(crate) fn confirmed(what: &str) -> bool {
    asked(&format!(
        "WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] "
    ))
}

/// Asks a yes/no question. Returns `false` without a terminal.
pub(crate) fn asked(question: &str) -> bool {
    use std::io::IsTerminal;
    output::warn(question);
    let mut answer = String::new();
    std::io::stdin().is_terminal()
        && std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y")
}

/// Runs `action` for each name, continuing after errors. Returns all errors at the end, or at once
/// if the output has no reader any more.
pub(crate) async fn for_each<F: AsyncFnMut(&str) -> Outcome<()>>(
    names: &[String],
    mut action: F,
) -> Outcome {
    let (mut failures, mut unwritten) = (Vec::new(), false);
    for name in names {
        if let Err(failure) = action(name).await {
            if failure.is_closed_pipe() {
                return Err(failure);
            }
            // Reported once, because it is the same for all names.
            if !(failure.is_unwritten && unwritten) {
                unwritten |= failure.is_unwritten;
                failures.push(failure.text);
            }
        }
    }
    failures_of(&failures)
}

/// Returns the outcome of a command whose parts failed with these errors.
pub(crate) fn failures_of(failures: &[String]) -> Outcome {
    if failures.is_empty() {
        Ok(0)
    } else {
        Err(Failure::new(failures.join("\n")))
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
