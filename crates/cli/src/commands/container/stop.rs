//! The `stop` command, and `restart`, which has the same flags.

use clap::Args;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::commands::each::for_each;
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "", hide_default_value = true)]
    signal: String,
    /// Seconds to wait before killing the container
    #[arg(short = 't', long, visible_alias = "time", allow_hyphen_values = true)]
    timeout: Option<i64>,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn stop(client: &Client, args: StopArgs) -> Outcome {
    end(client, args, "stop").await
}

/// Stops containers by the action `stop` or `restart`.
pub(super) async fn end(client: &Client, args: StopArgs, action: &str) -> Outcome {
    let timeout = args
        .timeout
        .map(|seconds| seconds.to_string())
        .unwrap_or_default();
    let query = query(&[("signal", &args.signal), ("t", &timeout)]);
    for_each(&args.containers, async |name| {
        client
            .post_no_content(&format!(
                "/containers/{}/{action}{query}",
                escape_name(name)
            ))
            .await?;
        print_line!("{name}")?;
        Ok(())
    })
    .await
}
