//! Output formatting and values with a format: tables, units, times, Go templates.

use std::cmp::Ordering;

pub(crate) mod moment;
pub(crate) mod table;
pub(crate) mod template;
pub(crate) mod units;

/// Natural order: compares runs of digits as numbers (`web-2` before `web-10`).
pub(crate) fn natural(whole_one: &str, whole_other: &str) -> Ordering {
    let (mut one, mut other) = (whole_one.as_bytes(), whole_other.as_bytes());
    while let ([first, rest @ ..], [other_first, other_rest @ ..]) = (one, other) {
        let ordering = if first.is_ascii_digit() && other_first.is_ascii_digit() {
            let (number, other_number) = (take_number(&mut one), take_number(&mut other));
            number
                .len()
                .cmp(&other_number.len())
                .then(number.cmp(other_number))
        } else {
            (one, other) = (rest, other_rest);
            first.cmp(other_first)
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
    one.len().cmp(&other.len()).then(whole_one.cmp(whole_other))
}

/// Removes leading digits from `text`, and returns them without leading zeros.
fn take_number<'t>(text: &mut &'t [u8]) -> &'t [u8] {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    *text = rest;
    &number[number.iter().take_while(|digit| **digit == b'0').count()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_numbers_in_names_by_value() {
        let ordered = [
            "", "01", "1", "2", "10", "a", "a0", "a1b", "a1b2", "a1b10", "a2", "a010", "a010b", "b",
        ];
        for (index, one) in ordered.iter().enumerate() {
            for (other_index, other) in ordered.iter().enumerate() {
                assert_eq!(
                    natural(one, other),
                    index.cmp(&other_index),
                    "{one:?} {other:?}"
                );
            }
        }
    }
}
