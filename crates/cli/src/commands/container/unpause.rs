//! The `unpause` command.

use crate::Outcome;
use crate::client::Client;
use crate::commands::container::{Names, post_each};

pub(crate) async fn unpause(client: &Client, names: Names) -> Outcome {
    post_each(client, &names.containers, "unpause").await
}
