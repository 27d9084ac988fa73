//! The environment and the labels, from flags and files.

use std::collections::BTreeMap;

use crate::commands::arguments::{given, labels_of};
use crate::commands::container::create::{CreateContainerArgs, invalid};
use crate::{Failure, Outcome, plain};

/// Returns the environment from files and flags; later entries replace earlier ones. A name without
/// a value takes the value of this process's environment. If that has none, a flag removes the
/// image's variable and a line of a file is ignored.
pub(crate) fn environment(flags: &[String], files: &[String]) -> Outcome<Option<Vec<String>>> {
    let mut entries: Vec<(String, String)> = Vec::new();
    let from_files = lines_of(files)?.into_iter().map(|line| (line, false));
    for (entry, is_flag) in from_files.chain(flags.iter().map(|entry| (entry.clone(), true))) {
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
    Ok(given(entries.into_iter().map(|(_, entry)| entry).collect()))
}

/// Adds the variables of proxies to those of flags, which come first.
pub(super) fn with_proxies(flags: &[String], proxies: &[(String, String)]) -> Vec<String> {
    let mut all = flags.to_vec();
    let is_given = |name: &String| {
        let names = flags.iter().filter_map(|flag| flag.split('=').next());
        names.into_iter().any(|given| given == name)
    };
    let missing = proxies.iter().filter(|(name, _)| !is_given(name));
    all.extend(missing.map(|(name, value)| format!("{name}={value}")));
    all
}

/// Returns the entries of files of variables, `NAME[=VALUE]`, a line each.
fn lines_of(files: &[String]) -> Outcome<Vec<String>> {
    let mut lines = Vec::new();
    for file in files {
        let wrong = |text: String| invalid(format!("invalid env file ({file}): {text}"));
        let bytes = std::fs::read(file).map_err(|error| {
            let text = plain(&error);
            match error.kind() {
                std::io::ErrorKind::IsADirectory => wrong(format!("read {file}: {text}")),
                _ => invalid(format!("open {file}: {text}")),
            }
        })?;
        // Some editors of Windows begin a file with a byte order mark.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = std::str::from_utf8(line).map_err(|_| {
                let numbers: Vec<String> = line.iter().map(ToString::to_string).collect();
                wrong(format!(
                    "invalid utf8 bytes at line {}: [{}]",
                    index + 1,
                    numbers.join(" ")
                ))
            })?;
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let name = line.split('=').next().unwrap_or_default();
            if name.is_empty() {
                return Err(wrong(format!("no variable name on line '{line}'")));
            }
            if name.contains(char::is_whitespace) {
                return Err(wrong(format!("variable '{name}' contains whitespaces")));
            }
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

/// Returns the labels; those of flags replace those of files.
pub(super) fn labels(args: &CreateContainerArgs) -> Outcome<BTreeMap<String, String>> {
    let mut lines = lines_of(&args.label_file)?;
    // As Docker does it: such a line would stand for a variable's value.
    lines.retain(|line| line.contains('='));
    let mut labels = labels_of(&lines, "--label-file")?;
    labels.extend(labels_of(&args.label, "-l, --label")?);
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn environment_contains_each_name_once() {
        let given = ["A=1", "A=2", "NOT_SET_ANYWHERE_X"].map(str::to_owned);
        let found = environment(&given, &[]).unwrap();
        assert_eq!(found.unwrap(), ["A=2", "NOT_SET_ANYWHERE_X"]);
        assert_eq!(environment(&[], &[]).unwrap(), None);
        assert_eq!(
            environment(&["=x".into()], &[]).unwrap_err().text,
            "invalid argument \"=x\" for \"-e, --env\" flag: invalid environment variable: =x"
        );
    }

    #[test]
    fn files_of_variables_are_checked_line_by_line() {
        let scratch = Scratch::temporary("env").unwrap();
        let directory = scratch.path();
        let path = directory.join("f");
        let file = path.display().to_string();
        let check = |content: &[u8], expected: Result<&[&str], &str>| {
            std::fs::write(&path, content).unwrap();
            let expected = expected.map(|lines| lines.iter().map(|&line| line.into()).collect());
            let found = lines_of(std::slice::from_ref(&file));
            let found = found.map_err(|failure| failure.text);
            assert_eq!(
                found,
                expected.map_err(|text| format!("invalid env file ({file}): {text}"))
            );
        };
        let mark = b"\xef\xbb\xbfA=1\r\n\n# comment\n  B\nC=a b";
        check(mark, Ok(&["A=1", "B", "C=a b"]));
        check(b"A B=1", Err("variable 'A B' contains whitespaces"));
        check(b"=1", Err("no variable name on line '=1'"));
        check(
            b"A=1\nB=\xff",
            Err("invalid utf8 bytes at line 2: [66 61 255]"),
        );
    }
}
