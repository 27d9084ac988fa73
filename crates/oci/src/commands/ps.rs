//! The `ps` command.

use std::path::Path;

use serde_json::json;
use whelk_runtime::{Error, Result};
use whelk_sys::fs;

use super::print;
use crate::Ps;
use crate::state::StateFile;

/// Prints the processes of a container.
pub(super) fn ps(root: &Path, args: &Ps) -> Result<()> {
    let mut pids = StateFile::load(root, &args.id)?.cgroup()?.processes()?;
    pids.sort_unstable();
    match args.format.as_str() {
        "json" => print(&format!("{}\n", json!(pids))),
        "table" => {
            let mut text = "PID     COMMAND\n".to_owned();
            for pid in pids {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                text += &format!("{pid:<7} {}\n", whelk_sys::text::command_line(command));
            }
            print(&text)
        }
        other => Err(Error::invalid(format!(
            "unknown format {other:?}: table or json"
        ))),
    }
}
