//! Files `.env`: variables for files of Compose.

use std::collections::{BTreeMap, BTreeSet};

use crate::compose::{Variable, Variables, interpolate, references};

/// The maximum length of the names and values of all files.
const MAX_VALUES: usize = 64 << 20;

/// How much each value counts beside its length: for the memory of two texts and of a place in a map.
const ENTRY: usize = 128;

/// How much of `MAX_VALUES` is left.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_VALUES)
    }
}

impl Budget {
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        self.spend(name.len() + value.len() + ENTRY)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.0.checked_sub(bytes);
        self.0 = left.ok_or_else(|| format!("values have more than {MAX_VALUES} bytes"))?;
        Ok(())
    }
}

/// Reads lines `NAME=VALUE` or `NAME: VALUE` into `found`. Values may be quoted, and then have several lines; those that are not in
/// single quotes may have variables. A name alone is that of the environment.
///
/// # Errors
/// Returns the line of the file `name` that is not valid.
pub(crate) fn parse(
    name: &str,
    text: &str,
    variables: &Variables<'_>,
    found: &mut BTreeMap<String, String>,
    budget: &mut Budget,
) -> Result<(), String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(());
        }
        if rest.starts_with('#') {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        let at = text.len() - rest.len();
        let wrong = |cause: String| {
            let line = text[..at].matches('\n').count() + 1;
            format!("failed to read {name}: line {line}: {cause}")
        };
        let (key, after) = key(rest).map_err(wrong)?;
        let Some(after) = after else {
            if let Some(value) = variables.get(key) {
                budget.take(key, value).map_err(wrong)?;
                found.insert(key.to_owned(), value.clone());
            }
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
            continue;
        };
        let known = |name: &str| {
            let value = variables.get(name).or_else(|| found.get(name));
            value.map(String::as_str)
        };
        let (value, behind) = value(after, &known).map_err(wrong)?;
        let written = &after[..after.len() - behind.len()];
        budget.spend(references(written)).map_err(wrong)?;
        budget.take(key, &value).map_err(wrong)?;
        found.insert(key.to_owned(), value);
        rest = behind;
    }
}

/// Returns the name at the begin, and what comes after its separator, if there is one.
fn key(text: &str) -> Result<(&str, Option<&str>), String> {
    let exported = text.strip_prefix("export");
    let exported = exported.filter(|after| after.starts_with([' ', '\t']));
    let text = exported.unwrap_or(text).trim_start();
    let line = text.split_once('\n').map_or(text, |(line, _)| line);
    let end = line.find(['=', ':']);
    let key = line[..end.unwrap_or(line.len())].trim_end();
    let is_name = |char: char| char.is_alphanumeric() || "_.-[]".contains(char);
    if let Some(char) = key.chars().find(|char| !is_name(*char) && *char != ' ') {
        return Err(format!(
            "unexpected character {:?} in variable name {line:?}",
            char.to_string()
        ));
    }
    if key.contains(' ') {
        return Err("key cannot contain a space".into());
    }
    // The value may have several lines.
    Ok((key, end.map(|end| &text[end + 1..])))
}

/// Returns the value at the begin, and what comes after it.
fn value<'a>(text: &'a str, variable: &Variable<'_>) -> Result<(String, &'a str), String> {
    let replaced = |text: &str| {
        let replaced = interpolate(text, variable, &mut BTreeSet::new());
        replaced.map_err(|wrong| wrong.told(text, "a value"))
    };
    let text = text.trim_start_matches(|char: char| char.is_whitespace() && char != '\n');
    let Some(quote) = text.chars().next().filter(|char| "'\"".contains(*char)) else {
        let (line, after) = text.split_once('\n').unwrap_or((text, ""));
        let value = line.split_once(" #").map_or(line, |(value, _)| value);
        return Ok((replaced(value.trim_end())?, after));
    };
    let mut inner = String::new();
    let mut is_escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            char if char == quote && !is_escaped => {
                let value = match quote {
                    '"' => replaced(&unescaped(&inner))?,
                    _ => inner,
                };
                return Ok((value, &text[at + 1..]));
            }
            '\\' if !is_escaped => {
                is_escaped = true;
                continue;
            }
            // Other escapes are read later.
            char if is_escaped && char != quote => inner.push('\\'),
            _ => {}
        }
        is_escaped = false;
        inner.push(char);
    }
    let line = text.lines().next().unwrap_or_default();
    Err(format!("unterminated quoted value {line}"))
}

/// Replaces the escapes of double quotes. `\$` becomes `$$`, which is no variable.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        let Some(char) = rest.chars().next() else {
            out.push('\\');
            break;
        };
        rest = &rest[char.len_utf8()..];
        match char {
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '"' | '\\' => out.push(char),
            '$' => out += "$$",
            '0' => {
                let digits = rest.bytes().take(3).take_while(u8::is_ascii_digit).count();
                let code = u8::from_str_radix(&rest[..digits], 8);
                match code.ok().filter(|_| digits == 3) {
                    Some(code) => out.push(char::from(code)),
                    None => {
                        out.push('\\');
                        out += &rest[..digits];
                    }
                }
                rest = &rest[digits..];
            }
            other => {
                out.push('\\');
                out.push(other);
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, String>, String> {
        let variables = Variables::new([("HOME".to_owned(), "/h".to_owned())].into());
        let mut found = BTreeMap::new();
        let budget = &mut Budget::default();
        parse(".env", text, &variables, &mut found, budget).map(|()| found)
    }

    #[test]
    fn many_lines_are_read_in_a_moment() {
        let started = std::time::Instant::now();
        // The value is not copied.
        let lines = format!("A={}\n{}", "x".repeat(1 << 20), "B=${A+}\n".repeat(100_000));
        assert_eq!(read(&lines).unwrap()["B"], "");
        let all = read(&format!("B={}", "${A+}".repeat(1_100_000))).unwrap_err();
        assert!(all.contains("values have more than"), "{all}");
        assert!(read(&"A\n".repeat(1 << 20)).unwrap().is_empty());
        assert!(started.elapsed().as_secs() < 60);
    }

    #[test]
    fn files_have_one_budget() {
        let mut budget = Budget(300);
        let mut read = |text: &str| {
            let variables = Variables::new([("HOME".to_owned(), "/h".to_owned())].into());
            parse(".env", text, &variables, &mut BTreeMap::new(), &mut budget)
        };
        assert_eq!(read("A=12"), Ok(()));
        assert_eq!(read("HOME"), Ok(()));
        let refused = read("A=12").unwrap_err();
        assert!(refused.contains("values have more than"), "{refused}");
    }

    #[test]
    fn lines_become_variables() {
        let text = "\u{feff}# x\nA=1\nexport B = \"two $A\"\nC='$A' # x\nD=${HOME}/x # y\n\nHOME\nNONE\n\
            E: \"a\\n\\$b \\\"c\\\" \\0101\\q\"\nF='two\nlines'\nG=\nH[0]=x=y\nHOME";
        let found = read(text).unwrap();
        let shown: Vec<String> = found
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(
            shown,
            [
                "A=1",
                "B=two 1",
                "C=$A",
                "D=/h/x",
                "E=a\n$b \"c\" A\\q",
                "F=two\nlines",
                "G=",
                "HOME=/h",
                "H[0]=x=y"
            ]
        );
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, expected) in [
            (
                "A=1\nB?=1",
                "failed to read .env: line 2: unexpected character \"?\" in variable name \"B?=1\"",
            ),
            (
                "B C=1",
                "failed to read .env: line 1: key cannot contain a space",
            ),
            (
                "\nA='x",
                "failed to read .env: line 2: unterminated quoted value 'x",
            ),
            ("A=${B", "invalid interpolation format"),
        ] {
            let failed = read(text).unwrap_err();
            assert!(failed.contains(expected), "{failed}");
        }
        let doubled: String = (1..40)
            .map(|number| format!("A{number}=$A{0}$A{0}\n", number - 1))
            .collect();
        assert!(read(&format!("A0=xxxxxxxx\n{doubled}")).is_err());
    }
}
