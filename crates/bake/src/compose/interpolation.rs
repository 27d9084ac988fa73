//! Variables in Compose's files: `$NAME`, `${NAME:-DEFAULT}`, `${NAME:?ERROR}`, `${NAME:+OTHER}`.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::Value;

use super::Variables;
use super::place::Place;
use crate::error::{Error, Result};

/// How deep variables may be in the defaults of others.
const MAX_DEPTH: usize = 20;

/// The maximum length of a text.
const MAX_TEXT: usize = 1 << 20;

/// The maximum length of all texts with variables.
const MAX_TEXTS: usize = 64 << 20;

/// Why variables cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Template,
    Other(String),
}

impl Wrong {
    /// Returns what is wrong with the text of a value.
    pub fn told(&self, text: &str, path: &str) -> String {
        match self {
            Self::Template => format!(
                "invalid interpolation format for {path}.\nYou may need to escape any $ with another $.\n{text}"
            ),
            Self::Other(cause) => format!("error while interpolating {path}: {cause}"),
        }
    }
}

/// Replaces variables in values.
#[derive(Debug, Default)]
pub(super) struct Interpolation {
    bytes: usize,
    /// Names of variables that have no value.
    pub unset: BTreeSet<String>,
}

impl Interpolation {
    /// Replaces the variables of a text.
    pub fn text(
        &mut self,
        text: &str,
        place: Place<'_>,
        variables: &Variables<'_>,
    ) -> Result<String> {
        if !text.contains('$') {
            return Ok(text.to_owned());
        }
        self.count(references(text))?;
        let known = |name: &str| variables.get(name).map(String::as_str);
        let replaced = interpolate(text, &known, &mut self.unset);
        let replaced =
            replaced.map_err(|wrong| Error::new(wrong.told(text, &place.to_string())))?;
        self.count(replaced.len())?;
        Ok(replaced)
    }

    fn count(&mut self, bytes: usize) -> Result<()> {
        self.bytes += bytes;
        match self.bytes > MAX_TEXTS {
            true => Err(Error::new(format!(
                "texts with variables have more than {MAX_TEXTS} bytes"
            ))),
            false => Ok(()),
        }
    }

    /// Replaces the variables of all texts in a value.
    pub fn replace(
        &mut self,
        value: &mut Value,
        place: Place<'_>,
        variables: &Variables<'_>,
    ) -> Result<()> {
        match value {
            Value::String(text) => {
                *text = self.text(text, place, variables)?;
                Ok(())
            }
            Value::Array(items) => {
                let mut items = items.iter_mut();
                items.try_for_each(|item| self.replace(item, place.below("[]"), variables))
            }
            Value::Object(members) => {
                let mut members = members.iter_mut();
                members
                    .try_for_each(|(key, value)| self.replace(value, place.below(key), variables))
            }
            _ => Ok(()),
        }
    }
}

/// Returns the value of a variable.
pub(crate) type Variable<'a> = dyn Fn(&str) -> Option<&'a str> + 'a;

/// Bytes that each reference to a variable adds to the size of a text, also if its value is empty: looking it up takes time in
/// every project that includes the file.
const REFERENCE: usize = 64;

/// Returns the bytes that the references to variables in a text add to its size.
pub(crate) fn references(text: &str) -> usize {
    text.matches('$').count() * REFERENCE
}

/// Replaces variables. One that is not set is empty, and added to `unset`.
///
/// # Errors
/// Returns what is malformed, or the error of a variable that is required.
pub(crate) fn interpolate(
    text: &str,
    variable: &Variable<'_>,
    unset: &mut BTreeSet<String>,
) -> std::result::Result<String, Wrong> {
    nested(text, variable, unset, 0)
}

fn nested(
    text: &str,
    variable: &Variable<'_>,
    unset: &mut BTreeSet<String>,
    depth: usize,
) -> std::result::Result<String, Wrong> {
    if depth > MAX_DEPTH {
        return Err(Wrong::Other("variables are nested too deeply".into()));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or(Wrong::Template)?;
            let (name, operator) = after[..end].split_at(name_length(after));
            match (name, operator) {
                ("", _) => return Err(Wrong::Template),
                (name, "") => out += plain(name, variable, unset),
                (name, operator) => out += &braced(name, operator, variable, unset, depth)?,
            }
            rest = &after[end + 1..];
        } else {
            // What is no name stays.
            match name_length(rest) {
                0 => out.push('$'),
                length => out += plain(&rest[..length], variable, unset),
            }
            rest = &rest[name_length(rest)..];
        }
        if out.len() > MAX_TEXT {
            return Err(Wrong::Other("the text is too long".into()));
        }
    }
    Ok(out + rest)
}

/// Returns the value of a variable, or nothing for one that is not set.
fn plain<'a>(name: &str, variable: &Variable<'a>, unset: &mut BTreeSet<String>) -> &'a str {
    variable(name).unwrap_or_else(|| {
        unset.insert(name.to_owned());
        ""
    })
}

/// Returns the length of a variable's name at the begin.
fn name_length(text: &str) -> usize {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    match text.as_bytes().first() {
        Some(first) if first.is_ascii_digit() => 0,
        _ => text.bytes().take_while(is_name).count(),
    }
}

/// Returns the place of the brace that closes. If there are not as many as are open, it is the last one.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
    }
    text.rfind('}')
}

/// Returns what `${NAME OPERATOR}` stands for.
fn braced<'a>(
    name: &str,
    operator: &str,
    variable: &Variable<'a>,
    unset: &mut BTreeSet<String>,
    depth: usize,
) -> std::result::Result<Cow<'a, str>, Wrong> {
    let value = variable(name);
    let (empty_counts, operator) = match operator.strip_prefix(':') {
        Some(operator) => (true, operator),
        None => (false, operator),
    };
    let value = value.filter(|value| !empty_counts || !value.is_empty());
    let kind = operator.chars().next().ok_or(Wrong::Template)?;
    let mut word = || nested(&operator[1..], variable, unset, depth + 1);
    match (kind, value) {
        ('-' | '?', Some(value)) => Ok(value.into()),
        ('-', None) => word().map(Cow::from),
        ('?', None) => {
            let missing = format!("required variable {name} is missing a value");
            Err(Wrong::Other(match word()?.as_str() {
                "" => missing,
                word => format!("{missing}: {word}"),
            }))
        }
        ('+', Some(_)) => word().map(Cow::from),
        ('+', None) => Ok("".into()),
        _ => Err(Wrong::Template),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced() {
        let variable = |name: &str| match name {
            "A" => Some("1"),
            "E" => Some(""),
            _ => None,
        };
        let missing = |text: &str| Err(Wrong::Other(text.into()));
        for (text, expected) in [
            ("$A-${A}-$$A", Ok("1-1-$A")),
            ("${B}x$B", Ok("x")),
            ("${B:-${A}y}", Ok("1y")),
            ("${B:-{\"a\": {}}}z", Ok("{\"a\": {}}z")),
            ("${B:-{}", Ok("{")),
            ("${E:-d}${E-d}", Ok("d")),
            ("${A:+z}${B+z}", Ok("z")),
            ("$5 $", Ok("$5 $")),
            ("${B:?}", missing("required variable B is missing a value")),
            (
                "${E:?no}",
                missing("required variable E is missing a value: no"),
            ),
            ("${A", Err(Wrong::Template)),
            ("${A!x}", Err(Wrong::Template)),
            ("${}", Err(Wrong::Template)),
        ] {
            let mut unset = BTreeSet::new();
            let found = interpolate(text, &variable, &mut unset);
            assert_eq!(found, expected.map(str::to_owned), "{text}");
            assert_eq!(unset.contains("B"), text == "${B}x$B", "{text}");
        }
        let deep = format!("{}{}", "${B:-".repeat(100), "}".repeat(100));
        assert_eq!(
            interpolate(&deep, &variable, &mut BTreeSet::new()),
            missing("variables are nested too deeply").map(str::to_owned)
        );
    }

    #[test]
    fn texts_are_bounded() {
        let variables = Variables::new([("A".to_owned(), "x".repeat(1 << 19))].into());
        let mut interpolation = Interpolation::default();
        let mut many = Value::Array(vec!["$A".into(); 1000]);
        let failed = interpolation.replace(&mut many, Place::new("x"), &variables);
        assert!(failed.unwrap_err().text.contains("more than"));
        // What is not used is not copied, and counts nevertheless.
        let mut interpolation = Interpolation::default();
        let mut replaced = |count: usize| {
            let text = "${A+}".repeat(count);
            interpolation.text(&text, Place::new("x"), &variables)
        };
        let started = std::time::Instant::now();
        assert_eq!(
            replaced(500_000).map_err(|error| error.text),
            Ok(String::new())
        );
        assert!(replaced(600_000).unwrap_err().text.contains("more than"));
        assert!(started.elapsed().as_secs() < 20);
    }

    #[test]
    fn places_are_told_in_errors_only() {
        let variables = Variables::new(std::collections::BTreeMap::new());
        let replaced = |mut value: Value| {
            let mut interpolation = Interpolation::default();
            let place = Place::new("x");
            let failed = interpolation.replace(&mut value, place, &variables);
            failed.map_err(|error| error.text)
        };
        let wrong = replaced(serde_json::json!({"a": ["b", "${"]})).unwrap_err();
        let expected = "invalid interpolation format for x.a.[].";
        assert!(wrong.starts_with(expected), "{wrong}");
        let members: serde_json::Map<_, _> = (0..100_000)
            .map(|number| (number.to_string(), Value::Null))
            .collect();
        let long = [("a".repeat(4 << 20), Value::Object(members))];
        let started = std::time::Instant::now();
        assert!(replaced(Value::Object(long.into_iter().collect())).is_ok());
        assert!(started.elapsed().as_secs() < 20);
    }
}
