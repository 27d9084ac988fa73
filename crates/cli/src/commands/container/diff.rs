//! The `diff` command.

use clap::Args;
use whelk_api_types::FilesystemChange;

use crate::Outcome;
use crate::client::{Client, escape_name};
use crate::output::print;

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    container: String,
}

pub(crate) async fn diff(client: &Client, args: DiffArgs) -> Outcome {
    let path = format!("/containers/{}/changes", escape_name(&args.container));
    let changes: Option<Vec<FilesystemChange>> = client.get(&path).await?;
    let lines = changes.iter().flatten().map(|change| {
        let kind = match change.kind {
            0 => "C",
            1 => "A",
            _ => "D",
        };
        format!("{kind} {}\n", change.path)
    });
    print(&lines.collect::<String>())?;
    Ok(0)
}
