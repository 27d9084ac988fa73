//! Retries: which server gets the next request after a failure, and when.
//!
//! Mirrors come first, in their order. Each gets one attempt: whatever is wrong with a mirror or its
//! response, the next server may work. The registry itself is last, and is retried after temporary
//! failures; if its name cannot be resolved, only while blobs are transferred.

use std::time::Duration;

use crate::endpoints::Endpoint;
use crate::error::{Error, Obstacle, Result};
use crate::exchange::Repository;

/// The wait before the first further attempt. It doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Maximum wait before an attempt; a longer `Retry-After` is shortened to it.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);

/// A wait before another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub time: Duration,
    /// The registry has requested it by `Retry-After`.
    pub is_asked: bool,
}

/// State of a transfer: the current server, and the number of its consecutive failures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attempts {
    server: usize,
    failures: u32,
    /// Data has arrived since the last failure.
    has_progress: bool,
    /// What is transferred is a blob; the registry has answered other requests before.
    is_transfer: bool,
}

impl Attempts {
    /// Returns the state before the transfer of a blob.
    pub(crate) fn of_transfer() -> Self {
        Self {
            is_transfer: true,
            ..Self::default()
        }
    }

    /// Resets the count of failures, because data has arrived.
    pub(crate) fn progress(&mut self) {
        self.failures = 0;
        self.has_progress = true;
    }
}

impl Repository {
    /// Returns the repository without the registry's mirrors; `None` if there are none.
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

    /// Returns the server for the next request.
    pub(crate) fn server(&self, attempts: &Attempts) -> Result<Endpoint> {
        let server = self.endpoints.get(attempts.server);
        server
            .cloned()
            // Unreachable: the registry itself is always among the servers.
            .ok_or_else(|| Error::Settings("no registry to ask".into()))
    }

    /// Selects the server for the next attempt after a failure, and waits until it is due. The failure
    /// includes the server's `Retry-After`. `tell` is called with each wait before it begins.
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
            // A mirror whose connection broke during the transfer may resume it.
            if !has_progress || !error.is_temporary() {
                attempts.server += 1;
            }
            return Ok(());
        }
        attempts.failures += 1;
        let most = self.attempts();
        let is_offline = !attempts.is_transfer && error.obstacle() == Some(Obstacle::Unresolved);
        if is_offline || !error.is_temporary() || attempts.failures >= most {
            return Err(error);
        }
        let wait = Wait {
            time: asked.unwrap_or_else(|| backoff(attempts.failures)),
            is_asked: asked.is_some(),
        };
        if wait.time > self.client.settings.max_wait {
            return Err(error);
        }
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

/// Returns how long to wait after failure number `attempt`, counted from 1.
fn backoff(attempt: u32) -> Duration {
    FIRST_WAIT
        .saturating_mul(1 << (attempt - 1).min(10))
        .min(MAX_WAIT)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use whelk_image::Reference;

    use super::*;
    use crate::{Client, Credentials, Settings};

    /// Without network, the first request fails at once; a transfer waits for the network to come back.
    #[tokio::test]
    async fn only_transfers_wait_for_name_servers() {
        let client = Client::new(Settings::default()).unwrap();
        let name: Reference = "registry.invalid/a:1".parse().unwrap();
        let repository = client.pull(&name, Credentials::Anonymous).unwrap();
        for (mut attempts, expected) in [(Attempts::default(), 0), (Attempts::of_transfer(), 1)] {
            let error = Error::Unreachable {
                host: "registry.invalid".into(),
                cause: "Try again".into(),
                obstacle: Obstacle::Unresolved,
            };
            let waits = AtomicU32::new(0);
            let tell = |_| {
                waits.fetch_add(1, Ordering::Relaxed);
            };
            let after = repository.after(&mut attempts, (error, None), tell).await;
            assert_eq!(after.is_ok(), expected == 1);
            assert_eq!(waits.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn backoff_doubles_up_to_the_maximum() {
        let waits = [1, 2, 3, 99].map(|attempt| backoff(attempt).as_millis());
        assert_eq!(waits, [500, 1_000, 2_000, 60_000]);
    }
}
