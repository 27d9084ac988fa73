//! The `manifest inspect` command.

use clap::Args;

use super::list::{self, ImageManifest, indented};
use super::remote::{Found, Remote};
use super::store::{ManifestStore, no_such};
use crate::Outcome;
use crate::output::print;

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Allow communication with an insecure registry
    #[arg(long)]
    pub(super) insecure: bool,
    /// Output additional info including layers and platform
    #[arg(short, long)]
    verbose: bool,
    /// A local list, and a manifest in it; or a local list, or a manifest or list in a registry
    #[arg(required = true, num_args = 1..=2, value_name = "[MANIFEST_LIST] MANIFEST")]
    names: Vec<String>,
}

pub(super) async fn inspect(store: &ManifestStore, remote: &Remote, args: &InspectArgs) -> Outcome {
    let name = match args.names.as_slice() {
        [list, image] => {
            let (list, image) = (super::reference(list)?, super::reference(image)?);
            let manifest = store.get(&list, &image)?.ok_or_else(|| no_such(&image))?;
            return show_manifest(&manifest, args.verbose);
        }
        names => super::reference(names.first().map_or("", String::as_str))?,
    };
    let found = match store.list(&name)? {
        Some(manifests) => Found::List(manifests),
        None => remote.get(&name).await?,
    };
    match found {
        Found::Manifest(manifest) => show_manifest(&manifest, args.verbose),
        Found::List(manifests) if args.verbose => {
            print(&(indented(&manifests, "\t")? + "\n"))?;
            Ok(0)
        }
        Found::List(manifests) => {
            let (_, text) = list::list(&manifests, &name)?;
            print(&(text + "\n"))?;
            Ok(0)
        }
    }
}

fn show_manifest(manifest: &ImageManifest, verbose: bool) -> Outcome {
    let text = if verbose {
        indented(manifest, "\t")?
    } else {
        indented(manifest.content()?, "\t")?
    };
    print(&(text + "\n"))?;
    Ok(0)
}
