//! Error texts for invalid command lines.

use clap::Command;

use crate::Failure;
use crate::commands::USAGE;
use crate::commands::usage::help::{hint, run_help};
use crate::commands::usage::{program, tree};
use crate::flags::{Kind, Mistake};

/// Docker's commands that are not available yet.
const NOT_YET: &[&str] = &[
    "compose", "config", "node", "plugin", "secret", "service", "stack", "swarm",
];

/// Those of `buildx`.
const NOT_YET_OF_BUILDX: &[&str] = &["create", "dial-stdio", "rm", "stop", "use"];

/// Those of `buildx history`, which need Docker Desktop or traces.
const NOT_YET_OF_HISTORY: &[&str] = &["import", "open", "trace"];

/// Returns the error text and exit code for an invalid command line.
pub(crate) fn explain(tree: &Command, mistake: Mistake) -> Failure {
    let Mistake { path, kind } = mistake;
    let name = match kind {
        Kind::Flag(text) => {
            return Failure::with_code(USAGE, format!("{text}\n\n{}", hint(tree, &path)));
        }
        Kind::Count(text) => {
            let hint = hint(tree, &path);
            // Docker's words differ here.
            let hint = if text.starts_with("requires at least") {
                hint.replace("\n\nRun '", "\n\nSee '")
            } else {
                hint
            };
            return Failure::new(format!("whelk: '{}' {text}\n\n{hint}", program(&path)));
        }
        Kind::UnknownCommand(name) => name,
    };
    let of_group: &[&str] = match path.as_slice() {
        [group] if group == "buildx" => NOT_YET_OF_BUILDX,
        [_, group] if group == "history" => NOT_YET_OF_HISTORY,
        _ => &[],
    };
    if of_group.contains(&name.as_str()) || NOT_YET.contains(&name.as_str()) {
        let command = path
            .iter()
            .chain([&name])
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let reason = match (path.as_slice(), name.as_str()) {
            ([_], "create" | "rm" | "stop" | "use") => ": the engine is the only builder",
            _ => "",
        };
        return Failure::new(format!(
            "whelk: {command}: not available in this version of whelk{reason}"
        ));
    }
    let hint = if path.is_empty() {
        run_help(&path)
    } else {
        hint(tree, &path)
    };
    Failure::new(format!(
        "whelk: unknown command: {} {name}\n\n{hint}",
        program(&path)
    ))
}

/// Appends the hint that Docker's CLI appends: for invalid flag values, and for errors of `run` and
/// of the settings of `create`.
pub(crate) fn with_trailer(path: &[String], failure: Failure) -> Failure {
    let Failure {
        text,
        code,
        hint: useful,
        ..
    } = failure;
    let last = path.last().map(String::as_str);
    let makes_container = matches!(path, [name] | [_, name] if (path.len() == 1 || path[0] == "container") && matches!(name.as_str(), "run" | "create"));
    let text = if text.is_empty() || !useful {
        text
    } else if code == USAGE && text.starts_with("invalid argument ") {
        format!("{text}\n\n{}", hint(&tree(), path))
    } else if makes_container && (code == USAGE || last == Some("run") && matches!(code, 126 | 127))
    {
        let text = text.strip_prefix("whelk: ").unwrap_or(&text);
        format!("whelk: {text}\n\n{}", run_help(&path[path.len() - 1..]))
    } else {
        text
    };
    Failure::with_code(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_hints_to_failures() {
        let path = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let text = |command: &str, code: u8, text: &str| {
            with_trailer(&path(command), Failure::with_code(code, text)).text
        };
        let run = "\n\nRun 'whelk run --help' for more information";
        assert_eq!(
            text("container run", 125, "whelk: x"),
            format!("whelk: x{run}")
        );
        assert_eq!(text("run", 125, "x"), format!("whelk: x{run}"));
        assert_eq!(text("run", 127, "whelk: x"), format!("whelk: x{run}"));
        assert_eq!(text("run", 1, "x"), "x");
        assert_eq!(text("network create", 125, "x"), "x");
        assert_eq!(
            text("ps", 125, "invalid argument \"x\" for"),
            "invalid argument \"x\" for\n\nUsage:  whelk ps [OPTIONS]\n\nRun 'whelk ps --help' for more information"
        );
    }
}
