//! Dockerfile instructions that change an image's configuration, as `import --change` takes them.

use crate::config::ContainerConfig;
use crate::error::{Error, Result};

/// Applies instructions in order to an empty configuration.
///
/// # Errors
/// An instruction that changes no configuration, or one that is malformed.
pub fn apply<'a>(changes: impl IntoIterator<Item = &'a str>) -> Result<ContainerConfig> {
    let mut config = ContainerConfig::default();
    for change in changes.into_iter().map(str::trim).filter(|change| !change.is_empty()) {
        let (instruction, rest) = change.split_once(char::is_whitespace).unwrap_or((change, ""));
        one(&mut config, &instruction.to_uppercase(), rest.trim()).map_err(|error| error.during(&format!("change {change:?}")))?;
    }
    Ok(config)
}

fn one(config: &mut ContainerConfig, instruction: &str, rest: &str) -> Result<()> {
    match instruction {
        "CMD" => config.cmd = command(rest)?,
        "ENTRYPOINT" => config.entrypoint = command(rest)?,
        "ENV" => {
            for (name, value) in pairs(rest)? {
                config.env.retain(|entry| entry.split('=').next() != Some(&name));
                config.env.push(format!("{name}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest)?),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
                if number.split('-').any(|number| number.parse::<u16>().is_err()) || !matches!(protocol, "tcp" | "udp" | "sctp") {
                    return Err(Error::invalid(format!("invalid port {port:?}")));
                }
                config.exposed_ports.insert(format!("{number}/{protocol}"), serde_json::json!({}));
            }
        }
        "VOLUME" => config.volumes.extend(list_or_words(rest)?.into_iter().map(|path| (path, serde_json::json!({})))),
        "USER" => config.user = required(rest)?,
        "WORKDIR" => config.working_dir = required(rest)?,
        "STOPSIGNAL" => config.stop_signal = required(rest)?,
        "ONBUILD" => config.on_build.push(required(rest)?),
        _ => return Err(Error::invalid(format!("{instruction} is not a valid change command"))),
    }
    Ok(())
}

fn required(rest: &str) -> Result<String> {
    if rest.is_empty() { Err(Error::invalid("an argument is needed")) } else { Ok(rest.to_owned()) }
}

/// A JSON list is taken as it is, anything else is for the shell.
fn command(rest: &str) -> Result<Vec<String>> {
    if rest.starts_with('[')
        && let Ok(list) = serde_json::from_str(rest)
    {
        return Ok(list);
    }
    Ok(vec!["/bin/sh".into(), "-c".into(), required(rest)?])
}

fn list_or_words(rest: &str) -> Result<Vec<String>> {
    if rest.starts_with('[') {
        serde_json::from_str(rest).map_err(|error| Error::invalid(error.to_string()))
    } else {
        Ok(required(rest)?.split_whitespace().map(str::to_owned).collect())
    }
}

/// `A=1 B="two words"`, or the old form `A the rest`.
fn pairs(rest: &str) -> Result<Vec<(String, String)>> {
    let words = words(rest)?;
    let first = words.first().ok_or_else(|| Error::invalid("an argument is needed"))?;
    if !first.contains('=') {
        let (name, value) = rest.split_once(char::is_whitespace).ok_or_else(|| Error::invalid("a value is needed"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words
        .iter()
        .map(|word| {
            word.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| Error::invalid(format!("{word:?} has no value")))
        })
        .collect()
}

/// Splits at spaces outside quotes, and takes quotes and backslashes off.
fn words(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
            (letter, Some(open)) if letter == open => quote = None,
            (letter, Some(_)) => word.get_or_insert_default().push(letter),
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, None) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    if quote.is_some() { Err(Error::invalid("a quote is not closed")) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_the_configuration() {
        let config = apply([
            "CMD [\"a\", \"b c\"]",
            "env A=1 B=\"two words\" C=x\\ y",
            "ENV OLD the rest",
            "EXPOSE 80 53/udp",
            "WORKDIR /w",
            "ENTRYPOINT run it",
        ])
        .unwrap();
        assert_eq!(config.cmd, ["a", "b c"]);
        assert_eq!(config.env, ["A=1", "B=two words", "C=x y", "OLD=the rest"]);
        assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "run it"]);
        for bad in ["RUN x", "CMD", "ENV A", "EXPOSE x", "ENV A=\"open"] {
            assert!(apply([bad]).is_err(), "{bad}");
        }
    }
}
