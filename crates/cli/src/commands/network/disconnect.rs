//! The `network disconnect` command.

use clap::Args;
use whelk_api_types::NetworkDisconnectRequest;

use crate::Outcome;
use crate::client::{Client, escape_name};
use crate::commands::network::connect::check_container;

#[derive(Debug, Args)]
pub(crate) struct DisconnectArgs {
    /// Force the container to disconnect from a network
    #[arg(short, long)]
    force: bool,
    /// Name or id of the network
    network: String,
    /// Name or id of the container
    container: String,
}

pub(super) async fn disconnect(client: &Client, args: DisconnectArgs) -> Outcome {
    check_container(&args.network, &args.container)?;
    let path = format!("/networks/{}/disconnect", escape_name(&args.network));
    let body = NetworkDisconnectRequest {
        container: args.container,
        force: args.force,
    };
    client.post_json_no_content(&path, &body).await?;
    Ok(0)
}
