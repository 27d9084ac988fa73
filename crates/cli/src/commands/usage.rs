//! Usage lines, help texts, and errors for invalid command lines.

use clap::{Arg, Command, CommandFactory};

use super::{Cli, USAGE};
use crate::flags::{Kind, Mistake, flags_of};
use crate::output::{print, warn_line};
use crate::{Failure, Outcome};

/// Docker's commands that are not available yet.
const NOT_YET: &[&str] = &[
    "build",
    "builder",
    "buildx",
    "commit",
    "compose",
    "config",
    "context",
    "cp",
    "diff",
    "login",
    "logout",
    "manifest",
    "node",
    "plugin",
    "checkpoint",
    "pull",
    "push",
    "search",
    "secret",
    "service",
    "stack",
    "stats",
    "swarm",
    "trust",
];

/// Returns the definitions of all commands, with usage lines in Docker's form.
pub(super) fn tree() -> Command {
    let mut root = Cli::command();
    root.build();
    with_usage(root, "whelk")
}

/// Returns the definitions of the commands that occur among `words`, and only the names of the
/// others: building all definitions takes longer than most commands do.
pub(super) fn named_by(words: &[String]) -> Command {
    let mut root = without_unnamed(Cli::command(), words);
    root.build();
    root
}

fn without_unnamed(command: Command, words: &[String]) -> Command {
    command.mut_subcommands(|command| {
        let named = std::iter::once(command.get_name())
            .chain(command.get_all_aliases())
            .any(|name| words.iter().any(|word| word == name));
        if named {
            without_unnamed(command, words)
        } else {
            Command::new(command.get_name().to_owned())
        }
    })
}

fn with_usage(command: Command, name: &str) -> Command {
    let line = usage_line(&command, name);
    command
        .override_usage(line)
        .help_template("Usage:  {usage}\n\n{about}\n\n{all-args}{after-help}")
        .mut_subcommands(|command| {
            let name = format!("{name} {}", command.get_name());
            with_usage(command, &name)
        })
}

/// Returns the usage line: `whelk run [OPTIONS] IMAGE [COMMAND] [ARG...]`.
fn usage_line(command: &Command, name: &str) -> String {
    let options = if flags_of(command).any(|flag| !flag.is_hide_set()) {
        " [OPTIONS]"
    } else {
        ""
    };
    if command.has_subcommands() {
        return format!("{name}{options} COMMAND");
    }
    let arguments: String = command
        .get_positionals()
        .map(|argument| format!(" {}", argument_text(argument)))
        .collect();
    format!("{name}{options}{arguments}")
}

fn argument_text(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let count = argument.get_num_args().unwrap_or_default();
    let many = count.max_values() == usize::MAX;
    match names {
        [first, second] if count.min_values() > 1 => format!("{first} {second} [ARG...]"),
        [first, second] => format!("{first} [{second}] [ARG...]"),
        [name] if !argument.is_required_set() => format!("[{name}]"),
        [name] if many => format!("{name} [{name}...]"),
        [name] => name.to_string(),
        _ => argument.get_id().as_str().to_uppercase(),
    }
}

/// Returns the command names at the beginning of normalized words.
pub(super) fn path_of(tree: &Command, words: &[String]) -> Vec<String> {
    let mut command = tree;
    let mut path = Vec::new();
    for word in words.iter().filter(|word| !word.starts_with("--")) {
        match command.find_subcommand(word) {
            Some(found) => command = found,
            None => break,
        }
        path.push(word.clone());
    }
    path
}

fn find<'t>(tree: &'t Command, path: &[String]) -> Option<&'t Command> {
    path.iter()
        .try_fold(tree, |command, name| command.find_subcommand(name))
}

/// Prints the help of a command.
pub(super) fn help(tree: &Command, path: &[String], deprecated_shorthand: bool) -> Outcome {
    let Some(command) = find(tree, path) else {
        let known = (0..path.len())
            .rev()
            .find(|&most| find(tree, &path[..most]).is_some());
        let unknown = &path[known.unwrap_or(0)..];
        return Err(Failure::new(format!(
            "unknown help topic: {}",
            unknown.join(" ")
        )));
    };
    if deprecated_shorthand {
        warn_line!("Flag shorthand -h has been deprecated, use --help");
    }
    // Arguments without a help text are shown in the usage line only.
    let told = |argument: Arg| {
        if argument.is_positional() && argument.get_help().is_none() {
            argument.hide(true)
        } else {
            argument
        }
    };
    let text = command.clone().mut_args(told).render_help().to_string();
    print(&text).map(|()| 0)
}

/// Returns `whelk` followed by the names of a command.
fn program(path: &[String]) -> String {
    std::iter::once("whelk")
        .chain(path.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

fn run_help(path: &[String]) -> String {
    format!("Run '{} --help' for more information", program(path))
}

/// Returns the usage line of a command and a hint at its help. As with Docker, the line of a group of
/// commands is its name here.
fn hint(tree: &Command, path: &[String]) -> String {
    let line = match find(tree, path) {
        Some(root) if path.is_empty() => usage_line(root, &program(path)) + " [ARG...]",
        Some(group) if group.has_subcommands() => program(path),
        Some(command) => usage_line(command, &program(path)),
        None => String::new(),
    };
    format!("Usage:  {line}\n\n{}", run_help(path))
}

/// Returns the error text and exit code for an invalid command line.
pub(super) fn explain(tree: &Command, mistake: Mistake) -> Failure {
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
    if NOT_YET.contains(&name.as_str()) {
        let command = path
            .iter()
            .chain([&name])
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let hint = if matches!(name.as_str(), "pull" | "push" | "login") {
            "; use load or import"
        } else {
            ""
        };
        return Failure::new(format!(
            "whelk: {command}: not available in this version of whelk{hint}"
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
pub(super) fn with_trailer(path: &[String], failure: Failure) -> Failure {
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
    fn usage_lines() {
        let tree = tree();
        for (path, line) in [
            ("run", "whelk run [OPTIONS] IMAGE [COMMAND] [ARG...]"),
            (
                "container exec",
                "whelk container exec [OPTIONS] CONTAINER COMMAND [ARG...]",
            ),
            ("top", "whelk top CONTAINER [ps OPTIONS]"),
            ("stop", "whelk stop [OPTIONS] CONTAINER [CONTAINER...]"),
            ("ps", "whelk ps [OPTIONS]"),
            ("port", "whelk port CONTAINER [PRIVATE_PORT[/PROTO]]"),
            ("rename", "whelk rename CONTAINER NEW_NAME"),
            ("inspect", "whelk inspect [OPTIONS] NAME|ID [NAME|ID...]"),
            ("network", "whelk network COMMAND"),
        ] {
            let path: Vec<String> = path.split(' ').map(str::to_owned).collect();
            let command = find(&tree, &path).unwrap();
            assert_eq!(usage_line(command, &program(&path)), line);
            assert!(
                command
                    .clone()
                    .render_help()
                    .to_string()
                    .starts_with(&format!("Usage:  {line}\n\n"))
            );
        }
    }

    /// Asserts that every command below `command` is defined in full when its names are given.
    fn assert_defined(command: &Command, path: &[String]) {
        for child in command.get_subcommands() {
            for name in std::iter::once(child.get_name()).chain(child.get_all_aliases()) {
                let path = [path, &[name.to_owned()]].concat();
                let commands = named_by(&path);
                let found = find(&commands, &path).unwrap();
                assert_eq!(
                    usage_line(found, &program(&path)),
                    usage_line(child, &program(&path))
                );
                let flags = |command: &Command| flags_of(command).count();
                assert_eq!(flags(found), flags(child), "{path:?}");
                assert_defined(child, &path);
            }
        }
    }

    #[test]
    fn named_commands_are_defined_in_full() {
        assert_defined(&tree(), &[]);
        let commands = named_by(&["container".into(), "rm".into()]);
        let kill = ["container".into(), "kill".into()];
        assert_eq!(flags_of(find(&commands, &kill).unwrap()).count(), 0);
    }

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
