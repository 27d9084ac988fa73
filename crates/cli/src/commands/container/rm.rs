//! The `rm` command.

use clap::Args;

use crate::client::{Client, escape_name, query};
use crate::commands::each::for_each_at_once;
use crate::output::warn_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    force: bool,
    /// Remove the specified link
    #[arg(short, long)]
    link: bool,
    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    volumes: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn rm(client: &Client, args: RmArgs) -> Outcome {
    let on = |flag: bool| if flag { "1" } else { "" };
    let query = query(&[
        ("force", on(args.force)),
        ("link", on(args.link)),
        ("v", on(args.volumes)),
    ]);
    for_each_at_once(&args.containers, async |given| {
        let name = given.trim_matches('/');
        if name.is_empty() {
            return Err(Failure::new("container name cannot be empty"));
        }
        match client
            .delete_no_content(&format!("/containers/{}{query}", escape_name(name)))
            .await
        {
            // With --force, a missing container is no failure.
            Err(error) if args.force && error.status == hyper::StatusCode::NOT_FOUND => {
                warn_line!("{error}");
                return Ok(false);
            }
            result => result?,
        }
        Ok(true)
    })
    .await
}
