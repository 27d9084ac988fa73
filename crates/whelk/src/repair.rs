//! `whelk system repair`: rebuilds the store of a stopped engine.

use std::path::PathBuf;

use anyhow::Context;
use whelk_sys::fs;

use crate::config::{Given, Source};
use crate::daemon;

/// Repairs the given root, or that of the configuration file. Returns lines to print.
pub(crate) fn repair(
    root: Option<PathBuf>,
    config_file: Option<PathBuf>,
) -> anyhow::Result<Vec<String>> {
    let root = match root {
        Some(root) => root,
        None => Source::new(config_file.as_deref(), Given::default())?
            .read_place()?
            .data_root
            .unwrap_or_else(|| "/var/lib/whelk".into()),
    };
    let root = fs::canonicalize(root)?;
    let marks = ["lock", "containers"].map(|name| root.join(name));
    let mut is_root = false;
    for mark in marks {
        let exists = mark.try_exists();
        is_root |= exists.with_context(|| format!("look for {}", mark.display()))?;
    }
    anyhow::ensure!(is_root, "{} is not an engine's data root", root.display());
    let _lock = daemon::lock(&root).context("stop the engine first")?;
    Ok(whelk_engine::repair(&root)?.lines)
}
