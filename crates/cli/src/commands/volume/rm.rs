//! The `volume rm` command.

use clap::Args;
use whelk_text::url;

use crate::Outcome;
use crate::client::{Client, query};
use crate::commands::each::for_each;
use crate::output::print_line;

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of one or more volumes
    #[arg(short, long)]
    force: bool,
    /// Names of volumes
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

pub(super) async fn rm(client: &Client, args: RmArgs) -> Outcome {
    let query = query(&[("force", if args.force { "1" } else { "" })]);
    for_each(&args.volumes, async |name| {
        client
            .delete_no_content(&format!("/volumes/{}{query}", url::escape(name)))
            .await?;
        print_line!("{name}")?;
        Ok(())
    })
    .await
}
