//! The `load` command.

use clap::Args;

use crate::client::{Client, query};
use crate::commands::image::platform::platforms_json;
use crate::commands::messages::print_messages;
use crate::commands::upload::{file_body, reader_body};
use crate::{Failure, Outcome, terminal};

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Read from tar archive file, instead of STDIN
    #[arg(short, long)]
    input: Option<String>,
    /// Load only the given platform variants. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long)]
    platform: Vec<String>,
    /// Suppress the load output
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn load(client: &Client, args: LoadArgs) -> Outcome {
    let platforms = platforms_json(&args.platform)?;
    // Progress is shown on terminals only.
    let is_quiet = args.quiet || !terminal::stdout_is_terminal();
    let body = match args.input.as_deref() {
        Some(path) if path != "-" => file_body(path)?,
        _ if terminal::stdin_is_terminal() => {
            return Err(Failure::new(
                "requested load from stdin, but stdin is empty",
            ));
        }
        _ => reader_body(std::io::stdin()),
    };
    let mut parameters = vec![("quiet", if is_quiet { "1" } else { "0" })];
    parameters.extend(
        platforms
            .iter()
            .map(|platform| ("platform", platform.as_str())),
    );
    let response = client
        .send(
            hyper::Method::POST,
            &format!("/images/load{}", query(&parameters)),
            &[("content-type", "application/x-tar")],
            body,
        )
        .await?;
    print_messages(response).await
}
