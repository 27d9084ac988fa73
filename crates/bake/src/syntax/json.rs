//! JSON with places: values and keys with their ranges of bytes, and keys that occur twice, which `serde_json` does not tell.

use std::ops::Range;

use serde::de::DeserializeOwned;
use serde_json::{Deserializer, Value as Json};

/// A value, and where it is written.
#[derive(Debug)]
pub(super) struct Node {
    pub span: Range<usize>,
    pub value: Value,
}

/// A member of an object. The span is that of the key, with its quotes.
#[derive(Debug)]
pub(super) struct Member {
    pub name: String,
    pub span: Range<usize>,
    pub value: Node,
}

#[derive(Debug)]
pub(super) enum Value {
    Object(Vec<Member>),
    Array(Vec<Node>),
    String(String),
    /// None of the others.
    Plain(Json),
}

/// Reads a document.
///
/// # Errors
/// Returns the error of `serde_json`, which also bounds the depth.
pub(super) fn read(content: &str) -> serde_json::Result<Node> {
    // What is walked through below is valid, therefore.
    serde_json::from_str::<Json>(content)?;
    Reader { content, at: 0 }.value()
}

struct Reader<'a> {
    content: &'a str,
    at: usize,
}

impl Reader<'_> {
    /// Skips blanks, and what separates values. Returns the byte behind them.
    fn next(&mut self) -> Option<u8> {
        let rest = self.content.as_bytes().get(self.at..)?;
        let is_between = |byte: &u8| b" \t\r\n,:".contains(byte);
        let found = rest.iter().position(|byte| !is_between(byte))?;
        self.at += found;
        rest.get(found).copied()
    }

    /// Reads a value without others in it.
    fn plain<T: DeserializeOwned>(&mut self) -> serde_json::Result<T> {
        let rest = self.content.get(self.at..).unwrap_or_default();
        let mut values = Deserializer::from_str(rest).into_iter::<T>();
        let value = match values.next() {
            Some(value) => value?,
            // Nothing is left, which is an error.
            None => serde_json::from_str(rest)?,
        };
        self.at += values.byte_offset();
        Ok(value)
    }

    fn value(&mut self) -> serde_json::Result<Node> {
        let first = self.next();
        let start = self.at;
        let value = match first {
            Some(b'{') => Value::Object(self.members()?),
            Some(b'[') => Value::Array(self.items()?),
            Some(b'"') => Value::String(self.plain()?),
            _ => Value::Plain(self.plain()?),
        };
        Ok(Node {
            span: start..self.at,
            value,
        })
    }

    fn members(&mut self) -> serde_json::Result<Vec<Member>> {
        let mut members = Vec::new();
        self.at += 1;
        while self.next() != Some(b'}') {
            let start = self.at;
            let name = self.plain()?;
            let span = start..self.at;
            let value = self.value()?;
            members.push(Member { name, span, value });
        }
        self.at += 1;
        Ok(members)
    }

    fn items(&mut self) -> serde_json::Result<Vec<Node>> {
        let mut items = Vec::new();
        self.at += 1;
        while self.next() != Some(b']') {
            items.push(self.value()?);
        }
        self.at += 1;
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a value with the text that its span has.
    fn shown(content: &str, node: &Node) -> String {
        let inner = match &node.value {
            Value::Object(members) => {
                let members = members.iter().map(|member| {
                    let key = &content[member.span.clone()];
                    format!("{key}={}={}", member.name, shown(content, &member.value))
                });
                members.collect::<Vec<_>>().join(";")
            }
            Value::Array(items) => {
                let items = items.iter().map(|item| shown(content, item));
                items.collect::<Vec<_>>().join(";")
            }
            Value::String(text) => text.clone(),
            Value::Plain(value) => value.to_string(),
        };
        format!("<{}|{inner}>", &content[node.span.clone()])
    }

    #[test]
    fn values_and_keys_have_places() {
        for (content, expected) in [
            (" {} ", "<{}|>"),
            ("[ ]", "<[ ]|>"),
            ("[1 ,-2.5e3]", "<[1 ,-2.5e3]|<1|1>;<-2.5e3|-2500.0>>"),
            ("[null,true\n]", "<[null,true\n]|<null|null>;<true|true>>"),
            (
                "{\"a\":\"ä\\\"]\", \"a\" : [\"}\"]}",
                "<{\"a\":\"ä\\\"]\", \"a\" : [\"}\"]}|\"a\"=a=<\"ä\\\"]\"|ä\"]>;\"a\"=a=<[\"}\"]|<\"}\"|}>>>",
            ),
            ("{\"\\u00e4\":{}}", "<{\"\\u00e4\":{}}|\"\\u00e4\"=ä=<{}|>>"),
        ] {
            let read = read(content).map(|node| shown(content, &node));
            assert_eq!(read.unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        for content in [
            "",
            "{",
            "[1",
            "{\"a\"}",
            "{\"a\" 1}",
            "[1,]",
            "[1 2]",
            "\"\\ud800\"",
            "1e999",
            "{}}",
        ] {
            assert!(read(content).is_err(), "{content}");
        }
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        assert!(read(&deep).is_err());
    }
}
