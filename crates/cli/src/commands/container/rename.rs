//! The `rename` command.

use clap::Args;

use crate::client::{Client, escape_name, query};
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    container: String,
    new_name: String,
}

pub(crate) async fn rename(client: &Client, args: RenameArgs) -> Outcome {
    let (name, new_name) = (&args.container, &args.new_name);
    if name.trim().is_empty() || new_name.trim().is_empty() {
        return Err(Failure::new(
            "Error: Neither old nor new names may be empty",
        ));
    }
    client
        .post_no_content(&format!(
            "/containers/{}/rename{}",
            escape_name(name),
            query(&[("name", new_name)])
        ))
        .await
        .map_err(|error| {
            Failure::new(format!(
                "{error}\nError: failed to rename container named {name}"
            ))
        })?;
    Ok(0)
}
