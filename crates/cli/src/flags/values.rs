//! Parses flag values as Go's package `strconv` does.

/// Parses a boolean in any form that Go's `strconv.ParseBool` accepts.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    whelk_text::parse_bool(text)
        .ok_or_else(|| format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))
}

/// Parses an integer literal as Go does (`10`, `0x1f`, `0b1`, `0o17`, `017`, `1_000`). Returns it
/// in decimal.
pub(super) fn parse_integer(
    text: &str,
    function: &str,
    least: i128,
    most: i128,
) -> Result<String, String> {
    let wrong = |what: &str| format!("strconv.{function}: parsing {text:?}: {what}");
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) if least < 0 => (text.starts_with('-'), digits),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some(octal) if octal.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    let plain =
        if digits.contains("__") || digits.ends_with('_') || radix == 10 && digits.starts_with('_')
        {
            String::new()
        } else {
            digits.replace('_', "")
        };
    if plain.is_empty() || !plain.chars().all(|digit| digit.is_digit(radix)) {
        return Err(wrong("invalid syntax"));
    }
    let number = i128::from_str_radix(&plain, radix)
        .ok()
        .map(|number| if negative { -number } else { number });
    number
        .filter(|number| (least..=most).contains(number))
        .map(|number| number.to_string())
        .ok_or_else(|| wrong("value out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_gos_integer_notations() {
        let parse =
            |text: &str| parse_integer(text, "ParseInt", i64::MIN.into(), i64::MAX.into()).ok();
        for (text, number) in [
            ("0", "0"),
            ("017", "15"),
            ("0x1F", "31"),
            ("1_000", "1000"),
            ("+5", "5"),
            ("-0o7", "-7"),
            ("0x_f", "15"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(number), "{text}");
        }
        for text in [
            "",
            "-",
            "1.5",
            "08",
            "1__0",
            "_1",
            "1_",
            "0x",
            "9223372036854775808",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
