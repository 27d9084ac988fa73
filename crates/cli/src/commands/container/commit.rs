//! The `commit` command.

use clap::Args;
use whelk_api_types::IdResponse;
use whelk_text::url;

use crate::client::{Client, query};
use crate::commands::image::is_about_grammar;
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long)]
    change: Vec<String>,
    /// Commit message
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Pause container during commit
    #[arg(short, long, default_value = "true", num_args = 0..=1, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    pause: bool,
    container: String,
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
}

pub(crate) async fn commit(client: &Client, args: CommitArgs) -> Outcome {
    let pause = if args.pause { "1" } else { "0" };
    let pairs = [
        ("container", args.container.as_str()),
        ("repo", args.reference.as_deref().unwrap_or_default()),
        ("author", &args.author),
        ("comment", &args.message),
        ("pause", pause),
    ];
    // The engine refuses empty ones.
    let changes = args.change.iter().map(|change| url::escape(change));
    let changes: String = changes.map(|change| format!("&changes={change}")).collect();
    let path = format!("/commit{}{changes}", query(&pairs));
    let created: IdResponse = match client.post(&path).await {
        // Docker's client checks the name itself.
        Err(error) if is_about_grammar(&error) => return Err(Failure::new(error.message)),
        created => created?,
    };
    print_line!("{}", created.id)?;
    Ok(0)
}
