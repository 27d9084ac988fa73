//! The `restart` command.

use super::stop::{StopArgs, end};

use crate::Outcome;
use crate::client::Client;
use crate::commands::each::for_each;
use crate::output::print_line;

/// Restarts containers one after another, in the given order, as Docker's client.
pub(crate) async fn restart(client: &Client, args: StopArgs) -> Outcome {
    let query = args.query();
    for_each(&args.containers, async |name| {
        end(client, name, "restart", &query).await?;
        print_line!("{name}")
    })
    .await
}
