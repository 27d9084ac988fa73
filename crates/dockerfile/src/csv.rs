//! One line of comma-separated values, as in `--mount`.

use crate::error::{Error, Result};

/// Splits a line at commas; a field in quotes may contain them, and `""` for a quote.
pub fn fields(line: &str) -> Result<Vec<String>> {
    let failed = |at: usize, cause: &str| {
        let column = line.get(..at).unwrap_or(line).len() + 1;
        Error::new(format!("parse error on line 1, column {column}: {cause}"))
    };
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let at = line.len() - rest.len();
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, after) = match rest.split_once(',') {
                Some((field, after)) => (field, Some(after)),
                None => (rest, None),
            };
            if let Some(quote) = field.find('"') {
                return Err(failed(at + quote, "bare \" in non-quoted field"));
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        let mut inner = quoted;
        loop {
            let Some((text, after)) = inner.split_once('"') else {
                return Err(failed(
                    line.len(),
                    "extraneous or missing \" in quoted-field",
                ));
            };
            field += text;
            match after.strip_prefix('"') {
                Some(after) => {
                    field.push('"');
                    inner = after;
                }
                None => {
                    inner = after;
                    break;
                }
            }
        }
        fields.push(field);
        if inner.is_empty() {
            return Ok(fields);
        }
        rest = inner.strip_prefix(',').ok_or_else(|| {
            failed(
                line.len() - inner.len(),
                "extraneous or missing \" in quoted-field",
            )
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_fields() {
        for (line, expected) in [
            ("a,b=c,", vec!["a", "b=c", ""]),
            ("\"a,b\",c", vec!["a,b", "c"]),
            ("\"a\"\"b\"", vec!["a\"b"]),
            ("", vec![""]),
        ] {
            assert_eq!(fields(line).unwrap_or_default(), expected, "{line}");
        }
        for line in ["a\"b", "\"a", "\"a\"b"] {
            assert!(fields(line).is_err(), "{line}");
        }
    }
}
