//! The `checkpoint create` command.

use clap::Args;
use whelk_api_types::CheckpointCreateRequest;

use crate::Outcome;
use crate::client::{Client, escape_name};
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct CreateCheckpointArgs {
    /// Use a custom checkpoint storage directory
    #[arg(long, default_value = "", hide_default_value = true)]
    checkpoint_dir: String,
    /// Leave the container running after checkpoint
    #[arg(long)]
    leave_running: bool,
    container: String,
    checkpoint: String,
}

pub(crate) async fn create(client: &Client, args: CreateCheckpointArgs) -> Outcome {
    let path = format!("/containers/{}/checkpoints", escape_name(&args.container));
    let body = CheckpointCreateRequest {
        checkpoint_id: args.checkpoint.clone(),
        checkpoint_dir: args.checkpoint_dir,
        exit: !args.leave_running,
    };
    client.post_json_no_content(&path, &body).await?;
    print_line!("{}", args.checkpoint)?;
    Ok(0)
}
