//! SIGHUP: the settings and the certificates are read again.

use std::sync::Arc;

use anyhow::Context as _;
use whelk_engine::Engine;

use crate::config::{Settings, Source};
use crate::listen::Listeners;
use crate::log::Log;
use crate::systemd;

/// What SIGHUP changes.
pub(crate) struct Reload {
    pub source: Source,
    /// The settings at the engine's start.
    pub started_with: Settings,
    pub log: Log,
    pub engine: Arc<Engine>,
    pub listeners: Arc<Listeners>,
}

impl Reload {
    /// Reads the settings and the certificates again. What cannot be used is logged, and the previous
    /// settings stay.
    pub(crate) async fn run(self: &Arc<Self>) {
        systemd::notify_reloading();
        let this = self.clone();
        // Files are read.
        let reloaded = tokio::task::spawn_blocking(move || this.settings()).await;
        match reloaded.context("reload the settings").flatten() {
            Ok(changed) if changed.is_empty() => {
                tracing::info!("SIGHUP: the settings were read again");
            }
            Ok(changed) => tracing::warn!(
                "SIGHUP: the settings were read again; these have changed and are only read when the engine starts: {}",
                changed.join(", ")
            ),
            Err(error) => {
                tracing::error!("SIGHUP: {error:#}; the previous settings stay in use");
            }
        }
        self.listeners.reload().await;
        systemd::notify_ready();
    }

    /// Applies the settings, and returns the keys of those that need a restart.
    fn settings(&self) -> anyhow::Result<Vec<String>> {
        let new = self.source.read()?;
        let live = new.file.live()?;
        self.engine
            .reload(live)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        // The settings are in use, whatever becomes of the log.
        if let Err(error) = self.log.reload(&new.file) {
            tracing::error!("SIGHUP: the level of the log stays: {error:#}");
        }
        Ok(self.started_with.changed_keys(&new))
    }
}
