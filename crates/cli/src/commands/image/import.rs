//! The `import` command.

use clap::Args;

use crate::client::{Client, query};
use crate::commands::image::tag::is_about_grammar;
use crate::commands::messages::print_messages;
use crate::commands::upload::{file_body, reader_body};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Set commit message for imported image
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Set platform if server is multi-platform capable
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// File to import, or - for STDIN
    file: String,
    /// Name of the new image
    repository: Option<String>,
}

pub(crate) async fn import(client: &Client, args: ImportArgs) -> Outcome {
    let body = match args.file.as_str() {
        "-" => reader_body(std::io::stdin()),
        url if url.starts_with("http://") || url.starts_with("https://") => {
            return Err(Failure::new(
                "import from a URL is not available in this version of whelk; download the file and import it",
            ));
        }
        path => file_body(path)?,
    };
    let query = query(&[
        ("fromSrc", "-"),
        ("repo", args.repository.as_deref().unwrap_or_default()),
        ("message", &args.message),
        ("platform", &args.platform),
        ("changes", &args.change.join("\n")),
    ]);
    match client
        .send(
            hyper::Method::POST,
            &format!("/images/create{query}"),
            &[("content-type", "application/x-tar")],
            body,
        )
        .await
    {
        Err(error) if is_about_grammar(&error) => Err(Failure::new(error.message)),
        response => print_messages(response?).await,
    }
}
