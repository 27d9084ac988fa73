//! Numbers of expressions. Whole ones of up to 64 bits are exact, as ids and times in nanoseconds need it; all others are doubles. What
//! would lose digits of a whole number is no result, instead of another number.

use std::cmp::Ordering;

use serde_json::Value as Json;

/// Why there is no number.
pub(crate) const TOO_LARGE: &str =
    "whole numbers of more than 64 bits are not available in this version of whelk";

/// Why digits that are written are none.
const TOO_PRECISE: &str =
    "numbers with a fraction and more than 15 digits are not available in this version of whelk";

/// The maximum length of what is written.
const MAX_LENGTH: usize = 400;

/// Why a text that is longer is none.
const TOO_LONG: &str =
    "numbers of more than 400 characters are not available in this version of whelk";

/// Why a text is none.
pub(crate) const REQUIRED: &str = "a number is required";

/// Digits that a double keeps of any decimal number.
const DIGITS: usize = 15;

/// The least number of 64 bits.
pub(crate) const SMALLEST: f64 = -9_223_372_036_854_775_808.0;

/// The largest whole number up to which doubles have all of them.
const EXACT: i128 = 1 << 53;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    /// Of 64 bits, with or without a sign.
    Whole(i128),
    /// One with a fraction.
    Double(f64),
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(one), Self::Whole(other)) => one.partial_cmp(other),
            (one, other) => one.double().partial_cmp(&other.double()),
        }
    }
}

impl Number {
    /// Returns a whole number, unless it is too large.
    pub fn whole(number: i128) -> Option<Self> {
        let all = i128::from(i64::MIN)..=i128::from(u64::MAX);
        all.contains(&number).then_some(Self::Whole(number))
    }

    /// Returns a number, unless it is infinite, none, or a whole one that is too large.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a double in the range of 64 bits"
    )]
    pub fn of(number: f64) -> Option<Self> {
        if number.fract() != 0.0 || !number.is_finite() {
            return number.is_finite().then_some(Self::Double(number));
        }
        // Saturates.
        Self::whole(number as i128)
    }

    /// Reads a number that is written in decimal digits.
    ///
    /// # Errors
    /// Returns why it is none, also if it would lose digits.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        let is_plain = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        if !text.bytes().all(is_plain) {
            return Err(REQUIRED);
        }
        if text.len() > MAX_LENGTH {
            return Err(TOO_LONG);
        }
        let double: f64 = text.parse().map_err(|_| REQUIRED)?;
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let fraction = mantissa
            .split_once('.')
            .map_or(0, |(_, digits)| digits.len());
        let digits = mantissa.replace(['.', '+', '-'], "");
        let digits = digits.trim_start_matches('0');
        let significant = digits.trim_end_matches('0');
        if significant.is_empty() {
            return Ok(Self::Whole(0));
        }
        if !double.is_finite() {
            return Err(TOO_LARGE);
        }
        // The power of ten that the last of these digits has.
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let zeros = count(digits.len() - significant.len());
        let exponent: i64 = exponent.parse().map_err(|_| TOO_PRECISE)?;
        let place = exponent
            .saturating_add(zeros)
            .saturating_sub(count(fraction));
        if place < 0 {
            let is_exact = significant.len() <= DIGITS && double.is_normal();
            return is_exact.then_some(Self::Double(double)).ok_or(TOO_PRECISE);
        }
        let factor = u32::try_from(place).ok();
        let factor = factor.and_then(|place| 10_i128.checked_pow(place));
        let number: Option<i128> = significant.parse().ok();
        let number = factor.and_then(|factor| number?.checked_mul(factor));
        let sign = if text.starts_with('-') { -1 } else { 1 };
        number
            .and_then(|number| Self::whole(sign * number))
            .ok_or(TOO_LARGE)
    }

    /// Returns the nearest double.
    #[allow(clippy::cast_precision_loss, reason = "that is what is asked for")]
    pub fn double(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Double(number) => number,
        }
    }

    /// Returns the double that is this number, if there is one.
    pub fn exact(self) -> Option<f64> {
        match self {
            Self::Whole(number) if number.abs() > EXACT => None,
            number => Some(number.double()),
        }
    }

    pub fn is_zero(self) -> bool {
        matches!(self, Self::Whole(0))
    }

    pub fn plus(self, other: Self) -> Option<Self> {
        self.combined(other, i128::checked_add, |one, other| one + other)
    }

    pub fn minus(self, other: Self) -> Option<Self> {
        self.combined(other, i128::checked_sub, |one, other| one - other)
    }

    pub fn times(self, other: Self) -> Option<Self> {
        self.combined(other, i128::checked_mul, |one, other| one * other)
    }

    pub fn divided_by(self, other: Self) -> Option<Self> {
        let whole = |one: i128, other: i128| match one.checked_rem(other) {
            Some(0) => one.checked_div(other),
            _ => None,
        };
        self.combined(other, whole, |one, other| one / other)
    }

    pub fn modulo(self, other: Self) -> Option<Self> {
        self.combined(other, i128::checked_rem, |one, other| one % other)
    }

    pub fn power(self, other: Self) -> Option<Self> {
        let whole = |base: i128, exponent: i128| base.checked_pow(u32::try_from(exponent).ok()?);
        self.combined(other, whole, f64::powf)
    }

    /// Returns the result of an operation: of whole numbers if it has one of them, and otherwise of doubles.
    fn combined(
        self,
        other: Self,
        whole: fn(i128, i128) -> Option<i128>,
        double: fn(f64, f64) -> f64,
    ) -> Option<Self> {
        if let (Self::Whole(one), Self::Whole(other)) = (self, other)
            && let Some(number) = whole(one, other)
        {
            return Self::whole(number);
        }
        Self::of(double(self.exact()?, other.exact()?))
    }

    /// Returns the text, without an exponent.
    pub fn text(self) -> String {
        /// Digits behind the first one.
        const BEHIND: usize = DIGITS - 1;
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Double(number) => {
                // 0.1 + 0.2 is 0.3: HCL's numbers are decimal for users.
                let rounded: f64 = format!("{number:.BEHIND$e}").parse().unwrap_or(number);
                format!("{rounded}")
            }
        }
    }

    pub fn json(self) -> Json {
        match self {
            Self::Whole(number) => match (i64::try_from(number), u64::try_from(number)) {
                (Ok(number), _) => number.into(),
                (_, Ok(number)) => number.into(),
                _ => Json::Null,
            },
            Self::Double(_) => self.text().parse::<f64>().map_or(Json::Null, Json::from),
        }
    }
}

impl TryFrom<&serde_json::Number> for Number {
    type Error = &'static str;

    fn try_from(number: &serde_json::Number) -> Result<Self, Self::Error> {
        let signed = number.as_i64().map(i128::from);
        if let Some(whole) = signed.or_else(|| number.as_u64().map(i128::from)) {
            return Ok(Self::Whole(whole));
        }
        // A whole one of more digits was read as a double. The least that is none of them was read as itself above.
        let double = number.as_f64().filter(|double| *double > SMALLEST);
        double.and_then(Self::of).ok_or(TOO_LARGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_users_write_them() {
        for (number, expected) in [
            (1.0, "1"),
            (-0.0, "0"),
            (1.5, "1.5"),
            (0.1 + 0.2, "0.3"),
            (1e18, "1000000000000000000"),
            (1e-7, "0.0000001"),
        ] {
            assert_eq!(Number::of(number).unwrap().text(), expected);
        }
        assert_eq!(Number::of(3.0).unwrap().json().to_string(), "3");
        assert_eq!(Number::of(0.25).unwrap().json().to_string(), "0.25");
        for too_large in [1e20, -1e19, f64::INFINITY, f64::NAN] {
            assert_eq!(Number::of(too_large), None, "{too_large}");
        }
    }

    #[test]
    fn digits_that_are_written_are_not_lost() {
        for (text, expected) in [
            ("0", Ok("0")),
            ("-0.00e5", Ok("0")),
            ("007", Ok("7")),
            ("1.50", Ok("1.5")),
            ("-1.5e1", Ok("-15")),
            ("12e-1", Ok("1.2")),
            ("1e19", Ok("10000000000000000000")),
            ("9007199254740993.0", Ok("9007199254740993")),
            ("18446744073709551615", Ok("18446744073709551615")),
            ("0.123456789012345", Ok("0.123456789012345")),
            ("18446744073709551616", Err(TOO_LARGE)),
            ("-9223372036854775809", Err(TOO_LARGE)),
            ("1e20", Err(TOO_LARGE)),
            ("1e400", Err(TOO_LARGE)),
            ("1e99999999999999999999", Err(TOO_LARGE)),
            ("1e-400", Err(TOO_PRECISE)),
            ("1e-99999999999999999999", Err(TOO_PRECISE)),
            ("123456789012345678.5", Err(TOO_PRECISE)),
            ("0.1234567890123456", Err(TOO_PRECISE)),
            ("", Err(REQUIRED)),
            ("inf", Err(REQUIRED)),
            ("1-1", Err(REQUIRED)),
        ] {
            let read = Number::read(text).map(Number::text);
            assert_eq!(read, expected.map(str::to_owned), "{text}");
        }
        let zeros = |count: usize| Number::read(&format!("1.{}", "0".repeat(count)));
        assert_eq!(zeros(300), Ok(Number::Whole(1)));
        assert_eq!(zeros(400), Err(TOO_LONG));
    }

    #[test]
    fn whole_numbers_lose_no_digits() {
        let number = |number: i128| Number::whole(number).unwrap();
        let large = number(9_223_372_036_854_775_807);
        let text = |number: Option<Number>| number.map(Number::text);
        assert_eq!(
            text(large.plus(number(1))).as_deref(),
            Some("9223372036854775808")
        );
        assert_eq!(
            text(large.minus(number(10))).as_deref(),
            Some("9223372036854775797")
        );
        assert_eq!(
            large.plus(number(1)).unwrap().json().to_string(),
            "9223372036854775808"
        );
        assert_eq!(large.modulo(number(10)), Some(number(7)));
        assert_eq!(
            large.divided_by(number(7)).map(Number::text).unwrap(),
            "1317624576693539401"
        );
        assert_eq!(number(2).power(number(63)), large.plus(number(1)));
        assert_eq!(number(7).divided_by(number(2)), Number::of(3.5));
        assert_eq!(number(2).power(number(-1)), Number::of(0.5));
        assert!(large < large.plus(number(1)).unwrap());
        // Neither of these is a number here.
        let half = Number::of(0.5).unwrap();
        for lost in [
            large.times(large),
            large.divided_by(number(2)),
            large.plus(half),
            number(2).power(number(64)),
            number(2).power(number(1000)),
        ] {
            assert_eq!(lost, None);
        }
    }
}
