//! The requests and the output that prune commands share.

use serde::de::DeserializeOwned;
use whelk_api_types::ImageDeleteResponseItem;
use whelk_text::size;

use crate::Outcome;
use crate::client::{Client, query};
pub(crate) use crate::commands::arguments::prune_filters as filters;
use crate::commands::image::rm::actions;
use crate::output::print_line;

/// Removes the unused objects of a kind, such as `networks`, that match the encoded filters.
pub(crate) async fn post<T: DeserializeOwned>(
    client: &Client,
    kind: &str,
    filters: &str,
) -> Outcome<T> {
    let path = format!("/{kind}/prune{}", query(&[("filters", filters)]));
    Ok(client.post(&path).await?)
}

/// Prints the names of removed objects, if there are any.
pub(crate) fn print_deleted(kind: &str, names: &[String]) -> Outcome<()> {
    if !names.is_empty() {
        print_line!("Deleted {kind}:\n{}\n", names.join("\n"))?;
    }
    Ok(())
}

/// Prints the removals of images and of their names, if there are any.
pub(crate) fn print_deleted_images(removed: &[ImageDeleteResponseItem]) -> Outcome<()> {
    if removed.is_empty() {
        return Ok(());
    }
    print_line!("Deleted Images:")?;
    for (action, name) in actions(removed) {
        print_line!("{}: {name}", action.to_lowercase())?;
    }
    print_line!("")
}

/// Prints the number of bytes that were freed.
pub(crate) fn print_reclaimed(bytes: u64) -> Outcome<()> {
    print_line!("Total reclaimed space: {}", size::decimal(bytes, 4))
}
