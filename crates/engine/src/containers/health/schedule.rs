//! When which container is checked next: one list, and one task that sleeps until its first entry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use whelk_sys::sync::IgnorePoison as _;

use crate::containers::Container;

#[derive(Debug, Default)]
pub(crate) struct Schedule {
    turns: Mutex<Turns>,
    /// Notified when there is a new first turn.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Turns {
    by_time: BTreeMap<Turn, Arc<Container>>,
    added: u64,
}

/// An entry of the schedule. The number distinguishes those of the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    at: Instant,
    number: u64,
}

impl Schedule {
    /// Adds a turn of a container after `delay`.
    pub(super) fn add(&self, container: &Arc<Container>, delay: Duration) -> Turn {
        /// A longer delay than a computer runs, which an [`Instant`] can hold.
        const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        let mut turns = self.turns.lock().ignore_poison();
        turns.added += 1;
        let turn = Turn {
            at: Instant::now() + delay.min(LONGEST),
            number: turns.added,
        };
        turns.by_time.insert(turn, container.clone());
        if turns.by_time.first_key_value().map(|(&first, _)| first) == Some(turn) {
            self.earlier.notify_one();
        }
        turn
    }

    pub(super) fn remove(&self, turn: Turn) {
        self.turns.lock().ignore_poison().by_time.remove(&turn);
    }

    /// Waits for the next turn and removes it.
    pub(super) async fn next(&self) -> (Turn, Arc<Container>) {
        loop {
            let first = {
                let mut turns = self.turns.lock().ignore_poison();
                let first = turns.by_time.first_entry();
                match first.map(|entry| (entry.key().at <= Instant::now(), entry)) {
                    Some((true, entry)) => return entry.remove_entry(),
                    Some((false, entry)) => Some(entry.key().at),
                    None => None,
                }
            };
            let earlier = self.earlier.notified();
            match first {
                None => earlier.await,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = earlier => {}
                },
            }
        }
    }
}
