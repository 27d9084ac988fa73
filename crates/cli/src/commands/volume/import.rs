//! The `volume import` command.

use clap::Args;
use whelk_text::url;

use crate::client::Client;
use crate::commands::upload::{file_body, reader_body};
use crate::output::print_line;
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Name of the volume
    volume: String,
    /// Archive to read, or - for STDIN
    #[arg(default_value = "-")]
    file: String,
}

pub(super) async fn import(client: &Client, args: ImportArgs) -> Outcome {
    let body = match args.file.as_str() {
        "-" if terminal::stdin_is_terminal() => {
            return Err(Failure::new(
                "requested import from stdin, but stdin is empty",
            ));
        }
        "-" => reader_body(std::io::stdin()),
        path => file_body(path)?,
    };
    let path = format!("/volumes/{}/import", url::escape(&args.volume));
    client
        .send(
            hyper::Method::POST,
            &path,
            &[("content-type", "application/x-tar")],
            body,
        )
        .await?;
    print_line!("{}", args.volume)?;
    Ok(0)
}
