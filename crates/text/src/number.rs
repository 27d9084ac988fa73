//! Conversions between kinds of numbers.

/// Converts a number to an integer, towards zero; one out of range to the nearest end of it, and
/// not-a-number to 0.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the cast saturates as documented"
)]
pub fn saturating(value: f64) -> i64 {
    value as i64
}
