//! The `rmi` command.

use clap::Args;
use whelk_api_types::ImageDeleteResponseItem;

use crate::Outcome;
use crate::client::{Client, escape_name, query};
use crate::commands::each::for_each;
use crate::commands::image::platform::platforms_json;
use crate::output::{print_line, warn_line};

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Force removal of the image
    #[arg(short, long)]
    force: bool,
    /// Do not delete untagged parents
    #[arg(long)]
    no_prune: bool,
    /// Remove only the given platform variant. Formatted as `os[/arch[/variant]]` (e.g.,
    /// `linux/amd64`)
    #[arg(long)]
    platform: Vec<String>,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) async fn rmi(client: &Client, args: RmiArgs) -> Outcome {
    let platforms = platforms_json(&args.platform)?;
    let mut parameters = vec![
        ("force", if args.force { "1" } else { "" }),
        ("noprune", if args.no_prune { "1" } else { "" }),
    ];
    parameters.extend(
        platforms
            .iter()
            .map(|platform| ("platforms", platform.as_str())),
    );
    let query = query(&parameters);
    for_each(&args.images, async |name| {
        let removed: Vec<ImageDeleteResponseItem> = match client
            .delete(&format!("/images/{}{query}", escape_name(name)))
            .await
        {
            Err(error) if args.force && error.status == hyper::StatusCode::NOT_FOUND => {
                warn_line!("{error}");
                return Ok(());
            }
            result => result?,
        };
        for (action, name) in actions(&removed) {
            print_line!("{action}: {name}")?;
        }
        Ok(())
    })
    .await
}

/// Returns the entries of a removal response: the action and the name or ID it applies to.
pub(crate) fn actions(
    removed: &[ImageDeleteResponseItem],
) -> impl Iterator<Item = (&'static str, &str)> {
    removed.iter().flat_map(|item| {
        let untagged = item.untagged.as_deref().map(|name| ("Untagged", name));
        let deleted = item.deleted.as_deref().map(|id| ("Deleted", id));
        untagged.into_iter().chain(deleted)
    })
}
