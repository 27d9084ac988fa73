//! The `network rm` command.

use clap::Args;

use crate::Outcome;
use crate::client::{Client, escape_name};
use crate::commands::each::for_each;
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
    /// Names or ids of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

pub(super) async fn rm(client: &Client, args: RmArgs) -> Outcome {
    for_each(&args.networks, async |name| {
        match client
            .delete_no_content(&format!("/networks/{}", escape_name(name)))
            .await
        {
            Err(error) if args.force && error.status == hyper::StatusCode::NOT_FOUND => {
                return Ok(());
            }
            result => result?,
        };
        print_line!("{name}")?;
        Ok(())
    })
    .await
}
