//! The minimum rate of transfers.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// The minimum rate: so many bytes in so many seconds.
const RATE: (u64, u64) = (16 << 10, 30);

/// Measures the rate of a transfer in windows of time. Only the time spent waiting for data counts, because the receiver may be
/// slow itself.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    window: Duration,
    /// What is left of the window.
    left: Duration,
    /// Bytes since the window has begun.
    received: u64,
}

/// Too few bytes have arrived in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow {
    received: u64,
    window: Duration,
}

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} s", self.received, self.window.as_secs())
    }
}

impl Pace {
    /// Begins the first window. The other side may be silent for as long as a window, and no longer.
    pub const fn new(window: Duration) -> Self {
        Self {
            window,
            left: window,
            received: 0,
        }
    }

    /// Returns the number of bytes that must arrive in a window.
    pub const fn minimum(window: Duration) -> u64 {
        let (bytes, seconds) = RATE;
        window.as_secs() * bytes / seconds
    }

    /// Waits for the next piece of a transfer, which is dropped if it takes too long. `size` returns the number of its bytes;
    /// `None` if it is the end, or an error.
    ///
    /// # Errors
    /// Returns an error if too few bytes have arrived at the end of a window.
    pub async fn wait<T>(
        &mut self,
        next: impl Future<Output = T>,
        size: impl Fn(&T) -> Option<usize>,
    ) -> Result<T, TooSlow> {
        let mut next = pin!(next);
        loop {
            let begun = Instant::now();
            let piece = timeout(self.left, &mut next).await.ok();
            let bytes = match &piece {
                Some(piece) => size(piece),
                None => Some(0),
            };
            if let Some(bytes) = bytes {
                self.add(begun.elapsed(), bytes as u64)?;
            }
            if let Some(piece) = piece {
                return Ok(piece);
            }
        }
    }

    /// Adds bytes that arrived after a wait. The next window begins at the end of one.
    fn add(&mut self, wait: Duration, bytes: u64) -> Result<(), TooSlow> {
        self.left = self.left.saturating_sub(wait);
        self.received += bytes;
        if self.left > Duration::ZERO {
            return Ok(());
        }
        let Self {
            window, received, ..
        } = *self;
        *self = Self::new(window);
        match received < Self::minimum(window) {
            true => Err(TooSlow { received, window }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(30);
    const LEAST: u64 = Pace::minimum(WINDOW);

    #[test]
    fn only_time_spent_waiting_counts_against_a_slow_transfer() {
        let second = Duration::from_secs(1);
        // One byte per second.
        let mut pace = Pace::new(WINDOW);
        let slow = (0..30).position(|_| pace.add(second, 1).is_err());
        assert_eq!(slow, Some(29));
        // Little at a time, but without a wait: the receiver is slow.
        let mut pace = Pace::new(WINDOW);
        assert!((0..1_000).all(|_| pace.add(Duration::ZERO, 1).is_ok()));
        assert_eq!(pace.left, WINDOW);
        // Enough in each window.
        let mut pace = Pace::new(WINDOW);
        assert!((0..300).all(|_| pace.add(second, LEAST / 30 + 1).is_ok()));
        // Nothing at all.
        let error = Pace::new(WINDOW).add(WINDOW, 0).unwrap_err();
        assert_eq!(error.to_string(), "0 bytes in 30 s");
    }

    #[tokio::test]
    async fn pieces_are_waited_for_as_long_as_a_window() {
        let size = |piece: &&str| (!piece.is_empty()).then_some(piece.len());
        let mut pace = Pace::new(Duration::from_millis(20));
        // The window has no whole second, so that any number of bytes is enough.
        let found = pace.wait(std::future::ready("a"), size).await;
        assert_eq!(found, Ok("a"));
        pace.window = Duration::from_secs(1);
        let found = pace.wait(std::future::pending::<&str>(), size).await;
        assert!(found.is_err());
        // The end may come late.
        pace.left = Duration::ZERO;
        assert_eq!(pace.wait(std::future::ready(""), size).await, Ok(""));
    }
}
