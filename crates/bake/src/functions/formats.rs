//! Functions that format, encode and decode.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{MAX_ITEMS, MAX_TEXTS, Returned, bounded_list, bounded_text, count};
use crate::value::Value;

/// The maximum width and precision of a verb.
const MAX_WIDTH: usize = 10_000;

/// The maximum number of columns and of cells of a table.
const MAX_COLUMNS: usize = 1_000;
const MAX_CELLS: usize = 1_000_000;

/// The maximum length of the names of all columns, counted for each record.
const MAX_NAMES: usize = 64 << 20;

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    Some(match (name, arguments) {
        ("format", [form, rest @ ..]) => form
            .text()
            .and_then(|form| format(&form, rest))
            .and_then(bounded_text),
        ("formatlist", [form, rest @ ..]) => formatlist(form, rest),
        ("jsonencode", [value]) => Ok(jsonencode(value).into()),
        ("jsondecode", [value]) => value.text().and_then(|text| {
            let json: serde_json::Value =
                serde_json::from_str(&text).map_err(|error| error.to_string())?;
            Value::try_from(json)
        }),
        ("base64encode", [value]) => value.text().map(|text| STANDARD.encode(text).into()),
        ("base64decode", [value]) => value.text().and_then(|text| {
            let bytes = STANDARD
                .decode(&text)
                .map_err(|_| format!("failed to decode base64 data {text:?}"))?;
            let text = String::from_utf8(bytes)
                .map_err(|_| "the result of decoding the given string is not valid UTF-8")?;
            Ok(text.into())
        }),
        ("urlencode", [value]) => value.text().map(|text| urlencode(&text).into()),
        ("csvdecode", [value]) => value.text().and_then(|text| csvdecode(&text)),
        ("format" | "formatlist", _) => count("at least 1 argument", arguments),
        (
            "jsonencode" | "jsondecode" | "base64encode" | "base64decode" | "urlencode"
            | "csvdecode",
            _,
        ) => count("1 argument", arguments),
        _ => return None,
    })
}

/// Encodes as Go does: also what has a meaning in HTML or in JavaScript is escaped.
fn jsonencode(value: &Value) -> String {
    let mut shown = String::new();
    // They are in texts only.
    for letter in value.json().to_string().chars() {
        match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                shown += &format!("\\u{:04x}", u32::from(letter));
            }
            letter => shown.push(letter),
        }
    }
    shown
}

fn urlencode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        b' ' => "+".into(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// Returns the records of a table as objects, whose names are in the first line (RFC 4180).
fn csvdecode(text: &str) -> Returned {
    let mut rows = csv_rows(text)?.into_iter();
    let head = rows.next().ok_or("missing header line")?;
    let mut names = HashSet::new();
    if let Some(name) = head.iter().find(|name| !names.insert(*name)) {
        return Err(format!("duplicate column name {name:?}"));
    }
    let length: usize = head.iter().map(String::len).sum();
    if length.saturating_mul(rows.len()) > MAX_NAMES {
        return Err(format!(
            "the names of its columns have more than {MAX_NAMES} bytes in all records"
        ));
    }
    let record = |(number, row): (usize, Vec<String>)| match row.len() == head.len() {
        true => {
            let cells = row.into_iter().map(Value::from);
            Ok(Value::Object(head.iter().cloned().zip(cells).collect()))
        }
        false => Err(format!(
            "CSV parse error on record {}: wrong number of fields",
            number + 2
        )),
    };
    let records = rows.enumerate().map(record);
    bounded_list(records.collect::<Result<_, _>>()?)
}

/// Returns the rows of a table. Quoted cells may have line ends.
fn csv_rows(text: &str) -> Result<Vec<Vec<String>>, String> {
    let mut rows = Vec::new();
    let mut cells = 0;
    let mut row: Vec<String> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let wrong = |what: &str| {
            let line = text[..text.len() - rest.len()].matches('\n').count() + 1;
            format!("CSV parse error on line {line}: {what}")
        };
        cells += 1;
        // The first row has the names of columns.
        for (number, most, what) in [
            (row.len() + 1, MAX_COLUMNS, "columns"),
            (rows.len(), MAX_ITEMS, "items"),
            (cells, MAX_CELLS, "cells"),
        ] {
            if number > most {
                return Err(format!("its result has too many {what}"));
            }
        }
        let (cell, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_cell(quoted)
                .ok_or_else(|| wrong("extraneous or missing \" in quoted-field"))?,
            None => {
                let end = rest.find([',', '\n']).unwrap_or(rest.len());
                let (cell, after) = rest.split_at(end);
                if cell.contains('"') {
                    return Err(wrong("bare \" in non-quoted-field"));
                }
                let cell = match after.starts_with(',') {
                    true => cell,
                    false => cell.strip_suffix('\r').unwrap_or(cell),
                };
                (cell.to_owned(), after)
            }
        };
        let is_empty_line = cell.is_empty() && row.is_empty() && !rest.starts_with(['"', ',']);
        if let Some(more) = after.strip_prefix(',') {
            row.push(cell);
            rest = more;
            // The last cell of the text is empty.
            if rest.is_empty() {
                row.push(String::new());
            }
            continue;
        }
        if !is_empty_line {
            row.push(cell);
            rows.push(std::mem::take(&mut row));
        }
        rest = after.strip_prefix('\n').unwrap_or(after);
    }
    if !row.is_empty() {
        rows.push(row);
    }
    Ok(rows)
}

/// Returns a cell after its first quote, and what comes after the last one; `None` if it does not end there.
fn quoted_cell(text: &str) -> Option<(String, &str)> {
    let mut cell = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        cell += &rest[..end];
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                cell.push('"');
                rest = more;
            }
            None => break,
        }
    }
    let rest = match rest.strip_prefix("\r\n") {
        Some(_) => &rest[1..],
        None => rest,
    };
    let is_end = rest.is_empty() || rest.starts_with([',', '\n']);
    // A line end is one character.
    is_end.then(|| (cell.replace("\r\n", "\n"), rest))
}

/// Calls `format` for each item of the lists among the arguments.
fn formatlist(form: &Value, arguments: &[Value]) -> Returned {
    let form = form.text()?;
    let lengths = arguments.iter().filter_map(|argument| match argument {
        Value::List(items) => Some(items.len()),
        _ => None,
    });
    let lengths: Vec<usize> = lengths.collect();
    let length = lengths.first().copied().unwrap_or(1);
    if lengths.iter().any(|other| *other != length) {
        return Err("all arguments that are lists must have the same length".into());
    }
    if length > MAX_ITEMS {
        return Err("a list is too long".into());
    }
    let mut total = 0;
    let items = (0..length).map(|index| {
        let own: Vec<Value> = arguments
            .iter()
            .map(|argument| match argument {
                Value::List(items) => items[index].clone(),
                other => other.clone(),
            })
            .collect();
        let text = format(&form, &own)?;
        total += text.len();
        match total > MAX_TEXTS {
            true => Err(format!("its results are longer than {MAX_TEXTS} bytes")),
            false => bounded_text(text),
        }
    });
    items.collect::<Result<_, _>>().map(Value::List)
}

/// A verb of a form: `%-05.2f`, `%[2]s`.
#[derive(Default)]
struct Verb {
    minus: bool,
    plus: bool,
    space: bool,
    zero: bool,
    sharp: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

fn format(form: &str, arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut next = 0;
    let mut rest = form;
    while let Some(at) = rest.find('%') {
        out += &rest[..at];
        let start = form.len() - rest.len() + at;
        rest = &rest[at + 1..];
        let mut verb = Verb::default();
        loop {
            match rest.chars().next() {
                Some('-') => verb.minus = true,
                Some('+') => verb.plus = true,
                Some(' ') => verb.space = true,
                Some('0') => verb.zero = true,
                Some('#') => verb.sharp = true,
                _ => break,
            }
            rest = &rest[1..];
        }
        verb.width = number(&mut rest)?;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            verb.precision = Some(number(&mut rest)?.unwrap_or(0));
        }
        if let Some(after) = rest.strip_prefix('[') {
            rest = after;
            let index = number(&mut rest)?.filter(|index| *index > 0);
            let (Some(index), Some(after)) = (index, rest.strip_prefix(']')) else {
                return Err("a verb's index is not valid".into());
            };
            (next, rest) = (index - 1, after);
        }
        let Some(letter) = rest.chars().next() else {
            return Err("unexpected end of format string".into());
        };
        rest = &rest[letter.len_utf8()..];
        if letter == '%' {
            out.push('%');
            continue;
        }
        let argument = arguments.get(next).ok_or_else(|| {
            let own = &form[start..form.len() - rest.len()];
            format!(
                "not enough arguments for {own:?} at {start}: need index {} but have {} total",
                next + 1,
                arguments.len()
            )
        })?;
        next += 1;
        out += &verb.apply(letter, argument)?;
        if out.len() > super::MAX_TEXT {
            return Err(format!(
                "its result is longer than {} bytes",
                super::MAX_TEXT
            ));
        }
    }
    if next < arguments.len() && !form.contains("%[") {
        return Err(format!(
            "too many arguments; only {next} used by format string"
        ));
    }
    Ok(out + rest)
}

/// Reads digits.
fn number(rest: &mut &str) -> Result<Option<usize>, String> {
    let length = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, after) = rest.split_at(length);
    *rest = after;
    if digits.is_empty() {
        return Ok(None);
    }
    let number: Option<usize> = digits.parse().ok();
    match number.filter(|number| *number <= MAX_WIDTH) {
        Some(number) => Ok(Some(number)),
        None => Err(format!("a width or precision is larger than {MAX_WIDTH}")),
    }
}

impl Verb {
    fn apply(&self, letter: char, argument: &Value) -> Result<String, String> {
        let is_number = matches!(
            letter,
            'b' | 'd' | 'o' | 'x' | 'X' | 'e' | 'E' | 'f' | 'g' | 'G'
        );
        let text = match letter {
            's' => self.cut(argument.text()?),
            'q' => serde_json::Value::from(argument.text()?).to_string(),
            't' => argument.truth()?.to_string(),
            'v' => match argument {
                Value::String(text) if !self.sharp => self.cut(text.clone()),
                Value::Number(_) | Value::Bool(_) => argument.text()?,
                other => other.json().to_string(),
            },
            'd' | 'b' | 'o' | 'x' | 'X'
                if letter == 'd' || matches!(argument, Value::Number(_)) =>
            {
                let number = super::integer(argument)?;
                let size = number.unsigned_abs();
                let digits = match letter {
                    'b' => format!("{size:b}"),
                    'o' => format!("{size:o}"),
                    'x' => format!("{size:x}"),
                    'X' => format!("{size:X}"),
                    _ => size.to_string(),
                };
                self.signed(number < 0, &digits)
            }
            'x' | 'X' => {
                let text = argument.text()?;
                let bytes = text.bytes();
                match letter {
                    'x' => bytes.map(|byte| format!("{byte:02x}")).collect(),
                    _ => bytes.map(|byte| format!("{byte:02X}")).collect(),
                }
            }
            'f' => {
                let number = argument.double()?;
                let digits = format!("{:.*}", self.precision.unwrap_or(6), number.abs());
                self.signed(number < 0.0, &digits)
            }
            'g' | 'G' => {
                let text = argument.number()?.text();
                let digits = text.strip_prefix('-');
                self.signed(digits.is_some(), digits.unwrap_or(&text))
            }
            other => return Err(format!("unsupported format verb {other:?}")),
        };
        Ok(self.padded(text, is_number))
    }

    fn cut(&self, text: String) -> String {
        match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text,
        }
    }

    fn signed(&self, is_negative: bool, digits: &str) -> String {
        let sign = match (is_negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        };
        format!("{sign}{digits}")
    }

    fn padded(&self, text: String, is_number: bool) -> String {
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        match (self.minus, self.zero && is_number) {
            (true, _) => text + &" ".repeat(missing),
            (_, true) => {
                let digits = text.trim_start_matches(['-', '+', ' ']);
                let sign = &text[..text.len() - digits.len()];
                format!("{sign}{}{digits}", "0".repeat(missing))
            }
            _ => " ".repeat(missing) + &text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_bounded() {
        let rows = |number: usize| "1\n".repeat(number);
        let columns: Vec<String> = (0..=MAX_COLUMNS).map(|at| format!("c{at}")).collect();
        let line = format!("{}\n", vec!["1"; 500].join(","));
        for (table, expected) in [
            (format!("a\n{}", rows(MAX_ITEMS + 1)), "too many items"),
            (columns.join(","), "too many columns"),
            (line.repeat(2_001), "too many cells"),
            (
                format!("{}\n{}", "a".repeat(1 << 20), rows(65)),
                "names of its columns have more than",
            ),
        ] {
            let refused = csvdecode(&table).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        let most = csvdecode(&format!("a\n{}", rows(MAX_ITEMS)));
        assert!(matches!(most, Ok(Value::List(items)) if items.len() == MAX_ITEMS));
        let widest = csvdecode(&columns[1..].join(","));
        assert_eq!(widest, Ok(Value::List(Vec::new())));
    }

    #[test]
    fn numbers_of_json_lose_no_digits() {
        let decode = |text: &str| call("jsondecode", &[Value::from(text)]);
        for (text, expected) in [
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("[1.5, 1e3]", "[1.5,1000]"),
        ] {
            let found = decode(text).map(|found| found.map(|value| value.json().to_string()));
            assert_eq!(found, Some(Ok(expected.to_owned())), "{text}");
        }
        for text in [
            "18446744073709551616",
            "{\"a\": [18446744073709551617]}",
            "-9223372036854775809",
            "1e300",
        ] {
            let found = decode(text);
            assert_eq!(found, Some(Err(crate::number::TOO_LARGE.into())), "{text}");
        }
    }
}
