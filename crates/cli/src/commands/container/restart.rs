//! The `restart` command.

use super::stop::{StopArgs, end};

use crate::Outcome;
use crate::client::Client;

pub(crate) async fn restart(client: &Client, args: StopArgs) -> Outcome {
    end(client, args, "restart").await
}
