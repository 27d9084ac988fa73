//! When unused images are removed to make room.

use std::time::Duration;

use crate::error::{Error, Result};

/// How much space images may take, and which of them are removed when it is too much. Without a limit
/// nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGc {
    /// Maximum size of all images in bytes.
    pub max_used: Option<u64>,
    /// Share of the disk in percent above which images are removed, and down to which they are.
    pub high_threshold: Option<u8>,
    pub low_threshold: u8,
    /// An image stays for this time after it came, or was used last.
    pub minimum_age: Duration,
    /// Time between two checks.
    pub interval: Duration,
}

/// The use of a disk in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskUse {
    pub(crate) used: u64,
    pub(crate) total: u64,
}

impl ImageGc {
    /// # Errors
    /// Returns an error that names the setting which is invalid.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: &str| Err(Error::invalid(text));
        let Some(high) = self.high_threshold else {
            if self.max_used.is_none() {
                return wrong("max-used-space or high-threshold is required");
            }
            return Ok(());
        };
        if !(1..=100).contains(&high) {
            return wrong("high-threshold: want 1 to 100 percent");
        }
        if self.low_threshold >= high {
            return wrong("low-threshold: must be below high-threshold");
        }
        Ok(())
    }

    /// Returns how many bytes are to be removed of images that take `images` bytes.
    pub(crate) fn excess(&self, images: u64, disk: Option<DiskUse>) -> u64 {
        let over = self.max_used.map_or(0, |most| images.saturating_sub(most));
        let share = |percent: u8, total: u64| total / 100 * u64::from(percent);
        let full = match (self.high_threshold, disk) {
            (Some(high), Some(disk)) if disk.used > share(high, disk.total) => disk
                .used
                .saturating_sub(share(self.low_threshold, disk.total)),
            _ => 0,
        };
        over.max(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greater_excess_counts() {
        let gc = ImageGc {
            max_used: Some(100),
            high_threshold: Some(85),
            low_threshold: 80,
            minimum_age: Duration::ZERO,
            interval: Duration::ZERO,
        };
        let disk = |used| Some(DiskUse { used, total: 1000 });
        assert_eq!(gc.excess(100, disk(850)), 0);
        assert_eq!(gc.excess(130, disk(850)), 30);
        assert_eq!(gc.excess(130, disk(851)), 51);
        assert_eq!(gc.excess(300, disk(851)), 200);
        assert_eq!(gc.excess(300, None), 200);
    }
}
