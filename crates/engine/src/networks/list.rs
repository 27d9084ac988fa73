//! Listing networks.

use super::{NetworkRecord, Networks};
use crate::error::{Error, Result};
use crate::filters::Filters;

/// The filters of the network list.
pub const FILTERS: &[&str] = &[
    "dangling", "driver", "id", "label", "label!", "name", "scope", "type",
];

impl Networks {
    /// Returns the networks that match, oldest first.
    ///
    /// # Errors
    /// Returns an error if a filter's value is invalid.
    pub fn list(&self, filters: &Filters) -> Result<Vec<NetworkRecord>> {
        if let Some(wrong) = filters
            .get("type")
            .into_iter()
            .flatten()
            .find(|kind| !matches!(kind.as_str(), "custom" | "builtin"))
        {
            return Err(Error::invalid(format!("invalid filter: 'type'='{wrong}'")));
        }
        // Not the text of other lists, as in Docker.
        let dangling = filters.flag("dangling").map_err(|_| {
            Error::invalid(
                r#"invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")"#,
            )
        })?;
        let state = self.state();
        let mut found: Vec<NetworkRecord> = state
            .values()
            .filter(|network| {
                dangling.is_none_or(|dangling| {
                    (network.members.is_empty() && !network.record.is_predefined()) == dangling
                })
            })
            .map(|network| &network.record)
            .filter(|record| {
                filters.any("id", |id| record.id.starts_with(id))
                    && filters.any_pattern("name", &record.name)
                    && filters.any("driver", |driver| record.driver.name() == driver)
                    && filters.any("scope", |scope| scope == "local")
                    && filters.any("type", |kind| (kind == "builtin") == record.is_predefined())
                    && filters.labels(&record.labels)
            })
            .cloned()
            .collect();
        found.sort_by_key(|record| record.created_at);
        Ok(found)
    }
}
