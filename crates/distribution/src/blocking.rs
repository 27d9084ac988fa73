//! Runs blocking code.

use crate::error::{Kind, Result};

/// Runs blocking code on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(Kind::Internal.error(error.to_string())))
}
