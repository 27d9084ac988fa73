//! The JSON grammar, with the error texts of Go's `encoding/json`.

/// A JSON value. Numbers keep their text: whether one fits depends on the field it is for, and
/// errors quote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Takes a member out of an object, whatever the case of its key. Of several, the last one
    /// counts.
    pub(crate) fn take(&mut self, key: &str) -> Option<(String, Self)> {
        let Self::Object(members) = self else {
            return None;
        };
        let mut found = None;
        members.retain_mut(|(known, value)| {
            let matches = known.eq_ignore_ascii_case(key);
            if matches {
                found = Some((std::mem::take(known), std::mem::replace(value, Self::Null)));
            }
            !matches
        });
        found
    }
}

/// Why bytes are not one JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// There is nothing but white space.
    Empty,
    Invalid(String),
}

type Result<T> = std::result::Result<T, Syntax>;

/// How deep values may be nested: far below Go's 10000, since a value is read and dropped by
/// recursion.
const DEEPEST: usize = 128;

/// Reads the first value of `bytes`, and whether something follows that is not the end of an array
/// or object (which is what Go's decoder looks for).
pub(crate) fn parse(bytes: &[u8]) -> Result<(Value, bool)> {
    let mut parser = Parser { bytes, at: 0 };
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

impl Parser<'_> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// The error for the next character, which `context` does not allow.
    fn unexpected<T>(&self, context: &str) -> Result<T> {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        Err(match rest.first() {
            None => end(),
            Some(_) => Syntax::Invalid(format!("invalid character {} {context}", quoted(rest))),
        })
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        match self.peek() {
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => self.unexpected("looking for beginning of value"),
        }
    }

    fn enter(&mut self, depth: usize) -> Result<()> {
        self.at += 1;
        if depth > DEEPEST {
            Err(Syntax::Invalid("exceeded max depth".into()))
        } else {
            Ok(())
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value> {
        self.enter(depth)?;
        let mut members = Vec::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            if self.peek() != Some(b'"') {
                return self.unexpected("looking for beginning of object key string");
            }
            let key = self.string()?;
            if self.peek() != Some(b':') {
                return self.unexpected("after object key");
            }
            self.at += 1;
            members.push((key, self.value(depth)?));
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(members));
                }
                _ => return self.unexpected("after object key:value pair"),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value> {
        self.enter(depth)?;
        let mut elements = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value(depth)?);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(elements));
                }
                _ => return self.unexpected("after array element"),
            }
        }
    }

    fn literal(&mut self, name: &str, value: Value) -> Result<Value> {
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

    fn number(&mut self) -> Result<Value> {
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
            String::from_utf8_lossy(&self.bytes[begin..self.at]).into_owned(),
        ))
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<()> {
        if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            return self.unexpected("in numeric literal");
        }
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    /// A string; what is no UTF-8 becomes U+FFFD, as lone surrogates do.
    fn string(&mut self) -> Result<String> {
        self.at += 1;
        let mut text = Vec::new();
        loop {
            match self.bytes.get(self.at) {
                None => return Err(end()),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(String::from_utf8(text).unwrap_or_else(|error| {
                        String::from_utf8_lossy(error.as_bytes()).into_owned()
                    }));
                }
                Some(b'\\') => {
                    let letter = self.escape()?;
                    text.extend(letter.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(0..=0x1f) => return self.unexpected("in string"),
                Some(byte) => {
                    text.push(*byte);
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

    /// `\uXXXX`, and a second one where the first is half of a surrogate pair.
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

/// The first character of `bytes` as Go quotes it.
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

    fn text(value: &Value) -> String {
        match value {
            Value::Null => "null".into(),
            Value::Bool(value) => value.to_string(),
            Value::Number(text) => text.clone(),
            Value::String(text) => format!("{text:?}"),
            Value::Array(list) => {
                format!("[{}]", list.iter().map(text).collect::<Vec<_>>().join(","))
            }
            Value::Object(map) => {
                format!(
                    "{{{}}}",
                    map.iter()
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
            Ok((value, more)) => format!("{}{}", text(&value), if more { " more" } else { "" }),
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
    fn values_are_read() {
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
    fn errors_read_as_gos() {
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
    fn members_are_taken_whatever_their_case() {
        let (mut value, _) =
            parse(br#"{"hostConfig":1,"b":2,"HostConfig":3}"#).unwrap_or((Value::Null, false));
        assert_eq!(
            value.take("HostConfig"),
            Some(("HostConfig".into(), Value::Number("3".into())))
        );
        assert_eq!(
            value,
            Value::Object(vec![("b".into(), Value::Number("2".into()))])
        );
    }
}
