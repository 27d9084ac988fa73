//! The `system stop-containers` command.

use whelk_api_types::SystemContainersStopped;

use crate::Outcome;
use crate::client::Client;
use crate::commands::each::failures_of;
use crate::output::print_line;

/// Stops all containers at the same time, each with its own signal and timeout, and prints their names.
pub(crate) async fn stop_containers(client: &Client) -> Outcome {
    let response: SystemContainersStopped = client.post("/system/stop-containers").await?;
    for name in &response.stopped {
        print_line!("{name}")?;
    }
    failures_of(&response.errors)
}
