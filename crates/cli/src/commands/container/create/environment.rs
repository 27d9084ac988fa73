//! The environment and the labels, from flags and files.

use serde_json::{Map, Value, json};

use crate::commands::arguments::labels_of;
use crate::commands::container::create::{CreateContainerArgs, invalid};
use crate::{Failure, Outcome, plain};

/// Returns the environment from files and flags; later entries replace earlier ones. A name without
/// a value takes the value of this process's environment. If that has none, a flag removes the
/// image's variable and a line of a file is ignored.
pub(crate) fn environment(given: &[String], files: &[String]) -> Outcome<Value> {
    let mut entries: Vec<(String, String)> = Vec::new();
    let from_files = lines_of(files)?.into_iter().map(|line| (line, false));
    for (entry, is_flag) in from_files.chain(given.iter().map(|entry| (entry.clone(), true))) {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Failure::with_code(
                125,
                format!(
                    "invalid argument {entry:?} for \"-e, --env\" flag: invalid environment variable: {entry}"
                ),
            ));
        }
        let entry = match std::env::var(&name) {
            _ if entry.contains('=') => entry,
            Ok(value) => format!("{name}={value}"),
            Err(_) if is_flag => entry,
            Err(_) => continue,
        };
        match entries.iter_mut().find(|(other, _)| *other == name) {
            Some((_, earlier)) => *earlier = entry,
            None => entries.push((name, entry)),
        }
    }
    let list: Vec<String> = entries.into_iter().map(|(_, entry)| entry).collect();
    Ok(if list.is_empty() {
        Value::Null
    } else {
        json!(list)
    })
}

fn lines_of(files: &[String]) -> Outcome<Vec<String>> {
    let mut lines = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let text = plain(&error);
            invalid(match error.kind() {
                std::io::ErrorKind::IsADirectory | std::io::ErrorKind::InvalidData => {
                    format!("invalid env file ({file}): read {file}: {text}")
                }
                _ => format!("open {file}: {text}"),
            })
        })?;
        lines.extend(
            text.lines()
                .map(str::trim_start)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    Ok(lines)
}

/// Returns the labels; those of flags replace those of files.
pub(super) fn labels(args: &CreateContainerArgs) -> Outcome<Map<String, Value>> {
    let mut labels = labels_of(&lines_of(&args.label_file)?, "--label-file")?;
    labels.extend(labels_of(&args.label, "-l, --label")?);
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_contains_each_name_once() {
        let given = ["A=1", "A=2", "NOT_SET_ANYWHERE_X"].map(str::to_owned);
        assert_eq!(
            environment(&given, &[]).unwrap(),
            json!(["A=2", "NOT_SET_ANYWHERE_X"])
        );
        assert!(environment(&["=x".into()], &[]).is_err());
    }
}
