//! The `wait` command, and the wait request of `run` and `start`.

use whelk_api_types::ContainerWaitResponse;

use crate::Outcome;
use crate::client::{ApiError, Client, escape_name, query};
use crate::commands::container::Names;
use crate::commands::container::stream::{KEEPS_RUNNING, lost, unless_lost};
use crate::commands::each::for_each;
use crate::output::print_line;

pub(crate) async fn wait(client: &Client, names: Names) -> Outcome {
    for_each(&names.containers, async |name| {
        let response = wait_request(client, &escape_name(name), "").await?;
        let status: ContainerWaitResponse = crate::client::read(response)
            .await
            .map_err(|error| unless_lost(error, || lost("waiting for", name, KEEPS_RUNNING)))?;
        print_line!("{}", status.status_code)?;
        Ok(())
    })
    .await
}

/// Sends a wait request. Returns its response head, which the engine sends once it is waiting.
pub(crate) async fn wait_request(
    client: &Client,
    id: &str,
    condition: &str,
) -> Result<hyper::Response<hyper::body::Incoming>, ApiError> {
    client
        .send(
            hyper::Method::POST,
            &format!(
                "/containers/{id}/wait{}",
                query(&[("condition", condition)])
            ),
            &[],
            crate::client::no_body(),
        )
        .await
}
