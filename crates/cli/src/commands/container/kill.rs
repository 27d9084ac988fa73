//! The `kill` command.

use clap::Args;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::commands::each::for_each_at_once;

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "", hide_default_value = true)]
    signal: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn kill(client: &Client, args: KillArgs) -> Outcome {
    for_each_at_once(&args.containers, async |name| {
        client
            .post_no_content(&format!(
                "/containers/{}/kill{}",
                escape_name(name),
                query(&[("signal", &args.signal)])
            ))
            .await?;
        Ok(true)
    })
    .await
}
