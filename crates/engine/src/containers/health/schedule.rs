//! When which container is checked next: one list, and one task that sleeps until its first entry. Times are
//! aligned, so that it wakes up for several containers at once.

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
    /// When the first turn was added, from which times are aligned.
    origin: Option<Instant>,
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
        let (now, delay) = (Instant::now(), delay.min(LONGEST));
        let origin = *turns.origin.get_or_insert(now);
        let turn = Turn {
            at: origin + aligned(now.duration_since(origin) + delay, delay),
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

/// Returns a time that is at most a fiftieth of `delay`, and 20 ms, later: a multiple of that. Each wakeup of a
/// task by a timer costs tokio three system calls.
fn aligned(at: Duration, delay: Duration) -> Duration {
    const COARSEST: Duration = Duration::from_millis(20);
    let grain = (delay / 50).min(COARSEST).as_nanos();
    if grain == 0 {
        return at;
    }
    let nanoseconds = at.as_nanos().div_ceil(grain).saturating_mul(grain);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)).max(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_aligned_but_hardly_later() {
        let check = |at: u64, delay: u64, expected: u64| {
            let (at, delay) = (Duration::from_micros(at), Duration::from_micros(delay));
            assert_eq!(aligned(at, delay), Duration::from_micros(expected));
        };
        check(1_000_000, 1_000_000, 1_000_000);
        check(1_000_001, 1_000_000, 1_020_000);
        check(30_000_001, 30_000_000, 30_020_000);
        check(1_019_999, 500_000, 1_020_000);
        check(1_010_001, 500_000, 1_020_000);
        check(1_009_999, 500_000, 1_010_000);
        check(1_001, 1_000, 1_020);
        check(17, 0, 17);
        let long = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        assert!(aligned(long + Duration::from_nanos(1), long) > long);
    }
}
