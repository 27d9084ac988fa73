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

/// A document of a file of Compose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    pub value: Value,
    /// Keys from the root to each node that has the tag `!reset`, and so is left out, or `!override`.
    pub replaced: Vec<Vec<String>>,
}

/// Parses all documents of a text, each as [`parse_merged`] does, with the tags `!reset` and `!override` of Compose.
///
/// # Errors
/// Returns a text with the line of what is wrong.
pub fn parse_documents(text: &str) -> Result<Vec<Document>, String> {
    let mut loader = Loader {
        merges: true,
        is_tagged: true,
        ..Loader::default()
    };
    let mut documents = Vec::new();
    read(text, &mut loader, |root| {
        let replaced = root.replaced.into_iter().map(|mut keys| {
            keys.reverse();
            keys
        });
        documents.push(Document {
            value: root.value.unwrap_or_default(),
            replaced: replaced.collect(),
        });
        true
    })?;
    Ok(documents)
}

fn load(text: &str, mut loader: Loader) -> Result<Value, String> {
    let mut document = Value::Null;
    read(text, &mut loader, |root| {
        document = root.value.unwrap_or_default();
        false
    })?;
    Ok(document)
}

/// Gives the root of each document to `take`, until it returns false.
fn read(text: &str, loader: &mut Loader, mut take: impl FnMut(Node) -> bool) -> Result<(), String> {
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
        if is_end && !take(loader.document.take().unwrap_or_default()) {
            break;
        }
    }
    Ok(())
}

/// A value that is complete.
#[derive(Clone, Debug, Default)]
struct Node {
    /// `None` with the tag `!reset`.
    value: Option<Value>,
    /// It and those in it.
    nodes: usize,
    /// Keys from each node with a tag of Compose up to this one.
    replaced: Vec<Vec<String>>,
}

/// A tag of Compose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Reset,
    Override,
}

/// What a tag of Compose counts as, because its path is kept for it.
const NODES_OF_MARK: usize = MAX_DEPTH;

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
    mark: Option<Mark>,
    /// Nodes in it so far.
    nodes: usize,
    replaced: Vec<Vec<String>>,
}

#[derive(Default)]
struct Loader {
    levels: Vec<Level>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    document: Option<Node>,
    /// Whether nulls stay and `<<` merges.
    merges: bool,
    /// Whether there are Compose's tags.
    is_tagged: bool,
}

impl Loader {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let mark = self.mark(tag.as_deref());
                let tag = tag.filter(|_| mark.is_none());
                let mut node = Node {
                    value: Some(scalar(&text, style, tag.as_deref())?),
                    nodes: 1 + text.len() / BYTES_OF_NODE,
                    replaced: Vec::new(),
                };
                node.apply(mark);
                self.remember(anchor, &node)?;
                self.count(node.nodes)?;
                self.put(node)
            }
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).map(|node| node.nodes);
                let nodes = known.ok_or("an alias stands for a node that contains it")?;
                // Counted before it is copied.
                self.count(nodes)?;
                let node = self.anchors[&anchor].clone();
                self.put(node)
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(Open::Sequence(Vec::new()), anchor, tag.as_deref())
            }
            Event::MappingStart(anchor, tag) => {
                let open = Open::Mapping {
                    members: Map::new(),
                    key: None,
                };
                self.open(open, anchor, tag.as_deref())
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    /// Returns what a tag says, if it is one of Compose.
    fn mark(&self, tag: Option<&Tag>) -> Option<Mark> {
        let tag = tag.filter(|tag| self.is_tagged && tag.handle == "!")?;
        match tag.suffix.as_str() {
            "reset" => Some(Mark::Reset),
            "override" => Some(Mark::Override),
            _ => None,
        }
    }

    fn open(&mut self, open: Open, anchor: usize, tag: Option<&Tag>) -> Result<(), String> {
        let mark = self.mark(tag);
        if mark.is_none() {
            check_tag(tag)?;
        }
        if self.levels.len() == MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        self.count(1)?;
        self.levels.push(Level {
            open,
            anchor,
            mark,
            nodes: 1,
            replaced: Vec::new(),
        });
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let Some(level) = self.levels.pop() else {
            return Ok(());
        };
        let value = match level.open {
            Open::Sequence(items) => items.into(),
            Open::Mapping { members, .. } if self.merges => merged(members)?.into(),
            Open::Mapping { members, .. } => members.into(),
        };
        let mut node = Node {
            value: Some(value),
            nodes: level.nodes,
            replaced: level.replaced,
        };
        node.apply(level.mark);
        self.remember(level.anchor, &node)?;
        self.count(node.nodes - level.nodes)?;
        self.put(node)
    }

    /// Keeps a copy of a value for its aliases, which counts as well: anchors can be nested.
    fn remember(&mut self, anchor: usize, node: &Node) -> Result<(), String> {
        // 0 is no anchor.
        if anchor != 0 {
            self.count(node.nodes)?;
            self.anchors.insert(anchor, node.clone());
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

    /// Adds a complete value, which is counted already, to the innermost open collection.
    fn put(&mut self, node: Node) -> Result<(), String> {
        let Some(level) = self.levels.last_mut() else {
            self.document = Some(node);
            return Ok(());
        };
        level.nodes += node.nodes;
        match &mut level.open {
            // Compose resets nothing in sequences, but leaves the item out.
            Open::Sequence(items) => items.extend(node.value),
            Open::Mapping { members, key } => match key.take() {
                Some(key) if members.contains_key(&key) => {
                    return Err(format!("key {key:?} already set in map"));
                }
                Some(key) => {
                    level
                        .replaced
                        .extend(node.replaced.into_iter().map(|mut keys| {
                            if key != MERGE {
                                keys.push(key.clone());
                            }
                            keys
                        }));
                    match node.value {
                        None => {}
                        Some(value) if value.is_null() && !self.merges => {}
                        Some(value) => drop(members.insert(key, value)),
                    }
                }
                None => {
                    *key = Some(match node.value {
                        Some(Value::String(text)) => text,
                        Some(Value::Number(number)) => number.to_string(),
                        Some(Value::Bool(value)) => value.to_string(),
                        _ => return Err("a key is not a string".into()),
                    });
                }
            },
        }
        Ok(())
    }
}

impl Node {
    /// Notes a tag.
    fn apply(&mut self, mark: Option<Mark>) {
        if mark.is_none() {
            return;
        }
        if mark == Some(Mark::Reset) {
            self.value = None;
        }
        // The whole node is replaced.
        self.replaced = vec![Vec::new()];
        self.nodes += NODES_OF_MARK;
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
    // Digits may be grouped, as in YAML 1.1.
    let is_grouped = text.contains('_') && text.starts_with(|first: char| first.is_ascii_digit());
    let digits = is_grouped.then(|| text.replace('_', ""));
    if let Some(number) = integer(digits.as_deref().unwrap_or(text)) {
        return Value::Number(number);
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

/// Reads a whole number of 64 bits, with or without a sign.
fn integer(text: &str) -> Option<Number> {
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
    let number = sign * i128::from_str_radix(digits, radix).ok()?;
    let signed = i64::try_from(number).map(Number::from);
    signed
        .or_else(|_| u64::try_from(number).map(Number::from))
        .ok()
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
        let text = "# comment\na: [1, -2, 0o17, 017, 0x1f, 1.5, '1', \"x\\n\", ~]\nb: {c: true, d: null, g: 1_000, h: a_1}\nc: &x\n- y: z\nd: *x\n\
                    e: |\n  two\n  lines\nf: !!str 1\n1: 0.5.0\n...\n---\nsecond: document\n";
        let expected = json!({
            "a": [1, -2, 15, 15, 31, 1.5, "1", "x\n", null], "b": {"c": true, "g": 1000, "h": "a_1"},
            "c": [{"y": "z"}], "d": [{"y": "z"}], "e": "two\nlines\n", "f": "1", "1": "0.5.0",
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), Value::Null);
        let text = "[18446744073709551615, -9223372036854775808, 0xffffffffffffffff]";
        assert_eq!(parse(text).unwrap(), json!([u64::MAX, i64::MIN, u64::MAX]));
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
    fn tags_of_compose_are_noted() {
        let text = "a: {b: !reset [1], c: !override {d: 1}, e: 1}\n--- \nf: [1, !reset 2]\ng: &g {h: !reset ~}\ni: {<<: *g, j: *g}\n";
        let documents = parse_documents(text).unwrap();
        let shown = documents.iter().map(|document| {
            let paths = document.replaced.iter().map(|keys| keys.join("."));
            (document.value.to_string(), paths.collect::<Vec<_>>())
        });
        let shown: Vec<_> = shown.collect();
        assert_eq!(shown[0].0, r#"{"a":{"c":{"d":1},"e":1}}"#);
        assert_eq!(shown[0].1, ["a.b", "a.c"]);
        assert_eq!(shown[1].0, r#"{"f":[1],"g":{},"i":{"j":{}}}"#);
        assert_eq!(shown[1].1, ["g.h", "i.h", "i.j.h"]);
        assert_eq!(shown.len(), 2);
        assert!(parse("a: !reset 1").is_err());
        assert!(parse_documents("a: !other 1").is_err());
        assert_eq!(parse_documents("").unwrap(), []);
        let many = format!("a: &a !reset x\nb: [{}]", "*a, ".repeat(10_000));
        let error = parse_documents(&many).unwrap_err();
        assert!(error.contains("too large"), "{error}");
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
