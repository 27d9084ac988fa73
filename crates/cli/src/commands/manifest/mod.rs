//! The commands of manifest lists, one file each. As in Docker's client, they connect to registries
//! directly, and store lists in files until they are pushed. They need no engine.

mod annotate;
mod create;
mod inspect;
pub(crate) mod list;
mod push;
pub(crate) mod remote;
mod rm;
mod store;

use std::path::Path;

use clap::Subcommand;
use whelk_image::Reference;

use crate::{Failure, Outcome};
use remote::Remote;
use store::ManifestStore;

#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Add additional information to a local image manifest
    Annotate(annotate::AnnotateArgs),
    /// Create a local manifest list for annotating and pushing to a registry
    Create(create::CreateManifestArgs),
    /// Display an image manifest, or manifest list
    Inspect(inspect::InspectArgs),
    /// Push a manifest list to a repository
    Push(push::PushArgs),
    /// Delete one or more manifest lists from local storage
    Rm(rm::RmArgs),
}

/// Runs a command of `whelk manifest`. `config` is the directory of the user's configuration.
pub(crate) async fn group(config: Option<&Path>, command: ManifestCommand) -> Outcome {
    let config = config.ok_or_else(|| Failure::new("manifest: set HOME, or give --config"))?;
    let store = ManifestStore::of(config);
    match command {
        ManifestCommand::Annotate(args) => annotate::annotate(&store, &args),
        ManifestCommand::Create(args) => {
            let remote = Remote::new(config, args.insecure);
            create::create(&store, &remote, &args).await
        }
        ManifestCommand::Inspect(args) => {
            let remote = Remote::new(config, args.insecure);
            inspect::inspect(&store, &remote, &args).await
        }
        ManifestCommand::Push(args) => {
            let remote = Remote::new(config, args.insecure);
            push::push(&store, &remote, &args).await
        }
        ManifestCommand::Rm(args) => rm::rm(&store, &args).await,
    }
}

/// Parses a name of an image or list, with the default tag if it has neither a tag nor a digest.
pub(crate) fn reference(name: &str) -> Outcome<Reference> {
    let reference: Reference = name
        .parse()
        .map_err(|error: whelk_image::Error| Failure::new(error.to_string()))?;
    Ok(reference.with_default_tag())
}
