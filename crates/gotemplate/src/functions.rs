//! Template functions: Go's builtins and those that Docker's CLI adds.

use std::cmp::Ordering;

use whelk_text::url;

use crate::MAX_TEXT;
use crate::print::{joined, printf, type_name};
use crate::types::{Kind, Mode};
use crate::value::Typed;

const FUNCTIONS: &[&str] = &[
    "and", "eq", "ge", "gt", "html", "index", "join", "js", "json", "le", "len", "lower", "lt",
    "ne", "not", "or", "pad", "print", "printf", "println", "slice", "split", "title", "truncate",
    "upper", "urlquery",
];

pub(crate) fn is_known(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}

type Result<T> = std::result::Result<T, String>;

/// Calls a function. Strings are bounded, so that a template cannot double one until memory is exhausted.
pub(crate) fn call(name: &str, values: &[Typed], mode: Mode) -> Result<Typed> {
    if values.iter().map(text_length).sum::<usize>() > MAX_TEXT {
        return Err(format!("arguments exceed {MAX_TEXT} bytes"));
    }
    // In a table's header, functions apply to values only and return the heading.
    if mode == Mode::Headings
        && matches!(name, "json" | "title" | "lower" | "upper" | "truncate")
        && let [heading, ..] = values
    {
        return Ok(heading.clone());
    }
    let wrong_number = |wanted: &str| {
        Err(format!(
            "wrong number of args for {name}: want {wanted} got {}",
            values.len()
        ))
    };
    match (name, values) {
        ("json", [value]) if mode == Mode::Indented => Ok(Typed::text(indented(value))),
        ("json", [value]) => Ok(Typed::text(json(value))),
        ("upper", [value]) => Ok(Typed::text(text(value)?.to_uppercase())),
        ("lower", [value]) => Ok(Typed::text(text(value)?.to_lowercase())),
        ("title", [value]) => Ok(Typed::text(title(&text(value)?))),
        ("split", [value, separator]) => Ok(Typed::literal(
            "[]string",
            split(&text(value)?, &text(separator)?),
        )),
        ("join", [list, separator]) => join(list, &text(separator)?),
        ("pad", [value, before, after]) => pad(&text(value)?, count(before)?, count(after)?),
        ("truncate", [value, length]) => truncate(&text(value)?, count(length)?),
        ("print", values) => Ok(Typed::text(joined(values, false))),
        ("println", values) => Ok(Typed::text(joined(values, true) + "\n")),
        ("printf", [format, values @ ..]) => Ok(Typed::text(printf(&text(format)?, values))),
        ("html", values) => Ok(Typed::text(escape_html(&joined(&indirect(values), false)))),
        ("js", values) => Ok(Typed::text(escape_js(&joined(&indirect(values), false)))),
        ("urlquery", values) => Ok(Typed::text(
            url::escape(&joined(&indirect(values), false)).replace("%20", "+"),
        )),
        ("not", [value]) => Ok(Typed::literal("bool", !value.truth())),
        ("len", [value]) => length(&value.indirect()),
        ("index", [value, keys @ ..]) => keys
            .iter()
            .try_fold(value.clone(), |value, key| index(&value, key)),
        ("slice", [value, bounds @ ..]) => slice(&value.indirect(), bounds),
        ("eq", [_]) => Err("missing argument for comparison".into()),
        ("eq", [first, rest @ ..]) => {
            let equal = rest
                .iter()
                .map(|other| equal(first, other))
                .collect::<Result<Vec<_>>>()?;
            Ok(Typed::literal("bool", equal.contains(&true)))
        }
        ("ne", [a, b]) => equal(a, b).map(|equal| Typed::literal("bool", !equal)),
        ("lt" | "le" | "gt" | "ge", [a, b]) => {
            let order = order(a, b)?;
            let holds = match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            };
            Ok(Typed::literal("bool", holds))
        }
        ("json" | "upper" | "lower" | "title" | "not" | "len", _) => wrong_number("1"),
        ("split" | "join" | "truncate" | "ne" | "lt" | "le" | "gt" | "ge", _) => wrong_number("2"),
        ("pad", _) => wrong_number("3"),
        _ => wrong_number("at least 1"),
    }
}

fn text_length(value: &Typed) -> usize {
    value.json.as_str().map_or(0, str::len)
}

/// Encodes a value as JSON. For table rows, `<`, `>` and `&` are escaped, as Docker's client does.
fn json(value: &Typed) -> String {
    let text = value.to_json().to_string();
    match value.kind() {
        Kind::Row => without_html(&text),
        _ => text,
    }
}

/// Encodes a value as indented JSON.
fn indented(value: &Typed) -> String {
    without_html(&format!("{:#}", value.to_json()))
}

/// Escapes what is special in HTML, as Go's encoder does.
fn without_html(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

fn indirect(values: &[Typed]) -> Vec<Typed> {
    values.iter().map(Typed::indirect).collect()
}

fn text(value: &Typed) -> Result<String> {
    value.as_text().ok_or_else(|| {
        format!(
            "wrong type for value; expected string; got {}",
            type_name(value)
        )
    })
}

fn count(value: &Typed) -> Result<usize> {
    match value.kind() {
        Kind::Int | Kind::Uint => usize::try_from(value.as_int())
            .map_err(|_| format!("negative count: {}", value.as_int())),
        _ => Err(format!(
            "wrong type for value; expected int; got {}",
            type_name(value)
        )),
    }
}

fn title(text: &str) -> String {
    let mut begins = true;
    text.chars()
        .flat_map(|letter| {
            let upper = begins;
            begins = !(letter.is_alphanumeric() || letter == '_' || letter == '\'');
            if upper {
                letter.to_uppercase().collect::<Vec<_>>()
            } else {
                vec![letter]
            }
        })
        .collect()
}

fn split(text: &str, separator: &str) -> Vec<String> {
    if separator.is_empty() {
        text.chars().map(String::from).collect()
    } else {
        text.split(separator).map(str::to_owned).collect()
    }
}

fn join(list: &Typed, separator: &str) -> Result<Typed> {
    let list = list.indirect();
    let elements: Vec<Typed> = match list.kind() {
        Kind::List(of) => list
            .list()
            .iter()
            .map(|json| list.part(of, json.clone()))
            .collect(),
        Kind::Nothing => Vec::new(),
        _ => return Err(format!("expected slice, got {}", type_name(&list))),
    };
    if separator.len().saturating_mul(elements.len()) > MAX_TEXT {
        return Err(format!("separators exceed {MAX_TEXT} bytes"));
    }
    Ok(Typed::text(
        elements
            .iter()
            .map(crate::print::plain)
            .collect::<Vec<_>>()
            .join(separator),
    ))
}

/// Maximum padding in characters.
const MAX_PADDING: usize = 1 << 16;

fn pad(text: &str, before: usize, after: usize) -> Result<Typed> {
    if before.max(after) > MAX_PADDING {
        return Err("too much padding".into());
    }
    Ok(Typed::text(if text.is_empty() {
        String::new()
    } else {
        format!("{}{text}{}", " ".repeat(before), " ".repeat(after))
    }))
}

/// Truncates to a number of bytes; an incomplete character at the end becomes U+FFFD.
fn truncate(text: &str, length: usize) -> Result<Typed> {
    Ok(Typed::text(String::from_utf8_lossy(
        &text.as_bytes()[..length.min(text.len())],
    )))
}

fn length(value: &Typed) -> Result<Typed> {
    let length = match value.kind() {
        Kind::List(_) => value.list().len(),
        Kind::Map(..) => value.map().map_or(0, serde_json::Map::len),
        Kind::Text => value.as_text().unwrap_or_default().len(),
        Kind::Nothing => return Err("len of nil pointer".into()),
        _ => return Err(format!("len of type {}", type_name(value))),
    };
    Ok(Typed::literal("int", length))
}

fn index(value: &Typed, key: &Typed) -> Result<Typed> {
    let value = value.indirect();
    let position = || match key.kind() {
        Kind::Int | Kind::Uint => Ok(key.as_int()),
        _ if key.is_nothing() => Err("cannot index slice/array with nil".to_owned()),
        _ => Err(format!(
            "cannot index slice/array with type {}",
            type_name(key)
        )),
    };
    let within = |length: usize| {
        let position = position()?;
        let found = usize::try_from(position)
            .ok()
            .filter(|position| *position < length);
        found.ok_or_else(|| format!("index out of range: {position}"))
    };
    match value.kind() {
        Kind::List(of) => Ok(value.part(of, value.list()[within(value.list().len())?].clone())),
        Kind::Text => {
            let text = value.as_text().unwrap_or_default();
            Ok(Typed::literal("uint", text.as_bytes()[within(text.len())?]))
        }
        Kind::Map(_, of) => {
            let name = key
                .as_text()
                .ok_or_else(|| format!("value has type {}; should be string", type_name(key)))?;
            Ok(value.part(
                of,
                value
                    .map()
                    .and_then(|map| map.get(&name))
                    .cloned()
                    .unwrap_or_default(),
            ))
        }
        Kind::Nothing => Err("index of untyped nil".into()),
        Kind::Pointer(_) => Err("index of nil pointer".into()),
        _ => Err(format!("can't index item of type {}", type_name(&value))),
    }
}

fn slice(value: &Typed, bounds: &[Typed]) -> Result<Typed> {
    let length = match value.kind() {
        Kind::List(_) => value.list().len(),
        Kind::Text => value.as_text().unwrap_or_default().len(),
        Kind::Nothing => return Err("slice of untyped nil".into()),
        _ => return Err(format!("can't slice item of type {}", type_name(value))),
    };
    let mut limits = [0, length];
    for (limit, bound) in limits.iter_mut().zip(bounds) {
        *limit = count(bound)?;
        if *limit > length {
            return Err(format!("index out of range: {limit}"));
        }
    }
    let [begin, end] = limits;
    if begin > end {
        return Err(format!("invalid slice index: {begin} > {end}"));
    }
    Ok(match value.kind() {
        Kind::List(_) => value.part(value.ty, value.list()[begin..end].to_vec()),
        _ => Typed::text(String::from_utf8_lossy(
            &value.as_text().unwrap_or_default().as_bytes()[begin..end],
        )),
    })
}

/// Kinds of values that are comparable with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basic {
    Bool,
    Whole,
    Float,
    Text,
}

fn basic(value: &Typed) -> Option<Basic> {
    match value.kind() {
        Kind::Bool => Some(Basic::Bool),
        Kind::Int | Kind::Uint => Some(Basic::Whole),
        Kind::Float => Some(Basic::Float),
        Kind::Text => Some(Basic::Text),
        _ => None,
    }
}

fn equal(a: &Typed, b: &Typed) -> Result<bool> {
    match (basic(a), basic(b)) {
        _ if a.is_nothing() || b.is_nothing() => Ok(a.is_nil() && b.is_nil()),
        (Some(Basic::Bool), Some(Basic::Bool)) => Ok(a.as_bool() == b.as_bool()),
        (Some(one), Some(other)) if one == other => order(a, b).map(Ordering::is_eq),
        (None, None) if a.ty == b.ty && matches!(a.kind(), Kind::Struct(_) | Kind::Pointer(_)) => {
            Ok(a.json == b.json)
        }
        (None, None) if matches!(a.kind(), Kind::List(_) | Kind::Map(..)) => Err(format!(
            "non-comparable type {}: {}",
            crate::print::plain(a),
            type_name(a)
        )),
        _ => Err(format!(
            "incompatible types for comparison: {} and {}",
            type_name(a),
            type_name(b)
        )),
    }
}

fn order(a: &Typed, b: &Typed) -> Result<Ordering> {
    match (basic(a), basic(b)) {
        (Some(Basic::Whole), Some(Basic::Whole)) => Ok(a.as_int().cmp(&b.as_int())),
        (Some(Basic::Float), Some(Basic::Float)) => Ok(a.as_float().total_cmp(&b.as_float())),
        (Some(Basic::Text), Some(Basic::Text)) => Ok(a.as_text().cmp(&b.as_text())),
        (Some(Basic::Bool), Some(Basic::Bool)) | (None, _) | (_, None) => {
            Err("invalid type for comparison".into())
        }
        _ => Err(format!(
            "incompatible types for comparison: {} and {}",
            type_name(a),
            type_name(b)
        )),
    }
}

fn escape_html(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '"' => "&#34;".to_owned(),
            '\'' => "&#39;".to_owned(),
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '\0' => "\u{fffd}".to_owned(),
            other => other.to_string(),
        })
        .collect()
}

fn escape_js(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '\\' => "\\\\".to_owned(),
            '\'' => "\\'".to_owned(),
            '"' => "\\\"".to_owned(),
            '<' | '>' | '&' | '=' => format!("\\u{:04X}", u32::from(letter)),
            other if u32::from(other) < 0x20 => format!("\\u{:04X}", u32::from(other)),
            other => other.to_string(),
        })
        .collect()
}
