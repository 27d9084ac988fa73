//! A JSON parser with the error texts of Go's `encoding/json`.
//!
//! [`parse`] validates a whole text. A [`Value`] is a slice of it, whose elements and members are
//! parsed on iteration: a tree of small values would take many times the memory of their text.

/// A JSON value within a valid text. Numbers are kept as text: their range depends on the field,
/// and errors quote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    String(Text<'a>),
    Array(Array<'a>),
    Object(Object<'a>),
}

/// A string with its quotes and escapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Text<'a>(&'a [u8]);

/// An array with its brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Array<'a>(&'a [u8]);

/// An object with its braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Object<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// Returns the member of an object with this case-insensitive key; the last of several.
    pub(crate) fn member(self, key: &str) -> Option<(String, Self)> {
        let Self::Object(object) = self else {
            return None;
        };
        object
            .members()
            .filter(|(known, _)| known.eq_ignore_ascii_case(key))
            .last()
    }
}

impl Text<'_> {
    pub(crate) fn decode(self) -> String {
        let mut text = Vec::new();
        // `parse` has validated the text.
        let _ = Parser::new(self.0).string(Some(&mut text));
        String::from_utf8(text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl<'a> Array<'a> {
    pub(crate) fn elements(self) -> impl Iterator<Item = Value<'a>> {
        let mut parser = Parser {
            at: 1,
            ..Parser::new(self.0)
        };
        std::iter::from_fn(move || {
            if parser.peek()? == b']' {
                return None;
            }
            let value = parser.value(0).ok()?;
            parser.skip_comma();
            Some(value)
        })
    }
}

impl<'a> Object<'a> {
    pub(crate) fn members(self) -> impl Iterator<Item = (String, Value<'a>)> {
        let mut parser = Parser {
            at: 1,
            ..Parser::new(self.0)
        };
        std::iter::from_fn(move || {
            if parser.peek()? == b'}' {
                return None;
            }
            let member = parser.member(0).ok()?;
            parser.skip_comma();
            Some((member.0.decode(), member.1))
        })
    }
}

/// Why bytes are not a JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// The input contains only white space.
    Empty,
    Invalid(String),
}

type Result<T> = std::result::Result<T, Syntax>;

/// Maximum nesting depth. Far below Go's 10000, because values are parsed recursively.
const MAX_DEPTH: usize = 128;

/// The maximum number of elements of an array. A decoded element can take a hundred times the memory
/// of its text, `{}`.
const MAX_ARRAY_LENGTH: usize = 1 << 16;

/// The maximum number of members of an object: enough for all ports of three protocols.
const MAX_OBJECT_MEMBERS: usize = 1 << 18;

/// Validates the first value of `bytes`. Also returns whether more follows other than the end of an
/// array or object, which is what Go's `Decoder.More` checks.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Value<'_>, bool)> {
    let mut parser = Parser::new(bytes);
    if parser.peek().is_none() {
        return Err(Syntax::Empty);
    }
    let value = parser.value(0)?;
    let more = !matches!(parser.peek(), None | Some(b']' | b'}'));
    Ok((value, more))
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Skips white space and returns the next byte.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// Returns the error for the next character, which is not allowed in `context`.
    fn unexpected<T>(&self, context: &str) -> Result<T> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        Err(match rest.first() {
            None => end(),
            Some(_) => Syntax::Invalid(format!("invalid character {} {context}", quoted(rest))),
        })
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>> {
        let next = self.peek();
        let begin = self.at;
        match next {
            Some(b'{') => self
                .object(depth + 1)
                .map(|()| Value::Object(Object(&self.bytes[begin..self.at]))),
            Some(b'[') => self
                .array(depth + 1)
                .map(|()| Value::Array(Array(&self.bytes[begin..self.at]))),
            Some(b'"') => self.text().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => self.unexpected("looking for beginning of value"),
        }
    }

    fn enter(&mut self, depth: usize) -> Result<()> {
        self.at += 1;
        if depth > MAX_DEPTH {
            Err(Syntax::Invalid("exceeded max depth".into()))
        } else {
            Ok(())
        }
    }

    fn skip_comma(&mut self) {
        if self.peek() == Some(b',') {
            self.at += 1;
        }
    }

    fn object(&mut self, depth: usize) -> Result<()> {
        self.enter(depth)?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        for _ in 0..MAX_OBJECT_MEMBERS {
            self.member(depth)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.unexpected("after object key:value pair"),
            }
        }
        Err(Syntax::Invalid(format!(
            "an object has more than {MAX_OBJECT_MEMBERS} members"
        )))
    }

    fn member(&mut self, depth: usize) -> Result<(Text<'a>, Value<'a>)> {
        if self.peek() != Some(b'"') {
            return self.unexpected("looking for beginning of object key string");
        }
        let key = self.text()?;
        if self.peek() != Some(b':') {
            return self.unexpected("after object key");
        }
        self.at += 1;
        Ok((key, self.value(depth)?))
    }

    fn array(&mut self, depth: usize) -> Result<()> {
        self.enter(depth)?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for _ in 0..MAX_ARRAY_LENGTH {
            self.value(depth)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return self.unexpected("after array element"),
            }
        }
        Err(Syntax::Invalid(format!(
            "an array has more than {MAX_ARRAY_LENGTH} elements"
        )))
    }

    fn literal(&mut self, name: &str, value: Value<'a>) -> Result<Value<'a>> {
        for letter in name.bytes() {
            if self.bytes.get(self.at) != Some(&letter) {
                return self.unexpected(&format!(
                    "in literal {name} (expecting '{}')",
                    char::from(letter)
                ));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Value<'a>> {
        let begin = self.at;
        if self.bytes.get(self.at) == Some(&b'-') {
            self.at += 1;
        }
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.bytes.get(self.at), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Value::Number(
            std::str::from_utf8(&self.bytes[begin..self.at]).unwrap_or_default(),
        ))
    }

    /// Parses one or more digits.
    fn digits(&mut self) -> Result<()> {
        if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            return self.unexpected("in numeric literal");
        }
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    fn text(&mut self) -> Result<Text<'a>> {
        let begin = self.at;
        self.string(None)?;
        Ok(Text(&self.bytes[begin..self.at]))
    }

    /// Parses a string into `text`. Lone surrogates become U+FFFD.
    fn string(&mut self, mut text: Option<&mut Vec<u8>>) -> Result<()> {
        self.at += 1;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(end()),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    let letter = self.escape()?;
                    if let Some(text) = &mut text {
                        text.extend(letter.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                }
                Some(0..=0x1f) => return self.unexpected("in string"),
                Some(byte) => {
                    if let Some(text) = &mut text {
                        text.push(*byte);
                    }
                    self.at += 1;
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let plain = match self.bytes.get(self.at + 1) {
            None => return Err(end()),
            Some(letter @ (b'"' | b'\\' | b'/')) => char::from(*letter),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            Some(_) => return self.bad_escape(2),
        };
        self.at += 2;
        Ok(plain)
    }

    /// Parses `\uXXXX`, and a second one if the first is a high surrogate.
    fn unicode(&mut self) -> Result<char> {
        let first = self.code_unit()?;
        if (0xd800..0xdc00).contains(&first) && self.bytes[self.at..].starts_with(b"\\u") {
            let after_first = self.at;
            let second = self.code_unit()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = after_first;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn code_unit(&mut self) -> Result<u32> {
        let rest = &self.bytes[self.at + 2..];
        let digits = &rest[..rest.len().min(4)];
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return self.bad_escape(6);
        }
        if digits.len() < 4 {
            return Err(end());
        }
        self.at += 6;
        Ok(digits.iter().fold(0, |code, digit| {
            code << 4 | char::from(*digit).to_digit(16).unwrap_or(0)
        }))
    }

    fn bad_escape<T>(&self, length: usize) -> Result<T> {
        let rest = &self.bytes[self.at..];
        let text = String::from_utf8_lossy(&rest[..rest.len().min(length)]);
        Err(Syntax::Invalid(format!(
            "invalid escape sequence `{text}` in string"
        )))
    }
}

fn end() -> Syntax {
    Syntax::Invalid("unexpected EOF".into())
}

/// Quotes the first character of `bytes` as Go does.
fn quoted(bytes: &[u8]) -> String {
    let whole = String::from_utf8_lossy(&bytes[..bytes.len().min(4)]);
    let letter = whole.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
    if letter == char::REPLACEMENT_CHARACTER && !bytes.starts_with("\u{fffd}".as_bytes()) {
        return format!("'\\x{:02x}'", bytes[0]);
    }
    match letter {
        '\'' => "'\\''".into(),
        '"' => "'\"'".into(),
        '\u{7}' => "'\\a'".into(),
        '\u{8}' => "'\\b'".into(),
        '\u{b}' => "'\\v'".into(),
        '\u{c}' => "'\\f'".into(),
        '\n' | '\r' | '\t' | '\\' => format!("'{}'", letter.escape_default()),
        _ if u32::from(letter) < 0x20 || letter == '\u{7f}' => {
            format!("'\\x{:02x}'", u32::from(letter))
        }
        _ if letter.escape_debug().count() > 1 => format!("'\\u{:04x}'", u32::from(letter)),
        _ => format!("'{letter}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Value<'_>) -> String {
        match value {
            Value::Null => "null".into(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => text.into(),
            Value::String(text) => format!("{:?}", text.decode()),
            Value::Array(array) => format!(
                "[{}]",
                array.elements().map(text).collect::<Vec<_>>().join(",")
            ),
            Value::Object(object) => {
                format!(
                    "{{{}}}",
                    object
                        .members()
                        .map(|(key, value)| format!("{key:?}:{}", text(value)))
                        .collect::<Vec<_>>()
                        .join(",")
                )
            }
        }
    }

    #[track_caller]
    fn check(input: impl AsRef<[u8]>, expected: &str) {
        let outcome = match parse(input.as_ref()) {
            Ok((value, more)) => format!("{}{}", text(value), if more { " more" } else { "" }),
            Err(Syntax::Empty) => "EOF".into(),
            Err(Syntax::Invalid(text)) => text,
        };
        assert_eq!(
            outcome,
            expected,
            "{}",
            String::from_utf8_lossy(input.as_ref())
        );
    }

    #[test]
    fn parses_values() {
        check(
            " {\"a\" : [1, -0.5e+3, true, null,\t\"x\"] }\n",
            "{\"a\":[1,-0.5e+3,true,null,\"x\"]}",
        );
        check("{\"a\":1,\"a\":2}", "{\"a\":1,\"a\":2}");
        check(
            r#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00""#,
            "\"\\\"\\\\/\\u{8}\\u{c}\\n\\r\\té😀\"",
        );
        check(r#""\ud800 \ud800\u0041""#, "\"\u{fffd} \u{fffd}A\"");
        check(b"\"\xff\"", "\"\u{fffd}\"");
        check("1 2", "1 more");
        check("{} }", "{}");
        check("", "EOF");
        check(" \n", "EOF");
    }

    #[test]
    fn errors_have_gos_texts() {
        check(
            "garbage",
            "invalid character 'g' looking for beginning of value",
        );
        check("{", "unexpected EOF");
        check(
            "{\"Image\":\"x\",}",
            "invalid character '}' looking for beginning of object key string",
        );
        check("{\"a\" 1}", "invalid character '1' after object key");
        check(
            "{\"a\":01}",
            "invalid character '1' after object key:value pair",
        );
        check(
            "{\"a\":1]",
            "invalid character ']' after object key:value pair",
        );
        check("[1 2]", "invalid character '2' after array element");
        check(
            "[1,]",
            "invalid character ']' looking for beginning of value",
        );
        check(
            "{\"a\":tru}",
            "invalid character '}' in literal true (expecting 'e')",
        );
        check(
            "{\"a\":nu11}",
            "invalid character '1' in literal null (expecting 'l')",
        );
        check("tru", "unexpected EOF");
        check("{\"a\":-}", "invalid character '}' in numeric literal");
        check("{\"a\":1.x}", "invalid character 'x' in numeric literal");
        check("1e", "unexpected EOF");
        check(
            "{\"a\":'x'}",
            "invalid character '\\'' looking for beginning of value",
        );
        check("{\"a\":\"\n\"}", "invalid character '\\n' in string");
        check("{\"a\":\"\u{1}\"}", "invalid character '\\x01' in string");
        check("{\"a\":\"\\x\"}", "invalid escape sequence `\\x` in string");
        check(
            "{\"a\":\"\\u12g4\"}",
            "invalid escape sequence `\\u12g4` in string",
        );
        check(
            "{\"a\":\"\\u12\"}",
            "invalid escape sequence `\\u12\"}` in string",
        );
        check("\"abc", "unexpected EOF");
        check("\"\\u12", "unexpected EOF");
        check(
            "\u{feff}{}",
            "invalid character '\\ufeff' looking for beginning of value",
        );
        check("é", "invalid character 'é' looking for beginning of value");
        check(
            b"{\"a\":\xff}",
            "invalid character '\\xff' looking for beginning of value",
        );
        check("[".repeat(100_000), "exceeded max depth");
    }

    #[test]
    fn arrays_and_objects_have_a_limit() {
        let array = |length: usize| format!("[{}]", vec!["[ ]"; length].join(" , "));
        assert!(parse(array(MAX_ARRAY_LENGTH).as_bytes()).is_ok());
        check(
            array(MAX_ARRAY_LENGTH + 1),
            "an array has more than 65536 elements",
        );
        let object = |length: usize| format!("{{{}}}", vec!["\"\": 0"; length].join(" , "));
        assert!(parse(object(MAX_OBJECT_MEMBERS).as_bytes()).is_ok());
        check(
            object(MAX_OBJECT_MEMBERS + 1),
            "an object has more than 262144 members",
        );
    }

    #[test]
    fn a_member_is_found_whatever_its_case() {
        let (value, _) =
            parse(br#"{"hostConfig":1,"b":2,"HostConfig":3,"c":{"hostconfig":4}}"#).unwrap();
        assert_eq!(
            value.member("HostConfig"),
            Some(("HostConfig".into(), Value::Number("3")))
        );
        assert_eq!((value.member("d"), Value::Null.member("b")), (None, None));
    }
}
