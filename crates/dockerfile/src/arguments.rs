//! Splits an instruction's arguments, each instruction by its own rules.

use crate::error::{Error, Result};

/// White space between words, as BuildKit defines it.
pub(crate) fn is_blank(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\x0b' | '\x0c' | '\r')
}

/// Splits what follows an instruction and its flags. Returns the arguments, and whether they are written as a
/// JSON list. An instruction that is not known has one empty argument.
pub(crate) fn split(instruction: &str, rest: &str, escape: char) -> Result<(Vec<String>, bool)> {
    let plain = |arguments: Vec<String>| Ok((arguments, false));
    let whole = || {
        plain(
            Some(rest.to_owned())
                .filter(|rest| !rest.is_empty())
                .into_iter()
                .collect(),
        )
    };
    match instruction.to_ascii_lowercase().as_str() {
        "add" | "copy" | "volume" => match json_list(rest)? {
            Some(list) => Ok((list, true)),
            None => plain(fields(rest)),
        },
        "cmd" | "entrypoint" | "run" | "shell" => match json_list(rest)? {
            Some(list) => Ok((list, true)),
            None => whole(),
        },
        "arg" => plain(words(rest, escape)),
        "env" => plain(pairs(rest, "ENV", escape)?),
        "label" => plain(pairs(rest, "LABEL", escape)?),
        "expose" | "from" => plain(fields(rest)),
        "healthcheck" => {
            let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let command = command.trim_start();
            let (arguments, json) = match json_list(command)? {
                Some(list) => (list, true),
                None => (vec![command.to_owned()], false),
            };
            let arguments = std::iter::once(kind.to_owned())
                .chain(arguments)
                .filter(|argument| json || !argument.is_empty())
                .collect();
            Ok((arguments, json))
        }
        "maintainer" | "stopsignal" | "user" | "workdir" => whole(),
        _ => plain(vec![String::new()]),
    }
}

/// Parses a JSON list of strings. Returns `None` if `text` is not a JSON list.
///
/// # Errors
/// Returns an error if the list has elements that are not strings.
fn json_list(text: &str) -> Result<Option<Vec<String>>> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return Ok(None);
    };
    let strings = list.into_iter().map(|value| {
        if let serde_json::Value::String(text) = value {
            Some(text)
        } else {
            None
        }
    });
    strings
        .collect::<Option<Vec<_>>>()
        .map(Some)
        .ok_or_else(|| {
            Error::new("when using JSON array syntax, arrays must be comprised of strings only")
        })
}

/// Splits `A=1 B="two words"`, or the old form `A the rest`, into names, values and separators.
fn pairs(rest: &str, name: &str, escape: char) -> Result<Vec<String>> {
    let words = words(rest, escape);
    let Some(first) = words.first() else {
        return Ok(Vec::new());
    };
    if !first.contains('=') {
        let (key, value) = rest
            .split_once(is_blank)
            .ok_or_else(|| Error::new(format!("{name} must have two arguments")))?;
        let value = value.trim_start_matches(is_blank);
        return Ok(vec![key.to_owned(), value.to_owned(), String::new()]);
    }
    let mut split = Vec::with_capacity(words.len() * 3);
    for word in words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Error::new(format!(
                "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
            )));
        };
        split.extend([key.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(split)
}

/// Splits at white space outside quotes. Quotes and escapes are kept; expansion removes them.
fn words(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if quote.is_none() && letter.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match quote {
            None if matches!(letter, '\'' | '"') => quote = Some(letter),
            Some(open) if letter == open => quote = None,
            _ => {}
        }
        // There are no escapes in single quotes, and a trailing escape character is dropped.
        if letter == escape && quote != Some('\'') {
            let Some(escaped) = letters.next() else { break };
            word.push(letter);
            word.push(escaped);
        } else {
            word.push(letter);
        }
    }
    words.extend(word.filter(|word| !word.is_empty()));
    words
}

/// Splits at runs of white space.
fn fields(text: &str) -> Vec<String> {
    let fields = text.split(is_blank).filter(|field| !field.is_empty());
    fields.map(str::to_owned).collect()
}
