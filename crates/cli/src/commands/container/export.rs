//! The `export` command.

use clap::Args;

use crate::Outcome;
use crate::client::{Client, escape_name, no_body};
use crate::commands::destination::Destination;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<String>,
    container: String,
}

pub(crate) async fn export(client: &Client, args: ExportArgs) -> Outcome {
    let destination = Destination::new(args.output.as_deref(), "container")?;
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/containers/{}/export", escape_name(&args.container)),
            &[],
            no_body(),
        )
        .await?;
    destination.write_body(response).await?;
    Ok(0)
}
