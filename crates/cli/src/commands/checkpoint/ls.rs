//! The `checkpoint ls` command.

use clap::Args;
use whelk_api_types::CheckpointSummary;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Use a custom checkpoint storage directory
    #[arg(long, default_value = "", hide_default_value = true)]
    checkpoint_dir: String,
    container: String,
}

pub(crate) async fn ls(client: &Client, args: LsArgs) -> Outcome {
    let path = format!(
        "/containers/{}/checkpoints{}",
        escape_name(&args.container),
        query(&[("dir", &args.checkpoint_dir)])
    );
    let checkpoints: Vec<CheckpointSummary> = client.get(&path).await?;
    print_line!("CHECKPOINT NAME")?;
    for checkpoint in checkpoints {
        print_line!("{}", checkpoint.name)?;
    }
    Ok(0)
}
