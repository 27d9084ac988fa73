//! The file `.env`: variables for files of Compose.

use std::collections::BTreeMap;

use crate::compose::interpolate;

/// Reads lines `NAME=VALUE`. Values may be quoted; those that are not in single quotes may have variables.
///
/// # Errors
/// Returns the line that is not valid.
pub(crate) fn parse(
    text: &str,
    variables: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |text: &str| format!("failed to read .env: line {}: {text}", number + 1);
        let Some((name, value)) = line.split_once('=') else {
            // A name alone is that of the environment.
            if let Some(value) = variables.get(line) {
                found.insert(line.to_owned(), value.clone());
            }
            continue;
        };
        let name = name.trim_end();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(wrong(&format!(
                "unexpected character in variable name {name:?}"
            )));
        }
        let value = value.trim_start();
        let known = |name: &str| variables.get(name).or_else(|| found.get(name)).cloned();
        let value = match value.chars().next() {
            Some(quote @ ('\'' | '"')) => {
                let end = value[1..].find(quote);
                let end = end.ok_or_else(|| wrong("unterminated quoted value"))?;
                let inner = &value[1..=end];
                match quote {
                    '\'' => inner.to_owned(),
                    _ => interpolate(&inner.replace("\\n", "\n"), &known)
                        .map_err(|text| wrong(&text))?,
                }
            }
            _ => {
                let end = value.find(" #").unwrap_or(value.len());
                interpolate(value[..end].trim_end(), &known).map_err(|text| wrong(&text))?
            }
        };
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_variables() {
        let text = "# x\nA=1\nexport B = \"two $A\"\nC='$A' # x\nD=${HOME}/x # y\n\nHOME\nNONE\n";
        let variables = [("HOME".to_owned(), "/h".to_owned())].into();
        let found = parse(text, &variables).unwrap();
        let shown: Vec<String> = found
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(shown, ["A=1", "B=two 1", "C=$A", "D=/h/x", "HOME=/h"]);
        let failed = parse("A=1\nB C=1", &variables).unwrap_err();
        assert!(failed.starts_with("failed to read .env: line 2: unexpected character"));
        assert!(parse("A='x", &variables).is_err());
    }
}
