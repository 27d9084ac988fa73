//! Reads a YAML document as a JSON value, within limits of size and depth.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

/// Nodes of a document after its aliases are replaced, and of the copies for them; a long scalar counts for several. Aliases of
/// aliases grow exponentially.
const MAX_NODES: usize = 500_000;
/// Bytes of a scalar that count as one node.
const BYTES_OF_NODE: usize = 64;
const MAX_DEPTH: usize = 64;

/// Parses the first document of a text. Members that are null are left out.
///
/// # Errors
/// Returns a text with the line of what is wrong.
pub fn parse(text: &str) -> Result<Value, String> {
    load(text, Loader::default())
}

/// Parses the first document of a text. Members that are null stay, and keys `<<` merge what they have into their mapping.
///
/// # Errors
/// Returns a text with the line of what is wrong.
pub fn parse_merged(text: &str) -> Result<Value, String> {
    let loader = Loader {
        merges: true,
        ..Loader::default()
    };
    load(text, loader)
}

fn load(text: &str, mut loader: Loader) -> Result<Value, String> {
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let place = error.marker();
            format!(
                "line {}, column {}: {}",
                place.line(),
                place.col() + 1,
                error.info()
            )
        })?;
        let is_end = matches!(event, Event::DocumentEnd);
        let at = |text: String| format!("line {}: {text}", span.start.line());
        loader.take(event).map_err(at)?;
        if is_end {
            break;
        }
    }
    Ok(loader.document.unwrap_or_default())
}

/// A collection whose end has not come yet.
enum Open {
    Sequence(Vec<Value>),
    Mapping {
        members: Map<String, Value>,
        key: Option<String>,
    },
}

struct Level {
    open: Open,
    anchor: usize,
    /// Nodes in it so far.
    nodes: usize,
}

#[derive(Default)]
struct Loader {
    levels: Vec<Level>,
    anchors: HashMap<usize, (Value, usize)>,
    nodes: usize,
    document: Option<Value>,
    /// Whether nulls stay and `<<` merges.
    merges: bool,
}

impl Loader {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let nodes = 1 + text.len() / BYTES_OF_NODE;
                let value = scalar(&text, style, tag.as_deref())?;
                self.remember(anchor, &value, nodes)?;
                self.add(value, nodes)
            }
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).map(|(_, nodes)| *nodes);
                let nodes = known.ok_or("an alias stands for a node that contains it")?;
                // Counted before it is copied.
                self.count(nodes)?;
                let value = self.anchors[&anchor].0.clone();
                self.put(value, nodes)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref())?;
                self.open(Open::Sequence(Vec::new()), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref())?;
                let open = Open::Mapping {
                    members: Map::new(),
                    key: None,
                };
                self.open(open, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, open: Open, anchor: usize) -> Result<(), String> {
        if self.levels.len() == MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        self.count(1)?;
        self.levels.push(Level {
            open,
            anchor,
            nodes: 1,
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let Some(Level {
            open,
            anchor,
            nodes,
        }) = self.levels.pop()
        else {
            return Ok(());
        };
        let value = match open {
            Open::Sequence(items) => items.into(),
            Open::Mapping { members, .. } if self.merges => merged(members)?.into(),
            Open::Mapping { members, .. } => members.into(),
        };
        self.remember(anchor, &value, nodes)?;
        self.put(value, nodes)
    }

    /// Keeps a copy of a value for its aliases, which counts as well: anchors can be nested.
    fn remember(&mut self, anchor: usize, value: &Value, nodes: usize) -> Result<(), String> {
        // 0 is no anchor.
        if anchor != 0 {
            self.count(nodes)?;
            self.anchors.insert(anchor, (value.clone(), nodes));
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err("too large, with its aliases replaced".into());
        }
        Ok(())
    }

    fn add(&mut self, value: Value, nodes: usize) -> Result<(), String> {
        self.count(nodes)?;
        self.put(value, nodes)
    }

    /// Adds a complete value, which is counted already, to the innermost open collection.
    fn put(&mut self, value: Value, nodes: usize) -> Result<(), String> {
        let Some(level) = self.levels.last_mut() else {
            self.document = Some(value);
            return Ok(());
        };
        level.nodes += nodes;
        match &mut level.open {
            Open::Sequence(items) => items.push(value),
            Open::Mapping { members, key } => match key.take() {
                Some(key) if members.contains_key(&key) => {
                    return Err(format!("key {key:?} already set in map"));
                }
                Some(_) if value.is_null() && !self.merges => {}
                Some(key) => drop(members.insert(key, value)),
                None => {
                    *key = Some(match value {
                        Value::String(text) => text,
                        Value::Number(number) => number.to_string(),
                        Value::Bool(value) => value.to_string(),
                        _ => return Err("a key is not a string".into()),
                    });
                }
            },
        }
        Ok(())
    }
}

/// The key that merges other mappings.
const MERGE: &str = "<<";

/// Adds the members of the mappings below `<<` that the mapping itself lacks.
fn merged(mut members: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let others = match members.shift_remove(MERGE) {
        None => return Ok(members),
        Some(Value::Array(others)) => others,
        Some(other) => vec![other],
    };
    for other in others {
        let Value::Object(other) = other else {
            return Err("map merge requires map or sequence of maps as the value".into());
        };
        for (key, value) in other {
            members.entry(key).or_insert(value);
        }
    }
    Ok(members)
}

/// Rejects tags that would change what a collection is.
fn check_tag(tag: Option<&Tag>) -> Result<(), String> {
    match tag {
        Some(tag)
            if !(tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "map" | "seq")) =>
        {
            Err(format!("tag {tag} is not supported"))
        }
        _ => Ok(()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let is_text = match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
        // Says what the text is anyway.
        Some(tag)
            if tag.is_yaml_core_schema()
                && matches!(tag.suffix.as_str(), "int" | "float" | "bool" | "null") =>
        {
            false
        }
        Some(tag) => return Err(format!("tag {tag} is not supported")),
        None => style != ScalarStyle::Plain,
    };
    Ok(if is_text { text.into() } else { plain(text) })
}

/// Returns what a plain scalar stands for, with the octal numbers of YAML 1.1, in which modes of
/// files are written.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return true.into(),
        "false" | "False" | "FALSE" => return false.into(),
        _ => {}
    }
    if let Some(number) = integer(text) {
        return number.into();
    }
    let is_number = text
        .strip_prefix(['-', '+'])
        .unwrap_or(text)
        .starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let number = text.parse().ok().filter(|_| is_number);
    number
        .and_then(Number::from_f64)
        .map_or_else(|| text.into(), Value::Number)
}

fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // `from_str_radix` accepts a second sign.
    if !digits.starts_with(|first: char| first.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(digits, radix)
        .ok()
        .map(|number| sign * number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn reads_what_yaml_writes_as_json() {
        let text = "# comment\na: [1, -2, 0o17, 017, 0x1f, 1.5, '1', \"x\\n\", ~]\nb: {c: true, d: null}\nc: &x\n- y: z\nd: *x\n\
                    e: |\n  two\n  lines\nf: !!str 1\n1: 0.5.0\n...\n---\nsecond: document\n";
        let expected = json!({
            "a": [1, -2, 15, 15, 31, 1.5, "1", "x\n", null], "b": {"c": true},
            "c": [{"y": "z"}], "d": [{"y": "z"}], "e": "two\nlines\n", "f": "1", "1": "0.5.0",
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), Value::Null);
    }

    #[test]
    fn mappings_are_merged() {
        let text = "x: &x {a: 1, b: ~}\ny: {<<: *x, a: 2}\nz: {<<: [*x, {c: 3}]}";
        let expected = json!({
            "x": {"a": 1, "b": null}, "y": {"a": 2, "b": null}, "z": {"a": 1, "b": null, "c": 3},
        });
        assert_eq!(parse_merged(text).unwrap(), expected);
        assert!(parse_merged("a: {<<: 1}").is_err());
        assert_eq!(parse("a: {<<: 1}").unwrap(), json!({"a": {"<<": 1}}));
    }

    #[test]
    fn hostile_documents_are_refused() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            laughs += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        refused(&laughs, "too large, with its aliases replaced");
        let text = format!(
            "a: &a '{}'\nb: [{}]",
            "x".repeat(1 << 20),
            "*a, ".repeat(100)
        );
        refused(&text, "too large, with its aliases replaced");
        let nested: String = (0..60).map(|level| format!("&a{level} [")).collect();
        refused(
            &format!("{nested}{}{}", "x, ".repeat(20_000), "]".repeat(60)),
            "too large, with its aliases replaced",
        );
        refused("a: &a [*a]", "an alias stands for a node that contains it");
        refused(&"[".repeat(100), "nested deeper than 64");
        refused("a: 1\na: 2", "line 2: key \"a\" already set in map");
        refused("a: !!binary aGk=", "is not supported");
        refused("a: !own {}", "is not supported");
        refused("a: b: c", "line 1");
        refused("[a]: b", "a key is not a string");
        refused("a: [", "line ");
    }
}
