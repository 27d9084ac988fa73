//! The commands of the builder, which is the engine, and of its cache: `builder` and `buildx`.

mod cache;
mod du;
pub(crate) mod history;
mod imagetools;
mod inspect;
mod ls;
mod prune;

use clap::{Args, Subcommand};
use whelk_buildkit::grpc::Channel;
use whelk_buildkit::pb::Unused;
use whelk_buildkit::pb::control::{ListWorkersResponse, WorkerRecord};

use crate::client::Client;
use crate::commands::bake::{self, BakeArgs};
use crate::commands::build::{self, BuildArgs, options::one_builder};
use crate::output::print_line;
use crate::{Failure, Outcome};

/// Flags of all commands of builders.
#[derive(Debug, Args)]
pub(crate) struct BuilderFlags {
    /// Override the configured builder instance; there is one, `default`
    #[arg(long, default_value = "", hide_default_value = true)]
    builder: String,
    /// Enable debug logging
    #[arg(short = 'D', long)]
    debug: bool,
}

impl BuilderFlags {
    /// Returns the flags of a build, with those of its group.
    fn of(&self, args: BuildArgs) -> BuildArgs {
        BuildArgs {
            debug: args.debug || self.debug,
            ..args
        }
    }
}

/// A group's flags and its command.
#[derive(Debug, Args)]
pub(crate) struct Group<C: Subcommand> {
    #[command(flatten)]
    flags: BuilderFlags,
    #[command(subcommand)]
    command: C,
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
pub(crate) enum BuilderCommand {
    /// Start a build
    Build(BuildArgs),
    /// List, export and import the caches of steps (`RUN --mount=type=cache`)
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Remove build cache
    Prune(prune::PruneArgs),
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
pub(crate) enum BuildxCommand {
    /// Build from a file
    #[command(visible_alias = "f")]
    Bake(BakeArgs),
    /// Start a build
    #[command(visible_alias = "b")]
    Build(BuildArgs),
    /// Disk usage
    Du(du::DuArgs),
    /// Commands to work on build records
    History(history::History),
    /// Commands to work on images in registry
    Imagetools(imagetools::Imagetools),
    /// Inspect current builder instance
    Inspect(inspect::InspectArgs),
    /// List builder instances
    Ls(ls::LsArgs),
    /// Remove build cache
    Prune(prune::PruneArgs),
    /// Show the version of the client
    Version,
}

impl Group<BuildxCommand> {
    /// Whether the command needs no engine.
    pub fn is_offline(&self) -> bool {
        match &self.command {
            BuildxCommand::Bake(args) => args.is_offline(),
            BuildxCommand::Imagetools(_) | BuildxCommand::Version => true,
            _ => false,
        }
    }
}

/// Flags before a command whose value is the next word.
const WITH_VALUE: [&str; 10] = [
    "-H",
    "--host",
    "-c",
    "--context",
    "--config",
    "-l",
    "--log-level",
    "--tlscacert",
    "--tlscert",
    "--tlskey",
];

/// Returns the words of a command line with `builder cache COMMAND` for `build cache COMMAND`, which would be a build of a directory
/// with too many arguments, and for `build cache --help`.
pub(crate) fn with_cache_group(mut words: Vec<String>) -> Vec<String> {
    let mut at = 0;
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
        at += if WITH_VALUE.contains(&word.as_str()) {
            2
        } else {
            1
        };
    }
    let rest: Vec<&str> = words.iter().skip(at).take(3).map(String::as_str).collect();
    if let ["build", "cache", command] = rest.as_slice()
        && (!command.starts_with('-') || *command == "--help")
    {
        words[at] = "builder".into();
    }
    words
}

/// Runs a command of `whelk builder`.
pub(crate) async fn builder(client: &Client, group: Group<BuilderCommand>) -> Outcome {
    one_builder(client, &group.flags.builder)?;
    match group.command {
        BuilderCommand::Build(args) => build::build(client, group.flags.of(args)).await,
        BuilderCommand::Cache(command) => cache::cache(client, command).await,
        BuilderCommand::Prune(args) => prune::prune(client, args).await,
    }
}

/// Runs a command of `whelk buildx`.
pub(crate) async fn buildx(client: &Client, group: Group<BuildxCommand>) -> Outcome {
    one_builder(client, &group.flags.builder)?;
    match group.command {
        BuildxCommand::Bake(args) => bake::bake(client, args).await,
        BuildxCommand::Build(args) => build::build(client, group.flags.of(args)).await,
        BuildxCommand::Du(args) => du::du(client, args).await,
        BuildxCommand::History(args) => history::history(client, args).await,
        BuildxCommand::Imagetools(args) => imagetools::imagetools(client, args).await,
        BuildxCommand::Inspect(args) => inspect::inspect(client, args).await,
        BuildxCommand::Ls(args) => ls::ls(client, args).await,
        BuildxCommand::Prune(args) => prune::prune(client, args).await,
        BuildxCommand::Version => {
            let commit = Some(whelk_text::build::COMMIT).filter(|commit| !commit.is_empty());
            print_line!(
                "whelk {} {}",
                env!("CARGO_PKG_VERSION"),
                commit.unwrap_or("unknown")
            )?;
            Ok(0)
        }
    }
}

/// Asks for the engine as a builder.
async fn worker(client: &Client) -> Outcome<WorkerRecord> {
    worker_of(&build::connect(client).await?).await
}

/// Returns the address that `host-gateway` stands for in `--add-host`.
///
/// # Errors
/// Returns an error if the engine does not tell one.
pub(crate) async fn host_gateway(channel: &Channel) -> Outcome<String> {
    const LABEL: &str = "org.mobyproject.buildkit.worker.moby.host-gateway-ip";
    let mut worker = worker_of(channel).await?;
    let address = worker.labels.remove(LABEL);
    address.ok_or_else(|| Failure::new("unable to derive the IP value for host-gateway"))
}

async fn worker_of(channel: &Channel) -> Outcome<WorkerRecord> {
    let answer: ListWorkersResponse = channel
        .unary("moby.buildkit.v1.Control/ListWorkers", &Unused {})
        .await
        .map_err(|status| Failure::new(status.message))?;
    answer
        .record
        .into_iter()
        .next()
        .ok_or_else(|| Failure::new("the engine has no builder"))
}

fn platforms(worker: &WorkerRecord) -> String {
    let all = worker.platforms.iter().map(|platform| {
        let parts = [&platform.os, &platform.architecture, &platform.variant];
        let parts = parts.map(String::as_str);
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("/")
    });
    all.collect::<Vec<_>>().join(", ")
}

fn version(worker: &WorkerRecord) -> String {
    let version = worker.buildkit_version.clone();
    version.unwrap_or_default().version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_with_a_value_are_known() {
        let tree = crate::definitions();
        let mut defined: Vec<String> = tree
            .get_arguments()
            .filter(|flag| flag.get_action().takes_values() && !flag.is_require_equals_set())
            .flat_map(|flag| {
                let short = flag.get_short().map(|short| format!("-{short}"));
                short
                    .into_iter()
                    .chain(flag.get_long().map(|long| format!("--{long}")))
            })
            .collect();
        let mut known: Vec<String> = WITH_VALUE.iter().map(ToString::to_string).collect();
        defined.sort();
        known.sort();
        assert_eq!(defined, known);
    }

    #[test]
    fn caches_of_steps_are_below_build() {
        for (line, expected) in [
            ("build cache ls", "builder cache ls"),
            (
                "-H x --debug build cache export y",
                "-H x --debug builder cache export y",
            ),
            ("build cache", "build cache"),
            ("build cache other", "builder cache other"),
            ("build cache --push", "build cache --push"),
            ("build cache --help", "builder cache --help"),
            ("run build cache ls", "run build cache ls"),
            ("-H build cache ls", "-H build cache ls"),
        ] {
            let words = line.split(' ').map(str::to_owned).collect();
            assert_eq!(with_cache_group(words).join(" "), expected);
        }
    }
}
