//! The commands of images, one file each.

mod history;
mod import;
mod inspect;
mod load;
pub(super) mod ls;
pub(crate) mod platform;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rm;
mod save;
mod tag;
mod tree;

pub(crate) use tag::is_about_grammar;

use clap::Subcommand;

use crate::Outcome;
use crate::client::Client;
use crate::commands::build::BuildArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(tag::TagArgs),
    /// Show the history of an image
    History(history::HistoryArgs),
    /// Download an image from a registry
    Pull(pull::PullArgs),
    /// Upload an image to a registry
    Push(push::PushArgs),
    /// Load an image from a tar archive or STDIN
    Load(load::LoadArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    Save(save::SaveArgs),
    /// Import the contents from a tarball to create a filesystem image
    Import(import::ImportArgs),
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "one value in the life of the process"
)]
pub(crate) enum ImageGroup {
    /// Build an image from a Dockerfile
    Build(BuildArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ls::ImagesArgs),
    /// Remove one or more images
    #[command(visible_alias = "remove")]
    Rm(rm::RmiArgs),
    /// Display detailed information on one or more images
    Inspect(inspect::InspectArgs),
    /// Remove unused images
    Prune(prune::PruneArgs),
    #[command(flatten)]
    Other(ImageCommand),
}

/// Runs a command that `whelk` and `whelk image` have.
pub(crate) async fn command(client: &Client, command: ImageCommand) -> Outcome {
    match command {
        ImageCommand::Tag(args) => tag::tag(client, args).await,
        ImageCommand::History(args) => history::history(client, args).await,
        ImageCommand::Pull(args) => pull::pull(client, args).await,
        ImageCommand::Push(args) => push::push(client, args).await,
        ImageCommand::Load(args) => load::load(client, args).await,
        ImageCommand::Save(args) => save::save(client, args).await,
        ImageCommand::Import(args) => import::import(client, args).await,
    }
}

/// Runs a command of `whelk image`.
pub(crate) async fn group(client: &Client, group: ImageGroup) -> Outcome {
    match group {
        ImageGroup::Build(args) => super::build::build(client, args).await,
        ImageGroup::Ls(args) => ls::images(client, args).await,
        ImageGroup::Rm(args) => rm::rmi(client, args).await,
        ImageGroup::Inspect(args) => super::inspect::inspect(client, args).await,
        ImageGroup::Prune(args) => prune::prune(client, args).await,
        ImageGroup::Other(other) => command(client, other).await,
    }
}
