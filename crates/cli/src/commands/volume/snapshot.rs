//! The `volume snapshot` command.

use clap::Args;

use crate::Outcome;
use crate::client::Client;
use crate::commands::volume::clone::{ClonedArgs, copy};

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    cloned: ClonedArgs,
    /// Name of the new volume (default: the volume's name and the time)
    name: Option<String>,
}

pub(super) async fn snapshot(client: &Client, args: SnapshotArgs) -> Outcome {
    let name = args.name.unwrap_or_else(|| {
        let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S.%3f");
        format!("{}-{now}", args.cloned.volume)
    });
    copy(client, "snapshot", &args.cloned, &name).await
}
