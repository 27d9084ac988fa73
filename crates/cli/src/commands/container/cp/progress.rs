//! The progress of a copy on a terminal, as Docker's client shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use whelk_text::size;

use crate::output::{warn, warn_line};
use crate::terminal;

/// Time between updates.
const PERIOD: Duration = Duration::from_millis(75);

/// Shows the number of copied bytes until it is dropped.
pub(super) struct Progress {
    pub(super) bytes: Arc<AtomicU64>,
    shown: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// Shows nothing if `quiet`, or if standard output is no terminal.
    pub(super) fn start(quiet: bool, header: &'static str) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        let shown = (!quiet && terminal::stdout_is_terminal()).then(|| {
            tokio::spawn(async move {
                loop {
                    warn(&format!("\r\x1b[K{header}{}", text(&counted)));
                    tokio::time::sleep(PERIOD).await;
                }
            })
        });
        Self { bytes, shown }
    }

    /// Replaces the progress by a line that says what was copied.
    pub(super) async fn finish(mut self, to: &str) {
        if let Some(shown) = self.shown.take() {
            shown.abort();
            let _ = shown.await;
            warn("\r\x1b[K");
            warn_line!("Successfully copied {} to {to}", text(&self.bytes));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(shown) = self.shown.take() {
            shown.abort();
            warn("\r\x1b[K");
        }
    }
}

fn text(bytes: &AtomicU64) -> String {
    size::decimal(bytes.load(Ordering::Relaxed), 3)
}
