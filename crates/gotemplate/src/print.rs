//! Formats values as Go does: `%v`, as used by templates, and the verbs of `printf`.

use whelk_text::duration;

use crate::types::{ANY, Kind};
use crate::value::Typed;

/// Formats a value as the result of an action `{{…}}`.
pub(crate) fn shown(value: &Typed) -> String {
    let value = value.indirect();
    if value.is_nothing() {
        "<no value>".into()
    } else {
        plain(&value)
    }
}

/// Formats a value with `%v`.
pub(crate) fn plain(value: &Typed) -> String {
    Style::default().write(value, 0)
}

/// Concatenates values, with a space between two values that are not strings or, with `all`,
/// between all values.
pub(crate) fn joined(values: &[Typed], all: bool) -> String {
    let mut out = String::new();
    for (index, value) in values.iter().enumerate() {
        let is_text = |value: &Typed| value.kind() == Kind::Text;
        if index > 0 && (all || !is_text(value) && !is_text(&values[index - 1])) {
            out.push(' ');
        }
        out += &plain(value);
    }
    out
}

/// The variant of the verb: `%v`, `%+v` or `%#v`.
#[derive(Clone, Copy, Debug, Default)]
struct Style {
    /// Whether struct fields are printed with their names.
    names: bool,
    /// Whether values are printed as Go source.
    source: bool,
}

impl Style {
    fn write(self, value: &Typed, depth: usize) -> String {
        if !self.source
            && let Some(text) = by_method(value)
        {
            return text;
        }
        let element = |ty: &'static str, json: &serde_json::Value| {
            self.write(&value.part(ty, json.clone()), depth + 1)
        };
        let ty = value.ty;
        match value.kind() {
            Kind::Nothing => "<nil>".into(),
            Kind::Row => value.to_json().to_string(),
            Kind::Bool => value.as_bool().to_string(),
            Kind::Int if value.json.is_f64() => float(value.as_float(), 'g', None),
            Kind::Int | Kind::Uint => number(value),
            Kind::Float => float(value.as_float(), 'g', None),
            Kind::Text => {
                let text = value.as_text().unwrap_or_default();
                if self.source { quote(&text) } else { text }
            }
            Kind::Pointer(_) if value.json.is_null() => {
                if self.source {
                    format!("({ty})(nil)")
                } else {
                    "<nil>".into()
                }
            }
            Kind::Pointer(to) => {
                let inner = value.part(to, value.json.clone());
                match inner.kind() {
                    Kind::Struct(_) | Kind::List(_) | Kind::Map(..) if depth == 0 => {
                        format!("&{}", self.write(&inner, depth + 1))
                    }
                    // Go prints the pointer's address, which has no meaning here.
                    _ if self.source => format!("({ty})(0xc000000000)"),
                    _ => "0xc000000000".into(),
                }
            }
            Kind::List(of) => {
                let list: Vec<String> = value.list().iter().map(|json| element(of, json)).collect();
                match (self.source, value.json.is_null()) {
                    (true, true) => format!("{ty}(nil)"),
                    (true, false) => format!("{ty}{{{}}}", list.join(", ")),
                    _ => format!("[{}]", list.join(" ")),
                }
            }
            Kind::Map(_, of) => {
                let pair = |(key, json): (&String, _)| {
                    if self.source {
                        format!("{}:{}", quote(key), element(of, json))
                    } else {
                        format!("{key}:{}", element(of, json))
                    }
                };
                let list: Vec<String> = value.entries().into_iter().map(pair).collect();
                match (self.source, value.json.is_null()) {
                    (true, true) => format!("{ty}(nil)"),
                    (true, false) => format!("{ty}{{{}}}", list.join(", ")),
                    _ => format!("map[{}]", list.join(" ")),
                }
            }
            Kind::Struct(fields) => {
                let field = |(name, ty): &(&'static str, &'static str)| {
                    let text = self.write(&value.member(name, ty), depth + 1);
                    if self.names || self.source {
                        format!("{name}:{text}")
                    } else {
                        text
                    }
                };
                let list: Vec<String> = fields.iter().map(field).collect();
                if self.source {
                    format!("{ty}{{{}}}", list.join(", "))
                } else {
                    format!("{{{}}}", list.join(" "))
                }
            }
        }
    }
}

/// Formats types that have a `String` method.
fn by_method(value: &Typed) -> Option<String> {
    match value.ty {
        "time.Time" => Some(time(&value.as_text()?)),
        "time.Duration" => Some(duration::format(value.as_int())),
        _ => (value.types().string)(value),
    }
}

/// Formats an RFC 3339 time as Go's `time.Time` does: `2024-01-02 03:04:05.6 +0000 UTC`.
fn time(text: &str) -> String {
    const ZERO: &str = "0001-01-01T00:00:00Z";
    let text = if text.is_empty() { ZERO } else { text };
    let Ok(timestamp) = text.parse::<jiff::Timestamp>() else {
        return text.to_owned();
    };
    let offset = jiff::fmt::temporal::Pieces::parse(text)
        .ok()
        .and_then(|pieces| pieces.to_numeric_offset())
        .unwrap_or(jiff::tz::Offset::UTC);
    let zoned = timestamp.to_zoned(jiff::tz::TimeZone::fixed(offset));
    let name = if offset == jiff::tz::Offset::UTC {
        "UTC".to_owned()
    } else {
        zoned.strftime("%z").to_string()
    };
    format!("{} {name}", zoned.strftime("%Y-%m-%d %H:%M:%S%.f %z"))
}

/// Returns the decimal digits of an integer of any size.
fn number(value: &Typed) -> String {
    if value.json.is_number() {
        value.json.to_string()
    } else {
        "0".into()
    }
}

/// Quotes a text as Go's `%q` does.
fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\u{7}' => out += "\\a",
            '\u{8}' => out += "\\b",
            '\u{c}' => out += "\\f",
            '\u{b}' => out += "\\v",
            letter if u32::from(letter) < 0x20 || letter == '\u{7f}' => {
                out += &format!("\\x{:02x}", u32::from(letter))
            }
            letter if letter.is_control() => out += &format!("\\u{:04x}", u32::from(letter)),
            letter => out.push(letter),
        }
    }
    out + "\""
}

/// Formats a float with `%f`, `%e` or `%g`.
fn float(number: f64, verb: char, precision: Option<usize>) -> String {
    let exponential = |text: String| match text.split_once('e') {
        // Go's exponents have a sign and at least two digits.
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent
                .strip_prefix('-')
                .map_or(('+', exponent), |exponent| ('-', exponent));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    };
    match (verb, precision) {
        ('f' | 'F', precision) => format!("{number:.*}", precision.unwrap_or(6)),
        ('e', precision) => exponential(format!("{number:.*e}", precision.unwrap_or(6))),
        (_, None) => {
            let exponent = if number == 0.0 {
                0.0
            } else {
                number.abs().log10().floor()
            };
            if (-4.0..21.0).contains(&exponent) {
                number.to_string()
            } else {
                exponential(format!("{number:e}"))
            }
        }
        (_, Some(digits)) => {
            let digits = digits.max(1);
            let text = format!("{number:.*e}", digits - 1);
            let exponent: i64 = text
                .split_once('e')
                .and_then(|(_, exponent)| exponent.parse().ok())
                .unwrap_or(0);
            let trim = |text: String| {
                if text.contains('.') {
                    text.trim_end_matches('0').trim_end_matches('.').to_owned()
                } else {
                    text
                }
            };
            if exponent < -4 || exponent >= i64::try_from(digits).unwrap_or(i64::MAX) {
                let (mantissa, rest) = text.split_once('e').unwrap_or((&text, "0"));
                exponential(format!("{}e{rest}", trim(mantissa.to_owned())))
            } else {
                let after =
                    usize::try_from(i64::try_from(digits).unwrap_or(0) - 1 - exponent).unwrap_or(0);
                trim(format!("{number:.after$}"))
            }
        }
    }
}

/// The flags of a verb, as in `%-05.2f`.
#[derive(Debug, Default)]
struct Verb {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Maximum width and precision of a field in characters. Rust's formatting panics above 65,535.
const MAX_WIDTH: usize = 1 << 15;

/// Implements Go's `fmt.Sprintf`.
pub(crate) fn printf(format: &str, values: &[Typed]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = letters.next_if(|letter| "-+# 0".contains(*letter)) {
            match flag {
                '-' => verb.minus = true,
                '+' => verb.plus = true,
                '#' => verb.sharp = true,
                ' ' => verb.space = true,
                _ => verb.zero = true,
            }
        }
        let mut digits = |letters: &mut std::iter::Peekable<std::str::Chars>| {
            if letters.next_if_eq(&'*').is_some() {
                return values
                    .next()
                    .map(|value| usize::try_from(value.as_int()).unwrap_or(0).min(MAX_WIDTH));
            }
            let mut number = None;
            while let Some(digit) = letters.next_if(char::is_ascii_digit) {
                number =
                    Some((number.unwrap_or(0) * 10 + digit as usize - '0' as usize).min(MAX_WIDTH));
            }
            number
        };
        verb.width = digits(&mut letters);
        if letters.next_if_eq(&'.').is_some() {
            verb.precision = Some(digits(&mut letters).unwrap_or(0));
        }
        match letters.next() {
            None => out += "%!(NOVERB)",
            Some('%') => out.push('%'),
            Some(letter) => match values.next() {
                None => out += &format!("%!{letter}(MISSING)"),
                Some(value) => out += &verb.pad(&verb.write(letter, value), letter),
            },
        }
    }
    let extra: Vec<String> = values
        .map(|value| format!("{}={}", type_name(value), plain(value)))
        .collect();
    if !extra.is_empty() {
        out += &format!("%!(EXTRA {})", extra.join(", "));
    }
    out
}

/// Returns the Go name of a value's type.
pub(crate) fn type_name(value: &Typed) -> String {
    if value.ty.is_empty() {
        "<nil>".into()
    } else {
        value.ty.trim_start_matches('+').to_owned()
    }
}

impl Verb {
    fn write(&self, letter: char, value: &Typed) -> String {
        let style = Style {
            names: self.plus,
            source: self.sharp,
        };
        if letter == 'T' {
            return type_name(value);
        }
        if letter == 'v' {
            return style.write(value, 0);
        }
        // Verbs other than %v and %T apply to each element of a list.
        if let Kind::List(of) = value.kind()
            && !matches!(letter, 'p')
        {
            let list: Vec<String> = value
                .list()
                .iter()
                .map(|json| self.write(letter, &value.part(of, json.clone())))
                .collect();
            return format!("[{}]", list.join(" "));
        }
        let text = by_method(value)
            .filter(|_| matches!(letter, 's' | 'q' | 'x' | 'X'))
            .or_else(|| value.as_text());
        let whole = matches!(value.kind(), Kind::Int | Kind::Uint).then(|| value.as_int());
        let sign = |number: i64| {
            if number < 0 {
                "-"
            } else if self.plus {
                "+"
            } else if self.space {
                " "
            } else {
                ""
            }
        };
        let based = |number: i64, digits: String, prefix: &str| {
            format!(
                "{}{}{digits}",
                sign(number),
                if self.sharp { prefix } else { "" }
            )
        };
        match (letter, text, whole) {
            ('s', Some(text), _) => self
                .precision
                .map_or_else(|| text.clone(), |most| text.chars().take(most).collect()),
            ('q', Some(text), _) => quote(&text),
            ('x', Some(text), _) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('X', Some(text), _) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
            ('d', _, Some(number)) => based(number, number.unsigned_abs().to_string(), ""),
            ('x', _, Some(number)) => based(number, format!("{:x}", number.unsigned_abs()), "0x"),
            ('X', _, Some(number)) => based(number, format!("{:X}", number.unsigned_abs()), "0X"),
            ('o', _, Some(number)) => based(number, format!("{:o}", number.unsigned_abs()), "0"),
            ('b', _, Some(number)) => based(number, format!("{:b}", number.unsigned_abs()), "0b"),
            ('c', _, Some(number)) => letter_of(number).to_string(),
            ('q', _, Some(number)) => format!("{:?}", letter_of(number)),
            ('U', _, Some(number)) => format!("U+{number:04X}"),
            ('t', _, _) if value.kind() == Kind::Bool => value.as_bool().to_string(),
            ('f' | 'F' | 'e' | 'g', _, _) if value.kind() == Kind::Float => {
                let number = value.as_float();
                let text = float(number, letter, self.precision);
                if number < 0.0 {
                    text
                } else {
                    format!("{}{text}", sign(0))
                }
            }
            _ if value.is_nothing() => format!("%!{letter}(<nil>)"),
            _ => format!("%!{letter}({}={})", type_name(value), plain(value)),
        }
    }

    fn pad(&self, text: &str, letter: char) -> String {
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        if missing == 0 {
            return text.to_owned();
        }
        if self.minus {
            return format!("{text}{}", " ".repeat(missing));
        }
        if self.zero && letter != 'v' {
            let (sign, digits) =
                text.split_at(usize::from(text.starts_with(['-', '+']) && letter != 's'));
            return format!("{sign}{}{digits}", "0".repeat(missing));
        }
        format!("{}{text}", " ".repeat(missing))
    }
}

fn letter_of(number: i64) -> char {
    u32::try_from(number)
        .ok()
        .and_then(char::from_u32)
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Returns the type name of a value for an error about one of its fields.
pub(crate) fn receiver_name(value: &Typed, is_raw: bool) -> String {
    if is_raw || value.ty.is_empty() {
        ANY.into()
    } else {
        type_name(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_times() {
        assert_eq!(
            time("2026-11-28T10:35:10.168261044Z"),
            "2026-11-28 10:35:10.168261044 +0000 UTC"
        );
        assert_eq!(
            time("2026-11-28T10:35:10.5+01:00"),
            "2026-11-28 10:35:10.5 +0100 +0100"
        );
        assert_eq!(time(""), "0001-01-01 00:00:00 +0000 UTC");
    }

    #[test]
    fn formats_floats() {
        for (number, verb, precision, text) in [
            (1.5, 'g', None, "1.5"),
            (1e20, 'g', None, "100000000000000000000"),
            (1e21, 'g', None, "1e+21"),
            (0.00001, 'g', None, "1e-05"),
            (2.34567, 'g', Some(3), "2.35"),
            (1234.5, 'g', Some(2), "1.2e+03"),
            (2.0, 'f', None, "2.000000"),
            (2.5, 'f', Some(1), "2.5"),
            (1500.0, 'e', Some(2), "1.50e+03"),
        ] {
            assert_eq!(float(number, verb, precision), text);
        }
    }
}
