//! Further attempts: which server is asked next after a failure, and when.
//!
//! Mirrors come first, in their order. Each gets one attempt: whatever is wrong with a mirror or with
//! what it sends, the next server may do better. The registry itself is last, and is asked again
//! after failures that pass.

use std::time::Duration;

use crate::endpoints::Endpoint;
use crate::error::{Error, Result};
use crate::exchange::Repository;

/// The wait before the first further attempt. It doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Maximum wait before an attempt, also if the registry asks for more.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);

/// A wait before another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub time: Duration,
    /// The registry has asked for it.
    pub is_asked: bool,
}

/// How far a transfer is: which server is asked, and how often in a row it has failed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempts {
    server: usize,
    failures: u32,
    /// Something has come in since the last failure.
    has_progress: bool,
}

impl Attempts {
    /// Notes that the transfer goes on.
    pub(crate) fn progress(&mut self) {
        self.failures = 0;
        self.has_progress = true;
    }
}

impl Repository {
    /// Returns the repository at the registry itself; `None` if it has no mirrors.
    pub fn without_mirrors(&self) -> Option<Self> {
        let own: Vec<_> = self
            .endpoints
            .iter()
            .filter(|endpoint| !endpoint.is_mirror)
            .cloned()
            .collect();
        (own.len() < self.endpoints.len()).then(|| Self {
            endpoints: own,
            ..self.clone()
        })
    }

    /// Returns the server to ask.
    pub(crate) fn server(&self, attempts: &Attempts) -> Result<Endpoint> {
        let server = self.endpoints.get(attempts.server);
        server
            .cloned()
            // There is always the registry itself.
            .ok_or_else(|| Error::Settings("no registry to ask".into()))
    }

    /// Decides what follows a failure, and waits until then. With an error comes the time that the
    /// server asks to wait. `tell` gets waits before they begin.
    ///
    /// # Errors
    /// Returns the error if there is no other attempt.
    pub(crate) async fn after(
        &self,
        attempts: &mut Attempts,
        (error, asked): (Error, Option<Duration>),
        tell: impl Fn(Wait),
    ) -> Result<()> {
        let has_progress = std::mem::take(&mut attempts.has_progress);
        let server = self.endpoints.get(attempts.server);
        if let Some(mirror) = server.filter(|endpoint| endpoint.is_mirror) {
            tracing::warn!("mirror {}: {error}", mirror.host);
            // One that was good until the connection broke may continue.
            if !has_progress || !error.is_temporary() {
                attempts.server += 1;
            }
            return Ok(());
        }
        attempts.failures += 1;
        let most = self.attempts();
        if !error.is_temporary() || attempts.failures >= most {
            return Err(error);
        }
        let wait = Wait {
            time: asked.unwrap_or_else(|| backoff(attempts.failures)),
            is_asked: asked.is_some(),
        };
        if wait.is_asked {
            let seconds = wait.time.as_secs();
            tracing::info!("registry: {error}: waiting {seconds} s as the registry asked");
        } else {
            tracing::debug!("registry: {error}: attempt {} of {most}", attempts.failures);
        }
        tell(wait);
        tokio::time::sleep(wait.time).await;
        Ok(())
    }
}

/// Returns how long to wait after the failure of this attempt, the first of which is 1.
fn backoff(attempt: u32) -> Duration {
    FIRST_WAIT
        .saturating_mul(1 << (attempt - 1).min(10))
        .min(MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_become_longer_up_to_a_limit() {
        let waits = [1, 2, 3, 99].map(|attempt| backoff(attempt).as_millis());
        assert_eq!(waits, [500, 1_000, 2_000, 60_000]);
    }
}
