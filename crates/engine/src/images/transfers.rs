//! Limits the transfers of an engine: one of each layer, and so many at once in all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use whelk_image::progress::State;
use whelk_registry::Wait;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result};

/// The running transfers in one direction, by what they transfer.
#[derive(Debug)]
pub(super) struct Transfers<K> {
    permits: RwLock<Permits>,
    /// A lock for each thing that is being transferred. Others that want the same wait for it.
    running: Mutex<BTreeMap<K, Arc<tokio::sync::Mutex<()>>>>,
}

impl<K: Ord> Transfers<K> {
    pub(super) fn new(maximum: usize) -> Self {
        Self {
            permits: RwLock::new(permits(maximum)),
            running: Mutex::default(),
        }
    }

    /// Changes the maximum number of transfers at a time. With another one, those that run are not counted
    /// any more.
    pub(super) fn limit(&self, maximum: usize) {
        let mut current = self.permits.write().ignore_poison();
        if current.maximum != maximum {
            *current = permits(maximum);
        }
    }

    /// Waits until nobody else transfers this, and for one of the limited number of parallel transfers.
    /// `waiting` is called before each wait.
    pub(super) async fn claim(&self, key: K, waiting: impl Fn()) -> Result<Claim> {
        let turn = self.turn(key);
        let turn = match turn.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) => {
                waiting();
                turn.lock_owned().await
            }
        };
        let permits = self.permits.read().ignore_poison().free.clone();
        let permit = match permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                waiting();
                let permit = permits.acquire_owned().await;
                permit.map_err(|error| Error::internal(error.to_string()))?
            }
        };
        Ok(Claim {
            _turn: turn,
            _permit: permit,
        })
    }

    fn turn(&self, key: K) -> Arc<tokio::sync::Mutex<()>> {
        let mut running = self.running.lock().ignore_poison();
        // Locks without another holder belong to finished transfers.
        running.retain(|_, turn| Arc::strong_count(turn) > 1);
        running.entry(key).or_default().clone()
    }
}

/// The permits for transfers at a time.
#[derive(Debug)]
struct Permits {
    maximum: usize,
    free: Arc<Semaphore>,
}

fn permits(maximum: usize) -> Permits {
    Permits {
        maximum,
        free: Arc::new(Semaphore::new(maximum.max(1))),
    }
}

/// The right to transfer something. The thread that unpacks a layer shares it, because it ends later
/// than a cancelled pull.
#[derive(Debug)]
pub(super) struct Claim {
    _turn: OwnedMutexGuard<()>,
    _permit: OwnedSemaphorePermit,
}

/// Returns how a wait before a retry is shown.
pub(super) fn wait_state(wait: Wait) -> State {
    // Shown in whole seconds.
    let seconds = wait.time.as_millis().div_ceil(1000);
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    if wait.is_asked {
        State::Delayed { seconds }
    } else {
        State::Retrying { seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn transfers_that_run_count_after_the_same_limit_was_set_again() {
        let transfers = Transfers::new(1);
        let _first = transfers.claim("one", || {}).await.unwrap();
        transfers.limit(1);
        let waits = std::cell::Cell::new(false);
        let second = transfers.claim("two", || waits.set(true));
        let second = tokio::time::timeout(std::time::Duration::from_millis(20), second);
        assert!(second.await.is_err() && waits.get());
        transfers.limit(2);
        transfers.claim("two", || {}).await.unwrap();
    }
}
