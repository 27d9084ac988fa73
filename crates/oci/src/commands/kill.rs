//! The `kill` command.

use std::path::Path;

use whelk_runtime::{Error, Result};
use whelk_sys::signal;

use crate::Kill;
use crate::state::StateFile;

/// Sends a signal to the first process of a container, or to all of them.
pub(super) fn kill(root: &Path, args: &Kill) -> Result<()> {
    let number = whelk_text::signal::parse(&args.signal)
        .map_err(|_| Error::invalid(format!("unknown signal {:?}", args.signal)))?;
    let state = StateFile::load(root, &args.id)?;
    if args.all {
        for pid in state.cgroup()?.processes()? {
            let _ = signal::kill(pid, number);
        }
        return Ok(());
    }
    signal::pidfd_send(state.open_process()?, number).map_err(|error| {
        Error::Os(format!(
            "signal container {}: {}",
            args.id,
            whelk_sys::errno_text(&error)
        ))
    })
}
