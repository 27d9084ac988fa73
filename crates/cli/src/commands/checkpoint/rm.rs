//! The `checkpoint rm` command.

use clap::Args;

use crate::Outcome;
use crate::client::{Client, escape_name, query};

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Use a custom checkpoint storage directory
    #[arg(long, default_value = "", hide_default_value = true)]
    checkpoint_dir: String,
    container: String,
    checkpoint: String,
}

pub(crate) async fn rm(client: &Client, args: RmArgs) -> Outcome {
    let path = format!(
        "/containers/{}/checkpoints/{}{}",
        escape_name(&args.container),
        escape_name(&args.checkpoint),
        query(&[("dir", &args.checkpoint_dir)])
    );
    client.delete_no_content(&path).await?;
    Ok(0)
}
