//! The `list` command.

use std::path::Path;

use serde_json::json;
use whelk_runtime::{Error, Result};
use whelk_sys::fs;

use super::{describe, print};
use crate::List;
use crate::state::StateFile;

/// Prints the containers below a root directory.
pub(super) fn list(root: &Path, args: &List) -> Result<()> {
    let entries = if fs::exists(root) {
        fs::list(root)?
    } else {
        Vec::new()
    };
    let mut found = Vec::new();
    for entry in entries {
        // Skip containers that are being created or deleted.
        if let Some(state) = entry
            .file_name()
            .to_str()
            .and_then(|id| StateFile::load(root, id).ok())
            && let Ok(described) = describe(root, &state)
        {
            found.push(described);
        }
    }
    let text = |value: &serde_json::Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    match args.format.as_str() {
        _ if args.quiet => {
            let ids = found.iter().map(|state| text(&state["id"]) + "\n");
            print(&ids.collect::<String>())
        }
        "json" => print(&format!("{}\n", json!(found))),
        "table" => {
            let mut table = format!(
                "{:<24} {:<8} {:<9} {:<32} CREATED\n",
                "ID", "PID", "STATUS", "BUNDLE"
            );
            for state in &found {
                table += &format!(
                    "{:<24} {:<8} {:<9} {:<32} {}\n",
                    text(&state["id"]),
                    text(&state["pid"]),
                    text(&state["status"]),
                    text(&state["bundle"]),
                    text(&state["created"])
                );
            }
            print(&table)
        }
        other => Err(Error::invalid(format!(
            "unknown format {other:?}: table or json"
        ))),
    }
}
