//! The `save` command.

use clap::Args;
use whelk_text::url;

use crate::Outcome;
use crate::client::{Client, no_body};
use crate::commands::destination::Destination;
use crate::commands::image::platform::platforms_json;

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long)]
    output: Option<String>,
    /// Save only the given platform variants. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long)]
    platform: Vec<String>,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) async fn save(client: &Client, args: SaveArgs) -> Outcome {
    let destination = Destination::new(args.output.as_deref(), "image")?;
    let platforms = platforms_json(&args.platform)?;
    let mut parameters: Vec<String> = args
        .images
        .iter()
        .map(|name| format!("names={}", url::escape(name)))
        .collect();
    let platforms = platforms.iter();
    parameters.extend(platforms.map(|platform| format!("platform={}", url::escape(platform))));
    let response = client
        .send(
            hyper::Method::GET,
            &format!("/images/get?{}", parameters.join("&")),
            &[],
            no_body(),
        )
        .await?;
    destination.write_body(response).await?;
    Ok(0)
}
