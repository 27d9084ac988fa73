//! Functions of texts.

use regex_lite::{Captures, Regex};

use super::{
    MAX_ITEMS, MAX_TEXTS, Returned, bounded_list, bounded_text, check_length, count, integer,
    position, texts,
};
use crate::value::Value;

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    let one = |change: fn(&str) -> String| match arguments {
        [value] => bounded_text(change(&value.text()?)),
        _ => count("1 argument", arguments),
    };
    let two = |change: fn(&str, &str) -> Returned| match arguments {
        [first, second] => change(&first.text()?, &second.text()?),
        _ => count("2 arguments", arguments),
    };
    Some(match name {
        "upper" => one(|text| text.chars().map(upper).collect()),
        "lower" => one(|text| text.chars().map(lower).collect()),
        "title" => one(title),
        "chomp" => one(|text| text.trim_end_matches(['\n', '\r']).to_owned()),
        "trimspace" => one(|text| text.trim().to_owned()),
        "reverse" => one(|text| text.chars().rev().collect()),
        "sanitize" => one(|text| {
            let is_plain = |char: char| char.is_ascii_alphanumeric() || "_-".contains(char);
            let chars = text.chars();
            chars
                .map(|char| if is_plain(char) { char } else { '_' })
                .collect()
        }),
        "basename" => one(basename),
        "dirname" => one(dirname),
        "trim" => {
            two(|text, chars| Ok(text.trim_matches(|char: char| chars.contains(char)).into()))
        }
        "trimprefix" => two(|text, prefix| Ok(text.strip_prefix(prefix).unwrap_or(text).into())),
        "trimsuffix" => two(|text, suffix| Ok(text.strip_suffix(suffix).unwrap_or(text).into())),
        "split" => two(|separator, text| {
            let parts: Vec<Value> = match (separator, text) {
                (_, "") => Vec::new(),
                ("", text) => text
                    .chars()
                    .map(|char| Value::String(char.into()))
                    .collect(),
                (separator, text) => text.split(separator).map(Value::from).collect(),
            };
            bounded_list(parts)
        }),
        "regex" => two(regex),
        "regexall" => two(regexall),
        "strlen" | "byteslen" => match arguments {
            [value] => value.text().map(|text| {
                Value::from(match name {
                    "strlen" => text.chars().count(),
                    _ => text.len(),
                })
            }),
            _ => count("1 argument", arguments),
        },
        "indent" => indent(arguments),
        "substr" => substr(arguments),
        "join" => join(arguments),
        "replace" | "regex_replace" => replace(name, arguments),
        _ => return None,
    })
}

/// Returns the capital of a letter: as in Go itself, if that would be several letters.
fn upper(letter: char) -> char {
    let mut capitals = letter.to_uppercase();
    match (capitals.next(), capitals.next()) {
        (Some(only), None) => only,
        _ => letter,
    }
}

/// Returns the small letter of a capital.
fn lower(letter: char) -> char {
    // The only one with several: the first of these is that of Go.
    letter.to_lowercase().next().unwrap_or(letter)
}

fn title(text: &str) -> String {
    let mut is_begin = true;
    let mut titled = String::new();
    for char in text.chars() {
        match is_begin {
            true => titled.push(upper(char)),
            false => titled.push(char),
        }
        is_begin = char.is_whitespace();
    }
    titled
}

fn basename(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" if path.is_empty() => ".".into(),
        "" => "/".into(),
        path => path.rsplit('/').next().unwrap_or(path).to_owned(),
    }
}

fn dirname(path: &str) -> String {
    match path.rsplit_once('/') {
        None => ".".into(),
        Some(("", _)) => "/".into(),
        Some((directory, _)) => crate::paths::clean(directory),
    }
}

fn indent(arguments: &[Value]) -> Returned {
    let [spaces, text] = arguments else {
        return count("2 arguments", arguments);
    };
    let (spaces, text) = (position(spaces)?, text.text()?);
    let length = spaces.saturating_mul(text.matches('\n').count());
    if length > super::MAX_TEXT {
        return Err(format!(
            "its result is longer than {} bytes",
            super::MAX_TEXT
        ));
    }
    bounded_text(text.replace('\n', &format!("\n{}", " ".repeat(spaces))))
}

fn substr(arguments: &[Value]) -> Returned {
    let [text, offset, length] = arguments else {
        return count("3 arguments", arguments);
    };
    let (text, offset, length) = (text.text()?, integer(offset)?, integer(length)?);
    let total = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let start = match offset < 0 {
        true => (total + offset).max(0),
        false => offset,
    };
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    // A negative length is up to the end.
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let chars = text.chars().skip(start).take(length);
    Ok(Value::String(chars.collect()))
}

fn join(arguments: &[Value]) -> Returned {
    let [separator, lists @ ..] = arguments else {
        return count("at least 2 arguments", arguments);
    };
    if lists.is_empty() {
        return count("at least 2 arguments", arguments);
    }
    let all = lists.iter().map(texts).collect::<Result<Vec<_>, _>>()?;
    let (all, separator) = (all.concat(), separator.text()?);
    let separators = separator.len().saturating_mul(all.len().saturating_sub(1));
    let length: usize = all.iter().map(String::len).sum();
    check_length(length.saturating_add(separators))?;
    Ok(Value::String(all.join(&separator)))
}

fn replace(name: &str, arguments: &[Value]) -> Returned {
    let [text, from, to] = arguments else {
        return count("3 arguments", arguments);
    };
    let (text, from, to) = (text.text()?, from.text()?, to.text()?);
    // The result may be much longer than all of them.
    let most = (text.len() + 1).saturating_mul(to.len() + 1);
    if most > super::MAX_TEXT * 16 {
        return Err("its arguments are too long".into());
    }
    bounded_text(match name {
        "replace" => text.replace(&from, &to),
        _ => compiled(&from)?.replace_all(&text, &*to).into_owned(),
    })
}

fn compiled(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|_| "invalid regexp pattern".into())
}

fn regex(pattern: &str, text: &str) -> Returned {
    let pattern = compiled(pattern)?;
    let found = pattern.captures(text);
    let found = found.ok_or("pattern did not match any part of the given string")?;
    captured(&pattern, &found)
}

fn regexall(pattern: &str, text: &str) -> Returned {
    let pattern = compiled(pattern)?;
    // Each match has all names.
    let names: usize = pattern.capture_names().flatten().map(str::len).sum();
    let most = MAX_ITEMS.min(MAX_TEXTS / names.max(1));
    let all = pattern.captures_iter(text).take(most + 1);
    let all = all.map(|found| captured(&pattern, &found));
    let all = all.collect::<Result<Vec<_>, _>>()?;
    match all.len() > most {
        true => Err(format!("its result has more than {most} items")),
        false => Ok(Value::List(all)),
    }
}

/// Returns the groups of a match: an object if they have names, and the match if there are none.
fn captured(pattern: &Regex, found: &Captures<'_>) -> Returned {
    let value = |index: usize| {
        found
            .get(index)
            .map_or(Value::Null, |part| part.as_str().into())
    };
    let names: Vec<Option<&str>> = pattern.capture_names().skip(1).collect();
    if names.is_empty() {
        return Ok(value(0));
    }
    if names.iter().all(Option::is_none) {
        return Ok(Value::List((1..=names.len()).map(value).collect()));
    }
    let named = names.iter().enumerate().map(|(index, name)| {
        let name = name.ok_or("cannot mix both named and unnamed capture groups")?;
        Ok((name.to_owned(), value(index + 1)))
    });
    named.collect::<Result<_, String>>().map(Value::Object)
}
