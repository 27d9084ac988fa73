//! The `manifest rm` command.

use clap::Args;

use super::store::ManifestStore;
use crate::Outcome;
use crate::commands::each::for_each;

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[arg(required = true, value_name = "MANIFEST_LIST")]
    lists: Vec<String>,
}

pub(super) async fn rm(store: &ManifestStore, args: &RmArgs) -> Outcome {
    for_each(&args.lists, async |name| {
        store.remove(&super::reference(name)?)
    })
    .await
}
