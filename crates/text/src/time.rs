//! Points in time, as filters and the parameters `since` and `until` of the Engine API have them.

use crate::duration;

/// The seconds since 1970 that RFC 3339 can tell: those of the years 0 to 9999.
pub const FOUR_DIGITS: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

/// Parses a time, and returns it in nanoseconds since the epoch. Accepts seconds since the epoch
/// with an optional fraction, RFC 3339 or a prefix of it (in local time), and a duration before
/// `now` (`1h30m`). Times before 1677 and after 2262 are the first and the last that can be represented.
pub fn parse(text: &str, now: i64) -> Option<i64> {
    const SECOND: i64 = 1_000_000_000;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if let Ok(seconds) = seconds.parse::<i64>()
        && fraction.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Some(
            seconds
                .saturating_mul(SECOND)
                .saturating_add(format!("{fraction:0<9.9}").parse().ok()?),
        );
    }
    if let Ok(back) = duration::parse(text) {
        return now.checked_sub(back);
    }
    let time = text.parse::<jiff::Timestamp>().or_else(|_| {
        let date = || {
            text.parse::<jiff::civil::Date>()
                .map(|date| date.to_datetime(jiff::civil::Time::midnight()))
        };
        let local = text.parse::<jiff::civil::DateTime>().or_else(|_| date());
        local
            .and_then(|time| time.to_zoned(jiff::tz::TimeZone::system()))
            .map(|time| time.timestamp())
    });
    let nanoseconds = time.ok()?.as_nanosecond();
    Some(i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years_have_four_digits() {
        let told = |seconds: i64| jiff::Timestamp::from_second(seconds).unwrap().to_string();
        assert_eq!(told(*FOUR_DIGITS.start()), "0000-01-01T00:00:00Z");
        let year = jiff::civil::date(9999, 12, 29).at(23, 59, 59, 0);
        let last = year.to_zoned(jiff::tz::TimeZone::UTC).unwrap();
        let last = last.timestamp().as_second() + 2 * 24 * 60 * 60;
        assert_eq!(*FOUR_DIGITS.end(), last);
    }

    #[test]
    fn parses_times() {
        const SECOND: i64 = 1_000_000_000;
        let now = 1_700_000_000 * SECOND;
        assert_eq!(parse("1600000000", now), Some(1_600_000_000 * SECOND));
        assert_eq!(
            parse("1600000000.5", now),
            Some(1_600_000_000 * SECOND + SECOND / 2)
        );
        assert_eq!(parse("1h30m", now), Some(now - 5400 * SECOND));
        assert_eq!(parse("500ms", now), Some(now - SECOND / 2));
        assert_eq!(
            parse("2020-09-13T12:26:40Z", now),
            Some(1_600_000_000 * SECOND)
        );
        assert_eq!(parse("9000-01-01", now), Some(i64::MAX));
        assert!(parse("2020-09-13", now).is_some() && parse("2020-09-13T12:26", now).is_some());
        for wrong in [
            "",
            "x",
            "1h30",
            "1 hour",
            "PT1H",
            "99999999999999999999h",
            "1.x",
        ] {
            assert_eq!(parse(wrong, now), None, "{wrong}");
        }
    }
}
