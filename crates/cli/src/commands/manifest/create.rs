//! The `manifest create` command.

use clap::Args;

use super::remote::Remote;
use super::store::ManifestStore;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct CreateManifestArgs {
    /// Amend an existing manifest list
    #[arg(short, long)]
    amend: bool,
    /// Allow communication with an insecure registry
    #[arg(long)]
    pub(super) insecure: bool,
    #[arg(value_name = "MANIFEST_LIST")]
    list: String,
    #[arg(required = true, value_name = "MANIFEST")]
    manifests: Vec<String>,
}

pub(super) async fn create(
    store: &ManifestStore,
    remote: &Remote,
    args: &CreateManifestArgs,
) -> Outcome {
    let list = super::reference(&args.list).map_err(|failure| {
        Failure::new(format!(
            "error parsing name for manifest list {}: {}",
            args.list, failure.text
        ))
    })?;
    if store.list(&list)?.is_some() && !args.amend {
        return Err(Failure::new(
            "refusing to amend an existing manifest list with no --amend flag",
        ));
    }
    for image in &args.manifests {
        let image = super::reference(image)?;
        let known = store
            .get(&list, &image)?
            .filter(|known| !known.raw.is_empty());
        let manifest = match known {
            Some(known) => known,
            None => remote.manifest(&image).await?,
        };
        store.save(&list, &image, &manifest)?;
    }
    print_line!("Created manifest list {list}")?;
    Ok(0)
}
