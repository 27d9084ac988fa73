//! Variables in Compose's files: `$NAME`, `${NAME:-DEFAULT}`, `${NAME:?ERROR}`, `${NAME:+OTHER}`.

/// How deep variables may be in the defaults of others.
const MAX_DEPTH: usize = 20;

/// The maximum length of a text.
const MAX_TEXT: usize = 1 << 20;

/// Replaces variables. One that is not set is empty.
///
/// # Errors
/// Returns what is malformed, or the error of a variable that is required.
pub(crate) fn interpolate(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    nested(text, variable, 0)
}

fn nested(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    depth: usize,
) -> Result<String, String> {
    let invalid = || {
        format!(
            "invalid interpolation format: {text:?}. You may need to escape any $ with another $"
        )
    };
    if depth > MAX_DEPTH {
        return Err("variables are nested too deeply".into());
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
            let end = closing(after).ok_or_else(invalid)?;
            let name = name_length(after);
            if name == 0 {
                return Err(invalid());
            }
            let (name, operator) = after[..end].split_at(name);
            out += &braced(name, operator, variable, depth)
                .ok_or_else(invalid)
                .and_then(|found| found)?;
            rest = &after[end + 1..];
        } else {
            let length = name_length(rest);
            if length == 0 {
                return Err(invalid());
            }
            out += &variable(&rest[..length]).unwrap_or_default();
            rest = &rest[length..];
        }
        if out.len() > MAX_TEXT {
            return Err("the text is too long".into());
        }
    }
    Ok(out + rest)
}

/// Returns the length of a variable's name at the begin.
fn name_length(text: &str) -> usize {
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    match text.as_bytes().first() {
        Some(first) if first.is_ascii_digit() => 0,
        _ => text.bytes().take_while(is_name).count(),
    }
}

/// Returns the place of the brace that closes.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'{' if at > 0 && bytes[at - 1] == b'$' => open += 1,
            b'}' if open == 0 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
    }
    None
}

/// Returns what `${NAME OPERATOR}` stands for; `None` for an unknown operator.
fn braced(
    name: &str,
    operator: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    depth: usize,
) -> Option<Result<String, String>> {
    let value = variable(name);
    if operator.is_empty() {
        return Some(Ok(value.unwrap_or_default()));
    }
    let (empty_counts, operator) = match operator.strip_prefix(':') {
        Some(operator) => (true, operator),
        None => (false, operator),
    };
    let value = value.filter(|value| !empty_counts || !value.is_empty());
    let kind = operator.chars().next()?;
    let word = || nested(&operator[1..], variable, depth + 1);
    Some(match (kind, value) {
        ('-' | '?', Some(value)) => Ok(value),
        ('-', None) => word(),
        ('?', None) => word().and_then(|word| {
            Err(match word.as_str() {
                "" => format!("required variable {name} is missing a value"),
                word => format!("required variable {name} is missing a value: {word}"),
            })
        }),
        ('+', Some(_)) => word(),
        ('+', None) => Ok(String::new()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced() {
        let variable = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("$A-${A}-$$A", Ok("1-1-$A")),
            ("${B}x$B", Ok("x")),
            ("${B:-${A}y}", Ok("1y")),
            ("${E:-d}${E-d}", Ok("d")),
            ("${A:+z}${B+z}", Ok("z")),
            ("${B:?}", Err("required variable B is missing a value")),
            (
                "${E:?no}",
                Err("required variable E is missing a value: no"),
            ),
            ("${A", Err("invalid interpolation format")),
            ("${A!x}", Err("invalid interpolation format")),
            ("$", Err("invalid interpolation format")),
        ] {
            let found = interpolate(text, &variable);
            match expected {
                Ok(expected) => assert_eq!(found.as_deref(), Ok(expected), "{text}"),
                Err(expected) => assert!(found.unwrap_err().starts_with(expected), "{text}"),
            }
        }
        let deep = format!("{}{}", "${B:-".repeat(100), "}".repeat(100));
        assert_eq!(
            interpolate(&deep, &variable),
            Err("variables are nested too deeply".into())
        );
    }
}
