//! The `push` command.

use clap::Args;
use hyper::Method;
use whelk_client::no_body;

use crate::client::{Client, escape_name, query};
use crate::commands::image::platform::platform_json;
use crate::commands::image::pull::{full, split, with_default_tag};
use crate::commands::messages::{Target, print_messages_to};
use crate::output::print_line;
use crate::{Failure, Outcome, credentials};

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Push all tags of an image to the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Skip image signing
    #[arg(long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    disable_content_trust: bool,
    /// Push only an image for this platform. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Suppress verbose output
    #[arg(short, long)]
    quiet: bool,
    /// Image to upload: NAME[:TAG]
    #[arg(value_name = "NAME")]
    name: String,
}

pub(crate) async fn push(client: &Client, args: PushArgs) -> Outcome {
    if !args.disable_content_trust {
        return Err(Failure::new(
            "--disable-content-trust=false: content trust is not available in this version of whelk",
        ));
    }
    let platform = platform_json(&args.platform)?;
    if !platform.is_empty() {
        print_note(
            "Using --platform pushes only the specified platform manifest of a multi-platform image index.\nOther components, like attestations, will not be included.\nTo push the complete multi-platform image, remove the --platform flag.\n",
        )?;
    }
    let name = if args.all_tags {
        if split(&args.name).1.is_some() {
            return Err(Failure::new("tag can't be used with --all-tags/-a"));
        }
        args.name.clone()
    } else {
        with_default_tag(&args.name)
    };
    if name != args.name && !args.quiet {
        print_line!("Using default tag: latest")?;
    }
    let target = match args.quiet {
        true => Target::Nowhere,
        false => Target::Output,
    };
    push_named(client, &name, &platform, target).await?;
    if args.quiet {
        print_line!("{}", full(&name))?;
    }
    Ok(0)
}

/// Pushes an image, and prints how it goes. `platform` is in JSON.
pub(crate) async fn push_named(
    client: &Client,
    name: &str,
    platform: &str,
    target: Target,
) -> Outcome<()> {
    let credentials = credentials::header(client.config(), name)?;
    let (repository, version) = split(name);
    let parameters = [("tag", version.unwrap_or_default()), ("platform", platform)];
    let path = format!(
        "/images/{}/push{}",
        escape_name(repository),
        query(&parameters)
    );
    let headers = [("x-registry-auth", credentials.as_str())];
    let response = client
        .send(Method::POST, &path, &headers, no_body())
        .await?;
    let parts = print_messages_to(response, target).await?;
    for part in parts {
        print_note(&format!(
            "Not all multiplatform-content is present and only the available single-platform image was pushed\n{} -> {}",
            part.original_index.digest, part.selected_manifest.digest
        ))?;
    }
    Ok(())
}

/// Prints a note in Docker's form.
fn print_note(text: &str) -> Outcome<()> {
    const HEADER: &str = " Info -> ";
    let indent = format!("\n{}", " ".repeat(HEADER.len()));
    print_line!("\n{HEADER}{}", text.replace('\n', &indent))
}
