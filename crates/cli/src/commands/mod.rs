//! The commands, their flags, and which function carries each out.

mod attach;
mod containers;
mod create;
mod df;
mod exec;
mod images;
mod logs;
mod mounts;
mod networking;
mod networks;
mod ports;
mod ps;
mod run;
mod system;
mod volumes;

use std::ffi::OsString;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::Value;

use crate::client::{Client, Host};
use crate::{Failure, Outcome, autostart};

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
    /// Socket of the engine: unix:///PATH or tcp://HOST:PORT
    #[arg(short = 'H', long)]
    host: Option<String>,
    /// Print help
    // Long only: -h is the host name of `run`.
    #[arg(long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Print version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "one value in the life of the process")]
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
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Write manual pages into a directory
    #[command(hide = true)]
    Man { directory: std::path::PathBuf },
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "one value in the life of the process")]
enum ContainerCommand {
    /// Create a new container
    Create(create::CreateArgs),
    /// Start one or more stopped containers
    Start(containers::StartArgs),
    /// Stop one or more running containers
    Stop(containers::StopArgs),
    /// Restart one or more containers
    Restart(containers::StopArgs),
    /// Kill one or more running containers
    Kill(containers::KillArgs),
    /// Remove one or more containers
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
#[allow(clippy::large_enum_variant, reason = "one value in the life of the process")]
enum ContainerGroup {
    Run(run::RunArgs),
    /// List containers
    #[command(visible_alias = "list")]
    Ls(ps::PsArgs),
    /// Display detailed information on one or more containers
    Inspect(system::InspectArgs),
    /// Remove all stopped containers
    Prune(system::PruneArgs),
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
    Tag { source_image: String, target_image: String },
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
    Inspect(system::InspectArgs),
    /// Remove unused images
    Prune(system::PruneArgs),
    #[command(flatten)]
    Other(ImageCommand),
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    /// Return low-level information on objects
    Inspect(system::InspectArgs),
    /// Get real time events from the server
    Events(system::EventsArgs),
    /// Display system-wide information
    Info(system::FormatArgs),
    /// Show the version information
    Version(system::FormatArgs),
}

#[derive(Debug, Subcommand)]
enum SystemGroup {
    /// Show disk usage
    Df(df::DfArgs),
    /// Remove unused data
    Prune(system::PruneAllArgs),
    #[command(flatten)]
    Other(SystemCommand),
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Docker's commands that are to come.
const NOT_YET: &[&str] = &[
    "build",
    "builder",
    "buildx",
    "commit",
    "compose",
    "config",
    "context",
    "cp",
    "diff",
    "login",
    "logout",
    "manifest",
    "node",
    "plugin",
    "checkpoint",
    "pull",
    "push",
    "search",
    "secret",
    "service",
    "stack",
    "stats",
    "swarm",
    "trust",
];

/// The code for mistakes in flags.
const USAGE: u8 = 125;

pub(crate) fn run() -> Outcome {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|word| word == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "whelk", &mut script);
            return std::io::Write::write_all(&mut std::io::stdout(), &script).map(|()| 0).map_err(Into::into);
        }
        Command::Man { directory } => return clap_mangen::generate_to(Cli::command(), directory).map(|()| 0).map_err(Into::into),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (host, is_default) = Host::choose(cli.host.as_deref())?;
        let client = Client::new(host);
        if is_default {
            autostart::ensure(&client).await?;
        }
        dispatch(&client, cli.command).await
    });
    // A read of standard input that is still under way must not keep the command alive.
    runtime.shutdown_background();
    outcome
}

/// Mistakes in flags in the words that users of Docker know.
fn usage(error: &clap::Error) -> Outcome {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if !error.use_stderr() {
        let _ = error.print();
        return Ok(0);
    }
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(list)) => list.join(" "),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    let flag = argument.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let value = context(ContextKind::InvalidValue);
    let words: Vec<String> = typed_words().skip(1).take_while(|word| !word.starts_with('-')).collect();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = std::io::Write::write_all(&mut std::io::stdout(), error.render().to_string().as_bytes());
        return Ok(0);
    }
    if error.kind() == ErrorKind::UnknownArgument && flag == "-h" {
        eprintln!("Flag shorthand -h has been deprecated, use --help");
        let arguments = ["whelk"].into_iter().chain(words.iter().map(String::as_str)).chain(["--help"]);
        return Cli::try_parse_from(arguments).map_or_else(|help| usage(&help), |_| Ok(0));
    }
    let grouped = words.first().is_some_and(|word| Cli::command().find_subcommand(word).is_some_and(clap::Command::has_subcommands));
    let command = words.iter().take(1 + usize::from(grouped)).cloned().collect::<Vec<_>>().join(" ");
    let hint = format!("\n\n{}\n\nRun 'whelk {command} --help' for more information", usage_of(&command));
    let count = || Failure::new(format!("whelk: 'whelk {command}' {}{hint}", arguments_of(&command)));
    let text = match error.kind() {
        ErrorKind::UnknownArgument if !flag.starts_with('-') => return Err(count()),
        ErrorKind::UnknownArgument => unknown_flag(&flag),
        ErrorKind::InvalidValue if value.is_empty() => needs_argument(&flag),
        ErrorKind::InvalidValue if flag.starts_with('<') => {
            let known = context(ContextKind::ValidValue).replace(' ', ", ");
            return Err(Failure::new(format!("whelk: {command}: {value:?} is none of {known}")));
        }
        ErrorKind::InvalidValue if context(ContextKind::ValidValue) == "true false" => format!(
            "invalid argument {value:?} for {:?} flag: strconv.ParseBool: parsing {value:?}: invalid syntax",
            both_forms(&words, &flag)
        ),
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => format!(
            "invalid argument {value:?} for {:?} flag: strconv.ParseInt: parsing {value:?}: invalid syntax",
            both_forms(&words, &flag)
        ),
        ErrorKind::MissingRequiredArgument | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => return Err(count()),
        ErrorKind::InvalidSubcommand if command.split(' ').any(|word| NOT_YET.contains(&word)) => {
            let hint = if matches!(command.as_str(), "pull" | "push" | "login") { "; images come in by load and import" } else { "" };
            return Err(Failure::new(format!("whelk: {command}: not available in this version of whelk{hint}")));
        }
        ErrorKind::InvalidSubcommand => {
            return Err(Failure::new(format!("whelk: unknown command: whelk {command}\n\nRun 'whelk --help' for more information")));
        }
        _ => {
            let _ = error.print();
            return Ok(USAGE);
        }
    };
    Err(Failure::with_code(USAGE, format!("{text}{hint}")))
}

/// How a command is used, in one line.
fn usage_of(command: &str) -> String {
    let mut whole = Cli::command();
    whole.build();
    let found = command.split(' ').try_fold(&mut whole, |command, word| command.find_subcommand_mut(word));
    found.map_or_else(|| "Usage: whelk [OPTIONS] COMMAND".to_owned(), |command| command.render_usage().to_string().trim().to_owned())
}

/// The words of the command line, as far as they can be read.
fn typed_words() -> impl Iterator<Item = String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned())
}

/// A flag as it is told: `-t, --timeout`, or its long form alone.
fn both_forms(words: &[String], flag: &str) -> String {
    let mut command = Cli::command();
    for word in words {
        match command.find_subcommand(word) {
            Some(next) => command = next.clone(),
            None => break,
        }
    }
    let short = command
        .get_arguments()
        .find(|argument| argument.get_long().is_some_and(|long| flag == format!("--{long}")))
        .and_then(clap::Arg::get_short);
    short.map_or_else(|| flag.to_owned(), |short| format!("-{short}, {flag}"))
}

/// How many arguments a command takes, as it is told to those who gave another number.
fn arguments_of(command: &str) -> &'static str {
    match command {
        "network connect" | "network disconnect" | "volume clone" => return "requires 2 arguments",
        "volume import" | "volume snapshot" => return "requires at least 1 and at most 2 arguments",
        "network create" => return "requires 1 argument",
        "volume create" => return "requires at most 1 argument",
        "network ls" | "volume ls" | "system df" => return "accepts no arguments",
        _ => {}
    }
    match command.rsplit(' ').next().unwrap_or_default() {
        "exec" => "requires at least 2 arguments",
        "port" => "requires at least 1 and at most 2 arguments",
        "rename" | "tag" => "requires 2 arguments",
        "logs" | "attach" | "export" | "history" => "requires 1 argument",
        "images" | "ls" => "requires at most 1 argument",
        "ps" | "load" | "info" | "version" | "events" | "prune" => "accepts no arguments",
        _ => "requires at least 1 argument",
    }
}

/// A flag that does not exist.
pub(crate) fn unknown_flag(flag: &str) -> String {
    match flag.strip_prefix('-').filter(|rest| !rest.starts_with('-')).and_then(|rest| rest.chars().next()) {
        Some(letter) => format!("unknown shorthand flag: '{letter}' in {flag}"),
        None => format!("unknown flag: {flag}"),
    }
}

fn needs_argument(flag: &str) -> String {
    // The parser names both forms of a flag; the one that was typed is told.
    let typed = typed_words().find(|word| {
        word.split('=').next() == Some(flag)
            || word.starts_with('-') && !word.starts_with("--") && flag.starts_with("--") && word.len() == 2
    });
    match typed.as_deref().and_then(|word| word.strip_prefix('-')).filter(|word| !word.starts_with('-')) {
        Some(letter) => format!("flag needs an argument: '{letter}' in -{letter}"),
        None => format!("flag needs an argument: {flag}"),
    }
}

async fn dispatch(client: &Client, command: Command) -> Outcome {
    match command {
        Command::Run(args) | Command::ContainerGroup(ContainerGroup::Run(args)) => run::run(client, args).await,
        Command::Container(command) | Command::ContainerGroup(ContainerGroup::Other(command)) => container(client, command).await,
        Command::ContainerGroup(ContainerGroup::Ls(args)) => ps::ps(client, args).await,
        Command::ContainerGroup(ContainerGroup::Inspect(args)) => system::inspect(client, args, Some("container")).await,
        Command::ContainerGroup(ContainerGroup::Prune(args)) => system::prune(client, args, "containers").await,
        Command::Image(command) | Command::ImageGroup(ImageGroup::Other(command)) => image(client, command).await,
        Command::ImageGroup(ImageGroup::Ls(args)) => images::images(client, args).await,
        Command::ImageGroup(ImageGroup::Rm(args)) => images::rmi(client, args).await,
        Command::ImageGroup(ImageGroup::Inspect(args)) => system::inspect(client, args, Some("image")).await,
        Command::ImageGroup(ImageGroup::Prune(args)) => system::prune(client, args, "images").await,
        Command::NetworkGroup(command) => networks::network(client, command).await,
        Command::VolumeGroup(command) => volumes::volume(client, command).await,
        Command::SystemGroup(SystemGroup::Prune(args)) => system::prune_all(client, args).await,
        Command::SystemGroup(SystemGroup::Df(args)) => df::df(client, args).await,
        Command::System(command) | Command::SystemGroup(SystemGroup::Other(command)) => match command {
            SystemCommand::Inspect(args) => system::inspect(client, args, None).await,
            SystemCommand::Events(args) => system::events(client, args).await,
            SystemCommand::Info(args) => system::info(client, args).await,
            SystemCommand::Version(args) => system::version(client, args).await,
        },
        Command::Completion { .. } | Command::Man { .. } => Ok(0),
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
        ContainerCommand::Pause(names) => containers::each(client, &names.containers, "pause").await,
        ContainerCommand::Unpause(names) => containers::each(client, &names.containers, "unpause").await,
        ContainerCommand::Port(args) => ports::port(client, args).await,
        ContainerCommand::Top(args) => containers::top(client, args).await,
        ContainerCommand::Rename { container, new_name } => containers::rename(client, &container, &new_name).await,
        ContainerCommand::Update(args) => containers::update(client, args).await,
        ContainerCommand::Export(args) => containers::export(client, args).await,
    }
}

async fn image(client: &Client, command: ImageCommand) -> Outcome {
    match command {
        ImageCommand::Images(args) => images::images(client, args).await,
        ImageCommand::Rmi(args) => images::rmi(client, args).await,
        ImageCommand::Tag { source_image, target_image } => images::tag(client, &source_image, &target_image).await,
        ImageCommand::History(args) => images::history(client, args).await,
        ImageCommand::Load(args) => images::load(client, args).await,
        ImageCommand::Save(args) => images::save(client, args).await,
        ImageCommand::Import(args) => images::import(client, args).await,
    }
}

/// Filters as given (`key=value`) in the API's form; an empty text for none.
pub(crate) fn filters(given: &[String]) -> Outcome<String> {
    let mut map = serde_json::Map::new();
    for filter in given {
        let Some((key, value)) = filter.split_once('=') else {
            return Err(Failure::with_code(
                USAGE,
                format!("invalid argument {filter:?} for \"-f, --filter\" flag: bad format of filter (expected name=value)"),
            ));
        };
        map.entry(key.trim().to_lowercase())
            .or_insert_with(|| Value::Array(Vec::new()))
            .as_array_mut()
            .map(|list| list.push(Value::from(value.trim())))
            .unwrap_or_default();
    }
    Ok(if map.is_empty() { String::new() } else { Value::Object(map).to_string() })
}

/// `key=value` options, each of them whole.
pub(crate) fn key_values(given: &[String]) -> Outcome<serde_json::Map<String, Value>> {
    given
        .iter()
        .map(|entry| {
            entry
                .split_once('=')
                .map(|(key, value)| (key.to_owned(), Value::from(value)))
                .ok_or_else(|| Failure::with_code(USAGE, format!("invalid option {entry:?}: key=value is needed")))
        })
        .collect()
}

/// `key=value` labels, given by `flag`; a key alone has an empty value.
///
/// # Errors
/// A key that is empty or has spaces.
pub(crate) fn labels_of(given: &[String], flag: &str) -> Outcome<serde_json::Map<String, Value>> {
    given
        .iter()
        .map(|entry| {
            let wrong = |text: String| Err(Failure::with_code(USAGE, format!("invalid argument {entry:?} for \"{flag}\" flag: {text}")));
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            match key.trim_start() {
                "" => wrong(format!("invalid label '{entry}': empty name")),
                key if key.contains(char::is_whitespace) => wrong(format!("label '{key}' contains whitespaces")),
                key => Ok((key.to_owned(), Value::from(value))),
            }
        })
        .collect()
}

/// Asks whether to go on. Where nobody can answer, the answer is no.
pub(crate) fn confirmed(what: &str) -> bool {
    asked(&format!("WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] "))
}

/// Whether the user says yes. Without a terminal nobody does.
pub(crate) fn asked(question: &str) -> bool {
    use std::io::IsTerminal;
    eprint!("{question}");
    let mut answer = String::new();
    std::io::stdin().is_terminal() && std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y")
}

/// Does something for each name; goes on after errors, and fails at the end if there was one.
pub(crate) async fn for_each<F: AsyncFnMut(&str) -> Outcome<()>>(names: &[String], mut action: F) -> Outcome {
    let mut failures = Vec::new();
    for name in names {
        if let Err(failure) = action(name).await {
            failures.push(failure.text);
        }
    }
    if failures.is_empty() { Ok(0) } else { Err(Failure::new(failures.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
