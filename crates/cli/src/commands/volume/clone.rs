//! The `volume clone` command, and what `volume snapshot` shares with it.

use clap::Args;
use whelk_api_types::{Volume, VolumeCopyRequest};
use whelk_text::url;

use crate::Outcome;
use crate::client::Client;
use crate::commands::arguments::labels_of;
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    #[command(flatten)]
    cloned: ClonedArgs,
    /// Name of the new volume
    name: String,
}

/// Flags shared by `clone` and `snapshot`.
#[derive(Debug, Args)]
pub(super) struct ClonedArgs {
    /// Set metadata for the new volume
    #[arg(long)]
    pub label: Vec<String>,
    /// Pause the containers that use the volume meanwhile
    #[arg(long)]
    pub pause: bool,
    /// Name of the volume to copy
    pub volume: String,
}

pub(super) async fn clone(client: &Client, args: CloneArgs) -> Outcome {
    copy(client, "clone", &args.cloned, &args.name).await
}

/// Copies a volume to a new one by the action `clone` or `snapshot`.
pub(super) async fn copy(client: &Client, how: &str, cloned: &ClonedArgs, name: &str) -> Outcome {
    let labels = labels_of(&cloned.label, "--label")?;
    let body = VolumeCopyRequest {
        name: name.to_owned(),
        labels,
        pause: cloned.pause,
    };
    let path = format!("/volumes/{}/{how}", url::escape(&cloned.volume));
    let made: Volume = client.post_json(&path, &body).await?;
    print_line!("{}", made.name)?;
    Ok(0)
}
