//! `buildx imagetools`: shows images of registries, and makes new ones of them there. These commands talk to registries
//! directly and need no engine.

mod combine;
mod copy;
mod create;
mod filter;
mod inspect;
mod source;
mod template;
mod wire;

use clap::{Args, Subcommand};
use whelk_image::Reference;
use whelk_registry::Document;

use super::BuilderFlags;
use crate::client::Client;
use crate::commands::build::options::one_builder;
use crate::commands::manifest::remote::{Remote, version};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct Imagetools {
    #[command(flatten)]
    flags: BuilderFlags,
    #[command(subcommand)]
    command: ImagetoolsCommand,
}

#[derive(Debug, Subcommand)]
enum ImagetoolsCommand {
    /// Create a new image based on source images
    Create(create::CreateArgs),
    /// Show details of an image in the registry
    Inspect(inspect::InspectArgs),
}

/// Runs a command of `whelk buildx imagetools`.
pub(super) async fn imagetools(client: &Client, args: Imagetools) -> Outcome {
    let done = async {
        one_builder(client, &args.flags.builder)?;
        let config = client.config();
        let config =
            config.ok_or_else(|| Failure::new("imagetools: set HOME, or give --config"))?;
        let remote = Remote::new(config, false);
        match args.command {
            ImagetoolsCommand::Create(args) => create::create(&remote, args).await,
            ImagetoolsCommand::Inspect(args) => inspect::inspect(&remote, &args).await,
        }
    };
    done.await.map_err(|failure| match failure.is_unwritten {
        true => failure,
        false => Failure {
            text: format!("ERROR: {}", failure.text),
            hint: false,
            ..failure
        },
    })
}

/// Gets what a name stands for in a registry.
async fn document(remote: &Remote, name: &Reference) -> Outcome<Document> {
    let repository = remote.to_read(name)?;
    let found = repository.manifest(&version(name)).await;
    found.map_err(|error| match error.kind() {
        whelk_registry::Kind::NotFound => Failure::new(format!("{name}: not found")),
        _ => Failure::new(format!("{name}: {error}")),
    })
}

/// Returns the reference of another manifest in the repository of a name.
fn by_digest(name: &Reference, digest: &whelk_image::Digest) -> Reference {
    Reference {
        tag: None,
        digest: Some(digest.clone()),
        ..name.clone()
    }
}
