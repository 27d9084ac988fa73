//! The `tag` command.

use clap::Args;

use crate::client::{ApiError, Client, escape_name, query};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    source_image: String,
    target_image: String,
}

pub(crate) async fn tag(client: &Client, args: TagArgs) -> Outcome {
    let (source, target) = (&args.source_image, &args.target_image);
    let malformed = |name: &str, why: &str| {
        Failure::new(format!(
            "Error parsing reference: {name:?} is not a valid repository/tag: {why}"
        ))
    };
    if source.trim().is_empty() {
        return Err(malformed(source, "invalid reference format"));
    }
    // The engine splits name and tag.
    match client
        .post_no_content(&format!(
            "/images/{}/tag{}",
            escape_name(source),
            query(&[("repo", target)])
        ))
        .await
    {
        Err(error) if is_about_grammar(&error) => Err(malformed(target, &error.message)),
        answer => answer.map(|_| 0).map_err(Into::into),
    }
}

/// Returns whether the engine rejected a reference's syntax, which Docker's CLI validates itself.
pub(crate) fn is_about_grammar(error: &ApiError) -> bool {
    error.status == hyper::StatusCode::BAD_REQUEST
        && (error.message.starts_with("invalid reference format")
            || error.message.starts_with("invalid repository name"))
}
