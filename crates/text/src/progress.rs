//! Progress bars, as Docker's package `jsonmessage` draws them.

use crate::size::decimal;

/// Width of a terminal in characters that is assumed if it is not known.
pub const WIDTH: usize = 200;

/// Returns the bar and the numbers of a progress in bytes, for a terminal of `width` characters:
/// `[=========>   ]  1.05MB/5.25MB`. The bar is left out if the terminal is too narrow, and the
/// total if it is 0 or less than `current`.
pub fn bar(current: u64, total: u64, width: usize) -> String {
    const LENGTH: usize = 50;
    const MIN_WIDTH: usize = 110;
    if current == 0 && total == 0 {
        return String::new();
    }
    let mut text = String::new();
    if total > 0 && width > MIN_WIDTH {
        // One step for two percent.
        let percent = current as f64 / total as f64 * 100.0;
        let steps = (1..=50).filter(|step| percent >= f64::from(2 * step));
        let done = steps.count();
        text = format!("[{}>{}] ", "=".repeat(done), " ".repeat(LENGTH - done));
    }
    text += &format!("{:>8}", decimal(current, 4));
    if total > 0 && current <= total {
        text += &format!("/{}", decimal(total, 4));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_bars() {
        let full = "=".repeat(50);
        let line = |done: usize| format!("[{}>{}]", "=".repeat(done), " ".repeat(50 - done));
        for (current, total, width, expected) in [
            (0, 0, WIDTH, String::new()),
            (1, 0, WIDTH, "      1B".into()),
            (0, 100, WIDTH, format!("{}       0B/100B", line(0))),
            (
                32_768,
                4_500_000,
                WIDTH,
                format!("{}  32.77kB/4.5MB", line(0)),
            ),
            (57, 100, WIDTH, format!("{}      57B/100B", line(28))),
            // As Go computes it: 57.99… percent.
            (58, 100, WIDTH, format!("{}      58B/100B", line(28))),
            (1_000_000, 1_000_000, 111, format!("[{full}>]      1MB/1MB")),
            (1_000_000, 1_000_000, 110, "     1MB/1MB".into()),
            // The archive gave a wrong size.
            (3, 2, WIDTH, format!("[{full}>]       3B")),
        ] {
            assert_eq!(bar(current, total, width), expected, "{current}/{total}");
        }
    }
}
