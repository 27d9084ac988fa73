//! The `stop` command, and `restart`, which has the same flags.

use std::pin::pin;
use std::time::Duration;

use clap::Args;
use whelk_api_types::ContainerInspectResponse;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::commands::each::for_each_at_once;
use crate::output::warn_line;

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Signal to send to the container
    #[arg(short, long, default_value = "", hide_default_value = true)]
    signal: String,
    /// Seconds to wait before killing the container
    #[arg(short = 't', long, visible_alias = "time", allow_hyphen_values = true)]
    timeout: Option<i64>,
    #[arg(required = true, value_name = "CONTAINER")]
    pub(super) containers: Vec<String>,
}

/// Times without a response to a stop after each of which the reason is looked for: a busy engine may not have sent the signal yet.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

pub(crate) async fn stop(client: &Client, args: StopArgs) -> Outcome {
    let query = args.query();
    for_each_at_once(&args.containers, async |name| {
        end(client, name, "stop", &query).await?;
        Ok(true)
    })
    .await
}

impl StopArgs {
    pub(super) fn query(&self) -> String {
        let timeout = self.timeout.map(|seconds| seconds.to_string());
        query(&[
            ("signal", &self.signal),
            ("t", &timeout.unwrap_or_default()),
        ])
    }
}

/// Stops a container by the action `stop` or `restart`.
pub(super) async fn end(client: &Client, name: &str, action: &str, query: &str) -> Outcome<()> {
    let path = format!("/containers/{}/{action}{query}", escape_name(name));
    let mut request = pin!(client.post_no_content(&path));
    tokio::select! {
        biased;
        done = &mut request => return Ok(done?),
        () = explain_delay(client, name) => {}
    }
    Ok(request.await?)
}

/// Waits for a time in which most containers stop. Then, if the engine has sent a signal that the container has no
/// handler for, tells so: the container runs until it is killed.
async fn explain_delay(client: &Client, name: &str) {
    let path = format!("/containers/{}/json", escape_name(name));
    for time in PATIENCE {
        tokio::time::sleep(time).await;
        let Ok(container) = client.get::<ContainerInspectResponse>(&path).await else {
            return;
        };
        let signal = container.state.unhandled_signal;
        if !signal.is_empty() {
            warn_line!(
                "{name}: its main process has no handler for {signal}, so it only ends by SIGKILL, after the timeout; `run --init`, or a --stop-signal that it handles, avoids this"
            );
            return;
        }
    }
}
