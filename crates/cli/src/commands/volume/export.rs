//! The `volume export` command.

use clap::Args;
use whelk_text::url;

use crate::Outcome;
use crate::client::{Client, no_body};
use crate::commands::destination::Destination;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<String>,
    /// Name of the volume
    volume: String,
}

pub(super) async fn export(client: &Client, args: ExportArgs) -> Outcome {
    let destination = Destination::new(args.output.as_deref(), "volume")?;
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/volumes/{}/export", url::escape(&args.volume)),
            &[],
            no_body(),
        )
        .await?;
    destination.write_body(response).await?;
    Ok(0)
}
